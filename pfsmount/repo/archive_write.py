"""`get --tar`: a directory of a version as a tar archive, the same bytes for the same version every time.

Pax format. An extended header holds what ustar cannot: times with a fraction or before 1970, `SCHILY.xattr.`, long names, large
numbers, and the holes of a file as GNU sparse 1.0. Names that are not UTF-8 stand as they are, long ones in GNU's `L` and `K`
members (tried: GNU tar complains about `hdrcharset=BINARY`, bsdtar about anything else in a pax header). Owners are numbers:
names would be those of the machine that writes. The entries stand in bytewise order, `./` first, which is the directory itself.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from pfsmount.config import MIB
from pfsmount.ids import EntryName
from pfsmount.objects.reading import Reader
from pfsmount.objects.segment import RecordKind
from pfsmount.tree.content import open_content
from pfsmount.tree.directory import walk
from pfsmount.tree.entry import Entry, Kind
from pfsmount.tree.manifest import PIECE_MAX, load_manifest, pieces
from pfsmount.tree.xattrs import load_xattrs

_BLOCK = 512
_RECORD = 20 * _BLOCK
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_MAGIC = b"ustar\00000"
_NAME, _PREFIX = 100, 155
_OCTAL_7, _OCTAL_11 = 8**7, 8**11
_NS = 1_000_000_000
_FILE, _SYMLINK, _DIRECTORY, _PAX, _LONG_NAME, _LONG_TARGET = b"0", b"2", b"5", b"x", b"L", b"K"
_TYPES = {Kind.FILE: _FILE, Kind.SYMLINK: _SYMLINK, Kind.DIRECTORY: _DIRECTORY}
_EXTENSION_NAMES = {_PAX: b"././@PaxHeader", _LONG_NAME: b"././@LongLink", _LONG_TARGET: b"././@LongLink"}
_ZEROS = bytes(MIB)
_EXTENTS_MAX = 200_000
"""Ranges of data in a file whose holes are written as such: the map stands before the data, and is in memory here and in whatever reads it."""


class Sink(Protocol):
    """Where an archive goes: an open binary file, a compressor."""

    def write(self, data: bytes, /) -> object:
        """Write all of `data`. Raises OSError."""


@dataclass(slots=True)
class ArchiveWriteReport:
    """What was written so far."""

    files: int = 0
    size: int = 0
    """Bytes of the files, holes included."""


Progress = Callable[[ArchiveWriteReport], None]


def write_archive(
    objects: Reader, entry: Entry, name: EntryName | None, sink: Sink, progress: Progress | None = None
) -> ArchiveWriteReport:
    """Write a directory's contents, or one file or symlink under `name`, as a tar archive.

    Raises Corrupt, NotFound (the store is damaged), OSError (writing).
    """
    writer = _Writer(objects, sink, progress)
    if entry.is_directory:
        for path, below in walk(objects, entry):
            writer.member(b"/".join(path) + b"/" if path and below.is_directory else b"/".join(path) or b"./", below)
    else:
        assert name is not None
        writer.member(name, entry)
    writer.end()
    return writer.report


class _Writer:
    """Puts members one after the other, in large writes."""

    def __init__(self, objects: Reader, sink: Sink, progress: Progress | None) -> None:
        self._objects, self._sink, self._progress = objects, sink, progress
        self._parts: list[bytes] = []
        self._waiting = 0
        self._written = 0
        self.report = ArchiveWriteReport()

    def _put(self, data: bytes) -> None:
        self._written += len(data)
        if len(data) >= MIB:
            self._flush()
            self._sink.write(data)
            return
        self._parts.append(data)
        self._waiting += len(data)
        if self._waiting >= MIB:
            self._flush()

    def _flush(self) -> None:
        if self._parts:
            self._sink.write(b"".join(self._parts))
            self._parts, self._waiting = [], 0

    def _pad(self, to: int = _BLOCK) -> None:
        if rest := -self._written % to:
            self._put(_ZEROS[:rest])

    def member(self, name: bytes, entry: Entry) -> None:
        """One member with its data."""
        extents = _extents(self._objects, entry) if entry.kind is Kind.FILE and entry.size > PIECE_MAX else None
        if extents is None:
            size = entry.size if entry.kind is Kind.FILE else 0
            self._put(encode_headers(name, entry, size, load_xattrs(self._objects, entry)))
        else:
            table = _sparse_map(extents, entry.size)
            size = len(table) + sum(end - start for start, end in extents)
            xattrs = load_xattrs(self._objects, entry)
            self._put(encode_headers(name, entry, size, xattrs, real_size=entry.size))
            self._put(table)
        if entry.kind is Kind.FILE and entry.size:
            self._data(entry, dense=extents is None)
        if entry.kind is not Kind.DIRECTORY:
            self.report.files += 1
        if self._progress is not None:
            self._progress(self.report)

    def _data(self, entry: Entry, *, dense: bool) -> None:
        for offset, data in open_content(self._objects, entry).parts(PIECE_MAX):
            if data is not None:
                self._put(data)
            elif dense:  # otherwise the hole stands in the map
                self._zeros(offset.stop - offset.start)
            self.report.size += offset.stop - offset.start
            if self._progress is not None:
                self._progress(self.report)
        self._pad()

    def _zeros(self, count: int) -> None:
        while count:
            part = min(count, MIB)
            self._put(_ZEROS[:part])
            count -= part

    def end(self) -> None:
        """The end marker, up to a full record as all tars write it."""
        self._put(_ZEROS[: 2 * _BLOCK])
        self._pad(_RECORD)
        self._flush()


def _extents(objects: Reader, entry: Entry) -> list[tuple[int, int]] | None:
    """Start and end of the ranges of a file that have data; None when there are no holes, or more than anybody should remember."""
    location = objects.locate(entry.id)
    if location is None or location.kind is not RecordKind.MANIFEST:
        return None
    found: list[tuple[int, int]] = []
    has_holes = False
    for offset, id, length in pieces(objects, load_manifest(objects, entry.id)):
        if id is None:
            has_holes = True
        elif found and found[-1][1] == offset:
            found[-1] = (found[-1][0], offset + length)
        else:
            found.append((offset, offset + length))
            if len(found) > _EXTENTS_MAX:
                return None
    return found if has_holes else None


def _sparse_map(extents: list[tuple[int, int]], size: int) -> bytes:
    """The map that stands before the data in GNU sparse 1.0. Its last row ends at the file's end, or GNU tar makes it shorter."""
    rows = [(start, end - start) for start, end in extents]
    if not extents or extents[-1][1] != size:
        rows.append((size, 0))
    text = b"%d\n" % len(rows) + b"".join(b"%d\n%d\n" % row for row in rows)
    return text + bytes(-len(text) % _BLOCK)


