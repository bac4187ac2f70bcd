"""Reads a whole index in a process of its own, because LMDB trusts its file.

LMDB has no checksums: a damaged page is at best an error, else LMDB ends the process (an assertion, a fault beyond the end of a file that was cut). So before a
check uses an index that may be damaged, another process reads all of it, and may die of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from operator import lt
from pathlib import Path
from types import TracebackType

from pfsmount.errors import Busy, Corrupt, NoSpace, PermissionDenied, PfsError
from pfsmount.objects.index import INDEX_TABLES, Index

_ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = "import sys; sys.path.insert(0, sys.argv[2]); from pfsmount.objects.index_probe import main; main()"
_DAMAGED, _OTHER = 3, 4
_AT_ONCE = 20_000


def probe_index(path: Path, map_size: int) -> str | None:
    """What is wrong with the index in this directory; None for one that can be used, or whose opening says why it cannot."""
    with IndexProbe(path, map_size) as probe:
        return probe.wait()


class IndexProbe:
    """The process that reads an index, from when this is made: whoever has something else to do meanwhile (a command its imports) does that before `wait`."""

    def __init__(self, path: Path, map_size: int) -> None:
        self._file = path / "data.mdb"
        self._process: subprocess.Popen[str] | None = None
        self._problem: str | None = None
        try:
            if not self._file.stat().st_size:
                self._problem = f"the index '{self._file}' is empty"
                return
        except FileNotFoundError:
            self._problem = f"the index '{self._file}' is missing"
            return
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM, os.fspath(path), os.fspath(_ROOT), str(map_size)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )

    def __enter__(self) -> IndexProbe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()  # it has nothing to finish
            self._process.communicate()

    def wait(self) -> str | None:
        """What is wrong; None for an index that can be used, or whose opening says why it cannot."""
        if self._process is None:
            return self._problem
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
    """The other process: read all keys and values of all tables, and see that the keys are in order."""
    try:
        index = Index(Path(sys.argv[1]), int(sys.argv[3]))
        with index.read() as txn:
            for table in INDEX_TABLES:
                before, count = b"", 0
                while rows := txn.some(table, before, _AT_ONCE):
                    keys = [key for key, _ in rows]
                    if keys[0] < before or not all(map(lt, keys, keys[1:])):
                        raise Corrupt(f"keys of the index table '{table.value.decode()}' are out of order")
                    before = keys[-1] + b"\0"
                    count += len(rows)
                if count != txn.count(table):
                    raise Corrupt(f"the index table '{table.value.decode()}' has {count} rows of {txn.count(table)}")
        index.close()
    except (Busy, PermissionDenied, NoSpace):
        sys.exit(_OTHER)
    except PfsError as error:
        print(error.message)
        sys.exit(_DAMAGED)
