"""Running the datums of a job: a feeder, stagers, one task a worker, and one collector.

    plan ─feeder─▶ todo ─stagers─▶ ready ─workers─▶ done ─collector─▶ store

While a worker runs one datum, the inputs of the next are staged and the results of the last are kept. The channels are bounded, so a plan of any length runs in little memory. What the workers hand over is kept even when the job is stopped: a stop
cancels feeder and workers only, and what they have finished by then still goes to the collector. The state changes in the trio thread only;
threads do what blocks.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import trio

from pfsmount.errors import PfsError
from pfsmount.repo.results import find_result, find_results
from pfsmount.repo.store import Store
from runner.attempts import Ended, run_attempts
from runner.claims import Claims
from runner.collect import Collector, Finished
from runner.datum import Datum
from runner.executors.base import Executor, ExecutorError, Outcome, Reason, Task, Worker, WorkerLost
from runner.live import note_datum
from runner.scratch import Scratch, ScratchPool
from runner.spec import JobSpec
from runner.staging import Staged, Staging
from runner.state import Event, JobState, advance

LOOKAHEAD = 10_000
"""Datums that are planned ahead: so many are known before the first one runs."""
_DONE_MAX = 64
_TAKE_AT_ONCE = 32
_STAGERS_MAX = 4
_NOT_RUN_EXIT = 125
_LOOKED_UP_AT_ONCE = 256
_AGAIN_FIRST_S, _AGAIN_LAST_S = 0.05, 1.0


class Observer(Protocol):
    """Who watches a job."""

    def note(self, text: str) -> None:
        """One line that the user should read."""

    def started(self, job: str) -> None:
        """The job can be seen from now on, by this id."""

    def progress(self, state: JobState, total: int | None) -> None:
        """How far it is, and of how many datums, once that is known. Called often."""

    def ended(self, datum: Datum, event: Event, ended: Ended | None) -> None:
        """A datum has ended: how it counts, and how it went (None where another job ran it)."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A datum whose inputs are staged."""

    datum: Datum
    scratch: Scratch
    staged: Staged
    claimed: bool = False
    """This job has it: nobody else runs it."""


class Work:
    """The datums of a plan, split into those that must run and those whose result is there. One thread at a time."""

    def __init__(self, store: Store, plan: Iterator[Datum], *, reuse: bool = True) -> None:
        """Without `reuse`, all of them must run."""
        self._store, self._plan, self.reuse = store, plan, reuse
        self.planned = 0
        """Datums that were looked at."""
        self.exhausted = False
        self.skipped_keys = bytearray()
        """32 bytes each."""
        self.links = False
        """A datum has a symlink as a match."""

    def take(self, count: int) -> tuple[list[Datum], int]:
        """Up to `count` datums to run, and how many were skipped before they were found. Raises Corrupt."""
        found: list[Datum] = []
        skipped = 0
        while len(found) < count and not self.exhausted:
            planned = list(itertools.islice(self._plan, min(count - len(found), _LOOKED_UP_AT_ONCE)))
            self.exhausted = not planned
            self.planned += len(planned)
            self.links = self.links or any(datum.has_links for datum in planned)
            known = find_results(self._store, [datum.key for datum in planned]) if self.reuse else {}
            for datum in planned:
                if datum.key in known:
                    self.skipped_keys += datum.key
                    skipped += 1
                else:
                    found.append(datum)
        return found, skipped


