"""How the mount waits for its next request: what pyfuse3 uses of trio, made cheap for requests that come one after the other.

pyfuse3 lets a task wait for /dev/fuse under a lock, and hands both on to another task with each request: two switches of tasks, two looks at epoll and one
registration there, some 50 µs of processor time, which is more than most requests take. Here the task that has served a request keeps the lock, and waits for the next one in
the kernel for an instant before it goes back to the scheduler: whoever works in a mount sends the next request within microseconds of the answer.
A handler that waits for something lets the next task read, as before.

pyfuse3 looks up `trio` in its own module, so that `pyfuse3.asyncio` can replace it; that is the place where this goes, too.
"""

from __future__ import annotations

import select
import time
from collections import deque
from types import TracebackType
from typing import Any

import trio
from trio.lowlevel import Abort, RaiseCancelT, Task

_SELECT_MAX = 1024
"""FD_SETSIZE."""
_INSTANT_S = 50e-6
"""How long the whole event loop stands still for the next request. The kernel makes it about twice this."""
_TURN_S = 0.001
"""How long requests may be served without a look at what else there is to do."""


class ReadLock:
    """Who reads requests. Unlike `trio.Lock` it is given back without a switch: whoever waits is woken, and finds it free only if it is not taken again at once."""

    def __init__(self) -> None:
        self._held = False
        self._waiting: deque[Task] = deque()

    async def __aenter__(self) -> None:
        while self._held:
            task = trio.lowlevel.current_task()
            self._waiting.append(task)

            def abort(_: RaiseCancelT, task: Task = task) -> Abort:
                self._waiting.remove(task)
                return Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        self._held = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held = False
        if self._waiting:
            trio.lowlevel.reschedule(self._waiting.popleft())


class RequestWait:
    """Stands in for `trio` and `trio.lowlevel` in pyfuse3."""

    Lock = ReadLock

    def __init__(self) -> None:
        self.busy = 0
        """Requests that other threads are at work on: their ends must be seen at once, so nothing stands still meanwhile."""
        self._turn_ends = 0.0

    @property
    def lowlevel(self) -> RequestWait:
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name) if hasattr(trio.lowlevel, name) else getattr(trio, name)

    async def wait_readable(self, fd: int) -> None:
        """Return when there is a request, or another reason to look: at once if it comes in an instant. Raises trio.ClosedResourceError."""
        if not self.busy and fd < _SELECT_MAX and time.monotonic() < self._turn_ends:
            ready, _, _ = select.select((fd,), (), (), _INSTANT_S)
            if ready:
                return
        await trio.lowlevel.wait_readable(fd)
        self._turn_ends = time.monotonic() + _TURN_S
