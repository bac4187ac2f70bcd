"""Several files one after another, as one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from pfsmount.config import MIB
from pfsmount.ids import ObjectId
from pfsmount.objects.batch import Batch
from pfsmount.objects.reading import Reader
from pfsmount.tree.content import open_content
from pfsmount.tree.entry import Entry
from pfsmount.tree.ingest import ingest_bytes, ingest_source

_IN_MEMORY_MAX = 16 * MIB


def concatenate(batch: Batch, files: Sequence[Entry]) -> tuple[ObjectId, int]:
    """Add the file that has the content of all these, and return its id and size. Raises NoSpace, NotFound, Corrupt."""
    size = sum(entry.size for entry in files)
    if size > _IN_MEMORY_MAX:
        return ingest_source(batch, _Row(batch, files))
    return ingest_bytes(batch, b"".join(open_content(batch, entry).read(0, entry.size) for entry in files)), size


class _Row:
    """Files as one source. It is read by the thread that adds: a batch is for one at a time."""

    def __init__(self, objects: Reader, files: Sequence[Entry]) -> None:
        self._objects = objects
        self._files = [entry for entry in files if entry.size]
        self._ends = list(accumulate(entry.size for entry in self._files))

    def read(self, view: memoryview, offset: int) -> int:
        """See `pfsmount.tree.sources.Source`."""
        done = 0
        while done < len(view) and (i := bisect_right(self._ends, offset + done)) < len(self._files):
            entry = self._files[i]
            at = offset + done - (self._ends[i] - entry.size)
            data = open_content(self._objects, entry).read(at, min(len(view) - done, entry.size - at))
            view[done : done + len(data)] = data
            done += len(data)
        return done

    def next_hole(self, offset: int) -> tuple[int, int] | None:
        """None is looked for."""
