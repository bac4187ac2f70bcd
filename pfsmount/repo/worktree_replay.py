"""From the lines of a journal to the state in memory, and back.

`Replay` applies lines one by one, so it serves both for opening a worktree and for looking on while another process owns it.
`snapshot` gives the shortest journal of a state: what a new generation begins with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pfsmount.errors import Corrupt, InvalidInput, PfsError
from pfsmount.ids import EntryName, RepoPath, parse_path, path_bytes
from pfsmount.repo.journal import (
    RENAME_EXCHANGE,
    ROOT_NUMBER,
    Record,
    entry_of,
    entry_record,
    name_bytes,
    name_text,
    value_bytes,
    value_text,
)
from pfsmount.repo.journal_shape import has_shape
from pfsmount.repo.overlay_edit import OverlayEdit
from pfsmount.repo.overlay_nodes import (
    KIND_WORDS,
    KINDS_BY_WORD,
    Change,
    Effects,
    FileData,
    Node,
    NodeKind,
    NoEntry,
    Touched,
    node_kind,
)
from pfsmount.tree.entry import Entry, symlink_entry
from pfsmount.tree.merge import Resolution

_SHOWN = 200


class Replay:
    """Applies journal lines to an overlay that shows the journal's base."""

    def __init__(self, overlay: OverlayEdit) -> None:
        self._overlay = overlay
        self.numbers: dict[int, Node] = {ROOT_NUMBER: overlay.root}
        self.last_number = ROOT_NUMBER
        self.effects = Effects([], [])
        """What changed since they were last taken."""
        if overlay.root.change is None:
            overlay.adopt(overlay.root, ROOT_NUMBER)

    def apply(self, record: Record) -> None:
        """Apply one line. Raises Corrupt for one that does not fit to those before."""
        try:
            if not has_shape(record):
                raise ValueError("no line of a journal")
            getattr(self, f"_{record[0]}")(*record[1:])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, AssertionError, PfsError) as error:
            if isinstance(error, PfsError) and not isinstance(error, InvalidInput | Corrupt | NoEntry):
                raise
            raise Corrupt(f"the journal of a worktree has a line that does not fit: {repr(record)[:_SHOWN]}") from error

    def _changed(self, number: int) -> tuple[Node, Change]:
        node = self.numbers[number]
        if node.change is None:
            raise ValueError("no change")
        self.effects.attributes.append(node.ino)
        return node, node.change

    def _name(self, parent: int, text: str) -> tuple[Node, bytes]:
        directory, name = self.numbers[parent], name_bytes(text)
        if directory.kind is not NodeKind.DIRECTORY:
            raise ValueError("a name in what is no directory")
        self.effects.entries.append((directory.ino, name))
        self.effects.attributes.append(directory.ino)
        return directory, name

    def _enter(self, number: int, node: Node) -> None:
        if number in self.numbers:
            raise ValueError("a number that is taken")
        self.numbers[number] = node
        self.last_number = max(self.last_number, number)

    def _base(self, number: int, parent: int, text: str) -> None:
        directory, name = self._name(parent, text)
        node = self._overlay.lookup(directory, name)
        if node is None or node.change is not None:
            raise ValueError("the base does not have it")
        self._overlay.adopt(node, number)
        self._enter(number, node)

    def _new(
        self,
        number: int,
        parent: int,
        text: str,
        word: str,
        mode: int,
        uid: int,
        gid: int,
        mtime_ns: int,
        extra: str | None,
        time_ns: int | None = None,
    ) -> None:
        directory, name = self._name(parent, text)
        kind = KINDS_BY_WORD[word]
        entry = symlink_entry(name_bytes(extra or ""), uid=uid, gid=gid) if kind is NodeKind.SYMLINK else None
        node = self._overlay.new_node(kind, directory, name, entry)
        node.change = change = Change(number, mode, uid, gid, mtime_ns)
        if kind is NodeKind.FILE:
            change.data = FileData()
        self._overlay.add(directory, name, node, mtime_ns if time_ns is None else time_ns)
        self._enter(number, node)

    def _link(self, number: int, parent: int, text: str, time_ns: int) -> None:
        node, _ = self._changed(number)
        if node.kind is NodeKind.DIRECTORY:
            raise ValueError("a second name of a directory")
        self._overlay.add_link(*self._name(parent, text), node, time_ns)

    def _unlink(self, parent: int, text: str, time_ns: int) -> None:
        directory, name = self._name(parent, text)
        node = self._overlay.lookup(directory, name)
        if node is None:
            raise ValueError("nothing to unlink")
        self._overlay.remove(directory, name, node, time_ns)

    def _rename(self, parent: int, text: str, parent2: int, text2: str, flags: int, time_ns: int) -> None:
        old, new = self._name(parent, text), self._name(parent2, text2)
        node, other = self._overlay.lookup(*old), self._overlay.lookup(*new)
        if node is None:
            raise ValueError("nothing to rename")
        self._stay_a_tree(node, new[0])
        if flags & RENAME_EXCHANGE:
            if other is None:
                raise ValueError("nothing to exchange with")
            self._stay_a_tree(other, old[0])
            self._overlay.exchange(old, node, new, other, time_ns)
            return
        if other is not None:
            self._overlay.remove(*new, other, time_ns)
        self._overlay.rename(old, node, new, time_ns)

    def _stay_a_tree(self, node: Node, into: Node) -> None:
        """Refuse to put a directory into itself: whoever walked that would never end."""
        above: Node | None = into
        while above is not None:
            if above is node:
                raise ValueError("a directory in itself")
            above = above.parent

    def _attr(self, number: int, values: dict[str, int]) -> None:
        node, change = self._changed(number)
        get = values.get
        self._overlay.put_attributes(node, get("mode"), get("uid"), get("gid"), get("mtime_ns"), change.ctime_ns)

    def _xattr(self, number: int, text: str | None, value: str | None) -> None:
        node, change = self._changed(number)
        if text is None:
            change.xattrs = {}
            return
        self._overlay.put_xattr(node, name_bytes(text), value_bytes(value), change.ctime_ns)

    def _whole(self, number: int) -> None:
        node, change = self._changed(number)
        change.data = FileData()
        self._overlay.touch(node)

    def _partial(self, number: int) -> FileData:
        node, change = self._changed(number)
        self._overlay.touch(node)
        if change.data is None:
            if node.entry is None:
                raise ValueError("a part of nothing")
            change.data = FileData(node.entry.size)
        return change.data

    def _size(self, number: int, size: int) -> None:
        data = self._partial(number)
        data.base_size = min(data.base_size, size)
        if data.extents is not None:
            data.extents.clip(size)

    def _extent(self, number: int, offset: int, length: int) -> None:
        data = self._partial(number)
        if data.extents is not None:
            data.extents.add(offset, offset + length)

    def _resolve(self, path: str, how: str, fits: str) -> None:
        self._overlay.decisions[parse_path(name_bytes(path))] = (Resolution(how), fits)

    def _entry(self, number: int, fixed: str, extra: str) -> None:
        node, change = self._changed(number)
        node.entry = entry_of([None, None, fixed, extra])
        change.data = None


