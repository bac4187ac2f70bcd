"""Manifests: levels, and what is refused."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfsmount.errors import Corrupt, NotFound
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.segment import RecordKind
from pfsmount.objects.store import ObjectStore
from pfsmount.tree import ingest as ingest_module
from pfsmount.tree import manifest as manifest_module
from pfsmount.tree.content import open_content
from pfsmount.tree.entry import file_entry
from pfsmount.tree.ingest import ingest_bytes
from pfsmount.tree.manifest import Manifest, load_manifest, pieces
from tests.tree.storing import MIB


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
