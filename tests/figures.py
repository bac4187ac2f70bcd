"""What the heavy tests counted (crash points, disks, kills, commits that had to survive), told at the end of the run, also of one in several processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

PROPERTY = "figures"
"""The name under which a test's report carries them."""


class Tell(Protocol):
    """The fixture `tell`: what was tried, on what, and how often."""

    def __call__(self, kind: str, of: str, **counts: int) -> None:
        """`tell("power cuts", "merge", crash_points=120, disks=700)`."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What one test counted."""

    kind: str
    of: str
    counts: Mapping[str, int]

    def encode(self) -> str:
        """As text, for a report on its way from another process."""
        return json.dumps([self.kind, self.of, self.counts])

    @classmethod
    def decode(cls, text: str) -> Figures:
        kind, of, counts = json.loads(text)
        return cls(kind, of, counts)


def teller(record: Callable[[str, object], None]) -> Tell:
    """What the fixture gives: `record` adds a property to the report of the test."""

    def tell(kind: str, of: str, **counts: int) -> None:
        record(PROPERTY, Figures(kind, of, counts).encode())

    return tell


def summary(properties: Iterable[Sequence[object]]) -> list[str]:
    """The lines at the end of a run, from the properties of all reports.

    What both tiers try of the same is told once, as the one that tried more has it; so the sums count nothing twice.
    """
    largest: dict[tuple[str, str], Figures] = {}
    for name, value in properties:
        if name == PROPERTY:
            one = Figures.decode(str(value))
            before = largest.get((one.kind, one.of))
            if before is None or sum(one.counts.values()) > sum(before.counts.values()):
                largest[one.kind, one.of] = one
    lines = []
    for kind in dict.fromkeys(kind for kind, _ in largest):
        rows = [one for one in largest.values() if one.kind == kind]
        lines += [f"{kind}, {one.of}: {_words(one.counts)}" for one in sorted(rows, key=lambda one: one.of)]
        if len(rows) > 1:
            total: dict[str, int] = {}
            for one in rows:
                for what, count in one.counts.items():
                    total[what] = total.get(what, 0) + count
            lines.append(f"{kind} in all: {_words(total)}")
    return lines


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in counts.items())
