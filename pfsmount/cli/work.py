"""`pfs status`, `commit`, `discard`: the uncommitted changes on top of a branch, whoever has them open."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfsmount.cli import output
from pfsmount.cli.conflicts import pending_json, print_conflicts, print_pending
from pfsmount.cli.files import MessageOption, writable_branch
from pfsmount.cli.repos import JsonFlag, readable_branches, tell_damaged
from pfsmount.errors import Corrupt, InvalidInput, PfsError
from pfsmount.ids import RepoPath, display, parse_path, path_bytes
from pfsmount.revision import Target, parse_target

if TYPE_CHECKING:
    from pfsmount.repo.merge import PendingLook
    from pfsmount.repo.store import Store
    from pfsmount.repo.worktree_status import WorktreeChange, WorktreeStatus

_LETTERS = {"new": "A", "modified": "M", "deleted": "D", "attributes": "m", "replaced": "T"}
_NAMED_MAX = 5


def status(
    target: Annotated[
        str | None, typer.Argument(help="REPO[@BRANCH[+NAME]]; default: all branches with changes.", metavar="TARGET")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Show uncommitted changes."""
    damaged: list[tuple[str, PfsError]] = []
    with output.open_store() as store:
        if target is None:
            found, damaged = _all_statuses(store)
        else:
            parsed = parse_target(target)
            found = [_status(store, parsed.repo, *worktree_of(store, parsed))]
    if json:
        shown = [_status_json(*one) for one in found]
        output.print_json(shown if target is None else shown[0])
    elif not found and not damaged:
        output.say("no uncommitted changes anywhere")
    else:
        for status, pending in found:
            _print_status(status)
            if pending is not None:
                print_pending(pending, f"{status.repo}@{status.branch}")
    tell_damaged(damaged)


def _all_statuses(
    store: Store,
) -> tuple[list[tuple[WorktreeStatus, PendingLook | None]], list[tuple[str, PfsError]]]:
    """Of all worktrees those about which there is something to say, and what cannot be read."""
    branches, damaged = readable_branches(store)
    places = [(repo.name, ref.name, "") for repo, ref in branches]
    for repo in {repo.name for repo, _ in branches}:
        places += [(repo, branch, name) for branch, name in store.worktrees(repo)]
    found = []
    for place in sorted(places):
        try:
            status, pending = _status(store, *place)
        except Corrupt as error:
            damaged.append((f"{place[0]}@{place[1]}", error))
            continue
        if _worth_saying(status) or status.name or pending is not None:
            found.append((status, pending))
    return found, damaged


def _status(store: Store, repo: str, branch: str, name: str) -> tuple[WorktreeStatus, PendingLook | None]:
    from pfsmount.repo.merge import look

    return read_status(store, repo, branch, name), None if name else look(store, repo, branch)


def worktree_of(store: Store, target: Target) -> tuple[str, str]:
    """The branch that a target names, and its private worktree or "". Raises NotFound, NotPermitted (a commit)."""
    name = target.revision.worktree
    if name is None:
        return writable_branch(store, target), ""
    branch = store.resolve(target.repo, target.revision).branch
    assert branch is not None
    return branch, name


def _worth_saying(status: WorktreeStatus) -> bool:
    return bool(status.changes or status.conflicts or status.unversioned or status.times)


def read_status(store: Store, repo: str, branch: str, name: str = "") -> WorktreeStatus:
    """The status of a branch's worktree, or of a private one, from the daemon that has it or from disk."""
    from pfsmount.fs.control import open_worktree

    with open_worktree(store, repo, branch, name) as worktree:
        return worktree.status()


def _status_json(status: WorktreeStatus, pending: PendingLook | None) -> dict[str, Any]:
    from pfsmount.repo.conflicts import conflict_json

    return {
        "repo": status.repo,
        "branch": status.branch,
        "worktree": status.name or None,
        "base": None if status.base is None else status.base.hex(),
        "head": None if status.head is None else status.head.hex(),
        "changes": [change_json(change) for change in status.changes],
        "conflicts": [conflict_json(conflict) for conflict in status.conflicts],
        "merge": None if pending is None else pending_json(pending),
        "unversioned": [os.fsdecode(b"/".join(path)) for path in status.unversioned],
        "owner": status.owner,
        "times": status.times,
        "autocommit_refused": status.refused,
    }


def change_json(change: WorktreeChange) -> dict[str, Any]:
    """An uncommitted change as JSON."""
    return {
        "change": _LETTERS[change.what],
        "what": change.what,
        "path": os.fsdecode(b"/".join(change.path)),
        "kind": change.kind,
        "size": change.size,
        "old_id": None if change.old is None else change.old.id.hex(),
    }


def print_changes(changes: Iterable[WorktreeChange], json: bool) -> None:
    """Uncommitted changes, one a line, letters as in `pfs diff`."""
    if json:
        output.print_json([change_json(change) for change in changes])
        return
    for change in changes:
        size = ""
        if change.kind == "file":
            size = f"  ({output.human_size(change.size)})"
        elif change.files > 1:
            size = f"  ({output.plural(change.files, 'file')})"
        slash = "/" if change.kind == "dir" else ""
        output.say(f"{_LETTERS[change.what]}  {display(path_bytes(change.path))}{slash}{size}")


