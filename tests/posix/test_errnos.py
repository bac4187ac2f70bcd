"""Which errno each call gives for which mistake; on the disk as well, so that the table itself is right."""

from __future__ import annotations

import os
import socket
import stat
import struct
import time
from collections.abc import Callable

import pytest

from tests.posix.calls import NOW, OMIT, RENAME_EXCHANGE, RENAME_NOREPLACE, acting_as, link2, rename2, set_times
from tests.posix.conftest import errno_of, root_only, touch

ACL = struct.pack("<I" + "HHi" * 5, 2, 1, 6, -1, 2, 4, 4001, 4, 4, -1, 16, 4, -1, 32, 4, -1)
"""user::rw-, user:4001:r--, group::r--, mask::r--, other::r--"""
LONG = "x" * 256
PATH_TOO_LONG = "/".join(["y" * 255] * 17)


def open_close(path: str, flags: int, mode: int = 0o644) -> None:
    os.close(os.open(path, flags, mode))


def bind(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path)


# Each takes one path, the one that the mistake is in.
ON_A_PATH: dict[str, Callable[[str], object]] = {
    "stat": os.stat,
    "lstat": os.lstat,
    "chmod": lambda path: os.chmod(path, 0o600),
    "chown": lambda path: os.chown(path, os.getuid(), -1),
    "lchown": lambda path: os.lchown(path, os.getuid(), -1),
    "truncate": lambda path: os.truncate(path, 0),
    "utimensat": lambda path: os.utime(path, ns=(1, 1)),
    "open": lambda path: open_close(path, os.O_RDONLY),
    "open to write": lambda path: open_close(path, os.O_WRONLY),
    "create": lambda path: open_close(path, os.O_WRONLY | os.O_CREAT),
    "create exclusively": lambda path: open_close(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "mknod": lambda path: os.mknod(path, stat.S_IFREG | 0o600),
    "bind": bind,
    "symlink": lambda path: os.symlink("target", path),
    "link to": lambda path: os.link("file", path),
    "link from": lambda path: os.link(path, "new"),
    "rename to": lambda path: os.rename("file", path),
    "rename from": lambda path: os.rename(path, "new"),
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "readlink": os.readlink,
    "listdir": os.listdir,
    "chdir": os.chdir,
    "access": lambda path: _access(path),
    "statvfs": os.statvfs,
    "getxattr": lambda path: os.getxattr(path, "user.x"),
    "setxattr": lambda path: os.setxattr(path, "user.x", b""),
    "removexattr": lambda path: os.removexattr(path, "user.x"),
    "listxattr": os.listxattr,
}
MAKING = {"create", "create exclusively", "mkdir", "mkfifo", "mknod", "bind", "symlink", "link to", "rename to"}
NOT_FOLLOWING = {"lstat", "lchown", "unlink", "rmdir", "readlink", "rename from", "rename to", "link from", "link to"}


def _access(path: str) -> None:
    if not os.access(path, os.F_OK, effective_ids=True):
        os.stat(path)


@pytest.mark.parametrize("group", range(4))
def test_paths_that_lead_nowhere(place: str, group: int) -> None:
    """ENOENT, ENOTDIR, ENAMETOOLONG, ELOOP, for each call that takes a path."""
    touch("file")
    os.mkdir("dir")
    os.symlink("loop2", "loop1")
    os.symlink("loop1", "loop2")
    for name in list(ON_A_PATH)[group::4]:
        leads_nowhere(name, ON_A_PATH[name])
        assert sorted(os.listdir(".")) == ["dir", "file", "loop1", "loop2"], name


def leads_nowhere(name: str, act: Callable[[str], object]) -> None:
    def gives(path: str, wanted: str) -> None:
        assert (name, path[:20], errno_of(act, path)) == (name, path[:20], wanted)

    gives("no/where", "ENOENT")
    gives("file/below", "ENOTDIR")
    gives("loop1/below", "ELOOP")
    if name != "bind":  # whose paths have 107 bytes, and an empty one has a meaning
        gives("", "ENOENT")
        gives("dir/" + "x" * 300, "ENAMETOOLONG")
        gives(LONG, "ENAMETOOLONG")
        gives(PATH_TOO_LONG, "ENAMETOOLONG")
    if name not in MAKING:
        gives("nothing", "ENOENT")
        gives("dir/nothing", "ENOENT")
        if name not in NOT_FOLLOWING:
            gives("loop1", "ELOOP")
    if name in MAKING - {"create", "rename to"}:
        for path in ("file", "dir", "loop1"):
            gives(path, "EADDRINUSE" if name == "bind" else "EEXIST")


@root_only
def test_directories_that_others_may_not_search_or_change(place: str) -> None:
    touch("file", mode=0o666)
    os.chown("file", 4001, 4001)
    os.mkdir("closed", 0o700)
    os.mkdir("fixed", 0o755)
    for directory in ("closed", "fixed"):
        touch(f"{directory}/theirs", mode=0o666)
        os.mkdir(f"{directory}/dir")
    with acting_as(4001, 0o022):
        for name, act in ON_A_PATH.items():
            found = [errno_of(act, "closed/theirs"), errno_of(act, "closed/nothing")]
            if name in MAKING:
                found.append(errno_of(act, "fixed/new"))
            if name in ("unlink", "rename from"):
                found.append(errno_of(act, "fixed/theirs"))
            if name == "rmdir":
                found.append(errno_of(act, "fixed/dir"))
            assert (name, set(found)) == (name, {"EACCES"})


def test_open(place: str) -> None:
    touch("file", b"content")
    os.mkdir("dir")
    os.symlink("file", "link")
    os.symlink("nothing", "dangling")
    os.mkfifo("fifo")
    bind("socket")
    for path, flags, wanted in (
        ("file", os.O_RDONLY | os.O_DIRECTORY, "ENOTDIR"),
        ("dir", os.O_RDONLY | os.O_DIRECTORY, "ok"),
        ("dir", os.O_WRONLY, "EISDIR"),
        ("dir", os.O_RDWR, "EISDIR"),
        ("dir", os.O_RDONLY | os.O_TRUNC, "EISDIR"),
        ("dir", os.O_RDONLY | os.O_CREAT, "EISDIR"),
        ("new/", os.O_RDWR | os.O_CREAT, "EISDIR"),
        ("file/", os.O_RDONLY, "ENOTDIR"),
        ("link", os.O_RDONLY | os.O_NOFOLLOW, "ELOOP"),
        ("link", os.O_RDONLY | os.O_NOFOLLOW | os.O_PATH, "ok"),
        ("link", os.O_RDONLY | os.O_CREAT | os.O_EXCL, "EEXIST"),
        ("dangling", os.O_RDONLY | os.O_CREAT | os.O_EXCL, "EEXIST"),
        ("dangling", os.O_RDONLY, "ENOENT"),
        ("fifo", os.O_WRONLY | os.O_NONBLOCK, "ENXIO"),
        ("fifo", os.O_RDONLY | os.O_NONBLOCK, "ok"),
        ("socket", os.O_RDONLY, "ENXIO"),
        (".", os.O_RDWR | os.O_CREAT, "EISDIR"),
    ):
        assert (path, flags, errno_of(open_close, path, flags)) == (path, flags, wanted)
    open_close("dangling", os.O_WRONLY | os.O_CREAT)
    assert os.path.exists("nothing")
    # the mode of a new file does not bind who makes it
    fd = os.open("unreadable", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0)
    assert os.write(fd, b"x") == 1
    assert os.pread(fd, 9, 0) == b"x"
    os.close(fd)
    fd = os.open("file", os.O_PATH)
    assert os.fstat(fd).st_size == 7
    assert errno_of(os.read, fd, 1) == "EBADF"
    os.close(fd)
    assert errno_of(open_close, ".", os.O_TMPFILE | os.O_RDWR) == ("ok" if place == "disk" else "ENOTSUP")


@root_only
def test_open_by_others(place: str) -> None:
    for mode in (0o400, 0o200, 0o000, 0o040, 0o020, 0o004, 0o002):
        touch(f"f{mode:o}", b"x", mode)
        os.chown(f"f{mode:o}", 4001, 4100)
    can = {
        uid: {
            (mode, way)
            for mode in (0o400, 0o200, 0o000, 0o040, 0o020, 0o004, 0o002)
            for way in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC)
            if _can_open(uid, f"f{mode:o}", way)
        }
        for uid in (4001, 4002)
    }
    assert can == {
        4001: {(0o400, os.O_RDONLY), (0o200, os.O_WRONLY)},
        4002: {(0o040, os.O_RDONLY), (0o020, os.O_WRONLY)},
    }
    with acting_as(4002, 0):
        assert errno_of(open_close, "f40", os.O_RDONLY | os.O_NOATIME) == "EPERM"


