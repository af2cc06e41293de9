"""A user's own CSV as a data set: the matrix, the test part, and what is wrong with a table."""

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


def test_numbers_categories_and_intercept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = load("csv", path=write(tmp_path, table()))
    assert data.feature_names == ("size", "colour=blue", "colour=red", "intercept")  # id counts the rows
    assert "The labels are in column 'label'" in capsys.readouterr().out
    assert data.classes == ("bad", "good")
    assert (len(data.train), len(data.test)) == (30, 0)
    X = data.train.X
    np.testing.assert_allclose([X[:, 0].mean(), X[:, 0].std()], [0, 1], atol=1e-12)
    np.testing.assert_array_equal(X[:4, 1:], [[1, 0, 10], [0, 1, 10], [0, 1, 10], [1, 0, 10]])
    np.testing.assert_array_equal(data.train.y[:4], [0, 1, 0, 1])
    np.testing.assert_array_equal(data.train.index, np.arange(30))
    assert data.manifest["table.csv"]["bytes"] == len(table())


def test_more_classes_missing_numbers_and_rows_without_a_label(tmp_path: Path) -> None:
    text = "a,label\n" + "\n".join(
        f"{i if i % 4 else ''},{'xyz'[i % 3] if i != 7 else ''}" for i in range(30)
    )
    data = load("csv", path=write(tmp_path, text, "cp1252"))
    assert data.classes == ("x", "y", "z")
    assert data.feature_names == ("a", "a is missing", "intercept")
    assert 7 not in data.train.index
    assert len(data.train) == 29


def test_an_id_is_no_feature_and_all_cells_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path, table().replace(",", ";"))
    data = load("csv", path=path, id="colour", separator="semicolon")
    assert data.feature_names == ("size", "intercept")
    assert list(data.train.extra) == ["colour", "id", "size", "label"]
    assert list(data.train.extra["size"][:2]) == ["-3.0", "-2.5"]  # as they stand in the file
    parts = load("csv", path=path, id="id", test_fraction=0.3, seed=1)
    assert list(parts.test.extra["id"]) == [str(i) for i in parts.test.index]


def test_test_part_is_apart_and_statistics_come_from_training(tmp_path: Path) -> None:
    path = write(tmp_path, table())
    data = load("csv", path=path, test_fraction=0.3, seed=1)
    assert (len(data.train), len(data.test)) == (21, 9)
    index = np.sort(np.concatenate([data.train.index, data.test.index]))
    np.testing.assert_array_equal(index, np.arange(30))
    np.testing.assert_allclose(data.train.X[:, 0].mean(), 0, atol=1e-12)
    again = load("csv", path=path, test_fraction=0.3, seed=1)
    assert again.manifest == data.manifest
    assert load("csv", path=path, test_fraction=0.3, seed=2).manifest != data.manifest


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            table(),
            {"label": "target"},
            "no column 'target'; it has 'id', 'size', .*: set data.label=",
        ),
        (table(), {"ignore": ["idd"]}, "has no column 'idd'.* set data.ignore="),
        (table(), {"ignore": ["id", "size", "colour"]}, "no column is left to learn from"),
        (table(), {"test_fraction": 1.0}, r"must lie in \[0, 1\)"),
        (table("30,1,red"), {}, "line 32 has 3 cells.* data.bad_rows=skip"),
        (table("30,1,red,bad,more"), {}, "line 32 has 5 cells"),
        ("a,label\n1,x\n2,x\n3,x\n4,x", {}, "one class only, 'x'"),
        ("a,label\n1,x", {}, "1 rows with a label"),
        ("", {}, "is empty"),
        ("a,label\n1,x\n2,y\n3,z\n4,w", {}, "is it the label.* Set data.label="),
        (table(), {"id": "name"}, "has no column 'name'; it has 'id', .*: set data.id="),
        (table(), {"separator": "and"}, "separator=and: give comma, semicolon, tab"),
        (table(), {"speed": 3}, "has no option speed; it takes path, test_fraction, seed, label"),
        ("a,label\n" + "\n".join(f"{i},{i / 7}" for i in range(30)), {}, "are numbers, .* data.task=classes"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load("csv", path=write(tmp_path, text), **options)


def test_a_category_of_the_test_part_alone_has_no_indicator(tmp_path: Path) -> None:
    rows = "\n".join(f"{'xyz'[(i > 7) + (i % 5 == 0)]},{i / 7},{i % 2}" for i in range(16))
    path = write(tmp_path, "t,a,label\n" + rows)
    found = load("csv", path=path)
    for seed in range(40):
        data = load("csv", path=path, test_fraction=0.25, seed=seed)
        assert set(data.feature_names or ()) <= set(found.feature_names or ())
        assert data.test.X.shape[1] == len(data.feature_names or ())


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a file"):
        load("csv", path=str(tmp_path / "none.csv"))
