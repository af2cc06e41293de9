"""What a file is before it is a table: its compression, and the formats that hold no table that we read."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zipfile
import zlib
from pathlib import Path

from experiments.records.errors import UserError

_PACKED = (
    (b"\x1f\x8b", "gzip", gzip.decompress),
    (b"BZh", "bzip2", bz2.decompress),
    (b"\xfd7zXZ\x00", "xz", lzma.decompress),
)
_OTHER = (
    (b"ARROW1", "a Feather file", "pandas.read_feather"),
    (b"ORC", "an ORC file", "pandas.read_orc"),
    (b"\x93NUMPY", "a NumPy array", "numpy.load"),
    (b"SQLite format 3", "an SQLite database", "pandas.read_sql"),
    (b"\x89HDF", "an HDF5 file", "pandas.read_hdf"),
    (b"%PDF", "a PDF", "a program that extracts its tables"),
    (b"\x80\x02", "a pickle", "pandas.read_pickle"),
    (b"\x80\x03", "a pickle", "pandas.read_pickle"),
    (b"\x80\x04", "a pickle", "pandas.read_pickle"),
    (b"\x80\x05", "a pickle", "pandas.read_pickle"),
)
_SAMPLE = 20_000  # signs that a text is judged by
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\N{REPLACEMENT CHARACTER}]")
_STRANGE = 0.02  # share of control characters from which a text is none


def unpacked(content: bytes, file: Path, notes: list[str]) -> bytes:
    """The bytes inside gzip, bzip2, xz or a zip archive of one file; others as they are.

    Raises:
        UserError: a damaged file, or an archive that holds several.
    """
    for mark, name, open_ in _PACKED:
        if content.startswith(mark):
            notes.append(f"The file is compressed with {name}.")
            try:
                return open_(content)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
                raise UserError(
                    f"{file} is a damaged {name} file ({error}); compress or download it again."
                ) from error
    if content.startswith(b"PK\x03\x04"):
        return _unzipped(content, file, notes)
    return content


def _unzipped(content: bytes, file: Path, notes: list[str]) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            if any(name.startswith("xl/") for name in names):
                return content  # Excel
            if "mimetype" in names and b"opendocument" in archive.read("mimetype"):
                raise UserError(f"{file} is an OpenDocument file; save the sheet as CSV or Excel.")
            names = [name for name in names if not re.search(r"(^|/)(__MACOSX/|\.)", name)]
            if len(names) != 1:
                shown = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
                raise UserError(
                    f"{file} is a zip archive of {len(names)} files ({shown}); unpack it and give one."
                )
            notes.append(f"The file is a zip archive; {names[0]!r} in it is read.")
            return archive.read(names[0])
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise UserError(f"{file} is a zip archive that cannot be opened ({error}); unpack it.") from error


def refuse_other_formats(content: bytes, file: Path) -> None:
    """UserError, naming the remedy, for the bytes of a format that is known and no table of ours."""
    for mark, what, how in _OTHER:
        if content.startswith(mark):
            raise UserError(f"{file} is {what}; read it by {how} and save it as CSV or Parquet.")


def refuse_no_table(text: str, file: Path) -> None:
    """UserError, naming the remedy, for a text that is a web page, JSON, ARFF or no text at all."""
    start = text[:_SAMPLE].lstrip().lower()
    if re.match(r"<(!doctype html|html|head|\?xml|!--)", start):
        raise UserError(f"{file} is a web page or XML; download or export the table itself, as CSV.")
    if re.match(r"\[\s*[\[{]|\{\s*\"", start):
        raise UserError(f"{file} is JSON; read it by pandas.read_json and save it as CSV.")
    if re.search(r"^@relation\b", start, re.M) and re.search(r"^@attribute\b", start, re.M):
        raise UserError(
            f"{file} is an ARFF file; save it as CSV, or delete the lines down to @data and set header=false."
        )
    if len(_CONTROLS.findall(text, 0, _SAMPLE)) > max(8, _STRANGE * min(len(text), _SAMPLE)):
        raise UserError(
            f"{file} holds too many control characters to be a text; set encoding=, or save it as CSV."
        )