def _can_open(uid: int, path: str, flags: int) -> bool:
    with acting_as(uid, 0):
        return errno_of(open_close, path, flags) == "ok"


def test_reading_and_writing(place: str) -> None:
    touch("file", b"content")
    reader, writer = os.open("file", os.O_RDONLY), os.open("file", os.O_WRONLY)
    directory = os.open(".", os.O_RDONLY)
    try:
        assert errno_of(os.write, reader, b"x") == "EBADF"
        assert errno_of(os.read, writer, 1) == "EBADF"
        assert errno_of(os.read, directory, 1) == "EISDIR"
        assert errno_of(os.pwrite, writer, b"x", -1) == "EINVAL"
        assert errno_of(os.lseek, writer, -1, os.SEEK_SET) == "EINVAL"
        assert errno_of(os.ftruncate, reader, 1) == "EINVAL"
        assert errno_of(os.ftruncate, directory, 1) in ("EINVAL", "EISDIR")
        assert errno_of(os.ftruncate, writer, -1) == "EINVAL"
        assert errno_of(os.truncate, "file", -1) == "EINVAL"
        assert errno_of(os.truncate, ".", 1) == "EISDIR"
        assert errno_of(os.ftruncate, writer, (1 << 63) - 1) == "EFBIG"
        assert errno_of(os.pwrite, writer, b"xx", (1 << 62)) in ("EFBIG", "EINVAL")
        assert os.read(reader, 100) == b"content"
    finally:
        for fd in (reader, writer, directory):
            os.close(fd)


