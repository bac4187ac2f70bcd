"""The journal: lines survive, torn ends are cut, damage stops the reading."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfsmount.errors import NoSpace
from pfsmount.ids import ObjectId
from pfsmount.repo.journal import (
    Journal,
    JournalReader,
    Record,
    decode_line,
    encode_line,
    entry_of,
    entry_record,
    journal_base,
    journal_roots,
    name_bytes,
    name_text,
)
from pfsmount.tree.entry import file_entry, symlink_entry

BASE = ObjectId(bytes(range(32)))


def read(path: Path) -> list[Record]:
    reader = JournalReader(path)
    try:
        return list(reader.records())
    finally:
        reader.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.0"


def write(path: Path, *records: Record) -> None:
    journal = Journal.create(path, BASE)
    for record in records:
        journal.append(record)
    journal.sync()
    journal.close()


@given(st.binary(min_size=1, max_size=255))
def test_any_name_survives(name: bytes) -> None:
    line, _ = encode_line(["unlink", 1, name_text(name)], b"")
    decoded = decode_line(line[:-1], b"")
    assert decoded is not None
    assert name_bytes(decoded[0][2]) == name


def test_entries_survive() -> None:
    for entry in (file_entry(BASE, 7, mode=0o640, mtime_ns=-5), symlink_entry(b"\xff/x", uid=3)):
        assert entry_of(entry_record(5, entry)) == entry


def test_golden_line() -> None:
    """Pins the format: a change here is a new version of it."""
    first, digits = encode_line(["journal", 1, None], b"")
    second, _ = encode_line(["unlink", 1, name_text(b"a\xff"), 7], digits)
    assert first == b'["journal",1,null] 1129a0dd47201456\n'
    assert second == b'["unlink",1,"a\\udcff",7] 4ce31ff8bb52dae1\n'


def test_append_and_read(path: Path) -> None:
    write(path, ["unlink", 1, "x", 5], ["whole", 2])
    records = read(path)
    assert records == [["journal", 1, BASE.hex()], ["unlink", 1, "x", 5], ["whole", 2]]
    assert journal_base(records[0]) == BASE


@pytest.mark.parametrize("cut", [1, 10, 28])
def test_torn_end_is_cut_and_written_over(path: Path, cut: int) -> None:
    write(path, ["whole", 2], ["whole", 3])
    os.truncate(path, path.stat().st_size - cut)
    reader = JournalReader(path)
    assert list(reader.records())[1:] == [["whole", 2]]
    assert reader.torn_bytes() > 0
    journal = Journal.resume(reader)
    reader.close()
    journal.append(["whole", 4])
    journal.close()
    assert read(path)[1:] == [["whole", 2], ["whole", 4]]


def test_damage_stops_the_reading(path: Path) -> None:
    write(path, ["whole", 2], ["whole", 3], ["whole", 4])
    raw = bytearray(path.read_bytes())
    raw[raw.index(b'"whole",3') + 9] ^= 1
    path.write_bytes(raw)
    assert read(path)[1:] == [["whole", 2]]


def test_lines_cannot_be_left_out(path: Path) -> None:
    write(path, ["whole", 2], ["whole", 3])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    assert read(path)[1:] == []


def test_reading_goes_on_where_it_stopped(path: Path) -> None:
    journal = Journal.create(path, None)
    reader = JournalReader(path)
    assert list(reader.records()) == [["journal", 1, None]]
    assert list(reader.records()) == []
    journal.append(["whole", 2])
    assert list(reader.records()) == [["whole", 2]]
    before = reader.is_current
    path.unlink()
    assert (before, reader.is_current) == (True, False)
    reader.close()
    journal.close()


def test_full_disk_leaves_the_journal_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal.create(path, None)
    real = os.pwrite

    def half(fd: int, data: bytes, offset: int) -> int:
        return real(fd, data[:5], offset)

    monkeypatch.setattr(os, "pwrite", half)
    with pytest.raises(NoSpace):
        journal.append(["whole", 2])
    monkeypatch.setattr(os, "pwrite", real)
    journal.append(["whole", 3])
    journal.close()
    assert read(path)[1:] == [["whole", 3]]


def test_roots_for_gc(path: Path) -> None:
    entry = file_entry(BASE, 7)
    write(path, ["whole", 2], entry_record(3, entry))
    assert journal_roots(path) == (BASE, [entry])
