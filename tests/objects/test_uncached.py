"""Reading past the page cache: the same bytes, and what others have in memory stays as it is."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from pfsmount.objects.parts import Part, Pool
from pfsmount.objects.segment import SegmentKind, segment_path
from pfsmount.objects.uncached import Uncached, cached_pages
from pfsmount.repo.fsck import check
from pfsmount.repo.store import Store
from tests.repo.damage import change, flip

PAGE = 4096


def forget(fd: int) -> None:
    """Have nothing of a file in the page cache; skips where that cannot be, or not be seen."""
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    size = os.fstat(fd).st_size
    found = cached_pages(fd, 0, size)
    if found != 0:
        why = "the kernel does not say what is in the page cache" if found is None else "it stays in the page cache"
        pytest.skip(f"NO READING PAST THE PAGE CACHE: {why} (Linux before 6.5, or a filesystem in memory)")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(random.Random(1).randbytes(100 * PAGE))
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_the_same_bytes_and_no_page_more(file: int) -> None:
    forget(file)
    part = Part(64 * PAGE)
    uncached = Uncached(file)
    assert uncached.read_into(part.memory[: 32 * PAGE], 8 * PAGE) == 32 * PAGE
    assert cached_pages(file, 0, 100 * PAGE) == 0
    assert uncached.read_into(part.memory[32 * PAGE :], 90 * PAGE) == 10 * PAGE
    assert cached_pages(file, 0, 100 * PAGE) == 0
    uncached.close()
    assert part.memory[: 32 * PAGE] == os.pread(file, 32 * PAGE, 8 * PAGE)
    assert part.memory[32 * PAGE : 42 * PAGE] == os.pread(file, 10 * PAGE, 90 * PAGE)


def test_what_is_in_memory_is_not_read_again(file: int) -> None:
    forget(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    os.pread(file, PAGE, 20 * PAGE)
    part = Part(64 * PAGE)
    uncached = Uncached(file)
    assert uncached.read_into(part.memory, 0) == 0
    assert uncached.read_into(part.memory, 30 * PAGE) == 64 * PAGE
    uncached.close()
    assert uncached.read_into(part.memory, 30 * PAGE) == 0


def test_memory_is_used_again_when_nobody_looks_at_it() -> None:
    pool = Pool(PAGE)
    first, second = pool.take(), pool.take()
    first[:3], second[:3] = b"one", b"two"
    part = first[1:3]
    del first
    assert len({bytes(pool.take()[:3]) for _ in range(3)} - {b"one", b"two"}) == 1  # new ones
    assert len(pool) == 3
    del part
    assert bytes(pool.take()[:3]) == b"one"
    assert len(pool) == 3
    pool.clear()
    assert len(pool) == 0
    assert bytes(second[:3]) == b"two"


def test_a_check_of_all_data_leaves_the_page_cache_alone(tmp_path: Path) -> None:
    """It reads what the disk has, finds what is wrong there, and nothing of it is in memory afterwards."""
    Store.create(tmp_path / "store")
    with Store.open(tmp_path / "store") as store:
        store.create_repo("images")
        change(store, "master", {"large": random.Random(2).randbytes(3 << 20)})
        head = store.head("images", "master")
        assert head is not None
        row = next(
            (number, row)
            for number in range(1, 10)
            if (row := store.objects.segment_row(number)) is not None and row.kind is SegmentKind.DATA
        )
        path = segment_path(store.objects.directory, row[0], SegmentKind.DATA)
        for damaged in (False, True):
            if damaged:
                flip(path, (1 << 20) + 77)
            fd = os.open(path, os.O_RDONLY)
            try:
                forget(fd)
                assert check(store, data=True).clean is not damaged
                assert cached_pages(fd, 0, 2 << 20) == 0
            finally:
                os.close(fd)