def test_posix_fallocate(place: str) -> None:
    """The C library does it by writing, so the file is grown, and needs to be readable."""
    touch("file", b"content")
    fd = os.open("file", os.O_RDWR)
    os.posix_fallocate(fd, 5000, 3000)
    assert os.fstat(fd).st_size == 8000
    os.posix_fallocate(fd, 0, 100)
    assert os.pread(fd, 10, 0) == b"content\0\0\0"
    assert errno_of(os.posix_fallocate, fd, 0, 0) == "EINVAL"
    assert errno_of(os.posix_fallocate, fd, -1, 1) == "EINVAL"
    os.close(fd)
    fd = os.open("file", os.O_RDONLY)
    assert errno_of(os.posix_fallocate, fd, 0, 1) == "EBADF"
    os.close(fd)


def test_rename(place: str) -> None:
    touch("file", b"1")
    touch("other", b"2")
    os.makedirs("dir/below")
    os.makedirs("full/below")
    os.mkdir("empty")
    os.link("file", "same")
    for old, new, wanted in (
        ("dir", "dir/below/deeper", "EINVAL"),
        ("dir", "dir/new", "EINVAL"),
        ("dir", "dir", "ok"),
        ("dir/below", "full", "ENOTEMPTY"),
        ("dir", "file", "ENOTDIR"),
        ("file", "empty", "EISDIR"),
        ("file", "full", "EISDIR"),
        ("dir/below", "dir", "ENOTEMPTY"),
        ("file", "new/", "ENOTDIR"),
        ("file/", "new", "ENOTDIR"),
        (".", "new", "EBUSY"),
        ("dir/.", "new", "EBUSY"),
        ("dir", ".", "EBUSY"),
        ("dir/..", "new", "EBUSY"),
        ("file", "same", "ok"),
    ):
        assert (old, new, errno_of(os.rename, old, new)) == (old, new, wanted)
    assert os.stat("file").st_nlink == 2  # two names of one file: rename does nothing
    os.rename("dir", "empty")
    assert os.listdir("empty") == ["below"]
    os.rename("file", "other")
    with open("other", "rb") as file:
        assert file.read() == b"1"


