"""What takes a worktree of a mount from one state to another as a whole: commit, follow, discard.

One at a time (`_turning`). Each consists of instants on the event loop's thread and of work in other threads between them; while that work needs the
worktree to hold still, the gate is closed and changes wait: for the last transaction of a commit, not for its ingest. What the kernel has
cached is told to be forgotten after the gate is open again, because the kernel may hold a directory's lock for a request that waits at the gate.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from itertools import islice
from typing import Protocol, TypeVar

import trio

from pfsmount.errors import Collected, Conflict, NotFound
from pfsmount.fs.branch import BranchPlace
from pfsmount.ids import RepoPath
from pfsmount.objects.batch import Batch
from pfsmount.objects.open_segments import seal_adopted
from pfsmount.repo.overlay import WouldBlock
from pfsmount.repo.overlay_nodes import Effects
from pfsmount.repo.worktree import CommitResult
from pfsmount.repo.worktree_status import WorktreeStatus
from pfsmount.tree.diff import Change, diff
from pfsmount.tree.entry import Entry
from pfsmount.tree.merge import Resolution

T = TypeVar("T")
_TRIES = 100
_DIFF_STEP = 500


class Kernel(Protocol):
    """The kernel's caches, as far as they can be told to forget."""

    def forget_entry(self, directory: int, name: bytes) -> None:
        """What a name means may differ. Returns at once."""

    def forget_attributes(self, ino: int) -> None:
        """The attributes of an inode may differ. Returns at once."""

    async def settled(self) -> None:
        """Wait until all that was asked before has happened."""

    def sync_pages(self, paths: Collection[bytes]) -> None:
        """Write dirty pages of memory maps of these files of the mount back to it. Waits; for another thread."""


async def in_thread(work: Callable[[], T]) -> T:
    """Run something that waits. Never abandoned: it ends before this does."""
    return await trio.to_thread.run_sync(work, limiter=_limiter())


_LIMITER: trio.CapacityLimiter | None = None


def _limiter() -> trio.CapacityLimiter:
    # Commits have threads of their own, so that readers that wait for a slow disk cannot take them all.
    global _LIMITER
    if _LIMITER is None:
        _LIMITER = trio.CapacityLimiter(32)
    return _LIMITER


