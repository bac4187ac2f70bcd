"""The uncommitted changes on top of one branch head.

    store/worktrees/<repo id>/<branch, percent-encoded>[+name]/
      lock              locked: by the owner; its text says who that is (`repo.ownership`)
      journal.<gen>     what changed since the base (`repo.journal`)
                        (`journal.<gen>.torn`: ends that a power cut tore off it)
      data/<number>     contents of changed files

Invariants
1. The index names the valid generation. A journal of another generation means nothing and is deleted by the next owner.
2. The first line of the valid journal names the base. Without a journal nothing is changed, and the base is the branch's head.
3. Only the holder of the lock writes to the directory. It is taken with the first change and given back when nothing is changed.
4. What an operation returned for is in the journal or in a data file, so it survives a kill of this process.

A `Worktree` that is not the owner shows what the owner's journal says and takes no changes.

For one thread at a time; `docs/CONCURRENCY.md` says which parts may run beside it.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pfsmount.errors import Busy, Collected, Conflict, NoSpace, NotFound, PermissionDenied
from pfsmount.ids import ObjectId, RepoPath, display, path_bytes
from pfsmount.objects.adoption import is_announced, segments_of
from pfsmount.objects.batch import Batch, withdraw
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.layout import disk_errors
from pfsmount.objects.open_segments import seal_adopted
from pfsmount.repo.commit import Commit
from pfsmount.repo.conflicts import PathConflict, select
from pfsmount.repo.journal import (
    ROOT_NUMBER,
    Journal,
    JournalReader,
    damage,
    journal_base,
    name_text,
    torn_path,
)
from pfsmount.repo.overlay import NowaitReader, WouldBlock
from pfsmount.repo.overlay_data import DataFiles
from pfsmount.repo.overlay_nodes import Effects, Node, ReadOnly, State
from pfsmount.repo.ownership import STEP_S, Ownership
from pfsmount.repo.refs import RefKind, RefMove, RepoInfo, WorktreeState, get_worktree, put_worktree
from pfsmount.repo.store import Store
from pfsmount.repo.turns import Turn
from pfsmount.repo.worktree_commit import Cut
from pfsmount.repo.worktree_rebase import Move
from pfsmount.repo.worktree_replay import NextState, Replay
from pfsmount.repo.worktree_status import WorktreeLook, WorktreeStatus
from pfsmount.tree.entry import Entry
from pfsmount.tree.merge import Resolution

log = logging.getLogger(__name__)
_TRIES = 100
_LEAF_MAX = 255
_BRANCH_MAX = 200


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What a commit of a worktree came to."""

    commit: Commit | None
    """None: nothing was changed."""
    unversioned: tuple[RepoPath, ...]
    """FIFOs and sockets, which stay in the worktree."""
    effects: Effects


def worktree_path(store: Path, repo: RepoInfo, branch: str, name: str = "") -> Path:
    """Where a worktree lies."""
    leaf = _quoted(branch, _BRANCH_MAX, 150)
    if name:
        leaf += "+" + _quoted(name, _LEAF_MAX - len(leaf) - 1, 20)
    return store / "worktrees" / f"{repo.id:016x}" / leaf


def worktree_paths(store: Path, repo: RepoInfo, branch: str) -> list[Path]:
    """Where all worktrees of a branch lie, as far as they are on disk."""
    first = worktree_path(store, repo, branch)
    if not first.parent.is_dir():
        return []
    return sorted(
        path for path in first.parent.iterdir() if path.name == first.name or path.name.startswith(first.name + "+")
    )


def _quoted(name: str, longest: int, keep: int) -> str:
    """A name percent-encoded; of a longer encoding its beginning, `%-` (which no encoding has) and 32 digits of its hash."""
    quoted = quote(os.fsencode(name), safe="")
    if len(quoted) <= longest:
        return quoted
    return f"{quoted[:keep]}%-{hash_bytes(quoted.encode('ascii')).hex()[:32]}"


