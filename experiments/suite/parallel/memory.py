"""Freed memory kept by the process while a unit of work lasts, and given back after it.

A gradient through a network allocates and frees hundreds of megabytes. By default glibc gives large blocks
back to the system at once, and a thread's blocks sooner than the main one's: on a CPU, pages handed out anew
cost a fifth of an attack's time. Never giving back costs more and more memory instead, since blocks of many
sizes leave holes: 24 GiB after 40 minutes. So free pages are kept within a unit and given back between units.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

# Of malloc.h: trim threshold, top padding, mmap threshold, number of arenas.
_TRIM, _PAD, _MMAP, _ARENAS = -1, -2, -3, -8


def _of_libc(name: str) -> Any:
    """A function of the C library, None if it has none of that name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def keep_freed() -> bool:
    """Asks glibc to keep what is freed, in one arena for all threads; False if there is no glibc.

    Changes no number. Call it before threads are started, and ``give_back`` between units of work.
    """
    mallopt = _of_libc("mallopt")
    if mallopt is None:
        return False
    settings = ((_ARENAS, 1), (_MMAP, 1 << 30), (_TRIM, 2**31 - 1), (_PAD, 1 << 28))
    return all(mallopt(*setting) == 1 for setting in settings)


def give_back() -> None:
    """Returns free pages to the system, also those in the middle of the heap."""
    trim = _of_libc("malloc_trim")
    if trim is not None:
        trim(0)
