"""Which files a job reads: one glob over one version, or several such inputs combined.

    cross     every combination of a datum of each
    union     the datums of each, one after another
    join      every combination of datums that have the same key (`join_on`)
    group     one datum for each key (`group_by`), with all the files that have it

Combinations nest. A key is a template over what the parentheses of the input's glob captured: `$1`, `$2$1`, `${1}x`, `$0` for the whole
path, `$$` for a dollar sign.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pfsmount.errors import InvalidInput
from pfsmount.ids import display
from pfsmount.revision import Revision, parse_mount_name
from pfsmount.tree.globs import Glob
from runner.templates import check_template

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\Z")


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input: which files of which version, under which name the program sees them."""

    name: str
    repo: str
    revision: Revision
    glob: str
    join_on: str = ""
    outer_join: bool = False
    """In a join: files whose key has no partner make datums, too."""
    group_by: str = ""
    lazy: bool = False
    """Files are brought when they are read, where that is possible."""
    empty_files: bool = False
    """The program sees the names and no content."""

    @property
    def branch(self) -> str:
        """What the input follows, as its spec says it: a branch, or any other revision."""
        return str(self.revision)

    @property
    def text(self) -> str:
        """As a flag has it, without the name."""
        return f"{self.repo}@{self.branch}:{self.glob}"

    def as_json(self) -> dict[str, Any]:
        """What is as usual is left out."""
        value: dict[str, Any] = {"name": self.name, "repo": self.repo, "branch": self.branch, "glob": self.glob}
        more = {
            "join_on": self.join_on,
            "outer_join": self.outer_join,
            "group_by": self.group_by,
            "lazy": self.lazy,
            "empty_files": self.empty_files,
        }
        return value | {key: given for key, given in more.items() if given}


class Combination(enum.StrEnum):
    """How inputs are combined."""

    CROSS = "cross"
    UNION = "union"
    JOIN = "join"
    GROUP = "group"


@dataclass(frozen=True, slots=True)
class CombinedInput:
    """Several inputs, or combinations of such, as one."""

    how: Combination
    inputs: tuple[Input, ...]

    def as_json(self) -> dict[str, Any]:
        return {str(self.how): [part.as_json() for part in self.inputs]}


Input = InputSpec | CombinedInput


def leaves(source: Input) -> Iterator[InputSpec]:
    """The single inputs, in the order of the spec."""
    if isinstance(source, InputSpec):
        yield source
    else:
        for part in source.inputs:
            yield from leaves(part)


def with_leaves(source: Input, changed: Iterator[InputSpec]) -> Input:
    """The same combination of other single inputs, which are taken from an iterator in the order of the spec."""
    if isinstance(source, InputSpec):
        return next(changed)
    return replace(source, inputs=tuple(with_leaves(part, changed) for part in source.inputs))


def cross_of(inputs: Sequence[Input]) -> Input:
    """What several `--input` flags mean."""
    return inputs[0] if len(inputs) == 1 else CombinedInput(Combination.CROSS, tuple(inputs))


def is_plain(source: Input) -> bool:
    """True for one input, or the cross product of single ones."""
    if isinstance(source, InputSpec):
        return True
    return source.how is Combination.CROSS and all(isinstance(part, InputSpec) for part in source.inputs)


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
    return check_leaf(InputSpec(name if equals else repo, repo, revision, glob))


def check_leaf(leaf: InputSpec) -> InputSpec:
    """The input, if it makes sense by itself. Raises InvalidInput."""
    if leaf.revision.worktree is not None:
        raise InvalidInput(f"the input '{display(leaf.text)}' is a worktree; a job reads commits")
    if not _NAME.match(leaf.name) or leaf.name == "out":
        raise InvalidInput(
            f"'{display(leaf.name)}' cannot be the name of an input",
            hint="give it another, as in NAME=repo@branch:glob; it is a directory in /pfs, where 'out' is the output",
        )
    glob = Glob(leaf.glob)
    for what, template in (("join_on", leaf.join_on), ("group_by", leaf.group_by)):
        check_template(what, template, glob)
    return leaf


def check_input(source: Input) -> frozenset[str]:
    """The names that its datums see in `/pfs`, if the parts fit together. Raises InvalidInput."""
    if isinstance(source, InputSpec):
        return frozenset((source.name,))
    if not source.inputs:
        raise InvalidInput(f"a {source.how} of no inputs has no datums", hint="name at least one input in it")
    _check_keys(source)
    _check_group(source)
    seen: set[str] = set()
    for part in source.inputs:
        names = check_input(part)
        if source.how is not Combination.UNION and (twice := sorted(names & seen)):
            raise InvalidInput(
                f"two inputs have the name '{twice[0]}', and a datum sees both",
                hint=f"give one another name, as in: --input 'other={twice[0]}@…'",
            )
        seen |= names
    return frozenset(seen)


def _check_keys(source: CombinedInput) -> None:
    """Refuse a join or group with a part that has no key."""
    field = {Combination.JOIN: "join_on", Combination.GROUP: "group_by"}.get(source.how)
    for part in source.inputs if field else ():
        assert field is not None
        if not any(getattr(leaf, field) for leaf in leaves(part)):
            names = ", ".join(f"'{leaf.name}'" for leaf in leaves(part))
            raise InvalidInput(
                f"the input {names} is in a {source.how} and has no {field}",
                hint=f"{field} says what of its path is the key, as '$1' for what the first parentheses of its glob match",
            )


def _check_group(source: CombinedInput) -> None:
    """Refuse a group that could bring two files to one place: of inputs with one name that are not of one version."""
    versions: dict[str, str] = {}
    for leaf in leaves(source) if source.how is Combination.GROUP else ():
        version = f"{leaf.repo}@{leaf.branch}"
        if versions.setdefault(leaf.name, version) != version:
            raise InvalidInput(
                f"a group has inputs of {versions[leaf.name]} and {version} that both have the name '{leaf.name}', and a datum sees all of them",
                hint="give one another name",
            )


def input_of_json(value: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Name, repo, branch and glob of the single inputs in the JSON of a spec, sorted."""
    return sorted((str(i["name"]), str(i["repo"]), str(i["branch"]), str(i["glob"])) for i in value["inputs"])
