"""Limits of what a datum uses, as cgroups: where they can be made here, making and removing them.

    <base>/pfs-<PID namespace>-<pid>-<start time>-<number><a or b>

The pid is the runner's; with its start time it says whether the owner still lives, to the next runner that finds such a
directory in the same place and removes it. The runner itself is not moved. `cells.py` says why a worker has two.

* **v1** (one hierarchy per controller; also on "hybrid" hosts): the base is the runner's own cgroup. Only root may.
* **v2**: the base is the closest of the runner's own cgroup and those above it which we may write to and which passes the
  controllers on to its children. A cgroup with processes cannot, except the machine's root, so that it is usually one
  above: the new cgroup lies beside the runner's own. An ordinary user gets such a place from systemd by delegation.

There is no fallback to rlimits. They hold for each process alone, not for all of a datum; RLIMIT_AS counts addresses, of which
many programs reserve a hundred times what they use; RLIMIT_NPROC counts all processes of the user and does not hold for root. A
limit that only half holds is worse than none, because nobody looks again.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.executors import cells
from runner.executors.base import ExecutorUnavailable, Limits, Obstacle

CPU_PERIOD_US = 100_000
_numbers = itertools.count()
_NAME = re.compile(r"pfs-(\d+)-(\d+)-(\d+)-\d+[ab]")


@dataclass(frozen=True)
class Hierarchy:
    """A tree of cgroups, where it is mounted, and the runner's place in it."""

    controllers: frozenset[str]  # of v1; v2 says in its files which it has
    unified: bool
    top: Path  # the mount point
    own: Path  # the runner's cgroup: `top` or below


@dataclass(frozen=True)
class Setting:
    """What is written into one file of a new cgroup; `optional` where a kernel may lack the file."""

    file: str
    value: str
    optional: bool = False


# ---- what the machine has -------------------------------------------------------------------------------------------


def find_hierarchies(cgroup: str, mountinfo: str) -> list[Hierarchy]:
    """From the texts of /proc/self/cgroup and /proc/self/mountinfo. Hierarchies that are not mounted are left out."""
    owns: dict[frozenset[str], str] = {}
    for line in cgroup.splitlines():
        number, controllers, path = line.split(":", 2)
        owns[frozenset() if number == "0" else frozenset(controllers.split(","))] = path
    found: dict[frozenset[str], Hierarchy] = {}
    for root, point, kind, options in _cgroup_mounts(mountinfo):
        unified = kind == "cgroup2"
        key = next((key for key in owns if (not key if unified else key and key <= options)), None)
        if key is None or key in found:
            continue
        below = _relative(owns[key], root)
        if below is not None:
            top = Path(point)
            found[key] = Hierarchy(key, unified, top, top / below)
    return list(found.values())


def _cgroup_mounts(mountinfo: str) -> Iterator[tuple[str, str, str, frozenset[str]]]:
    """Root in the hierarchy, mount point, filesystem and its options."""
    for line in mountinfo.splitlines():
        mount, _, filesystem = line.partition(" - ")
        fields, described = mount.split(" "), filesystem.split(" ")
        if described[0] in ("cgroup", "cgroup2"):
            yield _unescaped(fields[3]), _unescaped(fields[4]), described[0], frozenset(described[-1].split(","))


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), path)


def _relative(path: str, root: str) -> str | None:
    """`path` as seen from the mount, whose root is `root`; None when it lies elsewhere."""
    if ".." in path.split("/") or ".." in root.split("/"):
        return None  # outside of our cgroup namespace
    inside = root.rstrip("/")
    if path != inside and not path.startswith(f"{inside}/"):
        return None
    return path[len(inside) :].lstrip("/")


def own_hierarchies() -> list[Hierarchy]:
    try:
        return find_hierarchies(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text())
    except OSError:
        return []  # no /proc, or a kernel without cgroups


def find_deaths(hierarchies: Iterable[Hierarchy]) -> str:
    """The file that counts the processes killed for want of memory where datums without limits are (`cells.Deaths`)."""
    for hierarchy in hierarchies:
        if hierarchy.unified or "memory" in hierarchy.controllers:
            path = hierarchy.own / ("memory.events.local" if hierarchy.unified else "memory.oom_control")
            if os.access(path, os.R_OK):
                return os.fspath(path)
    return "/proc/vmstat"


# ---- what is written ------------------------------------------------------------------------------------------------


