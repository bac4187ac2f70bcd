"""The job record: an ordinary tree that keeps what a job did, datum by datum.

    datums/<key, 64 hex>/    attribute user.pfs.datum: JSON; where that is more than 64 KiB (many inputs), the file datum.json
        out/                 results; not there for a datum that failed
        log                  what it printed
    written-by/              a tree like the results: who wrote which (`runner.union`)
    code/                    the program as it was (`runner.program`)
    job.json                 everything that is not per datum

`user.pfs.datum` has `inputs` (`name`, `path`, `id`, `kind` each), `exit`, `started_ns`, `ended_ns`, `max_rss` (bytes), `user_s`, `system_s`,
`job` (the one that ran it), `tries` when it was run more than once, `struck` (limits that were reached) and, for a datum that failed, `reason` and
`message`; `recovered` when the job went on without it. `exit` is what a shell would have in `$?`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pfsmount.errors import Corrupt, InvalidInput
from pfsmount.ids import EntryName, ObjectId, display, parse_object_id
from pfsmount.objects.batch import Batch
from pfsmount.objects.reading import Reader
from pfsmount.repo.commit import dump_json
from pfsmount.repo.provenance import DATUM_FILE, DATUM_XATTR, read_datum_json
from pfsmount.tree.content import open_content, read_small
from pfsmount.tree.directory import (
    EMPTY_DIRECTORY,
    DirectorySummary,
    directory_entry,
    entries,
    lookup,
)
from pfsmount.tree.edit import build_directory, edit_directory
from pfsmount.tree.entry import Entry, file_entry
from pfsmount.tree.ingest import ingest_bytes
from pfsmount.tree.manifest import PIECE_MAX
from pfsmount.tree.xattrs import VALUE_MAX, with_xattrs
from runner.attempts import Ended
from runner.datum import Datum, describe
from runner.executors.base import MADE_MTIME_NS, how_it_ended

DATUMS, WRITTEN_BY, CODE, JOB = (EntryName(name) for name in (b"datums", b"written-by", b"code", b"job.json"))
OUT, LOG = EntryName(b"out"), EntryName(b"log")


@dataclass(frozen=True, slots=True)
class DatumRecord:
    """What is kept of one datum."""

    key: ObjectId
    entry: Entry
    """Its directory."""
    meta: Mapping[str, Any]
    out: Entry | None
    log: Entry | None

    @property
    def ok(self) -> bool:
        return "reason" not in self.meta

    @property
    def order(self) -> tuple[object, ...]:
        """Sorts it among the datums of a job: by the paths of its inputs, in the order of their names.

        Not in that of the spec: the job that ran the datum may have had another one.
        """
        inputs = sorted((used["name"], os.fsencode(used["path"]).split(b"/")) for used in self.meta["inputs"])
        return tuple(path for _, path in inputs), self.key

    @property
    def seconds(self) -> float:
        return float(self.meta["ended_ns"] - self.meta["started_ns"]) / 1e9

    @property
    def how(self) -> str:
        """How it ended, for people."""
        meta = self.meta
        if self.ok:
            return "ok"
        how = how_it_ended(meta["reason"], meta["exit"], meta.get("message", ""))
        return f"{how}; recovered" if meta.get("recovered") else how

    def __str__(self) -> str:
        return describe(self.meta["inputs"])


def datum_entry(
    batch: Batch, datum: Datum, ended: Ended, job: str, *, log: Entry, out: Entry | None, refused: str = ""
) -> Entry:
    """The directory of a datum that ran. `refused` says why results of a command that ended well cannot be kept."""
    outcome = ended.outcome
    meta: dict[str, Any] = {
        "inputs": [match.as_json() for match in datum.matches],
        "exit": outcome.shell_exit,
        "started_ns": outcome.started_ns,
        "ended_ns": outcome.ended_ns,
        "max_rss": outcome.max_rss,
        "user_s": round(outcome.user_s, 6),
        "system_s": round(outcome.system_s, 6),
        "job": job,
    }
    if ended.tries > 1:
        meta["tries"] = ended.tries
    if outcome.struck:
        meta["struck"] = list(outcome.struck)
    if refused or not outcome.ok:
        meta |= {"reason": "results" if refused else str(outcome.reason), "message": refused or outcome.message}
    if ended.recovered:
        meta["recovered"] = True
    items = [(LOG, log)] if out is None else [(LOG, log), (OUT, out)]
    text = dump_json(meta).encode("ascii")
    fits = len(text) <= VALUE_MAX
    if not fits:
        items.insert(0, (DATUM_FILE, _file(batch, text, outcome.ended_ns)))
    entry = _directory(build_directory(batch, items), mtime_ns=outcome.ended_ns)
    return with_xattrs(batch, entry, {DATUM_XATTR: text}) if fits else entry


def _file(batch: Batch, text: bytes, mtime_ns: int) -> Entry:
    return file_entry(ingest_bytes(batch, text), len(text), uid=os.getuid(), gid=os.getgid(), mtime_ns=mtime_ns)


def _directory(summary: DirectorySummary, *, mtime_ns: int = MADE_MTIME_NS) -> Entry:
    return directory_entry(summary, uid=os.getuid(), gid=os.getgid(), mtime_ns=mtime_ns)


def datum_name(key: ObjectId) -> EntryName:
    """The name of a datum's directory in `datums/`."""
    return EntryName(key.hex().encode("ascii"))


