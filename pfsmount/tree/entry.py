"""One entry of a directory, and its encoding in a leaf node.

Fixed part, 64 bytes, little-endian:

| kind u8 | flags u8 | mode u16 | uid u32 | gid u32 | mtime i64 s, u32 ns | size u64 | id 32 |

Extra part (after the name in the node's tail): a directory's content id (32) and file count u64; a symlink's target (u16 length,
bytes); then extended attributes, inline (u16 length, encoding; flag 1) or by id (32; flag 2).
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

from pfsmount.errors import Corrupt, InvalidInput
from pfsmount.ids import ID_BYTES, ObjectId
from pfsmount.objects.hashing import hash_bytes

FIXED = struct.Struct("<BBHIIqIQ32s")
_DIRECTORY = struct.Struct("<32sQ")
_LENGTH = struct.Struct("<H")
_INLINE, _BY_ID = 1, 2
XATTRS_INLINE_MAX = 512
TARGET_MAX = 4095
SIZE_MAX = (1 << 63) - 1
"""Bytes of a file, at most: more no kernel can tell."""
EMPTY_FILE_ID = hash_bytes(b"")
_NS = 1_000_000_000
_SIZE_WORD = 3


class Kind(enum.IntEnum):
    """What an entry is; the value is stored."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3


_FILE = int(Kind.FILE)
_DIRECTORY_KIND = int(Kind.DIRECTORY)
_PLAIN = bytes((_FILE, 0))
_KINDS = {1: Kind.FILE, 2: Kind.DIRECTORY, 3: Kind.SYMLINK}


class Entry(NamedTuple):
    """A file, directory or symlink without its name. (A tuple is made in a third of the time of a frozen dataclass, and listings make one for each name.)"""

    kind: Kind
    mode: int
    """Permission bits, 07777."""
    uid: int
    gid: int
    mtime_ns: int
    size: int
    """Bytes: of a file, of all files below a directory, of a symlink's target."""
    id: ObjectId
    """File: BLAKE3 of its bytes; directory: its root node; symlink: BLAKE3 of the target."""
    content_id: ObjectId | None = None
    """Directories: hash of names, kinds, exec bits and contents below."""
    files: int = 0
    """Directories: files and symlinks below."""
    target: bytes | None = None
    xattrs: bytes = b""
    """Encoded extended attributes of at most 512 bytes (`tree.xattrs`)."""
    xattrs_id: ObjectId | None = None

    @property
    def content(self) -> ObjectId:
        """What the content id of the parent says about this entry: file id, directory content id or target hash."""
        return self.id if self.content_id is None else self.content_id

    @property
    def is_directory(self) -> bool:
        return self.kind is Kind.DIRECTORY

    @property
    def executable(self) -> bool:
        """The one bit of the mode that the content id covers."""
        return self.kind is Kind.FILE and bool(self.mode & 0o100)

    @property
    def has_xattrs(self) -> bool:
        return bool(self.xattrs) or self.xattrs_id is not None

    def same_content(self, other: Entry) -> bool:
        """True when names, kinds, exec bits and contents are equal; owners, times and modes may differ."""
        return self.kind is other.kind and self.content == other.content and self.executable == other.executable

    def encode(self) -> tuple[bytes, bytes]:
        """The fixed part and the extra part."""
        flags = _INLINE if self.xattrs else _BY_ID if self.xattrs_id is not None else 0
        seconds, ns = divmod(self.mtime_ns, _NS)
        fixed = FIXED.pack(self.kind, flags, self.mode, self.uid, self.gid, seconds, ns, self.size, self.id)
        extra = b""
        if self.kind is Kind.DIRECTORY:
            assert self.content_id is not None
            extra = _DIRECTORY.pack(self.content_id, self.files)
        elif self.kind is Kind.SYMLINK:
            assert self.target is not None
            extra = _LENGTH.pack(len(self.target)) + self.target
        if self.xattrs:
            extra += _LENGTH.pack(len(self.xattrs)) + self.xattrs
        elif self.xattrs_id is not None:
            extra += self.xattrs_id
        return fixed, extra

    def replace(self, **changes: object) -> Entry:
        """A copy with some fields changed."""
        return self._replace(**changes)  # type: ignore[arg-type]


def decode_entry(fixed: bytes, extra: bytes) -> Entry:
    """The entry with these parts. Raises Corrupt."""
    try:
        kind_number, flags, mode, uid, gid, seconds, ns, size, id = FIXED.unpack(fixed)
        kind = _KINDS[kind_number]
        mtime_ns = seconds * _NS + ns
        if not _can_be(mode, ns, size) or flags > _BY_ID:
            raise ValueError
        if kind is Kind.FILE and not flags:
            if extra:
                raise ValueError
            return Entry(kind, mode, uid, gid, mtime_ns, size, id)
        return _decode_extra(Entry(kind, mode, uid, gid, mtime_ns, size, id), flags, extra)
    except (struct.error, KeyError, ValueError):
        raise Corrupt("a directory entry is damaged") from None


def is_directory(fixed: bytes) -> bool:
    """Whether a fixed part is that of a directory."""
    return fixed[0] == _DIRECTORY_KIND


