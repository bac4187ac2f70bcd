"""Large stores in seconds: trees and indexes made through the library, without files beside them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pfsmount.ids import EntryName, RepoPath
from pfsmount.objects.batch import Batch
from pfsmount.objects.index import Table
from pfsmount.objects.segment import Location, RecordKind
from pfsmount.repo.store import Store
from pfsmount.tree.directory import directory_entry
from pfsmount.tree.edit import build_directory
from pfsmount.tree.entry import Entry, file_entry
from pfsmount.tree.ingest import ingest_bytes
from tools.bench_suite.bench import Bench

REPO = "images"
_CONTENTS = 1_000
_TIME = 1_700_000_000_000_000_000
_ROWS_A_TRANSACTION = 200_000
_BYTES_A_ROW = 80


def file_path(files: int, directories: int, i: int) -> RepoPath:
    """Where the i-th file of a synthetic tree is."""
    name = EntryName(b"f%07d" % (i % files))
    return (EntryName(b"d%05d" % (i % files // -(-files // directories))), name) if directories > 1 else (name,)


def synthetic_store(bench: Bench, files: int, directories: int) -> Path:
    """A store whose images@master has so many tiny files (of 1 000 different contents), spread over directories or, for 1, in the root.

    Made once a run. Rows share it: each works on branches of its own.
    """

    def make(path: Path) -> None:
        bench.need_space(400 * files)
        Store.create(path)
        with Store.open(path, author="bench@here") as store:
            store.create_repo(REPO)
            fill_branch(store, files, directories)

    return bench.once(f"synthetic-{files}-{directories}", make)


def fill_branch(store: Store, files: int, directories: int) -> None:
    """Commit a synthetic tree to images@master."""
    with store.objects.batch() as batch:
        contents = [small_file(batch, b"content %d" % i) for i in range(_CONTENTS)]

        def directory(start: int, stop: int) -> Entry:
            items = ((file_path(files, 1, i)[0], contents[i % _CONTENTS]) for i in range(start, stop))
            return directory_entry(build_directory(batch, items), mtime_ns=_TIME)

        def below_root() -> Iterator[tuple[bytes, Entry]]:
            each = -(-files // directories)
            for start in range(0, files, each):
                yield file_path(files, directories, start)[0], directory(start, min(start + each, files))

        if directories == 1:
            tree = directory(0, files)
        else:
            tree = directory_entry(build_directory(batch, below_root()), mtime_ns=_TIME)
        store.commit(batch, REPO, "master", tree=tree, expected=None, message="all", origin={"how": "bench"})


def small_file(batch: Batch, data: bytes) -> Entry:
    """A file of at most 4 MiB with this content."""
    return file_entry(ingest_bytes(batch, data), len(data), mtime_ns=_TIME)


def fill_index(bench: Bench, store: Store, rows: int, progress: Callable[[int], None] = lambda done: None) -> None:
    """Put so many ids that nothing uses into the index, in key order, which is what makes it quick."""
    bench.need_space(rows * _BYTES_A_ROW)
    step = (1 << 64) // rows
    where = Location(1, 4096, RecordKind.PIECE, 4096).encode()
    for start in range(0, rows, _ROWS_A_TRANSACTION):
        stop = min(start + _ROWS_A_TRANSACTION, rows)
        noise = os.urandom(24 * (stop - start))
        with store.objects.index.write() as txn:
            for i in range(start, stop):
                at = 24 * (i - start)
                txn.put(Table.OBJECTS, (i * step).to_bytes(8, "big") + noise[at : at + 24], where)
        progress(stop)
