"""How a column is read and encoded, and which columns are left out with a word."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.data.tables.features import INTERCEPT, Features, encode, read_columns
from experiments.data.tables.kinds import Column, kind_of, missing_cells, numbers_of
from experiments.data.tables.labels import Labels, read_labels
from experiments.data.tables.options import Options
from experiments.data.tables.reading import Table, of_frame
from experiments.records.errors import UserError


def column(cells: list[Any], decimal: str | None = None, name: str = "c", **options: Any) -> Column:
    series = pd.Series(cells, name=name, dtype="str" if isinstance(cells[0], str) else None)
    return kind_of(series, Options(**options), decimal, lambda row: f"line {row + 2}")


def features(
    frame: pd.DataFrame, known: np.ndarray | None = None, **options: Any
) -> tuple[Features, Table, Labels]:
    table, chosen = of_frame(frame), Options(label="label", **options)
    labels = read_labels(table, "label", chosen)
    columns = read_columns(table, labels, chosen, {})
    return encode(columns, chosen, len(labels.kept), lambda name: None, known), table, labels


@pytest.mark.parametrize(
    ("cells", "decimal", "numbers"),
    [
        (["1", "-2.5", "3e2"], None, [1, -2.5, 300]),
        (["1,5", "-2,25", "3,0"], ",", [1.5, -2.25, 3]),
        (["1.234,5", "2.000,0", "3,1"], ",", [1234.5, 2000, 3.1]),
        (["1,234", "5,678.5", "12"], None, [1234, 5678.5, 12]),
        (["1_000", "2_000", "30"], None, [1000, 2000, 30]),
        (["1'000", "2'000'000", "30"], None, [1000, 2e6, 30]),
        (["1 000", "2 000,5", "30"], ",", [1000, 2000.5, 30]),
        (["0x1f", "0xA0", "0x00"], None, [31, 160, 0]),
        (["$1,200", "$3.50", "-$4"], None, [1200, 3.5, -4]),
        (["12 %", "7.5%", "100 %"], None, [12, 7.5, 100]),
        (["12 kg", "7.5kg", "100 kg"], None, [12, 7.5, 100]),
        (["1e308", "-1e308", "1e308"], None, [1e308, -1e308, 1e308]),
    ],
)
def test_numbers_as_people_write_them(cells: list[str], decimal: str | None, numbers: list[float]) -> None:
    found = column(cells * 5, decimal)
    assert found.kind == "number"
    np.testing.assert_array_equal(found.values, numbers * 5)


@pytest.mark.parametrize(
    "cells", [["A11", "A12", "A13"], ["week 1", "week 2", "week 3"], ["1-2", "3-4", "5-6"]]
)
def test_codes_with_digits_are_no_numbers(cells: list[str]) -> None:
    assert column(cells * 5).kind == "category"


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=4, max_size=20))
def test_every_float_is_read_back(values: list[float]) -> None:
    series = pd.Series([repr(value) for value in values], name="x", dtype="str")
    numbers, _ = numbers_of(series, np.zeros(len(values), dtype=bool), None)
    np.testing.assert_array_equal(numbers, values)


def test_stray_and_missing_cells_are_counted_and_named() -> None:
    found = column([str(i / 2) for i in range(40)] + ["tall", "", "NA", "inf"])
    assert (found.kind, found.missing) == ("number", 4)
    assert found.words == [
        "column 'c': 2 cells are no finite number and count as missing, the first is 'tall' on line 42"
    ]
    assert column(["1", "x", "y", "2", "z", "w"] * 4).kind == "category"
    forced = column(["1", "x", "y", "2", "z", "w"] * 4, numbers=("c",))
    assert (forced.kind, forced.missing) == ("number", 16)
    np.testing.assert_array_equal(missing_cells(pd.Series(["?", " n/a", "no", ""]), Options()), [1, 1, 0, 1])
    np.testing.assert_array_equal(missing_cells(pd.Series(["?", "gap"]), Options(missing=("gap",))), [0, 1])


@pytest.mark.parametrize(
    ("cells", "second"),
    [
        (["2024-01-31", "2024-02-01", "2024-03-01"], "2024-02-01"),
        (["2024-01-31T10:00:00Z", "2024-02-01T12:30:00Z", "2024-03-01T00:00:00Z"], "2024-02-01T12:30:00"),
        (["31/01/2024", "01/02/2024", "01/03/2024"], "2024-02-01"),
        (["01/31/2024", "02/01/2024", "03/01/2024"], "2024-02-01"),
        (["31.01.2024", "01.02.2024", "01.03.2024"], "2024-02-01"),
        (["31.01.2024 10:15", "01.02.2024 11:15", "01.03.2024 09:00"], "2024-02-01T11:15"),
        (["Jan 31, 2024", "Feb 1, 2024", "Mar 1, 2024"], "2024-02-01"),
        (["31 January 2024", "1 February 2024", "1 March 2024"], "2024-02-01"),
    ],
)
def test_dates_as_people_write_them(cells: list[str], second: str) -> None:
    found = column(cells * 5)
    assert found.kind == "date"
    assert found.values[1] == np.datetime64(second)


@pytest.mark.parametrize(
    ("odd", "options"),
    [
        ("1.5", {}),
        ("-2e3", {}),
        ("", {}),
        ("NA", {}),
        ("inf", {}),
        ("nan", {}),
        ("tall", {}),
        (" 7", {}),
        ("+7", {}),
        ("1,5", {}),
        ("0x1f", {}),
        ("12 %", {}),
        ("3", {"missing": ("3",)}),
        ("3", {"categories": ("c",)}),
        ("3", {"text": ("c",)}),
        ("3", {"numbers": ("c",)}),
    ],
)
def test_the_short_way_to_numbers_finds_what_the_long_one_finds(
    odd: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [str(x) for x in np.random.default_rng(0).normal(size=200)] + [odd]
    monkeypatch.setattr("experiments.data.tables.kinds._LONG_COLUMN", 10**9)
    long = column(cells, **options)
    monkeypatch.setattr("experiments.data.tables.kinds._LONG_COLUMN", 1)
    short = column(cells, **options)
    assert (short.kind, short.missing, short.note, short.words) == (
        long.kind, long.missing, long.note, long.words
    )  # fmt: skip
    if long.kind == "number":
        np.testing.assert_allclose(short.values, long.values, rtol=1e-15)
    else:
        assert list(short.values) == list(long.values)
    days = ["20240131", "20240201"] * 100
    assert column(days).kind == "date"


def test_days_that_could_be_months_are_told() -> None:
    cells = ["03/04/2024", "05/06/2024", "07/08/2024"] * 3
    found = column(cells)
    assert "day and month cannot be told apart" in found.words[0]
    assert "as day/month/year" in found.words[0] or "as month/day/year" in found.words[0]
    other = np.array([column(cells, day_first=first).values[0] for first in ("true", "false")])
    np.testing.assert_array_equal(other, np.array(["2024-04-03", "2024-03-04"], dtype="datetime64[s]"))


MIXED = ["2024-01-31", "15/02/2024", "2024-03-01", "28/02/2024", "2024-12-24"]


def test_dates_in_two_formats_are_read_if_each_cell_can_be_read_in_one_way_only() -> None:
    found = column(MIXED * 8)
    assert (found.kind, found.missing, found.note) == ("date", 0, "as year-month-day and day/month/year")
    truth = ["2024-01-31", "2024-02-15", "2024-03-01", "2024-02-28", "2024-12-24"]
    np.testing.assert_array_equal(found.values, np.array(truth * 8, dtype="datetime64[s]"))
    assert found.words == [
        "column 'c': its dates have two formats: year-month-day (cells: 24) and day/month/year (16)"
    ]
    stray = column([*MIXED * 8, "soon", ""])
    assert (stray.kind, stray.missing) == ("date", 2)
    assert "'soon' on line" in stray.words[1]
    clocks = column(["09:30", "10:15", "01:45 PM"] * 8)
    assert (clocks.kind, clocks.missing) == ("date", 0)
    numbers = column(["31/01/2024", "15/02/2024", "02/28/2024", "12/24/2024"] * 8)  # no cell fits both
    np.testing.assert_array_equal(
        numbers.values[:4],
        np.array(["2024-01-31", "2024-02-15", "2024-02-28", "2024-12-24"], "datetime64[s]"),
    )


def test_two_formats_that_do_not_tell_day_from_month_are_said() -> None:
    cells = ["2024-01-31", "05/06/2024", "2024-03-01", "07/06/2024"] * 8
    found = column(cells)
    assert found.kind == "category"
    assert "in two formats" in found.words[0]
    assert "two different days" in found.words[0]
    for first, day in (("true", "2024-06-05"), ("false", "2024-05-06")):
        decided = column(cells, day_first=first)
        assert decided.kind == "date"
        assert decided.values[1] == np.datetime64(day)
    forced = column(cells, dates=("c",))  # the user says so: one format, and the other cells are missing
    assert (forced.kind, forced.missing) == ("date", 16)
    both = column(["31/01/2024", "01/31/2024", "05/06/2024"] * 8)  # both orders, and a cell that fits either
    assert both.kind == "category"
    assert "two different days" in both.words[0]
    points = column(["2024-01-31", "05.06.2024"] * 8)  # with points there is one order only
    assert points.values[1] == np.datetime64("2024-06-05")


def test_more_than_two_formats_are_said() -> None:
    found = column(["2024-01-31", "15/02/2024", "28 Feb 2024"] * 8)
    assert found.kind == "category"
    assert "more than two formats" in found.words[0]
    assert column(["1-2", "3.4/5", "6 7 8"] * 8).words == []


def test_text_and_categories() -> None:
    many = [f"the parcel number {i} came too late" for i in range(40)]
    assert column(many).kind == "text"
    assert column(["very good", "rather bad", "so so"] * 20).kind == "category"
    assert column(["very good", "rather bad", "so so"] * 20, text=("c",)).kind == "text"
    assert column([1, 2, 3] * 20, categories=("c",)).kind == "category"
    assert column([True, False, True] * 5).kind == "number"


def test_the_matrix_and_what_is_filled_in() -> None:
    frame = pd.DataFrame(
        {
            "size": ["1", "", "3", "8"] * 10,
            "colour": ["red", "blue", "", "red"] * 10,
            "label": ["a", "b", "b", "a"] * 10,
        }
    )
    found, _, _ = features(frame)
    assert found.names == [
        "size",
        "size is missing",
        "colour=blue",
        "colour=red",
        "colour is missing",
        "intercept",
    ]
    size = np.array([1, 3, 3, 8.0])
    np.testing.assert_allclose(found.X[:4, 0], (size - size.mean()) / size.std())
    rest = np.array([[0, 0, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 0]])
    np.testing.assert_array_equal(found.X[:4, 1:-1], rest)
    np.testing.assert_array_equal(found.X[:, -1], INTERCEPT)
    assert [c.missing for c in found.columns] == [10, 10]
    np.testing.assert_array_equal(found.owner, [0, 0, 1, 1, 1, -1])


def test_statistics_come_from_the_known_rows_alone() -> None:
    frame = pd.DataFrame(
        {"x": ["0", "2", "4", "90"] * 5, "c": ["r", "s", "r", "t"] * 5, "label": ["a", "b"] * 10}
    )
    known = np.flatnonzero(np.arange(20) % 4 != 3)
    found, _, _ = features(frame, known)
    np.testing.assert_allclose(found.X[known, 0].mean(), 0, atol=1e-12)
    assert found.names[1:3] == ["c=r", "c=s"]
    np.testing.assert_array_equal(found.X[3, 1:3], [0, 0])


def test_rare_categories_share_a_feature() -> None:
    cells = ["a"] * 20 + ["b"] * 10 + [f"rare{i % 4}" for i in range(10)]
    found, _, _ = features(pd.DataFrame({"c": cells, "label": ["x", "y"] * 20}), levels=2)
    assert found.names == ["c=a", "c=b", "c=another", "intercept"]
    np.testing.assert_array_equal(found.X[:, :3].sum(0), [20, 10, 10])


def test_words_and_signs() -> None:
    frame = pd.DataFrame({"t": [f"cheap pills {i} offer today" for i in range(30)], "label": ["x", "y"] * 15})
    found, _, _ = features(frame)
    assert {"t:cheap", "t:pills", "t:offer", "t:today"} <= set(found.names)
    np.testing.assert_allclose((np.asarray(found.X[:, :-1]) ** 2).sum(1), 25, rtol=1e-12)
    chinese = pd.DataFrame(
        {"t": [f"这个产品很好我很喜欢{'真的' * (i % 3)}" for i in range(30)], "label": ["x", "y"] * 15}
    )
    found, _, _ = features(chinese, text=("t",))
    assert "t:产品" in found.names


@pytest.mark.parametrize(
    ("name", "cells", "kind"),
    [
        ("x", [str(i) for i in range(40)], "id"),
        ("case_id", [str(7 * i % 1000) for i in range(40)], "id"),
        ("name", [f"K-{i:04d}" for i in range(40)], "id"),
        ("mail", [f"user{i}@example.org" for i in range(40)], "id"),
        ("c", ["same"] * 40, "constant"),
        ("c", [""] * 40, "constant"),
        ("label text", ["good" if i % 2 else "bad" for i in range(40)], "leak"),
        ("twin", [f"{(i * 37) % 40 / 7}" for i in range(40)], "copy"),
    ],
)
def test_columns_that_are_left_out(name: str, cells: list[str], kind: str) -> None:
    frame = pd.DataFrame(
        {
            "first": [f"{(i * 37) % 40 / 7}" for i in range(40)],
            name: cells,
            "label": ["yes" if i % 2 else "no" for i in range(40)],
        }
    )
    found, table, _ = features(frame)
    read = next(c for c in found.columns if c.name == name)
    assert read.kind == kind
    assert read.note
    assert name not in found.names
    if kind == "leak":
        assert any("gives the label away" in note for note in table.notes)
    if kind in ("id", "leak", "copy"):
        kept, _, _ = features(frame, keep=(name,))
        assert next(c for c in kept.columns if c.name == name).used


def test_a_column_that_nearly_gives_the_label_away_is_named() -> None:
    y = np.arange(400) % 2
    x = y + np.random.default_rng(0).uniform(0, 0.4, 400)
    x[0] = 1.2
    frame = pd.DataFrame(
        {"x": x, "z": np.random.default_rng(1).normal(size=400), "label": np.where(y, "b", "a")}
    )
    _, table, _ = features(frame)
    assert any("'x' alone gives" in note and "ignore=[x]" in note for note in table.notes)
    assert not any("'z'" in note for note in table.notes)


def test_extreme_numbers_do_not_overflow() -> None:
    frame = pd.DataFrame({"x": ["1e308", "-1e308", "5e307"] * 10, "label": ["a", "b"] * 15})
    found, _, _ = features(frame)
    assert np.isfinite(found.X).all()
    assert abs(found.X[:, 0].std() - 1) < 1e-12


def test_nothing_to_learn_from() -> None:
    with pytest.raises(UserError, match=r"no column is left to learn from: 'c' \(constant\)"):
        features(pd.DataFrame({"c": ["1"] * 8, "label": ["a", "b"] * 4}))
    with pytest.raises(UserError, match=r"has no column 'd'; it has 'c', 'label': set ignore="):
        features(pd.DataFrame({"c": ["1", "2"] * 4, "label": ["a", "b"] * 4}), ignore=("d",))


@pytest.mark.parametrize("known", [None, np.arange(0, 30, 2)])
def test_words_are_weighted_as_one_vectorizer_does(known: np.ndarray | None) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    generator = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in generator.integers(0, 40, 25)) for _ in range(30)]
    frame = pd.DataFrame({"t": texts, "label": ["a", "b"] * 15})
    X = features(frame, known, text=("t",), words=30)[0].X[:, :-1]
    vectorizer = TfidfVectorizer(
        min_df=2, max_features=30, sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", dtype=np.float64
    )
    vectorizer.fit(texts if known is None else [texts[row] for row in known])
    np.testing.assert_allclose(X, 5.0 * vectorizer.transform(texts).toarray(), rtol=1e-14)
