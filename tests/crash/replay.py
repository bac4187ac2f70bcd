"""From a recording of steps (`iolog.c`): what a power cut may leave on the disk after each of them.

The model is POSIX at its strictest, so no filesystem is assumed to be kinder than it must be:

* What a file held at its last fsync is there. Of the writes and truncations since then any may be there and any missing, and a write may be
  there in part: whole sectors of 512 bytes. Where a later write is there and an earlier one is not, zeros stand between; a size may have grown
  without the bytes.
* A name (create, rename, link, unlink, mkdir) is there for good when the directory was fsynced. Of the changes since then any may be there and
  any missing, each as a whole: a rename is never half done.
* An fsync of a file says nothing about its name. (ext4, XFS and btrfs do promise more: names go in order, and an fsync brings those before it along.
  Those states are among the ones here.)

There are too many combinations to try all. For each prefix of the steps: nothing of what was not fsynced, all of it, names without data, names with
sizes and zeros, data without names, each single one missing, each single one alone, the last one torn, and random choices from a seed.
"""

from __future__ import annotations

import fcntl
import os
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pfsmount.objects.hashing import hash_bytes
from tests.crash.contents import EMPTY, Contents, Edited

HEADER = struct.Struct("<4sIQQQQIIII")
SECTOR = 512
(CREATE, WRITE, TRUNCATE, ZERO, SYNC, RENAME, LINK, UNLINK, MKDIR, RMDIR, SYMLINK, SYNC_ALL, EXCHANGE) = range(1, 14)
MARK = 100
WORDS = [
    "create",
    "write",
    "truncate",
    "zero",
    "sync",
    "rename",
    "link",
    "unlink",
    "mkdir",
    "rmdir",
    "symlink",
    "syncfs",
    "exchange",
]
_DSYNC = 1
_SINGLES_MAX = 6
_VOLATILE = ("index/lock.mdb", "cache/lock.mdb", "run", "reserve")
"""What no power cut leaves, or nobody reads: LMDB makes its lock file anew when nobody has it open; sockets and logs of mounts."""
_LEFT_OVERS = b"jobs/"
"""What runs of jobs work in, and only their sweep looks at afterwards: disks that differ in nothing else are one, built as the first of them was."""


@dataclass(frozen=True, slots=True)
class Step:
    """One record of the log."""

    type: int
    inode: int
    offset: int
    length: int
    flags: int
    path: bytes
    second: bytes
    data: bytes


def read_log(path: Path) -> Iterator[Step]:
    """All records in order."""
    raw = path.read_bytes() if path.exists() else b""
    at = 0
    while at < len(raw):
        magic, type, inode, _, offset, length, flags, first, second, data = HEADER.unpack_from(raw, at)
        assert magic == b"IOLG"
        at += HEADER.size
        parts = []
        for size in (first, second, data):
            parts.append(raw[at : at + size])
            at += size
        yield Step(type, inode, offset, length, flags, *parts)


def mark(path: Path, text: bytes) -> None:
    """Note in a log that something was acknowledged."""
    with path.open("ab") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        file.write(HEADER.pack(b"IOLG", MARK, 0, 0, 0, 0, 0, 0, 0, len(text)) + text)


@dataclass(slots=True, eq=False)
class File:
    """A file or symlink: what is durable, and what was done since."""

    durable: Contents = EMPTY
    pending: list[Step] = field(default_factory=list)
    version: int = 0
    target: bytes | None = None

    def sync(self) -> None:
        if self.pending:
            self.durable = apply(self.durable, self.pending)
            self.pending = []
            self.version += 1


@dataclass(slots=True, eq=False)
class Directory:
    """A directory: the names that are durable, and those that are seen."""

    durable: dict[bytes, Node] = field(default_factory=dict)
    live: dict[bytes, Node] = field(default_factory=dict)


Node = File | Directory


@dataclass(slots=True, eq=False)
class NameChange:
    """An atomic change of names: each of these names becomes that node, or goes away."""

    sets: list[tuple[Directory, bytes, Node | None]]


class Left(NamedTuple):
    """A file that is left, or one name of it."""

    contents: Contents
    file: int
    """Equal for names of one file."""


