"""The object store: what goes in comes out, by several processes, and after crashes."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from pfsmount.config import StoreSettings
from pfsmount.errors import Busy, Corrupt, NoSpace, NotAStore, NotFound, StoreTooNew
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.index import Table
from pfsmount.objects.layout import create_store
from pfsmount.objects.open_segments import merge_contents
from pfsmount.objects.segment import (
    Location,
    RecordKind,
    SegmentKind,
    SegmentRow,
    decode_footer,
    decode_header,
    scan_records,
    segment_path,
)
from pfsmount.objects.store import ObjectStore
from pfsmount.tree.ingest import ingest_bytes


def test_what_goes_in_comes_out(objects: ObjectStore) -> None:
    """Objects are readable in the batch at once, elsewhere after it is published, and not after a rollback."""
    data = [b"", b"x", b"y" * 1024, b"z" * 1025, os.urandom(3 << 20)]
    with objects.batch() as batch:
        ids = [batch.add_piece(piece) for piece in data]
        assert [batch.get(id) for id in ids[1:]] == data[1:]
        with pytest.raises(NotFound):
            objects.get(ids[1])
        batch.flush()
    assert [objects.get(id) for id in ids[1:]] == data[1:]
    assert ids == [hash_bytes(piece) for piece in data]
    with objects.batch() as batch:
        gone = batch.add_piece(b"never published")
    with pytest.raises(NotFound):
        objects.get(gone)


def test_same_bytes_are_stored_once(objects: ObjectStore) -> None:
    """A second copy adds nothing."""
    for _ in range(2):
        with objects.batch() as batch:
            batch.add_piece(b"same" * 5000)
            batch.flush()
            added = batch.bytes_added
    assert added == 0


def test_a_flipped_byte_is_noticed(objects: ObjectStore) -> None:
    """Damaged bytes are never handed out."""
    with objects.batch() as batch:
        id = batch.add_piece(b"precious" * 1000)
        batch.flush()
    (path,) = objects.directory.glob("*.data")
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw)
    with pytest.raises(Corrupt, match="damaged"):
        objects.get(id)


def test_a_missing_segment_is_named(objects: ObjectStore) -> None:
    """The error names the file that is gone."""
    with objects.batch() as batch:
        id = batch.add_piece(b"precious" * 1000)
        batch.flush()
    (path,) = objects.directory.glob("*.data")
    path.unlink()
    objects.close()
    again = ObjectStore(objects.path)
    with pytest.raises(NotFound, match=path.name):
        again.get(id)
    again.close()


def test_segments_are_sealed_and_explain_themselves(tmp_path: Path) -> None:
    """A full segment is sealed with a footer that lists what the chain of tables lists, crash gaps included."""
    create_store(tmp_path / "s")
    store = ObjectStore(tmp_path / "s", StoreSettings(segment_size=1 << 20))
    ids = []
    for i in range(6):
        with store.batch() as batch:
            ids += [batch.add_piece(os.urandom(100_000 + i)) for _ in range(3)]
            batch.flush()
        if i == 1:  # a torn append between two batches
            with open(next(store.directory.glob("*.data")), "ab") as file:
                file.write(b"torn" * 3000)
    rows = {}
    with store.index.read() as txn:
        for key, raw in txn.scan(Table.SEGMENTS):
            rows[int.from_bytes(key, "big")] = SegmentRow.decode(raw)
    sealed = [n for n, row in rows.items() if row.sealed and row.kind is SegmentKind.DATA]
    assert sealed
    for number in sealed:
        with open(segment_path(store.directory, number, SegmentKind.DATA), "rb") as file:
            table = decode_footer(file.fileno())
        assert table is not None
        listed = dict(table.locations())
        for id in ids:
            location = store.locate(id)
            assert location is not None
            if location.segment == number:
                assert listed[id] == location
        assert merge_contents(store, number, rows[number]) == table
    assert [len(store.get(id)) for id in ids] == [100_000 + i for i in range(6) for _ in range(3)]
    store.close()


def test_large_batches_publish_as_they_go(tmp_path: Path) -> None:
    """No index transaction has more entries than the settings allow, and all objects arrive."""
    create_store(tmp_path / "s")
    store = ObjectStore(tmp_path / "s", StoreSettings(publish_entries=100))
    with store.batch() as batch:
        ids = [batch.add_piece(b"%d" % i) for i in range(1050)]
        assert store.locate(ids[0]) is not None
        assert store.locate(ids[-1]) is None
        assert batch.get(ids[0]) == b"0"
        batch.flush()
    assert all(store.get(id) == b"%d" % i for i, id in enumerate(ids))
    store.close()


def _put_many(path: Path, start: int, count: int) -> None:
    store = ObjectStore(path)
    for i in range(start, start + count):
        with store.batch() as batch:
            batch.add_piece(b"%d" % i * 600)
            batch.add_object(RecordKind.NODE, b"%d" % i)
            batch.flush()
    store.close()


def test_processes_write_at_once(tmp_path: Path) -> None:
    """Four processes add objects to one store at the same time; all arrive."""
    create_store(tmp_path / "s")
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_put_many, args=(tmp_path / "s", i * 10, 30)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    store = ObjectStore(tmp_path / "s")
    for i in range(60):
        assert store.get(hash_bytes(b"%d" % i * 600)) == b"%d" % i * 600
    store.close()


def test_publish_notices_a_collection(objects: ObjectStore) -> None:
    """When gc ran meanwhile, each reused object is looked up again, and a lost one is an error."""
    with objects.batch() as batch:
        id = batch.add_piece(b"reused" * 1000)
        batch.flush()
    with objects.batch() as batch:
        batch.add_piece(b"reused" * 1000)
        with objects.index.write() as txn:
            txn.increment(b"gc")
        batch.flush()  # the object is still there
    with objects.batch() as batch:
        batch.add_piece(b"reused" * 1000)
        with objects.index.write() as txn:
            txn.increment(b"gc")
            txn.delete(Table.OBJECTS, id)
        with pytest.raises(Exception, match="garbage collection"):
            batch.flush()


def test_places_that_are_no_store(tmp_path: Path) -> None:
    """Nothing, a newer store, and one with a feature that we do not know are each refused by name."""
    with pytest.raises(NotAStore):
        ObjectStore(tmp_path / "none")
    create_store(tmp_path / "s")
    file = tmp_path / "s" / "store.json"
    text = file.read_text()
    file.write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(StoreTooNew, match="format 2"):
        ObjectStore(tmp_path / "s")
    file.write_text(text.replace('"features": []', '"features": ["teleport"]'))
    with pytest.raises(StoreTooNew, match="teleport"):
        ObjectStore(tmp_path / "s")
    file.write_text("{")
    with pytest.raises(Corrupt):
        ObjectStore(tmp_path / "s")


def test_another_pid_namespace_is_refused(objects: ObjectStore) -> None:
    """LMDB names readers by pid, so all openers must share one PID namespace."""
    openers = objects.path / "index" / "openers"
    openers.write_bytes(b"some-boot pid:[1]")
    with pytest.raises(Busy, match="PID namespace"):
        ObjectStore(objects.path)
    objects.close()
    ObjectStore(objects.path).close()  # nobody else is there any more: the note is rewritten


def test_location_of_kinds(objects: ObjectStore) -> None:
    """Trees, tiny files and data lie apart."""
    with objects.batch() as batch:
        ids = [batch.add_piece(b"t"), batch.add_piece(b"d" * 2000), batch.add_object(RecordKind.NODE, b"n")]
        batch.flush()
    kinds = []
    with objects.index.read() as txn:
        for id in ids:
            location = Location.decode(txn.get(Table.OBJECTS, id) or b"")
            raw = txn.get(Table.SEGMENTS, location.segment.to_bytes(4, "big"))
            kinds.append(SegmentRow.decode(raw or b"").kind)
    assert kinds == [SegmentKind.TINY, SegmentKind.DATA, SegmentKind.META]


def test_a_batch_is_of_no_use_after_a_failed_write(objects: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a write or an fsync failed, nothing of the batch can be published, however often it is tried."""
    for call in ("pwritev", "fdatasync"):
        real = getattr(os, call)

        def fail(*_: object) -> int:
            raise OSError(28, "No space left on device")

        with objects.batch() as batch:
            id = batch.add_piece(os.urandom(5000))
            monkeypatch.setattr(os, call, fail)
            with pytest.raises(NoSpace):
                batch.flush()
            monkeypatch.setattr(os, call, real)
            for _ in range(2):
                with pytest.raises(NoSpace):
                    batch.flush()
            with pytest.raises(NoSpace):
                batch.add_piece(os.urandom(2_000_000))
        with pytest.raises(NotFound):
            objects.get(id)
    with objects.batch() as batch:
        id = batch.add_piece(b"again" * 1000)
        batch.flush()
    assert objects.get(id) == b"again" * 1000


