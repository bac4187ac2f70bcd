"""Uncommitted work survives what goes wrong around it: full disks, interrupts, power cuts, damage, other processes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pfsmount.errors import Busy, Corrupt, InvalidInput, NoSpace, NotPermitted
from pfsmount.repo import reflog, worktree_files
from pfsmount.repo.journal import Journal, JournalReader, Record, journal_roots
from pfsmount.repo.overlay_data import DataFiles
from pfsmount.repo.overlay_nodes import Node, NodeKind
from pfsmount.repo.ownership import Ownership
from pfsmount.repo.private_worktrees import begin
from pfsmount.repo.removal import delete_branch
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
from pfsmount.repo.worktree_place import worktree_path
from pfsmount.tree.xattrs import VALUE_MAX
from tests.worktrees import at, path, put

BIG = 10_000


@pytest.fixture
def small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a few KB count as large: of them only what is written is copied."""
    monkeypatch.setattr(worktree_files, "COPY_MAX", 1000)


@pytest.fixture
def worktree(store: Store) -> Iterator[Worktree]:
    with Worktree.open(store, "images", "master") as opened:
        yield opened


def read(worktree: Worktree, name: str) -> bytes:
    return worktree.read(at(worktree, name), 0, 1 << 20)


def contents(worktree: Worktree) -> dict[str, bytes]:
    """All files at the root."""
    names = [name for name, _ in worktree.children(worktree.root)]
    return {name.decode(): read(worktree, name.decode()) for name in names}


def reopened(worktree: Worktree, *, own: bool = False) -> Worktree:
    worktree.close()
    return Worktree.open(worktree.store, worktree.repo.name, worktree.branch, worktree.name, own=own)


def big_base(worktree: Worktree) -> Node:
    put(worktree, "big", b"o" * BIG)
    worktree.commit("base")
    return at(worktree, "big")


# Hard links and discarding


@pytest.mark.parametrize("other_kind", [False, True])
def test_discard_of_the_first_of_two_links(worktree: Worktree, other_kind: bool) -> None:
    put(worktree, "b", b"base b")
    if other_kind:
        worktree.make(worktree.root, b"c", NodeKind.SYMLINK, mode=0o777, uid=0, gid=0, target=b"old")
    worktree.commit("base")
    if other_kind:
        worktree.unlink(worktree.root, b"c")
    worktree.link(at(worktree, "b"), worktree.root, b"c")
    if not other_kind:
        worktree.write(at(worktree, "b"), 0, b"PRECIOUS")
    put(worktree, "other", b"hours of work")
    worktree.discard([path("b")])
    shown = contents(worktree)
    assert shown == {"b": b"base b", "c": b"base b" if other_kind else b"PRECIOUS", "other": b"hours of work"}
    with reopened(worktree) as again:
        assert contents(again) == shown
        assert again.commit("all").commit is not None
        assert contents(again) == shown


def test_discard_of_both_links_shows_the_base_again(worktree: Worktree) -> None:
    put(worktree, "b", b"base b")
    worktree.commit("base")
    node = at(worktree, "b")
    worktree.opened(node)
    worktree.link(node, worktree.root, b"c")
    worktree.discard([path("b"), path("c")])
    assert contents(worktree) == {"b": b"base b"}
    assert worktree.is_clean
    assert at(worktree, "b") is node
    worktree.closed(node)


# The turn to the next generation


def test_interrupt_after_the_commit_keeps_what_was_not_committed(
    worktree: Worktree, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(worktree, "a", b"A")
    put(worktree, "b", b"PRECIOUS")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reflog, "append_missing", interrupt)
        with pytest.raises(KeyboardInterrupt):
            worktree.commit("only a", [path("a")])
    assert worktree.head() is not None
    assert worktree.base == worktree.head()
    assert [change.path for change in worktree.changes()] == [path("b")]
    put(worktree, "later", b"L")
    with reopened(worktree) as again:
        assert contents(again) == {"a": b"A", "b": b"PRECIOUS", "later": b"L"}


def test_error_after_the_commit_is_no_failure_of_it(worktree: Worktree, monkeypatch: pytest.MonkeyPatch) -> None:
    put(worktree, "a", b"A")
    put(worktree, "b", b"PRECIOUS")

    def fail(*_: object) -> None:
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(reflog, "append_missing", fail)
    result = worktree.commit("only a", [path("a")])
    assert result.commit is not None
    assert worktree.head() == result.commit.id
    with reopened(worktree) as again:
        assert contents(again) == {"a": b"A", "b": b"PRECIOUS"}


