"""`pfs diff`, `show`, `lineage`: what changed, and where it came from."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfsmount.cli import output
from pfsmount.cli.files import Place, entry_at
from pfsmount.cli.log import commit_json, commit_lines, how_made, ranges_explained
from pfsmount.cli.repos import JsonFlag
from pfsmount.errors import InvalidInput, NotFound
from pfsmount.ids import display, path_bytes
from pfsmount.revision import parse_target

if TYPE_CHECKING:
    from pfsmount.repo.commit import Commit
    from pfsmount.repo.provenance import DatumInfo, Lineage
    from pfsmount.tree.diff import Change
    from pfsmount.tree.entry import Entry


def diff(
    old: Annotated[str, typer.Argument(help="REPO[@REVISION][:/PATH]", metavar="TARGET")],
    new: Annotated[
        str | None, typer.Argument(help="What to compare with; default: see above.", metavar="TARGET")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Show which paths differ: A added, D deleted, M content, T kind, m only mode, owner, time or xattrs.

    Two places: from the first to the second. One branch: its uncommitted changes. One commit: against its parent.
    """
    with ranges_explained(old, "pfs diff {old} {new}"):
        _diff(old, new, json)


def _diff(old: str, new: str | None, json: bool) -> None:
    from pfsmount.tree.diff import diff as diff_trees

    first = parse_target(old)
    with output.open_store() as store:
        if new is not None:
            second = parse_target(new)
            _print_changes(diff_trees(store.objects, entry_at(store, first), entry_at(store, second)), json)
            return
        resolved = store.resolve(first.repo, first.revision)
        if resolved.branch is not None:
            from pfsmount.cli.work import print_changes, worktree_status_changes

            changes = worktree_status_changes(
                store, first.repo, resolved.branch, resolved.worktree or "", first.path or ()
            )
            print_changes(changes, json)
            return
        commit = resolved.commit
        assert commit is not None
        before = store.read_commit(commit.parents[0]).tree if commit.parents else store.empty_root()
        _print_changes(_below(diff_trees(store.objects, before, commit.tree), first.path or ()), json)


def _below(changes: Iterable[Change], path: tuple[bytes, ...]) -> Iterable[Change]:
    return (change for change in changes if change.path[: len(path)] == path)


def change_letter(change: Change) -> str:
    """What happened at a path, in one letter."""
    if change.old is None:
        return "A"
    if change.new is None:
        return "D"
    if change.old.kind is not change.new.kind:
        return "T"
    if change.attributes_only or change.old.is_directory:
        return "m"
    return "M"


def change_json(change: Change) -> dict[str, Any]:
    """A change as JSON."""
    entry = change.new or change.old
    return {
        "change": change_letter(change),
        "path": os.fsdecode(b"/".join(change.path)),
        "old_id": None if change.old is None else change.old.id.hex(),
        "new_id": None if change.new is None else change.new.id.hex(),
        "old_size": None if change.old is None else change.old.size,
        "new_size": None if change.new is None else change.new.size,
        "kind": None if entry is None else entry.kind.name.lower(),
    }


def print_change(change: Change) -> None:
    """One line: letter, path, sizes."""
    entry = change.new or change.old
    slash = "/" if entry is not None and entry.is_directory else ""
    sizes = ""
    if entry is not None and not entry.is_directory:
        old = "" if change.old is None else output.human_size(change.old.size)
        new = "" if change.new is None else output.human_size(change.new.size)
        sizes = f"  ({old} → {new})" if old and new and old != new else f"  ({new or old})"
    output.say(f"{change_letter(change)}  {display(path_bytes(change.path))}{slash if change.path else ''}{sizes}")


def _print_changes(changes: Iterable[Change], json: bool) -> None:
    if json:
        output.print_json([change_json(change) for change in changes])
        return
    for change in changes:
        if change.path or change.old is None or change.new is None:
            print_change(change)


def show(target: Place, json: JsonFlag = False) -> None:
    """Show a commit, or with a path a file: its id is what 'b3sum' prints."""
    parsed = parse_target(target)
    with output.open_store() as store:
        if parsed.path:
            entry = entry_at(store, parsed)
            shown = _entry_facts(store, entry)
            if json:
                output.print_json({"place": str(parsed), **shown})
                return
            for key, value in shown.items():
                output.say(f"{key.replace('_', ' '):<11} {value}")
            return
        resolved = store.resolve(parsed.repo, parsed.revision)
        if resolved.commit is None:
            raise NotFound(f"{target} has no commits yet")
        commit = resolved.commit
        if json:
            output.print_json(commit_json(commit))
            return
        from pfsmount.tree.diff import diff as diff_trees

        for line in commit_lines(store, commit):
            output.say(line)
        output.say()
        before = store.read_commit(commit.parents[0]).tree if commit.parents else None
        _print_changes(diff_trees(store.objects, before or store.empty_root(), commit.tree), False)


