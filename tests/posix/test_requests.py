"""How many requests each system call costs: measured, and compared with the table in docs/SYSCALLS.md.

`PFS_WRITE_SYSCALLS=1 python -m pytest tests/posix/test_requests.py` writes the table anew.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pfsmount.config import MIB
from pfsmount.repo.store import Store
from tests.mounted.conftest import ROOT, Mount, wait_for
from tests.posix.calls import RENAME_EXCHANGE, rename2

KERNEL = ".".join(os.uname().release.split(".")[:2])
DOCUMENT = ROOT / "docs" / "SYSCALLS.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A mount whose requests are written down; the current directory is its branch."""
    top = tmp_path_factory.mktemp("requests")
    Store.create(top / "store")
    with Store.open(top / "store", author="tester@here") as opened:
        opened.create_repo("images")
    (top / "mnt").mkdir()
    mount = Mount(top / "store", top / "mnt")
    lines = top / "requests"
    env = {**os.environ, "PFS_STORE": str(mount.store), "PFS_TEST_REQUESTS": str(lines), "PYTHONPATH": str(ROOT)}
    before = os.getcwd()
    with subprocess.Popen(
        [sys.executable, "-m", "tests.posix.counting", "mount", "-f", str(mount.point)],
        env=env,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            wait_for(lambda: os.path.ismount(mount.point), "the mount")
            os.chdir(mount.master)
            _prepare()
            (top / "unmet" / "below").mkdir(parents=True)
            (top / "unmet" / "below" / "file").touch()
            mount.pfs("put", top / "unmet", "images@master:/unmet")
            wait_for(lambda: os.path.exists("unmet"), "what was put")
            yield lines
        finally:
            os.chdir(before)
            mount.clean_up()
            process.terminate()


def _prepare() -> None:
    """Files to work on; and what the kernel asks once only (whether there is flush, lseek, …) is asked."""
    os.mkdir("dir")
    os.mkdir("ten")
    os.mkdir("thousand")
    for number in range(1000):
        Path("thousand", f"{number:04}").touch()
    for number in range(10):
        Path("ten", f"{number}").write_bytes(b"x" * 100)
    for name in ("file", "other", "third", "big"):
        Path(name).write_bytes(b"x" * 8192)
    Path("big").write_bytes(bytes(4 * MIB))
    os.symlink("file", "link")
    os.setxattr("file", "user.x", b"1")
    Path(".pfs", "commit").write_text("committed")
    fd = os.open("other", os.O_RDWR)
    os.lseek(fd, 0, os.SEEK_DATA)
    os.copy_file_range(fd, fd, 10, 0, 100)
    for _ in range(2):
        try:
            os.posix_fallocate(fd, 0, 10)
        except OSError:
            pass
    os.close(fd)
    os.listdir("dir")
    os.stat("file")


class Case:
    """One row: what is done before, what is counted, and in the document what it costs and why."""

    def __init__(
        self, title: str, act: Callable[[], object], why: str = "", before: Callable[[], object] | None = None
    ) -> None:
        self.title, self.act, self.why, self.before = title, act, why, before


_fds: dict[str, int] = {}


def _open(name: str, flags: int = os.O_RDWR) -> int:
    _close()
    _fds["it"] = os.open(name, flags, 0o644)
    return _fds["it"]


def _close() -> None:
    if "it" in _fds:
        os.close(_fds.pop("it"))


def _fresh(name: str, content: bytes = b"x" * 8192) -> None:
    with open(name, "wb") as file:
        file.write(content)


def _map_page() -> None:
    with mmap.mmap(_fds["it"], 8192) as mapped:
        mapped[0:1] = b"m"
        mapped.flush()


def _bind() -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket")


def _list_and_stat(directory: str) -> None:
    with os.scandir(directory) as entries:
        for entry in entries:
            entry.stat()


def _each(*acts: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        for act in acts:
            act()

    return run


CASES = [
    Case("stat, lstat, access of what the kernel knows", lambda: os.stat("file"), "names and attributes are kept until something changes", lambda: os.stat("file")),
    Case("stat of a name that is not there, again", lambda: _missing("nothing"), "that too is kept", lambda: _missing("nothing")),
    Case("stat after writing", lambda: os.stat("other"), "size and time are asked for again", lambda: _fresh("other")),
    Case("stat with a path from outside the mount", lambda: os.stat(_absolute()), "the name of the branch is kept, too", lambda: os.stat(_absolute())),
    Case("create and close a file", _each(lambda: _open("created", os.O_CREAT | os.O_WRONLY), _close), "the name is looked up first; there is no flush, and nobody waits for release"),
    Case("open and close a file", _each(lambda: _open("file"), _close)),
    Case("open with O_TRUNC and close", _each(lambda: _open("other", os.O_WRONLY | os.O_TRUNC), _close), "open empties it"),
    Case("read 4 KiB for the first time", lambda: os.pread(_fds["it"], 4096, 0), "the kernel reads ahead from here, in requests of up to 1 MiB", lambda: os.fstat(_open("third"))),
    Case("read it again", lambda: os.pread(_fds["it"], 4096, 0), "from the page cache, also after close and open"),
    Case("write 4 KiB", lambda: os.pwrite(_fds["it"], b"y" * 4096, 0), "the kernel asks for security.capability before each write to a file: nothing is looked up for that", lambda: _open("other")),
    Case("write 4 KiB, again", lambda: os.pwrite(_fds["it"], b"y" * 4096, 0), "data goes through at once, so that it survives the daemon"),
    Case("write 1 MiB", lambda: os.pwrite(_fds["it"], bytes(MIB), 0), "up to 1 MiB in one request"),
    Case("fsync, fdatasync", lambda: os.fsync(_fds["it"]), "waits for the disk"),
    Case("fstat after writing", lambda: os.fstat(_fds["it"])),
    Case("ftruncate", lambda: os.ftruncate(_fds["it"], 100)),
    Case("lseek", lambda: os.lseek(_fds["it"], 5, os.SEEK_SET), "the kernel's own"),
    Case("lseek to SEEK_END, SEEK_DATA or SEEK_HOLE", lambda: os.lseek(_fds["it"], 0, os.SEEK_HOLE), "all of a file is data: where holes are is not told"),
    Case("write a page of a shared map and msync it", _map_page, "a page is read before it is written to", _each(lambda: _fresh("other"), lambda: os.fstat(_open("other")))),
    Case("copy_file_range, sendfile", lambda: os.copy_file_range(_fds["it"], _fds["it"], 4096, 0, 8192), "the kernel reads and writes"),
    Case("posix_fallocate of 8 KiB", lambda: os.posix_fallocate(_fds["it"], 65536, 8192), "the C library writes a zero into each block: fallocate itself is EOPNOTSUPP"),
    Case("flock, fcntl locks", _each(lambda: fcntl.flock(_fds["it"], fcntl.LOCK_EX), lambda: fcntl.lockf(_fds["it"], fcntl.LOCK_EX)), "the kernel's own, between all processes of this machine"),
    Case("mkdir", lambda: os.mkdir("made"), "the name is looked up first"),
    Case("rmdir", lambda: os.rmdir("made"), "each change of names makes the kernel ask for the directory's own attributes again, the next time that it checks permissions"),
    Case("unlink", lambda: os.unlink("third"), "", _close),
    Case("rename", lambda: os.rename("created", "renamed"), "the new name is looked up first"),
    Case("rename over a file", lambda: os.rename("renamed", "over"), "", lambda: _fresh("over")),
    Case("renameat2 with RENAME_EXCHANGE", lambda: rename2(b"over", b"other", RENAME_EXCHANGE)),
    Case("link", lambda: os.link("other", "second")),
    Case("symlink", lambda: os.symlink("x", "made-link")),
    Case("readlink", lambda: os.readlink("link"), "", lambda: os.lstat("link")),
    Case("mkfifo, mknod", lambda: os.mkfifo("fifo"), "reading and writing it is the kernel's"),
    Case("bind of a socket", _bind),
    Case("chmod, chown, utimensat", lambda: os.chmod("other", 0o600)),
    Case("getxattr", lambda: os.getxattr("file", "user.x"), "attributes are not kept by the kernel"),
    Case("setxattr", lambda: os.setxattr("other", "user.x", b"1")),
    Case("setxattr with XATTR_CREATE or XATTR_REPLACE", lambda: os.setxattr("other", "user.x", b"2", os.XATTR_REPLACE)),
    Case("listxattr", lambda: os.listxattr("other")),
    Case("removexattr", lambda: os.removexattr("other", "user.x")),
    Case("list a directory of 10 names", lambda: os.listdir("ten"), "attributes come with the first names", lambda: _fresh("ten/new")),
    Case("list and stat 1000 names", lambda: _list_and_stat("thousand"), "a request gives as many names as the program has room for, with their attributes, and so the next stat of each costs nothing; asked again, the daemon has the replies ([decision 020](decisions/020-listings-are-kept.md))"),
    Case("fsync of a directory", lambda: os.fsync(_fds["it"]), "", _each(lambda: os.mkdir("dir/new"), lambda: _open("dir", os.O_RDONLY))),
    Case("statvfs", lambda: os.statvfs("."), "free space is that of the disk that the store is on", _close),
    Case("stat of a name that the kernel has not met", lambda: os.stat("unmet/below/file"), "one for each part of the path that is new", lambda: os.stat("unmet")),
]  # fmt: skip


def _absolute() -> str:
    return os.path.join(os.getcwd(), "file")


def _missing(name: str) -> None:
    assert not os.path.exists(name)


def _measured(lines: Path) -> Iterator[tuple[Case, list[str]]]:
    for case in CASES:
        if case.before is not None:
            case.before()
        at = _settled(lines)
        case.act()
        end = _settled(lines)
        found = lines.read_text()[at:end].split()
        if found.count("readdir") == 3:
            found.remove("readdir")  # of a long directory the kernel takes the first names alone at times
        yield case, found


def _settled(lines: Path) -> int:
    """How long the list is once all that was closed is; the kernel does not wait for the answer to that."""

    def is_closed() -> bool:
        found = lines.read_text().split()
        files = found.count("open") + found.count("create") - found.count("release")
        directories = found.count("opendir") - found.count("releasedir")
        return files + directories == len(_fds)

    wait_for(is_closed, "all files to be closed")
    return lines.stat().st_size


def rows(lines: Path) -> list[str]:
    """The table."""
    made = ["| call | requests | what they are | why |", "|---|---|---|---|"]
    for case, found in _measured(lines):
        shown = ", ".join(f"{name} × {count}" if count > 1 else name for name, count in _counted(found))
        made.append(f"| {case.title} | {len(found)} | {shown or '–'} | {case.why} |")
    return made


def _counted(names: list[str]) -> list[tuple[str, int]]:
    return [(name, names.count(name)) for name in dict.fromkeys(names)]


def test_the_table_of_requests_is_true(requests: Path) -> None:
    text = DOCUMENT.read_text()
    if f"Linux {KERNEL}" not in text:
        pytest.skip(f"REQUESTS NOT COUNTED: the table is of another kernel than Linux {KERNEL}, which may send others")
    made = rows(requests)
    if os.environ.get("PFS_WRITE_SYSCALLS"):
        table = "\n".join([BEGIN, *made, END])
        DOCUMENT.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: table, text, flags=re.DOTALL))
        text = DOCUMENT.read_text()
    told = text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip().splitlines()
    assert made == told
