"""A module as a function of one flat vector θ, with the settings of torch under which it is evaluated."""

from __future__ import annotations

import contextlib
import copy
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import UninitializedParameter

from influence.errors import DataError, DeviceError
from influence.objectives.inputs import Inputs, convert, count, map_tensors, shape_of, take, versions
from influence.objectives.ready import cast, copied, twin_of
from influence.objectives.substitutes import PlainEmbeddingBag, substitute
from influence.objectives.taps import Known, Taps, untapped

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Output = None | int | str | Callable[[Any], Tensor]
_FAST_PATHS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag, PlainEmbeddingBag)


@dataclass(frozen=True)
class Piece:
    """The part of θ that one parameter takes.

    Attributes:
        name: the parameter's name in the module.
        shape: its shape.
        size: how many coordinates of θ it takes.
        fixed: a row that is no part of θ (the padding row of an embedding), or None.
    """

    name: str
    shape: torch.Size
    size: int
    fixed: int | None


class Network:
    """``f_θ(x)`` of a module, θ ``(p,)`` its trainable parameters in the module's order.

    A row of an embedding at its ``padding_idx`` is no part of θ: torch gives it no gradient, so training
    never moves it. In θ, it would make the loss depend on a coordinate in which its gradient is zero.

    Args:
        model: copied. Parameters with ``requires_grad=False`` keep their values.
        dtype: floating type to compute in.
        output: which of the model's outputs, see :func:`selected`.

    Raises:
        DataError: no trainable parameter, a module that cannot be copied, or one that changes itself.
        DeviceError: the module's tensors are on several devices.
    """

    output_shape: tuple[int, ...] = ()
    """Of the outputs for one example, at the last pass."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, output: Output = None) -> None:
        self.output = output
        self._given = cast(copied(model), dtype)
        self.model = twin_of(self._given)
        if not substitute(self.model):
            self._given = self.model
        self._twin: nn.Module | None = None
        self._call: Callable[[Inputs], Arguments] | None = None
        self.taps = Taps()
        self._spoils = False  # whether a pass changes its inputs in place
        self.dtype = dtype
        trainable = [(name, w) for name, w in self.model.named_parameters() if w.requires_grad]
        if not trainable:
            raise DataError(
                "the model has no parameter with requires_grad=True, so nothing can be trained (quantised "
                "layers hold none); choose some by parameters="
            )
        self.device = trainable[0][1].device
        for name, w in self.model.named_parameters():
            if isinstance(w, UninitializedParameter):
                raise DataError(f"the model's {name} has no shape yet; run one batch through the model first")
            if w.is_complex() and w.requires_grad:
                raise DataError(
                    f"the model's {name} is complex, and θ is real; hold its real and imaginary parts as two "
                    "parameters, or freeze it with requires_grad_(False)"
                )
            if w.device.type != "meta" and not bool(torch.isfinite(w).all()):
                raise DataError(f"the model's {name} holds NaN or infinite values; load a good checkpoint")
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            same_device(f"the model's {name}", tensor.device, "its first parameter", self.device)
        fixed = _padding_rows(self.model)
        self.pieces = [_piece(name, w, fixed.get(id(w))) for name, w in trainable]
        self.p = sum(piece.size for piece in self.pieces)
        self._rows = {
            piece.name: w.detach()[piece.fixed : piece.fixed + 1]
            for piece, (_, w) in zip(self.pieces, trainable, strict=True)
            if piece.fixed is not None
        }
        self._aliases = _aliases(self.model, trainable)
        # In evaluation mode these run other code without gradients than with them; they run one here.
        self.one_path = any(isinstance(part, _FAST_PATHS) for part in self.model.modules())

    def names_of(self, piece: Piece) -> list[str]:
        """Every name of a parameter: several if modules share it."""
        return self._aliases[piece.name] or [piece.name]

    # -- θ and the module's parameters ---------------------------------------------------------------------

    def initial(self) -> Tensor:
        """θ ``(p,)``: the module's own parameters, flattened in the module's order."""
        return self.flatten(dict(self.model.named_parameters()))

    def flatten(self, values: Mapping[str, Tensor]) -> Tensor:
        """Named parameters as one vector ``(p,)``.

        Raises:
            DataError: a parameter is missing or has another shape.
        """
        parts = []
        for piece in self.pieces:
            if piece.name not in values or values[piece.name].shape != piece.shape:
                found = tuple(values[piece.name].shape) if piece.name in values else "none"
                raise DataError(
                    f"the parameter {piece.name} must have shape {tuple(piece.shape)}, got {found}; "
                    "pass parameters of the same architecture"
                )
            value = values[piece.name].detach()
            if piece.fixed is not None:
                value = torch.cat([value[: piece.fixed], value[piece.fixed + 1 :]])
            parts.append(value.reshape(-1))
        return torch.cat(parts)

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """``(p,)`` to the named parameters of the module (views of θ, apart from fixed rows)."""
        parts = theta.split([piece.size for piece in self.pieces])
        return {piece.name: self._whole(piece, part) for piece, part in zip(self.pieces, parts, strict=True)}

    def _whole(self, piece: Piece, part: Tensor) -> Tensor:
        if piece.fixed is None:
            return part.reshape(piece.shape)
        rows = part.reshape(piece.shape[0] - 1, *piece.shape[1:])
        return torch.cat([rows[: piece.fixed], self._rows[piece.name], rows[piece.fixed :]])

    def module(self, theta: Tensor) -> nn.Module:
        """A copy of the module that carries θ as its parameters."""
        model = untapped(twin_of(self._given))
        with torch.no_grad():
            own = dict(model.named_parameters())
            for name, value in self.unflatten(theta).items():
                own[name].copy_(value)
        return model

    def to(self, dtype: torch.dtype) -> Self:
        """The same network in another floating type (a copy)."""
        other = copy.copy(self)
        other.model = other._given = cast(twin_of(self.model), dtype)
        other._twin = None
        other.dtype = dtype
        other._rows = {name: row.to(dtype) for name, row in self._rows.items()}
        return other

    # -- evaluation ----------------------------------------------------------------------------------------

    def __call__(self, theta: Tensor, x: Inputs) -> Tensor:
        """Outputs ``(m, c)``.

        Raises:
            DataError: the module returns no tensor with one row an example.
        """
        values = self.unflatten(theta)
        everywhere = {alias: values[name] for name, aliases in self._aliases.items() for alias in aliases}

        def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            # With tie_weights=True, torch leaves θ behind in a module that appears twice.
            return functional_call(self.model, everywhere, args, kwargs, tie_weights=False)

        return self.answered(run, x)

    def answered(self, run: Callable[[tuple[Any, ...], dict[str, Any]], Any], x: Inputs) -> Tensor:
        """Outputs ``(m, c)`` of ``run(args, kwargs)``; frozen calls give what ``x`` knows of them."""
        if not isinstance(x, Known):
            return self._rows_of(run(*self._arguments(x)), x)
        with self.taps.answering(x.outputs, count(x.inputs), self.dtype):
            return self._rows_of(run(*self._arguments(x.inputs)), x.inputs)

    def _arguments(self, x: Inputs) -> Arguments:
        if self._call is None:
            self._call = self._first_that_runs(x)
        return self._call(map_tensors(torch.clone, x) if self._spoils else x)

    def _first_that_runs(self, x: Inputs) -> Callable[[Inputs], Arguments]:
        """How the module takes its inputs, found by trying on two examples."""
        said = ""
        for call in calls(self.model, x):
            few = map_tensors(torch.clone, take(x, slice(0, 2)))  # a copy: the module may work on it in place
            before = versions(few)
            args, kwargs = call(few)
            try:
                with torch.no_grad(), self.settings(False):
                    self.model(*args, **kwargs)
            except Exception as error:  # whatever the module raises
                said = said or f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            else:
                self._spoils = before != versions(few)
                return call
        raise DataError(
            f"the model {type(self.model).__name__} cannot take inputs {shape_of(x)} ({said}); "
            f"{_remedy(x, said, self.dtype)}"
        )

    def bind(self, theta: Tensor) -> Bound:
        """A copy of the module with θ in its own parameters, for plain reverse mode.

        Unlike :meth:`__call__`, the parameters stay in place during the backward pass, as recomputation
        (``torch.utils.checkpoint``) needs. The copy is kept: binding another θ ends the use of the earlier
        one.
        """
        if self._twin is None:
            self._twin = twin_of(self.model)
        own = dict(self._twin.named_parameters())
        with torch.no_grad():
            for name, value in self.unflatten(theta).items():
                own[name].copy_(value)
        return Bound(self, self._twin, [own[piece.name] for piece in self.pieces])

    def _rows_of(self, outputs: Any, x: Inputs) -> Tensor:
        """The chosen outputs flattened to ``(m, c)``; ``output_shape`` keeps their shape for one example."""
        outputs, m = selected(outputs, self.output), count(x)
        if not isinstance(outputs, Tensor) or outputs.ndim < 1 or len(outputs) != m:
            got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise DataError(f"the model maps inputs {shape_of(x)} to {got}; it must return (n, c)")
        self.output_shape = tuple(outputs.shape[1:])
        return outputs if outputs.ndim == 2 else outputs.reshape(m, -1)

    @contextlib.contextmanager
    def settings(self, plain_kernels: bool) -> Iterator[None]:
        """Torch's settings during a pass; they are restored afterwards.

        With ``plain_kernels``, attention runs as plain matrix products and recurrent layers without fused
        kernels: slower, but twice differentiable.
        """
        with contextlib.ExitStack() as stack:
            if plain_kernels or self.one_path:
                stack.enter_context(_without_fast_path())
            if plain_kernels:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
                stack.enter_context(_without(torch.backends.cudnn))
                stack.enter_context(_without(torch.backends.mkldnn))
            yield

    def on_examples(self, x: Inputs) -> Inputs:
        """Inputs in this network's floating type."""
        return convert(x, self.dtype)


