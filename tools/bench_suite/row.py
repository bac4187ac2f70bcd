"""What a row of the benchmark is.

    @row("put-small", "put {small_files} files of 4 KiB", at_most_times(1.2))
    def put_small(bench: Bench) -> Contest:
        source = bench.tree()
        return Contest(Side("pfs put", lambda: …), [Side("cp -r + sync", lambda: …)])

The function prepares what all repeats share and returns the sides. Each side is run in turn, as often as asked, its `prepare` outside the
time. `run` is timed, or returns the value itself when it measures something else (a median of many, bytes). Text in braces
is filled in from `Sizes`. Raise `Unavailable` where this machine, this user or this version cannot run the row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tools.bench_suite.bench import Bench

Unit = Literal["seconds", "bytes", "count"]


class Unavailable(Exception):
    """The row cannot be measured here; the text says why."""


class Broken(Exception):
    """A command of the row went wrong; the text says which and how."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the work is. Sizes in bytes."""

    put_files: int = 100_000
    put_size: int = 2 << 30
    small_files: int = 20_000
    """Of the rows that read through the mount, and of those that measure the size of a store."""
    mount_files: int = 100_000
    """Of the rows that list a tree through the mount."""
    changes_mounted: int = 1_000
    """Files of a mounted branch, or places in its one large file, that are not committed."""
    random_reads: int = 100_000
    """While warm; a fifth of them while cold."""
    created_files: int = 10_000
    small_size: int = 4096
    read_files: int = 10_000
    big_size: int = 1 << 30
    few_files: int = 1_000
    few_directories: int = 2
    many_files: int = 1_000_000
    many_directories: int = 1_000
    """Over which `many_files` are spread."""
    other_objects: int = 20_000_000
    commits: int = 30
    """One-file commits (or other things that take milliseconds) in one repeat; their median is its value."""
    changes: int = 10
    stream_size: int = 20 << 30
    grown_size: int = 512 << 20
    grow_size: int = 1 << 20
    photo_copies: int = 20
    history: int = 10_000
    window: int = 1_000
    """Commits at the start and at the end of the history that are compared."""
    git_commits: int = 200
    datums: int = 10_000
    byte_datums: int = 1_000
    known_datums: int = 100_000
    container_datums: int = 300
    outputs: int = 6_000
    """Of one datum."""
    output_size: int = 3 << 10
    jobs: int = 1_000
    job_window: int = 20
    """Jobs whose median is one repeat."""

    def words(self) -> dict[str, str]:
        """For the titles of rows."""
        values = ((name, getattr(self, name)) for name in self.__slots__)
        return {
            name: format_value(value, "bytes") if name.endswith("_size") else f"{value:,}" for name, value in values
        }


SMALL = Sizes(
    put_files=60,
    put_size=5 << 20,
    small_files=60,
    mount_files=60,
    changes_mounted=7,
    random_reads=50,
    created_files=20,
    read_files=30,
    big_size=5 << 20,
    few_files=20,
    few_directories=2,
    many_files=400,
    many_directories=20,
    other_objects=1_000,
    commits=3,
    stream_size=5 << 20,
    grown_size=5 << 20,
    grow_size=64 << 10,
    photo_copies=1,
    history=12,
    window=3,
    git_commits=2,
    datums=3,
    byte_datums=3,
    known_datums=3,
    container_datums=3,
    outputs=3,
    jobs=3,
    job_window=1,
)


@dataclass(frozen=True, slots=True)
class Side:
    """One of the things that are compared."""

    name: str
    run: Callable[[], float | None]
    """Timed; or the value, in the row's unit."""
    prepare: Callable[[], object] = lambda: None
    """Before each run, outside the time."""


