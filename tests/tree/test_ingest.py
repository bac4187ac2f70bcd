"""Storing files: from descriptors, streams and overlays, with holes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.segment import RecordKind
from pfsmount.objects.store import ObjectStore
from pfsmount.tree.content import open_content, read_small
from pfsmount.tree.entry import file_entry
from pfsmount.tree.ingest import ingest_bytes, ingest_fd, ingest_overlay
from tests.tree.storing import MIB, store_file


def test_a_stream_is_read_to_its_end(objects: ObjectStore) -> None:
    """A pipe has no size; what comes out of it is one file."""
    reader, writer = os.pipe()
    data = os.urandom(40_000)
    os.write(writer, data)
    os.close(writer)
    with objects.batch() as batch:
        assert ingest_fd(batch, reader) == (hash_bytes(data), len(data))
    os.close(reader)


def test_appends_and_overwrites_share_what_did_not_change(objects: ObjectStore, tmp_path: Path) -> None:
    """A new version of a large file adds the pieces that changed."""
    data = bytearray(os.urandom(20 * MIB))
    (tmp_path / "f").write_bytes(data)
    first, _, _ = store_file(objects, tmp_path / "f")
    data[9 * MIB : 9 * MIB + 100] = os.urandom(100)
    data += os.urandom(MIB)
    (tmp_path / "f").write_bytes(data)
    second, size, added = store_file(objects, tmp_path / "f", first)
    assert added <= 6 * MIB
    assert open_content(objects, file_entry(second, size)).read(0, size) == data


def test_what_goes_past_the_page_cache_is_the_same(objects: ObjectStore, tmp_path: Path) -> None:
    """A file beyond the part that is cached, with an odd end, reads back as it was."""
    block = os.urandom(MIB)
    (tmp_path / "f").write_bytes(b"".join(number.to_bytes(4, "little") + block for number in range(70)))
    id, size, added = store_file(objects, tmp_path / "f")
    data = (tmp_path / "f").read_bytes()
    assert (id, size, added >= size) == (hash_bytes(data), 70 * (MIB + 4), True)
    assert open_content(objects, file_entry(id, size)).read(0, size) == data


def test_holes_stay_holes(objects: ObjectStore, tmp_path: Path) -> None:
    """A sparse file costs what is in it, has the id of its bytes with zeros, and says where the holes are."""
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.seek(10 * MIB)
        file.write(b"middle")
        file.truncate(64 * MIB)
    id, size, added = store_file(objects, path)
    assert id == hash_bytes(path.read_bytes())
    assert (size, added < 1 * MIB) == (64 * MIB, True)
    content = open_content(objects, file_entry(id, size))
    assert content.read(10 * MIB - 2, 10) == b"\0\0middle\0\0"
    assert sum(part.stop - part.start for part, data in content.parts(MIB) if data is None) > 60 * MIB


def test_all_holes(objects: ObjectStore, tmp_path: Path) -> None:
    """A file that is one hole."""
    path = tmp_path / "hole"
    with open(path, "wb") as file:
        file.truncate(9 * MIB)
    id, size, added = store_file(objects, path)
    assert (id, size, added < 1000) == (hash_bytes(bytes(9 * MIB)), 9 * MIB, True)
    assert open_content(objects, file_entry(id, size)).read(9 * MIB - 5, 10) == bytes(5)


def test_a_piece_is_never_found_as_a_file_with_holes(objects: ObjectStore, tmp_path: Path) -> None:
    """A small sparse file, then a large dense one that begins with the same bytes: both are read back."""
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(4 * MIB)
    (tmp_path / "dense").write_bytes(bytes(8 * MIB))
    for name in ("sparse", "dense"):
        id, size, _ = store_file(objects, tmp_path / name)
        data = (tmp_path / name).read_bytes()
        assert open_content(objects, file_entry(id, size)).read(0, size) == data
        assert read_small(objects, file_entry(id, size)) == data


def test_a_file_that_shrinks_below_a_cut_is_one_piece(objects: ObjectStore, tmp_path: Path) -> None:
    """However an earlier version was cut, a file of at most 4 MiB is a piece."""
    path = tmp_path / "f"
    with open(path, "wb") as file:
        file.truncate(6 * MIB)
        file.seek(1 * MIB)
        file.write(b"data")
    before, _, _ = store_file(objects, path)
    data = os.urandom(3 * MIB)
    path.write_bytes(data)
    id, size, _ = store_file(objects, path, before)
    location = objects.locate(id)
    assert location is not None
    assert (location.kind, size) == (RecordKind.PIECE, 3 * MIB)


def test_a_short_read_is_not_the_end(objects: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that returns less than asked for is continued; zeros are never put in its place."""
    data = os.urandom(6 * MIB)
    (tmp_path / "f").write_bytes(data)
    real = os.preadv

    def short(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        return real(fd, [buffers[0][:70_000]], offset, flags)

    monkeypatch.setattr(os, "preadv", short)
    assert store_file(objects, tmp_path / "f")[0] == hash_bytes(data)
    with open(tmp_path / "f", "rb") as file, objects.batch() as batch:
        base = ingest_bytes(batch, b"x" * len(data))
        batch.flush()
        got = ingest_overlay(
            batch,
            file.fileno(),
            base=file_entry(base, len(data)),
            base_size=len(data),
            extents=[(0, len(data))],
            size=len(data),
        )
    assert got == (hash_bytes(data), len(data))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 300_000), st.binary(min_size=1, max_size=5000)), max_size=6),
    st.integers(0, 300_000),
    st.integers(0, 200_000),
)
def test_overlay_equals_the_file(
    objects: ObjectStore, tmp_path: Path, writes: list[tuple[int, bytes]], size: int, base_size: int
) -> None:
    """A base with ranges replaced has the id of the bytes that it stands for, holes and cuts included."""
    base = b"0123456789abcdef" * 12_500
    model = bytearray(base[:base_size])
    path = tmp_path / "overlay"
    path.write_bytes(b"")
    extents: list[tuple[int, int]] = []
    with open(path, "r+b") as file, objects.batch() as batch:
        id = ingest_bytes(batch, base)
        batch.flush()
        covered = bytearray(600_000)
        for offset, data in writes:
            file.seek(offset)
            file.write(data)
            model += bytes(max(0, offset + len(data) - len(model)))
            model[offset : offset + len(data)] = data
            covered[offset : offset + len(data)] = b"\1" * len(data)
        file.flush()
        start = covered.find(b"\1")
        while start >= 0:
            end = covered.find(b"\0", start)
            extents.append((start, end))
            start = covered.find(b"\1", end)
        model += bytes(max(0, size - len(model)))
        want = bytes(model)
        got = ingest_overlay(
            batch,
            file.fileno(),
            base=file_entry(id, len(base)),
            base_size=base_size,
            extents=extents,
            size=len(want),
        )
        batch.flush()
    assert got == (hash_bytes(want), len(want))
    assert open_content(objects, file_entry(*got)).read(0, len(want)) == want
