"""A thread beside its owner that does what it is given, in order: hashing and writing, which let go of Python's lock."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import NamedTuple


class Ticket(NamedTuple):
    """One call that a lane was given."""

    lane: Lane
    number: int

    def wait(self) -> None:
        """Wait until the call, and all before it, are done. Raises what went wrong with one, once."""
        self.lane.wait(self.number)

    def ahead(self, count: int) -> None:
        """Wait until at most `count` calls up to this one are not done. Raises as `wait`."""
        self.lane.wait(self.number - count)


class Lane:
    """Calls in order, in a thread that begins when a second call waits and ends with `close`. Used by one thread.

    What a call reads must stay as it is until it was waited for.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._answers: SimpleQueue[BaseException | None] = SimpleQueue()
        self._given = self._done = 0
        self._thread: Thread | None = None

    def do(self, call: Callable[[], object]) -> Ticket:
        """Let the lane do this next."""
        self._calls.put(call)
        self._given += 1
        if self._thread is None and self._given - self._done > 1:
            self._thread = Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        return Ticket(self, self._given)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            answer = None
            try:
                call()
            except BaseException as error:
                answer = error
            del call  # a memory map cannot be closed while somebody looks at it
            self._answers.put(answer)

    def wait(self, number: int | None = None) -> None:
        """Wait until this call, and all before it (by default: all), are done. Raises what went wrong with one, once."""
        number = self._given if number is None else number
        if self._thread is None and self._done < number:  # one call: not worth a thread
            self._calls.put(None)
            self._work()
        while self._done < number:
            error = self._answers.get()
            self._done += 1
            if error is not None:
                raise error

    def close(self) -> None:
        """Do what was given, end the thread; any number of times. What goes wrong is not heard of any more."""
        if self._thread is not None:
            self._calls.put(None)
            self._thread.join()
            self._thread = None
