"""Who owns what a container writes: its user while the command runs, the runner afterwards.

Root needs no more than to give the output directory away. An ordinary user's containers write as users of the range that the machine has given the
user (subuid), and only root of the containers' user namespace may change the owner of such files: one helper process there does, for all workers.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from runner.executors import wire
from runner.executors.base import ExecutorError

_IMPORT_ROOT = Path(__file__).resolve().parents[3]
_BOOT = (
    "import sys; sys.path.append(sys.argv[1]); import runner.executors.containers.chowner as chowner; chowner.main()"
)


class Owners:
    """Gives directories to a container's user, and takes them back. Thread-safe; blocking. Raises ExecutorError.

    `unshare` starts a command as root of the containers' user namespace; empty: there is no such way.
    """

    def __init__(self, unshare: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self._unshare = tuple(unshare)
        self._env = env
        self._helper: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._users = 0

    def __enter__(self) -> Owners:
        with self._lock:
            self._users += 1
        return self

    def __exit__(self, *error: object) -> None:
        """The helper ends with the last worker."""
        with self._lock:
            self._users -= 1
            if not self._users and self._helper is not None:
                end(self._helper)
                self._helper = None

    def can_share_with(self, uid: int) -> bool:
        """Whether directories can go to this user of the host, and come back."""
        return os.geteuid() in (0, uid) or bool(self._unshare)

    def must_give(self, directory: Path, uid: int, gid: int) -> bool:
        """Whether the container's user, by its ids as the host sees them, does not own the directory yet."""
        info = directory.stat()
        return info.st_uid != uid or (info.st_gid != gid and not os.geteuid())

    def give(self, directory: Path, uid: int, gid: int) -> None:
        """An empty directory to the container's user."""
        if os.geteuid():
            self._ask("give", directory, uid, gid)
        else:
            os.chown(directory, uid, gid)

    def take(self, directory: Path) -> None:
        """To the runner, where it is not root: the directory and all that is in it."""
        uid = os.geteuid()
        if uid and has_foreign(os.fsencode(directory), uid):
            self._ask("take", directory, uid, os.getegid())

    def _ask(self, what: str, directory: Path, uid: int, gid: int) -> None:
        with self._lock:
            helper = self._helper = self._helper or self._start()
            assert helper.stdin is not None
            assert helper.stdout is not None
            try:
                wire.write_all(helper.stdin.fileno(), wire.pack((what, os.fsencode(directory), uid, gid)))
                said = wire.read_one(helper.stdout.fileno())
            except OSError as error:
                said = error.strerror
            if said is None:
                self._helper = None
                said = f"the helper ended: {end(helper)}"
        if said:
            raise ExecutorError(f"cannot change the owner of what a container wrote: {said}")

    def _start(self) -> subprocess.Popen[bytes]:
        if not self._unshare:
            raise ExecutorError("the command gave its output to another user, and the runner is not root")
        try:
            return subprocess.Popen(
                [*self._unshare, sys.executable, "-I", "-S", "-c", _BOOT, os.fspath(_IMPORT_ROOT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                env=self._env,
                start_new_session=True,
            )
        except OSError as error:
            raise ExecutorError(f"cannot start {self._unshare[0]}: {error.strerror}") from error


def end(helper: subprocess.Popen[bytes]) -> str:
    """Its last words."""
    _, said = helper.communicate()
    lines = said.decode(errors="replace").splitlines()
    return lines[-1] if lines else f"exit code {helper.returncode}"


def has_foreign(top: bytes, uid: int) -> bool:
    """Whether something has another owner, or may have one: a directory that its owner has closed shows nothing."""
    if os.lstat(top).st_uid != uid:
        return True
    todo = [top]
    while todo:
        try:
            with os.scandir(todo.pop()) as scan:
                items = list(scan)
        except PermissionError:
            return True
        for item in items:
            info = item.stat(follow_symlinks=False)
            if info.st_uid != uid:
                return True
            if stat.S_ISDIR(info.st_mode):
                todo.append(os.fsencode(item.path))
    return False
