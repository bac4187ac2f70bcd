"""`pfs fsck` as a library: a sound store is clean, and each kind of damage is found and explained."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from pfsmount.errors import PfsError
from pfsmount.ids import ObjectId, parse_path
from pfsmount.objects.index import Table
from pfsmount.objects.invariants import Invariant, Severity
from pfsmount.objects.segment import Location, RecordKind, SegmentKind, SegmentRow, align, scan_records
from pfsmount.repo.fsck import Report, check, check_store
from pfsmount.repo.refs import RefKind, ref_key
from pfsmount.repo.store import Store
from pfsmount.tree.content import open_content
from pfsmount.tree.directory import walk
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import Kind, file_entry
from pfsmount.tree.manifest import load_manifest, pieces
from tests.repo.damage import any_of, change, entry_of, flip, opened, place_of, rich_template

__all__ = ["rich_template"]


@pytest.fixture
def rich(rich_template: Path, tmp_path: Path) -> Path:
    """A copy of the rich store."""
    return Path(shutil.copytree(rich_template, tmp_path / "store"))


def found(report: Report) -> set[str]:
    """Names of the broken invariants that matter."""
    return {f.invariant.label for f in report.findings if f.severity is not Severity.HARMLESS}


def lost_paths(report: Report, repo: str = "images") -> set[str]:
    """Paths that are lost in any version."""
    (impact,) = [one for one in report.impact.repos if one.name == repo]
    return {os.fsdecode(b"/".join(lost.path)) for lost in impact.paths}


def test_a_sound_store_is_clean(rich: Path) -> None:
    """Everything that a store can have passes every check, and no check writes anything."""
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in (rich / "segments").iterdir()}
    for data in (False, True):
        report = check_store(rich, data=data)
        assert report.clean, list(report.findings)
        assert not list(report.findings)
    assert report.objects[RecordKind.MANIFEST]
    assert report.objects[RecordKind.XATTRS]
    assert before == {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in (rich / "segments").iterdir()}


def test_flipped_byte_in_data(rich: Path) -> None:
    """Only --data reads data; it names the file in every version and repo that has it, and nothing else."""
    with opened(rich) as store:
        path, place = place_of(store, entry_of(store, "photos/1.jpg").id)
    flip(path, place.offset + 700)
    assert check_store(rich).clean
    report = check_store(rich, data=True)
    assert found(report) == {"object-hash"}
    assert lost_paths(report) == {"photos/1.jpg"}
    assert lost_paths(report, "labels") == {"photos/1.jpg"}
    refs = {ref.name: ref.lost for impact in report.impact.repos for ref in impact.refs if impact.name == "images"}
    assert refs["master"] == 1
    assert refs["dev"] == 0, "it was deleted there"


def test_flipped_byte_in_a_large_file(rich: Path) -> None:
    """One of its pieces: the file is lost, the piece is named."""
    with opened(rich) as store:
        id = entry_of(store, "large").id
        piece = [one.id for one in pieces(store.objects, load_manifest(store.objects, id))][1]
        assert piece is not None
        path, place = place_of(store, piece)
    flip(path, place.offset + place.length - 1)
    report = check_store(rich, data=True)
    assert found(report) == {"object-hash"}
    assert set(report.damage.objects) == {piece}
    assert lost_paths(report) == {"large"}


@pytest.mark.parametrize("kind", [RecordKind.NODE, RecordKind.COMMIT, RecordKind.MANIFEST, RecordKind.XATTRS])
def test_flipped_byte_in_metadata(rich: Path, kind: RecordKind) -> None:
    """The structure check reads all metadata."""
    with opened(rich) as store:
        id = any_of(store, kind)
        path, place = place_of(store, id)
    flip(path, place.offset + place.length // 2)
    report = check_store(rich)
    assert "object-hash" in found(report)
    assert id in report.damage.objects
    assert report.impact.unused or any(repo.intact < repo.commits for repo in report.impact.repos)


def test_a_directory_that_is_lost(rich: Path) -> None:
    """A lost directory is named; its siblings and the versions that had another one there are not."""
    with opened(rich) as store:
        path, place = place_of(store, entry_of(store, "photos").id)
        change(store, "master", {"photos/more": b"makes another directory"})
    flip(path, place.offset + 20)
    report = check_store(rich)
    assert lost_paths(report) == {"photos"}
    (images,) = [repo for repo in report.impact.repos if repo.name == "images"]
    assert 0 < len(images.damaged) < images.commits
    assert {ref.name: ref.lost for ref in images.refs}["master"] == 0


def test_a_lost_commit(rich: Path) -> None:
    """The commit is named, its ancestors and descendants are intact."""
    with opened(rich) as store:
        head = store.head("images", "master")
        assert head is not None
        middle = store.read_commit(head).parents[0]
        path, place = place_of(store, middle)
    flip(path, place.offset + 5)
    report = check_store(rich)
    (images,) = [repo for repo in report.impact.repos if repo.name == "images"]
    assert images.unreadable == [middle]
    assert images.intact == images.commits - 1


def test_damaged_header_of_a_record(rich: Path) -> None:
    """The object can still be read, but a rebuilt index would not have it: to repair, nothing lost."""
    with opened(rich) as store:
        path, place = place_of(store, entry_of(store, "many").id)
    flip(path, place.offset - 48)
    report = check_store(rich)
    assert found(report) == {"record-check"}
    assert not report.damage


def test_damaged_header_of_a_segment(rich: Path) -> None:
    """It is said, and what is in it is all checked nevertheless."""
    path = next((rich / "segments").glob("*.meta"))
    flip(path, 20)
    report = check_store(rich)
    assert found(report) == {"segment-header"}
    assert not report.damage


@pytest.mark.parametrize("kind", list(SegmentKind))
def test_missing_segment(rich: Path, kind: SegmentKind) -> None:
    """Everything in it counts as lost, everything else as intact; the check goes on."""
    with opened(rich) as store, store.objects.index.read() as txn:
        number = next(
            int.from_bytes(k, "big") for k, raw in txn.scan(Table.SEGMENTS) if SegmentRow.decode(raw).kind is kind
        )
    (rich / "segments" / f"{number:08x}.{kind.suffix}").unlink()
    report = check_store(rich)
    assert "segment-present" in found(report)
    assert any(repo.intact < repo.commits for repo in report.impact.repos)


def test_truncated_segment(rich: Path) -> None:
    """What was behind the cut is lost, what is before it is not."""
    with opened(rich) as store:
        path, place = place_of(store, entry_of(store, "photos/3.jpg").id)
    os.truncate(path, place.offset + 100)
    report = check_store(rich)
    assert "segment-length" in found(report)
    assert "photos/3.jpg" in lost_paths(report)
    assert not check_store(rich, data=True).clean


def test_lost_table_of_contents(rich: Path) -> None:
    """Its pieces are readable, and it is said that a rebuilt index would not find them."""
    with opened(rich) as store:
        _path, place = place_of(store, entry_of(store, "photos/3.jpg").id)
        raw = store.objects.index.get(Table.SEGMENTS, place.segment.to_bytes(4, "big"))
        assert raw is not None
        row = SegmentRow.decode(raw)
        flip(store.path / "segments" / f"{row.contents_segment:08x}.meta", row.contents_offset + 30)
    report = check_store(rich)
    assert "contents-chain" in found(report)
    assert {"contents", "contents-chain", "footer"} >= found(report)


def test_damaged_footer(rich: Path) -> None:
    """The footer of a sealed data segment is checked too."""
    with opened(rich) as store, store.objects.index.read() as txn:
        rows = [(int.from_bytes(k, "big"), SegmentRow.decode(raw)) for k, raw in txn.scan(Table.SEGMENTS)]
    number = next(number for number, row in rows if row.kind is SegmentKind.DATA and row.sealed)
    path = rich / "segments" / f"{number:08x}.data"
    flip(path, path.stat().st_size - 10)
    assert found(check_store(rich)) == {"footer"}


def test_index_that_lost_an_object(rich: Path) -> None:
    """The object is in its segment, so nothing is lost for good: that is what is said."""
    with opened(rich) as store:
        id = entry_of(store, "many").id
        with store.objects.index.write() as txn:
            txn.delete(Table.OBJECTS, id)
        report = check(store)
    assert found(report) == {"object-indexed"}
    assert lost_paths(report) == {"many"}


def test_what_nothing_needs(rich: Path) -> None:
    """A tree that no version has, of which something is gone, waits for gc: no damage."""
    with opened(rich) as store:
        with store.objects.batch() as batch:
            gone = batch.add_piece(b"gone" * 1000)
            edit_paths(batch, store.empty_root(), {parse_path("a/b"): file_entry(gone, 4000)})
            batch.flush()
        with store.objects.index.write() as txn:
            txn.delete(Table.OBJECTS, gone)
        report = check(store)
        assert report.clean
        (finding,) = report.findings
        assert finding.severity is Severity.HARMLESS
        assert not report.damage


def test_index_with_a_wrong_row(rich: Path) -> None:
    """A row that points to another object, to nowhere, or has a wrong id."""
    with opened(rich) as store:
        photo, other = entry_of(store, "photos/1.jpg").id, entry_of(store, "photos/2.jpg").id
        with store.objects.index.write() as txn:
            right, wrong = txn.get(Table.OBJECTS, photo), txn.get(Table.OBJECTS, other)
            assert right is not None
            assert wrong is not None
            txn.put(Table.OBJECTS, photo, wrong)
        report = check(store)
        assert photo in report.damage.objects
        assert lost_paths(report) == {"photos/1.jpg"}
        place = Location.decode(right)
        for bad in (
            place._replace(segment=999),
            place._replace(offset=1 << 40),
            place._replace(offset=place.offset + 4096),
        ):
            with store.objects.index.write() as txn:
                txn.put(Table.OBJECTS, photo, bad.encode())
            assert photo in check(store).damage.objects
        with store.objects.index.write() as txn:
            txn.put(Table.OBJECTS, photo, right)
            txn.put(Table.OBJECTS, bytes(31) + b"\1", right)
        assert "object-location" in found(check(store)) or "object-hash" in found(check(store))


def test_dangling_ref(rich: Path) -> None:
    """A branch that names nothing, or something that is no commit."""
    with opened(rich) as store:
        key = ref_key(store.repo("images"), RefKind.BRANCH, "dev")
        for target in (b"\7" * 32, entry_of(store, "photos").id):
            with store.objects.index.write() as txn:
                raw = txn.get(Table.REFS, key)
                assert raw is not None
                txn.put(Table.REFS, key, target + raw[32:])
            report = check(store)
            assert {"ref-target", "refs-log"} <= found(report)


def test_refs_log(rich: Path) -> None:
    """A torn end is harmless; damage or a gap before the end is told."""
    log = rich / "refs.log"
    whole = log.read_bytes()
    lines = whole.splitlines(keepends=True)
    with opened(rich) as store:
        log.write_bytes(whole + b'{"n": 9999, "torn')
        assert check(store).clean
        log.write_bytes(b"".join([*lines[:5], b"x" + lines[5][1:], *lines[6:]]))
        assert found(check(store)) == {"refs-log"}
        log.write_bytes(b"".join(lines[:5] + lines[6:]))
        assert found(check(store)) == {"refs-log"}
        log.write_bytes(b"".join(lines[:-1]))
        assert check(store).clean, "as after a crash: the next opener appends it"
        log.write_bytes(whole)
        assert check(store).clean


@pytest.mark.parametrize("how", ["missing", "empty", "garbage", "short", "directory"])
def test_lost_index(rich: Path, how: str) -> None:
    """An index that is gone, or makes LMDB give up or die, is a finding and not a crash."""
    file = rich / "index" / "data.mdb"
    if how == "missing":
        file.unlink()
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "garbage":
        file.write_bytes(random.Random(5).randbytes(file.stat().st_size))
    elif how == "short":
        os.truncate(file, 8192 + 4096)
    else:
        shutil.rmtree(rich / "index")
    before = sorted(path.name for path in rich.iterdir())
    report = check_store(rich, data=True)
    assert found(report) == {"index-readable"}
    assert report.index_lost
    assert sorted(path.name for path in rich.iterdir()) == before


def test_uncommitted_work(rich: Path) -> None:
    """A journal that is damaged in the middle, and one whose base is gone."""
    (journal,) = [path for path in (rich / "worktrees").rglob("journal.*") if "+" not in str(path)]
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], b"[" + lines[1][2:], *lines[2:]]))
    assert found(check_store(rich)) == {"journal-chain"}
    journal.write_bytes(whole + b"[torn")
    assert check_store(rich).clean


def test_while_others_write(rich: Path) -> None:
    """What a writer does meanwhile is no damage: between any two looks of the check something is committed."""
    with opened(rich) as store:
        count, busy = 0, False
        real = store.objects.index.read

        def read():  # type: ignore[no-untyped-def]
            nonlocal count, busy
            count += 1
            if count % 5 == 0 and not busy:
                busy = True
                change(store, "master", {f"during/{count}": os.urandom(2000), "t": b"%d" % count})
                busy = False
            return real()

        store.objects.index.read = read  # type: ignore[method-assign]
        for data in (False, True):
            report = check(store, data=data)
            assert report.clean, list(report.findings)
        assert count > 20


def _unreadable(store: Store) -> set[tuple[ObjectId, bytes]]:
    """Commits and paths that cannot be read; an empty path: a commit, or a directory of it."""
    lost = set()
    for repo in store.repos():
        with store.objects.index.read() as txn:
            ids = [ObjectId(key[8:]) for key, _ in txn.scan(Table.COMMITS, repo.key)]
        for id in ids:
            try:
                for path, entry in walk(store.objects, store.read_commit(id).tree):
                    try:
                        if entry.kind is Kind.FILE:
                            for _ in open_content(store.objects, entry).parts(1 << 20):
                                pass
                    except PfsError:
                        lost.add((id, b"/".join(path)))
            except PfsError:
                lost.add((id, b""))
    return lost


def _is_unused(path: Path, at: int, records: list[tuple[int, int]]) -> bool:
    return not any(start <= at < end for start, end in records)


def _flip_somewhere(rich: Path, dice: random.Random) -> tuple[Path, int]:
    files = sorted((rich / "segments").iterdir())
    path = dice.choice(files)
    at = dice.randrange(path.stat().st_size)
    flip(path, at, 1 << dice.randrange(8))
    return path, at


def _rounds(rich: Path, seeds: range) -> None:
    with opened(rich) as store:
        used = _used_ranges(store)
    for seed in seeds:
        path, at = _flip_somewhere(rich, random.Random(seed))
        report = check_store(rich, data=True)
        if not list(report.findings):
            assert _is_unused(path, at, used[path.name]), (seed, path.name, at)
        if seed % 4 and not list(report.findings):
            _flip_somewhere(rich, random.Random(seed))
            continue  # reading everything takes longer than the check
        with opened(rich) as store:
            lost = _unreadable(store)
        repos = report.impact.repos
        told = {(id, b"/".join(one.path)) for repo in repos for one in repo.paths for id in one.commits}
        commits = {id for id, _ in told} | {id for repo in repos for id in repo.unreadable}
        for id, name in lost:
            assert (id, name) in told if name else id in commits, (seed, id.hex(), name)
        _flip_somewhere(rich, random.Random(seed))


def _used_ranges(store: Store) -> dict[str, list[tuple[int, int]]]:
    """For each segment the bytes that mean anything."""
    used: dict[str, list[tuple[int, int]]] = {path.name: [] for path in store.objects.directory.iterdir()}
    with store.objects.index.read() as txn:
        rows = [(int.from_bytes(k, "big"), SegmentRow.decode(raw)) for k, raw in txn.scan(Table.SEGMENTS)]
        places = [Location.decode(raw) for _, raw in txn.scan(Table.OBJECTS)]
    for number, row in rows:
        name = f"{number:08x}.{row.kind.suffix}"
        path = store.objects.directory / name
        if row.kind is SegmentKind.DATA:
            used[name] += [(p.offset, align(p.offset + p.length, 4096)) for p in places if p.segment == number]
        else:
            used[name].append((0, 64))
            named = {p.offset for p in places if p.segment == number}
            for record in scan_records(path.read_bytes(), row.nonce):
                end = record.payload_offset + len(record.payload)
                if record.payload_offset in named or record.kind is RecordKind.CONTENTS:
                    used[name].append((record.offset, end))
    return used


def test_any_flipped_byte_is_found(rich: Path) -> None:
    """Wherever one bit is flipped in any segment: it is found, or nothing needs that byte; and whatever cannot be read then is told."""
    _rounds(rich, range(6))


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("start", range(100, 500, 20))
def test_any_flipped_byte_is_found_long(rich: Path, start: int) -> None:
    """The same, many times."""
    _rounds(rich, range(start, start + 20))


def test_names_of_invariants() -> None:
    """They are unique, and each stands in the document."""
    text = (Path(__file__).parents[2] / "docs" / "FSCK.md").read_text()
    labels = [invariant.label for invariant in Invariant]
    assert len(set(labels)) == len(labels)
    for invariant in Invariant:
        assert f"| `{invariant.label}` | {invariant.severity.value} | {invariant.sentence} |" in text, invariant.label
