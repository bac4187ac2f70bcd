"""Planning: commits and a spec make datums. Nothing is run, written or remembered here.

With a base (the record of an earlier job of the same program over the same inputs), only what differs between its input commits and the
new ones is looked at: the keys that are no longer part of the result, and the datums that must be.

An input is a tree of parts, as the spec combines them (`runner.input_spec`). Each part can say what it selects on one side, now or in the
base (`every`), and what it selects there and not on the other (`only`). Plain inputs, cross products and unions are lazy; a join or group
has to hold its keys, and looks again at those that changed only.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pfsmount.ids import ObjectId, RepoPath
from pfsmount.objects.reading import Reader
from pfsmount.tree.entry import Entry, Kind
from pfsmount.tree.globs import Glob
from pfsmount.tree.links import follow_link
from runner.datum import Datum, Match, datum_key, make_datum
from runner.input_spec import Combination, Input, InputSpec, leaves
from runner.templates import expand

Selection = tuple[Match, ...]
"""What one datum sees."""


class Side(enum.Enum):
    """Which of two versions of the inputs."""

    OLD = enum.auto()
    NEW = enum.auto()


@dataclass(frozen=True, slots=True)
class Source:
    """The tree of one single input now and, for a plan on top of an earlier job, then."""

    root: Entry
    base_root: Entry | None = None


class Part(Protocol):
    """One input, or a combination of parts."""

    def every(self, side: Side) -> Iterator[Selection]:
        """All that it selects on one side."""
        ...

    def only(self, side: Side) -> Iterator[Selection]:
        """What it selects on this side, and not (or with other content) on the other one."""
        ...


def plan_tree(objects: Reader, spec: Input, sources: Sequence[Source]) -> Part:
    """The parts of a spec. `sources` are those of its single inputs, in order."""
    return _part(objects, spec, enumerate(sources))


def _part(objects: Reader, spec: Input, sources: Iterator[tuple[int, Source]]) -> Part:
    if isinstance(spec, InputSpec):
        return Leaf(objects, spec, *next(sources))
    parts = [_part(objects, one, sources) for one in spec.inputs]
    match spec.how:
        case Combination.CROSS:
            return Cross(parts)
        case Combination.UNION:
            return Union(parts)
        case Combination.JOIN:
            return Join(parts)
        case Combination.GROUP:
            return Group(parts)


def may_repeat(spec: Input) -> bool:
    """Whether two of its datums can be the same: only a union of inputs with one name can make such."""
    names = [leaf.name for leaf in leaves(spec)]
    return len(set(names)) < len(names)


def plan_all(program: ObjectId, part: Part, *, repeats: bool = False) -> Iterator[Datum]:
    """All datums, in order; with `repeats`, which costs memory, each once even when the input has it more often."""
    return _datums(program, part.every(Side.NEW), repeats=repeats)


def _datums(program: ObjectId, selections: Iterable[Selection], *, repeats: bool) -> Iterator[Datum]:
    seen: set[ObjectId] = set()
    for selection in selections:
        datum = make_datum(program, selection)
        if repeats:
            if datum.key in seen:
                continue
            seen.add(datum.key)
        yield datum


def plan_added(program: ObjectId, part: Part) -> Iterator[Datum]:
    """The datums that are new against the base. Not for an input that may repeat."""
    return _datums(program, part.only(Side.NEW), repeats=False)


def plan_removed(program: ObjectId, part: Part) -> Iterator[ObjectId]:
    """The keys that the base has and the new plan does not. Not for an input that may repeat."""
    for selection in part.only(Side.OLD):
        yield datum_key(program, selection)


class Leaf:
    """The matches of one glob in one tree."""

    def __init__(self, objects: Reader, spec: InputSpec, number: int, source: Source) -> None:
        self._objects, self._spec, self._number, self._source = objects, spec, number, source
        self._glob = Glob(spec.glob)
        self._changes: dict[Side, list[Selection]] | None = None

    def every(self, side: Side) -> Iterator[Selection]:
        root = self._root(side)
        for path, entry in self._glob.find(self._objects, root):
            yield (self._match(root, path, entry),)

    def only(self, side: Side) -> Iterator[Selection]:
        if self._changes is None:
            old, new = self._root(Side.OLD), self._root(Side.NEW)
            self._changes = {Side.OLD: [], Side.NEW: []}
            for change in self._glob.changes(self._objects, old, new):
                if change.old is not None:
                    self._changes[Side.OLD].append((self._match(old, change.path, change.old),))
                if change.new is not None:
                    self._changes[Side.NEW].append((self._match(new, change.path, change.new),))
        yield from self._changes[side]

    def _root(self, side: Side) -> Entry:
        root = self._source.root if side is Side.NEW else self._source.base_root
        assert root is not None
        return root

    def _match(self, root: Entry, path: RepoPath, entry: Entry) -> Match:
        spec = self._spec
        return Match(
            spec.name,
            path,
            entry,
            join_on=expand(spec.join_on, self._glob, path) if spec.join_on else None,
            outer_join=spec.outer_join,
            group_by=expand(spec.group_by, self._glob, path) if spec.group_by else None,
            along=tuple(follow_link(self._objects, root, path)) if entry.kind is Kind.SYMLINK else (),
            empty=spec.empty_files,
            leaf=self._number,
        )


class Cross:
    """Every combination of a selection of each part; the last part changes fastest."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts

    def every(self, side: Side) -> Iterator[Selection]:
        return _combinations(self._parts, side)

    def only(self, side: Side) -> Iterator[Selection]:
        """All combinations in which at least one selection changed.

        Each is made once, by its first changed part: before that only unchanged ones are combined, behind it all.
        """
        changed = [list(part.only(side)) for part in self._parts]
        for first, changes in enumerate(changed):
            if not changes:
                continue
            columns = []
            for i, part in enumerate(self._parts):
                if i == first:
                    columns.append(changes)
                elif i > first:
                    columns.append(list(part.every(side)))
                else:
                    known = {_identity(selection) for selection in changed[i]}
                    columns.append([one for one in part.every(side) if _identity(one) not in known])
            yield from _product(columns)


