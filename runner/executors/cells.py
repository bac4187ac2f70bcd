"""The cgroups of a worker's datums, from inside the worker: entering one, and telling whether its limits struck.

A worker has two cells and uses them in turn, because the next datum's PID 1 is in its cell before the datum before has ended:
what that one does must neither count against it nor kill it. They are used again for each datum, not made again: a cgroup that
is removed lives on in the kernel until the last page of file cache that was charged to it is gone. What a datum leaves
charged is such cache, which the kernel takes back before it kills anybody; and counters are compared, not reset.

A cell is one directory in each hierarchy that limits something: `cgroups.py` makes and removes them.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal

SUFFIXES = ("a", "b")
# v1's, of memory with swap, which is what the limit is on, and of memory alone where the kernel has no other.
_PEAKS = ("memory.memsw.max_usage_in_bytes", "memory.max_usage_in_bytes")
# Files with counters (v2's and v1's), and those whose end would mean that a limit was taken away.
_READ = (
    *("memory.events", "pids.events", "cpu.max"),
    *("memory.oom_control", "memory.limit_in_bytes", *_PEAKS, "cpu.cfs_quota_us"),
)
# A process is killed when it asks for so much or less, and that would be beyond the limit.
_ONE_CHARGE = 1 << 18
_UNKILLABLE = b"-1000"


class Counts:
    """How often, since the cell was made."""

    __slots__ = ("killed", "memory", "pids")

    def __init__(self, killed: int, memory: int, pids: int) -> None:
        self.killed = killed  # processes, for want of memory: by the cell's limit or the machine's
        self.memory = memory  # memory was asked for beyond the limit (v1: whether, since `Cell.begin`)
        self.pids = pids  # processes were refused


class TakenAway(Exception):
    """Somebody has removed a limit that was to hold: the cgroup, or its controller."""

    @classmethod
    def by(cls, error: OSError) -> TakenAway:
        return cls(f"the cgroup with the limits of the datum was taken away ({error.strerror})")


class Cell:
    """One cgroup for one datum at a time."""

    def __init__(self, directories: Sequence[str]) -> None:
        self._procs = [os.open(os.path.join(directory, "cgroup.procs"), os.O_WRONLY) for directory in directories]
        self._files: dict[str, int] = {}
        self._peaks: list[int] = []
        for directory in directories:
            for name in _READ:
                try:
                    self._files[name] = os.open(os.path.join(directory, name), os.O_RDONLY)
                    if name in _PEAKS:
                        self._peaks.append(os.open(os.path.join(directory, name), os.O_WRONLY))
                except FileNotFoundError:
                    pass

    @property
    def counts_memory(self) -> bool:
        return "memory.events" in self._files or "memory.oom_control" in self._files

    def enter(self) -> None:
        """Moves the calling process; what it forks is there too.

        The kernel may wait some 10 ms for a quiet moment of all processors, so this belongs to what is done ahead of time.
        """
        for fd in self._procs:
            os.write(fd, b"0")

    def begin(self) -> Counts:
        """The counts before a datum. Raises TakenAway."""
        try:
            for fd in self._peaks:
                os.write(fd, b"0")  # it is then what is in use
        except OSError as error:
            raise TakenAway.by(error) from error
        counts = self.counts()
        if self._peaks:
            counts.memory = 0
        return counts

    def counts(self) -> Counts:
        """Raises TakenAway: whoever writes into cgroups that are not theirs, as systemd may, must not go unnoticed."""
        try:
            return parse_counts({name: os.pread(fd, 4096, 0) for name, fd in self._files.items()})
        except OSError as error:
            raise TakenAway.by(error) from error


def open_cells(stems: Sequence[str]) -> list[Cell]:
    """The worker's cells; none where nothing is limited. Each stem is a path in one hierarchy, without its suffix."""
    return [Cell([stem + suffix for stem in stems]) for suffix in SUFFIXES] if stems else []


