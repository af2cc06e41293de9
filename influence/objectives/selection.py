"""Which parameters of a module are θ: by name, by pattern, by rule, or its last layer; the rest is fixed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from influence.errors import DataError
from influence.objectives.ready import copied, plain_module

Chosen = None | str | Sequence[str] | Callable[[str, nn.Parameter], bool]


def with_parameters(model: nn.Module, chosen: Chosen) -> nn.Module:
    """A copy of the module in which the chosen parameters alone have ``requires_grad=True``.

    Args:
        model: any module. A parameter that is frozen already may be chosen, and is then part of θ.
        chosen: None for the module as it is; a name or pattern (``"head.*"``); several of them; ``"last"``
            for the last module with parameters of its own; or a rule ``(name, parameter) -> bool``.

    Raises:
        DataError: a name or pattern without a parameter, or a rule that chooses none.
    """
    if chosen is None:
        return model
    model = copied(plain_module(model))
    names: dict[int, list[str]] = {}
    for name, w in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(w), []).append(name)
    own = dict(model.named_parameters())
    found = _chosen(model, own, names, chosen)
    if not found:
        raise DataError(f"parameters chooses none of the model's {len(own)}: {_some(own)}")
    for name, w in own.items():
        w.requires_grad_(name in found)
    return model


def _chosen(
    model: nn.Module, own: dict[str, nn.Parameter], names: dict[int, list[str]], chosen: Any
) -> set[str]:
    if callable(chosen):
        return {name for name, w in own.items() if chosen(name, w)}
    if isinstance(chosen, str) and chosen == "last":
        last = [prefix for prefix, part in model.named_modules() if list(part.parameters(recurse=False))]
        prefix = f"{last[-1]}." if last and last[-1] else ""
        chosen = [prefix + name for name, _ in model.get_submodule(last[-1]).named_parameters(recurse=False)]
    patterns = [chosen] if isinstance(chosen, str) else chosen
    if not isinstance(patterns, list | tuple | set) or not all(isinstance(p, str) for p in patterns):
        raise DataError(
            "parameters must be a name or pattern, a list of them, 'last', or a rule (name, parameter) -> "
            f"bool, got {chosen!r}"
        )
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name, w in own.items() if any(fnmatchcase(alias, pattern) for alias in names[id(w)])}
        if not hits:
            raise DataError(f"parameters: {pattern!r} names none of the model's: {_some(own)}")
        found |= hits
    return found


def _some(own: dict[str, nn.Parameter], most: int = 8) -> str:
    names = list(own)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
