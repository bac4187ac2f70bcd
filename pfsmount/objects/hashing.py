"""The hash kinds of the format.

| kind | BLAKE3 with |
|---|---|
| file, piece | nothing: the id of a file is what `b3sum` prints |
| everything else | a `derive_key_context`, so that no user file can ever pass for a node or a commit |
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable
from typing import Protocol, TypeAlias

from blake3 import blake3

from pfsmount.ids import ObjectId

Buffer: TypeAlias = bytes | bytearray | memoryview


class HashKind(enum.Enum):
    """The value is the derive_key_context; PLAIN has none."""

    PLAIN = ""
    NODE = "pfs 1 tree node"
    TREE_CONTENT = "pfs 1 tree content"
    MANIFEST = "pfs 1 manifest"
    COMMIT = "pfs 1 commit"
    XATTRS = "pfs 1 xattrs"
    RECORD = "pfs 1 segment record"
    DATUM_KEY = "pfs 1 datum key"


def hash_bytes(data: Buffer, kind: HashKind = HashKind.PLAIN) -> ObjectId:
    """The id of `data` as an object of this kind."""
    if kind is HashKind.PLAIN:
        return ObjectId(blake3(data).digest())
    return ObjectId(blake3(data, derive_key_context=kind.value).digest())


def hash_all(parts: Iterable[Buffer]) -> list[ObjectId]:
    """`hash_bytes` of many."""
    return [ObjectId(blake3(data).digest()) for data in parts]


def short_hash(data: Buffer) -> int:
    """The first 8 bytes of the plain hash, as a little-endian number: for decisions, not for names."""
    return int.from_bytes(blake3(data).digest(8), "little")


def short_hash_byte(data: Buffer) -> int:
    """The first byte of the plain hash: the lowest of `short_hash`."""
    return blake3(data).digest(1)[0]


def short_hash_bytes(parts: Iterable[Buffer]) -> list[int]:
    """`short_hash_byte` of many."""
    return [blake3(data).digest(1)[0] for data in parts]


def keyed_check(data: Buffer, key: bytes) -> bytes:
    """4 bytes that only somebody who knows the 32-byte key can make."""
    return blake3(data, key=key).digest(4)


class Hasher(Protocol):
    """Takes bytes in parts."""

    def update(self, data: Buffer, /) -> object: ...

    def digest(self) -> bytes: ...

    def copy(self) -> Hasher: ...


def file_hasher(*, aside: bool = False) -> Hasher:
    """A streaming hasher for a file's id; uses all cores on large updates, unless it works `aside` of something more urgent."""
    if aside or _threads.lost:
        return blake3()
    _threads.started = True
    return blake3(max_threads=blake3.AUTO)


class _Threads:
    """The threads that hash: started at the first use, and not there in the child of a fork after that, which would wait for them for ever."""

    started = False
    lost = False


_threads = _Threads()


def _forked() -> None:
    _threads.lost = _threads.started


os.register_at_fork(after_in_child=_forked)
