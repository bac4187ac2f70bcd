"""The interface of all executors: one command, over the files of one datum, to its end.

An executor opens workers; a worker runs tasks one after another, and is kept while there is work, because opening one is what
costs. `memory` holds the twin that upper layers are tested with; `tests/contracts/test_executor.py` is the contract.
"""

from __future__ import annotations

import enum
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pfsmount.errors import PfsError, Retry, Unavailable

RESERVED_TARGET = b"out"
MEMORY_MAX, CPUS_MAX, PIDS_MAX = 1 << 60, 10_000, 1 << 22  # more than any machine has
CPUS_MIN = 0.01  # the kernel's
MEMORY_MIN = 4 << 20  # what it takes to start a command at all

# Directories that lead to binds are made for the datum. Their time must be the same in every run; the year 2000 is one that
# all archive formats can hold.
MADE_MTIME_NS = 946_684_800 * 10**9


_TIMEOUT_EXIT = 124


class ExecutorError(PfsError):
    """The executor, not the command, failed."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One thing that keeps an executor from working here, and what its owner can do about it."""

    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.problem}: {self.remedy}"


class ExecutorUnavailable(ExecutorError, Unavailable):
    """This executor cannot work on this machine. `obstacles` are all known reasons; the message has the first."""

    def __init__(self, obstacles: Sequence[Obstacle]) -> None:
        super().__init__(obstacles[0].problem, hint=obstacles[0].remedy)
        self.obstacles = tuple(obstacles)


class TaskRefused(ExecutorError):
    """The command was not started: what the task names is missing, or cannot be mounted. The worker can go on."""


class WorkerLost(ExecutorError):
    """The command did not run to its end, by no fault of the task: what watched it died or hangs, or the machine is short of
    processes. Another worker can run it again."""

    retry = Retry.TRANSIENT


class Reason(enum.StrEnum):
    """How a command ended, or why it was not started."""

    OK = "ok"
    FAILED = "failed"
    SIGNALLED = "signalled"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"  # its memory limit, or the machine's end of memory, killed a process of it
    NOT_FOUND = "not_found"
    NOT_EXECUTABLE = "not_executable"
    NO_CWD = "no_cwd"


@dataclass(frozen=True, slots=True)
class Limits:
    """What all processes of one datum together may use; None: no limit but the machine's."""

    memory: int | None = None
    """Bytes, without swap. Who needs more is killed: `Reason.OUT_OF_MEMORY`."""
    cpus: float | None = None
    """Processors' worth of time."""
    pids: int | None = None
    """Processes and threads."""

    def __post_init__(self) -> None:
        if self.memory is not None and not MEMORY_MIN <= self.memory <= MEMORY_MAX:
            raise ValueError(f"not a limit of memory (at least {MEMORY_MIN >> 20} MiB): {self.memory}")
        if self.cpus is not None and not CPUS_MIN <= self.cpus <= CPUS_MAX:
            raise ValueError(f"not a limit of processors ({CPUS_MIN} to {CPUS_MAX:,}): {self.cpus}")
        if self.pids is not None and not 0 < self.pids <= PIDS_MAX:
            raise ValueError(f"not a limit of processes (1 to {PIDS_MAX:,}): {self.pids}")

    def __bool__(self) -> bool:
        return self != Limits()


@dataclass(frozen=True, slots=True)
class Bind:
    """One file or directory of the host, with all that is mounted below it, shown at `/pfs/<target>`.

    `source` is absolute. Where it is itself a symlink, the datum gets that same symlink, not what it points to.
    """

    source: bytes
    target: bytes
    read_only: bool = True

    def __post_init__(self) -> None:
        if not self.source.startswith(b"/") or b"\0" in self.source:
            raise ValueError(f"not an absolute path: {self.source!r}")
        if b"\0" in self.target or any(part in (b"", b".", b"..") for part in self.target.split(b"/")):
            raise ValueError(f"not a path below /pfs: {self.target!r}")
        if self.target.split(b"/")[0] == RESERVED_TARGET:
            raise ValueError("/pfs/out is the output")


