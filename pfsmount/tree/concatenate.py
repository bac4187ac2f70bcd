"""Several files one after another, as one."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress

from pfsmount.config import MIB
from pfsmount.ids import ObjectId
from pfsmount.objects.batch import Batch
from pfsmount.objects.reading import Reader
from pfsmount.tree.content import open_content
from pfsmount.tree.entry import Entry
from pfsmount.tree.ingest import ingest_bytes, ingest_fd

_IN_MEMORY_MAX = 16 * MIB
_PART = 4 * MIB


def concatenate(batch: Batch, files: Sequence[Entry]) -> tuple[ObjectId, int]:
    """Add the file that has the content of all these, and return its id and size. Raises NoSpace, NotFound, Corrupt."""
    size = sum(entry.size for entry in files)
    if size > _IN_MEMORY_MAX:
        return _through_a_pipe(batch, files)
    return ingest_bytes(batch, b"".join(open_content(batch, entry).read(0, entry.size) for entry in files)), size


def _through_a_pipe(batch: Batch, files: Sequence[Entry]) -> tuple[ObjectId, int]:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    failures: list[BaseException] = []
    thread = threading.Thread(target=_write_all, args=(batch, files, writing, failures), daemon=True)
    thread.start()
    try:
        made = ingest_fd(batch, reading)
    finally:
        os.close(reading)  # a writer that is not done is told so
        thread.join()
    if failures:
        raise failures[0]
    return made


def _write_all(objects: Reader, files: Sequence[Entry], fd: int, failures: list[BaseException]) -> None:
    try:
        with os.fdopen(fd, "wb", buffering=0) as pipe, suppress(BrokenPipeError):
            for entry in files:
                content = open_content(objects, entry)
                for offset in range(0, content.size, _PART):
                    left = memoryview(content.read(offset, _PART))
                    while left:
                        left = left[pipe.write(left) :]
    except BaseException as error:
        failures.append(error)
