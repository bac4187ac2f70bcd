"""A mount without FUSE: places, open files and directories, commits.

`Filesystem` is what the FUSE adapter, the control socket and the poller call. Its plain methods are instants on the event loop's thread
(see `fs.branch` for what they raise to wait); its `async` ones wait.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pfsmount.errors import NotADirectory, NotFound, PfsError
from pfsmount.fs.branch import BranchPlace
from pfsmount.fs.controls import ControlPlace, History, newest
from pfsmount.fs.listings import Listings
from pfsmount.fs.places import INO_BITS, INO_MASK, ROOT_INO, Encoder, Found, OpenDirectory, OpenFile, Place, Syncing
from pfsmount.fs.root import ROOT_SECONDS, BranchKey, Places, RootPlace
from pfsmount.fs.turning import Kernel, Turning, in_thread
from pfsmount.ids import NAME_MAX, ObjectId, RepoPath, display, path_bytes
from pfsmount.repo.overlay import NowaitReader, WouldBlock
from pfsmount.repo.overlay_nodes import NameTooLong, Node, NodeKind, NotSupported, Stale
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import CommitResult, Worktree
from pfsmount.repo.worktree_place import worktree_path
from pfsmount.repo.worktree_status import WorktreeStatus
from pfsmount.revision import Target
from pfsmount.tree.directory import find
from pfsmount.tree.entry import Entry

log = logging.getLogger(__name__)
LISTED_BESIDE_MAX = 2048
"""Bytes of attributes beside which `user.pfs.*` are listed: ext4 has room for some 4 000 a file."""
AGAIN_SECONDS = 60
"""After which an autocommit that was refused is tried again in any case."""


class Branch:
    """A branch of the mount with its turns and its control files."""

    def __init__(
        self,
        number: int,
        control_number: int,
        worktree: Worktree,
        kernel: Kernel,
        listings: Listings,
        top: Node | None = None,
    ) -> None:
        self._store = worktree.store
        self.worktree = worktree
        self.controls = ControlPlace(control_number, self, self)
        self.place = BranchPlace(number, worktree, self.controls, listings, top)
        self.turning = Turning(self.place, kernel)
        self._tried_at = 0.0
        self._refused: str | None = None
        self._refused_at: tuple[ObjectId | None, int, int] = (None, 0, 0)

    @property
    def title(self) -> str:
        return self.worktree.title

    @property
    def owner(self) -> tuple[int, int]:
        attributes = self.worktree.attributes(self.worktree.root)
        return attributes.uid, attributes.gid

    @property
    def mode(self) -> int:
        return self.worktree.attributes(self.worktree.root).mode

    async def commit(self, message: str) -> CommitResult:
        return await self.turning.commit(message)

    async def status(self) -> WorktreeStatus:
        status = await self.turning.status()
        return replace(status, refused=self._refused if self._refused_at == self._standing() else None)

    # Autocommit

    def is_due(self, quiet: float) -> bool:
        """True when there is something to commit, nothing is open for writing, and nothing was changed for `quiet` seconds."""
        place, worktree = self.place, self.worktree
        if not worktree.owned or worktree.is_clean or place.writers or place.changed_at + quiet > time.monotonic():
            return False
        if place.changed_at > self._tried_at:
            return True
        again = time.monotonic() > self._tried_at + AGAIN_SECONDS  # a disk may have space again
        return self._refused is not None and (again or self._refused_at != self._standing())

    def _standing(self) -> tuple[ObjectId | None, int, int]:
        """What another try can find different, beside changes: the head, the worktree's base, settled conflicts."""
        try:
            head = self.worktree.head()
        except NotFound:
            head = None
        return head, self.worktree.generation, self.worktree.open_conflicts

    async def autocommit(self, quiet: float) -> None:
        """Commit; a refusal is in the status as long as it is of now. What was found not to be worth one is not looked at again before it changes."""
        self._tried_at = time.monotonic()
        try:
            await self.turning.commit(f"autocommit after {quiet:g} s without a change")
        except (PfsError, OSError) as error:
            self._refused_at = self._standing()
            if str(error) != self._refused:
                log.warning("%s: autocommit was refused: %s", self.title, error)
            self._refused = str(error)
        else:
            self._refused = None

    async def head(self) -> ObjectId | None:
        return self.worktree.head()

    async def history(self, count: int) -> History:
        return await newest(self._store, self.worktree.head(), count)


