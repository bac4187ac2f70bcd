"""The other half of `repo.reading_worker`: a process that reads ahead, and what it read.

Reading and hashing small files costs `put` about as much as storing them, and Python does one thing at a time: a second process halves the time. It is started
only when there is much to read, and never needed: without it, or when it dies, whoever asked reads for himself.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from pfsmount.repo.reading_worker import RECORD, SLOT_BYTES, SLOT_NUMBER, SLOTS

if TYPE_CHECKING:
    import subprocess

_PROGRAM = """\
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the other process decides
sys.path.insert(0, sys.argv[3])
from pfsmount.repo.reading_worker import serve
serve(int(sys.argv[1]), int(sys.argv[2]))
"""
_ROOT = Path(__file__).resolve().parents[2]


class ReadFile(NamedTuple):
    """A small file that was read. The bytes are valid until the next request is made."""

    done: int
    """0: it has to be read otherwise; nothing else is set."""
    at: int
    """Where its bytes start in the memory that comes with the answer."""
    st_size: int
    fixed: bytes
    """The fixed part of its entry; the id is its last 32 bytes."""
    st_dev: int
    st_ino: int
    st_mtime_ns: int
    st_ctime_ns: int


ReadRecord: TypeAlias = tuple[int, int, int, bytes, int, int, int, int]
"""A `ReadFile` before it has names, which a file in a million need not have."""


class ReadingProcess:
    """A process that reads runs of small files, in the order in which it is asked. Leaving the context ends it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._memory: mmap.mmap | None = None
        self._ready = False
        self._broken = len(os.sched_getaffinity(0)) < 2 or not sys.executable
        self._asked: deque[tuple[int, int]] = deque()
        self._next_slot = 0

    def __enter__(self) -> ReadingProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def start(self) -> None:
        """Start it, if it is not; it takes requests some 0.1 s later."""
        if self._process is not None or self._broken:
            return
        import subprocess  # 8 ms, which a put of a few files need not wait for

        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memory = os.memfd_create("pfs-put", os.MFD_CLOEXEC)
        try:
            os.ftruncate(memory, SLOTS * SLOT_BYTES)
            self._memory = mmap.mmap(memory, SLOTS * SLOT_BYTES)
            command = [sys.executable, "-P", "-c", _PROGRAM, str(its.fileno()), str(memory), str(_ROOT)]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # what ends it too early is met by whoever reads then
                pass_fds=(its.fileno(), memory),
            )
            self._connection = mine
        except OSError:
            mine.close()
            self._broken = True
        finally:
            its.close()
            os.close(memory)

    @property
    def is_ready(self) -> bool:
        """True when it has started and lives, as far as is known."""
        if not self._ready and self._connection is not None and select.select([self._connection], [], [], 0)[0]:
            self._ready = self._receive()
            self._broken |= not self._ready
        return self._ready and not self._broken

    @property
    def asked(self) -> int:
        """How many requests are not answered yet."""
        return len(self._asked)

    @property
    def is_free(self) -> bool:
        """True when it takes a request now."""
        return len(self._asked) < SLOTS - 1 and self.is_ready

    def ask(self, directory: int, names: Sequence[bytes]) -> bool:
        """Let it read files of an open directory; False when it cannot."""
        assert self._connection is not None
        request = SLOT_NUMBER.pack(self._next_slot) + b"/".join(names)
        try:
            socket.send_fds(self._connection, [request], [directory])
        except OSError:
            self._broken = True
            return False
        self._asked.append((self._next_slot, len(names)))
        self._next_slot = (self._next_slot + 1) % SLOTS
        return True

    def answer(self) -> tuple[memoryview, list[ReadRecord]] | None:
        """What the oldest request read, in the order of its names, and the memory with the bytes. Waits for it; None when the process is dead."""
        slot, count = self._asked.popleft()
        if self._broken or not self._receive() or self._memory is None:
            self._broken = True
            return None
        part = memoryview(self._memory)[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES]
        return part, list(RECORD.iter_unpack(part[: count * RECORD.size]))

    def _receive(self) -> bool:
        assert self._connection is not None
        try:
            return bool(self._connection.recv(1))
        except OSError:
            return False

    def _end(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()  # it has nothing to finish
            self._process.wait()
        self._memory = None
