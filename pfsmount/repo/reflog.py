"""`refs.log`: every change of a repo or ref, in order, outside the index.

One line a change: JSON (docs/FORMAT.md), a blank, 16 hex digits of BLAKE3 of the JSON, newline. Changes are numbered and made
in the index first (that transaction is what a caller waits for), then appended here, after any lines that an earlier process left out. A torn
last line ends at its checksum and is written again. What is behind the last whole line and is no such thing is kept, in a copy of the file.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pfsmount.errors import Corrupt
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.index import Index, Table
from pfsmount.objects.layout import free_name, fsync_directory, private

DAMAGED_LOG = "refs.log.damaged"
"""With the time behind it: a log as it was before something that is no torn line was cut off."""
_TAIL = 4096
_LINES_AT_ONCE = 10_000
_LINE_MAX = 4 << 20
_NUMBER_MAX = (1 << 63) - 1
_KINDS = ("branch", "tag", "job")
_REPO_ID = re.compile(r"[0-9a-f]{16}\Z")
_COMMIT_ID = re.compile(r"[0-9a-f]{64}\Z")
_NO_NAME = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Characters that stand for no byte, so that no key of the index can be made of them."""


def encode_line(text: bytes) -> bytes:
    """A line of the log from its JSON."""
    return text + b" " + hash_bytes(text).hex()[:16].encode("ascii") + b"\n"


def decode_line(line: bytes) -> dict[str, Any] | None:
    """What a line (without its newline) says; None when its checksum is wrong, or it is no change with a number."""
    text, blank, digits = line.rpartition(b" ")
    if not blank or hash_bytes(text).hex()[:16].encode("ascii") != digits:
        return None
    return parse_change(text)


def parse_change(text: bytes) -> dict[str, Any] | None:
    """What the JSON of a line says; None when it is no change with a number."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and _is_change(value) else None


def _is_change(value: dict[str, Any]) -> bool:
    """Whether a line has what its kind of change must have; kinds of a later pfs may have anything but no number."""
    get = value.get
    numbers, texts = [get("n"), get("t")], [get("op"), get("repo_id"), get("who"), get("why")]
    match get("op"):
        case "repo-create":
            texts += [get("repo"), get("description"), get("default_branch", "")]
        case "default":
            texts += [get("name")]
        case "ref":
            if get("kind") not in _KINDS or not all(_is_id(get(side, "")) for side in ("old", "new")):
                return False
            texts += [get("name")]
    return (
        all(type(number) is int and 0 <= number <= _NUMBER_MAX for number in numbers)
        and all(isinstance(text, str) and not _NO_NAME.search(text) for text in texts)
        and bool(_REPO_ID.match(str(texts[1])))
        and bool(numbers[0])
    )


def _is_id(text: object) -> bool:
    return text is None or (isinstance(text, str) and bool(_COMMIT_ID.match(text)))


def raw_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of an open log, with their newlines; one that is longer than any can be comes in parts, each of which is damaged."""
    return iter(lambda: file.readline(_LINE_MAX), b"")


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """All changes in order. Raises Corrupt at a damaged line that is not the last, or a number out of order."""
    expected = 1
    with open(path, "rb") as file:
        for raw in raw_lines(file):
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
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        return _last_line(fd)[0]
    finally:
        os.close(fd)


def append_missing(index: Index, path: Path) -> None:
    """Bring the file up to the index and make it durable. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        last, end, size = _last_line(fd)
        lines = _lines_after(index, last)
        if end < size:
            if not _is_torn(fd, end, size, b"".join(lines)):
                _keep(fd, free_name(path.parent, DAMAGED_LOG))
            os.ftruncate(fd, end)
        wrote = False
        while lines:
            data = memoryview(b"".join(lines))
            while data:
                data = data[os.write(fd, data) :]
            last += len(lines)
            wrote = True
            lines = _lines_after(index, last)
        if wrote:
            os.fdatasync(fd)
            if not size:
                fsync_directory(path.parent)
    finally:
        os.close(fd)


def _is_torn(fd: int, end: int, size: int, next_lines: bytes) -> bool:
    """Whether what is behind the last whole line is what a crash leaves of the next ones: their beginning, and zeros."""
    if size - end > len(next_lines):
        return False
    return next_lines.startswith(os.pread(fd, size - end, end).rstrip(b"\0"))


def _keep(fd: int, kept: Path) -> None:
    """A durable copy of a damaged log. Raises OSError."""
    with open(kept, "xb", opener=private) as file:
        at = 0
        while part := os.pread(fd, _LINE_MAX, at):
            file.write(part)
            at += len(part)
        file.flush()
        os.fsync(file.fileno())
    fsync_directory(kept.parent)


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
        if length >= _LINE_MAX:
            raise Corrupt(
                f"the last {length:,} bytes of refs.log have no line that is whole",
                hint="see 'pfs fsck'; nothing was changed",
            )
        length = min(size, length * 16)
