"""Archives read member by member in memory; nothing is ever extracted to disk."""

from __future__ import annotations

import gzip
import hashlib
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from experiments.data.errors import DataError, UnsafeArchive


def gunzip(path: Path, max_bytes: int) -> bytes:
    """Content of a gzip file; DataError if it is larger than `max_bytes`."""
    with gzip.open(path, "rb") as stream:
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise DataError(f"{path}: content larger than the {max_bytes} bytes allowed; refused.")
    return content


def read_archive(
    path: Path, *, max_file: int, max_total: int, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[str, bytes]]:
    """(member name, content) of the regular files of a tar (.gz) or zip archive, read without writing
    anything to disk.

    Raises:
        UnsafeArchive: a member, wanted or not, is absolute, climbs by "..", is a link or device, is named
            twice, or declares more than `max_file` bytes (`max_total` over all).
        DataError: the archive is torn, or none.
    """
    if zipfile.is_zipfile(path):
        yield from _read_zip(path, max_file, max_total, wanted)
        return
    seen: set[str] = set()
    total = 0
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                if member.isdir():
                    _check_name(path, member.name)
                    continue
                if not member.isfile():
                    raise UnsafeArchive(
                        f"{path}: member {member.name!r} is a link or device; the archive is refused."
                    )
                total = _check_member(path, member.name, member.size, seen, total, max_file, max_total)
                if wanted(member.name):
                    stream = archive.extractfile(member)
                    assert stream is not None
                    yield member.name, stream.read()
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is not a whole tar or zip archive ({error}); fetch it again.") from error


def _read_zip(
    path: Path, max_file: int, max_total: int, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, bytes]]:
    seen: set[str] = set()
    total = 0
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.is_dir():
                    _check_name(path, info.filename)
                    continue
                mode = info.external_attr >> 16
                if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                    raise UnsafeArchive(
                        f"{path}: member {info.filename!r} is a link or device; the archive is refused."
                    )
                total = _check_member(path, info.filename, info.file_size, seen, total, max_file, max_total)
                if wanted(info.filename):
                    with archive.open(info) as stream:
                        yield info.filename, stream.read(info.file_size)
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a whole zip archive ({error}); fetch it again.") from error


def _check_name(path: Path, name: str) -> None:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or (parts.parts and ":" in parts.parts[0]):
        raise UnsafeArchive(f"{path}: member {name!r} would leave the folder; the archive is refused.")


def _check_member(
    path: Path, name: str, size: int, seen: set[str], total: int, max_file: int, max_total: int
) -> int:
    _check_name(path, name)
    if name in seen:
        raise UnsafeArchive(f"{path}: member {name!r} occurs twice; the archive is refused.")
    seen.add(name)
    if size > max_file or total + size > max_total:
        raise UnsafeArchive(
            f"{path}: member {name!r} declares {size} bytes, more than allowed; the archive is refused."
        )
    return total + size


def read_member(path: Path, member: str, max_bytes: int) -> bytes:
    """Content of the one file called `member`, in whatever folder of the archive.

    Raises:
        DataError: the archive holds no such file.
    """
    for name, content in read_archive(path, max_file=max_bytes, max_total=2 * max_bytes):
        if PurePosixPath(name).name == member:
            return content
    raise DataError(f"{path} holds no {member}; use the original archive.")


def folder_digest(path: Path, folder: str, max_bytes: int) -> str:
    """sha256 over the names and contents of the JPEG files in the archive's folders called ``folder``.

    Sorted by name, whatever their order in the archive.

    Raises:
        DataError: the archive holds no such folder of JPEG files.
    """

    def wanted(name: str) -> bool:
        place = PurePosixPath(name)
        return place.parent.name == folder and place.suffix == ".jpg"

    found = {
        PurePosixPath(name).name: hashlib.sha256(content).digest()
        for name, content in read_archive(path, max_file=max_bytes, max_total=2 * max_bytes, wanted=wanted)
    }
    if not found:
        raise DataError(f"{path} holds no folder {folder} of JPEG files; use the original archive.")
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(name.encode() + b"\0" + found[name])
    return digest.hexdigest()
