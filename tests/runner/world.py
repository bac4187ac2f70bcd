"""A small store with inputs, programs and jobs, for the tests of the runner.

Programs are async functions that run in the executor `memory`; each has a file in a `bin` directory, so that it is resolved, hashed and recorded as a
real one is.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pfsmount.ids import RepoPath, parse_path
from pfsmount.repo.commit import Commit
from pfsmount.repo.store import Store
from pfsmount.revision import parse_revision
from pfsmount.tree.content import open_content
from pfsmount.tree.directory import walk
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import Entry, Kind, file_entry, symlink_entry
from pfsmount.tree.ingest import ingest_bytes
from runner.attempts import Ended
from runner.datum import Datum
from runner.executors.base import Executor
from runner.executors.memory import MemoryExecutor, Program, View
from runner.input_spec import cross_of, parse_input
from runner.job import JobOptions, JobResult, StagingNeeds, run_job
from runner.jobs import JobStore
from runner.program import Caller
from runner.record import Record
from runner.spec import JobSpec, parse_env, parse_output
from runner.staging import CopyStaging, Staging
from runner.state import Event, JobState

Content = bytes | str | Entry | None
"""Of a path: bytes of a file, target of a symlink, an entry as it is, or None for nothing."""


@dataclass(slots=True)
class Notes:
    """What a job told its user."""

    lines: list[str] = field(default_factory=list)
    states: list[tuple[JobState, int | None]] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    events: list[tuple[str, Event]] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.lines.append(text)

    def started(self, job: str) -> None:
        self.jobs.append(job)

    def ended(self, datum: Datum, event: Event, ended: Ended | None) -> None:
        self.events.append((str(datum), event))

    def progress(self, state: JobState, total: int | None) -> None:
        self.states.append((state, total))


def copy_staging(needs: StagingNeeds) -> Staging:
    return CopyStaging(needs.store.objects)


class World:
    """A store, a directory to work in, and programs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin, self.cwd = root / "bin", root / "work"
        for place in (self.bin, self.cwd):
            place.mkdir()
        Store.create(root / "store")
        self.store = Store.open(root / "store", author="tester@here")
        self.store.create_repo("in")
        self.programs: dict[str, Program] = {}
        self.ran: list[str] = []
        """The path of the first input of each datum that ran."""
        self.notes = Notes()
        self.program("upper", upper)

    def close(self) -> None:
        self.store.close()

    # Inputs

    def commit(self, changes: Mapping[str, Content], repo: str = "in", branch: str = "master") -> Commit:
        """A commit that a person made."""
        with self.store.objects.batch() as batch:
            head = self.store.head(repo, branch)
            root = self.store.empty_root() if head is None else self.store.read_commit(head).tree
            edits: dict[RepoPath, Entry | None] = {}
            for path, content in changes.items():
                match content:
                    case bytes():
                        edits[parse_path(path)] = file_entry(ingest_bytes(batch, content), len(content), mtime_ns=123)
                    case str():
                        edits[parse_path(path)] = symlink_entry(os.fsencode(content))
                    case _:
                        edits[parse_path(path)] = content
            tree = edit_paths(batch, root, edits)
            return self.store.commit(
                batch, repo, branch, tree=tree, expected=head, message="by hand", origin={"how": "put"}
            )

    # Programs

    def program(self, name: str, function: Program, version: str = "1") -> None:
        """Install a program, or another version of it."""

        async def run(view: View) -> int:
            self.ran.append(view.task.env.get("in", ""))
            return await function(view)

        place = self.bin / name
        place.write_text(f"program {name}, version {version}\n")
        place.chmod(0o755)
        self.programs[name] = run

    def caller(self) -> Caller:
        return Caller(self.cwd, self.root / "home", os.fspath(self.bin), os.getuid(), "tester", socket.gethostname())

    # Jobs

    def spec(
        self,
        *command: str,
        inputs: Sequence[str] = ("in@master:/*",),
        output: str = "out@master",
        env: Sequence[str] = (),
        code: Path | None = None,
        timeout: float | None = None,
    ) -> JobSpec:
        repo, branch = parse_output(output)
        return JobSpec(
            input=cross_of([parse_input(text) for text in inputs]),
            output_repo=repo,
            output_branch=branch,
            command=command or ("upper",),
            env=parse_env(env),
            code=code,
            timeout=timeout,
        )

    def run(
        self,
        *command: str,
        inputs: Sequence[str] = ("in@master:/*",),
        output: str = "out@master",
        env: Sequence[str] = (),
        code: Path | None = None,
        **options: Any,
    ) -> JobResult:
        """Run a job; `ran` and `notes` are of this run."""
        return self.run_spec(self.spec(*command, inputs=inputs, output=output, env=env, code=code), **options)

    def run_spec(
        self,
        spec: JobSpec,
        *,
        workers: int = 2,
        fail_fast: bool = False,
        take_over: bool = False,
        incremental: bool = True,
        executor: Executor | None = None,
        staging: Callable[[StagingNeeds], Staging] = copy_staging,
    ) -> JobResult:
        """Run a job; `ran` and `notes` are of this run."""
        self.ran.clear()
        self.notes = Notes()
        chosen = executor or MemoryExecutor(self.programs)
        options = JobOptions(
            executor=lambda _: chosen,
            staging=staging,
            workers=workers,
            fail_fast=fail_fast,
            take_over=take_over,
            incremental=incremental,
        )
        return run_job(self.store, spec, self.caller(), options, self.notes)

    # Looking

    def head(self, target: str = "out@master") -> Commit:
        repo, _, revision = target.partition("@")
        commit = self.store.resolve(repo, parse_revision(revision)).commit
        assert commit is not None
        return commit

    def files(self, target: str = "out@master") -> dict[str, bytes | str]:
        """Files and symlinks of a version by path, directories as `path/`."""
        found: dict[str, bytes | str] = {}
        for path, entry in walk(self.store.objects, self.head(target).tree):
            name = os.fsdecode(b"/".join(path))
            if entry.kind is Kind.FILE:
                found[name] = open_content(self.store.objects, entry).read(0, entry.size)
            elif entry.kind is Kind.SYMLINK:
                assert entry.target is not None
                found[name] = os.fsdecode(entry.target)
            elif name:
                found[f"{name}/"] = ""
        return found

    def record(self, result: JobResult) -> Record:
        """The record of a job."""
        jobs = JobStore(self.store)
        return jobs.record(jobs.find(result.id))


async def upper(view: View) -> int:
    """Writes each of its files in capitals, under the same name; one that begins with `bad` is a failure."""
    return _upper(view)


def _upper(view: View) -> int:
    for bind in view.task.binds:
        base = os.fsdecode(bind.source)
        for directory, _, names in os.walk(base):
            for name in names:
                place = Path(directory, name)
                text = place.read_bytes()
                view.print(b"read %s\n" % os.fsencode(name))
                if text.startswith(b"bad"):
                    return 3
                target = view.out / place.relative_to(base)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(text.upper())
    return 0
