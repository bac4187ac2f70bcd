"""Points in time as people write them: `2026-11-22`, `2026-11-22 17:43`, `3 days ago`, `2h`, `yesterday`, `@1700000000`."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from pfsmount.errors import InvalidInput
from pfsmount.ids import display

_SECONDS = {
    "s": 1,
    "sec": 1,
    "second": 1,
    "m": 60,
    "min": 60,
    "minute": 60,
    "h": 3600,
    "hour": 3600,
    "d": 86400,
    "day": 86400,
    "w": 7 * 86400,
    "week": 7 * 86400,
    "month": 30 * 86400,
    "year": 365 * 86400,
}
_AGO = re.compile(r"(\d{1,9})[ ._-]*([a-z]+?)s?(?:[ ._-]+ago)?\Z")
_NS = 1_000_000_000


def parse_time(text: str, now: datetime | None = None) -> int:
    """Unix time in ns; a time without zone is local, a day alone is its beginning. Raises InvalidInput."""
    now = datetime.now().astimezone() if now is None else now
    word = text.strip().lower()
    try:
        if word.startswith("@"):
            return int(word[1:]) * _NS
        if word == "now":
            return _ns(now)
        if word in ("today", "yesterday"):
            midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
            return _ns(midnight - timedelta(days=word == "yesterday"))
        ago = _AGO.match(word)
        if ago and ago[2] in _SECONDS:
            return _ns(now) - int(ago[1]) * _SECONDS[ago[2]] * _NS
        return _ns(datetime.fromisoformat(text.strip()))
    except (ValueError, OverflowError, OSError):
        raise InvalidInput(
            f"'{display(text)}' is not a time",
            hint="write 2026-11-22, '2026-11-22 17:43', '3 days ago', yesterday or @SECONDS",
        ) from None


def _ns(time: datetime) -> int:
    return round(time.timestamp() * 1_000_000) * 1000