def parse_counts(files: Mapping[str, bytes]) -> Counts:
    """From the texts of a cell's files, by name; those of other versions or controllers are absent."""
    memory, pids = parse_keyed(files.get("memory.events", b"")), parse_keyed(files.get("pids.events", b""))
    old = parse_keyed(files.get("memory.oom_control", b""))
    if memory:
        # `max` also counts each time that file cache had to make room; `oom` is when that was not enough.
        return Counts(memory.get("oom_kill", 0), memory.get("oom", 0), pids.get("max", 0))
    # `failcnt` would say it, and stays 0 in recent kernels (seen with 6.18).
    limit, peak = int(files.get("memory.limit_in_bytes", b"0")), max(int(files.get(name, b"0")) for name in _PEAKS)
    return Counts(old.get("oom_kill", 0), int(0 < limit <= peak + _ONE_CHARGE), pids.get("max", 0))


def parse_keyed(text: bytes | bytearray) -> dict[str, int]:
    """Lines of a word and a number."""
    pairs = (line.split() for line in text.decode().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


class Account:
    """What struck one datum, from when this is made to when it is asked. Raises TakenAway."""

    def __init__(self, cell: Cell | None, deaths: Deaths) -> None:
        self._cell = cell
        self._before = cell.begin() if cell is not None else None
        # Where the cell does not count, as none does without limits.
        self._deaths = None if cell is not None and cell.counts_memory else deaths
        self._deaths_before: int | None = None

    def look(self) -> None:
        """Called when the datum has run for a while: a short one has no time to use up a machine, and must cost nothing."""
        if self._deaths is not None and self._deaths_before is None:
            self._deaths_before = self._deaths.count()

    def total(self) -> tuple[list[str], Literal["", "limit", "machine", "maybe"]]:
        """The limits that were reached, and whose want of memory killed a process: `wire.Result` has both."""
        found: list[str] = []
        short: Literal["", "limit", "machine", "maybe"] = ""
        if self._cell is not None and self._before is not None:
            found, short = compare(self._before, self._cell.counts())
        if self._deaths is not None and self._deaths_before is not None:
            now = self._deaths.count()
            short = "maybe" if now is not None and now > self._deaths_before else ""
        return found, short


def compare(before: Counts, after: Counts) -> tuple[list[str], Literal["", "limit", "machine"]]:
    """The limits that were reached between the two, and whose want of memory killed a process.

    Memory counts only if a process was killed: a datum whose files fill the limit with cache has all that it needs. Where
    one was killed although its cell was below its limit, that was the machine's end of memory, or of what the runner is in.
    """
    found = []
    killed = after.killed > before.killed
    beyond = killed and after.memory > before.memory
    if beyond:
        found.append("memory")
    if after.pids > before.pids:
        found.append("pids")
    return found, "limit" if beyond else "machine" if killed else ""


class Deaths:
    """How many processes were killed for want of memory, outside of cells: as far as it is known.

    `path` is the file with the count, `oom_kill`: of the runner's own cgroup, where datums without limits are too; or
    /proc/vmstat, of the machine. It is opened when it is first needed, because most workers never do.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd: int | None = None

    def count(self) -> int | None:
        try:
            if self._fd is None:
                self._fd = os.open(self._path, os.O_RDONLY)
            text = bytearray()
            while part := os.pread(self._fd, 1 << 16, len(text)):  # the kernel gives a page at a time
                text += part
            return parse_keyed(text).get("oom_kill")
        except OSError:
            return None


def spare_me() -> None:
    """Keeps the calling process, PID 1 of a datum, from being what the kernel kills for the datum's need of memory.

    It is larger than a shell that fills /tmp, and the command could not handle its death. Only root may ask for this.
    """
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    except OSError:
        return
    try:
        os.write(fd, _UNKILLABLE)
    except OSError:
        pass
    finally:
        os.close(fd)
