"""What an ordinary disk does, and what a mounted branch does: the same tests on both."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pfsmount.repo.store import Store
from tests.mounted.conftest import Mount, fuse_problem, mount, mounts, need_fuse

__all__ = ["mount", "mounts", "need_fuse"]
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="NO OTHER USERS: only root can act as one")


@pytest.fixture(scope="session")
def shared_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount, with the owners that files have, for tests that keep to a directory of their own. Its log must stay empty."""
    if fuse_problem() is not None:
        pytest.skip(f"NO MOUNTED TESTS: {fuse_problem()}")
    top = tmp_path_factory.mktemp("shared")
    Store.create(top / "store")
    with Store.open(top / "store", author="tester@here") as opened:
        opened.create_repo("images")
    (top / "mnt").mkdir()
    made = Mount(top / "store", top / "mnt")
    try:
        made.mount("--real-owner")
        yield made
        assert made.log_lines() == []
    finally:
        made.clean_up()


@pytest.fixture(params=["disk", "branch"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh directory that all users may write to, which is the current one: on the disk, and in a mounted branch. Its value is which."""
    top = tmp_path
    if request.param == "branch":
        top = request.getfixturevalue("shared_mount").master
    # names of tests can be longer than a file's
    directory = top / f"place-{abs(hash(request.node.nodeid)):x}"
    directory.mkdir()
    directory.chmod(0o777)
    before = os.getcwd()
    mask = os.umask(0o022)
    os.chdir(directory)
    try:
        yield request.param
    finally:
        os.umask(mask)
        os.chdir(before)


def errno_of(act: Callable[..., object], *arguments: object) -> str:
    """The name of the errno that a call fails with; "ok" when it does not."""
    try:
        act(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return "ok"


def touch(path: str, content: bytes = b"", mode: int = 0o644) -> None:
    """A file with this content and exactly this mode."""
    with open(path, "wb") as file:
        file.write(content)
    os.chmod(path, mode)


def mode_of(path: str) -> str:
    """Permission bits as octal digits."""
    return f"{os.lstat(path).st_mode & 0o7777:04o}"
