"""Files as people have them: encodings, separators, headers, odd rows. Each is read or refused."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.data.tables.options import Options, separator_of
from experiments.data.tables.reading import Table, of_frame, read
from experiments.records.errors import ConfigError, UserError

ROWS = [["0.5", "red", "yes"], ["1.5", "blue", "no"], ["-2", "red", "no"], ["3", "green", "yes"]] * 6


def text_of(separator: str = ",", header: str | None = "size,colour,label", end: str = "\n") -> str:
    lines = [separator.join(row) for row in ROWS]
    head = [header.replace(",", separator)] if header else []
    return end.join([*head, *lines]) + end


def table(tmp_path: Path, content: str | bytes, name: str = "t.csv", **options: object) -> Table:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read(path, Options(**options))


def holds_the_rows(found: Table, names: list[str] | None = None) -> None:
    assert list(found.frame.columns) == (names or ["size", "colour", "label"])
    assert found.frame.to_numpy().tolist() == ROWS


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separators_are_found(tmp_path: Path, separator: str) -> None:
    found = table(tmp_path, text_of(separator))
    holds_the_rows(found)
    assert any("separated" in note for note in found.notes) == (separator != ",")
    np.testing.assert_array_equal(found.lines, np.arange(2, 26))


def test_blanks_separate_where_nothing_else_does(tmp_path: Path) -> None:
    holds_the_rows(table(tmp_path, text_of("   ")))
    with pytest.raises(UserError, match=r"one column only, 'text'; set separator="):
        table(tmp_path, "text\nhello there\nyou\nwho goes there\n")


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]
)
def test_encodings_are_found(tmp_path: Path, encoding: str) -> None:
    content = (
        text_of().replace("red", "café €5") if encoding == "cp1252" else text_of().replace("red", "rött")
    )
    found = table(tmp_path, content.encode(encoding))
    assert found.frame["colour"][0] == ("café €5" if encoding == "cp1252" else "rött")
    assert any("encoding" in note for note in found.notes) == (encoding != "utf-8")


def test_other_scripts_are_told_by_their_letters(tmp_path: Path) -> None:
    words = ["машина приехала поздно и сломалась", "спасибо большое за доставку", "верните мои деньги"]
    lines = "\n".join(f"{words[i % 3]},{'да' if i % 2 else 'нет'}" for i in range(60))
    content = f"текст,ответ\n{lines}\n"
    found = table(tmp_path, content.encode("cp1251"))
    assert found.frame["текст"][0] == words[0]
    assert table(tmp_path, content.encode("cp1251"), encoding="cp1251").frame["ответ"][1] == "да"


def test_compressed_parquet_and_dataframes(tmp_path: Path) -> None:
    holds_the_rows(table(tmp_path, gzip.compress(text_of().encode()), "t.csv.gz"))
    frame = pd.DataFrame(ROWS, columns=["size", "colour", "label"])
    frame.to_parquet(tmp_path / "t.parquet")
    holds_the_rows(read(tmp_path / "t.parquet", Options()))
    holds_the_rows(of_frame(frame))
    with pytest.raises(UserError, match="damaged gzip"):
        table(tmp_path, b"\x1f\x8b" + b"no gzip at all")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        table(tmp_path, b"PAR1 torn")
    with pytest.raises(UserError, match=r"separator= is for text files .* leave it out"):
        read(tmp_path / "t.parquet", Options(separator="tab"))


def test_excel_is_read_or_the_package_is_named(tmp_path: Path) -> None:
    frame = pd.DataFrame({"size": [0.5, 1.5], "label": ["a", "b"]})
    try:
        frame.to_excel(tmp_path / "t.xlsx", index=False)
    except ImportError:
        with zipfile.ZipFile(tmp_path / "t.xlsx", "w") as archive:
            archive.writestr("xl/workbook.xml", "<workbook/>")
        with pytest.raises(UserError, match="pip install openpyxl"):
            read(tmp_path / "t.xlsx", Options())
    else:
        assert read(tmp_path / "t.xlsx", Options()).frame["size"].tolist() == [0.5, 1.5]


def test_a_first_line_that_is_no_header(tmp_path: Path) -> None:
    found = table(tmp_path, text_of(header=None))
    holds_the_rows(found, ["column1", "column2", "column3"])
    assert found.lines[0] == 1
    assert any("looks like data" in note for note in found.notes)
    texts = "\n".join(f'{"ham" if i % 3 else "spam"}\tmessage number {i} "hi' for i in range(30))
    found = table(tmp_path, texts)  # quotation marks that do not pair, as in the tab-separated SMS collection
    assert found.frame.shape == (30, 2)
    assert found.frame["column2"][3].endswith('"hi')
    holds_the_rows(table(tmp_path, text_of(header=None), header="false"), ["column1", "column2", "column3"])
    assert len(table(tmp_path, text_of(header=None), header="true").frame) == len(ROWS) - 1
    years = table(tmp_path, "country,2019,2020\n" + "\n".join(f"c{i},{i},{i}" for i in range(9)))
    assert list(years.frame.columns) == ["country", "2019", "2020"]


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("sep=;\n", "names the separator"),
        ('"sep=;"\r\n', "names the separator"),
        ("# exported today\n", "comment"),
    ],
)
def test_lines_above_the_header(tmp_path: Path, before: str, said: str) -> None:
    found = table(tmp_path, before + text_of(";"))
    holds_the_rows(found)
    assert found.lines[0] == 3
    assert any(said in note for note in found.notes)


def test_a_header_may_begin_with_a_hash(tmp_path: Path) -> None:
    holds_the_rows(table(tmp_path, text_of(header="#size,colour,label")), ["#size", "colour", "label"])


def test_row_names_and_separators_at_the_end(tmp_path: Path) -> None:
    lines = text_of().splitlines()
    found = table(tmp_path, "\n".join([lines[0], *(f"r{i},{line}" for i, line in enumerate(lines[1:]))]))
    holds_the_rows(Table(found.frame.drop(columns="row names"), found.lines, "line", ""))
    found = table(tmp_path, "\n".join([lines[0], *(line + "," for line in lines[1:])]))
    holds_the_rows(found)
    assert [note for note in found.notes if "ends with a separator" in note]
    found = table(tmp_path, "\n".join(line + ",," for line in lines))  # as the known SMS file has it
    holds_the_rows(found)
    assert any("neither a name nor a cell" in note for note in found.notes)


def test_quoted_cells_keep_their_lines(tmp_path: Path) -> None:
    found = table(tmp_path, 'x,note,label\n1,"one\r\ntwo, ""three""",a\n\n2,four,b\n')
    assert found.frame["note"].tolist() == ['one\r\ntwo, "three"', "four"]
    np.testing.assert_array_equal(found.lines, [2, 5])


