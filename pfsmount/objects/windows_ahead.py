"""Small pieces that another process looks at before a check comes to them: the half of the check. `objects.windows_worker` is the other.

Hashing a million small pieces is work for Python, which does one thing at a time. So the process that read the index (`objects.index_probe`) goes on to hash
pieces while the check reads metadata. It only ever says that a window of pieces is right. For all else, and when it is slow or dead, the check looks for itself.

Both share a byte for each piece, and one for each table of contents. That of a window's first piece says who has begun with it, the table's whether all of
it is right. Nobody locks or waits: at worst both look at one window.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

from pfsmount.ids import ID_BYTES
from pfsmount.objects.segment import PieceColumns

REQUEST = struct.Struct(f"<IIQI Q {ID_BYTES}s")
"""A data segment; one of its tables of contents: meta segment, offset and length of the payload; where the bytes of its pieces are; its hash."""
PIECES_MAX = 1 << 26
"""Bytes of memory that are shared. What nobody touches takes none."""
UNSEEN, BEGUN, RIGHT, ODD, TAKEN = range(5)
"""BEGUN, RIGHT and ODD are the worker's words: ODD is what the check must look at. TAKEN is the check's."""
MANY = 16
"""Pieces in a window from which on Python takes long enough for it; the pieces of a large file are hashed for the file as well, in one process."""


class _Asked(NamedTuple):
    """A table that the worker was asked to look at."""

    first: int
    """The byte of its first piece."""
    pieces: int
    bytes: int


class WindowsAhead:
    """Asks for tables of contents, in the order in which their pieces will be needed, and knows what was said of their windows."""

    def __init__(self, connection: socket.socket, memory: mmap.mmap) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._memory = memory
        self._used = 0
        self._asked: dict[tuple[int, int], _Asked] = {}
        """By meta segment and offset of the table of contents."""

    def ask(self, table: PieceColumns, meta: int, offset: int, length: int, id: bytes) -> None:
        """Let the worker look at a table's pieces, if it can take it. The index has each of them where the table says."""
        pieces = len(table.ids)
        if self._used + pieces >= PIECES_MAX:
            return
        try:
            self._connection.send(REQUEST.pack(table.segment, meta, offset, length, self._used, id))
        except OSError:  # so much to do, or dead
            return
        self._asked[meta, offset] = _Asked(self._used, pieces, sum(table.lengths))
        self._used += pieces + 1

    def mark(self, meta: int, offset: int, pieces: int) -> int:
        """The byte of the first piece of the table here; -1 if nobody was asked about it."""
        asked = self._asked.get((meta, offset))
        return asked.first if asked is not None and asked.pieces == pieces else -1

    def right_bytes(self, meta: int, offset: int) -> int:
        """The bytes of the pieces of a table, if the worker found all of them right; else 0."""
        asked = self._asked.get((meta, offset))
        return asked.bytes if asked is not None and self._memory[asked.first + asked.pieces] == RIGHT else 0

    def is_right(self, mark: int) -> bool:
        """Whether the worker found all right in the window whose first piece has this byte."""
        return self._memory[mark] == RIGHT

    def leave(self, mark: int) -> bool:
        """Whether the worker looked, or looks, at a window; else the caller does."""
        if self._memory[mark] in (BEGUN, RIGHT):
            return True
        self._memory[mark] = TAKEN
        return False


def shared_memory() -> int:
    """A descriptor of new memory for both sides. Raises OSError."""
    memory = os.memfd_create("pfs-fsck", os.MFD_CLOEXEC)
    os.ftruncate(memory, PIECES_MAX)
    return memory


def is_small(lengths: Sequence[int]) -> bool:
    """Whether a window is for the worker."""
    return len(lengths) >= MANY


def is_alone(connection: socket.socket) -> bool:
    """Whether the other side is gone."""
    poll = select.poll()
    poll.register(connection, 0)  # nothing but the end
    return bool(poll.poll(0))
