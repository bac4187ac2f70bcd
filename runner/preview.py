"""What a job would run, what it would reuse, and why: `pfsjob plan`. Nothing is run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pfsmount.errors import NotFound
from pfsmount.ids import ObjectId, display, path_bytes
from pfsmount.repo.refs import RefKind
from pfsmount.repo.results import find_result
from pfsmount.repo.store import Store
from pfsmount.tree.directory import find
from pfsmount.tree.entry import Entry
from runner.datum import Datum, Match
from runner.differences import program_differences
from runner.finish import JobDraft
from runner.jobs import JobStore
from runner.prepare import Prepared
from runner.record import Record, read_datum
from runner.state import JobState


@dataclass(frozen=True, slots=True)
class Choice:
    """What becomes of one datum."""

    datum: Datum
    reused: str | None
    """The job that ran it, when its results are there."""
    why: str
    """Why it would run; empty when it would not."""

    def as_json(self) -> dict[str, Any]:
        inputs = [match.as_json() for match in self.datum.matches]
        value: dict[str, Any] = {"key": self.datum.key.hex(), "inputs": inputs, "run": self.reused is None}
        return value | ({"why": self.why} if self.reused is None else {"job": self.reused})


class Preview:
    """Looks at the datums of a job that could be started."""

    def __init__(self, store: Store, ready: Prepared, draft: JobDraft) -> None:
        """`draft` is the job as it would be recorded."""
        self._store, self._ready, self._draft = store, ready, draft
        self.reused = draft.kept
        """Datums that have results: of the base, and those that `to_run` has passed by."""

    def all(self) -> Iterator[Choice]:
        """All datums, in order."""
        return map(self._choose, self._ready.all_datums())

    def to_run(self) -> Iterator[Choice]:
        """The datums that would run; what the base has is not looked at."""
        for choice in map(self._choose, self._ready.to_add()):
            if choice.reused is None:
                yield choice
            else:
                self.reused += 1

    def _choose(self, datum: Datum) -> Choice:
        result = None if self._ready.spec.reprocess else find_result(self._store, datum.key)
        if result is not None:
            return Choice(datum, str(read_datum(self._store.objects, datum.key, result).meta["job"]), "")
        return Choice(datum, None, self._why(datum))

    def _why(self, datum: Datum) -> str:
        if self._ready.spec.reprocess:
            return "every job runs every datum (reprocess)"
        if self._last is not None and (how := self._how_it_failed(datum.key)):
            return f"{how} in {self._last[0]}"
        if self._ready.previous is None:
            return "new: no job has made this output yet"
        if self._changes:
            return f"changed: {self._changes}"
        return (
            "; ".join(filter(None, map(self._why_match, datum.matches))) or "its results are not in the store any more"
        )

    @cached_property
    def _changes(self) -> str:
        """What is not as in the job that made the output."""
        done = self._ready.previous
        assert done is not None
        if not done.would_do_the_same(self._ready.spec):
            return "the inputs, or how they are combined"
        if done.program == self._ready.program.id.hex():
            return ""
        return ", ".join(program_differences(done.provenance, self._draft.provenance(JobState(), None)))

    @cached_property
    def _roots(self) -> list[Entry]:
        """The inputs as the last job read them."""
        done = self._ready.previous
        assert done is not None
        try:
            return done.roots_of(self._store, self._ready.pinned)
        except NotFound:
            return []

    def _why_match(self, match: Match) -> str:
        if not self._roots:
            return ""
        then = find(self._store.objects, self._roots[match.leaf], match.path)
        alone = len(self._ready.pinned) == 1 and match.group_by is None
        name = "its input" if alone else f"{match.name}:{display(path_bytes(match.path))}"
        if then is None:
            return f"{name} is new"
        return "" if then.same_content(match.entry) else f"{name} changed"

    @cached_property
    def _last(self) -> tuple[str, Record] | None:
        """The newest job of the output's repo, by its id and record, when it made no commit."""
        try:
            repo = self._store.repo(self._ready.spec.output_repo)
        except NotFound:
            return None
        names = sorted(ref.name for ref in self._store.refs(repo.name, RefKind.JOB))
        if not names:
            return None
        job = JobStore(self._store).find(names[-1])
        return None if job.commit is not None else (job.id, JobStore(self._store).record(job))

    def _how_it_failed(self, key: ObjectId) -> str:
        assert self._last is not None
        datum = self._last[1].datum(key)
        return "" if datum is None or datum.ok else f"failed ({datum.how})"
