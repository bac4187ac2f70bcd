"""The root of a mount: names of revisions.

`repo@branch` of every branch is listed; any other revision is found when it is looked up, and `repo` alone is a symlink to the default branch. Only a name that is a
full commit id means the same for ever. A branch is the same directory whatever its head is, so the kernel keeps its name until the branch is gone; that its head moved is noticed by
looking (`service`), or said by the command that moved it. All other names are looked up again each time.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection, Iterator

import trio

from pfsmount.errors import AmbiguousRevision, InvalidInput, NotFound, NotPermitted
from pfsmount.fs.branch import BranchPlace
from pfsmount.fs.commits import CommitPlace, FilesPlace
from pfsmount.fs.controls import ControlPlace, OfCommit
from pfsmount.fs.listings import Listings, Told
from pfsmount.fs.places import FOREVER, INO_BITS, INO_MASK, ROOT_INO, Encoder, Found, Later, Place, plain_attributes
from pfsmount.ids import ObjectId
from pfsmount.objects.holds import CommitHold
from pfsmount.objects.reading import Reader
from pfsmount.repo.overlay import WouldBlock
from pfsmount.repo.overlay_nodes import NodeKind
from pfsmount.repo.refs import RefInfo, RefKind, RepoInfo, readable_refs
from pfsmount.repo.revisions import Resolved
from pfsmount.repo.store import Store
from pfsmount.revision import is_commit_prefix, parse_mount_name
from pfsmount.tree.entry import Entry

log = logging.getLogger(__name__)
ROOT_SECONDS = 1.0
# For how long the kernel may believe the root's attributes. Each path from outside needs them, so it must not be 0; they never change, but
# programs that look for a dead mount stat its root, and should soon see that it is.
BranchKey = tuple[int, str, str]
"""Repo id, branch, name of the worktree."""


class NeedsBranch(Later):
    """The worktree of a branch must be opened first."""

    def __init__(self, open: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self._open = open

    async def wait(self) -> None:
        await self._open()


class UnopenedBranch(Place):
    """Holds the number of a branch that was listed but not yet opened. Whatever is asked of it opens the branch first."""

    def __init__(self, number: int, name: str, open: Callable[[], Awaitable[None]]) -> None:
        super().__init__(number)
        self._name = name
        self._open = open

    @property
    def title(self) -> str:
        return self._name

    def lookup(self, parent: int, name: bytes) -> Found | None:
        raise NeedsBranch(self._open)

    def found(self, ino: int) -> Found:
        raise NeedsBranch(self._open)

    def list(self, ino: int, after: bytes, encoder: Encoder) -> Iterator[Told]:
        raise NeedsBranch(self._open)

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        raise NeedsBranch(self._open)

    def refuse(self) -> Exception:
        return NeedsBranch(self._open)


class Places:
    """All places of a mount by number, and where the numbers of gone ones go."""

    def __init__(self) -> None:
        self.by_number: list[Place | None] = []
        self._free: list[int] = []

    def add(self, make: Callable[[int], Place]) -> Place:
        """A new place with a number."""
        if self._free:
            number = self._free.pop()
            place = self.by_number[number] = make(number)
        else:
            self.by_number.append(None)
            place = self.by_number[-1] = make(len(self.by_number) - 1)
        return place

    def remove(self, place: Place) -> None:
        """The kernel knows no inode of the place any more."""
        self.by_number[place.number] = None
        self._free.append(place.number)


class RootPlace(Place):
    """The root directory."""

    def __init__(
        self,
        number: int,
        store: Store,
        reader: Reader,
        places: Places,
        open_branch: Callable[[int, BranchKey, str], Awaitable[BranchPlace]],
        follow: Callable[[], Awaitable[None]],
        listings: Listings,
        with_branches: bool,
    ) -> None:
        """`open_branch` makes the place of a branch (number, key, repo name); `follow` brings all branches to their heads."""
        super().__init__(number)
        self._store, self._reader, self._places = store, reader, places
        self._open_branch, self._follow = open_branch, follow
        self._listings = listings
        self._with_branches = with_branches
        self._files: FilesPlace | None = None
        self._commits: dict[tuple[str, ObjectId], CommitPlace] = {}
        self._branches: dict[BranchKey, BranchPlace] = {}
        self._opening: dict[BranchKey, trio.Event] = {}
        self._numbers: dict[BranchKey, int] = {}
        self._links: dict[int, str] = {}
        self._held = CommitHold(store.path)
        self._asked: dict[tuple[str, ObjectId], bool] = {}
        """Commits that were held, or found to be gone, for a lookup that comes again."""
        self._bases: dict[BranchKey, list[ObjectId]] = {}
        self._seen = store.refs_version()
        self._caught_up = False
        self._resolved: dict[str, Resolved | None] = {}
        self._known: dict[bytes, BranchPlace] = {}
        """The names of branches that the kernel keeps, until the branch is gone."""
        self._started_ns = time.time_ns()

    @property
    def title(self) -> str:
        return "the root of the mount"

    def refuse(self) -> Exception:
        return NotPermitted("the root of the mount shows repos; 'pfs repo create' and 'pfs branch' make new names")

    # Names

    def lookup(self, parent: int, name: bytes) -> Found | None:
        caught_up, self._caught_up = self._caught_up, False
        text = os.fsdecode(name)
        try:
            repo, revision = parse_mount_name(text)
        except InvalidInput:
            return None
        if "@" not in text:
            return self._link(repo)
        resolved = self._resolve(text, caught_up)
        if resolved is None:
            return None
        if resolved.branch is None:
            if resolved.commit is None:
                return None
            if not self._hold(text, resolved.commit.id):
                return None
            full = revision.is_plain and is_commit_prefix(revision.base or "") and len(revision.base or "") == 64
            place = self._commit_place(text, resolved.commit.id, resolved)
            return place.tell_root()._replace(name_timeout=FOREVER if full else 0)
        if not self._with_branches:
            return None
        key = (resolved.repo.id, resolved.branch, resolved.worktree or "")
        branch = self._branches.get(key)
        if branch is None:
            raise NeedsBranch(lambda: self._open(key, repo))
        if resolved.worktree is not None:  # a private one comes and goes without a move of any ref
            return branch.tell_root()._replace(name_timeout=0)
        self._known[name] = branch
        return branch.tell_root()

    def _resolve(self, text: str, caught_up: bool) -> Resolved | None:
        """What a name means; None for nothing. Raises Later when heads moved and have to be followed first, unless that was done for this lookup."""
        version = self._store.refs_version()
        if version != self._seen:
            self._resolved.clear()
            # once for each lookup: while others commit without a pause, a lookup must not chase them for ever
            if self._branches and not caught_up:
                raise NeedsBranch(self._catch_up)
        if text in self._resolved:
            return self._resolved[text]
        repo, revision = parse_mount_name(text)
        private = revision.worktree is not None  # they come and go without a move of any ref
        try:
            resolved = self._store.resolve(repo, revision)
        except (NotFound, AmbiguousRevision):
            resolved = None
        if len(self._resolved) > 10_000:
            self._resolved.clear()
        if not private:
            self._resolved[text] = resolved
        return resolved

    async def _catch_up(self) -> None:
        await self._follow()
        self._caught_up = True  # for the lookup that waits for this, which comes again without a switch of tasks

    def followed(self, version: int) -> None:
        """All branches are at their heads of this version of the refs."""
        if version != self._seen:
            self._resolved.clear()
            self._seen = version

    @property
    def seen(self) -> int:
        """The version of the refs that the mount shows."""
        return self._seen

    def branches(self) -> list[BranchPlace]:
        """The branches that were opened."""
        return list(self._branches.values())

    async def _open(self, key: BranchKey, repo: str) -> None:
        while key in self._opening:
            await self._opening[key].wait()
        if key in self._branches:
            return
        done = self._opening[key] = trio.Event()
        try:
            place = await self._open_branch(self._number(key, repo), key, repo)
            self._branches[key] = self._places.by_number[place.number] = place
        finally:
            del self._opening[key]
            done.set()

    def forget_branch(self, place: BranchPlace) -> list[bytes]:
        """A branch was deleted: its name is free, its inodes stay what they are as long as the kernel knows them. Returns the names that the kernel has to forget."""
        for key in [key for key, opened in self._branches.items() if opened is place]:
            del self._branches[key]
            self._numbers.pop(key, None)
        names = [name for name, known in self._known.items() if known is place]
        for name in names:
            del self._known[name]
        return names

    def _number(self, key: BranchKey, repo: str) -> int:
        """The number of a branch's place, opened or not."""
        number = self._numbers.get(key)
        if number is None:
            name = f"{repo}@{key[1]}" + (f"+{key[2]}" if key[2] else "")
            place = self._places.add(lambda number: UnopenedBranch(number, name, lambda: self._open(key, repo)))
            number = self._numbers[key] = place.number
        return number

    async def branch(self, repo: str, branch: str, worktree: str = "") -> BranchPlace:
        """The place of a branch or private worktree, opened if need be. Raises NotFound."""
        self._store.head(repo, branch)
        key = (self._store.repo(repo).id, branch, worktree)
        await self._open(key, repo)
        return self._branches[key]

    def _hold(self, text: str, id: ObjectId) -> bool:
        """Keep a commit from gc as long as it is shown; False when gc has dropped it. Raises WouldBlock, since gc's lock may have to be waited for."""
        if (text, id) in self._commits:
            if self._asked.pop((text, id), False):  # by a second lookup at the same time
                self._held.remove(id)
            return True
        kept = self._asked.pop((text, id), None)
        if kept is None:

            def ask() -> None:
                self._asked[text, id] = self._held.add(id, self._store.has_commit)

            raise WouldBlock(ask)
        if not kept:
            self._resolved.pop(text, None)
        return kept

    def bases_to_hold(self, busy: Collection[Place]) -> tuple[list[ObjectId], list[ObjectId]]:
        """The commits under branches that gc must keep from now on, and those that it need not keep any more.

        What was under a branch before stays as long as a file of the branch is open (`busy`): it may be of that version.
        """
        new, old = [], []
        for key, place in self._branches.items():
            base, bases = place.worktree.base, self._bases.setdefault(key, [])
            if base is not None and base not in bases:
                new.append(base)
                bases.append(base)
            if place not in busy:
                gone = [earlier for earlier in bases if earlier != base]
                old += gone
                bases[:] = [earlier for earlier in bases if earlier == base]
        return new, old

    def hold_first(self, key: BranchKey, base: ObjectId) -> None:
        """Keep the commit under a branch that is being opened. May wait; for any thread."""
        self._held.add(base, self._store.has_commit)
        self._bases.setdefault(key, []).append(base)

    def hold_commit(self, id: ObjectId) -> None:
        """Keep a commit as long as the mount lives. May wait; for any thread. Raises NotFound."""
        if not self._held.add(id, self._store.has_commit):
            raise NotFound(f"the commit {id.hex()[:12]} was dropped by a garbage collection just now")

    def hold(self, new: list[ObjectId], old: list[ObjectId]) -> None:
        """Carry out what `bases_to_hold` said. May wait; for any thread."""
        for id in new:
            self._held.add(id, self._store.has_commit)
        for id in old:
            self._held.remove(id)

    def close(self) -> None:
        """Hold nothing any more."""
        self._held.close()

    def add_branch(self, key: BranchKey, place: BranchPlace) -> None:
        """Enter a place that was made elsewhere."""
        self._branches[key] = place
        self._numbers[key] = place.number

    def commit_at(self, number: int, name: str, id: ObjectId, root: Entry, *, whole: bool) -> CommitPlace:
        """A directory of a commit as a place that stays; with `whole` it is the root."""
        files, controls = self._files_place(), self._controls(name, id, root) if whole else None
        place = CommitPlace(number, name, id, root, files, self._listings, lambda unused: None, controls)
        place.tell_root()
        return place

    def _commit_place(self, name: str, id: ObjectId, resolved: Resolved) -> CommitPlace:
        place = self._commits.get((name, id))
        if place is None:
            root = self._store.root_of(resolved)
            files = self._files_place()
            controls = self._controls(name, id, root)

            def make(number: int) -> CommitPlace:
                return CommitPlace(
                    number, name, id, root, files, self._listings, lambda unused: self._drop(name, id), controls
                )

            made = self._places.add(make)
            assert isinstance(made, CommitPlace)
            place = self._commits[(name, id)] = made
        return place

    def _drop(self, name: str, id: ObjectId) -> None:
        place = self._commits.pop((name, id), None)
        if place is not None:
            self._places.remove(place)
            if place.controls is not None:
                self._places.remove(place.controls)
            self._held.remove(id)

    def _controls(self, name: str, id: ObjectId, root: Entry) -> Place | None:
        """`.pfs` of a commit; jobs see none."""
        if not self._with_branches:
            return None
        return self._places.add(lambda number: ControlPlace(number, OfCommit(self._store, name, id, root)))

    def _files_place(self) -> FilesPlace:
        if self._files is None:
            made = self._places.add(lambda number: FilesPlace(number, self._reader))
            assert isinstance(made, FilesPlace)
            self._files = made
        return self._files

    def _link(self, repo: str) -> Found | None:
        try:
            info = self._store.repo(repo)
        except NotFound:
            return None
        ino = (hash(repo) & (INO_MASK >> 1)) | (1 << 20)
        self._links[ino] = f"{repo}@{info.default_branch}"
        return self.found(ino)

    # Inodes

    def found(self, ino: int) -> Found:
        owner = (os.getuid(), os.getgid())
        if ino == ROOT_INO:
            attributes = plain_attributes(ino, NodeKind.DIRECTORY, 0o755, owner, 4096, self._started_ns)
        else:
            target = self._links.get(ino, "")
            attributes = plain_attributes(
                ino, NodeKind.SYMLINK, 0o777, owner, len(os.fsencode(target)), self._started_ns
            )
        return Found(self.prefix | ino, attributes, ROOT_SECONDS if ino == ROOT_INO else 0)

    def readlink(self, ino: int) -> bytes:
        return os.fsencode(self._links[ino])

    def readable_branches(self) -> Collection[tuple[RepoInfo, RefInfo]]:
        """All branches but for those whose rows are damaged, which is logged: they hide no other."""
        return readable_refs(
            self._store.objects.index,
            RefKind.BRANCH,
            lambda name, error: log.error("%s is not in the root: %s; 'pfs fsck' says more", name, error.message),
        )

    def list(self, ino: int, after: bytes, encoder: Encoder) -> Iterator[Told]:
        names = []
        for repo, branch in self.readable_branches() if self._with_branches else ():
            names.append((os.fsencode(f"{repo.name}@{branch.name}"), (repo.id, branch.name, ""), repo.name))
        owner = (os.getuid(), os.getgid())
        # Opening every worktree to list them would make `ls` slow: a listed branch has a number, and is opened when it is used.
        for name, key, repo_name in sorted(names):
            if name > after:
                number = self._number(key, repo_name)
                shown = plain_attributes(ROOT_INO, NodeKind.DIRECTORY, 0o755, owner, 4096, self._started_ns)
                yield Told(name, encoder.encode(Found(number << INO_BITS | ROOT_INO, shown, 0)), None)
