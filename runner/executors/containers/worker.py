"""A worker: one slot, and a warm container over it, in which it runs one datum after another."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import trio

from runner.executors.base import ExecutorError, ExecutorUnavailable, Obstacle, Outcome, Task, TaskRefused, WorkerLost
from runner.executors.containers import orders
from runner.executors.containers.cgroup import unheld
from runner.executors.containers.container import Container, start_container
from runner.executors.containers.engine import ContainerOptions, Engine
from runner.executors.containers.orders import Flag, Kind
from runner.executors.containers.ownership import Owners
from runner.executors.containers.slot import Slot
from runner.executors.datum import open_stdin
from runner.executors.shortage import Short, limit_message

# More than PID 1's own patience with a process that does not die.
_STOPPING_S = 40.0


class ContainerWorker:
    """Use it through `ContainerExecutor.open_worker`."""

    def __init__(
        self, engine: Engine, options: ContainerOptions, slot: Slot, program: Path, owners: Owners, *, isolate: bool
    ) -> None:
        self._engine = engine
        self._options = options
        self._slot = slot
        self._program = program
        self._owners = owners
        self._isolate = isolate
        self._container: Container | None = None
        self._running = False
        self._lost = ""  # why no more tasks can be run

    async def start(self) -> Container:
        """The container, which is started where there is none. Raises ExecutorUnavailable."""
        if self._container is None:
            container = await start_container(self._engine, self._options, self._slot, self._program)
            if obstacles := self._obstacles(container):
                await container.aclose(_STOPPING_S)
                raise ExecutorUnavailable(obstacles)
            self._container = container
        return self._container

    def _obstacles(self, container: Container) -> list[Obstacle]:
        """What a container that runs must have, and may not."""
        found = []
        if not self._owners.can_share_with(container.uid):
            found.append(foreign(self._engine.name))
        if missing := unheld(self._options.limits, container.cgroups):
            found.append(
                Obstacle(
                    f"{self._engine.name} does not hold these limits here: {', '.join(missing)}",
                    "run the job as root, or on a machine with systemd that has only version 2 of cgroups",
                )
            )
        return found

    async def run(self, task: Task) -> Outcome:
        """See `base.Worker`."""
        if self._running:
            raise RuntimeError("this worker runs a task already")
        if self._lost:
            raise WorkerLost(self._lost)
        self._check(task)
        await trio.lowlevel.checkpoint_if_cancelled()
        self._running = True
        try:
            return await self._run(task, await self._start_again())
        except TaskRefused:
            raise
        except ExecutorError as error:
            self._lost = error.message
            raise (error if isinstance(error, WorkerLost) else WorkerLost(error.message, hint=error.hint)) from error
        except OSError as error:
            self._lost = f"the files of a datum cannot be handled: {error}"
            raise WorkerLost(self._lost) from error
        finally:
            self._running = False

    async def aclose(self) -> None:
        """Nothing is left when this returns, but what the kernel does not let die."""
        self._lost = self._lost or "the worker was closed"
        await self._end_container()

    async def _start_again(self) -> Container:
        try:
            return await self.start()
        except ExecutorUnavailable as error:
            raise WorkerLost(f"a fresh container cannot be started: {error.message}", hint=error.hint) from error

    async def _end_container(self) -> None:
        container, self._container = self._container, None
        if container is not None and not await container.aclose(_STOPPING_S):
            self._lost = self._lost or "a process in the container hangs in the kernel and cannot be killed"

    def _check(self, task: Task) -> None:
        if task.hermetic and not self._options.hermetic:
            raise TaskRefused("this worker's container has a network: open a hermetic executor")
        if any(not bind.read_only for bind in task.binds):
            raise TaskRefused("a container shows inputs read-only")
        try:
            same = os.stat(task.out).st_dev == os.stat(self._slot.out).st_dev
        except OSError as error:
            raise TaskRefused(f"cannot show {str(task.out)!r} at '/pfs/out': {error.strerror}") from error
        if not same:
            raise TaskRefused(f"{str(task.out)!r} is not on the filesystem of the executor's work directory")

    async def _run(self, task: Task, container: Container) -> Outcome:
        with ExitStack() as undo:
            fds = open_files(task, undo)
            undo.enter_context(open_to(container.uid, fds[-1]))
            if self._owners.must_give(self._slot.out, container.uid, container.gid):
                await trio.to_thread.run_sync(self._owners.give, self._slot.out, container.uid, container.gid)
            undo.enter_context(self._slot.showing(task.binds, container.pid))
            container.counters.begin()
            try:
                reply, late = await self._ask(container, task, fds)
            except trio.Cancelled:
                with trio.CancelScope(shield=True):
                    await self._stop_quietly(container, task)
                raise
            struck, short = container.counters.total()
            with trio.CancelScope(shield=True):
                await self._settle(task, reply.flags)
            outcome = self._outcome(reply, task, late=late, struck=struck, short=short)
            if reply.kind is not Kind.ENDED:  # the command itself could not say it
                os.write(fds[-1], f"{outcome.message}\n".encode())
            return outcome

    async def _ask(self, container: Container, task: Task, fds: tuple[int, ...]) -> tuple[orders.Reply, bool]:
        """The reply, and whether the time was over."""
        with trio.CancelScope(shield=True):
            await container.send(orders.RUN, fds)
        with trio.move_on_after(math.inf if task.timeout is None else task.timeout):
            return await container.receive(), False
        return await self._stop(container), True

    async def _stop(self, container: Container) -> orders.Reply:
        """The one reply that is due comes whether the order to kill was early or late."""
        with trio.move_on_after(_STOPPING_S, shield=True):
            with suppress(WorkerLost):  # it may have left already, after its reply
                await container.send(orders.KILL)
            return await container.receive()
        raise WorkerLost("the container does not answer")

    async def _stop_quietly(self, container: Container, task: Task) -> None:
        """After a cancellation, which is all that the caller hears of."""
        try:
            await self._settle(task, (await self._stop(container)).flags)
        except ExecutorError as error:
            self._lost = error.message
            await self._end_container()

    async def _settle(self, task: Task, flags: Flag) -> None:
        """Of the command nothing is left; its output goes where it belongs, and the next will find what this one found."""
        if self._isolate or flags & (Flag.STUCK | Flag.DIRTY):
            await self._end_container()
        if not await trio.to_thread.run_sync(self._take_output, task.out):
            await self._end_container()
            self._slot.remake_out()

    def _take_output(self, out: Path) -> bool:
        self._owners.take(self._slot.out)
        return self._slot.collect(out)

    def _outcome(
        self, reply: orders.Reply, task: Task, *, late: bool, struck: tuple[str, ...], short: Short
    ) -> Outcome:
        if self._lost:
            raise WorkerLost(self._lost)
        if reply.kind is Kind.NOT_STARTED:
            raise WorkerLost(f"cannot start a process in the container: {os.strerror(reply.error)}")
        outcome = orders.outcome_of(reply, task, late=late, short=short)
        said = outcome.message or limit_message(outcome.reason, short, struck, self._options.limits)
        return replace(outcome, struck=struck, message=said)


def foreign(engine: str) -> Obstacle:
    return Obstacle(
        f"containers of {engine} write as another user here, and what they write is not the runner's to take",
        f"use podman, run the job as root, or run the command as the user {os.geteuid()}:{os.getegid()}",
    )


def open_files(task: Task, undo: ExitStack) -> tuple[int, int, int]:
    """The order, stdin and the log, until `undo` closes them. Raises TaskRefused."""
    try:
        log = os.open(task.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise TaskRefused(f"cannot open the log {str(task.log)!r}: {error.strerror}") from error
    undo.callback(os.close, log)
    stdin = open_stdin(task.stdin)
    undo.callback(os.close, stdin)
    order = open_stdin(orders.pack_order(task))
    undo.callback(os.close, order)
    return order, stdin, log


@contextmanager
def open_to(uid: int, log: int) -> Iterator[None]:
    """Lets the container's user open the log by its name (/dev/stderr), as it can with what the engine gives it.

    Others do not get to the log: it lies in a directory that only the runner's user can enter.
    """
    mode = stat.S_IMODE(os.fstat(log).st_mode)
    if uid == os.geteuid() or mode & 0o002:
        yield
        return
    os.fchmod(log, mode | 0o066)
    try:
        yield
    finally:
        os.fchmod(log, mode)
