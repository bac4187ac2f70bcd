"""Files: pieces, manifests, holes, and reading them back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfsmount.errors import Corrupt, NotFound
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.segment import RecordKind
from pfsmount.objects.store import ObjectStore
from pfsmount.tree import ingest as ingest_module
from pfsmount.tree import manifest as manifest_module
from pfsmount.tree.content import open_content, read_small
from pfsmount.tree.entry import EMPTY_FILE_ID, file_entry
from pfsmount.tree.ingest import ingest_bytes, ingest_fd, ingest_overlay
from pfsmount.tree.manifest import Manifest, load_manifest, pieces

MIB = 1 << 20


def _ingest(objects: ObjectStore, path: Path, previous: bytes | None = None) -> tuple[bytes, int, int]:
    """Id, size, and how many bytes the store grew by."""
    with objects.batch() as batch, open(path, "rb") as file:
        id, size = ingest_fd(batch, file.fileno(), previous=previous)  # type: ignore[arg-type]
        batch.flush()
        return id, size, batch.bytes_added


@pytest.mark.parametrize("size", [0, 1, 1024, 1025, 4096, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 9 * MIB + 17])
def test_sizes_around_every_limit(objects: ObjectStore, tmp_path: Path, size: int) -> None:
    """The id is the plain BLAKE3 of the bytes; any range reads back, past the end nothing."""
    data = os.urandom(size)
    (tmp_path / "f").write_bytes(data)
    id, got_size, _ = _ingest(objects, tmp_path / "f")
    assert (id, got_size) == (hash_bytes(data), size)
    content = open_content(objects, file_entry(hash_bytes(data), size))
    assert content.read(0, size + 10) == data
    assert b"".join(part or b"" for _, part in content.parts(1000_000)) == data
    for offset in (0, 1, size // 2, max(0, size - 3), size, size + 5, 4 * MIB - 2):
        assert content.read(offset, 5) == data[offset : offset + 5]
        assert content.read_nowait(offset, 5) in (data[offset : offset + 5], None)
    with objects.batch() as batch:
        assert ingest_bytes(batch, data) == id
        assert batch.bytes_added == 0
    assert read_small(objects, file_entry(hash_bytes(data), size)) == data


def test_empty_file_is_stored_nowhere(objects: ObjectStore) -> None:
    """It is known by its id alone."""
    assert EMPTY_FILE_ID.hex().startswith("af1349b9f5f9a1a6")
    assert open_content(objects, file_entry(EMPTY_FILE_ID, 0)).read(0, 10) == b""


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
    first, _, _ = _ingest(objects, tmp_path / "f")
    data[9 * MIB : 9 * MIB + 100] = os.urandom(100)
    data += os.urandom(MIB)
    (tmp_path / "f").write_bytes(data)
    second, size, added = _ingest(objects, tmp_path / "f", first)
    assert added <= 6 * MIB
    assert open_content(objects, file_entry(second, size)).read(0, size) == data  # type: ignore[arg-type]


def test_holes_stay_holes(objects: ObjectStore, tmp_path: Path) -> None:
    """A sparse file costs what is in it, has the id of its bytes with zeros, and says where the holes are."""
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.seek(10 * MIB)
        file.write(b"middle")
        file.truncate(64 * MIB)
    id, size, added = _ingest(objects, path)
    assert id == hash_bytes(path.read_bytes())
    assert (size, added < 1 * MIB) == (64 * MIB, True)
    content = open_content(objects, file_entry(id, size))  # type: ignore[arg-type]
    assert content.read(10 * MIB - 2, 10) == b"\0\0middle\0\0"
    assert sum(part.stop - part.start for part, data in content.parts(MIB) if data is None) > 60 * MIB


def test_all_holes(objects: ObjectStore, tmp_path: Path) -> None:
    """A file that is one hole."""
    path = tmp_path / "hole"
    with open(path, "wb") as file:
        file.truncate(9 * MIB)
    id, size, added = _ingest(objects, path)
    assert (id, size, added < 1000) == (hash_bytes(bytes(9 * MIB)), 9 * MIB, True)
    assert open_content(objects, file_entry(id, size)).read(9 * MIB - 5, 10) == bytes(5)  # type: ignore[arg-type]


def test_a_piece_is_never_found_as_a_file_with_holes(objects: ObjectStore, tmp_path: Path) -> None:
    """A small sparse file, then a large dense one that begins with the same bytes: both are read back."""
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(4 * MIB)
    (tmp_path / "dense").write_bytes(bytes(8 * MIB))
    for name in ("sparse", "dense"):
        id, size, _ = _ingest(objects, tmp_path / name)
        data = (tmp_path / name).read_bytes()
        assert open_content(objects, file_entry(id, size)).read(0, size) == data  # type: ignore[arg-type]
        assert read_small(objects, file_entry(id, size)) == data  # type: ignore[arg-type]


def test_a_file_that_shrinks_below_a_cut_is_one_piece(objects: ObjectStore, tmp_path: Path) -> None:
    """However an earlier version was cut, a file of at most 4 MiB is a piece."""
    path = tmp_path / "f"
    with open(path, "wb") as file:
        file.truncate(6 * MIB)
        file.seek(1 * MIB)
        file.write(b"data")
    before, _, _ = _ingest(objects, path)
    data = os.urandom(3 * MIB)
    path.write_bytes(data)
    id, size, _ = _ingest(objects, path, before)
    location = objects.locate(id)  # type: ignore[arg-type]
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
    assert _ingest(objects, tmp_path / "f")[0] == hash_bytes(data)
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


def test_hostile_manifests(objects: ObjectStore) -> None:
    """A manifest that names itself, or nodes and pieces that do not fit, is damaged: no loop, no other bytes."""
    with objects.batch() as batch:
        piece = batch.add_piece(os.urandom(5000))
        for level, rows in ((1, [(piece, 9 * MIB)]), (0, [(piece, 9 * MIB)]), (0, [(piece, 4999), (piece, 5 * MIB)])):
            raw = manifest_module.encode_manifest(level, hash_bytes(b"%d" % level + bytes(rows[0][1] % 7)), rows)
            root = batch.add_object(RecordKind.MANIFEST, raw)
            fake = hash_bytes(b"fake" + raw)
            batch._pending[fake] = batch._pending[root]
            size = sum(length for _, length in rows)
            with pytest.raises((Corrupt, NotFound)):
                open_content(batch, file_entry(fake, size)).read(0, size)


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


def test_manifests_of_many_pieces_have_levels(objects: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest is a tree of nodes; every piece is found through all levels, in order."""
    monkeypatch.setattr(manifest_module, "_NODE_ENTRIES_MAX", 5)
    monkeypatch.setattr(ingest_module, "PIECE_MAX", 1000)
    data = os.urandom(100_000)
    with objects.batch() as batch:
        id = ingest_bytes(batch, data)
        batch.flush()
    manifest = load_manifest(objects, id)
    assert manifest.level >= 2
    assert [offset for offset, _, _ in pieces(objects, manifest)] == list(range(0, 100_000, 1000))
    content = open_content(objects, file_entry(id, len(data)))
    assert content.read(0, len(data)) == data
    assert content.read(54_321, 4321) == data[54_321:58_642]


