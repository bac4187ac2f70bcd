"""Names of things: object ids, entry names, paths inside a repo.

All names are bytes, as the kernel sees them. Text shown to people goes through `display`, which round-trips every
byte with surrogateescape and shows what a terminal cannot print as escapes.
"""

from __future__ import annotations

import os
import re
from typing import NewType

from pfsmount.errors import InvalidInput

ObjectId = NewType("ObjectId", bytes)
"""32 bytes: a BLAKE3-256 hash. Which hash kind it is follows from where it stands (see `objects.hashing`)."""

EntryName = NewType("EntryName", bytes)
"""1–255 bytes, neither `.` nor `..`, without `/` and NUL."""

RepoPath = tuple[EntryName, ...]
"""A path below the root of a tree; the empty tuple is the root."""

ID_BYTES = 32
NAME_MAX = 255
RESERVED_ROOT_NAME = EntryName(b".pfs")
"""The name at a branch root that belongs to the control files of the mount."""

_HEX_ID = re.compile(r"[0-9a-f]{64}\Z")


def parse_object_id(text: str) -> ObjectId:
    """The id that 64 lower-case hex digits name. Raises InvalidInput."""
    if not _HEX_ID.match(text):
        raise InvalidInput(f"'{text}' is not an object id", hint="an id is 64 lower-case hex digits")
    return ObjectId(bytes.fromhex(text))


def parse_entry_name(name: bytes) -> EntryName:
    """Check one name of a directory entry. Raises InvalidInput."""
    if not name or name in (b".", b".."):
        raise InvalidInput(f"'{display(name)}' cannot be the name of a file")
    if b"/" in name or b"\0" in name:
        raise InvalidInput(f"'{display(name)}' has a slash or a NUL, which no file name can have")
    if len(name) > NAME_MAX:
        raise InvalidInput(f"a name of {len(name)} bytes is too long", hint=f"at most {NAME_MAX} bytes")
    return EntryName(name)


def parse_path(path: bytes | str) -> RepoPath:
    """Split a path inside a repo. Slashes may lead, trail or repeat; `.` and `..` are refused.

    Raises InvalidInput.
    """
    raw = os.fsencode(path)
    parts = [part for part in raw.split(b"/") if part]
    for part in parts:
        if part in (b".", b".."):
            raise InvalidInput(
                f"the path '{display(raw)}' has a '{display(part)}' element",
                hint="paths inside a repo start at its root and cannot leave it",
            )
    return tuple(parse_entry_name(part) for part in parts)


def path_bytes(path: RepoPath) -> bytes:
    """The path as `/a/b`; the root is `/`."""
    return b"/" + b"/".join(path)


def display(name: bytes | str) -> str:
    """Text for a terminal: control characters and bytes that are not UTF-8 appear as escapes."""
    text = os.fsdecode(name)
    if text.isprintable():
        return text
    out = []
    for char in text:
        code = ord(char)
        if char.isprintable():
            out.append(char)
        elif 0xDC80 <= code <= 0xDCFF:
            out.append(f"\\x{code - 0xDC00:02x}")
        else:
            out.append(char.encode("unicode_escape").decode("ascii"))
    return "".join(out)
