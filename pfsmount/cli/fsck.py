"""`pfs fsck`: is the store right, what is lost where it is not, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfsmount.cli import output
from pfsmount.cli.repos import JsonFlag
from pfsmount.errors import InvalidInput
from pfsmount.ids import RepoPath, display, path_bytes

if TYPE_CHECKING:
    from pfsmount.repo.fsck import Report
    from pfsmount.repo.fsck_impact import LostPath, RepoImpact
    from pfsmount.repo.fsck_repair import Repaired
    from pfsmount.repo.rebuild import Rebuilt

_FINDINGS_SHOWN = 10
_PATHS_SHOWN = 20
_REFS_SHOWN = 8
_KINDS = {
    "PIECE": "piece",
    "NODE": "tree node",
    "MANIFEST": "manifest",
    "COMMIT": "commit",
    "XATTRS": "attribute set",
    "TOMBSTONE": "tombstone",
}


def fsck(
    data: Annotated[
        bool, typer.Option("--data", help="Also read all data and compare each byte with its hash.")
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Mend what the store itself allows, and forget what cannot be read, so that 'pfs put' stores it again.",
        ),
    ] = False,
    repair_from: Annotated[
        Path | None,
        typer.Option("--repair-from", metavar="STORE", help="Take what is missing or damaged from another store."),
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild-index", help="Make the index anew from segments and refs.log, then check.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Check that the store is right, and say what is lost where it is not.

    Without options the structure is checked: the index, all metadata with its hashes, repos, branches, uncommitted work. --data also reads every piece and
    every large file, in one pass over the disk. Nothing is changed, and the store can be used meanwhile.

    --repair-from and --repair mend what this check finds, so add --data for damaged data. --rebuild-index needs the store for itself.

    Exit code 0: nothing is lost, and nothing needs repair. 1: damage was found, or is left; what it means and what to do is printed.
    """
    path = output.store_path()
    rebuilt = _rebuild(path) if rebuild else None
    report = _check(path, data=data)
    repaired = None
    if (repair or repair_from is not None) and not report.clean and not report.index_lost:
        repaired, report = _repair(path, report, repair_from, forget=repair)
    if json:
        more = {"rebuilt": _rebuilt_json(rebuilt)} if rebuilt is not None else {}
        more |= {"repaired": _repaired_json(repaired)} if repaired is not None else {}
        output.print_json({**_report_json(report), **more})
    else:
        for line in (*_rebuilt_lines(rebuilt), *_repaired_lines(repaired), *_lines(report)):
            output.say(line)
        if (repair or repair_from is not None) and repaired is None and report.clean and not data:
            output.say("nothing to repair there; damaged data is looked for, and repaired, with '--data' as well")
    if not report.clean:
        raise typer.Exit(output.EXIT_FAILED)


def _check(path: Path, *, data: bool) -> Report:
    from pfsmount.objects.index_probe import begin_probe
    from pfsmount.objects.layout import read_store_info

    read_store_info(path)
    with begin_probe(path, data=data) as probe, output.Progress("checking", 1) as bar:
        from pfsmount.repo.fsck import check_store  # as long as the probe takes for a small index

        return check_store(path, data=data, progress=bar.work, probe=probe)


def _rebuild(path: Path) -> Rebuilt:
    from pfsmount.repo.rebuild import rebuild_index

    with output.Progress("rebuilding the index", 1) as bar:
        return rebuild_index(path, progress=bar.work)


def _repair(path: Path, report: Report, other: Path | None, *, forget: bool) -> tuple[Repaired, Report]:
    """Mend, and check the structure again; what the first check found in the data and is not mended stays in the report."""
    from pfsmount.objects.object_look import ProgressBar
    from pfsmount.repo.collection import collecting
    from pfsmount.repo.fsck import check, left_of
    from pfsmount.repo.fsck_repair import Repair
    from pfsmount.repo.store import Store

    if other is not None and other.resolve() == path.resolve():
        raise InvalidInput(
            "--repair-from names the store that is to be repaired", hint="name another one that has the same files"
        )
    with output.open_store() as store, collecting(store), output.Progress("repairing", 1) as bar:
        work = Repair(store, report, ProgressBar(bar.work))
        if other is not None:
            with Store.open(other) as source:
                work.locally()
                work.from_store(source)
        else:
            work.locally()
        if forget:
            work.forget()
        repaired = work.finish()
        return repaired, check(store, progress=bar.work, known=left_of(store, report))


# For people