def encode_headers(
    name: bytes, entry: Entry, size: int, xattrs: dict[bytes, bytes], *, real_size: int | None = None
) -> bytes:
    """Everything that stands before the data of a member: extended headers where they are needed, and its header.

    `size` is what follows, in bytes; `real_size` marks a GNU sparse 1.0 file of that many bytes.
    """
    records: list[tuple[bytes, bytes]] = []
    parts: list[bytes] = []
    target = entry.target or b""
    short = _split_name(name)
    if short is None:
        if _is_text(name):
            records.append((b"path", name))
        else:
            parts.append(_extension(_LONG_NAME, name + b"\0"))
        short = name[:_NAME], b""
    if len(target) > _NAME:
        if _is_text(target):
            records.append((b"linkpath", target))
        else:
            parts.append(_extension(_LONG_TARGET, target + b"\0"))
    seconds, ns = divmod(entry.mtime_ns, _NS)
    if ns or not 0 <= seconds < _OCTAL_11:
        records.append((b"mtime", _decimal(entry.mtime_ns)))
    for keyword, number in ((b"uid", entry.uid), (b"gid", entry.gid)):
        if number >= _OCTAL_7:
            records.append((keyword, b"%d" % number))
    if size >= _OCTAL_11:
        records.append((b"size", b"%d" % size))
    if real_size is not None:
        records += _sparse_records(name, real_size)
    for key, value in sorted(xattrs.items()):
        # GNU tar's escapes: '=' ends a keyword
        records.append((b"SCHILY.xattr." + key.replace(b"%", b"%25").replace(b"=", b"%3D"), value))
    if records:
        parts.append(_extension(_PAX, b"".join(_record(*record) for record in records)))
    seconds = seconds if 0 <= seconds < _OCTAL_11 else 0
    parts.append(_header(short, _TYPES[entry.kind], entry.mode, entry.uid, entry.gid, size, seconds, target[:_NAME]))
    return b"".join(parts)


def _sparse_records(name: bytes, real_size: int) -> Iterator[tuple[bytes, bytes]]:
    yield b"GNU.sparse.major", b"1"
    yield b"GNU.sparse.minor", b"0"
    if _is_text(name):
        yield b"GNU.sparse.name", name
    yield b"GNU.sparse.realsize", b"%d" % real_size


def _split_name(name: bytes) -> tuple[bytes, bytes] | None:
    """The name and prefix fields that hold a name, or None when it is too long for them."""
    if len(name) <= _NAME:
        return name, b""
    at = name.rfind(b"/", 0, min(_PREFIX + 1, len(name) - 1))
    if at <= 0 or not 0 < len(name) - at - 1 <= _NAME:
        return None
    return name[at + 1 :], name[:at]


def _is_text(name: bytes) -> bool:
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _decimal(time_ns: int) -> bytes:
    """Seconds with as many digits of a fraction as it takes."""
    seconds, ns = divmod(abs(time_ns), _NS)
    text = b"%d.%09d" % (seconds, ns) if ns else b"%d" % seconds
    return (b"-" if time_ns < 0 else b"") + (text.rstrip(b"0") if ns else text)


def _record(keyword: bytes, value: bytes) -> bytes:
    """A record of a pax header; its length counts itself."""
    rest = len(keyword) + len(value) + 3
    length = rest + len(b"%d" % rest)
    length = rest + len(b"%d" % length)
    return b"%d %s=%s\n" % (length, keyword, value)


def _extension(kind: bytes, data: bytes) -> bytes:
    header = _header((_EXTENSION_NAMES[kind], b""), kind, 0o644, 0, 0, len(data), 0, b"")
    return header + data + bytes(-len(data) % _BLOCK)


def _header(
    name: tuple[bytes, bytes], kind: bytes, mode: int, uid: int, gid: int, size: int, mtime: int, target: bytes
) -> bytes:
    block = _HEADER.pack(
        name[0],
        b"%07o" % mode,
        b"%07o" % (uid if uid < _OCTAL_7 else 0),
        b"%07o" % (gid if gid < _OCTAL_7 else 0),
        b"%011o" % (size if size < _OCTAL_11 else 0),
        b"%011o" % mtime,
        b"        ",
        kind,
        target,
        _MAGIC,
        b"",
        b"",
        b"0000000",
        b"0000000",
        name[1],
    )
    return b"%b%06o\0 %b" % (block[:148], sum(block), block[156:])
