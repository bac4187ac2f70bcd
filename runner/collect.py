"""Datums that ended become entries of the store: their results are kept from then on, whatever becomes of the job.

What ended is made durable in batches, at most every `FLUSH_S` seconds or `FLUSH_DATUMS` datums, so that a datum costs little. A runner that is
killed loses at most that much, and the next run does it again.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfsmount.errors import Corrupt, InvalidInput
from pfsmount.ids import ObjectId, display
from pfsmount.objects.batch import Batch
from pfsmount.objects.layout import disk_errors
from pfsmount.repo.results import find_results, save_results
from pfsmount.repo.store import Store
from pfsmount.tree.entry import EMPTY_FILE_ID, Entry, file_entry
from pfsmount.tree.ingest import ingest_fd
from runner.attempts import Ended
from runner.claims import Claims
from runner.datum import Datum
from runner.jobs import JobDirectory
from runner.live import EndedDatum, note_ended
from runner.outputs import OutputReader, OutputRefused
from runner.record import datum_entry
from runner.scratch import Scratch, ScratchPool
from runner.state import Event

FLUSH_S = 0.2
FLUSH_DATUMS = 64
_PROGRESS_S = 0.2
_KEY_BYTES = 32
_RESULTS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Finished:
    """A datum that ran to its end, or (`ended` None) whose result somebody else has made meanwhile."""

    datum: Datum
    scratch: Scratch | None
    ended: Ended | None


class Collector:
    """Takes in what datums left. One thread at a time."""

    def __init__(self, store: Store, job: str, directory: JobDirectory, pool: ScratchPool, claims: Claims) -> None:
        self._claims = claims
        self._store, self._job, self._directory, self._pool = store, job, directory, pool
        self.keys = bytearray()
        """Of the datums that have a durable result, 32 bytes each, in the order in which they ended."""
        self.failed: dict[ObjectId, Entry] = {}
        """Those that failed, and what is kept of them."""
        self.recovered: dict[ObjectId, Entry] = {}
        """Those that the job goes on without, and what is kept of them."""
        self.dangling_outputs: list[str] = []
        self._batch: Batch | None = None
        self._results: dict[ObjectId, Entry] = {}
        self._failures: dict[ObjectId, Entry] = {}
        self._recoveries: dict[ObjectId, Entry] = {}
        self._unflushed = 0
        self._oldest = 0.0
        self._progress_at = 0.0

    @property
    def flush_in(self) -> float | None:
        """Seconds until a flush is due; None when there is nothing to flush."""
        if not self._unflushed:
            return None
        if self._unflushed >= FLUSH_DATUMS:
            return 0.0
        return max(0.0, self._oldest + FLUSH_S - time.monotonic())

    def take(self, finished: Finished) -> Event:
        """Keep what a datum left, and give its scratch directory back; says how it counts. Raises NoSpace, PfsError."""
        datum = finished.datum
        if finished.ended is None:
            self.keys += datum.key
            return Event.DATUM_SKIPPED
        assert finished.scratch is not None
        if self._batch is None:
            self._batch = self._store.objects.batch()
            self._oldest = time.monotonic()
        entry, ok = self._ingest(self._batch, datum, finished.scratch, finished.ended)
        self._pool.give_back(finished.scratch)
        self._unflushed += 1
        if ok:
            self._results[datum.key] = entry
            return Event.DATUM_PROCESSED
        if finished.ended.recovered:
            self._recoveries[datum.key] = entry
            return Event.DATUM_RECOVERED
        self._failures[datum.key] = entry
        return Event.DATUM_FAILED

    def _ingest(self, batch: Batch, datum: Datum, scratch: Scratch, ended: Ended) -> tuple[Entry, bool]:
        out, refused = None, ""
        if ended.outcome.ok:
            reader = OutputReader(batch, datum)
            try:
                out = reader.read(os.fsencode(scratch.out))
            except (OutputRefused, InvalidInput) as error:
                refused = error.message
            if reader.outside and not self.dangling_outputs:
                self.dangling_outputs.append(display(reader.outside[0]))
        log = self._log(batch, scratch.log, refused)
        entry = datum_entry(batch, datum, ended, self._job, log=log, out=out, refused=refused)
        return entry, ended.outcome.ok and not refused

    def _log(self, batch: Batch, place: Path, last_words: str) -> Entry:
        with disk_errors("keeping the log of a datum"):
            if not last_words and (info := _stat(place)) is not None and not info.st_size:
                return file_entry(EMPTY_FILE_ID, 0, uid=info.st_uid, gid=info.st_gid, mtime_ns=info.st_mtime_ns)
            fd = os.open(place, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                if last_words:
                    os.write(fd, f"pfs: {last_words}\n".encode("utf-8", "surrogateescape"))
                info = os.fstat(fd)
                id, size = ingest_fd(batch, fd)
            finally:
                os.close(fd)
        return file_entry(id, size, uid=info.st_uid, gid=info.st_gid, mtime_ns=info.st_mtime_ns)

    def flush(self) -> None:
        """Make everything taken so far durable, and known to all jobs. Raises NoSpace; then it is lost."""
        batch, self._batch = self._batch, None
        results, self._results = self._results, {}
        failures, self._failures = self._failures, {}
        recoveries, self._recoveries = self._recoveries, {}
        self._unflushed = 0
        if batch is not None:
            with batch:
                save_results(self._store, batch, results)
            self.keys += b"".join(results)
            self.failed |= failures
            self.recovered |= recoveries
            for key in itertools.chain(results, failures, recoveries):
                self._claims.release(key)
            note_ended(self._directory.path, _ended(results, failures, recoveries))

    def write_progress(self, value: Mapping[str, Any]) -> None:
        """Let others see how far the job is, a few times a second at most."""
        now = time.monotonic()
        if now >= self._progress_at:
            self._progress_at = now + _PROGRESS_S
            self._directory.write_progress(value)


def _ended(
    results: Iterable[ObjectId], failures: Mapping[ObjectId, Entry], recoveries: Mapping[ObjectId, Entry]
) -> Iterator[EndedDatum]:
    yield from (EndedDatum(key, Event.DATUM_PROCESSED, None) for key in results)
    yield from (EndedDatum(key, Event.DATUM_FAILED, entry) for key, entry in failures.items())
    yield from (EndedDatum(key, Event.DATUM_RECOVERED, entry) for key, entry in recoveries.items())


def _stat(place: Path) -> os.stat_result | None:
    try:
        return place.stat()
    except FileNotFoundError:
        return None


def results_of(store: Store, keys: bytes) -> Iterator[tuple[ObjectId, Entry]]:
    """Keys (32 bytes each) with the directories of their datums. Raises Corrupt."""
    for start in range(0, len(keys), _RESULTS_AT_ONCE * _KEY_BYTES):
        end = min(len(keys), start + _RESULTS_AT_ONCE * _KEY_BYTES)
        part = [ObjectId(keys[at : at + _KEY_BYTES]) for at in range(start, end, _KEY_BYTES)]
        found = find_results(store, part)
        for key in part:
            entry = found.get(key)
            if entry is None:
                raise Corrupt(
                    f"the result of datum {key.hex()[:12]} has gone while the job ran", hint="run the job again"
                )
            yield key, entry
