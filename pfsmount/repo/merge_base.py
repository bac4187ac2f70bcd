"""Where two histories parted.

Both are painted backwards, newest commits first, until nothing is left that only one side has (as git does). So the cost is the number of commits
since they parted, and the result does not depend on clocks: times only decide in which order commits are read.

A `Parting` keeps what it has painted, so a merge that lost its race to other commits reads only those before it tries again: with a walk from the start (0.1 ms a
commit) a long history would make each try as slow as the first, and the others would always be faster.
"""

from __future__ import annotations

import heapq

from pfsmount.ids import ObjectId
from pfsmount.objects.reading import Reader
from pfsmount.repo.commit import Commit, ancestor_at, load_commit

_ONE, _OTHER, _STALE = 1, 2, 4
_COMMON = _ONE | _OTHER


class _Paint:
    """Which of two commits each commit is an ancestor of, as far as that was needed."""

    def __init__(self, objects: Reader, one: Commit, other: Commit) -> None:
        self._objects = objects
        self.flags: dict[ObjectId, int] = {}
        self.common: dict[ObjectId, Commit] = {}
        self._queue: list[tuple[int, ObjectId, Commit]] = []
        self._queued: set[ObjectId] = set()
        self._fresh = 0
        """Commits in the queue that are not below a common one."""
        self._add(other, _OTHER)
        self.go_on(one)

    def go_on(self, one: Commit) -> None:
        """Paint what is new with a commit that was made on top of the first one."""
        self._add(one, _ONE)
        while self._fresh:
            self._step()

    def _add(self, commit: Commit, flags: int) -> None:
        have = self.flags.get(commit.id, 0)
        if have | flags == have:
            return
        self.flags[commit.id] = have | flags
        if commit.id not in self._queued:
            self._queued.add(commit.id)
            heapq.heappush(self._queue, (-commit.time_ns, commit.id, commit))
            self._fresh += not (have | flags) & _STALE
        elif flags & _STALE and not have & _STALE:
            self._fresh -= 1

    def _step(self) -> None:
        _, id, commit = heapq.heappop(self._queue)
        self._queued.remove(id)
        flags = self.flags[id]
        self._fresh -= not flags & _STALE
        if flags & _COMMON == _COMMON:
            if not flags & _STALE:
                self.common[id] = commit
            flags |= _STALE
        for parent in commit.parents:
            have = self.flags.get(parent, 0)
            if have | flags != have:
                self._add(load_commit(self._objects, parent), flags)


class Parting:
    """Where a branch's head, which may move on, and another commit parted."""

    def __init__(self, objects: Reader, other: Commit) -> None:
        self._objects, self._other = objects, other
        self._paint: _Paint | None = None
        self._head: Commit | None = None

    def bases(self, head: Commit) -> list[Commit]:
        """As `merge_bases` of a head and the other commit. The cost is that of what is new since the last head. Raises NotFound, Corrupt."""
        objects, other = self._objects, self._other
        if _is_on_chain(objects, other, head):
            return [other]
        if _is_on_chain(objects, head, other):
            return [head]
        if self._paint is None or self._head is None or not _is_on_chain(objects, self._head, head):
            self._paint = _Paint(
                objects, head, other
            )  # the first, or the branch was reset: what was painted may not be in it
        else:
            self._paint.go_on(head)
        self._head = head
        return _best(objects, self._paint)


def _is_on_chain(objects: Reader, one: Commit, other: Commit) -> bool:
    return one.height <= other.height and ancestor_at(objects, other, one.height).id == one.id


def is_ancestor(objects: Reader, one: Commit, other: Commit) -> bool:
    """True when `other` is `one` or was made on top of it, by any parents."""
    return _is_on_chain(objects, one, other) or bool(_Paint(objects, one, other).flags[one.id] & _OTHER)


def merge_bases(objects: Reader, one: Commit, other: Commit) -> list[Commit]:
    """The common ancestors that are not ancestors of another common one: none for unrelated histories, several after criss-cross merges; one of the two
    itself when the other was made on top of it.

    In an order that does not depend on which commit comes first. Raises NotFound, Corrupt.
    """
    return Parting(objects, other).bases(one)


def _best(objects: Reader, paint: _Paint) -> list[Commit]:
    found = [commit for id, commit in paint.common.items() if not paint.flags[id] & _STALE]
    if len(found) > 1:  # clocks that went backwards, or a head that moved on, may have hidden that one is below another
        found = [
            commit
            for commit in found
            if not any(rival is not commit and is_ancestor(objects, commit, rival) for rival in found)
        ]
    return sorted(found, key=lambda commit: (commit.time_ns, commit.id))
