"""`pfs reset`, `revert`: a branch goes back, by moving or by a new commit."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfsmount.cli import output
from pfsmount.cli.conflicts import print_conflicts
from pfsmount.cli.files import MessageOption
from pfsmount.cli.merge import MineFlag, TheirsFlag
from pfsmount.cli.refs import ref_name, resolve_start
from pfsmount.cli.repos import JsonFlag
from pfsmount.errors import InvalidInput, NotFound, NotPermitted
from pfsmount.revision import Target, parse_target

if TYPE_CHECKING:
    from pfsmount.repo.commit import Commit
    from pfsmount.repo.revert import RevertReport
    from pfsmount.repo.rollback import Reset
    from pfsmount.repo.store import Store

_LEFT_SHOWN = 10


def reset(
    target: Annotated[str, typer.Argument(help="REPO[@BRANCH]", metavar="REPO[@BRANCH]")],
    revision: Annotated[
        str | None, typer.Argument(help="Where the branch goes: any commit of the repo; ~2 counts from the branch.")
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Back to where it was before its last move.")] = False,
    json: JsonFlag = False,
) -> None:
    """Move a branch to another commit. Nothing is lost: what it leaves stays readable by id, uncommitted work stays."""
    from pfsmount.repo.rollback import commit_before, reset

    repo, name = ref_name(target, "BRANCH")
    if undo == (revision is not None):
        raise InvalidInput(
            "say where the branch is to go: a revision, or --undo", hint=f"pfs reset {target} {name or 'BRANCH'}~1"
        )
    with output.open_store() as store:
        branch = _branch_of(store, repo, name)
        if undo:
            before = commit_before(store, repo, branch)
            new = None if before is None else store.read_commit(before)
        else:
            new = resolve_start(store, repo, revision, "branch", branch).commit
        done = reset(store, repo, branch, new, why="reset --undo" if undo else "reset")
        if json:
            output.print_json(_reset_json(repo, branch, done))
        else:
            for line in _reset_lines(store, repo, branch, done):
                output.say(line)


def _branch_of(store: Store, repo: str, name: str | None) -> str:
    """The branch that is to be moved. Raises NotPermitted for a tag or commit."""
    resolved = store.resolve(repo, parse_target(repo if name is None else f"{repo}@{name}").revision)
    if resolved.branch is None:
        raise NotPermitted(
            f"{repo}@{name} is not a branch, and never moves", hint=f"'pfs branch {repo}' lists the branches"
        )
    return resolved.branch


def _short(commit: Commit | None) -> str:
    return "no commit" if commit is None else commit.id.hex()[:12]


def _reset_json(repo: str, branch: str, done: Reset) -> dict[str, Any]:
    return {
        "repo": repo,
        "branch": branch,
        "old": None if done.old is None else done.old.id.hex(),
        "new": None if done.new is None else done.new.id.hex(),
        "left_behind": done.left_behind,
        "regained": done.regained,
    }


def _reset_lines(store: Store, repo: str, branch: str, done: Reset) -> Iterator[str]:
    place = str(Target(repo, parse_target(f"{repo}@{branch}").revision))
    if done.old == done.new:
        yield f"{place} is at {_short(done.new)} already; nothing was changed"
        return
    title = "" if done.new is None else f" ({output.first_line(done.new.message)})"
    yield f"{place} is now {_short(done.new)}{title}"
    if done.regained:
        yield f"on it again: {output.plural(done.regained, 'commit')}"
    if done.left_behind:
        yield f"left behind, and readable by id: {output.plural(done.left_behind, 'commit')}"
        for commit in islice(done.commits_left(store), _LEFT_SHOWN):
            yield f"  {_short(commit)}  {output.first_line(commit.message)}"
        if done.left_behind > _LEFT_SHOWN:
            yield f"  … and {done.left_behind - _LEFT_SHOWN} more"
    back = "--undo" if done.old is None else _short(done.old)
    yield f"to go back: pfs reset {place} {back}"
    yield from _uncommitted_lines(store, repo, branch)


def _uncommitted_lines(store: Store, repo: str, branch: str) -> Iterator[str]:
    """What became of uncommitted work."""
    from pfsmount.cli.work import read_status

    status = read_status(store, repo, branch)
    if status.changes:
        yield f"{output.plural(len(status.changes), 'uncommitted change')} kept"
    if status.conflicts:
        paths = output.plural(len(status.conflicts), "path")
        yield f"{paths} of it in conflict with where the branch is now: see 'pfs status {repo}@{branch}', or go back"


def revert(
    target: Annotated[str, typer.Argument(help="REPO[@BRANCH]", metavar="REPO[@BRANCH]")],
    revisions: Annotated[
        list[str],
        typer.Argument(help="What to undo: commits of the repo; ~2 counts from the branch.", metavar="COMMIT…"),
    ],
    message: MessageOption = None,
    mine: MineFlag = False,
    theirs: TheirsFlag = False,
    json: JsonFlag = False,
) -> None:
    """Undo what commits changed, each in a new commit; what came later stays.

    All are undone or none. Conflicts change nothing and are listed with both sides (exit code 3): mine is what the branch has,
    theirs what was there before the commit; --mine or --theirs settles them.
    """
    from pfsmount.repo.revert import revert as revert_commits
    from pfsmount.tree.merge import Resolution

    if mine and theirs:
        raise InvalidInput("--mine and --theirs exclude each other")
    side = Resolution.MINE if mine else Resolution.THEIRS if theirs else None
    repo, name = ref_name(target, "BRANCH")
    with output.open_store() as store:
        branch = _branch_of(store, repo, name)
        found = [resolve_start(store, repo, text, "revert", branch).commit for text in revisions]
        commits = [commit for commit in found if commit is not None]
        if len(commits) < len(found):
            raise NotFound(f"{revisions[found.index(None)]} has no commits, so there is nothing to undo")
        with output.Progress("reverting"):
            report = revert_commits(store, repo, branch, commits, message=message, side=side)
    if json:
        output.print_json({"repo": repo, "branch": branch, **_revert_json(report)})
    else:
        _print_revert(report, f"{repo}@{branch}")
    if report.refused is not None:
        raise typer.Exit(output.EXIT_CONFLICT)


def _revert_json(report: RevertReport) -> dict[str, Any]:
    from pfsmount.repo.conflicts import conflict_json

    return {
        "head": report.head.id.hex(),
        "commits": [commit.id.hex() for commit in report.made],
        "unchanged": [commit.id.hex() for commit in report.unchanged],
        "refused": None if report.refused is None else report.refused.id.hex(),
        "conflicts": [conflict_json(conflict) for conflict in report.conflicts],
    }


def _print_revert(report: RevertReport, place: str) -> None:
    if report.refused is not None:
        print_conflicts(report.conflicts)
        count = output.plural(len(report.conflicts), "conflict")
        title = output.first_line(report.refused.message)
        output.note(f"pfs: {_short(report.refused)} ({title}) was not undone: {count}; nothing was changed")
        output.note(
            f"  hint: --mine keeps what {place} has at these paths, --theirs brings back what was before the commit"
        )
        return
    for commit in report.unchanged:
        output.say(f"nothing to undo of {_short(commit)} ({output.first_line(commit.message)})")
    for commit in report.made:
        output.say(f"{_short(commit)}  {output.first_line(commit.message)}")
    if report.made:
        output.say(f"{place} is now {_short(report.head)}")
