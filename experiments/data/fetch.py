"""Original files: from a mirror folder first, else from the network; sha256-checked either way.

A mirror is a folder with the layout `mnist/…`, `enron1/…`, `diabetes/…`, `dogfish/…`. It is named by
`data.mirror=DIR` or by the environment variable INFLUENCE_MIRROR. Downloads go to `<cache>/downloads`,
written beside and moved into place when whole.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from experiments.data.archive import folder_digest, read_member
from experiments.data.errors import ChecksumMismatch, DataError, FileMissing

MIRROR_VARIABLE = "INFLUENCE_MIRROR"
CACHE_VARIABLE = "INFLUENCE_CACHE"
_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Source:
    """An original file: where a mirror holds it, where it is published, and what its bytes must hash to.

    sha256: accepted digests: of the file itself, of its gunzipped content where `gunzip` is set, of the one
    file `member` of the archive, or of the JPEG files in its folders called `folder`, names and contents
    (wrappers of the same content differ between publishers). `max_bytes` bounds the download and the
    gunzipped content.
    """

    path: str
    urls: tuple[str, ...]
    sha256: tuple[str, ...]
    max_bytes: int
    gunzip: bool = False
    member: str = ""
    folder: str = ""

    @property
    def what(self) -> str:
        if self.member:
            return f"sha256 of {self.member} in it"
        if self.folder:
            return f"sha256 of the names and contents of {self.folder}/*.jpg in it"
        return "sha256 of the uncompressed content" if self.gunzip else "sha256"


@dataclass(frozen=True)
class Fetched:
    """A verified file on disk. `entry` is its line in the manifest."""

    path: Path
    sha256: str
    source: str

    @property
    def entry(self) -> dict[str, object]:
        return {"sha256": self.sha256, "bytes": self.path.stat().st_size, "source": self.source}


def mirror_folder(mirror: str | os.PathLike[str] | None) -> Path | None:
    """The mirror given as an argument, else by INFLUENCE_MIRROR, else None.

    Raises:
        FileMissing: the mirror is not a folder.
    """
    named = mirror or os.environ.get(MIRROR_VARIABLE)
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise FileMissing(
            f"the mirror {folder} is not a folder; correct data.mirror or {MIRROR_VARIABLE}, or leave both "
            "unset."
        )
    return folder


def cache_folder(cache: str | os.PathLike[str] | None) -> Path:
    """Where downloads and prepared copies live: the argument, INFLUENCE_CACHE, or ~/.cache/influence."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "influence"
    return Path(cache or os.environ.get(CACHE_VARIABLE) or default).expanduser()


def obtain(
    source: Source,
    *,
    mirror: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Fetched:
    """The verified file, from the mirror, from an earlier download, or from the network, in this order.

    Raises ChecksumMismatch for a truncated or altered file in the mirror, FileMissing if no source has it.
    """
    folder = mirror_folder(mirror)
    if folder is not None:
        for candidate in (folder / source.path, folder / PurePosixPath(source.path).name):
            if candidate.is_file():
                return Fetched(candidate, verify(source, candidate), f"mirror:{source.path}")
    kept = cache_folder(cache) / "downloads" / source.path
    if kept.is_file():
        try:
            return Fetched(kept, verify(source, kept), source.urls[0])
        except ChecksumMismatch:
            kept.unlink()  # our own copy went bad; it is fetched again
    return _download(source, kept, folder)


def verify(source: Source, path: Path) -> str:
    """sha256 of `path` (of its content where source.gunzip); ChecksumMismatch if it is not accepted."""
    found, problem = _digest(source, path)
    if problem or found not in source.sha256:
        raise ChecksumMismatch(
            f"{path}: expected {source.what} {' or '.join(source.sha256)}, found {found} "
            f"({path.stat().st_size} bytes"
            f"{', ' + problem if problem else ''}); the file is truncated or altered: replace it by the "
            "original from "
            f"{source.urls[0]}, or delete it to have it downloaded."
        )
    return found


def _digest(source: Source, path: Path) -> tuple[str, str]:
    digest, size = hashlib.sha256(), 0
    if source.member or source.folder:
        try:
            if source.folder:
                return folder_digest(path, source.folder, source.max_bytes), ""
            return hashlib.sha256(read_member(path, source.member, source.max_bytes)).hexdigest(), ""
        except DataError as error:
            return hashlib.sha256(path.read_bytes()).hexdigest(), str(error).rstrip(".")
    try:
        with gzip.open(path, "rb") if source.gunzip else path.open("rb") as stream:
            while block := stream.read(_CHUNK):
                digest.update(block)
                size += len(block)
                if size > source.max_bytes:
                    return digest.hexdigest(), f"content larger than {source.max_bytes} bytes"
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        return digest.hexdigest(), f"not a whole gzip file: {error}"
    return digest.hexdigest(), ""


def _download(source: Source, target: Path, mirror: Path | None) -> Fetched:
    failures = []
    for url in source.urls:
        try:
            found = _download_one(source, url, target)
        except OSError as error:  # URLError, timeouts and HTTP errors are all OSErrors
            failures.append(f"{url}: {getattr(error, 'reason', None) or error}")
            continue
        return Fetched(target, found, url)
    where = f"is not in the mirror {mirror} and" if mirror else "is not in the cache and"
    raise FileMissing(
        f"{source.path} {where} could not be downloaded ({'; '.join(failures)}); either connect to the "
        "network, or put the file "
        f"({source.what} {' or '.join(source.sha256)}) at DIR/{source.path} and pass data.mirror=DIR or set "
        f"{MIRROR_VARIABLE}=DIR."
    )


def _download_one(source: Source, url: str, target: Path) -> str:
    from tqdm import tqdm

    request = urllib.request.Request(url, headers={"User-Agent": "influence-replication"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
        total = int(answer.headers.get("Content-Length") or 0) or None

        def body(write: Callable[[bytes], object]) -> None:
            size = 0
            with tqdm(total=total, unit="B", unit_scale=True, desc=target.name, leave=False) as bar:
                while block := answer.read(_CHUNK):
                    size += len(block)
                    if size > source.max_bytes:
                        raise DataError(
                            f"{url} sends more than the expected {source.max_bytes} bytes; refused."
                        )
                    write(block)
                    bar.update(len(block))

        with _atomic(target) as temporary:
            with temporary.open("wb") as stream:
                body(stream.write)
            found, problem = _digest(source, temporary)
            if problem or found not in source.sha256:
                raise ChecksumMismatch(
                    f"{url}: expected {source.what} {' or '.join(source.sha256)}, found {found}; the "
                    "download was cut off or the "
                    "published file changed: try again, or use a mirror holding the original "
                    "(data.mirror=DIR)."
                )
    return found


class _atomic:
    """A temporary path beside `target`, moved onto it on success, removed on failure."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __enter__(self) -> Path:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.target.parent, prefix=f".{self.target.name}.")
        os.close(handle)
        self.temporary = Path(name)
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            os.replace(self.temporary, self.target)
        else:
            self.temporary.unlink(missing_ok=True)


def write_atomically(target: Path, content: bytes) -> None:
    """Write all of `content` or leave `target` as it was."""
    with _atomic(target) as temporary:
        temporary.write_bytes(content)
