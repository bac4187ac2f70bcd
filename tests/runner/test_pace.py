"""The rate of a job, and how long the rest takes."""

from __future__ import annotations

import pytest

from runner.pace import Pace, duration_text


def test_the_rate_is_that_of_the_last_two_minutes() -> None:
    pace = Pace(1000.0)
    assert pace.left(1000.0, 0, 10) is None
    for second in range(100):
        pace.note(1000.0 + second, second * 2)
    assert pace.rate(1099.0, 198) == pytest.approx(2.0)
    assert pace.left(1099.0, 198, 50) == pytest.approx(25.0)
    # ten times slower from then on: the early ones are forgotten
    for second in range(0, 600, 5):
        pace.note(1100.0 + second, 200 + second // 5)
    assert pace.rate(1695.0, 319) == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (273600, "3 d 4 h")],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
