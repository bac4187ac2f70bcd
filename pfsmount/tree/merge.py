"""Three-way merge of trees, at the cost of the changes.

    plan = plan_merge(objects, base, mine, theirs)
    if not plan.conflicts:
        with objects.batch() as batch:
            root = carry_out(batch, plan)

Only directories that both sides changed are opened. In each, the differences of both sides from the base are read in step until one side has no
more: the side with fewer differences is laid over the other one, whose further changes are not even looked at.

At one path, in this order: what one side left as it was is taken from the other; equal changes are one change; times never conflict (the newer
one counts, and against a deletion or a replacement a new time counts for nothing); content, permission bits, owner and xattrs of a file merge each by itself; directories
that both sides have are joined. Everything else is a conflict. Where one side deleted a directory, each path that the other side changed below it is one; or the
directory itself, with all below it, when the other side changed its permission bits, owner or xattrs.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pfsmount.ids import NAME_MAX, EntryName, ObjectId, RepoPath
from pfsmount.objects.batch import Batch
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.reading import Reader
from pfsmount.tree.diff import diff, directory_pairs
from pfsmount.tree.directory import EMPTY_DIRECTORY, lookup
from pfsmount.tree.edit import edit_directory, replace_contents
from pfsmount.tree.entry import Entry, Kind, decode_entry, file_entry
from pfsmount.tree.node import LeafItem


class Reason(enum.Enum):
    """Why a path cannot be merged."""

    CONTENT = "content"
    """Both sides changed what is there, differently."""
    ADDED = "added"
    """Both sides added something else."""
    KIND = "kind"
    """A file on one side, a directory or symlink on the other."""
    DELETED = "deleted"
    """One side deleted it, or a directory above, and the other changed or added it."""
    ATTRIBUTES = "attributes"
    """Both sides set mode, owner or xattrs, differently."""


class Resolution(enum.Enum):
    """How a conflict is settled."""

    MINE = "mine"
    THEIRS = "theirs"
    BOTH = "both"
    """Mine at the path, theirs beside it; of a deletion and a change the change; of attributes mine."""
    NEITHER = "neither"
    """Something that no side has, so that any two sides that differ are in conflict: for the base of a criss-cross."""


@dataclass(frozen=True, slots=True)
class TreeConflict:
    """One path that cannot be merged, with what each side has there (None: nothing)."""

    path: RepoPath
    reason: Reason
    base: Entry | None
    mine: Entry | None
    theirs: Entry | None


Decide = Callable[[TreeConflict], Resolution | None]


@dataclass(slots=True, eq=False)
class MergedDirectory:
    """A directory that both sides changed: `entry` has its attributes and the contents of one side, `changes` go on top."""

    entry: Entry
    changes: dict[EntryName, MergedDirectory | Entry | None] = field(default_factory=dict)
    optional: bool = False
    """One side deleted it: it stays only if something is in it."""
    result: Entry | None = None


@dataclass(slots=True)
class MergePlan:
    """What a merge comes to. Can be carried out when there are no conflicts."""

    root: MergedDirectory
    directories: list[MergedDirectory] = field(default_factory=list)
    """Parents before children."""
    conflicts: list[TreeConflict] = field(default_factory=list)
    settled: list[tuple[TreeConflict, Resolution]] = field(default_factory=list)
    """Conflicts that `decide` settled."""


def plan_merge(
    objects: Reader,
    base: Entry | None,
    mine: Entry,
    theirs: Entry,
    *,
    decide: Decide | None = None,
    label: bytes = b"theirs",
) -> MergePlan:
    """Merge two directories over the version that both come from; None: they have none in common.

    `decide` may settle a conflict. `label` goes into the names that BOTH makes. Writes nothing. Raises NotFound, Corrupt.
    """
    return _Planner(objects, decide or (lambda conflict: None), label).run(base, mine, theirs)


def carry_out(batch: Batch, plan: MergePlan) -> Entry:
    """Store the merged tree and return its root. The plan has no conflicts. Raises NoSpace."""
    assert not plan.conflicts
    for directory in reversed(plan.directories):
        changes = {
            name: change.result if isinstance(change, MergedDirectory) else change
            for name, change in directory.changes.items()
        }
        summary = edit_directory(batch, directory.entry.id, changes)
        empty = summary.id == EMPTY_DIRECTORY.id
        directory.result = None if directory.optional and empty else replace_contents(directory.entry, summary)
    assert plan.root.result is not None
    return plan.root.result


@dataclass(slots=True)
class _Open:
    """A directory on its way: what each side has; at most one of `mine` and `theirs` is None (deleted)."""

    merged: MergedDirectory
    path: RepoPath
    base: ObjectId | None
    mine: ObjectId | None
    theirs: ObjectId | None
    onto_mine: bool = True


class _Planner:
    def __init__(self, objects: Reader, decide: Decide, label: bytes) -> None:
        self._objects, self._decide, self._label = objects, decide, label
        self._todo: list[_Open] = []

    def run(self, base: Entry | None, mine: Entry, theirs: Entry) -> MergePlan:
        self._plan = plan = MergePlan(MergedDirectory(mine))
        plan.directories.append(plan.root)
        if base == mine:
            plan.root.entry = theirs
        elif base != theirs:
            self._join(plan.root, (), base, mine, theirs)
        while self._todo:
            self._fill(self._todo.pop())
        return plan

    # Directories

    def _join(
        self, merged: MergedDirectory, path: RepoPath, base: Entry | None, mine: Entry | None, theirs: Entry | None
    ) -> None:
        """A directory that both sides have, or that one has and the other deleted."""
        base = base if base is not None and base.is_directory else None
        if mine is not None and theirs is not None:
            merged.entry = self._attributes(path, base, mine, theirs, mine)
            if mine.id == theirs.id:
                return
        opened = _Open(merged, path, _id(base), _id(mine), _id(theirs))
        self._todo.append(opened)

    def _below(self, at: _Open, name: EntryName, base: Entry | None, mine: Entry | None, theirs: Entry | None) -> None:
        there = mine or theirs
        assert there is not None
        child = MergedDirectory(there, optional=mine is None or theirs is None)
        at.merged.changes[name] = child
        self._plan.directories.append(child)
        self._join(child, (*at.path, name), base, mine, theirs)

    def _fill(self, at: _Open) -> None:
        if at.mine is None or at.theirs is None:
            at.merged.entry = replace_contents(at.merged.entry, EMPTY_DIRECTORY)
            there = at.theirs if at.mine is None else at.mine
            for name, before, after in directory_pairs(self._objects, self._objects, at.base, there):
                self._merge_deleted(at, name, _entry(before), _entry(after))
            return
        at.onto_mine, pairs = self._fewer(at)
        if not at.onto_mine:
            at.merged.entry = at.merged.entry.replace(id=at.theirs)
        for name, before, after in pairs:
            base, other = _entry(before), lookup(self._objects, at.mine if at.onto_mine else at.theirs, name)
            mine, theirs = (other, _entry(after)) if at.onto_mine else (_entry(after), other)
            self._merge(at, name, base, mine, theirs)

    def _fewer(self, at: _Open) -> tuple[bool, list[tuple[EntryName, LeafItem | None, LeafItem | None]]]:
        """True for theirs (to be laid onto mine) and its differences from the base, or False and those of mine: whichever has fewer."""
        streams = [
            directory_pairs(self._objects, self._objects, at.base, at.theirs),
            directory_pairs(self._objects, self._objects, at.base, at.mine),
        ]
        found: list[list[tuple[EntryName, LeafItem | None, LeafItem | None]]] = [[], []]
        while True:
            for i in (0, 1):
                pair = next(streams[i], None)
                if pair is None:
                    return i == 0, found[i]
                found[i].append(pair)

    # Entries

    def _merge(self, at: _Open, name: EntryName, base: Entry | None, mine: Entry | None, theirs: Entry | None) -> None:
        if mine == theirs or base == theirs:
            self._set(at, name, mine, mine, theirs)
        elif base == mine:
            self._set(at, name, theirs, mine, theirs)
        elif mine is None or theirs is None:
            self._deleted(at, name, base, mine, theirs)
        elif mine.is_directory and theirs.is_directory:
            self._below(at, name, base, mine, theirs)
        elif mine.kind is theirs.kind:
            self._files(at, name, base, mine, theirs)
        elif base is not None and only_times(self._objects, base, theirs):
            self._set(at, name, mine, mine, theirs)
        elif base is not None and only_times(self._objects, base, mine):
            self._set(at, name, theirs, mine, theirs)
        else:
            self._conflict(at, name, Reason.KIND, base, mine, theirs)

    def _deleted(
        self, at: _Open, name: EntryName, base: Entry | None, mine: Entry | None, theirs: Entry | None
    ) -> None:
        there = mine or theirs
        assert there is not None
        assert base is not None
        if base.is_directory and there.is_directory and _differ_in_time(base, there):
            self._below(at, name, base, mine, theirs)
        elif only_times(self._objects, base, there):
            self._set(at, name, None, mine, theirs)
        else:
            self._conflict(at, name, Reason.DELETED, base, mine, theirs)

    def _merge_deleted(self, at: _Open, name: EntryName, base: Entry | None, there: Entry | None) -> None:
        """What one side changed in a directory that the other deleted."""
        if there is None:
            return
        mine, theirs = (None, there) if at.mine is None else (there, None)
        if base is None:
            self._conflict(at, name, Reason.DELETED, None, mine, theirs)
        else:
            self._deleted(at, name, base, mine, theirs)

    def _files(self, at: _Open, name: EntryName, base: Entry | None, mine: Entry, theirs: Entry) -> None:
        """Two files, or two symlinks."""
        if base is None or base.kind is not mine.kind:
            if not mine.same_content(theirs):
                reason = Reason.ADDED if base is None else Reason.CONTENT
                self._conflict(at, name, reason, base, mine, theirs)
                return
            content, base = mine, None
        elif mine.id == theirs.id or theirs.id == base.id:
            content = mine
        elif mine.id == base.id:
            content = theirs
        else:
            self._conflict(at, name, Reason.CONTENT, base, mine, theirs)
            return
        self._set(at, name, self._attributes((*at.path, name), base, mine, theirs, content), mine, theirs)

    def _attributes(self, path: RepoPath, base: Entry | None, mine: Entry, theirs: Entry, content: Entry) -> Entry:
        """`content` with the merged attributes; mine where they are in conflict."""
        fields = merge_attributes(base, mine, theirs)
        if fields is None:
            how = self._settle(TreeConflict(path, Reason.ATTRIBUTES, base, mine, theirs))
            fields = merge_attributes(base, mine, theirs, prefer=theirs if how is Resolution.THEIRS else mine)
            assert fields is not None
            if how is Resolution.NEITHER:
                fields |= _NOBODYS  # as no side has it, so that any two sides that differ are in conflict
        return content.replace(**fields)

    # Results

    def _settle(self, conflict: TreeConflict) -> Resolution | None:
        how = self._decide(conflict)
        if how is None:
            self._plan.conflicts.append(conflict)
        else:
            self._plan.settled.append((conflict, how))
        return how

    def _conflict(
        self,
        at: _Open,
        name: EntryName,
        reason: Reason,
        base: Entry | None,
        mine: Entry | None,
        theirs: Entry | None,
    ) -> None:
        match self._settle(TreeConflict((*at.path, name), reason, base, mine, theirs)):
            case Resolution.MINE:
                self._set(at, name, mine, mine, theirs)
            case Resolution.THEIRS:
                self._set(at, name, theirs, mine, theirs)
            case Resolution.BOTH:
                self._set(at, name, mine or theirs, mine, theirs)
                if mine is not None and theirs is not None:
                    beside = name_beside(
                        name, self._label, lambda other: self._is_taken(at, other), is_directory=theirs.is_directory
                    )
                    at.merged.changes[beside] = theirs
            case Resolution.NEITHER:
                ids = sorted(entry.id for entry in (mine, theirs) if entry is not None)
                at.merged.changes[name] = file_entry(hash_bytes(b"neither" + b"".join(ids)), 0)

    def _set(self, at: _Open, name: EntryName, entry: Entry | None, mine: Entry | None, theirs: Entry | None) -> None:
        if at.mine is None or at.theirs is None:
            there = None
        else:
            there = mine if at.onto_mine else theirs
        if entry != there:
            at.merged.changes[name] = entry

    def _is_taken(self, at: _Open, name: EntryName) -> bool:
        sides = [side for side in (at.mine, at.theirs) if side is not None]
        return name in at.merged.changes or any(lookup(self._objects, side, name) is not None for side in sides)


def merge_attributes(
    base: Entry | None, mine: Entry, theirs: Entry, *, prefer: Entry | None = None
) -> dict[str, Any] | None:
    """Mode, owner, xattrs and time that two changes of an entry come to, each by itself; None when one is in conflict and `prefer` is not given.

    Without a base, mode and owner are those of the newer entry.
    """
    newer = max(mine, theirs, key=lambda entry: (entry.mtime_ns, entry.mode, entry.uid, entry.gid))
    fields: dict[str, Any] = {"mtime_ns": newer.mtime_ns}
    if base is not None and base.mtime_ns in (mine.mtime_ns, theirs.mtime_ns):
        fields["mtime_ns"] = theirs.mtime_ns if mine.mtime_ns == base.mtime_ns else mine.mtime_ns
    for names in _FIELDS:
        ours, others = _values(mine, names), _values(theirs, names)
        before = None if base is None else _values(base, names)
        if ours == others or others == before:
            values = ours
        elif ours == before:
            values = others
        elif base is None and names is not _XATTRS:
            values = _values(newer, names)
        elif prefer is not None:
            values = _values(prefer, names)
        else:
            return None
        fields.update(zip(names, values, strict=True))
    return fields


def only_times(objects: Reader, base: Entry, there: Entry) -> bool:
    """True when a side changed nothing but times, at and below a path: no edit, against a deletion. Raises NotFound, Corrupt."""
    if base.is_directory and there.is_directory:
        if base.content != there.content:
            return False
        changes = diff(objects, base, there)
        return all(
            change.old is not None and change.new is not None and _differ_in_time(change.old, change.new)
            for change in changes
        )
    return _differ_in_time(base, there)


_XATTRS = ("xattrs", "xattrs_id")
_NOBODYS = {"mode": 0o7000, "uid": 0xFFFFFFFF, "gid": 0xFFFFFFFF, "xattrs": b"", "xattrs_id": ObjectId(b"\xff" * 32)}
_FIELDS = (("mode",), ("uid", "gid"), _XATTRS)


def _values(entry: Entry, names: tuple[str, ...]) -> tuple[object, ...]:
    return tuple(getattr(entry, name) for name in names)


def _differ_in_time(old: Entry, new: Entry) -> bool:
    """True when at most the time differs; of a directory, also what is in it."""
    if old.kind is not new.kind or (old.kind is not Kind.DIRECTORY and old.id != new.id):
        return False
    return all(_values(old, names) == _values(new, names) for names in _FIELDS)


def _entry(item: LeafItem | None) -> Entry | None:
    return None if item is None else decode_entry(item.fixed, item.extra)


def _id(entry: Entry | None) -> ObjectId | None:
    return None if entry is None else entry.id


# Names


def name_beside(
    name: EntryName, label: bytes, is_taken: Callable[[EntryName], bool], *, is_directory: bool
) -> EntryName:
    """A free name for another version of a file: `cat.jpg` from `dev` is `cat~dev.jpg`, then `cat~dev-2.jpg`. At most 255 bytes."""
    stem, ending = name, b""
    dot = name.rfind(b".")
    if not is_directory and dot > 0 and len(name) - dot <= _ENDING_MAX:
        stem, ending = EntryName(name[:dot]), name[dot:]
    for tail in _tails(label):
        room = NAME_MAX - len(tail) - len(ending)
        found = EntryName(_cut(stem, room) + tail + ending)
        if not is_taken(found):
            return found
    raise AssertionError("unreachable")


_ENDING_MAX = 16
_LABEL_MAX = 100


def _tails(label: bytes) -> Iterator[bytes]:
    label = b"~" + _cut(label, _LABEL_MAX)
    yield label
    number = 2
    while True:
        yield b"%b-%d" % (label, number)
        number += 1


def _cut(text: bytes, size: int) -> bytes:
    """At most `size` bytes, not ending within a character of UTF-8."""
    if len(text) <= size:
        return text
    end = size
    while end > size - 4 and end > 0 and text[end] & 0xC0 == 0x80:
        end -= 1
    return text[: end if text[end] & 0xC0 != 0x80 else size]
