"""Rows of `pfs put`: new data, and data that the store has already."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path

from pfsmount.repo.stat_cache import StatCache
from pfsmount.repo.store import Store
from tools.bench_suite.bench import Bench
from tools.bench_suite.row import Contest, Side, Unavailable, at_least_rate, at_most_times, row


class Putting:
    """`pfs put` of one source into an empty store, as often as asked."""

    def __init__(self, bench: Bench, source: Path, target: str) -> None:
        bench.let_age(source)
        self._bench, self._source, self._target = bench, source, target
        self._store = bench.directory
        if source.is_file():
            bench.at_end(self.remove)

    def remove(self) -> None:
        """Delete what the last run made."""
        self._bench.remove(self._store)

    def prepare(self) -> None:
        if self._source.is_file():
            self.remove()
        self._store = self._bench.store()
        self._bench.level(self._source)

    def run(self) -> None:
        self._bench.pfs(self._store, "put", self._source, self._target)


class Copying:
    """`cp` to a new place and `sync`."""

    def __init__(self, bench: Bench, source: Path) -> None:
        self._bench, self._source = bench, source
        self._copy = bench.directory
        if source.is_file():
            bench.at_end(self.remove)

    def remove(self) -> None:
        """Delete what the last run made."""
        self._bench.remove(self._copy)

    def prepare(self) -> None:
        if self._source.is_file():
            self.remove()
        self._copy = self._bench.fresh("copy")
        self._bench.watch_creation()
        self._bench.level(self._source)

    def run(self) -> None:
        self._bench.run(["cp", "-r", self._source, self._copy])
        os.sync()


class BackingUp:
    """`restic backup` into a new repository and `sync`, as restic is out of the box."""

    def __init__(self, bench: Bench, source: Path) -> None:
        if shutil.which("restic") is None:
            raise Unavailable("there is no restic (package restic)")
        self._bench, self._source = bench, source
        self._repo = bench.directory

    def _restic(self, *arguments: str | Path) -> None:
        environment = {
            **os.environ,
            "RESTIC_PASSWORD": "bench",
            "RESTIC_REPOSITORY": str(self._repo),
            "RESTIC_CACHE_DIR": str(self._bench.directory / "restic-cache"),
        }
        self._bench.run(["restic", *arguments], environment)

    def prepare(self) -> None:
        self._bench.remove(self._repo)
        self._repo = self._bench.fresh("restic")
        self._restic("init")
        self._bench.level(self._source)

    def run(self) -> None:
        self._restic("backup", self._source)
        os.sync()


@row("put-small", "put {put_files} files of {small_size}", at_most_times(1.2))
def put_small(bench: Bench) -> Contest:
    source = bench.tree(bench.sizes.put_files)
    bench.need_space(6 * bench.sizes.put_files * bench.sizes.small_size)
    putting, copying = Putting(bench, source, "images@master:/"), Copying(bench, source)
    return Contest(
        Side("pfs put", putting.run, putting.prepare),
        [Side("cp -r + sync", copying.run, copying.prepare)],
        (bench.sizes.put_files, "files"),
    )


@row("put-small-restic", "put {put_files} files of {small_size}, as a backup tool does", at_most_times(1))
def put_small_restic(bench: Bench) -> Contest:
    source = bench.tree(bench.sizes.put_files)
    backing_up = BackingUp(bench, source)
    bench.need_space(6 * bench.sizes.put_files * bench.sizes.small_size)
    putting = Putting(bench, source, "images@master:/")
    return Contest(
        Side("pfs put", putting.run, putting.prepare),
        [Side("restic backup + sync", backing_up.run, backing_up.prepare)],
        (bench.sizes.put_files, "files"),
    )


@row("put-big", "put one file of {put_size}, new data", at_most_times(1.3))
def put_big(bench: Bench) -> Contest:
    source = bench.big_file(bench.sizes.put_size)
    bench.need_space(2 * bench.sizes.put_size)
    putting, copying = Putting(bench, source, "images@master:/big"), Copying(bench, source)
    return Contest(
        Side("pfs put", putting.run, putting.prepare),
        [Side("cp + sync", copying.run, copying.prepare)],
        (bench.sizes.put_size, "bytes"),
    )


class PuttingAgain:
    """`pfs put` of what the store has in another repo, each time into a new one."""

    _repo = ""

    def __init__(self, bench: Bench, source: Path, path: str, *options: str) -> None:
        bench.let_age(source)
        self._bench, self._source, self._path, self._options = bench, source, path, options

        def make(store: Path) -> None:
            bench.make_store(store)
            bench.pfs(store, "put", source, f"images@master:{path}")

        self._store = bench.once(f"store-of-{source.name}", make)

    def remembered(self) -> int:
        """How many local files the store knows by their times and sizes."""
        infos = [path.lstat() for path in self._source.rglob("*") if path.is_file()]
        directory = os.open(self._source, os.O_RDONLY)
        try:
            with Store.open(self._store) as store, StatCache(store.objects) as cache:
                return sum(id is not None for id in cache.find(infos)) if cache.serves(directory) else 0
        finally:
            os.close(directory)

    def prepare(self) -> None:
        with Store.open(self._store, author="bench@here") as store:
            self._repo = store.create_repo(f"again-{store.refs_version()}").name
        self._bench.level(self._source)

    def run(self) -> None:
        self._bench.pfs(self._store, "put", *self._options, self._source, f"{self._repo}@master:{self._path}")


def _reading(bench: Bench, source: Path) -> Side:
    """The least that a put without a cache can do: read everything once."""
    command = 'find "$1" -type f -exec cat {} + >/dev/null'
    return Side(
        "cat to /dev/null",
        lambda: bench.to_null("sh", "-c", command, "sh", source),
        lambda: bench.level(source),
    )


@row("again-big", "the same {put_size} again, to another repo", at_least_rate(1e9, "bytes"))
def again_big(bench: Bench) -> Contest:
    source = bench.big_file(bench.sizes.put_size)
    bench.need_space(2 * bench.sizes.put_size)
    again = PuttingAgain(bench, source, "/big", "--no-cache")
    return Contest(
        Side("pfs put", again.run, again.prepare), [_reading(bench, source)], (bench.sizes.put_size, "bytes")
    )


@row(
    "again-small",
    "the same {put_files} files of {small_size} again, to another repo, without the stat cache",
    at_least_rate(60_000, "files"),
)
def again_small(bench: Bench) -> Contest:
    source = bench.tree(bench.sizes.put_files)
    again = PuttingAgain(bench, source, "/", "--no-cache")
    return Contest(
        Side("pfs put", again.run, again.prepare), [_reading(bench, source)], (bench.sizes.put_files, "files")
    )


@row(
    "again-small-cached",
    "the same {put_files} files of {small_size} again, to another repo, with the stat cache",
    at_least_rate(60_000, "files"),
)
def again_small_cached(bench: Bench) -> Contest:
    source = bench.tree(bench.sizes.put_files)
    again = PuttingAgain(bench, source, "/")
    remembered = again.remembered()
    if remembered < bench.sizes.put_files:
        bench.note(f"only {remembered:,} files are remembered: this filesystem, or files that are not a minute old")
    asking = functools.partial(bench.to_null, "find", source, "-printf", "%D %i %s %T@ %C@\n")
    return Contest(
        Side("pfs put", again.run, again.prepare),
        [Side("find that asks for the same facts", asking, lambda: bench.level(source))],
        (bench.sizes.put_files, "files"),
    )
