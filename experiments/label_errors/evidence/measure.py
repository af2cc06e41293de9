"""One table under all plantings: every method's rank of its rows, scored against the planted errors."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.tables.features import Features, encode, read_columns
from experiments.data.tables.labels import read_labels
from experiments.data.tables.reading import of_frame
from experiments.label_errors import neighbours
from experiments.label_errors.assess import Assessment, assess
from experiments.label_errors.evidence.plant import KINDS, RATES, SEEDS, planted
from experiments.label_errors.held_out import classifier, held_by_folds
from experiments.label_errors.logistic import Design
from experiments.label_errors.ranking import order_of, rounded
from experiments.label_errors.settings import Settings, settings
from experiments.records.errors import UserError

FOLDS = 5  # of the probabilities that cleanlab is given, as it recommends
FIXED = 0.01  # λ of the older command


def quiet(text: str) -> None:
    """Nobody watches."""


def measured(frame: Any, peer: Path | None, progress: Any) -> dict[str, Any]:
    """Recall and AUROC of every method under every planting, seconds, and what was expected.

    Args:
        frame: the clean table, its labels in ``label``.
        peer: the python that has cleanlab, None without it.
        progress: told how much is done.
    """
    chosen = settings(label="label")
    table = of_frame(frame)
    labels = read_labels(table, "label", chosen)
    features = encode(read_columns(table, labels, chosen, {}), chosen, len(labels.kept), quiet)
    y, classes = labels.y, len(labels.classes)
    clean = assess(features, y, classes, None, None, chosen, quiet)
    cases: list[dict[str, Any]] = []
    given: dict[str, np.ndarray] = {}
    for kind in KINDS:
        for rate in RATES:
            for seed in range(SEEDS):
                wrongly, wrong = planted(y, clean.held, kind, rate, seed)
                case: dict[str, Any] = {"kind": kind, "rate": rate, "seed": seed, "wrong": wrong}
                scores, seconds, result = _scores(features, wrongly, classes, chosen)
                case |= {"scores": scores, "seconds": seconds, "expected": list(result.expected)}
                name = f"{kind}-{rate}-{seed}"
                for method, probabilities, spent in _folds(wrongly, classes, result, seed):
                    given[f"{method}/{name}.labels"] = wrongly
                    given[f"{method}/{name}.probabilities"] = probabilities
                    case["seconds"][method] = spent
                cases.append(case)
                progress(len(cases))
    version = _cleanlab(given, cases, peer) if peer is not None else None
    return {
        "rows": len(y),
        "features": len(features.names) - 1,
        "classes": classes,
        "clean_accuracy": clean.accuracy,
        "cleanlab": version,
        "cases": [_summary(case) for case in cases],
    }


def _scores(
    features: Features, y: np.ndarray, classes: int, chosen: Settings
) -> tuple[dict[str, np.ndarray], dict[str, float], Assessment]:
    """Every method's score ``(n,)``, larger is more suspicious, and processor seconds."""
    start = time.process_time()
    result = assess(features, y, classes, None, None, chosen, quiet)
    seconds = {"held_loss": time.process_time() - start}
    scores = dict(result.scores)
    scores["linear"] = result.models[0].fitted.held_loss
    start = time.process_time()
    fixed = classifier(Design(features.X), y, classes, FIXED)
    seconds["self_influence_fixed"] = time.process_time() - start
    scores["loss_fixed"], scores["self_influence_fixed"] = fixed.loss, fixed.self_influence
    start = time.process_time()
    near, _ = neighbours.probabilities(features.X, y, classes, None, None, counts=(10,))
    seconds["neighbours"] = time.process_time() - start
    scores["neighbours"] = -np.log(near[np.arange(len(y)), y])
    return scores, seconds, result


def _folds(y: np.ndarray, classes: int, result: Assessment, seed: int) -> Any:
    """What cleanlab is given: out-of-fold probabilities of the same models and shares, and of the linear one.

    The nearest rows leave each row out anyway, so their opinion is the same here and there.
    """
    generator = np.random.default_rng(seed)
    folds = np.empty(len(y), dtype=np.int64)
    for k in range(classes):  # stratified
        rows = generator.permutation(np.flatnonzero(y == k))
        folds[rows] = (np.arange(len(rows)) + k) % FOLDS
    start = time.process_time()
    parts = {
        model.name: held_by_folds(model.design.X, y, classes, model.fitted.l2, None, folds)
        for model in result.models
    }
    spent = time.process_time() - start
    mixed: Any = sum(o.share * parts.get(o.name, o.held) for o in result.opinions)
    yield "cleanlab", mixed / mixed.sum(1, keepdims=True), spent
    yield "cleanlab_linear", parts["linear"], spent / len(parts)


def _cleanlab(given: dict[str, np.ndarray], cases: list[dict[str, Any]], peer: Path) -> str:
    """Adds cleanlab's ranks to the cases; its version."""
    script = Path(__file__).with_name("peer_cleanlab.py")
    with tempfile.TemporaryDirectory() as place:
        source, target = Path(place) / "in.npz", Path(place) / "out.npz"
        arrays: dict[str, Any] = {key.replace("/", "|"): value for key, value in given.items()}
        np.savez(source, **arrays)
        done = subprocess.run(
            [str(peer), str(script), str(source), str(target)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise UserError(f"cleanlab failed: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
        with np.load(target) as found:
            for case in cases:
                for method in ("cleanlab", "cleanlab_linear"):
                    name = f"{method}|{case['kind']}-{case['rate']}-{case['seed']}"
                    order = found[f"{name}.order"]
                    score = np.empty(len(order))
                    score[order] = -np.arange(len(order), dtype=np.float64)
                    case["scores"][method] = score
                    case["seconds"][method] += float(found[f"{name}.seconds"])
            return str(found["version"])


def _summary(case: dict[str, Any]) -> dict[str, Any]:
    from sklearn.metrics import roc_auc_score

    wrong, count = case["wrong"], int(case["wrong"].sum())
    found = {
        method: [
            round(float(wrong[order_of(score)[:count]].mean()), 4),
            round(float(roc_auc_score(wrong, rounded(score))), 4),
        ]
        for method, score in case["scores"].items()
    }
    return {
        "kind": case["kind"],
        "rate": case["rate"],
        "seed": case["seed"],
        "planted": count,
        "expected": case["expected"],
        "recall_and_auroc": found,
        "seconds": {method: round(value, 4) for method, value in case["seconds"].items()},
    }
