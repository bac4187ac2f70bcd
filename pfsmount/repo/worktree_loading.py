"""A worktree and what lies on disk of it: who owns it, its journal when it is opened, and what another owner writes there.

    store/worktrees/<repo id>/<branch, percent-encoded>[+name]/     (`repo.worktree_place`)
      lock              locked: by the owner; its text says who that is (`repo.ownership`)
      journal.<gen>     what changed since the base (`repo.journal`)
                        (`journal.<gen>.torn`: ends that a power cut tore off it)
      data/<number>     contents of changed files

Invariants
1. The index names the valid generation. A journal of another generation means nothing and is deleted by the next owner.
2. The first line of the valid journal names the base. Without a journal nothing is changed, and the base is the branch's head.
3. Only the holder of the lock writes to the directory. It is taken with the first change and given back when nothing is changed.
4. What an operation returned for is in the journal or in a data file, so it survives a kill of this process.

A worktree that is not the owner's shows what the owner's journal says and takes no changes.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from pfsmount.errors import Busy, NoSpace, NotFound, PermissionDenied
from pfsmount.ids import ObjectId, RepoPath
from pfsmount.objects.adoption import is_announced, segments_of
from pfsmount.objects.batch import withdraw
from pfsmount.objects.layout import disk_errors
from pfsmount.repo.conflicts import PathConflict
from pfsmount.repo.journal import (
    ROOT_NUMBER,
    Journal,
    JournalReader,
    damage,
    journal_base,
    torn_path,
)
from pfsmount.repo.overlay import NowaitReader, WouldBlock
from pfsmount.repo.overlay_data import DataFiles
from pfsmount.repo.overlay_nodes import Effects, Node, ReadOnly, State
from pfsmount.repo.ownership import STEP_S, Ownership
from pfsmount.repo.refs import RepoInfo, get_worktree
from pfsmount.repo.store import Store
from pfsmount.repo.worktree_place import worktree_path
from pfsmount.repo.worktree_replay import Replay
from pfsmount.repo.worktree_status import WorktreeLook
from pfsmount.tree.entry import Entry

log = logging.getLogger(__name__)


class WorktreeLoading(WorktreeLook):
    """A worktree as this process sees it."""

    def __init__(self, store: Store, repo: RepoInfo, branch: str, name: str, who: Mapping[str, Any]) -> None:
        self.store, self.repo, self.branch, self.name = store, repo, branch, name
        self.objects = store.objects
        self.path = worktree_path(store.path, repo, branch, name)
        self.ownership = Ownership(self.path, store.path / "run", who)
        self.looks_only = False
        """Never become the owner: show what is there, and what the owner does."""
        self.frozen: set[Node] = set()
        self.conflicts: tuple[PathConflict, ...] = ()
        """What was changed here and on the branch, when the last `follow` met any that is not settled."""
        self._prints: dict[RepoPath, tuple[str, str]] = {}
        self.branch_label = os.fsencode(branch)
        self.foreign: JournalReader | None = None
        """The journal of another owner, while there is one."""
        self.unseen = Effects([], [])
        """What changed other than by calls here, and nobody was told of yet."""
        self._replay: Replay | None = None
        self._warmed: set[bytes] = set()
        self._hashes: dict[tuple[int, int], ObjectId] = {}
        self.generation = 0
        self.base: ObjectId | None = None
        super().__init__(store.objects, store.empty_root(), DataFiles(self.path / "data"))

    @classmethod
    def open(
        cls,
        store: Store,
        repo: str,
        branch: str,
        name: str = "",
        *,
        own: bool = False,
        looks_only: bool = False,
        nowait: bool = False,
        who: Mapping[str, Any] | None = None,
    ) -> Self:
        """Open the worktree of a branch; it need not exist on disk.

        Left-over changes are taken over by becoming the owner. `own`: be the owner in any case; `looks_only`: in none. `nowait`: from now on raise `WouldBlock`
        instead of waiting for the disk. `who` is what others are told of the owner.
        Raises NotFound, Busy (`own`, and another process has it), Corrupt, PermissionDenied.
        """
        worktree = cls(store, store.repo(repo), branch, name, {"pid": os.getpid(), **(who or {})})
        worktree.looks_only = looks_only
        try:
            worktree._load(own)
        except BaseException:
            worktree.close()
            raise
        worktree.take_unseen()
        if nowait:
            worktree.reader = NowaitReader(store.objects)
        return worktree

    @classmethod
    def leftover(cls, store: Store, repo: str, branch: str, name: str) -> Self:
        """What is on disk of a private worktree that is none any more, locked, for who deletes it. Raises Busy."""
        worktree = cls(store, store.repo(repo), branch, name, {"pid": os.getpid()})
        if not worktree.ownership.take():
            raise Busy(f"another process works on {worktree.title}", hint="try again")
        return worktree

    def close(self) -> None:
        """Give back the lock and close everything; uncommitted changes stay on disk. Any number of times."""
        self._forget_foreign()
        if self.journal is not None:
            self.journal.close()
            self.journal = None
        self.data.close()
        self.ownership.give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def root_of(self, commit: ObjectId | None) -> Entry:
        """The root directory of a commit, or of a branch without one."""
        return self.store.empty_root() if commit is None else self.store.read_commit(commit).tree

    # Loading

    def _load(self, own: bool) -> None:
        """Read what is on disk. The memory shows nothing changed before. Raises NotFound for a private worktree that is none."""
        self._check_there()
        if own and not self.ownership.take_patiently():
            raise Busy(f"the uncommitted changes of {self.title} are open elsewhere", hint=self.owner_text())
        try:
            while not self._load_generation(own):
                pass
        finally:
            if self.journal is None and not own:
                self.ownership.give_back()

    def _load_generation(self, own: bool) -> bool:
        """Read what is on disk of the generation that is valid now. False when an owner went on meanwhile: then again."""
        state = self.store.worktree_state(self.repo.name, self.branch, self.name)
        self.generation = state.generation
        path = self.journal_path(state.generation)
        if path.exists():
            if self.owned:
                self._take_over(path)
                return True
            # with the lock all is read once more: only from then on nobody else makes a generation valid
            return (self.looks_only or not self.ownership.take()) and self._watch(path)
        self._show(self.store.head(self.repo.name, self.branch))
        if own:
            self._delete_leftovers(set())
        return self.owned or self.valid_generation() in (0, state.generation)

    def _take_over(self, path: Path) -> None:
        """Go on with the journal that the last owner left. Raises Corrupt; then nothing on disk has changed."""
        reader = JournalReader(path)
        self.owns_data = False  # no data file is deleted before it is known that all of the journal can be read
        try:
            replay = self._start_replay(reader)
            if replay is not None:
                for record in reader.records():
                    replay.apply(record)
            torn = reader.torn_bytes()
            if torn and reader.is_damaged():
                raise damage(reader, self.title)
            if replay is None:  # not even the first line is whole: a power cut right at the start
                self._show(self.store.head(self.repo.name, self.branch))
                if torn:
                    path.replace(torn_path(path))
                else:
                    path.unlink()
                return
            if torn:
                kept = torn_path(path)
                log.warning("%s: cut %d bytes of an unfinished line off the journal, to '%s'", self.title, torn, kept)
            self.journal = Journal.resume(reader)
        except BaseException:
            self.unseen.add(self._drop_overlay())
            raise
        finally:
            self.owns_data = True
            reader.close()
        self.unseen.add(replay.effects)
        self.last_number = max(replay.last_number, *self.data.numbers(), ROOT_NUMBER)
        used = self._used_numbers(replay)
        self._separate_segments(used)
        if not torn:
            self._delete_leftovers(used)

    def _start_replay(self, reader: JournalReader) -> Replay | None:
        first = next(reader.records(), None)
        if first is None:
            return None
        self._show(journal_base(first))
        return Replay(self)

    def _show(self, base: ObjectId | None) -> None:
        self.base = base
        self.root.entry = self.root_of(base)
        self.epoch += 1
        self.root.epoch = self.epoch

    def _used_numbers(self, replay: Replay) -> set[int]:
        """Numbers of data files in use; ones that a power cut took are made again, empty."""
        there = set(self.data.numbers())
        used = set()
        for number, node in replay.numbers.items():
            if node.change is None or node.change.data is None or node.state is not State.NAMED:
                continue
            used.add(number)
            if number not in there:
                log.warning("%s: the data of %r was lost in a power cut", self.title, node)
                self.data.create(number)
        return used

    def _separate_segments(self, used: set[int]) -> None:
        """Uncommitted files that a commit was about to adopt when its process died are nothing but files again. Raises NoSpace."""
        directory = self.objects.directory
        for number in sorted(used):
            if self.data.links(number) == 1:
                continue
            segments = segments_of(directory, self.data.inode(number))
            for segment in segments:
                with suppress(NoSpace, PermissionDenied):  # it is unpublished, so harmless; gc does it
                    withdraw(self.objects, segment)
            rows = [self.objects.segment_row(segment) for segment in segments_of(directory, self.data.inode(number))]
            if any(row is not None and not is_announced(row) for row in rows):
                # published without the commit: by a rebuild of the index, which found it in the tables of contents
                self.last_number += 1
                with disk_errors("taking over uncommitted changes"):
                    self.data.separate(number, self.last_number)

    def _delete_leftovers(self, used: set[int]) -> None:
        """Data that no node needs, and journals of other generations."""
        for number in self.data.numbers():
            if number not in used:
                self.data.delete(number)
        self._delete_old_journals()

    def _delete_old_journals(self) -> None:
        valid = self.journal_path(self.generation)
        for path in self.path.glob("journal.*"):
            if path not in (valid, torn_path(valid)):
                with suppress(FileNotFoundError):
                    path.unlink()

    def _check_there(self) -> None:
        if self.name and not self.store.has_worktree(self.repo.name, self.branch, self.name):
            raise NotFound(f"the private worktree {self.title} has ended, or never was")

    def valid_generation(self) -> int:
        with self.store.objects.index.read() as txn:
            state = get_worktree(txn, self.repo, self.branch, self.name)
        return 0 if state is None else state.generation

    # Ownership

    @property
    def title(self) -> str:
        """The worktree as people name it."""
        return f"{self.repo.name}@{self.branch}" + (f"+{self.name}" if self.name else "")

    @property
    def owned(self) -> bool:
        """True while this process holds the lock."""
        return self.ownership.held

    def owner(self) -> dict[str, Any] | None:
        """Who holds the lock, as it said of itself; None for nobody or this process."""
        return self.ownership.owner()

    def owner_text(self) -> str:
        """A hint that names the owner."""
        who = self.owner() or {}
        where = f", the mount at {who['mount']}" if who.get("mount") else ""
        return f"process {who.get('pid', '?')}{where} has them"

    def release_if_clean(self) -> None:
        """Give the lock back when nothing is changed."""
        if self.journal is None:
            self.ownership.give_back()

    def not_ours(self) -> ReadOnly:
        """The error for changes while another process has the worktree."""
        return ReadOnly(f"{self.title} has uncommitted changes elsewhere", hint=self.owner_text())

    def begin(self) -> None:
        if self.journal is not None:
            return
        if self.looks_only:
            raise ReadOnly(f"{self.title} is mounted read-only")
        took = not self.owned
        if took and not self.ownership.take():
            if self.ownership.may_wait():
                raise WouldBlock(lambda: time.sleep(STEP_S))
            raise self.not_ours()
        try:
            if self.name and not self.store.has_worktree(self.repo.name, self.branch, self.name):
                shutil.rmtree(self.path, ignore_errors=True)  # taking the lock has made it again
                raise ReadOnly(f"{self.title} has ended")
            state = self.store.worktree_state(self.repo.name, self.branch, self.name)
            path = self.journal_path(state.generation)
            theirs = self.foreign is not None or path.exists()
            if not theirs:
                self.generation = state.generation
                self._delete_old_journals()
                self.journal = Journal.create(path, self.base)
        except BaseException:
            if took:
                self.ownership.give_back()
            raise
        if theirs:
            # somebody's changes are on disk: show them before anything is changed
            self.ownership.give_back()
            self.reload()
            raise WouldBlock(lambda: None)
        self.adopt(self.root, ROOT_NUMBER)

    def reload(self) -> None:
        """Forget what is in memory and read what is on disk; open files stay as they are. Not for an owner with changes."""
        self.unseen.add(self._drop_overlay())
        self._forget_foreign()
        reader, self.reader = self.reader, self.store.objects
        try:
            self._load(own=False)
        finally:
            self.reader = reader

    def take_unseen(self) -> Effects:
        """What changed other than by calls here since this was last called."""
        effects, self.unseen = self.unseen, Effects([], [])
        return effects

    def _drop_overlay(self) -> Effects:
        """Make all changed nodes stale."""
        effects = Effects([], [])
        self.decisions.clear()
        stack = [self.root]
        while stack:
            directory = stack.pop()
            change = directory.change
            if change is None:
                continue
            effects.attributes.append(directory.ino)
            for name in change.hidden.union(change.names):
                effects.entries.append((directory.ino, name))
                node = change.names.get(name)
                if node is not None and node.change is not None:
                    stack.append(node)
                    node.change.owns_file = False  # what is read next from the journal has it
                    self.make_stale(node)
                    self.drop_unused(node)
        self.root.change = None
        return effects

    # Looking on while another process owns the worktree

    def _watch(self, path: Path) -> bool:
        """Show what another owner's journal says; False when that is gone already."""
        try:
            self.foreign = JournalReader(path)
        except FileNotFoundError:
            return False
        self.owns_data = False
        self._replay = self._start_replay(self.foreign)
        if self._replay is None:  # the owner is about to write the first line
            self._show(self.store.head(self.repo.name, self.branch))
        self._tail()
        return True

    def _forget_foreign(self) -> None:
        if self.foreign is not None:
            self.foreign.close()
            self.data.close()
        self.foreign = self._replay = None
        self.owns_data = True

    def _tail(self) -> None:
        if self.foreign is None or self._replay is None:
            return
        reader, self.reader = self.reader, self.store.objects
        try:
            for record in self.foreign.records():
                self._replay.apply(record)
        finally:
            self.reader = reader
        self.unseen.add(self._replay.effects)
        self._replay.effects = Effects([], [])

    def may_have_changed(self) -> bool:
        """True when `look` may find something. Cheap enough to be asked ten times a second."""
        if self.owned:
            return bool(self.unseen.entries or self.unseen.attributes)
        return self.foreign is not None or self.journal_path(self.generation).exists()

    def look(self) -> None:
        """Bring a worktree that is not owned up to what is on disk. Does nothing for an owner. Raises NotFound, OSError, Corrupt."""
        if self.owned:
            return
        self._check_there()
        if self.foreign is not None:
            served = self.looks_only or self.owner() is not None
            if self.foreign.is_current and self._replay is not None and served:
                self._tail()
            else:
                self.reload()
            return
        state = self.store.worktree_state(self.repo.name, self.branch, self.name)
        if state.generation < self.generation:  # its row went with the branch
            raise NotFound(f"{self.title} was deleted; what has its name now is another branch")
        self.generation = state.generation
        if self.journal_path(state.generation).exists():
            self.reload()
