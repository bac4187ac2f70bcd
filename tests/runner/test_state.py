"""The table of a job's life: every phase against every event."""

from __future__ import annotations

import pytest

from runner.state import Event, ImpossibleEvent, JobState, Phase, advance

R, S, F = Phase.RUNNING, Phase.STOPPING, Phase.FINISHING
TABLE: dict[tuple[Phase, Event], Phase] = {
    (R, Event.DATUM_SKIPPED): R,
    (R, Event.DATUM_PROCESSED): R,
    (R, Event.DATUM_FAILED): R,
    (R, Event.DATUM_RECOVERED): R,
    (R, Event.FAILED_FAST): S,
    (R, Event.TIMED_OUT): S,
    (R, Event.STOP_ASKED): S,
    (R, Event.DATUMS_ENDED): F,
    (R, Event.BROKE): Phase.FAILED,
    (S, Event.DATUM_SKIPPED): S,
    (S, Event.DATUM_PROCESSED): S,
    (S, Event.DATUM_FAILED): S,
    (S, Event.DATUM_RECOVERED): S,
    (S, Event.FAILED_FAST): S,
    (S, Event.TIMED_OUT): S,
    (S, Event.STOP_ASKED): S,
    (S, Event.DATUMS_ENDED): Phase.KILLED,
    (S, Event.BROKE): Phase.FAILED,
    (F, Event.STOP_ASKED): F,
    (F, Event.CLASHED): Phase.FAILED,
    (F, Event.PUBLISHED): Phase.SUCCESS,
    (F, Event.HEAD_MOVED): Phase.CONFLICT,
    (F, Event.BROKE): Phase.FAILED,
}


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", Event)
def test_every_phase_against_every_event(phase: Phase, event: Event) -> None:
    state = JobState(phase)
    expected = TABLE.get((phase, event))
    if expected is None:
        with pytest.raises(ImpossibleEvent, match=f"{event.name} in phase {phase.name}"):
            advance(state, event)
    else:
        assert advance(state, event).phase is expected


def test_datums_are_counted() -> None:
    state = JobState()
    state = advance(state, Event.DATUM_SKIPPED, 10)
    state = advance(state, Event.DATUM_PROCESSED)
    state = advance(state, Event.DATUM_FAILED)
    assert state.counts() == {"total": 12, "processed": 1, "skipped": 10, "failed": 1}
    assert state.done == 12
    state = advance(state, Event.DATUM_RECOVERED)
    assert (state.counts()["recovered"], state.done) == (1, 13)


def test_a_failed_datum_fails_the_job_at_its_end() -> None:
    state = advance(JobState(), Event.DATUM_FAILED)
    assert advance(state, Event.DATUMS_ENDED).phase is Phase.FAILED


def test_what_stopped_a_job_decides_what_it_is() -> None:
    failed = advance(advance(JobState(), Event.DATUM_FAILED), Event.FAILED_FAST)
    assert advance(failed, Event.DATUMS_ENDED).phase is Phase.FAILED
    assert advance(advance(failed, Event.STOP_ASKED), Event.DATUMS_ENDED).phase is Phase.FAILED
    late = advance(JobState(), Event.TIMED_OUT)
    assert advance(late, Event.DATUMS_ENDED).phase is Phase.FAILED
    stopped = advance(JobState(), Event.STOP_ASKED)
    assert advance(advance(stopped, Event.FAILED_FAST), Event.DATUMS_ENDED).phase is Phase.KILLED
