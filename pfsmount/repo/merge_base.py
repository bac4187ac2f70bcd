"""Where two histories parted.

Both are painted backwards, newest commits first, until nothing is left that only one side has (as git does). So the cost is the number of commits
since they parted, and the result does not depend on clocks: times only decide in which order commits are read.
"""

from __future__ import annotations

import heapq

from pfsmount.ids import ObjectId
from pfsmount.objects.store import Reader
from pfsmount.repo.commit import Commit, ancestor_at, load_commit

_ONE, _OTHER, _STALE = 1, 2, 4
_COMMON = _ONE | _OTHER


class _Paint:
    """Which of two commits each commit is an ancestor of, as far as that was needed."""

    def __init__(self, objects: Reader, one: Commit, other: Commit) -> None:
        self._objects = objects
        self.flags: dict[ObjectId, int] = {}
        self.common: dict[ObjectId, Commit] = {}
        self._queue: list[tuple[int, ObjectId]] = []
        self._queued: set[ObjectId] = set()
        self._fresh = 0
        """Commits in the queue that are not below a common one."""
        self._add(one, _ONE)
        self._add(other, _OTHER)
        while self._fresh:
            self._step()

    def _add(self, commit: Commit, flags: int) -> None:
        have = self.flags.get(commit.id, 0)
        if have | flags == have:
            return
        self.flags[commit.id] = have | flags
        if commit.id not in self._queued:
            self._queued.add(commit.id)
            heapq.heappush(self._queue, (-commit.time_ns, commit.id))
            self._fresh += not (have | flags) & _STALE
        elif flags & _STALE and not have & _STALE:
            self._fresh -= 1

    def _step(self) -> None:
        _, id = heapq.heappop(self._queue)
        self._queued.remove(id)
        commit, flags = load_commit(self._objects, id), self.flags[id]
        self._fresh -= not flags & _STALE
        if flags & _COMMON == _COMMON:
            if not flags & _STALE:
                self.common[id] = commit
            flags |= _STALE
        for parent in commit.parents:
            self._add(load_commit(self._objects, parent), flags)


def is_ancestor(objects: Reader, one: Commit, other: Commit) -> bool:
    """True when `other` is `one` or was made on top of it, by any parents."""
    if one.height <= other.height and ancestor_at(objects, other, one.height).id == one.id:
        return True
    return bool(_Paint(objects, one, other).flags[one.id] & _OTHER)


def merge_bases(objects: Reader, one: Commit, other: Commit) -> list[Commit]:
    """The common ancestors that are not ancestors of another common one: none for unrelated histories, several after criss-cross merges.

    In an order that does not depend on which commit comes first. Raises NotFound, Corrupt.
    """
    paint = _Paint(objects, one, other)
    found = [commit for id, commit in paint.common.items() if not paint.flags[id] & _STALE]
    if len(found) > 1:  # clocks that went backwards may have hidden that one is below another
        found = [
            commit
            for commit in found
            if not any(rival is not commit and is_ancestor(objects, commit, rival) for rival in found)
        ]
    return sorted(found, key=lambda commit: (commit.time_ns, commit.id))
