"""The executor `process`: commands of this machine, over a root directory of their own with `/pfs` in it.

This is the runner's side; `sandbox.py` is the worker's. One worker process per slot is started once and answers one order at
a time over a socket. It needs Linux 5.12 and either the capability to mount (root) or user namespaces.

What a command sees of the host: all but `/pfs` and what is fresh, as the caller of the runner would: the same user and
groups, capabilities, limits and network. An ordinary user cannot gain privileges in it (setuid programs do not work) and sees
supplementary groups as 65534, though they count.

Inputs are found by the host's paths. A root user's worker sees what is mounted after it was opened; an ordinary user's
does so only where the host's mounts are shared (as systemd makes them): mount inputs first.

Limits are cgroups (`cgroups.py`): a limit that cannot be held here is ExecutorUnavailable, never left out. Without limits no
cgroup is made.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from runner.executors import cgroups, refusals, wire
from runner.executors.base import (
    MADE_MTIME_NS,
    ExecutorError,
    ExecutorUnavailable,
    Limits,
    Obstacle,
    Outcome,
    Reason,
    Task,
    TaskRefused,
    WorkerLost,
)
from runner.executors.shortage import limit_message

# Where `runner` is imported from. It is appended to the worker's sys.path, so that nothing there can hide a stdlib module.
_IMPORT_ROOT = Path(__file__).resolve().parents[2]
_BOOT = "import sys; sys.path.append(sys.argv[1]); import runner.executors.sandbox as sandbox; sandbox.main()"
_STARTING_S = 30.0
# More than the worker's own patience with a process that does not die.
_STOPPING_S = 40.0
_REMOVING_S = 1.0


class ProcessExecutor:
    """Runs commands as processes of this machine, all of one datum together within `limits`."""

    name = "process"
    sees_mounts = True

    def __init__(self, limits: Limits = Limits()) -> None:  # noqa: B008 - it cannot change
        self._limits = limits

    @asynccontextmanager
    async def open_worker(self) -> AsyncIterator[ProcessWorker]:
        worker = start_worker(self._limits)
        try:
            await worker.wait_ready()
            yield worker
        finally:
            await worker.aclose()

    async def preflight(self) -> tuple[Obstacle, ...]:
        try:
            async with self.open_worker():
                return ()
        except ExecutorUnavailable as error:
            return error.obstacles


def start_worker(limits: Limits) -> ProcessWorker:
    """Starts the process: from the thread that calls, whose end would be the worker's (PR_SET_PDEATHSIG counts threads).

    Raises ExecutorUnavailable where the limits cannot be held.
    """
    hierarchies = cgroups.own_hierarchies()
    try:
        with ExitStack() as undo:
            enclosure = cgroups.enclose(limits, hierarchies)
            undo.callback(enclosure.remove)
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            complaints = os.memfd_create("worker-stderr")
            undo.callback(os.close, complaints)
            with theirs:
                process = subprocess.Popen(
                    [
                        *(sys.executable, "-I", "-S", "-c", _BOOT, os.fspath(_IMPORT_ROOT)),
                        *(str(theirs.fileno()), str(os.getpid())),
                        *(cgroups.find_deaths(hierarchies), *enclosure.stems),
                    ],
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=complaints,
                    stderr=complaints,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # Ctrl-C is for the runner to act on
                )
            worker = ProcessWorker(process, ours, complaints, limits, enclosure)
            undo.pop_all()
            return worker
    except OSError as error:
        raise ExecutorError(f"cannot start a worker process: {error.strerror}") from error


class ProcessWorker:
    """One worker process. Use it through `ProcessExecutor.open_worker`."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        ours: socket.socket,
        complaints: int,
        limits: Limits,
        enclosure: cgroups.Enclosure,
    ) -> None:
        self._limits = limits
        self._enclosure = enclosure
        self._process = process
        self._exit_fd = os.pidfd_open(process.pid)
        self._slot_fd: int | None = None
        self._socket = trio.socket.from_stdlib_socket(ours)
        self._complaints = complaints
        self._heard = bytearray()
        self._running = False
        self._lost = ""  # why no more tasks can be run
        self._closed = False

    async def wait_ready(self) -> None:
        """Raises ExecutorUnavailable where the machine refuses what a worker needs."""
        with trio.move_on_after(_STARTING_S):
            greeting: wire.Greeting = await self._receive()
            if greeting["step"] == "cgroup":
                error = OSError(greeting["errno"], os.strerror(greeting["errno"]))
                raise ExecutorUnavailable([cgroups.explain(error, cgroups.collect_facts())])
            if greeting["step"] is not None:
                obstacles = refusals.explain(greeting["step"], greeting["errno"], refusals.collect_facts())
                raise ExecutorUnavailable(obstacles)
            try:
                self._slot_fd = os.pidfd_open(greeting["slot"])
            except ProcessLookupError:
                raise await self._find_out() from None
            return
        raise self._lose(f"the worker process did not start within {_STARTING_S:.0f} s")

    async def run(self, task: Task) -> Outcome:
        """See `base.Worker`."""
        if self._running:
            raise RuntimeError("this worker runs a task already")
        if self._lost:
            raise WorkerLost(self._lost)
        order = order_of(task)
        await trio.lowlevel.checkpoint_if_cancelled()
        self._running = True
        try:
            return self._outcome(await self._ask(order))
        except trio.Cancelled:
            await self._stop_datum()
            raise
        finally:
            self._running = False

    async def _ask(self, order: wire.Order) -> wire.Reply:
        await self._send(order)
        # The worker keeps the time; this is for a worker that does not.
        limit = math.inf if order["timeout"] is None else order["timeout"] + _STOPPING_S
        with trio.move_on_after(limit):
            reply: wire.Reply = await self._receive()
            return reply
        raise self._lose("the worker process does not answer")

    async def _stop_datum(self) -> None:
        """After a cancellation. The one reply that is due comes whether the order to kill was early or late."""
        with trio.move_on_after(_STOPPING_S, shield=True):
            try:
                await self._send(wire.KILL)
                reply: wire.Reply = await self._receive()
            except WorkerLost:
                return
            if not reply["usable"]:
                self._lose(reply["error"] or "")
            return
        self._lose("the worker process does not answer")

    def _outcome(self, reply: wire.Reply) -> Outcome:
        if reply["error"] is not None:
            if not reply["usable"]:
                raise self._lose(reply["error"])
            raise (WorkerLost if reply["lost"] else TaskRefused)(reply["error"])
        assert reply["result"] is not None
        result = reply["result"]
        return Outcome(
            reason=Reason(result["reason"]),
            exit_code=result["exit_code"],
            signal=result["signal"],
            message=result["message"]
            or limit_message(result["reason"], result["short"], result["struck"], self._limits),
            started_ns=result["started_ns"],
            ended_ns=result["ended_ns"],
            max_rss=result["max_rss"],
            user_s=result["user_s"],
            system_s=result["system_s"],
            struck=tuple(result["struck"]),
        )

    def _lose(self, why: str) -> WorkerLost:
        """Gives the worker up; the caller raises what is returned."""
        self._lost = why
        self._kill()
        return WorkerLost(why)

    def _kill(self) -> None:
        """Kills the slot: when that is gone, so is all below it, and only then the keeper goes."""
        if self._slot_fd is None:
            self._process.kill()
            return
        try:
            signal.pidfd_send_signal(self._slot_fd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    async def _send(self, value: object) -> None:
        """Shielded, because half a frame would make the worker useless; it reads at once, so this is short."""
        data = memoryview(wire.pack(value))
        with trio.move_on_after(_STOPPING_S, shield=True):
            try:
                while data:
                    data = data[await self._socket.send(data) :]
            except (OSError, trio.ClosedResourceError):
                raise await self._find_out() from None
            return
        raise self._lose("the worker process does not listen")

    async def _receive(self) -> Any:
        """The next frame; a cancellation loses nothing of what was read so far."""
        while (frame := wire.take(self._heard)) is None:
            try:
                data = await self._socket.recv(1 << 16)
            except (OSError, trio.ClosedResourceError):
                data = b""
            if not data:
                raise await self._find_out()
            self._heard += data
        return frame

    async def _find_out(self) -> WorkerLost:
        """Why the socket has ended."""
        if self._closed:
            return WorkerLost("the worker was closed")
        await self._wait_exit(5.0)
        code = self._process.poll()
        how = "hangs"
        if code is not None:
            number = code - 128 if code > 128 else -code
            how = f"was killed by signal {number}" if number > 0 else f"exited with code {code}"
        said = os.pread(self._complaints, 1 << 16, 0).decode(errors="replace").strip()
        last = f": {said.splitlines()[-1]}" if said else ""
        return self._lose(f"the worker process {how}{last}")

    async def _wait_exit(self, limit_s: float) -> None:
        """Until keeper and slot are gone. The kernel says so of the slot only after all below it are."""
        with trio.move_on_after(limit_s, shield=True):
            for process in (self._exit_fd, self._slot_fd):
                if process is None:
                    continue
                fd = os.dup(process)  # trio lets one task wait for an fd; here two may
                try:
                    await trio.lowlevel.wait_readable(fd)
                finally:
                    os.close(fd)

    async def aclose(self) -> None:
        """Ends the worker and what it may still be running. Nothing is left when this returns, except what the kernel does
        not let die (a process that waits for a dead network filesystem)."""
        self._closed = True
        self._socket.close()
        await self._wait_exit(_STOPPING_S)
        if self._process.poll() is None:
            self._kill()
            await self._wait_exit(1.0)
        if self._process.poll() is None:
            self._process.kill()
            await self._wait_exit(1.0)
            self._process.poll()
        await self._remove_enclosure()
        for fd in (self._exit_fd, self._complaints, self._slot_fd):
            if fd is not None:
                os.close(fd)

    async def _remove_enclosure(self) -> None:
        """The kernel may need a moment after the last process has ended. What is left then is for the next start."""
        with trio.move_on_after(_REMOVING_S, shield=True):
            while not self._enclosure.remove():  # noqa: ASYNC110 - the kernel tells nobody
                await trio.sleep(0.005)


def order_of(task: Task) -> wire.Order:
    if task.cwd is None:
        raise ValueError("a process has no working directory of its own")
    return {
        "binds": [(bind.source, bind.target, bind.read_only) for bind in task.binds],
        "out": os.fsencode(task.out),
        "argv": [os.fsencode(argument) for argument in task.argv],
        "env": {os.fsencode(name): os.fsencode(value) for name, value in task.env.items()},
        "cwd": os.fsencode(task.cwd),
        "stdin": task.stdin,
        "log": os.fsencode(task.log),
        "timeout": task.timeout,
        "keep_visible": [os.fsencode(path) for path in task.keep_visible],
        "hermetic": task.hermetic,
        "made_mtime_ns": MADE_MTIME_NS,
    }
