"""Permission bits and times: what each call does to them, on the disk as in a branch."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable

import pytest

from tests.posix.calls import RENAME_EXCHANGE, acting_as, rename2
from tests.posix.conftest import mode_of, root_only, touch
from tests.posix.twins import wait_for_tick


def write(path: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, b"x")
    os.close(fd)


def append(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"x")
    os.close(fd)


def shorten(path: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.ftruncate(fd, 1)
    os.close(fd)


def empty(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


def through_a_map(path: str) -> None:
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 0) as mapped:
        mapped[0:1] = b"m"
        mapped.flush()
    os.close(fd)


CHANGES: dict[str, Callable[[str], object]] = {
    "write": write,
    "append": append,
    "ftruncate": shorten,
    "truncate": lambda path: os.truncate(path, 3),
    "open with O_TRUNC": empty,
}


@root_only
@pytest.mark.parametrize("name", CHANGES)
def test_setuid_and_setgid_go_when_others_write(place: str, name: str) -> None:
    """Root's writing leaves them."""
    for mode in (0o4777, 0o2777, 0o6777):
        touch("file", b"content", mode)
        with acting_as(4001, 0):
            CHANGES[name]("file")
        assert mode_of("file") == "0777"
        os.chmod("file", mode)
        CHANGES[name]("file")
        assert mode_of("file") == f"{mode:04o}"


@root_only
def test_setuid_goes_by_who_writes_not_by_who_opened(place: str) -> None:
    touch("file", b"content", 0o6777)
    root_opened = os.open("file", os.O_WRONLY)
    with acting_as(4001, 0):
        other_opened = os.open("file", os.O_WRONLY)
    os.write(other_opened, b"x")
    assert mode_of("file") == "6777"
    with acting_as(4001, 0):
        os.write(root_opened, b"x")
    assert mode_of("file") == "0777"
    os.close(root_opened)
    os.close(other_opened)


@root_only
def test_chown_and_the_bits(place: str) -> None:
    for uid in (0, 4001):
        touch("file", b"content", 0o666)
        os.chown("file", 4001, 4001)
        os.chmod("file", 0o6755)
        with acting_as(uid, 0):
            os.chown("file", -1, 4100)
        assert mode_of("file") == "0755"
        os.unlink("file")
    os.mkdir("dir")
    os.chmod("dir", 0o6755)
    os.chown("dir", 4001, 4001)
    assert mode_of("dir") == "6755"
    touch("file")
    os.chown("file", 4001, 4001)
    with acting_as(4001, 0):
        os.chmod("file", 0o2755)
        assert mode_of("file") == "2755"
    os.chown("file", 4001, 4002)
    with acting_as(4001, 0):  # who is not in the group may not give its rights
        os.chmod("file", 0o2755)
    assert mode_of("file") == "0755"


