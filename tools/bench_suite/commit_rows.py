"""Rows of commits: one changed file, on branches and indexes of any size, and what is synced for it."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable

from pfsmount.repo.store import Store
from tools.bench_suite.bench import Bench, environment_of, median_time, python_command
from tools.bench_suite.branches import END_MARK, START_MARK, Branch, branch_of_few, branch_of_many
from tools.bench_suite.row import Contest, Side, Unavailable, at_most, at_most_times, row
from tools.bench_suite.synthetic import REPO, fill_branch, fill_index

_SYNCS_OF_A_COMMIT = 4
_SYNCS = ("fsync", "fdatasync", "msync", "sync_file_range", "sync", "syncfs")
_WRITES = ("write", "pwrite64", "writev", "pwritev", "pwritev2")
_CALL = re.compile(r"^\d+ +(\w+)\((\d+)?")
_SYNCED_OPEN = re.compile(r"openat\(.*\bO_D?SYNC\b.*\) = (\d+)$")
_ANY_OPEN = re.compile(r"openat\(.*\) = (\d+)$")


class Committing:
    """Commits of one changed file each on one branch, in this process."""

    def __init__(self, branch: Branch, times: int, *, by_put: bool) -> None:
        self._branch, self._times, self._by_put, self._done = branch, times, by_put, 0

    def run(self) -> float:
        """The median time of some."""
        if self._by_put:
            return median_time(self._put, self._times)
        return median_time(lambda i: self._branch.commit(), self._times, self._change)

    def _change(self, i: int) -> None:
        self._done += 1
        self._branch.change([self._done])

    def _put(self, i: int) -> None:
        self._done += 1
        self._branch.put([self._branch.place(self._done)])


def synced_writes(bench: Bench, count: int) -> Callable[[], float]:
    """What the disk itself takes for so many fsyncs: the median of some."""
    fd = os.open(bench.fresh("synced"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    bench.at_end(lambda: os.close(fd))

    def once(i: int) -> None:
        for _ in range(count):
            os.write(fd, bytes(4096))
            os.fdatasync(fd)

    return lambda: median_time(once, bench.sizes.commits)


def _contest(bench: Bench, *, by_put: bool) -> Contest:
    many = Committing(branch_of_many(bench), bench.sizes.commits, by_put=by_put)
    few = Committing(branch_of_few(bench), bench.sizes.commits, by_put=by_put)
    return Contest(
        Side("pfs", many.run),
        [
            Side(f"{_SYNCS_OF_A_COMMIT} × write 4 KiB + fdatasync", synced_writes(bench, _SYNCS_OF_A_COMMIT)),
            Side(f"the same on {bench.sizes.few_files:,}", few.run),
        ],
    )


@row(
    "commit-one",
    "commit one changed file of {many_files} (what 'pfs commit' does), in the process",
    at_most(0.020),
    at_most_times(2, against=1),
)
def commit_one(bench: Bench) -> Contest:
    return _contest(bench, by_put=False)


@row(
    "put-one",
    "put one file of 4 KiB onto {many_files}, in the process",
    at_most(0.020),
    at_most_times(2, against=1),
)
def put_one(bench: Bench) -> Contest:
    return _contest(bench, by_put=True)


@row(
    "commit-full-index",
    "commit one changed file of {many_files} with {other_objects} other objects in the index, in the process",
    at_most(0.020),
    at_most_times(2),
    heavy=True,
)
def commit_full_index(bench: Bench) -> Contest:
    """The index is filled first: its pages are full then, so that new ids split them."""
    sizes = bench.sizes
    path = bench.fresh("full-index")
    bench.at_end(lambda: shutil.rmtree(path, ignore_errors=True))
    Store.create(path)
    with Store.open(path, author="bench@here") as store:
        store.create_repo(REPO)
        fill_index(bench, store, sizes.other_objects)
        fill_branch(store, sizes.many_files, sizes.many_directories)
    branch = Branch(path, sizes.many_files, sizes.many_directories)
    bench.at_end(branch.close)
    full = Committing(branch, sizes.commits, by_put=False)
    usual = Committing(branch_of_many(bench), sizes.commits, by_put=False)
    return Contest(Side("pfs", full.run), [Side("the same without them", usual.run)])


@row("commit-syncs", "fsyncs of one commit of one changed file", at_most(4), unit="count", once=True)
def commit_syncs(bench: Bench) -> Contest:
    """Counted in a process of its own, from the start of a commit to its end: changing the file is not in it.

    The goal is about calls, for the usual commit: the first one in a process may make a directory durable, too. LMDB's write of its meta page to a descriptor
    that is opened with O_DSYNC waits as well; it is shown, and not one of the calls.
    """
    if shutil.which("strace") is None:
        raise Unavailable("there is no strace (package strace)")
    branch = branch_of_few(bench)

    def count(how: str) -> float:
        times = bench.sizes.commits
        found = _traced(bench, branch, how, times)
        bench.note(f"pfs {how}: " + ", ".join(f"{name} {calls / times:.3g}" for name, calls in sorted(found.items())))
        return float(round(sum(found[name] for name in _SYNCS) / times))

    return Contest(Side("pfs commit", lambda: count("commit")), [Side("pfs put", lambda: count("put"))])


def _traced(bench: Bench, branch: Branch, how: str, count: int) -> Counter[str]:
    trace = bench.fresh("trace")
    arguments = (branch.path, str(branch.files), str(branch.directories), how, str(count))
    strace: list[str | os.PathLike[str]] = ["strace", "-f", "-qq", "-o", trace]
    strace += ["-e", f"trace=openat,{','.join(_SYNCS + _WRITES)}"]
    bench.run([*strace, *python_command("tools.bench_suite.branches", *arguments)], environment_of(branch.path))
    with open(trace, encoding="utf-8", errors="replace") as lines:
        return count_syncs(lines)


def count_syncs(lines: Iterable[str]) -> Counter[str]:
    """Calls between the marks of an strace that wait for the disk: fsync and its like, and writes to what was opened with O_DSYNC.

    (LMDB writes its meta page, by which a transaction is made, that way.)
    """
    found: Counter[str] = Counter()
    synced: set[str] = set()
    inside = False
    for line in lines:
        call = _CALL.match(line)
        if call is None:
            continue
        name, fd = call.groups()
        if name == "openat" and (START_MARK in line or END_MARK in line):
            inside = START_MARK in line
        opened = _ANY_OPEN.search(line) if name == "openat" else None
        if opened is not None:
            synced.discard(opened[1])
            if _SYNCED_OPEN.search(line):
                synced.add(opened[1])
        elif inside and name in _SYNCS:
            found[name] += 1
        elif inside and name in _WRITES and fd in synced:
            found["write to O_DSYNC"] += 1
    return found
