"""How fast datums end, and how long the rest takes."""

from __future__ import annotations

from collections import deque

_WINDOW_S = 120.0
_SAMPLES_MAX = 600


class Pace:
    """The rate over the last two minutes. Datums that are only looked up are not counted: they say nothing about those that run."""

    def __init__(self, now: float) -> None:
        """Times are seconds on any one clock."""
        self._samples: deque[tuple[float, int]] = deque([(now, 0)], maxlen=_SAMPLES_MAX)

    def note(self, now: float, ran: int) -> None:
        """So many datums have run until now."""
        last, _ = self._samples[-1]
        if now - last >= _WINDOW_S / _SAMPLES_MAX:
            self._samples.append((now, ran))
            while now - self._samples[0][0] > _WINDOW_S and len(self._samples) > 2:
                self._samples.popleft()

    def rate(self, now: float, ran: int) -> float:
        """Datums a second; 0 when none has run yet."""
        then, before = self._samples[0]
        return (ran - before) / (now - then) if now > then else 0.0

    def left(self, now: float, ran: int, todo: int) -> float | None:
        """Seconds until all that is to do will have ended; None when nobody can say."""
        rate = self.rate(now, ran)
        return todo / rate if rate > 0 else None


def duration_text(seconds: float) -> str:
    """A duration in its two largest units: `45 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    whole = round(seconds)
    for size, unit, below, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {unit} {rest} {name}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"
