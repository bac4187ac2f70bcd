"""What a person, a log file or a program sees of a job that runs."""

from __future__ import annotations

import time
from typing import Any

from pfsmount.cli import output
from runner.attempts import Ended
from runner.datum import Datum
from runner.pace import Pace, duration_text
from runner.state import Event, JobState

_EVENTS = {
    Event.DATUM_PROCESSED: "processed",
    Event.DATUM_SKIPPED: "skipped",
    Event.DATUM_FAILED: "failed",
    Event.DATUM_RECOVERED: "recovered",
}
_LINE_S = 60.0
_EVENT_S = 1.0


def counts(state: JobState) -> str:
    """How many datums ended how, for people."""
    recovered = f" · {state.recovered:,} recovered" if state.recovered else ""
    return f"{state.processed:,} processed · {state.skipped:,} skipped · {state.failed:,} failed{recovered}"


def _ran(state: JobState) -> int:
    return state.done - state.skipped


class Watcher:
    """For people: notes on stderr; on a terminal a bar with rate and remaining time, in a pipe a line a minute. A context manager."""

    def __init__(self) -> None:
        self._bar: output.Progress | None = None
        self._pace = Pace(time.monotonic())
        self._next_line = time.monotonic() + _LINE_S

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.__exit__(*error)

    def note(self, text: str) -> None:
        output.note(f"pfsjob: {text}")

    def started(self, job: str) -> None:
        pass

    def ended(self, datum: Datum, event: Event, ended: Ended | None) -> None:
        pass

    def progress(self, state: JobState, total: int | None) -> None:
        now = time.monotonic()
        if self._bar is None:
            self._bar = output.Progress("running", total).__enter__()
        self._pace.note(now, _ran(state))
        if self._bar.shown:
            self._bar.update(state.done, self._text(state, total, now), total=total)
        elif now >= self._next_line:
            self._next_line = now + _LINE_S
            of = "" if total is None else f" of {total:,}"
            self.note(f"{state.done:,}{of} datums: {self._text(state, total, now)}")

    def _text(self, state: JobState, total: int | None, now: float) -> str:
        ran = _ran(state)
        parts = [counts(state)]
        if rate := self._pace.rate(now, ran):
            parts.append(f"{rate:.1f}/s" if rate >= 0.1 else f"{rate * 60:.1f}/min")
        left = None if total is None else self._pace.left(now, ran, total - state.done)
        if left:
            parts.append(f"{duration_text(left)} left")
        return " · ".join(parts)


class EventWatcher:
    """For programs: each event is a line of JSON on standard output. A context manager."""

    def __init__(self) -> None:
        self._next = 0.0

    def __enter__(self) -> EventWatcher:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def note(self, text: str) -> None:
        print_event("note", text=text)

    def started(self, job: str) -> None:
        print_event("started", job=job)

    def ended(self, datum: Datum, event: Event, ended: Ended | None) -> None:
        value: dict[str, Any] = {"key": datum.key.hex(), "inputs": [match.as_json() for match in datum.matches]}
        if ended is not None:
            outcome = ended.outcome
            seconds = (outcome.ended_ns - outcome.started_ns) / 1e9
            value |= {
                "exit": outcome.shell_exit,
                "how": outcome.how,
                "tries": ended.tries,
                "seconds": round(seconds, 3),
            }
        print_event("datum", state=_EVENTS[event], **value)

    def progress(self, state: JobState, total: int | None) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _EVENT_S
            print_event("progress", phase=str(state.phase), **(state.counts() | {"total": total, "done": state.done}))


def print_event(event: str, **value: Any) -> None:
    """A line of JSON, at once."""
    output.print_json_line({"event": event, **value})
