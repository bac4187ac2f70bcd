"""What the limits of a container have done: counters of its cgroup, read from outside."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from runner.executors import cells, cgroups
from runner.executors.base import Limits
from runner.executors.cells import Counts
from runner.executors.cgroups import Hierarchy
from runner.executors.shortage import Short

# Those of `cells.parse_counts`, and per controller the file that says whether there is a limit (of version 2).
_MEMORY = ("memory.events", "memory.oom_control", "memory.limit_in_bytes")
_PEAKS = ("memory.memsw.max_usage_in_bytes", "memory.max_usage_in_bytes")
_PIDS = ("pids.events",)
_CEILINGS = ("memory.max", "pids.max")
# Per limit, the controller of version 1, and the files of both versions that say what holds.
_HELD = {
    "memory": ("memory", ("memory.max", "memory.limit_in_bytes")),
    "cpus": ("cpu", ("cpu.max", "cpu.cfs_quota_us")),
    "pids": ("pids", ("pids.max",)),
}


class Counters:
    """The open files of one container's cgroup. Use `close` at the end."""

    def __init__(self, directories: Mapping[Path, tuple[str, ...]]) -> None:
        self._files: list[dict[str, int]] = []
        self._peaks: list[int] = []
        for directory, names in directories.items():
            files = {name: fd for name in names if (fd := _open(directory / name, os.O_RDONLY)) is not None}
            self._files.append(files)
            self._peaks += [
                fd for name in _PEAKS if name in files and (fd := _open(directory / name, os.O_WRONLY)) is not None
            ]
        self._before = self._counts()

    def begin(self) -> None:
        """From here on `total` counts."""
        for fd in self._peaks:
            try:
                os.write(fd, b"0")  # it is then what is in use
            except OSError:
                pass  # the container is gone, which shows elsewhere
        self._before = self._counts()
        if self._peaks:
            self._before.memory = 0

    def total(self) -> tuple[tuple[str, ...], Short]:
        """The limits that were reached since, and whose want of memory killed a process."""
        found, short = cells.compare(self._before, self._counts())
        return tuple(found), short

    def close(self) -> None:
        for fd in (*self._peaks, *(fd for files in self._files for fd in files.values())):
            os.close(fd)
        self._files, self._peaks = [], []

    def _counts(self) -> Counts:
        total = Counts(0, 0, 0)
        for files in self._files:
            try:
                counts = cells.parse_counts({name: os.pread(fd, 4096, 0) for name, fd in files.items()})
            except OSError:
                continue  # the container is gone
            total = Counts(total.killed + counts.killed, total.memory + counts.memory, total.pids + counts.pids)
        return total


def _open(path: Path, flags: int) -> int | None:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError:
        return None


def hierarchies_of(pid: int) -> list[Hierarchy]:
    """The cgroups of a process; none where they cannot be seen from here."""
    try:
        cgroup, mountinfo = Path(f"/proc/{pid}/cgroup").read_text(), Path("/proc/self/mountinfo").read_text()
    except OSError:
        return []
    return cgroups.find_hierarchies(cgroup, mountinfo)


def find_counters(hierarchies: Iterable[Hierarchy]) -> dict[Path, tuple[str, ...]]:
    """Where the counters of a container are, and which files."""
    found: dict[Path, tuple[str, ...]] = {}
    for hierarchy in hierarchies:
        names: tuple[str, ...] = ()
        if hierarchy.unified or "memory" in hierarchy.controllers:
            names += (*_MEMORY, *_PEAKS)
        if hierarchy.unified or "pids" in hierarchy.controllers:
            names += _PIDS
        if names:
            found.update((level, names) for level in levels(hierarchy.own))
    return found


def unheld(limits: Limits, hierarchies: Sequence[Hierarchy]) -> list[str]:
    """The limits that were asked for and do not hold: an engine may leave them out with no more than a warning.

    Where no cgroup can be seen, the engine is believed.
    """
    wanted = {"memory": limits.memory, "cpus": limits.cpus, "pids": limits.pids}
    return [
        name
        for name, limit in wanted.items()
        if limit is not None and hierarchies and not _holds(name, limit, hierarchies)
    ]


def _holds(name: str, limit: float, hierarchies: Iterable[Hierarchy]) -> bool:
    controller, files = _HELD[name]
    for hierarchy in hierarchies:
        if hierarchy.unified or controller in hierarchy.controllers:
            for place in (hierarchy.own, hierarchy.own.parent):
                for word in [word for file in files if (word := (_says(place / file) or "max").split()[0]) != "max"]:
                    if (name == "cpus" and int(word) > 0) or (name != "cpus" and int(word) <= limit):
                        return True
    return False


def levels(directory: Path) -> Iterator[Path]:
    """The cgroup, and the one above that has the limit where a runtime has put a level of its own in between."""
    yield directory
    ceilings = [(_says(directory / name), _says(directory.parent / name)) for name in _CEILINGS]
    if any(own == "max" and above not in (None, "max") for own, above in ceilings):
        yield directory.parent


def _says(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