def _combinations(parts: Sequence[Part], side: Side) -> Iterator[Selection]:
    if not parts:
        yield ()
        return
    for selection in parts[0].every(side):
        for others in _combinations(parts[1:], side):
            yield selection + others


def _product(columns: Sequence[Sequence[Selection]]) -> Iterator[Selection]:
    for chosen in itertools.product(*columns):
        yield tuple(itertools.chain.from_iterable(chosen))


def _identity(selection: Selection) -> tuple[object, ...]:
    return tuple(match.identity for match in selection)


class Union:
    """The selections of each part, one part after another."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts

    def every(self, side: Side) -> Iterator[Selection]:
        for part in self._parts:
            yield from part.every(side)

    def only(self, side: Side) -> Iterator[Selection]:
        for part in self._parts:
            yield from part.only(side)


class _Keyed:
    """Selections of several parts that belong together because they have the same key."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts

    def every(self, side: Side) -> Iterator[Selection]:
        for _, columns in sorted(self._index(side, None).items()):
            yield from self._of_key(columns)

    def only(self, side: Side) -> Iterator[Selection]:
        other = Side.OLD if side is Side.NEW else Side.NEW
        keys = {self._key(one) for part in self._parts for which in Side for one in part.only(which)}
        if not keys:
            return
        here, there = self._index(side, keys), self._index(other, keys)
        for key, columns in sorted(here.items()):
            known = {_identity(one) for one in self._of_key(there[key])} if key in there else set()
            yield from (one for one in self._of_key(columns) if _identity(one) not in known)

    def _index(self, side: Side, keys: set[str] | None) -> dict[str, list[list[Selection]]]:
        """Key → the selections of each part that have it."""
        found: dict[str, list[list[Selection]]] = {}
        for i, part in enumerate(self._parts):
            for selection in part.every(side):
                key = self._key(selection)
                if keys is None or key in keys:
                    found.setdefault(key, [[] for _ in self._parts])[i].append(selection)
        return found

    def _key(self, selection: Selection) -> str:
        raise NotImplementedError

    def _of_key(self, columns: Sequence[Sequence[Selection]]) -> Iterator[Selection]:
        raise NotImplementedError


class Join(_Keyed):
    """For each key, every combination of a selection of each part.

    Where a part has none, the parts that are outer joins are combined alone.
    """

    def _key(self, selection: Selection) -> str:
        return next((match.join_on for match in selection if match.join_on is not None), "")

    def _of_key(self, columns: Sequence[Sequence[Selection]]) -> Iterator[Selection]:
        if not all(columns):
            columns = [column for column in columns if column and any(match.outer_join for match in column[0])]
        if columns:
            yield from _product(columns)


class Group(_Keyed):
    """For each key, one selection with all the files of all parts that have it."""

    def _key(self, selection: Selection) -> str:
        return next((match.group_by for match in selection if match.group_by is not None), "")

    def _of_key(self, columns: Sequence[Sequence[Selection]]) -> Iterator[Selection]:
        once = {match.identity: match for column in columns for selection in column for match in selection}
        yield tuple(once.values())
