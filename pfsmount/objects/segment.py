"""Segments: the large append-only files in which all objects lie.

A `data` segment is nothing but pieces, each at a multiple of 4096 with zeros between: no header, so that a file becomes one by
rename and a kernel view maps it as it is. `tiny` and `meta` segments are a header and records.

Header (64 bytes): magic `PFSSEG1\\n`, kind u8 (1 meta, 2 tiny), 3 zeros, number u32, store id (16), nonce (16), 16 zeros.

Record, at a multiple of 8: magic `PfR1`, kind u8, codec u8 (0), 2 zeros, payload length u32, check (4), id (32), payload, zeros.
The check is the first 4 bytes of BLAKE3, keyed with the nonce twice, over the 12 bytes before it, the id and the record's offset
(u64): it binds a record to its place, so bytes inside a payload never pass for a record and a scan can step over a torn append.

Location of an object (16 bytes, value of the `objects` table): segment u32, payload offset u48, record kind u16, length u32.
"""

from __future__ import annotations

import enum
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from errno import ELOOP
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from pfsmount.errors import Corrupt, NotFound
from pfsmount.ids import ID_BYTES, ObjectId
from pfsmount.objects.hashing import Buffer, HashKind, hash_bytes, keyed_check
from pfsmount.objects.uncached import Uncached

BLOCK = 4096
TINY_MAX = 1024
"""Files up to this size are packed in `tiny` segments; larger ones start on a block."""
NO_SEGMENT = 0xFFFFFFFF
_NO_TABLE = (NO_SEGMENT, 0xFFFFFFFFFFFFFFFF)
SEGMENT_BLOCKS_MAX = 1 << 32
RECORD_MAX = 256 << 20
"""Bytes of a payload, at most: more than the table of contents of a full segment has. What claims more is damaged, and nobody makes room for it."""
FSCK_HINT = "'pfs fsck' says what else is damaged, which versions and files are affected, and what to do"

_HEADER = struct.Struct("<8sB3xI16s16s16x")
_HEADER_MAGIC = b"PFSSEG1\n"
_RECORD = struct.Struct("<4sBBHI")
_RECORD_MAGIC = b"PfR1"
RECORD_BYTES = _RECORD.size + 4 + ID_BYTES
_OFFSET = struct.Struct("<Q")
LOCATION = struct.Struct("<IIHHI")
_TOC = struct.Struct("<IIQQ")
_TOC_ENTRY = struct.Struct("<32sI")
_TOC_LENGTH = struct.Struct("<32xI")
_PLACE = struct.Struct("<IQI")
_SEAL = struct.Struct("<8sQQ32s8s")
_SEAL_MAGIC = b"PFSSEAL1"
_ROW = struct.Struct("<BB6xQQ16sIQ")
_TOMBSTONE = struct.Struct("<II")
_RANGE = struct.Struct("<QQ")
WHOLE = (0, 1 << 63)
"""The range of a tombstone that stands for all of a segment."""
_ZEROS = bytes(BLOCK)


class SegmentKind(enum.IntEnum):
    """What a segment holds; the value is stored in the `segments` table."""

    META = 1
    TINY = 2
    DATA = 3

    @property
    def suffix(self) -> str:
        return self.name.lower()

    @property
    def alignment(self) -> int:
        """Bytes at whose multiples things start."""
        return BLOCK if self is SegmentKind.DATA else 8


class RecordKind(enum.IntEnum):
    """What a record, or an entry of the `objects` table, is."""

    PIECE = 1
    NODE = 2
    MANIFEST = 3
    COMMIT = 4
    XATTRS = 5
    CONTENTS = 6
    TOMBSTONE = 7
    SEAL = 8

    @property
    def hash_kind(self) -> HashKind:
        return _HASH_KINDS[self]


_HASH_KINDS = {
    RecordKind.PIECE: HashKind.PLAIN,
    RecordKind.NODE: HashKind.NODE,
    RecordKind.MANIFEST: HashKind.MANIFEST,
    RecordKind.COMMIT: HashKind.COMMIT,
    RecordKind.XATTRS: HashKind.XATTRS,
    RecordKind.CONTENTS: HashKind.RECORD,
    RecordKind.TOMBSTONE: HashKind.RECORD,
    RecordKind.SEAL: HashKind.RECORD,
}


_KNOWN_KINDS = frozenset(RecordKind)


