"""Doors to system calls that Python 3.11 does not offer: namespaces and mounts.

Every function raises `OSError` with the kernel's errno; paths are bytes. Nothing here but ctypes is imported, because each
worker process pays for it at its start. The calls by number (open_tree, move_mount, mount_setattr: Linux 5.2 and 5.12)
have one number on every architecture that Python runs on, except alpha.
"""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x0002_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19

MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
MFD_CLOEXEC = 1
MFD_NOEXEC_SEAL = 8

_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_RDONLY = 1
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442

_AF_INET = 2
_SOCK_DGRAM_CLOEXEC = 2 | 0o2000000
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_SIG_IGN = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
_libc.signal.restype = ctypes.c_void_p
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


def _check(result: int, about: bytes | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), about)
    return result


def unshare(namespaces: int) -> None:
    """Gives the calling process new namespaces (CLONE_NEW…); a new PID namespace holds only its later children."""
    _check(_libc.unshare(namespaces))


def setns(fd: int, kind: int) -> None:
    """Enters the namespace that `fd` (of /proc/…/ns/…) refers to; a mount namespace also resets root and cwd."""
    _check(_libc.setns(fd, kind))


def pivot_root(new_root: bytes, put_old: bytes) -> None:
    """Makes the mount `new_root` the root of the mount namespace, and of all processes that had the old one."""
    _check(_libc.pivot_root(new_root, put_old))


def prctl(option: int, argument: int) -> int:
    return _check(_libc.prctl(option, argument, 0, 0, 0))


def ignore_signal(number: int) -> None:
    """As signal.signal(number, SIG_IGN), whose module takes 10 ms to import."""
    _libc.signal(number, _SIG_IGN)


def mount(source: bytes, target: bytes, kind: bytes | None, flags: int, options: bytes | None = None) -> None:
    _check(_libc.mount(source, target, kind, flags, options), target)


def detach(target: bytes) -> None:
    """Unmounts `target` and all below it at once; it goes away when its last user does."""
    _check(_libc.umount2(target, MNT_DETACH), target)


def clone_tree(path: bytes, *, follow: bool = True) -> int:
    """A copy of what is mounted at and below `path`, attached nowhere; it is gone when the fd is closed.

    Of a path that is no mount point the copy is a mount of just that file or directory. Without `follow`, a symlink at
    the end of `path` is itself what is copied. The mounts stay peers of the originals until `set_mounts` changes that.
    """
    flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC | (0 if follow else _AT_SYMLINK_NOFOLLOW)
    return _check(_libc.syscall(_long(_SYS_OPEN_TREE), _long(_AT_FDCWD), ctypes.c_char_p(path), _long(flags)), path)


def attach_tree(tree: int, target: bytes) -> None:
    """Mounts what `clone_tree` gave at `target`: a directory at a directory, anything else at a file."""
    _check(
        _libc.syscall(
            _long(_SYS_MOVE_MOUNT),
            _long(tree),
            ctypes.c_char_p(b""),
            _long(_AT_FDCWD),
            ctypes.c_char_p(target),
            _long(_MOVE_MOUNT_F_EMPTY_PATH),
        ),
        target,
    )


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def set_mounts(target: bytes | int, *, read_only: bool = False, propagation: int = 0, recursive: bool = False) -> None:
    """Changes the mount at a path, or the tree behind an fd of `clone_tree`: all of it or, on an error, nothing.

    Flags are only added, so that those which a user namespace has locked (nosuid, nodev…) stay as they are.
    """
    attributes = _MountAttributes(_MOUNT_ATTR_RDONLY if read_only else 0, 0, propagation, 0)
    directory, path = (target, b"") if isinstance(target, int) else (_AT_FDCWD, target)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    _check(
        _libc.syscall(
            _long(_SYS_MOUNT_SETATTR),
            _long(directory),
            ctypes.c_char_p(path),
            _long(flags),
            ctypes.byref(attributes),
            _long(ctypes.sizeof(attributes)),
        ),
        path,
    )


class _InterfaceRequest(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char * 16), ("flags", ctypes.c_short), ("rest", ctypes.c_char * 22))


def raise_loopback() -> None:
    """Brings up 127.0.0.1 in a new network namespace, where it is down."""
    socket = _check(_libc.socket(_AF_INET, _SOCK_DGRAM_CLOEXEC, 0))
    try:
        request = _InterfaceRequest(b"lo", _IFF_UP, b"")
        _check(_libc.ioctl(socket, ctypes.c_ulong(_SIOCSIFFLAGS), ctypes.byref(request)))
    finally:
        os.close(socket)


# syscall(2) is variadic: without its type each argument would be passed as an int.
_long = ctypes.c_long
