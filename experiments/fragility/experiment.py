"""Are influence functions fragile in deep nets, or were the nets not converged? (Basu et al. 2021.)

Small fully connected nets of several depths and widths, with tanh and SELU, with and without weight decay,
are trained from several initialisations. Each net is taken twice. "stopped" is the published protocol: Adam
for a fixed number of steps, and the same from the same initialisation without each point. "converged" goes on
from there by Newton's method to a stationary point, and from that to one without each point. Influence on
the test point of largest loss comes from the full exact Hessian, and from that of the last layer. Its rank
correlation with retraining tells two causes apart: depth, and a fit that has not converged (Epifano et al.
2023; Bae et al. 2022).
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from experiments.fragility.nets import ACTIVATIONS, Shape
from experiments.fragility.predictions import FITS, HESSIANS, Outcome, converged, objective_of, stopped
from experiments.records.errors import ConfigError
from experiments.records.record import Record
from experiments.suite.context import Context

COLUMNS = ("gradient_norm", "damping", "compared", "kink")


def run(cfg: DictConfig, context: Context) -> Record:
    """Every kind of net from every seed; means and deviations over seeds."""
    settings, data = cfg.experiment, context.data()
    X, Z = (torch.as_tensor(np.asarray(split.X), dtype=torch.float64) for split in (data.train, data.test))
    y, labels = torch.as_tensor(data.train.y), torch.as_tensor(data.test.y)
    check(settings, len(y))
    kinds = list(itertools.product(settings.activations, settings.decays, settings.widths, settings.depths))
    journal = context.journal("nets")
    nets = list(itertools.product(kinds, range(settings.seeds)))
    few = context.sample(len(nets), "points retrained", settings.removed)
    rows: list[dict[str, np.ndarray]] = []
    with (
        context.timer(f"{len(kinds)} kinds of nets, {settings.seeds} seeds"),
        context.progress(len(nets) if few is None else len(few), "nets") as advance,
    ):
        for (activation, decay, width, depth), seed in nets if few is None else [nets[i] for i in few]:
            shape = Shape(X.shape[1], len(data.classes), depth, width, activation)
            key = f"{activation}-{decay:g}-{width}-{depth}-{seed}"
            row = journal.get(key)
            if row is None:
                row = net(settings, cfg.seed + seed, shape, decay, X, y, Z, labels)
                journal.put(key, row)
            rows.append(row)
            advance(len(rows))

    found = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    record = context.earlier()
    if record is not None and few is not None:  # the other nets as they were recorded
        for name, values in found.items():
            recorded = np.array(record.arrays[name])
            found[name] = recorded.reshape(len(nets), *recorded.shape[2:])
            found[name][few] = values
    shaped = {
        name: value.reshape(len(kinds), settings.seeds, *value.shape[1:]) for name, value in found.items()
    }
    return Record(
        experiment="fragility",
        metrics={
            "n_train": len(y),
            "n_test": len(labels),
            "seeds": settings.seeds,
            "removed": settings.removed,
            "nets": [summary(kind, shaped, place) for place, kind in enumerate(kinds)],
            "by": by_fit(settings, kinds, shaped),
        },
        arrays={
            "activation": np.array([kind[0] for kind in kinds]),
            "decay": np.array([kind[1] for kind in kinds]),
            "width": np.array([kind[2] for kind in kinds]),
            "depth": np.array([kind[3] for kind in kinds]),
            **shaped,
        },
        captions={
            "fragility": "Spearman's correlation of predicted with retrained changes of the worst test loss, "
            f"by depth of the net: mean and standard error over {settings.seeds} seeds, {settings.removed} "
            f"random training points each ({data.name}, n = {len(y)})."
        },
        certificates=[
            {
                "fit": fit,
                "count": int(found[f"{fit}_gradient_norm"].size),
                "median_gradient_norm": float(np.median(found[f"{fit}_gradient_norm"])),
                "largest_gradient_norm": float(found[f"{fit}_gradient_norm"].max()),
            }
            for fit in FITS
        ],
    )


def check(settings: Any, n: int) -> None:
    """Refuses activations that are not known, lists without an entry, and more points than there are."""
    unknown = sorted(set(settings.activations) - set(ACTIVATIONS))
    if unknown:
        raise ConfigError(f"experiment.activations={unknown}: choose from {', '.join(ACTIVATIONS)}.")
    for name in ("activations", "depths", "widths", "decays"):
        values = list(settings[name])
        if not values or len(set(values)) < len(values):
            raise ConfigError(f"experiment.{name}={values}: give at least one value, each once.")
    if settings.removed > n:
        raise ConfigError(f"experiment.removed={settings.removed}: there are {n} training points.")


def net(
    settings: Any,
    seed: int,
    shape: Shape,
    decay: float,
    X: torch.Tensor,
    y: torch.Tensor,
    Z: torch.Tensor,
    labels: torch.Tensor,
) -> dict[str, np.ndarray]:
    """One net under both kinds of fit: numbers and the changes that were compared."""
    objective = objective_of(shape, seed, X, y, decay)
    test = objective.on(Z, labels)
    generator = torch.Generator().manual_seed(seed)
    idx = torch.randperm(len(y), generator=generator)[: settings.removed].sort().values
    first, theta, changes = stopped(shape, objective, test, idx, objective.initial(), settings)
    second, later = converged(shape, objective, test, idx, theta, settings)
    found: dict[str, Any] = {"index": idx.numpy()}
    for fit, outcome, compared in zip(FITS, (first, second), (changes, later), strict=True):
        found |= {f"{fit}_{name}": getattr(outcome, name) for name in COLUMNS}
        found |= {f"{fit}_spearman_{name}": outcome.spearman[name] for name in HESSIANS}
        found |= {f"{fit}_change_{name}": value for name, value in compared.items()}
    return {name: np.asarray(value) for name, value in found.items()}


def summary(kind: tuple[Any, ...], shaped: dict[str, np.ndarray], place: int) -> dict[str, Any]:
    """Means and standard deviations over the seeds of one kind of net."""
    row: dict[str, Any] = dict(zip(("activation", "decay", "width", "depth"), kind, strict=True))
    for fit in FITS:
        row[fit] = {"nets_compared": int((shaped[f"{fit}_compared"][place] >= 3).sum())}
        row[fit] |= {f"median_{name}": float(np.median(shaped[f"{fit}_{name}"][place])) for name in COLUMNS}
        for name in HESSIANS:
            row[fit][name] = moments(shaped[f"{fit}_spearman_{name}"][place])
    return row


def moments(values: np.ndarray) -> dict[str, float]:
    """Mean and standard deviation of the finite values; NaN where there are none."""
    values = values[np.isfinite(values)]
    if not len(values):
        return {"mean": float("nan"), "deviation": float("nan")}
    return {"mean": float(values.mean()), "deviation": float(values.std(ddof=1)) if len(values) > 1 else 0.0}


def by_fit(settings: Any, kinds: list[Any], shaped: dict[str, np.ndarray]) -> dict[str, Any]:
    """{fit: {full, last_layer: {decayed, free: {all, shallow, deep}}}}: means over nets, the shallowest and
    the deepest apart; ``decayed`` nets have weight decay.
    """
    ends = {"all": None, "shallow": min(settings.depths), "deep": max(settings.depths)}
    found: dict[str, Any] = {}
    for fit, hessian, decayed, end in itertools.product(FITS, HESSIANS, (True, False), ends):
        rows = [
            place for place, (_, decay, _, depth) in enumerate(kinds)
            if (decay > 0) is decayed and ends[end] in (None, depth)
        ]  # fmt: skip
        if rows:
            part = found.setdefault(fit, {}).setdefault(hessian, {})
            values = moments(shaped[f"{fit}_spearman_{hessian}"][rows].ravel())
            part.setdefault("decayed" if decayed else "free", {})[end] = values["mean"]
    return found


__all__ = ["Outcome", "by_fit", "check", "moments", "net", "run", "summary"]
