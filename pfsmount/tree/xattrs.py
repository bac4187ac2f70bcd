"""Extended attributes of an entry.

Encoding, sorted by name: name length u8, name, value length u32, value. At most 512 bytes stand in the entry itself, more in an object.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from pfsmount.errors import Corrupt, InvalidInput
from pfsmount.objects.batch import Batch
from pfsmount.objects.reading import Reader
from pfsmount.objects.segment import RecordKind
from pfsmount.tree.entry import XATTRS_INLINE_MAX, Entry

_VALUE_LENGTH = struct.Struct("<I")
VALUE_MAX = 64 * 1024
_USER = b"user."


def is_name(name: bytes) -> bool:
    """Whether a version can have an attribute of this name."""
    return len(name) > len(_USER) and name.startswith(_USER) and b"\0" not in name


def encode_xattrs(xattrs: Mapping[bytes, bytes]) -> bytes:
    """The encoding; empty for no attributes. Raises InvalidInput for a name or value that Linux does not take."""
    parts = []
    for name, value in sorted(xattrs.items()):
        if not is_name(name) or len(name) > 255 or len(value) > VALUE_MAX:
            raise InvalidInput("an extended attribute has a name user.… of 6–255 bytes without NUL, and at most 64 KiB")
        parts += [bytes([len(name)]), name, _VALUE_LENGTH.pack(len(value)), value]
    return b"".join(parts)


def decode_xattrs(raw: bytes) -> dict[bytes, bytes]:
    """The attributes. Raises Corrupt."""
    found: dict[bytes, bytes] = {}
    at, last = 0, b""
    try:
        while at < len(raw):
            name = raw[at + 1 : at + 1 + raw[at]]
            at += 1 + len(name)
            (length,) = _VALUE_LENGTH.unpack_from(raw, at)
            at += 4 + length
            # Attributes outside of user.* would let a tree that somebody else made give root's programs capabilities.
            if at > len(raw) or length > VALUE_MAX or name <= last or not is_name(name):
                raise ValueError
            found[name] = raw[at - length : at]
            last = name
    except (struct.error, ValueError):
        raise Corrupt("extended attributes are damaged") from None
    return found


def load_xattrs(objects: Reader, entry: Entry) -> dict[bytes, bytes]:
    """The extended attributes of an entry. Raises Corrupt, NotFound."""
    if entry.xattrs_id is not None:
        return decode_xattrs(objects.get(entry.xattrs_id))
    return decode_xattrs(entry.xattrs) if entry.xattrs else {}


def with_xattrs(batch: Batch, entry: Entry, xattrs: Mapping[bytes, bytes]) -> Entry:
    """The entry with exactly these attributes; large ones are added to the batch."""
    raw = encode_xattrs(xattrs)
    if len(raw) <= XATTRS_INLINE_MAX:
        return entry.replace(xattrs=raw, xattrs_id=None)
    return entry.replace(xattrs=b"", xattrs_id=batch.add_object(RecordKind.XATTRS, raw))
