"""The event loop of a mount: requests, the control socket, the look for moved heads, signals."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from pathlib import Path

import trio

from pfsmount.fs import operations as fuse
from pfsmount.fs.filesystem import Filesystem
from pfsmount.fs.records import MountRecord
from pfsmount.fs.server import ControlServer

log = logging.getLogger(__name__)
POLL_SECONDS = 0.1
"""How often heads moved by other processes are looked for: they show within twice this."""
_TUNINGS = 10
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def serve(
    filesystem: Filesystem, record: MountRecord, socket: Path | None, tune: Callable[[], None] = lambda: None
) -> None:
    """Serve until the filesystem is unmounted or a signal comes. Without `socket` nobody can ask for anything.

    `tune` is called, in another thread, some times in the first second. From here on this process is not ended by a signal any more,
    only by the end of what it does: whoever unmounts by force unmounts first and sends SIGTERM then, which came while the mount was
    being cleaned up, and left the rest of it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # until they are received: ignored ones would be lost
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # what trio puts back in the end
    trio.run(_main, filesystem, record, socket, tune)


async def _main(filesystem: Filesystem, record: MountRecord, socket: Path | None, tune: Callable[[], None]) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(_signals)
        if socket is not None:
            await nursery.start(ControlServer(filesystem, record).serve, socket)
        nursery.start_soon(_poll, filesystem)
        nursery.start_soon(_tune, tune)
        if record.autocommit is not None:
            nursery.start_soon(_autocommit, filesystem, record.autocommit)
        await fuse.serve()
        nursery.cancel_scope.cancel()


async def _tune(tune: Callable[[], None]) -> None:
    # The kernel takes our answer to FUSE_INIT after we gave it, and sets what is tuned back then; nobody tells us when.
    for _ in range(_TUNINGS):
        await trio.sleep(POLL_SECONDS)
        await trio.to_thread.run_sync(tune)


async def _signals(task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(*_SIGNALS) as received:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        task_status.started()
        async for number in received:
            log.info("ending: %s", signal.Signals(number).name)
            fuse.stop()
            return


async def _autocommit(filesystem: Filesystem, quiet: float) -> None:
    opened = False
    while True:
        try:
            if not opened:
                await filesystem.open_leftovers()
                opened = True
            await filesystem.autocommit(quiet)
        except Exception:  # as below
            log.exception("autocommit failed")
        await trio.sleep(min(max(quiet / 4, POLL_SECONDS), 1))


async def _poll(filesystem: Filesystem) -> None:
    while True:
        await trio.sleep(POLL_SECONDS)
        try:
            if filesystem.needs_follow():
                await filesystem.follow()
        except Exception:  # the next round may do better; ending the mount would not
            log.exception("looking for moved branches failed")
            await trio.sleep(1)
