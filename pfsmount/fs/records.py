"""Who has a store mounted: `run/mount-<pid>.json`, locked by the daemon for as long as it lives.

The lock, not the pid, says whether the daemon lives: pids are used again. What a dead daemon left is deleted by whoever sees it.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pfsmount.objects.layout import disk_errors
from pfsmount.objects.locks import try_lock

_PREFIX = "mount-"
_FIELDS: dict[str, tuple[type, ...]] = {
    "pid": (int,),
    "mount": (str,),
    "store": (str,),
    "socket": (str,),
    "log": (str,),
    "uid": (int,),
    "since_ns": (int,),
    "allow_other": (bool,),
}
_LATER: dict[str, tuple[type, ...]] = {
    "revision": (str,),
    "commit": (str, type(None)),
    "read_only": (bool,),
    "autocommit": (int, float, type(None)),
}
"""What a daemon of an earlier version does not say."""


@dataclass(frozen=True, slots=True)
class MountRecord:
    """One live mount."""

    pid: int
    mount: str
    """The mount point."""
    store: str
    socket: str
    """Name of the control socket in `run/`."""
    log: str
    """The log file; empty when it logs to a terminal."""
    uid: int
    since_ns: int
    allow_other: bool
    revision: str = ""
    """What is mounted, as `images@master:/photos`; empty for all of the store."""
    commit: str | None = None
    """The id of the commit that is mounted, which never changes."""
    read_only: bool = False
    autocommit: float | None = None
    """After how many seconds without a change uncommitted work is committed."""

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


class HeldRecord:
    """The record of this process; it ends with it."""

    def __init__(self, run: Path, record: MountRecord) -> None:
        """Raises NoSpace, PermissionDenied."""
        self._path = run / f"{_PREFIX}{record.pid}.json"
        self.socket = run / record.socket
        with disk_errors("noting the mount"):
            self._fd = _open_locked(self._path)
            text = json.dumps(asdict(record)).encode()
            os.pwrite(self._fd, text, 0)
            os.ftruncate(self._fd, len(text))

    def remove(self) -> None:
        """Take it away."""
        for path in (self.socket, self._path):
            with suppress(OSError):
                os.unlink(path)
        os.close(self._fd)


def new_record(store: Path, mount: str, log: str, **more: Any) -> MountRecord:
    """The record of a mount that this process is about to serve. `more` are the fields from `allow_other` on."""
    pid = os.getpid()
    return MountRecord(pid, mount, str(store), f"{_PREFIX}{pid}.sock", log, os.getuid(), time.time_ns(), **more)


def live_mounts(store: Path) -> list[MountRecord]:
    """All live mounts of a store, oldest first."""
    found = []
    for path in sorted((store / "run").glob(f"{_PREFIX}*.json")):
        record = _read(path)
        if record is not None:
            found.append(record)
    return sorted(found, key=lambda record: record.since_ns)


def parse_record(raw: bytes) -> MountRecord | None:
    """The record in a file; None when it is none."""
    try:
        value: Any = json.loads(raw)
        known = {
            key: of for key, of in value.items() if key in _FIELDS or key in _LATER
        }  # the daemon may be of a later version
        good = all(type(known[key]) in kinds for key, kinds in _FIELDS.items())
        good = good and all(type(known[key]) in kinds for key, kinds in _LATER.items() if key in known)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    # the socket lies beside the record, nowhere else
    if not good or os.path.basename(value["socket"]) != value["socket"] or "\0" in value["store"] + value["socket"]:
        return None
    return MountRecord(**known)


def _open_locked(path: Path) -> int:
    """Whoever looks at records may meet the new file before it is locked, and take it for one of the dead: then again, with another."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while not try_lock(fd):
            time.sleep(0.001)
        if os.fstat(fd).st_nlink:
            return fd
        os.close(fd)


def _read(path: Path) -> MountRecord | None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not try_lock(fd):
            return parse_record(os.pread(fd, 65536, 0))
        for left in (path, path.with_suffix(".sock")):
            with suppress(OSError):
                os.unlink(left)
        return None
    finally:
        os.close(fd)
