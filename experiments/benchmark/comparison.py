"""The benchmark's record as a table for a reader: ours, the fastest correct peer, ratios, aims and gaps."""

from __future__ import annotations

from typing import Any

from experiments.records.places import ROOT

HEAD = [
    *("task", "ours", "s", "MiB", "of matrix rate"),
    *("fastest correct peer", "s", "MiB", "times", "aim", "MiB/leanest"),
]


def rows(tasks: dict[str, Any]) -> list[list[str]]:
    """One line per task; a task that no peer gets right has the peer's cells empty."""
    found = []
    for name, task in tasks.items():
        mine, peer = task["fastest_of_ours"], task["fastest_correct_peer"]
        if mine is None:
            continue
        line = task["methods"][mine]
        cells = [f"{name}. {task['title']}", line["dtype"], time(line)]
        cells += [f"{line['peak_with_setup_mib']:,.0f}", share(line)]
        if peer is None:
            cells += ["none", "", "", ""]
        else:
            other = task["methods"][peer]
            cells += [peer, time(other), f"{other['peak_with_setup_mib']:,.0f}"]
            cells += [f"{task['ratio']:.1f}"]
        cells += [f"{task['aim']:g}" if task["aim"] else ""]
        ratio = task.get("peak_over_leanest_peer")
        found.append([*cells, f"{ratio:.2f}" if ratio else ""])
    return found


def time(line: dict[str, Any]) -> str:
    """A method's seconds, three digits of them."""
    seconds, about = line["seconds"], "about " * line["extrapolated"]
    return f"{about}{seconds:,.0f}" if seconds >= 1000 else f"{about}{seconds:.3g}"


def share(line: dict[str, Any]) -> str:
    """Share of the measured matrix-product rate, where the work was counted."""
    return f"{line['share_of_matrix_rate']:.0%}" if "share_of_matrix_rate" in line else ""


def gaps(tasks: dict[str, Any]) -> list[str]:
    """A sentence on every aim that is missed or can't be judged."""
    found = []
    for name, task in tasks.items():
        mine = task["fastest_of_ours"]
        if mine is None:
            found.append(f"{name}: no method of ours is correct.")
            continue
        line = task["methods"][mine]
        if all(other["by"] in ("ours", "bare") for other in task["methods"].values()):
            continue  # nobody else has it
        if task["fastest_correct_peer"] is None:
            others = [
                f"{method} {time(other)} s at a Pearson "
                f"coefficient of {other['pearson']:.4f}{' after the part measured' * other['extrapolated']} "
                f"({other['seconds'] / line['seconds']:.1f} times ours)"
                for method, other in task["methods"].items()
                if other["by"] not in ("ours", "bare") and other["status"] == "measured"
            ]
            found.append(
                f"{name}: no peer reaches the accuracy asked for, so there is no ratio. Ours has "
                f"{line['pearson']:.4f}. " + "; ".join(others) + "."
            )
        elif task["met"] is False:
            profile = f"results/profile_{name.lower()}.txt"
            where = f" Where its time goes: `{profile}`." if (ROOT / profile).is_file() else ""
            found.append(
                f"{name}: {task['ratio']:.2f} times the fastest correct peer, {task['aim']:g} asked.{where}"
            )
        if (task.get("ratio") or 1) < 1:
            other = task["methods"][task["fastest_correct_peer"]]
            found.append(
                f"{name}: slower than the fastest correct peer. " + _iterations("Ours", line) + " "
                + _iterations(task["fastest_correct_peer"], other) + _before(line)
            )  # fmt: skip
        if (task.get("peak_over_leanest_peer") or 0) > 1:
            beyond = line["peak_with_setup_mib"] - line["import_mib"]
            found.append(
                f"{name}: {task['peak_over_leanest_peer']:.2f} times the memory of the leanest correct peer. "
                f"Of {line['peak_with_setup_mib']:,.0f} MiB, {line['import_mib']:,.0f} are torch and other "
                f"imports, and {beyond:,.0f} are the data, its factor and the work."
            )
    return found


def _iterations(who: str, line: dict[str, Any]) -> str:
    """How many iterations a measurement took, and how long each."""
    count = line.get("facts", {}).get("iterations")
    if not count:
        return f"{who} takes {line['seconds']:.1f} s."
    return f"{who} takes {count} iterations of {line['seconds'] / count:.2f} s."


def _before(line: dict[str, Any]) -> str:
    """What our set-up takes, which checks every derivative; nothing where that is no time."""
    seconds = line.get("setup_seconds") or 0.0
    return f" Before that, ours checks every derivative in {seconds:.0f} s." if seconds >= 1 else ""


def extra(metrics: dict[str, Any]) -> list[str]:
    """Ratios that are no aim: A beside a hand-written CG, a block against one by one, the two of K."""
    found = []
    for dtype in ("float32", "float64"):
        ratio = metrics.get(f"a_over_bare_cg_{dtype}")
        if ratio:
            plain = metrics["tasks"]["A"]["methods"].get(f"ours_plain_{dtype}", {}).get("seconds")
            by_hand = metrics["tasks"]["A"]["methods"][f"bare_cg_{dtype}"]["seconds"]
            same = f", and {plain / by_hand:.2f} times without a preconditioner" if plain else ""
            found.append(f"A takes {ratio:.2f} times what a bare hand-written CG takes in {dtype}{same}.")
    if metrics.get("block_gain"):
        found.append(
            f"100 test points at once are {metrics['block_gain']:.0f} times cheaper than one by one."
        )
    if metrics.get("corrected_over_self_influence"):
        ratio = metrics["corrected_over_self_influence"]
        found.append(
            f"Leverage-corrected scores of all points on one test point take {ratio:.2f} times as long as "
            "their self-influence."
        )
    return found
