"""The process that hashes small pieces ahead of a check, started by `objects.index_probe`. `objects.windows_ahead` says what both share."""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from pfsmount.errors import Corrupt
from pfsmount.objects.hashing import HashKind, hash_bytes
from pfsmount.objects.segment import PieceColumns, SegmentKind, segment_path
from pfsmount.objects.segment_scan import PieceScan, Window, unpadded_pieces, windows, wrong_pieces
from pfsmount.objects.windows_ahead import BEGUN, ODD, PIECES_MAX, REQUEST, RIGHT, UNSEEN, is_alone, is_small


def serve(connection: socket.socket, memory_fd: int, segments: Path) -> None:
    """Look at what is asked for until the other side is gone."""
    with mmap.mmap(memory_fd, PIECES_MAX) as memory, PieceScan() as scan:
        while True:
            try:
                request = connection.recv(REQUEST.size)
            except ConnectionError:
                return
            if len(request) < REQUEST.size or is_alone(connection):
                return
            data, meta, offset, length, first, id = REQUEST.unpack(request)
            try:
                table = _table(segment_path(segments, meta, SegmentKind.META), offset, length, id)
                fd = _open(segment_path(segments, data, SegmentKind.DATA))
            except (Corrupt, OSError):
                continue  # the check finds out why
            try:
                for _ in _look(scan, fd, table, memory, first):
                    if is_alone(connection):
                        return
            finally:
                os.close(fd)


def _look(scan: PieceScan, fd: int, table: PieceColumns, memory: mmap.mmap, first: int) -> Iterator[None]:
    """Look at the windows of a table, one after the other."""
    begun: list[int] = []
    right = 0
    unreadable: list[int] = []

    def wanted() -> Iterator[Window]:
        at = first
        for window in windows(table.ids, table.offsets, table.lengths):
            if is_small(window.lengths) and memory[at] == UNSEEN:
                memory[at] = BEGUN
                begun.append(at)
                yield window
            at += len(window.ids)

    for window, found in scan.read(fd, wanted(), lambda offset, _: unreadable.append(offset)):
        assert found is not None
        odd = wrong_pieces(window, found.data) or unpadded_pieces(window, found.data) or unreadable
        memory[begun.pop(0)] = ODD if odd else RIGHT
        right += 0 if odd else len(window.ids)
        yield
    if right == len(table.ids):
        memory[first + right] = RIGHT


def _table(meta: Path, offset: int, length: int, id: bytes) -> PieceColumns:
    """Raises Corrupt, OSError."""
    fd = _open(meta)
    try:
        payload = os.pread(fd, length, offset)
    finally:
        os.close(fd)
    if hash_bytes(payload, HashKind.RECORD) != id:
        raise Corrupt("a table of contents is damaged")
    return PieceColumns.decode(payload)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
