"""Committing a worktree: cut, ingest, settle, turn.

1. **Cut**, an instant: what is changed, with its attributes, becomes a plan. Files whose data is still to be read are frozen: a
   writer of one of them waits until it is ingested; everything else goes on.
2. **Ingest**, which may take long and may run in another thread: hash and store the data files, then the directories from the leaves up.
   Only directories with a change in them are touched. A large new file is only hashed: the commit makes its data file a segment (`objects.adoption`),
   so it stays frozen until then.
3. **Settle**, an instant: what changed since the cut stays changed, on top of the new commit.
4. **Turn** (`worktree_turn`): the commit's transaction also makes the next generation valid.

Times alone are no reason for a commit: a file that was rewritten as it was, or a directory in which a file came and went, is "nothing
changed". They do go along with other changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from pfsmount.errors import NotFound
from pfsmount.ids import EntryName, ObjectId, RepoPath, display, path_bytes
from pfsmount.objects.batch import Batch
from pfsmount.objects.layout import error_for
from pfsmount.repo.ahead import FileAhead
from pfsmount.repo.overlay_nodes import Node, NodeKind, State, Touched
from pfsmount.repo.worktree_replay import DirectoryState, NextState
from pfsmount.repo.worktree_turn import WorktreeTurn
from pfsmount.tree.adoption import adopt_fd
from pfsmount.tree.directory import EMPTY_DIRECTORY, DirectorySummary, directory_entry, lookup
from pfsmount.tree.edit import edit_directory
from pfsmount.tree.entry import EMPTY_FILE_ID, Entry, Kind, file_entry, symlink_entry
from pfsmount.tree.ingest import ingest_fd, ingest_overlay
from pfsmount.tree.manifest import PIECE_MAX
from pfsmount.tree.xattrs import with_xattrs


@dataclass(slots=True, eq=False)
class PlannedFile:
    """A file or symlink as it was at the cut."""

    node: Node
    version: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: dict[bytes, bytes] | None
    number: int
    """Of its data file; 0: its content is the entry's."""
    overlay: tuple[int, list[tuple[int, int]], int] | None = None
    """Of a large file: base size, extents, size."""
    replaces: tuple[Entry, EntryName] | None = None
    """Of a new file: the directory in the base, and its name there, which an earlier version may have."""
    whole: int = 0
    """Bytes of a data file that has the whole content."""
    ahead: FileAhead | None = None
    """What was done for it while it was written."""
    adopted: bool = False
    """The data file is to be a segment as it is: it stays frozen until the commit is made or given up."""
    entry: Entry | None = None
    """The result."""


@dataclass(slots=True, eq=False)
class PlannedDirectory:
    """A directory as it was at the cut."""

    node: Node
    version: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: dict[bytes, bytes] | None
    keeps_time: bool
    """Its time is the base's as long as its contents are."""
    changes: dict[bytes, Plan] = field(default_factory=dict)
    entry: Entry | None = None


Plan = PlannedFile | PlannedDirectory | None


@dataclass(slots=True)
class Cut:
    """What will be committed."""

    base: ObjectId | None
    root: PlannedDirectory
    files: list[PlannedFile] = field(default_factory=list)
    unversioned: list[RepoPath] = field(default_factory=list)
    """FIFOs and sockets: they stay in the worktree."""
    meaningful: bool = False
    """Something other than times differs. Known after the ingest."""
    planned: dict[Node, PlannedFile] = field(default_factory=dict)


