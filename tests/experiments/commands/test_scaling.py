"""The page on scaling: its arithmetic by hand, and the committed page against its records."""

from __future__ import annotations

import json
from dataclasses import replace

from experiments.benchmark import comparison
from experiments.benchmark.scaling import Gpu, across, apart, duration, page, predicted, resnet, top_layer
from experiments.records.record import Record
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
    assert cells(across(ranks | {"note": "text"})) == [["`run`", "2", "1.0e-12", ""]]


def line(by: str, seconds: float, correct: bool = True, **more: object) -> dict[str, object]:
    """A line of a task's table."""
    plain = {
        "dtype": "float32",
        "status": "measured",
        "extrapolated": False,
        "pearson": 1.0 if correct else 0.5,
    }
    memory = {"peak_with_setup_mib": 700.0, "import_mib": 500.0}
    return plain | memory | {"by": by, "seconds": seconds, "correct": correct, "facts": {}} | more


def test_the_table_beside_other_libraries_says_what_is_missed() -> None:
    task = {"title": "work", "aim": 4.0, "fastest_of_ours": "ours", "fastest_correct_peer": "peer"}
    task |= {"ratio": 3.0, "met": False, "peak_over_leanest_peer": 1.4}
    task |= {"methods": {"ours": line("ours", 2.0, share_of_matrix_rate=0.25), "peer": line("pydvl", 6.0)}}
    alone = task | {"fastest_correct_peer": None, "ratio": None, "met": None, "peak_over_leanest_peer": None}
    alone |= {"methods": {"ours": line("ours", 2.0), "peer": line("pydvl", 6.0, False, extrapolated=True)}}
    one, two = comparison.rows({"A": task, "B": alone})
    assert one == ["A. work", "float32", "2", "700", "25%", "peer", "6", "700", "3.0", "4", "1.40"]
    assert two[5:] == ["none", "", "", "", "4", ""]
    assert all(len(row) == len(comparison.HEAD) for row in (one, two))
    missed, memory, nobody = comparison.gaps({"A": task, "B": alone})
    assert missed == "A: 3.00 times the fastest correct peer, 4 asked."
    assert "1.40 times the memory" in memory
    assert "Of 700 MiB, 500 are torch" in memory
    assert (
        "peer about 6 s at a Pearson coefficient of 0.5000 after the part measured (3.0 times ours)" in nobody
    )
    assert comparison.gaps({"A": task | {"met": True, "peak_over_leanest_peer": 0.5}}) == []
    methods = {"bare_cg_float32": line("bare", 4.0), "ours_plain_float32": line("ours", 5.0)}
    metrics = {"tasks": {"A": {"methods": methods}}, "a_over_bare_cg_float32": 0.5, "block_gain": 19.4}
    assert comparison.extra(metrics) == [
        "A takes 0.50 times what a bare hand-written CG takes in float32, and 1.25 times without a "
        "preconditioner.",
        "100 test points at once are 19 times cheaper than one by one.",
    ]
    assert comparison.extra({"corrected_over_self_influence": 1.25}) == [
        "Leverage-corrected scores of all points on one test point take 1.25 times as long as their "
        "self-influence."
    ]
    alone = {
        "fastest_of_ours": "one",
        "fastest_correct_peer": None,
        "methods": {"one": line("ours", 1.0)},
    }
    assert comparison.gaps({"K": alone}) == []
    slow = {
        "fastest_of_ours": "one",
        "fastest_correct_peer": "other",
        "ratio": 0.5,
        "met": None,
        "methods": {
            "one": line("ours", 20.0) | {"facts": {"iterations": 10}},
            "other": line("peer_other", 10.0),
        },
    }
    assert comparison.gaps({"J": slow}) == [
        "J: slower than the fastest correct peer. Ours takes 10 iterations of 2.00 s. other takes 10.0 s."
    ]


def test_arrays_that_differ_between_processes_are_named() -> None:
    equal = {"scores": 2e-15, "actual": 0.0, "index": True, "gradient_norm": 1e-8}
    assert apart(equal) == "2.0e-15"
    assert apart(equal | {"index": False, "age": "shapes (3,) and (4,)"}) == "not equal: index, age"
    assert apart({}) == ""
    ranks = {"stated": 1e-10, "one": {"1": {}, "2": {"relative_difference": {"index": False}}}}
    assert cells(across(ranks)) == [["`one`", "2", "not equal: index", ""]]


def test_the_committed_page_is_that_of_its_records() -> None:
    ranks = json.loads((ROOT / "results" / "distributed.json").read_text())
    folders = ("results/benchmark_networks", "results/benchmark_residual")
    others = {folder: Record.load(ROOT / folder) for folder in folders}
    wanted = page(Record.load(ROOT / "results" / "benchmark"), ranks, Gpu(), others)
    assert (ROOT / "results" / "scaling.md").read_text() == wanted, "run python -m experiments.scaling"
