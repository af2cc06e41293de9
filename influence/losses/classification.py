"""Cross-entropy of classes: hard or soft labels, smoothing, class weights, ignored targets, and tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from influence.checks import checked_number
from influence.errors import DataError
from influence.losses._base import Loss, finite, placed


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Softmax cross-entropy ``−Σ_a q_a log softmax(o)_a``.

    For a class y, q is the unit vector of y: the loss is ``−log softmax(o)_y``. For soft labels q is the
    target itself. With ``s = Σ q`` the gradient is ``s p − q`` and the Hessian ``s (diag(p) − ppᵀ)``.

    Args:
        label_smoothing: ε in [0, 1): q becomes ``(1 − ε) q + ε/c``.
        class_weights: a factor of q for each of the c classes. The loss is *not* divided by their sum.
        ignore_index: an example with this class has loss 0. It still counts in n.

    >>> CrossEntropy(label_smoothing=0.1).values(torch.zeros(1, 2), torch.tensor([1]))
    tensor([0.6931])
    """

    name: ClassVar[str] = "cross_entropy"
    classes: ClassVar[bool] = True
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    ignore_index: int | None = None

    def __post_init__(self) -> None:
        checked_number("label_smoothing", self.label_smoothing, least=0.0, below=1.0)
        if self.class_weights is not None:
            object.__setattr__(self, "class_weights", tuple(float(w) for w in self.class_weights))
            for weight in self.class_weights:
                checked_number("class_weights", weight, least=0.0)

    def plain(self, targets: Tensor) -> bool:
        """Whether q is the unit vector of a class."""
        return (
            targets.ndim == 1
            and not self.label_smoothing
            and self.class_weights is None
            and self.ignore_index is None
        )

    def distribution(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """q: ``(n, c)``."""
        c = outputs.shape[1]
        kept: Tensor | None = None
        if targets.ndim == 2:
            q = targets.to(outputs.dtype)
        else:
            if self.ignore_index is not None:
                kept = targets != self.ignore_index
                targets = torch.where(kept, targets, torch.zeros_like(targets))
            q = F.one_hot(targets, c).to(outputs.dtype)
        if self.label_smoothing:
            q = (1 - self.label_smoothing) * q + self.label_smoothing / c
        if self.class_weights is not None:
            q = q * torch.tensor(self.class_weights, dtype=q.dtype, device=q.device)
        return q if kept is None else q * kept[:, None]

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.plain(targets):
            return F.cross_entropy(outputs, targets, reduction="none")
        return -(self.distribution(outputs, targets) * torch.log_softmax(outputs, dim=1)).sum(dim=1)

    def output_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        p = torch.softmax(outputs, dim=1)
        if self.plain(targets):
            return p - F.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
        q = self.distribution(outputs, targets)
        return q.sum(dim=1, keepdim=True) * p - q

    def _scaled(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """p ``(n, c)`` and s ``(n,)``; None where s is 1."""
        p = torch.softmax(outputs, dim=1)
        return p, None if self.plain(targets) else self.distribution(outputs, targets).sum(dim=1)

    def output_hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        p, s = self._scaled(outputs, targets)
        hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        return hessian if s is None else s[:, None, None] * hessian

    def output_hessian_product(self, outputs: Tensor, targets: Tensor, tangents: Tensor) -> Tensor:
        p, s = self._scaled(outputs, targets)
        p = p[:, :, None]
        product = p * (tangents - (p * tangents).sum(dim=1, keepdim=True))
        return product if s is None else s[:, None, None] * product

    def prepared_hessian_product(self, outputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        p, s = self._scaled(outputs, targets)
        p = p[:, None, :]

        def product(u: Tensor) -> Tensor:
            pu = p * u
            out = pu.sub_(p * pu.sum(dim=2, keepdim=True))
            return out if s is None else out.mul_(s[:, None, None])

        return product

    def output_hessian_sqrt(self, outputs: Tensor, targets: Tensor) -> Tensor:
        # (diag(√p) − p√pᵀ)(diag(√p) − p√pᵀ)ᵀ = diag(p) − 2ppᵀ + p(√pᵀ√p)pᵀ = diag(p) − ppᵀ
        p, s = self._scaled(outputs, targets)
        root = p.sqrt()
        found = torch.diag_embed(root) - p[:, :, None] * root[:, None, :]
        return found if s is None else s.sqrt()[:, None, None] * found

    def output_range(self, n_outputs: int, like: Tensor) -> Tensor:
        # s p − q and diag(p) − ppᵀ are orthogonal to the vector of ones: Helmert's contrasts span the rest.
        basis = torch.zeros(n_outputs, n_outputs - 1, dtype=like.dtype, device=like.device)
        for j in range(1, n_outputs):
            basis[:j, j - 1] = 1.0
            basis[j, j - 1] = -j
        result: Tensor = basis / basis.norm(dim=0)
        return result

    def outputs_of(self, targets: Tensor) -> int:
        if targets.ndim == 2:
            return targets.shape[1]
        kept = targets if self.ignore_index is None else targets[targets != self.ignore_index]
        return int(kept.max()) + 1 if len(kept) else 1

    def prepare(self, targets: Any, dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
        tensor = placed(targets, device)
        if tensor.ndim == 2 and tensor.shape[1] > 1:
            return finite(tensor.to(dtype), "the soft labels")
        if tensor.ndim == 2:
            tensor = tensor[:, 0]
        if tensor.is_floating_point():
            finite(tensor, "the targets")
            raise DataError("cross_entropy needs integer targets; pass targets.long()")
        return tensor.long()

    def check_range(self, targets: Tensor, n_outputs: int) -> None:
        if self.class_weights is not None and len(self.class_weights) != n_outputs:
            raise DataError(
                f"class_weights has {len(self.class_weights)} entries but the model has {n_outputs} outputs; "
                "give one per class"
            )
        if targets.ndim == 2:
            self._check_soft(targets, n_outputs)
            return
        if targets.ndim != 1:
            raise DataError(
                f"cross_entropy needs a class per example or soft labels (n, {n_outputs}), got shape "
                f"{tuple(targets.shape)}; for a class per token use TokenCrossEntropy"
            )
        if targets.is_floating_point():
            raise DataError("cross_entropy needs integer targets; pass targets.long()")
        kept = targets if self.ignore_index is None else targets[targets != self.ignore_index]
        if not len(kept):
            return
        low, high = int(kept.min()), int(kept.max())
        if low < 0 or high >= n_outputs:
            raise DataError(
                f"targets span {low}…{high} but the model has {n_outputs} outputs, so they must lie in "
                f"0…{n_outputs - 1}; check the labels or the number of outputs"
            )

    def _check_soft(self, targets: Tensor, n_outputs: int) -> None:
        if targets.shape[1] != n_outputs:
            raise DataError(
                f"the soft labels have {targets.shape[1]} columns but the model has {n_outputs} outputs; "
                "give one per class"
            )
        if not targets.is_floating_point():
            targets = targets.double()
        sums = targets.sum(dim=1)
        if bool((targets < 0).any()) or not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
            raise DataError("soft labels must be >= 0 and sum to 1 for every example; normalise them first")


@dataclass(frozen=True)
class TokenCrossEntropy(Loss):
    """Cross-entropy of every token of a sequence: outputs ``(n, T, V)``, kept flat as ``(n, T·V)``.

    The loss of a sequence is the mean (or the sum) over its tokens that are not ignored.

    Args:
        ignore_index: the target of a token that does not count, such as padding.
        reduction: ``"mean"`` over the counted tokens of the sequence, or ``"sum"``.

    >>> import torch
    >>> loss = TokenCrossEntropy()
    >>> loss.values(torch.zeros(2, 4 * 3), torch.zeros(2, 4, dtype=torch.long))  # 4 tokens, 3 words: log 3
    tensor([1.0986, 1.0986])
    """

    name: ClassVar[str] = "token_cross_entropy"
    ignore_index: int = -100
    reduction: str = "mean"

    def __post_init__(self) -> None:
        if self.reduction not in ("mean", "sum"):
            raise DataError(f"reduction must be 'mean' or 'sum', got {self.reduction!r}")

    def _tokens(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``(n, T, V)``, targets with ignored ones set to 0, and the tokens' weights ``(n, T)``."""
        n, T = targets.shape
        kept = targets != self.ignore_index
        weights = kept.to(outputs.dtype)
        if self.reduction == "mean":
            weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
        return outputs.reshape(n, T, -1), torch.where(kept, targets, torch.zeros_like(targets)), weights

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        logits, classes, weights = self._tokens(outputs, targets)
        each = torch.log_softmax(logits, dim=2).gather(2, classes[:, :, None])[:, :, 0]
        return -(weights * each).sum(dim=1)

    def output_gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        logits, classes, weights = self._tokens(outputs, targets)
        unit = F.one_hot(classes, logits.shape[2]).to(outputs.dtype)
        return (weights[:, :, None] * (torch.softmax(logits, dim=2) - unit)).reshape(outputs.shape)

    def output_hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        eye = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=outputs.device)
        return self.output_hessian_product(outputs, targets, eye.expand(len(outputs), -1, -1))

    def output_hessian_product(self, outputs: Tensor, targets: Tensor, tangents: Tensor) -> Tensor:
        logits, _, weights = self._tokens(outputs, targets)
        p = torch.softmax(logits, dim=2)[..., None]
        u = tangents.reshape(*logits.shape, -1)
        product = weights[:, :, None, None] * p * (u - (p * u).sum(dim=2, keepdim=True))
        return product.reshape(tangents.shape)

    def prepared_hessian_product(self, outputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda u: self.output_hessian_product(outputs, targets, u.transpose(1, 2)).transpose(1, 2)

    def output_hessian_sqrt(self, outputs: Tensor, targets: Tensor) -> Tensor:
        logits, _, weights = self._tokens(outputs, targets)
        n, T, V = logits.shape
        p = torch.softmax(logits, dim=2)
        root = p.sqrt()
        blocks = weights.sqrt()[:, :, None, None] * (
            torch.diag_embed(root) - p[..., :, None] * root[..., None, :]
        )
        out = outputs.new_zeros(n, T, V, T, V)
        at = torch.arange(T, device=outputs.device)
        out[:, at, :, at, :] = blocks.transpose(0, 1)
        return out.reshape(n, T * V, T * V)

    def outputs_of(self, targets: Tensor) -> int:
        return targets.shape[1] * (int(targets.max()) + 1)

    def prepare(self, targets: Any, dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
        tensor = placed(targets, device)
        if tensor.is_floating_point():
            raise DataError("token_cross_entropy needs integer targets; pass targets.long()")
        return tensor.long()

    def check_range(self, targets: Tensor, n_outputs: int) -> None:
        if targets.ndim != 2:
            raise DataError(
                f"token_cross_entropy needs targets (n, T), a class per token, got {tuple(targets.shape)}"
            )
        T = targets.shape[1]
        if n_outputs % T:
            raise DataError(
                f"{n_outputs} outputs per example are no multiple of the {T} tokens of the targets"
            )
        kept = targets[targets != self.ignore_index]
        if len(kept) and not (int(kept.min()) >= 0 and int(kept.max()) < n_outputs // T):
            raise DataError(
                f"targets span {int(kept.min())}…{int(kept.max())} but the model has {n_outputs // T} "
                f"classes per token; tokens to leave out must carry {self.ignore_index}"
            )
