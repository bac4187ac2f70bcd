"""Ctrl-C, SIGTERM and SIGHUP end a command cleanly: what was begun is rolled back, and one line says what is true now.

The first signal raises `Interrupted` wherever the program is, so that context managers give back what they hold. It waits while a
commit is being written down (`held_back`), which takes milliseconds, so that what is said about the commit is right. The second
is answered with a line, for cleaning up may take a moment; the third ends the process, which harms no store.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_AGAIN_SECONDS = 0.01


class Interrupted(BaseException):
    """A signal asks to end. No Exception, so that nothing but the end of the command catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


@dataclass(slots=True)
class _State:
    waiting: int = 0
    """The signal that came while none was wanted."""
    held: bool = False
    raised: int = 0
    count: int = 0
    committed: bool = False
    else_true: str = ""


_state = _State()


def install() -> None:
    """Begin to answer the signals; those that the caller ignores (nohup) stay ignored."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)
    signal.signal(signal.SIGALRM, _on_signal)
    sys.unraisablehook = _on_unraisable


def if_interrupted(text: str) -> None:
    """What is true when a signal ends the command from now on, before a commit was made: `nothing was committed`."""
    _state.else_true = text


def message() -> str:
    """The line for whoever interrupted."""
    true = "the commit was made" if _state.committed else _state.else_true
    return "interrupted" + (f"; {true}" if true else "")


@contextmanager
def held_back() -> Iterator[None]:
    """Signals wait until the end of the block, after which a commit was made if nothing was raised."""
    _state.held = True
    try:
        yield
        _state.committed = True
    finally:
        _state.held = False
        if _state.waiting:
            _raise(_state.waiting)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGALRM:
        number = _state.raised
    if _state.held:
        _state.waiting = number
        return
    _state.count += 1
    if _state.count == 1:
        _raise(number)
    if _state.count > 2:
        os._exit(128 + number)
    os.write(2, b"\npfs: cleaning up; once more ends at once\n")


def _raise(number: int) -> None:
    _state.waiting, _state.raised, _state.count = 0, number, 1
    raise Interrupted(number)


def _on_unraisable(lost: sys.UnraisableHookArgs) -> None:
    """Python drops what is raised inside a finalizer: raise it again a moment later."""
    if not isinstance(lost.exc_value, Interrupted):
        sys.__unraisablehook__(lost)
        return
    _state.count = 0
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
