"""How a record keeps the change of an image, in whole numbers; read by the figures without the network."""

from __future__ import annotations

import numpy as np

PER_STEP = 254  # units an 8-bit step: half a step either way is -127…127


def kept(delta: np.ndarray) -> np.ndarray:
    """A change in 8-bit steps, at most a half either way, as int8."""
    return np.rint(delta * PER_STEP).astype(np.int8)


def change_of(picture: np.ndarray) -> np.ndarray:
    """The change in 8-bit steps; records made before it was int8 hold those units themselves."""
    values = picture.astype(np.float64)
    return values / PER_STEP if picture.dtype == np.int8 else values
