"""`pfsjob logs`: what the datums of a job print, afterwards or while it runs."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfsmount.cli import output
from pfsmount.errors import InvalidInput, NotFound
from pfsmount.ids import ObjectId, display
from pfsmount.repo.store import Store
from runner.cli_watch import print_event
from runner.datum import describe
from runner.jobs import Job, JobStore
from runner.live import LiveJob, RunningDatum
from runner.record import DatumRecord, Record
from runner.state import Phase

_POLL_S = 0.2
_PART = 1 << 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which datums, and which of their lines."""

    datum: str | None
    failed: bool
    pattern: re.Pattern[str] | None

    @classmethod
    def parse(cls, datum: str | None, failed: bool, pattern: str | None) -> Wanted:
        """Raises InvalidInput."""
        try:
            return cls(datum, failed, None if pattern is None else re.compile(pattern))
        except re.error as error:
            raise InvalidInput(f"--grep '{display(pattern or '')}' is not a regular expression: {error}") from None

    def fits(self, key: ObjectId, inputs: Iterable[Mapping[str, Any]]) -> bool:
        """True when the datum has this key (or a prefix of at least 6 digits), or an input with this path, or above it."""
        if self.datum is None or (len(self.datum) >= 6 and key.hex().startswith(self.datum)):
            return True
        name, colon, path = self.datum.rpartition(":")
        path = "/" + path.strip("/")
        return any(_is_at(path, used["path"]) and (not colon or used["name"] == name) for used in inputs)

    def takes(self, datum: DatumRecord) -> bool:
        """Whether a datum that has ended is one of them."""
        return not (self.failed and datum.ok) and self.fits(datum.key, datum.meta["inputs"])


def _is_at(path: str, place: str) -> bool:
    return path == place or path.startswith(place.rstrip("/") + "/")


def print_logs(store: Store, prefix: str | None, wanted: Wanted, *, follow: bool, json: bool) -> None:
    """What datums printed: of a job, by default the newest. Raises NotFound when no datum fits."""
    jobs = JobStore(store)
    job = next(jobs.jobs(), None) if prefix is None else jobs.find(prefix)
    if job is None:
        raise NotFound("there are no jobs yet")
    if prefix is None:
        output.note(f"pfsjob: {job.id}")
    shown = _Printer(wanted, json=json, one=wanted.datum is not None and not follow)
    if follow and not job.phase.is_over:
        _Follower(jobs, job, wanted, shown).run()
        return
    found = _ended(jobs, job, wanted)
    if json:
        output.print_json_list(filter(None, (shown.as_json(datum, record) for datum, record in found)))
        return
    first = next(found, None)
    second = None if first is None else next(found, None)
    if first is None:
        _say_none(job, wanted)
        return
    shown.one = shown.one and second is None
    for datum, record in [pair for pair in (first, second) if pair is not None]:
        shown.whole(datum, record)
    for datum, record in found:
        shown.whole(datum, record)


def _ended(jobs: JobStore, job: Job, wanted: Wanted) -> Iterator[tuple[DatumRecord, Record]]:
    """The datums of a job that have ended, also while it runs."""
    record = jobs.record(job)
    if not job.phase.is_over and jobs.is_running(job.id):
        yield from ((datum, record) for datum, _ in jobs.live(job.id).new_ended() if wanted.takes(datum))
    yield from ((datum, record) for datum in record.datums() if wanted.takes(datum))


def _say_none(job: Job, wanted: Wanted) -> None:
    if wanted.datum is not None:
        raise NotFound(
            f"{job.id} has no {'failed ' if wanted.failed else ''}datum '{display(wanted.datum)}'",
            hint="a datum is named by its key, or by the path of its input",
        )
    if job.phase is Phase.INTERRUPTED:
        output.say(f"{job.id} is {job.phase}: logs are kept with the record, at its end")
    elif not job.phase.is_over:
        output.say(f"no datum of {job.id} has ended yet; -f shows what they print as they run")
    else:
        output.say(f"no datum of {job.id} failed" if wanted.failed else f"{job.id} had no datums")


