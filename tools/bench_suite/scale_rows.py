"""Rows of trees of any size: diff, status, log; a huge directory; copies by reference."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from pfsmount.fs.control import open_worktree
from pfsmount.ids import EntryName
from pfsmount.repo.edits import Source, copy
from pfsmount.repo.refs import RefKind
from pfsmount.revision import parse_target
from pfsmount.tree.diff import diff
from pfsmount.tree.directory import entries, lookup
from pfsmount.tree.edit import edit_paths
from tools.bench_suite.bench import Bench, median_time
from tools.bench_suite.branches import Branch, branch_of_few, branch_of_many, own_branch
from tools.bench_suite.row import Broken, Contest, Side, at_most, at_most_times, row
from tools.bench_suite.synthetic import REPO, small_file

_SHOWN = 100


def _asking(bench: Bench, branch: Branch, ask: Callable[[Branch], int], expected: int) -> Callable[[], float]:
    """The median time of a question that a store is asked which was just opened; the answer has a known length."""

    def once(i: int) -> None:
        found = ask(branch)
        if found != expected:
            raise Broken(f"{found} were found, not {expected}")

    return lambda: median_time(once, bench.sizes.commits, branch.reopen)


def _asked_of_both(bench: Bench, prepare: Callable[[Branch], None], ask: Callable[[Branch], int], n: int) -> Contest:
    """A question about the large tree; the yardstick is the same about the small one."""
    many, few = branch_of_many(bench), branch_of_few(bench)
    prepare(many)
    prepare(few)
    return Contest(
        Side("pfs", _asking(bench, many, ask, n)),
        [Side(f"the same of {bench.sizes.few_files:,}", _asking(bench, few, ask, n))],
    )


def _commit_changes(count: int) -> Callable[[Branch], None]:
    return lambda branch: branch.put([branch.place(i) for i in range(count)])


@row("diff", "diff between commits of {many_files} files with {changes} changes, in the process", at_most(0.010))
def diff_row(bench: Bench) -> Contest:
    def changed_files(branch: Branch) -> int:
        new = branch.store.resolve(REPO, parse_target(f"{REPO}@{branch.name}").revision).commit
        old = branch.store.resolve(REPO, parse_target(f"{REPO}@{branch.name}~1").revision).commit
        assert old is not None
        assert new is not None
        changes = diff(branch.store.objects, old.tree, new.tree)
        return sum(1 for change in changes if change.new is not None and not change.new.is_directory)

    count = bench.sizes.changes
    return _asked_of_both(bench, _commit_changes(count), changed_files, count)


@row("status", "status of {many_files} files with {changes} changes, in the process", at_most(0.010))
def status_row(bench: Bench) -> Contest:
    def changed_files(branch: Branch) -> int:
        with open_worktree(branch.store, REPO, branch.name) as worktree:
            return len(worktree.status().changes)

    count = bench.sizes.changes
    return _asked_of_both(bench, lambda branch: branch.change(range(count)), changed_files, count)


@row("log", "log of {changes} commits of {many_files} files, in the process", at_most(0.010))
def log_row(bench: Bench) -> Contest:
    count = bench.sizes.changes

    def commit_some(branch: Branch) -> None:
        for i in range(count):
            branch.put([branch.place(i)])

    def commits(branch: Branch) -> int:
        head = branch.store.resolve(REPO, parse_target(f"{REPO}@{branch.name}").revision).commit
        return len(list(islice(branch.store.history(head), count)))

    return _asked_of_both(bench, commit_some, commits, count)


# One huge directory


def _flat(bench: Bench, ask: Callable[[Branch], int], expected: int) -> Contest:
    huge = own_branch(bench, bench.sizes.many_files, 1)
    small = own_branch(bench, max(bench.sizes.few_files, _SHOWN), 1)
    return Contest(
        Side("pfs", _asking(bench, huge, ask, expected)),
        [Side(f"the same with {small.files:,}", _asking(bench, small, ask, expected))],
    )


@row("huge-add", "a directory of {many_files} entries: add one (before its commit)", at_most(0.005))
def huge_add(bench: Bench) -> Contest:
    name = EntryName(b"f0000123-added")

    def add(branch: Branch) -> int:
        root = branch.store.read_commit(branch.head()).tree
        with branch.store.objects.batch() as batch:
            edited = edit_paths(batch, root, {(name,): small_file(batch, b"added")})
        assert edited.files is not None
        assert root.files is not None
        return edited.files - root.files

    return _flat(bench, add, 1)


@row("huge-lookup", "a directory of {many_files} entries: look one up", at_most(0.005))
def huge_lookup(bench: Bench) -> Contest:
    def look_up(branch: Branch) -> int:
        root = branch.store.read_commit(branch.head()).tree
        return int(lookup(branch.store.objects, root.id, branch.place(1)[-1]) is not None)

    return _flat(bench, look_up, 1)


@row("huge-list", "a directory of {many_files} entries: list the first 100", at_most(0.005))
def huge_list(bench: Bench) -> Contest:
    def list_first(branch: Branch) -> int:
        root = branch.store.read_commit(branch.head()).tree
        return len(list(islice(entries(branch.store.objects, root.id), _SHOWN)))

    return _flat(bench, list_first, _SHOWN)


# Copies by reference


def _copied_on_both(bench: Bench, make: Callable[[Branch, int], object]) -> Contest:
    def making(branch: Branch) -> Callable[[], float]:
        done = iter(range(1 << 30))

        def once(i: int) -> None:
            make(branch, next(done))

        return lambda: median_time(once, bench.sizes.commits)

    many, few = branch_of_many(bench), branch_of_few(bench)
    return Contest(Side("pfs", making(many)), [Side(f"the same of {bench.sizes.few_files:,}", making(few))])


@row("cp-tree", "cp of a tree of {many_files} files to a new path, in the process", at_most_times(1.5))
def cp_tree(bench: Bench) -> Contest:
    def copy_master(branch: Branch, i: int) -> None:
        head = branch.store.head(REPO, "master")
        assert head is not None
        sources = [Source(f"{REPO}@master", (), branch.store.read_commit(head).tree)]
        target = (EntryName(b"copy-%d" % i),)
        if copy(branch.store, sources, REPO, branch.name, target, into=False, message="cp") is None:
            raise Broken("a copy changed nothing")

    return _copied_on_both(bench, copy_master)


@row("cp-branch", "make a branch at a commit of {many_files} files, in the process", at_most_times(1.5))
def cp_branch(bench: Bench) -> Contest:
    def make(branch: Branch, i: int) -> None:
        branch.store.create_branch(REPO, f"{branch.name}-b{i}", branch.head())

    return _copied_on_both(bench, make)


@row("cp-tag", "make a tag at a commit of {many_files} files, in the process", at_most_times(1.5))
def cp_tag(bench: Bench) -> Contest:
    def make(branch: Branch, i: int) -> None:
        branch.store.set_ref(REPO, RefKind.TAG, f"{branch.name}-t{i}", branch.head(), expected=None, why="tag")

    return _copied_on_both(bench, make)


@row(
    "cp-join",
    "cp of a branch of {many_files} files with {changes} changes onto its parent, in the process",
    at_most_times(3),
)
def cp_join(bench: Bench) -> Contest:
    """The roots are joined: what both have is not looked at.

    Not quite the same, for a small tree has fewer and smaller nodes. *Measured*, processor time: 8 ms of 1 000 files, 13 ms of 10 000, 17 ms of 200 000.
    """
    count = bench.sizes.changes

    def joining(branch: Branch) -> Callable[[], float]:
        parent = f"{branch.name}-parent"
        branch.store.create_branch(REPO, parent, branch.head())

        def change(i: int) -> None:
            branch.put([branch.place(i * count + k) for k in range(count)])
            branch.reopen()

        def join(i: int) -> None:
            sources = [Source(f"{REPO}@{branch.name}", (), branch.store.read_commit(branch.head()).tree)]
            if copy(branch.store, sources, REPO, parent, (), into=False, message="cp") is None:
                raise Broken("a copy changed nothing")

        return lambda: median_time(join, bench.sizes.commits, change)

    many, few = branch_of_many(bench), branch_of_few(bench)
    return Contest(Side("pfs", joining(many)), [Side(f"the same of {bench.sizes.few_files:,}", joining(few))])
