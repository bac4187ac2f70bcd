"""A branch of a synthetic store, and the ways in which a commit is made on it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pfsmount.fs.control import open_worktree
from pfsmount.ids import ObjectId, RepoPath
from pfsmount.repo.ingest import commit_edit
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import Entry
from tools.bench_suite.bench import Bench
from tools.bench_suite.row import Broken
from tools.bench_suite.synthetic import REPO, file_path, small_file, synthetic_store

_FILE_BYTES = 4096
START_MARK, END_MARK = "/pfs-bench/start", "/pfs-bench/end"


class Branch:
    """A new branch of images, at the head of master, in a store that this process has open."""

    def __init__(self, path: Path, files: int, directories: int) -> None:
        self.path, self.files, self.directories = path, files, directories
        self.store = Store.open(path, author="bench@here")
        self.name = f"row-{self.store.refs_version()}"
        self.store.create_branch(REPO, self.name, self.store.head(REPO, "master"))

    def close(self) -> None:
        """Close; any number of times."""
        self.store.close()

    def reopen(self, i: int = 0) -> None:
        """Open the store anew, so that nothing decoded is left from before; the kernel's caches stay."""
        self.store.close()
        self.store = Store.open(self.path, author="bench@here")

    def head(self) -> ObjectId:
        """The commit of the branch."""
        head = self.store.head(REPO, self.name)
        assert head is not None
        return head

    def place(self, i: int) -> RepoPath:
        """The path of a file; files with near numbers are far apart."""
        return file_path(self.files, self.directories, i * 7919)

    def change(self, numbers: Iterable[int]) -> None:
        """Write files in the worktree, as a program does through the mount."""
        with Worktree.open(self.store, REPO, self.name, own=True) as worktree:
            for i in numbers:
                node = worktree.find(self.place(i))
                if node is None:
                    raise Broken("the worktree does not show a file that is there")
                worktree.truncate(node, 0)
                worktree.write(node, 0, os.urandom(_FILE_BYTES))

    def commit(self) -> None:
        """What `pfs commit` does. Raises Broken."""
        with open_worktree(self.store, REPO, self.name) as worktree:
            if worktree.commit("changed files").commit is None:
                raise Broken("a commit of a changed file changed nothing")

    def put(self, paths: Iterable[RepoPath]) -> None:
        """Commit new contents at some paths, as `pfs put` does once it has read the files. Raises Broken."""
        with self.store.objects.batch() as batch:
            changes = {path: small_file(batch, os.urandom(_FILE_BYTES)) for path in paths}

            def edit(root: Entry) -> Entry:
                return edit_paths(batch, root, changes)

            origin: dict[str, object] = {"how": "bench"}
            commit = commit_edit(self.store, batch, REPO, self.name, edit, message="put", origin=origin)
        if commit is None:
            raise Broken("a commit of new data changed nothing")


def branch_of_many(bench: Bench) -> Branch:
    """Of the large tree."""
    return own_branch(bench, bench.sizes.many_files, bench.sizes.many_directories)


def branch_of_few(bench: Bench) -> Branch:
    """Of the small tree: as many directories as it takes for it to look like the large one."""
    return own_branch(bench, bench.sizes.few_files, bench.sizes.few_directories)


def own_branch(bench: Bench, files: int, directories: int) -> Branch:
    """A new branch of a synthetic store of this form."""
    branch = Branch(synthetic_store(bench, files, directories), files, directories)
    bench.at_end(branch.close)
    return branch


def _mark(path: str) -> None:
    with suppress(FileNotFoundError):
        os.close(os.open(path, os.O_RDONLY))


def main() -> None:
    """Some commits in a process of its own, to be traced: STORE FILES DIRECTORIES commit|put COUNT.

    Opening paths that do not exist marks in the trace where a commit starts and ends.
    """
    path, files, directories, how, count = sys.argv[1:]
    branch = Branch(Path(path), int(files), int(directories))
    for i in range(int(count)):
        if how == "commit":
            branch.change([i])
        _mark(START_MARK)
        if how == "commit":
            branch.commit()
        else:
            branch.put([branch.place(i)])
        _mark(END_MARK)
    branch.close()


if __name__ == "__main__":
    main()