State = dict[bytes, Left | None]
"""A store on a disk: path below it → its bytes, None for a directory."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What of the pending changes a power cut leaves: names by index, writes by file and index; a torn write keeps only these sectors."""

    names: frozenset[int]
    writes: Mapping[File, tuple[int, ...]]
    torn: tuple[File, int, frozenset[int]] | None = None
    grown: bool = False
    """Files have the size that they would have with all writes, filled with zeros."""


class Disk:
    """The disk under a store, step by step."""

    def __init__(self, root: Path) -> None:
        """Begin with what is at `root` now (nothing, where there is none yet), as durable."""
        self.root_path = os.fsencode(root)
        self.top = Directory()
        self.changes: list[NameChange] = []
        self._nodes: dict[int, Node] = {}
        if root.exists():
            self._scan(root, self.top, b"store")

    def _scan(self, path: Path, above: Directory, name: bytes) -> None:
        info = path.lstat()
        node: Node
        if path.is_symlink():
            node = File(target=os.fsencode(os.readlink(path)))
        elif path.is_dir():
            node = Directory()
            for child in path.iterdir():
                self._scan(child, node, os.fsencode(child.name))
        else:
            node = File(Contents.of(path.read_bytes()))
        above.durable[name] = above.live[name] = node
        self._nodes[info.st_ino] = node

    def _place(self, path: bytes) -> tuple[Directory, bytes]:
        assert path.startswith(self.root_path)
        parts = [b"store", *(part for part in path[len(self.root_path) :].split(b"/") if part)]
        node: Node = self.top
        for part in parts[:-1]:
            assert isinstance(node, Directory)
            node = node.live[part]
        assert isinstance(node, Directory)
        return node, parts[-1]

    def do(self, step: Step) -> None:
        """Take one step further."""
        if step.type in (CREATE, MKDIR, SYMLINK):
            node: Node = Directory() if step.type == MKDIR else File(target=step.data or None)
            self._nodes[step.inode] = node
            self._change((*self._place(step.path), node))
        elif step.type == LINK:
            self._change((*self._place(step.path), self._nodes[step.inode]))
        elif step.type in (UNLINK, RMDIR):
            self._change((*self._place(step.path), None))
        elif step.type in (RENAME, EXCHANGE):
            old, new = self._place(step.path), self._place(step.second)
            back = new[0].live.get(new[1]) if step.type == EXCHANGE else None
            self._change((*old, back), (*new, old[0].live[old[1]]))
        elif step.type == SYNC_ALL:
            for node in self._nodes.values():
                self._sync(node)
        elif step.type == SYNC:
            self._sync(self._nodes[step.inode])
        elif step.type in (WRITE, TRUNCATE, ZERO):
            node = self._nodes[step.inode]
            assert isinstance(node, File)
            node.pending.append(step)
            if step.flags & _DSYNC:
                node.durable = apply(node.durable, [node.pending.pop()])
                node.version += 1

    def _change(self, *sets: tuple[Directory, bytes, Node | None]) -> None:
        for directory, name, node in sets:
            _set(directory.live, name, node)
        if sets[0][0] is self.top:  # the store's own name: whoever made it has to see to that
            _set(self.top.durable, sets[0][1], sets[0][2])
        else:
            self.changes.append(NameChange(list(sets)))

    def _sync(self, node: Node) -> None:
        if isinstance(node, File):
            node.sync()
            return
        later = []
        done: set[tuple[int, bytes]] = set()
        for change in self.changes:
            if any(directory is node for directory, _, _ in change.sets):
                for directory, name, what in change.sets:
                    _set(directory.durable, name, what)
                    done.add((id(directory), name))
            else:
                later.append(change)
        for change in later:  # a change that came before one of the same name is overtaken
            change.sets = [one for one in change.sets if (id(one[0]), one[1]) not in done]
        self.changes = [change for change in later if change.sets]

    # What a power cut leaves

    def pending_files(self) -> list[File]:
        """Files with writes that are not durable, in the order in which they were last seen."""
        return [node for node in dict.fromkeys(self._nodes.values()) if isinstance(node, File) and node.pending]

    def choices(self, rng: random.Random, randoms: int) -> Iterator[Choice]:
        """What may be left: the chosen ones, then `randoms` at random."""
        files = self.pending_files()
        names = frozenset(range(len(self.changes)))
        everything = {file: tuple(range(len(file.pending))) for file in files}
        yield Choice(names, everything)
        if not names and not files:
            return
        yield Choice(frozenset(), {})
        yield Choice(names, {})
        yield Choice(names, {}, grown=True)
        yield Choice(frozenset(), everything)
        for keep in range(1, len(names)):  # as a filesystem with a journal: names in their order
            if keep >= len(names) - _SINGLES_MAX:
                yield Choice(frozenset(range(keep)), everything)
                yield Choice(frozenset(range(keep)), {})
        for index in sorted(names)[-_SINGLES_MAX:]:
            yield Choice(names - {index}, everything)
            yield Choice(frozenset([index]), everything)
        units = [(file, index) for file in files for index in range(len(file.pending))]
        for file, index in units if len(units) <= _SINGLES_MAX else rng.sample(units, _SINGLES_MAX):
            without = {**everything, file: tuple(i for i in everything[file] if i != index)}
            yield Choice(names, without)
            yield Choice(names, {file: (index,)})
            sectors = _sectors(file.pending[index])
            if len(sectors) > 1:
                half = len(sectors) // 2
                yield Choice(names, everything, (file, index, frozenset(sectors[:half])))
                yield Choice(names, everything, (file, index, frozenset(sectors[half:])))
        for _ in range(randoms if units or len(names) > 1 else 0):
            yield self._random(rng, names, everything, units)

    @staticmethod
    def _random(
        rng: random.Random,
        names: frozenset[int],
        everything: Mapping[File, tuple[int, ...]],
        units: list[tuple[File, int]],
    ) -> Choice:
        part = rng.choice((0.2, 0.5, 0.8))
        kept = frozenset(index for index in names if rng.random() < part)
        writes = {file: tuple(i for i in all if rng.random() < part) for file, all in everything.items()}
        torn = None
        if units and rng.random() < 0.5:
            file, index = rng.choice(units)
            sectors = _sectors(file.pending[index])
            torn = (file, index, frozenset(one for one in sectors if rng.random() < 0.5))
        return Choice(kept if rng.random() < 0.5 else names, writes, torn, rng.random() < 0.2)

    def state(self, choice: Choice, content: ContentCache) -> State:
        """The files that a choice leaves."""
        seen = {}

        def names_of(directory: Directory) -> dict[bytes, Node]:
            if directory not in seen:
                seen[directory] = dict(directory.durable)
            return seen[directory]

        for index in sorted(choice.names):
            for directory, name, node in self.changes[index].sets:
                _set(names_of(directory), name, node)
        found: State = {}
        stack: list[tuple[bytes, Node]] = [(b"", self.top)]
        while stack:
            path, node = stack.pop()
            if isinstance(node, File):
                found[path] = Left(content(node, choice), id(node))
                continue
            if path and path != b"store":
                found[path] = None
            for name, child in names_of(node).items():
                below = path + b"/" + name if path else name
                if not _is_volatile(below):
                    stack.append((below, child))
        return {path[len(b"store/") :]: data for path, data in found.items()}


