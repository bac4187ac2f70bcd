"""Who owns a worktree: the holder of the lock in its directory, which says of itself who it is.

A mount has the lock from the first change until nothing is changed any more; others are refused meanwhile. Everybody else who has it gives it back by itself: a
command after one call, and a process that ended (a mount that was killed, or unmounted on a busy machine) as soon as the kernel has closed its files. Those are waited
for: whoever unmounts, mounts again and writes must not be told that somebody else has the worktree.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pfsmount.objects.layout import disk_errors, fsync_directory
from pfsmount.objects.locks import is_locked, is_path_locked, try_lock

PATIENCE_S = 5.0
"""How long whoever gives the lock back by itself is waited for."""
STEP_S = 0.01


class Ownership:
    """The lock of one worktree, as this process may hold it."""

    def __init__(self, directory: Path, run: Path, who: Mapping[str, Any]) -> None:
        """`run` is the store's directory of mounts; `who` is what others are told of this process."""
        self._directory, self._run = directory, run
        self._who = dict(who)
        self._fd = -1
        self._waits_until = 0.0

    @property
    def held(self) -> bool:
        """True while this process holds the lock."""
        return self._fd >= 0

    def take(self) -> bool:
        """Take the lock, and make the directory if need be; False when somebody has it. Raises NoSpace, PermissionDenied."""
        with disk_errors("opening a worktree"):
            while True:
                # the directory may be there and its name not durable: whoever made it may have died before
                if not (self._directory / "lock").exists():
                    self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                    fsync_directory(self._directory.parent)
                    fsync_directory(self._directory.parent.parent)
                with suppress(FileNotFoundError):  # the branch is being deleted
                    fd = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                    try:
                        if not try_lock(fd):
                            return False
                        if os.fstat(fd).st_nlink:
                            text = json.dumps(self._who).encode()
                            os.pwrite(fd, text, 0)
                            os.ftruncate(fd, len(text))
                            self._fd = fd
                            return True
                    finally:
                        if self._fd != fd:
                            os.close(fd)

    def take_patiently(self) -> bool:
        """Take the lock; who gives it back by itself is waited for. False when somebody keeps it."""
        while not self.take():
            if not self.may_wait():
                return False
            time.sleep(STEP_S)
        return True

    def may_wait(self) -> bool:
        """To be asked after `take` failed: whether to try again soon. True for some seconds, while the holder is one that gives the lock back by itself."""
        now = time.monotonic()
        if now > self._waits_until + PATIENCE_S:  # the first time, or long after the last
            self._waits_until = now + PATIENCE_S
        return now <= self._waits_until and not self._is_kept()

    def _is_kept(self) -> bool:
        """Whether a mount that lives has the lock, or this process itself, elsewhere. A live one has its own record locked, last of all that it gives back."""
        who = owner_of(self._directory)
        if who is None:
            return False
        if not who.get("socket"):
            return who.get("pid") == os.getpid()  # which is waiting here
        record = os.path.splitext(os.path.basename(str(who["socket"])))[0] + ".json"
        return is_path_locked(self._run / record)

    def give_back(self) -> None:
        """Let others have the lock. Any number of times."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def owner(self) -> dict[str, Any] | None:
        """Who holds the lock, as it said of itself; None for nobody or this process."""
        return None if self.held else owner_of(self._directory)


def owner_of(directory: Path) -> dict[str, Any] | None:
    """Who holds the lock of the worktree in `directory`, as it said of itself; None for nobody."""
    try:
        fd = os.open(directory / "lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not is_locked(fd):
            return None
        with suppress(ValueError):
            found = json.loads(os.pread(fd, 4096, 0))
            return found if isinstance(found, dict) else {}
        return {}
    finally:
        os.close(fd)
