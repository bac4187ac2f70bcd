"""`pfsjob list` and `inspect`: what jobs did."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from pfsmount.cli import output
from pfsmount.ids import display
from pfsmount.repo.store import Store
from runner.cli_run import failure_json, print_failure
from runner.jobs import Job, JobStore
from runner.record import DatumRecord, Record
from runner.state import Phase

_FAILURES_MAX = 20


def print_jobs(store: Store, limit: int, json: bool) -> None:
    """A table of jobs, newest first."""
    jobs = JobStore(store)
    found = list(itertools.islice(jobs.jobs(), limit or None))
    if json:
        output.print_json([{**job.summary(), "progress": jobs.progress(job.id)} for job in found])
        return
    if not found:
        output.say("no jobs yet")
        return
    output.table(
        [[job.id, job.output, str(job.phase), _counts_text(jobs, job), *_when(job), _command(job)] for job in found],
        ["job", "output", "state", "done", "started", "took", "command"],
    )


def _counts_text(jobs: JobStore, job: Job) -> str:
    """`3 new, 10 reused, 1 failed`, of a running job as far as it is."""
    found = (jobs.progress(job.id) if job.phase is Phase.RUNNING else None) or job.origin
    parts = [f"{found['processed']:,} new", f"{found['skipped']:,} reused"]
    for state in ("failed", "recovered"):
        if found.get(state):
            parts.append(f"{found[state]:,} {state}")
    return ", ".join(parts)


def _when(job: Job) -> tuple[str, str]:
    started, ended = job.origin["started_ns"], job.origin["ended_ns"]
    took = "" if ended is None else f"{(ended - started) / 1e9:.1f} s"
    return output.relative_time(started), took


def _command(job: Job) -> str:
    text = display(" ".join(job.origin["command"]))
    return text if len(text) <= 60 else f"{text[:59]}…"


def print_job(store: Store, prefix: str, json: bool) -> None:
    """Everything about a job, but its datums."""
    jobs = JobStore(store)
    job = jobs.find(prefix)
    record = jobs.record(job)
    failures = _failures(record, job)
    if json:
        value: dict[str, Any] = {
            **record.job(),
            **job.summary(),
            "record": job.ref.id.hex(),
            "progress": jobs.progress(job.id),
            "failures": [failure_json(datum) for datum in failures],
        }
        output.print_json(value)
        return
    output.say(f"{job.id}  {job.phase}")
    for name, text in _facts(jobs, job, record.job()):
        output.say(f"  {name:<9} {text}")
    for datum in failures[:_FAILURES_MAX]:
        print_failure(record, datum)


def _facts(jobs: JobStore, job: Job, made: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if job.phase is Phase.INTERRUPTED:
        yield "", "its runner died or was killed; what had finished is kept, and the next run goes on from there"
    if made.get("reason"):
        yield "why", display(str(made["reason"]))
    yield "output", job.output + ("" if job.commit is None else f", commit {job.commit[:12]}")
    for source in made["inputs"]:
        place = f"{source['repo']}@{source['branch']}:{display(source['glob'])}"
        yield "input", f"{source['name']} = {place}, commit {source['commit'][:12]}"
    yield "command", display(" ".join(made["command"]))
    yield from _program(made)
    code = made["code"]
    for file in code["files"]:
        yield "file", f"{display(file['path'])}  {file['id'][:12]}"
    if "directory" in code:
        files = output.plural(code["directory"]["files"], "file")
        yield "code", f"{display(code['directory']['path'])}  {code['directory']['id'][:12]} ({files})"
    yield "datums", _counts_text(jobs, job)
    yield "by", f"{made['user']['name']} on {made['host']}, network: {made['network']}"
    yield "started", f"{output.local_time(made['times']['started_ns'])} ({_when(job)[0]})"
    if job.origin["ended_ns"] is not None:
        yield "took", _when(job)[1]


def _program(made: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Where the command ran, and what ran it."""
    code = made["code"]
    if image := code.get("image"):
        yield (
            "image",
            f"{display(image['reference'])}  {image['id'].removeprefix('sha256:')[:12]}, by {code['executor']}",
        )
        for digest in image["digests"]:
            yield "digest", display(digest)
        return
    yield "in", display(made["cwd"])
    yield "program", f"{display(code['executable']['path'])}  {code['executable']['id'][:12]}"


def _failures(record: Record, job: Job) -> list[DatumRecord]:
    """The datums that failed; none are looked for when none did."""
    if not job.origin["failed"]:
        return []
    return list(itertools.islice((datum for datum in record.datums() if not datum.ok), _FAILURES_MAX))