def plain_file(fixed: bytes, extra: bytes) -> tuple[int, int, int, int, int] | None:
    """Mode, uid, gid, time in ns and size of a file without xattrs; None for anything else, and for what `decode_entry` finds damaged."""
    if extra or len(fixed) != FIXED.size:
        return None
    kind, flags, mode, uid, gid, seconds, ns, size, _ = FIXED.unpack(fixed)
    if kind != _FILE or flags or not _can_be(mode, ns, size):
        return None
    return mode, uid, gid, seconds * _NS + ns, size


def plain_files(fixed: bytes) -> Iterator[tuple[int, int, int, int, int] | None]:
    """As `plain_file` of each of many fixed parts that stand one behind the other; whether something extra follows is not asked."""
    for kind, flags, mode, uid, gid, seconds, ns, size, _ in FIXED.iter_unpack(fixed):
        if kind == _FILE and not flags and _can_be(mode, ns, size):
            yield mode, uid, gid, seconds * _NS + ns, size
        else:
            yield None


def is_plain_file(fixed: bytes) -> bool:
    """Whether a fixed part, if it is not damaged, is that of a file without xattrs."""
    return fixed[:2] == _PLAIN


def time_and_id(fixed: bytes) -> bytes:
    """Time and id of a fixed part, as they stand there."""
    return fixed[12:24] + fixed[32:]


def _can_be(mode: int, ns: int, size: int) -> bool:
    return mode <= 0o7777 and ns < _NS and size <= SIZE_MAX


def _decode_extra(entry: Entry, flags: int, extra: bytes) -> Entry:
    content_id, files, target, xattrs, xattrs_id = None, 0, None, b"", None
    at = 0
    if entry.kind is Kind.DIRECTORY:
        content_id, files = _DIRECTORY.unpack_from(extra)
        at = _DIRECTORY.size
    elif entry.kind is Kind.SYMLINK:
        (length,) = _LENGTH.unpack_from(extra)
        at = 2 + length
        target = extra[2:at]
        if not 0 < length <= TARGET_MAX or length != entry.size or b"\0" in target:
            raise ValueError
    if flags & _INLINE:
        (length,) = _LENGTH.unpack_from(extra, at)
        xattrs = extra[at + 2 : at + 2 + length]
        at += 2 + length
        if not 0 < length <= XATTRS_INLINE_MAX:
            raise ValueError
    elif flags & _BY_ID:
        xattrs_id = ObjectId(extra[at : at + ID_BYTES])
        at += ID_BYTES
    if at != len(extra):
        raise ValueError
    return Entry(
        entry.kind,
        entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime_ns,
        entry.size,
        entry.id,
        content_id,
        files,
        target,
        xattrs,
        xattrs_id,
    )


def file_entry(id: ObjectId, size: int, *, mode: int = 0o644, uid: int = 0, gid: int = 0, mtime_ns: int = 0) -> Entry:
    """A regular file."""
    return Entry(Kind.FILE, mode & 0o7777, uid, gid, mtime_ns, size, id)


@lru_cache(maxsize=256)
def _target_id(target: bytes) -> ObjectId:
    return hash_bytes(target)


class Stat(Protocol):
    """What an entry needs of a file's stat: `os.stat_result`, or whatever has the same."""

    @property
    def st_mode(self) -> int: ...
    @property
    def st_uid(self) -> int: ...
    @property
    def st_gid(self) -> int: ...
    @property
    def st_size(self) -> int: ...
    @property
    def st_mtime_ns(self) -> int: ...


def encode_file(info: Stat, id: ObjectId) -> bytes:
    """The fixed part of a regular file without xattrs, from its stat."""
    seconds, ns = divmod(info.st_mtime_ns, _NS)
    return FIXED.pack(_FILE, 0, info.st_mode & 0o7777, info.st_uid, info.st_gid, seconds, ns, info.st_size, id)


def is_versioned_xattr(name: bytes) -> bool:
    """Which extended attributes a version keeps: the user's, but not those that the mount shows of itself."""
    return name.startswith(b"user.") and not name.startswith(b"user.pfs.")


def sizes_of(fixed: Sequence[bytes]) -> tuple[int, ...]:
    """The sizes in fixed parts."""
    return struct.unpack(f"<{8 * len(fixed)}Q", b"".join(fixed))[_SIZE_WORD::8]


def symlink_entry(target: bytes, *, uid: int = 0, gid: int = 0, mtime_ns: int = 0) -> Entry:
    """A symlink. Raises InvalidInput for a target that no kernel takes."""
    if not 0 < len(target) <= TARGET_MAX or b"\0" in target:
        raise InvalidInput(f"a symlink's target has 1 to {TARGET_MAX} bytes, this one {len(target)}")
    return Entry(Kind.SYMLINK, 0o777, uid, gid, mtime_ns, len(target), _target_id(target), target=target)


def encode_leaf(name: bytes, entry: Entry) -> tuple[bytes, bytes]:
    """The fixed part and the tail (name length u8, name, extra) of an entry, as in a leaf node."""
    fixed, extra = entry.encode()
    return fixed, bytes((len(name),)) + name + extra


def decode_leaf(fixed: bytes, tail: bytes) -> tuple[bytes, Entry]:
    """The reverse of `encode_leaf`. Raises Corrupt."""
    if not tail or len(tail) < 1 + tail[0] or len(fixed) != FIXED.size:
        raise Corrupt("a directory entry is damaged")
    length = 1 + tail[0]
    return tail[1:length], decode_entry(fixed, tail[length:])
