"""`pfs log`: the commits of a branch, or those that changed some paths; and how a commit is shown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfsmount.cli import output
from pfsmount.cli.repos import JsonFlag
from pfsmount.cli.times import parse_time
from pfsmount.errors import InvalidInput, NotFound
from pfsmount.ids import RepoPath, display, parse_path, path_bytes
from pfsmount.revision import Target, parse_target

if TYPE_CHECKING:
    from pfsmount.repo.commit import Commit
    from pfsmount.repo.history import Pathspec, Wanted
    from pfsmount.repo.store import Store


_INSTEAD_OF_RANGE = "'pfs diff {old} {new}', or the newest commits: 'pfs log -n 10 {new}'"


def log(
    target: Annotated[str, typer.Argument(help="REPO[@REVISION][:/PATH]", metavar="TARGET")],
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="After '--': only commits that changed one of these, paths or globs.", metavar="-- PATH…"),
    ] = None,
    count: Annotated[int | None, typer.Option("--max-count", "-n", min=1, help="At most so many.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", "--after", help="Not older: 2026-11-22, '3 days ago', 2h.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", "--before", help="Not newer.")] = None,
    author: Annotated[str | None, typer.Option("--author", help="A regular expression, somewhere in the name.")] = None,
    grep: Annotated[str | None, typer.Option("--grep", help="The same for the message.")] = None,
    oneline: Annotated[bool, typer.Option("--oneline", help="One line a commit.")] = False,
    json: JsonFlag = False,
) -> None:
    """Show the commits of a branch, newest first.

    With paths, those that changed one of them or what is below. A merge is shown as one commit that says what it brought in.
    """
    from pfsmount.repo.history import Wanted, search_history

    with ranges_explained(target, _INSTEAD_OF_RANGE):
        parsed = parse_target(target)
    wanted = Wanted(
        [spec for text in paths or [""] for spec in _pathspecs(parsed.path or (), text)],
        None if since is None else parse_time(since),
        None if until is None else parse_time(until),
        _pattern(author),
        _pattern(grep),
    )
    with output.open_store() as store:
        with ranges_explained(target, _INSTEAD_OF_RANGE):
            resolved = store.resolve(parsed.repo, parsed.revision)
        commits = islice(search_history(store, resolved.commit, wanted), count)
        if json:
            output.print_json_list(commit_json(commit) for commit in commits)
        elif resolved.commit is None:
            output.note(f"{target} has no commits yet")
        elif not _print_commits(store, commits, oneline):
            output.note(f"no commit of {_place(parsed)} {_conditions(wanted)}")


def _pathspecs(directory: RepoPath, text: str) -> list[Pathspec]:
    """What a person means by a path: itself, and what it matches as a glob; the one of both that there can be. Raises InvalidInput."""
    from pfsmount.repo.history import Pathspec, is_glob
    from pfsmount.tree.globs import Glob

    found = []
    if is_glob(text):
        with suppress(InvalidInput):
            found.append(Pathspec(directory, Glob(text)))
    try:
        path = directory + parse_path(text)
    except InvalidInput:
        if not found:
            raise
    else:
        found += [Pathspec(path)] if path else []
    return found


def _pattern(text: str | None) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise InvalidInput(f"'{display(text or '')}' is not a regular expression: {error}") from None


@contextmanager
def ranges_explained(text: str, instead: str) -> Iterator[None]:
    """What is not found, or not understood, may be git's `a..b`: say so, with the versions put into `instead`: `{old}`, `{new}`."""
    try:
        yield
    except (InvalidInput, NotFound):
        _refuse_range(text, instead)
        raise


def _refuse_range(text: str, instead: str) -> None:
    head, _, path = text.partition(":")
    old, dots, new = head.partition("..")
    if not dots or not old.strip("."):
        return
    repo, at, _ = old.partition("@")
    new = new.lstrip(".")
    if not new:
        new = repo
    elif at and "@" not in new:
        new = f"{repo}@{new}"
    below = f":{path}" if path else ""
    hint = instead.format(old=display(old + below), new=display(new + below))
    raise InvalidInput(f"'{display(text)}' is a range; versions are named one by one", hint=hint)


def _place(target: Target) -> str:
    return display(str(Target(target.repo, target.revision)))


def _conditions(wanted: Wanted) -> str:
    paths = ", ".join(
        display(path_bytes(spec.path) if spec.glob is None else spec.glob.pattern) for spec in wanted.paths[:3]
    )
    return f"changed {paths}" if paths else "is like that"


def _print_commits(store: Store, commits: Iterable[Commit], oneline: bool) -> int:
    """Print commits as they come; how many there were."""
    shown = 0
    for commit in commits:
        if oneline:
            output.say(f"{commit.id.hex()[:12]}  {output.first_line(commit.message)}")
        else:
            if shown:
                output.say()
            for line in commit_lines(store, commit):
                output.say(line)
        shown += 1
    return shown


def commit_lines(store: Store, commit: Commit) -> Iterator[str]:
    """A commit for people."""
    from pfsmount.repo.history import merged

    yield f"commit  {commit.id.hex()}"
    for one in merged(store.objects, commit):
        what = f"{output.plural(one.commits, 'commit')}, the last: {output.first_line(one.parent.message)}"
        yield f"merge   {one.parent.id.hex()[:12]} ({what})"
    yield f"author  {display(commit.author)}"
    yield f"date    {output.local_time(commit.time_ns)} ({output.relative_time(commit.time_ns)})"
    yield f"tree    {output.plural(commit.tree.files, 'file')}, {output.human_size(commit.tree.size)}"
    yield f"made by {how_made(commit)}"
    for line in commit.message.split("\n"):
        yield f"    {display(line)}"


def how_made(commit: Commit) -> str:
    """What made a commit: a command, the mount, or a job and its inputs."""
    provenance = commit.provenance
    if provenance is None:
        return str(commit.origin.get("how", "unknown"))
    inputs = ", ".join(f"{source['repo']}@{source['commit'][:12]}" for source in provenance["inputs"])
    return f"{provenance['job']} from {inputs}"


def commit_json(commit: Commit) -> dict[str, Any]:
    """A commit as JSON."""
    return {
        "commit": commit.id.hex(),
        "parents": [parent.hex() for parent in commit.parents],
        "height": commit.height,
        "author": commit.author,
        "time_ns": commit.time_ns,
        "message": commit.message,
        "files": commit.tree.files,
        "size": commit.tree.size,
        "tree": commit.tree.id.hex(),
        "content_id": commit.tree.content.hex(),
        "origin": commit.origin,
        "provenance": commit.provenance,
    }
