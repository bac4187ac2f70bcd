"""One running container and the line to its PID 1."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import ExitStack, suppress
from pathlib import Path

import trio

from runner.executors.base import ExecutorUnavailable, Obstacle, WorkerLost
from runner.executors.containers import orders
from runner.executors.containers.cgroup import Counters, find_counters, hierarchies_of
from runner.executors.containers.engine import ContainerOptions, Engine, EngineError, ImageMissing
from runner.executors.containers.slot import SOCKET, Slot
from runner.executors.shortage import MACHINE

_STARTING_S = 30.0
_PEER = struct.Struct("=iII")


class Container:
    """`uid` and `gid` are its user's, as the host sees them. `pid` is its first process's; 0: not to be seen from here."""

    def __init__(self, engine: Engine, identity: str, line: trio.socket.SocketType, peer: tuple[int, int, int]) -> None:
        self._engine = engine
        self._identity = identity
        self._line = line
        self.pid, self.uid, self.gid = peer
        self.cgroups = hierarchies_of(self.pid) if self.pid else []
        self.counters = Counters(find_counters(self.cgroups))
        self._exit_fd = open_process(self.pid)

    async def send(self, message: bytes, fds: tuple[int, ...] = ()) -> None:
        """Raises WorkerLost when it has ended."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"={len(fds)}i", *fds))] if fds else []
        try:
            await self._line.sendmsg([message], rights)
        except (OSError, trio.ClosedResourceError):
            raise WorkerLost(self.explain_end()) from None

    async def receive(self) -> orders.Reply:
        """The next reply; a cancellation loses none. Raises WorkerLost."""
        try:
            data = await self._line.recv(orders.LONGEST_REPLY)
        except (OSError, trio.ClosedResourceError):
            data = b""
        if not data:
            raise WorkerLost(self.explain_end())
        try:
            return orders.parse_reply(data)
        except ValueError as error:
            raise WorkerLost("the container's first process is no longer ours: its answer makes no sense") from error

    def explain_end(self) -> str:
        """Called at once when the line ends: the counters go with the container."""
        match self.counters.total()[1]:
            case "":
                return "the container ended before its command: it was removed, or something killed its first process"
            case "limit":
                return "the container ended: its memory limit killed its first process"
            case _:
                return f"the container ended: its first process was killed because {MACHINE} had no memory left"

    async def aclose(self, patience_s: float) -> bool:
        """Ends it. False when something in it does not die.

        PID 1 leaves when the line ends; the kernel kills what is left, and reports PID 1 dead only after all of it.
        """
        gone = self._exit_fd is None
        with trio.CancelScope(shield=True):
            self._line.close()
            if self._exit_fd is not None:
                with trio.move_on_after(patience_s):
                    await trio.lowlevel.wait_readable(self._exit_fd)
                    gone = True
                os.close(self._exit_fd)
                self._exit_fd = None
            self.counters.close()
            with suppress(EngineError):  # it removes by itself what has ended
                await self._engine.remove(self._identity)
        return gone


def open_process(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid) if pid else None
    except OSError:
        return None


async def start_container(engine: Engine, options: ContainerOptions, slot: Slot, program: Path) -> Container:
    """A container over the slot, whose PID 1 waits for orders. Raises ExecutorUnavailable."""
    with ExitStack() as undo:
        listener = listen(slot.pfs)
        undo.callback(listener.close)
        slot.place_init(program)
        undo.callback(slot.clear_init)
        identity = await start_or_explain(engine, options)
        container: Container | None = None
        try:
            container = Container(engine, identity, *await accept(listener))
            await container.receive()
        except BaseException as error:
            with trio.CancelScope(shield=True):
                await (container.aclose(_STARTING_S) if container else engine.remove(identity))
            if isinstance(error, (WorkerLost, trio.TooSlowError)):
                raise ExecutorUnavailable([_silent(engine.name)]) from error
            raise
        return container


async def start_or_explain(engine: Engine, options: ContainerOptions) -> str:
    """The id of a container that runs. Raises ExecutorUnavailable."""
    try:
        return await engine.start(options)
    except EngineError as error:
        remedy = error.hint or f"try `{engine.name} run --rm {options.image}` by hand"
        obstacle = Obstacle(f"cannot run a container here: {error.message}", remedy)
        try:
            await engine.find_image(options.image)
        except ImageMissing as missing:
            obstacle = Obstacle(missing.message, missing.hint or "build it or pull it")
        except EngineError:
            pass  # the first complaint is the one that counts
        raise ExecutorUnavailable([obstacle]) from error


def _silent(engine: str) -> Obstacle:
    return Obstacle(
        f"a container of {engine} starts here, but its first process cannot reach the runner",
        "see whether a security module (SELinux: ausearch -m avc) keeps containers from the job's work directory",
    )


def listen(directory: Path) -> socket.socket:
    """A socket in a directory, whose path may be longer than an address can be."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    place = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        listener.bind(f"/proc/self/fd/{place}/{SOCKET}")
        os.chmod(directory / SOCKET, 0o666)  # the container's user is any; nobody else gets to the directory
        listener.listen(1)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(place)
    return listener


async def accept(listener: socket.socket) -> tuple[trio.socket.SocketType, tuple[int, int, int]]:
    """The line, and who is at its other end: pid, uid, gid. Raises TooSlowError."""
    listener.setblocking(False)
    with trio.fail_after(_STARTING_S):
        await trio.lowlevel.wait_readable(listener)
    line, _ = listener.accept()
    pid, uid, gid = _PEER.unpack(line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return trio.socket.from_stdlib_socket(line), (pid, uid, gid)