class Location(NamedTuple):
    """Where an object's bytes are: payload offset and length in bytes."""

    segment: int
    offset: int
    kind: RecordKind
    length: int

    def encode(self) -> bytes:
        segment, offset, kind, length = self
        return LOCATION.pack(segment, offset & 0xFFFFFFFF, offset >> 32, kind, length)

    @classmethod
    def decode(cls, raw: bytes) -> Location:
        """Raises Corrupt."""
        try:
            segment, low, high, kind, length = LOCATION.unpack(raw)
            if length > RECORD_MAX:
                raise ValueError
            return cls(segment, low | high << 32, RecordKind(kind), length)
        except (struct.error, ValueError):
            raise Corrupt("the row of an object in the index is damaged", hint=FSCK_HINT) from None


@dataclass(slots=True)
class SegmentRow:
    """The row of a segment in the `segments` table."""

    kind: SegmentKind
    sealed: bool
    end: int
    """Bytes that are fsynced and published."""
    freed: int
    nonce: bytes
    contents_segment: int = NO_SEGMENT
    """Meta segment of the last table of contents of this data segment; NO_SEGMENT when there is none."""
    contents_offset: int = 0

    def encode(self) -> bytes:
        return _ROW.pack(
            self.kind,
            self.sealed,
            self.end,
            self.freed,
            self.nonce,
            self.contents_segment,
            self.contents_offset,
        )

    @classmethod
    def decode(cls, raw: bytes) -> SegmentRow:
        """Raises Corrupt."""
        try:
            kind, sealed, *rest = _ROW.unpack(raw)
            if sealed > 1:
                raise ValueError
            return cls(SegmentKind(kind), bool(sealed), *rest)
        except (struct.error, ValueError):
            raise Corrupt("the row of a segment in the index is damaged", hint=FSCK_HINT) from None


class Record(NamedTuple):
    """One record found by a scan; `offset` is that of the record, the payload follows at `payload_offset`."""

    offset: int
    kind: RecordKind
    id: ObjectId
    payload: bytes
    intact: bool
    """False when the payload is not what the id says: damaged, or a torn append."""

    @property
    def payload_offset(self) -> int:
        return self.offset + RECORD_BYTES


def align(offset: int, to: int) -> int:
    """The first multiple of `to` (a power of two) that is >= offset."""
    return (offset + to - 1) & -to


def segment_path(directory: Path, number: int, kind: SegmentKind) -> Path:
    """The file of a segment."""
    return directory / f"{number:08x}.{kind.suffix}"


def encode_header(kind: SegmentKind, number: int, store_id: bytes, nonce: bytes) -> bytes:
    """The first 64 bytes of a tiny or meta segment."""
    return _HEADER.pack(_HEADER_MAGIC, kind, number, store_id, nonce)


def decode_header(raw: bytes) -> tuple[SegmentKind, int, bytes, bytes]:
    """Kind, number, store id and nonce. Raises Corrupt."""
    try:
        magic, kind, number, store_id, nonce = _HEADER.unpack(raw[: _HEADER.size])
        if magic != _HEADER_MAGIC:
            raise ValueError
        return SegmentKind(kind), number, store_id, nonce
    except (struct.error, ValueError):
        raise Corrupt("a segment has no valid header") from None


def encode_record(kind: RecordKind, id: ObjectId, payload: Buffer, offset: int, nonce: bytes) -> bytes:
    """A record as it stands at `offset`, padded to a multiple of 8."""
    fixed = _RECORD.pack(_RECORD_MAGIC, kind, 0, 0, len(payload))
    check = _record_check(fixed, id, offset, nonce)
    padding = -len(payload) % 8
    return b"".join((fixed, check, id, payload, _ZEROS[:padding]))


def _record_check(fixed: bytes, id: bytes, offset: int, nonce: bytes) -> bytes:
    return keyed_check(fixed + id + _OFFSET.pack(offset), nonce + nonce)


def record_header(
    window: bytes, at: int, offset: int, nonce: bytes | None
) -> tuple[RecordKind | None, ObjectId, int] | None:
    """Kind (None: one of a later format), id and payload length of the record at `at` of a window, which stands at `offset` of its segment.

    None when none begins there. Without the nonce the check is not made, and only objects and tables of contents count.
    """
    magic, number, codec, _, length = _RECORD.unpack_from(window, at)
    if magic != _RECORD_MAGIC or codec or length > RECORD_MAX:
        return None
    body = at + RECORD_BYTES
    id = window[body - ID_BYTES : body]
    if nonce is None:
        return (RecordKind(number), ObjectId(id), length) if 1 <= number <= RecordKind.CONTENTS else None
    check = window[at + _RECORD.size : at + _RECORD.size + 4]
    if check != _record_check(window[at : at + _RECORD.size], id, offset, nonce):
        return None
    return RecordKind(number) if number in _KNOWN_KINDS else None, ObjectId(id), length


