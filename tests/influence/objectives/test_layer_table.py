"""docs/layers.md says of every torch.nn class how its derivatives are computed; each row is made again."""

from __future__ import annotations

import pytest

from tests.influence.objectives import layer_table


def test_every_class_of_torch_nn_has_a_row_and_nothing_else():
    names = [
        line.split("|")[1].strip() for line in layer_table.PAGE.read_text().splitlines() if line[:2] == "| "
    ]
    assert names == ["layer", *layer_table.layers()]
    assert set(layer_table.layers()) == set(layer_table.SPECS)
    assert layer_table.PAGE.read_text().startswith(layer_table.HEAD)


@pytest.mark.parametrize("name", layer_table.layers())
def test_a_row_is_as_the_page_has_it(name):
    assert layer_table.row(name) in layer_table.PAGE.read_text().splitlines()