def test_rename_with_flags(place: str) -> None:
    touch("file", b"1")
    touch("other", b"2")
    os.makedirs("dir/below")
    for old, new, flags, wanted in (
        (b"file", b"other", RENAME_NOREPLACE, "EEXIST"),
        (b"file", b"file", RENAME_NOREPLACE, "EEXIST"),
        (b"file", b"nothing", RENAME_EXCHANGE, "ENOENT"),
        (b"nothing", b"file", RENAME_EXCHANGE, "ENOENT"),
        (b"dir", b"dir/below", RENAME_EXCHANGE, "EINVAL"),
        (b"dir/below", b"dir", RENAME_EXCHANGE, "EINVAL"),
        (b"file", b"other", RENAME_EXCHANGE | RENAME_NOREPLACE, "EINVAL"),
        (b"file", b"other", 8, "EINVAL"),
        (b"file", b"new", RENAME_NOREPLACE, "ok"),
        (b"new", b"dir", RENAME_EXCHANGE, "ok"),
        (b"new", b"dir/below", RENAME_EXCHANGE, "ENOTDIR"),
    ):
        assert (old, new, errno_of(rename2, old, new, flags)) == (
            old,
            new,
            wanted,
        )
    assert os.listdir("new") == ["below"]
    assert os.path.isfile("dir")


def test_removing(place: str) -> None:
    touch("file")
    os.makedirs("dir/below")
    os.symlink("dir", "link")
    for act, path, wanted in (
        (os.rmdir, "dir", "ENOTEMPTY"),
        (os.rmdir, "dir/below/.", "EINVAL"),
        (os.rmdir, "dir/below/..", "ENOTEMPTY"),
        (os.rmdir, "file", "ENOTDIR"),
        (os.rmdir, "link", "ENOTDIR"),
        (os.rmdir, "link/", "ENOTDIR"),
        (os.rmdir, ".", "EINVAL"),
        (os.rmdir, "dir/below/", "ok"),
        (os.unlink, "dir", "EISDIR"),
        (os.unlink, "file/", "ENOTDIR"),
        (os.unlink, "link/", "ENOTDIR"),
        (os.unlink, "link", "ok"),
        (os.unlink, "file", "ok"),
        (os.rmdir, "dir", "ok"),
    ):
        assert (path, errno_of(act, path)) == (path, wanted)


def test_links(place: str) -> None:
    touch("file")
    os.mkdir("dir")
    os.symlink("file", "link")
    assert errno_of(os.link, "dir", "new") == "EPERM"
    assert errno_of(os.link, "file", "dir/x/y") == "ENOENT"
    os.link("link", "of-link", follow_symlinks=False)
    assert os.readlink("of-link") == "file"
    assert (os.lstat("link").st_nlink, os.lstat("of-link").st_ino) == (2, os.lstat("link").st_ino)
    link2(b"link", b"of-file", follow=True)
    assert os.stat("of-file").st_nlink == 2
    fd = os.open("file", os.O_RDONLY)
    os.unlink("file")
    os.unlink("of-file")
    assert os.fstat(fd).st_nlink == 0
    assert errno_of(lambda: link2(b"/proc/self/fd/%d" % fd, b"again", follow=True)) == "ENOENT"
    os.close(fd)
    assert errno_of(os.symlink, "", "empty") == "ENOENT"
    assert errno_of(os.symlink, "t" * 4096, "long") == "ENAMETOOLONG"
    os.symlink("t" * 4095, "long")
    assert (os.readlink("long"), os.lstat("long").st_size) == ("t" * 4095, 4095)
    assert errno_of(os.readlink, "dir") == "EINVAL"


