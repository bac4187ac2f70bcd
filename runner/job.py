"""One job, from a spec to a commit: the order in which things happen, and what each failure leaves behind.

1. Everything that can be refused is: revisions, the command, the output's maker, and whether there is anything to do.
2. The job's directory and lock; inputs are mounted; the first worker is open. Until here nothing can be seen of the job.
3. The output repo, if it is missing, and the job's ref, with a record that says that it runs.
4. The datums run (`runner.schedule`); what they leave is kept as they end.
5. One transaction: output branch, commit, job ref. Or, when a datum failed or a person stopped it, the job ref alone.

A kill at any point leaves: before 3 nothing; after it a job that says it runs, and is shown as interrupted; the finished datums are known
to the next run. A second Ctrl-C during 5 does not split it.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from pfsmount.errors import AlreadyExists, PfsError
from pfsmount.ids import ObjectId, display
from pfsmount.repo.results import find_result
from pfsmount.repo.store import Store
from pfsmount.tree.entry import Entry
from runner.claims import Claims
from runner.collect import Collector
from runner.datum import Datum
from runner.environment import datum_environment
from runner.executors.base import Executor, Task, Worker
from runner.finish import JobDraft, draft_of, finish_failed, finish_success, start_job
from runner.inputs import Previous
from runner.jobs import JobDirectory, JobStore
from runner.prepare import Prepared, prepare
from runner.program import Caller, Image
from runner.record import DatumRecord, read_datum
from runner.schedule import LOOKAHEAD, Observer, Schedule, Work
from runner.scratch import Scratch, ScratchPool
from runner.spec import JobSpec
from runner.staging import Staged, Staging
from runner.state import Event, JobState, Phase, advance
from runner.union import OutputClash

_SHOWN_FAILURES = 10
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class JobOptions:
    """How a job is run, as far as its results do not depend on it."""

    executor: Callable[[Path], Executor]
    """Of a job that works in this directory."""
    staging: Callable[[StagingNeeds], Staging]
    workers: int = 1
    image: Image | None = None
    """What the executor's containers are made of."""
    fail_fast: bool = False
    take_over: bool = False
    """Replace what a person or another pipeline made of the output branch."""
    message: str | None = None
    incremental: bool = True
    """Build on the last job's record where that is possible; the result is the same."""


