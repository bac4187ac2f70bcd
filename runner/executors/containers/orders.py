"""What the runner and PID 1 of a container say to each other: the runner's side of `init.c`, which describes the messages."""

from __future__ import annotations

import enum
import errno
import os
import struct
from dataclasses import dataclass

from runner.executors import mounts
from runner.executors.base import Outcome, Reason, Task
from runner.executors.shortage import Short

RUN = b"R"
KILL = b"K"
LONGEST_REPLY = 4096
_COUNTS = struct.Struct("=2I")
_REPLY = struct.Struct("=4i5q")


class Kind(enum.IntEnum):
    READY = 0
    ENDED = 1
    NO_CWD = 2
    NOT_FOUND = 3
    NO_INTERPRETER = 4
    NOT_EXECUTABLE = 5
    NOT_STARTED = 6  # the machine is short of something at the moment


class Flag(enum.IntFlag):
    KILLED = 1  # because we said so
    STUCK = 2  # PID 1 cannot kill a process of it, and has left so that the kernel does
    DIRTY = 4  # the container is not as it was before


@dataclass(frozen=True, slots=True)
class Reply:
    kind: Kind
    error: int  # errno, of the kinds that say that it was not run
    status: int  # of ENDED: as wait(2) gives it
    flags: Flag
    started_ns: int
    ran_ns: int
    max_rss_kib: int
    user_us: int
    system_us: int


def parse_reply(data: bytes) -> Reply:
    """Raises ValueError: a command that is root in its container may have got at the line."""
    if len(data) != _REPLY.size:
        raise ValueError("a reply of another length")
    kind, error, status, flags, *numbers = _REPLY.unpack(data)
    return Reply(Kind(kind), error, status, Flag(flags), *numbers)


def pack_order(task: Task) -> bytes:
    strings = [
        b"" if task.cwd is None else os.fsencode(task.cwd),
        *(os.fsencode(argument) for argument in task.argv),
        *(os.fsencode(f"{name}={value}") for name, value in task.env.items()),
    ]
    return _COUNTS.pack(len(task.argv), len(task.env)) + b"".join(string + b"\0" for string in strings)


def outcome_of(reply: Reply, task: Task, *, late: bool, short: Short) -> Outcome:
    """`late`: its time was over and we had it killed. A command that failed when a process of it died of `short` has failed by that."""
    code: int | None = None
    signal: int | None = None
    message = ""
    if reply.kind is Kind.ENDED:
        ended = os.waitstatus_to_exitcode(reply.status)
        code, signal = (ended, None) if ended >= 0 else (None, -ended)
        reason = Reason.OK if ended == 0 else Reason.FAILED if ended > 0 else Reason.SIGNALLED
        if late and Flag.KILLED in reply.flags:
            reason, code = Reason.TIMEOUT, None
        elif reason is not Reason.OK and short:
            reason = Reason.OUT_OF_MEMORY
    else:
        reason, code, message = explain(reply, task)
    return Outcome(
        reason=reason,
        exit_code=code,
        signal=signal,
        message=message,
        started_ns=reply.started_ns,
        ended_ns=reply.started_ns + max(0, reply.ran_ns),
        max_rss=reply.max_rss_kib * 1024,
        user_s=reply.user_us / 1e6,
        system_s=reply.system_us / 1e6,
    )


def explain(reply: Reply, task: Task) -> tuple[Reason, int, str]:
    """Why there was no command, in the words of a shell."""
    name = mounts.quoted(os.fsencode(task.argv[0]))[1:-1]
    why = os.strerror(reply.error)
    match reply.kind:
        case Kind.NO_CWD:
            place = "the image's directory" if task.cwd is None else mounts.quoted(os.fsencode(task.cwd))
            return Reason.NO_CWD, 126, f"cannot work in {place}: {why}"
        case Kind.NOT_FOUND:
            said = os.strerror(errno.ENOENT) if "/" in name else "command not found"
            return Reason.NOT_FOUND, 127, f"{name}: {said}"
        case Kind.NO_INTERPRETER:
            return Reason.NOT_EXECUTABLE, 126, f"{name}: the interpreter that it names does not exist"
        case _:
            return Reason.NOT_EXECUTABLE, 126, f"{name}: {why}"
