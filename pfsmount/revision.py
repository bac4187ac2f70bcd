"""The one grammar for naming a version, used by mount paths, both command lines and job specs.

    target    = repo [ "@" revision ] [ ":" path ]
    revision  = base { step } [ "@" commit ] [ "+" worktree ]
    base      = branch | tag | commit prefix of at least 6 hex digits     (looked up in this order)
    step      = "^" [N] | "~" [N]     the N-th first-parent ancestor (Pachyderm's meaning; N defaults to 1)
              | "." N                 the N-th commit from the start of the first-parent chain (1 is the first)

Names of branches and tags have none of `/ @ : ^ ~ +`, do not end in `.digits` and are not all-hex of 6 or more
characters, so a text has one reading only. This module parses; resolving against a store is `repo.refs`' work.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal

from pfsmount.errors import InvalidInput
from pfsmount.ids import NAME_MAX, RepoPath, display, parse_path

PREFIX_MIN = 6
DEFAULT_BRANCH = "master"

_REPO = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}\Z")
_REVISION = re.compile(r"(?P<base>[^/@:^~+]+?)(?P<steps>(?:[\^~][0-9]*|\.[0-9]+)*)\Z")
_STEP = re.compile(r"([\^~.])([0-9]*)")
_HEX = re.compile(rf"[0-9a-f]{{{PREFIX_MIN},64}}\Z")
_ANY_HEX = re.compile(rf"[0-9a-fA-F]{{{PREFIX_MIN},}}\Z")
_STEP_MAX = 10**12
_TEXT_MAX = 4096
"""Names have at most 255 bytes. The time that the expressions take grows with the square of the length."""


@dataclass(frozen=True, slots=True)
class Step:
    """One move along the first-parent chain: `back` by count, or `from_start` to the count-th commit."""

    kind: Literal["back", "from_start"]
    count: int


@dataclass(frozen=True, slots=True)
class Revision:
    """A parsed revision. `base` is None for the repo's default branch."""

    base: str | None = None
    steps: tuple[Step, ...] = ()
    within: str | None = None
    """The commit of `repo@branch@commit`: it must be in the history of the rest."""
    worktree: str | None = None
    """The private worktree of `repo@branch+NAME`."""

    @property
    def is_plain(self) -> bool:
        """True when this can only name a branch, tag or commit as it stands, with nothing after it."""
        return not self.steps and self.within is None and self.worktree is None

    def __str__(self) -> str:
        text = self.base or ""
        for step in self.steps:
            text += (f"~{step.count}") if step.kind == "back" else f".{step.count}"
        if self.within is not None:
            text += f"@{self.within}"
        if self.worktree is not None:
            text += f"+{self.worktree}"
        return text


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed `repo@revision:path`. `path` is None when no `:` was given."""

    repo: str
    revision: Revision
    path: RepoPath | None = None

    def __str__(self) -> str:
        text = self.repo
        if self.revision != Revision():
            text += f"@{self.revision}"
        if self.path is not None:
            text += ":/" + os.fsdecode(b"/".join(self.path))
        return text


def check_repo_name(name: str) -> str:
    """Return a valid repo name. Raises InvalidInput."""
    if not _REPO.match(name) or name in (".", ".."):
        repo, step = re.match(r"([^~^+]*)(.*)\Z", name, re.DOTALL).groups()  # type: ignore[union-attr]
        if step and _REPO.match(repo):
            raise InvalidInput(
                f"'{display(name)}' names no branch to count from"
                if step[0] != "+"
                else f"'{display(name)}' names no branch",
                hint=f"write it as {repo}@{DEFAULT_BRANCH}{display(step)}",
            )
        raise InvalidInput(
            f"'{display(name)}' cannot be the name of a repo",
            hint="letters, digits, '_', '-' and (not first) '.', at most 100 characters",
        )
    return name


def check_ref_name(name: str, kind: str = "branch") -> str:
    """Return a valid branch, tag or worktree name. Raises InvalidInput."""
    hint = None
    if not name or len(os.fsencode(name)) > NAME_MAX // 2 or name in (".", ".."):
        hint = f"1 to {NAME_MAX // 2} bytes"
    elif re.search(r"[/@:^~+]", name):
        other = re.sub(r"[/@:^~+]+", "-", name).strip("-")
        hint = "none of / @ : ^ ~ +" + (f"; '{display(other)}' would do" if _is_ref_name(other) else "")
    elif not name.isprintable() or name != name.strip():
        hint = "nothing unprintable, and no space around it"
    elif name.startswith("-"):
        hint = "it would look like an option"
    elif re.search(r"\.[0-9]+\Z", name):
        hint = "'.' and digits at the end count commits from the start, as in master.2"
    elif _ANY_HEX.match(name):
        hint = "six or more hex digits would look like a commit"
    if hint:
        raise InvalidInput(f"'{display(name)}' cannot be the name of a {kind}", hint=hint)
    return name


def _is_ref_name(name: str) -> bool:
    try:
        check_ref_name(name)
    except InvalidInput:
        return False
    return True


def is_commit_prefix(text: str) -> bool:
    """True for 6 to 64 lower-case hex digits."""
    return bool(_HEX.match(text))


def parse_revision(text: str) -> Revision:
    """Parse what stands after the first `@`. Raises InvalidInput."""
    if len(text) > _TEXT_MAX:
        raise InvalidInput(f"a revision of {len(text):,} characters is too long")
    rest, plus, worktree = text.partition("+")
    if plus:
        check_ref_name(worktree, "worktree")
    rest, at, within = rest.partition("@")
    if at and not is_commit_prefix(within):
        raise InvalidInput(f"'{display(within)}' is not a commit", hint="at least 6 hex digits")
    match = _REVISION.match(rest)
    if not match:
        raise InvalidInput(
            f"'{display(text)}' is not a revision",
            hint="a branch, tag or commit, then ~N, ^N or .N, as in master~2",
        )
    steps = []
    for symbol, digits in _STEP.findall(match["steps"]):
        count = int(digits[:14]) if digits else 1
        if count > _STEP_MAX or (symbol == "." and count == 0):
            raise InvalidInput(f"'{symbol}{digits}' in '{display(text)}' counts past every commit")
        steps.append(Step("from_start" if symbol == "." else "back", count))
    return Revision(match["base"], tuple(steps), within if at else None, worktree if plus else None)


def parse_mount_name(name: str) -> tuple[str, Revision]:
    """Parse a name in the root of a mount: `repo@revision`. Raises InvalidInput."""
    repo, at, revision = name.partition("@")
    check_repo_name(repo)
    if not at:
        return repo, Revision()
    return repo, parse_revision(revision)


def parse_target(text: str) -> Target:
    """Parse `repo[@revision][:path]`. Raises InvalidInput."""
    head, colon, path = text.partition(":")
    try:
        repo, revision = parse_mount_name(head)
    except InvalidInput as error:
        if "/" in head and not colon:
            before, _, after = head.partition("/")
            hint = "write it as repo@branch:/path"
            if before.count("@") == 1 and after and not before.startswith("@"):
                hint = f"write a path as {display(before)}:/{display(after)}; names of branches have no '/'"
            raise InvalidInput(f"'{display(text)}' is not a place in a repo", hint=hint) from None
        raise error
    return Target(repo, revision, parse_path(path) if colon else None)