def _times_alone(count: int) -> str:
    return "one differs in its time alone" if count == 1 else f"{count:,} differ in their time alone"


def _print_status(status: WorktreeStatus) -> None:
    base = "no commit yet" if status.base is None else status.base.hex()[:12]
    title = f"{status.repo}@{status.branch}" + (f"+{status.name}" if status.name else "")
    where = ""
    if status.owner is not None:
        mount = status.owner.get("mount")
        where = f", open in {f'the mount at {mount}' if mount else 'another process'}"
    if not _worth_saying(status):
        output.say(f"{title} at {base}: nothing uncommitted")
        return
    output.say(f"{title} at {base}: {output.plural(len(status.changes), 'change')}{where}")
    print_changes(status.changes, False)
    if status.refused is not None:
        output.say(f"autocommit was refused: {status.refused}")
    for path in status.unversioned:
        output.say(f"?  {display(path_bytes(path))}  (FIFO or socket: not versioned)")
    if status.times:
        output.say(f"{_times_alone(status.times)}, which goes along with the next commit")
    if status.conflicts:
        head = "no commit" if status.head is None else status.head.hex()[:12]
        output.say(f"in conflict with {head}, which is on the branch now (yours is kept and shown):")
        print_conflicts(status.conflicts)
        output.say(f"settle them: pfs resolve {title}:/PATH --mine|--theirs|--both")


def commit(
    targets: Annotated[
        list[str],
        typer.Argument(
            help="REPO[@BRANCH[+NAME]], or with :/PATH to commit only that. A private worktree ends with its commit.",
            metavar="TARGET…",
        ),
    ],
    message: MessageOption = None,
    json: JsonFlag = False,
) -> None:
    """Make the uncommitted changes one atomic commit."""
    from pfsmount.fs.control import open_worktree

    target, paths = _targets(targets)
    with output.open_store() as store:
        branch, name = worktree_of(store, target)
        if message is None:
            message = _edited_message(store, target.repo, branch, name)
        with open_worktree(store, target.repo, branch, name) as worktree:
            result = worktree.commit(message, paths)
            times = 0 if result.commit is not None else worktree.status().times
            ended = bool(name) and paths is None and worktree.end()
        waits = _note_of_merge(store, target.repo, branch)
    for path in result.unversioned:
        output.note(f"pfs: {display(path_bytes(path))} is a FIFO or socket: not versioned, kept in the mount")
    if json:
        made = None if result.commit is None else result.commit.id.hex()
        output.print_json({"repo": target.repo, "branch": branch, "commit": made, "ended": ended})
    elif result.commit is None:
        kept = f"; {_times_alone(times)}, kept until something else is committed" if times else ""
        output.say(f"{target.repo}@{branch}{f'+{name}' if name else ''}: nothing to commit{kept}")
    else:
        tree = result.commit.tree
        size = f"{output.plural(tree.files, 'file')}, {output.human_size(tree.size)}"
        output.say(f"committed; {target.repo}@{branch} is now {result.commit.id.hex()[:12]} ({size})")
    if name and not json:
        _say_ended(f"{target.repo}@{branch}+{name}", ended)
    for line in waits:
        output.note(line)


def _say_ended(title: str, ended: bool) -> None:
    if ended:
        output.say(f"{title} has ended")
    else:
        output.say(f"{title} goes on: it has something that is not committed")


def _note_of_merge(store: Store, repo: str, branch: str) -> list[str]:
    """That a merge waits on the branch, which no commit finishes, and how to go on."""
    directory = store.path / "worktrees" / f"{store.repo(repo).id:016x}"
    if not any(directory.glob("*/merge")):  # the common case, without loading what reads merges
        return []
    from pfsmount.repo.merge import look

    pending, place = look(store, repo, branch), f"{repo}@{branch}"
    if pending is None:
        return []
    merge = f"'pfs merge {display(pending.source)} {place}'"
    hint = f"{merge} finishes it"
    if pending.open:
        hint = f"'pfs resolve {place} --mine|--theirs|--both PATH…', then {merge}"
    return [
        f"pfs: the merge of {display(pending.source)} into {place} still waits, "
        f"{pending.open:,} of {output.plural(len(pending.conflicts), 'conflict')} open; a commit does not finish it",
        f"  hint: {hint}; 'pfs merge --abort {place}' drops it",
    ]


