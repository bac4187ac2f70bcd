"""The end of a job: its datums become a record and, when all went well, a commit, in one transaction.

A job's ref names a commit whose tree is the record. When there is an output commit it is that commit's parent, so that whoever keeps
the ref keeps both.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pfsmount.errors import Conflict, Corrupt
from pfsmount.ids import ObjectId
from pfsmount.objects.batch import Batch, again_if_collected
from pfsmount.repo.commit import Commit, dump_root
from pfsmount.repo.refs import RefKind, RefMove
from pfsmount.repo.results import find_result, rely_on_results, touch_results
from pfsmount.repo.store import Store
from pfsmount.tree.directory import lookup
from pfsmount.tree.entry import Entry
from runner import union
from runner.collect import results_of
from runner.environment import given_environment
from runner.inputs import PinnedInput, Previous
from runner.jobs import new_job_id
from runner.prepare import Prepared
from runner.program import Caller, Program, network_of
from runner.record import OUT, DatumRecord, edit_datums, empty_datums, make_record, read_datum
from runner.spec import JobSpec, Merge
from runner.state import JobState, Phase

_DATUMS_AT_ONCE = 5_000


@dataclass(slots=True)
class JobDraft:
    """A job on its way: what its commits will say."""

    id: str
    spec: JobSpec
    pinned: list[PinnedInput]
    program: Program
    caller: Caller
    env: Mapping[str, str]
    message: str
    head: Commit | None
    """Of the output branch, when the job began."""
    base: Previous | None
    """The record that it builds on; None: from scratch."""
    removed: list[ObjectId] = field(default_factory=list)
    """Keys that the base has and this job does not."""
    links: bool = False
    """A datum has a symlink as a match: no plan can build on this job's."""
    started_ns: int = field(default_factory=time.time_ns)
    ref: ObjectId | None = None
    """Where the job's ref is now."""

    @property
    def kept(self) -> int:
        """How many datums of the base stay as they are."""
        return 0 if self.base is None else self.base.total - len(self.removed)

    def provenance(self, state: JobState, ended_ns: int | None) -> dict[str, Any]:
        """Everything about the run that is not per datum (docs/FORMAT.md, "Provenance")."""
        value = {
            "job": self.id,
            "spec": self.spec.as_json(),
            "inputs": [source.as_json() for source in self.pinned],
            "command": list(self.program.command),
            "stdin": self.spec.stdin,
            "env": dict(self.env),
            "code": self.program.as_json(),
            "cwd": str(self.caller.cwd),
            "host": self.caller.host,
            "user": {"name": self.caller.user, "uid": self.caller.uid},
            "network": network_of(self.spec, contained=self.program.image is not None),
            "times": {"started_ns": self.started_ns, "ended_ns": ended_ns},
            "counts": state.counts(),
        }
        return value | ({"links": True} if self.links else {})

    def origin(self, phase: Phase, state: JobState, reason: str, commit: ObjectId | None) -> dict[str, Any]:
        """What the job's ref says in short."""
        return {
            "how": "job",
            "job": self.id,
            "state": str(phase),
            "reason": reason or None,
            "branch": self.spec.output_branch,
            "commit": None if commit is None else commit.hex(),
            "inputs": [source.as_json() for source in self.pinned],
            "command": list(self.program.command),
            "started_ns": self.started_ns,
            "ended_ns": time.time_ns() if phase.is_over else None,
            **state.counts(),
        }


def draft_of(ready: Prepared, message: str | None = None) -> JobDraft:
    """A job that is about to start."""
    spec = ready.spec
    return JobDraft(
        new_job_id(time.time()),
        spec,
        ready.pinned,
        ready.program,
        ready.caller,
        given_environment(spec, ready.caller),
        message or _default_message(ready),
        ready.head,
        ready.base,
        ready.to_remove(),
    )


def _default_message(ready: Prepared) -> str:
    sources = ", ".join(source.text for source in ready.spec.inputs)
    return f"{' '.join(ready.program.command)}  over {sources}"


def start_job(store: Store, batch: Batch, draft: JobDraft) -> None:
    """Let the job be known: its ref, with a record that has no datums yet. Raises NoSpace."""
    state = JobState()
    job = {**draft.provenance(state, None), "state": str(state.phase)}
    record = make_record(
        batch,
        datums=empty_datums(),
        written_by=union.empty_directory(),
        code=draft.program.code,
        job=job,
        time_ns=draft.started_ns,
    )
    _publish_job(store, batch, draft, record, draft.origin(state.phase, state, "", None), ())


def _publish_job(
    store: Store,
    batch: Batch,
    draft: JobDraft,
    record: Entry,
    origin: dict[str, Any],
    before: Iterable[tuple[RefMove, Commit]],
    made: ObjectId | None = None,
) -> None:
    """Move the job's ref to a new record, together with other moves. Raises Conflict, NoSpace."""
    commit = store.make_commit(
        batch,
        tree=record,
        parents=[] if made is None else [made],
        message=f"{draft.id}: {origin['state']}",
        author=None,
        origin=origin,
    )
    repo = store.repo(draft.spec.output_repo)
    moves = list(before)
    expected = next((move.new for move, _ in moves if move.kind is RefKind.JOB), draft.ref)
    moves.append((RefMove(repo, RefKind.JOB, draft.id, commit.id, expected), commit))
    store.publish(batch, moves, why="job")
    draft.ref = commit.id


def finish_failed(
    store: Store, draft: JobDraft, state: JobState, keys: bytes, failed: Mapping[ObjectId, Entry], reason: str
) -> None:
    """Keep the record of a job that makes no commit: its finished datums, and the failed ones with their logs."""

    def work() -> None:
        with store.objects.batch() as batch:
            datums = _datums(store, batch, draft, keys, failed)
            _publish_job(store, batch, draft, *_record(batch, draft, state, datums, None, reason, None), ())

    again_if_collected(work)


