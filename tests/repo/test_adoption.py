"""Large files of a worktree that become segments: what is on the disk, and what the worktree shows afterwards."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pfsmount.config import StoreSettings
from pfsmount.errors import Conflict, NoSpace
from pfsmount.objects.adoption import segments_of
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.index import Table
from pfsmount.objects.segment import SegmentKind, SegmentRow, segment_path
from pfsmount.repo import fsck
from pfsmount.repo.collection import Collection, collecting
from pfsmount.repo.rebuild import rebuild_index
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
from pfsmount.tree.content import open_content
from pfsmount.tree.directory import find
from tests.repo.test_store import put as put_beside
from tests.worktrees import at, path, put

MIB = 1 << 20
SETTINGS = StoreSettings(adopt_bytes=MIB)


@pytest.fixture
def opened(store_path: Path) -> Iterator[Store]:
    with Store.open(store_path, SETTINGS, author="tester@here") as store:
        store.create_repo("images")
        yield store


@pytest.fixture
def worktree(opened: Store) -> Iterator[Worktree]:
    with Worktree.open(opened, "images", "master", own=True) as worktree:
        yield worktree


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def committed(store: Store, name: str) -> bytes:
    """What the head has, verified piece by piece."""
    head = store.head("images", "master")
    assert head is not None
    entry = find(store.objects, store.read_commit(head).tree, path(name))
    assert entry is not None, name
    data = open_content(store.objects, entry).read(0, entry.size)
    assert hash_bytes(data) == entry.id
    return data


def segments(store: Store) -> dict[int, SegmentRow]:
    """All data segments that the index knows."""
    with store.objects.index.read() as txn:
        rows = {int.from_bytes(key, "big"): SegmentRow.decode(raw) for key, raw in txn.scan(Table.SEGMENTS)}
    return {number: row for number, row in rows.items() if row.kind is SegmentKind.DATA}


def taken(store: Store) -> int:
    """Bytes on disk of segments and worktrees."""
    seen = {}
    for file in (*store.path.glob("segments/*.data"), *store.path.glob("worktrees/*/*/data/*")):
        stat = file.stat()
        seen[stat.st_ino] = stat.st_blocks * 512
    return sum(seen.values())


def data_file(worktree: Worktree, name: str) -> Path:
    change = at(worktree, name).change
    assert change is not None
    return worktree.path / "data" / str(change.number)


def assert_clean(store: Store) -> None:
    report = fsck.check(store, data=True)
    assert not [*report.findings], [str(one) for one in report.findings]


@pytest.mark.parametrize("size", [MIB, MIB + 1, 4 * MIB, 4 * MIB + 500, 9 * MIB + 4096, 5 * MIB - 1])
def test_a_large_new_file_becomes_a_segment(opened: Store, worktree: Worktree, size: int) -> None:
    """The inode that was written to is the segment; it is sealed; nothing is left of the data file."""
    data = noise(size)
    put(worktree, "large", data)
    inode = data_file(worktree, "large").stat().st_ino
    before = taken(opened)
    assert worktree.commit("large").commit is not None
    assert committed(opened, "large") == data
    (number,) = segments_of(opened.objects.directory, inode)
    assert segments(opened)[number].sealed
    assert not list((worktree.path / "data").iterdir())
    assert taken(opened) <= before + 64 * 1024
    assert worktree.read(at(worktree, "large"), 0, size) == data
    assert_clean(opened)


def test_a_smaller_file_is_copied(opened: Store, worktree: Worktree) -> None:
    put(worktree, "file", noise(MIB - 1))
    inode = data_file(worktree, "file").stat().st_ino
    worktree.commit("smaller")
    assert not segments_of(opened.objects.directory, inode)
    assert committed(opened, "file") == noise(MIB - 1)


def test_what_is_stored_already_is_not_adopted(opened: Store, worktree: Worktree) -> None:
    """The same bytes again, in another file, in two files of one commit, or repeated in one file, take no more space."""
    data = noise(9 * MIB)
    put(worktree, "first", data)
    worktree.commit("first")
    before = taken(opened)
    put(worktree, "second", data)
    worktree.commit("second")
    put(worktree, "third", bytes([7]) * (12 * MIB))
    put(worktree, "fourth", bytes([7]) * (12 * MIB))
    worktree.commit("third")
    assert taken(opened) <= before + 5 * MIB
    assert committed(opened, "second") == data
    assert committed(opened, "fourth") == bytes([7]) * (12 * MIB)
    assert_clean(opened)


def test_a_new_version_that_has_much_of_the_old_one_shares_it(opened: Store, worktree: Worktree) -> None:
    data = noise(12 * MIB)
    put(worktree, "large", data)
    worktree.commit("first")
    before = taken(opened)
    put(worktree, "large", b"some bytes in front" + data)
    worktree.commit("second")
    assert committed(opened, "large") == b"some bytes in front" + data
    assert taken(opened) < before + 6 * MIB
    put(worktree, "large", noise(12 * MIB, 2))
    inode = data_file(worktree, "large").stat().st_ino
    worktree.commit("another")
    assert segments_of(opened.objects.directory, inode), "nothing in common: adopted"
    assert_clean(opened)


def test_what_is_appended_to_a_version_is_copied(opened: Store, worktree: Worktree) -> None:
    """The data file has only what was appended, so it is no segment."""
    data = noise(9 * MIB)
    put(worktree, "large", data)
    worktree.commit("first")
    before = taken(opened)
    worktree.write(at(worktree, "large"), len(data), noise(9 * MIB, 2))
    worktree.commit("longer")
    assert committed(opened, "large") == data + noise(9 * MIB, 2)
    assert taken(opened) < before + 10 * MIB
    assert_clean(opened)


def test_holes_stay_holes(opened: Store, worktree: Worktree) -> None:
    """A sparse file is adopted with its holes, at its end too."""
    node = put(worktree, "sparse", b"")
    worktree.write(node, 8 * MIB, noise(5 * MIB))
    worktree.write(node, 64 * MIB, noise(3 * MIB + 7, 2))
    worktree.truncate(node, 80 * MIB)
    inode = data_file(worktree, "sparse").stat().st_ino
    before = taken(opened)
    worktree.commit("sparse")
    data = bytes(8 * MIB) + noise(5 * MIB)
    data = data.ljust(64 * MIB, b"\0") + noise(3 * MIB + 7, 2)
    assert committed(opened, "sparse") == data.ljust(80 * MIB, b"\0")
    assert segments_of(opened.objects.directory, inode)
    assert taken(opened) <= before + 64 * 1024
    assert_clean(opened)


def collect(store: Store) -> None:
    with collecting(store):
        collection = Collection(store, 0)
        collection.plan()
        collection.carry_out()


def test_gc_gives_back_what_nothing_needs_of_an_adopted_segment(opened: Store) -> None:
    """Pieces that another version took over stay, the rest becomes holes; a segment without any goes."""
    data = noise(12 * MIB)
    opened.create_branch("images", "dev", None)
    with Worktree.open(opened, "images", "dev", own=True) as worktree:
        put(worktree, "first", data)
        put(worktree, "second", noise(5 * MIB, 2))
        first = data_file(worktree, "first").stat().st_ino
        second = data_file(worktree, "second").stat().st_ino
        worktree.commit("both")
    put_beside(opened, "part", data[: 5 * MIB])
    opened.delete_branch("images", "dev")
    before = taken(opened)
    collect(opened)
    assert not segments_of(opened.objects.directory, second)
    (number,) = segments_of(opened.objects.directory, first)
    assert segment_path(opened.objects.directory, number, SegmentKind.DATA).stat().st_blocks * 512 < 5 * MIB
    assert taken(opened) < before - 12 * MIB
    assert_clean(opened)


def test_two_files_and_small_ones_in_one_commit(opened: Store, worktree: Worktree) -> None:
    for i in range(3):
        put(worktree, f"large-{i}", noise(5 * MIB, i))
        put(worktree, f"small-{i}", noise(5000, i))
        put(worktree, f"tiny-{i}", b"%d" % i)
    worktree.commit("all")
    assert sum(row.sealed for row in segments(opened).values()) == 3
    for i in range(3):
        assert committed(opened, f"large-{i}") == noise(5 * MIB, i)
        assert committed(opened, f"small-{i}") == noise(5000, i)
    assert_clean(opened)


@pytest.mark.parametrize("change", ["write", "append", "truncate", "empty", "rename", "unlink"])
def test_a_change_right_after_the_commit_leaves_the_version_alone(
    opened: Store, worktree: Worktree, change: str
) -> None:
    data = noise(9 * MIB)
    node = put(worktree, "large", data)
    worktree.opened(node)
    worktree.commit("large")
    match change:
        case "write":
            worktree.write(node, 5 * MIB, b"other")
            now = data[: 5 * MIB] + b"other" + data[5 * MIB + 5 :]
        case "append":
            worktree.write(node, len(data), b"more")
            now = data + b"more"
        case "truncate":
            worktree.truncate(node, 3 * MIB)
            now = data[: 3 * MIB]
        case "empty":
            worktree.truncate(node, 0)
            now = b""
        case "rename":
            worktree.move(worktree.root, b"large", worktree.root, b"other", 0)
            worktree.write(node, 0, b"x")
            now = b"x" + data[1:]
        case _:
            worktree.unlink(worktree.root, b"large")
            worktree.write(node, 0, b"x")
            now = b"x" + data[1:]
    assert worktree.read(node, 0, 2 * len(data)) == now
    assert committed(opened, "large") == data
    worktree.closed(node)
    assert_clean(opened)


def _during(worktree: Worktree, monkeypatch: pytest.MonkeyPatch, act: object) -> None:
    """Let something happen between the cut of the next commit and its end."""
    ingest = worktree.ingest

    def then(*arguments: object, **more: object) -> object:
        root = ingest(*arguments, **more)  # type: ignore[arg-type]
        assert callable(act)
        act()
        return root

    monkeypatch.setattr(worktree, "ingest", then)


@pytest.mark.parametrize("what", ["chmod", "rename", "unlink", "link", "utime"])
@pytest.mark.parametrize("again", [False, True], ids=["going on", "opened again"])
def test_names_and_attributes_changed_while_it_is_committed(
    opened: Store, worktree: Worktree, what: str, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stay uncommitted, on top of the file that is now the version's; a write to it makes a data file anew."""
    data = noise(5 * MIB)
    node = put(worktree, "large", data)
    worktree.opened(node)

    def act() -> None:
        match what:
            case "chmod":
                worktree.set_attributes(node, mode=0o600)
            case "utime":
                worktree.set_attributes(node, mtime_ns=5)
            case "rename":
                worktree.move(worktree.root, b"large", worktree.root, b"other", 0)
            case "link":
                worktree.link(node, worktree.root, b"other")
            case _:
                worktree.unlink(worktree.root, b"large")

    _during(worktree, monkeypatch, act)
    assert worktree.commit("large").commit is not None
    monkeypatch.undo()
    assert committed(opened, "large") == data
    assert_clean(opened)
    name = "other" if what == "rename" else "large"
    owner = worktree
    if again:
        worktree.close()
        owner = Worktree.open(opened, "images", "master", own=True)
    try:
        if what != "unlink":
            node = at(owner, name)
        elif again:
            assert owner.find(path("large")) is None
            return
        shown = owner.attributes(node)
        assert shown.size == len(data)
        assert shown.mode == (0o600 if what == "chmod" else 0o644)
        assert (shown.mtime_ns == 5) is (what == "utime")
        assert owner.read(node, 0, 2 * len(data)) == data
        owner.write(node, 100, b"changed")
        now = data[:100] + b"changed" + data[107:]
        assert owner.read(node, 0, 2 * len(data)) == now
        assert committed(opened, "large") == data
        owner.commit("again")
        if what != "unlink":
            assert committed(opened, name) == now
        assert_clean(opened)
    finally:
        if again:
            owner.close()


