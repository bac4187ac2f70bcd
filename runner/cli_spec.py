"""From flags, and a file that they may name, to specs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pfsmount.errors import InvalidInput
from pfsmount.ids import display
from pfsmount.objects.layout import disk_errors
from runner.executors.base import Limits
from runner.input_spec import cross_of, parse_input
from runner.quantities import duration_seconds, memory_bytes
from runner.spec import JobSpec, Merge, parse_env, parse_output
from runner.spec_file import FileSpec, read_specs

_FILE_MAX = 64 << 20


@dataclass(frozen=True, slots=True)
class SpecFlags:
    """The flags that say what a job is; None or False where they were not given."""

    command: Sequence[str] | None
    file: str | None
    only: Sequence[str] | None
    inputs: Sequence[str] | None
    output: str | None
    image: str | None
    executor: str | None
    code: Path | None
    env: Sequence[str] | None
    stdin: str | None
    user: str | None
    workdir: str | None
    workers: int | None
    timeout: str | None
    job_timeout: str | None
    tries: int | None
    accept: Sequence[int] | None
    memory: str | None
    cpus: float | None
    pids: int | None
    gpus: int | None
    merge: str | None
    reprocess: bool
    isolate: bool
    hermetic: bool

    def specs(self) -> list[FileSpec]:
        """The jobs that the flags mean, in their order. Raises InvalidInput, NotFound."""
        if self.file is None:
            return [FileSpec(self._over(self._new()), (), 0)]
        found = [one for one in self._of_file(self.file) if not self.only or one.spec.name in self.only]
        missing = set(self.only or ()) - {one.spec.name for one in found}
        if missing:
            raise InvalidInput(f"there is no job '{display(min(missing))}' in {display(self.file)}")
        if len(found) > 1 and (self.inputs or self.output or self.command):
            raise InvalidInput(
                f"{display(self.file)} has {len(found)} jobs, and --input, --output and a command are of one",
                hint="choose one with --only NAME",
            )
        return [replace(one, spec=self._over(one.spec)) for one in found]

    def _of_file(self, name: str) -> list[FileSpec]:
        if name == "-":
            raw, directory, name = sys.stdin.buffer.read(_FILE_MAX), Path.cwd(), "stdin"
        else:
            with disk_errors(f"reading the spec {display(name)}"), open(name, "rb") as file:
                raw, directory = file.read(_FILE_MAX), Path(name).resolve().parent
        return read_specs(raw, name, processors=len(os.sched_getaffinity(0)), directory=directory)

    def _new(self) -> JobSpec:
        """What is in a spec of flags alone, before those that a file could have as well."""
        if not self.inputs:
            raise InvalidInput(
                "there is no input", hint="name one, as in: --input 'images@master:/*'; or a spec: -f FILE"
            )
        if not self.output:
            raise InvalidInput("there is no output", hint="name a branch for the results, as in: --output edges@master")
        if self.only:
            raise InvalidInput("--only chooses from a file, and none is named", hint="name one: -f FILE")
        return JobSpec(cross_of([parse_input(text) for text in self.inputs]), "", "", ())

    def _over(self, spec: JobSpec) -> JobSpec:
        """The spec with what the flags say instead."""
        changes: dict[str, Any] = {}
        if self.inputs:
            changes["input"] = cross_of([parse_input(text) for text in self.inputs])
        if self.output:
            changes["output_repo"], changes["output_branch"] = parse_output(self.output)
        if self.env:
            changes["env"] = {**spec.env, **parse_env(self.env)}
        if self.merge is not None:
            changes["merge"] = _merge(self.merge)
        for name, text in (("timeout", self.timeout), ("job_timeout", self.job_timeout)):
            if text is not None:
                changes[name] = _duration(name, text)
        changes |= self._as_they_are()
        return replace(spec, limits=self._limits(spec.limits), **changes)

    def _as_they_are(self) -> Mapping[str, Any]:
        given = {
            "command": tuple(self.command or ()),
            "stdin": self.stdin,
            "image": self.image,
            "executor": self.executor,
            # a flag's path is meant from the shell's directory, also where the command starts in another
            "code": self.code and Path.cwd() / self.code if self.workdir else self.code,
            "user": self.user,
            "working_dir": self.workdir,
            "workers": self.workers,
            "tries": self.tries,
            "accept_return_code": tuple(self.accept or ()),
            "gpus": self.gpus,
            "reprocess": self.reprocess,
            "isolate": self.isolate,
            "hermetic": self.hermetic,
        }
        return {
            name: value for name, value in given.items() if value is not None and value is not False and value != ()
        }

    def _limits(self, limits: Limits) -> Limits:
        memory = None if self.memory is None else memory_bytes(self.memory)
        try:
            return Limits(
                limits.memory if memory is None else memory,
                limits.cpus if self.cpus is None else self.cpus,
                limits.pids if self.pids is None else self.pids,
            )
        except ValueError as error:
            raise InvalidInput(str(error)) from None


def _merge(text: str) -> Merge:
    try:
        return Merge(text)
    except ValueError:
        raise InvalidInput(f"--merge {display(text)}: results are merged by {' or '.join(Merge)}") from None


def _duration(name: str, text: str) -> float:
    seconds = duration_seconds(text)
    if not seconds:
        raise InvalidInput(f"--{name.replace('_', '-')} {display(text)} leaves no time to run")
    return seconds
