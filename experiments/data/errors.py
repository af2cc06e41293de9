"""What can be wrong with data: one sentence each, naming the cause and the remedy."""

from __future__ import annotations

from experiments.records.errors import UserError


class DataError(UserError):
    """The data cannot be used as they are."""


class FileMissing(DataError):
    """A source file is not in the mirror, and the network does not give it."""


class ChecksumMismatch(DataError):
    """A source file is truncated or altered."""


class UnsafeArchive(DataError):
    """An archive member would leave its folder, is a link, or declares an absurd size."""


class BadData(DataError):
    """The content of a file or array is not what is needed (NaN, one class, a wrong row count, ...)."""
