"""`pfs du`, `stats`: how large versions are, and what the store really holds for them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from pfsmount.cli import output
from pfsmount.cli.files import entry_at
from pfsmount.cli.repos import JsonFlag
from pfsmount.errors import InvalidInput
from pfsmount.ids import RepoPath, display, path_bytes
from pfsmount.revision import parse_target

if TYPE_CHECKING:
    from pfsmount.repo.store import Store
    from pfsmount.repo.store_usage import StoreUsage
    from pfsmount.tree.entry import Entry

_WIDTH = 12
_KINDS = {"PIECE": "pieces", "NODE": "tree nodes", "MANIFEST": "manifests", "COMMIT": "commits", "XATTRS": "xattrs"}


def du(
    targets: Annotated[list[str], typer.Argument(help="REPO[@REVISION][:/PATH]", metavar="TARGET…")],
    summarize: Annotated[bool, typer.Option("--summarize", "-s", help="Only a line for each TARGET.")] = False,
    depth: Annotated[int | None, typer.Option("--max-depth", "-d", min=0, help="Directories down to so deep.")] = None,
    human: Annotated[bool, typer.Option("--human-readable", "-h", help="Sizes as 1.4 MiB.")] = False,
    total: Annotated[bool, typer.Option("--total", "-c", help="A line for all together.")] = False,
    apparent: Annotated[
        bool, typer.Option("--apparent-size", help="Only the files' sizes: as fast as listing the directories.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Show how large directories are: bytes of their files, bytes that the store holds for them, number of files.

    Stored are different files and pieces only, in blocks of 4 KiB, and metadata. As with du, what occurs more than once counts
    where it comes first, so 'pfs du -s images@master~1 images@master' shows what the last commit added. Each different file
    is looked up once: ten seconds or so for a million; --apparent-size takes none.
    """
    if summarize and depth:
        raise InvalidInput("--summarize and --max-depth exclude each other")
    parsed = [parse_target(text) for text in targets]
    with output.open_store() as store, output.Progress("measuring") as bar:
        starts = [
            _Start(str(target).partition(":")[0], target.path or (), entry_at(store, target)) for target in parsed
        ]
        lines = _lines(store, starts, 0 if summarize else depth, None if apparent else bar)
        if json:
            output.print_json_list(_line_json(line) for line in lines)
            return
        if sys.stdout.isatty():
            heads = ("size", "files") if apparent else ("size", "stored", "files")
            output.say("".join(f"{head:>{_WIDTH}}" for head in heads) + "  path")
        sums = _Line("total", 0, None if apparent else 0, 0)
        for line in lines:
            output.say(line.text(human))
            if line.is_target:
                sums = sums.plus(line)
        if total:
            output.say(sums.text(human))


class _Start(NamedTuple):
    """A target: its text before the path, its path, its entry."""

    text: str
    path: RepoPath
    entry: Entry


class _Line(NamedTuple):
    """One line of the answer."""

    place: str
    size: int
    stored: int | None
    """None: not asked for."""
    files: int
    is_target: bool = False

    def text(self, human: bool) -> str:
        """The line in columns."""
        sizes = [self.size] if self.stored is None else [self.size, self.stored]
        cells = [*(output.human_size(size) if human else str(size) for size in sizes), f"{self.files}"]
        return "".join(f"{cell:>{_WIDTH}}" for cell in cells) + f"  {display(self.place)}"

    def plus(self, other: _Line) -> _Line:
        """Both together, under the name of the first."""
        stored = None if self.stored is None or other.stored is None else self.stored + other.stored
        return _Line(self.place, self.size + other.size, stored, self.files + other.files)


def _lines(store: Store, starts: list[_Start], depth: int | None, bar: output.Progress | None) -> Iterator[_Line]:
    """The directories of each target, then the target itself; without `bar` only what listing tells."""
    from pfsmount.repo.usage import TreeMeter, directories

    meter = TreeMeter(store.objects, lambda count: bar.update(note=f"{count:,} objects") if bar else None)
    for start in starts:
        found = (
            directories(store.objects, start.path, start.entry, depth)
            if bar is None
            else meter.measure(*start[1:], depth)
        )
        for path, entry, stored in found:
            files = entry.files if entry.is_directory else 1
            place = f"{start.text}:{os.fsdecode(path_bytes(path))}"
            yield _Line(place, entry.size, stored, files, path == start.path)


def _line_json(line: _Line) -> dict[str, Any]:
    stored = {} if line.stored is None else {"stored": line.stored}
    return {"place": line.place, "size": line.size, **stored, "files": line.files}


def stats(json: JsonFlag = False) -> None:
    """Show what the store holds: repos, objects, what versions and repos share, space on disk.

    Looks each different file up once for every repo that has it: ten seconds or so for a million, and 96 MiB of memory for each TiB.
    """
    from pfsmount.repo.store_usage import measure_store

    with output.open_store() as store, output.Progress("measuring") as bar:
        usage = measure_store(store, lambda count: bar.update(note=f"{count:,} objects"))
    if json:
        output.print_json(_stats_json(usage))
        return
    for line in _stats_lines(usage):
        output.say(line)
    rows = [
        (
            repo.name,
            f"{repo.branches:,}",
            f"{repo.commits:,}",
            f"{repo.heads.count:,}",
            output.human_size(repo.heads.size),
            output.human_size(repo.versions.size),
            output.human_size(repo.stored),
            output.human_size(repo.unique),
        )
        for repo in usage.repos
    ]
    output.say()
    output.table(rows, ("repo", "branches", "commits", "files in heads", "size", "all versions", "stored", "only here"))


def _stats_lines(usage: StoreUsage) -> Iterator[str]:
    size = output.human_size
    versions, stored = usage.versions, usage.stored
    yield f"all versions  {size(versions)}, if each commit were a copy of its own"
    ratio = f", {versions / stored:.1f} times less" if stored and versions > stored else ""
    yield f"stored        {size(stored)}{ratio}; {size(usage.shared)} of it in more than one repo"
    for kind, amount in sorted(usage.objects.items()):
        yield f"  {_KINDS[kind.name]:<11} {amount.count:,} ({size(amount.size)})"
    on_disk = sum(amount.size for amount in usage.segments.values())
    yield f"on disk       {size(on_disk + usage.index)}"
    for segment, amount in usage.segments.items():
        yield f"  {segment.name.lower():<11} {output.plural(amount.count, 'segment')} ({size(amount.size)})"
    yield f"  index       {size(usage.index)}"


def _stats_json(usage: StoreUsage) -> dict[str, Any]:
    def amounts(found: Mapping[Any, Any]) -> dict[str, Any]:
        return {kind.name.lower(): {"count": one.count, "size": one.size} for kind, one in found.items()}

    return {
        "versions_size": usage.versions,
        "stored": usage.stored,
        "shared": usage.shared,
        "objects": amounts(usage.objects),
        "segments": amounts(usage.segments),
        "index": usage.index,
        "repos": [
            {
                "name": repo.name,
                "branches": repo.branches,
                "tags": repo.tags,
                "commits": repo.commits,
                "heads_files": repo.heads.count,
                "heads_size": repo.heads.size,
                "versions_files": repo.versions.count,
                "versions_size": repo.versions.size,
                "stored": repo.stored,
                "unique": repo.unique,
            }
            for repo in usage.repos
        ],
    }
