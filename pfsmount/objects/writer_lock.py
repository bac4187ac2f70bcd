"""Who holds the index's writer lock: for people who wait for it.

The lock is LMDB's: a robust mutex in `lock.mdb`, which the next writer takes over when its holder dies. A holder that is only stopped (SIGSTOP, a debugger, a
frozen container) keeps it, and LMDB waits without end and without a word. The mutex begins with the number of the thread that holds it, as the kernel
demands of robust mutexes; where in the file it lies is LMDB's layout, so this is read for a message and nothing else.

It is read from our own memory, where LMDB has mapped it. **Never open `lock.mdb` in a process that has the store open**: closing any descriptor of a file drops all
the fcntl locks of the process on it (POSIX), and by such a lock others tell that our reader lives. Without it they would use pages again that we read (found by the soak).
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_MAGIC = 0xBEEFC0DE
_HEAD = struct.Struct("<I60xI")  # LMDB's magic; the first word of the writers' mutex
_THREAD = 0x3FFFFFFF  # without the kernel's two bits: somebody waits, the owner died
_STOPPED = "Tt"


@dataclass(frozen=True, slots=True)
class LockHolder:
    """The process that holds the writer lock at this moment."""

    pid: int
    command: str
    """Its command line."""
    is_stopped: bool
    """By a signal or a debugger: it will not let go by itself."""


def lock_holder(index: Path) -> LockHolder | None:
    """Who holds the writer lock of the index in this directory, which this process has open or is opening; None when nobody does, or it cannot be told."""
    with suppress(OSError, struct.error, ValueError, LookupError):
        magic, word = _HEAD.unpack(_mapped(index.resolve() / "lock.mdb", _HEAD.size))
        thread = word & _THREAD
        if magic == _MAGIC and thread:
            lines = _read(f"/proc/{thread}/status").splitlines()
            status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            pid = int(status["Tgid"])
            command = _read(f"/proc/{pid}/cmdline").rstrip("\0").replace("\0", " ")
            return LockHolder(pid, command or status["Name"], status["State"][0] in _STOPPED)
    return None


def _mapped(path: Path, size: int) -> bytes:
    """The first bytes of a file that this process has mapped. Raises LookupError when it has not."""
    for line in _read("/proc/self/maps").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == os.fspath(path) and not int(fields[2], 16):
            with open("/proc/self/mem", "rb", buffering=0) as memory:
                return os.pread(memory.fileno(), size, int(fields[0].split("-")[0], 16))
    raise LookupError(path)


def _read(path: str) -> str:
    with open(path, "rb") as file:
        return os.fsdecode(file.read())
