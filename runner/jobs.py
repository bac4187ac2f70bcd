"""Jobs as they are named, listed and found again, and the directory that a running one works in.

A job is a ref of kind `job` in its output repo. It names a commit whose tree is the record; that commit's `origin` says in short how the
job stands, so that a list reads no records. While a job runs, `jobs/<id>/` of the store has

    lock        locked as long as the runner lives; says who it is
    progress    one line of JSON, replaced whole: `processed`, `skipped`, `failed`, `total` (null until it is known), `phase`
    mount       where the inputs are mounted, if they are
    ended       which datums have ended (`runner.live`)
    d/<n>/      scratch of a datum (`runner.scratch`)

and nothing in it is needed after a crash. A job that says that it runs, and whose lock is free, was interrupted.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfsmount.errors import Corrupt, InvalidInput, NotFound
from pfsmount.ids import ObjectId, display
from pfsmount.objects.layout import disk_errors, private
from pfsmount.objects.locks import is_path_locked, try_lock
from pfsmount.repo.commit import Commit
from pfsmount.repo.refs import RefKind, RepoInfo
from pfsmount.repo.store import Store
from runner.claims import Claims
from runner.live import LiveJob
from runner.record import Record
from runner.scratch import remove_tree
from runner.state import Phase

_PREFIX = "job-"
_LEFT_OVER_S = 3600.0


def new_job_id(now_s: float) -> str:
    """`job-`, 12 hex digits of the time in units of 2^-16 s and 4 random ones: sorted by name is sorted by time."""
    return f"{_PREFIX}{int(now_s * 65536):012x}{secrets.token_hex(2)}"


@dataclass(frozen=True, slots=True)
class Job:
    """A job as listed."""

    id: str
    repo: RepoInfo
    """Where its results go."""
    ref: Commit
    """The commit that its ref names; the tree is the record."""
    phase: Phase

    @property
    def origin(self) -> Mapping[str, Any]:
        return self.ref.origin

    @property
    def output(self) -> str:
        return f"{self.repo.name}@{self.origin['branch']}"

    @property
    def commit(self) -> str | None:
        """The id of the commit that it made, in hex."""
        made: str | None = self.origin.get("commit")
        return made

    def summary(self) -> dict[str, Any]:
        """The job as JSON, without its record."""
        known = {key: value for key, value in self.origin.items() if key not in ("how", "state", "branch")}
        return {**known, "state": str(self.phase), "output": self.output, "author": self.ref.author}


class JobStore:
    """The jobs of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._root = store.path / "jobs"

    def jobs(self) -> Iterator[Job]:
        """All jobs, newest first."""
        refs = [
            (ref.name, repo, ref.commit)
            for repo in self._store.repos()
            for ref in self._store.refs(repo.name, RefKind.JOB)
            if ref.commit is not None
        ]
        for name, repo, commit in sorted(refs, key=lambda item: item[0], reverse=True):
            yield self._job(name, repo, commit)

    def find(self, prefix: str) -> Job:
        """The job whose id begins so, with or without `job-`. Raises NotFound, InvalidInput (more than one)."""
        if not prefix.removeprefix(_PREFIX):
            raise InvalidInput("the id of a job is missing", hint="'pfsjob list' shows them")
        wanted = _PREFIX + prefix.removeprefix(_PREFIX)
        found = [
            (ref.name, repo, ref.commit)
            for repo in self._store.repos()
            for ref in self._store.refs(repo.name, RefKind.JOB)
            if ref.commit is not None and ref.name.startswith(wanted)
        ]
        if not found:
            raise NotFound(f"there is no job '{display(prefix)}'", hint="'pfsjob list' shows them")
        if len(found) > 1:
            names = ", ".join(sorted(name for name, _, _ in found)[:4])
            raise InvalidInput(f"'{display(prefix)}' fits {len(found)} jobs: {names}", hint="give more of the id")
        return self._job(*found[0])

    def _job(self, name: str, repo: RepoInfo, commit: ObjectId) -> Job:
        ref = self._store.read_commit(commit)
        try:
            phase = Phase(ref.origin["state"])
            if not isinstance(ref.origin["branch"], str):
                raise ValueError
        except (KeyError, ValueError):
            raise Corrupt(f"the ref of {display(name)} names a commit that is no job's") from None
        if not phase.is_over and not self.is_running(name):
            now = self._store.ref(repo.name, RefKind.JOB, name)
            if now is not None and now.commit is not None and now.commit != commit:
                return self._job(name, repo, now.commit)  # it has ended between the two looks
            phase = Phase.INTERRUPTED
        return Job(name, repo, ref, phase)

    def record(self, job: Job) -> Record:
        """The record of a job; for one that runs, of its start."""
        return Record(self._store.objects, job.ref.tree)

    def live(self, job: str) -> LiveJob:
        """A job that runs, for looking on."""
        return LiveJob(self._store, self._root / job)

    def is_running(self, job: str) -> bool:
        """True while the runner of a job lives."""
        return is_path_locked(self._root / job / "lock")

    def progress(self, job: str) -> dict[str, Any] | None:
        """How far a running job is; None when it does not run."""
        try:
            value = json.loads((self._root / job / "progress").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def claims(self) -> Claims:
        """Who runs which datum, among all jobs. Raises NoSpace, PermissionDenied."""
        return Claims(self._store.path / "run" / "claims")

    @contextmanager
    def open_directory(self, job: str) -> Iterator[JobDirectory]:
        """The locked directory of a new job, deleted afterwards. Raises NoSpace, PermissionDenied."""
        with disk_errors("making the directory of a job"):
            self._root.mkdir(mode=0o700, exist_ok=True)
            unlocked = self._root / f".{job}"
            unlocked.mkdir(mode=0o700)
            lock = os.open(unlocked / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try_lock(lock)  # made just now: nobody else has it
            os.pwrite(lock, f"{os.getpid()} {socket.gethostname()}\n".encode("utf-8", "surrogateescape"), 0)
            directory = JobDirectory(self._root / job)
            with disk_errors("making the directory of a job"):
                unlocked.rename(directory.path)
                directory.datums.mkdir(mode=0o700)
            yield directory
        finally:
            remove_tree(self._root / job)
            with suppress(FileNotFoundError):
                unlocked.rmdir()
            os.close(lock)

    def sweep(self) -> None:
        """Delete what runners that were killed left behind."""
        with suppress(FileNotFoundError):
            for path in self._root.iterdir():
                self._sweep_one(path)

    def _sweep_one(self, path: Path) -> None:
        # a name with a dot is being made just now, unless it is old
        with suppress(OSError):
            if path.name.startswith(".") and time.time() - path.stat().st_mtime < _LEFT_OVER_S:
                return
        fd = _open_lock(path)
        if fd is None:
            return
        try:
            if not try_lock(fd):
                return  # it runs; or somebody else sweeps
            unmount_noted(path)
            remove_tree(path)
        except OSError:
            return
        finally:
            os.close(fd)


class JobDirectory:
    """Where a running job works."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.datums = path / "d"

    def write_progress(self, value: Mapping[str, Any]) -> None:
        """Replace the progress file; a disk that is full does not end the job."""
        with suppress(OSError):
            temporary = self.path / "progress.new"
            with open(temporary, "w", encoding="ascii", opener=private) as file:
                file.write(json.dumps(value) + "\n")
            temporary.rename(self.path / "progress")


def _open_lock(directory: Path) -> int | None:
    """The lock of a job's directory; made anew where a runner was killed while it deleted the directory, the lock before the rest."""
    try:
        return os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None


def note_mount(directory: Path, place: Path) -> None:
    """Write down where a job has its inputs mounted, so that somebody can clean up after a runner that was killed."""
    with open(directory / "mount", "wb", opener=private) as file:
        file.write(os.fsencode(place))


def unmount_noted(directory: Path) -> None:
    """Take away the mount of a job, if it is still there."""
    try:
        place = (directory / "mount").read_bytes()
    except FileNotFoundError:
        return
    with suppress(FileNotFoundError):
        subprocess.run([b"fusermount3", b"-u", b"-z", place], capture_output=True, check=False)
    with suppress(OSError):
        os.rmdir(place)
