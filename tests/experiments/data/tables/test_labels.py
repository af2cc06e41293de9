"""Labels: which column, which values are one class, numbers, weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.data.tables.labels import Labels, column_called, label_column, read_labels, weights_of
from experiments.data.tables.options import Options
from experiments.data.tables.reading import of_frame
from experiments.records.errors import UserError


def labels(cells: list[Any], **options: Any) -> Labels:
    frame = pd.DataFrame({"x": range(len(cells)), "label": cells})
    return read_labels(of_frame(frame), "label", Options(**options))


def test_any_number_of_classes_in_order() -> None:
    found = labels(["10", "9", "2"] * 4)
    assert found.classes == ("2", "9", "10")
    np.testing.assert_array_equal(found.y[:3], [2, 1, 0])
    assert labels([f"c{i}" for i in range(12)] * 3).classes[:2] == ("c0", "c1")


def test_equal_values_are_one_class_and_told() -> None:
    found = labels(["true", "TRUE", "false", "False"] * 3)
    assert len(found.classes) == 2
    assert sum("the same value" in note for note in found.notes) == 2
    assert labels(["1", "1.0", "0", "2"] * 3).classes == ("0", "1", "2")
    assert labels([True, False] * 5).classes == ("False", "True")


def test_spellings_are_told_and_joined_when_asked() -> None:
    cells = ["spam", "spam ", "Spam", "ham"] * 3
    found = labels(cells)
    assert set(found.classes) == {"spam", "spam ", "Spam", "ham"}
    assert any("join=true" in note for note in found.notes)
    joined = labels(cells, join=True)
    assert len(joined.classes) == 2
    assert any("are joined" in note for note in joined.notes)
    assert labels([" ham", " spam"] * 4).classes == ("ham", "spam")  # all have the same stray space


def test_words_for_missing_can_be_classes() -> None:
    found = labels(["NA", "EU"] * 6)
    assert found.classes == ("EU", "NA")
    assert any("unlabelled=[NA]" in note for note in found.notes)
    found = labels(["NA", "EU", "AS", "EU"] * 4, unlabelled=("NA",))
    assert found.classes == ("AS", "EU")
    assert len(found.kept) == 12


def test_rows_without_a_label_are_left_out_and_counted() -> None:
    found = labels(["a", "b", "", None, "nan"] * 4)
    assert found.classes == ("a", "b")
    np.testing.assert_array_equal(found.kept[:4], [0, 1, 5, 6])
    assert any("12 of 20 rows have no label" in note and "row 3" in note for note in found.notes)


def test_numbers_are_classes_or_targets() -> None:
    values = np.random.default_rng(0).normal(size=40)
    found = labels(list(values))
    assert found.regression
    np.testing.assert_array_equal(found.y, values)
    assert labels(list(range(40))).regression
    assert not labels([0, 1, 2, 3] * 10).regression
    assert labels([0, 1, 2, 3] * 10, task="numbers").regression
    assert not labels([0.5, 1.5] * 10).regression
    assert len(labels(list(range(8)) * 5 + [100 + i for i in range(20)] * 2, task="classes").classes) == 28


def test_rare_classes_are_told() -> None:
    found = labels(["a"] * 10 + ["b"] * 10 + ["c"])
    assert any("fewer than 5 rows: 'c' (1)" in note for note in found.notes)


@pytest.mark.parametrize(
    ("cells", "options", "message"),
    [
        (["a", "a", "a", "a"], {}, "one class only, 'a'"),
        (["a", "b"], {}, "2 rows with a label"),
        ([f"v{i}" for i in range(20)], {}, "20 values in 20 rows; is it the label"),
        (["a", "b"] * 4, {"task": "numbers"}, "task=numbers, but column 'label' holds 'a'"),
        ([1.5] * 9, {"task": "numbers"}, "every label in 'label' is 1.5"),
    ],
)
def test_labels_that_hold_nothing(cells: list[Any], options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        labels(cells, **options)


def test_the_label_column_is_found_or_asked_for() -> None:
    table = of_frame(pd.DataFrame({"a": [1, 2, 3], "Class": ["x", "y", "x"]}))
    assert label_column(table, Options()) == "Class"
    assert any("'Class' (by its name" in note for note in table.notes)
    assert label_column(table, Options(label="a")) == "a"
    assert column_called(table, "-1", "label") == "Class"
    assert column_called(table, "1", "label") == "a"
    other = of_frame(pd.DataFrame({"a": [1, 2, 3], "b": ["x", "y", "x"]}))
    with pytest.raises(
        UserError, match=r"no column called label: set label= to one of 'a', 'b' \(few values"
    ):
        label_column(other, Options())
    with pytest.raises(UserError, match="no column 'c'; it has 'a', 'b': set label="):
        label_column(other, Options(label="c"))


def test_weights() -> None:
    table = of_frame(pd.DataFrame({"w": ["1", "3", "0", "4"], "label": list("abab")}))
    rows = np.arange(4)
    np.testing.assert_array_equal(weights_of(table, "w", rows, Options()), [0.5, 1.5, 0, 2])
    assert weights_of(table, None, rows, Options()) is None
    for bad, message in ((["1", "-3", "0", "4"], "row 2 has the weight '-3'"), (["0"] * 4, "every weight")):
        with pytest.raises(UserError, match=message):
            weights_of(of_frame(pd.DataFrame({"w": bad})), "w", rows, Options())