def _edited_message(store: Store, repo: str, branch: str, name: str) -> str:
    """Without -m: from $EDITOR on a terminal, as git does; elsewhere a plain one."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return "commit"
    changes = read_status(store, repo, branch, name).changes
    if not changes:
        return "commit"
    lines = [f"# {_LETTERS[change.what]}  {display(path_bytes(change.path))}" for change in changes[:100]]
    text = _edit("\n".join(["", f"# Commit of {repo}@{branch}; lines with # are left out.", *lines, ""]))
    kept = "\n".join(line for line in text.split("\n") if not line.startswith("#")).strip()
    if not kept:
        raise InvalidInput("no message, so no commit was made", hint="give one with -m")
    return kept


def _edit(text: str) -> str:
    """Let the user edit a text in $VISUAL or $EDITOR. Raises InvalidInput when there is no such program or it fails."""
    import shlex
    import subprocess
    import tempfile

    editor = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    with tempfile.NamedTemporaryFile("w+", prefix="pfs-", suffix=".txt", errors="surrogateescape") as file:
        file.write(text)
        file.flush()
        try:
            subprocess.run([*editor, file.name], check=True)
        except (OSError, subprocess.CalledProcessError):
            raise InvalidInput(
                f"the editor '{' '.join(editor)}' did not work, so no commit was made", hint="give a message with -m"
            ) from None
        with open(file.name, errors="surrogateescape") as edited:  # editors replace the file
            return edited.read()


def discard(
    targets: Annotated[
        list[str],
        typer.Argument(
            help="REPO[@BRANCH[+NAME]], or with :/PATH to discard only that. A private worktree as a whole ends.",
            metavar="TARGET…",
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", "--force", "-f", help="Do not ask.")] = False,
    json: JsonFlag = False,
) -> None:
    """Give up uncommitted changes: all, or those at paths. There is no way back."""
    from pfsmount.fs.control import open_worktree

    target, paths = _targets(targets)
    with output.open_store() as store:
        branch, name = worktree_of(store, target)
        title = f"{target.repo}@{branch}" + (f"+{name}" if name else "")
        status = read_status(store, target.repo, branch, name)
        changes = [change for change in status.changes if _is_at(change.path, paths)]
        times = status.times if paths is None else 0
        counts = [output.plural(len(changes), "uncommitted change")] if changes or not times else []
        counts += [output.plural(times, "changed time")] if times else []
        what = f"{' and '.join(counts)} of {title}"
        if changes or times:
            named = f": {_named(changes)}" if changes else ""
            output.require_yes(f"give up {what}?", f"nothing was given up: {what} would be lost{named}", yes=yes)
        with open_worktree(store, target.repo, branch, name) as worktree:
            worktree.discard(paths)
            ended = bool(name) and paths is None and worktree.end()
    if json:
        output.print_json({"repo": target.repo, "branch": branch, "discarded": len(changes), "ended": ended})
        return
    output.say(f"gave up {what}" if changes or times else f"{title}: nothing to discard")
    if name:
        _say_ended(title, ended)


def _named(changes: list[WorktreeChange]) -> str:
    """The first of some changes, for one line."""
    named = [f"{_LETTERS[change.what]} {display(path_bytes(change.path))}" for change in changes[:_NAMED_MAX]]
    return ", ".join(named) + (", …" if len(changes) > _NAMED_MAX else "")


def _is_at(path: RepoPath, paths: list[RepoPath] | None) -> bool:
    return paths is None or any(path[: len(prefix)] == prefix for prefix in paths)


def _targets(texts: list[str]) -> tuple[Target, list[RepoPath] | None]:
    """One branch, and the paths in it that are meant (None: all)."""
    parsed = [parse_target(text) for text in texts]
    first = parsed[0]
    if any((target.repo, target.revision) != (first.repo, first.revision) for target in parsed):
        raise InvalidInput("give paths of one branch at a time")
    paths = [target.path or parse_path(b"") for target in parsed]
    return first, None if () in paths else paths


def worktree_status_changes(store: Store, repo: str, branch: str, name: str, below: RepoPath) -> list[WorktreeChange]:
    """Uncommitted changes at and below a path."""
    status = read_status(store, repo, branch, name)
    return [change for change in status.changes if change.path[: len(below)] == below]


def begin(
    target: Annotated[str, typer.Argument(help="REPO[@BRANCH]", metavar="TARGET")],
    name: Annotated[str, typer.Argument(help="What to call it.", metavar="NAME")],
    json: JsonFlag = False,
) -> None:
    """Make a private worktree of a branch, to work apart from all others until it is committed or discarded.

    It is at REPO@BRANCH+NAME in each mount of the store; 'pfs commit REPO@BRANCH+NAME' brings its changes into the branch.
    """
    from pfsmount.fs.records import live_mounts
    from pfsmount.repo.private_worktrees import begin as begin_worktree

    parsed = parse_target(target)
    if parsed.path is not None or parsed.revision.worktree is not None:
        raise InvalidInput(f"'{display(target)}' is not REPO or REPO@BRANCH", hint="pfs begin REPO@BRANCH NAME")
    with output.open_store() as store:
        branch = writable_branch(store, parsed)
        begin_worktree(store, parsed.repo, branch, name)
        title = f"{parsed.repo}@{branch}+{name}"
        places = [os.path.join(one.mount, title) for one in live_mounts(store.path) if not one.revision]
    if json:
        output.print_json({"repo": parsed.repo, "branch": branch, "worktree": name, "paths": places})
        return
    output.say(f"made {title}" + (f", at {display(places[0])}" if places else ""))
    if not places:
        output.note(
            f"pfs: the store is mounted nowhere\n  hint: 'pfs mount {title} DIR' shows the worktree, 'pfs mount DIR' all there is"
        )