@dataclass(slots=True)
class DirectoryState:
    """What a directory that the journal speaks of will be in the next generation."""

    entry: Entry | None
    names: dict[bytes, Node]
    hidden: set[bytes]


@dataclass(frozen=True, slots=True)
class AddedNode:
    """An entry of a tree that the next generation gets as an uncommitted file or directory, by reference."""

    directory: Node
    name: EntryName
    entry: Entry
    number: int
    """In the journal."""


@dataclass(slots=True)
class NextState:
    """How the next generation differs from what is in memory now; empty: not at all."""

    directories: dict[Node, DirectoryState] = field(default_factory=dict)
    entries: dict[Node, Entry] = field(default_factory=dict)
    """New content by reference of files that stay changed, and of nodes that become clean."""
    references: dict[Node, int] = field(default_factory=dict)
    """Files whose data file became a segment: their content is that of `entries`, by reference. And their mtime in ns."""
    in_place: dict[Node, bool] = field(default_factory=dict)
    places: dict[Node, list[tuple[Node, bytes]]] = field(default_factory=dict)
    """The names that a file with several keeps."""
    attributes: dict[Node, tuple[int, int, int]] = field(default_factory=dict)
    """Mode, uid and gid of directories that follow the base."""
    touched: dict[Node, Touched] = field(default_factory=dict)
    """What of a directory's attributes counts as set here."""
    clean: list[Node] = field(default_factory=list)
    """Nodes that show the base from then on."""
    stale: list[Node] = field(default_factory=list)
    """Nodes that lose their name."""
    separate: list[tuple[Node, bytes]] = field(default_factory=list)
    """Names of hard links that become files of their own."""
    added: list[AddedNode] = field(default_factory=list)
    """Names that come by reference."""
    plain: set[Node] = field(default_factory=set)
    """Nodes that give up their own xattrs for those of the base."""
    decisions: dict[RepoPath, tuple[Resolution, str]] = field(default_factory=dict)
    """Settled conflicts that are still of use."""
    effects: Effects = field(default_factory=lambda: Effects([], []))
    """What caches must forget beside what follows from the rest."""

    def directory(self, node: Node) -> DirectoryState:
        """The next state of a directory, or the present one."""
        state = self.directories.get(node)
        if state is not None:
            return state
        assert node.change is not None
        return DirectoryState(node.entry, node.change.names, node.change.hidden)

    def data_of(self, node: Node) -> FileData | None:
        """What a file's data file holds."""
        assert node.change is not None
        return None if node in self.references else node.change.data

    def is_in_place(self, node: Node) -> bool:
        assert node.change is not None
        return self.in_place.get(node, node.change.in_place)

    def primary(self, node: Node) -> tuple[Node | None, bytes]:
        """The name under which a file with several is written first."""
        places = self.places.get(node)
        if places and (node.parent, node.name) not in places:
            return places[0]
        return node.parent, node.name

    def is_empty(self, root: Node) -> bool:
        """True when nothing stays changed."""
        if root.change is None:
            return True
        state = self.directory(root)
        return not (state.names or state.hidden or (root.change.touched and root not in self.clean))


