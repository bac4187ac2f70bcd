"""The executor `process`: commands of this machine, over a root directory of their own with `/pfs` in it.

This is the runner's side; `sandbox.py` is the worker's. One worker process per slot is started once and answers one order at
a time over a socket. It needs Linux 5.12 and either the capability to mount (root) or user namespaces.

What a command sees of the host: all but `/pfs` and what is fresh, as the caller of the runner would: the same user and
groups, capabilities, limits and network. An ordinary user cannot gain privileges in it (setuid programs do not work) and sees
supplementary groups as 65534, though they count.

Inputs are found by the host's paths. A root user's worker sees what is mounted after it was opened; an ordinary user's
does so only where the host's mounts are shared (as systemd makes them): mount inputs first.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from runner.executors import refusals, wire
from runner.executors.base import (
    MADE_MTIME_NS,
    ExecutorError,
    ExecutorUnavailable,
    Outcome,
    Reason,
    Task,
    TaskRefused,
    WorkerLost,
)

# Where `runner` is imported from. It is appended to the worker's sys.path, so that nothing there can hide a stdlib module.
_IMPORT_ROOT = Path(__file__).resolve().parents[2]
_BOOT = (
    "import sys; sys.path.append(sys.argv[1]); import runner.executors.sandbox as sandbox; sandbox.main()"
)
_STARTING_S = 30.0
# More than the worker's own patience with a process that does not die.
_STOPPING_S = 15.0


class ProcessExecutor:
    """Runs commands as processes of this machine."""

    name = "process"

    @asynccontextmanager
    async def open_worker(self) -> AsyncIterator[ProcessWorker]:
        worker = ProcessWorker()
        try:
            await worker.wait_ready()
            yield worker
        finally:
            await worker.aclose()

    async def preflight(self) -> tuple[str, ...]:
        try:
            async with self.open_worker():
                return ()
        except ExecutorUnavailable as error:
            return tuple(f"{what}: {todo}" for what, todo in error.obstacles)


class ProcessWorker:
    """One worker process. `run` may be cancelled at any point: the datum is then killed, and the worker stays usable."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self._complaints = os.memfd_create("worker-stderr")
        with theirs:
            self._process = start_worker(theirs, self._complaints)
        self._exit_fd = os.pidfd_open(self._process.pid)
        self._socket = trio.socket.from_stdlib_socket(ours)
        self._heard = bytearray()
        self._running = False
        self._lost: WorkerLost | None = None

    async def wait_ready(self) -> None:
        """Raises ExecutorUnavailable where the machine refuses what a worker needs."""
        with trio.move_on_after(_STARTING_S):
            greeting: wire.Greeting = await self._receive()
            if greeting["step"] is None:
                return
            obstacles = refusals.explain(greeting["step"], greeting["errno"], refusals.collect_facts())
            raise Refused(obstacles)
        raise self._lose(f"the worker process did not start within {_STARTING_S:.0f} s")

    async def run(self, task: Task) -> Outcome:
        if self._running:
            raise RuntimeError("this worker already runs a task")
        if self._lost is not None:
            raise WorkerLost(self._lost.message, hint=self._lost.hint)
        await trio.lowlevel.checkpoint_if_cancelled()
        self._running = True
        try:
            reply = await self._ask(order_of(task))
        finally:
            self._running = False
        return self._outcome(reply)
