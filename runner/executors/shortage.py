"""What limits, or the end of the machine's memory, had to do with how a command ended: for people, the same words from every executor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from runner.executors.base import Limits, Reason

Short = Literal["", "limit", "machine", "maybe"]
"""Whose want of memory killed a process of a datum."""

MACHINE = "the machine (or the container or service around the runner)"


def limit_message(reason: str, short: Short, struck: Sequence[str], limits: Limits) -> str:
    """Empty when they had nothing to do with it."""
    if reason == Reason.OK:
        return ""
    said = []
    if short == "limit" and limits.memory is not None:
        said.append(f"needed more than its limit of {memory_text(limits.memory)} of memory")
    elif short == "machine":
        said.append(f"a process of it was killed because {MACHINE} had no memory left")
    elif short == "maybe":
        said.append(f"meanwhile {MACHINE} had no memory left and a process was killed, perhaps one of this datum")
    if "pids" in struck:
        counted = "its limit of" if limits.pids is None else f"its limit of {limits.pids}"
        said.append(f"reached {counted} processes")
    return "; ".join(said)


def memory_text(amount: int) -> str:
    """In the largest unit that leaves a whole number: 256 MiB, 1500 KiB."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if amount % size == 0:
            return f"{amount // size} {unit}"
    return f"{amount} bytes"
