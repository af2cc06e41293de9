"""Calls of a network's frozen modules, answered by outputs that were kept: :class:`Taps`.

A tap stands in place of a module's ``forward``. It runs the module, or records what the module returns, or
answers with a kept output instead of running it. Which call is answered how is found in :mod:`.frozen`.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from influence.errors import DataError

Place = tuple[int, int]  # of a call in a pass: which tap, and its number among the calls of that tap


class Known(NamedTuple):
    """Inputs with kept outputs of the frozen calls; both have the examples along the first axis."""

    inputs: Any
    outputs: tuple[Tensor, ...]


class Enough(BaseException):
    """Ends a recording pass as soon as all that is wanted was seen; no ``except Exception`` swallows it."""


@dataclass(frozen=True)
class Made:
    """What one call of a tapped module returned.

    Attributes:
        place: of the call.
        leaves: of the output, tensors and constants.
        spec: how the output is made of them.
        depends: whether an argument carries a gradient of θ.
    """

    place: Place
    leaves: list[Any]
    spec: TreeSpec
    depends: bool

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors of the output."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    def slim(self) -> Made:
        """The same with shapes in place of values."""
        shapes = [
            leaf.new_empty(()).expand(leaf.shape) if isinstance(leaf, Tensor) else leaf
            for leaf in self.leaves
        ]
        return replace(self, leaves=shapes)


@dataclass(frozen=True)
class Action:
    """How a call is answered.

    Attributes:
        made: an example of what it returns.
        first: place of its first tensor among the kept ones, or None if nobody looks at its values.
    """

    made: Made
    first: int | None

    def answer(self, kept: tuple[Tensor, ...], m: int, dtype: torch.dtype, filling: float) -> Any:
        """The output for m examples: copies of the kept tensors, or tensors full of ``filling``."""
        found: list[Any] = []
        taken = self.first or 0
        for leaf in self.made.leaves:
            if not isinstance(leaf, Tensor):
                found.append(leaf)
            elif self.first is None:
                own = dtype if leaf.is_floating_point() else leaf.dtype
                one = torch.full((), filling, dtype=own, device=leaf.device)
                found.append(one.expand(m, *leaf.shape[1:]))
            else:
                found.append(kept[taken].clone())  # the network may work on it in place
                taken += 1
        return tree_unflatten(found, self.made.spec)


class _Pass(threading.local):
    """What the pass of one thread does with tapped calls: it runs, records or answers them."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.made: list[Made] | None = None
        self.wanted: int | None = None
        self.kept: tuple[tuple[Tensor, ...], int, torch.dtype] | None = None


class Taps:
    """The taps of one network and of all its copies.

    Attributes:
        actions: how calls are answered; a call that has none is run.
        filling: what skipped outputs are full of.
    """

    def __init__(self) -> None:
        self.actions: dict[Place, Action] = {}
        self.calls: Counter[int] = Counter()
        self.filling = float("nan")
        self._now = _Pass()

    def __deepcopy__(self, memo: dict[int, Any]) -> Taps:
        return self

    def install(self, modules: list[nn.Module]) -> None:
        """Put a tap in place of the ``forward`` of each module."""
        for key, module in enumerate(modules):
            module.forward = Tap(module, self, key)

    @contextlib.contextmanager
    def recording(self, wanted: int | None = None) -> Iterator[list[Made]]:
        """Every tapped call of the pass inside is recorded; :class:`Enough` after ``wanted`` kept tensors."""
        made: list[Made] = []
        self._now.counts, self._now.made, self._now.wanted = Counter(), made, wanted
        try:
            yield made
        finally:
            self._now.made = None

    @contextlib.contextmanager
    def answering(self, kept: tuple[Tensor, ...], m: int, dtype: torch.dtype) -> Iterator[None]:
        """The calls of the pass inside are answered from ``kept``.

        Raises:
            DataError: the pass called a frozen module more or less often than usual.
        """
        counts: Counter[int] = Counter()
        self._now.counts, self._now.kept = counts, (kept, m, dtype)
        try:
            yield
        finally:
            self._now.kept = None
        if counts != self.calls:
            raise DataError(
                "the model calls its frozen layers differently from pass to pass, so their outputs cannot be "
                "kept; pass cache_bytes=0"
            )

    def call(self, key: int, run: Callable[[], Any], given: Any) -> Any:
        """One call of the tap ``key``: ``run()``, recorded or answered."""
        made, kept = self._now.made, self._now.kept
        if made is None and kept is None:
            return run()
        place: Place = (key, self._now.counts[key])
        self._now.counts[key] += 1
        if kept is not None:
            action = self.actions.get(place)
            return run() if action is None else action.answer(*kept, self.filling)
        assert made is not None
        output, action = run(), self.actions.get(place)
        if self._now.wanted is not None and (action is None or action.first is None):
            return output
        leaves, spec = tree_flatten(output)
        depends = any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_flatten(given)[0])
        # Copies: what follows may work on the output in place.
        made.append(Made(place, [_copy(leaf) for leaf in leaves], spec, depends))
        if self._now.wanted is not None:
            self._now.wanted -= len(made[-1].tensors)
            if self._now.wanted == 0:
                raise Enough
        return output


def _copy(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


class Tap:
    """In place of a module's ``forward``."""

    def __init__(self, module: nn.Module, taps: Taps, key: int) -> None:
        self.module, self.taps, self.key = module, taps, key
        self.earlier: Any = vars(module).get("forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.taps.call(self.key, lambda: self._run(*args, **kwargs), (args, kwargs))

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if self.earlier is not None:
            return self.earlier(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)


def untapped(model: nn.Module) -> nn.Module:
    """The module without its taps, in place."""
    for module in model.modules():
        tap = vars(module).get("forward")
        if isinstance(tap, Tap):
            del module.__dict__["forward"]
            if tap.earlier is not None:
                module.__dict__["forward"] = tap.earlier
    return model
