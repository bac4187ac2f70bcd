"""The same generated calls in a mounted branch and on ext4: what they return, and what everything looks like after each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounted.conftest import Mount
from tests.posix.calls import Call, Maker
from tests.posix.twins import Difference, Disk, Twins

Mounts = Callable[[str], Mount]
CHECK_EVERY = 25
SHRINK_SECONDS = 60.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    made = Disk(path)
    if made.problem is not None:
        pytest.skip(f"NOT COMPARED WITH EXT4: there is none here ({made.problem})")
    yield made.path
    made.close()


class Session:
    """Runs lists of calls in fresh directories of one mount."""

    def __init__(self, mount: Mount, disk: Path, options: tuple[str, ...]) -> None:
        self._mount, self._disk, self._options = mount, disk, options
        self._count = 0

    def run(self, calls: list[Call]) -> tuple[int, str] | None:
        """Index and text of the first difference."""
        self._count += 1
        twins = Twins(self._mount, self._disk, f"run{self._count}", self._options)
        try:
            for at, call in enumerate(calls):
                try:
                    twins.do(call)
                    if (at + 1) % CHECK_EVERY == 0 or at + 1 == len(calls):
                        twins.check()
                except Difference as error:
                    return at, str(error)
        finally:
            twins.close()
        return None

    def shrink(self, calls: list[Call], at: int) -> tuple[list[Call], str]:
        """The fewest calls found that still differ, and how."""
        calls = calls[: at + 1]
        text = ""
        size = max(1, len(calls) // 2)
        until = time.monotonic() + SHRINK_SECONDS
        while time.monotonic() < until:
            start = 0
            shrunk = False
            while start < len(calls):
                fewer = calls[:start] + calls[start + size :]
                found = self.run(fewer)
                if found is not None and fewer[found[0]] == calls[-1]:
                    calls, text, shrunk = fewer[: found[0] + 1], found[1], True
                else:
                    start += size
            if size == 1 and not shrunk:
                break
            size = max(1, size // 2)
        return calls, text


def calls_of(seed: int, count: int, turns: list[str]) -> list[Call]:
    """Calls with some turns spread among them."""
    maker = Maker(seed, users=os.geteuid() == 0)
    calls = [maker.call() for _ in range(count)]
    for number, turn in enumerate(turns):
        calls.insert((number + 1) * len(calls) // (len(turns) + 1), Call(turn))
    return calls


def compare(session: Session, calls: list[Call], seed: int) -> None:
    found = session.run(calls)
    if found is None:
        return
    try:
        fewer, text = session.shrink(calls, found[0])
    except OSError as error:
        pytest.fail(f"seed {seed}: call {found[0]}, {found[1]}; then nothing could be tried again: {error}")
    pytest.fail(f"seed {seed}: {found[1]}\nfewest calls: {text}\n" + "\n".join(f"  {call}" for call in fewer))


def test_some_hundred_calls(mounts: Mounts, disk: Path) -> None:
    options = ("--real-owner",)
    session = Session(mounts("mnt").mount(*options), disk, options)
    for seed in range(2):
        compare(session, calls_of(seed, 150, ["commit"]), seed)
    compare(session, calls_of(100, 50, ["kill", "commit"]), 100)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_twenty_thousand_calls(mounts: Mounts, disk: Path) -> None:
    options = ("--real-owner",)
    mount = mounts("mnt").mount(*options)
    session = Session(mount, disk, options)
    for seed in range(1000, 1080):
        compare(session, calls_of(seed, 260, ["commit", "kill", "commit", "remount"]), seed)
    assert mount.log_lines() == []
