"""A tree from entries that come in any order, in bounded memory.

Directories are built from their entries in order of names, and an archive has them in any. So entries are sorted as
databases sort: runs of bounded size are sorted in memory and spooled, then merged. (Editing a tree in the batch chunk by chunk was
the alternative: for a large directory in random order each chunk rewrites every node, and the store keeps them all until gc.)

A link is what its target was when the link came. It is a question, sorted among the entries by the target and the time: the entry before it is the
answer. Where that is a link too, the question goes on to what that one asked, in another pass over the entries.
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
from pfsmount.objects.batch import Batch
from pfsmount.objects.layout import disk_errors
from pfsmount.tree.directory import EMPTY_DIRECTORY, DirectorySummary
from pfsmount.tree.edit import DirectoryBuilder, replace_contents
from pfsmount.tree.entry import FIXED, Entry, Kind, decode_entry
from pfsmount.tree.node import LeafItem, entry_item

_RUN_BYTES = 16 << 20
_RUN_OVERHEAD = 150
"""What Python needs for a record beside its bytes, roughly."""
_RUNS_MAX = 64
_LENGTHS = struct.Struct("<IQI")
_LINK = b"L"
_NUMBER = struct.Struct("<Q")
_LINKS_REMEMBERED = 100_000
"""Links that are known as such when another link to them comes, which then asks what they ask. So there is a pass for each so many links at most."""

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
        self._runs: list[IO[bytes]] = []
        self._stack = ExitStack()

    def __enter__(self) -> SortedRecords:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, key: bytes, payload: bytes, number: int) -> None:
        """Add a record that came as the `number`th. Raises NoSpace."""
        self._records.append((key, number, payload))
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
        self._batch, self._spool, self._run_bytes = batch, spool, run_bytes
        self._stack = ExitStack()
        self._entries = self._sorted()
        self._questions = self._sorted()
        """Of links: by target, and when it counts; the payload says of which link."""
        self._count = 0
        self._has_links = False
        self._links: dict[bytes, tuple[bytes, int]] = {}
        """Of the last links: what they ask."""

    def _sorted(self) -> SortedRecords:
        return self._stack.enter_context(SortedRecords(self._spool, self._run_bytes))

    def __enter__(self) -> UnsortedTree:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, path: RepoPath, entry: Entry) -> None:
        """An entry; of a directory only the attributes count. The empty path is the tree itself. Raises NoSpace."""
        key = b"\0".join(path)
        self._links.pop(key, None)
        self._entries.add(key, b"".join(entry.encode()), self._count)
        self._count += 1

    def add_link(self, path: RepoPath, target: RepoPath) -> None:
        """What is at `target` now is also at `path`. Raises NoSpace."""
        key, asked = b"\0".join(path), b"\0".join(target)
        question = self._links.get(asked, (asked, self._count))
        if len(self._links) >= _LINKS_REMEMBERED:
            self._links.clear()
        self._links[key] = question
        self._has_links = True
        self._entries.add(key, _asking(*question), self._count)
        self._ask(self._questions, *question, key, self._count)
        self._count += 1

    @staticmethod
    def _ask(questions: SortedRecords, target: bytes, before: int, key: bytes, number: int) -> None:
        questions.add(target, _NUMBER.pack(number) + key, before)

    def build(self, default: Entry, elsewhere: Find) -> Entry:
        """The tree. Directories that were not added have the attributes that `elsewhere` finds, else those of `default`.

        `elsewhere` also finds targets of links that were not in the tree when the link came. Raises NotADirectory (something below a file), NotFound, IsADirectory
        (links), NoSpace.
        """
        default = replace_contents(default.replace(xattrs=b"", xattrs_id=None), EMPTY_DIRECTORY)
        records: Iterator[_Record] = iter(self._entries)
        if self._has_links:
            records = heapq.merge(records, self._answers(elsewhere), key=_when)
        stack = [_Open(self._batch, (), default)]
        last_file: bytes | None = None
        for key, _, payload in _last_of_each(records):
            if last_file is not None and key.startswith(last_file + b"\0"):
                raise NotADirectory(
                    f"the member '{_shown(key)}' lies below '{_shown(last_file)}', which is no directory in the archive"
                )
            path = _split(key)
            self._go_to(stack, path[:-1], default, elsewhere)
            fixed, extra = payload[: FIXED.size], payload[FIXED.size :]
            if payload[0] != Kind.DIRECTORY:
                last_file = key
                stack[-1].builder.add(LeafItem(path[-1], fixed, extra))
            elif path:
                stack.append(_Open(self._batch, path, decode_entry(fixed, extra)))
            else:
                stack[0].entry = decode_entry(fixed, extra)
        self._go_to(stack, (), default, elsewhere)
        return stack[0].closed()

    def _answers(self, elsewhere: Find) -> SortedRecords:
        """For each link, when it came, what it is."""
        answers, questions = self._sorted(), self._questions
        while True:
            further, is_done = self._sorted(), True
            last: _Record | None = None
            # a question goes before what came with its number: a link to itself is what was there before
            for record, is_entry in heapq.merge(
                ((record, True) for record in self._entries),
                ((record, False) for record in questions),
                key=lambda one: (one[0][0], one[0][1], one[1]),
            ):
                if is_entry:
                    last = record
                    continue
                target, before, payload = record
                (number,), key = _NUMBER.unpack_from(payload), payload[_NUMBER.size :]
                found = last[2] if last is not None and last[0] == target else None
                if found is not None and found.startswith(_LINK):
                    (before,), target = _NUMBER.unpack_from(found, 1), found[1 + _NUMBER.size :]
                    self._ask(further, target, before, key, number)
                    is_done = False
                else:
                    answers.add(key, _answer(key, target, found, elsewhere), number)
            if is_done:
                return answers
            questions = further

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


def _asking(target: bytes, before: int) -> bytes:
    """What stands for a link among the entries."""
    return _LINK + _NUMBER.pack(before) + target


def _answer(key: bytes, target: bytes, found: bytes | None, elsewhere: Find) -> bytes:
    """The entry of a link whose target was `found`, else what is elsewhere. Raises NotFound, IsADirectory."""
    if found is None:
        there = elsewhere(_split(target))
        if there is None:
            raise NotFound(
                f"'{_shown(key)}' is a hard link to '{_shown(target)}', which is not in the archive before it"
            )
        found = b"".join(there.encode())
    if found[0] == Kind.DIRECTORY:
        raise IsADirectory(f"'{_shown(key)}' is a hard link to a directory, which nothing can hold")
    return found


def _when(record: _Record) -> tuple[bytes, int]:
    """What records are merged by, where one that stands for a link comes before its answer."""
    return record[:2]


def _last_of_each(records: Iterator[_Record]) -> Iterator[_Record]:
    last: _Record | None = None
    for record in records:
        if last is not None and last[0] != record[0]:
            yield last
        last = record
    if last is not None:
        yield last


def _split(key: bytes) -> RepoPath:
    return tuple(map(EntryName, key.split(b"\0"))) if key else ()


def _shown(key: bytes) -> str:
    return display(path_bytes(_split(key))[1:])
