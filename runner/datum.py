"""Datums: the units of work, and the keys that say whether one has run before.

The key of a datum is a hash (`pfs 1 datum key`) of canonical JSON: `{"inputs": [{"id", "kind", "name", "path", "x"} …], "program", "v": 1}`.
`inputs` are sorted by name; `id` is the content id, `x` the exec bit of a file; `program` is the hash of everything else that the program
can see (`runner.program`). So a key follows from content alone, and two jobs anywhere agree on it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from pfsmount.ids import ObjectId, RepoPath, display, path_bytes
from pfsmount.objects.hashing import HashKind, hash_bytes
from pfsmount.repo.commit import dump_json
from pfsmount.tree.entry import Entry, Kind

KIND_NAMES = {Kind.FILE: "file", Kind.DIRECTORY: "directory", Kind.SYMLINK: "symlink"}


@dataclass(frozen=True, slots=True)
class Match:
    """A file or directory of one input, as one datum sees it."""

    name: str
    """The input's."""
    path: RepoPath
    entry: Entry

    def as_json(self) -> dict[str, str]:
        return {
            "name": self.name,
            "path": os.fsdecode(path_bytes(self.path)),
            "id": self.entry.content.hex(),
            "kind": KIND_NAMES[self.entry.kind],
        }


@dataclass(frozen=True, slots=True)
class Datum:
    """The files that one run of the program sees; one match an input, in the order of the spec."""

    key: ObjectId
    matches: tuple[Match, ...]

    @property
    def size(self) -> int:
        """Bytes in all files."""
        return sum(match.entry.size for match in self.matches)

    @property
    def files(self) -> int:
        """Files and symlinks."""
        return sum(match.entry.files if match.entry.is_directory else 1 for match in self.matches)

    def __str__(self) -> str:
        return describe([match.as_json() for match in self.matches])


def make_datum(program: ObjectId, matches: Sequence[Match]) -> Datum:
    """The datum of these matches for a program."""
    return Datum(datum_key(program, matches), tuple(matches))


def datum_key(program: ObjectId, matches: Sequence[Match]) -> ObjectId:
    """The key of a datum."""
    inputs = []
    for match in sorted(matches, key=lambda match: match.name):
        inputs.append({**match.as_json(), "x": match.entry.executable})
    text = dump_json({"v": 1, "program": program.hex(), "inputs": inputs})
    return hash_bytes(text.encode("ascii"), HashKind.DATUM_KEY)


def describe(inputs: Sequence[dict[str, str]]) -> str:
    """A datum for people: its path, or name and path of each input when there are several."""
    if len(inputs) == 1:
        return display(inputs[0]["path"])
    return " × ".join(f"{used['name']}:{display(used['path'])}" for used in inputs)
