"""Durations and amounts as specs write them: Go's `1h30m`, Kubernetes' `64M`, `1Gi` and `500m`."""

from __future__ import annotations

import re

from pfsmount.errors import InvalidInput
from pfsmount.ids import display

_NUMBER = r"(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})"
_DURATION = re.compile(rf"\+?(?:{_NUMBER}(?:ns|us|µs|μs|ms|s|m|h|d))+\Z")
_PART = re.compile(rf"({_NUMBER})([a-zµμ]+)")
_PLAIN = re.compile(rf"\+?({_NUMBER})\Z")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_QUANTITY = re.compile(rf"\+?({_NUMBER})(?:[eE]([+-]?[0-9]{{1,2}})|([numkKMGTPE]|[KMGTPE]i)?)\Z")
_UNITS = {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "K": 1e3}
_UNITS |= {letter: 1000.0**power for power, letter in enumerate("MGTPE", start=2)}
_UNITS |= {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", start=1)}

LEAST_MEMORY = 1 << 16
MOST_MEMORY = 1 << 60
LEAST_CPUS = 0.01
"""The kernel gives no less: 1 ms of each 100."""
MOST_CPUS = 1e5


def duration_seconds(text: str) -> float:
    """`1h30m`, `500ms`, or a number of seconds; 0 for nothing. Raises InvalidInput."""
    if not text:
        return 0.0
    if plain := _PLAIN.match(text):
        return float(plain[1])
    if not _DURATION.match(text):
        raise InvalidInput(f"'{display(text)}' is not a duration", hint="write it as 30s, 2m, 1h30m or 500ms")
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))


def quantity(text: str) -> float:
    """A number, with a unit or without. Raises InvalidInput."""
    match = _QUANTITY.match(text)
    if not match:
        hint = "write it as 64M, 1.5G, 512Mi or 0.5"
        if bare := re.match(rf"({_NUMBER}) ?([kmgtp])(i?)b?\Z", text, re.IGNORECASE):
            unit = bare[2].upper().replace("K", "Ki" if bare[3] else "k")
            hint = f"write it as {bare[1]}{unit if bare[2] in 'kK' else unit + bare[3].lower()}"
        raise InvalidInput(f"'{display(text)}' is not a quantity", hint=hint)
    return float(match[1]) * (10.0 ** int(match[2]) if match[2] else _UNITS[match[3] or ""])


def memory_bytes(text: str) -> int | None:
    """An amount of memory; None for nothing. Raises InvalidInput."""
    amount = quantity(text) if text else 0.0
    if not amount:
        return None
    if amount < LEAST_MEMORY:
        hint = f"an 'm' is a thousandth; write it as {text[:-1]}M" if text.endswith("m") else "write it as 64M or 1Gi"
        raise InvalidInput(f"{display(text)} is {amount:g} bytes, in which nothing can run", hint=hint)
    if amount > MOST_MEMORY:
        raise InvalidInput(f"{display(text)} is more memory than any machine has")
    return round(amount)


def cpu_share(text: str) -> float | None:
    """Processors' worth of time; None for nothing. Raises InvalidInput."""
    amount = quantity(text) if text else 0.0
    if not amount:
        return None
    if not LEAST_CPUS <= amount <= MOST_CPUS:
        raise InvalidInput(
            f"{display(text)} is {amount:g} processors", hint="write it as 0.5, 500m or 2; at least 10m are needed"
        )
    return amount