def test_rows_of_another_width(tmp_path: Path) -> None:
    text = text_of() + "7,red\n"
    with pytest.raises(UserError, match=r"line 26 has 2 cells, the table has 3 columns; complete the row"):
        table(tmp_path, text)
    assert len(table(tmp_path, text, bad_rows="skip").frame) == len(ROWS)
    found = table(tmp_path, text, bad_rows="fill")
    assert found.frame["label"].iloc[-1] == ""
    assert any("1 row with too few cells" in note and "line 26" in note for note in found.notes)
    with pytest.raises(UserError, match=r"line 26 has 4 cells.* quote cells that hold the separator"):
        table(tmp_path, text_of() + "7,red,yes,more\n")
    holds_the_rows(table(tmp_path, text_of() + "7,red,yes,more\n", bad_rows="skip"))


def test_quotation_marks_that_close_no_cell(tmp_path: Path) -> None:
    text = text_of() + '7,"red" one,yes\n'
    with pytest.raises(UserError, match="line 26 has a quotation mark"):
        table(tmp_path, text)
    assert table(tmp_path, text, quote="none").frame["colour"].iloc[-1] == '"red" one'
    with pytest.raises(UserError, match="quotation mark"):
        table(tmp_path, text_of() + '7,"red,yes\n8,red,no\n')


def test_names_twice_and_none(tmp_path: Path) -> None:
    found = table(tmp_path, "x,x,,label\n1,2,3,a\n4,5,6,b\n")
    assert list(found.frame.columns) == ["x", "x (2)", "column3", "label"]
    assert any("Two columns are called 'x'" in note for note in found.notes)