class Filesystem:
    """All of one mount."""

    def __init__(
        self,
        store: Store,
        kernel: Kernel,
        who: Mapping[str, Any],
        *,
        with_branches: bool = True,
        read_only: bool = False,
        only: Target | None = None,
    ) -> None:
        """`who` is what others are told of the owner of worktrees. Without branches only commits are shown. With `only`, the root of the mount is
        that directory of a version, and nothing else is there. A `read_only` mount never becomes the owner of uncommitted work.

        Raises NotFound, NotADirectory, Corrupt (of `only`).
        """
        self.store = store
        self._kernel = kernel
        self._who = dict(who)
        self._read_only = read_only
        self._places = Places()
        self._listings = Listings()
        self.places = self._places.by_number
        self._branches: dict[BranchPlace, Branch] = {}
        self._gone: list[Branch] = []
        """Deleted ones, of which something may still be open."""
        reader = NowaitReader(store.objects)
        if only is not None:
            self._places.add(Place)  # the root's number is 0; see `_show_only`
        self.root = self._places.add(
            lambda number: RootPlace(
                number, store, reader, self._places, self._open_branch, self.follow, self._listings, with_branches
            )
        )
        assert isinstance(self.root, RootPlace)
        self.names: RootPlace = self.root
        self.handles: dict[int, OpenFile] = {}
        self.directories: dict[int, OpenDirectory] = {}
        self._next_handle = 1
        if only is not None:
            self._show_only(only)

    def _show_only(self, target: Target) -> None:
        resolved = self.store.resolve(target.repo, target.revision)
        if resolved.branch is None:
            assert resolved.commit is not None
            id = resolved.commit.id
            self.names.hold_commit(id)
            top = _directory_at(self.store, resolved.commit.tree, target)
            place = self.names.commit_at(0, display(str(target)), id, top, whole=not target.path)
            self._places.by_number[0] = place
            return
        key = (resolved.repo.id, resolved.branch, resolved.worktree or "")
        branch = self._add_branch(0, self._open_worktree(key, target.repo), target.path or ())
        self._places.by_number[0] = branch.place
        self.names.add_branch(key, branch.place)
        if branch.worktree.base is not None:
            self.names.hold_first(key, branch.worktree.base)

    def close(self) -> None:
        """Give back all worktrees; uncommitted changes stay on disk."""
        for branch in (*self._branches.values(), *self._gone):
            branch.worktree.close()
        self.names.close()

    async def _open_branch(self, number: int, key: BranchKey, repo: str) -> BranchPlace:
        worktree = await in_thread(partial(self._open_worktree, key, repo))
        branch = self._add_branch(number, worktree)
        if worktree.foreign is not None and not self._read_only:
            log.warning("%s is read-only here: %s", worktree.title, worktree.owner_text())
        if worktree.base is not None:
            await in_thread(partial(self.names.hold_first, key, worktree.base))
        return branch.place

    def _open_worktree(self, key: BranchKey, repo: str) -> Worktree:
        _, branch, name = key
        return Worktree.open(self.store, repo, branch, name, looks_only=self._read_only, nowait=True, who=self._who)

    def _add_branch(self, number: int, worktree: Worktree, path: RepoPath = ()) -> Branch:
        top = _known_for_ever(worktree, path) if path else None
        control = self._places.add(lambda n: Branch(number, n, worktree, self._kernel, self._listings, top).controls)
        assert isinstance(control, ControlPlace)
        branch = control.branch
        assert isinstance(branch, Branch)
        self._branches[branch.place] = branch
        return branch

    async def branch(self, repo: str, branch: str, worktree: str = "") -> Branch:
        """A branch or one of its private worktrees, opened if need be. Raises NotFound."""
        return self._branches[await self.names.branch(repo, branch, worktree)]

    async def autocommit(self, quiet: float) -> None:
        """Commit each opened branch that was left alone for `quiet` seconds."""
        for branch in self.opened_branches():
            if branch.is_due(quiet):
                await branch.autocommit(quiet)

    async def open_leftovers(self) -> None:
        """Open the branches with uncommitted work on disk. What fails is logged."""
        for repo, ref in self.names.readable_branches():
            if any(worktree_path(self.store.path, repo, ref.name).glob("journal.*")):
                try:
                    await self.branch(repo.name, ref.name)
                except (PfsError, OSError):
                    log.exception("opening what is uncommitted in %s@%s failed", repo.name, ref.name)

    def opened_branches(self) -> list[Branch]:
        """The branches that were opened."""
        return list(self._branches.values())

    # Following

    async def follow(self) -> None:
        """Bring all opened branches to their heads. What fails is logged."""
        version = self.store.refs_version()
        for branch in self.opened_branches():
            try:
                await branch.turning.follow()
            except NotFound:
                log.info("%s is gone; what is open of it stays readable", branch.title)
                self._forget(branch)
                await self._kernel.settled()
            except (PfsError, OSError):
                log.exception("following %s failed", branch.title)
        await self._hold_bases()
        self.names.followed(version)

    async def _hold_bases(self) -> None:
        """Keep what is shown, and what is open, from gc."""
        new, old = self.names.bases_to_hold({file.place for file in self.handles.values()})
        if new or old:
            await in_thread(partial(self.names.hold, new, old))

    def _forget(self, branch: Branch) -> None:
        """A branch of this name, if there ever is one again, is another one, with inodes of its own."""
        if self._branches.pop(branch.place, None) is not None:
            for name in self.names.forget_branch(branch.place):
                self._kernel.forget_entry(ROOT_INO, name)
            self._gone.append(branch)

    def needs_follow(self) -> bool:
        """True when heads moved, or another process owns a worktree that is shown here. Cheap."""
        if self.store.refs_version() != self.names.seen:
            return True
        return any(branch.worktree.may_have_changed() for branch in self._branches.values())

    # Dispatch

    def place(self, ino: int) -> Place:
        """The place of an inode. Raises Stale."""
        place = self.places[ino >> INO_BITS]
        if place is None:
            raise Stale("the inode is not known any more")
        return place

    def describe(self, ino: int, name: bytes = b"") -> str:
        """The path of an inode, or of a name in it, for the log."""
        try:
            path = self.place(ino).describe(ino & INO_MASK)
        except Exception:  # whatever is wrong is being logged already
            path = f"inode {ino:#x}"
        return f"{path}/{os.fsdecode(name)!r}" if name else path

    def lookup(self, parent: int, name: bytes) -> Found | None:
        """Look a name up; counts the lookup. None: no such name."""
        if len(name) > NAME_MAX:
            raise NameTooLong("the name is too long")
        return self.place(parent).lookup(parent & INO_MASK, name)

    def negative_timeout(self, parent: int) -> float:
        """Seconds for which the kernel may believe that a name is not in a directory."""
        place = self.place(parent)
        return place.negative_timeout if place.timeout else 0

    def found(self, ino: int) -> Found:
        """An inode as it is now."""
        found = self.place(ino).found(ino & INO_MASK)
        # The root's attributes are asked for by all who look for a dead mount: they should soon see that it is.
        return found._replace(timeout=min(found.timeout, ROOT_SECONDS)) if ino == ROOT_INO else found

    def forget(self, ino: int, count: int) -> None:
        """The kernel gave back lookups."""
        place = self.places[ino >> INO_BITS]
        if place is not None:
            place.forget(ino & INO_MASK, count)
            self._listings.forget(ino)

    # Files

    def open(self, ino: int, flags: int, uid: int) -> tuple[int, OpenFile]:
        """Open a file; returns its handle."""
        file = self.place(ino).open(ino & INO_MASK, flags, uid)
        return self._add_handle(file), file

    def _add_handle(self, file: OpenFile) -> int:
        handle = self._next_handle
        self._next_handle += 1
        self.handles[handle] = file
        return handle

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, uid: int, gid: int
    ) -> tuple[int, OpenFile, Found]:
        """Make a file and open it."""
        place = self.place(parent)
        found = place.make(parent & INO_MASK, name, NodeKind.FILE, mode, uid, gid)
        file = place.open(found.ino & INO_MASK, flags & ~os.O_TRUNC, uid)
        return self._add_handle(file), file, found

    def release(self, handle: int) -> None:
        """Close a file."""
        self.handles.pop(handle).close()

    def open_directory(self, ino: int, encoder: Encoder) -> int:
        """Open a directory; returns its handle. `encoder` makes what its steps show."""
        handle = self._next_handle
        self._next_handle += 1
        self.directories[handle] = OpenDirectory(self.place(ino), ino & INO_MASK, encoder)
        return handle

    def sync_directory(self, handle: int) -> Syncing | None:
        """What makes the names of a directory survive a power cut."""
        return self.directories[handle].place.sync_directory()

    # Changes

    def make(
        self, parent: int, name: bytes, kind: NodeKind, mode: int, uid: int, gid: int, target: bytes | None = None
    ) -> Found:
        """A new file, directory, symlink, FIFO or socket."""
        return self.place(parent).make(parent & INO_MASK, name, kind, mode, uid, gid, target)

    def remove(self, parent: int, name: bytes, directory: bool) -> None:
        """Remove a name."""
        self.place(parent).remove(parent & INO_MASK, name, directory=directory)

    def link(self, ino: int, parent: int, name: bytes) -> Found:
        """Another name for a file. Raises OSError EXDEV across places."""
        place = self.place(parent)
        if self.place(ino) is not place:
            raise _refusal(place) or OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return place.link(ino & INO_MASK, parent & INO_MASK, name)

    def move(self, parent: int, name: bytes, parent2: int, name2: bytes, flags: int) -> None:
        """Rename. Raises OSError EXDEV across places."""
        place, place2 = self.place(parent), self.place(parent2)
        if place is not place2:
            raise _refusal(place) or _refusal(place2) or OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        place.move(parent & INO_MASK, name, parent2 & INO_MASK, name2, flags)

    def set_attributes(self, ino: int, values: dict[str, int]) -> Found:
        """Set attributes and size; nothing at all, or the time of access alone, is a change too, as ctime shows."""
        return self.place(ino).set_attributes(ino & INO_MASK, values)

    def readlink(self, ino: int) -> bytes:
        """Where a symlink points to."""
        return self.place(ino).readlink(ino & INO_MASK)

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        """Extended attributes: those that are stored, and those that tell what is."""
        place, number = self.place(ino), ino & INO_MASK
        return {**place.facts(number), **place.xattrs(number)}

    def xattr_names(self, ino: int) -> list[bytes]:
        """What `listxattr` lists, sorted. What tells of the file is left out beside many or large attributes: whoever copies what is listed would not find room for all."""
        place, number = self.place(ino), ino & INO_MASK
        stored = place.xattrs(number)
        if sum(len(name) + len(value) for name, value in stored.items()) > LISTED_BESIDE_MAX:
            return sorted(stored)
        return sorted({*place.facts(number), *stored})

    def set_xattr(self, ino: int, name: bytes, value: bytes | None) -> None:
        """Set or remove an extended attribute. What the mount shows of itself stays as it is in a branch, without an error: `cp -a`
        and `rsync -X` would fail for each file that they copy from one place of the mount to another (docs/decisions/016)."""
        if not name.startswith(b"user."):
            raise NotSupported("only user.* attributes are kept")
        self.place(ino).set_xattr(ino & INO_MASK, name, value)


def _directory_at(store: Store, tree: Entry, target: Target) -> Entry:
    """The directory that a target names in a tree. Raises NotFound, NotADirectory."""
    found = find(store.objects, tree, target.path or ())
    if found is None:
        raise NotFound(f"there is no {display(str(target))}")
    if not found.is_directory:
        raise NotADirectory(f"{display(str(target))} is not a directory, so it cannot be mounted")
    return found


def _known_for_ever(worktree: Worktree, path: RepoPath) -> Node:
    """A directory of a worktree, never to be forgotten. Raises NotFound, NotADirectory."""
    what = f"{worktree.title}:{display(path_bytes(path))}"
    while True:
        try:
            node = worktree.find(path)
            break
        except WouldBlock as error:
            error.work()
    if node is None:
        raise NotFound(f"there is no {what}")
    if node.kind is not NodeKind.DIRECTORY:
        raise NotADirectory(f"{what} is not a directory, so it cannot be mounted")
    node.lookups += 1
    return node


def _refusal(place: Place) -> Exception | None:
    """Why nothing can be changed in a place; None for a branch."""
    return None if isinstance(place, BranchPlace) else place.refuse()


__all__ = ["ROOT_INO", "Branch", "Filesystem", "NotFound"]
