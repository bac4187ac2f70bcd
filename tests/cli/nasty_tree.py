"""A directory with everything that is hard to keep, and what is to be compared of two such directories."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_MIB = 1 << 20
NAMES = (
    b"new\nline",
    b"not utf-8 \xff\xfe",
    b"\xff" * 255,
    b"x" * 255,
    "größe".encode() * 30,
    b"*?[]{}!()@+^~",
    b"-rf",
    b"back\\slash",
    b" lead",
    b"trail ",
    b"a=b%3D",
    b"\x01\x7f\t",
)
TIMES = (0, 1, -1, -999_999_999, -(10**18) - 1, 4_294_967_296 * 10**9 + 5, 10**9, 123_456_789_012_345_678)
MODES = (0, 0o444, 0o755, 0o4755, 0o2755, 0o1644, 0o7777)
SIZES = (0, 1, 1024, 1025, 4096, 4097, 4 * _MIB, 4 * _MIB + 1)


def make_nasty_tree(path: Path) -> None:
    """Make it at `path`; owners only as root, extended attributes only where there are some."""
    top = os.fsencode(path)
    os.mkdir(top)
    for name in NAMES:
        _file(top, name, name)
    for size in SIZES:
        _file(top, b"sizes/%d" % size, os.urandom(size))
    for number, time_ns in enumerate(TIMES):
        os.utime(_file(top, b"times/%d" % number, b"t"), ns=(1, time_ns))
    for mode in MODES:
        os.chmod(_file(top, b"modes/%o" % mode, b"m"), mode)
    _file(top, b"/".join([b"d" * 200] * 6) + b"/deep", b"deep")
    _file(top, b"\xfe" * 120 + b"/" + b"\xfd" * 120 + b"/deep", b"deep")
    _links(top)
    _xattrs(top)
    _sparse(top, b"hole first", 20 * _MIB, ((20 * _MIB - 10, b"e" * 10),))
    _sparse(top, b"hole last", 20 * _MIB, ((0, b"s"),))
    _sparse(top, b"hole only", 20 * _MIB, ())
    _sparse(top, b"holes", 20 * _MIB + 7, ((0, b"s"), (10 * _MIB, b"m" * 100_000), (20 * _MIB + 6, b"e")))
    if os.geteuid() == 0:
        os.chown(_file(top, b"owned", b"o"), 1234, 5678)
        os.chown(_file(top, b"owned by a large number", b"o"), 3_000_000_000, 2_097_152)
        os.lchown(top + b"/to a directory", 3_000_000, 4_294_967_294)
    os.mkdir(top + b"/empty directory")
    _file(top, b"read-only/below/file", b"x")
    for directory in (b"/read-only/below", b"/read-only"):
        os.chmod(top + directory, 0o555)
    os.chmod(top, 0o750)
    for directory in (b"/sizes", b""):
        os.utime(top + directory, ns=(1, 987_654_321_987_654_321))


def _file(top: bytes, name: bytes, data: bytes) -> bytes:
    path = os.path.join(top, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
    return path


def _links(top: bytes) -> None:
    long = b"/".join([b"y" * 200] * 21)[:4095]
    targets = {b"dangling": b"no/where", b"absolute": b"/etc", b"to a directory": b"sizes", b"long": long}
    for name, target in {**targets, b"not utf-8": b"\xff" * 150, b"line": b"a\nb"}.items():
        os.symlink(target, os.path.join(top, name))
    os.utime(top + b"/absolute", ns=(1, -5), follow_symlinks=False)


def _xattrs(top: bytes) -> None:
    path = _file(top, b"attributes", b"x")
    values = {b"empty": b"", b"a=b%c%3D": b"\0\xff=\n", "größe".encode(): b"1", b"\xff": b"1", b"long": b"v" * 2000}
    try:
        for name, value in values.items():
            os.setxattr(path, b"user." + name, value)
    except OSError:
        return  # a filesystem without them


def _sparse(top: bytes, name: bytes, size: int, parts: tuple[tuple[int, bytes], ...]) -> None:
    with open(os.path.join(top, name), "wb") as file:
        file.truncate(size)
        for offset, data in parts:
            file.seek(offset)
            file.write(data)


def everything(path: Path, *, holes: bool = True, root: bool = True) -> dict[bytes, tuple[object, ...]]:
    """What a version keeps of all that is at and below a directory, by relative path."""
    top = os.fsencode(path)
    found = {b".": _attributes(top, holes)} if root else {}
    for directory, names, files in os.walk(top):
        for name in names + files:
            place = os.path.join(directory, name)
            found[os.path.relpath(place, top)] = _attributes(place, holes)
    return found


def _attributes(path: bytes, holes: bool) -> tuple[object, ...]:
    info = os.lstat(path)
    content: object = None
    if stat.S_ISLNK(info.st_mode):
        content = os.readlink(path)
    elif stat.S_ISREG(info.st_mode):
        with open(path, "rb") as file:
            content = file.read(), _data_ranges(file.fileno(), info.st_size) if holes else None
    names = os.listxattr(path, follow_symlinks=False)
    kept = [name for name in names if name.startswith("user.") and not name.startswith("user.pfs.")]
    xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in kept}
    return info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, content, xattrs


def _data_ranges(fd: int, size: int) -> list[tuple[int, int]]:
    """Where a file of more than 4 MiB has data (in smaller ones holes are not kept)."""
    found = []
    end = 0 if size > 4 * _MIB else size
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:
            break
        end = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, end))
    return found