@dataclass(frozen=True, slots=True)
class StagingNeeds:
    """What decides how inputs come to the datums."""

    store: Store
    commits: Sequence[tuple[str, ObjectId]]
    """Repo and commit of each single input."""
    directory: Path
    """The job's."""
    size: int
    """Bytes in the datums that are known to run."""
    files: int
    """Files and symlinks in them."""
    lazy: bool
    """An input is to be brought only as it is read."""
    executor: Executor
    cleanup: ExitStack
    note: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a job ended."""

    id: str
    phase: Phase
    output: str
    commit: ObjectId | None
    state: JobState
    total: int | None
    """Datums of the whole job, when they have all been planned."""
    seconds: float
    nothing_to_do: bool = False
    reason: str = ""
    failures: tuple[DatumRecord, ...] = ()
    """The first few."""
    stop_asked: bool = False
    """Also where that came too late for this job: then it is about what would be run next."""


@dataclass(slots=True)
class _Planned:
    """What is to be done."""

    draft: JobDraft
    work: Work
    first: list[Datum]
    """The beginning of `work`."""
    skipped: int
    """Datums whose result is there: of the base, and those found on the way to `first`."""


def run_job(store: Store, spec: JobSpec, caller: Caller, options: JobOptions, observer: Observer) -> JobResult:
    """Run a job to its end. Blocks; to be called from the main thread, because Ctrl-C stops the job.

    Raises PfsError when it could not start, or could not go on (a full disk): then the job's record, if there is one, says so.
    """
    started = time.monotonic()
    jobs = JobStore(store)
    jobs.sweep()
    with store.objects.holding():  # the program and failed datums are named by no commit before the job's end
        plan = _plan(store, spec, caller, options, observer)
        if isinstance(plan, JobResult):
            return plan
        for text in plan.draft.program.notes:
            observer.note(text)
        with jobs.open_directory(plan.draft.id) as directory, jobs.claims() as claims:
            run = _JobRun(store, plan, directory, claims, options, observer)
            with _first_error():
                trio.run(run.run)
            return run.result(time.monotonic() - started)


def _plan(store: Store, spec: JobSpec, caller: Caller, options: JobOptions, observer: Observer) -> _Planned | JobResult:
    """What the job has to do; or how the last one ended, when that is what this one would do again."""
    ready = prepare(store, spec, caller, options.image, take_over=options.take_over, incremental=options.incremental)
    if (done := ready.nothing_to_do) is not None:
        return _nothing_to_do(ready.spec, done)
    draft = draft_of(ready, options.message)
    if moved := _moved_tag(ready, options.image):
        observer.note(moved)
    work = Work(store, ready.to_add(), reuse=not ready.spec.reprocess)
    first, skipped = work.take(LOOKAHEAD)
    return _Planned(draft, work, first, draft.kept + skipped)


def _moved_tag(ready: Prepared, image: Image | None) -> str:
    """Said when the name of an image stands for another one than in the last job."""
    if image is None or ready.previous is None:
        return ""
    made = ready.previous.provenance
    before = made["code"].get("image")
    if before is None or before["reference"] != image.reference or before["id"] == image.id:
        return ""
    return f"the image {display(image.reference)} is another one than in {made['job']}: was {before['id'][:19]}, is {image.id[:19]}"


def _nothing_to_do(spec: JobSpec, previous: Previous) -> JobResult:
    state = JobState(Phase.SUCCESS, skipped=previous.total)
    job, commit = str(previous.provenance["job"]), previous.commit.id
    return JobResult(job, Phase.SUCCESS, spec.output, commit, state, state.done, 0.0, nothing_to_do=True)


class _JobRun:
    """The running of one job."""

    def __init__(
        self,
        store: Store,
        plan: _Planned,
        directory: JobDirectory,
        claims: Claims,
        options: JobOptions,
        observer: Observer,
    ) -> None:
        self._claims = claims
        self._store, self._plan, self._draft = store, plan, plan.draft
        self._directory, self._options, self._observer = directory, options, observer
        self._pool = ScratchPool(directory.datums)
        self._collector = Collector(store, plan.draft.id, directory, self._pool, claims)
        self._commits = [source.commit.id for source in plan.draft.pinned]
        program = plan.draft.program
        self._executor = options.executor(directory.path)
        self._keep_visible = tuple(dict.fromkeys((plan.draft.caller.cwd, *program.places())))
        self._commit: ObjectId | None = None
        self._reason = ""
        self._schedule: Schedule | None = None
        self._stop_asked = False
        self._state = JobState()

    async def run(self) -> None:
        """All of it. Raises what `run_job` does, in groups."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._listen)
            with ExitStack() as cleanup:
                staging = await trio.to_thread.run_sync(self._options.staging, self._needs(cleanup))
                if self._plan.first:
                    async with self._executor.open_worker() as worker:
                        await trio.to_thread.run_sync(self._start)
                        schedule = self._schedule = self._new_schedule(staging)
                        if self._stop_asked:
                            schedule.stop()
                        await self._run_datums(schedule, worker)
                else:
                    await trio.to_thread.run_sync(self._start)
                    state = advance(self._state, Event.DATUM_SKIPPED, self._plan.skipped)
                    self._state = advance(state, Event.DATUMS_ENDED)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._finish_or_break)
            nursery.cancel_scope.cancel()

    async def _listen(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ctrl-C and kill stop the job in good order."""
        # what nohup, or a shell that puts us into the background, has told us to ignore stays ignored
        heard = [number for number in _STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
        with trio.open_signal_receiver(*heard) as signals:
            task_status.started()
            async for _ in signals:
                self._stop_asked = True
                if self._schedule is not None and not self._schedule.state.phase.is_over:
                    self._schedule.stop()

    def _needs(self, cleanup: ExitStack) -> StagingNeeds:
        return StagingNeeds(
            self._store,
            [(source.spec.repo, source.commit.id) for source in self._draft.pinned],
            self._directory.path,
            sum(datum.size for datum in self._plan.first),
            sum(datum.files for datum in self._plan.first),
            any(source.lazy for source in self._draft.spec.inputs),
            self._executor,
            cleanup,
            self._observer.note,
        )

    def _start(self) -> None:
        """From here on the job can be seen."""
        spec = self._draft.spec
        try:
            self._store.create_repo(spec.output_repo)
            self._observer.note(f"made the repo '{spec.output_repo}'")
        except AlreadyExists:
            pass
        with self._store.objects.batch() as batch:
            start_job(self._store, batch, self._draft)
        self._observer.started(self._draft.id)

    def _new_schedule(self, staging: Staging) -> Schedule:
        work = self._plan.work
        most = len(self._plan.first) if work.exhausted else math.inf
        schedule = Schedule(
            store=self._store,
            executor=self._executor,
            spec=self._draft.spec,
            claims=self._claims,
            reuse=work.reuse,
            staging=staging,
            collector=self._collector,
            pool=self._pool,
            task_of=self._task_of,
            workers=int(max(1, min(self._options.workers, most))),
            fail_fast=self._options.fail_fast,
            observer=self._observer,
            kept=self._draft.kept,
        )
        schedule.know_total(work)
        schedule.count(Event.DATUM_SKIPPED, self._plan.skipped)
        return schedule

    async def _run_datums(self, schedule: Schedule, worker: Worker) -> None:
        try:
            await schedule.run(self._plan.first, self._plan.work, worker)
        except BaseExceptionGroup as errors:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._break, schedule.state, first_error(errors))
            raise
        finally:
            self._state = schedule.state
        for text in (*schedule.dangling[:1], *self._collector.dangling_outputs[:1]):
            self._observer.note(f"a symlink leads out of what its datum sees: {text}")

    def _task_of(self, datum: Datum, scratch: Scratch, staged: Staged) -> Task:
        draft = self._draft
        spec = draft.spec
        return Task(
            binds=staged.binds,
            out=scratch.out,
            argv=draft.program.command,
            env=datum_environment(draft.env, draft.id, spec.name or spec.output_repo, datum, self._commits),
            cwd=draft.caller.cwd if draft.program.image is None else None,
            log=scratch.log,
            stdin=None if spec.stdin is None else os.fsencode(spec.stdin),
            timeout=spec.timeout,
            keep_visible=self._keep_visible,
            hermetic=spec.hermetic,
        )

    @property
    def _unfinished(self) -> dict[ObjectId, Entry]:
        """The datums that have ended without results."""
        return self._collector.failed | self._collector.recovered

    def _keys(self) -> bytes:
        return bytes(self._plan.work.skipped_keys + self._collector.keys)

    def _break(self, state: JobState, error: BaseException) -> None:
        """Keep what can be kept of a job that cannot go on."""
        reason = error.message if isinstance(error, PfsError) else f"{type(error).__name__}: {error}"
        with suppress(PfsError, OSError):
            self._collector.flush()
        with suppress(PfsError, OSError):
            failed = advance(state, Event.BROKE)
            finish_failed(self._store, self._draft, failed, self._keys(), self._unfinished, reason)

    def _finish_or_break(self) -> None:
        try:
            self._finish()
        except PfsError as error:
            if self._state.phase is Phase.FINISHING:
                self._break(self._state, error)
            raise

    def _finish(self) -> None:
        """Commit, or keep the record of what did not come to a commit. Raises NoSpace and what the store raises."""
        self._draft.links = self._plan.work.links
        if self._state.phase is Phase.FINISHING:
            try:
                success = advance(self._state, Event.PUBLISHED)
                recovered = self._collector.recovered
                commit, phase = finish_success(self._store, self._draft, success, self._keys(), recovered)
                self._commit = commit.id
                event = Event.PUBLISHED if phase is Phase.SUCCESS else Event.HEAD_MOVED
                self._state = advance(self._state, event)
                if phase is Phase.CONFLICT:
                    self._reason = f"{self._draft.spec.output} moved while the job ran"
                return
            except OutputClash as clash:
                self._state = advance(self._state, Event.CLASHED)
                self._reason = self._explain(clash)
        elif self._state.phase is Phase.KILLED:
            self._reason = "stopped"
        elif self._schedule is not None and self._schedule.timed_out:
            self._reason = f"the job took longer than its {self._draft.spec.job_timeout:g} s"
        finish_failed(self._store, self._draft, self._state, self._keys(), self._unfinished, self._reason)

    def _explain(self, clash: OutputClash) -> str:
        return f"{clash.message}: {self._name_of(clash.first)} and {self._name_of(clash.second)}"

    def _name_of(self, key: ObjectId | None) -> str:
        """A datum for people, by its inputs."""
        if key is None:
            return "another datum"
        entry = find_result(self._store, key)
        if entry is not None:
            return str(read_datum(self._store.objects, key, entry))
        known = None if self._draft.base is None else self._draft.base.record.datum(key)
        return key.hex()[:12] if known is None else str(known)

    def result(self, seconds: float) -> JobResult:
        """How it ended."""
        shown = list(self._collector.failed.items())[:_SHOWN_FAILURES]
        return JobResult(
            self._draft.id,
            self._state.phase,
            self._draft.spec.output,
            self._commit,
            self._state,
            self._schedule.total if self._schedule is not None else self._state.done,
            seconds,
            reason=self._reason,
            failures=tuple(read_datum(self._store.objects, key, entry) for key, entry in shown),
            stop_asked=self._stop_asked,
        )


def first_error(error: BaseException) -> BaseException:
    """The error in a group that a person should read: one of ours before any other."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [first_error(one) for one in error.exceptions]
    return next((one for one in leaves if isinstance(one, PfsError)), leaves[0])


@contextmanager
def _first_error() -> Iterator[None]:
    try:
        yield
    except BaseExceptionGroup as errors:
        raise first_error(errors) from errors
