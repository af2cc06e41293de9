"""cleanlab's side of the evidence: ranks from labels and out-of-fold probabilities, in its own interpreter.

``python peer_cleanlab.py IN.npz OUT.npz``: for every case ``NAME`` in IN (``NAME.labels (n,)`` and
``NAME.probabilities (n, c)``) writes ``NAME.order (n,)`` and ``NAME.seconds``. The issues that
``find_label_issues`` names come first, by self-confidence; the other rows follow by their label quality, so
that every method ranks all rows.
"""

from __future__ import annotations

import sys
import time

import numpy as np


def order_of(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """All rows, cleanlab's issues first."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    issues = find_label_issues(labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    quality = get_label_quality_scores(labels, probabilities, method="self_confidence")
    rest = np.setdiff1d(np.argsort(quality, kind="stable"), issues, assume_unique=True)
    rest = rest[np.argsort(quality[rest], kind="stable")]
    return np.concatenate([issues, rest]).astype(np.int64)


def main(source: str, target: str) -> None:
    """Ranks every case of the file."""
    import cleanlab

    out: dict[str, np.ndarray] = {"version": np.array(cleanlab.__version__)}
    with np.load(source) as cases:
        for name in {key.rsplit(".", 1)[0] for key in cases.files}:
            start = time.perf_counter()
            out[f"{name}.order"] = order_of(cases[f"{name}.labels"], cases[f"{name}.probabilities"])
            out[f"{name}.seconds"] = np.array(time.perf_counter() - start)
    np.savez(target, **out)  # type: ignore[arg-type]  # numpy 2 puts allow_pickle among the keywords


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
