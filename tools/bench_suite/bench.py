"""The place where rows work: its directories, the files to work on, the commands.

Nothing that has many small files is deleted before the end: for five minutes ext4 does not use the inode of a deleted file again, and
looks at each of them for each file that it creates, which made `cp -r` of 20 000 files take 19 s instead of 1.1 s here. For the same reason
directories are spread over the disk as those of different users are (`chattr +T`), so that a second benchmark does not pay for the first.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from pfsmount.fs.daemon import raise_readahead
from pfsmount.repo.store import Store
from tools.bench_suite.row import SMALL, Broken, Sizes, Unavailable

PROJECT = Path(__file__).resolve().parents[2]
FILES_A_DIRECTORY = 200
_DROP = Path("/proc/sys/vm/drop_caches")
_GET_FLAGS, _SET_FLAGS, _TOP_DIRECTORY = 0x80086601, 0x40086602, 0x00020000
_PROBE_FILES = 300
_SLOW_CREATE = 600e-6
_AGE_SECONDS = 65
_READY_SECONDS = 60
_END_SECONDS = 10
_TIMEOUT = 900


class Bench:
    """The workspace of one run. `close` (or leaving the context) unmounts and deletes everything."""

    def __init__(self, directory: Path, sizes: Sizes) -> None:
        self.directory = directory
        self.sizes = sizes
        self._made: dict[str, Path] = {}
        self._made_at: dict[Path, float] = {}
        self._count = 0
        self._stack = ExitStack()
        self._notes: list[str] = []
        directory.mkdir(parents=True)
        _spread_directories(directory)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        # tens of GB take a moment to delete, in which an impatient Ctrl-C must not leave them there
        old = [(number, signal.signal(number, signal.SIG_IGN)) for number in (signal.SIGINT, signal.SIGTERM)]
        try:
            self._stack.close()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)
            for number, action in old:
                signal.signal(number, action)

    @contextmanager
    def row(self) -> Iterator[list[str]]:
        """What one row opens, and what is to be said about it (given back)."""
        self._notes = []
        with self._stack:
            yield self._notes
        self._stack = ExitStack()

    def at_end(self, action: Callable[[], object]) -> None:
        """Do something when the row ends, however it does."""
        self._stack.callback(action)

    def note(self, text: str) -> None:
        """Say something about the row that is being measured."""
        if text not in self._notes:
            self._notes.append(text)

    # Places and files

    def fresh(self, name: str) -> Path:
        """A path that nothing was ever made at."""
        self._count += 1
        return self.directory / f"{self._count:03}-{name}"

    def need_space(self, size: int) -> None:
        """Raises Unavailable when the disk has less than `size` bytes (and some reserve)."""
        found = os.statvfs(self.directory)
        free = found.f_bavail * found.f_frsize
        if free < size + (256 << 20):
            raise Unavailable(f"it needs {(size >> 20) + 256:,} MiB on the disk, {free >> 20:,} are free")

    def tree(self, count: int, size: int | None = None) -> Path:
        """A directory of `count` small files (of `size` bytes) with random content, 200 in a directory; made once."""
        each = self.sizes.small_size if size is None else size
        return self.once(f"tree-{count}-{each}", lambda path: self._make_tree(path, count, each))

    def big_file(self, size: int | None = None) -> Path:
        """A large file with random content; made once."""
        length = self.sizes.big_size if size is None else size
        return self.once(f"big-file-{length}", lambda path: self._make_big_file(path, length))

    def once(self, name: str, make: Callable[[Path], None]) -> Path:
        """What rows of one run share: made at first use, at the path that comes back."""
        if name not in self._made:
            path = self.fresh(name)
            make(path)
            self._made[name] = path
            self._made_at[path] = time.monotonic()
        return self._made[name]

    def let_age(self, *paths: Path) -> None:
        """Wait until files made here are as old as files mostly are: `put` only remembers those that were left alone for a minute."""
        if self.sizes != SMALL:
            youngest = max(self._made_at[path] for path in paths)
            time.sleep(max(0.0, youngest + _AGE_SECONDS - time.monotonic()))

    def remove(self, path: Path) -> None:
        """Delete something large of few files now (see the top for why not what has many)."""
        if path != self.directory:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _make_tree(self, path: Path, count: int, size: int) -> None:
        self.need_space(2 * count * max(size, 4096))
        data = random.Random(count)
        for start in range(0, count, FILES_A_DIRECTORY):
            directory = path / f"d{start // FILES_A_DIRECTORY:04}"
            directory.mkdir(parents=True)
            for i in range(start, min(start + FILES_A_DIRECTORY, count)):
                (directory / f"file-{i:06}.bin").write_bytes(data.randbytes(size))

    def _make_big_file(self, path: Path, left: int) -> None:
        self.need_space(3 * left)
        with open(path, "wb") as file:
            while left:
                left -= file.write(os.urandom(min(left, 16 << 20)))

    def store(self, repos: Sequence[str] = ("images",)) -> Path:
        """A new store with empty repos."""
        path = self.fresh("store")
        self.make_store(path, repos)
        return path

    def make_store(self, path: Path, repos: Sequence[str] = ("images",)) -> None:
        """A new store with empty repos at a path; in this process, which saves two commands."""
        Store.create(path)
        with Store.open(path, author="bench@here") as store:
            for repo in repos:
                store.create_repo(repo)

    def store_with(self, source: Path) -> Path:
        """A store whose `images@master` is a directory of the disk; made once, not to be changed."""

        def make(path: Path) -> None:
            self.make_store(path)
            self.pfs(path, "put", source, "images@master:/")

        return self.once(f"store-with-{source.name}", make)

    # Commands

    def pfs(self, store: Path, *arguments: str | os.PathLike[str]) -> str:
        """Run `pfs` on a store. Raises Broken."""
        return self._python("pfsmount.cli.app", store, arguments)

    def pfsjob(self, store: Path, *arguments: str | os.PathLike[str]) -> str:
        """Run `pfsjob` on a store. Raises Broken."""
        return self._python("runner.cli", store, arguments)

    def _python(self, module: str, store: Path, arguments: Sequence[str | os.PathLike[str]]) -> str:
        return self.run(python_command(module, *arguments), environment_of(store))

    def run(self, command: Sequence[str | os.PathLike[str]], environment: dict[str, str] | None = None) -> str:
        """Run a command and return what it printed. Raises Broken."""
        said = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
        )
        if said.returncode:
            shown = " ".join(os.fspath(part) for part in command[:8]).replace(f"{sys.executable} -P -m ", "")
            last = (said.stderr.strip() or said.stdout.strip()).splitlines()[-3:]
            raise Broken(f"{shown}: exit code {said.returncode}: {' | '.join(last)}")
        return said.stdout

    def to_null(self, *command: str | os.PathLike[str]) -> None:
        """Run a command whose output is thrown away by the kernel. Raises Broken."""
        said = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=_TIMEOUT
        )
        if said.returncode:
            last = said.stderr.decode(errors="replace").strip().splitlines()[-3:]
            raise Broken(f"{os.fspath(command[0])}: exit code {said.returncode}: {' | '.join(last)}")

    def drop_caches(self, *programs: str) -> None:
        """Empty the page cache and those of names and inodes; then load the programs that will be used."""
        os.sync()
        _DROP.write_text("3\n")
        for program in programs:
            subprocess.run([program, "--version"], stdout=subprocess.DEVNULL, check=True)

    def level(self, source: Path) -> None:
        """The same memory for both sides: the source in the page cache, as root nothing else.

        In a virtual machine whose host takes free memory back, 1 GiB of new page cache costs 0.4 or 4 s, by what others freed or left
        in the cache; without this one side is always the lucky one.
        """
        if self.sizes == SMALL:
            return  # the numbers mean nothing, and the whole machine pays
        os.sync()
        if os.access(_DROP, os.W_OK):
            _DROP.write_text("3\n")
        # several at once: a cold file is a wait for the disk, and there may be 100 000 of them
        self.to_null("sh", "-c", 'find "$1" -type f -print0 | xargs -0 -r -n 500 -P 8 cat', "sh", source)

    def need_cold(self) -> None:
        """Raises Unavailable when this user cannot empty the page cache."""
        if not os.access(_DROP, os.W_OK):
            raise Unavailable(f"only root can empty the page cache ({_DROP})")

    # The mount

    def need_mount(self) -> None:
        """Raises Unavailable where nothing can be mounted."""
        _need_module("pfsmount.cli.mount", "pfs mount")
        if shutil.which("fusermount3") is None:
            raise Unavailable("there is no fusermount3 (package fuse3)")
        try:
            os.close(os.open("/dev/fuse", os.O_RDWR))
        except OSError as error:
            raise Unavailable(f"/dev/fuse cannot be used: {error.strerror}") from error

    def need_jobs(self) -> None:
        """Raises Unavailable where no job can be run."""
        _need_module("runner.cli", "pfsjob")

    def mount(self, store: Path) -> Mount:
        """A place for mounts of a store, unmounted when the row ends."""
        self.need_mount()
        place = self.fresh("mount")
        place.mkdir()
        mount = Mount(self, store, place)
        self.at_end(mount.leave)
        return mount

    def bare(self, source: Path | None = None) -> BareMount:
        """A filesystem in memory that is nothing but pyfuse3, with the files of a directory, mounted until the row ends. Raises Broken."""
        self.need_mount()
        place = self.fresh("bare")
        place.mkdir()
        command = python_command("tools.bench_suite.bare", place, *([] if source is None else [source]))
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(PROJECT)}, stdin=subprocess.DEVNULL)

        def end() -> None:
            subprocess.run(["fusermount3", "-uz", place], check=False, capture_output=True)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
            process.kill()
            process.wait()

        self.at_end(end)
        until = time.monotonic() + _READY_SECONDS
        while not place.is_mount():
            if process.poll() is not None or time.monotonic() > until:
                raise Broken("the bare filesystem was not mounted")
            time.sleep(0.01)
        os.listdir(place)  # answered after the kernel was told all that it is told at the start
        raise_readahead(str(place))
        return BareMount(place, process.pid)

    # Is the machine fit to be compared with?

    def watch_creation(self) -> None:
        """Note it when this disk creates files so slowly just now that it is no yardstick."""
        place = self.fresh("probe")
        place.mkdir()
        started = time.perf_counter()
        for i in range(_PROBE_FILES):
            os.close(os.open(place / str(i), os.O_WRONLY | os.O_CREAT, 0o600))
        each = (time.perf_counter() - started) / _PROBE_FILES
        if each > _SLOW_CREATE:
            self.note(
                f"the yardstick is slow: creating an empty file took {each * 1e6:,.0f} µs (on ext4, many files deleted "
                "within the last minutes do that)"
            )


def python_command(module: str, *arguments: str | os.PathLike[str]) -> list[str | os.PathLike[str]]:
    """How a module of this project is run."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment_of(store: Path) -> dict[str, str]:
    """The environment in which commands use a store. They load compiled modules, as installed commands do."""
    ours = {"PFS_STORE": str(store), "PFS_AUTHOR": "bench@here", "PYTHONPATH": str(PROJECT)}
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | ours


