"""Kronecker-factored Gauss-Newton matrices of any module: K-FAC and EK-FAC.

For a layer ``y_t = W [x_t; 1]`` an example's Gauss-Newton block is ``Σ_t,u [x_t x_uᵀ] ⊗ [g_t g_uᵀ]``.
K-FAC (Martens & Grosse, 2015; Grosse & Martens, 2016, for convolutions) replaces its mean by a Kronecker
product ``A ⊗ G`` of ``A = mean x xᵀ`` and ``G = mean Σ g gᵀ``. EK-FAC (George et al., 2018) keeps the
eigenvectors of A and G and takes as eigenvalues the true second moments of the gradients along them. Layers
are taken to be independent of each other.

Linear and convolution layers have both factors; an embedding's A is the diagonal of its tokens' counts.
Weights of normalisation layers have their exact diagonal. Everything else (recurrent weights, grouped
convolutions, attention that does not call its layers) has a diagonal that is estimated with random signs:
``E[(Σ_i ε_i J_iᵀ s_i)²]`` is the diagonal of ``Σ_i J_iᵀ s_i s_iᵀ J_i``.

This is an approximation. As a preconditioner of :class:`~influence.solvers.cg.CG` it changes the number of
iterations alone; by itself it solves with status ``APPROXIMATE``
(:class:`~influence.solvers.approximate.Approximate`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from influence.curvature.kronecker_layers import Diagonal, Rotated, captured_calls, layers_of
from influence.errors import DataError
from influence.objectives.module import Objective

_SIGNS = 4  # random sign vectors per batch for the diagonals
Product = Any


@dataclass(frozen=True)
class KroneckerFactors:
    """The approximate Gauss-Newton matrix of an objective, by layers.

    Attributes:
        blocks: one a layer.
        penalty: λ m ``(p,)``.
    """

    blocks: tuple[Rotated | Diagonal, ...]
    penalty: Tensor

    def product(self, V: Tensor) -> Tensor:
        """The approximation times ``V (p, k)``, penalty included."""
        out = torch.zeros_like(V)
        for block in self.blocks:
            block.apply(V, out, block.values)
        return out + self.penalty[:, None] * V

    def inverse(self, damping: float) -> Product:
        """``V ↦ (approximation + damping·I)⁻¹ V`` on blocks ``(p, k)``.

        Of a layer whose weight and bias have different penalties the mean is taken.

        Raises:
            DataError: penalty and damping are 0 where the approximation is singular.
        """
        factors = []
        for block in self.blocks:
            place = block.index[block.index >= 0]
            shifted = block.values + float(self.penalty[place].mean()) + damping
            # A curvature at the level of rounding would blow up what rounding left of a direction.
            floor = torch.finfo(shifted.dtype).eps * float(shifted.max())
            if not float(shifted.max()) > 0:
                raise DataError("a layer has no curvature at all; set l2 or damping above 0")
            factors.append(1 / shifted.clamp(min=floor))

        def apply(V: Tensor) -> Tensor:
            out = torch.zeros_like(V)
            for block, factor in zip(self.blocks, factors, strict=True):
                block.apply(V, out, factor)
            return out

        return apply


def kronecker_factors(
    objective: Objective,
    theta: Tensor,
    idx: Tensor | None = None,
    *,
    corrected: bool = True,
    examples: int | None = None,
    seed: int = 0,
) -> KroneckerFactors:
    """K-FAC or EK-FAC factors of a module objective's Gauss-Newton matrix at θ.

    Args:
        objective: its loss must be convex in the outputs.
        theta: ``(p,)`` fitted parameters.
        idx: the examples of the matrix; all by default.
        corrected: EK-FAC's eigenvalues (a second pass), or K-FAC's products.
        examples: from at most so many of them, evenly spaced; None for all.
        seed: of the random signs.

    Raises:
        DataError: an objective without a module.
    """
    if not isinstance(objective, Objective):
        raise DataError(
            f"Kronecker factors need the module of an Objective, got {type(objective).__name__}; "
            "use Kronecker() for a LinearObjective"
        )
    chosen = torch.arange(objective.n, device=objective.device) if idx is None else objective.index(idx)
    assert chosen is not None
    if examples is not None and examples < len(chosen):
        chosen = chosen[torch.arange(examples, device=chosen.device) * len(chosen) // examples]
    return _Collector(objective, theta, chosen, seed).factors(corrected)


class _Collector:
    """Passes over the examples with the inputs of every layer and the gradients at its outputs kept."""

    def __init__(self, objective: Objective, theta: Tensor, idx: Tensor, seed: int) -> None:
        self.objective, self.idx = objective, idx
        self.model = copy.deepcopy(objective.module(theta))
        self.places = _places(objective)
        self.generator = torch.Generator().manual_seed(seed)
        self.layers = layers_of(self.model, self.places)
        covered = {name for layer in self.layers for name in layer.names}
        rest = self.places.keys() - covered
        self.others = {name: w for name, w in self.model.named_parameters() if name in rest}
        for name, weight in self.model.named_parameters():
            weight.requires_grad_(name in self.places)

    def factors(self, corrected: bool) -> KroneckerFactors:  # noqa: C901  two passes, read in order
        for captured, gradients in self._passes(signs=True):
            for layer in self.layers:
                layer.add_moments(captured.get(layer, []), gradients)
        unseen = [layer for layer in self.layers if layer.rows == 0]  # a module that forward never called
        for layer in unseen:
            self.layers.remove(layer)
        for layer in self.layers:
            layer.decompose()
        if corrected and self.layers:
            for captured, gradients in self._passes(signs=False):
                for layer in self.layers:
                    layer.add_values(captured.get(layer, []), gradients)
        n = len(self.idx)
        blocks: list[Rotated | Diagonal] = [layer.block(n, corrected) for layer in self.layers]
        lost = {name for layer in unseen for name in layer.names}
        for name, place in self.places.items():
            if name in lost or name in self.others:
                values = self._diagonals.get(name)
                flat = torch.zeros(place.numel(), dtype=self.objective.dtype, device=place.device)
                if values is not None:
                    flat = values.reshape(-1) / (n * _SIGNS)
                real = place.reshape(-1) >= 0
                flat = flat[real]
                # Few signs make a noisy estimate: half of it is the mean of its parameter.
                blocks.append(Diagonal(place.reshape(-1)[real], (flat + flat.mean()) / 2))
        return KroneckerFactors(tuple(blocks), self.objective.l2 * self.objective.l2_mask)

    def _passes(self, signs: bool) -> Iterator[tuple[dict[Any, list[tuple[Tensor, Tensor]]], list[Any]]]:
        """For each batch the layers' captured ``(input, output)`` and, for each column s of the roots of the
        output Hessians, the gradients of ``Σ_i f_iᵀ s_i`` at those outputs."""
        o = self.objective
        if signs:
            self._diagonals: dict[str, Tensor] = {}
        for rows in self.idx.split(o.batch_size):
            with captured_calls(self.layers) as captured, torch.enable_grad():
                outputs = _call(self.model, o.inputs, rows)
                outputs = outputs[:, None] if outputs.ndim == 1 else outputs
            roots = o.loss.output_hessian_sqrt(outputs.detach(), o.targets[rows])
            if o.weights is not None:
                roots = roots * o.weights[rows].clamp(min=0).sqrt()[:, None, None]
            points = [output for pairs in captured.values() for _, output in pairs]
            keys = [layer for layer, pairs in captured.items() for _ in pairs]
            gradients: list[dict[Any, list[Tensor]]] = []
            for r in range(roots.shape[2]):
                found: dict[Any, list[Tensor]] = {}
                if points:
                    grads = torch.autograd.grad(
                        outputs, points, roots[:, :, r], retain_graph=True, allow_unused=True
                    )
                    for layer, point, g in zip(keys, points, grads, strict=True):
                        found.setdefault(layer, []).append(torch.zeros_like(point) if g is None else g)
                gradients.append(found)
            if signs and self.others:
                self._add_diagonals(outputs, roots)
            yield captured, gradients

    def _add_diagonals(self, outputs: Tensor, roots: Tensor) -> None:
        weights = list(self.others.values())
        for _ in range(_SIGNS):
            shape = (len(roots), 1, roots.shape[2])
            signs = torch.randint(0, 2, shape, generator=self.generator).to(roots) * 2 - 1
            grads = torch.autograd.grad(
                outputs, weights, (roots * signs).sum(2), retain_graph=True, allow_unused=True
            )
            for name, g in zip(self.others, grads, strict=True):
                if g is not None:
                    self._diagonals[name] = self._diagonals.get(name, torch.zeros_like(g)) + g**2


def _places(objective: Objective) -> dict[str, Tensor]:
    """The place in θ of every entry of every trainable parameter; −1 for an entry that is no part of θ."""
    p = objective.p
    low = torch.arange(p, dtype=torch.float64, device=objective.device)
    first, second = objective.unflatten(low), objective.unflatten(low + p)
    return {name: torch.where(second[name] == w + p, w, -1).long() for name, w in first.items()}


def _call(model: nn.Module, inputs: Any, rows: Tensor) -> Tensor:
    outputs: Tensor
    if isinstance(inputs, Mapping):
        outputs = model(**{key: part[rows] for key, part in inputs.items()})
    elif isinstance(inputs, tuple | list):
        outputs = model(*(part[rows] for part in inputs))
    else:
        outputs = model(inputs[rows])
    return outputs