def test_times(place: str) -> None:
    touch("file")
    os.symlink("file", "link")
    for ns in (0, 1, -1, 999_999_999, -2_000_000_000_000_000_001, 4_000_000_000_123_456_789):
        os.utime("file", ns=(ns + 7, ns))
        assert (os.stat("file").st_atime_ns, os.stat("file").st_mtime_ns) == (ns + 7, ns)
        os.utime("link", ns=(ns + 8, ns + 5), follow_symlinks=False)
        assert (os.lstat("link").st_atime_ns, os.lstat("link").st_mtime_ns) == (ns + 8, ns + 5)
        assert os.stat("file").st_mtime_ns == ns


def test_times_one_by_one(place: str) -> None:
    """UTIME_OMIT leaves one alone, UTIME_NOW sets it to now; writing does not touch the atime."""
    touch("file")
    os.mkdir("dir")
    for path in (b"file", b"dir"):
        set_times(path, (5, 5), (6, 6))
        set_times(path, (0, OMIT), (7, 7))
        assert (os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns) == (5_000_000_005, 7_000_000_007)
        set_times(path, (8, 8), (0, OMIT))
        assert (os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns) == (8_000_000_008, 7_000_000_007)
        set_times(path, (0, OMIT), (0, NOW))
        assert os.stat(path).st_atime_ns == 8_000_000_008
        assert abs(os.stat(path).st_mtime_ns - time.time_ns()) < 60_000_000_000
        assert errno_of(set_times, path, (1, 1_000_000_000), (1, 1)) == "EINVAL"
        assert errno_of(set_times, path, (0, OMIT), (0, OMIT)) == "ok"
    with open("file", "ab") as file:
        file.write(b"x")
    assert os.stat("file").st_atime_ns == 8_000_000_008


@root_only
def test_what_is_for_owners_only(place: str) -> None:
    touch("file", mode=0o666)
    os.chown("file", 4001, 4001)
    with acting_as(4002, 0):
        for name, act in {
            "chmod": lambda: os.chmod("file", 0o600),
            "chown": lambda: os.chown("file", 4002, -1),
            "chgrp": lambda: os.chown("file", -1, 4100),
            "utimensat": lambda: os.utime("file", ns=(1, 1)),
        }.items():
            assert (name, errno_of(act)) == (name, "EPERM")
        assert errno_of(os.utime, "file") == "ok"  # now: for whoever may write
        os_chmod_root("file", 0o644)
        assert errno_of(os.utime, "file") == "EACCES"
        assert errno_of(os.setxattr, "file", "user.x", b"") == "EACCES"
    with acting_as(4001, 0):
        assert errno_of(os.chown, "file", 4002, -1) == "EPERM"
        assert errno_of(os.chown, "file", -1, 4002) == "EPERM"
        assert errno_of(os.chown, "file", -1, 4100) == "ok"
        assert errno_of(os.chown, "file", 4001, 4001) == "ok"
        assert errno_of(lambda: os.utime("file", ns=(1, 1))) == "ok"


def os_chmod_root(path: str, mode: int) -> None:
    """chmod as root in the middle of acting as another."""
    uid = os.geteuid()
    os.seteuid(0)
    try:
        os.chmod(path, mode)
    finally:
        os.seteuid(uid)


