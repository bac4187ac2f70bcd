"""`pfs init`, `pfs repo …`, `pfs branch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfsmount.cli import output
from pfsmount.errors import InvalidInput, NotPermitted
from pfsmount.revision import check_repo_name, parse_target

if TYPE_CHECKING:
    from pfsmount.repo.refs import RepoInfo
    from pfsmount.repo.store import Store

repo_app = typer.Typer(
    help="Make, list and delete repos.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def init(
    directory: Annotated[
        Path | None, typer.Argument(help="Where; default: --store, $PFS_STORE or the user's data directory.")
    ] = None,
) -> None:
    """Make an empty store."""
    from pfsmount.repo.store import Store

    path = output.store_path(directory)
    Store.create(path)
    output.say(f"made an empty store at {path}")
    if directory is not None and path != output.store_path():
        output.say(f"use it with: export PFS_STORE={path}")


@repo_app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Letters, digits, '_', '-', '.'.")],
    description: Annotated[str, typer.Option("--description", "-d", help="What is in it.")] = "",
) -> None:
    """Make a repo with an empty branch 'master'."""
    with output.open_store() as store:
        repo = store.create_repo(name, description)
    output.say(f"made repo {repo.name} with the empty branch {repo.name}@{repo.default_branch}")


@repo_app.command("list")
def list_repos(json: JsonFlag = False) -> None:
    """List all repos."""
    with output.open_store() as store:
        repos = [describe(store, repo) for repo in store.repos()]
    if json:
        output.print_json(repos)
        return
    if not repos:
        output.note("no repos yet; make one with 'pfs repo create NAME'")
    rows = [
        (
            repo["name"],
            output.plural(repo["files"], "file"),
            output.human_size(repo["size"]),
            output.relative_time(repo["changed_ns"]),
            ", ".join(branch["name"] for branch in repo["branches"]),
            repo["description"],
        )
        for repo in repos
    ]
    output.table(rows, ("repo", "files", "size", "changed", "branches", "description"))


@repo_app.command("inspect")
def inspect(name: Annotated[str, typer.Argument(help="The repo.")], json: JsonFlag = False) -> None:
    """Show one repo with its branches."""
    with output.open_store() as store:
        repo = describe(store, store.repo(name))
    if json:
        output.print_json(repo)
        return
    output.say(f"repo         {repo['name']}")
    if repo["description"]:
        output.say(f"description  {repo['description']}")
    output.say(f"created      {output.local_time(repo['created_ns'])}")
    output.say(f"default      {repo['name']}@{repo['default_branch']}")
    output.say(f"content      {output.plural(repo['files'], 'file')}, {output.human_size(repo['size'])}")
    rows = [
        (
            f"  {repo['name']}@{branch['name']}",
            (branch["commit"] or "no commit yet")[:12],
            output.plural(branch["commits"], "commit"),
            branch["message"],
        )
        for branch in repo["branches"]
    ]
    output.table(rows)


@repo_app.command("delete")
def delete(
    name: Annotated[str, typer.Argument(help="The repo.")],
    force: Annotated[bool, typer.Option("--force", "-f", help="Do not ask; delete uncommitted work too.")] = False,
) -> None:
    """Delete a repo with all its branches. What other repos share with it stays."""
    from pfsmount.repo.removal import delete_repo

    check_repo_name(name)
    with output.open_store() as store:
        repo = describe(store, store.repo(name))
        question = f"delete repo {name} ({output.plural(repo['files'], 'file')} at its default branch)?"
        if not force and not output.confirm(question):
            raise NotPermitted(f"repo {name} was not deleted", hint="--force does it without asking")
        delete_repo(store, name, force=force)
    output.say(f"deleted repo {name}")


def describe(store: Store, repo: RepoInfo) -> dict[str, Any]:
    """A repo as JSON."""
    branches = []
    files = size = 0
    changed = repo.created_ns
    for ref in store.branches(repo.name):
        commit = None if ref.commit is None else store.read_commit(ref.commit)
        branches.append(
            {
                "name": ref.name,
                "commit": None if commit is None else commit.id.hex(),
                "commits": 0 if commit is None else commit.height + 1,
                "message": "" if commit is None else commit.message,
            }
        )
        if commit is not None:
            changed = max(changed, commit.time_ns)
            if ref.name == repo.default_branch:
                files, size = commit.tree.files, commit.tree.size
    return {
        "name": repo.name,
        "description": repo.description,
        "created_ns": repo.created_ns,
        "changed_ns": changed,
        "default_branch": repo.default_branch,
        "files": files,
        "size": size,
        "branches": branches,
    }


def branch(
    target: Annotated[
        str, typer.Argument(help="REPO lists its branches; REPO@NAME makes a branch.", metavar="REPO[@NAME]")
    ],
    start: Annotated[
        str | None, typer.Argument(help="Where the new branch starts; default: the default branch.")
    ] = None,
    delete: Annotated[
        bool, typer.Option("--delete", "-d", help="Delete the branch; its commits stay readable by id.")
    ] = False,
    empty: Annotated[bool, typer.Option("--empty", help="Start without any commit.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Delete uncommitted work of the branch too.")] = False,
    json: JsonFlag = False,
) -> None:
    """List, make or delete branches."""
    parsed = parse_target(target)
    name = parsed.revision.base
    if parsed.path is not None or (name is not None and not parsed.revision.is_plain):
        raise InvalidInput(f"'{target}' is not REPO or REPO@BRANCH")
    with output.open_store() as store:
        if name is None:
            _list_branches(store, parsed.repo, json)
        elif delete:
            _delete_branch(store, parsed.repo, name, force)
        else:
            _create_branch(store, parsed.repo, name, start, empty)


def _list_branches(store: Store, repo: str, json: bool) -> None:
    info = describe(store, store.repo(repo))
    if json:
        output.print_json(info["branches"])
        return
    rows = [
        (
            ("* " if branch["name"] == info["default_branch"] else "  ") + branch["name"],
            (branch["commit"] or "no commit yet")[:12],
            branch["message"],
        )
        for branch in info["branches"]
    ]
    output.table(rows)


def _create_branch(store: Store, repo: str, name: str, start: str | None, empty: bool) -> None:
    if empty and start is not None:
        raise InvalidInput("--empty and a start exclude each other")
    source = parse_target(start if start is not None and "@" in start else f"{repo}@{start}" if start else repo)
    if source.repo != repo:
        raise InvalidInput(
            f"a branch of '{repo}' cannot start at a commit of '{source.repo}'",
            hint="'pfs cp' brings files over without copying data",
        )
    commit = None if empty else store.resolve(repo, source.revision).commit
    store.create_branch(repo, name, None if commit is None else commit.id)
    where = "without commits" if commit is None else f"at {commit.id.hex()[:12]}"
    output.say(f"made branch {repo}@{name} {where}")


def _delete_branch(store: Store, repo: str, name: str, force: bool) -> None:
    from pfsmount.repo.removal import delete_branch

    ref = delete_branch(store, repo, name, force=force)
    kept = "" if ref.commit is None else f"; its head {ref.commit.hex()[:12]} stays readable by id"
    output.say(f"deleted branch {repo}@{name}{kept}")
