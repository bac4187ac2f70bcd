"""A store that has a bit of everything, and ways to damage it as disks and people do."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pfsmount.config import StoreSettings
from pfsmount.ids import ObjectId, parse_path
from pfsmount.objects.index import Table
from pfsmount.objects.segment import Location, RecordKind, SegmentRow, segment_path
from pfsmount.repo.commit import Commit
from pfsmount.repo.pointers import create_tag, rename_branch, set_default_branch
from pfsmount.repo.private_worktrees import begin
from pfsmount.repo.refs import RefKind, RefMove
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
from pfsmount.tree.directory import find
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import Entry, file_entry, symlink_entry
from pfsmount.tree.ingest import ingest_bytes
from pfsmount.tree.xattrs import with_xattrs
from tests.worktrees import put as put_uncommitted

SMALL = StoreSettings(segment_size=256 * 1024)
"""Segments that are sealed soon."""


def change(
    store: Store,
    branch: str,
    files: dict[str, bytes | Entry | None],
    *,
    repo: str = "images",
    more: tuple[ObjectId, ...] = (),
    attributes: dict[bytes, bytes] | None = None,
) -> Commit:
    """A commit on a branch, with further parents perhaps."""
    head = store.head(repo, branch)
    tree = store.empty_root() if head is None else store.read_commit(head).tree
    with store.objects.batch() as batch:
        edits: dict[tuple[bytes, ...], Entry | None] = {}
        for name, content in files.items():
            entry = content
            if isinstance(content, bytes):
                entry = file_entry(ingest_bytes(batch, content), len(content))
                if attributes:
                    entry = with_xattrs(batch, entry, attributes)
            edits[parse_path(name)] = entry  # type: ignore[assignment]
        root = edit_paths(batch, tree, edits)  # type: ignore[arg-type]
        parents = [*([] if head is None else [head]), *more]
        made = store.make_commit(batch, tree=root, parents=parents, message="", author=None, origin={"how": "put"})
        move = RefMove(store.repo(repo), RefKind.BRANCH, branch, made.id, head)
        store.publish(batch, [(move, made)], why="put")
    return made


def make_rich_store(path: Path, seed: int = 1) -> None:
    """Two repos with merges, tags, branches that are gone, large files, attributes, and uncommitted work; one repo deleted."""
    dice = random.Random(seed)
    Store.create(path)
    with Store.open(path, SMALL, author="tester@here") as store:
        for repo in ("images", "labels", "gone"):
            store.create_repo(repo, f"about {repo}")
        files: dict[str, bytes | Entry | None] = {f"many/{n:04}.txt": f"{n}".encode() for n in range(300)}
        files |= {f"photos/{n}.jpg": dice.randbytes(dice.randrange(1025, 30_000)) for n in range(12)}
        files |= {"empty": b"", "link": symlink_entry(b"photos/1.jpg"), "large": dice.randbytes((9 << 20) + 77)}
        files["odd \udcff\n*"] = b"odd"
        change(store, "master", files)
        first = store.head("images", "master")
        change(store, "master", {"photos/attributes": b"with attributes"}, attributes={b"user.a": b"x" * 900})
        for n in range(6):
            change(
                store,
                "master",
                {f"many/{dice.randrange(300):04}.txt": dice.randbytes(dice.randrange(1, 3000)), f"new{n}": b"n%d" % n},
            )
        store.create_branch("images", "dev", first)
        side = change(store, "dev", {"side": b"side" * 1000, "photos/1.jpg": None})
        change(store, "master", {"side": b"side" * 1000}, more=(side.id,))
        create_tag(store, "images", "v1", side.id)
        store.create_branch("images", "short", first)
        change(store, "short", {"only here": dice.randbytes(5000)})
        store.delete_branch("images", "short")
        store.create_branch("images", "bare", None)
        change(store, "master", {"label": b"cat", "photos/1.jpg": files["photos/1.jpg"]}, repo="labels")
        rename_branch(store, "labels", "master", "main")
        store.create_branch("labels", "other", store.head("labels", "main"))
        set_default_branch(store, "labels", "other")
        change(store, "master", {"x": b"gone soon" * 500}, repo="gone")
        store.delete_repo("gone")
        with Worktree.open(store, "images", "master") as worktree:
            put_uncommitted(worktree, "photos/new.jpg", dice.randbytes(4000))
            put_uncommitted(worktree, "many/0001.txt", b"changed")
        begin(store, "images", "dev", "mine")
        with Worktree.open(store, "images", "dev", "mine") as worktree:
            put_uncommitted(worktree, "mine", b"my own")


@pytest.fixture(scope="session")
def rich_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rich store, made once; to be copied, not used."""
    path = tmp_path_factory.mktemp("rich") / "store"
    make_rich_store(path)
    return path


@contextmanager
def opened(path: Path) -> Iterator[Store]:
    """A store for the length of a block."""
    with Store.open(path, SMALL, author="tester@here") as store:
        yield store


def entry_of(store: Store, name: str, branch: str = "master", repo: str = "images") -> Entry:
    """An entry of the head of a branch."""
    head = store.head(repo, branch)
    assert head is not None
    found = find(store.objects, store.read_commit(head).tree, parse_path(name))
    assert found is not None
    return found


def place_of(store: Store, id: ObjectId) -> tuple[Path, Location]:
    """The segment file of an object, and where in it."""
    place = store.objects.locate(id)
    assert place is not None
    raw = store.objects.index.get(Table.SEGMENTS, place.segment.to_bytes(4, "big"))
    assert raw is not None
    return segment_path(store.objects.directory, place.segment, SegmentRow.decode(raw).kind), place


def flip(path: Path, offset: int, bits: int = 1) -> None:
    """Change a byte of a file."""
    fd = os.open(path, os.O_RDWR)
    try:
        (byte,) = os.pread(fd, 1, offset)
        os.pwrite(fd, bytes([byte ^ bits]), offset)
    finally:
        os.close(fd)


def any_of(store: Store, kind: RecordKind, index: int = 0) -> ObjectId:
    """An object of a kind."""
    with store.objects.index.read() as txn:
        ids = [ObjectId(key) for key, raw in txn.scan(Table.OBJECTS) if Location.decode(raw).kind is kind]
    return ids[index]
