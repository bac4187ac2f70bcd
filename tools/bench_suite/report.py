"""The table for people, the JSON for comparisons later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tools.bench_suite.measure import Measured, Result
from tools.bench_suite.row import SMALL, Goal, Sizes, format_rate, format_value

_WIDTHS = (36, 8, 21, 16, 6)
"""At least so wide is each column, so that rows that are printed one by one stand below each other."""


def table(results: Sequence[Result], sizes: Sizes) -> str:
    """All results, a line a side: median, in brackets the least and the greatest value, rate, ratio to ours, goal.

    Goals are for real sizes, so tiny ones are not judged.
    """
    lines = {result.row.name: [*_lines(result, sizes)] for result in results}
    widths = [max((len(line[i]) for group in lines.values() for line in group), default=0) for i in range(5)]
    widths = [max(width, least) for width, least in zip(widths, _WIDTHS, strict=True)]
    text = []
    for result in results:
        text.append(result.title if result.sides else f"{result.title}: {result.status}: {result.reason}")
        for name, median, spread, rate, ratio, goal in lines[result.row.name]:
            cells = (name.ljust(widths[0]), median.rjust(widths[1]), spread.ljust(widths[2]), rate.rjust(widths[3]))
            text.append(f"    {'  '.join(cells)}  {ratio.rjust(widths[4])}  {goal}".rstrip())
        text += [f"    ({note})" for note in result.notes]
    return "\n".join(text)


def summary(results: Sequence[Result], sizes: Sizes) -> str:
    """How many goals are met, and which rows miss one or were not measured."""
    measured = [result for result in results if result.sides]
    judged = [(result, goal.met(result.goal_value(goal, sizes))) for result in measured for goal in result.row.goals]
    missed = dict.fromkeys(result.row.name for result, met in judged if not met)
    parts = [f"{len(measured)} rows"]
    if sizes != SMALL:
        parts.append(f"{sum(met for _, met in judged)} of {len(judged)} goals met")
        if missed:
            parts.append(f"missed: {', '.join(missed)}")
    for status in ("not available", "failed"):
        names = [result.row.name for result in results if result.status == status]
        if names:
            parts.append(f"{status}: {', '.join(names)}")
    return "; ".join(parts)


def _lines(result: Result, sizes: Sizes) -> Iterator[tuple[str, str, str, str, str, str]]:
    for i, side in enumerate(result.sides):
        unit = result.row.unit
        spread = f"({format_value(min(side.values), unit)} – {format_value(max(side.values), unit)})"
        ratio = "" if i == 0 else f"{result.sides[0].median / side.median:.2f}×"
        mine = [goal for goal in result.row.goals if _line_of(goal) == i]
        goals = ", ".join(_goal(result, goal, sizes) for goal in mine)
        median = format_value(side.median, unit)
        yield side.name, median, spread if len(side.values) > 1 else "", _rate(side, result), ratio, goals


def _line_of(goal: Goal) -> int:
    return 0 if goal.kind in ("value", "rate") else goal.against + 1


def _goal(result: Result, goal: Goal, sizes: Sizes) -> str:
    value = result.goal_value(goal, sizes)
    shown = ""
    if goal.kind == "speed":
        shown = f": {value:.2f}×"
    elif goal.kind == "extra":
        shown = f": {format_value(value, result.row.unit)}"
    verdict = "" if sizes == SMALL else " met" if goal.met(value) else " MISSED"
    return f"goal {goal.text(result.row.unit)}{shown}{verdict}"


def _rate(side: Measured, result: Result) -> str:
    if result.work is None or result.row.unit != "seconds":
        return ""
    amount, of = result.work
    return format_rate(amount / side.median, of)


def as_json(results: Sequence[Result], sizes: Sizes, facts: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured."""
    return {
        "format": 1,
        **options,
        "machine": facts,
        "sizes": {name: getattr(sizes, name) for name in Sizes.__slots__},
        "rows": [result.as_json(sizes) for result in results],
    }
