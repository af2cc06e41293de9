"""Products with Hessians of sampled batches, for many independent chains at once.

LiSSA runs r chains over k right-hand sides as one block. For linear models a step is a gather and two small
batched products; for any other objective it is one sampled Hessian product a chain.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from influence.curvature.operators import ExampleOperator, Operator, base_of
from influence.errors import DataError

_CHUNK = 1 << 21  # gathered numbers (rows × inputs) held at a time


def batches(
    n: int, repeats: int, batch: int, replace: bool, generator: torch.Generator, steps: int
) -> Iterator[Tensor]:
    """Index blocks ``(steps', repeats, batch)`` that sum to ``steps``.

    With replacement every index is drawn uniformly. Without, every chain walks through a permutation of its
    own and shuffles again when fewer than ``batch`` examples are left.

    Raises:
        DataError: batch < 1, or batch > n without replacement.
    """
    if batch < 1 or (not replace and batch > n):
        raise DataError(f"batch must lie in 1…{n} (any size >= 1 with replacement), got {batch}")
    if replace:
        chunk = max(1, 65536 // (repeats * batch))
        for start in range(0, steps, chunk):
            yield torch.randint(n, (min(chunk, steps - start), repeats, batch), generator=generator)
        return
    per_epoch = n // batch
    done = 0
    while done < steps:
        take = min(per_epoch, steps - done)
        orders = torch.stack([torch.randperm(n, generator=generator) for _ in range(repeats)])
        yield orders[:, : take * batch].reshape(repeats, take, batch).transpose(0, 1)
        done += take


class Chains(ABC):
    """State of r chains for k right-hand sides and the step ``T ← v + T − (H_B + δI) T / s``."""

    def __init__(self, operator: Operator, B: Tensor, repeats: int) -> None:
        base, self.damping = base_of(operator)
        self.B, self.repeats = B, repeats
        self.p, self.k = B.shape
        if not isinstance(base, ExampleOperator):
            raise DataError("LiSSA samples training examples: give it a Hessian or GaussNewton operator")
        self.base, self.objective = base, base.objective
        self.n = self.objective.count(base.idx)

    def norms(self) -> Tensor:
        """``(r, k)`` norms of the chains."""
        result: Tensor = self.value().norm(dim=1)
        return result

    @abstractmethod
    def value(self) -> Tensor:
        """T, ``(r, p, k)``."""

    @abstractmethod
    def advance(self, idx: Tensor, scale: float) -> Iterator[int]:
        """Run the steps of an index block ``(m, r, b)``, yielding after each."""


class GenericChains(Chains):
    """Any objective: one sampled Hessian product a chain and step."""

    def __init__(self, operator: Operator, B: Tensor, repeats: int) -> None:
        super().__init__(operator, B, repeats)
        self.T = B[None].repeat(repeats, 1, 1)

    def value(self) -> Tensor:
        return self.T

    def advance(self, idx: Tensor, scale: float) -> Iterator[int]:
        idx = idx.to(self.B.device)
        if self.base.idx is not None:
            idx = self.base.idx[idx]
        for step in range(len(idx)):
            for r in range(self.repeats):
                t = self.T[r]
                ht = self.base.on_examples(idx[step, r]) @ t
                self.T[r] = self.B + t - (ht + self.damping * t) / scale
            yield step


class LinearChains(Chains):
    """Linear models: rows are gathered in chunks, and a step is two batched products in ``(r, k·c, d)``."""

    def __init__(self, operator: Operator, B: Tensor, repeats: int) -> None:
        super().__init__(operator, B, repeats)
        o: Any = self.objective  # a linear one
        self.linear = o
        self.c, self.d = o.n_outputs, o.d
        # (p, k) -> (k·c, d): the inputs last, so that both products stream over contiguous rows
        self.v = B.reshape(self.c, self.d, self.k).permute(2, 0, 1).reshape(self.k * self.c, self.d)
        self.v = self.v.contiguous()
        self.T = self.v[None].repeat(repeats, 1, 1)

    def value(self) -> Tensor:
        T = self.T.reshape(self.repeats, self.k, self.c, self.d)
        return T.permute(0, 2, 3, 1).reshape(self.repeats, self.p, self.k)

    def norms(self) -> Tensor:
        result: Tensor = self.T.reshape(self.repeats, self.k, -1).norm(dim=2)
        return result

    def advance(self, idx: Tensor, scale: float) -> Iterator[int]:
        r, b, c, k = self.repeats, idx.shape[2], self.c, self.k
        keep = 1 - (self.objective.l2 + self.damping) / scale
        free = self.objective.l2_mask[: self.d] == 0  # an intercept is damped but not penalised
        own = torch.where(free, 1 - self.damping / scale, keep) if bool(free.any()) else None
        per = max(1, _CHUNK // (r * b * self.d))
        for start in range(0, len(idx), per):
            part = idx[start : start + per].reshape(-1).to(self.B.device)
            if self.base.idx is not None:
                part = self.base.idx[part]
            m = len(part) // (r * b)
            x = self.linear.X.dense(part)
            outputs = x @ self.base.theta.reshape(c, self.d).T
            A = self.objective.loss.output_hessian(outputs, self.objective.targets[part])
            if self.objective.weights is not None:
                A = A * self.objective.weights[part][:, None, None]
            x = x.reshape(m, r, b, self.d)
            xt = x.transpose(2, 3)
            A = A.reshape(m, r, b, c, c) / (-scale * b)
            for step in range(m):
                u = torch.bmm(self.T, xt[step])  # (r, k·c, b)
                if c == 1:
                    h = u * A[step].reshape(r, 1, b)
                elif b == 1:
                    h = torch.matmul(u.reshape(r, k, c), A[step, :, 0]).reshape(r, k * c, 1)
                else:
                    u = u.reshape(r, k, c, b).permute(0, 3, 1, 2)  # (r, b, k, c); A is symmetric
                    h = torch.matmul(u, A[step]).permute(0, 2, 3, 1).reshape(r, k * c, b)
                if own is not None:
                    self.T *= own
                torch.baddbmm(self.T, h, x[step], beta=keep if own is None else 1.0, out=self.T)
                self.T += self.v
                yield start + step


def make_chains(operator: Operator, B: Tensor, repeats: int) -> Chains:
    """Chains in closed form for linear objectives, generic ones otherwise."""
    base, _ = base_of(operator)
    linear = isinstance(base, ExampleOperator) and base.objective.linear_outputs
    return (LinearChains if linear else GenericChains)(operator, B, repeats)