@dataclass(frozen=True, slots=True)
class Contest:
    """Ours, and its yardsticks."""

    ours: Side
    theirs: Sequence[Side] = ()
    work: tuple[int, str] | None = None
    """How much one run does, for the rate: (20_000, "files") or (1 << 30, "bytes")."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What the row should reach. `against` counts the yardsticks from 0."""

    kind: Literal["times", "speed", "value", "extra", "rate"]
    limit: float
    against: int = 0
    of: str = ""
    """For `extra`: the field of `Sizes` that says by how many the difference is shared. For `rate`: of what."""
    note: str = ""
    """Where the goal is for another size than this row's."""

    def text(self, unit: Unit) -> str:
        """As people write it."""
        amount = format_value(self.limit, unit)
        texts = {
            "times": f"≤ {self.limit:g}×",
            "speed": f"≥ {self.limit:g}× speed",
            "value": f"≤ {amount}",
            "extra": f"≤ {amount} more each",
            "rate": f"≥ {format_rate(self.limit, self.of)}",
        }
        return texts[self.kind] + (f" ({self.note})" if self.note else "")

    def value(self, ours: float, theirs: Sequence[float], sizes: Sizes, work: tuple[int, str] | None) -> float:
        """What is compared with the limit."""
        if self.kind == "value":
            return ours
        if self.kind == "rate":
            assert work is not None
            return work[0] / ours
        other = theirs[self.against]
        if self.kind == "times":
            return ours / other
        if self.kind == "speed":
            return other / ours
        return (ours - other) / int(getattr(sizes, self.of))

    def met(self, value: float) -> bool:
        """Whether a value is good enough."""
        return value >= self.limit if self.kind in ("speed", "rate") else value <= self.limit


def at_most_times(limit: float, *, against: int = 0, note: str = "") -> Goal:
    """Ours takes at most `limit` times what the yardstick takes."""
    return Goal("times", limit, against, note=note)


def at_least_speed(limit: float, *, against: int = 0, note: str = "") -> Goal:
    """Ours is at least `limit` times as fast as the yardstick."""
    return Goal("speed", limit, against, note=note)


def at_most(limit: float, *, note: str = "") -> Goal:
    """Ours is at most this much, in the row's unit."""
    return Goal("value", limit, note=note)


def at_most_more(limit: float, each: str, *, against: int = 0, note: str = "") -> Goal:
    """Ours takes at most this much more than the yardstick for each of the field `each` of `Sizes`."""
    return Goal("extra", limit, against, of=each, note=note)


def at_least_rate(limit: float, of: str, *, note: str = "") -> Goal:
    """Ours does at least so many of the contest's work a second."""
    return Goal("rate", limit, of=of, note=note)


@dataclass(frozen=True, slots=True)
class Row:
    """A registered row."""

    name: str
    title: str
    set_up: Callable[[Bench], Contest]
    goals: Sequence[Goal] = ()
    unit: Unit = "seconds"
    heavy: bool = False
    """Minutes, or tens of GB: run when asked for only."""
    once: bool = False
    """One repeat says it all: what is counted is the same each time, or one run has a great many in it."""


@dataclass(slots=True)
class _Registry:
    rows: dict[str, Row] = field(default_factory=dict)


_REGISTRY = _Registry()


def row(
    name: str, title: str, *goals: Goal, unit: Unit = "seconds", heavy: bool = False, once: bool = False
) -> Callable[[Callable[[Bench], Contest]], Callable[[Bench], Contest]]:
    """Register a function as a row; the rows of a module are run in the order of its functions."""

    def register(set_up: Callable[[Bench], Contest]) -> Callable[[Bench], Contest]:
        if name in _REGISTRY.rows:
            raise AssertionError(f"two rows are named {name}")
        _REGISTRY.rows[name] = Row(name, title, set_up, goals, unit, heavy, once)
        return set_up

    return register


def all_rows() -> Mapping[str, Row]:
    """All registered rows by name."""
    return _REGISTRY.rows


def format_rate(value: float, of: str) -> str:
    """Work a second for people: `870 MB/s`, `61,200 files/s`."""
    return f"{value / 1e6:,.0f} MB/s" if of == "bytes" else f"{value:,.0f} {of}/s"


def format_value(value: float, unit: Unit) -> str:
    """A measured value for people: `2.31 s`, `4.1 ms`, `8.0 MiB`, `3`."""
    if unit == "count":
        return f"{value:g}"
    if unit == "bytes":
        for name in ("B", "KiB", "MiB"):
            if abs(value) < 1024:
                return f"{value:.3g} {name}" if name != "B" else f"{value:.0f} B"
            value /= 1024
        return f"{value:.3g} GiB"
    for factor, name in ((1, "s"), (1e3, "ms")):
        if abs(value) * factor >= 1:
            scaled = value * factor
            return f"{scaled:.0f} {name}" if scaled >= 100 else f"{scaled:.3g} {name}"
    return f"{value * 1e6:.3g} µs"
