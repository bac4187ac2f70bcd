"""Signals at the worst moments, and what a terminal shows meanwhile."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_archive import archive, member
from tests.conftest import Run

_TIMEOUT = 60


@pytest.fixture
def images(pfs: Run) -> Run:
    """A store with an empty repo."""
    assert pfs("repo", "create", "images").returncode == 0
    return pfs


@contextmanager
def started(images: Run, *command: str | Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """`pfs …` while it runs; killed in the end if it still does."""
    environment = {**os.environ, "PFS_STORE": str(images.store), "PFS_AUTHOR": "tester@here"}  # type: ignore[attr-defined]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with subprocess.Popen([sys.executable, "-m", "pfsmount.cli.app", *command], env=environment, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def stored(images: Run) -> tuple[int, list[str]]:
    """Bytes in segments, and temporary files."""
    store: Path = images.store  # type: ignore[attr-defined]
    return sum(one.stat().st_size for one in (store / "segments").iterdir()), os.listdir(store / "tmp")


def feed(process: subprocess.Popen[bytes], data: bytes) -> None:
    """More than a pipe holds: when this returns, the command has begun to read."""
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.flush()


@pytest.mark.parametrize(
    ("number", "command"),
    [
        (signal.SIGINT, ["put", "-", "images@master:/x"]),
        (signal.SIGTERM, ["put", "--tar", "-", "images@master:/x"]),
        (signal.SIGHUP, ["put", "--tar", "-", "images@master:/x"]),
    ],
)
def test_an_interrupted_put_leaves_nothing(images: Run, number: int, command: list[str]) -> None:
    """One line, the signal's exit code, what was written into the store is given back, and it can be used at once."""
    images("put", "-", "images@master:/first", input="first")
    before = stored(images)
    with started(images, *command) as process:
        feed(process, archive((member("a"), os.urandom(20_000)), (member("b"), os.urandom(6 << 20)))[: 3 << 20])
        process.send_signal(number)
        out, errors = process.communicate(timeout=_TIMEOUT)
    assert (process.returncode, out) == (128 + number, b"")
    assert errors == b"pfs: interrupted; nothing was committed\n"
    assert stored(images) == before
    assert images("ls", "images@master").stdout == "first\n"


def test_an_interrupted_get_leaves_nothing(images: Run, tmp_path: Path) -> None:
    """A directory that was not there is there whole, or not at all."""
    source, target = tmp_path / "source", tmp_path / "target"
    for number in range(2000):
        (source / f"{number % 10}").mkdir(parents=True, exist_ok=True)
        (source / f"{number % 10}" / f"{number}").write_bytes(b"x")
    assert images("put", source, "images@master:/t").returncode == 0
    target.mkdir()
    with started(images, "get", "images@master:/t", target / "new") as process:
        deadline = time.monotonic() + _TIMEOUT
        while not os.listdir(target) and time.monotonic() < deadline:
            os.sched_yield()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=_TIMEOUT)
    if process.returncode == 0:
        assert os.listdir(target) == ["new"]
    else:
        assert (process.returncode, errors) == (130, b"pfs: interrupted; nothing was written\n")
        assert os.listdir(target) == []


def test_an_interrupted_archive_is_not_there(images: Run, tmp_path: Path) -> None:
    """Nor is the old one gone."""
    (tmp_path / "large").write_bytes(os.urandom(30 << 20))
    images("put", tmp_path / "large", "images@master:/large")
    target = tmp_path / "target"
    target.mkdir()
    (target / "x.tar.xz").write_bytes(b"old")
    with started(images, "get", "images@master", "--tar", target / "x.tar.xz") as process:
        deadline = time.monotonic() + _TIMEOUT
        while len(os.listdir(target)) < 2 and time.monotonic() < deadline:
            os.sched_yield()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=_TIMEOUT)
    assert process.returncode == 143
    assert os.listdir(target) == ["x.tar.xz"]
    assert (target / "x.tar.xz").read_bytes() == b"old"


def test_a_signal_waits_for_the_commit() -> None:
    """What is said about the commit is right, whenever the signal comes."""
    program = """
import os, signal
from pfsmount.cli import interruption
interruption.install()
interruption.if_interrupted("nothing was committed")
try:
    with interruption.held_back():
        os.kill(os.getpid(), signal.SIGTERM)
        print("whole")
except interruption.Interrupted as error:
    print(error.exit_code, interruption.message())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=_TIMEOUT)
    assert done.stdout == "whole\n143 interrupted; the commit was made\n"


def test_progress_on_a_terminal(images: Run) -> None:
    """Files, bytes and the rate on standard error; nothing is left of it at the end."""
    ours, theirs = pty.openpty()
    try:
        with started(images, "put", "--tar", "-", "images@master:/x", stderr=theirs) as process:
            os.close(theirs)
            data = archive((member("a"), b"1"), (member("b"), os.urandom(6 << 20)), (member("c"), b"1"))
            feed(process, data[: 3 << 20])
            shown = b""
            deadline = time.monotonic() + _TIMEOUT
            while b"1 file, 1 B" not in shown and time.monotonic() < deadline:
                if select.select([ours], [], [], 1)[0]:
                    shown += os.read(ours, 4096)
            assert b"putting" in shown
            assert b"B/s" in shown
            feed(process, data[3 << 20 :])
            out, _ = process.communicate(timeout=_TIMEOUT)
        assert process.returncode == 0
        assert b"put 3 files" in out
    finally:
        os.close(ours)