def edit_datums(batch: Batch, datums: Entry, changes: Mapping[ObjectId, Entry | None]) -> Entry:
    """The directory `datums/` with datums set or removed."""
    summary = edit_directory(batch, datums.id, {datum_name(key): entry for key, entry in changes.items()})
    return _directory(summary)


def empty_datums() -> Entry:
    """A `datums/` without any."""
    return _directory(EMPTY_DIRECTORY)


def make_record(
    batch: Batch, *, datums: Entry, written_by: Entry, code: Entry, job: Mapping[str, Any], time_ns: int
) -> Entry:
    """The root of a record."""
    text = (json.dumps(job, indent=1, sort_keys=True) + "\n").encode("ascii")
    items = [(CODE, code), (DATUMS, datums), (JOB, _file(batch, text, time_ns)), (WRITTEN_BY, written_by)]
    return _directory(build_directory(batch, items), mtime_ns=time_ns)


class Record:
    """A record, for reading."""

    def __init__(self, objects: Reader, root: Entry) -> None:
        self._objects = objects
        self.root = root

    def job(self) -> dict[str, Any]:
        """`job.json`. Raises Corrupt."""
        return parse_job(read_small(self._objects, self._part(JOB)))

    @property
    def datums_root(self) -> Entry:
        return self._part(DATUMS)

    @property
    def written_by(self) -> Entry:
        return self._part(WRITTEN_BY)

    @property
    def code(self) -> Entry:
        return self._part(CODE)

    def _part(self, name: EntryName) -> Entry:
        entry = lookup(self._objects, self.root.id, name)
        if entry is None:
            raise Corrupt(f"a job record has no {name.decode()}")
        return entry

    def datum(self, key: ObjectId) -> DatumRecord | None:
        """One datum, or None. Raises Corrupt."""
        entry = lookup(self._objects, self.datums_root.id, datum_name(key))
        return None if entry is None else read_datum(self._objects, key, entry)

    def datums(self) -> Iterator[DatumRecord]:
        """All datums, by key. Raises Corrupt."""
        for name, entry in entries(self._objects, self.datums_root.id):
            try:
                key = parse_object_id(os.fsdecode(name))
            except InvalidInput:
                raise Corrupt(f"a job record has a datum of the name '{display(name)}'") from None
            yield read_datum(self._objects, key, entry)

    def read_log(self, datum: DatumRecord) -> Iterator[bytes]:
        """What a datum printed, in parts."""
        if datum.log is None:
            return
        content = open_content(self._objects, datum.log)
        for offset in range(0, content.size, PIECE_MAX):
            yield content.read(offset, PIECE_MAX)

    def log_tail(self, datum: DatumRecord, size: int = 4096) -> bytes:
        """The end of what a datum printed."""
        if datum.log is None:
            return b""
        content = open_content(self._objects, datum.log)
        return content.read(max(0, content.size - size), size)


def read_datum(objects: Reader, key: ObjectId, entry: Entry) -> DatumRecord:
    """A datum from its directory. Raises Corrupt."""
    meta = parse_datum(read_datum_json(objects, entry))
    if meta is None or not entry.is_directory:
        raise Corrupt(f"the record of datum {key.hex()[:12]} is damaged")
    return DatumRecord(key, entry, meta, lookup(objects, entry.id, OUT), lookup(objects, entry.id, LOG))


def parse_datum(raw: bytes) -> dict[str, Any] | None:
    """What the attribute of a datum says; None when it is damaged."""
    try:
        meta = json.loads(raw)
        inputs = meta["inputs"]
        good = all(type(meta[key]) is int for key in ("exit", "started_ns", "ended_ns", "max_rss"))
        good = good and all(isinstance(meta[key], int | float) for key in ("user_s", "system_s"))
        good = good and all(isinstance(used[key], str) for used in inputs for key in ("name", "path", "id", "kind"))
        return meta if good and isinstance(meta["job"], str) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def parse_job(raw: bytes) -> dict[str, Any]:
    """What `job.json` says. Raises Corrupt."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Corrupt("the job.json of a job record is damaged")
    return value
