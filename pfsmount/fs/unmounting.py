"""Taking a mount away: a live one, a busy one, a dead one."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pfsmount.errors import Busy, InvalidInput
from pfsmount.fs.mountpoint import live_at, mounted_at, real_path, run_unmount
from pfsmount.fs.records import MountRecord, live_mounts

END_SECONDS = 20.0
_PATIENCE_SECONDS = 10.0
"""Before a process that was told to end is killed: on a busy machine three were too few, and what it cleans up in the end stayed."""
_USERS_MAX = 5


@dataclass(frozen=True, slots=True)
class Unmounted:
    """What was taken away."""

    mount_point: str
    was_dead: bool
    """Nobody served it any more."""
    forced: bool
    ending: int | None = None
    """The process that served it and has not ended yet: until then it has the worktrees."""


def unmount(path: Path, store: Path, *, force: bool = False, seconds: float = END_SECONDS) -> Unmounted:
    """Unmount, and wait (so many seconds at most) until the daemon has ended, so that its worktrees are free. `force`: whoever uses it, and even if it hangs.

    `store` is where its daemon is looked for when the mount does not name its own.

    Raises InvalidInput (nothing of pfs is mounted there), Busy (with who uses it), PermissionDenied, Unavailable.
    """
    point = real_path(path)
    mount = mounted_at(point)
    if mount is None or not mount.is_pfs:
        resolved = os.path.realpath(point)
        mount = mounted_at(resolved)
        if mount is None or not mount.is_pfs:
            raise InvalidInput(f"no pfs is mounted at {path}", hint="'pfs mounts' shows what is")
        point = resolved
    record = live_at(mount, store)
    if record is None:
        # One that does not name its store may be alive: it is not taken from who uses it.
        run_unmount(point, lazy=force or mount.store is not None, force=force and os.getuid() == 0)
        return Unmounted(point, mount.store is not None and not mount.is_of_job, force)
    if force:
        _force(point, record)
        return Unmounted(point, False, True, _ending(record))
    try:
        run_unmount(point, lazy=False)
    except Busy:
        users = users_of(point)
        who = f" by {', '.join(users)}" if users else ""
        raise Busy(f"{path} is in use{who}", hint=f"end what uses it, or 'pfs umount --force {path}'") from None
    with suppress(ProcessLookupError, PermissionError):
        os.kill(record.pid, signal.SIGCONT)  # stopped, it would not notice
    _wait_for_end(record, seconds)
    return Unmounted(point, False, False, _ending(record))


def _force(point: str, record: MountRecord) -> None:
    with suppress(Busy):
        run_unmount(point, lazy=True, force=os.getuid() == 0)
    # The connection ends with its last descriptor: what hangs in a request gets an error then.
    for number in (signal.SIGTERM, signal.SIGKILL):
        if _alive(record):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(record.pid, number)
                os.kill(record.pid, signal.SIGCONT)  # stopped, it would not end
            _wait_for_end(record, _PATIENCE_SECONDS)


def _alive(record: MountRecord) -> bool:
    # by the lock on its record, not by its pid, which another process may have by now
    return any(other.pid == record.pid for other in live_mounts(Path(record.store)))


def _ending(record: MountRecord) -> int | None:
    return record.pid if _alive(record) else None


def _wait_for_end(record: MountRecord, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while _alive(record) and time.monotonic() < deadline:
        time.sleep(0.01)


def users_of(point: str) -> list[str]:
    """Processes with a file or directory of the mount open, as `name (pid)`: those that this user may look at."""
    found = []
    prefix = point.rstrip("/") + "/"
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid() and _uses(entry, point, prefix):
            name = "?"
            with suppress(OSError):
                name = Path(f"/proc/{entry}/comm").read_text(errors="replace").strip()
            found.append(f"{name} ({entry})")
            if len(found) == _USERS_MAX:
                break
    return found


def _uses(pid: str, point: str, prefix: str) -> bool:
    links = [f"/proc/{pid}/cwd", f"/proc/{pid}/root"]
    with suppress(OSError):
        links += [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
    for link in links:
        with suppress(OSError):
            target = os.readlink(link)  # the text only: following it could hang
            if target == point or target.startswith(prefix):
                return True
    return False