@dataclass(frozen=True, slots=True)
class Task:
    """One command over one datum.

    The command sees `/pfs` with `binds` and an output directory, and nothing else there; fresh `/tmp`, `/var/tmp` and
    `/dev/shm`; of the host's what the executor says. No bind lies inside another. A name with a slash in `argv[0]` is
    relative to `cwd`; one without is looked up in the PATH of `env`.
    """

    binds: Sequence[Bind]
    out: Path  # an empty directory of the host, shown writable at /pfs/out
    argv: Sequence[str | bytes]
    env: Mapping[str, str]  # the whole environment; in a container, on top of what the image has
    cwd: Path | None  # None: the image's (a container only)
    log: Path  # stdout and stderr are appended to it as they are written; the rest of the path exists
    stdin: bytes | None = None  # None: /dev/null
    timeout: float | None = None  # seconds
    # Paths that stay as they are on the host although they lie beneath a fresh directory. What does not exist, lies in the
    # host's /pfs, or is itself one of the fresh directories, is passed by.
    keep_visible: Sequence[Path] = field(default=())
    hermetic: bool = False  # no network but a loopback of its own

    def __post_init__(self) -> None:
        if not self.argv:
            raise ValueError("no command")
        check_no_nul(self.argv)
        check_no_nul(self.env)
        check_no_nul(self.env.values())
        for name in self.env:
            if not name or "=" in name:
                raise ValueError(f"not a name of an environment variable: {name!r}")
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise ValueError(f"not a time limit: {self.timeout}")
        for path in (self.out, self.cwd, self.log):
            if path is not None and not path.is_absolute():
                raise ValueError(f"not an absolute path: {os.fspath(path)!r}")
        check_disjoint([bind.target for bind in self.binds])


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended.

    `exit_code` is what a shell would have in `$?` where the command was not started (127, 126); it is None after a signal
    or a timeout. `message` says what `reason` alone does not, and was also written to the log where the command itself
    could not write there. Times are ns since the epoch; `max_rss` is in bytes, of the largest process, and is not below
    what the executor's own process takes (≈ 12 MiB).
    """

    reason: Reason
    exit_code: int | None
    signal: int | None
    message: str
    started_ns: int
    ended_ns: int
    max_rss: int
    user_s: float
    system_s: float
    struck: tuple[str, ...] = ()
    """The limits that were reached meanwhile (`memory`, `pids`), whether or not the command failed by it. Memory is reached
    when a process was killed for it, not when cached files took all that was left."""

    @property
    def ok(self) -> bool:
        return self.reason is Reason.OK

    @property
    def shell_exit(self) -> int:
        """What a shell would have in `$?`."""
        if self.exit_code is not None:
            return self.exit_code
        return _TIMEOUT_EXIT if self.reason is Reason.TIMEOUT else 128 + (self.signal or 0)

    @property
    def how(self) -> str:
        """How it ended, for people."""
        return how_it_ended(self.reason, self.shell_exit, self.message)


def how_it_ended(reason: str, shell_exit: int, message: str) -> str:
    """The end of a command, for people."""
    if message:
        return message
    match reason:
        case Reason.OK:
            return "ok"
        case Reason.SIGNALLED:
            return f"killed by signal {shell_exit - 128}"
        case Reason.TIMEOUT:
            return "took too long"
        case Reason.OUT_OF_MEMORY:
            return "out of memory"
        case _:
            return f"exit code {shell_exit}"


class Worker(Protocol):
    async def run(self, task: Task) -> Outcome:
        """Runs one task to its end; a second one at the same time is RuntimeError.

        When it returns, raises or is cancelled, no process of the command is left, and nothing that it was given is
        mounted any more. After a cancellation the worker can run the next task.

        Raises TaskRefused (the command was not started; the worker can go on) and WorkerLost (it may have been started; close
        this worker and open another).
        """
        ...


class Executor(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def sees_mounts(self) -> bool:
        """Whether a bind may lie in a mount; where not, it must be a copy on the filesystem of the task's output."""
        ...

    def open_worker(self) -> AbstractAsyncContextManager[Worker]:
        """A worker, ready to run; nothing of it is left when the context ends. Raises ExecutorUnavailable."""
        ...

    async def preflight(self) -> tuple[Obstacle, ...]:
        """Tries it. What keeps this executor from working here; empty when it works."""
        ...


def check_no_nul(values: Iterable[str | bytes]) -> None:
    for value in values:
        if "\0" in value if isinstance(value, str) else b"\0" in value:
            raise ValueError(f"the kernel cannot pass a NUL byte: {value!r}")


def check_disjoint(targets: Sequence[bytes]) -> None:
    """No target twice, none inside another: its mount point would have to be made in the other's source."""
    known = set(targets)
    if len(known) != len(targets):
        raise ValueError("two binds have one target")
    for target in targets:
        at = target.find(b"/")
        while at >= 0:
            if target[:at] in known:
                raise ValueError(f"{target!r} lies inside another bind, {target[:at]!r}")
            at = target.find(b"/", at + 1)
