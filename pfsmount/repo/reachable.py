"""Everything that commits and trees are made of: what gc keeps and fsck looks for.

    commit → parents, tree, the job's record → nodes → entries → files: one piece, or manifest → pieces; large xattrs

What was met is remembered by its place (`objects.marks`), so nothing is entered twice, whatever the number of versions that share it, and memory does not
grow with the number of objects. Places are looked up many at a time and nodes are read in the order in which they lie in their segments.
Something missing or damaged does not end the pass: it is told to `on_missing`, and the rest is gone through.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import NamedTuple, cast

from pfsmount.errors import Corrupt, NotFound
from pfsmount.ids import ID_BYTES, ObjectId
from pfsmount.objects.index import Table
from pfsmount.objects.marks import Marks
from pfsmount.objects.reading import read_object
from pfsmount.objects.segment import Location, RecordKind
from pfsmount.objects.store import ObjectStore
from pfsmount.repo.commit import Commit, decode_commit, parse_root
from pfsmount.tree.directory import EMPTY_DIRECTORY
from pfsmount.tree.entry import EMPTY_FILE_ID, FIXED, Entry, Kind
from pfsmount.tree.manifest import HOLE, Manifest
from pfsmount.tree.node import Node

_AT_ONCE = 512
"""Objects that are looked up and read together."""
_FILES_AT_ONCE = 4096
_INNER_WIDTH = 88
_HEADER = struct.Struct("<2sBBI")
_WIDTH = FIXED.size
_ID_AT = _WIDTH - ID_BYTES
_DIRECTORY = int(Kind.DIRECTORY)
_FILE = int(Kind.FILE)


class Missing(NamedTuple):
    """An object that something reachable names, and that cannot be read."""

    id: ObjectId
    kind: RecordKind
    """What it is by where it is named; PIECE also for a file that may have a manifest."""
    parent: ObjectId | None
    """The object that names it; None for a root."""
    commit: ObjectId | None
    """The commit in whose tree, record or history it was first met; None for a root that is no commit."""
    damage: str = ""
    """What is wrong with it when it is there; empty when it is not in the index."""


class _Step(NamedTuple):
    """An object to go to."""

    id: ObjectId
    kind: RecordKind
    parent: ObjectId | None
    commit: ObjectId | None


class _Contents(NamedTuple):
    """Files, pieces or xattrs that one object names."""

    ids: list[ObjectId]
    kind: RecordKind
    parent: ObjectId | None
    commit: ObjectId | None


class Reachable:
    """Marks what can be reached. May be used for some roots, and later for more."""

    def __init__(
        self,
        objects: ObjectStore,
        marks: Marks,
        on_missing: Callable[[Missing], None],
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """`progress` is called with the number of objects met so far. An object that is in `marks` already is not entered."""
        self._objects, self._marks = objects, marks
        self._on_missing, self._progress = on_missing, progress
        self._steps: list[_Step] = []
        self._files: list[_Contents] = []
        self._waiting = 0
        """Ids in `_files`."""
        self.count = 0
        """Objects met so far."""
        self.size = 0
        """Their bytes."""

    def commits(self, ids: Iterable[ObjectId]) -> None:
        """Mark commits with their whole history."""
        for id in ids:
            self._steps.append(_Step(id, RecordKind.COMMIT, None, id))
            if len(self._steps) >= _AT_ONCE:
                self._drain()
        self._drain()

    def entries(self, entries: Iterable[Entry]) -> None:
        """Mark files, symlinks and directories with everything below."""
        for entry in entries:
            self._entry(entry, None, None)
            if len(self._steps) >= _AT_ONCE:
                self._drain()
        self._drain()

    def files(self, ids: Iterable[ObjectId]) -> None:
        """Mark the contents of files."""
        self._add_files(_Contents([id for id in ids if id != EMPTY_FILE_ID], RecordKind.PIECE, None, None))
        self._drain()

    def _entry(self, entry: Entry, parent: ObjectId | None, commit: ObjectId | None) -> None:
        if entry.xattrs_id is not None:
            self._add_files(_Contents([entry.xattrs_id], RecordKind.XATTRS, parent, commit))
        if entry.kind is Kind.DIRECTORY:
            if entry.id != EMPTY_DIRECTORY.id:
                self._steps.append(_Step(entry.id, RecordKind.NODE, parent, commit))
        elif entry.kind is Kind.FILE and entry.id != EMPTY_FILE_ID:
            self._add_files(_Contents([entry.id], RecordKind.PIECE, parent, commit))

    def _add_files(self, contents: _Contents) -> None:
        self._files.append(contents)
        self._waiting += len(contents.ids)

    def _drain(self) -> None:
        """Go on until nothing is left. The last found goes first, so that the list stays short."""
        while self._steps or self._files:
            if self._waiting >= _FILES_AT_ONCE or not self._steps:
                files, self._files, self._waiting = self._files, [], 0
                self._look_at_files(files)
            else:
                steps = self._steps[-_AT_ONCE:]
                del self._steps[-_AT_ONCE:]
                for step, place in sorted(self._new(steps), key=lambda found: found[1][:2]):
                    self._enter(step, place)
            if self._progress is not None:
                self._progress(self.count)

    def _new(self, steps: list[_Step]) -> Iterator[tuple[_Step, Location]]:
        """Those that were not met before, with their places."""
        by_id = {step.id: step for step in steps}
        for id, raw in self._look_up(by_id).items():
            try:
                place = Location.decode(raw)
                new = self._marks.add(place)
            except Corrupt as error:
                self._on_missing(Missing(*by_id[id], f"the index is damaged: {error}"))
                continue
            if new:
                self.count += 1
                self.size += place.length
                yield by_id[id], place

    def _look_up(self, by_id: Mapping[ObjectId, _Step]) -> dict[ObjectId, bytes]:
        """Where they are; those that are not there are told."""
        with self._objects.index.read() as txn:
            found = cast("dict[ObjectId, bytes]", txn.get_many(Table.OBJECTS, sorted(by_id)))
        if len(found) < len(by_id):
            for id, step in by_id.items():
                if id not in found:
                    self._on_missing(Missing(*step))
        return found

    def _look_at_files(self, files: list[_Contents]) -> None:
        """Most are one piece: nothing is made for each of them but its place."""
        every = sorted(set(chain.from_iterable(contents.ids for contents in files)))
        for start in range(0, len(every), _FILES_AT_ONCE):
            ids = every[start : start + _FILES_AT_ONCE]
            with self._objects.index.read() as txn:
                found = txn.get_many(Table.OBJECTS, ids)
            try:
                new, size, large = self._marks.add_pieces(found)
            except Corrupt:
                new, size, large = 0, 0, list(found)
            self.count += new
            self.size += size
            if large or len(found) < len(ids):
                wanted = set(large).union(id for id in ids if id not in found)
                self._look_closely(files, cast("set[ObjectId]", wanted))

    def _look_closely(self, files: list[_Contents], wanted: set[ObjectId]) -> None:
        """Those that are no simple piece, each with where it was named first."""
        steps: dict[ObjectId, _Step] = {}
        for ids, kind, parent, commit in reversed(files):
            steps.update((id, _Step(id, kind, parent, commit)) for id in ids if id in wanted)
        for step, place in self._new(list(steps.values())):
            self._enter(step, place)

    def _enter(self, step: _Step, place: Location) -> None:
        """What an object names comes next."""
        try:
            if place.kind is not step.kind and not (
                step.kind is RecordKind.PIECE and place.kind is RecordKind.MANIFEST
            ):
                raise Corrupt(f"it is a {place.kind.name.lower()} in the index")
            raw = read_object(self._objects, step.id, place)
            if place.kind is RecordKind.NODE:
                self._node(step, raw)
            elif place.kind is RecordKind.COMMIT:
                self._commit(step, decode_commit(raw))
            elif place.kind is RecordKind.MANIFEST:
                self._manifest(step, Manifest.decode(raw))
        except (Corrupt, NotFound) as error:
            self._on_missing(Missing(*step, error.message))

    def _commit(self, step: _Step, commit: Commit) -> None:
        for parent in commit.parents:
            self._steps.append(_Step(parent, RecordKind.COMMIT, step.id, step.id))
        self._entry(commit.tree, step.id, step.id)
        record = (commit.provenance or {}).get("record")
        if record is not None:
            try:
                self._entry(parse_root(record), step.id, step.id)
            except (KeyError, TypeError, ValueError):
                raise Corrupt("a commit is damaged: its job's record") from None

    def _node(self, step: _Step, raw: bytes) -> None:
        """The children of an inner node, or the contents of the entries in a leaf.

        The bytes are those that the id names, so the usual leaf is cut up without a check of every name: 15 instead of 60 µs.
        """
        commit = step.commit
        level, count = raw[3], int.from_bytes(raw[4:8], "little")
        start = _HEADER.size
        if level:
            Node(raw)
            rows = range(start, start + count * _INNER_WIDTH, _INNER_WIDTH)
            self._steps += [_Step(ObjectId(raw[at : at + ID_BYTES]), RecordKind.NODE, step.id, commit) for at in rows]
            return
        fixed = raw[start : start + count * _WIDTH]
        if len(fixed) != count * _WIDTH:
            raise Corrupt("a node of a directory is damaged")
        kinds = fixed[::_WIDTH]
        if any(fixed[1::_WIDTH]) or len(kinds) != kinds.count(_FILE):
            node = Node(raw)
            for i in range(len(node)):
                self._entry(node.entry(i), step.id, commit)
            return
        ids = [fixed[at : at + ID_BYTES] for at in range(_ID_AT, len(fixed), _WIDTH)]
        while EMPTY_FILE_ID in ids:  # it is stored nowhere
            ids.remove(EMPTY_FILE_ID)
        self._add_files(_Contents(cast("list[ObjectId]", ids), RecordKind.PIECE, step.id, commit))

    def _manifest(self, step: _Step, manifest: Manifest) -> None:
        if manifest.level:
            self._steps += [_Step(id, RecordKind.MANIFEST, step.id, step.commit) for id in manifest.ids]
        else:
            ids = [id for id in manifest.ids if id != HOLE]
            self._add_files(_Contents(ids, RecordKind.PIECE, step.id, step.commit))
