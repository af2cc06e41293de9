"""`load(name, ...)`: every data set under one call. Loaders are imported when asked for; no network where a
stand-in is named.
"""

from __future__ import annotations

import importlib
import inspect
import os
from typing import Any

from experiments.data.dataset import Dataset, Split
from experiments.data.errors import DataError

__all__ = ["NAMES", "DataError", "Dataset", "Split", "load"]

_LOADERS = {
    "mnist": ("mnist", "load"),
    "digits": ("embedded", "load_digits"),
    "digit_pairs": ("embedded", "load_digit_pairs"),
    "breast_cancer": ("embedded", "load_breast_cancer"),
    "iris": ("embedded", "load_iris"),
    "dogfish": ("dogfish", "load"),
    "one_dog": ("one_dog", "load"),
    "readmission": ("readmission", "load"),
    "readmission_synthetic": ("synthetic", "load"),
    "enron": ("enron", "load"),
    "csv": ("user_csv", "load"),
}
NAMES = tuple(_LOADERS)


def load(
    name: str,
    *,
    mirror: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Dataset:
    """The data set `name`, split, checked, with its sha256 manifest.

    mirror: folder with the original files (else INFLUENCE_MIRROR, else the network). data_dir: cache for
    downloads and prepared copies (else INFLUENCE_CACHE, else ~/.cache/influence). options: those of the
    loader, e.g. classes=[1, 7] for mnist.

    Raises:
        DataError: no such data set or option, or data that are missing or not as they should be.
    """
    if name not in _LOADERS:
        raise DataError(f"no data set is called {name!r}; choose one of {', '.join(NAMES)}.")
    module, function = _LOADERS[name]
    loader = getattr(importlib.import_module(f"experiments.data.{module}"), function)
    takes = inspect.signature(loader).parameters
    known = [option for option in takes if option not in ("mirror", "cache")]
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    unknown = [] if open_ended else sorted(set(options) - set(known))  # such a loader checks them itself
    if unknown:
        raise DataError(
            f"data set {name!r} has no option {', '.join(unknown)}; it takes {', '.join(known) or 'none'}."
        )
    return loader(mirror=mirror, cache=data_dir, **options)
