"""Convolutional tanh nets by a kernel in C: gradients of many nets at once, losses, the dense exact Hessian.

The kernel (``kernel.c`` beside this file) is compiled on first use by the C compiler of the machine, once for
each floating type, and kept in the user's cache folder. It is optional. :func:`compiled_net` returns None and
the reason if there is no compiler, if compiling fails, or if the kernel lacks one of the net's layers. Its
results are those of :class:`~.sequential.SequentialObjective` to rounding.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from influence.errors import DataError
from influence.losses import CrossEntropy
from influence.objectives.layers import Affine, Conv, Flatten, GlobalMean, Layer, Tanh
from influence.objectives.sequential import SequentialObjective

_SOURCE = Path(__file__).with_name("kernel.c")
_FLAGS = ("-O3", "-march=native", "-fno-strict-aliasing", "-std=gnu11", "-fPIC", "-shared", "-w")
_TYPES = {torch.float32: ("float", "int32_t"), torch.float64: ("double", "int64_t")}
_FIELDS = ("kind", "h", "w", "c", "kh", "kw", "sh", "sw", "oh", "ow", "o", "tanh", "weight_at", "bias_at")
_CONV, _MEAN, _DEEPEST = 0, 1, 32
_ROWS = 64  # examples that are worth a thread


class _Stage(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in _FIELDS)


@dataclass(frozen=True)
class Kernel:
    """The compiled functions of one floating type, or the reason why there are none."""

    library: ctypes.CDLL | None
    reason: str


def _compiler() -> str | None:
    """The C compiler: ``CC``, or the first of cc, gcc and clang on the path."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        found = shutil.which(name) if name else None
        if found:
            return found
    return None


def _cache() -> Path:
    """Where compiled kernels are kept: below ``XDG_CACHE_HOME``, or ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "influence" / "kernels"


def _processor() -> str:
    """What ``-march=native`` depends on: a kernel must not be taken to another processor by a shared home."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return platform.machine() + platform.processor() + flags


@functools.cache
def kernel(dtype: torch.dtype) -> Kernel:
    """The kernel of one floating type, compiled if it is not in the cache yet."""
    if dtype not in _TYPES:
        return Kernel(None, f"there is no kernel for {dtype}")
    if os.environ.get("INFLUENCE_KERNEL", "auto") == "off":
        return Kernel(None, "INFLUENCE_KERNEL=off")
    compiler = _compiler()
    if compiler is None:
        return Kernel(None, "no C compiler was found")
    real, integer = _TYPES[dtype]
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60).stdout
        source = _SOURCE.read_text()
        identity = "\n".join([source, *_FLAGS, compiler, version, _processor()])
        name = f"{real}-{hashlib.sha256(identity.encode()).hexdigest()[:20]}.so"
        path = _built(compiler, name, [f"-DREAL={real}", f"-DINT={integer}"])
        return Kernel(_loaded(path), "")
    except (OSError, subprocess.SubprocessError) as error:
        return Kernel(None, f"{compiler} did not compile the kernel: {type(error).__name__}")


def _built(compiler: str, name: str, defines: list[str]) -> Path:
    """The library ``name`` in the cache, or in a fresh temporary folder where the cache can't be written."""
    folder = _cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="influence-kernel-"))
    if (folder / name).is_file():
        return folder / name
    if not os.access(folder, os.W_OK):
        folder = Path(tempfile.mkdtemp(prefix="influence-kernel-"))
    handle, made = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(handle)
    try:
        subprocess.run(
            [compiler, *_FLAGS, *defines, str(_SOURCE), "-o", made, "-lm"],
            capture_output=True, check=True, timeout=600,
        )  # fmt: skip
        os.replace(made, folder / name)  # whole or not at all, whoever else compiles at the same time
    finally:
        Path(made).unlink(missing_ok=True)
    return folder / name


