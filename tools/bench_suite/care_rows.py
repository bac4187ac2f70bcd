"""Rows of `pfs fsck` and `pfs gc`: what it costs to look after a store."""

from __future__ import annotations

import os
from pathlib import Path

from tools.bench_suite.bench import Bench
from tools.bench_suite.row import Contest, Side, Unavailable, at_most_times, row


def _segments(store: Path) -> list[Path]:
    return sorted((store / "segments").iterdir())


def _checked(bench: Bench, source: Path, programs: str = "cat") -> Contest:
    """`fsck --data` of a store, and `cat` of its segments, both from the disk."""
    bench.need_cold()
    store = bench.store_with(source)
    size = sum(path.stat().st_size for path in _segments(store))

    def check() -> None:
        bench.pfs(store, "fsck", "--data")

    return Contest(
        Side("pfs fsck --data", check, lambda: bench.drop_caches(programs)),
        [
            Side(
                "cat of the segments",
                lambda: bench.to_null("cat", *_segments(store)),
                lambda: bench.drop_caches(programs),
            )
        ],
        (size, "bytes"),
    )


@row("fsck-data-big", "check all data of a store with one file of {put_size}, cold", at_most_times(2))
def fsck_data_big(bench: Bench) -> Contest:
    return _checked(bench, bench.big_file(bench.sizes.put_size))


@row("fsck-data-small", "check all data of a store with {put_files} files of {small_size}, cold", at_most_times(3))
def fsck_data_small(bench: Bench) -> Contest:
    return _checked(bench, bench.tree(bench.sizes.put_files))


@row("gc", "collect what one of two branches of {put_files} files had", at_most_times(1))
def gc(bench: Bench) -> Contest:
    """A deleted branch with files of its own, beside one of the same size that stays; and `rm -r` of as many files."""
    source, other = bench.tree(bench.sizes.put_files), bench.fresh("others")
    for at, _, names in os.walk(source):
        place = other / Path(at).relative_to(source)
        place.mkdir(exist_ok=True)
        for name in names:
            (place / name).write_bytes((Path(at) / name).read_bytes()[::-1])
    bench.need_space(4 * bench.sizes.put_files * bench.sizes.small_size)
    store, copy = bench.directory, bench.directory

    def prepare_ours() -> None:
        nonlocal store
        store = bench.store()
        bench.pfs(store, "put", source, "images@master:/")
        bench.pfs(store, "branch", "images@dev", "images@master")
        bench.pfs(store, "put", "--delete", other, "images@dev:/")
        bench.pfs(store, "branch", "--delete", "images@dev")
        os.sync()

    def collect() -> None:
        said = bench.pfs(store, "gc", "--keep", "0d")
        if "freed" not in said:
            raise Unavailable(f"'pfs gc' freed nothing: {said}")

    def prepare_theirs() -> None:
        nonlocal copy
        copy = bench.fresh("copy")
        bench.run(["cp", "-r", other, copy])
        os.sync()

    def remove() -> None:
        bench.run(["rm", "-r", copy])
        os.sync()

    return Contest(
        Side("pfs gc", collect, prepare_ours),
        [Side("rm -r + sync", remove, prepare_theirs)],
        (bench.sizes.put_files, "files"),
    )
