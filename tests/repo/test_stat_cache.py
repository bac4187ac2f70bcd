"""A file that has not changed is not read again, and one that has always is."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pfsmount.ids import EntryName
from pfsmount.objects.index import Index, Table
from pfsmount.repo import local_files, local_steps, stat_cache
from pfsmount.repo.ingest import put
from pfsmount.repo.store import Store
from pfsmount.tree.directory import find


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    Store.create(tmp_path / "store")
    with Store.open(tmp_path / "store", author="tester@here") as store:
        store.create_repo("images")
        yield store


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of files that count as old enough at once, wherever they lie."""
    monkeypatch.setattr(stat_cache, "_AGE_NS", -(1 << 62))
    monkeypatch.setattr(stat_cache, "_WORTH_FILES", 1)
    monkeypatch.setattr(stat_cache, "_filesystem_of", lambda fd: "ext4")
    path = tmp_path / "source"
    path.mkdir()
    for i in range(20):
        (path / f"f{i:02}").write_bytes(b"%d" % i * 100)
    (path / "empty").touch()
    return path


@contextmanager
def cache_of(store: Store) -> Iterator[Index]:
    """The cache itself."""
    (store.path / "cache").mkdir(exist_ok=True)
    index = Index(store.path / "cache", 1 << 30, (Table.STATS,))
    yield index
    index.close()


def put_tree(store: Store, source: Path, *, cache: bool = True) -> dict[str, bytes]:
    """Put it and return what the commit then has, by name."""
    put(store, [os.fsencode(source)], "images", "master", (), into=False, message="m", origin={}, cache=cache)
    head = store.head("images", "master")
    assert head is not None
    tree = store.read_commit(head).tree
    found = {}
    for path in source.iterdir():
        entry = find(store.objects, tree, (EntryName(os.fsencode(path.name)),))
        assert entry is not None
        found[path.name] = store.objects.get(entry.id) if entry.size else b""
    return found


def reads(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The names of the files that are read from now on."""
    names: list[bytes] = []
    read = local_files._Walk._read_file

    def noted(self: local_files._Walk, run: local_steps.Run, name: bytes) -> None:
        names.append(name)
        read(self, run, name)

    monkeypatch.setattr(local_files._Walk, "_read_file", noted)
    return names


def test_unchanged_files_are_not_read(store: Store, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = put_tree(store, source)
    head = store.head("images", "master")
    names = reads(monkeypatch)
    assert put_tree(store, source) == first
    assert names == []
    assert store.head("images", "master") == head
    put_tree(store, source, cache=False)
    assert len(names) == 21


def test_changed_files_are_read(store: Store, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Size and mtime as they were: the ctime tells."""
    put_tree(store, source)
    before = (source / "f07").stat()
    (source / "f07").write_bytes(b"x" * before.st_size)
    os.utime(source / "f07", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(source / "f08", source / "f09")
    (source / "f08").write_bytes(b"new")
    names = reads(monkeypatch)
    found = put_tree(store, source)
    assert found["f07"] == b"x" * before.st_size
    assert found["f09"] == b"8" * 100
    assert found["f08"] == b"new"
    assert {b"f07", b"f08"} <= set(names) <= {b"f07", b"f08", b"f09"}


def test_modes_and_xattrs_are_never_taken_from_the_cache(store: Store, source: Path) -> None:
    put_tree(store, source)
    (source / "f03").chmod(0o700)
    os.setxattr(source / "f04", "user.label", b"cat")
    put_tree(store, source)
    head = store.head("images", "master")
    assert head is not None
    tree = store.read_commit(head).tree
    with_mode = find(store.objects, tree, (EntryName(b"f03"),))
    with_xattr = find(store.objects, tree, (EntryName(b"f04"),))
    assert with_mode is not None
    assert with_mode.mode == 0o700
    assert with_xattr is not None
    assert with_xattr.xattrs


def test_a_content_that_the_store_does_not_have_is_read(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache may say what it likes."""
    put_tree(store, source)
    with cache_of(store) as index, index.write() as txn:
        for key, value in list(txn.scan(Table.STATS)):
            txn.put(Table.STATS, key, value[:-32] + bytes(31) + b"\1")
    names = reads(monkeypatch)
    assert put_tree(store, source)["f05"] == b"5" * 100
    assert b"f05" in names


def test_young_files_are_not_remembered(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write through a mapping to a page that is dirty already changes no times; such a file is less than a minute old."""
    monkeypatch.setattr(stat_cache, "_WORTH_FILES", 1)
    monkeypatch.setattr(stat_cache, "_filesystem_of", lambda fd: "ext4")
    source = tmp_path / "source"
    source.mkdir()
    path = source / "mapped"
    path.write_bytes(bytes(4096))
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 4096) as mapped:
        mapped[0] = 1
        assert put_tree(store, source)["mapped"][0] == 1
        mapped[0] = 2  # no times change now: the page is dirty
        assert put_tree(store, source)["mapped"][0] == 2
    with cache_of(store) as index, index.read() as txn:
        assert txn.count(Table.STATS) == 0


def test_old_files_are_remembered_where_times_can_be_trusted(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute is judged by the clock at reading; tmpfs and network filesystems are read always."""
    monkeypatch.setattr(stat_cache, "_WORTH_FILES", 1)
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"a")
    fd = os.open(source, os.O_RDONLY)
    try:
        local = stat_cache.StatCache(store.objects).serves(fd)
        assert local == (stat_cache._filesystem_of(fd) in stat_cache._LOCAL)
    finally:
        os.close(fd)
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 61 * 10**9)
    put_tree(store, source)
    with cache_of(store) as index, index.read() as txn:
        assert txn.count(Table.STATS) == (1 if local else 0)


def test_a_damaged_cache_is_no_cache(store: Store, source: Path) -> None:
    put_tree(store, source)
    (store.path / "cache" / "data.mdb").write_bytes(b"damaged" * 10_000)
    (source / "f01").write_bytes(b"changed")
    assert put_tree(store, source)["f01"] == b"changed"


def test_a_file_of_another_filesystem_is_read(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is mounted over a single file is not of the filesystem of its directory."""
    cache = stat_cache.StatCache(store.objects)
    fd = os.open(tmp_path, os.O_RDONLY)
    monkeypatch.setattr(stat_cache, "_filesystem_of", lambda fd: "ext4")
    assert cache.serves(fd)
    os.close(fd)
    here, elsewhere = tmp_path.stat(), Path("/proc/version").stat()
    for info in (here, elsewhere):
        cache.remember(info, bytes(64), 1 << 70)
    assert len(cache._new) == 1


def test_entries_of_an_older_layout_are_not_used(store: Store, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_tree(store, source)
    with cache_of(store) as index, index.write() as txn:
        for key, value in list(txn.scan(Table.STATS)):
            txn.put(Table.STATS, key, value[:-32])
    names = reads(monkeypatch)
    assert put_tree(store, source)["f05"] == b"5" * 100
    assert b"f05" in names


def test_times_that_no_clock_shows(store: Store, source: Path) -> None:
    """Past 2262 nanoseconds need more than 64 bits."""
    os.utime(source / "f03", (20_000_000_000, 20_000_000_000))
    assert put_tree(store, source)["f03"] == b"3" * 100
    assert put_tree(store, source)["f03"] == b"3" * 100
