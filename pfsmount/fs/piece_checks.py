"""Checks of the pieces of large files: each once, for all who read it at that time.

The kernel asks for all parts of a piece at once, and each part needs all of the piece to be read and hashed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from pfsmount.errors import PfsError
from pfsmount.ids import ObjectId
from pfsmount.repo.overlay import WouldBlock
from pfsmount.tree.content import PieceCheck


class _Running:
    """The check of a piece that is under way."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.piece: bytes | None = None
        """Its bytes, when it is done and the piece is right."""


class PieceChecks:
    """The checks of one mount."""

    def __init__(self, in_thread: Callable[[Callable[[], bytes]], Awaitable[bytes]]) -> None:
        """`in_thread` runs something that waits."""
        self._in_thread = in_thread
        self._running: dict[ObjectId, _Running] = {}

    async def wait(self, check: PieceCheck) -> memoryview | None:
        """Check a piece, or wait for whoever is at it; what is wanted of it, if that is at hand then. Raises Corrupt, NotFound, OSError."""
        running = self._running.get(check.id)
        if running is None:
            self._go_ahead(check)
            running = self._running[check.id] = _Running()
            await self._check(check, running)
        else:
            await running.done.wait()
        return None if running.piece is None else check.part(running.piece)

    async def _check(self, check: PieceCheck, running: _Running) -> None:
        try:
            running.piece = await self._in_thread(check.run)
        finally:
            del self._running[check.id]
            running.done.set()

    def _go_ahead(self, check: PieceCheck) -> None:
        """Somebody goes through a large file: have its next piece checked too, on another core."""
        try:
            before, after = check.before(), check.after()
        except (WouldBlock, PfsError, OSError):  # whoever reads on will meet it
            return
        if after is not None and after.id not in self._running and (before is None or before.id in self._running):
            running = self._running[after.id] = _Running()
            trio.lowlevel.spawn_system_task(self._check_quietly, after, running)

    async def _check_quietly(self, check: PieceCheck, running: _Running) -> None:
        try:
            await self._check(check, running)
        except (PfsError, OSError):
            pass  # whoever reads it will meet it
