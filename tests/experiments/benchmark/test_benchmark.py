"""The benchmark's arithmetic, its honesty about what was not measured, and one measurement end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.benchmark import problems, profile, runner, summary
from experiments.records.errors import UserError
from experiments.records.record import Record
from tests.experiments.test_configs import composed
from tests.helpers import PATIENCE

MACHINE = {"gflops_float64": 50.0, "gflops_float32": 100.0, "bandwidth_gbytes": 10.0}


def outcome(seconds: list[float], **facts: Any) -> dict[str, Any]:
    return {
        "status": "measured",
        "seconds": seconds,
        "processor_seconds": seconds,
        "load_average": 1.0,
        "setup_seconds": 1.0,
        "import_mib": 200.0,
        "peak_mib": 300.0,
        "setup_peak_mib": 400.0,
        "facts": facts,
        "machine": MACHINE,
        "pearson": 1.0,
        "relative_error": 0.0,
    }


def measurement(by: str, dtype: str = "float64") -> dict[str, Any]:
    return {"by": by, "method": "cg", "dtype": dtype}


def test_medians_scaling_and_shares_of_the_machine() -> None:
    line = summary.row(measurement("ours"), outcome([3.0, 1.0, 2.0], flops=5e10, bytes=1e10), 0.9999)
    assert line["seconds"] == 2.0
    assert line["share_of_matrix_rate"] == pytest.approx(0.5)
    assert line["share_of_bandwidth"] == pytest.approx(0.5)
    assert line["peak_with_setup_mib"] == 400.0
    part = summary.row(measurement("ours"), outcome([2.0], done_of=[5, 100]), 0.9999)
    assert part["seconds"] == pytest.approx(40.0)
    assert part["extrapolated"]


def test_ratio_is_to_the_fastest_correct_peer() -> None:
    wrong = outcome([0.1]) | {"pearson": 0.9}
    outcomes = {"ours": outcome([2.0]), "fast": wrong, "right": outcome([10.0]), "hand": outcome([0.5])}
    by = {"ours": "ours", "fast": "peer_x", "right": "peer_y", "hand": "bare"}
    settings = {"title": "t", "problem": "linear", "aim": 4.0, "pearson": 0.9999}
    settings["measurements"] = {name: measurement(adapter) for name, adapter in by.items()}
    found = summary.task(settings, outcomes)
    assert found["fastest_correct_peer"] == "right"
    assert found["ratio"] == pytest.approx(5.0)
    assert found["ratio_with_our_setup"] == pytest.approx(10 / 3)
    assert found["met"] is True
    assert not found["methods"]["fast"]["correct"]


def test_without_a_peer_no_aim_counts_as_met() -> None:
    settings = {"title": "t", "problem": "linear", "aim": 4.0, "pearson": 0.9999}
    settings["measurements"] = {"ours": measurement("ours"), "gone": measurement("peer_x")}
    missing = {"status": "skipped", "reason": "not there"}
    found = summary.task(settings, {"ours": outcome([1.0]), "gone": missing})
    assert found["ratio"] is None
    assert found["met"] is None
    assert found["methods"]["gone"]["reason"] == "not there"


def test_slopes_are_exponents() -> None:
    sizes = [10.0, 100.0, 1000.0]
    assert summary.slope(sizes, [3 * s**1.5 for s in sizes]) == pytest.approx(1.5)
    assert np.isnan(summary.slope([10.0], [1.0]))


def test_answers_are_compared_over_what_both_have() -> None:
    reference = np.arange(12.0).reshape(6, 2)
    same = runner.compared(reference[:, :1], reference)
    assert same["relative_error"] == 0.0
    assert same["pearson"] == pytest.approx(1.0)
    assert runner.compared(-reference, reference)["pearson"] == pytest.approx(-1.0)


def problem(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    X, y = rng.random((60, 5), dtype=np.float32), np.arange(60) % 3
    facts = {"l2": 0.1, "damping": 0.0, "classes": 3, "network": None}
    arrays = {"X": X, "y": y, "theta": problems.fitted(X, y, 3, 0.1), "test_X": X[:2], "test_y": y[:2]}
    problems.write(folder, facts, **arrays)
    return folder


def test_a_measurement_in_its_own_process_agrees_with_the_dense_solve(tmp_path: Path) -> None:
    where = problem(tmp_path / "p")
    answers = {}
    for by, method in (("ours", "cg"), ("bare", "dense")):
        wanted = {
            "by": by,
            "method": method,
            "dtype": "float64",
            "repeats": 2,
            "options": {"tolerance": 1e-8},
        }
        found, answer = runner.run(where, wanted, peers=tmp_path, threads=1, timeout=PATIENCE, timed=False)
        assert found["status"] == "measured", found
        assert len(found["seconds"]) == 2
        assert found["peak_mib"] > 50
        answers[by] = answer
    assert runner.compared(answers["ours"], answers["bare"])["relative_error"] < 1e-6


def test_the_profile_of_a_measurement_accounts_for_all_of_its_time(tmp_path: Path) -> None:
    problem(tmp_path / "problems" / "linear")
    exact = {"by": "ours", "method": "exact", "dtype": "float64", "options": {"test_points": 2}}
    tasks = {"C": {"title": "some", "problem": "linear", "measurements": {"exact": exact}}}
    (tmp_path / "config.yaml").write_text(json.dumps({"experiment": {"tasks": tasks}}))
    head, _, lines = profile.measured(tmp_path, "C", "exact").partition("seconds  share")
    assert "Necessary work" in head
    assert "influence/" in lines
    shares = [float(line.split("%")[0].split()[-1]) for line in lines.splitlines() if "%" in line]
    assert sum(shares) == pytest.approx(100, abs=len(shares))  # each is rounded
    with pytest.raises(UserError, match="no measurement cg of ours"):
        profile.measured(tmp_path, "C", "cg")
    with pytest.raises(UserError, match="holds no config"):
        profile.measured(tmp_path / "problems", "C", "exact")


def test_what_cannot_run_is_skipped_with_its_reason(tmp_path: Path) -> None:
    wanted = {"by": "peer_pydvl", "method": "cg", "dtype": "float32", "repeats": 1}
    skipped, answer = runner.run(tmp_path, wanted, peers=tmp_path / "none", threads=1, timeout=PATIENCE)
    assert answer is None
    assert skipped["status"] == "skipped"
    assert "make peers" in skipped["reason"]
    unpublished, _ = runner.run(
        tmp_path, wanted | {"by": "peer_nobody"}, peers=tmp_path, threads=1, timeout=PATIENCE
    )
    assert "package index" in unpublished["reason"]
    greedy, _ = runner.run(
        tmp_path, wanted | {"by": "ours", "needs_gib": 1e9}, peers=tmp_path, threads=1, timeout=PATIENCE
    )
    assert "GiB" in greedy["reason"]


def test_the_figure_is_drawn_from_the_record_alone(tmp_path: Path) -> None:
    from experiments.suite.figures import draw

    settings = {"title": "t", "problem": "linear", "aim": 4.0, "pearson": 0.9999}
    settings["measurements"] = {"ours": measurement("ours"), "peer": measurement("peer_x")}
    task = summary.task(settings, {"ours": outcome([1.0]), "peer": outcome([9.0])})
    grown = summary.growth(
        "n", [10, 100], [outcome([s], iterations=1, flops=1e9, bytes=1e9) for s in (1.0, 2.0)]
    )
    fields = ("sizes", "seconds", "seconds_a_product", "peak_mib_beyond_imports")
    arrays = {f"growth_{over}_{f}": np.array(grown[f], dtype=float) for over in "np" for f in fields}
    metrics = {"tasks": {"A": task}, "growth": {"n": grown, "p": grown}}
    paths = draw(Record("benchmark", metrics, arrays), tmp_path)
    assert {path.suffix for path in paths} == {".svg", ".png"}


def test_a_library_without_the_curvature_asked_for_is_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.benchmark import harness
    from experiments.benchmark.adapters import peer_captum, peer_dattri

    problem = SimpleNamespace(gauss_newton=True, options={"iterations": 3})
    for adapter in (peer_dattri.cg, peer_captum.arnoldi):
        with pytest.raises(harness.Unsupported, match="Hessian alone"):
            adapter(problem)

    def lacking() -> Any:
        raise harness.Unsupported("it has no such product")

    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"outcome": str(tmp_path / "outcome.json")}))
    monkeypatch.setattr("sys.argv", ["adapter", str(spec)])
    harness.serve(lacking)
    said = json.loads((tmp_path / "outcome.json").read_text())
    assert said == {"status": "skipped", "reason": "it has no such product"}


def test_only_names_tasks_that_exist(tmp_path: Path) -> None:
    from experiments.benchmark.experiment import Bench
    from experiments.records.errors import ConfigError

    cfg = composed("experiment=benchmark", "experiment.only=[I,Z]")
    with pytest.raises(ConfigError, match=r"names Z: choose from A, B.*, H"):
        Bench(cfg, SimpleNamespace(output=tmp_path))


def test_both_parts_of_task_k_agree_with_dense_solves(embedded: Callable[[str], Path]) -> None:
    """Self-influence of every point, and its corrected score, which one Newton step without it gives."""
    record = Record.load(embedded("benchmark"))
    methods = record.metrics["tasks"]["K"]["methods"]
    assert set(methods) == {"self_influence", "corrected"}
    for line in methods.values():
        assert line["correct"]
        assert line["relative_error"] < 1e-10
    ratio = methods["corrected"]["seconds"] / methods["self_influence"]["seconds"]
    assert record.metrics["corrected_over_self_influence"] == pytest.approx(ratio)
