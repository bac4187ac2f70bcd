"""What a job is to do: parsed from flags or a file, shown as JSON, compared with what made an output branch."""

from __future__ import annotations

import enum
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pfsmount.errors import InvalidInput
from pfsmount.ids import display
from pfsmount.revision import check_ref_name, parse_mount_name
from runner.executors.base import Limits
from runner.input_spec import Input, InputSpec, check_input, input_of_json, is_plain, leaves

_VARIABLE = re.compile(r"[^=\0]+\Z")
_OURS = ("PFS_", "PACH_")


class Merge(enum.StrEnum):
    """What becomes of a path that several datums wrote."""

    ERROR = "error"
    APPEND = "append"
    """One file, with what each wrote in the order of the datums."""


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A command over the datums of its input, into one branch."""

    input: Input
    output_repo: str
    output_branch: str
    command: tuple[str, ...]
    """Empty, in a container only: what the image runs by itself."""
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: str | None = None
    code: Path | None = None
    timeout: float | None = None
    """Seconds that one datum may take."""
    hermetic: bool = False
    name: str = ""
    """Of the pipeline, when its spec gives it one."""
    description: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Kept with the job, and otherwise not looked at."""
    executor: str = ""
    """`process`, `podman` or `docker`; empty: `process` without an image, the engine that is there with one."""
    image: str = ""
    user: str = ""
    """In a container: instead of the image's."""
    working_dir: str = ""
    """Instead of the image's, or the caller's."""
    accept_return_code: tuple[int, ...] = ()
    """Exit codes, besides 0, that are no failure."""
    err_command: tuple[str, ...] = ()
    """Run when the command failed for the last time: if it succeeds, the job goes on without results of the datum."""
    err_stdin: str | None = None
    tries: int = 1
    """How often a datum is run until it does not fail."""
    job_timeout: float | None = None
    """Seconds that the whole job may take."""
    workers: int | None = None
    limits: Limits = field(default_factory=Limits)
    gpus: int = 0
    merge: Merge = Merge.ERROR
    reprocess: bool = False
    """Run every datum in every job."""
    salt: str = ""
    """Part of every datum's key, and nothing else."""
    isolate: bool = False
    """A container of its own for each datum."""

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The single inputs."""
        return tuple(leaves(self.input))

    @property
    def output(self) -> str:
        return f"{self.output_repo}@{self.output_branch}"

    @property
    def contained(self) -> bool:
        """It runs in containers of its image."""
        return bool(self.image) and self.executor != "process"

    def as_json(self) -> dict[str, Any]:
        """The whole spec, as a commit's provenance has it. What is as usual is left out, but for what always was there."""
        value: dict[str, Any] = {
            "inputs": [source.as_json() for source in self.inputs],
            "output": {"repo": self.output_repo, "branch": self.output_branch},
            "command": list(self.command),
            "env": dict(self.env),
            "stdin": self.stdin,
            "code": None if self.code is None else os.fspath(self.code),
            "timeout": self.timeout,
            "hermetic": self.hermetic,
            "executor": self.executor or "process",
        }
        if not is_plain(self.input):
            value["input"] = self.input.as_json()
        limits = {"memory": self.limits.memory, "cpus": self.limits.cpus, "pids": self.limits.pids, "gpus": self.gpus}
        more = {
            "name": self.name,
            "description": self.description,
            "metadata": dict(self.metadata),
            "image": self.image,
            "user": self.user,
            "working_dir": self.working_dir,
            "accept_return_code": list(self.accept_return_code),
            "err_command": list(self.err_command),
            "err_stdin": self.err_stdin,
            "tries": self.tries if self.tries != 1 else None,
            "job_timeout": self.job_timeout,
            "workers": self.workers,
            "limits": {key: limit for key, limit in limits.items() if limit},
            "merge": str(self.merge) if self.merge is not Merge.ERROR else None,
            "reprocess": self.reprocess,
            "salt": self.salt,
            "isolate": self.isolate,
        }
        return value | {key: given for key, given in more.items() if given}


def parse_output(text: str) -> tuple[str, str]:
    """Parse `repo[@branch]`; the branch is empty for the repo's default one. Raises InvalidInput."""
    if ":" in text:
        raise InvalidInput(f"the output '{display(text)}' is a whole branch", hint="write it as repo@branch")
    repo, revision = parse_mount_name(text)
    if not revision.is_plain:
        raise InvalidInput(f"the output '{display(text)}' is not a branch", hint="write it as repo@branch")
    return repo, check_ref_name(revision.base) if revision.base else ""


def parse_env(pairs: Iterable[str]) -> dict[str, str]:
    """Parse `NAME=VALUE` arguments. Raises InvalidInput."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not _VARIABLE.match(name) or "\0" in value:
            raise InvalidInput(f"'{display(pair)}' is not an environment variable", hint="write it as NAME=VALUE")
        if name.startswith(_OURS):
            raise InvalidInput(f"{name} is given to the program by pfs", hint="choose another name")
        found[name] = value
    return found


def check_spec(spec: JobSpec) -> JobSpec:
    """The spec, with all branches named, if its parts fit together. Raises InvalidInput."""
    if not spec.contained and (not spec.command or not spec.command[0]):
        raise InvalidInput("there is no command to run", hint="it stands behind '--', as in: … -- python3 edges.py")
    check_input(spec.input)
    for source in spec.inputs:
        if source.repo == spec.output_repo and source.branch == spec.output_branch:
            raise InvalidInput(f"{spec.output} is both input and output", hint="write the results to another branch")
    for what, seconds in (("timeout", spec.timeout), ("timeout of the job", spec.job_timeout)):
        if seconds is not None and not 0 < seconds < math.inf:
            raise InvalidInput(f"a {what} of {seconds:g} seconds leaves no time to run")
    if spec.tries < 1:
        raise InvalidInput(f"{spec.tries} tries are not one", hint="1 runs each datum once")
    return spec


def same_pipeline(made: Mapping[str, Any], spec: JobSpec) -> bool:
    """Whether a spec (JSON) that made an output belongs to the same pipeline: by its name, or by its inputs.

    The command and the code are not looked at: a pipeline that got better is still the same.
    """
    output = (made["output"]["repo"], made["output"]["branch"])
    if output != (spec.output_repo, spec.output_branch):
        return False
    return bool(spec.name and made.get("name") == spec.name) or same_inputs(made, spec)


def same_inputs(made: Mapping[str, Any], spec: JobSpec) -> bool:
    """Whether a spec (JSON) reads the same inputs, combined in the same way."""
    mine = spec.as_json()
    return input_of_json(made) == input_of_json(mine) and _ways(made) == _ways(mine)


def _ways(spec: Mapping[str, Any]) -> Any:
    """How a spec combines and presents its inputs; in a plain cross product their order says nothing."""
    plain = ("name", "repo", "branch", "glob")
    flags = sorted(
        (i["name"], [(key, i[key]) for key in sorted(i) if key not in plain and key != "commit"])
        for i in spec["inputs"]
    )
    return spec.get("input"), flags
