"""Trees that are deeper than a process may have files open, and than Python may call itself."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pfsmount.errors import PfsError
from pfsmount.repo.descent import Descent, remove_tree
from tests.conftest import Run

DEPTH = 1200
LIMIT = 100
"""Open files."""


def descend(top: Path, depth: int) -> Iterator[int]:
    """The directories at and below `top`, made where they are missing; each is open for one step."""
    top.mkdir(exist_ok=True)
    fd = os.open(top, os.O_RDONLY)
    for level in range(depth):
        yield fd
        if level + 1 < depth:
            if "d" not in os.listdir(fd):
                os.mkdir("d", dir_fd=fd)
            below = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
    os.close(fd)


def write(fd: int, name: str, data: bytes) -> None:
    with open(os.open(name, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd), "wb") as file:
        file.write(data)


def read(fd: int, name: str) -> bytes:
    with open(os.open(name, os.O_RDONLY, dir_fd=fd), "rb") as file:
        return file.read()


@pytest.fixture
def images(pfs: Run) -> Run:
    """A store with an empty repo."""
    assert pfs("repo", "create", "images").returncode == 0
    return pfs


@pytest.fixture
def few_files() -> Iterator[None]:
    """This process, and those that it starts, may open few files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A tree with files before and behind the way down, and modes and times of its own at each level; removed afterwards."""
    top = tmp_path / "work"
    top.mkdir()
    for level, fd in enumerate(descend(top / "deep", DEPTH)):
        for name in ("a", "z"):
            write(fd, name, b"%s %d" % (name.encode(), level))
    yield top / "deep"
    subprocess.run(["rm", "-rf", top], check=True)


def seen(top: Path) -> list[tuple[object, ...]]:
    """Of each level: names, mode, contents."""
    return [(sorted(os.listdir(fd)), os.fstat(fd).st_mode, read(fd, "a"), read(fd, "z")) for fd in descend(top, DEPTH)]


@pytest.mark.long
@pytest.mark.usefixtures("few_files")
def test_put_and_get(images: Run, deep: Path) -> None:
    """In, out as something new, out over what is there, and in again: the same version."""
    got = deep.parent / "got"
    for command in (
        ("put", "--no-cache", deep, "images@master:/t"),
        ("get", "images@master:/t", got),
        ("put", "--exclude", "nothing", got, "images@master:/t"),
        ("get", "images@master:/t", got),
    ):
        done = images(*command)
        assert (done.returncode, done.stderr) == (0, ""), command
    assert len(images("log", "images@master", "--json").stdout.split('"commit"')) == 2
    assert seen(got) == seen(deep)
    assert sorted(os.listdir(got.parent)) == ["deep", "got"]


@pytest.mark.usefixtures("few_files")
def test_get_that_fails_leaves_nothing(images: Run, deep: Path) -> None:
    """Far down is a file that is larger than this process may write."""
    for level, fd in enumerate(descend(deep, DEPTH)):
        if level == DEPTH - 1:
            write(fd, "large", bytes(200_000))
    assert images("put", deep, "images@master:/t").returncode == 0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        done = images("get", "images@master:/t", deep.parent / "got")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.returncode != 0
    assert "no space left while writing" in done.stderr
    assert os.listdir(deep.parent) == ["deep"]


def leave_all(descent: Descent) -> None:
    while True:
        os.close(descent.leave())


def test_moved_meanwhile(tmp_path: Path) -> None:
    """Whoever moves a directory on the way does not lead what is written out of the tree."""
    (tmp_path / "elsewhere").mkdir()
    top = tmp_path / "top"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    with Descent(fd, b"top") as descent:
        for level in range(60):
            os.mkdir(b"%d" % level, dir_fd=descent.fd)
            descent.enter(b"%d" % level)
        os.rename(top / "0/1/2/3", tmp_path / "elsewhere/3")
        with pytest.raises(PfsError, match="was moved to another directory meanwhile"):
            leave_all(descent)
    above = os.open(tmp_path, os.O_RDONLY)
    remove_tree(b"top", above)
    os.close(above)
    os.close(fd)
    assert os.listdir(tmp_path) == ["elsewhere"]
