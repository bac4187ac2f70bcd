"""Taking turns on a branch, so that nobody who wants to commit loses for ever.

Two writers on one branch do not wait for each other: who comes second does its work again on top of the new head. When that work takes longer than the
others' (a merge beside puts in a loop), it could come second each time. So who has lost some times takes **the turn** of that branch, and keeps it until it is
done; all others wait for that before they look at the head again. Each of them may be past that look already, so each can make the holder lose once more, and that is all.

The turn is a lock on one byte of `run/turns` (`objects/locks.py`); which byte, the repo's and branch's names decide.
Nobody needs it in order to be right, only to be fair: every wait for it ends after some seconds, so a holder that is stopped, or slow, delays others by that, and
where the file cannot be opened (a full disk) there are no turns. Whoever waits may hold a worktree and segments, but never the index's writer lock.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

from pfsmount.ids import ObjectId
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.locks import is_locked, try_lock
from pfsmount.repo.refs import RefKind, RepoInfo, ref_key

_LOSSES = 3
"""Mostly one loss is chance, and the next try wins."""
_PATIENCE_S = 10.0
_STEP_S, _STEP_MAX_S = 0.0005, 0.02


class Turn:
    """One writer's tries to commit to a branch. A context manager: leaving it gives the turn back."""

    def __init__(self, store: Path, repo: RepoInfo, branch: str) -> None:
        self._losses = 0
        self.held = False
        """This writer has the turn."""
        self._byte = _byte_of(hash_bytes(ref_key(repo, RefKind.BRANCH, branch)))
        try:
            self._fd = os.open(store / "run" / "turns", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            self._fd = -1

    def __enter__(self) -> Turn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the turn back. Any number of times."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self.held = False

    def wait(self) -> None:
        """To be called before each look at the head: lets whoever has the turn go first, for some seconds; who has lost often takes it."""
        if self._fd < 0 or self.held:
            return
        end, step = time.monotonic() + _PATIENCE_S, _STEP_S
        while not self._may_go():
            if time.monotonic() >= end:
                return
            time.sleep(step)
            step = min(step * 2, _STEP_MAX_S)

    def lost(self) -> None:
        """The head moved before the commit."""
        self._losses += 1

    def _may_go(self) -> bool:
        if self._losses >= _LOSSES:
            self.held = try_lock(self._fd, self._byte)
            return self.held
        return not is_locked(self._fd, self._byte)


def _byte_of(name: ObjectId) -> int:
    return int.from_bytes(name[:8], "little") >> 2
