"""`pfsjob run`: from flags to a job, and how it ended in words."""

from __future__ import annotations

import os
import pwd
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pfsmount.cli import output
from pfsmount.ids import ObjectId, display
from pfsmount.repo.store import Store
from runner.cli_spec import SpecFlags
from runner.cli_watch import EventWatcher, Watcher, counts, print_event
from runner.executors.choice import Settings, choose_runtime
from runner.follow import following, input_heads
from runner.inputs import complete_spec, uncommitted
from runner.job import JobOptions, JobResult, run_job
from runner.jobs import JobStore
from runner.program import Caller
from runner.record import DatumRecord, Record
from runner.spec import JobSpec
from runner.spec_file import FileSpec
from runner.staging_choice import staging_by_name
from runner.state import Phase

_LOG_LINES = 10
_SHOWN_FAILURES = 3
_POLL_S = 0.25
_EXITS = {Phase.SUCCESS: 0, Phase.CONFLICT: output.EXIT_CONFLICT, Phase.KILLED: output.EXIT_INTERRUPTED}


@dataclass(frozen=True, slots=True)
class RunRequest:
    """The flags of `pfsjob run`."""

    flags: SpecFlags
    fail_fast: bool
    commit: str | None
    replace: bool
    message: str | None
    staging: str
    follow: bool
    json: bool


def caller() -> Caller:
    """Who runs this command, and where."""
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    home = Path(os.environ.get("HOME") or "/")
    path = os.environ.get("PATH") or os.defpath
    return Caller(Path(os.getcwd()), home, path, uid, user, socket.gethostname())