class Turning:
    """The turns of one branch of the mount."""

    def __init__(self, place: BranchPlace, kernel: Kernel) -> None:
        self.place = place
        self._kernel = kernel
        self._turning = trio.Lock()

    @asynccontextmanager
    async def _quiet(self) -> AsyncIterator[None]:
        """Nobody changes the worktree meanwhile."""
        place = self.place
        assert place.gate is None
        place.gate = trio.Event()
        try:
            if place.in_flight:
                place.drained = trio.Event()
                await place.drained.wait()
                place.drained = None
            yield
        finally:
            place.gate.set()
            place.gate = None

    async def _tell(self, effects: Effects) -> None:
        prefix, shown = self.place.prefix, self.place.shown
        for directory, name in effects.entries:
            if (number := shown(directory)) is not None:
                self._kernel.forget_entry(prefix | number, name)
        for ino in effects.attributes:
            if (number := shown(ino)) is not None:
                self._kernel.forget_attributes(prefix | number)
        if effects.entries or effects.attributes:
            await self._kernel.settled()

    # Following

    async def follow(self) -> None:
        """Show the branch's head, if it moved, or what another owner did. Raises OSError, Corrupt, NoSpace."""
        async with self._turning:
            await self._follow()

    async def _follow(self) -> None:
        worktree = self.place.worktree
        worktree.look()
        effects = worktree.take_unseen()
        old = worktree.root.entry
        try:
            behind = worktree.head() != worktree.base
        except NotFound:
            behind = False  # the branch was deleted: what is open stays
        if not behind or worktree.foreign is not None:
            if not behind:
                worktree.conflicts = ()
            await self._tell(effects)
            return
        async with self._quiet():
            move = await in_thread(worktree.prepare_move)
            if move is not None:
                journal = await in_thread(lambda: worktree.carry_out_move(move))
                effects.add(worktree.finish_move(move, journal))
        await self._tell(effects)
        await in_thread(worktree.data.empty_trash)
        new = worktree.root.entry
        if old is not None and new is not None and old != new:
            await self._tell_difference(old, new)

    async def _tell_difference(self, old: Entry, new: Entry) -> None:
        changes = diff(self.place.worktree.objects, old, new)
        while True:
            some: list[Change] = await in_thread(lambda: list(islice(changes, _DIFF_STEP)))
            if not some:
                return
            effects = Effects([], [])
            for path, before, after in some:
                self._effects_of(path, before, after, effects)
            await self._tell(effects)

    def _effects_of(self, path: RepoPath, before: Entry | None, after: Entry | None, effects: Effects) -> None:
        worktree = self.place.worktree
        if before is not None and after is not None and before.is_directory and after.is_directory:
            directory = worktree.known_directory(path)
            if directory is not None:
                effects.attributes.append(directory.ino)
            return
        parent = worktree.known_directory(path[:-1])
        if parent is not None and path:
            effects.entries.append((parent.ino, path[-1]))
            effects.attributes.append(parent.ino)

    # Committing

    async def _sync_pages(self) -> None:
        paths = self.place.mappable_paths()
        await in_thread(lambda: self._kernel.sync_pages(paths))

    async def commit(
        self, message: str, paths: Collection[RepoPath] | None = None, author: str | None = None
    ) -> CommitResult:
        """One atomic commit of everything as it is at one instant, or of what is at and below `paths`.

        Raises Conflict, NotFound, ReadOnly, NoSpace, OSError, Corrupt; then nothing is committed and nothing lost.
        """
        await self._sync_pages()
        async with self._turning:
            with self.place.worktree.turn_of_branch() as turn:
                for attempt in range(_TRIES):
                    await in_thread(turn.wait)  # the gate is open meanwhile
                    await self._follow()
                    self.place.worktree.check_conflicts()
                    result = await self._commit_once(message, paths, author, last=attempt + 1 == _TRIES)
                    if result is not None:
                        await self._tell(result.effects)
                        return result
                    turn.lost()
        raise AssertionError("unreachable")

    async def _commit_once(
        self, message: str, paths: Collection[RepoPath] | None, author: str | None, *, last: bool
    ) -> CommitResult | None:
        """None: the head moved, or a gc came between; then again."""
        worktree = self.place.worktree
        if worktree.foreign is not None:
            raise worktree.not_ours()
        if worktree.journal is None:
            return CommitResult(None, (), Effects([], []))
        async with self._quiet():
            cut = await self._patiently(lambda: worktree.cut(paths))
        try:
            async with self._batch() as batch:
                root = await in_thread(lambda: worktree.ingest(cut, batch, lambda _: self._thaw()))
                unversioned = tuple(cut.unversioned)
                if not worktree.is_worth_a_commit(cut, root):
                    return CommitResult(None, unversioned, Effects([], []))
                await in_thread(batch.flush_if_large)
                async with self._quiet():
                    after = worktree.settle(cut)
                    try:
                        commit, journal = await in_thread(
                            lambda: worktree.finish_commit(cut, after, batch, root, message, author)
                        )
                    except Conflict:
                        if last:
                            raise
                        return None
                    effects = worktree.apply(after, commit.id, commit.tree, journal)
        except Collected:
            if last:
                raise
            return None
        finally:
            worktree.release_cut(cut)
            self.place.wake_writers()
        worktree.release_if_clean()
        await in_thread(worktree.data.empty_trash)
        await in_thread(lambda: seal_adopted(worktree.objects, batch.adopted))
        return CommitResult(commit, unversioned, effects)

    @asynccontextmanager
    async def _batch(self) -> AsyncIterator[Batch]:
        """A batch that gives back what it did not publish in another thread: that may wait for the disk."""
        batch = self.place.worktree.objects.batch()
        try:
            yield batch
        finally:
            with trio.CancelScope(shield=True):
                await in_thread(batch.close)

    def _thaw(self) -> None:
        # In the ingest's thread. The waiting count is checked before the hop because one costs 50 µs and there may be 100 000 files;
        # a writer counts itself before it looks at `frozen`, so none is missed.
        if self.place.waiting:
            trio.from_thread.run_sync(self.place.wake_writers)

    async def _patiently(self, call: Callable[[], T]) -> T:
        while True:
            try:
                return call()
            except WouldBlock as error:
                await in_thread(error.work)

    # Discarding and looking

    async def discard(self, paths: Collection[RepoPath] | None = None) -> None:
        """Give up all changes, or those at and below `paths`. Raises NotFound, ReadOnly, NoSpace."""
        worktree = self.place.worktree
        await self._sync_pages()
        async with self._turning:
            await self._follow()
            if worktree.foreign is not None:
                raise worktree.not_ours()
            if worktree.journal is None:
                worktree.discard(paths)
                return
            async with self._quiet():
                after, journal = await in_thread(lambda: worktree.carry_out_discard(paths))
                effects = worktree.finish_discard(after, journal)
            await self._tell(effects)
            await in_thread(worktree.data.empty_trash)
            await self._follow()

    async def resolve(self, how: Resolution, paths: Collection[RepoPath] | None) -> tuple[list[RepoPath], int]:
        """Settle conflicts at and below `paths`, or all: what was settled, and how many are open. Raises NotFound, ReadOnly, NoSpace."""
        worktree = self.place.worktree
        await self._sync_pages()
        async with self._turning:
            await self._follow()
            if worktree.foreign is not None:
                raise worktree.not_ours()
            chosen = worktree.record_decisions(how, paths)
            await in_thread(lambda: worktree.sync_now([]))
            await self._follow()
            return chosen, worktree.open_conflicts

    async def status(self) -> WorktreeStatus:
        """What is uncommitted. Raises OSError, Corrupt."""
        worktree = self.place.worktree
        for node in worktree.unhashed():
            change = node.change
            if change is None or change.data is None:
                continue
            key = (change.number, change.version)
            content = None
            if change.data.extents is not None:
                content = await self._patiently(lambda node=node: worktree.content_of(node))  # type: ignore[misc]
            with worktree.reading(node, content, 0, worktree.stat_data(change).size) as reading:
                await in_thread(lambda key=key, reading=reading: worktree.remember_hash(key, reading))  # type: ignore[misc]
        return worktree.status()