class WorktreeCommit(WorktreeTurn):
    """A worktree whose changes can become a commit."""

    # Cut

    def cut(self, paths: Collection[RepoPath] | None = None) -> Cut:
        """Plan a commit of everything, or of what is at and below `paths`. Raises NotFound for a path that is nowhere."""
        for path in paths or ():
            self._check_path(path)
        selected = None if paths is None else set(paths)
        cut = Cut(self.base, self._plan_directory(self.root, True))
        stack: list[tuple[PlannedDirectory, RepoPath, bool]] = [(cut.root, (), selected is None or () in selected)]
        while stack:
            plan, path, whole = stack.pop()
            for name, below, child in self._planned_names(cut, plan, path, whole, selected):
                plan.changes[name] = child
                if isinstance(child, PlannedDirectory):
                    stack.append((child, (*path, EntryName(name)), below))
            if not whole:
                self._plan_base_attributes(plan)
        for planned in cut.files:
            planned.node.opens += 1  # so that its data stays while the ingest needs it
            if planned.number:
                self.frozen.add(planned.node)
        return cut

    def _check_path(self, path: RepoPath) -> None:
        directory = self.root
        for at, name in enumerate(path):
            change = directory.change
            node = self.lookup(directory, name)
            hidden = change is not None and name in change.hidden
            if node is None and not (hidden and at == len(path) - 1):
                raise NotFound(f"there is no '{display(path_bytes(path))}', and none was deleted")
            if node is None:
                return
            directory = node

    def _planned_names(
        self, cut: Cut, plan: PlannedDirectory, path: RepoPath, whole: bool, selected: set[RepoPath] | None
    ) -> list[tuple[bytes, bool, Plan]]:
        change = plan.node.change
        assert change is not None
        found: list[tuple[bytes, bool, Plan]] = []
        for name in sorted(change.hidden.union(change.names)):
            here = (*path, EntryName(name))
            below = whole or (selected is not None and here in selected)
            node = change.names.get(name)
            above = selected is not None and any(there[: len(here)] == here for there in selected)
            if not below and not (above and node is not None and node.kind is NodeKind.DIRECTORY):
                continue
            if node is None:
                found.append((name, below, None))
            elif node.kind is NodeKind.DIRECTORY:
                found.append((name, below, self._plan_directory(node, below)))
            elif node.kind in (NodeKind.FIFO, NodeKind.SOCKET):
                cut.unversioned.append(here)
                if name in change.hidden:
                    found.append((name, below, None))
            else:
                planned = self._plan_file(cut, node)
                if node.entry is None and plan.node.entry is not None:
                    planned.replaces = plan.node.entry, EntryName(name)
                found.append((name, below, planned))
        return found

    def _plan_directory(self, node: Node, whole: bool) -> PlannedDirectory:
        change = node.change
        assert change is not None
        keeps = change.in_place and not (whole and change.touched & Touched.TIME)
        owner = (change.mode, change.uid, change.gid)
        return PlannedDirectory(node, change.version, *owner, change.mtime_ns, change.xattrs, keeps)

    def _plan_base_attributes(self, plan: PlannedDirectory) -> None:
        """Of a directory that is only on the way to what is committed, nothing but the time of its entries changes."""
        change, entry = plan.node.change, plan.node.entry
        if change is not None and change.in_place and entry is not None:
            plan.mode, plan.uid, plan.gid, plan.xattrs = entry.mode, entry.uid, entry.gid, None
            plan.version = -1

    def _plan_file(self, cut: Cut, node: Node) -> PlannedFile:
        known = cut.planned.get(node)
        if known is not None:
            return known
        change = node.change
        assert change is not None
        owner = (change.mode, change.uid, change.gid)
        planned = PlannedFile(node, change.version, *owner, change.mtime_ns, change.xattrs, 0)
        data = change.data
        if data is not None:
            stat = self.stat_data(change)
            planned.number, planned.mtime_ns = change.number, stat.mtime_ns
            planned.whole, planned.ahead = stat.size if data.extents is None else 0, data.ahead
            if data.extents is not None:
                extents = [*data.extents]
                if stat.size > data.base_size:
                    extents.append((data.base_size, stat.size))
                planned.overlay = (data.base_size, extents, stat.size)
        cut.planned[node] = planned
        cut.files.append(planned)
        return planned

    def release_cut(self, cut: Cut) -> None:
        """Let go of what the cut held; at the end, however it ended."""
        for planned in cut.files:
            self.frozen.discard(planned.node)
            self.closed(planned.node)
        cut.files = []

    # Ingest

    def ingest(self, cut: Cut, batch: Batch, thaw: Callable[[Node], None] | None = None) -> Entry:
        """Store the plan; returns the root directory. Reads only the plan and the data files, so any thread may do it.

        `thaw` is told of each file that may be written to again; not of adopted ones, which come last. Raises NoSpace, OSError, Corrupt.
        """
        for planned in sorted(cut.files, key=self._may_be_adopted):
            planned.entry = self._ingest_file(planned, batch)
            if planned.adopted:
                continue
            self.frozen.discard(planned.node)
            if thaw is not None:
                thaw(planned.node)
        order: list[PlannedDirectory] = []
        stack = [cut.root]
        while stack:
            plan = stack.pop()
            order.append(plan)
            stack.extend(child for child in plan.changes.values() if isinstance(child, PlannedDirectory))
        for plan in reversed(order):
            plan.entry = self._build(cut, plan, batch)
        entry = cut.root.entry
        assert entry is not None
        assert self.root.entry is not None
        cut.meaningful = cut.meaningful or _differs(self.root.entry, entry)
        return entry

    def _may_be_adopted(self, planned: PlannedFile) -> bool:
        return planned.whole >= self.objects.settings.adopt_bytes and not self.data.sync_failed

    def _ingest_file(self, planned: PlannedFile, batch: Batch) -> Entry:
        old = planned.node.entry
        if planned.node.kind is NodeKind.SYMLINK:
            assert old is not None
            assert old.target is not None
            entry = symlink_entry(old.target, uid=planned.uid, gid=planned.gid, mtime_ns=planned.mtime_ns)
        else:
            id, size = self._ingest_content(planned, batch, old)
            owner = {"mode": planned.mode, "uid": planned.uid, "gid": planned.gid}
            entry = file_entry(id, size, **owner, mtime_ns=planned.mtime_ns)
        if planned.xattrs is not None:
            return with_xattrs(batch, entry, planned.xattrs)
        return entry if old is None else entry.replace(xattrs=old.xattrs, xattrs_id=old.xattrs_id)

    def _ingest_content(self, planned: PlannedFile, batch: Batch, old: Entry | None) -> tuple[ObjectId, int]:
        if not planned.number:
            return (EMPTY_FILE_ID, 0) if old is None else (old.id, old.size)
        try:
            fd = os.open(self.data.path / str(planned.number), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise error_for(error, "reading a changed file") from error
        try:
            if self._may_be_adopted(planned):
                path, previous = self.data.path / str(planned.number), _previous(planned, batch, fd)
                start = None if planned.ahead is None else planned.ahead.hashed()
                id, size, planned.adopted = adopt_fd(batch, fd, path, previous=previous, start=start)
                return id, size
            if planned.overlay is None:
                return ingest_fd(batch, fd, previous=_previous(planned, batch, fd))
            assert old is not None
            base_size, extents, size = planned.overlay
            return ingest_overlay(batch, fd, base=old, base_size=base_size, extents=extents, size=size)
        finally:
            os.close(fd)

    def _build(self, cut: Cut, plan: PlannedDirectory, batch: Batch) -> Entry:
        old = plan.node.entry
        base = EMPTY_DIRECTORY.id if old is None else old.id
        changes: dict[EntryName, Entry | None] = {}
        for name, child in plan.changes.items():
            entry = None if child is None else child.entry
            before = None if old is None else lookup(batch, base, name)
            if before != entry:
                changes[EntryName(name)] = entry
                cut.meaningful = cut.meaningful or _differs(before, entry)
        if changes or old is None:
            summary = edit_directory(batch, base, changes)
        else:
            assert old.content_id is not None
            summary = DirectorySummary(old.id, old.content_id, 0, old.files, old.size)
        time_ns = plan.mtime_ns
        if plan.keeps_time and old is not None and not changes:
            time_ns = old.mtime_ns
        entry = directory_entry(summary, mode=plan.mode, uid=plan.uid, gid=plan.gid, mtime_ns=time_ns)
        if plan.xattrs is not None:
            return with_xattrs(batch, entry, plan.xattrs)
        return entry if old is None else entry.replace(xattrs=old.xattrs, xattrs_id=old.xattrs_id)

    # Settle

    def settle(self, cut: Cut) -> NextState:
        """What stays changed on top of the commit that the plan became."""
        after = NextState()
        order = [cut.root]
        for plan in order:
            order.extend(child for child in plan.changes.values() if isinstance(child, PlannedDirectory))
        order = [plan for plan in order if plan.node.state is State.NAMED]
        committed: dict[Node, list[tuple[Node, bytes]]] = {}
        for plan in order:
            self._settle_names(plan, after, committed)
        for node, places in committed.items():
            self._settle_file(cut.planned[node], places, after)
        for plan in reversed(order):  # a directory is settled when all in it is
            self._settle_directories(plan, after)
        if self._is_settled(cut.root, after):
            after.clean.append(self.root)
        self._settle_adopted(cut, after)
        return after

    def _settle_adopted(self, cut: Cut, after: NextState) -> None:
        """A file that was adopted and has another name, other attributes or a further link since the cut has its content by reference from now on."""
        clean = set(after.clean)
        for planned in cut.files:
            change = planned.node.change
            if planned.adopted and planned.node not in clean and change is not None and change.data is not None:
                assert planned.entry is not None
                after.entries[planned.node] = planned.entry
                after.references[planned.node] = self.stat_data(change).mtime_ns

    def _settle_names(
        self, plan: PlannedDirectory, after: NextState, committed: dict[Node, list[tuple[Node, bytes]]]
    ) -> None:
        change = plan.node.change
        assert change is not None
        assert plan.entry is not None
        state = DirectoryState(plan.entry, dict(change.names), set(change.hidden))
        after.directories[plan.node] = state
        for name, child in plan.changes.items():
            if child is None:
                state.hidden.discard(name)
                continue
            state.hidden.add(name)
            # else removed or replaced since the cut
            if isinstance(child, PlannedFile) and state.names.get(name) is child.node:
                committed.setdefault(child.node, []).append((plan.node, name))

    def _settle_directories(self, plan: PlannedDirectory, after: NextState) -> None:
        state = after.directories[plan.node]
        for name, child in plan.changes.items():
            if not isinstance(child, PlannedDirectory) or state.names.get(name) is not child.node:
                continue
            if self._is_settled(child, after):
                del state.names[name]
                state.hidden.discard(name)
                after.clean.append(child.node)
            else:
                after.in_place[child.node] = True

    def _is_settled(self, plan: PlannedDirectory, after: NextState) -> bool:
        state, change = after.directories.get(plan.node), plan.node.change
        if state is None or change is None:
            return False
        if state.names or state.hidden:
            return False
        return change.version == plan.version or (plan.version < 0 and not change.touched)

    def _settle_file(self, planned: PlannedFile, places: list[tuple[Node, bytes]], after: NextState) -> None:
        node, change = planned.node, planned.node.change
        assert change is not None
        assert planned.entry is not None
        assert node.parent is not None
        primary = (node.parent, node.name)
        after.entries[node] = planned.entry
        if change.version != planned.version:
            if primary in places:
                after.in_place[node] = True
            return
        own = [primary] if change.places is None else change.places
        clean = all(place in places for place in own)
        for place in places:
            state = after.directories[place[0]]
            del state.names[place[1]]
            state.hidden.discard(place[1])
            if not clean or place != primary:
                after.separate.append(place)
        if clean:
            after.clean.append(node)
        else:
            after.places[node] = [place for place in own if place not in places]
            after.in_place[node] = change.in_place and primary not in places


def _previous(planned: PlannedFile, batch: Batch, fd: int) -> ObjectId | None:
    """The earlier version of a file: its own, or what stood where it was renamed to. Not looked up for small files, which share nothing."""
    old = planned.node.entry
    if old is None and planned.replaces is not None and os.fstat(fd).st_size > PIECE_MAX:
        directory, name = planned.replaces
        old = lookup(batch, directory.id, name)
    return old.id if old is not None and old.kind is Kind.FILE else None


def _differs(old: Entry | None, new: Entry | None) -> bool:
    """True when more than times differ. Of a directory, what is below it is not compared if it has the same content id."""
    if old is None or new is None:
        return old is not new
    if not old.same_content(new):
        return True
    return (old.mode, old.uid, old.gid, old.xattrs, old.xattrs_id) != (
        new.mode,
        new.uid,
        new.gid,
        new.xattrs,
        new.xattrs_id,
    )