def test_decimal_commas_are_found(tmp_path: Path) -> None:
    text = "a;when;label\n" + "".join(f"{i},5;0{i}.01.2024;x\n" for i in range(1, 9))
    assert table(tmp_path, text).decimal == ","
    assert table(tmp_path, text, decimal="point").decimal == "."
    assert table(tmp_path, text.replace(",5", ".5")).decimal == "."
    quoted = 'a,label\n"1,234",x\n"5,678",y\n"9,012",x\n'
    assert table(tmp_path, quoted).decimal is None  # thousands


def test_a_nul_is_shown_and_told(tmp_path: Path) -> None:
    found = table(tmp_path, text_of().replace("blue", "bl\0ue", 1))
    assert found.frame["colour"][1] == "bl\N{REPLACEMENT CHARACTER}ue"
    assert any("NUL" in note and "line 3" in note for note in found.notes)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", {}, "is empty"),
        (b"   \n", {}, "is empty"),
        (b"a,b\n", {"encoding": "klingon"}, "encoding=klingon is unknown"),
        (b"a,b\ncaf\xe9,1\n", {"encoding": "utf-8"}, "line 2 is not valid utf-8; set encoding="),
        (b"a,b\n1,2\n", {"sheet": "one"}, "has no sheet 'one'"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, content: bytes, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        table(tmp_path, content, **options)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; give the CSV"):
        read(tmp_path, Options())
    with pytest.raises(UserError, match="is not a file; give the CSV"):
        read(tmp_path / "none.csv", Options())
    with pytest.raises(ConfigError, match="give comma, semicolon, tab"):
        separator_of("and")


LONG = [f"{i},{i % 7}.5,word {i % 5}" for i in range(400)]
TEXTS = {
    "plain": ["a,b,c", *LONG],
    "spaces and letters": ["a,b,c", *LONG, " x , ü ,\t", "7,8,9"],
    "a title and a comment": ["# of the year", "a,b,c", *LONG],
    "an empty line above": ["", "a,b,c", *LONG],
    "empty lines within": ["a,b,c", *LONG[:300], "", *LONG[300:]],
    "an empty line at the end": ["a,b,c", *LONG, ""],
    "a row of empty cells": ["a,b,c", *LONG[:300], ",,", *LONG[300:]],
    "a short row": ["a,b,c", *LONG[:300], "1,2", *LONG[300:]],
    "a long row": ["a,b,c", *LONG[:300], "1,2,3,4", *LONG[300:]],
    "quoted cells": ["a,b,c", *LONG[:300], '1,2,"x, y"', *LONG[300:]],
    "row names": ["a,b", *LONG],
    "an empty last cell": ["a,b,c", *[f"{row}," for row in LONG]],
    "an empty column": ["a,b,,c", *[row.replace(",word", ",,word") for row in LONG]],
    "only a sample": ["a,b,c", *LONG[:50]],
}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("kind", TEXTS)
def test_both_readers_of_rows_find_the_same(
    tmp_path: Path, kind: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = end.join(TEXTS[kind]) + ("" if kind == "plain" else end)
    monkeypatch.setattr("experiments.data.tables.plain.LEAST", 10**9)
    long = table(tmp_path, content.encode(), bad_rows="skip")
    monkeypatch.setattr("experiments.data.tables.plain.LEAST", 1)
    calls = []
    from experiments.data.tables import delimited

    def counted(*given: object) -> object:
        calls.append(delimited_rows(*given))  # type: ignore[arg-type]
        return calls[-1]

    delimited_rows = delimited.rows_below
    monkeypatch.setattr(delimited, "rows_below", counted)
    short = table(tmp_path, content.encode(), bad_rows="skip")
    pd.testing.assert_frame_equal(short.frame, long.frame)
    np.testing.assert_array_equal(short.lines, long.lines)
    assert (short.notes, short.decimal) == (long.notes, long.decimal)
    if kind in ("plain", "row names", "spaces and letters", "an empty column") and end != "\r":
        assert calls[-1] is not None  # the short way was taken
