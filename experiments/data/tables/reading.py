"""A file as a table: its kind, its compression, its encoding. What was found is said in notes."""

from __future__ import annotations

import codecs
import hashlib
import io
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.tables.containers import refuse_no_table, refuse_other_formats, unpacked
from experiments.data.tables.delimited import distinct_names, parse
from experiments.data.tables.options import Options
from experiments.records.errors import UserError

BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE = 200_000  # bytes that an encoding is guessed from
_TITLES = 10  # rows that may stand above the header of a sheet
_WESTERN = 0.2  # share of letters outside ASCII up to which an unknown encoding is taken for a western one


@dataclass
class Table:
    """A table as it stands in a file.

    Attributes:
        frame: a pandas DataFrame; texts for CSV, typed columns for Parquet, Excel and DataFrames.
        lines: ``(n,)`` the line of the file on which each row begins, or its place from 1.
        place: what ``lines`` counts: ``line`` or ``row``.
        name: how to speak of the file.
        notes: one sentence for each thing that was found rather than told.
        decimal: ``,`` where the file's numbers have decimal commas, ``.`` otherwise, None if unknown.
        sha256: of the file's bytes; empty for a DataFrame.
    """

    frame: Any
    lines: np.ndarray
    place: str
    name: str
    notes: list[str] = field(default_factory=list)
    decimal: str | None = None
    sha256: str = ""


def read(path: str | Path, settings: Options) -> Table:
    """The table in a file; UserError in one sentence where it cannot be read."""
    file = Path(path).expanduser()
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "is not a file"
        raise UserError(f"{path} {what}; give the CSV, TSV, Parquet or Excel file to read.")
    content = file.read_bytes()
    notes: list[str] = []
    digest = hashlib.sha256(content).hexdigest()
    content = unpacked(content, file, notes)
    if not content.strip():
        raise UserError(f"{file} is empty; give a table with a header line and one row per line.")
    if content[:4] == b"PAR1":
        table = _typed(file, content, "Parquet", settings, notes)
    elif content[:4] == b"PK\x03\x04" or content[:8] == b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1":
        table = _typed(file, content, "Excel", settings, notes)
    else:
        if settings.sheet is not None:
            raise UserError(f"{file} is a text file and has no sheet {settings.sheet!r}; leave sheet= out.")
        refuse_other_formats(content, file)
        text = decoded(content, file, settings.encoding, notes)
        refuse_no_table(text, file)
        frame, lines, decimal = parse(text, str(file), settings, notes)
        table = Table(frame, lines, "line", str(file), notes, decimal)
    table.sha256 = digest
    return table


def of_frame(frame: Any, name: str = "the table") -> Table:
    """A DataFrame as a table; the index is not read."""
    names = [str(column) for column in frame.columns]
    copy = frame.reset_index(drop=True).copy()
    notes: list[str] = []
    copy.columns = distinct_names(names, notes)
    for column in copy.columns[[dtype.kind == "O" for dtype in copy.dtypes]]:
        copy[column] = _encodable(copy[column])
    return Table(copy, np.arange(1, len(copy) + 1), "row", name, notes)


def _encodable(series: Any) -> Any:
    """The column with a mark for each lone surrogate, which no file can hold."""
    try:
        series.astype("str")
    except UnicodeEncodeError:
        return series.map(
            lambda cell: cell.encode("utf-8", "replace").decode() if isinstance(cell, str) else cell
        )
    return series


def _typed(file: Path, content: bytes, kind: str, settings: Options, notes: list[str]) -> Table:
    """Parquet and Excel by pandas."""
    import pandas as pd

    for key in ("encoding", "separator", "quote", "bad_rows"):
        if vars(settings)[key] != Options.__dataclass_fields__[key].default:
            raise UserError(f"{key}= is for text files and {file} is {kind}; leave it out.")
    if kind == "Parquet" and (settings.sheet is not None or settings.header == "false" or settings.skip):
        raise UserError(
            f"sheet=, skip= and header=false do not fit {file}, which is Parquet; leave them out."
        )
    above = 0
    try:
        if kind == "Parquet":
            frame = pd.read_parquet(io.BytesIO(content))
        else:
            frame, above = _sheet(content, settings, notes)
    except ImportError as error:
        need = {"Parquet": "pyarrow", "Excel": "openpyxl (for .xls: xlrd)"}[kind]
        raise UserError(
            f"{file} is {kind} and the package that reads it is missing: pip install {need}, or save as CSV."
        ) from error
    except Exception as error:  # the readers raise errors of many kinds for a damaged file
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{file} cannot be read as {kind} ({first[:200]}); save it again or as CSV."
        ) from error
    if kind == "Excel" and settings.header == "false":
        frame.columns = [f"column{i}" for i in range(1, frame.shape[1] + 1)]
    notes.append(f"The file is {kind}.")
    table = of_frame(frame, str(file))
    table.notes = [*notes, *table.notes]
    if kind == "Excel":  # the header is the sheet's first row
        table.lines = table.lines + above + (0 if settings.header == "false" else 1)
    return table


