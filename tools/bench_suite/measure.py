"""Running the sides of a row in turn, and what came out."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pfsmount.errors import PfsError
from tools.bench_suite.bench import Bench
from tools.bench_suite.row import SMALL, Broken, Contest, Goal, Row, Side, Sizes, Unavailable


@dataclass(slots=True)
class Measured:
    """All values of one side, in the order in which they were measured."""

    name: str
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "values": self.values,
        }


@dataclass(slots=True)
class Result:
    """A row after its run: measured, or why not."""

    row: Row
    title: str
    sides: list[Measured] = field(default_factory=list)
    """Ours, then the yardsticks; empty when it was not measured."""
    work: tuple[int, str] | None = None
    status: str = "measured"
    reason: str = ""
    notes: list[str] = field(default_factory=list)

    def ratios(self) -> list[float]:
        """Ours to each yardstick."""
        return [self.sides[0].median / other.median for other in self.sides[1:]]

    def goal_value(self, goal: Goal, sizes: Sizes) -> float:
        """What a goal is compared with."""
        return goal.value(self.sides[0].median, [other.median for other in self.sides[1:]], sizes, self.work)

    def as_json(self, sizes: Sizes) -> dict[str, Any]:
        found: dict[str, Any] = {
            "name": self.row.name,
            "title": self.title,
            "unit": self.row.unit,
            "heavy": self.row.heavy,
            "status": self.status,
            "reason": self.reason or None,
            "notes": self.notes,
            "goals": [],
        }
        if not self.sides:
            return found
        ours, *theirs = self.sides
        found["work"] = None if self.work is None else {"amount": self.work[0], "of": self.work[1]}
        found["ours"] = ours.as_json()
        pairs = zip(theirs, self.ratios(), strict=True)
        found["yardsticks"] = [{**other.as_json(), "ratio": ratio} for other, ratio in pairs]
        for goal in self.row.goals:
            value = self.goal_value(goal, sizes)
            found["goals"].append(
                {
                    "text": goal.text(self.row.unit),
                    "kind": goal.kind,
                    "limit": goal.limit,
                    "value": value,
                    "met": goal.met(value),
                }
            )
        return found


def run_row(row: Row, bench: Bench, repeat: int, progress: Callable[[str], None] = lambda text: None) -> Result:
    """Measure one row. What goes wrong in it is in the result."""
    result = Result(row, row.title.format_map(bench.sizes.words()))
    try:
        with bench.row() as notes:
            result.notes = notes
            progress("preparing")
            contest = row.set_up(bench)
            result.work = contest.work
            result.sides = _alternate(contest, 1 if row.once else repeat, bench.sizes != SMALL, progress)
    except Unavailable as error:
        result.status, result.reason = "not available", str(error)
    except (Broken, PfsError, OSError, subprocess.TimeoutExpired) as error:
        result.status, result.reason = "failed", str(error)
    if result.status != "measured":
        result.sides = []
    return result


def _alternate(contest: Contest, repeat: int, settle: bool, progress: Callable[[str], None]) -> list[Measured]:
    """Ours, theirs, ours, theirs …: what the machine does besides meets both."""
    sides: Sequence[Side] = [contest.ours, *contest.theirs]
    measured = [Measured(side.name) for side in sides]
    for i in range(repeat):
        for side, found in zip(sides, measured, strict=True):
            progress(f"{i + 1}/{repeat} {side.name}")
            found.values.append(_run_once(side, settle))
    return measured


def _run_once(side: Side, settle: bool) -> float:
    side.prepare()
    if settle:
        os.sync()  # nobody pays for what somebody else left to be written
    started = time.perf_counter()
    value = side.run()
    return time.perf_counter() - started if value is None else value
