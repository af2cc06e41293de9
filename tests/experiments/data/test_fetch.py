"""Original files: mirror, cache and network; every way in which a file or an archive can be wrong."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.data.archive import read_archive, read_member
from experiments.data.errors import ChecksumMismatch, DataError, FileMissing, UnsafeArchive
from experiments.data.fetch import Source, cache_folder, mirror_folder, obtain, write_atomically

CONTENT = b"the original file" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def source(url: str = "http://127.0.0.1:9/none", **changes: Any) -> Source:
    fields: dict[str, Any] = {
        "path": "set/file.bin",
        "urls": (url,),
        "sha256": (DIGEST,),
        "max_bytes": 1 << 20,
    }
    return Source(**fields | changes)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(address, folder) of a web server on this machine."""
    folder = tmp_path / "web"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()


def put(folder: Path, content: bytes, name: str = "set/file.bin") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["set/file.bin", "file.bin"])
def test_mirror_is_taken_first_in_either_layout(tmp_path: Path, name: str) -> None:
    path = put(tmp_path / "mirror", CONTENT, name)
    fetched = obtain(source(), mirror=tmp_path / "mirror", cache=tmp_path / "cache")
    assert fetched.path == path
    assert fetched.entry == {"sha256": DIGEST, "bytes": len(CONTENT), "source": "mirror:set/file.bin"}
    assert not (tmp_path / "cache").exists()


def test_mirror_by_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "mirror", CONTENT)
    monkeypatch.setenv("INFLUENCE_MIRROR", str(tmp_path / "mirror"))
    assert obtain(source(), cache=tmp_path / "cache").sha256 == DIGEST
    monkeypatch.setenv("INFLUENCE_MIRROR", str(tmp_path / "nowhere"))
    with pytest.raises(FileMissing, match="INFLUENCE_MIRROR"):
        mirror_folder(None)


def test_cache_folder_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("INFLUENCE_CACHE", raising=False)
    assert cache_folder(None) == tmp_path / "influence"
    monkeypatch.setenv("INFLUENCE_CACHE", str(tmp_path / "named"))
    assert cache_folder(None) == tmp_path / "named"
    assert cache_folder(tmp_path / "argument") == tmp_path / "argument"


@pytest.mark.parametrize("content", [CONTENT[:-1], b"", CONTENT.replace(b"f", b"F")])
def test_truncated_or_altered_mirror_file_names_both_digests(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path / "mirror", content)
    with pytest.raises(ChecksumMismatch) as caught:
        obtain(source(), mirror=tmp_path / "mirror", cache=tmp_path / "cache")
    for part in (str(path), DIGEST, hashlib.sha256(content).hexdigest(), "replace it by the original"):
        assert part in str(caught.value)


def test_gzip_is_checked_by_its_content(tmp_path: Path) -> None:
    packed = gzip.compress(CONTENT, compresslevel=1)
    put(tmp_path / "mirror", packed)
    fetched = obtain(source(gunzip=True), mirror=tmp_path / "mirror")
    assert fetched.sha256 == DIGEST
    for broken, why in ((packed[:-9], "not a whole gzip"), (b"plain", "not a whole gzip")):
        put(tmp_path / "mirror", broken)
        with pytest.raises(ChecksumMismatch, match=why):
            obtain(source(gunzip=True), mirror=tmp_path / "mirror")
    put(tmp_path / "mirror", gzip.compress(bytes(10_000_000)))
    with pytest.raises(ChecksumMismatch, match="larger than"):
        obtain(source(gunzip=True), mirror=tmp_path / "mirror")


def test_member_of_an_archive_is_checked_by_its_content(tmp_path: Path) -> None:
    archive = put(tmp_path / "mirror", zip_of({"folder/table.csv": CONTENT}))
    wanted = source(member="table.csv")
    assert obtain(wanted, mirror=tmp_path / "mirror").sha256 == DIGEST
    archive.write_bytes(archive.read_bytes()[:200])
    with pytest.raises(ChecksumMismatch, match="sha256 of table"):
        obtain(wanted, mirror=tmp_path / "mirror")


def test_no_mirror_and_no_network_says_how_to_get_either(tmp_path: Path) -> None:
    with pytest.raises(FileMissing) as caught:
        obtain(source(), cache=tmp_path)
    for part in ("connect to the network", "set/file.bin", DIGEST, "data.mirror=DIR", "INFLUENCE_MIRROR"):
        assert part in str(caught.value)
    (tmp_path / "mirror").mkdir()
    with pytest.raises(FileMissing, match="is not in the mirror"):
        obtain(source(), mirror=tmp_path / "mirror", cache=tmp_path)