def test_hard_links_of_which_one_is_committed(opened: Store, worktree: Worktree) -> None:
    data = noise(5 * MIB)
    node = put(worktree, "one", data)
    worktree.link(node, worktree.root, b"two")
    worktree.commit("one of them", [path("one")])
    assert committed(opened, "one") == data
    assert worktree.read(at(worktree, "two"), 0, len(data)) == data
    worktree.write(at(worktree, "two"), 0, b"changed")
    assert committed(opened, "one") == data
    worktree.commit("the other")
    assert committed(opened, "two") == b"changed" + data[7:]
    assert committed(opened, "one") == data
    assert_clean(opened)


def test_a_commit_that_comes_to_nothing_leaves_the_file(
    opened: Store, worktree: Worktree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head moved: the file is uncommitted as before, then committed on top of the new head. No segment is left of the first attempt."""
    data = noise(5 * MIB)
    put(worktree, "large", data)
    moved = iter([True])

    def act() -> None:
        if next(moved, False):
            put_beside(opened, "beside", b"beside")

    _during(worktree, monkeypatch, act)
    assert worktree.commit("large").commit is not None
    assert committed(opened, "large") == data
    assert committed(opened, "beside") == b"beside"
    assert sum(row.sealed for row in segments(opened).values()) == 1
    assert_clean(opened)


def test_a_conflict_gives_the_file_back(opened: Store, worktree: Worktree, monkeypatch: pytest.MonkeyPatch) -> None:
    data = noise(5 * MIB)
    put(worktree, "large", data)
    inode = data_file(worktree, "large").stat().st_ino
    _during(worktree, monkeypatch, lambda: put_beside(opened, "large", b"theirs"))
    with pytest.raises(Conflict):
        worktree.commit("large")
    assert not segments_of(opened.objects.directory, inode)
    assert not [row for row in segments(opened).values() if not row.end]
    worktree.write(at(worktree, "large"), 0, b"goes on")
    assert worktree.read(at(worktree, "large"), 0, len(data)) == b"goes on" + data[7:]
    assert_clean(opened)


@pytest.mark.parametrize("fails", ["link", "publish", "sync"])
def test_an_error_gives_the_file_back(
    opened: Store, worktree: Worktree, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise NoSpace("no space left") if fails == "publish" else OSError(28, "No space left on device")

    data = noise(5 * MIB)
    put(worktree, "large", data)
    inode = data_file(worktree, "large").stat().st_ino
    with monkeypatch.context() as patch:
        match fails:
            case "link":
                patch.setattr(os, "link", no_space)
            case "sync":
                patch.setattr(os, "fdatasync", no_space)
            case _:
                patch.setattr(opened, "publish", no_space)
        with pytest.raises(NoSpace):
            worktree.commit("large")
    assert not segments_of(opened.objects.directory, inode)
    assert_clean(opened)
    worktree.write(at(worktree, "large"), 0, b"goes on")
    assert worktree.commit("again").commit is not None
    assert committed(opened, "large") == b"goes on" + data[7:]
    assert_clean(opened)


def test_where_a_file_can_have_no_second_name_it_is_copied(
    opened: Store, worktree: Worktree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    put(worktree, "large", noise(5 * MIB))
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        worktree.commit("large")
    assert committed(opened, "large") == noise(5 * MIB)
    assert_clean(opened)


def test_after_a_failed_fsync_nothing_is_adopted(opened: Store, worktree: Worktree) -> None:
    """The kernel reports a lost page once; the copy reads and writes all again."""
    node = put(worktree, "large", noise(5 * MIB))
    inode = data_file(worktree, "large").stat().st_ino
    fd = os.open("/proc/self/status", os.O_RDONLY)
    with suppress(OSError):
        worktree.sync_now([fd])  # cannot be synced
    os.close(fd)
    assert worktree.data.sync_failed
    worktree.fsync(node)
    worktree.commit("large")
    assert not segments_of(opened.objects.directory, inode)
    assert committed(opened, "large") == noise(5 * MIB)


@pytest.mark.parametrize("then", ["nothing", "gc", "rebuild"])
def test_a_process_that_dies_while_it_adopts(
    opened: Store, store_path: Path, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is uncommitted and can be written to; what it left of a segment goes, or is never written to."""
    data = noise(5 * MIB)
    worktree = Worktree.open(opened, "images", "master", own=True)
    put(worktree, "large", data)
    file = data_file(worktree, "large")
    inode = file.stat().st_ino
    cut = worktree.cut()
    batch = opened.objects.batch()
    worktree.ingest(cut, batch)
    batch.prepare()
    for writer in batch._writers.values():  # as a kill leaves it: no lock, no hold, nothing given back
        writer.close()
    assert batch._hold is not None
    batch._hold.close()
    worktree.close()
    assert file.stat().st_nlink == 2
    (number,) = segments_of(opened.objects.directory, inode)
    assert not segments(opened)[number].end
    assert fsck.check(opened, data=True).clean
    opened.close()
    if then == "rebuild":
        (store_path / "index" / "data.mdb").unlink()
        rebuild_index(store_path)
    with Store.open(store_path, SETTINGS, author="tester@here") as store:
        if then == "gc":
            collect(store)
            assert file.stat().st_nlink == 1
        put_beside(store, "beside", noise(20_000))  # nobody appends to it
        assert file.stat().st_size == len(data)
        with Worktree.open(store, "images", "master", own=True) as owner:
            assert file.stat().st_nlink == 1
            owner.write(at(owner, "large"), 0, b"goes on")
            assert owner.read(at(owner, "large"), 0, len(data)) == b"goes on" + data[7:]
            assert_clean(store)
            owner.commit("large")
        assert committed(store, "large") == b"goes on" + data[7:]
        assert committed(store, "beside") == noise(20_000)
        collect(store)
        assert committed(store, "large") == b"goes on" + data[7:]
        assert_clean(store)
    (store_path / "index" / "data.mdb").unlink()
    assert not rebuild_index(store_path).problems
    with Store.open(store_path, SETTINGS) as store:
        assert committed(store, "large") == b"goes on" + data[7:]
        assert fsck.check(store, data=True).clean


def test_gc_leaves_alone_what_a_living_process_adopts(
    opened: Store, worktree: Worktree, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(worktree, "large", noise(5 * MIB))
    _during(worktree, monkeypatch, lambda: collect(opened))
    assert worktree.commit("large").commit is not None
    assert committed(opened, "large") == noise(5 * MIB)
    assert_clean(opened)


def test_the_index_is_rebuilt_with_adopted_segments(opened: Store, worktree: Worktree, store_path: Path) -> None:
    put(worktree, "large", noise(9 * MIB + 5))
    worktree.commit("large")
    worktree.close()
    opened.close()
    (store_path / "index" / "data.mdb").unlink()
    rebuild_index(store_path)
    with Store.open(store_path, SETTINGS) as store:
        assert committed(store, "large") == noise(9 * MIB + 5)
        assert_clean(store)
