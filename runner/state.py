"""The life of a job as a pure function: a state and an event make the next state.

    RUNNING ──all datums ended──▶ FINISHING ──published──▶ SUCCESS
       │  │                           ├──the head had moved──▶ CONFLICT
       │  └─a datum failed────────────┴──▶ FAILED
       └──▶ STOPPING ──all datums ended──▶ KILLED or FAILED

INTERRUPTED is never stored: a record that says RUNNING or later, and whose job nobody holds the lock of, is one.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace


class Phase(enum.StrEnum):
    """Where a job stands; the value is stored and printed."""

    RUNNING = "running"
    STOPPING = "stopping"
    FINISHING = "finishing"
    SUCCESS = "success"
    FAILED = "failed"
    KILLED = "killed"
    CONFLICT = "conflict"
    INTERRUPTED = "interrupted"

    @property
    def is_over(self) -> bool:
        """True when nothing more can happen."""
        return self not in (Phase.RUNNING, Phase.STOPPING, Phase.FINISHING)


class Event(enum.Enum):
    """What happens to a job."""

    DATUM_SKIPPED = enum.auto()
    """Its result was there already."""
    DATUM_PROCESSED = enum.auto()
    DATUM_FAILED = enum.auto()
    DATUM_RECOVERED = enum.auto()
    """It failed, and the spec's error command says that the job can do without it."""
    FAILED_FAST = enum.auto()
    """A datum failed, and the first failure is to end the job."""
    TIMED_OUT = enum.auto()
    """The job has used the time that it may take."""
    STOP_ASKED = enum.auto()
    """A person (or the machine's shutdown) wants it to end."""
    DATUMS_ENDED = enum.auto()
    """No datum runs any more, and none will."""
    CLASHED = enum.auto()
    """Two datums wrote one path."""
    BROKE = enum.auto()
    """Something other than a datum failed: the disk, the executor."""
    PUBLISHED = enum.auto()
    HEAD_MOVED = enum.auto()
    """Somebody else committed to the output branch meanwhile."""


@dataclass(frozen=True, slots=True)
class JobState:
    """A job at one instant."""

    phase: Phase = Phase.RUNNING
    processed: int = 0
    skipped: int = 0
    failed: int = 0
    recovered: int = 0
    stop_is_failure: bool = False
    """Why it is STOPPING: a failure, or a person."""

    @property
    def done(self) -> int:
        """Datums that have ended one way or another."""
        return self.processed + self.skipped + self.failed + self.recovered

    def counts(self) -> dict[str, int]:
        """As the record has them; `total` is of those that have ended."""
        found = {"total": self.done, "processed": self.processed, "skipped": self.skipped, "failed": self.failed}
        return found | ({"recovered": self.recovered} if self.recovered else {})


class ImpossibleEvent(Exception):
    """A bug: the event cannot happen in this phase."""


_COUNTED = {
    Event.DATUM_SKIPPED: "skipped",
    Event.DATUM_PROCESSED: "processed",
    Event.DATUM_FAILED: "failed",
    Event.DATUM_RECOVERED: "recovered",
}
_COUNTING = (Phase.RUNNING, Phase.STOPPING)
_MOVES: Mapping[tuple[Phase, Event], Phase] = {
    (Phase.RUNNING, Event.FAILED_FAST): Phase.STOPPING,
    (Phase.RUNNING, Event.TIMED_OUT): Phase.STOPPING,
    (Phase.RUNNING, Event.STOP_ASKED): Phase.STOPPING,
    (Phase.STOPPING, Event.FAILED_FAST): Phase.STOPPING,
    (Phase.STOPPING, Event.TIMED_OUT): Phase.STOPPING,
    (Phase.STOPPING, Event.STOP_ASKED): Phase.STOPPING,
    (Phase.FINISHING, Event.STOP_ASKED): Phase.FINISHING,  # the commit is a moment away, and is made
    (Phase.FINISHING, Event.CLASHED): Phase.FAILED,
    (Phase.FINISHING, Event.PUBLISHED): Phase.SUCCESS,
    (Phase.FINISHING, Event.HEAD_MOVED): Phase.CONFLICT,
    (Phase.RUNNING, Event.BROKE): Phase.FAILED,
    (Phase.STOPPING, Event.BROKE): Phase.FAILED,
    (Phase.FINISHING, Event.BROKE): Phase.FAILED,
}


def advance(state: JobState, event: Event, count: int = 1) -> JobState:
    """The state after an event (after `count` of it, for datums). Raises ImpossibleEvent."""
    phase = state.phase
    if event in _COUNTED and phase in _COUNTING:
        name = _COUNTED[event]
        return replace(state, **{name: getattr(state, name) + count})
    if event is Event.DATUMS_ENDED and phase is Phase.RUNNING:
        return replace(state, phase=Phase.FAILED if state.failed else Phase.FINISHING)
    if event is Event.DATUMS_ENDED and phase is Phase.STOPPING:
        return replace(state, phase=Phase.FAILED if state.stop_is_failure else Phase.KILLED)
    after = _MOVES.get((phase, event))
    if after is None:
        raise ImpossibleEvent(f"{event.name} in phase {phase.name}")
    if phase is Phase.RUNNING and event in (Event.FAILED_FAST, Event.TIMED_OUT):
        return replace(state, phase=after, stop_is_failure=True)
    return replace(state, phase=after)