def settings() -> Settings:
    """What executors have to know of this user's machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or caller().home / ".cache")
    return Settings(cache / "pfs", os.environ.get("DOCKER_HOST"))


def note_warnings(one: FileSpec) -> None:
    """What a file asks for and does not get."""
    for text in one.warnings:
        output.note(f"pfsjob: {text}")


def run_and_print(store: Store, request: RunRequest) -> int:
    """Run the jobs one after another, and say how each ended. Returns the exit code of the first that did not succeed.

    Raises PfsError when one could not start or go on.
    """
    specs = request.flags.specs()
    for one in specs:
        note_warnings(one)
    if request.follow:
        _follow(store, request, [one.spec for one in specs])
    for i, one in enumerate(specs):
        result = _run_one(store, request, one.spec, named=len(specs) > 1)
        left = len(specs) - i - 1
        code = _EXITS.get(result.phase, output.EXIT_FAILED)
        if left and not code and result.stop_asked:
            code = output.EXIT_INTERRUPTED
        if code:
            if left:
                output.note(f"pfsjob: {output.plural(left, 'further job')} of the file not run")
            return code
    return 0


def _follow(store: Store, request: RunRequest, specs: list[JobSpec]) -> NoReturn:
    """Run each job whenever the heads that it reads have moved, one at a time, until somebody ends this."""
    specs = [complete_spec(store, spec) for spec in specs]
    with ExitStack() as stack:
        for spec in specs:
            stack.enter_context(following(store, spec))
        seen: list[list[ObjectId] | None] = [None] * len(specs)
        output.note(f"pfsjob: following {', '.join(_sources(specs))}; Ctrl-C ends it")
        while True:
            for i, spec in enumerate(specs):
                heads = input_heads(store, spec)
                if heads is None or heads == seen[i]:
                    continue
                seen[i] = heads
                result = _run_one(store, request, spec, named=len(specs) > 1)
                if result.stop_asked:
                    raise SystemExit(_EXITS[Phase.KILLED])
                if result.phase is Phase.CONFLICT:
                    seen[i] = None  # the output has moved: on top of that, now
            time.sleep(_POLL_S)


def _sources(specs: list[JobSpec]) -> list[str]:
    return list(dict.fromkeys(f"{source.repo}@{source.branch}" for spec in specs for source in spec.inputs))


def _run_one(store: Store, request: RunRequest, spec: JobSpec, *, named: bool) -> JobResult:
    runtime = choose_runtime(spec, settings())
    if named:
        output.note(f"pfsjob: {display(spec.name or spec.output)}")
    _mind_uncommitted(store, spec, request.commit)
    options = JobOptions(
        executor=runtime.open,
        staging=staging_by_name(request.staging),
        workers=_workers(spec, request.flags.workers),
        image=runtime.image,
        fail_fast=request.fail_fast,
        take_over=request.replace,
        message=request.message,
    )
    with EventWatcher() if request.json else Watcher() as watcher:
        for text in runtime.notes:
            watcher.note(text)
        result = run_job(store, spec, caller(), options, watcher)
    if request.json:
        print_event("ended", **result_json(result))
    else:
        print_result(store, result)
    _show_in_mounts(store)
    return result


def _workers(spec: JobSpec, flag: int | None) -> int:
    """As many as the flag says; a spec in a file may have been written for a cluster, and gets what this machine has."""
    processors = len(os.sched_getaffinity(0))
    wanted = spec.workers or processors
    if flag is None and wanted > processors:
        output.note(
            f"pfsjob: {wanted} workers are asked for, and this machine has {output.plural(processors, 'processor')}: "
            f"so many datums run at a time (--workers {wanted} does it all the same)"
        )
        return processors
    return wanted


def _mind_uncommitted(store: Store, spec: JobSpec, message: str | None) -> None:
    """Commit what is uncommitted in the inputs, or say that the job does not see it."""
    for repo, branch, count in uncommitted(store, complete_spec(store, spec)):
        if message is None:
            output.note(
                f"pfsjob: {repo}@{branch} has {output.plural(count, 'uncommitted change')}, which the job does not see "
                f"(--commit MESSAGE commits first)"
            )
            continue
        # the daemon that has the worktree mounted must do it, so this is not the runner's to do
        from pfsmount.fs.control import open_worktree

        with open_worktree(store, repo, branch) as worktree:
            made = worktree.commit(message).commit
        if made is not None:
            output.note(f"pfsjob: committed; {repo}@{branch} is now {made.id.hex()[:12]}")


def _show_in_mounts(store: Store) -> None:
    """So that whoever looks next sees the results; without this, mounts follow in a moment."""
    from pfsmount.fs.control import refresh

    refresh(store.path)


def result_json(result: JobResult) -> dict[str, Any]:
    """How a job ended, as JSON."""
    return {
        "job": result.id,
        "state": str(result.phase),
        "output": result.output,
        "commit": None if result.commit is None else result.commit.hex(),
        **result.state.counts(),
        "total": result.total,
        "nothing_to_do": result.nothing_to_do,
        "reason": result.reason or None,
        "seconds": round(result.seconds, 3),
        "failures": [failure_json(datum) for datum in result.failures],
    }


def failure_json(datum: DatumRecord) -> dict[str, Any]:
    """A datum that failed, as JSON."""
    return {"key": datum.key.hex(), **datum.meta, "how": datum.how}


def print_result(store: Store, result: JobResult) -> None:
    """How a job ended, for people."""
    total = output.plural(result.state.done, "datum")
    if result.nothing_to_do:
        output.say(f"nothing to do: {result.output} has the results of {total} already, by {result.id}")
        output.say(counts(result.state))
        return
    if result.total is not None and result.total > result.state.done:
        total = f"{result.state.done:,} of {output.plural(result.total, 'datum')}"
    output.say(f"{result.id}: {total} in {result.seconds:.1f} s: {counts(result.state)}")
    if result.phase is Phase.SUCCESS:
        _print_commit(store, result)
        return
    _print_failures(store, result)
    match result.phase:
        case Phase.CONFLICT:
            made = "" if result.commit is None else result.commit.hex()[:12]
            repo = result.output.partition("@")[0]
            output.note(f"pfsjob: {result.output} moved while the job ran; the results are kept as {repo}@{made}")
            output.note(f"  hint: run it again, which reuses them; or 'pfs merge {repo}@{made} {result.output}'")
        case Phase.KILLED:
            output.note(f"pfsjob: stopped; nothing was committed to {result.output}")
        case _:
            why = result.reason or f"{output.plural(result.state.failed, 'datum')} failed"
            output.note(f"pfsjob: {why}; nothing was committed to {result.output}")
    if result.state.processed:
        kept = output.plural(result.state.processed, "finished datum")
        output.note(f"  kept: {kept}; the next run does only what is missing")


def _print_commit(store: Store, result: JobResult) -> None:
    assert result.commit is not None
    tree = store.read_commit(result.commit).tree
    size = f"{output.plural(tree.files, 'file')}, {output.human_size(tree.size)}"
    output.say(f"{result.output} is now {result.commit.hex()[:12]} ({size})")
    if not result.state.done:
        output.note("pfsjob: no input matches, so there were no datums, and the results are empty")


def _print_failures(store: Store, result: JobResult) -> None:
    if not result.failures:
        return
    job = JobStore(store).find(result.id)
    record = JobStore(store).record(job)
    for datum in result.failures[:_SHOWN_FAILURES]:
        print_failure(record, datum)
    more = result.state.failed - _SHOWN_FAILURES
    others = f" (and those of {output.plural(more, 'more datum')})" if more > 0 else ""
    output.note(f"  whole logs{others}: pfsjob logs {result.id} --failed")


def print_failure(record: Record, datum: DatumRecord) -> None:
    """A datum that failed, with the end of its log."""
    output.note(f"  {datum}: {display(datum.how)}, after {datum.seconds:.1f} s")
    lines = record.log_tail(datum).decode("utf-8", "replace").splitlines()
    for line in lines[-_LOG_LINES:]:
        output.note(f"    | {display(line)}")