def _datums(store: Store, batch: Batch, draft: JobDraft, keys: bytes, failed: Mapping[ObjectId, Entry]) -> Entry:
    datums = empty_datums() if draft.base is None else draft.base.record.datums_root
    datums = edit_datums(batch, datums, dict.fromkeys(draft.removed))
    rely_on_results(batch, keys)
    every = itertools.chain(results_of(store, keys), failed.items())
    while chunk := dict(itertools.islice(every, _DATUMS_AT_ONCE)):
        datums = edit_datums(batch, datums, chunk)
    return datums


def _record(
    batch: Batch,
    draft: JobDraft,
    state: JobState,
    datums: Entry,
    written_by: Entry | None,
    reason: str,
    commit: ObjectId | None,
) -> tuple[Entry, dict[str, Any]]:
    """The record, and what the ref says."""
    now = time.time_ns()
    job = {**draft.provenance(state, now), "state": str(state.phase), "reason": reason or None}
    record = make_record(
        batch,
        datums=datums,
        written_by=union.empty_directory() if written_by is None else written_by,
        code=draft.program.code,
        job=job,
        time_ns=now,
    )
    return record, draft.origin(state.phase, state, reason, commit)


def finish_success(
    store: Store, draft: JobDraft, state: JobState, keys: bytes, recovered: Mapping[ObjectId, Entry]
) -> tuple[Commit, Phase]:
    """Commit the union of all results: SUCCESS; or keep the commit off the branch, whose head moved: CONFLICT.

    `state` is the one that the job will have if all goes well, `recovered` are datums without results. Raises OutputClash, NoSpace; then
    nothing has changed.
    """
    made = again_if_collected(lambda: _finish_success(store, draft, state, keys, recovered))
    touch_results(store, keys)
    return made


def _finish_success(
    store: Store, draft: JobDraft, state: JobState, keys: bytes, recovered: Mapping[ObjectId, Entry]
) -> tuple[Commit, Phase]:
    with store.objects.batch() as batch:
        results = _unite(store, batch, draft, keys)
        datums = _datums(store, batch, draft, keys, recovered)
        record, _ = _record(batch, draft, state, datums, results.written_by, "", None)
        now = time.time_ns()
        commit = store.make_commit(
            batch,
            tree=results.tree.replace(mtime_ns=now),
            parents=[] if draft.head is None else [draft.head.id],
            message=draft.message,
            author=None,
            origin={"how": "job", "job": draft.id},
            provenance={**draft.provenance(state, now), "record": dump_root(record)},
        )
        repo, branch = store.repo(draft.spec.output_repo), draft.spec.output_branch
        head = None if draft.head is None else draft.head.id
        move = RefMove(repo, RefKind.BRANCH, branch, commit.id, head)
        try:
            origin = draft.origin(state.phase, state, "", commit.id)
            _publish_job(store, batch, draft, record, origin, [(move, commit)], commit.id)
            return commit, Phase.SUCCESS
        except Conflict:
            reason = f"{draft.spec.output} moved while the job ran; the results are in commit {commit.id.hex()[:12]}"
            origin = draft.origin(Phase.CONFLICT, state, reason, commit.id)
            # the ref goes by way of the commit, which makes it known by its id
            aside = RefMove(repo, RefKind.JOB, draft.id, commit.id, draft.ref)
            _publish_job(store, batch, draft, record, origin, [(aside, commit)], commit.id)
            return commit, Phase.CONFLICT


def _unite(store: Store, batch: Batch, draft: JobDraft, keys: bytes) -> union.Union:
    """The base's results without the removed datums, and with this job's. Raises OutputClash."""
    base = draft.base
    trees = (None, None) if base is None else (_base_tree(base), base.record.written_by)
    append = _finder(store, batch, draft) if draft.spec.merge is Merge.APPEND else None
    results = union.Union(batch, *trees, append=append)
    if base is not None:
        results.remove(_removed(base, draft.removed))
    rely_on_results(batch, keys)
    results.add(_outputs(batch, results_of(store, keys)))
    results.finish()
    return results


def _finder(store: Store, batch: Batch, draft: JobDraft) -> union.Find:
    """Finds the output of a datum, of the base or of this job."""

    def output_of(key: ObjectId) -> union.Output:
        # what the base has stays as it is, also when another job has run that datum again since
        datum: DatumRecord | None = None if draft.base is None else draft.base.record.datum(key)
        if datum is None and (entry := find_result(store, key)) is not None:
            datum = read_datum(batch, key, entry)
        if datum is None or datum.out is None:
            raise Corrupt(f"datum {key.hex()[:12]} has no results")
        return union.Output(key, datum.out, datum.order)

    return output_of


def _base_tree(base: Previous) -> Entry:
    return base.commit.tree.replace(mtime_ns=union.empty_directory().mtime_ns)


def _removed(base: Previous, keys: Iterable[ObjectId]) -> Iterator[union.Output]:
    for key in keys:
        datum = base.record.datum(key)
        if datum is None or datum.out is None:  # the plan is a difference of what made the base
            raise Corrupt(f"the record of {base.provenance['job']} does not have datum {key.hex()[:12]}")
        yield union.Output(key, datum.out)


def _outputs(batch: Batch, results: Iterable[tuple[ObjectId, Entry]]) -> Iterator[union.Output]:
    for key, entry in results:
        out = lookup(batch, entry.id, OUT)
        if out is None:
            raise Corrupt(f"datum {key.hex()[:12]} has no results")
        yield union.Output(key, out)
