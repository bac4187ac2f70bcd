"""`put --tar` of archives that somebody made to do harm: an error, in little memory and time, and nothing is committed."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Iterable, Iterator

import pytest

from pfsmount.repo.archive import put_archive
from pfsmount.repo.archive_read import ArchiveError
from pfsmount.repo.store import Store
from tests.fuzz.archives import sparse_pax
from tests.fuzz.test_decoders import bounded

MIB = 1 << 20


def header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, target: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, target
    return info.tobuf(tarfile.GNU_FORMAT)


def pax(records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return header("pax", kind, len(records)) + records + bytes(-len(records) % 512)


def record(key: bytes, value: bytes) -> bytes:
    for digits in range(1, 10):
        length = len(key) + len(value) + 3 + digits
        if len(str(length)) == digits:
            return b"%d %b=%b\n" % (length, key, value)
    raise AssertionError


END = bytes(1024)
DEEP = pax(record(b"path", b"d/" * 4 * MIB + b"f")) + header("f") + END


def endless_globals() -> Iterator[bytes]:
    for n in range(200):
        yield pax(record(b"k%d" % n, b"x" * (2 * MIB)), tarfile.XGLTYPE) + header(f"f{n}")
    yield END


def endless_map() -> Iterator[bytes]:
    start = sparse_pax(b"9999999999\n", 1 << 40)
    yield start[: start.index(b"9999999999\n")] + b"9999999999\n"
    for _ in range(100):
        yield b"0\n" * (MIB // 2)


def endless_extension() -> Iterator[bytes]:
    """An old sparse header that always says that another follows."""
    first = bytearray(header("s", b"S"))
    first[482], first[148:156] = 1, b" " * 8
    first[148:156] = b"%06o\0 " % sum(first)
    yield bytes(first)
    block = bytearray(b"%011o\0" % 1 * 42).ljust(512, b"\0")
    block[504] = 1
    yield from (bytes(block) * 2048 for _ in range(200))


BOMBS: dict[str, Callable[[], Iterable[bytes]]] = {
    "a name of four million directories": lambda: [DEEP],
    "global headers without end": endless_globals,
    "a map of holes without end": endless_map,
    "a sparse header without end": endless_extension,
    "an extended header of 2^40 bytes": lambda: [header("x", tarfile.XHDTYPE, 1 << 30), b"1" * 2048],
    "a long name of a GiB": lambda: [header("././@LongLink", tarfile.GNUTYPE_LONGNAME, 1 << 30)] + [bytes(MIB)] * 20,
    "headers on headers": lambda: [pax(record(b"a", b"b")) * 40, header("f"), END],
    "a file of 2^62 bytes": lambda: [pax(record(b"size", b"%d" % (1 << 62))), header("f"), b"x" * 4096],
    "a negative size": lambda: [pax(record(b"size", b"-512")), header("f"), END],
    "a size of many digits": lambda: [pax(record(b"size", b"9" * 5000)), header("f"), END],
}


SLOW = ("a map of holes without end", "a sparse header without end", "global headers without end")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name in SLOW)) for name in BOMBS])
def test_a_bomb_is_refused(store: Store, name: str) -> None:
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as packed:
        for part in BOMBS[name]():
            packed.write(part)
    file = io.BufferedReader(io.BytesIO(out.getvalue()))
    with bounded(), pytest.raises(ArchiveError) as refused:
        put_archive(
            store,
            file,  # type: ignore[arg-type]
            "it",
            "images",
            "master",
            (),
            message="m",
            origin={"how": "put"},
        )
    assert "Error" not in str(refused.value)
    assert store.head("images", "master") is None
