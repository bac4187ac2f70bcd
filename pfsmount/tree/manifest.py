"""Manifests: which pieces and holes a large file is made of.

A file of at most 4 MiB without holes is one piece. Any other is a manifest, a tree of nodes over its pieces and holes:

| magic `PM`, version u8 (1), level u8 | count u32 | size covered u64 | file id 32 (root; else zeros) | entries: id 32, length u64 |

A leaf's entry is a piece, or a hole (id of zeros). A node ends after an id whose first byte is zero (not a hole's), after 4096 entries, or with the
file. Tree entries hold the file's id only; the index maps it to the root of a manifest.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pfsmount.config import MIB
from pfsmount.errors import Corrupt, NotFound
from pfsmount.ids import ObjectId
from pfsmount.objects.batch import Batch
from pfsmount.objects.reading import Reader, get_as
from pfsmount.objects.segment import RecordKind
from pfsmount.tree.entry import SIZE_MAX

PIECE_MAX = 4 * MIB
HOLE_MIN = 64 * 1024
_HEADER = struct.Struct("<2sBBIQ32s")
_MAGIC = b"PM"
_VERSION = 1
_ENTRY = struct.Struct("<32sQ")
HOLE = ObjectId(bytes(32))
"""Stands in a leaf where a piece would."""
_NODE_ENTRIES_MAX = 4096
_LEVEL_MAX = 8


@dataclass(frozen=True, slots=True)
class Manifest:
    """A decoded manifest node."""

    level: int
    size: int
    file_id: ObjectId
    ids: tuple[ObjectId, ...]
    starts: tuple[int, ...]
    """Where each entry starts, relative to the node; one more at the end."""

    @classmethod
    def decode(cls, raw: bytes) -> Manifest:
        """Raises Corrupt."""
        try:
            magic, version, level, count, size, file_id = _HEADER.unpack_from(raw)
            rows = list(_ENTRY.iter_unpack(raw[_HEADER.size :]))
            starts = [0]
            for _, length in rows:
                starts.append(starts[-1] + length)
            if magic != _MAGIC or version != _VERSION or level > _LEVEL_MAX or len(rows) != count:
                raise ValueError
            if starts[-1] != size or size > SIZE_MAX or any(length == 0 for _, length in rows):
                raise ValueError
            if not level and any(length > PIECE_MAX and id != HOLE for id, length in rows):
                raise ValueError
        except (struct.error, ValueError):
            raise Corrupt("the manifest of a large file is damaged") from None
        return cls(level, size, ObjectId(file_id), tuple(ObjectId(id) for id, _ in rows), tuple(starts))

    def index_at(self, offset: int) -> int:
        """Which entry holds a byte."""
        return bisect_right(self.starts, offset) - 1

    def length(self, i: int) -> int:
        """Bytes of the i-th entry."""
        return self.starts[i + 1] - self.starts[i]


def encode_manifest(level: int, file_id: ObjectId, rows: list[tuple[ObjectId, int]]) -> bytes:
    size = sum(length for _, length in rows)
    header = _HEADER.pack(_MAGIC, _VERSION, level, len(rows), size, file_id)
    return header + b"".join(_ENTRY.pack(id, length) for id, length in rows)


def write_manifest(batch: Batch, file_id: ObjectId, rows: list[tuple[ObjectId, int]]) -> ObjectId:
    """Write all levels; the root names the file."""
    level = 0
    while True:
        groups = list(_split_rows(rows))
        if len(groups) == 1:
            return batch.add_object(RecordKind.MANIFEST, encode_manifest(level, file_id, rows))
        rows = [
            (
                batch.add_object(RecordKind.MANIFEST, encode_manifest(level, HOLE, group)),
                sum(length for _, length in group),
            )
            for group in groups
        ]
        level += 1


def _split_rows(rows: list[tuple[ObjectId, int]]) -> Iterator[list[tuple[ObjectId, int]]]:
    group: list[tuple[ObjectId, int]] = []
    for row in rows:
        group.append(row)
        if (row[0][0] == 0 and row[0] != HOLE) or len(group) >= _NODE_ENTRIES_MAX:
            yield group
            group = []
    if group:
        yield group


def reuse_file(batch: Batch, file_id: ObjectId) -> bool:
    """Whether all of a file with a manifest is there, and is kept from gc until the batch ends. Raises Corrupt."""
    try:
        manifest = load_manifest(batch, file_id)
        return all(batch.reuse(sorted(ids)) >= ids for ids in _named(batch, manifest))
    except NotFound:
        return False


def _named(objects: Reader, manifest: Manifest) -> Iterator[set[ObjectId]]:
    """What the nodes of a manifest name, holes left out."""
    yield set(manifest.ids) - {HOLE}
    if manifest.level:
        for i in range(len(manifest.ids)):
            yield from _named(objects, load_child(objects, manifest, i))


def load_child(objects: Reader, manifest: Manifest, i: int) -> Manifest:
    """The i-th node below an inner one. Raises NotFound, Corrupt (also when it does not fit its place: no cycles, no gaps)."""
    child = load_manifest(objects, manifest.ids[i])
    if child.level != manifest.level - 1 or child.size != manifest.length(i):
        raise Corrupt("the manifest of a large file is damaged: a node does not fit where it stands")
    return child


def load_manifest(objects: Reader, id: ObjectId) -> Manifest:
    """Read, verify and decode a manifest node, by its own id or (a root) by the file's. Raises NotFound, Corrupt."""
    manifest = objects.decoded.get(id)
    if manifest is None:
        manifest = Manifest.decode(get_as(objects, id, RecordKind.MANIFEST))
        objects.decoded.put(id, manifest)
    if not isinstance(manifest, Manifest):
        raise Corrupt(f"{id.hex()} is no manifest, where one should be")
    return manifest


class Piece(NamedTuple):
    """A piece of a file, or a hole (no id), and where it is, in bytes."""

    start: int
    id: ObjectId | None
    length: int


def pieces(objects: Reader, manifest: Manifest, start: int = 0, *, since: int = 0) -> Iterator[Piece]:
    """All pieces in order, from the one on that holds the byte `since`; `start` is where the manifest begins. Raises NotFound, Corrupt."""
    first = manifest.index_at(since - start) if since > start else 0
    for i in range(first, len(manifest.ids)):
        offset = start + manifest.starts[i]
        if manifest.level:
            yield from pieces(objects, load_child(objects, manifest, i), offset, since=since)
        else:
            yield _piece(manifest, i, start)


def piece_at(objects: Reader, manifest: Manifest, offset: int) -> Piece | None:
    """The piece that holds a byte; None outside of the file. Raises NotFound, Corrupt."""
    if not 0 <= offset < manifest.size:
        return None
    start = 0
    i = manifest.index_at(offset)
    while manifest.level:
        start += manifest.starts[i]
        manifest = load_child(objects, manifest, i)
        i = manifest.index_at(offset - start)
    return _piece(manifest, i, start)


def _piece(leaf: Manifest, i: int, start: int) -> Piece:
    id = leaf.ids[i]
    return Piece(start + leaf.starts[i], None if id == HOLE else id, leaf.length(i))
