"""New versions of large files: what they share with the previous one, and that they are what they should be."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfsmount.ids import ObjectId
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.store import ObjectStore
from pfsmount.tree import ingest as ingest_module
from pfsmount.tree import matching
from pfsmount.tree.content import open_content, read_small
from pfsmount.tree.entry import file_entry
from pfsmount.tree.ingest import ingest_bytes, ingest_overlay
from pfsmount.tree.manifest import Piece, load_manifest, pieces
from tests.tree.storing import MIB, store_file

PIECE, SHORT = 16 * 1024, 2048


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything 256 times smaller, so that many versions of many pieces take no time."""
    for module in (ingest_module, matching):
        monkeypatch.setattr(module, "PIECE_MAX", PIECE)
    for name, value in {"SHORT": SHORT, "HEAD": 4096, "_SPACING": 256, "_SAMPLE_BYTES": 1024}.items():
        monkeypatch.setattr(matching, name, value)


class Versions:
    """Versions of one file, each stored with the one before as its previous."""

    def __init__(self, objects: ObjectStore, path: Path) -> None:
        self._objects, self._path = objects, path
        self.id: ObjectId | None = None

    def store(self, data: bytes) -> int:
        """Store the next version, read it back, and return what the store grew by."""
        self._path.write_bytes(data)
        self.id, size, added = store_file(self._objects, self._path, self.id)
        assert (self.id, size) == (hash_bytes(data), len(data))
        assert read_small(self._objects, file_entry(self.id, size), 1 << 30) == data
        return added

    def pieces(self) -> list[Piece]:
        assert self.id is not None
        return list(pieces(self._objects, load_manifest(self._objects, self.id)))


@pytest.fixture
def versions(objects: ObjectStore, tmp_path: Path) -> Versions:
    return Versions(objects, tmp_path / "file")


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def lines(size: int, seed: int) -> bytes:
    """Text: no byte is rare, many windows look alike."""
    words = [bytes(random.Random(i).choices(b"abcdefghijklmnop", k=2 + i % 7)) for i in range(500)]
    source, parts, total = random.Random(seed), [], 0
    while total < size:
        parts.append(b" ".join(source.choices(words, k=12)) + b"\n")
        total += len(parts[-1])
    return b"".join(parts)[:size]


def numbers(size: int, seed: int) -> bytes:
    """Small integers of four bytes: half of it is zeros."""
    source = random.Random(seed)
    return b"".join(source.randrange(50_000).to_bytes(4, "little") for _ in range(size // 4))


A, B = 333_333, 200_000
EDITS: dict[str, tuple[Callable[[bytes, bytes], bytes], int]] = {
    "the same": (lambda old, new: old, 0),
    "append": (lambda old, new: old + new, PIECE),
    "overwrite": (lambda old, new: old[:A] + new + old[A + len(new) :], 2 * PIECE),
    "insert": (lambda old, new: old[:A] + new + old[A:], 2 * PIECE),
    "insert one byte": (lambda old, new: old[:A] + b"!" + old[A:], 2 * PIECE),
    "prepend": (lambda old, new: b"five!" + old, PIECE),
    "delete": (lambda old, new: old[:A] + old[A + B :], 2 * PIECE),
    "swap": (lambda old, new: old[A:] + old[:A], 3 * PIECE),
    "move to the end": (lambda old, new: old[:A] + old[A + B :] + old[A : A + B], 4 * PIECE),
    "twice": (lambda old, new: old + new + old, 3 * PIECE),
}


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("make", [noise, lines, numbers])
@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_costs_what_it_changed(versions: Versions, make: Callable[[int, int], bytes], edit: str) -> None:
    """Whatever the data is like and however far the rest is shifted, the store grows by the new bytes and a few pieces."""
    old, new = make(1_000_000, 1), make(50_000, 2)
    change, allowed = EDITS[edit]
    versions.store(old)
    assert versions.store(change(old, new)) <= len(new) + allowed


def test_sizes_of_real_pieces(versions: Versions) -> None:
    """The same with pieces of 4 MiB, in the middle of one."""
    old, new = noise(24 * MIB + 1000, 1), noise(MIB, 2)
    versions.store(old)
    assert versions.store(old[: 9 * MIB + 5] + new + old[9 * MIB + 5 :]) <= 5 * MIB + 10_000


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(
    "data",
    [
        bytes(300_000),
        b"abc" * 100_000,
        noise(PIECE, 5) * 20,
        (b"HEADER" * 50 + bytes(20_000)) * 15,
        b"".join(noise(500, 7) + noise(PIECE - 500, seed) for seed in range(20)),
    ],
    ids=["zeros", "period", "repeated pieces", "sparse headers", "same starts"],
)
def test_data_without_landmarks(versions: Versions, data: bytes) -> None:
    """Where one place looks like another nothing is taken for what it is not, whatever is shared."""
    versions.store(data)
    for change in (data[:777] + b"x" + data[777:], data[5:], data[100_000:] + data[:100_000], data * 2):
        versions.store(change)


@pytest.mark.usefixtures("small_pieces")
def test_many_edits_leave_no_crumbs(versions: Versions) -> None:
    """Many small insertions and deletions, one version each: the pieces stay as large as they have to be."""
    source, data = random.Random(3), noise(250_000, 3)
    versions.store(data)
    for i in range(80):
        at = source.randrange(len(data))
        data = data[:at] + noise(source.randrange(300), i) + data[at + source.randrange(300) :]
        if i % 2:
            data += b"another line in a log\n"
        versions.store(data)
    lengths = [piece.length for piece in versions.pieces()]
    assert len(lengths) <= 2 * len(data) // SHORT
    assert sum(a < SHORT and b < SHORT for a, b in pairwise(lengths)) <= 2


EDIT = st.tuples(
    st.sampled_from(["insert", "delete", "overwrite", "move", "repeat", "zeros"]),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 40_000),
)


def _apply(data: bytes, edit: tuple[str, float, float, int]) -> bytes:
    what, where, to, count = edit
    at = int(where * len(data))
    part = data[at : at + count]
    rest = data[:at] + data[at + count :]
    there = int(to * len(rest))
    return {
        "insert": data[:at] + noise(count, count) + data[at:],
        "delete": rest,
        "overwrite": data[:at] + noise(len(part), count) + data[at + count :],
        "move": rest[:there] + part + rest[there:],
        "repeat": data[:at] + part + data[at:],
        "zeros": data[:at] + bytes(len(part)) + data[at + count :],
    }[what]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([noise, lines, numbers]), st.lists(st.lists(EDIT, min_size=1, max_size=4), max_size=6))
