"""Datums: the units of work, and the keys that say whether one has run before.

The key of a datum is a hash (`pfs 1 datum key`) of canonical JSON: `{"inputs": [{"id", "kind", "name", "path", "x"} …], "program", "v": 1}`.
`inputs` are sorted by name and path; `id` is the content id, `x` the exec bit of a file. One also has `join_on` and `group_by` when the spec
gives it such a key, `empty` when the program sees no content, and `along`, with the same fields but the name, for what a matched symlink
leads to. `program` is the hash of everything else that the program can see (`runner.program`). So a key follows from content alone, and
two jobs anywhere agree on it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pfsmount.ids import ObjectId, RepoPath, display, path_bytes
from pfsmount.objects.hashing import HashKind, hash_bytes
from pfsmount.repo.commit import dump_json
from pfsmount.tree.entry import Entry, Kind

KIND_NAMES = {Kind.FILE: "file", Kind.DIRECTORY: "directory", Kind.SYMLINK: "symlink"}
_SHOWN_MAX = 3


@dataclass(frozen=True, slots=True)
class Match:
    """A file or directory of one input, as one datum sees it."""

    name: str
    """The input's."""
    path: RepoPath
    entry: Entry
    join_on: str | None = None
    """Its key in a join, or None where the input has none."""
    outer_join: bool = False
    group_by: str | None = None
    along: tuple[tuple[RepoPath, Entry], ...] = ()
    """Where it is a symlink: what the datum sees besides, so that it can be followed."""
    empty: bool = False
    """The program sees files of no size."""
    leaf: int = 0
    """Which of the spec's single inputs it is of."""

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for two matches that a program cannot tell apart."""
        along = tuple((path, entry.content, entry.executable) for path, entry in self.along)
        keys = (self.join_on, self.group_by)
        return self.name, self.path, self.entry.content, self.entry.kind, self.entry.executable, along, self.empty, keys

    @property
    def seen(self) -> tuple[tuple[RepoPath, Entry], ...]:
        """All that the datum sees of it."""
        return ((self.path, self.entry), *self.along)

    def as_json(self) -> dict[str, Any]:
        """As the record has it."""
        value: dict[str, Any] = {"name": self.name, **_place(self.path, self.entry)}
        if self.join_on is not None:
            value["join_on"] = self.join_on
        if self.group_by is not None:
            value["group_by"] = self.group_by
        if self.empty:
            value["empty"] = True
        if self.along:
            value["along"] = [_place(path, entry) for path, entry in self.along]
        return value

    def key_json(self) -> dict[str, Any]:
        """As the key has it."""
        value = {**self.as_json(), "x": self.entry.executable}
        if self.along:
            value["along"] = [{**_place(path, entry), "x": entry.executable} for path, entry in self.along]
        return value


def _place(path: RepoPath, entry: Entry) -> dict[str, str]:
    return {"path": os.fsdecode(path_bytes(path)), "id": entry.content.hex(), "kind": KIND_NAMES[entry.kind]}


class Visible(NamedTuple):
    """A file, directory or symlink that a datum sees in the directory of an input."""

    path: RepoPath
    entry: Entry
    leaf: int
    empty: bool


def _outermost(shown: list[Visible]) -> list[Visible]:
    kept: list[Visible] = []
    for one in sorted(shown, key=lambda one: one.path):
        if not kept or one.path[: len(kept[-1].path)] != kept[-1].path:
            kept.append(one)
    return kept


@dataclass(frozen=True, slots=True)
class Datum:
    """The files that one run of the program sees, in the order of the spec."""

    key: ObjectId
    matches: tuple[Match, ...]

    @property
    def size(self) -> int:
        """Bytes in all files."""
        return sum(entry.size for match in self.matches for _, entry in match.seen if not match.empty)

    @property
    def files(self) -> int:
        """Files and symlinks."""
        entries = [entry for match in self.matches for _, entry in match.seen]
        return sum(entry.files if entry.is_directory else 1 for entry in entries)

    def visible(self) -> dict[str, list[Visible]]:
        """What is shown in the directory of each input, sorted by path; nothing that lies inside what else is shown."""
        found: dict[str, list[Visible]] = {match.name: [] for match in self.matches}
        for match in self.matches:
            found[match.name] += [Visible(path, entry, match.leaf, match.empty) for path, entry in match.seen]
        return {name: _outermost(shown) for name, shown in found.items()}

    @property
    def has_links(self) -> bool:
        """A match is a symlink: what the datum is depends on more than what its glob matches."""
        return any(match.entry.kind is Kind.SYMLINK for match in self.matches)

    def __str__(self) -> str:
        return describe([match.as_json() for match in self.matches])


def make_datum(program: ObjectId, matches: Sequence[Match]) -> Datum:
    """The datum of these matches for a program."""
    return Datum(datum_key(program, matches), tuple(matches))


def datum_key(program: ObjectId, matches: Sequence[Match]) -> ObjectId:
    """The key of a datum."""
    inputs = [match.key_json() for match in sorted(matches, key=lambda match: (match.name, match.path))]
    text = dump_json({"v": 1, "program": program.hex(), "inputs": inputs})
    return hash_bytes(text.encode("ascii"), HashKind.DATUM_KEY)


def describe(inputs: Sequence[Mapping[str, Any]]) -> str:
    """A datum for people: its path, or name and path of each input; of an input with many files, as in a group, the first ones."""
    paths: dict[str, list[str]] = {}
    for used in inputs:
        paths.setdefault(used["name"], []).append(display(used["path"]))
    if len(paths) == 1:
        return _listed(next(iter(paths.values())))
    return " × ".join(f"{name}:{_listed(found)}" for name, found in paths.items())


def _listed(paths: Sequence[str]) -> str:
    if len(paths) <= _SHOWN_MAX:
        return ", ".join(paths)
    return f"{', '.join(paths[:_SHOWN_MAX])} and {len(paths) - _SHOWN_MAX:,} more"
