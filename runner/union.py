"""The union of datums' outputs: the tree that is committed, and beside it who wrote what.

Two trees are kept in step: `tree` holds the results, `written_by` has, for each file or symlink of `tree`, a symlink whose target is the key of the
datum that wrote it. Both follow from the set of datums alone, in whatever order they were added and removed, so an incremental result is
the one that a build from scratch gives:

* A directory exists when a file is below it, or when a datum left it empty: `written_by` counts those datums in the
  attribute `user.pfs.empty` of the directory.
* Directories all have mode 0755 and one fixed time. Several datums may write into one, and none of them owns it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pfsmount.errors import PfsError
from pfsmount.ids import ObjectId, RepoPath, display, path_bytes
from pfsmount.objects.batch import Batch
from pfsmount.objects.reading import Reader
from pfsmount.tree.directory import EMPTY_DIRECTORY, directory_entry, entries, find, lookup, walk
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import Entry, Kind, symlink_entry
from pfsmount.tree.xattrs import load_xattrs, with_xattrs
from runner.executors.base import MADE_MTIME_NS

EMPTY_XATTR = b"user.pfs.empty"
_CHANGES_AT_ONCE = 50_000


class OutputClash(PfsError):
    """Two datums wrote one path, or one a file where the other has a directory."""

    def __init__(self, path: RepoPath, first: ObjectId | None, second: ObjectId) -> None:
        super().__init__(f"two datums wrote {display(path_bytes(path))}")
        self.path, self.first, self.second = path, first, second


@dataclass(frozen=True, slots=True)
class Output:
    """What one datum left: its key and its `out` directory."""

    key: ObjectId
    out: Entry


def empty_directory() -> Entry:
    """A directory of a result, before anything is in it."""
    return directory_entry(EMPTY_DIRECTORY, uid=os.getuid(), gid=os.getgid(), mtime_ns=MADE_MTIME_NS)


class Union:
    """The results of a set of datums. Removals come before additions."""

    def __init__(self, batch: Batch, tree: Entry | None = None, written_by: Entry | None = None) -> None:
        self._batch = batch
        self.tree = empty_directory() if tree is None else tree
        self.written_by = empty_directory() if written_by is None else written_by
        self._results: dict[RepoPath, Entry | None] = {}
        self._writers: dict[RepoPath, Entry | None] = {}
        self._added: dict[RepoPath, ObjectId] = {}
        self._directories: dict[RepoPath, ObjectId] = {}
        self._empty: Counter[RepoPath] = Counter()
        self._leading_to_empty: dict[RepoPath, ObjectId] = {}
        self._emptied: set[RepoPath] = set()

    def remove(self, outputs: Iterable[Output]) -> None:
        """Take datums out that are in it."""
        for output in outputs:
            for path, entry in _results(self._batch, output.out):
                if entry.is_directory:
                    self._empty[path] -= 1
                else:
                    self._results[path] = self._writers[path] = None
                    self._emptied.add(path[:-1])
            self._apply_if_many()
        self._apply()

    def add(self, outputs: Iterable[Output]) -> None:
        """Put datums in. Raises OutputClash; then the union is of no use any more."""
        for output in outputs:
            writer = symlink_entry(output.key.hex().encode("ascii"), mtime_ns=MADE_MTIME_NS)
            for path, entry in _results(self._batch, output.out):
                self._check(path, entry, output.key)
                if entry.is_directory:
                    self._empty[path] += 1
                else:
                    self._added[path] = output.key
                    self._results[path], self._writers[path] = entry, writer
            self._apply_if_many()
        self._apply()

    def finish(self) -> None:
        """To be called when all is removed and added: empty directories are made, and those that are none any more go."""
        self._apply()
        for path, change in sorted(self._empty.items()):
            if change:
                self._count_empty(path, change)
        self._apply()
        self._prune()

    def _check(self, path: RepoPath, entry: Entry, key: ObjectId) -> None:
        """Refuse what is in the way of another datum's result, of this call of `add` or from before it."""
        for depth in range(1, len(path) + 1):
            if path[:depth] in self._added:
                raise OutputClash(path, self._added[path[:depth]], key)
        if not entry.is_directory:
            for directories in (self._directories, self._leading_to_empty):
                if path in directories:
                    raise OutputClash(path, directories[path], key)
        self._check_trees(path, entry, key)
        for depth in range(1, len(path)):
            self._directories.setdefault(path[:depth], key)
        if entry.is_directory:
            for depth in range(1, len(path) + 1):
                self._leading_to_empty.setdefault(path[:depth], key)

    def _check_trees(self, path: RepoPath, entry: Entry, key: ObjectId) -> None:
        """The same, against the trees as they stand: what is removed is gone from them, but for empty directories."""
        at = self.written_by
        if at.id == EMPTY_DIRECTORY.id:
            return
        for depth, name in enumerate(path):
            below = lookup(self._batch, at.id, name)
            if below is None:
                return
            at = below
            if at.kind is Kind.SYMLINK:
                raise OutputClash(path[: depth + 1], _key_of(at), key)
        if entry.is_directory:
            return
        for here, found in walk(self._batch, at, path):
            if found.kind is Kind.SYMLINK:
                raise OutputClash(path, _key_of(found), key)
            if self._times_left_empty(found) + self._empty[here] > 0:
                raise OutputClash(path, None, key)

    def _times_left_empty(self, directory: Entry) -> int:
        return int(load_xattrs(self._batch, directory).get(EMPTY_XATTR, b"0"))

    def _apply_if_many(self) -> None:
        if len(self._writers) >= _CHANGES_AT_ONCE:
            self._apply()

    def _apply(self) -> None:
        if self._writers:
            template = empty_directory()
            self.tree = edit_paths(self._batch, self.tree, self._results, parent=template)
            self.written_by = edit_paths(self._batch, self.written_by, self._writers, parent=template)
        self._results, self._writers, self._added, self._directories = {}, {}, {}, {}

    def _count_empty(self, path: RepoPath, change: int) -> None:
        """Keep account of one directory that datums left empty."""
        directory = find(self._batch, self.written_by, path)
        if directory is None and change > 0:
            directory = empty_directory()
        if directory is None or not directory.is_directory:
            return  # it has made way for a file
        count = self._times_left_empty(directory) + change
        attributes = {EMPTY_XATTR: b"%d" % count} if count > 0 else {}
        self._writers[path] = with_xattrs(self._batch, directory, attributes)
        if count <= 0:
            self._emptied.add(path)
        if find(self._batch, self.tree, path) is None:
            self._results[path] = empty_directory()

    def _prune(self) -> None:
        """Delete directories that are empty and that no datum left empty, from the deepest up."""
        todo: dict[int, set[RepoPath]] = {}
        for path in self._emptied:
            todo.setdefault(len(path), set()).add(path)
        for depth in range(max(todo, default=0), 0, -1):
            for path in todo.get(depth, ()):
                directory = find(self._batch, self.written_by, path)
                if directory is None or directory.id != EMPTY_DIRECTORY.id:
                    continue
                if EMPTY_XATTR not in load_xattrs(self._batch, directory):
                    self._results[path] = self._writers[path] = None
                    todo.setdefault(depth - 1, set()).add(path[:-1])
            self._apply()


def _results(objects: Reader, out: Entry) -> Iterator[tuple[RepoPath, Entry]]:
    """Files, symlinks and empty directories of a datum, each with its path."""
    stack: list[tuple[RepoPath, Entry]] = [((), out)]
    while stack:
        path, directory = stack.pop()
        below = []
        for name, entry in entries(objects, directory.id):
            if entry.is_directory and entry.id != EMPTY_DIRECTORY.id:
                below.append(((*path, name), entry))
            else:
                yield (*path, name), entry
        stack += reversed(below)


def _key_of(writer: Entry) -> ObjectId:
    assert writer.target is not None
    return ObjectId(bytes.fromhex(writer.target.decode("ascii")))
