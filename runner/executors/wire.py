"""What the runner and its worker processes say to each other: frames over a socket, and over a pipe from each datum.

A frame is the length of its body (8 bytes, big-endian) and the body, a value in Python's marshal format. Both ends are
always one interpreter (the worker is started with `sys.executable`), so marshal's format cannot differ; it keeps bytes as
they are, and importing json would cost each worker a third of its start-up time.

The types of the values exist for the type checker only: `typing` is too slow to be imported here.
"""

from __future__ import annotations

import marshal
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal, TypedDict

    class Order(TypedDict):
        """Runner to worker: run this datum. All paths are the host's; targets are relative to /pfs."""

        binds: list[tuple[bytes, bytes, bool]]  # source, target, read-only
        out: bytes
        argv: list[bytes]
        env: dict[bytes, bytes]
        cwd: bytes
        stdin: bytes | None
        log: bytes
        timeout: float | None  # seconds
        keep_visible: list[bytes]
        hermetic: bool
        made_mtime_ns: int  # of the directories that lead to the binds

    class Result(TypedDict):
        """Worker to runner: how the command ended. Times are ns since the epoch, memory is bytes."""

        reason: str
        exit_code: int | None
        signal: int | None
        message: str
        started_ns: int
        ended_ns: int
        max_rss: int
        user_s: float
        system_s: float
        struck: list[str]  # the limits that were reached
        # Whose want of memory killed a process of the datum (`maybe`: perhaps one of another)
        short: Literal["", "limit", "machine", "maybe"]

    class Reply(TypedDict):
        """Worker to runner: the one answer to each `Order`; either `result` or `error` is not None."""

        result: Result | None
        error: str | None
        lost: bool  # of `error`: another worker can try; otherwise the order cannot be carried out
        usable: bool  # whether the worker takes another order

    class Report(TypedDict, total=False):
        """A datum's PID 1 to its worker: `started`, then one of the others; or only `not_run` or `error`."""

        kind: Literal["started", "ended", "not_run", "error"]
        at_ns: int  # of `started` and `ended`
        status: int  # of `ended`: as wait(2) gives it
        own_user_s: float  # of `ended`: what PID 1 itself has used
        own_system_s: float
        reason: str  # of `not_run`
        exit_code: int
        message: str  # of `not_run` and `error`
        again: bool  # of `error`: the machine is short of something at the moment

    class Greeting(TypedDict):
        """Worker to runner, once: ready (`step` is None), or what the machine refused (`cgroup`: entering the datum's)."""

        step: str | None
        errno: int
        slot: int  # its pid, as the runner sees it


LENGTH_SIZE = 8
KILL = "kill"  # runner to worker, while an order runs; ignored when it comes too late


def pack(value: Any) -> bytes:
    body = marshal.dumps(value)
    return len(body).to_bytes(LENGTH_SIZE, "big") + body


def take(buffer: bytearray) -> Any:
    """The first whole frame's value, removed from `buffer`; None when there is no whole frame yet."""
    if len(buffer) < LENGTH_SIZE:
        return None
    end = LENGTH_SIZE + int.from_bytes(buffer[:LENGTH_SIZE], "big")
    if len(buffer) < end:
        return None
    with memoryview(buffer) as view:
        value = marshal.loads(view[LENGTH_SIZE:end])
    del buffer[:end]
    return value


def write_all(fd: int, data: bytes) -> None:
    """Blocks until all is written. A reader that is gone is BrokenPipeError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read_one(fd: int) -> Any:
    """Blocks until one frame is there; None when the other end closes before. Must not be followed by other frames."""
    buffer = bytearray()
    while (frame := take(buffer)) is None:
        data = os.read(fd, 1 << 20)
        if not data:
            return None
        buffer += data
    return frame