def settings(limits: Limits, *, unified: bool) -> dict[str, list[Setting]]:
    """By controller, in the order of writing."""
    found: dict[str, list[Setting]] = {}
    if limits.memory is not None:
        amount = str(limits.memory)
        if unified:
            found["memory"] = [Setting("memory.max", amount), Setting("memory.swap.max", "0", optional=True)]
        else:
            found["memory"] = [
                Setting("memory.limit_in_bytes", amount),
                # With swap: never below the one without.
                Setting("memory.memsw.limit_in_bytes", amount, optional=True),
                # Inherited, and without the killer what needs more would hang.
                Setting("memory.oom_control", "0", optional=True),
            ]
    if limits.pids is not None:
        found["pids"] = [Setting("pids.max", str(limits.pids + 1))]  # PID 1 is ours
    if limits.cpus is not None:
        quota = str(round(limits.cpus * CPU_PERIOD_US))
        if unified:
            found["cpu"] = [Setting("cpu.max", f"{quota} {CPU_PERIOD_US}")]
        else:
            found["cpu"] = [Setting("cpu.cfs_period_us", str(CPU_PERIOD_US)), Setting("cpu.cfs_quota_us", quota)]
    return found


def _configure(directory: Path, wanted: Iterable[Setting]) -> None:
    for setting in wanted:
        try:
            _write(directory / setting.file, setting.value)
        except FileNotFoundError:
            if not setting.optional:
                raise
        except OSError as error:
            # v1 refuses more than a cgroup above may have, which then is the limit that holds.
            if not (setting.optional or (setting.file == "cpu.cfs_quota_us" and error.errno == errno.EINVAL)):
                raise


def _write(path: Path, text: str) -> None:
    """In one call, and never making the file: cgroupfs would answer that with another error."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


# ---- making and removing --------------------------------------------------------------------------------------------


class Enclosure:
    """The cgroups of one worker. Made by `enclose`; whoever has it removes it when the worker's processes are gone."""

    def __init__(self, stems: Sequence[str] = ()) -> None:
        self.stems = tuple(stems)

    def remove(self) -> bool:
        """Whether nothing is left of it; False while the kernel still has a process in it."""
        gone = [_remove(stem + suffix) for stem in self.stems for suffix in cells.SUFFIXES]
        return all(gone)


def enclose(limits: Limits, hierarchies: Sequence[Hierarchy]) -> Enclosure:
    """New cgroups with these limits; none when nothing is limited. Raises ExecutorUnavailable where they cannot be made."""
    if not limits:
        return Enclosure()
    name = f"{_own_prefix()}-{next(_numbers)}"
    by_version = {unified: settings(limits, unified=unified) for unified in (False, True)}
    missing = set(by_version[True])
    stems: list[str] = []
    try:
        for hierarchy in hierarchies:
            if wanted := sorted(missing & hierarchy.controllers):
                chosen = [setting for controller in wanted for setting in by_version[False][controller]]
                stems.append(_make(hierarchy.own, name, chosen))
                missing.difference_update(wanted)
        unified = next((hierarchy for hierarchy in hierarchies if hierarchy.unified), None)
        if missing and (unified is None or not missing <= _words(unified.top / "cgroup.controllers")):
            raise ExecutorUnavailable([_lacking(missing, unified)])
        if missing and unified is not None:
            chosen = [setting for controller in sorted(missing) for setting in by_version[True][controller]]
            stems.append(_make_unified(unified, name, missing, chosen))
    except OSError as error:
        Enclosure(stems).remove()
        raise ExecutorUnavailable([explain(error, collect_facts())]) from error
    except ExecutorUnavailable:
        Enclosure(stems).remove()
        raise
    return Enclosure(stems)


def _make(base: Path, name: str, wanted: Sequence[Setting]) -> str:
    """Both cells of a worker below `base`; returns their common stem."""
    _sweep(base)
    stem = os.fspath(base / name)
    try:
        for suffix in cells.SUFFIXES:
            directory = Path(stem + suffix)
            directory.mkdir()
            _configure(directory, wanted)
    except OSError:
        Enclosure([stem]).remove()
        raise
    return stem


