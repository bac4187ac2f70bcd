"""What the tests of the promises share: a directory with a store, and the two commands run in it as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
_MODULES = {"pfs": "pfsmount.cli.app", "pfsjob": "runner.cli"}
_TIMEOUT = 100


class Scene:
    """A directory to work in; the store is `store` in it, with the repo `images`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = root / "store"
        self.mount_point = root / "mnt"
        self._mounted: list[Path] = []
        self.environment = {
            **os.environ,
            "PFS_STORE": str(self.store),
            "PFS_AUTHOR": "tester@here",
            "PYTHONPATH": str(PROJECT),
        }

    # Commands

    def start(self, command: str, *arguments: str | bytes | Path, **options: Any) -> subprocess.Popen[str]:
        """Start `pfs` or `pfsjob` and do not wait."""
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen(
            [sys.executable, "-m", _MODULES[command], *arguments],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
            **options,
        )

    def run(
        self, command: str, *arguments: str | bytes | Path, code: int | None = 0, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; its exit code must be `code` (None: not 0), and nothing may look like a crash."""
        with self.start(command, *arguments, stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE) as process:
            try:
                out, errors = process.communicate(stdin, timeout=_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        good = process.returncode != 0 if code is None else process.returncode == code
        assert good, f"{command} {arguments}: {process.returncode}\n{out}{errors}"
        assert "Traceback" not in errors
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)

    def pfs(self, *arguments: str | bytes | Path, code: int = 0, stdin: str | None = None) -> str:
        """Run `pfs`; what it printed, or for another code than 0 what it complained."""
        done = self.run("pfs", *arguments, code=code, stdin=stdin)
        return done.stderr if code else done.stdout

    def json(self, *arguments: str | bytes | Path) -> Any:
        """Run `pfs … --json`."""
        return json.loads(self.pfs(*arguments, "--json"))

    def job(self, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
        """Run `pfsjob run --json …`."""
        found = json.loads(self.run("pfsjob", "run", "--json", *arguments, code=code).stdout.splitlines()[-1])
        assert isinstance(found, dict)
        return found

    # Shorthands

    def write(self, files: Mapping[str, str | bytes], directory: str = "files") -> Path:
        """Make local files; returns their directory."""
        top = self.root / directory
        for name, content in files.items():
            path = top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return top

    def put(self, files: Mapping[str, str | bytes], target: str = "images@master:/", message: str = "files") -> str:
        """Put these files in one commit; returns its id."""
        with_name = f"put-{time.monotonic_ns()}"
        found = json.loads(self.pfs("put", self.write(files, with_name), target, "-m", message, "--json"))
        return str(found["commit"])

    def cat(self, target: str) -> str:
        """The content of a file of a version."""
        return self.pfs("cat", target)

    def ls(self, target: str, *options: str) -> list[str]:
        """The names in a directory of a version; directories end with '/'."""
        return self.pfs("ls", target, *options).split()

    def log(self, target: str = "images@master") -> list[dict[str, Any]]:
        """The commits of a branch, newest first."""
        found = self.json("log", target)
        assert isinstance(found, list)
        return found

    def stored_bytes(self) -> int:
        """How large the segments are."""
        return sum(path.stat().st_size for path in (self.store / "segments").iterdir())

    # The mount

    @property
    def master(self) -> Path:
        """The branch `images@master` in the mount."""
        return self.mount_point / "images@master"

    def mount(self, *options: str, at: str = "mnt") -> Path:
        """Mount the store; returns the mount point, which is unmounted when the test ends."""
        point = self.root / at
        if not is_dead_mount(point):
            point.mkdir(exist_ok=True)
        self._mounted.append(point)
        self.pfs("mount", *options, point)
        return point

    def daemon(self, point: Path | None = None) -> int:
        """The process that serves a mount."""
        (found,) = [one for one in self.json("mounts") if one["mount"] == str(point or self.mount_point)]
        return int(found["pid"])

    def kill_daemon(self, point: Path | None = None) -> None:
        """kill -9, and wait until it is gone."""
        pid = self.daemon(point)
        watched = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        wait_readable(watched)
        os.close(watched)

    def clean_up(self) -> None:
        """Unmount what a test has mounted, by force where it must be."""
        for point in self._mounted:
            if os.path.ismount(point) or is_dead_mount(point):
                with self.start("pfs", "umount", "--force", point) as process:
                    process.communicate(timeout=_TIMEOUT)


def is_dead_mount(point: Path) -> bool:
    """A mount whose daemon is gone cannot be looked at."""
    try:
        os.stat(point)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def wait_readable(fd: int) -> None:
    """Wait for the end of the process of a pidfd, or for data."""
    import select

    ready, _, _ = select.select([fd], [], [], _TIMEOUT)
    assert ready, "nothing happened"


def wait_for(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    """Look again and again until something has come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds} s for {what}")
        os.sched_yield()
