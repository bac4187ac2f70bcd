"""System calls as values: made by a seed, carried out in any directory, with a result that can be compared.

A `Call` refers to files by paths from a small pool and to open files by slots, so any subset of a list of calls is a list of calls: that is what
shrinking needs.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

LONG_NAME = b"n" * 255
NAMES = [b"a", b"b", b"c", b"d", b"\xff\xfe", LONG_NAME]
SLOTS = 5
USERS: dict[int, tuple[int, list[int]]] = {0: (0, [0]), 4001: (4001, [4100]), 4002: (4002, [4100]), 65534: (65534, [])}
"""uid → gid, groups."""
_O_PATH = os.O_PATH
_libc = ctypes.CDLL(None, use_errno=True)
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2


@dataclass(frozen=True)
class Call:
    """One call by one user."""

    name: str
    arguments: tuple[Any, ...] = ()
    uid: int = 0
    umask: int = 0o022

    def __str__(self) -> str:
        who = f" as {self.uid}" if self.uid else ""
        mask = f" umask {self.umask:03o}" if self.umask != 0o022 else ""
        return f"{self.name}{self.arguments!r}{who}{mask}"


@contextmanager
def acting_as(uid: int, umask: int) -> Iterator[None]:
    """Be another user for a while, as far as files go. Only for a process with one thread at work."""
    old_mask = os.umask(umask)
    change = uid != 0 and os.geteuid() == 0
    if change:
        gid, groups = USERS[uid]
        old_gid, old_groups = os.getegid(), os.getgroups()
        os.setgroups(groups)
        os.setegid(gid)
        os.seteuid(uid)
    try:
        yield
    finally:
        if change:
            os.seteuid(0)
            os.setegid(old_gid)
            os.setgroups(old_groups)
        os.umask(old_mask)


def rename2(old: bytes, new: bytes, flags: int) -> None:
    """renameat2(2). Raises OSError."""
    if _libc.renameat2(-100, old, -100, new, flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def link2(old: bytes, new: bytes, follow: bool) -> None:
    """linkat(2): `os.link` does not follow, whatever it is told. Raises OSError."""
    if _libc.linkat(-100, old, -100, new, 0x400 if follow else 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def set_times(path: bytes, atime: tuple[int, int], mtime: tuple[int, int], *, follow: bool = True) -> None:
    """utimensat(2), with seconds and nanoseconds, NOW or OMIT. Raises OSError."""
    times = (ctypes.c_long * 4)(*atime, *mtime)
    if _libc.utimensat(-100, path, times, 0 if follow else 0x100):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def listed_xattrs(path: bytes, *, follow: bool = False) -> list[str]:
    """Names of extended attributes, without those by which a mount tells of the version. Raises OSError."""
    found = os.listxattr(path, follow_symlinks=follow)
    return sorted(name for name in found if not name.startswith("user.pfs."))


def shown(info: os.stat_result) -> tuple[int, ...]:
    """What of a stat is the same everywhere."""
    directory = stat.S_ISDIR(info.st_mode)
    mode = info.st_mode
    if stat.S_ISREG(mode) and not mode & 0o010:
        mode &= ~0o2000  # see twins.KNOWN
    return (
        mode,
        info.st_uid,
        info.st_gid,
        -1 if directory else info.st_nlink,
        -1 if directory else info.st_size,
    )


class Actor:
    """Carries out calls below one directory."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.slots: dict[int, int] = {}
        self._fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)

    def close(self) -> None:
        """Close everything; any number of times."""
        for slot in list(self.slots):
            self._close(slot)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def do(self, call: Call) -> object:
        """The result, or the name of the errno."""
        method: Callable[..., object] = getattr(self, "do_" + call.name)
        here = os.open(".", os.O_PATH)
        os.fchdir(self._fd)
        try:
            with acting_as(call.uid, call.umask):
                return method(*call.arguments)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error.errno))
        except ValueError as error:  # Python's own, for a map of an empty file
            return str(error)
        finally:
            os.fchdir(here)
            os.close(here)

    def _slot(self, slot: int) -> int:
        if slot not in self.slots:
            raise OSError(errno.EBADF, "an empty slot")
        return self.slots[slot]

    def _close(self, slot: int) -> None:
        fd = self.slots.pop(slot, None)
        if fd is not None:
            os.close(fd)

    # Names

    def do_mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(path, mode)

    def do_rmdir(self, path: bytes) -> None:
        os.rmdir(path)

    def do_unlink(self, path: bytes) -> None:
        os.unlink(path)

    def do_rename(self, old: bytes, new: bytes) -> None:
        os.rename(old, new)

    def do_rename2(self, old: bytes, new: bytes, flags: int) -> None:
        rename2(old, new, flags)

    def do_link(self, old: bytes, new: bytes, follow: bool) -> None:
        link2(old, new, follow)

    def do_symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, path)

    def do_readlink(self, path: bytes) -> bytes:
        return os.readlink(path)

    def do_mknod(self, path: bytes, mode: int) -> None:
        os.mknod(path, mode)

    def do_bind(self, path: bytes) -> None:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path)

    def do_listdir(self, path: bytes) -> list[bytes]:
        return sorted(os.listdir(path))

    # Attributes

    def do_stat(self, path: bytes) -> tuple[int, ...]:
        return shown(os.stat(path))

    def do_lstat(self, path: bytes) -> tuple[int, ...]:
        return shown(os.lstat(path))

    def do_access(self, path: bytes, mode: int) -> bool:
        return os.access(path, mode, effective_ids=True)

    def do_chmod(self, path: bytes, mode: int) -> None:
        os.chmod(path, mode)

    def do_chown(self, path: bytes, uid: int, gid: int, follow: bool) -> None:
        os.chown(path, uid, gid, follow_symlinks=follow)

    def do_utimens(self, path: bytes, times: tuple[int, int] | None, follow: bool) -> None:
        os.utime(path, ns=times, follow_symlinks=follow) if times else os.utime(path, follow_symlinks=follow)

    def do_omit(self, path: bytes, atime: tuple[int, int], mtime: tuple[int, int], follow: bool) -> None:
        set_times(path, atime, mtime, follow=follow)

    def do_truncate(self, path: bytes, size: int) -> None:
        os.truncate(path, size)

    def do_setxattr(self, path: bytes, name: bytes, value: bytes, flags: int, follow: bool) -> None:
        os.setxattr(path, name, value, flags, follow_symlinks=follow)

    def do_getxattr(self, path: bytes, name: bytes, follow: bool) -> bytes:
        return os.getxattr(path, name, follow_symlinks=follow)

    def do_removexattr(self, path: bytes, name: bytes, follow: bool) -> None:
        os.removexattr(path, name, follow_symlinks=follow)

    def do_listxattr(self, path: bytes, follow: bool) -> list[str]:
        return listed_xattrs(path, follow=follow)

    # Open files

    def do_open(self, slot: int, path: bytes, flags: int, mode: int) -> str:
        self._close(slot)
        self.slots[slot] = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, mode)
        return "open"

    def do_close(self, slot: int) -> None:
        self._close(slot)

    def do_read(self, slot: int, count: int) -> bytes:
        return os.read(self._slot(slot), count)

    def do_pread(self, slot: int, count: int, offset: int) -> bytes:
        return os.pread(self._slot(slot), count, offset)

    def do_write(self, slot: int, seed: int, count: int) -> int:
        return os.write(self._slot(slot), block(seed, count))

    def do_pwrite(self, slot: int, seed: int, count: int, offset: int) -> int:
        return os.pwrite(self._slot(slot), block(seed, count), offset)

    def do_lseek(self, slot: int, offset: int, whence: int) -> int:
        if stat.S_ISDIR(os.fstat(self._slot(slot)).st_mode):
            offset, whence = 0, os.SEEK_SET  # what a position in a directory means differs between filesystems
        return os.lseek(self._slot(slot), offset, whence)

    def do_ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self._slot(slot), size)

    def do_fstat(self, slot: int) -> tuple[int, ...]:
        return shown(os.fstat(self._slot(slot)))

    def do_fchmod(self, slot: int, mode: int) -> None:
        os.fchmod(self._slot(slot), mode)

    def do_fchown(self, slot: int, uid: int, gid: int) -> None:
        os.fchown(self._slot(slot), uid, gid)

    def do_futimens(self, slot: int, times: tuple[int, int] | None) -> None:
        os.utime(self._slot(slot), ns=times) if times else os.utime(self._slot(slot))

    def do_fsync(self, slot: int, data_only: bool) -> None:
        (os.fdatasync if data_only else os.fsync)(self._slot(slot))

    def do_flistdir(self, slot: int) -> list[str]:
        return sorted(os.listdir(self._slot(slot)))

    def do_fsetxattr(self, slot: int, name: bytes, value: bytes) -> None:
        os.setxattr(self._slot(slot), name, value)

    def do_fgetxattr(self, slot: int, name: bytes) -> bytes:
        return os.getxattr(self._slot(slot), name)

    def do_fchdir(self, slot: int) -> list[str]:
        os.fchdir(self._slot(slot))
        return sorted(os.listdir("."))

    def do_allocate(self, slot: int, offset: int, size: int) -> None:
        flags = fcntl.fcntl(self._slot(slot), fcntl.F_GETFL)
        if flags & os.O_APPEND or flags & os.O_ACCMODE != os.O_RDWR:
            return  # without a fallocate of the filesystem's own, glibc writes zeros, and needs this much for it
        os.posix_fallocate(self._slot(slot), offset, size)

    def do_copy_range(self, source: int, target: int, count: int, offset: int, offset2: int) -> int:
        return os.copy_file_range(self._slot(source), self._slot(target), count, offset, offset2)

    def do_map_write(self, slot: int, seed: int, count: int, offset: int) -> bytes:
        """Write through a shared map, without going behind the end of the file, and force it out."""
        fd = self._slot(slot)
        with mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
            part = block(seed, max(0, min(count, len(mapped) - offset)))
            mapped[offset : offset + len(part)] = part
            mapped.flush()
            return mapped[max(0, offset - 10) : offset + count + 10]

    def do_map_read(self, slot: int, private: bool) -> bytes:
        kind = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
        with mmap.mmap(self._slot(slot), 0, kind, mmap.PROT_READ) as mapped:
            return mapped[:200_000]


