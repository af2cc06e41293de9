"""From outcomes to the table: medians, errors, shares of the machine, ratios, aims, slopes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def row(measurement: Mapping[str, Any], outcome: dict[str, Any], pearson: float) -> dict[str, Any]:
    """One line of a task's table. ``seconds`` is the median of the repetitions; where only a part of the work
    was done (``done_of`` k of K), it is scaled by K/k and says so."""
    common = {"by": measurement["by"].removeprefix("peer_"), "method": measurement["method"]}
    common |= {"dtype": measurement["dtype"], "status": outcome["status"]}
    if outcome["status"] != "measured":
        return common | {"reason": outcome["reason"]}
    facts, machine = outcome["facts"], outcome["machine"]
    measured = statistics.median(outcome["seconds"])
    done, whole = facts.get("done_of", [1, 1])
    found = common | {
        "seconds": measured * whole / done,
        "processor_seconds": statistics.median(outcome["processor_seconds"]) * whole / done,
        "load_average": outcome["load_average"],
        "runs": outcome["seconds"],
        "extrapolated": done != whole,
        "done_of": [done, whole],
        "setup_seconds": outcome["setup_seconds"],
        "peak_mib": outcome["peak_mib"],
        "peak_with_setup_mib": max(outcome["peak_mib"], outcome["setup_peak_mib"]),
        "import_mib": outcome["import_mib"],
        "gflops": machine.get(f"gflops_{measurement['dtype']}"),
        "bandwidth_gbytes": machine.get("bandwidth_gbytes"),
        "pearson": outcome.get("pearson"),
        "relative_error": outcome.get("relative_error"),
        "facts": facts,
    }
    found["correct"] = found["pearson"] is not None and found["pearson"] >= pearson
    if "flops" in facts and machine:
        found["share_of_matrix_rate"] = facts["flops"] / measured / 1e9 / found["gflops"]
    if "bytes" in facts and machine:
        found["share_of_bandwidth"] = facts["bytes"] / measured / 1e9 / found["bandwidth_gbytes"]
    return found


def fastest(rows: Mapping[str, dict[str, Any]], ours: bool, dtype: str | None = None) -> str | None:
    """Name of the fastest correct method of ours, or of the peers (hand-written programs are neither)."""
    names = [
        name
        for name, line in rows.items()
        if line.get("correct")
        and line["by"] != "bare"
        and (line["by"] == "ours") == ours
        and not line["facts"].get("beside")
        and dtype in (None, line["dtype"])
    ]
    return min(names, key=lambda name: rows[name]["seconds"]) if names else None


def task(settings: Mapping[str, Any], outcomes: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Everything about one task."""
    measurements = settings["measurements"]
    rows = {name: row(measurements[name], outcome, settings["pearson"]) for name, outcome in outcomes.items()}
    found: dict[str, Any] = {"title": settings["title"], "problem": settings["problem"], "methods": rows}
    best, peer = fastest(rows, True), fastest(rows, False)
    found |= {"fastest_of_ours": best, "fastest_correct_peer": peer, "aim": settings["aim"]}
    if best is not None:
        for line in rows.values():
            if "seconds" in line:
                line["times_our_seconds"] = line["seconds"] / rows[best]["seconds"]
    if best is None or peer is None:
        return found | {"ratio": None, "met": None}
    double = fastest(rows, True, "float64")
    lean = [line for line in rows.values() if line.get("correct") and line["by"] not in ("ours", "bare")]
    leanest = min(line["peak_with_setup_mib"] for line in lean)
    found["ratio"] = rows[peer]["seconds"] / rows[best]["seconds"]
    found["ratio_float64"] = rows[peer]["seconds"] / rows[double]["seconds"] if double else None
    found["ratio_with_our_setup"] = rows[peer]["seconds"] / (
        rows[best]["seconds"] + rows[best]["setup_seconds"]
    )
    found["met"] = None if settings["aim"] is None else found["ratio"] >= settings["aim"]
    found["peak_over_leanest_peer"] = rows[best]["peak_with_setup_mib"] / leanest
    return found


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Exponent b of the least-squares fit log value = a + b log size; NaN for fewer than two sizes."""
    if len(sizes) < 2 or min(values) <= 0:
        return float("nan")
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def growth(label: str, sizes: list[int], outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """Times and memory of task A over one size, with fitted exponents.

    ``slope_of_memory`` is that of the peak less what the process needed before its data; ``linear_*`` are the
    coefficients of a straight line, which say more where a constant part dominates the small sizes.
    """
    done = [(s, o) for s, o in zip(sizes, outcomes, strict=True) if o["status"] == "measured"]
    kept = [size for size, _ in done]
    seconds = [statistics.median(o["seconds"]) for _, o in done]
    products = [o["facts"]["iterations"] + 1 for _, o in done]
    each = [s / m for s, m in zip(seconds, products, strict=True)]
    peak = [o["peak_mib"] - o["import_mib"] for _, o in done]
    found: dict[str, Any] = {
        "over": label,
        "sizes": kept,
        "seconds": seconds,
        "products": products,
        "seconds_a_product": each,
        "peak_mib_beyond_imports": peak,
        "slope_of_time": slope(kept, seconds),
        "slope_of_time_a_product": slope(kept, each),
        "slope_of_memory": slope(kept, peak),
        "share_of_bandwidth": [
            o["facts"]["bytes"] / s / 1e9 / o["machine"]["bandwidth_gbytes"]
            for s, (_, o) in zip(seconds, done, strict=True)
        ],
        "share_of_matrix_rate": [
            o["facts"]["flops"] / s / 1e9 / o["machine"]["gflops_float64"]
            for s, (_, o) in zip(seconds, done, strict=True)
        ],
        "failed": [f"{s}: {o['reason']}" for s, o in zip(sizes, outcomes, strict=True) if "reason" in o],
    }
    if len(kept) > 1:
        found["linear_seconds_a_product"] = np.polyfit(kept, each, 1).tolist()
        found["linear_peak_mib"] = np.polyfit(kept, peak, 1).tolist()
    return found


def gains(tasks: Mapping[str, dict[str, Any]]) -> dict[str, float | None]:
    """Further ratios: A against a bare hand-written CG, C as a block against one by one, and the two of K."""

    def seconds(name: str, method: str) -> float | None:
        return tasks.get(name, {}).get("methods", {}).get(method, {}).get("seconds")

    def best(name: str, dtype: str | None = None) -> float | None:
        methods = tasks.get(name, {}).get("methods", {})
        chosen = fastest(methods, True, dtype)
        return None if chosen is None else methods[chosen]["seconds"]

    found: dict[str, float | None] = {}
    for dtype in ("float64", "float32"):
        mine, by_hand = best("A", dtype), seconds("A", f"bare_cg_{dtype}")
        found[f"a_over_bare_cg_{dtype}"] = mine / by_hand if mine and by_hand else None
    single, block = seconds("C", "one_by_one"), best("C")
    found["block_gain"] = single / block if single and block else None
    plain, corrected = seconds("K", "self_influence"), seconds("K", "corrected")
    found["corrected_over_self_influence"] = corrected / plain if plain and corrected else None
    return found
