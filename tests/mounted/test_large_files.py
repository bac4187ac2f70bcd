"""Large files that are read through the mount when nothing of them is in memory."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pfsmount.objects.segment import SegmentKind, segment_path
from pfsmount.objects.uncached import cached_pages
from pfsmount.repo.store import Store
from tests.mounted.conftest import Mount
from tests.mounted.test_mount import fails_with
from tests.repo.damage import flip

Mounts = Callable[[str], Mount]
MIB = 1 << 20
PIECE = 4 * MIB
SIZE = 9 * PIECE + 12_345


@pytest.fixture
def large(mounts: Mounts, tmp_path: Path) -> tuple[Mount, bytes]:
    """A mount point of a store with a committed file of ten pieces, which is in no cache."""
    mount, data = mounts("mnt"), random.Random(3).randbytes(SIZE)
    (tmp_path / "large").write_bytes(data)
    mount.pfs("put", tmp_path / "large", "images@master:/large")
    for fd in segments(mount):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return mount.mount(), data


def segments(mount: Mount) -> Iterator[int]:
    """The data segments of a store, each open until the next one."""
    for path in sorted((mount.store / "segments").glob("*.data")):
        fd = os.open(path, os.O_RDONLY)
        try:
            yield fd
        finally:
            os.close(fd)


def anonymous_memory(mount: Mount) -> int:
    """Bytes of the daemon that are no file's."""
    record = mount.record()
    assert record is not None
    status = Path(f"/proc/{record.pid}/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))


def cached(mount: Mount) -> int:
    """Pages of data segments in memory; skips where the kernel does not say."""
    found = [cached_pages(fd, 0, os.fstat(fd).st_size) for fd in segments(mount)]
    if None in found:
        pytest.skip("NO LOOK AT THE PAGE CACHE: the kernel is older than Linux 6.5")
    return sum(count or 0 for count in found)


def test_from_front_to_back_it_is_in_memory_once(large: tuple[Mount, bytes]) -> None:
    """The bytes are right, and but for the beginning the segment's pages are not kept beside the file's."""
    mount, data = large
    if cached(mount):
        pytest.skip("NO LOOK AT THE PAGE CACHE: the store is on a filesystem in memory")
    before = anonymous_memory(mount)
    assert (mount.master / "large").read_bytes() == data
    assert cached(mount) < (SIZE // 2) >> 12
    assert anonymous_memory(mount) < before + 2 * PIECE  # what it was read into was given back
    assert (mount.master / "large").read_bytes() == data


def test_several_go_through_it_at_different_speeds(large: tuple[Mount, bytes]) -> None:
    """In steps that no piece ends with, by jumps, backwards, and another file's reader beside them."""
    mount, data = large
    wrong: list[str] = []

    def go(step: int, order: Callable[[list[int]], list[int]]) -> None:
        with open(mount.master / "large", "rb", buffering=0) as file:
            for at in order(list(range(0, SIZE, step))):
                if os.pread(file.fileno(), step, at) != data[at : at + step]:
                    wrong.append(f"{step} bytes at {at}")

    ways: list[tuple[int, Callable[[list[int]], list[int]]]] = [
        (MIB, lambda at: at),
        (3 * MIB + 77, lambda at: at),
        (700_001, lambda at: at[::2] + at[1::2]),
        (2 * MIB, lambda at: at[::-1]),
        (123_457, lambda at: random.Random(5).sample(at, len(at))),
    ]
    threads = [threading.Thread(target=go, args=way) for way in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert mount.log_lines() == []


def test_damage_that_is_met_ahead_is_an_error_only_there(large: tuple[Mount, bytes]) -> None:
    """What is before and behind the damaged piece is read, that piece is EIO, and the log names it."""
    mount, data = large
    with Store.open(mount.store) as store:
        number = next(
            number
            for number in range(1, 20)
            if (row := store.objects.segment_row(number)) is not None and row.kind is SegmentKind.DATA
        )
        path = segment_path(store.objects.directory, number, SegmentKind.DATA)
    flip(path, 5 * PIECE + 100)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    fd = os.open(mount.master / "large", os.O_RDONLY)
    try:
        for piece in (0, 1, 2, 3, 4, 6, 7, 8, 9):
            assert os.pread(fd, PIECE, piece * PIECE) == data[piece * PIECE : (piece + 1) * PIECE]
        fails_with(errno.EIO, lambda: os.pread(fd, 4096, 5 * PIECE + 8192))
    finally:
        os.close(fd)
    assert any("damaged" in line for line in mount.log_lines())