class Worktree(WorktreeLook):
    """One worktree as this process sees it. Make it with `open`."""

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
    ) -> Worktree:
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
    def leftover(cls, store: Store, repo: str, branch: str, name: str) -> Worktree:
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

    def __enter__(self) -> Worktree:
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

    # Following the branch

    def head(self) -> ObjectId | None:
        """The branch's head. Raises NotFound."""
        return self.store.head(self.repo.name, self.branch)

    def prepare_move(self) -> Move | None:
        """What it takes to go on to the branch's head; None when the worktree is there. May wait, and run in any thread while nobody
        changes the worktree. Raises NotFound."""
        head = self.head()
        if head == self.base or self.foreign is not None:
            return None
        return self.plan_move(head, self.root_of(head))

    def carry_out_move(self, move: Move) -> Journal | None:
        """The part of a move that is durable; see `turn`. To be followed by `finish_move`."""
        if self.journal is None or move.open:
            return None

        def publish() -> None:
            self.store.set_worktree_state(self.repo.name, self.branch, self.name, self.generation + 1, move.head)

        return self.turn(move.after, move.head, move.root, publish)

    def finish_move(self, move: Move, journal: Journal | None) -> Effects:
        """The part of a move in memory, an instant."""
        self.conflicts, self._prints = (tuple(move.conflicts), move.prints) if move.open else ((), {})
        if move.open:
            return Effects([], [])
        self.epoch += 1
        self.root.epoch = self.epoch
        if self.journal is not None:
            effects = self.apply(move.after, move.head, move.root, journal)
            self.release_if_clean()
            return effects
        self.base, self.root.entry = move.head, move.root
        return Effects([], [self.root.ino])

    def follow(self) -> Effects:
        """Go on to the branch's head if its changes and those here are at different paths; else set `conflicts`. Raises NotFound, NoSpace."""
        move = self.prepare_move()
        if move is None:
            if self.base == self.head():
                self.conflicts = ()
            return Effects([], [])
        return self.finish_move(move, self.carry_out_move(move))

    def check_conflicts(self) -> None:
        """Refuse while branch and worktree changed the same paths. Raises Conflict."""
        if self.conflicts:
            open_paths = [path_bytes(one.path) for one in self.conflicts if one.resolution is None]
            paths = [display(path) for path in open_paths]
            shown = ", ".join(paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
            raise Conflict(
                f"{self.title} was changed by someone else where you changed it too: {shown}; nothing was committed or lost",
                hint=f"'pfs status {self.title}' shows both sides, "
                f"'pfs resolve {self.title}:/PATH --mine|--theirs|--both' settles them",
                paths=tuple(open_paths),
            )

    def record_decisions(self, how: Resolution, paths: Collection[RepoPath] | None) -> list[RepoPath]:
        """Settle conflicts that the last `follow` met: those at and below `paths`, or all that are open. To be followed by `follow`.

        An instant. Returns the paths. Raises NotFound for a path that is not in conflict; then nothing has changed.
        """
        among = [one.path for one in self.conflicts if paths is not None or one.resolution is None]
        chosen = select(among, paths, self.title)
        for path in chosen:
            kept, given_up = self._prints[path]
            fits = given_up if how is Resolution.THEIRS else kept
            assert self.journal is not None
            self.journal.append(["resolve", name_text(path_bytes(path)), how.value, fits])
            self.decisions[path] = (how, fits)
        return chosen

    def resolve(
        self, how: Resolution, paths: Collection[RepoPath] | None = None
    ) -> tuple[list[RepoPath], int, Effects]:
        """Settle conflicts at and below `paths`, or all; durable. When none is open any more, the worktree goes on to the branch's head.

        Returns what was settled and how many are open. Raises NotFound for a path that is not in conflict, NoSpace.
        """
        effects = self.follow()
        chosen = self.record_decisions(how, paths)
        self.fsync()
        effects.add(self.follow())
        return chosen, self.open_conflicts, effects

    @property
    def open_conflicts(self) -> int:
        """How many conflicts are not settled."""
        return sum(conflict.resolution is None for conflict in self.conflicts)

    # Turning

    def valid_generation(self) -> int:
        with self.store.objects.index.read() as txn:
            state = get_worktree(txn, self.repo, self.branch, self.name)
        return 0 if state is None else state.generation

    def catch_up(self, after: NextState, base: ObjectId | None, root: Entry, journal: Journal | None) -> None:
        self.epoch += 1
        self.root.epoch = self.epoch
        self.unseen.add(self.apply(after, base, root, journal))
        self.release_if_clean()

    # Committing

    def finish_commit(
        self, cut: Cut, after: NextState, batch: Batch, root: Entry, message: str, author: str | None
    ) -> tuple[Commit, Journal | None]:
        """Make the commit: durable when this returns. May wait, and run in any thread while nobody changes the worktree.

        Raises Conflict when the head moved since the cut, NoSpace; then nothing has changed.
        """
        parents = () if cut.base is None else (cut.base,)
        origin = {"how": "mount", "worktree": self.name} if self.name else {"how": "mount"}
        commit = self.store.make_commit(
            batch, tree=root, parents=parents, message=message, author=author, origin=origin
        )
        move = RefMove(self.repo, RefKind.BRANCH, self.branch, commit.id, cut.base)

        def publish() -> None:
            self.store.publish(
                batch,
                [(move, commit)],
                why="commit",
                more=lambda txn: put_worktree(
                    txn, self.repo, self.branch, self.name, WorktreeState(self.generation + 1, commit.id)
                ),
            )

        return commit, self.turn(after, commit.id, root, publish)

    def commit(
        self, message: str, paths: Collection[RepoPath] | None = None, *, author: str | None = None
    ) -> CommitResult:
        """Commit all changes, or those at and below `paths`. Only for a caller that has the worktree to itself.

        Raises Conflict (with paths), NotFound (a path), Busy, NoSpace, OSError, Corrupt; then nothing is committed and nothing lost.
        """
        effects = Effects([], [])
        with self.turn_of_branch() as turn:
            for attempt in range(_TRIES):
                turn.wait()
                effects.add(self.follow())
                self.check_conflicts()
                if self.journal is None:
                    return CommitResult(None, (), effects)
                try:
                    return self._commit_once(message, paths, author, effects)
                except (Conflict, Collected):
                    if attempt + 1 == _TRIES:
                        raise
                    turn.lost()
        raise AssertionError("unreachable")

    def _commit_once(
        self, message: str, paths: Collection[RepoPath] | None, author: str | None, effects: Effects
    ) -> CommitResult:
        """Raises Conflict when the head moved, Collected when a gc came between; then nothing has changed."""
        cut = self.cut(paths)
        try:
            with self.objects.batch() as batch:
                root = self.ingest(cut, batch)
                unversioned = tuple(cut.unversioned)
                if not self.is_worth_a_commit(cut, root):
                    return CommitResult(None, unversioned, effects)
                batch.flush_if_large()
                after = self.settle(cut)
                commit, journal = self.finish_commit(cut, after, batch, root, message, author)
                effects.add(self.apply(after, commit.id, commit.tree, journal))
        finally:
            self.release_cut(cut)
            self.data.empty_trash()
        seal_adopted(self.objects, batch.adopted)
        self.release_if_clean()
        return CommitResult(commit, unversioned, effects)

    def turn_of_branch(self) -> Turn:
        """What commits here share with other writers of the branch."""
        return Turn(self.store.path, self.repo, self.branch)

    def is_worth_a_commit(self, cut: Cut, root: Entry) -> bool:
        """False when what was cut is what the base has, but for times."""
        return cut.meaningful and root != self.root.entry

    # Discarding

    def carry_out_discard(self, paths: Collection[RepoPath] | None) -> tuple[NextState, Journal | None]:
        """Plan a discard and make it durable; to be followed by `finish_discard`. Raises NotFound, NoSpace."""
        after = self.plan_discard(paths)
        base, root = self.base, self.root.entry
        assert root is not None

        def publish() -> None:
            self.store.set_worktree_state(self.repo.name, self.branch, self.name, self.generation + 1, base)

        return after, self.turn(after, base, root, publish)

    def finish_discard(self, after: NextState, journal: Journal | None) -> Effects:
        """The part of a discard in memory, an instant."""
        assert self.root.entry is not None
        self.epoch += 1
        self.root.epoch = self.epoch
        effects = self.apply(after, self.base, self.root.entry, journal)
        self.release_if_clean()
        return effects

    def discard(self, paths: Collection[RepoPath] | None = None) -> Effects:
        """Give up all changes, or those at and below `paths`. Raises NotFound for a path without changes, Busy, NoSpace."""
        if self.journal is None:
            if paths:
                raise NotFound(f"{self.title} has no uncommitted changes")
            return Effects([], [])
        effects = self.finish_discard(*self.carry_out_discard(paths))
        effects.add(self.follow())
        return effects

    def release_if_clean(self) -> None:
        """Give the lock back when nothing is changed."""
        if self.journal is None:
            self.ownership.give_back()

    # Status

    def status(self) -> WorktreeStatus:
        """How the worktree stands. May wait for the disk. Raises OSError, Corrupt."""
        reader, self.reader = self.reader, self.store.objects
        try:
            try:
                head = self.head()
            except NotFound:
                head = None
            changes = tuple(self.changes())
            return WorktreeStatus(
                self.repo.name,
                self.branch,
                self.name,
                self.base,
                head,
                changes,
                tuple(self.unversioned()),
                self.conflicts,
                self.owner(),
                self.count_times({change.path for change in changes}),
            )
        finally:
            self.reader = reader
