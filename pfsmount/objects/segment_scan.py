"""Reading segments from front to back at the disk's speed: all records of one, or all pieces, with bounded memory.

What the disk refuses to give back (EIO) reads as zeros and is reported: the rest of the segment is still of use.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import NamedTuple

from pfsmount.ids import ID_BYTES, ObjectId
from pfsmount.objects.hashing import hash_all, hash_bytes
from pfsmount.objects.lane import Lane, Ticket
from pfsmount.objects.parts import Part, Parts
from pfsmount.objects.segment import BLOCK, RECORD_BYTES, Record, RecordKind, align, record_header
from pfsmount.objects.uncached import Uncached

_WINDOW = 4 << 20
_AHEAD = 8
_READERS = 8
"""Threads that read. One leaves the disk idle whenever it waits for a processor while others hash: *measured* 2 GiB in 4 s instead of 2."""
_GAP_MAX = 64 * 1024
"""Bytes between two pieces that are rather read than left out."""
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


class Window(NamedTuple):
    """Pieces that lie together, in columns."""

    ids: list[ObjectId]
    offsets: list[int]
    lengths: list[int]
    mark: int = -1
    """Where another process says what it knows of the window (`objects.windows_ahead`)."""

    @property
    def start(self) -> int:
        return self.offsets[0]

    @property
    def end(self) -> int:
        """The end of the block in which the last piece ends."""
        return align(self.offsets[-1] + self.lengths[-1], BLOCK)


def windows(ids: list[ObjectId], offsets: list[int], lengths: list[int]) -> Iterator[Window]:
    """Pieces in order of place, cut where there is much between them, or when it is enough for one read."""
    first, start, end = 0, offsets[0] if offsets else 0, 0
    for i, offset in enumerate(offsets):
        behind = offset + lengths[i]
        if i > first and (offset - end > _GAP_MAX or behind - start > _WINDOW):
            yield Window(ids[first:i], offsets[first:i], lengths[first:i])
            first, start = i, offset
        end = behind
    if offsets:
        yield Window(ids[first:], offsets[first:], lengths[first:])


class WindowBytes(NamedTuple):
    """What was read of a window."""

    data: memoryview
    part: Part


class PieceScan:
    """Reads pieces of data segments in the order in which they lie, some windows ahead in threads of its own. Leaving the context ends those.

    The memory of a window is used again when all `users` of its part are done, two windows later at the earliest.
    """

    def __init__(self) -> None:
        self._parts = Parts(_WINDOW, _AHEAD + 4)
        self._lanes = [Lane("segment reader") for _ in range(_READERS)]
        self._begun = 0

    def __enter__(self) -> PieceScan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for lane in self._lanes:
            lane.close()

    def read(
        self, fd: int, wanted: Iterable[Window], unreadable: Unreadable, leave: Callable[[Window], bool] | None = None
    ) -> Iterator[tuple[Window, WindowBytes | None]]:
        """The windows of a segment with their bytes, but for those that are to be left, if it says so when their turn comes to be read."""
        advise_sequential(fd)
        ahead: deque[tuple[Window, tuple[WindowBytes, Ticket] | None]] = deque()
        uncached = Uncached(fd)
        try:
            for window in wanted:
                left = leave is not None and leave(window)
                ahead.append((window, None if left else self._begin(fd, uncached, window, unreadable)))
                if len(ahead) > _AHEAD:
                    yield _arrived(*ahead.popleft())
            while ahead:
                yield _arrived(*ahead.popleft())
        finally:
            for _, begun in ahead:
                if begun is not None:
                    begun[1].wait()
            uncached.close()

    def read_now(self, fd: int, window: Window, unreadable: Unreadable) -> WindowBytes:
        """The bytes of a window that was left, in memory of their own."""
        part = Part(window.end - window.start)
        _read_into(fd, part.memory, window.start, unreadable)
        return WindowBytes(part.memory, part)

    def _part(self, window: Window) -> Part:
        size = window.end - window.start
        return self._parts.take() if size <= _WINDOW else Part(size)

    def _begin(self, fd: int, uncached: Uncached, window: Window, unreadable: Unreadable) -> tuple[WindowBytes, Ticket]:
        part = self._part(window)
        data = part.memory[: window.end - window.start]
        self._begun += 1
        lane = self._lanes[self._begun % len(self._lanes)]
        return WindowBytes(data, part), lane.do(partial(_read_into, fd, data, window.start, unreadable, uncached))


def _arrived(window: Window, read: tuple[WindowBytes, Ticket] | None) -> tuple[Window, WindowBytes | None]:
    if read is None:
        return window, None
    found, ticket = read
    ticket.wait()
    return window, found


def _read_into(
    fd: int, memory: memoryview, offset: int, unreadable: Unreadable, uncached: Uncached | None = None
) -> None:
    """Fill memory; what is behind the end of the file reads as zeros."""
    done = 0 if uncached is None else uncached.read_into(memory, offset)
    while done < len(memory):
        try:
            count = os.preadv(fd, [memory[done:]], offset + done)
        except OSError:
            part = _by_blocks(fd, offset + done, min(len(memory) - done, 1 << 20), unreadable)
            count = len(part)
            memory[done : done + count] = part
        if not count:
            memory[done:] = bytes(len(memory) - done)
            return
        done += count


def wrong_pieces(window: Window, data: memoryview) -> list[int]:
    """Which pieces of a window are not what their ids say."""
    start = window.start
    parts = [data[at - start : at - start + n] for at, n in zip(window.offsets, window.lengths, strict=True)]
    found = hash_all(parts)
    return [] if found == window.ids else [i for i, id in enumerate(window.ids) if found[i] != id]


def unpadded_pieces(window: Window, data: memoryview) -> list[int]:
    """Behind which pieces of a window something else than zeros stands."""
    start = window.start
    ends = [at - start + n for at, n in zip(window.offsets, window.lengths, strict=True)]
    rests = [(i, data[end : align(end, BLOCK)]) for i, end in enumerate(ends) if end % BLOCK]
    if not b"".join([rest for _, rest in rests]).strip(b"\0"):
        return []
    return [i for i, rest in rests if any(rest)]


def object_id_at(payload: bytes) -> ObjectId:
    """The file that a manifest root names (zeros: not a root)."""
    return ObjectId(payload[16 : 16 + ID_BYTES])


def is_object(kind: RecordKind) -> bool:
    """Whether the index names records of a kind: objects, and tombstones, which gc must keep."""
    return kind <= RecordKind.XATTRS or kind is RecordKind.TOMBSTONE
