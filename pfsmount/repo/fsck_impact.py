"""What damage means for people: which commits and paths of which repos cannot be read any more, and which can.

Only runs when something is damaged, and then walks the trees of all commits, each directory once, however many versions share it. What is
intact is remembered by a bit for its place (`objects.marks`); of directories that are not, only the bad entries are kept, so memory goes
with the damage and not with the store.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from pfsmount.errors import Corrupt, PfsError
from pfsmount.ids import EntryName, ObjectId, RepoPath
from pfsmount.objects.index import Table
from pfsmount.objects.invariants import Damage, Invariant
from pfsmount.objects.marks import Marks
from pfsmount.objects.object_look import decode_location
from pfsmount.objects.segment import Location, RecordKind
from pfsmount.objects.store import ObjectStore
from pfsmount.repo.commit import Commit, decode_commit, parse_root
from pfsmount.repo.refs import RefInfo, RefKind, RepoInfo, scan_refs
from pfsmount.repo.roots import result_rows
from pfsmount.repo.store import Store
from pfsmount.tree.directory import EMPTY_DIRECTORY
from pfsmount.tree.entry import EMPTY_FILE_ID, Entry, Kind
from pfsmount.tree.manifest import load_manifest, pieces
from pfsmount.tree.node import Node


@dataclass(slots=True)
class LostPath:
    """A path that cannot be read in some commits of a repo."""

    path: RepoPath
    object: ObjectId
    """What is damaged or missing of it."""
    reason: Invariant
    note: str = ""
    """What is lost, where it is not the file at this path."""
    commits: list[ObjectId] = field(default_factory=list)
    """The commits that have it so."""


class RefImpact(NamedTuple):
    """A branch, tag or job, and how many paths are lost in the commit that it names."""

    kind: RefKind
    name: str
    commit: ObjectId | None
    lost: int


@dataclass(slots=True)
class RepoImpact:
    """What damage means for a repo."""

    name: str
    commits: int = 0
    intact: int = 0
    """Commits of which everything can be read."""
    unreadable: list[ObjectId] = field(default_factory=list)
    """Commits that cannot be read at all."""
    damaged: list[ObjectId] = field(default_factory=list)
    """Commits of which some paths cannot be read."""
    refs: list[RefImpact] = field(default_factory=list)
    paths: list[LostPath] = field(default_factory=list)


@dataclass(slots=True)
class Impact:
    """What damage means."""

    repos: list[RepoImpact] = field(default_factory=list)
    unused: int = 0
    """Damaged objects that no commit of a repo needs."""
    unused_ids: list[ObjectId] = field(default_factory=list)
    results: list[ObjectId] = field(default_factory=list)
    """Keys of datums whose result is not whole."""


class _Bad(NamedTuple):
    """A bad entry of a directory: damaged itself, or a directory with something bad below."""

    name: EntryName | None
    """None: a part of the directory itself."""
    directory: ObjectId | None
    object: ObjectId
    reason: Invariant | None
    note: str = ""


def find_impact(store: Store, damage: Damage) -> Impact:
    """Walk all commits of all repos."""
    walk = TreeWalk(store.objects, damage)
    impact = Impact([walk.repo(info) for info in _repos(store)])
    impact.results = [row.key for row in result_rows(store) if not walk.is_whole_tree(row.entry)]
    impact.unused_ids = [id for id in damage.objects if id not in walk.used]
    impact.unused = len(impact.unused_ids)
    return impact


def _repos(store: Store) -> Iterator[RepoInfo]:
    """The repos whose rows are not damaged."""
    with store.objects.index.read() as txn:
        rows = list(txn.scan(Table.REPOS))
    for name, raw in rows:
        with suppress(Corrupt):
            yield RepoInfo.decode(name, raw)


class TreeWalk:
    """Looks at trees, each directory once, for what cannot be read."""

    def __init__(self, objects: ObjectStore, damage: Damage) -> None:
        self._objects, self._damage = objects, damage
        self._intact = Marks(objects)
        self._bad: dict[ObjectId, list[_Bad]] = {}
        self._bad_files: dict[ObjectId, tuple[ObjectId, Invariant]] = {}
        self.used: set[ObjectId] = set()

    def repo(self, info: RepoInfo) -> RepoImpact:
        """All commits of a repo."""
        with self._objects.index.read() as txn:
            ids = [ObjectId(key[8:]) for key, _ in txn.scan(Table.COMMITS, info.key)]
            refs = [ref for kind in RefKind for ref in scan_refs(txn, info, kind)]
        named = {ref.commit for ref in refs if ref.commit is not None}
        found = RepoImpact(info.name)
        paths: dict[tuple[RepoPath, ObjectId], LostPath] = {}
        lost: dict[ObjectId, int] = {}
        for id in dict.fromkeys([*ids, *sorted(named)]):
            found.commits += 1
            lost[id] = self._commit(id, found, paths)
        found.paths = [paths[key] for key in sorted(paths)]
        found.refs = [RefImpact(ref.kind, ref.name, ref.commit, _lost(lost, ref)) for ref in refs]
        return found

    def is_whole(self, commit: Commit) -> bool:
        """Whether everything of a commit is there."""
        record = (commit.provenance or {}).get("record")
        roots = [commit.tree] if record is None else [commit.tree, parse_root(record)]
        return all(map(self.is_whole_tree, roots))

    def is_whole_tree(self, root: Entry) -> bool:
        """Whether everything of a tree is there."""
        return not any(True for _ in self._tree(root))

    def _commit(self, id: ObjectId, found: RepoImpact, paths: dict[tuple[RepoPath, ObjectId], LostPath]) -> int:
        commit = self._load(id)
        if commit is None:
            if id not in found.unreadable:
                found.unreadable.append(id)
            return -1
        for parent in commit.parents:
            if parent not in found.unreadable and self._reason(parent, self._locate(parent)) is not None:
                found.unreadable.append(parent)
        count = 0
        record = (commit.provenance or {}).get("record")
        roots = [("", commit.tree)] + ([] if record is None else [("in the record of its job", parse_root(record))])
        for where, root in roots:
            for path, bad in self._tree(root):
                count += 1
                note = ", ".join(text for text in (bad.note, where) if text)
                assert bad.reason is not None
                lost = paths.setdefault((path, bad.object), LostPath(path, bad.object, bad.reason, note))
                lost.commits.append(id)
        if count:
            found.damaged.append(id)
        else:
            found.intact += 1
        return count

    def _load(self, id: ObjectId) -> Commit | None:
        place = self._locate(id)
        if self._reason(id, place) is not None:
            return None
        try:
            return decode_commit(self._objects.get(id))
        except (PfsError, OSError):
            return None

    def _locate(self, id: ObjectId) -> Location | None:
        raw = self._objects.index.get(Table.OBJECTS, id)
        return None if raw is None else decode_location(raw)

    def _reason(self, id: ObjectId, place: Location | None) -> Invariant | None:
        reason = self._damage.reason(id, place)
        if reason is not None:
            self.used.add(id)
        return reason

    # Trees

    def _tree(self, root: Entry) -> Iterator[tuple[RepoPath, _Bad]]:
        """Everything bad in a tree."""
        if root.xattrs_id is not None:
            reason = self._reason(root.xattrs_id, self._locate(root.xattrs_id))
            if reason is not None:
                yield (), _Bad(None, None, root.xattrs_id, reason, "its extended attributes")
        self._look(root.id)
        stack: list[tuple[RepoPath, ObjectId]] = [((), root.id)]
        while stack:
            path, directory = stack.pop()
            for bad in self._bad.get(directory, ()):
                below = path if bad.name is None else (*path, bad.name)
                if bad.directory is not None:
                    stack.append((below, bad.directory))
                else:
                    yield below, bad

    def _look(self, directory: ObjectId) -> None:
        """Find what is bad in a directory and all below it: each directory after those in it."""
        stack: list[tuple[ObjectId, list[tuple[EntryName, ObjectId]] | None]] = [(directory, None)]
        while stack:
            id, below = stack.pop()
            if below is not None:
                for name, child in below:
                    if child in self._bad:
                        self._bad.setdefault(id, []).append(_Bad(name, child, child, None))
                continue
            if id == EMPTY_DIRECTORY.id or id in self._bad:
                continue
            place = self._locate(id)
            reason = self._reason(id, place)
            if reason is not None or place is None:
                self._bad[id] = [_Bad(None, None, id, reason or Invariant.OBJECT_PRESENT, "the directory")]
                continue
            if not self._intact.add(place):
                continue
            below = self._nodes(id)
            stack.append((id, below))
            stack.extend((child, None) for _, child in below)

    def _nodes(self, directory: ObjectId) -> list[tuple[EntryName, ObjectId]]:
        """The directories in a directory; what is bad of its own goes to `_bad`."""
        below: list[tuple[EntryName, ObjectId]] = []
        nodes = [(directory, "the directory")]
        while nodes:
            id, what = nodes.pop()
            reason = self._reason(id, self._locate(id))
            node = None
            if reason is None:
                try:
                    node = Node(self._objects.get(id))
                except (PfsError, OSError):
                    reason = Invariant.OBJECT_HASH
            if node is None:
                assert reason is not None
                self._bad.setdefault(directory, []).append(_Bad(None, None, id, reason, what))
            elif node.level:
                for i in range(len(node)):
                    after = _shown(node.names[i - 1]) if i else "its first"
                    part = f"a part of the directory: the entries after {after} up to {_shown(node.names[i])}"
                    nodes.append((node.child(i).id, part))
            else:
                self._leaf(directory, node, below)
        return below

    def _leaf(self, directory: ObjectId, node: Node, below: list[tuple[EntryName, ObjectId]]) -> None:
        files: list[tuple[EntryName, ObjectId]] = []
        for i in range(len(node)):
            name, entry = EntryName(node.names[i]), node.entry(i)
            if entry.xattrs_id is not None:
                reason = self._reason(entry.xattrs_id, self._locate(entry.xattrs_id))
                if reason is not None:
                    bad = _Bad(name, None, entry.xattrs_id, reason, "its extended attributes")
                    self._bad.setdefault(directory, []).append(bad)
            if entry.kind is Kind.DIRECTORY:
                below.append((name, entry.id))
            elif entry.kind is Kind.FILE and entry.id != EMPTY_FILE_ID:
                files.append((name, entry.id))
        with self._objects.index.read() as txn:
            rows = txn.get_many(Table.OBJECTS, sorted({id for _, id in files}))
        for name, id in files:
            raw = rows.get(id)
            place = None if raw is None else decode_location(raw)
            found = self._file(id, place)
            if found is not None:
                self._bad.setdefault(directory, []).append(_Bad(name, None, *found))

    def _file(self, id: ObjectId, place: Location | None) -> tuple[ObjectId, Invariant] | None:
        """What is bad of a file, or None."""
        reason = self._reason(id, place)
        if reason is not None:
            return id, reason
        assert place is not None
        if place.kind is not RecordKind.MANIFEST:
            return None
        if id not in self._bad_files and self._intact.add(place):
            found = self._pieces(id)
            if found is not None:
                self._bad_files[id] = found
        return self._bad_files.get(id)

    def _pieces(self, id: ObjectId) -> tuple[ObjectId, Invariant] | None:
        """What is bad of a large file: the first of it."""
        try:
            for piece in pieces(self._objects, load_manifest(self._objects, id)):
                if piece.id is not None:
                    reason = self._reason(piece.id, self._locate(piece.id))
                    if reason is not None:
                        return piece.id, reason
        except (PfsError, OSError):
            return id, Invariant.MANIFEST_FORMAT
        return None


def _lost(lost: dict[ObjectId, int], ref: RefInfo) -> int:
    """How many paths are lost at a ref; -1: the commit itself."""
    return 0 if ref.commit is None else lost.get(ref.commit, 0)


def _shown(name: bytes) -> str:
    return repr(name.decode("utf-8", "surrogateescape"))
