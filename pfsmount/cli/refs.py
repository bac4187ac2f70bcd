"""`pfs branch`, `tag`, `reflog`, `reset`: pointers to commits, and where they were before."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfsmount.cli import output
from pfsmount.cli.repos import JsonFlag, describe_ref
from pfsmount.errors import InvalidInput, NotFound, NotPermitted, PfsError
from pfsmount.ids import display
from pfsmount.revision import Target, parse_target

if TYPE_CHECKING:
    from pfsmount.ids import ObjectId
    from pfsmount.repo.commit import Commit
    from pfsmount.repo.moves import LoggedChange
    from pfsmount.repo.rollback import Reset
    from pfsmount.repo.store import Resolved, Store

_LEFT_SHOWN = 10


def branch(
    target: Annotated[
        str, typer.Argument(help="REPO lists its branches; REPO@NAME makes a branch.", metavar="REPO[@NAME]")
    ],
    start: Annotated[
        str | None,
        typer.Argument(help="Where the new branch starts, default: the default branch; with --move the new name."),
    ] = None,
    delete: Annotated[
        bool, typer.Option("--delete", "-d", help="Delete the branch; its commits stay readable by id.")
    ] = False,
    move: Annotated[bool, typer.Option("--move", "-m", help="Rename the branch.")] = False,
    empty: Annotated[bool, typer.Option("--empty", help="Start without any commit.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Delete uncommitted work of the branch too.")] = False,
    json: JsonFlag = False,
) -> None:
    """List, make, rename or delete branches."""
    repo, name = _ref_name(target, "BRANCH")
    if delete + move + empty > 1 or (start is not None and (delete or empty)) or (move and start is None):
        raise InvalidInput(
            "--empty, --delete and --move NAME exclude each other, and only --move goes with a name or start"
        )
    with output.open_store() as store:
        if name is None:
            if delete or move or empty:
                raise InvalidInput(f"name the branch, as in {repo}@NAME")
            _list_branches(store, repo, json)
        elif delete:
            _delete_branch(store, repo, name, force)
        elif move:
            _rename_branch(store, repo, name, start or "")
        else:
            _create_branch(store, repo, name, start, empty)


def _ref_name(target: str, kind: str) -> tuple[str, str | None]:
    parsed = parse_target(target)
    name = parsed.revision.base
    if parsed.path is not None or (name is not None and not parsed.revision.is_plain):
        raise InvalidInput(f"'{display(target)}' is not REPO or REPO@{kind}")
    return parsed.repo, name


def _list_branches(store: Store, repo: str, json: bool) -> None:
    default = store.repo(repo).default_branch
    found = [describe_ref(store, ref) for ref in store.branches(repo)]
    if json:
        output.print_json(found)
        return
    output.table([(("* " if ref["name"] == default else "  ") + ref["name"], *_ref_cells(ref)) for ref in found])


def _ref_cells(ref: dict[str, Any]) -> tuple[str, str, str]:
    """Commit, age and message of a listed ref."""
    if ref["commit"] is None:
        return "no commit yet", "", ""
    return ref["commit"][:12], output.relative_time(ref["time_ns"]), output.first_line(ref["message"])


def _resolve_start(store: Store, repo: str, text: str | None, what: str, branch: str = "") -> Resolved:
    """A revision of `repo`, with or without its name before it; `~2` counts from `branch`, else from the default branch.

    Raises NotFound, InvalidInput (another repo).
    """
    if text and text[0] in "~^":
        text = (branch or store.repo(repo).default_branch) + text
    source = parse_target(text if text is not None and "@" in text else f"{repo}@{text}" if text else repo)
    if source.repo != repo:
        raise InvalidInput(
            f"a {what} of '{repo}' cannot be at a commit of '{source.repo}'",
            hint="'pfs cp' brings files over without copying data",
        )
    if source.path is not None:
        raise InvalidInput(f"'{display(text or '')}' has a path; a {what} is at a whole commit")
    return store.resolve(repo, source.revision)


def _create_branch(store: Store, repo: str, name: str, start: str | None, empty: bool) -> None:
    commit = None if empty else _resolve_start(store, repo, start, "branch").commit
    store.create_branch(repo, name, None if commit is None else commit.id)
    where = "without commits" if commit is None else f"at {commit.id.hex()[:12]}"
    output.say(f"made branch {repo}@{name} {where}")


def _delete_branch(store: Store, repo: str, name: str, force: bool) -> None:
    from pfsmount.repo.removal import delete_branch

    ref = delete_branch(store, repo, name, force=force)
    kept = "" if ref.commit is None else f"; its head {ref.commit.hex()[:12]} stays readable by id"
    output.say(f"deleted branch {repo}@{name}{kept}")


def _rename_branch(store: Store, repo: str, old: str, new: str) -> None:
    from pfsmount.fs.control import refresh
    from pfsmount.repo.pointers import rename_branch

    rename_branch(store, repo, old, new.removeprefix(f"{repo}@"))
    refresh(store)
    output.say(f"renamed branch {repo}@{old} to {repo}@{new.removeprefix(f'{repo}@')}")


def tag(
    target: Annotated[str, typer.Argument(help="REPO lists its tags; REPO@NAME makes a tag.", metavar="REPO[@NAME]")],
    revision: Annotated[str | None, typer.Argument(help="What is tagged; default: the default branch.")] = None,
    delete: Annotated[bool, typer.Option("--delete", "-d", help="Delete the tag; its commit stays readable.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Delete without asking.")] = False,
    json: JsonFlag = False,
) -> None:
    """List, make or delete tags: names of commits that never move."""
    from pfsmount.repo.pointers import create_tag
    from pfsmount.repo.refs import RefKind

    repo, name = _ref_name(target, "TAG")
    if delete and (name is None or revision is not None):
        raise InvalidInput("--delete takes one tag, as in REPO@TAG")
    with output.open_store() as store:
        if name is None:
            found = [describe_ref(store, ref) for ref in store.refs(repo, RefKind.TAG)]
            if json:
                output.print_json(found)
            else:
                output.table([(f"  {ref['name']}", *_ref_cells(ref)) for ref in found])
        elif delete:
            _delete_tag(store, repo, name, force)
        else:
            commit = _resolve_start(store, repo, revision, "tag").commit
            if commit is None:
                raise NotFound(f"{revision or repo} has no commits yet, so there is nothing to tag")
            create_tag(store, repo, name, commit.id)
            output.say(f"made tag {repo}@{name} at {commit.id.hex()[:12]}")


def _delete_tag(store: Store, repo: str, name: str, force: bool) -> None:
    from pfsmount.repo.pointers import delete_tag
    from pfsmount.repo.refs import RefKind

    exists = store.ref(repo, RefKind.TAG, name) is not None
    if exists and not force and not output.confirm(f"delete tag {repo}@{name}? It was meant to stay"):
        raise NotPermitted(f"tag {repo}@{name} was not deleted", hint="--force does it without asking")
    ref = delete_tag(store, repo, name)
    assert ref.commit is not None
    output.say(f"deleted tag {repo}@{name}; its commit {ref.commit.hex()[:12]} stays readable by id")


def reflog(
    target: Annotated[
        str | None, typer.Argument(help="REPO[@BRANCH], deleted ones too; without it, all.", metavar="TARGET")
    ] = None,
    count: Annotated[int | None, typer.Option("--max-count", "-n", min=1, help="At most so many.")] = None,
    jobs: Annotated[bool, typer.Option("--jobs", help="The refs of jobs too.")] = False,
    json: JsonFlag = False,
) -> None:
    """Show where branches and tags were before: each move, newest first, with who made it and how."""
    from pfsmount.repo.moves import logged_changes
    from pfsmount.repo.refs import RefKind

    repo, name = (None, None) if target is None else _ref_name(target, "BRANCH")
    kinds = tuple(RefKind) if jobs or name is not None else (RefKind.BRANCH, RefKind.TAG)
    with output.open_store() as store:
        changes = islice(logged_changes(store, repo, name, kinds), count)
        if json:
            output.print_json_list(_change_json(change) for change in changes)
            return
        shown = 0
        for change in changes:
            output.say(_change_line(store, change))
            shown += 1
    if not shown and target is not None:
        raise NotFound(f"the reflog has nothing about {display(target)}", hint="'pfs reflog' shows all it has")


def _change_json(change: LoggedChange) -> dict[str, Any]:
    return {
        "n": change.n,
        "time_ns": change.time_ns,
        "op": change.op,
        "repo": change.repo,
        "kind": None if change.kind is None else change.kind.name.lower(),
        "name": change.name,
        "old": None if change.old is None else change.old.hex(),
        "new": None if change.new is None else change.new.hex(),
        "deleted": change.deletes,
        "who": change.who,
        "why": change.why,
    }


def _change_line(store: Store, change: LoggedChange) -> str:
    place = change.repo if change.op in ("repo-create", "repo-delete") else f"{change.repo}@{change.name}"
    parts = [output.local_time(change.time_ns)[:19], f"{_where(store, change):<27}", display(place)]
    parts.append(f"{display(change.why)} by {display(change.who)}")
    message = _message(store, change.new)
    return "  ".join(parts) + (f": {message}" if message else "")


def _where(store: Store, change: LoggedChange) -> str:
    """What became of a ref, in at most 27 characters."""
    if change.op != "ref":
        return {"repo-create": "repo made", "repo-delete": "repo deleted", "default": "made default"}.get(change.op, "")
    old = "-" if change.old is None else change.old.hex()[:12]
    new = "deleted" if change.deletes else "no commit" if change.new is None else change.new.hex()[:12]
    return f"{old:<12} → {new}"


def _message(store: Store, id: ObjectId | None) -> str:
    try:
        return "" if id is None else output.first_line(store.read_commit(id).message)
    except PfsError:  # gone, or damaged: the move itself is known all the same
        return ""


def reset(
    target: Annotated[str, typer.Argument(help="REPO[@BRANCH]", metavar="REPO[@BRANCH]")],
    revision: Annotated[
        str | None, typer.Argument(help="Where the branch goes: any commit of the repo; ~2 counts from the branch.")
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Back to where it was before its last move.")] = False,
    json: JsonFlag = False,
) -> None:
    """Move a branch to another commit. Nothing is lost: what it leaves stays readable by id, uncommitted work stays."""
    from pfsmount.fs.control import refresh
    from pfsmount.repo.rollback import commit_before, reset

    repo, name = _ref_name(target, "BRANCH")
    if undo == (revision is not None):
        raise InvalidInput(
            "say where the branch is to go: a revision, or --undo", hint=f"pfs reset {target} {target}~1"
        )
    with output.open_store() as store:
        branch = _branch_of(store, repo, name)
        if undo:
            before = commit_before(store, repo, branch)
            new = None if before is None else store.read_commit(before)
        else:
            new = _resolve_start(store, repo, revision, "branch", branch).commit
        done = reset(store, repo, branch, new, why="reset --undo" if undo else "reset")
        refresh(store)
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
