"""Checks tree nodes, manifests and extended attributes, one object at a time, and what they say of each other.

What a parent says of a node (content id, counts, sizes, last name) is compared with the node itself. Children are stored before their
parents, so a bounded memory of the last nodes answers nearly always; else the child is read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from pfsmount.errors import Corrupt, PfsError
from pfsmount.ids import NAME_MAX, ObjectId
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.invariants import Damage, Finding, Findings, Invariant
from pfsmount.objects.object_look import FILE_KINDS, FileReferences, Reference, References
from pfsmount.objects.segment import RecordKind
from pfsmount.objects.store import ObjectStore
from pfsmount.tree.boundaries import NODE_ENTRIES_MAX, ends_node, leaf_ends, rank
from pfsmount.tree.directory import EMPTY_DIRECTORY
from pfsmount.tree.entry import EMPTY_FILE_ID, FIXED, XATTRS_INLINE_MAX, Entry, Kind
from pfsmount.tree.manifest import HOLE, PIECE_MAX, Manifest
from pfsmount.tree.node import Child, Node, NodeDraft
from pfsmount.tree.xattrs import decode_xattrs

_REMEMBERED = 150_000
_NS = 1_000_000_000
_FILE_PARTS = struct.Struct("<20xIQ32s")
"""Nanoseconds, size and id in the fixed part of an entry."""
_MODE_HIGH = 3
"""Where the upper byte of the mode is."""
_PLAIN_KIND = bytes((Kind.FILE,))
_PIECE = frozenset({RecordKind.PIECE})
_NODE = frozenset({RecordKind.NODE})
_MANIFEST = frozenset({RecordKind.MANIFEST})
_XATTRS = frozenset({RecordKind.XATTRS})
COMMIT = frozenset({RecordKind.COMMIT})


class _Summary(NamedTuple):
    """What a node is, for those that refer to it."""

    content_id: ObjectId
    entries: int
    files: int
    size: int
    level: int
    items: int
    first: bytes
    last: bytes


class TreeCheck:
    """Looks into nodes, manifests and extended attributes."""

    def __init__(self, objects: ObjectStore, findings: Findings, damage: Damage) -> None:
        self._objects = objects
        self._findings, self._damage = findings, damage
        self._summaries: dict[bytes, _Summary | None] = {}
        self._manifests: dict[bytes, tuple[int, int]] = {}

    def _found(self, invariant: Invariant, id: ObjectId, text: str) -> None:
        self._findings.add(Finding.of(invariant, f"{text}: {id.hex()}", object=id))
        if invariant is not Invariant.NODE_BOUNDARIES:
            self._damage.objects.setdefault(id, invariant)

    # Nodes

    def node(self, id: ObjectId, payload: bytes) -> References:
        """Check a tree node; what it refers to."""
        try:
            node = Node(payload)
            references = self._inner(id, node) if node.level else _plain_files(node) or self._leaf(id, node)
        except Corrupt as error:
            self._found(Invariant.NODE_FORMAT, id, error.message)
            self._remember(id, None)
            return []
        self._remember(id, summarize(node))
        self._boundaries(id, node)
        return references

    def _remember(self, id: ObjectId, summary: _Summary | None) -> None:
        if len(self._summaries) >= _REMEMBERED:
            self._summaries.clear()
        self._summaries[id[:16]] = summary

    def _leaf(self, id: ObjectId, node: Node) -> list[Reference]:
        count = len(node)
        if not count:
            return []
        references = []
        fixed, _, ends = node.stretch(0, count)
        start = 0
        for i, (kind, flags, mode, _, _, _, ns, size, target) in enumerate(FIXED.iter_unpack(fixed)):
            if mode > 0o7777 or ns >= _NS or len(node.names[i]) > NAME_MAX:
                raise Corrupt("an entry of a directory has impossible attributes")
            if kind == Kind.FILE and not flags:
                if ends[i] - start != 1 + len(node.names[i]):
                    raise Corrupt("an entry of a directory has bytes that mean nothing")
                if target != EMPTY_FILE_ID:
                    references.append(Reference(target, FILE_KINDS, size))
            else:
                references += self._entry(id, node.entry(i))
            start = ends[i]
        return references

    def entry_references(self, source: ObjectId, entry: Entry) -> list[Reference]:
        """Check what is said of a file, symlink or directory; what it refers to."""
        return list(self._entry(source, entry))

    def _entry(self, source: ObjectId, entry: Entry) -> Iterator[Reference]:
        if entry.xattrs_id is not None:
            yield Reference(entry.xattrs_id, _XATTRS)
        elif entry.xattrs:
            decode_xattrs(entry.xattrs)
            if len(entry.xattrs) > XATTRS_INLINE_MAX:
                self._found(Invariant.XATTRS_FORMAT, source, "attributes that are too long stand in an entry")
        if entry.kind is Kind.FILE:
            if entry.id != EMPTY_FILE_ID:
                yield Reference(entry.id, FILE_KINDS, entry.size)
        elif entry.kind is Kind.SYMLINK:
            target = entry.target or b""
            if hash_bytes(target) != entry.id or len(target) != entry.size:
                self._found(Invariant.NODE_FORMAT, source, "a symlink's id is not that of its target")
        elif entry.id != EMPTY_DIRECTORY.id:
            self._directory(source, entry)
            yield Reference(entry.id, _NODE)

    def _directory(self, source: ObjectId, entry: Entry) -> None:
        root = self._summary(entry.id)
        if root is None:
            return
        if (root.content_id, root.files, root.size) != (entry.content_id, entry.files, entry.size):
            self._found(Invariant.NODE_SUMS, source, f"what it says of the directory {entry.id.hex()[:16]} is not so")
        if root.level and root.items < 2:
            self._found(Invariant.NODE_BOUNDARIES, entry.id, "the root of a directory is higher than it need be")

    def _inner(self, id: ObjectId, node: Node) -> list[Reference]:
        before = b""
        for i in range(len(node)):
            child = node.child(i)
            found = self._summary(child.id)
            if found is None:
                continue
            if not _is(found, child, node.level - 1):
                self._found(Invariant.NODE_SUMS, id, f"what a node says of its child {child.id.hex()[:16]} is not so")
            elif before and found.first <= before:
                self._found(Invariant.NODE_FORMAT, id, "the children of a node overlap")
            elif i + 1 < len(node) and not ends_node(child.name, found.level, found.items):
                self._found(Invariant.NODE_BOUNDARIES, id, "a child of a node ends where it should not")
            before = child.name
        return [Reference(node.child(i).id, _NODE) for i in range(len(node))]

    def _boundaries(self, id: ObjectId, node: Node) -> None:
        inside = node.names[:-1]
        early = any(rank(name) > node.level for name in inside) if node.level else 1 in leaf_ends(inside)
        if early or len(node) > NODE_ENTRIES_MAX:
            self._found(Invariant.NODE_BOUNDARIES, id, "a node goes on behind a name that ends it")

    def _summary(self, id: ObjectId) -> _Summary | None:
        """What a node is; None for one that cannot be read, which is found elsewhere."""
        key = id[:16]
        if key not in self._summaries:
            try:
                self._remember(id, summarize(Node(self._objects.get(id))))
            except (PfsError, OSError):
                self._remember(id, None)
        return self._summaries[key]

    # Manifests and attributes

    def manifest(self, id: ObjectId, payload: bytes) -> list[Reference]:
        """Check a manifest node; what it refers to."""
        try:
            manifest = Manifest.decode(payload)
        except Corrupt as error:
            self._found(Invariant.MANIFEST_FORMAT, id, error.message)
            return []
        if len(self._manifests) >= _REMEMBERED:
            self._manifests.clear()
        self._manifests[id[:16]] = (manifest.level, manifest.size)
        lengths = [manifest.length(i) for i in range(len(manifest.ids))]
        if manifest.level:
            self._children(id, manifest, lengths)
            return [Reference(child, _MANIFEST) for child in manifest.ids]
        if any(length > PIECE_MAX for child, length in zip(manifest.ids, lengths, strict=True) if child != HOLE):
            self._found(Invariant.MANIFEST_FORMAT, id, "a piece of a file is too long")
        return [
            Reference(child, _PIECE, length)
            for child, length in zip(manifest.ids, lengths, strict=True)
            if child != HOLE
        ]

    def _children(self, id: ObjectId, manifest: Manifest, lengths: Sequence[int]) -> None:
        for child, length in zip(manifest.ids, lengths, strict=True):
            found = self._manifests.get(child[:16])
            if found is None:
                try:
                    node = Manifest.decode(self._objects.get(child))
                except (PfsError, OSError):
                    continue
                found = self._manifests[child[:16]] = (node.level, node.size)
            if found != (manifest.level - 1, length):
                self._found(Invariant.MANIFEST_FORMAT, id, "a part of a manifest does not fit its place")

    def xattrs(self, id: ObjectId, payload: bytes) -> list[Reference]:
        """Check extended attributes."""
        try:
            decode_xattrs(payload)
        except Corrupt as error:
            self._found(Invariant.XATTRS_FORMAT, id, error.message)
        return []


def _plain_files(node: Node) -> FileReferences | None:
    """What a leaf of nothing but plain files with content refers to, checked in columns; None for any other, and for one that is not right."""
    count = len(node)
    if not count:
        return None
    fixed, _, ends = node.stretch(0, count)
    width = FIXED.size
    if fixed[::width] != _PLAIN_KIND * count or fixed[1::width] != bytes(count) or bytes(EMPTY_FILE_ID) in fixed:
        return None
    lengths = list(map(len, node.names))
    if list(accumulate([length + 1 for length in lengths])) != list(ends) or max(lengths) > NAME_MAX:
        return None
    nanoseconds, sizes, ids = zip(*_FILE_PARTS.iter_unpack(fixed), strict=True)
    if max(fixed[_MODE_HIGH::width]) > 0o7777 >> 8 or max(nanoseconds) >= _NS:
        return None
    return FileReferences(ids, sizes)


def summarize(node: Node) -> _Summary:
    """What a node is, for those that refer to it."""
    count = len(node)
    draft = NodeDraft(node.level)
    if count:
        draft.extend(node, 0, count)
    first, last = (node.names[0], node.names[-1]) if count else (b"", b"")
    return _Summary(*draft.summary(), node.level, count, first, last)


def _is(found: _Summary, child: Child, level: int) -> bool:
    return (found.content_id, found.entries, found.files, found.size, found.last, found.level) == (
        child.content_id,
        child.entries,
        child.files,
        child.bytes_below,
        child.name,
        level,
    )
