"""Real FUSE mounts: each made through the command, each taken away again whatever happens, by pid and by name."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pfsmount.fs.mountpoint import mounted_at, run_unmount
from pfsmount.fs.records import MountRecord, live_mounts
from pfsmount.repo.store import Store

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 20.0


def fuse_problem() -> str | None:
    """Why no FUSE mount can be made here."""
    from pfsmount.errors import PfsError
    from pfsmount.fs.mountpoint import check_machine

    try:
        check_machine()
    except PfsError as error:
        return str(error)
    return None


@pytest.fixture(autouse=True)
def need_fuse() -> None:
    problem = fuse_problem()
    if problem is not None:
        pytest.skip(f"NO MOUNTED TESTS: {problem}")


def wait_for(condition: Callable[[], Any], what: str, seconds: float = DEADLINE) -> Any:
    """Poll until something is true; fail with `what` when it does not become so."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds} s for: {what}")
        time.sleep(0.005)


class Mount:
    """One mount point of one store."""

    def __init__(self, store: Path, point: Path) -> None:
        self.store = store
        self.point = point

    @property
    def master(self) -> Path:
        """The branch that most tests write to."""
        return self.point / "images@master"

    def pfs(
        self, *args: str | os.PathLike[str], check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run `pfs` against the store."""
        env = {**os.environ, "PFS_STORE": str(self.store), "PFS_AUTHOR": "tester@here", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "pfsmount.cli.app", *map(str, args)],
            env=env,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            stdin=subprocess.DEVNULL,
            timeout=100,
            check=False,
            **options,
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def mount(self, *args: str) -> Mount:
        """Mount and return when it is ready."""
        self.pfs("mount", self.point, *args)
        return self

    def record(self) -> MountRecord | None:
        """The record of the live daemon."""
        return next((one for one in live_mounts(self.store) if one.mount == str(self.point)), None)

    def kill(self) -> None:
        """kill -9 the daemon and wait until it is gone."""
        record = self.record()
        assert record is not None
        os.kill(record.pid, signal.SIGKILL)
        wait_for(lambda: self.record() is None, "the daemon to be dead")

    def umount(self) -> None:
        """Unmount by the command."""
        self.pfs("umount", self.point)

    def commit(self, message: str = "a commit", *args: str) -> str | None:
        """Commit master by the command; returns the id, None when nothing was changed."""
        done = self.pfs("commit", "images@master", "-m", message, "--json", *args)
        found = json.loads(done.stdout)["commit"]
        assert found is None or isinstance(found, str)
        return found

    def log_lines(self) -> list[str]:
        """Warnings and errors that daemons of this store logged."""
        lines = []
        for path in (self.store / "run").glob("*.log"):
            lines += [line for line in path.read_text().splitlines() if " INFO " not in line]
        return lines

    def clean_up(self) -> None:
        """Leave nothing behind: unmount lazily, end the daemon by its pid."""
        record = self.record()
        mount = mounted_at(str(self.point))
        if mount is not None:
            with contextlib.suppress(Exception):
                run_unmount(str(self.point), lazy=True, force=os.getuid() == 0)
        if record is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.pid, signal.SIGTERM)
            deadline = time.monotonic() + 5
            while self.record() is not None:
                if time.monotonic() > deadline:
                    os.kill(record.pid, signal.SIGKILL)
                    deadline += 60
                time.sleep(0.01)


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[Callable[[str], Mount]]:
    """A function that gives (not mounted) mount points of one store with the repo `images`."""
    store = tmp_path / "store"
    Store.create(store)
    with Store.open(store, author="tester@here") as opened:
        opened.create_repo("images")
    made: list[Mount] = []

    def make(name: str = "mnt") -> Mount:
        point = tmp_path / name
        point.mkdir()
        made.append(Mount(store, point))
        return made[-1]

    yield make
    for one in made:
        one.clean_up()


@pytest.fixture
def mount(mounts: Callable[[str], Mount]) -> Iterator[Mount]:
    """A mounted store with an empty repo `images`. Whatever the daemon logs beside INFO fails the test."""
    one = mounts("mnt").mount()
    yield one
    assert one.log_lines() == []
