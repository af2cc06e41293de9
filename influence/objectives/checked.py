"""What an objective of a module checks and says about its data and its model."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from influence.arrays import as_tensor
from influence.errors import DataError, InfluenceError
from influence.objectives.inputs import Inputs, count, leaves, map_tensors, shape_of, take

_TRIES, _PAUSE = 4, 0.01  # passes between which other threads may draw, and seconds between them


def dtype_of(model: nn.Module, inputs: Inputs) -> torch.dtype:
    """The floating type of the inputs, or else of the model; float32 for half precision."""
    floating = [t for t in (*leaves(inputs), *model.parameters()) if t.is_floating_point()]
    dtype = floating[0].dtype if floating else torch.get_default_dtype()
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def weights_of(weights: Any, n: int, like: Tensor) -> Tensor | None:
    """Weights of n examples, ``(n,)``, of the device and type of ``like``; None if there are none.

    Raises:
        DataError: another shape, NaN or infinite weights.
    """
    if weights is None:
        return None
    found = as_tensor(weights, "the weights")
    if found.shape != (n,) or not bool(torch.isfinite(found).all()):
        raise DataError(
            f"weights must be finite, one for each of the {n} examples; got shape {tuple(found.shape)}"
        )
    return found.to(like)


def with_axis(inputs: Inputs, targets: Tensor, like: Inputs) -> Inputs:
    """Inputs with an axis of examples, if they are one example of the shape of those in ``like``."""
    pairs = list(zip(leaves(inputs), leaves(like), strict=False))
    if len(targets) == 1 and pairs and all(a.shape == b.shape[1:] for a, b in pairs):
        return map_tensors(lambda tensor: tensor[None], inputs)
    return inputs


@contextlib.contextmanager
def taking(inputs: Inputs, like: Inputs) -> Iterator[None]:
    """Says in one sentence what the module raises on test points.

    Raises:
        DataError: it raised.
        InfluenceError: as it came.
    """
    try:
        yield
    except InfluenceError:
        raise
    except Exception as error:  # whatever a module raises
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"the model cannot take inputs {shape_of(inputs)} ({said}); those that it was made with have "
            f"the shape {shape_of(like)}"
        ) from None


def check_determinism(outputs_of: Callable[[Inputs], Tensor], inputs: Inputs, dtype: torch.dtype) -> None:
    """Two passes in different batches must agree: catches dropout and batch norm in training mode.

    A pass that draws random numbers is caught by their generators, however rarely a number matters.

    Raises:
        DataError: they do not, or a pass draws random numbers.
    """
    m = min(count(inputs), 8)
    half = m // 2
    first = outputs_of(take(inputs, slice(0, m)))
    if not bool(torch.isfinite(first).all()):
        raise DataError(
            "the model's outputs are NaN or infinite on its training data; look at a log, a root or a "
            "division in it, and at the scale of the inputs"
        )
    parts = (slice(a, b) for a, b in ((0, half), (half, m)) if b > a)
    if _draws(lambda: outputs_of(take(inputs, slice(0, m)))):
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


class _Seen(TorchDispatchMode):
    """Whether an operation of this thread draws from one of torch's generators."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it without types
        self.drawn: bool = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.drawn = self.drawn or torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def _draws(run: Callable[[], object]) -> bool:
    """Whether ``run`` draws random numbers.

    The generators belong to the whole process, so another thread may have moved them (by making a network,
    say). So a difference counts if it is there every time, and if an operation of this thread drew.
    """
    for _ in range(_TRIES):
        before = _generators()  # a model that seeds itself in every pass leaves them as they were by now
        run()
        after = _generators()
        if after == before:
            return False
        time.sleep(_PAUSE)
    if after[1:] != before[1:]:
        return True  # of CUDA, of numpy or of Python: their draws are no operations of torch's
    mode = _Seen()
    with mode:
        run()
    return mode.drawn


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
