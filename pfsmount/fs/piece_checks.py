"""Checks of the pieces of large files: each once, for all who read it at that time, and the next ones ahead of who goes through a file.

The kernel asks for all parts of a piece at once, and each part needs all of the piece to be read and hashed. Pieces that are read ahead go past the page cache:
the kernel keeps what it was given as pages of the mounted file, so those of the segment would be a second copy, and one more to be made. They are kept here until all their
parts were asked for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import trio

from pfsmount.errors import PfsError
from pfsmount.fs.places import OpenFile
from pfsmount.ids import ObjectId
from pfsmount.objects.hashing import Buffer
from pfsmount.objects.parts import Pool
from pfsmount.repo.overlay import WouldBlock
from pfsmount.tree.content import PieceCheck
from pfsmount.tree.manifest import PIECE_MAX

_AHEAD = 3
"""Pieces that are checked ahead: the disk has something to do while two processors hash."""
_KEPT_MAX = 6
"""Pieces, of at most 4 MiB."""


class _Running:
    """The check of a piece that is under way."""

    def __init__(self, *, is_met: bool) -> None:
        self.done = trio.Event()
        self.piece: Buffer | None = None
        """Its bytes, when it is done and the piece is right."""
        self.is_met = is_met
        """Whether somebody has asked for a part of it."""


class _Kept:
    """A piece that was read past the page cache."""

    def __init__(self, piece: Buffer, is_met: bool) -> None:
        self.piece = piece
        self.left = len(piece)
        """Bytes that nobody has asked for yet."""
        self.is_met = is_met


class PieceChecks:
    """The checks of one mount."""

    def __init__(self, in_thread: Callable[[Callable[[], Buffer | None]], Awaitable[Buffer | None]]) -> None:
        """`in_thread` runs something that waits."""
        self._in_thread = in_thread
        self._running: dict[ObjectId, _Running] = {}
        self._kept: dict[ObjectId, _Kept] = {}
        """The oldest first."""
        self._pool = Pool(PIECE_MAX)

    @property
    def busy(self) -> bool:
        """Whether `at_hand` may have something."""
        return bool(self._kept or self._running)

    def rest(self) -> None:
        """A file was closed: give memory back if nothing is being read ahead."""
        if not self._running and (self._kept or self._pool):
            self._kept.clear()
            self._pool.clear()

    async def at_hand(self, file: OpenFile, offset: int, size: int) -> Buffer | None:
        """A range of a file out of pieces that were read ahead, or are being read; None if there is anything else in it. Raises Corrupt, NotFound, OSError."""
        try:
            pieces = file.pieces_of(offset, size)
        except (WouldBlock, PfsError, OSError):  # whoever reads on will meet it
            return None
        if not pieces or not all(piece.id in self._kept or piece.id in self._running for piece in pieces):
            return None
        parts = []
        for piece in pieces:
            part = await self._part(piece)
            if part is None:
                return None
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _part(self, check: PieceCheck) -> memoryview | None:
        there = self._kept.get(check.id) or self._running.get(check.id)
        if there is None:
            return None
        if not there.is_met:  # it was read ahead: so go on
            there.is_met = True
            self._go_ahead(check)
        if isinstance(there, _Running):
            await there.done.wait()
        kept = self._kept.get(check.id)
        if kept is None:
            return None if there.piece is None else check.part(there.piece)
        part = check.part(kept.piece)
        assert part is not None
        kept.left -= len(part)
        if kept.left <= 0:
            del self._kept[check.id]
        return part

    async def wait(self, check: PieceCheck) -> memoryview | None:
        """Check a piece, or wait for whoever is at it; what is wanted of it, if that is at hand then. Raises Corrupt, NotFound, OSError."""
        running = self._running.get(check.id)
        if running is None:
            ahead = self._is_next(check)
            if ahead:
                self._go_ahead(check)
            running = self._running[check.id] = _Running(is_met=True)
            await self._check(check.id, running, partial(check.run, onward=check.is_from_start and not ahead))
        else:
            await running.done.wait()
        return None if running.piece is None else check.part(running.piece)

    async def _check(self, id: ObjectId, running: _Running, run: Callable[[], Buffer | None]) -> None:
        try:
            running.piece = await self._in_thread(run)
        finally:
            del self._running[id]
            running.done.set()

    def _is_next(self, check: PieceCheck) -> bool:
        """Whether somebody goes through a large file, and has come to this piece."""
        if check.is_first or not check.is_from_start:
            return False
        try:
            before = check.before()
        except (WouldBlock, PfsError, OSError):
            return False
        return before is None or before.id in self._running

    def _go_ahead(self, check: PieceCheck) -> None:
        """Have the next pieces checked too, on other cores."""
        try:
            for _ in range(_AHEAD):
                behind = check.after()
                if behind is None:
                    return
                check = behind
                if not check.is_done and check.id not in self._running:
                    running = self._running[check.id] = _Running(is_met=False)
                    trio.lowlevel.spawn_system_task(self._check_ahead, check, running)
        except (WouldBlock, PfsError, OSError):  # whoever reads on will meet it
            return

    async def _check_ahead(self, check: PieceCheck, running: _Running) -> None:
        uncached = False

        def run() -> Buffer | None:
            nonlocal uncached
            piece = check.run_uncached(self._pool)
            uncached = piece is not None
            return check.run() if piece is None else piece

        try:
            await self._check(check.id, running, run)
        except (PfsError, OSError):
            return  # whoever reads it will meet it
        # before any of those runs who waited: nothing was awaited since they were woken
        if uncached and running.piece is not None:
            self._kept[check.id] = _Kept(running.piece, running.is_met)
            if len(self._kept) > _KEPT_MAX:
                del self._kept[next(iter(self._kept))]
