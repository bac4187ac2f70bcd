"""The journal of a worktree: what changed on top of its base, one line an operation.

A line is a JSON array (ASCII, no blanks), a blank, 16 hex digits of BLAKE3(digits of the line before ‖ the JSON), a newline; it is written by
one write(2), so a kill leaves whole lines and a power cut at most a torn end. Reading stops at the first line whose digits are wrong.
Whole lines behind that one mean that the file was damaged: then nobody may write to it, or delete anything.

| line | meaning |
|---|---|
| `["journal", 1, base]` | always the first; base: hex id of the commit under all this, or null |
| `["base", n, parent, name]` | `n` is what the base has at this name of `parent` |
| `["new", n, parent, name, kind, mode, uid, gid, mtime_ns, extra, t]` | created; kind file, dir, symlink (extra: target), fifo, socket |
| `["link", n, parent, name, t]` | another name |
| `["unlink", parent, name, t]` | a name goes away, of a directory too |
| `["rename", parent, name, parent2, name2, flags, t]` | flags 2: exchange |
| `["attr", n, {"mode", "uid", "gid", "mtime_ns"}]` | attributes that were set |
| `["xattr", n, name, value]` | value base64, or null: removed; name null: all removed |
| `["whole", n]` | from now on `data/<n>` has the whole content |
| `["size", n, size]` | of the base's content only the first `size` bytes still show |
| `["extent", n, offset, length]` | this range is in `data/<n>`, the rest is the base's |
| `["entry", n, fixed, extra]` | content by reference: the two parts of a tree entry, base64 |
| `["resolve", path, how, fits]` | a conflict with the branch is settled: mine, theirs or both; `fits` says what the decision is about |

`n` and `parent` are numbers local to the journal; 1 is the root and no number is used twice. `t` is the time in ns that the directories
got. Size and time of a file that has `data/<n>` are those of that file: the kernel keeps them through a crash of the daemon without a line
for each write. Names are text with surrogateescape, so any bytes survive.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pfsmount.errors import Corrupt, InvalidInput, NoSpace, PfsError
from pfsmount.ids import ObjectId, parse_object_id
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.layout import disk_errors, error_for, fsync_directory, private
from pfsmount.tree.entry import Entry, decode_entry

ROOT_NUMBER = 1
VERSION = 1
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
_DIGITS = 16
_BLOCK = 1 << 20
_WHOLE_LINE = re.compile(rb".* [0-9a-f]{16}", re.DOTALL)
_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode

Record = list[Any]


def name_text(name: bytes) -> str:
    """A file name as it stands in a line."""
    return name.decode("utf-8", "surrogateescape")


def name_bytes(text: str) -> bytes:
    """The reverse of `name_text`."""
    return text.encode("utf-8", "surrogateescape")


def value_text(value: bytes | None) -> str | None:
    """Bytes as they stand in a line."""
    return None if value is None else base64.b64encode(value).decode("ascii")


def value_bytes(text: str | None) -> bytes | None:
    """The reverse of `value_text`."""
    return None if text is None else base64.b64decode(text)


def entry_record(number: int, entry: Entry) -> Record:
    """The line that gives a node its content by reference."""
    fixed, extra = entry.encode()
    return ["entry", number, value_text(fixed), value_text(extra)]


def entry_of(record: Record) -> Entry:
    """The entry in an `entry` line. Raises Corrupt."""
    try:
        _, _, fixed, extra = record
        return decode_entry(base64.b64decode(fixed), base64.b64decode(extra))
    except (TypeError, ValueError):
        raise Corrupt("the journal of a worktree has an entry that is none") from None


def _digits(before: bytes, text: bytes) -> bytes:
    return hash_bytes(before + text).hex()[:_DIGITS].encode("ascii")


def encode_line(record: Record, before: bytes) -> tuple[bytes, bytes]:
    """The bytes of a line, and its digits."""
    text = _encode(record).encode("ascii")
    digits = _digits(before, text)
    return b"%b %b\n" % (text, digits), digits


def decode_line(line: bytes, before: bytes) -> tuple[Record, bytes] | None:
    """Record and digits of a line without its newline; None when it is not one."""
    text, blank, digits = line[: -_DIGITS - 1], line[-_DIGITS - 1 : -_DIGITS], line[-_DIGITS:]
    if blank != b" " or _digits(before, text) != digits:
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return (record, digits) if isinstance(record, list) and record else None


class JournalReader:
    """Reads the valid lines of a journal, and later those that were added since."""

    def __init__(self, path: Path) -> None:
        """Raises FileNotFoundError."""
        self.path = path
        self.offset = 0
        """Where the last valid line read ends."""
        self.digits = b""
        self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def records(self) -> Iterator[Record]:
        """The lines from where reading stopped up to the last valid one."""
        while True:
            block = os.pread(self._fd, _BLOCK, self.offset)
            lines = block.split(b"\n")
            if len(lines) < 2:
                return
            for line in lines[:-1]:
                decoded = decode_line(line, self.digits)
                if decoded is None:
                    return
                record, self.digits = decoded
                self.offset += len(line) + 1
                yield record

    def torn_bytes(self) -> int:
        """How much stands behind the last valid line."""
        return os.fstat(self._fd).st_size - self.offset

    def torn(self) -> Iterator[bytes]:
        """What stands behind the last valid line, in blocks."""
        at = self.offset
        while block := os.pread(self._fd, _BLOCK, at):
            yield block
            at += len(block)

    def is_damaged(self) -> bool:
        """True when what stands behind the last valid line cannot be what a power cut left of lines that were not fsynced: whole lines are in
        it, or, where not even the first line is valid, any line.

        The disk may have later blocks of what was not fsynced and lack earlier ones. Those read as zeros, which no line has.
        """
        rest, first = b"", True
        for block in self.torn():
            *lines, rest = (rest + block).split(b"\n")
            if first and not lines and b"\0" in rest:
                return False
            rest = rest[-_BLOCK:]  # no line is so long, and only the end of one counts but for the first
            if lines and first:
                if b"\0" in lines[0] or decode_line(lines[0], self.digits) is not None:
                    return False  # lost, or written since
                first = False
            if any(_WHOLE_LINE.fullmatch(line) for line in lines) or (lines and not self.offset):
                return True
        return False

    @property
    def is_current(self) -> bool:
        """False when the file was deleted: another generation is valid now."""
        return os.fstat(self._fd).st_nlink > 0

    def close(self) -> None:
        """Close; any number of times."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Journal:
    """The journal that this process appends to. The caller holds the worktree's lock."""

    def __init__(self, path: Path, fd: int, end: int, digits: bytes) -> None:
        self.path = path
        self.fd = fd
        self.end = end
        self._digits = digits
        self._broken: PfsError | None = None
        self._name_durable = False

    @classmethod
    def create(cls, path: Path, base: ObjectId | None) -> Journal:
        """A new journal on top of a commit, in place of what may be at `path`. Raises NoSpace, PermissionDenied."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise error_for(error, "starting the journal of a worktree") from error
        journal = cls(path, fd, 0, b"")
        try:
            journal.append(["journal", VERSION, None if base is None else base.hex()])
        except BaseException:
            journal.close()
            with suppress(OSError):
                os.unlink(path)
            raise
        return journal

    @classmethod
    def resume(cls, reader: JournalReader) -> Journal:
        """Go on where `reader` stopped; what a power cut tore is cut off and kept at `torn_path`. The caller knows that it is torn, not
        damaged. Raises NoSpace, PermissionDenied."""
        with disk_errors("opening the journal of a worktree"):
            fd = os.open(reader.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if reader.torn_bytes():
                    with open(torn_path(reader.path), "ab", opener=private) as kept:
                        kept.writelines(reader.torn())
                        kept.flush()
                        os.fsync(kept.fileno())
                    os.ftruncate(fd, reader.offset)
            except BaseException:
                os.close(fd)
                raise
        return cls(reader.path, fd, reader.offset, reader.digits)

    def refuse(self, why: str) -> None:
        """Take no more lines."""
        self._broken = PfsError(why)

    def append(self, record: Record) -> None:
        """Write one line. After an error the journal is as it was before. Raises NoSpace, PfsError."""
        line, digits = encode_line(record, self._digits)
        if self._broken is not None:
            raise self._broken
        try:
            count = os.pwrite(self.fd, line, self.end)
        except OSError as error:
            self._cut_back()
            raise error_for(error, "writing the journal of a worktree") from error
        if count != len(line):
            self._cut_back()
            raise NoSpace("no space left for the journal of the worktree; the change was not made")
        self.end += count
        self._digits = digits

    def _cut_back(self) -> None:
        # A torn line would hide every line after it, so without this cut nothing more may be written.
        try:
            os.ftruncate(self.fd, self.end)
        except OSError as error:
            self._broken = error_for(error, "repairing the journal of a worktree")

    def sync(self) -> None:
        """Make all lines durable, and the journal's own name. Raises OSError."""
        os.fdatasync(self.fd)
        if not self._name_durable:
            fsync_directory(self.path.parent)
            self._name_durable = True

    def close(self) -> None:
        """Close; any number of times."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def torn_path(path: Path) -> Path:
    """Where the torn ends of a journal are kept."""
    return path.with_name(path.name + ".torn")


def damage(reader: JournalReader, what: str) -> Corrupt:
    """The error for a journal that is damaged behind the last line read."""
    path = reader.path
    return Corrupt(
        f"the journal of {what} is damaged at byte {reader.offset}: '{path}'; nothing was changed or deleted, and the contents of "
        f"changed files are in '{path.parent / 'data'}'",
        hint=f"restore the file from a backup; or copy '{path.parent}' to a safe place and run "
        f"'truncate -s {reader.offset} {shlex.quote(str(path))}', which gives up the changes behind the damage",
    )


def journal_base(record: Record) -> ObjectId | None:
    """The base in a first line. Raises Corrupt for a line that is no first line of version 1."""
    if record[0] != "journal" or len(record) < 3:
        raise Corrupt("the journal of a worktree does not begin as one")
    if record[1] != VERSION:
        raise Corrupt(f"the journal of a worktree has version {record[1]}, which this pfs does not know")
    try:
        return None if record[2] is None else parse_object_id(record[2])
    except (TypeError, InvalidInput):
        raise Corrupt("the journal of a worktree names no commit that it begins at") from None


def journal_roots(path: Path) -> tuple[ObjectId | None, list[Entry]]:
    """What a journal refers to, for gc: its base commit, and the entries whose content it uses. Raises Corrupt."""
    reader = JournalReader(path)
    try:
        records = reader.records()
        first = next(records, None)
        found = [] if first is None else [entry_of(record) for record in records if record[0] == "entry"]
        if reader.is_damaged():
            raise damage(reader, "a worktree")
        return (None, []) if first is None else (journal_base(first), found)
    finally:
        reader.close()