def test_error_before_the_commit_leaves_the_generation(worktree: Worktree, monkeypatch: pytest.MonkeyPatch) -> None:
    put(worktree, "a", b"A")
    put(worktree, "b", b"PRECIOUS")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "publish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            worktree.commit("only a", [path("a")])
    assert [file.name for file in worktree.path.glob("journal.*")] == ["journal.0"]
    put(worktree, "later", b"L")
    with reopened(worktree) as again:
        assert contents(again) == {"a": b"A", "b": b"PRECIOUS", "later": b"L"}


def test_nothing_is_deleted_when_the_index_cannot_tell(worktree: Worktree, monkeypatch: pytest.MonkeyPatch) -> None:
    put(worktree, "a", b"A")
    put(worktree, "b", b"PRECIOUS")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reflog, "append_missing", interrupt)
        patch.setattr(Worktree, "valid_generation", fail)
        with pytest.raises(KeyboardInterrupt):
            worktree.commit("only a", [path("a")])
    with pytest.raises(Exception, match="cannot be told"):
        worktree.make(worktree.root, b"later", NodeKind.FILE, mode=0o644, uid=0, gid=0)
    with reopened(worktree) as again:
        assert contents(again) == {"a": b"A", "b": b"PRECIOUS"}


# Beside an owner


