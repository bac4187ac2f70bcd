"""Listings that are kept: what they say is what a new one says, whatever was changed, committed, moved to and forgotten in between."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import pytest

from pfsmount.errors import Conflict, PfsError
from pfsmount.fs.branch import BranchPlace
from pfsmount.fs.commits import CommitPlace, FilesPlace
from pfsmount.fs.listings import Item, Listing, Listings, Told
from pfsmount.fs.places import FOREVER, INO_MASK, ROOT_INO, Found, OpenDirectory, Place
from pfsmount.ids import ObjectId
from pfsmount.repo.overlay_nodes import STAT_BLOCK, Attributes, NodeKind
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
from tests.test_worktree import other_commit
from tests.worktrees import at, path, put

ONE, OTHER = ObjectId(bytes(31) + b"\1"), ObjectId(bytes(31) + b"\2")
DIRECTORIES = ("", "a", "b", "a/c")


class Encoder:
    """Replies as they are."""

    def encode(self, found: Found) -> Found:
        return found

    def encode_file(self, ino: int, mode: int, uid: int, gid: int, mtime_ns: int, size: int) -> Found:
        shown = Attributes(
            ino & INO_MASK, NodeKind.FILE, mode, 1, uid, gid, size, mtime_ns, mtime_ns, -(-size // STAT_BLOCK)
        )
        return Found(ino, shown, FOREVER)


class Kernel:
    """Lists as the kernel does: so many entries with each request, and what it was told of, it may forget."""

    def __init__(self, place: Place, draw: random.Random) -> None:
        self.place = place
        self.draw = draw
        self.known: Counter[int] = Counter()

    def list(self, ino: int, most: int) -> list[tuple[bytes, Found]]:
        """All of a directory, `most` entries a request, or the beginning of it."""
        directory = OpenDirectory(self.place, ino, Encoder())
        found: list[tuple[bytes, Found]] = []
        while True:
            room = most
            for name, shown, key in directory.steps(len(found)):
                if not room:
                    directory.stop()
                    break
                room -= 1
                found.append((name, shown))
                directory.took(name)
                if key is not None:
                    self.known[shown.ino] += 1
            else:
                return found

    def forget(self, ino: int, listings: Listings) -> None:
        self.place.forget(ino & INO_MASK, self.known.pop(ino))
        listings.forget(ino)


@pytest.fixture
def worktree(store: Store) -> Iterator[Worktree]:
    with Worktree.open(store, "images", "master") as opened:
        yield opened


def change(store: Store, worktree: Worktree, draw: random.Random) -> None:
    """One of all the things that can make a listing another one."""
    above, name = draw.choice(DIRECTORIES), f"{draw.randrange(9)}"
    file = f"{above}/{name}".lstrip("/")
    what = draw.randrange(9)
    if what < 3:
        put(worktree, file, draw.randbytes(draw.randrange(9)))
    elif what == 3:
        worktree.unlink(at(worktree, above), name.encode())
    elif what == 4:
        worktree.set_attributes(at(worktree, file), mode=draw.choice((0o600, 0o644)), mtime_ns=draw.randrange(3))
    elif what == 5:
        worktree.move(at(worktree, above), name.encode(), worktree.root, f"{draw.randrange(9)}".encode())
    elif what == 6:
        worktree.commit("mine")
    elif what == 7:
        head = store.head("images", "master")
        back = None if head is None else store.read_commit(head)
        if (
            back is not None and back.parents and draw.randrange(2)
        ):  # to what was there before, so to ids that were kept
            tree = store.read_commit(back.parents[0]).tree
            with store.objects.batch() as batch:
                store.commit(batch, "images", "master", tree=tree, expected=head, message="", origin={"how": "revert"})
        else:
            other_commit(store, {f"{draw.choice(DIRECTORIES)}/{name}".lstrip("/"): draw.choice((b"1", b"2", None))})
        worktree.follow()
        if worktree.conflicts:
            worktree.discard()
    else:
        worktree.discard([path(file)] if draw.randrange(2) else None)


@pytest.mark.parametrize("seed", range(10))
def test_kept_ones_of_a_branch_are_as_new_ones(store: Store, worktree: Worktree, seed: int) -> None:
    """After each change, from any part of a directory, by requests of any size, with nodes forgotten in between."""
    draw = random.Random(seed)
    for name in DIRECTORIES[1:]:
        if worktree.find(path(name)) is None:
            worktree.make(
                at(worktree, name.rpartition("/")[0]),
                name.rpartition("/")[2].encode(),
                NodeKind.DIRECTORY,
                mode=0o755,
                uid=0,
                gid=0,
            )
        put(worktree, f"{name}/0", b"0")
    worktree.commit("base")
    listings = Listings(entries_max=draw.choice((0, 10, 1000)))
    kernel = Kernel(BranchPlace(1, worktree, Place(2), listings), draw)
    for _ in range(250):
        for _ in range(draw.randrange(3)):
            with suppress(PfsError, AssertionError, Conflict):
                change(store, worktree, draw)
        name = draw.choice(DIRECTORIES)
        node = worktree.find(path(name))
        if node is None or node.kind is not NodeKind.DIRECTORY:
            continue
        node.lookups += 1
        kernel.known[node.ino] += 1
        shown = kernel.list(node.ino, draw.choice((1, 2, 3, 100)))
        anew = Kernel(BranchPlace(1, worktree, Place(2), Listings()), draw)
        assert shown == anew.list(node.ino, 100)
        for ino in list(anew.known):
            anew.forget(ino, Listings())
        assert shown == kernel.list(node.ino, 100)
        for _, found in shown[2:]:
            assert worktree.attributes(worktree.node(found.ino & INO_MASK)) == found.attributes
        for ino in draw.sample(sorted(kernel.known), min(len(kernel.known), draw.randrange(4))):
            kernel.forget(ino, listings)


def test_kept_ones_of_a_commit_are_as_new_ones(store: Store, worktree: Worktree) -> None:
    draw = random.Random(1)
    for name in DIRECTORIES:
        for i in range(5):
            put(worktree, f"{name}/{i}".lstrip("/"), b"%d" % (i // 2))  # some are the same inode
    commit = worktree.commit("base").commit
    assert commit is not None
    listings, files = Listings(), FilesPlace(1, store.objects)
    kernel = Kernel(CommitPlace(2, "images", commit.id, commit.tree, files, listings, lambda _: None), draw)
    first = kernel.list(ROOT_INO, 100)
    assert len(first) == 2 + 5 + 2
    for most in (1, 2, 3, 100):
        assert kernel.list(ROOT_INO, most) == first
        for ino in list(kernel.known)[::2]:
            place: Place = files if ino >> 44 == 1 else kernel.place
            place.forget(ino & INO_MASK, kernel.known.pop(ino))
    for _, found in first[2:]:
        place = files if found.ino >> 44 == 1 else kernel.place
        if kernel.known[found.ino]:
            assert place.found(found.ino & INO_MASK) == found


def stored(*names: bytes) -> Iterator[Item]:
    return iter([(name, name.upper()) for name in names])


def test_a_listing_goes_on_where_it_was_left() -> None:
    """Each entry is read once; what was given but not taken is given again."""
    listing = Listing(ONE)
    asked: list[bytes] = []

    def source(after: bytes) -> Iterator[Item]:
        asked.append(after)
        return stored(*(name for name in (b"a", b"b", b"c") if name > after))

    steps = listing.read(source, b"")
    assert next(steps) == (b"a", b"A")
    listing.told(Told(b"a", 1, None))
    listing.passed(b"a")
    assert next(steps) == (b"b", b"B")
    del steps
    assert listing.has(b"a")
    assert not listing.has(b"b")
    assert list(listing.read(source, b"a")) == [(b"b", b"B"), (b"c", b"C")]
    assert asked == [b"", b"a"]
    assert list(listing.read(source, b"")) == [(b"a", 1, None), (b"b", b"B"), (b"c", b"C")]
    assert asked == [b"", b"a"]


def test_only_so_many_entries_are_kept() -> None:
    listings = Listings(entries_max=5)
    for ino in range(4):
        list(listings.begin(ino, ONE, b"").read(lambda _: stored(b"a", b"b"), b""))
        listings.begin(ino, ONE, b"")
    kept = [ino for ino in range(4) if len(listings.begin(ino, ONE, b"z"))]
    assert kept == [2, 3]
    assert not len(listings.begin(3, OTHER, b""))
    listings.forget(2)
    assert not len(listings.begin(2, ONE, b"z"))
