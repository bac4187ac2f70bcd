"""`pfs fsck --data` hashes large files while their pieces go by: whatever their order, a wrong file is found and a right one is not called wrong."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from blake3 import blake3

from pfsmount.ids import ObjectId
from pfsmount.objects.batch import Batch
from pfsmount.objects.invariants import Invariant
from pfsmount.objects.segment import BLOCK, RecordKind
from pfsmount.repo import fsck_files
from pfsmount.repo.fsck import Report, check
from pfsmount.repo.store import Store
from pfsmount.tree.manifest import HOLE, write_manifest
from tests.repo.damage import SMALL, flip, place_of

Part = bytes | int
"""The bytes of a piece, or the length of a hole."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store with small segments."""
    Store.create(tmp_path / "store")
    return Store.open(tmp_path / "store", SMALL)


def add_file(batch: Batch, parts: Sequence[Part], *, wrong: bool = False) -> ObjectId:
    """A large file of these parts; or a manifest of them for the id of another file."""
    hasher, rows = blake3(b"wrong" if wrong else b""), []
    for part in parts:
        hasher.update(bytes(part) if isinstance(part, int) else part)
        rows.append((HOLE, part) if isinstance(part, int) else (batch.add_piece(part), len(part)))
    id = ObjectId(hasher.digest())
    batch.name_manifest(id, write_manifest(batch, id, rows))
    return id


def wrong_files(report: Report) -> set[ObjectId]:
    """Files whose pieces are right and which are not right themselves."""
    return {id for id, why in report.damage.objects.items() if why is Invariant.FILE_HASH}


def steps(store: Store) -> tuple[Report, list[tuple[str, int, int]]]:
    """Check all data; what the progress said."""
    said: list[tuple[str, int, int]] = []
    return check(store, data=True, progress=lambda what, done, total: said.append((what, done, total))), said


def test_files_in_order_are_read_once(store: Store) -> None:
    """Pieces of all lengths, holes, the same piece twice, a short end in a tiny segment, versions that go on differently: one pass over the disk."""
    dice = random.Random(1)
    a, b, c, d = (dice.randbytes(size) for size in (70_000, 4096, 30_001, 9000))
    with store, store.objects.batch() as batch:
        right = [
            add_file(batch, [a, b]),
            add_file(batch, [a, b, c]),
            add_file(batch, [a, 5000, b, b, b, 70_000, c, d[:77]]),
            add_file(batch, [5000, d, 100_000, dice.randbytes(6000)]),
        ]
        wrong = {
            add_file(batch, [a, b, c, d], wrong=True),
            add_file(batch, [a, 5000, b, dice.randbytes(5000)], wrong=True),
        }
        batch.flush()
        report, said = steps(store)
        assert wrong_files(report) == wrong
        assert not wrong & set(right)
        assert "checking large files" not in {what for what, _, _ in said}


def test_progress_ends_at_its_total(store: Store) -> None:
    """It never goes back, never beyond the total, and ends there, also when files are read a second time."""
    dice = random.Random(2)
    with store, store.objects.batch() as batch:
        first, second = dice.randbytes(50_000), dice.randbytes(60_000)
        add_file(batch, [first, second])
        add_file(batch, [second, first, dice.randbytes(200_000)])
        batch.add_piece(dice.randbytes(10_000))
        batch.flush()
        report, said = steps(store)
    assert not list(report.findings)
    assert "checking large files" in {what for what, _, _ in said}
    counts = [done for _, done, _ in said]
    assert counts == sorted(counts)
    assert all(done <= total for _, done, total in said)
    assert said[-1][1] == said[-1][2]


@pytest.mark.parametrize("seed", range(8))
def test_any_order_of_pieces(store: Store, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of random pieces and holes in random order, some with the wrong id, one piece damaged, few hashes at a time."""
    if seed % 2:
        monkeypatch.setattr(fsck_files, "_STARTED_MAX", 2)
        monkeypatch.setattr(fsck_files, "_ZEROS_MAX", 9000)
        monkeypatch.setattr(fsck_files, "_MORE_MAX", 1)
    dice = random.Random(seed)
    pool: list[Part] = [dice.randbytes(dice.choice([100, 1500, 4096, 40_000])) for _ in range(12)]
    pool += [4096, 20_000]
    files: dict[ObjectId, tuple[list[Part], bool]] = {}
    with store, store.objects.batch() as batch:
        for part in dice.sample(pool, len(pool)):
            if isinstance(part, bytes) and dice.random() < 0.7:
                batch.add_piece(part)
        made: list[list[Part]] = [[]]
        for _ in range(40):
            old = dice.choice(made)
            parts = old[: dice.randrange(len(old) + 1)] + dice.choices(pool, k=dice.randrange(2, 6))
            made.append(parts)
            wrong = dice.random() < 0.3
            files[add_file(batch, parts, wrong=wrong)] = (parts, wrong)
        batch.flush()
        damaged = next(part for part in pool if isinstance(part, bytes) and len(part) > 1024)
        assert wrong_files(check(store, data=True)) == {id for id, (_, wrong) in files.items() if wrong}
        place = store.objects.locate(ObjectId(blake3(damaged).digest()))
        if place is not None:
            flip(place_of(store, ObjectId(blake3(damaged).digest()))[0], place.offset + 5)
            report = check(store, data=True)
            assert wrong_files(report) == {id for id, (parts, wrong) in files.items() if wrong and damaged not in parts}


def test_a_piece_in_a_range_that_was_freed(store: Store) -> None:
    """What the index names must be there, whatever a tombstone says."""
    with store, store.objects.batch() as batch:
        piece = batch.add_piece(b"needed" * 1000)
        batch.flush()
        path, place = place_of(store, piece)
        freed = struct.pack("<IIQQ", place.segment, 0, place.offset, 2 * BLOCK)
        batch.add_object(RecordKind.TOMBSTONE, freed)
        batch.flush()
        assert check(store, data=True).clean
        with path.open("r+b") as file:
            file.seek(place.offset)
            file.write(bytes(6000))
        assert set(check(store, data=True).damage.objects) == {piece}


def test_bytes_behind_a_piece(store: Store) -> None:
    """They harm nobody, and are told; with them the piece itself is right."""
    with store, store.objects.batch() as batch:
        piece = batch.add_piece(bytes(5000))
        other = batch.add_piece(b"x" * 2 * BLOCK)
        batch.flush()
        path, place = place_of(store, piece)
        flip(path, place.offset + 5001)
        report = check(store, data=True)
        assert report.clean
        (finding,) = report.findings
        assert finding.invariant is Invariant.PADDING
        assert finding.object == piece
        path, place = place_of(store, other)
        flip(path, place.offset + 2 * BLOCK - 1)
        assert set(check(store, data=True).damage.objects) == {other}