@pytest.mark.parametrize("killed", [False, True])
def test_generation_is_read_again_with_the_lock(
    store: Store, worktree: Worktree, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """An owner commits, and goes away, between the reading of the generation and the lock."""
    put(worktree, "a", b"A")
    put(worktree, "b", b"PRECIOUS")
    worktree.close()
    real = Ownership.take
    meanwhile = [True]

    def once(self: Ownership) -> bool:
        if meanwhile:
            meanwhile.clear()
            with Worktree.open(store, "images", "master", own=True) as owner:
                old = owner.journal_path(owner.generation)
                raw = old.read_bytes()
                owner.commit("a", [path("a")])
            if killed:  # before it deleted the old journal
                old.write_bytes(raw)
        return real(self)

    monkeypatch.setattr(Ownership, "take", once)
    for _ in range(2):
        with Worktree.open(store, "images", "master") as opened:
            assert opened.generation == store.worktree_state("images", "master").generation == 1
            assert [change.path for change in opened.changes()] == [path("b")]
            assert contents(opened) == {"a": b"A", "b": b"PRECIOUS"}


def test_journal_that_goes_while_it_is_opened(
    store: Store, worktree: Worktree, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(worktree, "a", b"A")
    put(worktree, "b", b"B")
    real = JournalReader.__init__
    meanwhile = [lambda: worktree.commit("a", [path("a")])]

    def init(self: JournalReader, file: Path) -> None:
        if meanwhile:
            meanwhile.pop()()
        real(self, file)

    monkeypatch.setattr(JournalReader, "__init__", init)
    with Worktree.open(store, "images", "master") as looking:
        assert looking.generation == worktree.generation == 1
        assert contents(looking) == {"a": b"A", "b": b"B"}


def test_lock_is_given_back_when_loading_fails(
    store: Store, worktree: Worktree, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(worktree, "a", b"A")
    with Worktree.open(store, "images", "master") as looking:
        worktree.close()

        def fail(*_: object) -> None:
            raise OSError(errno.EIO, "broken")

        with monkeypatch.context() as patch:
            patch.setattr(Worktree, "_start_replay", fail)
            with pytest.raises(OSError, match="broken"):
                looking.look()
        assert not looking.owned
        with Worktree.open(store, "images", "master", own=True) as owner:
            assert contents(owner) == {"a": b"A"}
        looking.look()
        assert contents(looking) == {"a": b"A"}


def test_full_disk_while_taking_the_lock(worktree: Worktree, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(NoSpace):
            put(worktree, "a", b"A")
    assert not worktree.owned
    put(worktree, "a", b"A")
    assert contents(worktree) == {"a": b"A"}


# Lines that could not be written


@pytest.fixture
def fail_line(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the next line of a kind not be written."""
    real = Journal.append
    kinds: list[str] = []

    def append(self: Journal, record: Record) -> None:
        if record[0] in kinds:
            kinds.remove(record[0])
            raise NoSpace("the disk is full")
        real(self, record)

    monkeypatch.setattr(Journal, "append", append)
    return kinds.append


@pytest.mark.usefixtures("small_copies")
def test_write_again_after_a_full_disk(worktree: Worktree, fail_line: Callable[[str], None]) -> None:
    node = big_base(worktree)
    worktree.write(node, 0, b"x")
    fail_line("extent")
    with pytest.raises(NoSpace):
        worktree.write(node, 5000, b"NEW")
    assert worktree.read(node, 5000, 3) == b"ooo"
    worktree.write(node, 5000, b"NEW")
    with reopened(worktree) as again:
        assert again.read(at(again, "big"), 5000, 3) == b"NEW"


@pytest.mark.usefixtures("small_copies")
def test_truncate_again_after_a_full_disk(worktree: Worktree, fail_line: Callable[[str], None]) -> None:
    node = big_base(worktree)
    worktree.write(node, 0, b"x")
    fail_line("size")
    with pytest.raises(NoSpace):
        worktree.truncate(node, 1000)
    assert read(worktree, "big") == b"x" + b"o" * (BIG - 1)
    worktree.truncate(node, 1000)
    worktree.truncate(node, 5000)
    expected = b"x" + b"o" * 999 + bytes(4000)
    assert read(worktree, "big") == expected
    with reopened(worktree) as again:
        assert read(again, "big") == expected


@pytest.mark.usefixtures("small_copies")
def test_truncate_to_nothing_again_after_a_full_disk(worktree: Worktree, fail_line: Callable[[str], None]) -> None:
    node = big_base(worktree)
    worktree.write(node, 0, b"x")
    fail_line("whole")
    with pytest.raises(NoSpace):
        worktree.truncate(node, 0)
    assert read(worktree, "big") == b"x" + b"o" * (BIG - 1)
    worktree.truncate(node, 0)
    worktree.write(node, 0, b"HELLO")
    with reopened(worktree) as again:
        assert read(again, "big") == b"HELLO"


@pytest.mark.parametrize("kind", ["size", "whole"])
def test_first_write_again_after_a_full_disk(
    worktree: Worktree, fail_line: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    node = big_base(worktree)
    if kind == "size":
        monkeypatch.setattr(worktree_files, "COPY_MAX", 1000)
    fail_line(kind)
    with pytest.raises(NoSpace):
        worktree.write(node, 0, b"NEW")
    assert read(worktree, "big") == b"o" * BIG
    worktree.write(node, 0, b"NEW")
    with reopened(worktree) as again:
        assert read(again, "big") == b"NEW" + b"o" * (BIG - 3)


def test_attributes_stay_after_a_full_disk(worktree: Worktree, fail_line: Callable[[str], None]) -> None:
    node = put(worktree, "a", b"A")
    before = worktree.attributes(node)
    fail_line("attr")
    with pytest.raises(NoSpace):
        worktree.set_attributes(node, mode=0o600, mtime_ns=5)
    assert worktree.attributes(node) == before


# Damage


def twenty(worktree: Worktree) -> dict[str, bytes]:
    put(worktree, "base", b"base")
    worktree.commit("base")
    for number in range(20):
        put(worktree, f"f{number}", b"data %d" % number)
    worktree.fsync()
    worktree.close()
    return {"base": b"base", **{f"f{number}": b"data %d" % number for number in range(20)}}


def on_disk(worktree: Worktree) -> dict[str, bytes]:
    return {
        str(file.relative_to(worktree.path)): file.read_bytes()
        for file in worktree.path.rglob("*")
        if file.is_file() and file.name != "lock"
    }


@pytest.mark.parametrize("where", [b'"journal"', b'"f3"', b'"f18"'])
def test_damaged_journal_is_refused_and_nothing_deleted(store: Store, worktree: Worktree, where: bytes) -> None:
    expected = twenty(worktree)
    file = worktree.journal_path(1)
    raw = bytearray(file.read_bytes())
    offset = raw.index(where) + 2
    raw[offset] ^= 1
    file.write_bytes(raw)
    before = on_disk(worktree)
    for own in (False, True):
        with pytest.raises(Corrupt, match="nothing was changed or deleted"):
            Worktree.open(store, "images", "master", own=own)
    with pytest.raises(Corrupt):
        journal_roots(file)
    assert on_disk(worktree) == before
    raw[offset] ^= 1
    file.write_bytes(raw)
    with Worktree.open(store, "images", "master") as repaired:
        assert contents(repaired) == expected


def test_damage_behind_a_removed_file_costs_nothing(store: Store, worktree: Worktree) -> None:
    put(worktree, "a", b"A")
    worktree.unlink(worktree.root, b"a")
    put(worktree, "b", b"B")
    put(worktree, "c", b"C")
    worktree.close()
    (worktree.path / "data" / "2").write_bytes(b"A")
    file = worktree.journal_path(0)
    raw = bytearray(file.read_bytes())
    raw[raw.index(b'"b"') + 1] ^= 1
    file.write_bytes(raw)
    before = on_disk(worktree)
    with pytest.raises(Corrupt):
        Worktree.open(store, "images", "master")
    assert on_disk(worktree) == before


def test_mount_that_takes_over_a_damaged_journal(store: Store, worktree: Worktree) -> None:
    put(worktree, "a", b"A")
    put(worktree, "b", b"B")
    with Worktree.open(store, "images", "master") as looking:
        worktree.close()
        file = worktree.journal_path(0)
        raw = bytearray(file.read_bytes())
        raw[raw.index(b'"a"') + 1] ^= 1
        file.write_bytes(raw)
        before = on_disk(worktree)
        for _ in range(2):
            with pytest.raises(Corrupt):
                looking.look()
            assert not looking.owned
        with pytest.raises(Corrupt):
            put(looking, "c", b"C")
        assert on_disk(worktree) == before


def test_torn_end_is_kept_beside_the_journal(store: Store, worktree: Worktree) -> None:
    expected = twenty(worktree)
    file = worktree.journal_path(1)
    whole = file.read_bytes()
    os.truncate(file, len(whole) - 5)
    with Worktree.open(store, "images", "master") as opened:
        del expected["f19"]
        assert contents(opened) == expected
        assert file.with_name("journal.1.torn").read_bytes() == whole.splitlines(keepends=True)[-1][:-5]
        assert any(data == b"data 19" for data in on_disk(opened).values())
        put(opened, "later", b"L")
        with reopened(opened) as again:
            assert contents(again) == {**expected, "later": b"L"}
            assert file.with_name("journal.1.torn").exists()
            again.commit("all")
        assert not list(opened.path.glob("journal.*"))


def test_lines_of_which_a_power_cut_left_only_the_later_ones(store: Store, worktree: Worktree) -> None:
    """What was not fsynced may lack a block in its middle, which reads as zeros: it ends there, and is no damage."""
    expected = twenty(worktree)
    file = worktree.journal_path(1)
    whole = file.read_bytes()
    at = whole.index(b'"f7"')
    file.write_bytes(whole[:at] + bytes(512) + whole[at + 512 :])
    with Worktree.open(store, "images", "master") as opened:
        assert contents(opened) == {"base": b"base", **{f"f{number}": expected[f"f{number}"] for number in range(7)}}
        assert file.with_name("journal.1.torn").read_bytes().endswith(whole[at + 512 :])
        put(opened, "later", b"L")
        with reopened(opened) as again:
            assert contents(again)["later"] == b"L"


@pytest.mark.parametrize("left", [0, 7])
def test_torn_first_line_means_nothing_was_written(store: Store, worktree: Worktree, left: int) -> None:
    put(worktree, "a", b"A")
    worktree.close()
    os.truncate(worktree.journal_path(0), left)
    with Worktree.open(store, "images", "master") as opened:
        assert contents(opened) == {}
        assert not opened.owned
        put(opened, "b", b"B")
        with reopened(opened) as again:
            assert contents(again) == {"b": b"B"}


def test_lines_written_meanwhile_are_no_damage(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "journal.0", None)
    reader = JournalReader(journal.path)
    assert len(list(reader.records())) == 1
    journal.append(["whole", 2])
    journal.append(["whole", 3])
    assert not reader.is_damaged()
    reader.close()
    journal.close()


# Reading


@pytest.mark.usefixtures("small_copies")
@pytest.mark.parametrize("kind", ["whole", "partial"])
def test_short_reads_are_gone_on_with(worktree: Worktree, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    node = big_base(worktree) if kind == "partial" else put(worktree, "big", b"o" * BIG)
    worktree.write(node, 1000, b"N" * 8000)
    assert node.change is not None
    file = os.fstat(worktree.data.fd(node.change.number)).st_ino
    real = os.pread

    def short(fd: int, size: int, offset: int) -> bytes:
        return real(fd, min(size, 100) if os.fstat(fd).st_ino == file else size, offset)

    monkeypatch.setattr(os, "pread", short)
    assert read(worktree, "big") == b"o" * 1000 + b"N" * 8000 + b"o" * 1000


# Deleting branches


def test_named_worktrees_keep_their_branch(store: Store) -> None:
    store.create_branch("images", "b", None)
    begin(store, "images", "b", "mine")
    with Worktree.open(store, "images", "b", "mine") as mine:
        put(mine, "a", b"A")
        mine.commit("a")
        put(mine, "a", b"PRECIOUS")
        with pytest.raises(Busy):
            delete_branch(store, "images", "b", force=True)
    with pytest.raises(NotPermitted, match=r"uncommitted changes, in the private worktree \+mine"):
        delete_branch(store, "images", "b")
    with Worktree.open(store, "images", "b", "mine") as mine:
        assert contents(mine) == {"a": b"PRECIOUS"}
    delete_branch(store, "images", "b", force=True)
    assert not mine.path.exists()


def test_only_the_branch_itself_is_deleted(store: Store) -> None:
    for branch in ("b", "b2", "b-x"):
        store.create_branch("images", branch, None)
    for branch in ("b2", "b-x"):
        with Worktree.open(store, "images", branch) as other:
            put(other, "a", b"A")
    delete_branch(store, "images", "b")
    for branch in ("b2", "b-x"):
        with Worktree.open(store, "images", branch) as other:
            assert contents(other) == {"a": b"A"}


def test_long_names(store: Store) -> None:
    """Percent-encoded they would be longer than a file name may be."""
    branches = ["ü" * 63, "ü" * 62 + "ö", "ü" * 60]
    names = ["", "x" * 60, "ö" * 60, "ö" * 59 + "ü"]
    found = {
        worktree_path(store.path, store.repo("images"), branch, name).name for branch in branches for name in names
    }
    assert len(found) == len(branches) * len(names)
    assert max(len(leaf) for leaf in found) <= 255
    store.create_branch("images", branches[0], None)
    for name in names[:3]:
        if name:
            begin(store, "images", branches[0], name)
        with Worktree.open(store, "images", branches[0], name) as opened:
            put(opened, "a", name.encode())
    for name in names[:3]:
        with Worktree.open(store, "images", branches[0], name) as opened:
            assert contents(opened) == {"a": name.encode()}
    with pytest.raises(NotPermitted):
        delete_branch(store, "images", branches[0])
    delete_branch(store, "images", branches[0], force=True)
    assert list(opened.path.parent.iterdir()) == []


def test_short_names_are_as_they_were(store: Store) -> None:
    info = store.repo("images")
    assert worktree_path(store.path, info, "a/b+c", "n m").name == "a%2Fb%2Bc+n%20m"
    assert worktree_path(store.path, info, "é" * 33).name == "%C3%A9" * 33


# Descriptors


def test_pinned_descriptors_outlive_close(tmp_path: Path) -> None:
    data = DataFiles(tmp_path / "data")
    os.pwrite(data.create(5), b"first", 0)
    first = data.pin(5)
    data.close()
    second = data.pin(5)
    assert first != second
    data.close()
    data.unpin(5)
    assert (os.pread(first, 9, 0), os.pread(second, 9, 0)) == (b"first", b"first")
    data.unpin(5)
    for fd in (first, second):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    data.close()


def test_read_goes_on_when_an_owner_goes_on(store: Store, worktree: Worktree) -> None:
    put(worktree, "a", b"secret")
    with Worktree.open(store, "images", "master") as looking:
        with looking.reading(at(looking, "a"), None, 0, 6) as reading:
            looking.reload()
            assert reading.run() == b"secret"
        assert contents(looking) == {"a": b"secret"}


def test_open_file_without_a_name_keeps_its_data_over_a_commit(worktree: Worktree) -> None:
    put(worktree, "keep", b"k")
    node = put(worktree, "scratch", b"scratch data")
    worktree.opened(node)
    worktree.unlink(worktree.root, b"scratch")
    assert worktree.commit("c").commit is not None
    assert worktree.read(node, 0, 100) == b"scratch data"
    put(worktree, "other", b"o")
    worktree.write(node, 0, b"SCRATCH")
    assert worktree.read(node, 0, 100) == b"SCRATCH data"
    worktree.closed(node)


# Following


def test_directory_that_both_sides_made(store: Store, worktree: Worktree) -> None:
    node = worktree.make(worktree.root, b"d", NodeKind.DIRECTORY, mode=0o700, uid=5, gid=5)
    mine = worktree.make(node, b"mine", NodeKind.FILE, mode=0o644, uid=0, gid=0)
    worktree.write(mine, 0, b"1")
    begin(store, "images", "master", "other")
    with Worktree.open(store, "images", "master", "other") as other:
        theirs = other.make(other.root, b"d", NodeKind.DIRECTORY, mode=0o755, uid=0, gid=0)
        other.make(theirs, b"theirs", NodeKind.FILE, mode=0o644, uid=0, gid=0)
        other.commit("theirs")
    worktree.follow()
    assert worktree.conflicts == ()
    shown = worktree.attributes(at(worktree, "d"))
    assert (shown.mode, shown.uid, shown.gid) == (0o700, 5, 5)
    with reopened(worktree) as again:
        found = again.attributes(at(again, "d"))
        assert (found.mode, found.uid, found.gid) == (0o700, 5, 5)
        assert again.read(at(again, "d/mine"), 0, 9) == b"1"
        assert again.find(path("d/theirs")) is not None


# Power cuts


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was made durable, in order, by the last part of its path."""
    order: list[str] = []

    def noting(real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(fd: int) -> None:
            order.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
            real(fd)

        return sync

    monkeypatch.setattr(os, "fsync", noting(os.fsync))
    monkeypatch.setattr(os, "fdatasync", noting(os.fdatasync))
    return order


def number_of(node: Node) -> str:
    assert node.change is not None
    return str(node.change.number)


@pytest.mark.parametrize("large", [False, True])
def test_lines_about_other_files_wait_for_their_data(
    worktree: Worktree, synced: list[str], monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    big = big_base(worktree)
    put(worktree, "base", b"base")
    worktree.commit("base")
    if large:
        monkeypatch.setattr(worktree_files, "COPY_MAX", 1000)
    worktree.write(big, 5, b"new")
    node = put(worktree, "a", b"A")
    synced.clear()
    worktree.fsync(node)
    assert synced.index(number_of(big)) < synced.index("journal.2")
    assert synced.index("data") < synced.index("journal.2")
    synced.clear()
    worktree.write(big, 5, b"NEW")
    worktree.fsync(node)
    assert number_of(big) not in synced  # what it shows was durable before
    if large:
        worktree.write(big, 50, b"NEW")
        worktree.fsync(node)
        assert number_of(big) in synced


def test_file_moved_over_another_is_durable_first(worktree: Worktree, synced: list[str]) -> None:
    big_base(worktree)
    node = put(worktree, "new", b"new")
    worktree.move(worktree.root, b"new", worktree.root, b"big")
    synced.clear()
    worktree.fsync()
    assert synced.index(number_of(node)) < synced.index("journal.1")


def test_turn_waits_for_the_data_of_what_stays(worktree: Worktree, synced: list[str]) -> None:
    big = big_base(worktree)
    worktree.write(big, 5, b"new")
    node = put(worktree, "a", b"A")
    synced.clear()
    worktree.commit("a", [path("a")])
    assert synced.index(number_of(big)) < synced.index("journal.2")
    assert node.change is None


def test_second_thread_waits_for_the_names_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataFiles(tmp_path / "data")
    data.create(1)
    real = os.fsync
    calls = []

    def sync(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 1:  # another thread, while this one is at it
            data.sync_names()
            assert len(calls) > 1
        real(fd)

    monkeypatch.setattr(os, "fsync", sync)
    data.sync_names()
    calls.clear()
    data.sync_names()
    assert calls == []
    data.close()


# Limits


def test_attribute_that_no_commit_would_take_is_refused(worktree: Worktree) -> None:
    node = put(worktree, "a", b"A")
    for name, value in ((b"user.x", b"v" * (VALUE_MAX + 1)), (b"user." + b"x" * 251, b"v")):
        with pytest.raises(InvalidInput):
            worktree.set_xattr(node, name, value)
    worktree.set_xattr(node, b"user." + b"x" * 250, b"v" * VALUE_MAX)
    assert worktree.commit("a").commit is not None
