"""`pfs init`, `pfs repo …`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfsmount.cli import output
from pfsmount.errors import Corrupt, NotFound, PfsError
from pfsmount.ids import display
from pfsmount.revision import check_repo_name

if TYPE_CHECKING:
    from pfsmount.repo.refs import RefInfo, RepoInfo
    from pfsmount.repo.store import Store

repo_app = typer.Typer(
    help="Make, list and delete repos.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
)
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]
YesFlag = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def init(
    directory: Annotated[
        Path | None,
        typer.Argument(help="Where; default: --store, $PFS_STORE or the user's data directory.", metavar="DIR"),
    ] = None,
) -> None:
    """Make an empty store."""
    from pfsmount.repo.store import Store

    path = output.store_path(directory)
    with output.place_to_write("give a directory that you may write to: pfs init DIR"):
        Store.create(path)
    output.say(f"made an empty store at {path}")
    if directory is not None and path != output.store_path():
        output.say(f"use it with: export PFS_STORE={path}")


@repo_app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Letters, digits, '_', '-', '.'.", metavar="REPO")],
    description: Annotated[str, typer.Option("--description", "-d", help="What is in it.")] = "",
) -> None:
    """Make a repo with an empty branch 'master'."""
    with output.open_store() as store:
        repo = store.create_repo(name, description)
    output.say(f"made repo {repo.name} with the empty branch {repo.name}@{repo.default_branch}")


@repo_app.command("list")
def list_repos(json: JsonFlag = False) -> None:
    """List all repos. One that cannot be read is told with the reason, and the exit code is 1."""
    with output.open_store() as store:
        repos, damaged = _describe_all(store)
    if json:
        problems = [{"name": name, "problem": error.message} for name, error in damaged]
        output.print_json(sorted(repos + problems, key=lambda repo: repo["name"]))
    else:
        _print_repos(repos, any_damaged=bool(damaged))
    tell_damaged(damaged)


def tell_damaged(damaged: list[tuple[str, PfsError]]) -> None:
    """Say which repos and refs are missing in what was listed, and why: exit code 1."""
    for name, error in damaged:
        what = "branch" if "@" in name else "repo"
        output.print_error(
            "pfs", Corrupt(f"the {what} {display(name)} cannot be shown: {error.message}", hint=error.hint)
        )
    if damaged:
        raise typer.Exit(output.EXIT_FAILED)


def readable_branches(store: Store) -> tuple[list[tuple[RepoInfo, RefInfo]], list[tuple[str, PfsError]]]:
    """All branches, and the repos and branches whose rows are damaged, with the reason."""
    from pfsmount.repo.refs import RefKind, readable_refs

    damaged: list[tuple[str, PfsError]] = []
    found = readable_refs(store.objects.index, RefKind.BRANCH, lambda name, error: damaged.append((name, error)))
    return found, damaged


def _describe_all(store: Store) -> tuple[list[dict[str, Any]], list[tuple[str, PfsError]]]:
    """All repos as JSON, and those that cannot be read."""
    from pfsmount.repo.refs import readable_repos

    found: list[dict[str, Any]] = []
    damaged: list[tuple[str, PfsError]] = []
    for repo in readable_repos(store.objects.index, lambda name, error: damaged.append((name, error))):
        try:
            found.append(describe(store, repo))
        except (Corrupt, NotFound) as error:
            if repo in readable_repos(store.objects.index, lambda *_: None):  # else somebody deleted it just now
                damaged.append((repo.name, error))
    return found, sorted(damaged, key=lambda one: one[0])


def _print_repos(repos: list[dict[str, Any]], *, any_damaged: bool) -> None:
    if not repos and not any_damaged:
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
def inspect(name: Annotated[str, typer.Argument(help="The repo.", metavar="REPO")], json: JsonFlag = False) -> None:
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
            output.first_line(branch["message"]),
        )
        for branch in repo["branches"]
    ]
    output.table(rows)
    if repo["tags"]:
        output.say("tags")
        output.table(
            [
                (f"  {repo['name']}@{tag['name']}", tag["commit"][:12], output.first_line(tag["message"]))
                for tag in repo["tags"]
            ]
        )


@repo_app.command("default")
def default(
    name: Annotated[str, typer.Argument(help="The repo.", metavar="REPO")],
    branch: Annotated[str, typer.Argument(help="What the repo's name alone is to mean.")],
) -> None:
    """Choose the default branch of a repo."""
    from pfsmount.repo.pointers import set_default_branch

    with output.open_store() as store:
        set_default_branch(store, name, branch)
    output.say(f"{name} now means {name}@{branch}")


@repo_app.command("delete")
def delete(
    name: Annotated[str, typer.Argument(help="The repo.", metavar="REPO")],
    yes: YesFlag = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Do not ask; delete uncommitted work too.")] = False,
) -> None:
    """Delete a repo with all its branches. What other repos share with it stays."""
    from pfsmount.repo.removal import delete_repo

    check_repo_name(name)
    with output.open_store() as store:
        repo = describe(store, store.repo(name))
        content = f"{output.plural(repo['files'], 'file')} at its default branch"
        question = f"delete repo {name} ({content})?"
        kept = f"repo {name} ({content}) was not deleted"
        output.require_yes(question, kept, yes=yes or force)
        delete_repo(store, name, force=force)
    output.say(f"deleted repo {name}")


def describe(store: Store, repo: RepoInfo) -> dict[str, Any]:
    """A repo as JSON."""
    from pfsmount.repo.refs import RefKind

    branches = [describe_ref(store, ref) for ref in store.branches(repo.name)]
    first = next((ref.commit for ref in store.branches(repo.name) if ref.name == repo.default_branch), None)
    tree = store.empty_root() if first is None else store.read_commit(first).tree
    return {
        "name": repo.name,
        "description": repo.description,
        "created_ns": repo.created_ns,
        "changed_ns": max([repo.created_ns, *(branch["time_ns"] or 0 for branch in branches)]),
        "default_branch": repo.default_branch,
        "files": tree.files,
        "size": tree.size,
        "branches": branches,
        "tags": [describe_ref(store, ref) for ref in store.refs(repo.name, RefKind.TAG)],
    }


def describe_ref(store: Store, ref: RefInfo) -> dict[str, Any]:
    """A branch or tag as JSON."""
    commit = None if ref.commit is None else store.read_commit(ref.commit)
    return {
        "name": ref.name,
        "commit": None if commit is None else commit.id.hex(),
        "commits": 0 if commit is None else commit.height + 1,
        "message": "" if commit is None else commit.message,
        "author": None if commit is None else commit.author,
        "time_ns": None if commit is None else commit.time_ns,
    }
