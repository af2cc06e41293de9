"""The frozen layers of a network are run once, and what they returned is used in every later pass.

A module without a parameter of θ, called with arguments that do not depend on θ, returns the same for the
same examples in every pass. Which calls those are is found by running a few examples: at three θ, in two
batches, and with gradients. The outputs that the rest of the network looks at are kept. Others are skipped:
they are filled with NaN and then with noise, and the network's outputs must not notice.

What is kept belongs to the very tensors that it was computed from. If one was changed since, it is computed
anew, so no stale output is ever used.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from influence.errors import DataError
from influence.objectives.derivatives import Probe
from influence.objectives.inputs import Inputs, count, leaves, map_tensors, take, versions
from influence.objectives.network import Network
from influence.objectives.passes import Batch, Method, Passes, Way
from influence.objectives.taps import Action, Enough, Known, Made, Place, untapped

_FEW = 4  # examples
_DEPTH = 20  # levels of modules that are looked into
_FILLINGS = (float("nan"), 0.7310, -1.9e4)


@dataclass
class Frozen:
    """The kept calls of a network.

    Attributes:
        network: whose frozen modules are tapped.
        per_example: bytes that are kept of one example.
        budget: bytes that may be kept.
    """

    network: Network
    per_example: int
    budget: int

    def outputs(self, inputs: Inputs, batch_size: int) -> tuple[Tensor, ...] | None:
        """The kept outputs for all examples, each ``(n, ...)``; None if they would take too much memory."""
        n = count(inputs)
        if n * self.per_example > self.budget:
            return None
        parts: list[list[Tensor]] = []
        for start in range(0, n, batch_size):
            parts.append(self.of_batch(take(inputs, slice(start, start + batch_size))))
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def words(self, n: int) -> str:
        """For a reader: whether frozen layers run once or in every pass."""
        size = n * self.per_example
        if size > self.budget:
            return (
                f"they run in every pass, because what they return takes {size / 2**30:.2g} GiB "
                f"(cache_bytes is {self.budget / 2**30:.2g} GiB)"
            )
        return f"they run once, and {size / 2**20:.2g} MiB of what they return are kept"

    def of_batch(self, x: Inputs) -> list[Tensor]:
        """The kept outputs for a batch."""
        taps = self.network.taps
        kept = [action for action in taps.actions.values() if action.first is not None]
        wanted = sum(len(action.made.tensors) for action in kept)
        with taps.recording(wanted) as made, torch.no_grad(), contextlib.suppress(Enough):
            self.network(self.network.initial(), x)
        return _kept(made, taps.actions)


@dataclass
class Kept:
    """What is kept for the examples of one objective, and for which tensors."""

    outputs: tuple[Tensor, ...] | None = None
    of: list[tuple[Tensor, int]] = field(default_factory=list)

    def belongs_to(self, inputs: Inputs) -> bool:
        """Whether it was computed from these tensors as they are now."""
        now = list(zip(leaves(inputs), versions(inputs), strict=True))
        return len(now) == len(self.of) and all(
            a is b and x == y for (a, x), (b, y) in zip(now, self.of, strict=True)
        )

    def outputs_for(self, frozen: Frozen, inputs: Inputs, batch_size: int) -> tuple[Tensor, ...] | None:
        """For these inputs; by one pass over the examples, unless they are known already."""
        if not self.belongs_to(inputs):
            before = list(zip(leaves(inputs), versions(inputs), strict=True))
            self.outputs, self.of = frozen.outputs(inputs, batch_size), before
        return self.outputs

    def chosen(self, inputs: Inputs, some: Inputs, which: Any) -> Kept:
        """That of the examples ``which`` of ``inputs``, whose tensors are ``some``."""
        if self.outputs is None or not self.belongs_to(inputs):
            return Kept()
        now = list(zip(leaves(some), versions(some), strict=True))
        return Kept(tuple(tensor[which] for tensor in self.outputs), now)


def own_copy(inputs: Inputs) -> Inputs:
    """The inputs in memory of their own, which no one else can change."""
    return map_tensors(lambda tensor: tensor.clone(), inputs)


def _kept(made: list[Made], actions: dict[Place, Action]) -> list[Tensor]:
    """The kept tensors of a recorded pass, in their order."""
    by_place = {one.place: one for one in made}
    if any(action.first is not None and place not in by_place for place, action in actions.items()):
        raise DataError(
            "the model calls its frozen layers differently from batch to batch, so their outputs cannot "
            "be kept; pass cache_bytes=0"
        )
    places = sorted((action.first, place) for place, action in actions.items() if action.first is not None)
    return [tensor.detach().clone() for _, place in places for tensor in by_place[place].tensors]


def find(network: Network, inputs: Inputs, budget: int) -> Frozen | None:
    """The frozen calls of ``network`` that are worth keeping, or None.

    Args:
        network: its model is tapped if there are such calls.
        inputs: all examples; a few are run.
        budget: bytes that may be kept.
    """
    trainable = {id(w) for w in network.model.parameters() if w.requires_grad}
    modules = _frozen_parts(network.model, trainable)
    if budget <= 0 or not any(True for part in modules for _ in part.parameters()):
        return None
    try:
        per_example = _Search(network, inputs).run(modules)
    except Exception:  # whatever a model does that cannot be tapped: then every pass runs all of it
        per_example = None
    if per_example is None:
        untapped(network.model)
        network.taps.actions, network.taps.calls = {}, Counter()
        return None
    return Frozen(network, per_example, budget)


def _frozen_parts(model: nn.Module, trainable: set[int]) -> list[nn.Module]:
    """The largest parts of ``model`` without a parameter of θ, each once."""
    found: dict[int, nn.Module] = {}
    for child in model.children():
        own = any(id(w) in trainable for w in child.parameters())
        parts = _frozen_parts(child, trainable) if own else [child]
        found |= {id(part): part for part in parts}
    return list(found.values())


class _Search:
    """Finds the calls that are kept and those that are skipped, by running a few examples."""

    def __init__(self, network: Network, inputs: Inputs) -> None:
        self.network, self.taps = network, network.taps
        n = count(inputs)
        self.m = min(n, _FEW)
        order = torch.arange(self.m, device=leaves(inputs)[0].device) * n // self.m
        self.x, self.other = take(inputs, order), take(inputs, order.flip(0))
        self.theta = network.initial()
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(self.theta.shape, generator=generator, dtype=torch.float64).to(self.theta)
        self.step = noise * self._sizes()
        self.away = self.theta + self.step  # there no weight is zero, so that everything is noticed
        tight = network.dtype == torch.float64
        self.near, self.gradients_near = (1e-12, 1e-7) if tight else (1e-5, 1e-3)

    def _sizes(self) -> Tensor:
        """About the size of the parameters around each coordinate, never zero."""
        typical = float(self.theta.square().mean().sqrt()) or 1.0
        parts = self.theta.split([piece.size for piece in self.network.pieces])
        sizes = [float(part.square().mean().sqrt()) if part.numel() else 0.0 for part in parts]
        pairs = zip(parts, sizes, strict=True)
        return torch.cat([torch.full_like(part, size or 0.1 * typical) for part, size in pairs])

    def run(self, modules: list[nn.Module]) -> int | None:
        """Bytes kept of one example; None if there is nothing worth keeping, or a doubt."""
        if self.m < 2:
            return None
        constant: list[Made] = []
        for _ in range(_DEPTH):
            untapped(self.network.model)
            self.taps.install(modules)
            constant, further = self._constant(modules)
            if not further:
                break
            modules = further
        heavy = {key for key, part in enumerate(modules) if any(True for _ in part.parameters())}
        if not any(made.place[0] in heavy for made in constant):
            return None
        self._choose(constant)
        if not self._outputs_agree(self.other) or not self._gradients_agree():
            return None
        kept = [a.made for a in self.taps.actions.values() if a.first is not None]
        sizes = [tensor.numel() * tensor.element_size() for made in kept for tensor in made.tensors]
        slim = {place: Action(a.made.slim(), a.first) for place, a in self.taps.actions.items()}
        self.taps.actions = slim
        return sum(sizes) // self.m

    def _constant(self, modules: list[nn.Module]) -> tuple[list[Made], list[nn.Module]]:
        """Calls whose output does not depend on θ; and, if some part must be looked into, other modules."""
        passes = [self._recorded(self.theta, self.x)]
        passes += [self._recorded(self.theta + s * self.step, self.x) for s in (1.0, -0.5)]
        half = self._recorded(self.theta, take(self.x, slice(0, self.m // 2)))
        first = passes[0]
        self.taps.calls = Counter(made.place[0] for made in first)
        if any([a.place for a in one] != [a.place for a in first] for one in (*passes, half)):
            return [], []  # it calls other modules from pass to pass
        constant: list[Made] = []
        opened: set[int] = set(range(len(modules))) - set(self.taps.calls)
        for i, made in enumerate(first):
            if made.depends or any(not _equal(made, one[i]) for one in passes[1:]):
                continue
            if self._per_example(made, half[i]):
                constant.append(made)
            else:
                opened.add(made.place[0])
        opened = {key for key in opened if any(True for _ in modules[key].children())}
        if not opened:
            return constant, []
        further: dict[int, nn.Module] = {}
        for key, part in enumerate(modules):
            further |= {id(p): p for p in (part.children() if key in opened else [part])}
        return constant, list(further.values())

    def _recorded(self, theta: Tensor, x: Inputs) -> list[Made]:
        with self.taps.recording() as made, torch.enable_grad():
            self.network(theta.detach().clone().requires_grad_(True), x)
        return made

    def _per_example(self, made: Made, half: Made) -> bool:
        """Whether its tensors have a row per example, which does not depend on the rows beside it."""
        if made.spec != half.spec or not made.tensors:
            return False
        constants = (int, float, bool, str, type(None))
        for whole, part in zip(made.leaves, half.leaves, strict=True):
            if not isinstance(whole, Tensor):
                if not isinstance(whole, constants) or whole != part:
                    return False
                continue
            fits = whole.ndim > 0 and len(whole) == self.m and len(part) == self.m // 2
            if not fits or whole.is_sparse or whole.is_quantized:
                return False
            if not self._close(part, whole[: len(part)], self.near * 1e3):
                return False
        return True

    def _choose(self, constant: list[Made]) -> None:
        """Keeps what the network looks at, and skips the rest."""
        self._act(constant, set())
        expected = self._raw(self.x)
        skipped: set[Place] = set()
        for made in constant:
            if any(not tensor.is_floating_point() for tensor in made.tensors):
                continue
            self._act(constant, skipped | {made.place})
            if self._unnoticed(expected, constant):
                skipped.add(made.place)
        self._act(constant, skipped)

    def _act(self, constant: list[Made], skipped: set[Place]) -> None:
        self.taps.actions, first = {}, 0
        for made in constant:
            keep = made.place not in skipped
            self.taps.actions[made.place] = Action(made, first if keep else None)
            first += len(made.tensors) if keep else 0

    def _unnoticed(self, expected: Tensor, constant: list[Made]) -> bool:
        known = Known(self.x, tuple(_kept(constant, self.taps.actions)))
        try:
            for filling in _FILLINGS:
                with self._filled(filling), torch.no_grad():
                    if not self._close(self.network(self.away, known), expected, self.near):
                        return False
        except Exception:  # such as an operation in place on a tensor that stands for many
            return False
        return True

    @contextlib.contextmanager
    def _filled(self, filling: float) -> Iterator[None]:
        before, self.taps.filling = self.taps.filling, filling
        try:
            yield
        finally:
            self.taps.filling = before

    def _raw(self, x: Inputs) -> Tensor:
        with torch.no_grad():
            return self.network(self.away, x)

    def _outputs_agree(self, x: Inputs) -> bool:
        """At another θ, after a pass over other examples, which a model may remember."""
        known = Known(x, tuple(Frozen(self.network, 0, 1).of_batch(x)))
        expected = self._raw(x)
        self._raw(self.x)
        return self._close(self._raw(known), expected, self.near)

    def _gradients_agree(self) -> bool:
        passes = Passes(self.network, Probe())
        known = Known(self.x, tuple(Frozen(self.network, 0, 1).of_batch(self.x)))
        targets = torch.ones_like(self._raw(self.x))
        for method in (Method.TRANSFORMS, Method.AUTOGRAD):
            way = Way(method)
            try:
                expected = passes.gradient(way, self.away, Batch(self.x, targets))
            except Exception:  # this way is not open to the model at all
                continue
            found = passes.gradient(way, self.away, Batch(known, targets))
            if not self._close(found, expected, self.gradients_near):
                return False
        return True

    def _close(self, a: Tensor, b: Tensor, relative: float) -> bool:
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if not a.is_floating_point() and not a.is_complex():
            return bool((a == b).all())
        scale = float(b.detach().abs().max()) if b.numel() else 0.0
        return torch.allclose(a.detach(), b.detach(), rtol=relative, atol=relative * scale)


def _equal(a: Made, b: Made) -> bool:
    """The same output, bit for bit."""
    if a.spec != b.spec:
        return False
    pairs = zip(a.leaves, b.leaves, strict=True)
    return all(
        torch.equal(p, q) if isinstance(p, Tensor) and isinstance(q, Tensor) else p is q or p == q
        for p, q in pairs
    )