@dataclass(frozen=True)
class Bound:
    """A module that carries θ in its own parameters."""

    network: Network
    module: nn.Module
    parameters: list[nn.Parameter]

    def outputs(self, x: Inputs) -> Tensor:
        """``(m, c)``, with a graph."""
        with torch.enable_grad():
            return self.network.answered(lambda args, kwargs: self.module(*args, **kwargs), x)

    def gradient(self, outputs: Tensor, u: Tensor | None = None, *, create_graph: bool = False) -> Tensor:
        """``Jᵀu`` as one vector ``(p,)``; with ``create_graph`` it can be differentiated again."""
        found = torch.autograd.grad(
            outputs, self.parameters, u, create_graph=create_graph, retain_graph=True, allow_unused=True,
            materialize_grads=True,
        )  # fmt: skip
        parts = []
        for piece, g in zip(self.network.pieces, found, strict=True):
            if piece.fixed is not None:
                g = torch.cat([g[: piece.fixed], g[piece.fixed + 1 :]])
            parts.append(g.reshape(-1))
        return torch.cat(parts)


def selected(outputs: Any, output: Output) -> Any:
    """The tensor among a model's outputs: by position, key, attribute or function.

    By default a tensor stands for itself, a tuple of one for its part, and an output with ``logits`` for
    those.

    Raises:
        DataError: several outputs, and none chosen; or no such output.
    """
    if callable(output):
        return output(outputs)
    if output is None:
        if isinstance(outputs, Tensor):
            return outputs
        if isinstance(outputs, Mapping) and "logits" in outputs:
            return outputs["logits"]
        if isinstance(outputs, tuple | list) and len(outputs) == 1:
            return outputs[0]
        parts = list(outputs) if isinstance(outputs, Mapping) else f"{type(outputs).__name__}"
        raise DataError(
            f"the model returns several outputs ({parts}); say which one the loss takes, for example "
            'output=0, output="logits" or a function of them'
        )
    try:
        if isinstance(output, int) or isinstance(outputs, Mapping):
            return outputs[output]
        return operator.attrgetter(output)(outputs)
    except (KeyError, IndexError, AttributeError, TypeError):
        raise DataError(f"the model returns no output {output!r} ({type(outputs).__name__})") from None