def test_download_is_kept_checked_and_repaired(server: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = server
    put(folder, CONTENT, "file.bin")
    wanted = source(f"{address}/file.bin", urls=(f"{address}/gone.bin", f"{address}/file.bin"))
    first = obtain(wanted, cache=tmp_path / "cache")
    assert first.path.read_bytes() == CONTENT
    assert first.source == f"{address}/file.bin"
    (folder / "file.bin").unlink()
    assert obtain(wanted, cache=tmp_path / "cache").sha256 == DIGEST  # no network needed any more
    first.path.write_bytes(CONTENT[:-5])  # a cached copy that went bad is not used, and fetched again
    put(folder, CONTENT, "file.bin")
    assert obtain(wanted, cache=tmp_path / "cache").path.read_bytes() == CONTENT


def test_a_wrong_or_oversized_download_leaves_nothing(server: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = server
    put(folder, CONTENT + b"!", "file.bin")
    with pytest.raises(ChecksumMismatch, match=DIGEST):
        obtain(source(f"{address}/file.bin"), cache=tmp_path / "cache")
    with pytest.raises(DataError, match="more than the expected"):
        obtain(source(f"{address}/file.bin", max_bytes=100), cache=tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_atomic_write_keeps_the_old_content_on_failure(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.json"
    write_atomically(target, b"old")
    with pytest.raises(TypeError):
        write_atomically(target, None)  # type: ignore[arg-type]
    assert target.read_bytes() == b"old"
    assert list(target.parent.iterdir()) == [target]


def zip_of(files: dict[str, bytes], mode: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return buffer.getvalue()


def tar_of(*members: tarfile.TarInfo, content: bytes = b"x") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return buffer.getvalue()


def link(name: str, kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


UNSAFE = {
    "tar climbs": tar_of(tarfile.TarInfo("a/../../b")),
    "tar absolute": tar_of(tarfile.TarInfo("/etc/b")),
    "tar symlink": tar_of(link("a", tarfile.SYMTYPE)),
    "tar hard link": tar_of(link("a", tarfile.LNKTYPE)),
    "tar device": tar_of(link("a", tarfile.CHRTYPE)),
    "tar twice": tar_of(tarfile.TarInfo("a"), tarfile.TarInfo("a")),
    "tar too large": tar_of(tarfile.TarInfo("a"), content=bytes(2000)),
    "tar too large in all": tar_of(*(tarfile.TarInfo(str(i)) for i in range(5)), content=bytes(900)),
    "zip climbs": zip_of({"a/../../b": b"x"}),
    "zip climbs by backslash": zip_of({"a\\..\\..\\b": b"x"}),
    "zip absolute": zip_of({"/b": b"x"}),
    "zip drive": zip_of({"C:/b": b"x"}),
    "zip symlink": zip_of({"a": b"/etc/passwd"}, mode=0o120777),
    "zip too large": zip_of({"a": bytes(2000)}),
}


@pytest.mark.parametrize("case", UNSAFE)
def test_unsafe_archives_are_refused(tmp_path: Path, case: str) -> None:
    path = put(tmp_path, UNSAFE[case], "archive")
    with pytest.raises(UnsafeArchive, match="the archive is refused"):
        list(read_archive(path, max_file=1000, max_total=3000, wanted=lambda name: False))


def test_forged_tar_size_is_refused_before_reading(tmp_path: Path) -> None:
    member = tarfile.TarInfo("a")
    member.size = 1 << 40
    path = put(tmp_path, member.tobuf(tarfile.GNU_FORMAT) + bytes(1024), "archive")
    with pytest.raises(UnsafeArchive, match="1099511627776 bytes"):
        list(read_archive(path, max_file=1000, max_total=3000))


@pytest.mark.parametrize("packed", [tar_of(tarfile.TarInfo("d/a")), zip_of({"d/a": b"x"})])
def test_archives_are_read_or_named_as_broken(tmp_path: Path, packed: bytes) -> None:
    path = put(tmp_path, packed, "archive")
    assert list(read_archive(path, max_file=10, max_total=10)) == [("d/a", b"x")]
    assert read_member(path, "a", 10) == b"x"
    with pytest.raises(DataError, match="holds no b"):
        read_member(path, "b", 10)
    path.write_bytes(b"neither")
    with pytest.raises(DataError, match="not a whole tar or zip"):
        list(read_archive(path, max_file=10, max_total=10))
