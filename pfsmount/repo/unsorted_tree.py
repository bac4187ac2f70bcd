"""A tree from entries that come in any order, in bounded memory.

Directories are built from their entries in order of names, and an archive has them in any. So entries are sorted as
databases sort: runs of bounded size are sorted in memory and spooled, then merged. (Editing a tree in the batch chunk by chunk was
the alternative: for a large directory in random order each chunk rewrites every node, and the store keeps them all until gc.)
"""

from __future__ import annotations

import heapq
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from pfsmount.errors import IsADirectory, NotADirectory, NotFound
from pfsmount.ids import EntryName, RepoPath, display, path_bytes
from pfsmount.objects.layout import disk_errors
from pfsmount.objects.store import Batch
from pfsmount.tree.directory import EMPTY_DIRECTORY, DirectorySummary, find
from pfsmount.tree.edit import DirectoryBuilder, edit_paths, replace_contents
from pfsmount.tree.entry import FIXED, Entry, Kind, decode_entry
from pfsmount.tree.node import LeafItem, entry_item

_RUN_BYTES = 16 << 20
_RUN_OVERHEAD = 150
"""What Python needs for a record beside its bytes, roughly."""
_RUNS_MAX = 64
_LENGTHS = struct.Struct("<IQI")
_LINK = b"L"
_LINKS_AT_ONCE = 10_000

Find = Callable[[RepoPath], Entry | None]
"""What is at a path of another tree."""
_Record = tuple[bytes, int, bytes]
"""Key, number in the order of arrival, payload."""


class SortedRecords:
    """Records come in any order and go out by key, then by arrival. A context manager; spools to `directory`."""

    def __init__(self, directory: Path, run_bytes: int = _RUN_BYTES) -> None:
        self._directory, self._run_bytes = directory, run_bytes
        self._records: list[_Record] = []
        self._bytes = 0
        self._count = 0
        self._runs: list[IO[bytes]] = []
        self._stack = ExitStack()

    def __enter__(self) -> SortedRecords:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, key: bytes, payload: bytes) -> None:
        """Add a record. Raises NoSpace."""
        self._records.append((key, self._count, payload))
        self._count += 1
        self._bytes += len(key) + len(payload) + _RUN_OVERHEAD
        if self._bytes >= self._run_bytes:
            with disk_errors("sorting the members of the archive"):
                self._spill()

    def _spill(self) -> None:
        self._records.sort()
        self._runs.append(self._write(iter(self._records)))
        self._records = []
        self._bytes = 0
        if len(self._runs) >= _RUNS_MAX:
            merged = self._write(heapq.merge(*map(_read_run, self._runs)))
            for run in self._runs:
                run.close()
            self._runs = [merged]

    def _write(self, records: Iterator[_Record]) -> IO[bytes]:
        file = tempfile.TemporaryFile(dir=self._directory, buffering=1 << 20)  # noqa: SIM115  # nameless: a kill leaves nothing
        self._stack.callback(file.close)
        for key, number, payload in records:
            file.write(_LENGTHS.pack(len(key), number, len(payload)) + key + payload)
        file.flush()
        return file

    def __iter__(self) -> Iterator[_Record]:
        """All records, in order."""
        self._records.sort()
        return heapq.merge(*map(_read_run, self._runs), self._records) if self._runs else iter(self._records)


def _read_run(file: IO[bytes]) -> Iterator[_Record]:
    file.seek(0)
    while header := file.read(_LENGTHS.size):
        key_length, number, length = _LENGTHS.unpack(header)
        yield file.read(key_length), number, file.read(length)


class _Open:
    """A directory on the way down to where the entries now go."""

    def __init__(self, batch: Batch, path: RepoPath, entry: Entry) -> None:
        self.path, self.entry = path, entry
        self.builder = DirectoryBuilder(batch)

    def closed(self) -> Entry:
        return replace_contents(self.entry, DirectorySummary.of(self.builder.finish()))


