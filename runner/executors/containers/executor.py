"""The executors `podman` and `docker`: commands in warm containers, one per worker.

A worker's container is started once, with a PID 1 of ours (`init.c`) in place of the image's command; that runs the datums' commands. So a datum costs a
fork and two renames in place of a container, and what runs has exactly what the engine gives its containers: user, capabilities, filters, limits,
environment, directory.

Each datum finds `/tmp`, `/var/tmp`, `/dev/shm`, message queues and System V objects as they were when the container started, and `/pfs/out` empty.
What else a command writes in the container stays for the worker's next datum; `isolate` gives each datum a container of its own.

Per worker:

    work/1/            0700
      pfs/             at /pfs, read-only: the inputs while a datum runs (`.init` and `.sock` until the container has started)
      out/             at /pfs/out; what is in it moves to the task's `out`

Who dies, and what follows: the command → PID 1 kills the rest and says so. PID 1 (the kernel, out of memory) → the kernel kills all in the container, the
line to the runner ends: WorkerLost. The runner, even by SIGKILL → PID 1 reads the end of the line and leaves, the engine removes the container.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from runner.executors.base import ExecutorError, ExecutorUnavailable, Limits, Obstacle
from runner.executors.containers.engine import ContainerOptions, Engine, Mount
from runner.executors.containers.ownership import Owners
from runner.executors.containers.program import init_program
from runner.executors.containers.slot import INIT, Slot, is_shared
from runner.executors.containers.worker import ContainerWorker

_PFS = "/pfs"


class ContainerExecutor:
    """Runs commands in containers of one image.

    `work` is an existing directory of the caller's, for this executor alone, on the filesystem of the tasks' files; `cache` is where the compiled PID 1
    is kept. What is empty is left to the image.
    """

    def __init__(
        self,
        engine: Engine,
        image: str,
        *,
        work: Path,
        cache: Path,
        user: str = "",
        workdir: str = "",
        limits: Limits = Limits(),  # noqa: B008 - frozen
        gpus: int = 0,
        hermetic: bool = False,
        isolate: bool = False,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self._engine = engine
        self._work = work
        self._cache = cache
        self._isolate = isolate
        self._options = ContainerOptions(
            image=image,
            entrypoint=f"{_PFS}/{INIT}",
            mounts=(),
            user=user,
            workdir=workdir,
            limits=limits,
            hermetic=hermetic,
            gpus=gpus,
            labels=dict(labels or {}),
        )
        self._owners = Owners(engine.unshare, engine.env)
        self._numbers = itertools.count(1)

    @property
    def name(self) -> str:
        return self._engine.name

    @property
    def sees_mounts(self) -> bool:
        """Whether inputs that lie in a mount can be shown. Where not, they must be copies on the filesystem of `work`."""
        mountinfo = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        return not os.geteuid() and is_shared(self._work.resolve(), mountinfo)

    @asynccontextmanager
    async def open_worker(self) -> AsyncIterator[ContainerWorker]:
        """See `base.Executor`. A worker's container runs when this enters, and is removed when it ends."""
        program = await trio.to_thread.run_sync(init_program, self._cache)
        slot = Slot(self._work / str(next(self._numbers)), propagates=self.sees_mounts)
        with self._owners:
            slot.make()
            worker = ContainerWorker(
                self._engine, self._options_over(slot), slot, program, self._owners, isolate=self._isolate
            )
            try:
                await worker.start()
                yield worker
            finally:
                with trio.CancelScope(shield=True):
                    await worker.aclose()
                    await trio.to_thread.run_sync(self._remove, slot)

    async def preflight(self) -> tuple[Obstacle, ...]:
        if obstacles := await self._engine.obstacles():
            return obstacles
        try:
            async with self.open_worker():
                return ()
        except ExecutorUnavailable as error:
            return error.obstacles

    def _options_over(self, slot: Slot) -> ContainerOptions:
        mounts = (
            Mount(slot.pfs, _PFS, read_only=True, propagates=slot.propagates),
            Mount(slot.out, f"{_PFS}/out", read_only=False),
        )
        return replace(self._options, mounts=mounts)

    def _remove(self, slot: Slot) -> None:
        """What a lost worker's command has left may have other owners."""
        try:
            self._owners.take(slot.out)
        except ExecutorError:
            pass  # what can be removed is
        slot.remove()