def calls(model: nn.Module, x: Inputs) -> list[Callable[[Inputs], Arguments]]:
    """The ways in which ``model`` may take ``x``, the likelier first: by name, one by one, as a whole."""

    def whole(x: Inputs) -> Arguments:
        return (x,), {}

    def by_name(x: Inputs) -> Arguments:
        return (), dict(x)

    def several(x: Inputs) -> Arguments:
        return tuple(x), {}

    if isinstance(x, Tensor):
        return [whole]
    accepted = inspect.signature(model.forward).parameters.values()
    if isinstance(x, Mapping):
        names = {p.name for p in accepted if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        named = set(x) <= names or any(p.kind is p.VAR_KEYWORD for p in accepted)
        return [by_name, whole] if named else [whole]
    positional = [p for p in accepted if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(p.default is p.empty for p in positional)
    many = any(p.kind is p.VAR_POSITIONAL for p in accepted) or required <= len(x) <= len(positional)
    return [several, whole] if many and len(x) > 1 else [whole, several]


@contextlib.contextmanager
def _without(backend: Any) -> Iterator[None]:
    """``torch.backends.cudnn`` or ``.mkldnn`` switched off."""
    before, backend.enabled = backend.enabled, False
    try:
        yield
    finally:
        backend.enabled = before


@contextlib.contextmanager
def _without_fast_path() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _remedy(x: Inputs, said: str, dtype: torch.dtype) -> str:
    """What to change if the module cannot take its inputs."""
    if any(words in said for words in ("dtype", "expected scalar type", "Input type")):
        return (
            f"it is computed in {dtype}: pass floating inputs, let its forward follow their type instead of "
            "casting to a fixed one, or pass dtype="
        )
    wanted = "give them as its forward wants them: one tensor, a tuple of arguments, or a mapping by name"
    if isinstance(x, tuple):
        return f"{wanted}; of the parts of a Dataset's example the last is the target, the others are inputs"
    if isinstance(x, Mapping):
        return f"{wanted}; leave out the entries {', '.join(map(repr, x))} that it does not take"
    return wanted


def _aliases(model: nn.Module, trainable: list[tuple[str, nn.Parameter]]) -> dict[str, list[str]]:
    """Every name of each parameter in distinct modules (a tied parameter has several)."""
    names = {id(w): name for name, w in trainable}
    found: dict[str, list[str]] = {name: [] for name, _ in trainable}
    for prefix, part in model.named_modules():
        for own, w in part.named_parameters(recurse=False):
            if id(w) in names:
                found[names[id(w)]].append(f"{prefix}.{own}" if prefix else own)
    return found


def _padding_rows(model: nn.Module) -> dict[int, int]:
    """``id`` of a parameter to its padding row."""
    parts = [part for part in model.modules() if isinstance(part, _EMBEDDINGS)]
    return {id(part.weight): part.padding_idx for part in parts if part.padding_idx is not None}


def _piece(name: str, w: nn.Parameter, fixed: int | None) -> Piece:
    return Piece(name, w.shape, w.numel() - (0 if fixed is None else w[0].numel()), fixed)


def same_device(what: str, device: torch.device, other: str, expected: torch.device) -> None:
    """Raises DeviceError if ``device`` is not ``expected``."""
    if device != expected:
        raise DeviceError(f"{what}: on {device}, but {other} is on {expected}; move one with .to(device)")


Forward = Callable[[Tensor, Inputs], Tensor]