def _lines(report: Report) -> Iterator[str]:
    yield from _summary(report)
    shown: dict[str, int] = {}
    for finding in report.findings:
        label = finding.invariant.label
        shown[label] = shown.get(label, 0) + 1
        if shown[label] <= _FINDINGS_SHOWN:
            yield f"  {finding.severity.value:<11} {label}: {display(finding.message)}"
        elif shown[label] == _FINDINGS_SHOWN + 1:
            total = sum(n for (invariant, _), n in report.findings.counts.items() if invariant is finding.invariant)
            yield f"  {finding.severity.value:<11} {label}: … and {total - _FINDINGS_SHOWN:,} more"
    if report.damage:
        yield ""
        yield "What this means:"
        for repo in report.impact.repos:
            yield from _repo_lines(repo)
        if report.impact.unused:
            yield f"  {output.plural(report.impact.unused, 'damaged object')} no version needs"
    advice = list(_advice(report))
    if advice:
        yield ""
        yield "What to do:"
        for line in advice:
            yield f"  * {line}"


def _summary(report: Report) -> Iterator[str]:
    from pfsmount.objects.invariants import Severity

    lost, repairable = report.findings.count(Severity.LOST), report.findings.count(Severity.REPAIRABLE)
    if report.index_lost:
        yield "the index cannot be used; the rest was not checked"
        return
    kinds = [output.plural(count, _KINDS[kind.name]) for kind, count in sorted(report.objects.items())]
    seen = f"{', '.join(kinds) or 'no objects'}; {output.human_size(report.bytes_checked)} read"
    if report.clean:
        what = "everything is right" if report.data else "the structure is right ('--data' would read all data too)"
        yield f"{what}: {seen}"
        return
    parts = []
    if lost:
        parts.append(f"{output.plural(lost, 'thing')} lost or damaged")
    if repairable:
        parts.append(f"{output.plural(repairable, 'thing')} to repair")
    yield f"{' and '.join(parts)}: {seen}"


def _repo_lines(repo: RepoImpact) -> Iterator[str]:
    if repo.intact == repo.commits:
        yield f"  {repo.name}: intact ({output.plural(repo.commits, 'commit')})"
        return
    parts = [f"{repo.intact:,} of {output.plural(repo.commits, 'commit')} intact"]
    if repo.damaged:
        parts.append(f"{len(repo.damaged):,} with lost paths")
    if repo.unreadable:
        parts.append(f"{len(repo.unreadable):,} lost altogether")
    yield f"  {repo.name}: {', '.join(parts)}"
    affected = [ref for ref in repo.refs if ref.lost]
    for ref in affected[:_PATHS_SHOWN]:
        state = "the commit is lost" if ref.lost < 0 else f"{output.plural(ref.lost, 'path')} lost"
        at = "" if ref.commit is None else f" ({ref.commit.hex()[:12]})"
        yield f"    {repo.name}@{display(ref.name)}{at}: {state}"
    if len(affected) > _PATHS_SHOWN:
        yield f"    … and {len(affected) - _PATHS_SHOWN:,} more branches, tags and jobs"
    whole = [display(ref.name) for ref in repo.refs if not ref.lost and ref.kind.name != "JOB"]
    if whole:
        more = f" and {len(whole) - _REFS_SHOWN:,} more" if len(whole) > _REFS_SHOWN else ""
        yield f"    intact: {', '.join(whole[:_REFS_SHOWN])}{more}"
    for id in repo.unreadable[:_PATHS_SHOWN]:
        yield f"    {repo.name}@{id.hex()[:12]}: the commit itself is lost"
    if len(repo.unreadable) > _PATHS_SHOWN:
        yield f"    … and {len(repo.unreadable) - _PATHS_SHOWN:,} more commits"
    for lost in repo.paths[:_PATHS_SHOWN]:
        note = f", {lost.note}" if lost.note else ""
        one = f"{repo.name}@{lost.commits[0].hex()[:12]}"
        versions = f"in {one}" if len(lost.commits) == 1 else f"in {len(lost.commits):,} commits, one is {one}"
        yield f"    {_path_text(lost.path)}{note}: {lost.reason.label}, {versions}"
    if len(repo.paths) > _PATHS_SHOWN:
        yield f"    … and {len(repo.paths) - _PATHS_SHOWN:,} more paths (--json has all)"


def _path_text(path: RepoPath) -> str:
    return display(path_bytes(path))


