"""What a whole store holds: for each repo, by kind of object, and what repos share.

Two passes over what the repos' commits need (`repo.usage`): the first counts each object once a repo and notes what a second repo meets
again; the second counts what only one repo needs, and does not enter what is shared. Memory: three sets of `objects.marks.Marks`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from pfsmount.ids import ObjectId
from pfsmount.objects.index import Table
from pfsmount.objects.marks import Marks
from pfsmount.objects.segment import Location, RecordKind, SegmentKind
from pfsmount.repo.commit import Commit, decode_commit
from pfsmount.repo.refs import RefKind, RepoInfo, scan_refs
from pfsmount.repo.store import Store
from pfsmount.repo.usage import Progress, Reach

_COMMITS_AT_ONCE = 1000


@dataclass(slots=True)
class Amount:
    """How many, and how many bytes."""

    count: int = 0
    size: int = 0

    def add(self, size: int) -> None:
        self.count += 1
        self.size += size


@dataclass(slots=True)
class RepoUsage:
    """What a repo has."""

    name: str
    branches: int = 0
    tags: int = 0
    commits: int = 0
    """All that it knows, those that no branch has any more included."""
    heads: Amount = field(default_factory=Amount)
    """Files, and their bytes, in the heads of all branches added up."""
    versions: Amount = field(default_factory=Amount)
    """Files, and their bytes, in all commits added up."""
    stored: int = 0
    """Bytes of the store that it needs."""
    unique: int = 0
    """Those of them that no other repo needs."""


@dataclass(slots=True)
class StoreUsage:
    """What a store has. Sizes are bytes."""

    repos: list[RepoUsage] = field(default_factory=list)
    objects: dict[RecordKind, Amount] = field(default_factory=dict)
    """What commits of repos need, by kind, with stored bytes."""
    segments: dict[SegmentKind, Amount] = field(default_factory=dict)
    """Segment files, with the bytes that they take on disk."""
    index: int = 0
    """Bytes of the index on disk."""

    @property
    def stored(self) -> int:
        """Bytes that commits of repos need."""
        return sum(amount.size for amount in self.objects.values())

    @property
    def versions(self) -> int:
        """Bytes of all files of all commits added up: what copies of each version would take."""
        return sum(repo.versions.size for repo in self.repos)

    @property
    def shared(self) -> int:
        """Bytes that more than one repo needs."""
        return self.stored - sum(repo.unique for repo in self.repos)


class _StoreMeter:
    def __init__(self, store: Store, progress: Progress | None) -> None:
        self._store, self._progress = store, progress
        self._once = Marks(store.objects)
        self._twice = Marks(store.objects)
        self._count = 0
        self.usage = StoreUsage()

    def repo(self, info: RepoInfo) -> None:
        """Count a repo, and note what an earlier one needs too."""
        found = RepoUsage(info.name)
        self.usage.repos.append(found)
        own = Marks(self._store.objects)

        def take(place: Location) -> bool:
            if not own.add(place):
                return False
            size = own.stored_size(place)
            found.stored += size
            if self._once.add(place):
                self.usage.objects.setdefault(place.kind, Amount()).add(size)
            else:
                self._twice.add(place)
            self._tick()
            return True

        reach = Reach(self._store.objects, take)
        for commit in _commits(self._store, info):
            found.commits += 1
            found.versions.count += commit.tree.files
            found.versions.size += commit.tree.size
            reach.commit(commit.id)
        with self._store.objects.index.read() as txn:
            heads = [ref.commit for ref in scan_refs(txn, info, RefKind.BRANCH)]
            found.tags = sum(1 for _ in scan_refs(txn, info, RefKind.TAG))
        found.branches = len(heads)
        for head in heads:
            if head is not None:
                tree = self._store.read_commit(head).tree
                found.heads.count += tree.files
                found.heads.size += tree.size

    def unique(self, info: RepoInfo, found: RepoUsage) -> None:
        """Count what only this repo needs. What is below something shared is shared, so it is not entered."""
        own = Marks(self._store.objects)

        def take(place: Location) -> bool:
            if place in self._twice or not own.add(place):
                return False
            found.unique += own.stored_size(place)
            self._tick()
            return True

        reach = Reach(self._store.objects, take)
        for commit in _commits(self._store, info):
            reach.commit(commit.id)

    def _tick(self) -> None:
        self._count += 1
        if self._progress is not None and not self._count % 1024:
            self._progress(self._count)


def _commits(store: Store, repo: RepoInfo) -> Iterator[Commit]:
    """All commits of a repo, a few at a time, so that no transaction stays open meanwhile."""
    start = repo.key
    while True:
        with store.objects.index.read() as txn:
            keys = [key for key, _ in islice(txn.scan(Table.COMMITS, repo.key, start), _COMMITS_AT_ONCE)]
        for key in keys:
            id = ObjectId(key[len(repo.key) :])
            yield decode_commit(store.objects.get(id))
        if len(keys) < _COMMITS_AT_ONCE:
            return
        start = keys[-1] + b"\0"


def measure_store(store: Store, progress: Progress | None = None) -> StoreUsage:
    """Count all that the repos' commits need, each object once a repo; then what only one repo needs. Raises NotFound, Corrupt."""
    meter = _StoreMeter(store, progress)
    repos = store.repos()
    for info in repos:
        meter.repo(info)
    for info, found in zip(repos, meter.usage.repos, strict=True):
        if len(repos) == 1:
            found.unique = found.stored
        else:
            meter.unique(info, found)
    for kind in SegmentKind:
        paths = list(store.objects.directory.glob(f"*.{kind.suffix}"))
        meter.usage.segments[kind] = Amount(len(paths), sum(path.stat().st_blocks * 512 for path in paths))
    meter.usage.index = sum(
        entry.stat().st_blocks * 512 for entry in os.scandir(store.path / "index") if entry.is_file()
    )
    return meter.usage
