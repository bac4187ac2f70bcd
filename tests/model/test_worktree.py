"""A worktree against a plain model, with kills, commits, discards and changes by others between the operations."""

from __future__ import annotations

import copy
import errno
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pfsmount.errors import PfsError
from pfsmount.ids import EntryName
from pfsmount.repo import worktree_files
from pfsmount.repo.overlay_nodes import KIND_WORDS, Node, NodeKind
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
from pfsmount.tree.content import open_content
from pfsmount.tree.directory import entries
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import Entry, Kind, file_entry
from pfsmount.tree.ingest import ingest_bytes
from pfsmount.tree.xattrs import load_xattrs

NAMES = [b"a", b"b", b"c", b"\xff\xfe", "ü".encode()]
names = st.sampled_from(NAMES)
paths = st.lists(names, min_size=1, max_size=3).map(tuple)
PARTIAL_FROM = 200


@dataclass(eq=False)
class Model:
    """A file or directory as it should be."""

    kind: str
    mode: int = 0o644
    data: bytes = b""
    target: bytes = b""
    mtime_ns: int | None = None
    """None: not set by anybody, not compared."""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    children: dict[bytes, Model] = field(default_factory=dict)


class Failed(Exception):
    """The errno that the model gives."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode[number])
        self.number = number


def errno_of(error: Exception) -> int:
    from pfsmount.fs.errnos import errno_of

    return errno_of(error)


class WorktreeMachine(RuleBasedStateMachine):
    """The same operations on both; after each, both look the same."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="pfs-model-"))
        Store.create(self.directory / "store")
        self.store = Store.open(self.directory / "store", author="model")
        self.store.create_repo("r")
        self.model = Model("dir", 0o755)
        self.committed = copy.deepcopy(self.model)
        self.worktree = Worktree.open(self.store, "r", "master")
        self.dirty_paths = False

    def teardown(self) -> None:
        self.worktree.close()
        self.store.close()
        shutil.rmtree(self.directory)

    @initialize()
    def some_base(self) -> None:
        for at, name in enumerate((b"a", b"b")):
            self.make((name,), "dir", 0o755)
            self.make((name, b"c"), "file", 0o600)
            self.write((name, b"c"), 0, b"base %d " % at * (5 + 60 * at))
        self.commit()

    # the model's half

    def at(self, path: tuple[bytes, ...]) -> Model:
        node = self.model
        for name in path:
            if node.kind != "dir":
                raise Failed(errno.ENOTDIR)
            if name not in node.children:
                raise Failed(errno.ENOENT)
            node = node.children[name]
        return node

    def parent(self, path: tuple[bytes, ...]) -> Model:
        node = self.at(path[:-1])
        if node.kind != "dir":
            raise Failed(errno.ENOTDIR)
        return node

    def node(self, path: tuple[bytes, ...]) -> Node:
        found = self.worktree.find(path)
        assert found is not None
        return found

    def both(self, expected: int | None, act: object) -> None:
        """Run the worktree's half; it fails as the model did."""
        assert callable(act)
        found = None
        try:
            act()
        except PfsError as error:
            found = errno_of(error)
        assert found == expected

    @rule(path=paths, kind=st.sampled_from(["file", "dir", "symlink", "fifo"]), mode=st.sampled_from([0o644, 0o755]))
    def make(self, path: tuple[bytes, ...], kind: str, mode: int) -> None:
        try:
            parent = self.parent(path)
        except Failed:
            return
        expected = errno.EEXIST if path[-1] in parent.children else None
        if expected is None:
            mode = 0o777 if kind == "symlink" else mode
            parent.children[path[-1]] = Model(kind, mode, target=b"to/" + path[-1] if kind == "symlink" else b"")
        number = next(k for k, word in KIND_WORDS.items() if word == kind)
        target = b"to/" + path[-1] if number is NodeKind.SYMLINK else None

        def act() -> None:
            self.worktree.make(self.node(path[:-1]), path[-1], number, mode=mode, uid=1, gid=2, target=target)

        self.both(expected, act)

    def file(self, path: tuple[bytes, ...]) -> Model | None:
        try:
            found = self.at(path)
        except Failed:
            return None
        return found if found.kind == "file" else None

    @rule(path=paths, offset=st.integers(0, 600), data=st.binary(min_size=1, max_size=300))
    def write(self, path: tuple[bytes, ...], offset: int, data: bytes) -> None:
        found = self.file(path)
        if found is None:
            return
        found.data = found.data[:offset].ljust(offset, b"\0") + data + found.data[offset + len(data) :]
        found.mtime_ns = None
        self.worktree.write(self.node(path), offset, data)

    @rule(path=paths, size=st.integers(0, 700))
    def truncate(self, path: tuple[bytes, ...], size: int) -> None:
        found = self.file(path)
        if found is None:
            return
        found.data = found.data[:size].ljust(size, b"\0")
        found.mtime_ns = None
        self.worktree.truncate(self.node(path), size)

    @rule(path=paths, mode=st.sampled_from([0o600, 0o700, 0o4755]), time=st.one_of(st.none(), st.integers(-5, 10**18)))
    def attributes(self, path: tuple[bytes, ...], mode: int, time: int | None) -> None:
        try:
            found = self.at(path)
        except Failed:
            return
        if found.kind == "symlink":
            return
        found.mode = mode
        found.mtime_ns = found.mtime_ns if time is None or found.kind == "dir" else time
        self.worktree.set_attributes(self.node(path), mode=mode, mtime_ns=time)

    @rule(path=paths, name=st.sampled_from([b"user.x", b"user.y"]), value=st.one_of(st.none(), st.binary(max_size=700)))
    def xattr(self, path: tuple[bytes, ...], name: bytes, value: bytes | None) -> None:
        try:
            found = self.at(path)
        except Failed:
            return
        expected = None
        if value is None:
            if found.xattrs.pop(name, None) is None:
                expected = errno.ENODATA
        else:
            found.xattrs[name] = value
        self.both(expected, lambda: self.worktree.set_xattr(self.node(path), name, value))

    @rule(path=paths, new=paths)
    def link(self, path: tuple[bytes, ...], new: tuple[bytes, ...]) -> None:
        try:
            found, parent = self.at(path), self.parent(new)
        except Failed:
            return
        expected = errno.EPERM if found.kind == "dir" else errno.EEXIST if new[-1] in parent.children else None
        directory = self.node(new[:-1])
        node = self.node(path)
        if expected is None:
            parent.children[new[-1]] = found
        self.both(expected, lambda: self.worktree.link(node, directory, new[-1]))

    @rule(path=paths)
    def remove(self, path: tuple[bytes, ...]) -> None:
        try:
            found, parent = self.at(path), self.parent(path)
        except Failed:
            return
        directory = self.node(path[:-1])
        if found.kind != "dir":
            del parent.children[path[-1]]
            self.both(None, lambda: self.worktree.unlink(directory, path[-1]))
            return
        expected = errno.ENOTEMPTY if found.children else None
        if expected is None:
            del parent.children[path[-1]]
        self.both(expected, lambda: self.worktree.rmdir(directory, path[-1]))

    @rule(old=paths, new=paths, flags=st.sampled_from([0, 0, 0, 1, 2]))
    def rename(self, old: tuple[bytes, ...], new: tuple[bytes, ...], flags: int) -> None:
        try:
            found, source, target = self.at(old), self.parent(old), self.parent(new)
        except Failed:
            return
        other = target.children.get(new[-1])
        directory, directory2 = self.node(old[:-1]), self.node(new[:-1])
        expected = self.rename_errno(old, new, flags, found, other)
        if expected is None and other is not found:
            if flags == 2:
                assert other is not None
                source.children[old[-1]], target.children[new[-1]] = other, found
            else:
                del source.children[old[-1]]
                target.children[new[-1]] = found
        self.both(expected, lambda: self.worktree.move(directory, old[-1], directory2, new[-1], flags))

    def rename_errno(
        self, old: tuple[bytes, ...], new: tuple[bytes, ...], flags: int, found: Model, other: Model | None
    ) -> int | None:
        if found.kind == "dir" and new[: len(old)] == old and new != old:
            return errno.EINVAL
        if flags == 1 and other is not None:
            return errno.EEXIST
        if flags == 2:
            if other is None:
                return errno.ENOENT
            return errno.EINVAL if other.kind == "dir" and old[: len(new)] == new and new != old else None
        if other is None or other is found:
            return None
        if other.kind == "dir":
            if found.kind != "dir":
                return errno.EISDIR
            return errno.ENOTEMPTY if other.children else None
        return errno.ENOTDIR if found.kind == "dir" else None

    # commits, kills, others

    @rule()
    def commit(self) -> None:
        before = self.store.head("r", "master")
        result = self.worktree.commit("a commit")
        if result.commit is None:
            assert self.store.head("r", "master") == before
        else:
            assert result.commit.message == "a commit"
            assert self.worktree.count_times(()) == 0  # they went along
            self.unlink_names(self.model)
        self.compare_commit()
        if result.commit is not None or self.dirty_paths:  # a time alone is no change: it stays uncommitted
            self.committed = without_special(self.model)
        self.dirty_paths = False

    @rule(path=paths)
    def commit_path(self, path: tuple[bytes, ...]) -> None:
        try:
            self.at(path)
        except Failed:
            return
        if any(self.places(self.model, node) > 1 for node in nodes(self.model)):
            return  # which name of a file with several keeps the uncommitted rest is tested by itself
        result = self.worktree.commit("a part", [tuple(EntryName(name) for name in path)])
        if result.commit is not None:
            self.dirty_paths = True
            entry = self.entry_at(path)
            if entry is not None:
                self.compare_entry(self.at(path), entry)

    def entry_at(self, path: tuple[bytes, ...]) -> Entry | None:
        head = self.store.head("r", "master")
        assert head is not None
        entry = self.store.read_commit(head).tree
        for name in path:
            entry = dict(entries(self.store.objects, entry.id))[EntryName(name)]
        return entry

    def places(self, model: Model, node: Model) -> int:
        return sum((child is node) + self.places(child, node) for child in model.children.values())

    def unlink_names(self, model: Model) -> None:
        """After a commit hard links are separate files."""
        for name, child in model.children.items():
            if child.kind == "file" or child.kind == "symlink":
                model.children[name] = copy.deepcopy(child)
            else:
                self.unlink_names(child)

    @rule()
    def kill(self) -> None:
        """Nothing is written on closing, so this is what a kill leaves, but for the lock that the kernel gives back."""
        self.worktree.close()
        self.worktree = Worktree.open(self.store, "r", "master")

    @precondition(lambda self: not self.dirty_paths)
    @rule()
    def discard(self) -> None:
        self.worktree.discard()
        self.model = copy.deepcopy(self.committed)
        assert list(self.worktree.changes()) == []
        assert self.worktree.is_clean

    @rule(name=st.sampled_from([b"x", b"y"]), data=st.binary(max_size=20))
    def someone_else(self, name: bytes, data: bytes) -> None:
        """A commit by somebody else, elsewhere in the tree, appears beside the changes here."""
        head = self.store.head("r", "master")
        tree = self.store.empty_root() if head is None else self.store.read_commit(head).tree
        with self.store.objects.batch() as batch:
            entry = file_entry(ingest_bytes(batch, data), len(data), mtime_ns=7)
            root = edit_paths(batch, tree, {(EntryName(b"other"), EntryName(name)): entry})
            if root == tree:
                return
            self.store.commit(batch, "r", "master", tree=root, expected=head, message="", origin={"how": "put"})
        self.worktree.follow()
        assert self.worktree.conflicts == ()
        for model in (self.model, self.committed):
            if b"other" not in model.children:
                model.children[b"other"] = Model("dir", tree.mode)
            model.children[b"other"].children[name] = Model("file", 0o644, data, mtime_ns=7)

    # comparing

    @invariant()
    def same(self) -> None:
        stack = [(self.model, self.worktree.root)]
        while stack:
            model, node = stack.pop()
            shown = self.worktree.attributes(node)
            assert (KIND_WORDS[node.kind], shown.mode) == (model.kind, model.mode)
            assert self.worktree.xattrs(node) == model.xattrs
            if model.mtime_ns is not None:
                assert shown.mtime_ns == model.mtime_ns
            if model.kind == "file":
                assert shown.size == len(model.data)
                assert self.worktree.read(node, 0, 10_000) == model.data
                assert self.worktree.read(node, 3, 50) == model.data[3:53]
                assert shown.nlink == self.places(self.model, model)
            if model.kind == "symlink":
                assert self.worktree.target(node) == model.target
            if model.kind == "dir":
                listed = [name for name, _ in self.worktree.children(node)]
                assert listed == sorted(model.children)
                for name in listed:
                    child = self.worktree.lookup(node, name)
                    assert child is not None
                    stack.append((model.children[name], child))
        if not list(self.worktree.changes()) and not self.dirty_paths:
            assert shape(without_special(self.model)) == shape(self.committed)

    def compare_commit(self) -> None:
        head = self.store.head("r", "master")
        tree = self.store.empty_root() if head is None else self.store.read_commit(head).tree
        self.compare_entry(without_special(self.model), tree)

    def compare_entry(self, model: Model, entry: Entry) -> None:
        assert entry.kind is {"dir": Kind.DIRECTORY, "file": Kind.FILE, "symlink": Kind.SYMLINK}[model.kind]
        assert entry.mode == model.mode
        assert load_xattrs(self.store.objects, entry) == model.xattrs
        if model.kind == "file":
            assert open_content(self.store.objects, entry).read(0, 10_000) == model.data
        if model.kind == "dir":
            found = dict(entries(self.store.objects, entry.id))
            children = without_special(model).children
            assert sorted(found) == sorted(children)
            for name, child in children.items():
                self.compare_entry(child, found[EntryName(name)])


def nodes(model: Model) -> Iterator[Model]:
    for child in model.children.values():
        yield child
        yield from nodes(child)


def without_special(model: Model) -> Model:
    """A copy without what is never committed."""
    result = copy.copy(model)
    result.xattrs = dict(model.xattrs)
    result.children = {name: without_special(child) for name, child in model.children.items() if child.kind != "fifo"}
    return result


def shape(model: Model) -> object:
    return (
        model.kind,
        model.mode,
        model.data,
        model.target,
        model.xattrs,
        {name: shape(child) for name, child in model.children.items()},
    )


@pytest.fixture(autouse=True)
def small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files above 200 bytes are kept in parts, as those above 4 MiB are."""
    monkeypatch.setattr(worktree_files, "COPY_MAX", PARTIAL_FROM)


TestWorktree = WorktreeMachine.TestCase
TestWorktree.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class LongWorktreeMachine(WorktreeMachine):
    """The same, for minutes."""


TestWorktreeLong = pytest.mark.long(pytest.mark.timeout(1800)(LongWorktreeMachine.TestCase))
TestWorktreeLong.settings = settings(
    max_examples=600,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
