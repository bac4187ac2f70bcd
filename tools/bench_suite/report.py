"""The table for people, the JSON for comparisons later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tools.bench_suite.measure import Measured, Result
from tools.bench_suite.row import SMALL, Sizes, Unit, format_value

_HEAD = ("", "ours", "yardstick", "theirs", "ratio", "goal", "")


def table(results: Sequence[Result], sizes: Sizes) -> str:
    """All results in columns: medians, in brackets the least and the greatest value.

    Goals are for real sizes, so tiny ones are not judged.
    """
    measured = [result for result in results if result.sides]
    lines = [_HEAD, *(line for result in measured for line in _lines(result, sizes))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEAD))]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    text = [line.rstrip() for line in shown] if measured else []
    for result in results:
        text += [f"{result.row.name}: {note}" for note in result.notes]
    missing = [result for result in results if not result.sides]
    width = max((len(result.title) for result in missing), default=0)
    text += [f"{result.title.ljust(width)}  {result.status}: {result.reason}" for result in missing]
    return "\n".join(text)


def _lines(result: Result, sizes: Sizes) -> Iterator[tuple[str, ...]]:
    unit = result.row.unit
    ours, *theirs = result.sides
    goals = list(result.row.goals)
    first = result.title, f"{_spread(ours, unit)}{_rate(ours, result)}"
    for i, other in enumerate(theirs or [None]):
        cells: tuple[str, ...] = ("", "", "")
        if other is not None:
            ratio = ours.median / other.median
            cells = other.name, f"{_spread(other, unit)}{_rate(other, result)}", f"{ratio:.2f}×"
        mine = [goal for goal in goals if goal.against == i]
        yield *(first if i == 0 else ("", "")), *cells, *(_goal(result, mine[0], sizes) if mine else ("", ""))
        for goal in mine[1:]:
            yield "", "", "", "", "", *_goal(result, goal, sizes)


def _goal(result: Result, goal: Any, sizes: Sizes) -> tuple[str, str]:
    value = result.goal_value(goal, sizes)
    shown = ""
    if goal.kind == "speed":
        shown = f" ({value:.2f}×)"
    elif goal.kind == "extra":
        shown = f" ({format_value(value, result.row.unit)})"
    verdict = "" if sizes == SMALL else "met" if goal.met(value) else "MISSED"
    return goal.text(result.row.unit), verdict + shown


def _spread(side: Measured, unit: Unit) -> str:
    text = format_value(side.median, unit)
    if len(side.values) > 1:
        text += f" ({format_value(min(side.values), unit)} – {format_value(max(side.values), unit)})"
    return text


def _rate(side: Measured, result: Result) -> str:
    if result.work is None or result.row.unit != "seconds":
        return ""
    amount, of = result.work
    if of == "bytes":
        return f", {amount / side.median / 1e6:,.0f} MB/s"
    return f", {amount / side.median:,.0f} {of}/s"


def as_json(results: Sequence[Result], sizes: Sizes, facts: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured."""
    return {
        "format": 1,
        **options,
        "machine": facts,
        "sizes": {name: getattr(sizes, name) for name in Sizes.__slots__},
        "rows": [result.as_json(sizes) for result in results],
    }
