"""A disk that is really full: a small ext4 in a file, mounted through a loop device."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pfsmount.fs.mountpoint import mounted_at, run_unmount
from pfsmount.repo import fsck
from tests.conftest import run_command

SIZE = 64 << 20


def full_disk_problem() -> str | None:
    """Why no small filesystem can be made here."""
    if os.getuid():
        return "only root can mount one"
    missing = [tool for tool in ("mkfs.ext4", "mount", "umount") if shutil.which(tool) is None]
    return f"{missing[0]} is missing" if missing else None


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty ext4 of 64 MiB."""
    problem = full_disk_problem()
    if problem is not None:
        pytest.skip(f"NO FULL DISK TESTS: {problem}")
    image, point = tmp_path / "image", tmp_path / "disk"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True, capture_output=True)
    done = subprocess.run(["mount", "-o", "loop", image, point], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"NO FULL DISK TESTS: no loop device: {done.stderr.strip()}")
    yield point
    subprocess.run(["umount", "-l", point], check=True)


class Store:
    """A store on the disk, and its commands."""

    def __init__(self, disk: Path) -> None:
        self.disk = disk
        self.path = disk / "store"
        self.ballast = disk / "ballast"

    def pfs(self, *arguments: str | Path, code: int | None = 0) -> str:
        """Run a command; what it said."""
        done = run_command("pfsmount.cli.app", self.path, *map(str, arguments))
        assert "Traceback" not in done.stderr
        assert "bug in pfs" not in done.stderr
        assert code is None or done.returncode == code, done.stderr
        return done.stdout + done.stderr

    def fill(self) -> None:
        """Leave not one block."""
        fd = os.open(self.ballast, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            for size in (1 << 20, 4096):
                with suppress(OSError):
                    while True:
                        os.write(fd, bytes(size))
            with suppress(OSError):
                os.fsync(fd)
        finally:
            os.close(fd)

    def check(self) -> None:
        """fsck finds nothing."""
        report = fsck.check_store(self.path, data=True)
        assert report.clean, [str(one) for one in report.findings]


@pytest.fixture
def store(disk: Path, tmp_path: Path) -> Store:
    """A store with a branch `old` that holds 20 MiB of its own."""
    made = Store(disk)
    (tmp_path / "small").write_bytes(b"s" * 5000)
    (tmp_path / "large").write_bytes(os.urandom(20 << 20))
    (tmp_path / "medium").write_bytes(os.urandom(3 << 20))
    made.pfs("init")
    made.pfs("repo", "create", "images")
    made.pfs("put", tmp_path / "small", "images@master:/small")
    made.pfs("branch", "images@old", "images@master")
    made.pfs("put", tmp_path / "large", "images@old:/large")
    return made


def test_a_put_on_a_full_disk(store: Store, tmp_path: Path) -> None:
    """It says so and changes nothing; everything can be read; with space again the same command works."""
    before = store.pfs("log", "images@master")
    store.fill()
    for _ in range(2):
        said = store.pfs("put", tmp_path / "medium", "images@master:/medium", code=1)
        assert said.startswith("pfs: no space left")
        assert store.pfs("log", "images@master") == before
        assert store.pfs("cat", "images@master:/small") == "s" * 5000
        store.check()
    store.ballast.unlink()
    store.pfs("put", tmp_path / "medium", "images@master:/medium")
    store.check()


@pytest.mark.long
def test_a_mount_on_a_full_disk(store: Store, tmp_path: Path) -> None:
    """Writers get ENOSPC, what they had written stays, a commit says why it cannot be made; with space again all of it works."""
    point = tmp_path / "mnt"
    point.mkdir()
    store.pfs("mount", point)
    try:
        top = point / "images@master"
        (top / "before").write_bytes(b"b" * 3_000_000)
        store.fill()
        with pytest.raises(OSError, match="No space left"):
            (top / "during").write_bytes(b"d" * 3_000_000)
        said = store.pfs("commit", "images@master", "-m", "full", code=1)
        assert said.startswith("pfs: no space left"), said
        assert (top / "before").read_bytes() == b"b" * 3_000_000
        assert "before" in store.pfs("status", "images@master")
        store.ballast.unlink()
        (top / "during").write_bytes(b"d" * 3_000_000)
        store.pfs("commit", "images@master", "-m", "space again")
        assert (top / "during").read_bytes() == b"d" * 3_000_000
        assert "nothing" in store.pfs("status", "images@master")
        store.pfs("umount", point)
    finally:
        if mounted_at(str(point)) is not None:
            run_unmount(str(point), lazy=True, force=True)
    store.check()


def test_space_is_made_on_a_full_disk(store: Store, tmp_path: Path) -> None:
    """`pfs branch -d` and `pfs gc` run where nothing else can, and then the work goes on."""
    store.fill()
    store.pfs("put", tmp_path / "medium", "images@master:/medium", code=1)
    store.pfs("branch", "-d", "-f", "images@old")
    before = os.statvfs(store.disk).f_bavail
    store.pfs("gc", "--keep", "0d")
    freed = (os.statvfs(store.disk).f_bavail - before) * os.statvfs(store.disk).f_frsize
    assert freed > 15 << 20
    store.pfs("put", tmp_path / "medium", "images@master:/medium")
    store.check()