class UnsortedTree:
    """Takes entries in any order; of several at one path the last counts. A context manager."""

    def __init__(self, batch: Batch, spool: Path, *, run_bytes: int = _RUN_BYTES) -> None:
        self._batch = batch
        self._stack = ExitStack()
        self._entries = self._stack.enter_context(SortedRecords(spool, run_bytes))
        self._links = self._stack.enter_context(SortedRecords(spool, run_bytes))

    def __enter__(self) -> UnsortedTree:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, path: RepoPath, entry: Entry) -> None:
        """An entry; of a directory only the attributes count. The empty path is the tree itself. Raises NoSpace."""
        self._entries.add(b"\0".join(path), b"".join(entry.encode()))

    def add_link(self, path: RepoPath, target: RepoPath) -> None:
        """What is at `target` in the end is also at `path`."""
        self._entries.add(b"\0".join(path), _LINK + b"\0".join(target))

    def build(self, default: Entry, elsewhere: Find) -> Entry:
        """The tree. Directories that were not added have the attributes that `elsewhere` finds, else those of `default`.

        `elsewhere` also finds targets of links that are not in the tree. Raises NotADirectory (something below a file), NotFound, IsADirectory
        (links), NoSpace.
        """
        default = replace_contents(default.replace(xattrs=b"", xattrs_id=None), EMPTY_DIRECTORY)
        stack = [_Open(self._batch, (), default)]
        last_file: bytes | None = None
        for key, _, payload in self._last_of_each():
            if last_file is not None and key.startswith(last_file + b"\0"):
                raise NotADirectory(
                    f"the member '{_shown(key)}' lies below '{_shown(last_file)}', which is no directory in the archive"
                )
            path = _split(key)
            self._go_to(stack, path[:-1], default, elsewhere)
            if payload.startswith(_LINK):
                last_file = key
                self._links.add(b"", _LENGTHS.pack(len(key), 0, 0) + key + payload[1:])
                continue
            fixed, extra = payload[: FIXED.size], payload[FIXED.size :]
            if payload[0] != Kind.DIRECTORY:
                last_file = key
                stack[-1].builder.add(LeafItem(path[-1], fixed, extra))
            elif path:
                stack.append(_Open(self._batch, path, decode_entry(fixed, extra)))
            else:
                stack[0].entry = decode_entry(fixed, extra)
        self._go_to(stack, (), default, elsewhere)
        return self._with_links(stack[0].closed(), default, elsewhere)

    def _last_of_each(self) -> Iterator[_Record]:
        last: _Record | None = None
        for record in self._entries:
            if last is not None and last[0] != record[0]:
                yield last
            last = record
        if last is not None:
            yield last

    def _go_to(self, stack: list[_Open], path: RepoPath, default: Entry, elsewhere: Find) -> None:
        """Close the directories that are done, and open those on the way to `path`."""
        while stack[-1].path != path[: len(stack) - 1]:
            done = stack.pop()
            stack[-1].builder.add(entry_item(done.path[-1], done.closed()))
        for depth in range(len(stack), len(path) + 1):
            there = elsewhere(path[:depth])
            stack.append(
                _Open(self._batch, path[:depth], there if there is not None and there.is_directory else default)
            )

    def _with_links(self, tree: Entry, default: Entry, elsewhere: Find) -> Entry:
        changes: dict[RepoPath, Entry | None] = {}
        for _, _, payload in self._links:
            (length, _, _), rest = _LENGTHS.unpack_from(payload), payload[_LENGTHS.size :]
            path, target = _split(rest[:length]), _split(rest[length:])
            entry = changes.get(target) or find(self._batch, tree, target) or elsewhere(target)
            if entry is None:
                raise NotFound(
                    f"'{_shown(rest[:length])}' is a hard link to '{_shown(rest[length:])}', which is not in the archive"
                )
            if entry.kind is Kind.DIRECTORY:
                raise IsADirectory(f"'{_shown(rest[:length])}' is a hard link to a directory, which nothing can hold")
            changes[path] = entry
            if len(changes) >= _LINKS_AT_ONCE:
                tree = edit_paths(self._batch, tree, changes, parent=default)
                changes = {}
        return edit_paths(self._batch, tree, changes, parent=default)


def _split(key: bytes) -> RepoPath:
    return tuple(map(EntryName, key.split(b"\0"))) if key else ()


def _shown(key: bytes) -> str:
    return display(path_bytes(_split(key))[1:])
