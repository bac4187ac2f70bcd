"""Planning: commits and a spec make datums. Nothing is run, written or remembered here, and all of it is lazy.

With a base (the record of an earlier job of the same program), only what differs between its input commits and the new ones is looked
at: the keys that are no longer part of the result, and the datums that must be.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pfsmount.ids import ObjectId, RepoPath
from pfsmount.objects.reading import Reader
from pfsmount.tree.entry import Entry
from pfsmount.tree.globs import Glob, GlobChange
from runner.datum import Datum, Match, datum_key, make_datum


@dataclass(frozen=True, slots=True)
class Source:
    """One input of a plan: its tree now and, for a plan on top of an earlier job, then."""

    name: str
    glob: Glob
    root: Entry
    base_root: Entry | None = None


def plan_all(objects: Reader, program: ObjectId, sources: Sequence[Source]) -> Iterator[Datum]:
    """All datums: the cross product of the inputs' matches, in order."""
    yield from _cross(objects, program, sources, ())


def _cross(objects: Reader, program: ObjectId, sources: Sequence[Source], chosen: tuple[Match, ...]) -> Iterator[Datum]:
    if not sources:
        yield make_datum(program, chosen)
        return
    source = sources[0]
    for path, entry in source.glob.find(objects, source.root):
        yield from _cross(objects, program, sources[1:], (*chosen, Match(source.name, path, entry)))


def plan_added(objects: Reader, program: ObjectId, sources: Sequence[Source]) -> Iterator[Datum]:
    """The datums that are new against the base: those in which at least one match is new or changed."""
    for matches in _with_changes(objects, sources, new=True):
        yield make_datum(program, matches)


def plan_removed(objects: Reader, program: ObjectId, sources: Sequence[Source]) -> Iterator[ObjectId]:
    """The keys that the base has and the new plan does not."""
    for matches in _with_changes(objects, sources, new=False):
        yield datum_key(program, matches)


def _with_changes(objects: Reader, sources: Sequence[Source], *, new: bool) -> Iterator[tuple[Match, ...]]:
    """All combinations, of the new or the old matches, in which at least one match changed.

    Each is made once, by its first changed match: before that only unchanged ones are combined, behind it all.
    """
    changes = [list(_changes(objects, source)) for source in sources]
    for first in range(len(sources)):
        if not changes[first]:
            continue
        columns = []
        for i, source in enumerate(sources):
            if i == first:
                columns.append(_side(source, changes[i], new=new))
            elif i > first:
                columns.append(list(_matches(objects, source, new=new)))
            else:
                changed = {change.path for change in changes[i]}
                columns.append([m for m in _matches(objects, source, new=new) if m.path not in changed])
        yield from itertools.product(*columns)


def _changes(objects: Reader, source: Source) -> Iterator[GlobChange]:
    assert source.base_root is not None
    return source.glob.changes(objects, source.base_root, source.root)


def _side(source: Source, changes: Sequence[GlobChange], *, new: bool) -> list[Match]:
    sides: list[tuple[RepoPath, Entry | None]] = [(c.path, c.new if new else c.old) for c in changes]
    return [Match(source.name, path, entry) for path, entry in sides if entry is not None]


def _matches(objects: Reader, source: Source, *, new: bool) -> Iterator[Match]:
    root = source.root if new else source.base_root
    assert root is not None
    for path, entry in source.glob.find(objects, root):
        yield Match(source.name, path, entry)
