"""`pfs merge` and `pfs resolve`: versions brought together, conflicts settled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfsmount.cli import output
from pfsmount.cli.conflicts import path_text, pending_json, print_conflicts
from pfsmount.cli.files import MessageOption, writable_branch
from pfsmount.cli.repos import JsonFlag
from pfsmount.errors import InvalidInput, NotFound
from pfsmount.ids import RepoPath, display, parse_path, path_bytes
from pfsmount.revision import Target, parse_target

if TYPE_CHECKING:
    from pfsmount.repo.merge import MergeReport
    from pfsmount.repo.store import Store
    from pfsmount.tree.merge import Resolution

MineFlag = Annotated[bool, typer.Option("--mine", help="Take what the branch (or the uncommitted work) has.")]
TheirsFlag = Annotated[bool, typer.Option("--theirs", help="Take what the other side has.")]


def merge(
    targets: Annotated[
        list[str],
        typer.Argument(help="REPO@REVISION, then the REPO@BRANCH that it goes into.", metavar="SOURCE TARGET"),
    ],
    message: MessageOption = None,
    mine: MineFlag = False,
    theirs: TheirsFlag = False,
    no_ff: Annotated[
        bool, typer.Option("--no-ff", help="Make a merge commit even where moving the branch would do.")
    ] = False,
    abort: Annotated[
        bool, typer.Option("--abort", help="Drop the merge that waits on TARGET, and what was decided about it.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Merge a version into a branch of the same repo, as one commit with two parents.

    Changes at different paths go together. Conflicts change nothing and are listed with both sides (exit code 3): settle them with
    'pfs resolve', then run the same merge again; or settle all of them with --mine or --theirs.
    """
    if abort:
        if len(targets) != 1 or mine or theirs or no_ff or message:
            raise InvalidInput("--abort takes the branch that is merged into, and nothing else")
        _abort(targets[0], json)
        return
    if len(targets) != 2:
        raise InvalidInput(
            "merge takes a version and the branch that it goes into", hint="pfs merge images@dev images@master"
        )
    if mine and theirs:
        raise InvalidInput("--mine and --theirs exclude each other")
    source, target = _of_one_repo(*targets)
    if source.path is not None or target.path is not None:
        raise InvalidInput("whole versions are merged; give no path", hint="'pfs cp' copies a directory over another")
    if source.repo != target.repo:
        if not any("@" in text for text in targets):
            raise InvalidInput(
                f"which repo are '{display(targets[0])}' and '{display(targets[1])}' of?",
                hint="pfs merge REPO@{} REPO@{}".format(*(display(text) for text in targets)),
            )
        raise InvalidInput(
            f"a version of '{source.repo}' cannot be merged into a branch of '{target.repo}'",
            hint="'pfs cp' brings files over without copying data",
        )
    _merge(source, target, message, _side(mine, theirs), fast_forward=not no_ff, json=json)


def _of_one_repo(source: str, target: str) -> tuple[Target, Target]:
    """Source and target of a merge; where one of them is only the name of a branch, it is of the other's repo. Raises InvalidInput."""
    if ("@" in source) != ("@" in target):
        named, bare = (source, target) if "@" in source else (target, source)
        repo = parse_target(named).repo
        if bare.partition(":")[0] != repo and not _is_repo(bare):
            bare = f"{repo}@{bare}"
        source, target = (named, bare) if "@" in source else (bare, named)
    return parse_target(source), parse_target(target)


def _is_repo(name: str) -> bool:
    with output.open_store() as store:
        return any(repo.name == name for repo in store.repos())


def _side(mine: bool, theirs: bool) -> Resolution | None:
    from pfsmount.tree.merge import Resolution

    return Resolution.MINE if mine else Resolution.THEIRS if theirs else None


def _merge(
    source: Target, target: Target, message: str | None, side: Resolution | None, *, fast_forward: bool, json: bool
) -> None:
    from pfsmount.repo.merge import MergeState
    from pfsmount.repo.merge import merge as merge_into

    with output.open_store() as store:
        branch = writable_branch(store, target)
        with output.Progress("merging"):
            report = merge_into(
                store,
                target.repo,
                source.revision,
                branch,
                message=message,
                side=side,
                fast_forward=fast_forward,
            )
    names = (f"{source.repo}@{source.revision}" if source.revision.base else source.repo, f"{target.repo}@{branch}")
    if json:
        output.print_json({"repo": target.repo, "branch": branch, **_report_json(report)})
    else:
        _print_report(report, *names)
    if report.state is MergeState.CONFLICT:
        raise typer.Exit(output.EXIT_CONFLICT)


def _report_json(report: MergeReport) -> dict[str, Any]:
    from pfsmount.repo.conflicts import conflict_json

    return {
        "state": report.state.value,
        "commit": None if report.commit is None else report.commit.id.hex(),
        "conflicts": [conflict_json(conflict) for conflict in report.conflicts],
        "settled": report.settled,
        "dropped": [path_text(path) for path in report.dropped],
        "unrelated": report.unrelated,
    }


