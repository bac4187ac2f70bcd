"""Rows of the jobs: what a datum costs, and what does not cost more where there is more."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from itertools import count, islice
from pathlib import Path

from pfsmount.config import KIB
from pfsmount.ids import EntryName
from pfsmount.objects.batch import Batch
from pfsmount.repo.results import save_results
from pfsmount.repo.store import Store
from pfsmount.tree.directory import directory_entry
from pfsmount.tree.edit import build_directory, edit_paths
from pfsmount.tree.entry import Entry
from runner.attempts import Ended
from runner.datum import Datum
from runner.executors.base import Outcome, Reason
from runner.executors.memory import MemoryExecutor, View
from runner.input_spec import cross_of, parse_input
from runner.job import JobOptions, run_job
from runner.jobs import JobStore
from runner.prepare import prepare
from runner.program import Caller
from runner.record import datum_entry
from runner.spec import JobSpec
from runner.staging import CopyStaging
from runner.state import Event, JobState, Phase
from tools.bench_suite.bench import Bench, median_time
from tools.bench_suite.row import Broken, Contest, Side, at_most, at_most_more, at_most_times, format_value, row
from tools.bench_suite.synthetic import REPO, fill_branch, small_file, synthetic_store

_COPY = ("cp", "-r", f"/pfs/{REPO}/.", "/pfs/out")
"""Takes the datum's files, whatever their names."""
_OUT = "copies"
_AT_ONCE = 5_000
_BLOCK = 512
"""Of getrusage."""


def _options(source: str, output: str = f"{_OUT}@master") -> tuple[str, ...]:
    return ("--json", "--workers", "1", "--input", f"{REPO}@master:{source}", "--output", output)


def _run_job(bench: Bench, store: Path, options: Sequence[str], command: Sequence[str], processed: int) -> str:
    """The id of the job. Raises Broken when it did not run so many datums."""
    said = json.loads(bench.pfsjob(store, "run", *options, "--", *command).splitlines()[-1])
    if said["processed"] != processed:
        raise Broken(f"the job processed {said['processed']} datums, not {processed}")
    return str(said["job"])


def run_job_of(
    bench: Bench,
    store: Path,
    glob: str,
    output: str,
    options: Sequence[str],
    command: Sequence[str],
    processed: int,
) -> None:
    """Run a job over images@master. Raises Broken when it did not run so many datums."""
    _run_job(bench, store, (*_options(glob, output), *options), command, processed)


