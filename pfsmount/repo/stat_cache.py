"""What local files held when they were last read, so that a file that did not change is not read again.

| table | key | value |
|---|---|---|
| stats | device u64 BE, inode u64 BE | size u64, mtime i64 ns, ctime i64 ns, file id (32) |

A file counts as unchanged when size, mtime and ctime are what they were. No program can set a ctime, so that is as good as reading the file, but
for two ways in which a file changes and its times do not, which are kept out:

* Two changes within one tick of the kernel's clock (up to 10 ms).
* A write through a shared mapping to a page that is dirty already. The kernel writes a dirty page out within 35 s and the next write to it then
  sets the times; on tmpfs it never does.

So only files are remembered whose times were at least a minute old when they were read, on filesystems that write pages out to a disk of this
machine. An entry is only a hint: an id that the store does not have (any more) is not used.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from pfsmount.ids import ObjectId
from pfsmount.objects.index import Index, Table

_KEY = struct.Struct(">QQ")
_VALUE = struct.Struct("<Qqq32s")
_AGE_NS = 60 * 1_000_000_000
_LOCAL = frozenset({"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "reiserfs", "xfs", "zfs"})
_WRITE_AT_ONCE = 20_000
_WORTH_FILES = 100
_WORTH_BYTES = 64 << 20


class StatCache:
    """The table of one store, for one run of `put`."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._local: dict[int, bool] = {}
        self._new: dict[bytes, bytes] = {}
        self._new_bytes = 0
        self._worth = False

    def serves(self, fd: int) -> bool:
        """True when the times of the files in this open directory can be trusted."""
        device = os.fstat(fd).st_dev
        local = self._local.get(device)
        if local is None:
            local = self._local[device] = _filesystem_of(fd) in _LOCAL
        return local

    def find(self, infos: Sequence[os.stat_result]) -> list[ObjectId | None]:
        """The ids of the files with these stats, None where it is not known."""
        keys = [_key(info) for info in infos]
        with self._index.read() as txn:
            known = txn.get_many(Table.STATS, keys)
        return [_id_of(info, known.get(key)) for info, key in zip(infos, keys, strict=True)]

    def remember(self, info: os.stat_result, id: ObjectId, now_ns: int) -> None:
        """Note what a file held that was read after `info` and `now_ns` were taken."""
        if now_ns - max(info.st_mtime_ns, info.st_ctime_ns) >= _AGE_NS:
            self._new[_key(info)] = _VALUE.pack(info.st_size, info.st_mtime_ns, info.st_ctime_ns, id)
            self._new_bytes += info.st_size
            if len(self._new) >= _WRITE_AT_ONCE:
                self._write()

    def flush(self) -> None:
        """Write what was noted, unless it is so little that reading it again costs less. Raises NoSpace."""
        if self._worth or len(self._new) >= _WORTH_FILES or self._new_bytes >= _WORTH_BYTES:
            self._write()

    def _write(self) -> None:
        self._worth = True
        with self._index.write() as txn:
            for key, value in sorted(self._new.items()):
                txn.put(Table.STATS, key, value)
        self._new.clear()


def _key(info: os.stat_result) -> bytes:
    return _KEY.pack(info.st_dev, info.st_ino)


def _id_of(info: os.stat_result, value: bytes | None) -> ObjectId | None:
    if value is None:
        return None
    size, mtime_ns, ctime_ns, id = _VALUE.unpack(value)
    same = size == info.st_size and mtime_ns == info.st_mtime_ns and ctime_ns == info.st_ctime_ns
    return ObjectId(id) if same else None


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
