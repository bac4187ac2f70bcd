"""From one generation of a worktree to the next: after a commit, a rebase, a discard.

1. The lines of what stays changed go into `journal.<generation + 1>`, durable.
2. One transaction makes that generation the valid one, together with its base. Before it a crash finds the old journal on
   the old base, after it the new one on the new base.
3. The memory follows (`apply`), and old files are deleted.

Nobody changes the worktree between 1 and 3: the caller sees to that.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pfsmount.ids import ObjectId
from pfsmount.objects.layout import disk_errors, fsync_directory
from pfsmount.repo.journal import Journal, torn_path
from pfsmount.repo.overlay_nodes import Change, Effects, Node, NodeKind, State, Touched, node_kind
from pfsmount.repo.worktree_files import WorktreeFiles
from pfsmount.repo.worktree_replay import AddedNode, NextState, snapshot
from pfsmount.tree.entry import Entry

log = logging.getLogger(__name__)


class WorktreeTurn(WorktreeFiles):
    """A worktree that can go on to its next generation."""

    path: Path
    """The worktree's directory."""
    generation: int
    base: ObjectId | None
    """The commit that is under the changes."""

    def journal_path(self, generation: int) -> Path:
        return self.path / f"journal.{generation}"

    def valid_generation(self) -> int:
        """The generation that the index names now."""
        raise NotImplementedError

    def catch_up(self, after: NextState, base: ObjectId | None, root: Entry, journal: Journal | None) -> None:
        """Step 3 for a turn that was interrupted behind step 2."""
        raise NotImplementedError

    def turn(self, after: NextState, base: ObjectId | None, root: Entry, publish: Callable[[], None]) -> Journal | None:
        """Steps 1 and 2; may wait and may run in another thread. Returns the next journal, None when nothing stays changed.

        Raises what `publish` raises, NoSpace; then the present generation stays valid. An error that comes when the transaction
        is durable goes to the log only. An interrupt there is raised, with the memory on the new generation.
        """
        path = self.journal_path(self.generation + 1)
        journal: Journal | None = None
        with disk_errors("writing the journal of a worktree"):
            if not after.is_empty(self.root):
                journal = Journal.create(path, base)
            elif path.exists():  # left by a turn that failed: it must not become valid
                path.unlink()
                fsync_directory(self.path)
        try:
            if journal is not None:
                for record in snapshot(self.root, after):
                    journal.append(record)
                with disk_errors("writing the journal of a worktree"):
                    settled = (*after.clean, *after.stale, *after.references)
                    gone = {node.change.number for node in settled if node.change is not None}
                    self.sync_contents(gone)
                    journal.sync()
            publish()
        except BaseException as error:
            if self._is_published(error):
                if isinstance(error, Exception):
                    log.exception(
                        "%s: generation %d is valid, but what follows it failed", self.path, self.generation + 1
                    )
                    return journal
                self.catch_up(after, base, root, journal)
            elif journal is not None:
                journal.close()
                with suppress(OSError):
                    os.unlink(path)
            raise
        return journal

    def _is_published(self, error: BaseException) -> bool:
        """True when a turn that met an error made the next generation valid before. When that cannot be told, no journal is deleted."""
        try:
            return self.valid_generation() > self.generation
        except Exception as unknown:
            if self.journal is not None:
                self.journal.refuse(
                    "whether the last commit or discard was made cannot be told; open the worktree again"
                )
            raise error from unknown

    def apply(self, after: NextState, base: ObjectId | None, root: Entry, journal: Journal | None) -> Effects:
        """Step 3. `root` is the new base's root directory."""
        effects = Effects([], [])
        for node, state in after.directories.items():
            assert node.change is not None
            node.entry, node.change.names, node.change.hidden = state.entry, state.names, state.hidden
            if state.entry is not None and same_attributes(node.change, state.entry):
                node.change.touched = Touched.NONE
        for node, entry in after.entries.items():
            node.entry = entry
        for node, mtime_ns in after.references.items():
            self._give_up_data(node, mtime_ns, effects)
        for node, value in after.in_place.items():
            assert node.change is not None
            node.change.in_place = value
        for node, touched in after.touched.items():
            assert node.change is not None
            node.change.touched = touched
        for node, attributes in after.attributes.items():
            assert node.change is not None
            node.change.mode, node.change.uid, node.change.gid = attributes
            effects.attributes.append(node.ino)
        for node, places in after.places.items():
            if places and node.change is not None:
                if (node.parent, node.name) not in places:
                    self.move_node(node, *places[0])
                node.change.places = places if len(places) > 1 else None
                effects.attributes.append(node.ino)
        for node in after.plain:
            assert node.change is not None
            node.change.xattrs = None
        for added in after.added:
            self._add_by_reference(added, effects)
        self.decisions = dict(after.decisions)
        for directory, name in after.separate:
            effects.entries.append((directory.ino, name))
        self.root.entry = root
        for node in after.stale:
            self._discard_node(node)
        for node in after.clean:
            self._clean_node(node, effects)
        effects.add(after.effects)
        self._swap_journal(journal, base)
        return effects

    def _give_up_data(self, node: Node, mtime_ns: int, effects: Effects) -> None:
        """A data file is a segment now. Its name goes at once and not with the trash: the next writer makes a data file with the same number."""
        assert node.change is not None
        node.change.data, node.change.mtime_ns = None, mtime_ns
        effects.attributes.append(node.ino)
        with suppress(OSError):
            self.data.delete(node.change.number)

    def _add_by_reference(self, added: AddedNode, effects: Effects) -> None:
        entry, above = added.entry, added.directory.change
        assert above is not None
        node = self.new_node(node_kind(entry), added.directory, added.name, entry)
        node.change = Change(added.number, entry.mode, entry.uid, entry.gid, entry.mtime_ns)
        above.names[added.name] = node
        effects.entries.append((added.directory.ino, added.name))
        effects.attributes.append(added.directory.ino)

    def _clean_node(self, node: Node, effects: Effects) -> None:
        change = node.change
        assert change is not None
        if change.data is not None:
            self.data.delete_later(change.number)
        elif node.kind is NodeKind.DIRECTORY:
            effects.attributes.append(node.ino)
        if change.places is not None:
            effects.attributes.append(node.ino)
        if node is self.root:
            return  # see _swap_journal
        node.change = None
        node.epoch = self.epoch
        self.pin(node)
        self.drop_unused(node)

    def _discard_node(self, node: Node) -> None:
        node.state = State.STALE
        node.epoch = self.epoch
        self.unpin(node)
        self.drop_unused(node)

    def _swap_journal(self, journal: Journal | None, base: ObjectId | None) -> None:
        old, self.journal = self.journal, journal
        self.generation += 1
        self.base = base
        if journal is None:
            self.root.change = None
        if old is not None:
            old.close()
            for path in (old.path, torn_path(old.path)):
                with suppress(OSError):
                    os.unlink(path)


def same_attributes(change: Change, entry: Entry) -> bool:
    """True when a changed node has mode, owner and time of an entry, and its xattrs."""
    return change.xattrs is None and (change.mode, change.uid, change.gid, change.mtime_ns) == (
        entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime_ns,
    )