def scan_records(data: Buffer, nonce: bytes, start: int = _HEADER.size) -> Iterator[Record]:
    """All records of a tiny or meta segment's bytes, in order; torn ranges are stepped over.

    A record with a right header and a wrong payload is yielded as not intact, and the scan goes on inside it: when it is the rest
    of a torn append, what was appended later begins there.
    """
    view = memoryview(data)
    offset, end = start, len(view)
    while offset + RECORD_BYTES <= end:
        fixed = bytes(view[offset : offset + _RECORD.size])
        if fixed[:4] == _RECORD_MAGIC:
            _, kind, codec, _, length = _RECORD.unpack(fixed)
            body = offset + RECORD_BYTES
            id = bytes(view[body - ID_BYTES : body])
            check = bytes(view[offset + _RECORD.size : offset + _RECORD.size + 4])
            if body + length <= end and codec == 0 and check == _record_check(fixed, id, offset, nonce):
                if kind not in _KNOWN_KINDS:  # of a later format: nothing that we could use
                    offset = align(body + length, 8)
                    continue
                payload = bytes(view[body : body + length])
                intact = hash_bytes(payload, RecordKind(kind).hash_kind) == id
                yield Record(offset, RecordKind(kind), ObjectId(id), payload, intact)
                if intact:
                    offset = align(body + length, 8)
                    continue
        offset += 8


@dataclass(frozen=True, slots=True)
class TableOfContents:
    """The pieces of one stretch of a data segment: they follow each other from `start`, each on a block."""

    segment: int
    start: int
    pieces: Sequence[tuple[ObjectId, int]]
    """Id and length in bytes."""
    previous: tuple[int, int] | None = None
    """Meta segment and payload offset of the table before this one, of the same data segment."""

    def encode(self) -> bytes:
        before = self.previous or _NO_TABLE
        entries = (_TOC_ENTRY.pack(id, length) for id, length in self.pieces)
        return _TOC.pack(self.segment, *before, self.start) + b"".join(entries)

    @classmethod
    def decode(cls, raw: bytes) -> TableOfContents:
        """Raises Corrupt."""
        try:
            segment, before_segment, before_offset, start = _TOC.unpack_from(raw)
            pieces = [(ObjectId(id), n) for id, n in _TOC_ENTRY.iter_unpack(raw[_TOC.size :])]
            if start + sum(align(n, BLOCK) for _, n in pieces) > SEGMENT_BLOCKS_MAX * BLOCK:
                raise ValueError
            before = (before_segment, before_offset)
            if before_segment == NO_SEGMENT and before != _NO_TABLE:
                raise ValueError
        except (struct.error, ValueError):
            raise Corrupt("a table of contents is damaged") from None
        return cls(segment, start, pieces, None if before == _NO_TABLE else before)

    def locations(self) -> Iterator[tuple[ObjectId, Location]]:
        """Where each piece is."""
        offset = self.start
        for id, length in self.pieces:
            yield id, Location(self.segment, offset, RecordKind.PIECE, length)
            offset = align(offset + length, BLOCK)


def encode_tombstone(segment: int, ranges: Sequence[tuple[int, int]]) -> bytes:
    """The record that says that these ranges (start, end in bytes) of a segment are free."""
    return _TOMBSTONE.pack(segment, 0) + b"".join(_RANGE.pack(start, end - start) for start, end in ranges)


class PieceColumns(NamedTuple):
    """The pieces of a table of contents in columns, for those who go through millions: a tuple for each would take longer than its hash."""

    segment: int
    start: int
    ids: list[ObjectId]
    lengths: list[int]
    offsets: list[int]
    """Where each piece begins."""
    end: int
    """The first block behind them."""
    previous: tuple[int, int]
    """Meta segment and payload offset of the table before this one; the segment is NO_SEGMENT where there is none."""

    @classmethod
    def decode(cls, raw: bytes) -> PieceColumns:
        """Raises Corrupt."""
        try:
            segment, before_segment, before_offset, start = _TOC.unpack_from(raw)
            lengths = [length for (length,) in _TOC_LENGTH.iter_unpack(raw[_TOC.size :])]
        except struct.error:
            raise Corrupt("a table of contents is damaged") from None
        width = _TOC_ENTRY.size
        ids = [ObjectId(raw[at : at + ID_BYTES]) for at in range(_TOC.size, len(raw), width)]
        *offsets, end = accumulate(((length + BLOCK - 1) & -BLOCK for length in lengths), initial=start)
        if end > SEGMENT_BLOCKS_MAX * BLOCK:
            raise Corrupt("a table of contents is damaged")
        return cls(segment, start, ids, lengths, offsets, end, (before_segment, before_offset))

    def rows(self) -> list[bytes]:
        """What `Location.encode` gives for each piece."""
        pack, segment, kind = _PLACE.pack, self.segment, RecordKind.PIECE << 48
        return [pack(segment, offset | kind, length) for offset, length in zip(self.offsets, self.lengths, strict=True)]