@pytest.mark.usefixtures("small_pieces")
def test_versions_are_what_was_stored(
    objects: ObjectStore,
    tmp_path: Path,
    make: Callable[[int, int], bytes],
    history: list[list[tuple[str, float, float, int]]],
) -> None:
    """After any edits each version reads back byte for byte, and unedited data is not stored again."""
    versions, data = Versions(objects, tmp_path / "file"), make(200_000, 9)
    versions.store(data)
    for edits in history:
        for edit in edits:
            data = _apply(data, edit)[:400_000]
        versions.store(data)
        versions.store(data)  # may join short neighbours
        assert versions.store(data) == 0


@pytest.mark.usefixtures("small_pieces")
def test_an_edited_base_in_a_worktree_is_searched_too(objects: ObjectStore, tmp_path: Path) -> None:
    """A program that rewrote a file in place, with something inserted: the ranges hold all of it, and most of it is shared."""
    old = noise(500_000, 1)
    new = old[:1000] + b"inserted" + old[1000:]
    (tmp_path / "data").write_bytes(new)
    with open(tmp_path / "data", "rb") as file, objects.batch() as batch:
        base = file_entry(ingest_bytes(batch, old), len(old))
        batch.flush()
        before = batch.bytes_added
        extents = [(0, len(new))]
        got = ingest_overlay(batch, file.fileno(), base=base, base_size=len(old), extents=extents, size=len(new))
        batch.flush()
        assert batch.bytes_added - before <= 3 * PIECE
    assert open_content(objects, file_entry(*got)).read(0, len(new)) == new


def test_a_missing_or_damaged_previous_version_is_none(objects: ObjectStore, versions: Versions) -> None:
    """The new version is stored all the same: it does not need the old one."""
    versions.id = hash_bytes(b"never stored")
    versions.store(noise(5 * MIB, 1))
    assert versions.id is not None
    location = objects.locate(versions.id)
    assert location is not None
    with open(next(objects.directory.glob("*.meta")), "r+b") as file:
        file.seek(location.offset + 60)
        file.write(os.urandom(8))
    objects.decoded.__init__()  # type: ignore[misc]  # nothing is in memory any more
    versions.store(noise(6 * MIB, 2))


@pytest.mark.usefixtures("small_pieces")
def test_another_file_in_its_place_is_searched_less_and_less(
    versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that has nothing in common with the one before costs a few searches, not one for each piece."""
    searched: list[int] = []
    real = matching.Anchors.find

    def find(self: matching.Anchors, data: memoryview) -> Iterator[tuple[int, Piece]]:
        searched.append(len(data))
        return real(self, data)

    monkeypatch.setattr(matching.Anchors, "find", find)
    versions.store(noise(200 * PIECE, 1))
    versions.store(noise(200 * PIECE, 2))
    assert 10 <= len(searched) <= 40
