"""`refs.log`: every change of a repo or ref, in order, outside the index.

One line a change: JSON (docs/FORMAT.md), a blank, 16 hex digits of BLAKE3 of the JSON, newline. Changes are numbered and made
in the index first (that transaction is what a caller waits for), then appended here, after any lines that an earlier process left out. A torn
last line ends at its checksum and is written again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pfsmount.errors import Corrupt
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.index import Index, Table
from pfsmount.objects.layout import fsync_directory

_TAIL = 4096
_LINES_AT_ONCE = 10_000


def encode_line(text: bytes) -> bytes:
    """A line of the log from its JSON."""
    return text + b" " + hash_bytes(text).hex()[:16].encode("ascii") + b"\n"


def decode_line(line: bytes) -> dict[str, Any] | None:
    """What a line (without its newline) says; None when its checksum is wrong."""
    text, blank, digits = line.rpartition(b" ")
    if not blank or hash_bytes(text).hex()[:16].encode("ascii") != digits:
        return None
    value = json.loads(text)
    return value if isinstance(value, dict) else None


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """All changes in order. Raises Corrupt at a damaged line that is not the last, or a number out of order."""
    expected = 1
    with open(path, "rb") as file:
        for raw in file:
            value = decode_line(raw[:-1]) if raw.endswith(b"\n") else None
            if value is None:
                if file.read(1):
                    raise Corrupt(f"refs.log is damaged at line {expected}")
                return
            if value["n"] != expected:
                raise Corrupt(f"refs.log has number {value['n']} at line {expected}")
            yield value
            expected += 1


def last_number(path: Path) -> int:
    """Number of the last whole line; 0 when there is none or no file. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        return _last_line(fd)[0]
    finally:
        os.close(fd)


def append_missing(index: Index, path: Path) -> None:
    """Bring the file up to the index and make it durable. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        last, end, size = _last_line(fd)
        if end < size:
            os.ftruncate(fd, end)  # a torn line, which a crash left
        wrote = False
        while lines := _lines_after(index, last):
            data = memoryview(b"".join(lines))
            while data:
                data = data[os.write(fd, data) :]
            last += len(lines)
            wrote = True
        if wrote:
            os.fdatasync(fd)
            if not size:
                fsync_directory(path.parent)
    finally:
        os.close(fd)


def _lines_after(index: Index, last: int) -> list[bytes]:
    lines: list[bytes] = []
    with index.read() as txn:
        for _, text in txn.scan(Table.REFLOG, start=(last + 1).to_bytes(8, "big")):
            lines.append(encode_line(text))
            if len(lines) == _LINES_AT_ONCE:
                break
    return lines


def _last_line(fd: int) -> tuple[int, int, int]:
    """Number of the last whole line (0: none), where it ends, and the size of the file."""
    size = os.fstat(fd).st_size
    length = min(size, _TAIL)
    while True:
        start = size - length
        tail = os.pread(fd, length, start)
        end = tail.rfind(b"\n") + 1
        while end:
            begin = tail.rfind(b"\n", 0, end - 1) + 1
            if begin or not start:
                value = decode_line(tail[begin : end - 1])
                if value is not None:
                    return int(value["n"]), start + end, size
            end = begin
        if not start:
            return 0, 0, size
        length = min(size, length * 16)
