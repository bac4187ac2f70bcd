"""A mount without FUSE: places, open files and directories, commits.

`Filesystem` is what the FUSE adapter, the control socket and the poller call. Its plain methods are instants on the event loop's thread
(see `fs.branch` for what they raise to wait); its `async` ones wait.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping
from functools import partial
from itertools import islice
from typing import Any

from pfsmount.errors import NotFound, PfsError
from pfsmount.fs.branch import BranchPlace
from pfsmount.fs.controls import ControlPlace
from pfsmount.fs.places import INO_BITS, INO_MASK, ROOT_INO, Found, OpenDirectory, OpenFile, Place, Syncing
from pfsmount.fs.root import BranchKey, Places, RootPlace
from pfsmount.fs.turning import Kernel, Turning, in_thread
from pfsmount.ids import NAME_MAX, ObjectId
from pfsmount.repo.overlay import NowaitReader
from pfsmount.repo.overlay_nodes import NameTooLong, NodeKind, NotSupported, Stale
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import CommitResult, Worktree
from pfsmount.repo.worktree_status import WorktreeStatus

log = logging.getLogger(__name__)


class Branch:
    """A branch of the mount with its turns and its control files."""

    def __init__(self, number: int, control_number: int, worktree: Worktree, kernel: Kernel) -> None:
        self._store = worktree.store
        self.worktree = worktree
        self.controls = ControlPlace(control_number, self)
        self.place = BranchPlace(number, worktree, self.controls)
        self.turning = Turning(self.place, kernel)

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
        return await self.turning.status()

    async def head(self) -> ObjectId | None:
        return self.worktree.head()

    async def history(self, count: int) -> list[tuple[ObjectId, int, str, str]]:
        """Id, time in ns, author and message of the newest commits."""
        head = self.worktree.head()

        def read() -> list[tuple[ObjectId, int, str, str]]:
            commit = None if head is None else self._store.read_commit(head)
            return [(c.id, c.time_ns, c.author, c.message) for c in islice(self._store.history(commit), count)]

        return await in_thread(read)


class Filesystem:
    """All of one mount."""

    def __init__(self, store: Store, kernel: Kernel, who: Mapping[str, Any], *, with_branches: bool = True) -> None:
        """`who` is what others are told of the owner of worktrees. Without branches only commits are shown."""
        self.store = store
        self._kernel = kernel
        self._who = dict(who)
        self._places = Places()
        self.places = self._places.by_number
        self._branches: dict[BranchPlace, Branch] = {}
        self._gone: list[Branch] = []
        """Deleted ones, of which something may still be open."""
        reader = NowaitReader(store.objects)
        self.root = self._places.add(
            lambda number: RootPlace(number, store, reader, self._places, self._open_branch, self.follow, with_branches)
        )
        assert isinstance(self.root, RootPlace)
        self.names: RootPlace = self.root
        self.handles: dict[int, OpenFile] = {}
        self.directories: dict[int, OpenDirectory] = {}
        self._next_handle = 1

    def close(self) -> None:
        """Give back all worktrees; uncommitted changes stay on disk."""
        for branch in (*self._branches.values(), *self._gone):
            branch.worktree.close()
        self.names.close()

    async def _open_branch(self, number: int, key: BranchKey, repo: str) -> BranchPlace:
        worktree = await in_thread(partial(Worktree.open, self.store, repo, key[1], key[2], nowait=True, who=self._who))
        control = self._places.add(lambda n: Branch(number, n, worktree, self._kernel).controls)
        assert isinstance(control, ControlPlace)
        branch = control.branch
        assert isinstance(branch, Branch)
        self._branches[branch.place] = branch
        if worktree.foreign is not None:
            log.warning("%s is read-only here: %s", worktree.title, worktree.owner_text())
        if worktree.base is not None:
            await in_thread(partial(self.names.hold_first, key, worktree.base))
        return branch.place

    async def branch(self, repo: str, branch: str) -> Branch:
        """A branch, opened if need be. Raises NotFound."""
        return self._branches[await self.names.branch(repo, branch)]

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
            self.names.forget_branch(branch.place)
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
        return self.place(ino).found(ino & INO_MASK)

    def forget(self, ino: int, count: int) -> None:
        """The kernel gave back lookups."""
        place = self.places[ino >> INO_BITS]
        if place is not None:
            place.forget(ino & INO_MASK, count)

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

    def open_directory(self, ino: int) -> int:
        """Open a directory; returns its handle."""
        handle = self._next_handle
        self._next_handle += 1
        self.directories[handle] = OpenDirectory(self.place(ino), ino & INO_MASK)
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

    def set_attributes(self, ino: int, values: dict[str, int], uid: int) -> Found:
        """Set attributes and size."""
        place = self.place(ino)
        return place.set_attributes(ino & INO_MASK, values, uid) if values else place.found(ino & INO_MASK)

    def readlink(self, ino: int) -> bytes:
        """Where a symlink points to."""
        return self.place(ino).readlink(ino & INO_MASK)

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        """Extended attributes."""
        return self.place(ino).xattrs(ino & INO_MASK)

    def set_xattr(self, ino: int, name: bytes, value: bytes | None) -> None:
        """Set or remove an extended attribute."""
        if not name.startswith(b"user."):
            raise NotSupported("only user.* attributes are kept")
        self.place(ino).set_xattr(ino & INO_MASK, name, value)


def _refusal(place: Place) -> Exception | None:
    """Why nothing can be changed in a place; None for a branch."""
    return None if isinstance(place, BranchPlace) else place.refuse()


__all__ = ["ROOT_INO", "Branch", "Filesystem", "NotFound"]
