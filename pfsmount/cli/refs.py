"""`pfs branch`, `tag`, `reflog`: pointers to commits, and where they were before."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfsmount.cli import output
from pfsmount.cli.repos import JsonFlag, describe_ref
from pfsmount.errors import InvalidInput, NotFound, PfsError
from pfsmount.ids import display
from pfsmount.revision import check_ref_name, check_repo_name, parse_target

if TYPE_CHECKING:
    from pfsmount.ids import ObjectId
    from pfsmount.repo.moves import LoggedChange
    from pfsmount.repo.revisions import Resolved
    from pfsmount.repo.store import Store


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
    repo, name = ref_name(target, "BRANCH")
    if delete + move + empty > 1 or (start is not None and (delete or empty)) or (move and start is None):
        raise InvalidInput(
            "--empty, --delete and --move NAME exclude each other, and only --move goes with a name or start"
        )
    with output.open_store() as store:
        if name is None:
            if delete or move or empty:
                raise InvalidInput(f"name the branch, as in {repo}@NAME")
            if start is not None:
                raise InvalidInput("a branch is named with its repo", hint=f"pfs branch {repo}@{start}")
            _list_branches(store, repo, json)
        elif delete:
            _delete_branch(store, repo, name, force)
        elif move:
            _rename_branch(store, repo, name, start or "")
        else:
            _create_branch(store, repo, name, start, empty)


def ref_name(target: str, kind: str) -> tuple[str, str | None]:
    """Parse REPO[@NAME]. Raises InvalidInput."""
    wanted, at, named = target.partition("@")
    if at and "/" in named and ":" not in named:  # as in git: feature/x
        check_repo_name(wanted)
        check_ref_name(named, kind.lower())
    parsed = parse_target(target)
    name = parsed.revision.base
    if parsed.path is not None or (name is not None and not parsed.revision.is_plain):
        raise InvalidInput(f"'{display(target)}' is not REPO or REPO@{kind}")
    return parsed.repo, name


def _list_branches(store: Store, repo: str, json: bool) -> None:
    default = store.repo(repo).default_branch
    found = [describe_ref(store, ref) for ref in store.branches(repo)]
    private = store.worktrees(repo)
    for ref in found:
        ref["worktrees"] = [name for branch, name in private if branch == ref["name"]]
    if json:
        output.print_json(found)
        return
    rows = []
    for ref in found:
        rows.append((("* " if ref["name"] == default else "  ") + ref["name"], *_ref_cells(ref)))
        rows += [(f"    {ref['name']}+{name}", "private", "", "") for name in ref["worktrees"]]
    output.table(rows)


def _ref_cells(ref: dict[str, Any]) -> tuple[str, str, str]:
    """Commit, age and message of a listed ref."""
    if ref["commit"] is None:
        return "no commit yet", "", ""
    return ref["commit"][:12], output.relative_time(ref["time_ns"]), output.first_line(ref["message"])


def resolve_start(store: Store, repo: str, text: str | None, what: str, branch: str = "") -> Resolved:
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
    commit = None if empty else resolve_start(store, repo, start, "branch").commit
    store.create_branch(repo, name, None if commit is None else commit.id)
    where = "without commits" if commit is None else f"at {commit.id.hex()[:12]}"
    output.say(f"made branch {repo}@{name} {where}")


def _delete_branch(store: Store, repo: str, name: str, force: bool) -> None:
    from pfsmount.repo.refs import RefKind
    from pfsmount.repo.removal import delete_branch

    if store.ref(repo, RefKind.TAG, name) is not None:
        raise InvalidInput(f"{repo}@{name} is a tag, not a branch", hint=f"pfs tag --delete {repo}@{name}")
    ref = delete_branch(store, repo, name, force=force)
    kept = "" if ref.commit is None else f"; its head {ref.commit.hex()[:12]} stays readable by id"
    output.say(f"deleted branch {repo}@{name}{kept}")


def _rename_branch(store: Store, repo: str, old: str, new: str) -> None:
    from pfsmount.repo.pointers import rename_branch

    rename_branch(store, repo, old, new.removeprefix(f"{repo}@"))
    output.say(f"renamed branch {repo}@{old} to {repo}@{new.removeprefix(f'{repo}@')}")


def tag(
    target: Annotated[str, typer.Argument(help="REPO lists its tags; REPO@NAME makes a tag.", metavar="REPO[@NAME]")],
    revision: Annotated[str | None, typer.Argument(help="What is tagged; default: the default branch.")] = None,
    delete: Annotated[bool, typer.Option("--delete", "-d", help="Delete the tag; its commit stays readable.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", "--force", "-f", help="Delete without asking.")] = False,
    json: JsonFlag = False,
) -> None:
    """List, make or delete tags: names of commits that never move."""
    from pfsmount.repo.pointers import create_tag
    from pfsmount.repo.refs import RefKind

    repo, name = ref_name(target, "TAG")
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
            _delete_tag(store, repo, name, yes)
        else:
            commit = resolve_start(store, repo, revision, "tag").commit
            if commit is None:
                raise NotFound(f"{revision or repo} has no commits yet, so there is nothing to tag")
            create_tag(store, repo, name, commit.id)
            output.say(f"made tag {repo}@{name} at {commit.id.hex()[:12]}")


def _delete_tag(store: Store, repo: str, name: str, yes: bool) -> None:
    from pfsmount.repo.pointers import delete_tag
    from pfsmount.repo.refs import RefKind

    exists = store.ref(repo, RefKind.TAG, name) is not None
    if exists:
        question = f"delete tag {repo}@{name}? It was meant to stay"
        output.require_yes(question, f"tag {repo}@{name} was not deleted", yes=yes)
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

    repo, name = (None, None) if target is None else ref_name(target, "BRANCH")
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
