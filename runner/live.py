"""A job while it runs, for whoever looks from outside: which datums run and what they print, and which have ended.

| file in the job's directory | holds |
|---|---|
| `lock` | pid of the runner and its host, while it lives |
| `d/<n>/datum` | first line: key and inputs of the datum that is there, as JSON; what stands behind it is older |
| `d/<n>/log` | what it has printed so far |
| `ended` | a line a datum: key, how it counts and, when it has no result, what is kept of it (JSON) |

None of them is synced. A datum is in `ended` when what is kept of it can be read from the store.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pfsmount.errors import InvalidInput
from pfsmount.ids import ObjectId, parse_object_id
from pfsmount.objects.layout import private
from pfsmount.repo.commit import dump_root, parse_root
from pfsmount.repo.results import find_result
from pfsmount.repo.store import Store
from pfsmount.tree.entry import Entry
from runner.datum import Datum
from runner.record import DatumRecord, read_datum
from runner.state import Event

_FIRST_LINE = re.compile(rb"[^\n]*\n")


class EndedDatum(NamedTuple):
    """A datum that has ended, as the runner notes it."""

    key: ObjectId
    event: Event
    entry: Entry | None
    """What is kept of it, where no table has it."""


def note_datum(scratch: Path, datum: Datum) -> None:
    """Say whose scratch directory this is now. What cannot be written is not: nothing depends on it."""
    line = json.dumps({"key": datum.key.hex(), "inputs": [match.as_json() for match in datum.matches]}) + "\n"
    with suppress(OSError):
        # not truncated: a page that is dirty already costs no further writing
        fd = os.open(scratch / "datum", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, line.encode("ascii"), 0)
        finally:
            os.close(fd)


def note_ended(directory: Path, ended: Iterable[EndedDatum]) -> None:
    """Say which datums have ended."""
    lines = []
    for one in ended:
        kept = "" if one.entry is None else f" {json.dumps(dump_root(one.entry))}"
        lines.append(f"{one.key.hex()} {one.event.name}{kept}\n")
    with suppress(OSError), open(directory / "ended", "ab", buffering=0, opener=private) as file:
        file.write("".join(lines).encode("ascii"))


@dataclass(frozen=True, slots=True)
class RunningDatum:
    """A datum that runs now, or did a moment ago."""

    key: ObjectId
    inputs: list[Mapping[str, Any]]
    log: Path


class LiveJob:
    """The directory of a job that runs."""

    def __init__(self, store: Store, path: Path) -> None:
        self._store, self._path = store, path
        self._ended_at = 0

    def runner(self) -> tuple[int, str] | None:
        """Pid and host of the runner, as it wrote them."""
        try:
            pid, host = (self._path / "lock").read_text("utf-8", "surrogateescape").split()
            return int(pid), host
        except (OSError, ValueError):
            return None

    def running(self) -> Iterator[RunningDatum]:
        """The datums that run at the moment."""
        with suppress(FileNotFoundError):
            for place in sorted((self._path / "d").iterdir()):
                with suppress(OSError, ValueError, KeyError, TypeError, InvalidInput):
                    line = _FIRST_LINE.match((place / "datum").read_bytes())
                    if line is not None:
                        value = json.loads(line[0])
                        yield RunningDatum(parse_object_id(value["key"]), list(value["inputs"]), place / "log")

    def new_ended(self) -> Iterator[tuple[DatumRecord, Event]]:
        """The datums that have ended since this was last asked."""
        for line in self._new_lines():
            text, name, *kept = line.decode("ascii").split(" ", 2)
            key = parse_object_id(text)
            entry = parse_root(json.loads(kept[0])) if kept else find_result(self._store, key)
            if entry is not None:
                yield read_datum(self._store.objects, key, entry), Event[name]

    def _new_lines(self) -> list[bytes]:
        try:
            with open(self._path / "ended", "rb") as file:
                file.seek(self._ended_at)
                whole, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._ended_at += len(whole) + len(newline)
        return whole.splitlines()