def block(seed: int, count: int) -> bytes:
    """Bytes that differ from those of another seed."""
    return (b"%x." % seed * (count // 2 + 1))[:count]


# Making calls


class Maker:
    """Calls by a seed."""

    def __init__(self, seed: int, *, users: bool = True) -> None:
        self._random = Random(seed)
        self._users = users
        self._makers: list[Callable[[], Call]] = []
        for name, weight in _WEIGHTS.items():
            self._makers += [getattr(self, "_" + name)] * weight

    def call(self) -> Call:
        """The next one."""
        random = self._random
        made: Call = random.choice(self._makers)()
        uid = random.choice([0, 0, 0, 4001, 4001, 4002]) if self._users else 0
        return Call(made.name, made.arguments, uid, random.choice([0o022, 0o022, 0, 0o077]))

    def _path(self) -> bytes:
        random = self._random
        depth = random.choice([1, 1, 1, 2, 2, 3])
        parts = [random.choice(NAMES[:4] if random.random() < 0.8 else NAMES) for _ in range(depth)]
        odd = random.random()
        if odd < 0.01:
            parts[-1] = b"x" * 256
        elif odd < 0.02:
            parts.append(random.choice([b".", b".."]))
        elif odd < 0.025:
            parts = [LONG_NAME] * random.choice([15, 16, 17])
        elif odd < 0.03:
            return b""
        return b"/".join(parts) + (b"/" if random.random() < 0.03 else b"")

    def _mode(self) -> int:
        return self._random.choice(
            [0o644, 0o600, 0o666, 0o755, 0o777, 0o700, 0o1777, 0o2775, 0o4755, 0o6711, 0o2644, 0]
        )

    def _directory_mode(self) -> int:
        return self._random.choice([0o755, 0o777, 0o777, 0o1777, 0o2777, 0o700, 0o3777])

    def _offset(self) -> int:
        random = self._random
        return random.choice([0, 1, 10, 4095, 4096, 10_000, random.randrange(300_000)])

    def _count(self) -> int:
        random = self._random
        return random.choice([0, 1, 5, 100, 4096, 5000, 70_000, random.randrange(200_000)])

    def _a_slot(self) -> int:
        return self._random.randrange(SLOTS)

    def _flags(self) -> int:
        random = self._random
        flags = random.choice([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR])
        for flag, chance in (
            (os.O_CREAT, 0.6),
            (os.O_EXCL, 0.15),
            (os.O_TRUNC, 0.2),
            (os.O_APPEND, 0.2),
            (os.O_DIRECTORY, 0.08),
            (os.O_NOFOLLOW, 0.1),
            (os.O_PATH, 0.04),
            (os.O_SYNC, 0.02),
        ):
            if random.random() < chance:
                flags |= flag
        if flags & os.O_CREAT and flags & os.O_DIRECTORY:
            flags &= ~os.O_CREAT  # the kernel's answer differs between versions, and never reaches a filesystem
        return flags

    def _times(self) -> tuple[int, int] | None:
        random = self._random
        if random.random() < 0.3:
            return None
        return tuple(random.choice([0, 1, 999_999_999, 1_500_000_000_123_456_789, -5_000_000_001]) for _ in "am")  # type: ignore[return-value]

    def _owner(self) -> tuple[int, int]:
        random = self._random
        return random.choice([-1, 0, 4001, 4002]), random.choice([-1, 0, 4001, 4002, 4100])

    def _xattr(self) -> bytes:
        return self._random.choice([b"user.x", b"user.y", b"user.\xc3\xbc"])

    def _value(self) -> bytes:
        random = self._random
        return random.choice([b"", b"v", b"\0\xff", b"w" * 300])

    def _follow(self) -> bool:
        return self._random.random() < 0.7

    def _mkdir(self) -> Call:
        return Call("mkdir", (self._path(), self._directory_mode()))

    def _rmdir(self) -> Call:
        return Call("rmdir", (self._path(),))

    def _unlink(self) -> Call:
        return Call("unlink", (self._path(),))

    def _rename(self) -> Call:
        return Call("rename", (self._path(), self._path()))

    def _rename2(self) -> Call:
        flags = self._random.choice([RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_EXCHANGE, 3, 0])
        return Call("rename2", (self._path(), self._path(), flags))

    def _link(self) -> Call:
        return Call("link", (self._path(), self._path(), self._follow()))

    def _symlink(self) -> Call:
        random = self._random
        target = self._path() if random.random() < 0.9 else b"t" * random.choice([1, 4095, 4096])
        while b".." in target:
            target = self._path()
        return Call("symlink", (target, self._path()))

    def _readlink(self) -> Call:
        return Call("readlink", (self._path(),))

    def _mknod(self) -> Call:
        kind = self._random.choice([stat.S_IFIFO, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG])
        return Call("mknod", (self._path(), kind | self._mode()))

    def _bind(self) -> Call:
        path = self._path()
        return Call("bind", (path if len(path) < 100 else b"a",))

    def _listdir(self) -> Call:
        return Call("listdir", (self._path(),))

    def _look(self) -> Call:
        return Call(self._random.choice(["stat", "lstat"]), (self._path(),))

    def _access(self) -> Call:
        return Call("access", (self._path(), self._random.randrange(8)))

    def _chmod(self) -> Call:
        random = self._random
        return Call("chmod", (self._path(), random.choice([self._mode(), self._directory_mode()])))

    def _chown(self) -> Call:
        return Call("chown", (self._path(), *self._owner(), self._follow()))

    def _utimens(self) -> Call:
        return Call("utimens", (self._path(), self._times(), self._follow()))

    def _omit(self) -> Call:
        random = self._random
        parts = [(random.choice([5, 1_000_000]), random.choice([NOW, OMIT, OMIT, 77, 999_999_999])) for _ in "am"]
        return Call("omit", (self._path(), *parts, self._follow()))

    def _truncate(self) -> Call:
        return Call("truncate", (self._path(), self._random.choice([-1, 0, self._offset(), 1_000_000])))

    def _setxattr(self) -> Call:
        flags = self._random.choice([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE])
        return Call("setxattr", (self._path(), self._xattr(), self._value(), flags, self._follow()))

    def _getxattr(self) -> Call:
        return Call("getxattr", (self._path(), self._xattr(), self._follow()))

    def _removexattr(self) -> Call:
        return Call("removexattr", (self._path(), self._xattr(), self._follow()))

    def _listxattr(self) -> Call:
        return Call("listxattr", (self._path(), self._follow()))

    def _open(self) -> Call:
        return Call("open", (self._a_slot(), self._path(), self._flags(), self._mode()))

    def _close(self) -> Call:
        return Call("close", (self._a_slot(),))

    def _read(self) -> Call:
        return Call("read", (self._a_slot(), self._count()))

    def _pread(self) -> Call:
        return Call("pread", (self._a_slot(), self._count(), self._offset()))

    def _write(self) -> Call:
        return Call("write", (self._a_slot(), self._random.randrange(1 << 16), self._count()))

    def _pwrite(self) -> Call:
        random = self._random
        offset = self._offset() if random.random() < 0.95 else random.choice([-1, 5_000_000, 9_000_000])
        return Call("pwrite", (self._a_slot(), random.randrange(1 << 16), self._count(), offset))

    def _lseek(self) -> Call:
        return Call("lseek", (self._a_slot(), self._offset(), self._random.randrange(3)))

    def _ftruncate(self) -> Call:
        return Call("ftruncate", (self._a_slot(), self._random.choice([-1, 0, self._offset()])))

    def _fstat(self) -> Call:
        return Call("fstat", (self._a_slot(),))

    def _fchmod(self) -> Call:
        return Call("fchmod", (self._a_slot(), self._mode()))

    def _fchown(self) -> Call:
        return Call("fchown", (self._a_slot(), *self._owner()))

    def _futimens(self) -> Call:
        return Call("futimens", (self._a_slot(), self._times()))

    def _fsync(self) -> Call:
        return Call("fsync", (self._a_slot(), self._random.random() < 0.5))

    def _flistdir(self) -> Call:
        return Call("flistdir", (self._a_slot(),))

    def _fsetxattr(self) -> Call:
        return Call("fsetxattr", (self._a_slot(), self._xattr(), self._value()))

    def _fgetxattr(self) -> Call:
        return Call("fgetxattr", (self._a_slot(), self._xattr()))

    def _fchdir(self) -> Call:
        return Call("fchdir", (self._a_slot(),))

    def _allocate(self) -> Call:
        return Call("allocate", (self._a_slot(), self._offset(), self._count()))

    def _copy_range(self) -> Call:
        return Call("copy_range", (self._a_slot(), self._a_slot(), self._count(), self._offset(), self._offset()))

    def _map_write(self) -> Call:
        return Call("map_write", (self._a_slot(), self._random.randrange(1 << 16), self._count(), self._offset()))

    def _map_read(self) -> Call:
        return Call("map_read", (self._a_slot(), self._random.random() < 0.5))


_WEIGHTS = {
    "mkdir": 6, "rmdir": 3, "unlink": 4, "rename": 6, "rename2": 4, "link": 4, "symlink": 4, "readlink": 1, "mknod": 3, "bind": 1,
    "listdir": 2, "look": 3, "access": 3, "chmod": 4, "chown": 4, "utimens": 3, "omit": 2, "truncate": 3, "setxattr": 3, "getxattr": 1,
    "removexattr": 1, "listxattr": 1, "open": 14, "close": 1, "read": 3, "pread": 3, "write": 6, "pwrite": 6, "lseek": 2, "ftruncate": 3,
    "fstat": 2, "fchmod": 2, "fchown": 2, "futimens": 2, "fsync": 1, "flistdir": 1, "fsetxattr": 1, "fgetxattr": 1, "fchdir": 1,
    "allocate": 1, "copy_range": 1, "map_write": 3, "map_read": 2,
}  # fmt: skip
