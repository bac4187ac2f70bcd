"""Rows of the store: putting files, committing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pfsmount.ids import EntryName
from pfsmount.repo.ingest import commit_edit
from pfsmount.repo.store import Store
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import Entry, file_entry
from pfsmount.tree.ingest import ingest_bytes
from tools.bench_suite.bench import Bench, median_time
from tools.bench_suite.row import Broken, Contest, Side, at_most, at_most_times, row

# write, fsync the data, fsync the metadata, the index, the log: see pfsmount.objects.store
_SYNCS_OF_A_COMMIT = 4


class Putting:
    """`pfs put` of one source into an empty store, as often as asked."""

    def __init__(self, bench: Bench, source: Path, target: str) -> None:
        self._bench, self._source, self._target = bench, source, target
        self._store = bench.directory

    def prepare(self) -> None:
        self._store = self._bench.store()
        self._bench.level(self._source)

    def run(self) -> None:
        self._bench.pfs(self._store, "put", self._source, self._target)


class Copying:
    """`cp` to a new place and `sync`."""

    def __init__(self, bench: Bench, source: Path) -> None:
        self._bench, self._source = bench, source

    def prepare(self) -> None:
        self._bench.watch_creation()
        self._bench.level(self._source)

    def run(self) -> None:
        self._bench.run(["cp", "-r", self._source, self._bench.fresh("copy")])
        os.sync()


@row("put-small", "put {small_files} files of 4 KiB", at_most_times(1.2))
def put_small(bench: Bench) -> Contest:
    source = bench.tree(bench.sizes.small_files)
    putting, copying = Putting(bench, source, "images@master:/"), Copying(bench, source)
    return Contest(
        Side("pfs put", putting.run, putting.prepare),
        [Side("cp -r + sync", copying.run, copying.prepare)],
        (bench.sizes.small_files, "files"),
    )


@row("put-big", "put one file of {big_size}, new data", at_most_times(1.3))
def put_big(bench: Bench) -> Contest:
    source = bench.big_file()
    bench.need_space(8 * bench.sizes.big_size)
    putting, copying = Putting(bench, source, "images@master:/big"), Copying(bench, source)
    return Contest(
        Side("pfs put", putting.run, putting.prepare),
        [Side("cp + sync", copying.run, copying.prepare)],
        (bench.sizes.big_size, "bytes"),
    )


class Committing:
    """One-file commits in this process, on a branch of a given number of files."""

    def __init__(self, bench: Bench, files: int) -> None:
        self._bench, self._files = bench, files
        path = bench.store()
        bench.pfs(path, "put", bench.tree(files), "images@master:/")
        self._store = Store.open(path, author="bench@here")
        bench.at_end(self._store.close)
        self._done = 0

    def run(self) -> float:
        return median_time(self._commit, self._bench.sizes.commits)

    def _commit(self, i: int) -> None:
        self._done += 1
        data = os.urandom(self._bench.sizes.small_size)
        place = (EntryName(b"d0000"), EntryName(b"file-000003.bin"))
        with self._store.objects.batch() as batch:

            def edit(root: Entry) -> Entry:
                return edit_paths(batch, root, {place: file_entry(ingest_bytes(batch, data), len(data))})

            commit = commit_edit(
                self._store, batch, "images", "master", edit, message="one file", origin={"how": "bench"}
            )
        if commit is None:
            raise Broken("a commit of new data changed nothing")


def _synced_writes(bench: Bench) -> Callable[[], float]:
    """What the disk itself takes for as many fsyncs as a commit needs."""
    fd = os.open(bench.fresh("synced"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    bench.at_end(lambda: os.close(fd))

    def once(i: int) -> None:
        for _ in range(_SYNCS_OF_A_COMMIT):
            os.write(fd, bytes(4096))
            os.fdatasync(fd)

    return lambda: median_time(once, bench.sizes.commits)


@row(
    "commit-one",
    "commit one changed file of {small_files}, in the process",
    at_most(0.020),
    at_most_times(2, against=1),
)
def commit_one(bench: Bench) -> Contest:
    many, few = Committing(bench, bench.sizes.small_files), Committing(bench, bench.sizes.few_files)
    return Contest(
        Side("pfs", many.run),
        [
            Side(f"{_SYNCS_OF_A_COMMIT} × write 4 KiB + fdatasync", _synced_writes(bench)),
            Side(f"the same of {bench.sizes.few_files:,}", few.run),
        ],
    )
