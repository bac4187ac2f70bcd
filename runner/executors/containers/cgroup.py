"""What the limits of a container have done: counters of its cgroup, read from outside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# Per limit: the files of the kernel's versions 2 and 1 that count, and the word before the number.
_COUNTERS = {
    "memory": (("memory.events", "oom_kill"), ("memory.oom_control", "oom_kill")),
    "pids": (("pids.events", "max"),),
}
# The file with the limit itself, and what it says when there is none.
_CEILINGS = {"memory": "memory.max", "pids": "pids.max"}


@dataclass(frozen=True, slots=True)
class Counters:
    """Where the counters of one container are; none for what this machine does not count."""

    files: dict[str, tuple[tuple[Path, str], ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, pid: int) -> Counters:
        """Of the container in which `pid` runs; to be found while it does."""
        try:
            directories = dict(_directories(pid))
        except OSError:
            return cls()
        return cls({limit: tuple(files_of(limit, directories[limit])) for limit in _COUNTERS if limit in directories})

    def read(self) -> dict[str, int]:
        """How often each limit has struck so far. Those that cannot be read, because the container is gone, are left out."""
        return {
            limit: sum(counts)
            for limit, files in self.files.items()
            if (counts := [count for path, word in files if (count := _count(path, word)) is not None])
        }


def struck(before: dict[str, int], after: dict[str, int]) -> tuple[str, ...]:
    return tuple(limit for limit in _COUNTERS if after.get(limit, 0) > before.get(limit, 0))


def _directories(pid: int) -> Iterator[tuple[str, Path]]:
    """Per controller, the directory of the process's cgroup."""
    places = dict(_hierarchies(Path("/proc/self/mountinfo").read_text(errors="surrogateescape")))
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    for _, controllers, path in sorted(lines, key=lambda line: line[1] != ""):  # version 1 wins where both are there
        for limit in controllers.split(",") if controllers else _COUNTERS:
            if (place := places.get(limit if controllers else "")) is not None:
                root, point = place
                yield limit, point / os.path.relpath(path, root)


def _hierarchies(mountinfo: str) -> Iterator[tuple[str, tuple[str, Path]]]:
    """Which part of which hierarchy is mounted where; the name of version 2 is empty."""
    for line in mountinfo.splitlines():
        mount, _, filesystem = line.partition(" - ")
        root, point = mount.split()[3:5]
        kind, _, options = filesystem.split()[:3]
        if kind == "cgroup2":
            yield "", (root, Path(point))
        elif kind == "cgroup":
            for option in options.split(","):
                yield option, (root, Path(point))


def files_of(limit: str, directory: Path) -> Iterator[tuple[Path, str]]:
    """The counters at the process, and at the directory above that holds the limit: some runtimes add a level below it."""
    places = [directory]
    ceiling = _CEILINGS[limit]
    if _says(directory / ceiling) == "max" and _says(directory.parent / ceiling) not in (None, "max"):
        places.append(directory.parent)
    for place in places:
        for name, word in _COUNTERS[limit]:
            if _count(place / name, word) is not None:
                yield place / name, word


def _says(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _count(path: Path, word: str) -> int | None:
    for line in (_says(path) or "").splitlines():
        name, _, number = line.partition(" ")
        if name == word and number.isdigit():
            return int(number)
    return None
