"""Records, tables of contents and what a scan makes of torn segments."""

from __future__ import annotations

import mmap
import os
import resource
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfsmount.errors import Corrupt
from pfsmount.objects import segment_writer
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.segment import (
    BLOCK,
    Location,
    RecordKind,
    SegmentKind,
    SegmentRow,
    TableOfContents,
    decode_footer,
    decode_header,
    encode_footer,
    encode_header,
    encode_record,
    scan_records,
)
from pfsmount.objects.segment_writer import SegmentWriter

NONCE = bytes(range(16))


def _records(payloads: list[bytes], start: int = 64) -> bytes:
    data = encode_header(SegmentKind.META, 1, bytes(16), NONCE)
    for payload in payloads:
        data += encode_record(RecordKind.PIECE, hash_bytes(payload), payload, len(data), NONCE)
    return data


@given(st.lists(st.binary(max_size=200), max_size=8))
def test_scan_finds_all(payloads: list[bytes]) -> None:
    """A scan gives back every record in order."""
    assert [record.payload for record in scan_records(_records(payloads), NONCE)] == payloads


@given(st.lists(st.binary(min_size=1, max_size=100), min_size=1, max_size=5), st.data())
def test_scan_steps_over_torn_append(payloads: list[bytes], data: st.DataObject) -> None:
    """Behind a torn append, and however it is torn, the records before and after it are found."""
    whole = _records(payloads)
    cut = data.draw(st.integers(64, len(whole)))
    torn = whole[:cut]
    before = [record for record in scan_records(torn, NONCE) if record.intact]
    torn += bytes(-len(torn) % 8)
    after = encode_record(RecordKind.PIECE, hash_bytes(b"after"), b"after", len(torn), NONCE)
    found = [record for record in scan_records(torn + after, NONCE) if record.intact]
    assert found[-1].payload == b"after"
    assert found[:-1][: len(before)] == before


def test_a_record_inside_a_payload_is_not_one() -> None:
    """Bytes of a user that look like a record never pass for one: the check binds a record to its place."""
    inner = encode_record(RecordKind.COMMIT, hash_bytes(b"fake"), b"fake", 64, NONCE)
    data = _records([inner * 3])
    assert [record.kind for record in scan_records(data[:64] + b"garbage!" + data[64:], NONCE)] == []
    assert [record.payload for record in scan_records(data, NONCE)] == [inner * 3]


def test_location_round_trip() -> None:
    """Offsets up to 48 bits survive."""
    location = Location(7, (1 << 44) + 4096, RecordKind.PIECE, 4 << 20)
    assert Location.decode(location.encode()) == location
    assert len(location.encode()) == 16


def test_header_refused() -> None:
    """Something that is no segment is named as that."""
    with pytest.raises(Corrupt):
        decode_header(bytes(64))
    header = encode_header(SegmentKind.TINY, 3, b"s" * 16, NONCE)
    assert decode_header(header) == (SegmentKind.TINY, 3, b"s" * 16, NONCE)


def _row(kind: SegmentKind) -> SegmentRow:
    return SegmentRow(kind, False, 0, 0, NONCE)


