"""The penalty ``(λ/2) Σ_j m_j θ_j²`` as a person writes it: one λ, or one per group of parameters by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from influence.errors import DataError
from influence.objectives.network import Network

ParameterRule = Callable[[str, nn.Parameter], bool]
Penalty = float | Mapping[str, float]


def penalty_of(network: Network, l2: Any, rule: str | ParameterRule) -> tuple[float, Tensor]:
    """λ and the mask m ``(p,)``, numbers in 0…1, so that parameter j has the weight decay ``λ m_j``.

    Args:
        network: the module.
        l2: λ ≥ 0, or a mapping of parameter names or patterns (``"encoder.*"``, ``"*.bias"``) to λ ≥ 0 in
            which every trainable parameter is named exactly once. λ is then the largest of them.
        rule: which parameters one λ touches: ``"all"``, ``"weights"`` (all but biases) or a rule.

    Raises:
        DataError: a λ that is negative or no number, a parameter that is named twice or not at all, a pattern
            that names none, or a rule beside a mapping.
    """
    if isinstance(l2, Mapping):
        if rule != "all":
            raise DataError("l2 as a mapping says what it touches; leave l2_parameters out")
        values = _by_name(network, l2)
        largest = max(values)
        shares = [value / largest if largest else 1.0 for value in values]
        return largest, _spread(network, shares)
    return checked_l2(l2), _spread(network, _touched(network, rule))


def checked_l2(l2: Any, name: str = "l2") -> float:
    """λ as a number.

    Raises:
        DataError: it is no finite number >= 0.
    """
    try:
        value = float(l2)
    except (TypeError, ValueError):
        value = math.nan
    if not (value >= 0 and math.isfinite(value)) or isinstance(l2, bool):
        raise DataError(f"{name} must be finite and >= 0, got {l2!r}")
    return value


def _by_name(network: Network, l2: Mapping[Any, Any]) -> list[float]:
    """λ of each piece of θ."""
    given = {str(pattern): checked_l2(value, f"l2[{pattern!r}]") for pattern, value in l2.items()}
    matches = [
        [pattern for pattern in given if any(fnmatchcase(name, pattern) for name in network.names_of(piece))]
        for piece in network.pieces
    ]
    named = {pattern for found in matches for pattern in found}
    frozen = [name for name, w in network.model.named_parameters() if not w.requires_grad]
    for pattern in given:
        if pattern not in named:
            fixed = any(fnmatchcase(name, pattern) for name in frozen)
            why = "names frozen parameters only" if fixed else "names no parameter of the model"
            raise DataError(f"l2[{pattern!r}] {why}; its parameters are {_some(network)}")
    for piece, found in zip(network.pieces, matches, strict=True):
        if len(found) != 1:
            how = " and ".join(map(repr, found)) if found else "no entry"
            raise DataError(
                f"l2 must name every parameter exactly once, but {piece.name} is named by {how}; the "
                f"parameters are {_some(network)}"
            )
    return [given[found[0]] for found in matches]


def _touched(network: Network, rule: str | ParameterRule) -> list[float]:
    named: dict[str, ParameterRule] = {
        "all": lambda name, w: True,
        "weights": lambda name, w: name.rpartition(".")[2] != "bias",
    }
    if isinstance(rule, str):
        if rule not in named:
            raise DataError(f"l2_parameters must be 'all', 'weights' or a callable, got {rule!r}")
        rule = named[rule]
    if not callable(rule):
        raise DataError(f"l2_parameters must be 'all', 'weights' or a callable, got {type(rule).__name__}")
    own = dict(network.model.named_parameters())
    return [float(bool(rule(piece.name, own[piece.name]))) for piece in network.pieces]


def _spread(network: Network, shares: list[float]) -> Tensor:
    """One number per piece of θ as a vector ``(p,)``."""
    parts = [
        torch.full((piece.size,), share, device=network.device, dtype=network.dtype)
        for piece, share in zip(network.pieces, shares, strict=True)
    ]
    return torch.cat(parts)


def _some(network: Network, most: int = 8) -> str:
    names = [piece.name for piece in network.pieces]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