@root_only
def test_directories_with_setgid_give_their_group(place: str) -> None:
    os.mkdir("shared")
    os.chown("shared", 0, 4100)
    os.chmod("shared", 0o2777)
    with acting_as(4001, 0o027):
        os.mkdir("shared/dir", 0o777)
        os.close(os.open("shared/file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.symlink("x", "shared/link")
        os.mkfifo("shared/fifo", 0o666)
    found = {name: (mode_of(f"shared/{name}"), os.lstat(f"shared/{name}").st_gid) for name in os.listdir("shared")}
    assert found == {"dir": ("2750", 4100), "file": ("0640", 4100), "link": ("0777", 4100), "fifo": ("0640", 4100)}
    with acting_as(4001, 0):
        os.mkdir("shared/dir/below")
    assert (mode_of("shared/dir/below"), os.stat("shared/dir/below").st_gid) == ("2777", 4100)
    os.chown("shared", 0, 4002)
    with acting_as(4001, 0):  # a program with the rights of a group that one is not in
        os.close(os.open("shared/tool", os.O_CREAT | os.O_WRONLY, 0o2755))
    assert (mode_of("shared/tool"), os.stat("shared/tool").st_gid) == ("0755", 4002)


@pytest.mark.parametrize(
    ("mask", "modes"),
    [(0o022, ("0755", "0644", "0644")), (0o077, ("0700", "0600", "0600")), (0, ("0777", "0666", "0666"))],
)
def test_umask(place: str, mask: int, modes: tuple[str, str, str]) -> None:
    with acting_as(os.geteuid(), mask):
        os.mkdir("dir")
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkfifo("fifo")
    assert (mode_of("dir"), mode_of("file"), mode_of("fifo")) == modes


def _exchange() -> None:
    rename2(b"dir/file", b"dir/other", RENAME_EXCHANGE)


# What changes of the file (mtime and ctime, or ctime alone) and of its directory.
TIMES: dict[str, tuple[Callable[[], object], str, str]] = {
    "write": (lambda: write("dir/file"), "mc", ""),
    "write nothing": (lambda: os.close(_written(b"")), "", ""),
    "map": (lambda: through_a_map("dir/file"), "mc", ""),
    "truncate to less": (lambda: os.truncate("dir/file", 1), "mc", ""),
    "truncate to more": (lambda: os.truncate("dir/file", 100), "mc", ""),
    "truncate to the same": (lambda: os.truncate("dir/file", 7), "mc", ""),
    "ftruncate": (lambda: shorten("dir/file"), "mc", ""),
    "open with O_TRUNC": (lambda: empty("dir/file"), "mc", ""),
    "open and read": (lambda: _read("dir/file"), "", ""),
    "open with O_CREAT": (lambda: os.close(os.open("dir/file", os.O_CREAT | os.O_WRONLY)), "", ""),
    "chmod": (lambda: os.chmod("dir/file", 0o600), "c", ""),
    "chmod to the same": (lambda: os.chmod("dir/file", 0o644), "c", ""),
    "chown": (lambda: os.chown("dir/file", os.getuid(), os.getgid()), "c", ""),
    "chown of nothing": (lambda: os.chown("dir/file", -1, -1), "c", ""),
    "utime": (lambda: os.utime("dir/file"), "mc", ""),
    "utime to a time": (lambda: os.utime("dir/file", ns=(5, 5)), "mc", ""),
    "setxattr": (lambda: os.setxattr("dir/file", "user.y", b"1"), "c", ""),
    "removexattr": (lambda: os.removexattr("dir/file", "user.x"), "c", ""),
    "link": (lambda: os.link("dir/file", "dir/new"), "c", "mc"),
    "link elsewhere": (lambda: os.link("dir/file", "new"), "c", ""),
    "unlink one of two": (lambda: os.unlink("dir/second"), "c", "mc"),
    "rename": (lambda: os.rename("dir/file", "dir/new"), "c", "mc"),
    "rename over it of another": (lambda: os.rename("dir/other", "dir/third"), "", "mc"),
    "rename to another name of it": (lambda: os.rename("dir/file", "dir/second"), "", ""),
    "exchange": (_exchange, "c", "mc"),
    "create beside it": (lambda: touch("dir/new"), "", "mc"),
    "mkdir beside it": (lambda: os.mkdir("dir/new"), "", "mc"),
    "rmdir beside it": (lambda: os.rmdir("dir/empty"), "", "mc"),
    "symlink beside it": (lambda: os.symlink("x", "dir/new"), "", "mc"),
    "mkfifo beside it": (lambda: os.mkfifo("dir/new"), "", "mc"),
    "create below": (lambda: touch("dir/empty/new"), "", ""),
    "chmod of the directory": (lambda: os.chmod("dir", 0o700), "", "c"),
    "setxattr of the directory": (lambda: os.setxattr("dir", "user.x", b""), "", "c"),
    "list": (lambda: os.listdir("dir"), "", ""),
    "a create that fails": (lambda: _fails(lambda: os.mkdir("dir/file")), "", ""),
    "a removal that fails": (lambda: _fails(lambda: os.rmdir("dir/file")), "", ""),
    "fsync": (lambda: _sync("dir/file"), "", ""),
}  # fmt: skip


def _written(data: bytes) -> int:
    fd = os.open("dir/file", os.O_WRONLY)
    os.write(fd, data)
    return fd


def _read(path: str) -> None:
    with open(path, "rb") as file:
        file.read()


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def _fails(act: Callable[[], object]) -> None:
    with pytest.raises(OSError, match=r"\[Errno"):
        act()


@pytest.mark.parametrize("name", TIMES)
def test_which_times_change(place: str, name: str) -> None:
    """mtime with the content, ctime with anything, and of a directory with the names in it; nothing else, and what fails changes nothing."""
    act, of_file, of_directory = TIMES[name]
    os.makedirs("dir/empty")
    for path in ("file", "other", "third"):
        touch(f"dir/{path}", b"content")
    os.link("dir/file", "dir/second")
    os.setxattr("dir/file", "user.x", b"")
    fds = [os.open("dir/file", os.O_RDONLY), os.open("dir", os.O_RDONLY)]
    before = [os.fstat(fd) for fd in fds]
    wait_for_tick()
    act()
    changed = []
    for fd, old in zip(fds, before, strict=True):
        new = os.fstat(fd)
        changed.append("m" * (new.st_mtime_ns != old.st_mtime_ns) + "c" * (new.st_ctime_ns != old.st_ctime_ns))
        assert new.st_ctime_ns >= old.st_ctime_ns
        if changed[-1] == "mc" and not name.startswith("utime"):
            assert new.st_mtime_ns == new.st_ctime_ns
        os.close(fd)
    assert changed == [of_file, of_directory]
