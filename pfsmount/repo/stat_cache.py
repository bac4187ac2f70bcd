"""What local files held when they were last read, so that a file that did not change is not read again.

| table | key | value |
|---|---|---|
| stats | device u64 BE, inode u64 BE | size, mtime and ctime in ns (12 bytes each, signed), fixed part of the entry (64, `tree.entry`) |

The entry may be kept whole, since a change of mode or owner sets the ctime as well.

A file counts as unchanged when size, mtime and ctime are what they were. No program can set a ctime, so that is as good as reading the file, but
for three ways in which a file changes and its times do not, which are kept out:

* Two changes within one tick of the kernel's clock (up to 10 ms).
* A write through a shared mapping to a page that is dirty already. The kernel writes a dirty page out within 35 s (it says how long; on tmpfs
  never) and the next write to it then sets the times.
* One large write(2): it sets the times when it begins, and a slow disk may take minutes for it.

So only files are remembered whose times were at least a minute old when they were read, and 0.2 s more for each MB, on filesystems that write pages out
to a disk of this machine; not in images (loop devices), whose device numbers and ctimes are anything. An entry is only a hint: an id that the store does
not have (any more) is not used.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from pfsmount.errors import PfsError
from pfsmount.objects.index import Index, Table
from pfsmount.objects.store import ObjectStore
from pfsmount.tree.entry import FIXED

T = TypeVar("T")
_KEY = struct.Struct(">QQ")
_STATE = struct.Struct("<Q4xQ4xQ4x")
_STATE_BYTES = _STATE.size
_VALUE_BYTES = _STATE_BYTES + FIXED.size
_AGE_NS = 60 * 1_000_000_000
_AGE_NS_A_BYTE = 200
_WRITE_OUT = ("dirty_expire_centisecs", "dirty_writeback_centisecs")
_WRITE_OUT_MAX = 4000
_LOOP = 7
_LOCAL = frozenset({"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "reiserfs", "xfs", "zfs"})
_WRITE_AT_ONCE = 20_000
_WORTH_FILES = 100
_WORTH_BYTES = 64 << 20


class LocalStat(Protocol):
    """What tells one state of a local file from another: `os.stat_result`, or whatever has the same."""

    @property
    def st_size(self) -> int: ...
    @property
    def st_mtime_ns(self) -> int: ...
    @property
    def st_dev(self) -> int: ...
    @property
    def st_ino(self) -> int: ...
    @property
    def st_ctime_ns(self) -> int: ...


class StatCache:
    """The cache of one store, for one run of `put`. It lies in `cache/` of the store, an LMDB environment that anybody may delete.

    A cache that cannot be opened or written is none: no method raises.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._opened: Index | None = None
        self._broken = False
        self._local: dict[int, bool] = {}
        self._new: dict[bytes, bytes] = {}
        self._new_bytes = 0
        self._worth = False

    def __enter__(self) -> StatCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()
        if self._opened is not None:
            self._opened.close()

    def serves(self, fd: int) -> bool:
        """True when the times of the files in this open directory can be trusted."""
        device = os.fstat(fd).st_dev
        if device not in self._local:
            self._local[device] = os.major(device) != _LOOP and _filesystem_of(fd) in _LOCAL and _writes_out_soon()
        return self._local[device] and not self._broken

    def find(self, infos: Sequence[LocalStat]) -> list[bytes | None]:
        """The fixed parts of the entries of the files with these stats, None where it is not known."""
        keys = [_KEY.pack(info.st_dev, info.st_ino) for info in infos]
        known = self._try(lambda index: _read(index, keys)) or {}
        local = self._local
        found: list[bytes | None] = []
        for key, info in zip(keys, infos, strict=True):
            value = known.get(key)
            fits = value is not None and len(value) == _VALUE_BYTES and value[:_STATE_BYTES] == _state(info)
            found.append(value[_STATE_BYTES:] if fits and value is not None and local.get(info.st_dev) else None)
        return found

    def remember(self, info: LocalStat, fixed: bytes, now_ns: int) -> None:
        """Note the fixed part of the entry of a file that was read after `info` and `now_ns` were taken.

        A file of another filesystem than its directory (a bind mount) is not noted, unless a directory there was looked at.
        """
        age_ns = _AGE_NS + info.st_size * _AGE_NS_A_BYTE
        if now_ns - max(info.st_mtime_ns, info.st_ctime_ns) >= age_ns and self._local.get(info.st_dev, False):
            self._new[_KEY.pack(info.st_dev, info.st_ino)] = _state(info) + fixed
            self._new_bytes += info.st_size
            if len(self._new) >= _WRITE_AT_ONCE:
                self._write()

    def flush(self) -> None:
        """Write what was noted, unless it is so little that reading it again costs less."""
        if self._worth or len(self._new) >= _WORTH_FILES or self._new_bytes >= _WORTH_BYTES:
            self._write()

    def _write(self) -> None:
        self._worth = True
        self._try(lambda index: _write(index, self._new))
        self._new.clear()

    def _try(self, action: Callable[[Index], T]) -> T | None:
        """Do something with the environment, opened at its first use; an error ends the use of the cache."""
        try:
            if self._opened is None:
                path = self._store.path / "cache"
                path.mkdir(mode=0o700, exist_ok=True)
                self._opened = Index(path, self._store.settings.map_size, (Table.STATS,))
            return action(self._opened)
        except (PfsError, OSError):
            self._broken = True
            return None


def _read(index: Index, keys: Sequence[bytes]) -> dict[bytes, bytes]:
    with index.read() as txn:
        return txn.get_many(Table.STATS, keys)


def _write(index: Index, pairs: Mapping[bytes, bytes]) -> None:
    with index.write() as txn:
        for key, value in sorted(pairs.items()):
            txn.put(Table.STATS, key, value)


def _state(info: LocalStat) -> bytes:
    try:
        return _STATE.pack(info.st_size, info.st_mtime_ns, info.st_ctime_ns)
    except struct.error:  # a time before 1970
        numbers = info.st_size, info.st_mtime_ns, info.st_ctime_ns
        return b"".join(number.to_bytes(12, "little", signed=True) for number in numbers)


def _writes_out_soon() -> bool:
    """Whether the kernel writes dirty pages out well within a minute, as it does unless somebody told it otherwise."""
    try:
        waits = [int(Path("/proc/sys/vm", name).read_text(encoding="ascii")) for name in _WRITE_OUT]
    except (OSError, ValueError):
        return False
    return all(waits) and sum(waits) <= _WRITE_OUT_MAX


def _filesystem_of(fd: int) -> str | None:
    """The type of the filesystem that an open file is on, as in /proc/self/mountinfo."""
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            mount = next(line.split()[1] for line in file if line.startswith("mnt_id:"))
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                if line.startswith(f"{mount} "):
                    return line.partition(" - ")[2].split(" ", 1)[0]
    except (OSError, StopIteration):
        pass
    return None
