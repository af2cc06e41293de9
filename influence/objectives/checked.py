"""What an objective of a module checks and says about its data and its model."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from influence.arrays import as_tensor
from influence.errors import DataError
from influence.objectives.inputs import Inputs, count, leaves, take


def dtype_of(model: nn.Module, inputs: Inputs) -> torch.dtype:
    """The floating type of the inputs, or else of the model; float32 for half precision."""
    floating = [t for t in (*leaves(inputs), *model.parameters()) if t.is_floating_point()]
    dtype = floating[0].dtype if floating else torch.get_default_dtype()
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def checked_weights(weights: Any, n: int) -> Tensor:
    """Weights of n examples, ``(n,)``.

    Raises:
        DataError: another shape, NaN or infinite weights.
    """
    found = as_tensor(weights, "the weights")
    if found.shape != (n,) or not bool(torch.isfinite(found).all()):
        raise DataError(
            f"weights must be finite, one for each of the {n} examples; got shape {tuple(found.shape)}"
        )
    return found


def check_determinism(outputs_of: Callable[[Inputs], Tensor], inputs: Inputs, dtype: torch.dtype) -> None:
    """Two passes in different batches must agree: catches dropout and batch norm in training mode.

    A pass that draws random numbers is caught by their generators, however rarely a number matters.

    Raises:
        DataError: they do not, or a pass draws random numbers.
    """
    m = min(count(inputs), 8)
    half = m // 2
    first = outputs_of(take(inputs, slice(0, m)))
    parts = (slice(a, b) for a, b in ((0, half), (half, m)) if b > a)
    before = _generators()  # a model that seeds itself in every pass leaves them as they were by now
    outputs_of(take(inputs, slice(0, m)))
    if _generators() != before:
        raise DataError(
            "the model draws random numbers in every pass (dropout in training mode, or F.dropout without "
            "training=self.training?); call model.eval() first"
        )
    again = torch.cat([outputs_of(take(inputs, part)) for part in parts])
    allowed = 1e-9 if dtype == torch.float64 else 1e-3
    if not torch.allclose(first, again, rtol=allowed, atol=allowed * (1 + float(first.abs().max()))):
        raise DataError(
            "the model's output for an example changes from pass to pass or with the batch around it "
            "(dropout or batch norm in training mode?); call model.eval() first"
        )


def _generators() -> tuple[Any, ...]:
    """The states of the generators that a model may draw from."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    torch_states = [state.numpy().tobytes() for state in (torch.get_rng_state(), *devices)]
    kind, keys, *rest = np.random.get_state(legacy=True)
    return (*torch_states, kind, np.asarray(keys).tobytes(), *rest, random.getstate())


def fixed_words(model: nn.Module) -> str | None:
    """Which parameters are held fixed, in words; None if there are none."""
    own = list(model.named_parameters())
    fixed = [(name, w.numel()) for name, w in own if not w.requires_grad]
    if not fixed:
        return None
    names = ", ".join(name for name, _ in fixed[:6]) + (", …" if len(fixed) > 6 else "")
    total = sum(w.numel() for _, w in own)
    return f"held fixed: {sum(size for _, size in fixed):,} of {total:,} parameters ({names})"