@dataclass(slots=True)
class Schedule:
    """The run of one job's datums."""

    store: Store
    executor: Executor
    staging: Staging
    collector: Collector
    pool: ScratchPool
    spec: JobSpec
    task_of: Callable[[Datum, Scratch, Staged], Task]
    workers: int
    fail_fast: bool
    observer: Observer
    claims: Claims
    """What other jobs run at this moment is left to them."""
    kept: int = 0
    """Datums of the total that were not planned, because an earlier job's record has them."""
    reuse: bool = True
    """A datum that another job has finished meanwhile is not run."""
    state: JobState = field(default_factory=JobState)
    total: int | None = None
    timed_out: bool = False
    dangling: list[str] = field(default_factory=list)
    """Symlinks in inputs that lead out of what a datum sees."""
    _running: trio.CancelScope = field(default_factory=trio.CancelScope)
    _draining: bool = False
    _left: list[Datum] = field(default_factory=list)
    """Datums that another job runs."""
    _unclaimed: int = 0
    """Datums that are on their way to a worker."""
    _settled: trio.Event = field(default_factory=trio.Event)
    """Set when one of them is on its way no more."""

    def stop(self) -> None:
        """End the job: what runs is killed, what has finished is kept."""
        if not self.state.phase.is_over:
            self.state = advance(self.state, Event.STOP_ASKED)
        self._running.cancel()

    def count(self, event: Event, count: int = 1) -> None:
        """Let datums end."""
        if count:
            self.state = advance(self.state, event, count)
            self.observer.progress(self.state, self.total)

    async def run(self, first: list[Datum], work: Work, worker: Worker) -> None:
        """Run `first`, then what else there is in `work`. `worker` is one that is open already.

        Raises what the executor, staging and the store raise when the job cannot go on, in groups.
        """
        self.know_total(work)
        self.observer.progress(self.state, self.total)
        send_done, done = trio.open_memory_channel[Finished](_DONE_MAX)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._collect, done)
            async with send_done:
                with self._running, trio.move_on_after(_limit(self.spec.job_timeout)) as limit:
                    await self._run_pool(first, work, worker, send_done)
            if limit.cancelled_caught:
                self.timed_out = True
                self.state = advance(self.state, Event.TIMED_OUT)
        self.state = advance(self.state, Event.DATUMS_ENDED)

    async def _run_pool(
        self, first: list[Datum], work: Work, worker: Worker, done: trio.MemorySendChannel[Finished]
    ) -> None:
        send_todo, todo = trio.open_memory_channel[Datum](0)
        send_ready, ready = trio.open_memory_channel[Ready](self.workers)
        async with trio.open_nursery() as pool:
            pool.start_soon(self._feed, first, work, send_todo)
            async with todo, send_ready, ready:
                for _ in range(min(self.workers, _STAGERS_MAX)):
                    pool.start_soon(self._stage, todo.clone(), send_ready.clone(), done.clone())
                for slot in range(self.workers):
                    pool.start_soon(self._slot, None if slot else worker, ready.clone(), done.clone())

    async def _feed(self, first: list[Datum], work: Work, todo: trio.MemorySendChannel[Datum]) -> None:
        async with todo:
            datums = first
            while datums:
                await self._send(datums, todo)
                if work.exhausted or self._draining:
                    break
                datums, skipped = await trio.to_thread.run_sync(work.take, LOOKAHEAD)
                self.know_total(work)
                self.count(Event.DATUM_SKIPPED, skipped)
            await self._feed_left(todo)

    async def _send(self, datums: list[Datum], todo: trio.MemorySendChannel[Datum]) -> None:
        for datum in datums:
            if self._draining:
                return
            self._unclaimed += 1
            await todo.send(datum)

    async def _feed_left(self, todo: trio.MemorySendChannel[Datum]) -> None:
        """Ask again for what another job runs, until that has a result, or has ended without one."""
        pause = _AGAIN_FIRST_S
        told = False
        while (self._left or self._unclaimed) and not self._draining:
            if self._unclaimed:
                self._settled = trio.Event()
                await self._settled.wait()
                continue
            datums, self._left = self._left, []
            if pause == _AGAIN_LAST_S and not told:
                told = True
                others = f" and {len(datums) - 1:,} more" if len(datums) > 1 else ""
                self.observer.note(f"waiting for another job, which runs {datums[0]}{others}")
            await trio.sleep(pause)
            pause = min(pause * 1.5, _AGAIN_LAST_S)
            await self._send(datums, todo)

    def know_total(self, work: Work) -> None:
        """How many datums there are, once the plan has been read to its end."""
        if work.exhausted and self.total is None:
            self.total = self.kept + work.planned

    async def _stage(
        self,
        todo: trio.MemoryReceiveChannel[Datum],
        ready: trio.MemorySendChannel[Ready],
        done: trio.MemorySendChannel[Finished],
    ) -> None:
        """Make inputs visible before a worker asks for them."""
        async with todo, ready, done:
            async for datum in todo:
                prepared = await trio.to_thread.run_sync(self._prepare, datum)
                if prepared is None:
                    self._left.append(datum)
                    self._settle()
                    continue
                if isinstance(prepared, Finished):
                    self._settle()
                    await _hand_over(prepared, done)
                    continue
                self.dangling += prepared.staged.dangling[:1] if len(self.dangling) < 10 else ()
                await ready.send(prepared)

    def _settle(self) -> None:
        self._unclaimed -= 1
        self._settled.set()

    def _prepare(self, datum: Datum) -> Ready | Finished | None:
        """Stage a datum; not one that another job has finished since it was planned, or runs now (None)."""
        if self._has_result(datum):
            return Finished(datum, None, None)
        if self.claims.is_taken(datum.key):
            return None
        return self._ready(datum)

    def _ready(self, datum: Datum, *, claimed: bool = False) -> Ready:
        """Stage a datum in a scratch directory of its own."""
        scratch = self.pool.take()
        note_datum(scratch.path, datum)
        return Ready(datum, scratch, self.staging.stage(datum, scratch.inputs), claimed)

    def _has_result(self, datum: Datum) -> bool:
        return self.reuse and find_result(self.store, datum.key) is not None

    async def _claim(self, prepared: Ready, done: trio.MemorySendChannel[Finished]) -> bool:
        """Make a datum this job's; False for one that another job runs now, or has finished meanwhile, and for all when the job is to end.

        Claims are made as late as this, so that what waits here for a worker can be run by others.
        """
        if prepared.claimed:
            return not self._draining
        self._settle()
        datum = prepared.datum
        if self._draining:
            pass
        elif not self.claims.take(datum.key):
            self._left.append(datum)
        elif self._has_result(datum):
            self.claims.release(datum.key)
            await _hand_over(Finished(datum, None, None), done)
        else:
            return True
        await trio.to_thread.run_sync(self.pool.give_back, prepared.scratch)
        return False

    async def _slot(
        self,
        worker: Worker | None,
        ready: trio.MemoryReceiveChannel[Ready],
        done: trio.MemorySendChannel[Finished],
    ) -> None:
        """One worker after another, until there is nothing to do."""
        async with ready, done:
            again = None if worker is None else await self._serve(worker, None, ready, done)
            while (datum := again or await _receive(ready)) is not None:
                async with self.executor.open_worker() as another:
                    again = await self._serve(another, datum, ready, done, last_try=again is not None)

    async def _serve(
        self,
        worker: Worker,
        prepared: Ready | None,
        ready: trio.MemoryReceiveChannel[Ready],
        done: trio.MemorySendChannel[Finished],
        *,
        last_try: bool = False,
    ) -> Ready | None:
        """Run datums, beginning with the one given, until there is nothing to do or the worker is lost.

        Returns the datum that another worker is to try again.
        """
        if prepared is None:
            prepared = await _receive(ready)
        while prepared is not None:
            if await self._claim(prepared, done):
                try:
                    finished = await self._run_one(worker, prepared)
                except WorkerLost as error:
                    if not last_try:
                        return await trio.to_thread.run_sync(self._prepare_again, prepared)
                    await _hand_over(Finished(prepared.datum, prepared.scratch, _failed(error)), done)
                    return None
                await _hand_over(finished, done)
            last_try = False
            prepared = await _receive(ready)
        return None

    def _prepare_again(self, prepared: Ready) -> Ready:
        """Stage a datum anew, of which nobody knows what it has done."""
        self.pool.give_back(prepared.scratch)
        return self._ready(prepared.datum, claimed=True)

    async def _run_one(self, worker: Worker, prepared: Ready) -> Finished:
        scratch = prepared.scratch
        task = self.task_of(prepared.datum, scratch, prepared.staged)
        try:
            ended = await run_attempts(worker, task, self.spec, scratch.clean_out)
        except WorkerLost:
            raise
        except ExecutorError as error:
            ended = _failed(error)
        return Finished(prepared.datum, scratch, ended)

    async def _collect(self, done: trio.MemoryReceiveChannel[Finished]) -> None:
        async with done:
            while True:
                wait = self.collector.flush_in
                items: list[Finished] | None = []
                with trio.move_on_after(float("inf") if wait is None else wait):
                    items = await _receive_some(done)
                if items:
                    for finished, event in await trio.to_thread.run_sync(self._take, items):
                        self._tell(finished, event)
                if items is None or self.collector.flush_in == 0:
                    await trio.to_thread.run_sync(self.collector.flush)
                if items is None:
                    return

    def _take(self, items: list[Finished]) -> list[tuple[Finished, Event]]:
        events = [(finished, self.collector.take(finished)) for finished in items]
        self.collector.write_progress({**self.state.counts(), "total": self.total, "phase": str(self.state.phase)})
        return events

    def _tell(self, finished: Finished, event: Event) -> None:
        """Count a datum that has ended, and let the watcher know."""
        self.count(event)
        self.observer.ended(finished.datum, event, finished.ended)
        if event is Event.DATUM_FAILED and self.fail_fast:
            self._draining = True
            self.state = advance(self.state, Event.FAILED_FAST)


async def _receive(ready: trio.MemoryReceiveChannel[Ready]) -> Ready | None:
    try:
        return await ready.receive()
    except trio.EndOfChannel:
        return None


async def _receive_some(done: trio.MemoryReceiveChannel[Finished]) -> list[Finished] | None:
    """At least one; None at the end."""
    try:
        items = [await done.receive()]
    except trio.EndOfChannel:
        return None
    try:
        while len(items) < _TAKE_AT_ONCE:
            items.append(done.receive_nowait())
    except (trio.WouldBlock, trio.EndOfChannel):
        pass
    return items


async def _hand_over(finished: Finished, done: trio.MemorySendChannel[Finished]) -> None:
    """Not even a stop loses what has been finished."""
    with trio.CancelScope(shield=True):
        try:
            await done.send(finished)
        except trio.BrokenResourceError:
            # the collector failed, which ends the job
            await trio.lowlevel.checkpoint()


def _failed(error: PfsError) -> Ended:
    """The end of a datum that the executor could not bring to one."""
    now = time.time_ns()
    return Ended(Outcome(Reason.FAILED, _NOT_RUN_EXIT, None, error.message, now, now, 0, 0.0, 0.0))


def _limit(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds
