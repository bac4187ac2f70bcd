"""What is done for the commit of a large file while it is written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pfsmount.objects.adoption import segments_of
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.parts import Part
from pfsmount.repo.ahead import FileAhead
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
from pfsmount.tree.manifest import PIECE_MAX
from pfsmount.tree.sources import pread_into
from tests.mounted.conftest import wait_for
from tests.repo.test_adoption import MIB, SETTINGS, assert_clean, committed, data_file, noise
from tests.worktrees import at, put

SIZE = 20 * MIB


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """A file of 20 MiB, open."""
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, noise(SIZE))
    yield fd
    os.close(fd)


@pytest.fixture
def worktree(store_path: Path) -> Iterator[Worktree]:
    with Store.open(store_path, SETTINGS, author="tester@here") as store:
        store.create_repo("images")
        with Worktree.open(store, "images", "master", own=True) as worktree:
            yield worktree


def grow(worktree: Worktree, name: str, data: bytes) -> None:
    """Write a file from front to back, as programs do."""
    node = put(worktree, name, b"")
    for start in range(0, len(data), MIB):
        worktree.write(node, start, data[start : start + MIB])


def ahead_of(worktree: Worktree, name: str) -> FileAhead:
    change = at(worktree, name).change
    assert change is not None
    assert change.data is not None
    assert change.data.ahead is not None
    return change.data.ahead


def wait_until_hashed(worktree: Worktree, name: str, count: int) -> None:
    found = ahead_of(worktree, name)
    wait_for(lambda: len(found._ids) >= count, "the thread that hashes", 60)


def expect(found: FileAhead, data: bytes) -> None:
    """It knows all whole pieces of this."""
    ids, hasher = found.hashed()
    assert list(ids) == [hash_bytes(data[at : at + PIECE_MAX]) for at in range(0, len(data) - PIECE_MAX + 1, PIECE_MAX)]
    assert hasher.digest() == hash_bytes(data[: len(ids) * PIECE_MAX])


def test_whole_pieces_are_hashed(file: int) -> None:
    """The last part of a file may still grow: it is the commit's."""
    ahead = FileAhead()
    assert not ahead.wrote(0, MIB)
    assert ahead.wrote(MIB, SIZE - 5)
    ahead.advance(file, Part(PIECE_MAX))
    expect(ahead, noise(SIZE)[: SIZE - 5])


def test_a_write_to_what_was_hashed_begins_anew(file: int) -> None:
    ahead, part = FileAhead(), Part(PIECE_MAX)
    ahead.wrote(0, SIZE)
    ahead.advance(file, part)
    os.pwrite(file, b"other", 5)
    ahead.wrote(5, 10)
    ahead.advance(file, part)
    expect(ahead, noise(SIZE)[:5] + b"other" + noise(SIZE)[10:])


def test_a_file_cut_short_begins_anew(file: int) -> None:
    ahead, part = FileAhead(), Part(PIECE_MAX)
    ahead.wrote(0, SIZE)
    ahead.advance(file, part)
    os.ftruncate(file, 6 * MIB)
    ahead.resized(6 * MIB)
    ahead.advance(file, part)
    expect(ahead, noise(SIZE)[: 6 * MIB])


def test_a_write_while_the_thread_reads_counts(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the thread has read the old or the new bytes, its hash of them does not count."""
    ahead = FileAhead()
    moments = iter(range(10))

    def and_meanwhile(fd: int, view: memoryview, offset: int) -> int:
        count = pread_into(fd, view, offset)
        if next(moments) == 2:
            os.pwrite(file, b"other", offset + 100)
            ahead.wrote(offset + 100, offset + 105)
        return count

    monkeypatch.setattr("pfsmount.repo.ahead.pread_into", and_meanwhile)
    ahead.wrote(0, SIZE)
    ahead.advance(file, Part(PIECE_MAX))
    at = 2 * PIECE_MAX + 100
    expect(ahead, noise(SIZE)[:at] + b"other" + noise(SIZE)[at + 5 :])


def test_a_write_that_failed_begins_anew(worktree: Worktree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of it may be there."""
    data = noise(20 * MIB)
    grow(worktree, "large", data)
    wait_until_hashed(worktree, "large", 4)
    write = os.pwrite

    def half(fd: int, buffer: bytes, offset: int) -> int:
        write(fd, buffer[: len(buffer) // 2], offset)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", half)
        with pytest.raises(OSError, match="Input"):
            worktree.write(at(worktree, "large"), 5, b"0123456789")
    worktree.commit("half")
    assert committed(worktree.store, "large") == data[:5] + b"01234" + data[10:]
    assert_clean(worktree.store)


def test_it_is_asked_once_at_a_time(file: int) -> None:
    """However fast the writer is: each time costs a descriptor until the thread comes to it."""
    ahead = FileAhead()
    assert [ahead.wrote(0, end * 16 * MIB) for end in range(1, 5)] == [True, False, False, False]
    ahead.advance(file, Part(PIECE_MAX))
    assert ahead.wrote(0, 80 * MIB)


def test_a_file_that_is_rewritten_again_and_again_is_left_to_the_commit(file: int) -> None:
    ahead, part = FileAhead(), Part(PIECE_MAX)
    for _ in range(5):
        ahead.wrote(0, SIZE)
        ahead.advance(file, part)
    assert not ahead.wrote(5, 10)
    ids, hasher = ahead.hashed()
    assert not ids
    assert hasher.digest() == hash_bytes(b"")


def test_a_commit_goes_on_where_the_thread_is(worktree: Worktree, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads only what was not hashed."""
    data = noise(21 * MIB + 7)
    grow(worktree, "large", data)
    inode = data_file(worktree, "large").stat().st_ino
    wait_until_hashed(worktree, "large", 4)
    read, reads = os.preadv, []

    def counting(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        reads.append(offset)
        return read(fd, buffers, offset, flags)

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", counting)
        worktree.commit("large")
    assert min(reads) >= 16 * MIB
    assert committed(worktree.store, "large") == data
    assert segments_of(worktree.objects.directory, inode)
    assert_clean(worktree.store)


@pytest.mark.parametrize("change", ["start", "end", "shorter", "longer", "sparse"])
def test_changes_after_it_was_hashed(worktree: Worktree, change: str) -> None:
    data = bytearray(noise(20 * MIB))
    grow(worktree, "large", bytes(data))
    wait_until_hashed(worktree, "large", 4)
    node = at(worktree, "large")
    match change:
        case "start" | "end":
            offset = 5 if change == "start" else len(data) - 5
            worktree.write(node, offset, b"other")
            data[offset : offset + 5] = b"other"
        case "shorter":
            worktree.truncate(node, 9 * MIB)
            del data[9 * MIB :]
        case "longer":
            worktree.write(node, len(data), b"longer")
            data += b"longer"
        case _:
            worktree.write(node, 40 * MIB, b"behind a hole")
            data += bytes(20 * MIB) + b"behind a hole"
    worktree.commit("changed")
    assert committed(worktree.store, "large") == bytes(data)
    assert_clean(worktree.store)


def test_what_is_stored_already_is_found_by_its_hashes(worktree: Worktree) -> None:
    """A file that has all, or the first half, of another one; and one that replaces a version."""
    data, other = noise(20 * MIB), noise(20 * MIB, 2)
    grow(worktree, "first", data)
    worktree.commit("first")
    for name, content in (("all", data), ("half", data[: 8 * MIB] + other[8 * MIB :])):
        grow(worktree, name, content)
        inode = data_file(worktree, name).stat().st_ino
        wait_until_hashed(worktree, name, 4)
        worktree.commit(name)
        assert committed(worktree.store, name) == content
        assert not segments_of(worktree.objects.directory, inode)
    grow(worktree, "first", b"in front" + data)
    wait_until_hashed(worktree, "first", 4)
    worktree.commit("replaced")
    assert committed(worktree.store, "first") == b"in front" + data
    assert_clean(worktree.store)


def test_a_commit_that_failed_is_tried_again(worktree: Worktree, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was hashed still counts, unless it was written to since."""
    data = noise(20 * MIB)
    grow(worktree, "large", data)
    wait_until_hashed(worktree, "large", 4)

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(worktree.store, "publish", fail)
        with pytest.raises(OSError, match="Input"):
            worktree.commit("fails")
    worktree.write(at(worktree, "large"), 6 * MIB, b"changed")
    worktree.commit("works")
    assert committed(worktree.store, "large") == data[: 6 * MIB] + b"changed" + data[6 * MIB + 7 :]
    assert_clean(worktree.store)