def _sheet(content: bytes, settings: Options, notes: list[str]) -> tuple[Any, int]:
    """The sheet, and how many rows above its header were left out."""
    import pandas as pd

    header = None if settings.header == "false" else 0
    last = _TITLES if settings.header == "auto" and not settings.skip else settings.skip
    for skip in range(settings.skip, last + 1):
        found = pd.read_excel(
            io.BytesIO(content), sheet_name=settings.sheet or 0, header=header, skiprows=skip
        )
        nameless = sum(str(name).startswith("Unnamed: ") for name in found.columns)
        if skip == last or len(found) < 3 or not nameless or nameless < found.shape[1] - 1:
            break
    if skip > settings.skip:
        notes.append(f"Rows above the header are read as a title: {skip} (header=true or skip= decide).")
    return found, skip


def decoded(content: bytes, file: Path, encoding: str, notes: list[str]) -> str:
    """The text of a file; the encoding is said where it is not plain UTF-8."""
    if encoding == "auto":
        encoding, how = detected(content)
        if how:
            notes.append(f"The encoding is {encoding.removesuffix('-sig')}, {how} (encoding= sets another).")
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise UserError(
            f"encoding={encoding} is unknown; give for instance utf-8, cp1252 or utf-16."
        ) from None
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{file}: line {line} is not valid {encoding}; set encoding=, for instance cp1252 or utf-16."
        ) from error
    text = text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        notes.append(
            f"NUL characters ({text.count(chr(0))}, the first on line {line}) are read as "
            "\N{REPLACEMENT CHARACTER}; the file may be damaged."
        )
        text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text


def detected(content: bytes) -> tuple[str, str]:
    """The encoding and how it was found; the second is empty for plain UTF-8."""
    for mark, name in BOMS:
        if content.startswith(mark):
            return name, "by its byte order mark"
    sample = content[:_SAMPLE]
    zeros = sample[: len(sample) // 2 * 2]
    if len(zeros) > 8 and zeros.count(0) > 0.3 * len(zeros):
        odd = zeros[1::2].count(0) > zeros[::2].count(0)
        return ("utf-16-le" if odd else "utf-16-be"), "guessed from its zero bytes"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return _legacy(content)
    return "utf-8", ""


def _legacy(content: bytes) -> tuple[str, str]:
    """An encoding older than Unicode: western if few letters are outside ASCII, else by statistics."""
    first = next(i for i, byte in enumerate(content) if byte > 127)
    sample = content[max(0, first - 1000) : first + _SAMPLE]
    high = sum(byte > 127 for byte in sample)
    letters = sum(chr(byte).isalpha() for byte in sample if byte < 128)
    if high > _WESTERN * (high + letters):
        from charset_normalizer import from_bytes

        best = from_bytes(sample).best()
        if best is not None and best.encoding not in ("ascii", "utf_8") and not _latin(str(best)):
            return best.encoding.replace("_", "-"), "guessed from its letters"
    try:
        content.decode("cp1252")
    except UnicodeDecodeError:
        return "latin-1", "because it is neither UTF-8 nor cp1252"
    return "cp1252", "because it is not UTF-8 and most letters are western"


def _latin(text: str) -> bool:
    """Whether most letters outside ASCII are Latin: statistics cannot tell such encodings in a few words."""
    letters = [unicodedata.name(sign, "") for sign in text if ord(sign) > 127 and sign.isalpha()]
    return sum(name.startswith("LATIN") for name in letters) > 0.5 * len(letters)