class _Printer:
    """Prints logs: under a title each, or those lines that fit behind the name of their datum."""

    def __init__(self, wanted: Wanted, *, json: bool, one: bool) -> None:
        self._pattern, self._json = wanted.pattern, json
        self.one = one
        """Only one datum is shown, so it needs no title."""
        self._under: str | None = None

    def whole(self, datum: DatumRecord, record: Record) -> None:
        """The log of a datum that has ended."""
        if self._pattern is not None:
            self.part(str(datum), b"".join(record.read_log(datum)))
        else:
            self._title(f"{datum}  {datum.key.hex()[:12]}  {display(datum.how)}, {datum.seconds:.2f} s")
            for part in record.read_log(datum):
                _write(part)

    def as_json(self, datum: DatumRecord, record: Record) -> dict[str, Any] | None:
        """A datum with its log; None when no line of it fits."""
        text = os.fsdecode(b"".join(record.read_log(datum)))
        if self._pattern is not None:
            text = "".join(line for line in text.splitlines(keepends=True) if self._pattern.search(line))
            if not text:
                return None
        return {"key": datum.key.hex(), **datum.meta, "ok": datum.ok, "log": text}

    def part(self, name: str, data: bytes) -> None:
        """What a datum has printed, whole or since the last time."""
        if not data:
            return
        if self._json:
            print_event("log", datum=name, text=os.fsdecode(data))
        elif self._pattern is not None:
            for line in data.decode("utf-8", "surrogateescape").splitlines():
                if self._pattern.search(line):
                    output.say(f"{name}: {display(line)}")
        else:
            if self._under != name:
                self._title(name)
            self._under = name
            _write(data)

    def end(self, datum: DatumRecord) -> None:
        """A datum whose log was shown in parts has ended."""
        if self._json:
            print_event("datum", key=datum.key.hex(), **datum.meta, how=datum.how)
        elif not datum.ok or self._pattern is None:
            self._title(f"{datum}  {datum.key.hex()[:12]}  {display(datum.how)}, {datum.seconds:.2f} s")
            self._under = None

    def _title(self, text: str) -> None:
        if not self.one:
            output.say(f"==> {text} <==")
            sys.stdout.flush()


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


class _Follower:
    """Shows the logs of a job as they grow, until it ends."""

    def __init__(self, jobs: JobStore, job: Job, wanted: Wanted, printer: _Printer) -> None:
        self._jobs, self._job, self._wanted, self._printer = jobs, job, wanted, printer
        self._live: LiveJob = jobs.live(job.id)
        self._read: dict[ObjectId, int] = {}
        """Bytes shown of each datum."""
        self._over: set[ObjectId] = set()

    def run(self) -> None:
        while self._jobs.is_running(self._job.id):
            self._look()
            time.sleep(_POLL_S)
        job = self._jobs.find(self._job.id)
        self._rest(job)
        output.note(f"pfsjob: {job.id} has ended: {job.phase}")

    def _look(self) -> None:
        for datum in self._live.running():
            if datum.key not in self._over and not self._wanted.failed and self._wanted.fits(datum.key, datum.inputs):
                self._show_running(datum)
        record = self._jobs.record(self._job)
        for ended, _ in self._live.new_ended():
            self._end(ended, record)

    def _show_running(self, datum: RunningDatum) -> None:
        at = self._read.get(datum.key, 0)
        data = _tail(datum.log, at)
        if data:
            self._read[datum.key] = at + len(data)
            self._printer.part(describe(datum.inputs), data)

    def _end(self, datum: DatumRecord, record: Record) -> None:
        if datum.key in self._over:
            return
        self._over.add(datum.key)
        if self._wanted.takes(datum):
            log = b"".join(record.read_log(datum))
            self._printer.part(str(datum), log[self._read.pop(datum.key, 0) :])
            self._printer.end(datum)

    def _rest(self, job: Job) -> None:
        """What ended between the last look and the end of the job."""
        count = sum(int(job.origin.get(name, 0)) for name in ("processed", "failed", "recovered"))
        if len(self._over) < count:
            record = self._jobs.record(job)
            for datum in record.datums():
                if datum.meta["job"] == job.id:
                    self._end(datum, record)


def _tail(path: Path, offset: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(_PART)
    except OSError:
        return b""
