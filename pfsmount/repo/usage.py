"""How much the store holds for trees: each stored object counted once.

What was counted is remembered by its place in the segments (`objects.marks`), not by ids. A directory or node that was counted is not entered again: the cost is one look-up for each
*different* file, whatever the number of versions.

Stored bytes are those of the segments: data rounded up to 4 KiB, other records with their header, padded to 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from pfsmount.errors import NotFound
from pfsmount.ids import ObjectId, RepoPath
from pfsmount.objects.index import Table
from pfsmount.objects.marks import Marks
from pfsmount.objects.reading import Reader
from pfsmount.objects.segment import Location, RecordKind
from pfsmount.objects.store import ObjectStore
from pfsmount.repo.commit import decode_commit, parse_root
from pfsmount.tree.directory import EMPTY_DIRECTORY, entries
from pfsmount.tree.entry import EMPTY_FILE_ID, FIXED, Entry, Kind
from pfsmount.tree.manifest import Manifest
from pfsmount.tree.manifest import pieces as pieces_of
from pfsmount.tree.node import Node

_XATTRS_BY_ID = 2
_ID_BYTES = 32

Progress = Callable[[int], None]
"""Called with the number of objects counted so far."""


class Reach:
    """Goes through everything that trees and commits are made of. `take` says of each object whether it is new, and is to be entered."""

    def __init__(self, objects: ObjectStore, take: Callable[[Location], bool]) -> None:
        self._objects = objects
        self._take = take

    def commit(self, id: ObjectId) -> None:
        """A commit with its tree and its job's record, without its parents. Raises NotFound, Corrupt."""
        if self._takes(id):
            commit = decode_commit(self._objects.get(id))
            self.tree(commit.tree)
            record = (commit.provenance or {}).get("record")
            if record is not None:
                self.tree(parse_root(record))

    def tree(self, entry: Entry) -> None:
        """A file, symlink or directory with all below it. Raises NotFound, Corrupt."""
        below = self.own(entry)
        while below:
            self._directory(below.pop(), below)

    def own(self, entry: Entry) -> list[ObjectId]:
        """What a file or directory has for itself; the directories in it are returned, not entered. Raises NotFound, Corrupt."""
        below: list[ObjectId] = []
        if entry.xattrs_id is not None:
            self._takes(entry.xattrs_id)
        if entry.is_directory:
            self._directory(entry.id, below)
        elif entry.kind is Kind.FILE and entry.id != EMPTY_FILE_ID:
            self._files([entry.id])
        return below

    def _takes(self, id: ObjectId) -> bool:
        place = self._objects.locate(id)
        if place is None:
            raise _missing(id)
        return self._take(place)

    def _directory(self, directory: ObjectId, below: list[ObjectId]) -> None:
        """The nodes and files of one directory; the directories in it go to `below`."""
        stack = [directory]
        while stack:
            id = stack.pop()
            if id == EMPTY_DIRECTORY.id or not self._takes(id):
                continue
            node = Node(self._objects.get(id))
            if node.level:
                stack.extend(node.child(i).id for i in range(len(node)))
            else:
                self._leaf(node, below)

    def _leaf(self, node: Node, below: list[ObjectId]) -> None:
        files = []
        for i in range(len(node)):
            _, fixed, extra = node.leaf_item(i)
            kind, flags, *_, id = FIXED.unpack(fixed)
            if kind == Kind.DIRECTORY:
                below.append(id)
            elif kind == Kind.FILE and id != EMPTY_FILE_ID:
                files.append(id)
            if flags & _XATTRS_BY_ID:
                files.append(ObjectId(extra[-_ID_BYTES:]))
        self._files(files)

    def _files(self, ids: list[ObjectId]) -> None:
        """Files, pieces and xattrs objects: all looked up in one transaction."""
        large = []
        with self._objects.index.read() as txn:
            for id in ids:
                raw = txn.get(Table.OBJECTS, id)
                if raw is None:
                    raise _missing(id)
                place = Location.decode(raw)
                if self._take(place) and place.kind is RecordKind.MANIFEST:
                    large.append(id)
        for id in large:
            self._manifest(id)

    def _manifest(self, id: ObjectId) -> None:
        manifest = Manifest.decode(self._objects.get(id))
        if manifest.level:
            for child in manifest.ids:
                if self._takes(child):
                    self._manifest(child)
        else:
            self._files([piece for _, piece, _ in pieces_of(self._objects, manifest) if piece is not None])


def _missing(id: ObjectId) -> NotFound:
    return NotFound(f"the object {id.hex()} is not in the store")


class TreeUsage(NamedTuple):
    """One line of `du`: a file, or a directory with all below it."""

    path: RepoPath
    entry: Entry
    stored: int | None
    """Bytes of the store for it that were not counted before; None when that was not asked for."""


def directories(objects: Reader, path: RepoPath, entry: Entry, depth: int | None) -> Iterator[TreeUsage]:
    """The directories down to `depth` (None: all), each after those in it, as `du`; a file is itself. Costs listing them."""
    if entry.is_directory and depth != 0:
        for name, child in entries(objects, entry.id):
            if child.is_directory:
                yield from directories(objects, (*path, name), child, None if depth is None else depth - 1)
    yield TreeUsage(path, entry, None)


class TreeMeter:
    """Measures trees one after the other; what they share counts where it comes first."""

    def __init__(self, objects: ObjectStore, progress: Progress | None = None) -> None:
        self._objects = objects
        self._marks = Marks(objects)
        self._progress = progress
        self._reach = Reach(objects, self._take)
        self._count = 0
        self.stored = 0
        """Bytes counted so far."""

    def _take(self, place: Location) -> bool:
        if not self._marks.add(place):
            return False
        self.stored += self._marks.stored_size(place)
        self._count += 1
        if self._progress is not None and not self._count % 1024:
            self._progress(self._count)
        return True

    def measure(self, path: RepoPath, entry: Entry, depth: int | None) -> Iterator[TreeUsage]:
        """The directories down to `depth` (None: all), each after those in it, as `du`. Raises NotFound, Corrupt."""
        before = self.stored
        if not entry.is_directory or depth == 0:
            self._reach.tree(entry)
        else:
            self._reach.own(entry)
            for name, child in entries(self._objects, entry.id):
                if child.is_directory:
                    yield from self.measure((*path, name), child, None if depth is None else depth - 1)
        yield TreeUsage(path, entry, self.stored - before)
