"""The page on scaling: its arithmetic by hand, and the committed page against its records."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from experiments.record import Record
from experiments.scaling import Gpu, across, duration, page, predicted, resnet, top_layer
from tests.helpers import ROOT


def cells(table: str) -> list[list[str]]:
    """The rows of a Markdown table below its head."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_time_and_memory_by_hand() -> None:
    gpu = Gpu("a test", flops=1e12, link=1e9, memory=10e9)
    one, eight, many = cells(predicted(top_layer(), products=10, share=0.5, gpu=gpu))
    product = 1_281_167 * 4 * 2048 * 1000 / 0.5e12
    assert one == [
        "1",
        duration(product),
        duration(10 * product),
        duration(product / 2),
        f"{(1_281_167 * 4 * 3048 + 8 * 4 * 2048000) / 1e9:.1f} GB (more than it has)",
    ]
    exchange = 2 * 4 * 2048000 / 1e9
    assert eight[1] == duration(product / 8 + exchange)
    assert many[1] == duration(product / 64 + exchange)
    assert "more" not in eight[4]


def test_twice_the_work_takes_twice_the_time() -> None:
    gpu = Gpu(link=float("inf"))
    case = replace(resnet(), n=1000)
    once = cells(predicted(case, 7, 0.25, gpu))[0][2]
    twice = cells(predicted(replace(case, n=2000), 7, 0.25, gpu))[0][2]
    assert once == duration(7 * 1000 * case.product / (0.25 * gpu.flops))
    assert twice == duration(7 * 2000 * case.product / (0.25 * gpu.flops))


def test_what_is_rounding_is_not_called_a_difference() -> None:
    ranks = {
        "run": {"1": {}, "2": {"relative_difference": {"a": 1e-12, "index": True, "gradient_norm": 1e-3}}}
    }
    assert cells(across(ranks | {"note": "text"})) == [["`run`", "2", "1.0e-12"]]


def test_the_committed_page_is_that_of_its_records() -> None:
    if not (ROOT / "results" / "benchmark" / "record.json").is_file():
        pytest.skip("results/benchmark is not recorded yet")
    ranks = json.loads((ROOT / "results" / "distributed.json").read_text())
    wanted = page(Record.load(ROOT / "results" / "benchmark"), ranks, Gpu())
    assert (ROOT / "results" / "scaling.md").read_text() == wanted, "run python -m experiments.scaling"
