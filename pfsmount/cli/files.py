"""`pfs ls`, `cat`, `cp`, `rm`: files of a version, read and changed by reference."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfsmount.cli import interruption, output
from pfsmount.cli.repos import JsonFlag, readable_branches, tell_damaged
from pfsmount.errors import InvalidInput, IsADirectory, NotFound, NotPermitted
from pfsmount.ids import RepoPath, display, path_bytes
from pfsmount.revision import Target, parse_target

if TYPE_CHECKING:
    from pfsmount.repo.commit import Commit
    from pfsmount.repo.store import Store
    from pfsmount.tree.entry import Entry

MessageOption = Annotated[str | None, typer.Option("--message", "-m", help="What this commit is about.")]
Place = Annotated[str, typer.Argument(help="REPO[@REVISION][:/PATH]", metavar="TARGET")]


def writable_branch(store: Store, target: Target) -> str:
    """The branch that a target names. Raises NotPermitted when it is a commit or an ancestor."""
    resolved = store.resolve(target.repo, target.revision)
    if resolved.branch is None:
        raise NotPermitted(
            f"{target.repo}@{target.revision} is a commit, which never changes",
            hint="write to a branch; 'pfs branch' makes one at any commit",
        )
    if resolved.worktree is not None:
        raise NotPermitted(
            f"{target.repo}@{target.revision} is a private worktree, which is written to in a mount",
            hint=f"pfs mount {target.repo}@{target.revision} DIR; 'pfs commit' brings it into {target.repo}@{resolved.branch}",
        )
    interruption.if_interrupted("nothing was committed")
    return resolved.branch


def entry_at(store: Store, target: Target) -> Entry:
    """What a target names: the root when it has no path. Raises NotFound."""
    from pfsmount.tree.directory import find

    resolved = store.resolve(target.repo, target.revision)
    entry = find(store.objects, store.root_of(resolved), target.path or ())
    if entry is None:
        raise NotFound(f"there is no {display(str(target))}")
    return entry


def say_commit(commit: Commit | None, repo: str, branch: str, did: str, nothing: str = "has all of it already") -> None:
    """The one line that every committing command ends with."""
    if commit is None:
        output.say(f"nothing changed: {repo}@{branch} {nothing}; no commit was made")
    else:
        output.say(f"{did}; {repo}@{branch} is now {commit.id.hex()[:12]}")


def cat(targets: Annotated[list[str], typer.Argument(help="REPO[@REVISION]:/PATH", metavar="TARGET…")]) -> None:
    """Print files."""
    from pfsmount.repo.export import Export
    from pfsmount.tree.entry import Kind

    with output.open_store() as store:
        found = []
        for text in targets:
            target = parse_target(text)
            entry = entry_at(store, target)
            if entry.kind is not Kind.FILE:
                raise IsADirectory(f"{display(str(target))} is not a file")
            found.append(entry)
        sys.stdout.flush()
        total = sum(entry.size for entry in found)
        with output.Progress("reading", total, printing=True) as bar:
            export = Export(store.objects, lambda report: bar.transfer(report.files, report.size))
            for entry in found:
                export.stream(entry, sys.stdout.fileno())


def ls(
    target: Annotated[
        str | None, typer.Argument(help="REPO[@REVISION][:/PATH]; without it, all branches.", metavar="TARGET")
    ] = None,
    long: Annotated[bool, typer.Option("--long", "-l", help="Mode, size, time and id.")] = False,
    recursive: Annotated[bool, typer.Option("--recursive", "-R", help="Everything below.")] = False,
    json: JsonFlag = False,
) -> None:
    """List a directory."""
    with output.open_store() as store:
        if target is None:
            found, damaged = readable_branches(store)
            names = [f"{repo.name}@{ref.name}" for repo, ref in found]
            if json:
                output.print_json(names)
            else:
                for name in names:
                    output.say(name)
            return tell_damaged(damaged)
        parsed = parse_target(target)
        listed = _listing(store, parsed, recursive)
        if json:
            output.print_json([entry_json(path, entry) for path, entry in listed])
        elif long:
            output.table([long_row(path, entry) for path, entry in listed])
        else:
            for path, entry in listed:
                output.say(display(b"/".join(path)) + ("/" if entry.is_directory else ""))


def _listing(store: Store, target: Target, recursive: bool) -> Iterator[tuple[RepoPath, Entry]]:
    from pfsmount.tree.directory import entries, walk

    entry = entry_at(store, target)
    if not entry.is_directory:
        yield (target.path or ())[-1:], entry
        return
    total = entry.files if recursive else None
    found = (
        walk(store.objects, entry)
        if recursive
        else (((name,), child) for name, child in entries(store.objects, entry.id))
    )
    with output.Progress("listing", total, printing=True) as bar:
        files = 0
        for path, child in found:
            if path:
                yield path, child
                files += not child.is_directory
                bar.update(files)


def entry_json(path: RepoPath, entry: Entry) -> dict[str, Any]:
    """What lies at a path, as JSON."""
    found: dict[str, Any] = {
        "path": os.fsdecode(b"/".join(path)),
        "kind": entry.kind.name.lower(),
        "mode": f"{entry.mode:04o}",
        "uid": entry.uid,
        "gid": entry.gid,
        "mtime_ns": entry.mtime_ns,
        "size": entry.size,
        "id": entry.id.hex(),
    }
    if entry.is_directory:
        found["content_id"] = entry.content.hex()
        found["files"] = entry.files
    if entry.target is not None:
        found["target"] = os.fsdecode(entry.target)
    return found


def long_row(path: RepoPath, entry: Entry) -> tuple[str, ...]:
    """Mode, size, time, id and name, as 'ls -l' shows them."""
    bits = {1: stat.S_IFREG, 2: stat.S_IFDIR, 3: stat.S_IFLNK}[entry.kind]
    name = display(b"/".join(path)) + ("/" if entry.is_directory else "")
    if entry.target is not None:
        name += f" -> {display(entry.target)}"
    return (
        stat.filemode(bits | entry.mode),
        str(entry.size),
        output.local_time(entry.mtime_ns)[:19],
        entry.content.hex()[:12],
        name,
    )


def cp(
    sources: Annotated[list[str], typer.Argument(help="REPO[@REVISION][:/PATH]", metavar="SOURCE…")],
    target: Annotated[str, typer.Argument(help="REPO@BRANCH[:/PATH]")],
    message: MessageOption = None,
    json: JsonFlag = False,
) -> None:
    """Copy between repos and branches by reference: no data is copied, whatever the size.

    As with put, one directory becomes the target itself; a file, or several sources, go into a target that is a directory.
    """
    from pfsmount.repo.edits import Source, copy

    place = parse_target(target)
    with output.open_store() as store:
        branch = writable_branch(store, place)
        found = []
        for text in sources:
            parsed = parse_target(text)
            found.append(Source(str(parsed), (parsed.path or ())[-1:], entry_at(store, parsed)))
        commit = copy(
            store,
            found,
            place.repo,
            branch,
            place.path or (),
            into=target.endswith("/") or not place.path,
            message=message or f"cp {' '.join(sources[:3])}",
        )
    _committed(commit, place, branch, f"copied {output.plural(len(found), 'source')}", json)


def rm(
    targets: Annotated[list[str], typer.Argument(help="REPO@BRANCH:/PATH, all of one branch.", metavar="TARGET…")],
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Directories too.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="What is not there is no error.")] = False,
    message: MessageOption = None,
    json: JsonFlag = False,
) -> None:
    """Delete files from a branch, as one commit. Earlier commits keep them."""
    from pfsmount.repo.edits import remove

    parsed = [parse_target(text) for text in targets]
    first = parsed[0]
    if any((target.repo, target.revision) != (first.repo, first.revision) for target in parsed):
        raise InvalidInput("rm takes paths of one branch at a time")
    if any(not target.path for target in parsed):
        raise InvalidInput("rm does not empty a whole branch", hint=f"name what is to go, as in {first.repo}:/PATH")
    with output.open_store() as store:
        branch = writable_branch(store, first)
        paths = [target.path or () for target in parsed]
        commit = remove(
            store,
            first.repo,
            branch,
            paths,
            recursive=recursive,
            missing_ok=force,
            message=message or f"rm {' '.join(display(path_bytes(path)) for path in paths[:3])}",
        )
    _committed(commit, first, branch, f"deleted {output.plural(len(paths), 'path')}", json, "has nothing there")


def _committed(
    commit: Commit | None, target: Target, branch: str, did: str, json: bool, nothing: str = "has all of it already"
) -> None:
    if json:
        output.print_json(
            {"repo": target.repo, "branch": branch, "commit": None if commit is None else commit.id.hex()}
        )
    else:
        say_commit(commit, target.repo, branch, did, nothing)
