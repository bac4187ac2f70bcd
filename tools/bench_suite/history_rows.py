"""Rows of a long history: many commits of one file each, then what is asked of it."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from pfsmount.ids import EntryName, RepoPath
from pfsmount.repo.commit import Commit
from pfsmount.repo.ingest import commit_edit
from pfsmount.repo.store import Store
from pfsmount.revision import parse_target
from pfsmount.tree.content import read_small
from pfsmount.tree.directory import find
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import Entry
from tools.bench_suite.bench import Bench, median_time
from tools.bench_suite.row import Broken, Contest, Side, Unavailable, at_least_rate, at_most, at_most_times, row
from tools.bench_suite.synthetic import REPO, small_file

_FILES_A_DIRECTORY = 100
_LOGGED = 20
_SYNCS_OF_A_COMMIT = 3


def _place(i: int) -> RepoPath:
    return (EntryName(b"d%04d" % (i // _FILES_A_DIRECTORY)), EntryName(b"f%06d" % i))


def _commit(store: Store, i: int) -> None:
    with store.objects.batch() as batch:
        changes = {_place(i): small_file(batch, b"the content of file %d\n" % i)}

        def edit(root: Entry) -> Entry:
            return edit_paths(batch, root, changes)

        origin: dict[str, object] = {"how": "put"}
        if commit_edit(store, batch, REPO, "master", edit, message=f"file {i}", origin=origin) is None:
            raise Broken("a commit of a new file changed nothing")


class History:
    """A store with one commit a file, made once a run, and how long its first and its last commits took (seconds)."""

    def __init__(self, bench: Bench) -> None:
        self._count, self._window = bench.sizes.history, bench.sizes.window
        place = bench.once("history", self._make)
        self.path = place / "store"
        self.first, self.last = json.loads((place / "times.json").read_text())

    def _make(self, place: Path) -> None:
        place.mkdir()
        Store.create(place / "store")
        taken = []
        with Store.open(place / "store", author="bench@here") as store:
            store.create_repo(REPO)
            for i in range(self._count):
                started = time.perf_counter()
                _commit(store, i)
                taken.append(time.perf_counter() - started)
        times = (sum(taken[: self._window]), sum(taken[-self._window :]))
        (place / "times.json").write_text(json.dumps(times))


def _git_commits(bench: Bench) -> float:
    """`git add` and `git commit` of one file each: the time of one window, from fewer."""
    if shutil.which("git") is None:
        raise Unavailable("there is no git")
    repo = bench.fresh("git")
    settings = ("user.name=bench", "user.email=bench@here", "commit.gpgsign=false", "core.hooksPath=/dev/null")
    git: list[str | Path] = ["git", "-C", repo, *(part for setting in settings for part in ("-c", setting))]
    bench.run(["git", "init", "-q", repo])
    started = time.perf_counter()
    for i in range(bench.sizes.git_commits):
        path = repo / os.fsdecode(b"/".join(_place(i)))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"the content of file %d\n" % i)
        bench.run([*git, "add", path])
        bench.run([*git, "commit", "-q", "-m", f"file {i}"])
    return (time.perf_counter() - started) / bench.sizes.git_commits * bench.sizes.window


def _synced_writes(bench: Bench) -> float:
    """What the disk itself takes for the fsyncs of one window."""
    fd = os.open(bench.fresh("synced"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        started = time.perf_counter()
        for _ in range(bench.sizes.window * _SYNCS_OF_A_COMMIT):
            os.write(fd, bytes(4096))
            os.fdatasync(fd)
        return time.perf_counter() - started
    finally:
        os.close(fd)


@row(
    "history-commits",
    "{history} commits of one file each, in the process; shown: the last {window}",
    at_least_rate(200, "commits"),
    at_most_times(1.1, note="no slower at the end"),
    once=True,
)
def history_commits(bench: Bench) -> Contest:
    git = f"git add + git commit ({bench.sizes.git_commits}, scaled)"
    return Contest(
        Side("pfs, the last", lambda: History(bench).last),
        [
            Side("pfs, the first", lambda: History(bench).first),
            Side(git, lambda: _git_commits(bench)),
            Side(f"{_SYNCS_OF_A_COMMIT} × write 4 KiB + fdatasync", lambda: _synced_writes(bench)),
        ],
        (bench.sizes.window, "commits"),
    )


def _asked(bench: Bench, ask: Callable[[Store], object]) -> Contest:
    """The median time of a question that a store is asked which was just opened."""
    path = History(bench).path
    store = Store.open(path)
    bench.at_end(lambda: store.close())

    def reopen(i: int) -> None:
        nonlocal store
        store.close()
        store = Store.open(path)

    return Contest(Side("pfs", lambda: median_time(lambda i: ask(store), bench.sizes.commits, reopen)))


def _commit_at(store: Store, revision: str) -> Commit:
    commit = store.resolve(REPO, parse_target(f"{REPO}@{revision}").revision).commit
    assert commit is not None
    return commit


@row("history-log", "log -n 20 of {history} commits, in the process", at_most(0.020))
def history_log(bench: Bench) -> Contest:
    def log(store: Store) -> None:
        found = len(list(islice(store.history(_commit_at(store, "master")), _LOGGED)))
        if found != min(_LOGGED, bench.sizes.history):
            raise Broken(f"the log has {found} commits")

    return _asked(bench, log)


@row("history-resolve", "resolve the middle of {history} commits (~N), in the process", at_most(0.020))
def history_resolve(bench: Bench) -> Contest:
    back = bench.sizes.history // 2

    def resolve(store: Store) -> None:
        if _commit_at(store, f"master~{back}").height != bench.sizes.history - 1 - back:
            raise Broken("another commit was found")

    return _asked(bench, resolve)


@row("history-read", "read one file at the oldest of {history} commits, in the process", at_most(0.020))
def history_read(bench: Bench) -> Contest:
    def read(store: Store) -> None:
        entry = find(store.objects, _commit_at(store, "master.1").tree, _place(0))
        if entry is None or read_small(store.objects, entry) != b"the content of file 0\n":
            raise Broken("the first file is not what was put")

    return _asked(bench, read)