def test_data_segment_is_nothing_but_aligned_pieces(tmp_path: Path) -> None:
    """Each piece starts on a block, what follows it is zeros, and there is no header."""
    path = tmp_path / "1.data"
    writer = SegmentWriter(path, 1, _row(SegmentKind.DATA), bytes(16))
    pieces = [os.urandom(n) for n in (5000, 4096, 1025, 3 << 20)]
    places = [writer.lend_piece(piece)[0] for piece in pieces]
    writer.sync()
    writer.close()
    data = path.read_bytes()
    assert places[0].offset == 0
    for place, piece in zip(places, pieces, strict=True):
        assert place.offset % BLOCK == 0
        end = place.offset + place.length
        assert data[place.offset : end] == piece
        assert not any(data[end : -(-end // BLOCK) * BLOCK])


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    """The second opener of a segment for writing is turned away, and can have it after the first."""
    path = tmp_path / "1.meta"
    first = SegmentWriter(path, 1, _row(SegmentKind.META), bytes(16))
    with pytest.raises(BlockingIOError):
        SegmentWriter(path, 1, _row(SegmentKind.META), bytes(16))
    first.close()
    SegmentWriter(path, 1, _row(SegmentKind.META), bytes(16)).close()


def test_appends_behind_what_a_crash_left(tmp_path: Path) -> None:
    """A writer goes on behind bytes that nobody published, never over them."""
    path = tmp_path / "1.meta"
    writer = SegmentWriter(path, 1, _row(SegmentKind.META), bytes(16))
    writer.append_record(RecordKind.PIECE, hash_bytes(b"one"), b"one")
    writer.sync()
    writer.close()
    with open(path, "ab") as file:
        file.write(b"torn")
    writer = SegmentWriter(path, 1, _row(SegmentKind.META), bytes(16))
    place = writer.append_record(RecordKind.PIECE, hash_bytes(b"two"), b"two")
    writer.sync()
    writer.close()
    assert place.offset % 8 == 0
    assert [record.payload for record in scan_records(path.read_bytes(), NONCE)] == [b"one", b"two"]


def test_rollback_gives_the_space_back(tmp_path: Path) -> None:
    """What was appended and not synced leaves no bytes behind."""
    path = tmp_path / "1.data"
    writer = SegmentWriter(path, 1, _row(SegmentKind.DATA), bytes(16))
    writer.lend_piece(b"a" * 5000)
    writer.sync()
    size = path.stat().st_size
    writer.lend_piece(b"b" * (8 << 20))
    writer.rollback()
    assert path.stat().st_size == size
    writer.close()


def test_footer_explains_a_sealed_segment(tmp_path: Path) -> None:
    """The footer of a data segment has the whole table of contents; a damaged one is none."""
    pieces = [(hash_bytes(bytes([i])), 1000 * (i + 2)) for i in range(5)]
    table = TableOfContents(9, 0, pieces, (1, 64))
    assert TableOfContents.decode(table.encode()) == table
    path = tmp_path / "9.data"
    end = BLOCK * 20
    path.write_bytes(bytes(end) + encode_footer(table.encode(), end, b"s" * 16))
    with open(path, "r+b") as file:
        assert decode_footer(file.fileno()) == table
        file.seek(end + 50)
        file.write(b"!")
        file.flush()
        assert decode_footer(file.fileno()) is None


def test_large_pieces_are_written_beside_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether in memory that begins on a page or not, past the page cache or through it, small ones between: what was appended reads back."""
    monkeypatch.setattr(segment_writer, "_FLUSH_BYTES", 1 << 20)
    writer = SegmentWriter(tmp_path / "s", 1, _row(SegmentKind.DATA), bytes(16))
    pieces = []
    for size in (1 << 20, 3_000_001, 5000, 2 << 20, 4 << 20, (1 << 20) + 1):
        memory = memoryview(mmap.mmap(-1, size + 1))
        memory[:] = os.urandom(size + 1)
        pieces += [memory[:-1], memory[1:]]
    lent = [writer.lend_piece(piece, cached=n % 3 == 0) for n, piece in enumerate(pieces)]
    assert [writer.read(at.offset, at.length) for at, _ in lent] == pieces
    writer.sync()
    data = (tmp_path / "s").read_bytes()
    assert [data[at.offset : at.offset + at.length] for at, _ in lent] == pieces
    assert all(at.offset % BLOCK == 0 for at, _ in lent)
    assert len(data) % BLOCK == 0
    last, _ = lent[-1]
    writer.lend_piece(pieces[4], cached=False)
    writer.rollback()
    assert os.path.getsize(tmp_path / "s") == len(data)
    again, _ = writer.lend_piece(pieces[8], cached=False)
    assert writer.read(again.offset, again.length) == pieces[8]
    assert writer.read(last.offset, last.length) == pieces[-1]
    writer.close()


def _lend_too_much(writer: SegmentWriter, cached: bool) -> None:
    for _ in range(3):
        writer.lend_piece(memoryview(mmap.mmap(-1, 2 << 20)), cached=cached)
    writer.sync()


@pytest.mark.parametrize("cached", [True, False])
def test_an_error_of_a_write_beside_is_heard_of(tmp_path: Path, cached: bool) -> None:
    """A write that fails after its call returned makes what follows fail: nothing can be published on it."""
    writer = SegmentWriter(tmp_path / "s", 1, _row(SegmentKind.DATA), bytes(16))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            _lend_too_much(writer, cached)
        with pytest.raises(OSError, match="too large"):
            writer.lend_piece(b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
        writer.close()