class BareMount(NamedTuple):
    """A filesystem that is nothing but pyfuse3."""

    place: Path
    pid: int


class Mount:
    """One mount point on which a store is mounted again and again."""

    def __init__(self, bench: Bench, store: Path, place: Path) -> None:
        self._bench, self._is_mounted = bench, False
        self.store, self.place = store, place

    def enter(self) -> Path:
        """Mount; `images@master` is the path that comes back. Raises Broken."""
        self.leave()
        self._is_mounted = True
        self._bench.pfs(self.store, "mount", self.place)
        return self.root

    @property
    def root(self) -> Path:
        """Where the branch is seen."""
        return self.place / "images@master"

    def commit(self) -> Path:
        """Where the head of the branch is seen as a commit; the path is the same after the next `enter`."""
        id = json.loads(self._bench.pfs(self.store, "log", "images@master", "-n", "1", "--json"))[0]["commit"]
        return self.place / f"images@{id}"

    def leave(self) -> None:
        """Unmount, if need be by force. Raises Broken."""
        if not self._is_mounted:
            return
        try:
            self._bench.pfs(self.store, "umount", self.place)
        except Broken:
            if self.place.is_mount():
                subprocess.run(["fusermount3", "-uz", self.place], check=False, capture_output=True)
                raise
        self._is_mounted = False


def _need_module(name: str, command: str) -> None:
    try:
        found = find_spec(name)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise Unavailable(f"this version has no '{command}'")


def _spread_directories(path: Path) -> None:
    """Let ext4 place each directory below as if it were a top one; other filesystems ignore or refuse it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flags = array.array("L", [0])
        fcntl.ioctl(fd, _GET_FLAGS, flags)
        flags[0] |= _TOP_DIRECTORY
        fcntl.ioctl(fd, _SET_FLAGS, flags)
    except OSError:
        pass  # it only makes the yardstick steadier
    finally:
        os.close(fd)


def median_time(action: Callable[[int], object], times: int, before: Callable[[int], object] = lambda i: None) -> float:
    """The median time of an action that is done many times, in seconds; it is told how often it was done.

    `before` is done before each, outside the time.
    """
    taken = []
    for i in range(times):
        before(i)
        started = time.perf_counter()
        action(i)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)
