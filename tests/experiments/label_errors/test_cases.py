"""The kinds of trouble of public tables, in small files of our own: a ranked list, or one sentence."""

# ruff: noqa: E501  (a kind of trouble a line)
from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.label_errors import find_label_errors
from experiments.records.errors import UserError

N = 60


def rows(label: Callable[[int, int], str] = lambda i, k: "ny"[k] * 2) -> list[list[str]]:
    """Two numbers that tell two classes apart, and the label."""
    generator = np.random.default_rng(0)
    found = []
    for i in range(N):
        k = i % 2
        found.append([f"{generator.normal() + 3 * k:.3f}", f"{generator.normal():.3f}", label(i, k)])
    return found


def csv(
    cells: list[list[str]], header: str | None = "a,b,label", separator: str = ",", end: str = "\n"
) -> str:
    head = [header.replace(",", separator)] if header else []
    return end.join([*head, *(separator.join(row) for row in cells)]) + end


def with_column(cell: Callable[[int], str], header: str = "c,a,b,label") -> bytes:
    """The plain table with a first column of the cells given."""
    return csv([[cell(i), *r] for i, r in enumerate(rows())], header).encode()


def zipped(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, csv(rows()))
    return content.getvalue()


READ: dict[str, tuple[bytes, dict[str, object], str]] = {
    "plain": (csv(rows()).encode(), {}, ""),
    "carriage returns": (csv(rows(), end="\r\n").encode(), {}, ""),
    "three classes": (csv(rows(lambda i, k: f"c{i % 3}")).encode(), {}, ""),
    "twelve classes": (csv(rows(lambda i, k: f"c{i % 12}")).encode(), {}, ""),
    "missing numbers": (csv([[r[0] if i % 6 else "", *r[1:]] for i, r in enumerate(rows())]).encode(), {}, ""),
    "numbers NA": (csv([[r[0] if i % 6 else "NA", *r[1:]] for i, r in enumerate(rows())]).encode(), {}, ""),
    "question marks": (csv([[r[0] if i % 9 else "?", *r[1:]] for i, r in enumerate(rows())]).encode(), {}, ""),
    "a few words among numbers": (csv([[r[0] if i else "tall", *r[1:]] for i, r in enumerate(rows())]).encode(), {}, "'tall' on line 2"),
    "infinite": (csv([[r[0] if i else "inf", *r[1:]] for i, r in enumerate(rows())]).encode(), {}, "'inf' on line 2"),
    "huge": (csv([["1e308" if i % 3 else "-1e308", *r[1:]] for i, r in enumerate(rows())]).encode(), {}, ""),
    "hexadecimal": (csv([[f"0x{(7 * i) % 64:02x}", *r[1:]] for i, r in enumerate(rows())]).encode(), {}, ""),
    "latin-1": (csv([[*r[:2], "café" if k % 2 else "thé"] for k, r in enumerate(rows())]).encode("latin-1"), {}, "cp1252"),
    "latin-1 header": (csv(rows(), "a,b,étiquette").encode("latin-1"), {"label": "étiquette"}, "cp1252"),
    "utf-16": (csv(rows()).encode("utf-16"), {}, "utf-16"),
    "byte order mark": (csv(rows()).encode("utf-8-sig"), {}, "utf-8"),
    "tabs without a header": (csv(rows(), None, "\t").encode(), {"label": "-1"}, "looks like data"),
    "semicolons": (csv(rows(), separator=";").encode(), {}, "semicolons"),
    "decimal commas": (csv([[x.replace(".", ",") for x in r] for r in rows()], separator=";").encode(), {}, "decimal commas"),
    "sep line": (b"sep=;\n" + csv(rows(), separator=";").encode(), {}, "names the separator"),
    "comment": (b"# exported today\n" + csv(rows()).encode(), {}, "comment"),
    "separator at the end": (csv([[*r, ""] for r in rows()]).encode(), {}, "ends with a separator"),
    "nameless empty columns": (csv([[*r, "", ""] for r in rows()], "a,b,label,,").encode(), {}, "neither a name nor a cell"),
    "row names": (csv([[f"r{i}", *r] for i, r in enumerate(rows())]).encode(), {}, "row names"),
    "a column twice": (csv([[r[0], r[1], r[1] + "1", r[2]] for r in rows()], "a,b,b,label").encode(), {}, "'b'; the later one"),
    "the label twice": (csv([[*r, r[2]] for r in rows()], "a,b,label,label").encode(), {"label": "label"}, "gives the label away"),
    "NA as a class": (csv(rows(lambda i, k: ("EU", "NA")[k])).encode(), {}, "'NA' is a class here"),
    "booleans": (csv(rows(lambda i, k: ("False", "TRUE" if i % 4 == 1 else "true")[k])).encode(), {}, "one class"),
    "one and 1.0": (csv(rows(lambda i, k: ("0", "1.0" if i % 4 == 1 else "1")[k])).encode(), {}, "one class"),
    "stray spaces": (csv(rows(lambda i, k: ("no", "yes " if i % 4 == 1 else "yes")[k])).encode(), {}, "join=true"),
    "stray spaces joined": (csv(rows(lambda i, k: ("no", "yes " if i % 4 == 1 else "yes")[k])).encode(), {"join": True}, "are joined"),
    "empty labels": (csv(rows(lambda i, k: "" if i < 3 else "ny"[k])).encode(), {}, "3 of 60 rows have no label"),
    "a rare class": (csv(rows(lambda i, k: "odd" if i == 5 else "ny"[k])).encode(), {}, "fewer than 5 rows: 'odd' (1)"),
    "ids": (csv([[f"K{i:03d}", *r] for i, r in enumerate(rows())], "key,a,b,label").encode(), {}, ""),
    "quoted line ends": (csv([[r[0], f'"one\r\ntwo {i % 5}"', r[2]] for i, r in enumerate(rows())]).encode(), {}, ""),
    "right to left": (csv(rows(lambda i, k: "אב"[k]), "מספר,‮evil‬,label").encode(), {}, ""),
    "formulas": (csv([[r[0], f"=cmd|' /C calc'!A{i % 4}", r[2]] for i, r in enumerate(rows())]).encode(), {}, ""),
    "old line ends": (csv(rows(), end="\r").encode(), {}, ""),
    "no line end at the end": (csv(rows()).encode().rstrip(), {}, ""),
    "gzip": (gzip.compress(csv(rows()).encode()), {}, "compressed with gzip"),
    "bzip2": (bz2.compress(csv(rows()).encode()), {}, "compressed with bzip2"),
    "xz": (lzma.compress(csv(rows()).encode()), {}, "compressed with xz"),
    "zip": (zipped("data/t.csv", "__MACOSX/data/t.csv"), {}, "'data/t.csv' in it is read"),
    "utf-16 without a mark": (csv(rows()).encode("utf-16-le"), {}, "utf-16-le"),
    "cyrillic": (csv([[r[0], ("машина приехала поздно", "спасибо за доставку")[i % 2], r[2]] for i, r in enumerate(rows())]).encode("cp1251"), {}, "guessed from its letters"),
    "pipes": (csv(rows(), separator="|").encode(), {}, "pipes"),
    "blanks": (csv(rows(), separator="   ").encode(), {}, "spaces"),
    "a title": (("Quarterly report\n\n" + csv(rows())).encode(), {}, "Line 1 is read as a title: 'Quarterly report'"),
    "a title with separators": (("Quarterly report,,\nfor 2024,,\n" + csv(rows())).encode(), {}, "Line 2 is read as a title"),
    "lines to skip": (("one,two\nthree,four\n" + csv(rows())).encode(), {"skip": 2}, ""),
    "a line of dashes": (csv([["---", "---", "---"], *rows()], separator=" | ").encode(), {}, "line of dashes"),
    "blanks before quotation marks": (csv([[r[0], f' "one, {i % 3}"', f' "{r[2]}"'] for i, r in enumerate(rows())], "a, note, label").encode(), {}, "Blanks between"),
    "single quotation marks": (csv([[r[0], f"'one, {i % 3}'", r[2]] for i, r in enumerate(rows())]).encode(), {}, "single quotation marks"),
    "apostrophes": (csv([[r[0], f"'tis {i % 3}", r[2]] for i, r in enumerate(rows())]).encode(), {}, ""),
    "backslashes before quotation marks": (csv([[r[0], f'"say \\"hi\\", {i % 3}"', r[2]] for i, r in enumerate(rows())]).encode(), {}, "backslash"),
    "quotation marks among tabs": (csv([[r[0], f'"hi" {i % 3}', r[2]] for i, r in enumerate(rows())], separator="\t").encode(), {}, "ordinary characters"),
    "dates": (with_column(lambda i: f"2024-{i % 12 + 1:02d}-{i % 28 + 1:02d}"), {}, ""),
    "dates with dots": (with_column(lambda i: f"{i % 28 + 1}.{i % 12 + 1}.2024" if i % 9 else ""), {}, ""),
    "days or months": (with_column(lambda i: f"0{i % 9 + 1}/0{i % 7 + 1}/2024"), {}, "day and month cannot be told apart"),
    "compact dates": (with_column(lambda i: f"2024{i % 12 + 1:02d}{i % 28 + 1:02d}"), {}, ""),
    "times of day": (with_column(lambda i: f"{i % 24:02d}:{(7 * i) % 60:02d}"), {}, ""),
    "thousands separators": (with_column(lambda i: f'"{1000 + 37 * i:,}"'), {}, ""),
    "currencies": (with_column(lambda i: f"${3 * i + 0.5:.2f}"), {}, ""),
    "negative in brackets": (with_column(lambda i: f"({i / 7 + 1:.2f})" if i % 2 else f"{i / 7:.2f}"), {}, ""),
    "typographic minus": (with_column(lambda i: f"\N{MINUS SIGN}{i / 7 + 1:.2f}" if i % 2 else f"{i / 7:.2f}"), {}, ""),
    "booleans with holes": (with_column(lambda i: ("true", "false", "")[i % 3]), {}, ""),
    "mixed types": (with_column(lambda i: ("1", "x", "2.5", "true", "2020-01-01")[i % 5]), {}, ""),
    "many categories": (with_column(lambda i: f"town {i % 29}"), {"levels": 5}, ""),
    "a value of its own in each row": (with_column(lambda i: f"user{i}@example.org"), {}, ""),
    "a copy of the label": (csv([["-+"[i % 2], *r] for i, r in enumerate(rows())], "sign,a,b,label").encode(), {}, "'sign' gives the label away"),
    "a trace of the label": (csv([[f"{i % 2 + i / 1000}", *r] for i, r in enumerate(rows())], "trace,a,b,label").encode(), {}, "'trace' alone gives 100.0 % of the labels"),
    "a constant": (with_column(lambda i: "same"), {}, ""),
    "an empty column": (with_column(lambda i: ""), {}, ""),
    "a copy of a column": (csv([[r[0], *r] for r in rows()], "twin,a,b,label").encode(), {}, ""),
    "rows twice": (csv(rows()[:30] * 2).encode(), {}, "30 rows repeat the features of another row"),
    "rows that contradict": (csv([["1.5", "2.5", "ny"[i % 2]] if i < 4 else r for i, r in enumerate(rows())]).encode(), {}, "in 1 such sets the labels differ"),
    "a long header": (csv(rows(), "A" * 5000 + ",b,label").encode(), {}, ""),
    "a comma in a name": (csv(rows(), '"a, b",c,label').encode(), {"numbers": '["a, b",c]'}, ""),
    "many columns": (csv([[f"{(i * j) % 17}.5" for j in range(1, 301)] + [r[2]] for i, r in enumerate(rows())], ",".join([*(f"x{j}" for j in range(300)), "label"])).encode(), {}, ""),
    "a label in two forms of unicode": (csv(rows(lambda i, k: ("no", "caf\u00e9" if i % 4 == 1 else "cafe\u0301")[k])).encode(), {}, "are one class"),
    "an invisible sign in a label": (csv(rows(lambda i, k: ("no", "yes\u200b" if i % 4 == 1 else "yes")[k])).encode(), {}, "invisible signs only; join=true"),
    "labels that are numbers": (csv(rows(lambda i, k: f"{3 * k + i / 7:.2f}")).encode(), {}, "outlying ones are sought"),
    "labels near the largest number": (csv(rows(lambda i, k: f"{3 * k + i / 7:.2f}e306")).encode(), {}, "outlying ones are sought"),
    "a number that is no label": (csv(rows(lambda i, k: f"{i / 7:.2f}" if i else "n/a")).encode(), {"unlabelled": "[n/a]"}, "1 of 60 rows have no label"),
    "nan labels": (csv(rows(lambda i, k: "NaN" if i < 3 else "ny"[k])).encode(), {}, "3 of 60 rows have no label"),
    "weights": (with_column(lambda i: str(i % 4)), {"weight": "c"}, ""),
    "groups": (with_column(lambda i: f"patient {i // 4}"), {"group": "c"}, ""),
    "a class in one group": (csv([[str(i // 6 if k != "odd" else 0), *r] for i, r in enumerate(rows(lambda i, k: "odd" if i in (0, 2, 4) else "ny"[k])) for k in [r[-1]]], "c,a,b,label").encode(), {"group": "c"}, "in one group only: 'odd'"),
    "a total at the end": (csv(rows()).encode() + b"Total,1.5,\n", {}, "1 of 61 rows have no label"),
    "a rare class is no proof": (csv(rows(lambda i, k: "odd" if i == 5 else "n")).encode(), {}, ""),
    "a NUL": (csv(rows(lambda i, k: "n\0y" if i == 5 else "ny"[k])).encode(), {}, "NUL"),
    "short row filled": (csv(rows()).encode() + b"1.5\n", {"bad_rows": "fill"}, "too few cells"),
    "short row skipped": (csv(rows()).encode() + b"1.5\n", {"bad_rows": "skip"}, "left out"),
}  # fmt: skip
KINDS: dict[str, dict[str, str]] = {
    "hexadecimal": {"a": "number"},
    "missing numbers": {"a": "number"},
    "decimal commas": {"a": "number", "b": "number"},
    "row names": {"row names": "id", "a": "number"},
    "a title": {"a": "number", "b": "number"},
    "a title with separators": {"a": "number", "b": "number"},
    "lines to skip": {"a": "number", "b": "number"},
    "blanks before quotation marks": {"a": "number", "note": "category"},
    "single quotation marks": {"a": "number", "b": "category"},
    "apostrophes": {"a": "number", "b": "category"},
    "backslashes before quotation marks": {"a": "number", "b": "category"},
    "quoted line ends": {"a": "number", "b": "category"},
    "dates": {"c": "date"},
    "dates with dots": {"c": "date"},
    "compact dates": {"c": "date"},
    "times of day": {"c": "date"},
    "thousands separators": {"c": "number"},
    "currencies": {"c": "number"},
    "negative in brackets": {"c": "number"},
    "typographic minus": {"c": "number"},
    "mixed types": {"c": "category"},
    "many categories": {"c": "category"},
    "a value of its own in each row": {"c": "id"},
    "ids": {"key": "id"},
    "a copy of the label": {"sign": "leak"},
    "a trace of the label": {"trace": "number"},
    "a constant": {"c": "constant"},
    "an empty column": {"c": "constant"},
    "a copy of a column": {"twin": "number", "a": "copy"},
    "weights": {"c": "ignored"},
    "groups": {"c": "ignored"},
}
REFUSED: dict[str, tuple[bytes, dict[str, object], str]] = {
    "short row": (csv(rows()).encode() + b"1.5\n", {}, r"line 62 has 1 cells, the table has 3 columns; .*bad_rows="),
    "long row": (csv(rows()).encode() + b"1,2,3,4\n", {}, r"line 62 has 4 cells.*bad_rows=skip"),
    "an open quote": (csv(rows()).encode() + b'1,"2,n\n', {}, "line 62 has a quotation mark.*quote=none"),
    "no label column": (csv(rows(), "a,b,kind").encode(), {}, "set label= to one of 'a', 'b', 'kind'"),
    "one class": (csv(rows(lambda i, k: "x")).encode(), {}, "one class only, 'x'"),
    "all labels differ": (csv(rows(lambda i, k: f"t{i}")).encode(), {}, "is it the label"),
    "one column": (b"label\n" + b"x\ny\n" * 20, {}, "one column only, 'label'; set separator="),
    "only a header": (b"a,b,label\n", {}, "has no rows below its header"),
    "nothing": (b"", {}, "is empty"),
    "a web page": (b"<!DOCTYPE html><html><body>\n<p>Not, found</p></body></html>", {}, "web page"),
    "JSON": (b'[{"a": 1, "label": "x"}]', {}, r"is JSON; read it by pandas\.read_json"),
    "JSON lines": (b'{"a": 1, "label": "x"}\n{"a": 2, "label": "y"}\n', {}, "is JSON"),
    "ARFF": (b"@relation r\n@attribute a numeric\n@data\n1,x\n", {}, "is an ARFF file; save it as CSV"),
    "a NumPy array": (b"\x93NUMPY\x01\x00v\x00{'descr': '<f8'}", {}, "is a NumPy array"),
    "a pickle": (b"\x80\x04\x95\x10\x00", {}, "is a pickle"),
    "no text": (bytes(range(1, 32)) * 40, {}, "too many control characters"),
    "a zip of two": (zipped("x.csv", "y.csv"), {}, r"zip archive of 2 files \('x.csv', 'y.csv'\); unpack it"),
    "half a gzip": (gzip.compress(csv(rows()).encode())[:60], {}, "damaged gzip"),
    "half an xz": (lzma.compress(csv(rows()).encode())[:60], {}, "damaged xz"),
    "only the label": (b"label,label2\n" + b"x,x\ny,y\n" * 20, {"ignore": ["label2"]}, "no column is left"),
    "numbers but one": (csv(rows(lambda i, k: f"{i / 7:.2f}" if i != 5 else "n/a")).encode(), {}, r"59 of 60 labels .*'n/a' on line 7 is none: set unlabelled=\[n/a\]"),
    "a negative weight": (with_column(lambda i: str(i - 1)), {"weight": "c"}, "line 2 has the weight '-1'"),
    "one group": (with_column(lambda i: "x"), {"group": "c"}, "has one group only"),
    "three rows": (csv(rows()[:3]).encode(), {}, "3 rows with a label"),
    "an unknown encoding": (csv(rows()).encode(), {"encoding": "klingon"}, "give for instance utf-8"),
    "a wrong encoding": (csv([["é", *r[1:]] for r in rows()]).encode("cp1252"), {"encoding": "utf-8"}, "set encoding="),
    "only ids": (csv([[f"K{i:03d}", "xy"[i % 2]] for i in range(N)], "key,label").encode(), {}, r"no column is left.*'key' \(id\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_each_is_ranked_and_said_how(name: str, tmp_path: Path) -> None:
    content, options, said = READ[name]
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    found = find_label_errors(path, **({"model": "linear", "l2": 0.01} | options))
    assert len(found.suspects) == len(found.labels.kept) >= 50
    assert np.isfinite(found.suspects["held_out_loss"]).all()
    assert found.suspects["held_out_loss"].is_monotonic_decreasing
    assert any(said in note for note in found.notes) or not said, found.notes
    assert len(found.columns) == found.table.frame.shape[1] - 1  # every column is reported
    read = {column.name: column.kind for column in found.columns}
    assert read.items() >= KINDS.get(name, {}).items()
    if name == "a rare class is no proof":
        assert not any("alone gives" in note for note in found.notes)  # the frequent class is no proof


@pytest.mark.parametrize("name", REFUSED)
def test_each_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    content, options, message = REFUSED[name]
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        find_label_errors(path, **options)
    assert str(raised.value).count("\n") == 0


def test_a_sheet_is_the_same_as_a_text(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    frame = pd.DataFrame(rows(), columns=["a", "b", "label"])
    for rows_above in (0, 3):
        frame.to_excel(tmp_path / "t.xlsx", index=False, startrow=rows_above)
        if rows_above:
            from openpyxl import load_workbook

            book = load_workbook(tmp_path / "t.xlsx")
            book.active["A1"] = "Quarterly report"
            book.save(tmp_path / "t.xlsx")
        found = find_label_errors(tmp_path / "t.xlsx", model="linear", l2=0.01)
        assert {column.name: column.kind for column in found.columns} == {"a": "number", "b": "number"}
        assert found.table.lines[0] == 2 + rows_above
        assert any("Excel" in note for note in found.notes)


def test_the_same_table_in_every_form_gives_the_same_list(tmp_path: Path) -> None:
    frame = pd.DataFrame(rows(), columns=["a", "b", "label"])
    frame.to_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.tsv").write_text(csv(rows(), separator="\t"))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(csv(rows()).encode("utf-16")))
    typed = frame.astype({"a": float, "b": float, "label": "category"})
    losses = [
        find_label_errors(table, label="label", model="linear", l2=0.01).suspects["held_out_loss"]
        for table in (frame, typed, tmp_path / "t.parquet", tmp_path / "t.tsv", tmp_path / "t.csv.gz")
    ]
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=1e-9)


def test_cells_that_no_file_can_hold() -> None:
    frame = pd.DataFrame(rows(), columns=["a", "b", "label"])
    frame["c"] = pd.Series(["\ud800x", "ok y"] * 30, dtype=object)  # a lone surrogate
    frame["z"] = np.arange(60) * 1j
    frame["when"] = pd.to_timedelta(np.arange(60) ** 2, unit="s")
    frame["list"] = [[1, 2], [3]] * 30
    found = find_label_errors(frame, model="linear", l2=0.01)
    read = {column.name: column.kind for column in found.columns}
    assert read["z"] == "ignored"
    assert read["when"] == "number"
    assert len(found.suspects) == 60
    with pytest.raises(UserError, match="holds times, which are no labels"):
        find_label_errors(frame.assign(label=pd.date_range("2024-01-01", periods=60)))


def test_the_users_columns_of_a_frame_stay_as_they_are() -> None:
    frame = pd.DataFrame(rows(), columns=["a", "b", "label"])
    frame["c"] = pd.Series(["\ud800x", "ok y"] * 30, dtype=object)
    before = frame.copy(deep=True)
    find_label_errors(frame, model="linear", l2=0.01)
    assert frame["c"].tolist() == before["c"].tolist()