def _entry_facts(store: Any, entry: Entry) -> dict[str, Any]:
    facts: dict[str, Any] = {"id": entry.id.hex(), "kind": entry.kind.name.lower(), "size": entry.size}
    if entry.is_directory:
        facts["content_id"] = entry.content.hex()
        facts["files"] = entry.files
    if entry.target is not None:
        facts["target"] = os.fsdecode(entry.target)
    facts["mode"] = f"{entry.mode:04o}"
    facts["owner"] = f"{entry.uid}:{entry.gid}"
    facts["modified"] = output.local_time(entry.mtime_ns)
    return facts


def lineage(
    target: Annotated[str, typer.Argument(help="REPO[@REVISION][:/PATH]", metavar="TARGET")],
    json: JsonFlag = False,
) -> None:
    """Show what made a file: job, command, code and input files, back to what people put in."""
    from pfsmount.repo.provenance import lineage as trace

    parsed = parse_target(target)
    with output.open_store() as store:
        resolved = store.resolve(parsed.repo, parsed.revision)
        if resolved.commit is None:
            raise InvalidInput(f"{target} has no commits yet")
        found = trace(store, parsed.repo, resolved.commit, parsed.path or (), branch=parsed.revision.base)
    if json:
        output.print_json(_lineage_json(found))
    else:
        _print_lineage(found, "", "")


def _lineage_commit(node: Lineage) -> str | None:
    id = node.lost if node.commit is None else node.commit.id
    return None if id is None else id.hex()


def _lineage_json(node: Lineage) -> dict[str, Any]:
    commit = node.commit
    return {
        "repo": node.repo,
        "branch": node.branch,
        "commit": _lineage_commit(node),
        "path": os.fsdecode(path_bytes(node.path)),
        "id": None if node.entry is None else node.entry.id.hex(),
        "size": None if node.entry is None else node.entry.size,
        "author": None if commit is None else commit.author,
        "time_ns": None if commit is None else commit.time_ns,
        "message": None if commit is None else commit.message,
        "origin": None if commit is None else commit.origin,
        "provenance": None if commit is None else commit.provenance,
        "missing": node.missing,
        "datums": [
            {"key": datum.key, **datum.meta, "inputs": [_lineage_json(source) for source in datum.inputs]}
            for datum in node.datums
        ],
    }


def _print_lineage(node: Lineage, first: str, rest: str) -> None:
    commit = node.commit
    place = f"{node.repo}@{(_lineage_commit(node) or '')[:12]}:{display(path_bytes(node.path))}"
    facts = "" if node.entry is None else f"  ({output.human_size(node.entry.size)}, {_content(node.entry)})"
    output.say(f"{first}{place}{facts}")
    if node.missing is not None or commit is None:
        output.say(f"{rest}  {node.missing}")
        return
    if commit.provenance is None:
        how = {"mount": "written through the mount", "put": "put"}.get(str(commit.origin.get("how")), how_made(commit))
        output.say(f"{rest}  {how} by {display(commit.author)}, {output.local_time(commit.time_ns)[:16]}")
        output.say(f'{rest}  "{output.first_line(commit.message)}"')
        return
    _print_job(commit, rest)
    job = (commit.provenance or {}).get("job")
    for datum in node.datums[:20]:
        _print_datum(datum, job, rest)
    if len(node.datums) > 20:
        output.say(f"{rest}  … and {len(node.datums) - 20} more datums (--json has all)")


def _print_job(commit: Commit, rest: str) -> None:
    made = commit.provenance or {}
    output.say(f"{rest}  made by {made['job']} ({display(commit.author)}, {output.local_time(commit.time_ns)[:16]})")
    output.say(f"{rest}  command  {display(' '.join(made['command']))}")
    for name, id in code_ids(made.get("code") or {}):
        output.say(f"{rest}  code     {display(name)}  {id.removeprefix('sha256:')[:12]}")


def code_ids(code: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and content id of everything that was executed, as a job's provenance has it."""
    found = []
    for key, value in code.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict) and "id" in item:
                found.append((str(item.get("path") or item.get("reference") or key), str(item["id"])))
    return found


def _print_datum(datum: DatumInfo, job: str | None, rest: str) -> None:
    seconds = (datum.meta.get("ended_ns", 0) - datum.meta.get("started_ns", 0)) / 1e9
    ran = datum.meta.get("job")
    reused = f", reused from {ran}" if ran not in (None, job) else ""
    output.say(f"{rest}  datum    {datum.key[:12]}  exit {datum.meta.get('exit')}, {seconds:.2f} s{reused}")
    for i, source in enumerate(datum.inputs):
        last = i + 1 == len(datum.inputs)
        _print_lineage(source, rest + ("  └─ " if last else "  ├─ "), rest + ("     " if last else "  │  "))


def _content(entry: Entry) -> str:
    return entry.content.hex()[:12]