def _loaded(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    # stages, their number, p, images, labels, soft labels, idx, count, ...
    common: list[Any] = [pointer, integer, integer, pointer, pointer, pointer, pointer, integer]
    library.gradients.argtypes = [*common, pointer, integer, pointer, pointer, pointer]
    library.hessian.argtypes = [*common, pointer, pointer, pointer]
    for function in (library.gradients, library.hessian):
        function.restype = ctypes.c_int
    return library


def _stages(layers: list[Layer], shape: tuple[int, ...]) -> list[_Stage] | None:
    """The net as the kernel's stages, or None; ``shape`` is that of one input, ``(c, h, w)`` or ``(d,)``."""
    c, h, w = shape if len(shape) == 3 else (*shape, 1, 1)
    found: list[_Stage] = []
    at = 0
    for layer in layers:
        if isinstance(layer, Affine):
            out = layer.shape[0]
            if isinstance(layer, Conv):
                if layer.padding != (0, 0):
                    return None
                (kh, kw), (sh, sw) = layer.shape[2:], layer.stride
            else:  # the kernel is the whole map: torch flattens (c, h, w) in the order of its weights
                kh, kw, sh, sw = h, w, 1, 1
            oh, ow = (h - kh) // sh + 1, (w - kw) // sw + 1
            bias = at + layer.weight_size if layer.bias else -1
            found.append(_Stage(_CONV, h, w, c, kh, kw, sh, sw, oh, ow, out, 0, at, bias))
            at += layer.size
            c, h, w = out, oh, ow
        elif isinstance(layer, GlobalMean):
            found.append(_Stage(_MEAN, h, w, c, h, w, 1, 1, 1, 1, c, 0, -1, -1))
            h = w = 1
        elif isinstance(layer, Tanh):
            if not found or found[-1].tanh:
                return None
            found[-1].tanh = 1
        elif not isinstance(layer, Flatten):
            return None
    whole = found and found[0].kind == _CONV and found[-1].oh == found[-1].ow == 1
    return found if whole and len(found) <= _DEEPEST else None


class CompiledNet:
    """The sums over examples of a net's losses and of their derivatives, by the compiled kernel.

    Made by :func:`compiled_net`. Nothing here holds λ: sums are of ``L(z_i, θ)`` alone. All calls release
    the interpreter, so that threads run side by side; ``threads`` of them share the examples of one call, and
    their sums are added in order, so that equal ``threads`` give equal bytes.
    """

    def __init__(
        self, library: ctypes.CDLL, stages: list[_Stage], objective: SequentialObjective, threads: int
    ) -> None:
        self.p, self.n, self.dtype, self.threads = objective.p, objective.n, objective.dtype, threads
        self._library, self._count = library, len(stages)
        self._stages = (_Stage * len(stages))(*stages)
        self._inputs = objective.inputs.contiguous()
        self._labels, self._soft = _aims(objective)

    def gradients(self, thetas: Tensor, idx: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        """``Σ_i ∇L(z_i, θ_j)`` over the examples ``idx (m,)`` (all by default): ``(p, k) -> (p, k)``.

        Args:
            thetas: ``(p, k)`` parameters, one model a column.
            idx: training points ``(m,)``; all by default.
            skip: ``(k,)`` the example that each column leaves out, −1 for none.
        """
        return self._gradients(thetas, idx, skip, losses=False)[0]

    def gradients_and_losses(
        self, thetas: Tensor, idx: Tensor | None = None, skip: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """:meth:`gradients`, and ``L(z_i, θ_j)`` of every example, left out or not: ``(p, k), (m, k)``."""
        sums, losses = self._gradients(thetas, idx, skip, losses=True)
        return sums, losses.T

    def losses(self, thetas: Tensor, idx: Tensor | None = None) -> Tensor:
        """``L(z_i, θ_j)``: ``(p, k) -> (m, k)``."""
        columns, rows = self._columns(thetas), self._rows(idx)
        out = torch.zeros(len(columns), len(rows), dtype=self.dtype)
        self._call(rows, columns, None, None, out)
        return out.T

    def hessian(self, theta: Tensor, idx: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """``Σ_i w_i ∇²L(z_i, θ)``, exact: ``(p, p)``.

        Costs about 450 gradients of the paper's network, a sixth of p Hessian products: only the part of each
        column that belongs to the same layer or to later ones is computed.
        """
        rows = self._rows(idx)
        theta = self._columns(theta[:, None])[0]
        weights = None if weights is None else weights.to(self.dtype).contiguous()
        pieces = self._pieces(len(rows))

        def part(piece: slice) -> Tensor:
            out = torch.zeros(self.p, self.p, dtype=self.dtype)
            own = None if weights is None else weights[piece]
            failed = self._library.hessian(
                self._stages, self._count, self.p, _at(self._inputs), _at(self._labels), _at(self._soft),
                _at(rows[piece]), piece.stop - piece.start, _at(own), _at(theta), _at(out),
            )  # fmt: skip
            if failed:
                raise MemoryError("no memory for the compiled kernel")
            return out

        total = functools.reduce(torch.add, self._map(part, pieces))
        computed = torch.zeros(self.p, dtype=torch.long)
        for number, stage in enumerate(self._stages):
            if stage.weight_at >= 0:
                computed[stage.weight_at :] = number
        later = computed[:, None] <= computed[None, :]
        total = torch.where(later, total, total.T)
        return (total + total.T) / 2

    def _gradients(
        self, thetas: Tensor, idx: Tensor | None, skip: Tensor | None, *, losses: bool
    ) -> tuple[Tensor, Tensor]:
        columns, rows = self._columns(thetas), self._rows(idx)
        skip = None if skip is None else skip.to("cpu", torch.int64).contiguous()
        values = torch.zeros(len(columns), len(rows), dtype=self.dtype) if losses else torch.empty(0)
        pieces = self._pieces(len(rows))

        def part(piece: slice) -> Tensor:
            out = torch.zeros_like(columns)
            mine = torch.zeros(len(columns), piece.stop - piece.start, dtype=self.dtype) if losses else None
            self._call(rows[piece], columns, skip, out, mine)
            if mine is not None:
                values[:, piece] = mine
            return out

        return functools.reduce(torch.add, self._map(part, pieces)).T, values

    def _call(
        self, rows: Tensor, columns: Tensor, skip: Tensor | None, out: Tensor | None, losses: Tensor | None
    ) -> None:
        failed = self._library.gradients(
            self._stages, self._count, self.p, _at(self._inputs), _at(self._labels), _at(self._soft),
            _at(rows), len(rows), _at(columns), len(columns), _at(skip), _at(out), _at(losses),
        )  # fmt: skip
        if failed:
            raise MemoryError("no memory for the compiled kernel")

    def _pieces(self, count: int) -> list[slice]:
        size = max(_ROWS, -(-count // self.threads // _ROWS) * _ROWS)
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def _map(self, part: Callable[[slice], Tensor], pieces: list[slice]) -> list[Tensor]:
        if len(pieces) == 1:
            return [part(pieces[0])]
        with ThreadPoolExecutor(len(pieces)) as pool:
            return list(pool.map(part, pieces))

    def _columns(self, thetas: Tensor) -> Tensor:
        if thetas.ndim != 2 or thetas.shape[0] != self.p:
            raise DataError(f"parameters must be ({self.p}, k), got {tuple(thetas.shape)}")
        return thetas.detach().to("cpu", self.dtype).T.contiguous()

    def _rows(self, idx: Tensor | None) -> Tensor:
        if idx is None:
            return torch.arange(self.n)
        rows = idx.to("cpu", torch.int64).contiguous()
        if rows.ndim != 1 or not len(rows) or int(rows.min()) < 0 or int(rows.max()) >= self.n:
            raise DataError(f"an example index lies outside 0…{self.n - 1}; check idx")
        return rows


def _aims(objective: SequentialObjective) -> tuple[Tensor | None, Tensor | None]:
    """Labels ``(n,)`` of a plain cross-entropy and None; of any other, None and its rows q ``(n, c)``."""
    loss = objective.loss
    assert isinstance(loss, CrossEntropy)
    if loss.plain(objective.targets):
        return objective.targets.to(torch.int64).contiguous(), None
    like = torch.zeros(1, objective.n_outputs, dtype=objective.dtype)
    return None, loss.distribution(like, objective.targets).to(objective.dtype).contiguous()


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def compiled_net(objective: object, threads: int = 1) -> tuple[CompiledNet | None, str]:
    """The compiled form of an objective and "", or None and the reason in words.

    Args:
        objective: a :class:`~.sequential.SequentialObjective` on the CPU with cross-entropy, of convolutions
            without padding, tanh, the mean over the map and linear layers.
        threads: how many share the examples of one call.

    Raises:
        DataError: ``threads`` below 1.
    """
    if threads < 1:
        raise DataError(f"threads must be at least 1, got {threads}")
    if not isinstance(objective, SequentialObjective) or not isinstance(objective.loss, CrossEntropy):
        return None, "the kernel is for sequential nets with cross-entropy"
    if objective.weights is not None:
        return None, "the kernel is for objectives whose examples all count alike"
    if objective.device.type != "cpu":
        return None, f"the kernel is for the CPU, and the net is on {objective.device.type}"
    stages = _stages(objective.layers, tuple(objective.inputs.shape[1:]))
    if stages is None:
        return None, "the kernel has no layer for a part of this net"
    built = kernel(objective.dtype)
    if built.library is None:
        return None, built.reason
    return CompiledNet(built.library, stages, objective, threads), ""