def test_a_header_that_a_power_cut_took_is_written_again(objects: ObjectStore) -> None:
    """A segment whose file has a size but no bytes gets its header before anything is appended."""
    with objects.batch() as batch:
        batch.add_object(RecordKind.NODE, b"one")
    (path,) = objects.directory.glob("*.meta")
    path.write_bytes(bytes(64))
    with objects.batch() as batch:
        batch.add_object(RecordKind.NODE, b"two")
        batch.flush()
    _, _, store_id, nonce = decode_header(path.read_bytes())
    assert store_id == objects.info.id
    assert [record.payload for record in scan_records(path.read_bytes(), nonce)] == [b"two"]


def test_a_manifest_root_is_verified(objects: ObjectStore) -> None:
    """A flipped byte in the root of a manifest is noticed although it is found by the id of its file."""
    with objects.batch() as batch:
        id = ingest_bytes(batch, os.urandom(9 << 20))
        batch.flush()
    location = objects.locate(id)
    assert location is not None
    (path,) = objects.directory.glob("*.meta")
    raw = bytearray(path.read_bytes())
    first, second = location.offset + 48, location.offset + 88
    raw[first : first + 40], raw[second : second + 40] = raw[second : second + 40], raw[first : first + 40]
    path.write_bytes(raw)
    with pytest.raises(Corrupt):
        objects.get(id)
    with pytest.raises(Corrupt):
        objects.get_nowait(id)
