"""Rows of sizes: what a store takes on the disk, and how much it grows."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

from pfsmount.objects.store import open_objects
from tools.bench_suite.bench import PROJECT, Bench
from tools.bench_suite.row import Contest, Goal, Side, Unavailable, at_most, at_most_times, format_value, row

_TINY = 1024
_BLOCK = 4096
_A_FILE, _A_TINY_FILE, _A_CHANGED_FILE = 300, 500, 12 << 10
_CHANGES = 3
_PHOTOS = (".jpg", ".jpeg", ".png")


def disk_usage(path: Path) -> int:
    """What a file or directory takes on the disk, as `du` counts it."""
    below = (os.path.join(directory, name) for directory, _, names in os.walk(path) for name in names)
    return sum(os.lstat(name).st_blocks * 512 for name in (os.fspath(path), *below))


def _store_size(store: Path) -> int:
    return disk_usage(store / "segments") + disk_usage(store / "index") + disk_usage(store / "refs.log")


def _used_size(store: Path) -> int:
    """The same without the index' free pages, which later changes use again."""
    with open_objects(store) as objects:
        index = objects.index.used_bytes()
    return disk_usage(store / "segments") + index + (store / "refs.log").stat().st_size


def _bound(sizes: Iterable[int]) -> int:
    """What the goal allows for new files of these sizes."""
    return sum(size + _A_TINY_FILE if size <= _TINY else -(-size // _BLOCK) * _BLOCK + _A_FILE for size in sizes)


def _file_sizes(source: Path) -> list[int]:
    return [(Path(at) / name).stat().st_size for at, _, names in os.walk(source) for name in names]


class Growing:
    """A store, and how much each step makes it grow."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.path = bench.store()

    def by(self, *arguments: str | Path) -> int:
        """The growth by one `pfs put`, by `du`; noted is how much of it is used. Bytes."""
        before, used = _store_size(self.path), _used_size(self.path)
        self._bench.pfs(self.path, "put", *arguments)
        after = _store_size(self.path) - before
        self._bench.note(
            f"'du' of segments and index grows by {format_value(after, 'bytes')}; "
            f"without free pages of the index by {format_value(_used_size(self.path) - used, 'bytes')}"
        )
        cache = self.path / "cache"
        if cache.is_dir():
            self._bench.note(f"the stat cache, which may be deleted, takes {format_value(disk_usage(cache), 'bytes')}")
        return after


def _all_new(bench: Bench, source: Path) -> Contest:
    sizes = _file_sizes(source)
    bench.note(f"{len(sizes):,} files; an empty store takes {format_value(_store_size(bench.store()), 'bytes')}")
    return Contest(
        Side("pfs", lambda: float(Growing(bench).by(source, "images@master:/"))),
        [Side("the bound", lambda: float(_bound(sizes))), Side("du of the source", lambda: float(disk_usage(source)))],
    )


def _changed(bench: Bench, source: Path) -> Contest:
    """Every hundredth file is changed as a whole, in its place; other ones the second and third time. The mean of the three.

    The first change of a store that was never changed also makes the free pages of the index that the next ones use.
    """
    names = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    changes = [bench.fresh(f"changed-{first}") for first in range(_CHANGES)]
    for first, changed in enumerate(changes):
        for name in names[first::100]:
            (changed / name).parent.mkdir(parents=True, exist_ok=True)
            (changed / name).write_bytes(os.urandom((source / name).stat().st_size))
    sizes = [_file_sizes(changed) for changed in changes]
    bench.note(f"{len(sizes[0]):,} changed files, {_CHANGES} times, one after the other")

    def grow() -> float:
        growing = Growing(bench)
        bench.pfs(growing.path, "put", source, "images@master:/")
        return sum(growing.by(changed, "images@master:/") for changed in changes) / _CHANGES

    bound = sum(sum(some) + _A_CHANGED_FILE * len(some) for some in sizes) / _CHANGES
    return Contest(Side("pfs", grow), [Side("the bound", lambda: bound)])


def _register(name: str, size: int) -> None:
    text = format_value(size, "bytes")

    @row(f"size-{name}", f"size of a store of {{small_files}} files of {text}", _GOAL, unit="bytes", once=True)
    def whole(bench: Bench) -> Contest:
        return _all_new(bench, _sources(bench)[size])

    @row(
        f"size-{name}-changed",
        f"growth when 1 % of {{small_files}} files of {text} change",
        _GOAL,
        unit="bytes",
        once=True,
    )
    def changed(bench: Bench) -> Contest:
        return _changed(bench, _sources(bench)[size])


def _sources(bench: Bench) -> dict[int, Path]:
    """The trees of all sizes, made together so that they grow old together."""
    sources = {size: bench.tree(bench.sizes.small_files, size) for size in _SIZES.values()}
    bench.let_age(*sources.values())
    return sources


_GOAL: Goal = at_most_times(1)
_SIZES = {"100": 100, "1k": 1024, "4k": 4096, "5k": 5120}
for _name, _size in _SIZES.items():
    _register(_name, _size)


def _photo_directories() -> Iterable[Path]:
    yield PROJECT / "demo" / "photos"
    for module, below in (("skimage", "data"), ("sklearn", "datasets/images")):
        spec = find_spec(module)
        for place in (spec.submodule_search_locations or ()) if spec is not None else ():
            yield Path(place) / below


def _photos(bench: Bench) -> Path:
    """Real photos, several times: each copy has some bytes more at its end, so that it is a file of its own."""

    def make(target: Path) -> None:
        found = (path for place in _photo_directories() if place.is_dir() for path in sorted(place.iterdir()))
        photos = {path.name: path for path in found if path.suffix in _PHOTOS}
        if not photos:
            raise Unavailable("there are no photos: ./tools/demo brings some (demo/photos)")
        data = random.Random(0)
        for copy in range(bench.sizes.photo_copies):
            (target / f"copy-{copy:02}").mkdir(parents=True)
            for photo in photos.values():
                (target / f"copy-{copy:02}" / photo.name).write_bytes(photo.read_bytes() + data.randbytes(16))

    photos = bench.once("photos", make)
    bench.let_age(photos)
    return photos


@row(
    "size-photos",
    "size of a store of real photos ({photo_copies} copies, each different)",
    _GOAL,
    unit="bytes",
    once=True,
)
def size_photos(bench: Bench) -> Contest:
    return _all_new(bench, _photos(bench))


@row("size-photos-changed", "growth when 1 % of real photos change", _GOAL, unit="bytes", once=True)
def size_photos_changed(bench: Bench) -> Contest:
    return _changed(bench, _photos(bench))


# One large file that changes


def _grown(bench: Bench, change: Callable[[Path, bytes], None]) -> Contest:
    size, more = bench.sizes.grown_size, bench.sizes.grow_size
    bench.need_space(4 * size)
    original = bench.big_file(size)
    place = bench.fresh("grown")
    bench.at_end(lambda: bench.remove(place))

    def grow() -> float:
        growing = Growing(bench)
        bench.at_end(lambda: bench.remove(growing.path))
        bench.remove(place)
        shutil.copyfile(original, place)
        bench.pfs(growing.path, "put", place, "images@master:/big")
        change(place, os.urandom(more))
        return float(growing.by(place, "images@master:/big"))

    return Contest(Side("pfs", grow), [Side("what is new", lambda: float(more))])


def _unaligned_middle(path: Path) -> int:
    return path.stat().st_size // 2 + 12_345


@row("grow-append", "growth: {grow_size} appended to a file of {grown_size}", at_most(8 << 20), unit="bytes", once=True)
def grow_append(bench: Bench) -> Contest:
    def append(path: Path, data: bytes) -> None:
        with open(path, "ab") as file:
            file.write(data)

    return _grown(bench, append)


@row(
    "grow-overwrite",
    "growth: {grow_size} overwritten inside a file of {grown_size}",
    at_most(8 << 20),
    unit="bytes",
    once=True,
)
def grow_overwrite(bench: Bench) -> Contest:
    def overwrite(path: Path, data: bytes) -> None:
        with open(path, "r+b") as file:
            file.seek(_unaligned_middle(path))
            file.write(data)

    return _grown(bench, overwrite)


@row(
    "grow-insert",
    "growth: {grow_size} inserted into a file of {grown_size}",
    at_most(16 << 20),
    unit="bytes",
    once=True,
)
def grow_insert(bench: Bench) -> Contest:
    def insert(path: Path, data: bytes) -> None:
        middle = _unaligned_middle(path)
        with open(path, "r+b") as file:
            file.seek(middle)
            rest = file.read()
            file.seek(middle)
            file.write(data)
            file.write(rest)

    return _grown(bench, insert)
