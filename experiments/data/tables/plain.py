"""The rows of a text without quotation marks, read in C++: a line is a row and every separator ends a cell.

Whatever is not that plain is left to the reader of ``delimited``: None says so. pyarrow is optional.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from experiments.data.tables.dialect import Dialect

LEAST = 1_000_000  # signs of a text from which it is worth while
_BLOCK = 2**25  # bytes that are cut into rows at once; a longer row is left to the other reader


def rows_below(text: str, dialect: Dialect, line: int, width: int) -> tuple[Any, np.ndarray] | None:
    """The rows below a line: ``(DataFrame of str with columns 0…width−1, lines (n,))``, or None.

    Args:
        text: the whole text.
        dialect: how its cells are separated.
        line: of the text, from 1; the rows begin on the next one.
        width: cells of every row. A row of another width, or one without any sign in it, is for the reader
            that knows what to do with it.
    """
    if len(text) < LEAST or not _is_plain(text, dialect):
        return None
    start = 0
    for _ in range(line):
        start = text.find("\n", start) + 1
        if start == 0:
            return None
    rest = text[start:].replace("\r\n", "\n")
    if not rest or rest.startswith("\n") or "\n\n" in rest:
        return None
    table = _arrow(rest, dialect.separator, width)
    if table is None:
        return None
    import pyarrow as pa
    import pyarrow.compute as pc

    empty: Any = None
    for column in table.columns:
        here = pc.equal(column, pa.scalar(""))
        empty = here if empty is None else pc.and_(empty, here)
        if not pc.any(empty).as_py():
            break
    else:
        return None  # a row of empty cells is no row
    import pandas as pd

    kind = pd.StringDtype(na_value=np.nan)
    frame = table.to_pandas(types_mapper=lambda _: kind)
    frame.columns = range(width)
    return frame, np.arange(line + 1, line + 1 + len(frame))


def _is_plain(text: str, dialect: Dialect) -> bool:
    """Whether no sign of the text joins or splits cells but separators and line ends."""
    if dialect.spaces or dialect.escape is not None or not dialect.separator.isascii():
        return False
    if dialect.quote is not None and dialect.quote in text:
        return False
    return "\r" not in text or text.count("\r") == text.count("\r\n")


def _arrow(text: str, separator: str, width: int) -> Any:
    """The text as an Arrow table of texts, None if pyarrow is missing or a row has another width."""
    try:
        import pyarrow as pa
        from pyarrow import csv
    except ImportError:
        return None
    names = [str(place) for place in range(width)]
    try:
        return csv.read_csv(
            io.BytesIO(text.encode()),
            read_options=csv.ReadOptions(column_names=names, block_size=_BLOCK),
            parse_options=csv.ParseOptions(
                delimiter=separator, quote_char=False, double_quote=False, escape_char=False
            ),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.large_string()),
                null_values=[],
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        return None