def encode_footer(payload: bytes, offset: int, store_id: bytes) -> bytes:
    """What ends a sealed data segment at `offset` (a multiple of 4096): its contents, then 64 bytes that find them."""
    total = align(len(payload) + _SEAL.size, BLOCK)
    tail = _SEAL.pack(_SEAL_MAGIC, offset, len(payload), hash_bytes(payload, HashKind.RECORD), store_id[:8])
    return payload + bytes(total - len(payload) - len(tail)) + tail


def read_footer(fd: int) -> bytes | None:
    """The encoded contents of a sealed data segment; None when the file has no valid footer."""
    size = os.fstat(fd).st_size
    if size < BLOCK or size % BLOCK:
        return None
    magic, offset, length, digest, _ = _SEAL.unpack(os.pread(fd, _SEAL.size, size - _SEAL.size))
    if magic != _SEAL_MAGIC or offset + length > size or length > RECORD_MAX:
        return None
    payload = os.pread(fd, length, offset)
    return payload if hash_bytes(payload, HashKind.RECORD) == digest else None


def decode_footer(fd: int) -> TableOfContents | None:
    """The contents of a sealed data segment; None when the file has no valid footer."""
    payload = read_footer(fd)
    return None if payload is None else TableOfContents.decode(payload)


def contents_entries(payload: bytes) -> bytes:
    """The entries of an encoded table of contents."""
    return payload[_TOC.size :]


def decode_seal(fd: int) -> int:
    """Where the footer of a sealed data segment begins. Raises Corrupt."""
    size = os.fstat(fd).st_size
    raw = os.pread(fd, _SEAL.size, size - _SEAL.size) if size >= BLOCK else b""
    offset = _SEAL.unpack(raw)[1] if raw[:8] == _SEAL_MAGIC else size
    if offset >= size:
        raise Corrupt("a sealed segment has no footer")
    return int(offset)


class SegmentReader:
    """An open segment, for reading at any offset from any thread. Closed when the last user lets go."""

    __slots__ = ("_uncached", "fd", "number")

    def __init__(self, path: Path, number: int) -> None:
        """Raises NotFound when the segment's file is missing."""
        self.number = number
        self._uncached: Uncached | None = None
        self.fd = -1
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"the segment {path.name} is missing from the store", hint=FSCK_HINT) from None
        except OSError as error:
            if error.errno != ELOOP:
                raise
            raise Corrupt(f"the segment {path.name} is a symlink, which no store has", hint=FSCK_HINT) from None

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes. Raises Corrupt when the segment ends before them."""
        data = os.pread(self.fd, length, offset)
        if len(data) != length:
            data += self._rest(offset + len(data), length - len(data))
        return data

    def will_need(self, offset: int, length: int) -> None:
        """Let the disk begin to read all of a range at once; a read alone goes over it in steps."""
        with suppress(OSError):
            os.posix_fadvise(self.fd, offset, length, os.POSIX_FADV_WILLNEED)

    def read_uncached(self, offset: int, memory: memoryview) -> int:
        """Fill memory that begins on a page from a block on, past the page cache if that has nothing of it; bytes read, fewer where that is not possible."""
        if self._uncached is None:
            self._uncached = Uncached(self.fd)
        return self._uncached.read_into(memory, offset)

    def read_nowait(self, offset: int, length: int) -> bytearray | None:
        """`length` bytes if they are in the page cache, else None."""
        data = bytearray(length)
        try:
            count = os.preadv(self.fd, [data], offset, os.RWF_NOWAIT)
        except OSError:  # EAGAIN: not in the page cache; EOPNOTSUPP: a filesystem that cannot say
            return None
        return data if count == length else None

    def _rest(self, offset: int, length: int) -> bytes:
        parts = []
        while length:
            part = os.pread(self.fd, length, offset)
            if not part:
                raise Corrupt(f"segment {self.number:08x} is cut short at byte {offset}", hint=FSCK_HINT)
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)
