"""Reading segments from front to back at the disk's speed: all records of one, or all pieces, with bounded memory.

What the disk refuses to give back (EIO) reads as zeros and is reported: the rest of the segment is still of use.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from pfsmount.ids import ID_BYTES, ObjectId
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.segment import BLOCK, RECORD_BYTES, Location, Record, RecordKind, align, record_header

_WINDOW = 8 << 20
_HEADER_BYTES = 64

Unreadable = Callable[[int, int], None]
"""Called with offset and length of what the disk refused."""


def read_range(fd: int, offset: int, length: int, unreadable: Unreadable) -> bytes:
    """Up to `length` bytes, fewer at the end of the file only."""
    parts = []
    while length > 0:
        try:
            part = os.pread(fd, length, offset)
        except OSError:
            part = _by_blocks(fd, offset, min(length, 1 << 20), unreadable)
        if not part:
            break
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _by_blocks(fd: int, offset: int, length: int, unreadable: Unreadable) -> bytes:
    out = bytearray()
    while len(out) < length:
        at = offset + len(out)
        count = min(BLOCK - at % BLOCK, length - len(out))
        try:
            part = os.pread(fd, count, at)
            if not part:
                break
        except OSError:
            unreadable(at, count)
            part = bytes(count)
        out += part
    return bytes(out)


def advise_sequential(fd: int) -> None:
    """Let the kernel read ahead."""
    with suppress(OSError):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)


def scan_segment(
    fd: int, end: int, nonce: bytes | None, unreadable: Unreadable, start: int = _HEADER_BYTES
) -> Iterator[Record]:
    """All records of a tiny or meta segment up to byte `end`, in order, as `scan_records`; damaged and torn ranges are stepped over.

    Without the nonce (a lost header) the checks cannot be made: then only intact objects and tables of contents are yielded, which their ids prove.
    """
    window, base, offset = b"", start, start
    while offset + RECORD_BYTES <= end:
        at = offset - base
        if at + RECORD_BYTES > len(window):
            window, base, at = read_range(fd, offset, min(_WINDOW, end - offset), unreadable), offset, 0
            if len(window) < RECORD_BYTES:
                return
        found = record_header(window, at, offset, nonce)
        if found is None:
            at = _next_magic(window, at + 8)
            offset = base + at
            continue
        kind, id, length = found
        if offset + RECORD_BYTES + length > end:
            offset += 8
            continue
        if at + RECORD_BYTES + length > len(window):
            size = max(_WINDOW, RECORD_BYTES + length)
            window, base, at = read_range(fd, offset, min(size, end - offset), unreadable), offset, 0
            if len(window) < RECORD_BYTES + length:
                return
        if kind is None:  # of a later format
            offset = align(offset + RECORD_BYTES + length, 8)
            continue
        payload = window[at + RECORD_BYTES : at + RECORD_BYTES + length]
        intact = hash_bytes(payload, kind.hash_kind) == id
        if intact or nonce is not None:
            yield Record(offset, kind, id, payload, intact)
        offset = align(offset + RECORD_BYTES + length, 8) if intact else offset + 8


def _next_magic(window: bytes, at: int) -> int:
    """Where the next record can begin; at least so far that the window must be read on."""
    while True:
        found = window.find(b"PfR1", at)
        if found < 0:
            return max(at, (len(window) - RECORD_BYTES + 8) & ~7)
        if not found % 8:
            return found
        at = found + 1


class PieceScan:
    """Reads pieces of a data segment in the order in which they lie, two windows at a time: one is read while the other is hashed."""

    def __init__(self, fd: int, unreadable: Unreadable) -> None:
        self._fd = fd
        self._unreadable = unreadable
        advise_sequential(fd)

    def check(self, pieces: Sequence[tuple[ObjectId, Location]], progress: Callable[[int], None]) -> Iterator[Check]:
        """For each piece whether its bytes are right and whether zeros follow; `pieces` are in order of place."""
        with ThreadPoolExecutor(1) as reader:
            runs = list(_runs(pieces))
            ahead = [reader.submit(self._read, runs[0])] if runs else []
            for i, run in enumerate(runs):
                if i + 1 < len(runs):
                    ahead.append(reader.submit(self._read, runs[i + 1]))
                data = memoryview(ahead.pop(0).result())
                start = run[0][1].offset
                for id, place in run:
                    at = place.offset - start
                    whole = data[at : at + place.length]
                    rest = data[at + place.length : align(at + place.length, BLOCK)]
                    yield id, place, hash_bytes(whole) == id, not any(rest)
                progress(run[-1][1].offset + run[-1][1].length - start)

    def _read(self, run: Sequence[tuple[ObjectId, Location]]) -> bytes:
        start, last = run[0][1].offset, run[-1][1]
        return read_range(self._fd, start, align(last.offset + last.length, BLOCK) - start, self._unreadable)


Check = tuple[ObjectId, Location, bool, bool]


def _runs(pieces: Sequence[tuple[ObjectId, Location]]) -> Iterator[Sequence[tuple[ObjectId, Location]]]:
    """Pieces that lie together, at most a window each."""
    first = 0
    for i in range(1, len(pieces) + 1):
        start = pieces[first][1].offset
        if i == len(pieces):
            yield pieces[first:i]
        else:
            before, place = pieces[i - 1][1], pieces[i][1]
            gap = place.offset - (before.offset + before.length)
            if gap >= 2 * BLOCK or place.offset + place.length - start > _WINDOW:
                yield pieces[first:i]
                first = i


def object_id_at(payload: bytes) -> ObjectId:
    """The file that a manifest root names (zeros: not a root)."""
    return ObjectId(payload[16 : 16 + ID_BYTES])


def is_object(kind: RecordKind) -> bool:
    """Whether the index names records of a kind: objects, and tombstones, which gc must keep."""
    return kind <= RecordKind.XATTRS or kind is RecordKind.TOMBSTONE
