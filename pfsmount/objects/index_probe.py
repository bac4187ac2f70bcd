"""Reads a whole index in a process of its own, because LMDB trusts its file.

LMDB has no checksums: a damaged page is at best an error, else LMDB ends the process (an assertion, a fault beyond the end of a file that was cut). So before a
check uses an index that may be damaged, another process reads all of it, and may die of it. A check of all data then lets it hash small pieces
(`objects.windows_ahead`).
"""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from operator import lt
from pathlib import Path
from types import TracebackType

from pfsmount.config import DEFAULT_SETTINGS
from pfsmount.errors import Busy, Corrupt, NoSpace, PermissionDenied, PfsError
from pfsmount.objects.index import INDEX_TABLES, Index
from pfsmount.objects.windows_ahead import PIECES_MAX, WindowsAhead, is_alone, shared_memory

_ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = """\
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the other process decides
sys.path.insert(0, sys.argv[2])
from pfsmount.objects.index_probe import main
main()
"""
_DAMAGED, _OTHER = 3, 4
_AT_ONCE = 20_000


def probe_index(path: Path, map_size: int) -> str | None:
    """What is wrong with the index in this directory; None for one that can be used, or whose opening says why it cannot."""
    with IndexProbe(path, map_size) as probe:
        return probe.wait()


def begin_probe(store: Path, *, data: bool = False) -> IndexProbe:
    """The probe of a store's index, before a check, with `data` of all data."""
    return IndexProbe(store / "index", DEFAULT_SETTINGS.map_size, store / "segments" if data else None)


class IndexProbe:
    """The process that reads an index, from when this is made: whoever has something else to do meanwhile (a command its imports) does that before `wait`.

    With `segments`, the directory of the store's segments, it stays until the context is left, to look at small pieces: `ahead`.
    """

    def __init__(self, path: Path, map_size: int, segments: Path | None = None) -> None:
        self._file = path / "data.mdb"
        self._process: subprocess.Popen[str] | None = None
        self._connection: socket.socket | None = None
        self._memory: mmap.mmap | None = None
        self._problem: str | None = None
        self.ahead: WindowsAhead | None = None
        """Set by `wait` where two processors can work."""
        try:
            if not self._file.stat().st_size:
                self._problem = f"the index '{self._file}' is empty"
                return
        except FileNotFoundError:
            self._problem = f"the index '{self._file}' is missing"
            return
        helps = segments is not None and len(os.sched_getaffinity(0)) > 1
        arguments = [os.fspath(path), os.fspath(_ROOT), str(map_size)]
        memory = self._share() if helps else -1
        try:
            self._start([*arguments, os.fspath(segments or "") if memory >= 0 else ""], memory)
        finally:
            if memory >= 0:
                os.close(memory)

    def _share(self) -> int:
        """Memory that both sides have; -1 where there is none to be had, and nobody helps."""
        try:
            memory = shared_memory()
        except OSError:
            return -1
        try:
            self._memory = mmap.mmap(memory, PIECES_MAX)
        except OSError:
            os.close(memory)
            return -1
        return memory

    def _start(self, arguments: Sequence[str], memory: int) -> None:
        """Start it. Where that cannot be, the check goes on alone: an index that is damaged may end it, but most are not."""
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, *arguments, str(its.fileno()), str(memory)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(its.fileno(), memory) if memory >= 0 else (its.fileno(),),
                text=True,
                errors="replace",
            )
            self._connection = mine
        except OSError:
            mine.close()
        finally:
            its.close()

    def __enter__(self) -> IndexProbe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            with self._process:
                self._process.kill()  # it has nothing to finish

    def wait(self) -> str | None:
        """What is wrong; None for an index that can be used, or whose opening says why it cannot."""
        if self._process is None or self._connection is None:
            return self._problem
        try:
            stays = bool(self._connection.recv(1))
        except OSError:
            stays = False
        if stays and self._memory is not None:
            self.ahead = WindowsAhead(self._connection, self._memory)
            return None
        said, _ = self._process.communicate()
        code = self._process.returncode
        if code in (0, _OTHER):
            return None
        return (
            said.strip()
            if code == _DAMAGED
            else f"the index '{self._file}' is damaged: reading it ended a process ({code})"
        )


def main() -> None:
    """The other process: read all keys and values of all tables, and see that the keys are in order. Then help, if that is wanted."""
    path, _, map_size, segments, connection_fd, memory_fd = sys.argv[1:]
    with socket.socket(fileno=int(connection_fd)) as connection:
        try:
            _read_index(Path(path), int(map_size), connection)
        except (Busy, PermissionDenied, NoSpace):
            sys.exit(_OTHER)
        except PfsError as error:
            print(error.message)
            sys.exit(_DAMAGED)
        if segments:
            from pfsmount.objects.windows_worker import serve  # which few need

            with suppress(ConnectionError):
                connection.send(b"\1")
                serve(connection, int(memory_fd), Path(segments))


def _read_index(path: Path, map_size: int, connection: socket.socket) -> None:
    """Raises Corrupt, Busy, PermissionDenied, NoSpace."""
    index = Index(path, map_size)
    with index.read() as txn:
        for table in INDEX_TABLES:
            before, count = b"", 0
            while rows := txn.some(table, before, _AT_ONCE):
                if is_alone(connection):
                    sys.exit(_OTHER)
                keys = [key for key, _ in rows]
                if keys[0] < before or not all(map(lt, keys, keys[1:])):
                    raise Corrupt(f"keys of the index table '{table.value.decode()}' are out of order")
                before = keys[-1] + b"\0"
                count += len(rows)
            if count != txn.count(table):
                raise Corrupt(f"the index table '{table.value.decode()}' has {count} rows of {txn.count(table)}")
    index.close()
