"""A user's own CSV: how columns are read, and every way in which it can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.data import DataError, load

ROWS = [f"{i},{i * 0.5 - 3},{'red' if i % 3 else 'blue'},{'good' if i % 2 else 'bad'}" for i in range(30)]


def write(tmp_path: Path, text: str, encoding: str = "utf-8") -> str:
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode(encoding))
    return str(path)


def table(*extra: str) -> str:
    return "\n".join(["id,size,colour,label", *ROWS, *extra])


def test_numbers_categories_and_intercept(tmp_path: Path) -> None:
    data = load("csv", path=write(tmp_path, table()), ignore=["id"])
    assert data.feature_names == ("size", "colour=blue", "colour=red", "intercept")
    assert data.classes == ("bad", "good")
    assert (len(data.train), len(data.test)) == (30, 0)
    X = data.train.X.toarray()
    np.testing.assert_allclose([X[:, 0].mean(), X[:, 0].std()], [0, 1], atol=1e-12)
    np.testing.assert_array_equal(X[:4, 1:], [[1, 0, 1], [0, 1, 1], [0, 1, 1], [1, 0, 1]])
    np.testing.assert_array_equal(data.train.y[:4], [0, 1, 0, 1])
    np.testing.assert_array_equal(data.train.index, np.arange(30))
    assert data.manifest["table.csv"]["bytes"] == len(table())


def test_text_columns_are_counted_by_word(tmp_path: Path) -> None:
    rows = [f'"row {i}, cheap cheap pills",{i % 2}' for i in range(30)]
    path = write(tmp_path, "\n".join(["subject,label", *rows]), "utf-8-sig")
    data = load("csv", path=path)
    assert data.feature_names == ("subject:cheap", "subject:pills", "subject:row", "intercept")
    np.testing.assert_array_equal(data.train.X.toarray()[0], [2, 1, 1, 1])
    assert "subject:29" in (load("csv", path=path, min_df=1).feature_names or ())
    few = write(tmp_path, table())
    assert "colour:red" in (load("csv", path=few, text=["colour"]).feature_names or ())


def test_an_id_is_no_feature_and_all_cells_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path, table().replace(",", ";"))
    data = load("csv", path=path, id="colour", ignore=["id"], separator="semicolon")
    assert data.feature_names == ("size", "intercept")
    assert list(data.train.extra) == ["colour", "id", "size", "label"]
    assert list(data.train.extra["size"][:2]) == ["-3.0", "-2.5"]  # as they stand in the file
    parts = load("csv", path=path, separator=";", test_fraction=0.3, seed=1)
    assert list(parts.test.extra["id"]) == [str(i) for i in parts.test.index]
    tabs = write(tmp_path, table().replace(",", "\t"))
    assert load("csv", path=tabs, separator="tab").classes == ("bad", "good")
    with pytest.raises(DataError, match=r"separated by tabs, set data\.separator=tab"):
        load("csv", path=tabs)


def test_test_part_is_apart_and_statistics_come_from_training(tmp_path: Path) -> None:
    path = write(tmp_path, table())
    data = load("csv", path=path, test_fraction=0.3, seed=1)
    assert (len(data.train), len(data.test)) == (21, 9)
    index = np.sort(np.concatenate([data.train.index, data.test.index]))
    np.testing.assert_array_equal(index, np.arange(30))
    np.testing.assert_allclose(data.train.X.toarray()[:, 0].mean(), 0, atol=1e-12)
    again = load("csv", path=path, test_fraction=0.3, seed=1)
    assert again.manifest == data.manifest
    assert load("csv", path=path, test_fraction=0.3, seed=2).manifest != data.manifest


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            table(),
            {"label": "target"},
            "has no label column 'target'; it has 'id', 'size', 'colour', 'label'",
        ),
        (table(), {"ignore": ["idd"]}, "has no column 'idd'"),
        (table(), {"ignore": ["id", "size", "colour"]}, "no column beside the label"),
        (table(), {"test_fraction": 1.0}, r"must lie in \[0, 1\)"),
        (table("30,,red,bad"), {}, "column 'size' has '' in data row 31"),
        (table("30,NaN,red,bad"), {}, "column 'size' has 'NaN' in data row 31"),
        (table("30,inf,red,bad"), {}, "column 'size' has 'inf' in data row 31"),
        (table("30,tall,red,bad"), {}, "column 'size' has 'tall' in data row 31"),
        (table("30,1,red,"), {}, "data row 31 has no label"),
        (table("30,1,red"), {}, "data row 31 has no label"),
        (table("30,1,red,bad,more"), {}, "cannot be read as CSV"),
        ("a,label\n1,x\n2,x\n3,x", {}, "one class only, 'x'"),
        ("a,label\n1,x", {}, "1 data rows; at least 2"),
        ("a,label", {}, "0 data rows"),
        ("", {}, "cannot be read as CSV"),
        ("a,label\n1,x\n2,y\n3,z", {}, "is it the label"),
        (table(), {"id": "name"}, "has no column 'name'; it has 'id', .*: set data.id"),
        (table(), {"separator": "and"}, "'and'; give comma, semicolon, tab or one character"),
        (
            "t,label\n" + "\n".join(f"w{i},{i % 2}" for i in range(30)),
            {},
            "occurs in 2 rows; .* set data.id=t",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load("csv", path=write(tmp_path, text), **options)


def test_a_category_of_the_test_part_alone_has_no_indicator(tmp_path: Path) -> None:
    path = write(tmp_path, "t,label\n" + "\n".join(f"{'xyz'[i > 7]},{i % 2}" for i in range(9)))
    for seed in range(20):
        data = load("csv", path=path, test_fraction=0.25, seed=seed)
        if 8 in data.test.index:
            assert data.feature_names == ("t=x", "intercept")
            row = data.test.X.toarray()[list(data.test.index).index(8)]
            np.testing.assert_array_equal(row, [0, 1])
            return
    raise AssertionError("no seed put row 8 into the test part")


def test_a_missing_file_and_another_encoding(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a file"):
        load("csv", path=str(tmp_path / "none.csv"))
    with pytest.raises(DataError, match="line 2 is not valid UTF-8"):
        load("csv", path=write(tmp_path, "t,label\ncafé,1\nthé,0", "latin-1"))
