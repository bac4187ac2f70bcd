"""An executor without processes or mounts: the twin that tests of the upper layers run on.

A command is an async function, found by `argv[0]`. It sees the datum through a `View`, and its limits are the test's clock.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from runner.executors.base import ExecutorUnavailable, Obstacle, Outcome, Reason, Task, TaskRefused


class Killed(Exception):
    """Raised by a program: a signal ends it."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


class Starved(Exception):
    """Raised by a program: its limit of memory ends it."""


class View:
    """What a program may look at and change. Paths are relative to /pfs."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.out = task.out
        self.argv = [os.fsencode(argument) for argument in task.argv]
        self.stdin = task.stdin or b""

    def locate(self, path: bytes) -> Path:
        """Where the file or directory shown at `path` really is. Raises FileNotFoundError."""
        for bind in self.task.binds:
            if path == bind.target or path.startswith(bind.target + b"/"):
                found = Path(os.fsdecode(bind.source + path[len(bind.target) :]))
                if os.path.lexists(found):
                    return found
        raise FileNotFoundError(path)

    def print(self, text: bytes) -> None:
        with self.task.log.open("ab") as log:
            log.write(text)


Program = Callable[[View], Awaitable[int]]


class MemoryExecutor:
    """Runs `programs`, by name. The exit code is what the function returns; `Killed` stands for a signal, `Starved` for the limit of memory."""

    name = "memory"
    sees_mounts = True

    def __init__(self, programs: Mapping[str, Program], *, obstacles: tuple[Obstacle, ...] = ()) -> None:
        self._programs = dict(programs)
        self._obstacles = obstacles

    @asynccontextmanager
    async def open_worker(self) -> AsyncIterator[MemoryWorker]:
        await trio.lowlevel.checkpoint()
        if self._obstacles:
            raise ExecutorUnavailable(self._obstacles)
        yield MemoryWorker(self._programs)

    async def preflight(self) -> tuple[Obstacle, ...]:
        await trio.lowlevel.checkpoint()
        return self._obstacles


class MemoryWorker:
    def __init__(self, programs: dict[str, Program]) -> None:
        self._programs = programs
        self._running = False

    async def run(self, task: Task) -> Outcome:
        if self._running:
            raise RuntimeError("this worker runs a task already")
        check_sources(task)
        self._running = True
        try:
            return await self._run(task)
        finally:
            self._running = False

    async def _run(self, task: Task) -> Outcome:
        started_ns = time.time_ns()
        view = View(task)
        name = os.fsdecode(task.argv[0])
        program = self._programs.get(name)
        if task.cwd is not None and not task.cwd.is_dir():
            return refused(view, started_ns, Reason.NO_CWD, 126, f"cannot work in {os.fspath(task.cwd)!r}")
        if program is None:
            return refused(view, started_ns, Reason.NOT_FOUND, 127, f"{name}: command not found")
        with trio.move_on_after(math.inf if task.timeout is None else task.timeout):
            try:
                code = await program(view)
            except Killed as killed:
                return ended(started_ns, Reason.SIGNALLED, signal=killed.signal)
            except Starved:
                outcome = ended(
                    started_ns, Reason.OUT_OF_MEMORY, signal=9, message="needed more than its limit of memory"
                )
                return replace(outcome, struck=("memory",))
            return ended(started_ns, Reason.FAILED if code else Reason.OK, exit_code=code)
        return ended(started_ns, Reason.TIMEOUT, signal=9)


def check_sources(task: Task) -> None:
    for path in (*(bind.source for bind in task.binds), os.fsencode(task.out), os.fsencode(task.log.parent)):
        if not os.path.lexists(path):
            raise TaskRefused(f"cannot show {path!r}: No such file or directory")


def refused(view: View, started_ns: int, reason: Reason, exit_code: int, message: str) -> Outcome:
    view.print(f"{message}\n".encode())
    return ended(started_ns, reason, exit_code=exit_code, message=message)


def ended(
    started_ns: int, reason: Reason, *, exit_code: int | None = None, signal: int | None = None, message: str = ""
) -> Outcome:
    return Outcome(reason, exit_code, signal, message, started_ns, time.time_ns(), 0, 0.0, 0.0)