def _print_report(report: MergeReport, source: str, target: str) -> None:
    from pfsmount.repo.merge import MergeState

    id = "" if report.commit is None else report.commit.id.hex()[:12]
    if report.unrelated:
        output.note(f"pfs: {source} and {target} have no commit in common: what both have counts as added by both")
    for path in report.dropped:
        output.note(f"pfs: the decision for {display(path_bytes(path))} fits no longer, a branch moved: it is dropped")
    match report.state:
        case MergeState.UP_TO_DATE:
            output.say(f"already up to date: {target} has all of {source}; it stays at {id}")
        case MergeState.FAST_FORWARD:
            output.say(f"fast-forward; {target} is now {id}, as {source}")
        case MergeState.MERGED:
            how = f" ({output.plural(report.settled, 'conflict')} settled)" if report.settled else ""
            output.say(f"merged {source}{how}; {target} is now {id}")
        case MergeState.CONFLICT if not report.conflicts:
            output.note(f"pfs: nothing was merged, because decisions fitted no longer: {target} stays at {id}")
            output.note(f"  hint: look at it, then run 'pfs merge {source} {target}' again")
        case MergeState.CONFLICT:
            print_conflicts(report.conflicts)
            count = output.plural(len(report.conflicts), "conflict")
            output.note(f"pfs: {source} was not merged: {count}; {target} stays at {id}, nothing was changed")
            output.note(f"  hint: 'pfs resolve {target} --mine|--theirs|--both PATH…', then the same merge again")


def _abort(text: str, json: bool) -> None:
    from pfsmount.repo.merge import abort as abort_merge

    target = parse_target(text)
    with output.open_store() as store:
        branch = writable_branch(store, target)
        abort_merge(store, target.repo, branch)
    if json:
        output.print_json({"repo": target.repo, "branch": branch, "aborted": True})
    else:
        output.say(f"dropped the merge into {target.repo}@{branch}; the branch is as it was")


def resolve(
    targets: Annotated[
        list[str], typer.Argument(help="REPO@BRANCH and paths in it, or REPO@BRANCH:/PATH …", metavar="TARGET [PATH…]")
    ],
    mine: MineFlag = False,
    theirs: TheirsFlag = False,
    both: Annotated[
        bool, typer.Option("--both", help="Keep mine, and theirs beside it under a name like 'cat~dev.jpg'.")
    ] = False,
    all: Annotated[bool, typer.Option("--all", help="All that are in conflict.")] = False,
    json: JsonFlag = False,
) -> None:
    """Settle conflicts, of uncommitted work with the branch or of a merge that waits: for each path, which side stays.

    'pfs status' lists them. A directory stands for everything in conflict below it. When the last one is settled, uncommitted work can be committed again, and a merge
    be finished by running it again.
    """
    if mine + theirs + both != 1:
        raise InvalidInput("give one of --mine, --theirs and --both")
    target, paths = _paths(targets)
    if all == bool(paths):
        raise InvalidInput("give the paths to settle, or --all", hint=f"'pfs status {target.repo}' lists them")
    from pfsmount.tree.merge import Resolution

    how = Resolution.MINE if mine else Resolution.THEIRS if theirs else Resolution.BOTH
    with output.open_store() as store:
        from pfsmount.cli.work import worktree_of

        branch, name = worktree_of(store, target)
        _resolve(store, target.repo, branch, name, how, None if all else paths, json)


def _paths(targets: list[str]) -> tuple[Target, list[RepoPath]]:
    """The branch, and paths in it: given with it, by themselves, or again with it."""
    first = parse_target(targets[0])
    paths = [first.path] if first.path else []
    for text in targets[1:]:
        head, colon, path = text.partition(":")
        again = bool(colon) and head == targets[0].partition(":")[0]
        paths.append(parse_path(path if again else text))
    if () in paths:
        raise InvalidInput("the root of a branch stands for all conflicts: use --all for that")
    return first, paths


def _resolve(
    store: Store, repo: str, branch: str, name: str, how: Resolution, paths: list[RepoPath] | None, json: bool
) -> None:
    from pfsmount.cli.work import read_status
    from pfsmount.fs.control import open_worktree
    from pfsmount.repo.merge import look
    from pfsmount.repo.merge import resolve as resolve_merge

    title = f"{repo}@{branch}" + (f"+{name}" if name else "")
    uncommitted = [conflict.path for conflict in read_status(store, repo, branch, name).conflicts]
    waiting = None if name else look(store, repo, branch)
    if not uncommitted and waiting is None:
        raise NotFound(f"nothing is in conflict on {title}")
    work, rest = (paths, []) if name else _split(uncommitted, paths)
    settled: list[RepoPath] = []
    left = len(uncommitted)
    if work is None or work:
        with open_worktree(store, repo, branch, name) as worktree:
            settled, left = worktree.resolve(how, work)
    if rest is None or rest:
        done, waiting = resolve_merge(store, repo, branch, how, rest)
        settled += done
    if json:
        output.print_json(
            {
                "repo": repo,
                "branch": branch,
                "worktree": name or None,
                "settled": [path_text(path) for path in settled],
                "uncommitted_open": left,
                "merge": None if waiting is None else pending_json(waiting),
            }
        )
        return
    output.say(f"settled {output.plural(len(settled), 'conflict')} of {title}: {how.value}")
    if left:
        output.say(
            f"{output.plural(left, 'conflict')} with uncommitted work still open; 'pfs status {title}' lists them"
        )
    elif uncommitted:
        output.say(f"uncommitted work is on top of the branch again; 'pfs commit {title}' commits it")
    if waiting is not None and waiting.open:
        output.say(
            f"{output.plural(waiting.open, 'conflict')} of the merge still open; 'pfs status {repo}@{branch}' lists them"
        )
    elif waiting is not None:
        output.say(f"all of the merge is settled: finish it with 'pfs merge {display(waiting.source)} {repo}@{branch}'")


def _split(
    uncommitted: list[RepoPath], paths: list[RepoPath] | None
) -> tuple[list[RepoPath] | None, list[RepoPath] | None]:
    """What is to be settled in uncommitted work, and what in a merge that waits. Work comes first: the merge goes on top of what it becomes."""
    if paths is None:
        return (None, []) if uncommitted else ([], None)
    work = [path for path in paths if any(conflict[: len(path)] == path for conflict in uncommitted)]
    return work, [path for path in paths if path not in work]