def test_damage_is_never_handed_out(objects: ObjectStore, tmp_path: Path) -> None:
    """The first read of a damaged piece fails; other pieces of the file are still readable."""
    data = os.urandom(9 * MIB)
    (tmp_path / "f").write_bytes(data)
    id, size, _ = _ingest(objects, tmp_path / "f")
    _, second, _ = list(pieces(objects, load_manifest(objects, id)))[1]  # type: ignore[arg-type]
    assert second is not None
    location = objects.locate(second)
    assert location is not None
    with open(next(objects.directory.glob("*.data")), "r+b") as file:
        file.seek(location.offset + 5)
        file.write(b"!!!!")
    content = open_content(objects, file_entry(id, size))  # type: ignore[arg-type]
    assert content.read(0, 100) == data[:100]
    with pytest.raises(Corrupt, match="damaged"):
        content.read(4 * MIB + 100, 10)


@given(st.binary(max_size=200))
def test_damaged_manifests_are_refused(noise: bytes) -> None:
    """Any bytes decode or are refused."""
    for raw in (noise, b"PM\1\0" + noise):
        try:
            Manifest.decode(raw)
        except Corrupt:
            pass


def test_a_file_cannot_pass_for_a_manifest(objects: ObjectStore) -> None:
    """The bytes of a manifest, put as a file, are that file and nothing else."""
    with objects.batch() as batch:
        id = ingest_bytes(batch, os.urandom(5 * MIB))
        batch.flush()
        raw = objects.get(id)
        fake = ingest_bytes(batch, raw)
        batch.flush()
    location = objects.locate(fake)
    assert location is not None
    assert location.kind is RecordKind.PIECE
    assert open_content(objects, file_entry(fake, len(raw))).read(0, 1000) == raw
