"""What a job is to do: parsed from flags, shown as JSON, compared with what made an output branch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pfsmount.errors import InvalidInput
from pfsmount.ids import display
from pfsmount.revision import Revision, check_ref_name, parse_mount_name
from pfsmount.tree.globs import Glob

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\Z")
_VARIABLE = re.compile(r"[^=\0]+\Z")
_OURS = ("PFS_", "PACH_")


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input: which files of which version, under which name the program sees them."""

    name: str
    repo: str
    revision: Revision
    glob: str

    @property
    def branch(self) -> str:
        """What the input follows, as its spec says it: a branch, or any other revision."""
        return str(self.revision)

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "repo": self.repo, "branch": self.branch, "glob": self.glob}


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A command over the cross product of its inputs, into one branch."""

    inputs: tuple[InputSpec, ...]
    output_repo: str
    output_branch: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: str | None = None
    code: Path | None = None
    timeout: float | None = None
    """Seconds that one datum may take."""
    hermetic: bool = False

    @property
    def output(self) -> str:
        return f"{self.output_repo}@{self.output_branch}"

    def as_json(self) -> dict[str, Any]:
        """The whole spec, as a commit's provenance has it."""
        return {
            "inputs": [source.as_json() for source in self.inputs],
            "output": {"repo": self.output_repo, "branch": self.output_branch},
            "command": list(self.command),
            "env": dict(self.env),
            "stdin": self.stdin,
            "code": None if self.code is None else os.fspath(self.code),
            "timeout": self.timeout,
            "hermetic": self.hermetic,
            "executor": "process",
        }


def parse_input(text: str) -> InputSpec:
    """Parse `[NAME=]repo[@revision]:glob`. Raises InvalidInput."""
    head, colon, glob = text.partition(":")
    if not colon:
        raise InvalidInput(
            f"the input '{display(text)}' does not say which files are one datum",
            hint=f"'{display(text)}:/*' makes each top-level file or directory one, '{display(text)}:/' all of them together",
        )
    name, equals, place = head.partition("=")
    repo, revision = parse_mount_name(place if equals else head)
    if revision.worktree is not None:
        raise InvalidInput(f"the input '{display(text)}' is a worktree; a job reads commits")
    if not equals:
        name = repo
    if not _NAME.match(name) or name == "out":
        raise InvalidInput(
            f"'{display(name)}' cannot be the name of an input",
            hint="give it another, as in NAME=repo@branch:glob; it is a directory in /pfs, where 'out' is the output",
        )
    Glob(glob)
    return InputSpec(name, repo, revision, glob)


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
    if not spec.command or not spec.command[0]:
        raise InvalidInput("there is no command to run", hint="it stands behind '--', as in: … -- python3 edges.py")
    if not spec.inputs:
        raise InvalidInput("there is no input", hint="name one, as in: --input 'images@master:/*'")
    names = [source.name for source in spec.inputs]
    for name in names:
        if names.count(name) > 1:
            raise InvalidInput(
                f"two inputs have the name '{name}'", hint=f"give one another name, as in: --input 'other={name}@…'"
            )
    for source in spec.inputs:
        if source.repo == spec.output_repo and source.branch == spec.output_branch:
            raise InvalidInput(f"{spec.output} is both input and output", hint="write the results to another branch")
    if spec.timeout is not None and not spec.timeout > 0:
        raise InvalidInput(f"a timeout of {spec.timeout:g} seconds leaves no time to run")
    return spec


def pipeline_of(spec: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes two jobs runs of one pipeline: the output and the inputs, not the command or the code.

    Takes the JSON of a spec.
    """
    inputs: Sequence[Mapping[str, Any]] = spec["inputs"]
    sources = sorted((str(i["name"]), str(i["repo"]), str(i["branch"]), str(i["glob"])) for i in inputs)
    return spec["output"]["repo"], spec["output"]["branch"], *sources