@root_only
def test_sticky_directories(place: str) -> None:
    """In one, only the owner of a file or of the directory may take a name away."""
    os.mkdir("sticky")
    os.chmod("sticky", 0o1777)
    os.chown("sticky", 4003, 4003)
    for name in ("one", "two", "three"):
        touch(f"sticky/{name}")
        os.chown(f"sticky/{name}", 4001, 4001)
    os.mkdir("sticky/dir")
    with acting_as(4002, 0):
        touch("mine")
        assert errno_of(os.unlink, "sticky/one") == "EPERM"
        assert errno_of(os.rmdir, "sticky/dir") == "EPERM"
        assert errno_of(os.rename, "sticky/one", "sticky/new") == "EPERM"
        assert errno_of(os.rename, "mine", "sticky/one") == "EPERM"
        assert errno_of(os.rename, "mine", "sticky/mine") == "ok"
        assert errno_of(os.setxattr, "sticky", "user.x", b"") == "EPERM"
    with acting_as(4001, 0):
        assert errno_of(os.unlink, "sticky/one") == "ok"
        assert errno_of(os.rename, "sticky/two", "sticky/three") == "ok"


def test_extended_attributes(place: str) -> None:
    touch("file")
    os.symlink("file", "link")
    os.mkfifo("fifo")
    assert errno_of(os.setxattr, "file", "user.x", b"", os.XATTR_REPLACE) == "ENODATA"
    os.setxattr("file", "user.x", b"1", os.XATTR_CREATE)
    assert errno_of(os.setxattr, "file", "user.x", b"2", os.XATTR_CREATE) == "EEXIST"
    os.setxattr("file", "user.x", b"3", os.XATTR_REPLACE)
    assert os.getxattr("file", "user.x") == b"3"
    assert errno_of(os.getxattr, "file", "user.y") == "ENODATA"
    assert errno_of(os.removexattr, "file", "user.y") == "ENODATA"
    assert errno_of(os.setxattr, "file", "user." + "n" * 251, b"") == "ERANGE"
    os.setxattr("file", "user." + "n" * 250, b"")
    assert errno_of(os.setxattr, "file", "user.big", bytes(65537)) == "E2BIG"
    assert errno_of(os.setxattr, "file", "nothing.x", b"") == "ENOTSUP"
    for path in ("link", "fifo"):
        assert errno_of(lambda path: os.setxattr(path, "user.x", b"", follow_symlinks=False), path) == "EPERM"
        assert errno_of(lambda path: os.getxattr(path, "user.x", follow_symlinks=False), path) in ("EPERM", "ENODATA")
        assert os.listxattr(path, follow_symlinks=False) == []
    if place == "branch":
        os.setxattr("file", "user.big", bytes(65536))
        assert len(os.getxattr("file", "user.big")) == 65536
        for name in ("trusted.x", "security.x", "system.posix_acl_access"):
            assert errno_of(os.setxattr, "file", name, ACL) == "ENOTSUP"


def test_a_directory_that_is_gone(place: str) -> None:
    """Whoever stands in it sees nothing in it and can make nothing there."""
    os.mkdir("dir")
    here = os.open(".", os.O_RDONLY)
    os.chdir("dir")
    inside = os.open(".", os.O_RDONLY)
    try:
        os.rmdir("../dir")
        assert os.listdir(".") == []
        assert os.listdir(inside) == []
        assert os.fstat(inside).st_nlink == 0
        for act in (
            lambda: open_close("new", os.O_WRONLY | os.O_CREAT),
            lambda: os.mkdir("new"),
            lambda: os.symlink("x", "new"),
            lambda: os.mkfifo("new"),
            lambda: os.stat("new"),
        ):
            assert errno_of(act) == "ENOENT"
        os.chdir("..")
        assert "dir" not in os.listdir(".")
    finally:
        os.close(inside)
        os.fchdir(here)
        os.close(here)


def test_running_programs_cannot_be_written_to(place: str) -> None:
    import shutil
    import subprocess

    found = shutil.which("sleep")
    assert found is not None
    shutil.copy(found, "program")
    with subprocess.Popen(["./program", "100"]) as process:
        try:
            assert errno_of(open_close, "program", os.O_WRONLY) == "ETXTBSY"
            assert errno_of(os.truncate, "program", 0) == "ETXTBSY"
            os.unlink("program")
        finally:
            process.kill()