def _processor_time() -> float:
    """Of the commands run so far, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _noting(bench: Bench, who: str, run: Callable[[], None], datums: int = 1) -> Callable[[], None]:
    """Note the processor time of a side: where others use the processors, too, it says more than the clock."""

    def timed() -> None:
        before = _processor_time()
        run()
        each = (_processor_time() - before) / datums
        bench.note(f"processor time of {who}: {format_value(each, 'seconds')}{' a datum' if datums > 1 else ''}")

    return timed


class RunningJob:
    """A job with one datum a file, in a new store each time, so that nothing has run before."""

    def __init__(self, bench: Bench, source: Path, datums: int) -> None:
        self._bench, self._source, self._datums = bench, source, datums
        self.store = bench.directory

    def prepare(self) -> None:
        self.store = self._bench.store((REPO, _OUT))
        self._bench.pfs(self.store, "put", self._source, f"{REPO}@master:/")

    def run(self) -> None:
        _run_job(self._bench, self.store, _options("/*/*"), _COPY, self._datums)


@row("job", "a job over {datums} datums, one worker", at_most_more(0.005, "datums"), once=True)
def job(bench: Bench) -> Contest:
    bench.need_jobs()
    datums = bench.sizes.datums
    source = bench.tree(datums)
    running = RunningJob(bench, source, datums)
    names = [os.fspath(path) for path in sorted(source.glob("*/*"))]

    def fork_and_exec() -> None:
        out = bench.fresh("out")
        out.mkdir()
        for name in names:
            child = os.posix_spawnp("cp", ["cp", "-r", name, os.fspath(out)], os.environ)
            _, status = os.waitpid(child, 0)
            if status:
                raise Broken(f"cp {name} ended with {os.waitstatus_to_exitcode(status)}")

    return Contest(
        Side("pfsjob run", _noting(bench, "pfsjob", running.run, datums), running.prepare),
        [Side("fork and exec of the command", _noting(bench, "the command alone", fork_and_exec, datums))],
        (datums, "datums"),
    )


# What others have made already


def _caller() -> Caller:
    """Who a command is that is run here."""
    environment = os.environ
    home = Path(environment.get("HOME") or "/")
    return Caller(Path.cwd(), home, environment.get("PATH") or os.defpath, os.getuid(), "bench", socket.gethostname())


def _spec(glob: str, command: Sequence[str], output: str = _OUT) -> JobSpec:
    return JobSpec(
        input=cross_of([parse_input(f"{REPO}@master:{glob}")]),
        output_repo=output,
        output_branch="master",
        command=tuple(command),
    )


def _copied(batch: Batch, datum: Datum) -> Entry:
    """What `_COPY` leaves of a datum."""
    empty = directory_entry(build_directory(batch, ()))
    return edit_paths(batch, empty, {match.path: match.entry for match in datum.matches}, parent=empty)


def _make_results(store: Store) -> None:
    """The results of `_COPY` over each file of images@master, as a job leaves them that ran it; it would take ten minutes."""
    now = time.time_ns()
    ended = Ended(Outcome(Reason.OK, 0, None, "", now, now, 0, 0.0, 0.0))
    ready = prepare(store, _spec("/*/*", _COPY), _caller(), None)
    datums = ready.all_datums()
    while chunk := list(islice(datums, _AT_ONCE)):
        with store.objects.batch() as batch:
            log = small_file(batch, b"")
            results = {
                datum.key: datum_entry(batch, datum, ended, "job-bench", log=log, out=_copied(batch, datum))
                for datum in chunk
            }
            save_results(store, batch, results)


def _add_file(store: Store, i: int) -> None:
    """One more file in images@master."""
    with store.objects.batch() as batch:
        head = store.head(REPO, "master")
        assert head is not None
        path = (EntryName(b"new"), EntryName(b"f%06d" % i))
        tree = edit_paths(batch, store.read_commit(head).tree, {path: small_file(batch, b"new %d" % i)})
        store.commit(batch, REPO, "master", tree=tree, expected=head, message="one more", origin={"how": "bench"})


def _store_of_results(bench: Bench) -> Path:
    """A store of many datums whose results are there, and their job."""
    datums = bench.sizes.known_datums

    def make(path: Path) -> None:
        bench.make_store(path, (REPO, _OUT))
        with Store.open(path, author="bench@here") as store:
            fill_branch(store, datums, -(-datums // 1_000))
            _make_results(store)
        started = time.perf_counter()
        _run_job(bench, path, _options("/*/*"), _COPY, 0)
        bench.note(f"the first job, which found all results and united them: {time.perf_counter() - started:.1f} s")

    return bench.once("known-datums", make)


@row("job-one-new", "a job over {known_datums} datums of which one is new", at_most(1.0))
def job_one_new(bench: Bench) -> Contest:
    bench.need_jobs()
    store = _store_of_results(bench)
    numbers = count()

    def prepare_one() -> None:
        with Store.open(store, author="bench@here") as opened:
            _add_file(opened, next(numbers))

    def run() -> None:
        _run_job(bench, store, _options("/*/*"), _COPY, 1)

    return Contest(Side("pfsjob run", _noting(bench, "pfsjob", run), prepare_one))


# Large inputs and outputs


@row("job-start", "a job over one datum of {many_files} files, until its command starts", at_most(0.5))
def job_start(bench: Bench) -> Contest:
    bench.need_jobs()
    bench.need_mount()
    store = synthetic_store(bench, bench.sizes.many_files, bench.sizes.many_directories)
    numbers = count()

    def start() -> float:
        # nothing of the sort has run before
        name = f"{_OUT}@run-{next(numbers)}"
        options = (*_options("/", name), "--env", f"RUN={name}", "--inputs", "mount")
        began = time.time_ns()
        job = _run_job(bench, store, options, ("true",), 1)
        with Store.open(store) as opened:
            jobs = JobStore(opened)
            (datum,) = jobs.record(jobs.find(job)).datums()
        return float(datum.meta["started_ns"] - began) / 1e9

    return Contest(Side("pfsjob run", start))


@row("job-plan", "pfsjob plan of /* over {many_directories} directories with {many_files} files", at_most(1.0))
def job_plan(bench: Bench) -> Contest:
    bench.need_jobs()
    store = synthetic_store(bench, bench.sizes.many_files, bench.sizes.many_directories)

    def plan() -> None:
        said = json.loads(bench.pfsjob(store, "plan", "--json", *_options("/*", "planned@master")[3:], "--", "true"))
        if said["to_run"] != bench.sizes.many_directories:
            raise Broken(f"the plan has {said['to_run']} datums")

    return Contest(Side("pfsjob plan", _noting(bench, "pfsjob", plan)))


@row("job-outputs", "a job of one datum with {outputs} outputs of {output_size}, committed", at_most(1.0))
def job_outputs(bench: Bench) -> Contest:
    """Files are made by a shell, and not by `split`: that truncates each new file, and then ext4 gives it blocks as soon as it is closed, so that
    where deleted blocks are discarded the deletion of 6 000 takes two seconds, not a tenth of one.
    """
    bench.need_jobs()
    size, outputs = bench.sizes.output_size, bench.sizes.outputs
    script = f'i=0; while [ $i -lt {outputs} ]; do printf %0{size}d $i > "$0/f$i"; i=$((i+1)); done'
    store = bench.directory

    def prepare_store() -> None:
        nonlocal store
        store = bench.store((REPO, _OUT, "put"))
        with Store.open(store, author="bench@here") as opened:
            fill_branch(opened, 1, 1)

    def run() -> None:
        _run_job(bench, store, _options("/*"), ("sh", "-c", script, "/pfs/out"), 1)

    def write(out: Path) -> Path:
        out.mkdir()
        bench.run(["sh", "-c", script, out])
        return out

    def alone() -> None:
        write(bench.fresh("out"))

    def put() -> None:
        bench.pfs(store, "put", write(bench.fresh("out")), "put@master:/")

    return Contest(
        Side("pfsjob run", _noting(bench, "pfsjob", run), prepare_store),
        [Side("the command alone", alone), Side("the command, and pfs put", put)],
    )


# Many jobs


class _Silent:
    """Watches a job without a word."""

    def note(self, text: str) -> None:
        pass

    def started(self, job: str) -> None:
        pass

    def progress(self, state: JobState, total: int | None) -> None:
        pass

    def ended(self, datum: Datum, event: Event, ended: Ended | None) -> None:
        pass


async def _copy_here(view: View) -> int:
    """What `_COPY` does, without a process."""
    (bind,) = view.task.binds
    shutil.copytree(os.fsdecode(bind.source), view.out, dirs_exist_ok=True)
    return 0


class _Branch:
    """A store with a branch of results, on which job after job is run in this process; before each, one file is committed to its input."""

    def __init__(self, bench: Bench, jobs: int) -> None:
        executor = MemoryExecutor({"cp": _copy_here})
        self._options = JobOptions(executor=lambda _: executor, staging=lambda needs: CopyStaging(needs.store.objects))
        self._store = Store.open(bench.store((REPO, _OUT)), author="bench@here")
        bench.at_end(self._store.close)
        self._jobs = 0
        fill_branch(self._store, 1, 1)
        for _ in range(jobs):
            self.prepare()
            self.run()

    def prepare(self, i: int = 0) -> None:
        _add_file(self._store, self._jobs)
        self._jobs += 1

    def run(self, i: int = 0) -> None:
        result = run_job(self._store, _spec("/new/*", _COPY), _caller(), self._options, _Silent())
        if result.phase is not Phase.SUCCESS or result.state.processed != 1:
            raise Broken(f"a job ended as {result.phase}, with {result.state.processed} datums processed")


@row(
    "job-late",
    "a job of one new file on a branch with {jobs} such jobs, in the process; the median of {job_window}",
    at_most_times(1.2),
)
def job_late(bench: Bench) -> Contest:
    """The first jobs of another branch are measured at the end, too: a directory takes ext4 the longer, the more have been deleted of late."""
    bench.need_jobs()
    window = bench.sizes.job_window
    late = _Branch(bench, bench.sizes.jobs)
    early = late

    def prepare_early() -> None:
        nonlocal early
        early = _Branch(bench, 1)  # one that has a job to build on, as the late ones have

    def median_of(branch: _Branch) -> float:
        return median_time(branch.run, window, branch.prepare)

    return Contest(
        Side("pfs", lambda: median_of(late)),
        [Side("the same of the first jobs", lambda: median_of(early), prepare_early)],
    )


# Bytes


def _size_of(store: Path) -> int:
    """Bytes of a store's files: all that is kept, with the index."""
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file())


@row(
    "job-bytes",
    "bytes of a datum in a job over {byte_datums}, less outputs and logs: what its store has more",
    at_most(KIB),
    unit="bytes",
    once=True,
)
def job_bytes(bench: Bench) -> Contest:
    """Outputs and logs add nothing: outputs are copies of inputs, whose contents are there, and nothing is printed."""
    bench.need_jobs()
    datums = bench.sizes.byte_datums
    running = RunningJob(bench, bench.tree(datums), datums)
    written = 0

    def run() -> float:
        nonlocal written
        before, blocks = _size_of(running.store), resource.getrusage(resource.RUSAGE_CHILDREN).ru_oublock
        running.run()
        written = _BLOCK * (resource.getrusage(resource.RUSAGE_CHILDREN).ru_oublock - blocks)
        return (_size_of(running.store) - before) / datums

    return Contest(
        Side("kept", run, running.prepare),
        [Side("written meanwhile, scratch and what is overwritten with it", lambda: written / datums)],
    )
