"""The union of datums' outputs: the tree that is committed, and beside it who wrote what.

Two trees are kept in step: `tree` holds the results, `written_by` has, for each file or symlink of `tree`, a symlink whose target is the key of the
datum that wrote it. Both follow from the set of datums alone, in whatever order they were added and removed, so an incremental result is
the one that a build from scratch gives:

* A directory exists when a file is below it, or when a datum left it empty: `written_by` counts those datums in the
  attribute `user.pfs.empty` of the directory.
* Directories all have mode 0755 and one fixed time. Several datums may write into one, and none of them owns it.
* Where results are appended (`merge: append`), a file that several datums wrote has what each wrote, in the order of the datums
  (`Output.order`); its entry in `written_by` is a file with their keys, a line each, in that order.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pfsmount.errors import PfsError
from pfsmount.ids import ObjectId, RepoPath, display, path_bytes
from pfsmount.objects.batch import Batch
from pfsmount.objects.reading import Reader
from pfsmount.tree.concatenate import concatenate
from pfsmount.tree.content import read_small
from pfsmount.tree.directory import EMPTY_DIRECTORY, directory_entry, entries, find, lookup, walk
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import Entry, Kind, file_entry, symlink_entry
from pfsmount.tree.ingest import ingest_bytes
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
    order: tuple[object, ...] = ()
    """Sorts it among the datums of a job; only looked at where results are appended."""


def empty_directory() -> Entry:
    """A directory of a result, before anything is in it."""
    return directory_entry(EMPTY_DIRECTORY, uid=os.getuid(), gid=os.getgid(), mtime_ns=MADE_MTIME_NS)


@dataclass(slots=True)
class _Shared:
    """What happens to the writers of a file that several may write."""

    added: list[ObjectId] = field(default_factory=list)
    removed: list[ObjectId] = field(default_factory=list)


Find = Callable[[ObjectId], "Output"]
"""The output of any datum of the union, by its key."""


class Union:
    """The results of a set of datums. Removals come before additions."""

    def __init__(
        self, batch: Batch, tree: Entry | None = None, written_by: Entry | None = None, *, append: Find | None = None
    ) -> None:
        """With `append`, what several datums wrote into one file is put together."""
        self._batch, self._append = batch, append
        self._shared: dict[RepoPath, _Shared] = {}
        self._to_join: set[RepoPath] = set()
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
                elif self._may_share(entry):
                    self._shared.setdefault(path, _Shared()).removed.append(output.key)
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
                elif self._may_share(entry):
                    self._added[path] = output.key
                    self._shared.setdefault(path, _Shared()).added.append(output.key)
                else:
                    self._added[path] = output.key
                    self._results[path], self._writers[path] = entry, writer
            self._apply_if_many()
        self._apply()

    def finish(self) -> None:
        """To be called when all is removed and added: empty directories are made, and those that are none any more go."""
        self._apply()
        self._join_shared()
        for path, change in sorted(self._empty.items()):
            if change:
                self._count_empty(path, change)
        self._apply()
        self._prune()

    def _check(self, path: RepoPath, entry: Entry, key: ObjectId) -> None:
        """Refuse what is in the way of another datum's result, of this call of `add` or from before it."""
        for depth in range(1, len(path) + 1):
            if path[:depth] in self._added and not (depth == len(path) and self._is_shared(path, entry)):
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
            if not at.is_directory:
                if depth + 1 == len(path) and self._is_shared(path, entry):
                    return
                raise OutputClash(path[: depth + 1], self._writers_of(at)[0], key)
        if entry.is_directory:
            return
        for here, found in walk(self._batch, at, path):
            if not found.is_directory:
                raise OutputClash(path, self._writers_of(found)[0], key)
            if self._times_left_empty(found) + self._empty[here] > 0:
                raise OutputClash(path, None, key)

    def _may_share(self, entry: Entry) -> bool:
        return self._append is not None and entry.kind is Kind.FILE

    def _is_shared(self, path: RepoPath, entry: Entry) -> bool:
        """Whether another datum's file at this path, which is there, can be put together with this one."""
        if not self._may_share(entry):
            return False
        if path in self._shared:
            return True
        there = self._results.get(path) or find(self._batch, self.tree, path)
        return path in self._to_join if there is None else there.kind is Kind.FILE

    def _writers_of(self, writer: Entry) -> list[ObjectId]:
        """The keys that an entry of `written_by` names."""
        if writer.target is not None:
            raw = writer.target
        else:
            raw = read_small(self._batch, writer, limit=writer.size)
        return [ObjectId(bytes.fromhex(line)) for line in raw.decode("ascii").split()]

    def _writer(self, keys: Sequence[ObjectId]) -> Entry:
        if len(keys) == 1:
            return symlink_entry(keys[0].hex().encode("ascii"), mtime_ns=MADE_MTIME_NS)
        text = "".join(f"{key.hex()}\n" for key in keys).encode("ascii")
        uid, gid = os.getuid(), os.getgid()
        return file_entry(ingest_bytes(self._batch, text), len(text), uid=uid, gid=gid, mtime_ns=MADE_MTIME_NS)

    def _times_left_empty(self, directory: Entry) -> int:
        return int(load_xattrs(self._batch, directory).get(EMPTY_XATTR, b"0"))

    def _apply_if_many(self) -> None:
        if len(self._writers) + len(self._shared) >= _CHANGES_AT_ONCE:
            self._apply()

    def _apply(self) -> None:
        for path, change in self._shared.items():
            self._change_writers(path, change)
        self._shared = {}
        if self._writers:
            template = empty_directory()
            self.tree = edit_paths(self._batch, self.tree, self._results, parent=template)
            self.written_by = edit_paths(self._batch, self.written_by, self._writers, parent=template)
        self._results, self._writers, self._added, self._directories = {}, {}, {}, {}

    def _change_writers(self, path: RepoPath, change: _Shared) -> None:
        """Note who writes a file from now on; what it has is put together at the end."""
        there = find(self._batch, self.written_by, path)
        keys = [] if there is None else self._writers_of(there)
        gone = set(change.removed)
        keys = [key for key in keys if key not in gone] + change.added
        self._to_join.add(path)
        if keys:
            self._writers[path] = self._writer(keys)
        else:
            self._results[path] = self._writers[path] = None
            self._emptied.add(path[:-1])

    def _join_shared(self) -> None:
        """Put together what the writers of each shared file wrote, in the order of the datums."""
        for path in sorted(self._to_join):
            there = find(self._batch, self.written_by, path)
            if there is None or there.is_directory:
                continue
            assert self._append is not None
            outputs = sorted(map(self._append, self._writers_of(there)), key=lambda output: output.order)
            files = [find(self._batch, output.out, path) for output in outputs]
            self._results[path] = self._joined([file for file in files if file is not None])
            self._writers[path] = self._writer([output.key for output in outputs])
            self._apply_if_many()
        self._to_join = set()
        self._apply()

    def _joined(self, files: Sequence[Entry]) -> Entry:
        if len(files) == 1:
            return files[0]
        id, size = concatenate(self._batch, files)
        # all that is not content is of the last one
        return files[-1].replace(id=id, size=size)

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
