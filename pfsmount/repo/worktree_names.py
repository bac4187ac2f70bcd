"""Names in a worktree: create, link, unlink, rename, with a journal line for each.

The order in every operation: look everything up (what may raise `WouldBlock` has changed nothing), check what POSIX forbids,
write the line, change the memory. When the line cannot be written nothing has happened.
"""

from __future__ import annotations

from pfsmount.errors import (
    DirectoryNotEmpty,
    InvalidInput,
    IsADirectory,
    NotADirectory,
    NotPermitted,
)
from pfsmount.ids import NAME_MAX, RESERVED_ROOT_NAME
from pfsmount.repo.journal import RENAME_EXCHANGE, RENAME_NOREPLACE, Journal, Record, name_text
from pfsmount.repo.overlay import now_ns
from pfsmount.repo.overlay_edit import OverlayEdit, wants_setgid
from pfsmount.repo.overlay_nodes import (
    KIND_WORDS,
    Change,
    FileData,
    NameTaken,
    NameTooLong,
    Node,
    NodeKind,
    NoEntry,
    Stale,
    State,
)
from pfsmount.tree.entry import symlink_entry


class WorktreeNames(OverlayEdit):
    """An overlay whose changes are journaled."""

    journal: Journal | None = None
    """None: nothing is changed, or another process owns the worktree."""
    last_number = 1

    def begin(self) -> None:
        """Become the owner and start a journal, when there is none. Raises ReadOnly, NoSpace."""
        raise NotImplementedError

    # Journaling

    def append(self, node: Node, record: Record) -> None:
        """Write a line about a node; what has no name any more is not worth one. Raises NoSpace."""
        if node.state is State.NAMED:
            assert self.journal is not None
            self.journal.append(record)

    def number(self) -> int:
        """A number for the journal that was never used."""
        self.last_number += 1
        return self.last_number

    def promote(self, node: Node) -> Change:
        """Let the journal speak of a node and of all directories above it. Raises Stale, NoSpace."""
        if node.change is not None:
            return node.change
        chain = [node]
        while (parent := chain[-1].parent) is not None and parent.change is None:
            chain.append(parent)
        if any(not self.current(at) and at.state is State.STALE for at in chain):
            raise Stale("the file went away when the branch moved")
        for at in reversed(chain[1:]):
            self._promote_one(at)
        return self._promote_one(node)

    def _promote_one(self, node: Node) -> Change:
        number = self.number()
        if node.state is State.NAMED:
            assert node.parent is not None
            assert node.parent.change is not None
            parent = node.parent.change.number
            self.append(node, ["base", number, parent, name_text(node.name)])
        return self.adopt(node, number)

    def writable(self, node: Node) -> None:
        """Refuse what was discarded or replaced. Raises Stale, ReadOnly, NoSpace."""
        if node.state is State.STALE:
            raise Stale("the file went away when the branch moved or changes were discarded")
        self.begin()

    def _new_name(self, directory: Node, name: bytes) -> None:
        """Check a name that is to be made. Raises NameTooLong, NotPermitted, NoEntry."""
        if len(name) > NAME_MAX:
            raise NameTooLong(f"a name of {len(name)} bytes is too long")
        if not name or name in (b".", b".."):
            raise InvalidInput("'.' and '..' cannot be made")
        if directory is self.root and name == RESERVED_ROOT_NAME:
            raise NotPermitted("the name '.pfs' at the root of a branch belongs to pfs")
        if directory.state is State.UNLINKED:
            raise NoEntry

    def existing(self, directory: Node, name: bytes) -> Node:
        """The node of a name. Raises NoEntry."""
        if len(name) > NAME_MAX:
            raise NameTooLong(f"a name of {len(name)} bytes is too long")
        node = self.lookup(directory, name)
        if node is None:
            raise NoEntry
        return node

    # Making

    def make(
        self,
        directory: Node,
        name: bytes,
        kind: NodeKind,
        *,
        mode: int,
        uid: int,
        gid: int,
        target: bytes | None = None,
    ) -> Node:
        """A new file, directory, symlink (to `target`), FIFO or socket.

        Raises NameTaken, NameTooLong, NotPermitted, NoEntry (the directory was removed), Stale, ReadOnly, NoSpace, OSError.
        """
        self._new_name(directory, name)
        if self.lookup(directory, name) is not None:
            raise NameTaken
        self.writable(directory)
        parent = self.promote(directory)
        mode, gid = wants_setgid(directory, kind, mode & 0o7777, gid)
        time_ns = now_ns()
        entry = symlink_entry(target or b"", uid=uid, gid=gid, mtime_ns=time_ns) if kind is NodeKind.SYMLINK else None
        number = self.number()
        if kind is NodeKind.FILE:
            self.data.create(number)
        extra = None if entry is None or entry.target is None else name_text(entry.target)
        owner = (mode, uid, gid)
        word = KIND_WORDS[kind]
        try:
            self.append(directory, ["new", number, parent.number, name_text(name), word, *owner, time_ns, extra])
        except BaseException:
            if kind is NodeKind.FILE:
                self.data.delete(number)
            raise
        node = self.new_node(kind, directory, name, entry)
        node.change = Change(number, mode, uid, gid, time_ns)
        if kind is NodeKind.FILE:
            node.change.data = FileData()
        self.add(directory, name, node, time_ns)
        return node

    def link(self, node: Node, directory: Node, name: bytes) -> None:
        """Another name for a file. Raises as `make`, and NotPermitted for a directory."""
        if node.kind is NodeKind.DIRECTORY:
            raise NotPermitted("a directory has one name only")
        if node.state is State.UNLINKED:
            raise NoEntry
        self._new_name(directory, name)
        if self.lookup(directory, name) is not None:
            raise NameTaken
        self.writable(node)
        parent, change = self.promote(directory), self.promote(node)
        time_ns = now_ns()
        self.append(directory, ["link", change.number, parent.number, name_text(name), time_ns])
        self.add_link(directory, name, node, time_ns)

    # Removing

    def unlink(self, directory: Node, name: bytes) -> Node:
        """Remove a name of anything but a directory; returns the node. Raises NoEntry, IsADirectory, Stale, ReadOnly, NoSpace."""
        node = self.existing(directory, name)
        if node.kind is NodeKind.DIRECTORY:
            raise IsADirectory("a directory is removed with rmdir")
        self._remove(directory, name, node)
        return node

    def rmdir(self, directory: Node, name: bytes) -> Node:
        """Remove an empty directory; returns the node. Raises NoEntry, NotADirectory, DirectoryNotEmpty, Stale, ReadOnly, NoSpace."""
        node = self.existing(directory, name)
        if node.kind is not NodeKind.DIRECTORY:
            raise NotADirectory("only a directory is removed with rmdir")
        if not self.is_empty(node):
            raise DirectoryNotEmpty("the directory is not empty")
        self._remove(directory, name, node)
        return node

    def _remove(self, directory: Node, name: bytes, node: Node) -> None:
        self.writable(directory)
        parent = self.promote(directory)
        time_ns = now_ns()
        self.append(directory, ["unlink", parent.number, name_text(name), time_ns])
        self.remove(directory, name, node, time_ns)

    # Renaming

    def move(self, directory: Node, name: bytes, directory2: Node, name2: bytes, flags: int = 0) -> None:
        """Rename, over what is there; flags NOREPLACE (1) or EXCHANGE (2).

        Raises NoEntry, NameTaken, IsADirectory, NotADirectory, DirectoryNotEmpty, InvalidInput (into itself, flags),
        NameTooLong, NotPermitted, Stale, ReadOnly, NoSpace.
        """
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise InvalidInput(f"rename does not know the flags {flags}")
        self._new_name(directory2, name2)
        node = self.existing(directory, name)
        other = self.lookup(directory2, name2)
        exchange = flags == RENAME_EXCHANGE
        self._check_move(node, directory2, other, flags)
        if exchange:
            self._new_name(directory, name)
            assert other is not None
            if other.kind is NodeKind.DIRECTORY and self.is_below(directory, other):
                raise InvalidInput("a directory cannot be moved into itself")
        if other is node:
            return
        self.writable(directory)
        self.writable(directory2)
        parent, parent2 = self.promote(directory), self.promote(directory2)
        self.promote(node)
        if exchange and other is not None:
            self.promote(other)
        if other is not None and node.change is not None and node.change.data is not None:
            self.data.sync_first(node.change.number)  # it will show where another file did
        time_ns = now_ns()
        text, text2 = name_text(name), name_text(name2)
        self.append(directory, ["rename", parent.number, text, parent2.number, text2, flags, time_ns])
        if exchange and other is not None:
            self.exchange((directory, name), node, (directory2, name2), other, time_ns)
            return
        if other is not None:
            self.remove(directory2, name2, other, time_ns)
        self.rename((directory, name), node, (directory2, name2), time_ns)

    def _check_move(self, node: Node, directory2: Node, other: Node | None, flags: int) -> None:
        if node.kind is NodeKind.DIRECTORY and self.is_below(directory2, node):
            raise InvalidInput("a directory cannot be moved into itself")
        if flags == RENAME_NOREPLACE and other is not None:
            raise NameTaken
        if flags == RENAME_EXCHANGE:
            if other is None:
                raise NoEntry
            return
        if other is None or other is node:
            return
        if other.kind is NodeKind.DIRECTORY:
            if node.kind is not NodeKind.DIRECTORY:
                raise IsADirectory("a directory is in the way")
            if not self.is_empty(other):
                raise DirectoryNotEmpty("the directory in the way is not empty")
        elif node.kind is NodeKind.DIRECTORY:
            raise NotADirectory("a file is in the way")
