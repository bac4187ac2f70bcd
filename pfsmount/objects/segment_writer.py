"""Appending to a segment: one writer at a time, at the disk's speed, with as little of the page cache as it needs."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from errno import EINVAL, EOPNOTSUPP
from functools import partial
from pathlib import Path

from pfsmount.ids import ObjectId
from pfsmount.objects.hashing import Buffer
from pfsmount.objects.lane import Lane, Ticket
from pfsmount.objects.segment import (
    BLOCK,
    RECORD_BYTES,
    Location,
    RecordKind,
    SegmentKind,
    SegmentRow,
    align,
    encode_header,
    encode_record,
)

_BUFFER_MAX = 4 << 20
_LENT_MIN = 1 << 20
"""Bytes of a piece that is written from the memory it is in."""
_WRITE_MAX = 512 * 1024
"""Bytes in one write of a large piece. *Measured* on a virtual machine, 1 GiB, memory levelled before each: 4 MiB writes 6.2–6.7 s,
512 KiB writes 2.4–3.2 s. Large writes get 2 MiB folios, which (probably) are the pages that the host took back."""
_FLUSH_BYTES = 16 << 20
"""How much is written before the kernel is asked to bring it to the disk: the fsync at the end then finds next to nothing to do."""
_ZEROS = bytes(BLOCK)


class SegmentWriter:
    """The one writer of an unsealed segment: holds its lock, appends behind everything that is there.

    What it appended counts only once `sync` returned and the caller published it. `rollback` gives back the space of what
    was not (safe: the lock is held, and nothing beyond the synced end was ever published).
    """

    def __init__(self, path: Path, number: int, row: SegmentRow, store_id: bytes) -> None:
        """Raises BlockingIOError when another process writes to it, or it is still a file of a worktree too, OSError."""
        self.number, self.row = number, row
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            info = os.fstat(self._fd)
            size = info.st_size
            if info.st_nlink > 1 and row.kind is SegmentKind.DATA:
                raise BlockingIOError  # a file that was adopted has its other name still (`objects.adoption`)
            if row.kind is not SegmentKind.DATA:
                size = max(size, self._write_header(encode_header(row.kind, number, store_id, row.nonce)))
        except BaseException:
            os.close(self._fd)
            raise
        self.failed: OSError | None = None
        """The first error of a write or fsync; after it nothing that was appended can be relied on."""
        self.end = align(max(size, row.end), row.kind.alignment)
        self._synced = self.end
        self._written = self._flushed = self.end
        self._lane = Lane("segment writer")
        self._direct: int | None = None
        """A descriptor that writes past the page cache; -1 where the filesystem has no such thing."""
        self._buffer: list[Buffer] = []
        self._buffered = 0

    def _write_header(self, header: bytes) -> int:
        """Write the header unless it is there: a power cut may have kept the size of the file and not its bytes."""
        if os.pread(self._fd, len(header), 0) != header:
            os.pwrite(self._fd, header, 0)
        return len(header)

    def append_record(self, kind: RecordKind, id: ObjectId, payload: Buffer) -> Location:
        """Append a record; the location is that of its payload."""
        start = self.end
        self._append(encode_record(kind, id, payload, start, self.row.nonce))
        return Location(self.number, start + RECORD_BYTES, kind, len(payload))

    def lend_piece(self, data: Buffer, *, cached: bool = True) -> tuple[Location, Ticket | None]:
        """Append a piece to a data segment, on the next block. With a ticket it is written beside the caller, and must stay as it is until that was waited for.

        Unless `cached`, memory that begins on a page goes to the disk past the page cache. An error of the write is raised by
        whatever is done next, at the latest by `sync`.
        """
        self._check()
        start, length = self.end, len(data)
        padding = -length % BLOCK
        ticket = None
        if length >= _LENT_MIN:
            self._write_out()
            ticket = self._lane.do(partial(self._write_lent, data, padding, cached))
            self.end += length + padding
        else:
            self._append(bytes(data))
            if padding:
                self._append(_ZEROS[:padding])
        return Location(self.number, start, RecordKind.PIECE, length), ticket

    def _write_lent(self, data: Buffer, padding: int, cached: bool) -> None:
        """In the lane's thread, which nobody disturbs: whoever else writes waits for it first."""
        if self.failed is not None:
            return
        with suppress(OSError):  # kept in `failed`
            rest = memoryview(data)
            if not cached:
                rest = rest[self._write_directly(rest) :]
            if rest or padding:
                self._pwrite([rest, _ZEROS[:padding]] if padding else [rest])
        if self._written - self._flushed >= _FLUSH_BYTES:
            self._start_writing()

    def _write_directly(self, data: memoryview) -> int:
        """Write whole blocks past the page cache; returns how many bytes, 0 where that cannot be."""
        done, whole = 0, len(data) & -BLOCK
        try:
            if self._direct is None:
                self._direct = os.open(f"/proc/self/fd/{self._fd}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
            while self._direct >= 0 and done < whole:
                done += os.pwrite(self._direct, data[done:whole], self._written + done)
        except OSError as error:
            if error.errno not in (EINVAL, EOPNOTSUPP):
                self.failed = error
                raise
            self._direct = -1 if self._direct is None else self._direct
        self._written += done & -BLOCK
        return done & -BLOCK

    def _append(self, data: bytes) -> None:
        self._check()
        self._buffer.append(data)
        self._buffered += len(data)
        self.end += len(data)
        if self._buffered >= _BUFFER_MAX or len(self._buffer) >= 1000:
            self._write_out()

    def _write_out(self) -> None:
        if self._buffer:
            self._lane.wait()
            self._check()
            buffers, self._buffer, self._buffered = self._buffer, [], 0
            self._pwrite(buffers)

    def _pwrite(self, buffers: list[Buffer]) -> None:
        total = sum(len(buffer) for buffer in buffers)
        try:
            if len(buffers) > 2 or total <= _WRITE_MAX:
                done = os.pwritev(self._fd, buffers, self._written)
                buffers = [b"".join(buffers)[done:]] if done < total else []
            else:
                done = 0
            for buffer in buffers:
                rest = memoryview(buffer)
                while rest:
                    count = os.pwrite(self._fd, rest[:_WRITE_MAX], self._written + done)
                    done += count
                    rest = rest[count:]
        except OSError as error:
            self.failed = error
            raise
        self._written += total

    def _start_writing(self) -> None:
        """Let the kernel begin to write what it holds back, and do not wait."""
        with suppress(OSError):  # it is advice: a filesystem may have no use for it
            os.posix_fadvise(self._fd, self._flushed, self._written - self._flushed, os.POSIX_FADV_DONTNEED)
        self._flushed = self._written

    def _check(self) -> None:
        if self.failed is not None:
            raise self.failed

    def append_footer(self, footer: bytes) -> None:
        """Append the footer that ends a data segment (see `encode_footer`)."""
        self._append(footer)

    def flush_buffer(self) -> None:
        """Hand what is buffered to the kernel, so that other descriptors see it."""
        self._write_out()
        self._lane.wait()
        self._check()

    def read(self, offset: int, length: int) -> bytes:
        """Read back what was appended, synced or not."""
        self._check()
        if offset + length > self._written:
            self.flush_buffer()
        return os.pread(self._fd, length, offset)

    @property
    def unsynced(self) -> int:
        """Bytes appended since the last sync."""
        return self.end - self._synced

    def sync(self) -> None:
        """Make everything appended durable. Raises OSError; after a failure always (the kernel may have dropped the pages)."""
        self._check()
        self.flush_buffer()
        if self._synced != self.end:
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                self.failed = error
                raise
            self._synced = self.end

    def rollback(self) -> None:
        """Give back what was appended since the last sync."""
        self._buffer, self._buffered = [], 0
        self._lane.wait()
        if os.fstat(self._fd).st_size > self._synced:
            os.ftruncate(self._fd, self._synced)
        self.end = self._written = self._flushed = self._synced

    def close(self) -> None:
        """Let go of the segment; another process can take it. Any number of times."""
        if self._fd >= 0:
            self._lane.close()
            if self._direct is not None and self._direct >= 0:
                os.close(self._direct)
            os.close(self._fd)
            self._fd = -1