def _advice(report: Report) -> Iterator[str]:
    from pfsmount.objects.invariants import Invariant, Severity

    broken = {finding.invariant for finding in report.findings if finding.severity is not Severity.HARMLESS}
    if broken & {
        Invariant.INDEX_READABLE,
        Invariant.SEGMENT_KNOWN,
        Invariant.OBJECT_LOCATION,
        Invariant.OBJECT_INDEXED,
        Invariant.COMMIT_KNOWN,
        Invariant.REPO_ROW,
        Invariant.REFLOG_ORDER,
        Invariant.SEGMENT_OPEN,
    }:
        yield "'pfs fsck --rebuild-index' makes the index anew from segments and refs.log; nothing else is touched"
    option = "--data " if report.data else ""
    if broken & {
        Invariant.SEGMENT_HEADER,
        Invariant.RECORD_CHECK,
        Invariant.CONTENTS,
        Invariant.CONTENTS_CHAIN,
        Invariant.RESULTS_TARGET,
    }:
        yield f"'pfs fsck {option}--repair' mends what is marked repairable"
    if report.damage:
        yield f"'pfs fsck {option}--repair-from STORE' takes what is missing from another store that has it, in whatever repo"
        yield f"or, if you still have the files: 'pfs fsck {option}--repair' forgets what is damaged, then 'pfs put' them again"
    if Invariant.JOURNAL_CHAIN in broken:
        yield "uncommitted work: restore its journal from a backup, or see the message above for how to give up what is behind the damage"


def _rebuilt_lines(rebuilt: Rebuilt | None) -> Iterator[str]:
    if rebuilt is None:
        return
    counts = [
        output.plural(rebuilt.objects, "object"),
        output.plural(rebuilt.segments, "segment"),
        output.plural(rebuilt.repos, "repo"),
        output.plural(rebuilt.commits, "commit"),
        output.plural(rebuilt.refs, "ref"),
        output.plural(rebuilt.worktrees, "uncommitted worktree"),
    ]
    yield f"the index was made anew: {', '.join(counts)}"
    for problem in rebuilt.problems[:_PATHS_SHOWN]:
        yield f"  {display(problem)}"
    if len(rebuilt.problems) > _PATHS_SHOWN:
        yield f"  … and {len(rebuilt.problems) - _PATHS_SHOWN:,} more (--json has all)"
    if rebuilt.kept is not None:
        yield f"  the old one is kept as '{rebuilt.kept}'; delete it when all is well"


def _repaired_lines(repaired: Repaired | None) -> Iterator[str]:
    if repaired is None:
        return
    yield f"repaired {output.plural(repaired.healed, 'object')} ({output.human_size(repaired.healed_bytes)} copied)"
    for text in repaired.done:
        yield f"  {text}"
    if repaired.forgotten:
        yield f"  forgot {output.plural(repaired.forgotten, 'object')} that cannot be read: put the same files again, and they are stored again"
    if repaired.remaining and not repaired.forgotten:
        yield f"  {output.plural(repaired.remaining, 'object')} could not be repaired"


# For programs


def _report_json(report: Report) -> dict[str, Any]:
    from pfsmount.objects.invariants import Severity

    return {
        "clean": report.clean,
        "data": report.data,
        "index_lost": report.index_lost,
        "objects": {kind.name.lower(): count for kind, count in sorted(report.objects.items())},
        "bytes_read": report.bytes_checked,
        "counts": {severity.value: report.findings.count(severity) for severity in Severity},
        "findings": [
            {
                "invariant": finding.invariant.label,
                "severity": finding.severity.value,
                "message": finding.message,
                "object": None if finding.object is None else finding.object.hex(),
                "segment": None if finding.segment is None else f"{finding.segment:08x}",
                "offset": finding.offset,
            }
            for finding in report.findings
        ],
        "repos": [_repo_json(repo) for repo in report.impact.repos],
        "damaged_objects": {id.hex(): reason.label for id, reason in report.damage.objects.items()},
        "unused_objects": report.impact.unused,
        "advice": list(_advice(report)),
    }


def _rebuilt_json(rebuilt: Rebuilt) -> dict[str, Any]:
    return {**asdict(rebuilt), "kept": None if rebuilt.kept is None else str(rebuilt.kept)}


def _repaired_json(repaired: Repaired) -> dict[str, Any]:
    return asdict(repaired)


def _repo_json(repo: RepoImpact) -> dict[str, Any]:
    return {
        "repo": repo.name,
        "commits": repo.commits,
        "intact": repo.intact,
        "lost_commits": [id.hex() for id in repo.unreadable],
        "damaged_commits": [id.hex() for id in repo.damaged],
        "refs": [
            {
                "kind": ref.kind.name.lower(),
                "name": ref.name,
                "commit": None if ref.commit is None else ref.commit.hex(),
                "commit_lost": ref.lost < 0,
                "lost_paths": max(ref.lost, 0),
            }
            for ref in repo.refs
        ],
        "lost_paths": [_path_json(lost) for lost in repo.paths],
    }


def _path_json(lost: LostPath) -> dict[str, Any]:
    return {
        "path": path_bytes(lost.path).decode("utf-8", "surrogateescape"),
        "object": lost.object.hex(),
        "reason": lost.reason.label,
        "note": lost.note,
        "commits": [id.hex() for id in lost.commits],
    }