def _make_unified(hierarchy: Hierarchy, name: str, controllers: set[str], wanted: Sequence[Setting]) -> str:
    """Below the closest cgroup that takes it. Otherwise raises what the last one said that had the controllers."""
    refused: OSError | None = None
    for base in (hierarchy.own, *hierarchy.own.parents):
        if not base.is_relative_to(hierarchy.top):
            break
        try:
            _pass_on(base, controllers)
            return _make(base, name, wanted)
        except OSError as error:
            # A refusal for want of rights says more than that a cgroup has processes, as the runner's own always does.
            if refused is None or refused.errno in (errno.EBUSY, errno.ENOENT):
                refused = error
    assert refused is not None  # the top has been tried
    raise refused


def _pass_on(base: Path, controllers: set[str]) -> None:
    """Makes children of `base` have the controllers, and sees that processes may be moved there from within `base`."""
    if not controllers <= _words(base / "cgroup.controllers"):
        raise OSError(errno.ENOENT, "the controllers are not delegated", os.fspath(base))
    if (base / "cgroup.type").exists() and (base / "cgroup.procs").read_text():  # the machine's root has no type
        # The kernel would refuse memory; the others it lets through, and then no process into the child.
        raise OSError(errno.EBUSY, "it has processes of its own", os.fspath(base))
    for path in (base, base / "cgroup.procs"):
        if not os.access(path, os.W_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
    if lacking := controllers - _words(base / "cgroup.subtree_control"):
        _write(base / "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(lacking)))


def _words(path: Path) -> set[str]:
    try:
        return set(path.read_text().split())
    except OSError:
        return set()


def _sweep(base: Path) -> None:
    """Removes what runners that were killed have left here. Nothing with a process in it can be removed."""
    with contextlib.suppress(OSError):
        if os.readlink("/proc/self") != str(os.getpid()):
            return  # another PID namespace's /proc, which cannot say who lives
        for name in os.listdir(base):
            if name.startswith("pfs-") and is_orphan(name):
                _remove(os.fspath(base / name))


def is_orphan(name: str) -> bool:
    """Whether it is of a runner that is dead. Of one in another PID namespace we cannot know."""
    parts = _NAME.fullmatch(name)
    if parts is None or int(parts[1]) != _pid_namespace():
        return False
    return _start_time(parts[2]) != parts[3]


def _remove(directory: str) -> bool:
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


def _own_prefix() -> str:
    return f"pfs-{_pid_namespace()}-{os.getpid()}-{_start_time('self')}"


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _start_time(pid: str) -> str | None:
    """In the kernel's ticks; None of a process that is not there (a zombie is)."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


# ---- why not --------------------------------------------------------------------------------------------------------

DELEGATION = "systemd-run --user --scope -p Delegate=yes pfsjob …"


@dataclass(frozen=True)
class Facts:
    """What explains a refusal."""

    root: bool
    container: bool
    systemd: bool


def collect_facts() -> Facts:
    return Facts(
        root=os.geteuid() == 0,
        container=any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv")),
        systemd=Path("/run/systemd/system").exists(),
    )


def explain(error: OSError, facts: Facts) -> Obstacle:
    """Why a cgroup could not be made, and what to do."""
    where = f" ({error.filename}: {error.strerror})" if error.filename else f" ({error.strerror})"
    if not facts.root:
        ask = f"start it as {DELEGATION}; " if facts.systemd else ""
        return Obstacle(
            f"limits need a cgroup, and this user may make none here{where}",
            f"{ask}run the job as root; or give it an image, so that podman runs it",
        )
    if facts.container:
        return Obstacle(
            f"limits need a cgroup, and this container may make none{where}",
            "limit the container itself, run it with --privileged, or run the job outside of it with an image for podman",
        )
    if error.errno == errno.EROFS:
        return Obstacle(f"limits need a cgroup, and cgroups cannot be changed here{where}", "mount -o remount,rw it")
    return Obstacle(
        f"limits need a cgroup, which is refused here{where}",
        "start it in a cgroup that may have children: systemd-run --scope -p Delegate=yes pfsjob …",
    )


def _lacking(controllers: Iterable[str], unified: Hierarchy | None) -> Obstacle:
    names = ", ".join(sorted(controllers))
    if unified is None:
        return Obstacle(
            f"limits need the cgroup controllers {names}, which are not mounted",
            "mount -t cgroup2 none /sys/fs/cgroup; or give the job an image, so that podman runs it",
        )
    return Obstacle(
        f"limits need the cgroup controllers {names}, which this machine or container does not have",
        "allow them to it (cgroup.subtree_control above it; cgroup_enable=memory on the kernel's command line)",
    )