def _is_volatile(path: bytes) -> bool:
    return any(path == b"store/" + name.encode() for name in _VOLATILE)


def _set(names: dict[bytes, Node], name: bytes, node: Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def _sectors(step: Step) -> list[int]:
    """The sectors of a file that a write touches."""
    if step.type != WRITE:
        return []
    return list(range(step.offset // SECTOR, (step.offset + len(step.data) - 1) // SECTOR + 1))


def apply(contents: Contents, steps: Iterable[Step], torn: tuple[int, frozenset[int]] | None = None) -> Contents:
    """`contents` after writes and truncations; of step number `torn[0]` only the sectors `torn[1]`."""
    result = Edited(contents)
    for number, step in enumerate(steps):
        if step.type == TRUNCATE:
            result.resize(step.length)
        elif step.type == ZERO:
            result.zero(step.offset, step.length)
        elif torn is None or torn[0] != number:
            result.write(step.offset, step.data)
        else:
            end = step.offset + len(step.data)
            for sector in sorted(torn[1]):
                start, stop = max(step.offset, sector * SECTOR), min(end, sector * SECTOR + SECTOR)
                result.write(start, step.data[start - step.offset : stop - step.offset])
    return result.done()


class ContentCache:
    """Contents of files under choices, each made once."""

    def __init__(self) -> None:
        self._made: dict[object, Contents] = {}

    def __call__(self, file: File, choice: Choice) -> Contents:
        """What a file holds."""
        kept = choice.writes.get(file, ())
        torn = None if choice.torn is None or choice.torn[0] is not file else choice.torn[1:]
        key = (file, file.version, tuple(id(file.pending[index]) for index in kept), torn, choice.grown)
        made = self._made.get(key)
        if made is None:
            position = None if torn is None or torn[0] not in kept else (kept.index(torn[0]), torn[1])
            made = apply(file.durable, [file.pending[index] for index in kept], position)
            if choice.grown:
                grown = Edited(made)
                grown.resize(max(made.size, apply(file.durable, file.pending).size))
                made = grown.done()
            self._made[key] = made
        return made


def state_key(state: State) -> bytes:
    """Equal for equal states, as far as anything is read of them."""
    names = Counter(left.file for left in state.values() if left is not None)
    return hash_bytes(
        b"".join(
            path + b"\0" + (left.contents.id + b"%d" % names[left.file] if left else b"-")
            for path, left in sorted(state.items(), key=lambda item: item[0])
            if not path.startswith(_LEFT_OVERS)
        )
    )


def build(state: State, root: Path) -> None:
    """Write a state to a directory that does not exist."""
    root.mkdir()
    top = os.fsencode(root)
    first: dict[int, bytes] = {}
    for path in sorted(state):
        left = state[path]
        if left is None:
            os.mkdir(top + b"/" + path)
        elif first.setdefault(left.file, path) != path:
            os.link(top + b"/" + first[left.file], top + b"/" + path)
        else:
            fd = os.open(top + b"/" + path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            left.contents.store(fd)
            os.close(fd)
    (root / "run").mkdir(exist_ok=True)


@dataclass(frozen=True, slots=True)
class Crash:
    """A state of the disk that a power cut may leave."""

    state: State
    after: int
    """How many steps were done."""
    marks: int
    """How many acknowledgements had been given."""
    what: str
    """The last step, and what was chosen."""


def crashes(
    disk: Disk, steps: Iterable[Step], *, seed: int, randoms: int = 8, per_step: int | None = None
) -> Iterator[Crash]:
    """The states to try, equal ones once: after each step all choices, or `per_step` of them. What `randoms` is, see `Disk.choices`."""
    rng = random.Random(seed)
    seen: set[tuple[bytes, int]] = set()
    content = ContentCache()
    todo = [*steps]
    marks = count = 0
    for index, step in enumerate(todo):
        if step.type == MARK:
            marks += 1
        else:
            disk.do(step)
            count += 1
        if index + 1 < len(todo) and todo[index + 1].type == MARK:
            continue  # the same states, of which more is asked a moment later
        word = "acknowledged" if step.type == MARK else WORDS[step.type - 1]
        choices = [*disk.choices(rng, randoms)]
        for choice in choices if per_step is None or per_step > len(choices) else rng.sample(choices, per_step):
            state = disk.state(choice, content)
            key = state_key(state)
            if (key, marks) not in seen:
                seen.add((key, marks))
                yield Crash(state, count, marks, f"{word} {describe(disk, choice)}")


def describe(disk: Disk, choice: Choice) -> str:
    """A choice in words."""
    files = disk.pending_files()
    kept = sum(len(all) for all in choice.writes.values())
    total = sum(len(file.pending) for file in files)
    torn = "" if choice.torn is None else ", one torn"
    grown = ", sizes grown" if choice.grown else ""
    return f"with {len(choice.names)} of {len(disk.changes)} names, {kept} of {total} writes{torn}{grown}"


Check = Callable[[Path, Crash], None]