def snapshot(root: Node, after: NextState) -> Iterator[Record]:
    """The lines of a journal that says what is changed. Parents come before their entries."""
    assert root.change is not None
    written: set[int] = {root.change.number}
    yield from _own_records(root, after)
    stack = [root]
    while stack:
        directory = stack.pop()
        change = directory.change
        assert change is not None
        number, time_ns = change.number, change.mtime_ns
        state = after.directory(directory)
        for name in sorted(state.hidden):
            node = state.names.get(name)
            if node is None or not after.is_in_place(node) or after.primary(node) != (directory, name):
                yield ["unlink", number, name_text(name), time_ns]
        for name, node in sorted(state.names.items()):
            assert node.change is not None
            if node.change.number in written:
                continue
            if after.primary(node) != (directory, name):
                continue
            written.add(node.change.number)
            yield from _node_records(node, directory, name, after, time_ns)
            if node.kind is NodeKind.DIRECTORY:
                stack.append(node)
        for added in after.added:
            if added.directory is directory:
                yield from _added_records(added, time_ns)
    yield from _link_records(root, after)
    for path, (how, fits) in sorted(after.decisions.items()):
        yield ["resolve", name_text(path_bytes(path)), how.value, fits]


def _added_records(added: AddedNode, time_ns: int) -> Iterator[Record]:
    assert added.directory.change is not None
    entry, parent = added.entry, added.directory.change.number
    target = None if entry.target is None else name_text(entry.target)
    word = KIND_WORDS[node_kind(entry)]
    owner = (entry.mode, entry.uid, entry.gid)
    yield ["new", added.number, parent, name_text(added.name), word, *owner, entry.mtime_ns, target, time_ns]
    if target is None or entry.xattrs or entry.xattrs_id is not None:
        yield entry_record(added.number, entry)


def _link_records(root: Node, after: NextState) -> Iterator[Record]:
    """Further names of files, once all directories are there."""
    stack = [root]
    while stack:
        directory = stack.pop()
        assert directory.change is not None
        for name, node in sorted(after.directory(directory).names.items()):
            assert node.change is not None
            if node.kind is NodeKind.DIRECTORY:
                stack.append(node)
            elif after.primary(node) != (directory, name):
                time_ns = directory.change.mtime_ns
                yield ["link", node.change.number, directory.change.number, name_text(name), time_ns]


def _node_records(node: Node, directory: Node, name: bytes, after: NextState, time_ns: int) -> Iterator[Record]:
    change, parent = node.change, directory.change
    assert change is not None
    assert parent is not None
    text = name_text(name)
    if after.is_in_place(node):
        yield ["base", change.number, parent.number, text]
    else:
        entry = after.entries.get(node, node.entry)
        if node.kind is NodeKind.DIRECTORY:
            entry = after.directory(node).entry
        target = None
        if node.kind is NodeKind.SYMLINK and entry is not None and entry.target is not None:
            target, entry = name_text(entry.target), None
        word = KIND_WORDS[node.kind]
        owner = (change.mode, change.uid, change.gid)
        mtime_ns, data = after.references.get(node, change.mtime_ns), after.data_of(node)
        yield ["new", change.number, parent.number, text, word, *owner, mtime_ns, target, time_ns]
        if entry is not None and not (data is not None and data.extents is None):
            yield entry_record(change.number, entry)
    yield from _own_records(node, after)


def _own_records(node: Node, after: NextState) -> Iterator[Record]:
    change = node.change
    assert change is not None
    number = change.number
    if after.is_in_place(node):
        values: dict[str, int] = {}
        touched = after.touched.get(node, change.touched)
        if touched & Touched.MODE:
            values["mode"] = change.mode
        if touched & Touched.OWNER:
            values["uid"], values["gid"] = change.uid, change.gid
        if touched & Touched.TIME:
            values["mtime_ns"] = after.references.get(node, change.mtime_ns)
        if values:
            yield ["attr", number, values]
    xattrs = None if node in after.plain else change.xattrs
    if xattrs is not None:
        yield ["xattr", number, None, None]
    for name, value in sorted((xattrs or {}).items()):
        yield ["xattr", number, name_text(name), value_text(value)]
    data = after.data_of(node)
    if data is not None and data.extents is None:
        yield ["whole", number]
    elif data is not None and data.extents is not None:
        yield ["size", number, data.base_size]
        for start, end in data.extents:
            yield ["extent", number, start, end - start]
