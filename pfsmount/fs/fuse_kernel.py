"""The kernel's caches of a mount: what it is told to forget, and to write back."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Collection

import pyfuse3
import trio

from pfsmount.ids import display

log = logging.getLogger(__name__)


class FuseKernel:
    """The kernel's caches of this process' mount."""

    def __init__(self, mount_point: str) -> None:
        self._mount_point = mount_point
        self._attributes: set[int] = set()

    def forget_entry(self, directory: int, name: bytes) -> None:
        pyfuse3.invalidate_entry_async(directory, name, ignore_enoent=True)

    def forget_attributes(self, ino: int) -> None:
        self._attributes.add(ino)

    async def settled(self) -> None:
        """The queue of pyfuse3 is worked off in order by one thread, so it reaches our mark when all before it is done."""
        inos, self._attributes = self._attributes, set()
        if inos:
            await trio.to_thread.run_sync(_forget_attributes, inos)
        mark = _Mark()
        pyfuse3.invalidate_entry_async(mark, b"", ignore_enoent=True)  # type: ignore[arg-type]
        await mark.reached.wait()

    def sync_pages(self, paths: Collection[bytes]) -> None:
        # syncfs only starts it: it returns when the requests are queued in the kernel, of which only some have come to us by then (measured on Linux
        # 6.18: of 733 single pages 3). fsync waits for the answers, file by file.
        if paths:
            pyfuse3.syncfs(self._mount_point)
        for path in paths:
            try:
                fd = os.open(
                    os.path.join(os.fsencode(self._mount_point), path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                )
            except OSError as error:  # renamed or removed just now, or not for us to read
                log.info("the pages of %s were not asked for: %s", display(path), error)
                continue
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def _forget_attributes(inos: set[int]) -> None:
    # Attributes only: that takes no lock which a request could hold, unlike the invalidation of a name.
    for ino in inos:
        try:
            pyfuse3.invalidate_inode(ino, attr_only=True)
        except OSError as error:
            if error.errno != errno.ENOENT:
                log.warning("the kernel did not forget the attributes of %#x: %s", ino, error)


class _Mark:
    """Stands for an inode in pyfuse3's queue: being converted to a number is how it learns that its turn has come."""

    def __init__(self) -> None:
        self.reached = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    def __int__(self) -> int:
        self._token.run_sync_soon(self.reached.set)
        raise FileNotFoundError(errno.ENOENT, "the mark was reached")
