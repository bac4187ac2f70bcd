"""Reading files back: any size, any range, damage."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pfsmount.errors import Corrupt
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.store import ObjectStore
from pfsmount.tree.content import open_content, read_small
from pfsmount.tree.entry import EMPTY_FILE_ID, file_entry
from pfsmount.tree.ingest import ingest_bytes
from pfsmount.tree.manifest import load_manifest, pieces
from tests.tree.storing import MIB, store_file


@pytest.mark.parametrize("size", [0, 1, 1024, 1025, 4096, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 9 * MIB + 17])
def test_sizes_around_every_limit(objects: ObjectStore, tmp_path: Path, size: int) -> None:
    """The id is the plain BLAKE3 of the bytes; any range reads back, past the end nothing."""
    data = os.urandom(size)
    (tmp_path / "f").write_bytes(data)
    id, got_size, _ = store_file(objects, tmp_path / "f")
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


def test_damage_is_never_handed_out(objects: ObjectStore, tmp_path: Path) -> None:
    """The first read of a damaged piece fails; other pieces of the file are still readable."""
    data = os.urandom(9 * MIB)
    (tmp_path / "f").write_bytes(data)
    id, size, _ = store_file(objects, tmp_path / "f")
    _, second, _ = list(pieces(objects, load_manifest(objects, id)))[1]
    assert second is not None
    location = objects.locate(second)
    assert location is not None
    with open(next(objects.directory.glob("*.data")), "r+b") as file:
        file.seek(location.offset + 5)
        file.write(b"!!!!")
    content = open_content(objects, file_entry(id, size))
    assert content.read(0, 100) == data[:100]
    with pytest.raises(Corrupt, match="damaged"):
        content.read(4 * MIB + 100, 10)


def test_what_must_be_checked_before_it_is_read_at_once(objects: ObjectStore, tmp_path: Path) -> None:
    """Each piece once; then the page cache has it. Small files are checked in passing."""
    data = os.urandom(9 * MIB)
    (tmp_path / "f").write_bytes(data)
    (tmp_path / "small").write_bytes(data[:4096])
    id, size, _ = store_file(objects, tmp_path / "f")
    content = open_content(objects, file_entry(id, size))
    first, second, last = (content.unchecked(offset, 1) for offset in (0, 4 * MIB, 8 * MIB))
    assert first is not None
    assert second is not None
    assert last is not None
    assert first.before() is None
    assert getattr(first.after(), "id", None) == second.id
    assert first.is_first
    assert not second.is_first
    assert [piece.is_done for piece in (second, last)] == [False, False]
    assert getattr(second.before(), "id", None) == first.id
    assert getattr(second.after(), "id", None) == last.id
    checked = set()
    while (check := content.unchecked(MIB, 6 * MIB)) is not None:
        assert content.read_nowait(MIB, 6 * MIB) is None
        assert check.part(check.run()) is None  # more is wanted than the piece has
        assert check.id not in checked
        checked.add(check.id)
    assert len(checked) == 2
    assert [piece.is_done for piece in (second, last)] == [True, False]
    assert content.read_nowait(MIB, 6 * MIB) == data[MIB : 7 * MIB]
    assert content.unchecked(size, 10) is None
    third = content.unchecked(8 * MIB + 5, 1000)
    assert third is not None
    assert bytes(third.part(data[8 * MIB :]) or b"") == data[8 * MIB + 5 : 8 * MIB + 1005]
    assert third.before() is None
    assert third.after() is None
    assert not third.is_from_start
    pieces_of = content.pieces_of(4 * MIB - 3, MIB)
    assert [piece.id for piece in pieces_of] == [first.id, second.id]
    whole = (data[: 4 * MIB], data[4 * MIB : 8 * MIB])
    assert (
        b"".join(piece.part(part) or b"" for piece, part in zip(pieces_of, whole, strict=True))
        == data[4 * MIB - 3 :][:MIB]
    )
    assert content.pieces_of(size, 10) == []
    location = objects.locate(third.id)
    assert location is not None
    with open(next(objects.directory.glob("*.data")), "r+b") as file:
        file.seek(location.offset + 5)
        file.write(b"!!!!")
    with pytest.raises(Corrupt, match="damaged"):
        third.run()
    assert content.unchecked(8 * MIB, MIB) is not None
    small = store_file(objects, tmp_path / "small")
    assert open_content(objects, file_entry(small[0], small[1])).unchecked(0, 4096) is None
