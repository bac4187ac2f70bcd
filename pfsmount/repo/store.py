"""A store as its users see it: repos, branches, commits.

`Store` is the door of this layer. Each change is one durable transaction of the index, followed by its line in `refs.log`.
The commit's transaction checks the expected head, publishes the last objects and writes commit, ref, reflog, worktree row and
lineage together: that transaction *is* the commit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfsmount.config import DEFAULT_SETTINGS, StoreSettings
from pfsmount.errors import (
    AlreadyExists,
    Corrupt,
    NotFound,
    NotPermitted,
    PfsError,
)
from pfsmount.ids import ObjectId
from pfsmount.objects.batch import Batch
from pfsmount.objects.holds import CommitHold
from pfsmount.objects.index import Table, Transaction
from pfsmount.objects.layout import create_store
from pfsmount.objects.segment import RecordKind
from pfsmount.objects.store import ObjectStore
from pfsmount.repo import reflog
from pfsmount.repo.commit import (
    Commit,
    chain_position,
    encode_commit,
    first_parents,
    load_commit,
)
from pfsmount.repo.refs import (
    RefInfo,
    RefKind,
    RefMove,
    RepoInfo,
    WorktreeState,
    drop_worktree,
    get_ref,
    get_repo,
    get_worktree,
    log_change,
    move_ref,
    private_worktrees,
    put_worktree,
    scan_refs,
)
from pfsmount.repo.revisions import Resolved, Revisions
from pfsmount.revision import DEFAULT_BRANCH, Revision, check_ref_name, check_repo_name
from pfsmount.tree.directory import EMPTY_DIRECTORY, directory_entry
from pfsmount.tree.entry import Entry

_HEIGHT_BYTES = 8


@dataclass(frozen=True, slots=True)
class WorktreeKey:
    """The worktree whose base a commit moves: `name` is empty for the default one of the branch."""

    name: str
    generation: int
    """The generation that the commit ends."""


class Store:
    """One process' opening of a store. Thread-safe; not usable after a fork."""

    def __init__(self, objects: ObjectStore, author: str) -> None:
        self.objects = objects
        self.path = objects.path
        self.author = author
        self._log_path = self.path / "refs.log"
        self._revisions = Revisions(objects)
        self.keeps_resolved = False
        """Whether gc keeps each commit that `resolve` finds as long as this is open: for commands, which end soon."""
        self._kept = CommitHold(self.path)
        self._moved = False
        self.after_moves: Callable[[], None] = lambda: None
        """Called by `close` when repos or refs were changed through this: a command line lets mounts catch up."""
        self.critical: Callable[[], AbstractContextManager[None]] = nullcontext
        """Held around the transaction that makes a commit: a command line keeps signals back in it."""

    @classmethod
    def create(cls, path: Path, settings: StoreSettings = DEFAULT_SETTINGS) -> None:
        """Make an empty store. Raises AlreadyExists, InvalidInput, NoSpace, PermissionDenied."""
        create_store(path, settings)

    @classmethod
    def open(cls, path: Path, settings: StoreSettings = DEFAULT_SETTINGS, *, author: str = "") -> Store:
        """Open. `author` is put into commits that name no other.

        Raises NotAStore, StoreTooNew, Busy, Corrupt, PermissionDenied.
        """
        store = cls(ObjectStore(path, settings), author)
        try:
            store._check_log()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close; any number of times."""
        if self._moved:
            self._moved = False
            self.after_moves()
        self._kept.close()
        self.objects.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_log(self) -> None:
        """Append what a crash left out; refuse an index that is behind the log."""
        last = reflog.last_number(self._log_path)
        if last > self.refs_version():
            raise Corrupt(
                f"the index of the store at {self.path} knows {self.refs_version()} of {last} changes in refs.log",
                hint="the index was lost or is an old copy: 'pfs fsck --rebuild-index' makes it anew, and nothing else is damaged",
            )
        if last < self.refs_version():
            self._append_log()

    def _append_log(self) -> None:
        self._moved = True
        # The change is durable in the index; a log that cannot be written now (a full disk) is brought up by whoever
        # opens the store next.
        with suppress(OSError, PfsError):
            reflog.append_missing(self.objects.index, self._log_path)

    # Repos

    def refs_version(self) -> int:
        """A number that changes with every change of a repo or ref, by anybody."""
        raw = self.objects.index.get(Table.META, b"refs")
        return 0 if raw is None else int.from_bytes(raw, "little")

    def repos(self) -> list[RepoInfo]:
        """All repos by name."""
        with self.objects.index.read() as txn:
            return [RepoInfo.decode(name, raw) for name, raw in txn.scan(Table.REPOS)]

    def repo(self, name: str) -> RepoInfo:
        """One repo. Raises NotFound."""
        with self.objects.index.read() as txn:
            return get_repo(txn, name)

    def create_repo(self, name: str, description: str = "") -> RepoInfo:
        """A new repo with an empty, writable default branch. Raises AlreadyExists, InvalidInput."""
        check_repo_name(name)
        now = time.time_ns()
        repo = RepoInfo(name, int.from_bytes(os.urandom(8), "little") >> 1 | 1, description, now, DEFAULT_BRANCH)
        with self.objects.index.write() as txn:
            if not txn.put(Table.REPOS, os.fsencode(name), repo.encode(), overwrite=False):
                raise AlreadyExists(f"there is a repo '{name}' already")
            change = {
                "op": "repo-create",
                "repo": name,
                "repo_id": f"{repo.id:016x}",
                "description": description,
                "default_branch": DEFAULT_BRANCH,
            }
            log_change(txn, change, who=self.author, why="repo create", time_ns=now)
            branch = RefMove(repo, RefKind.BRANCH, DEFAULT_BRANCH, None, create_empty=True)
            move_ref(txn, branch, who=self.author, why="repo create", time_ns=now)
        self._append_log()
        return repo

    def delete_repo(self, name: str) -> None:
        """Delete a repo with its refs; the objects stay until gc. Raises NotFound."""
        with self.objects.index.write() as txn:
            repo = get_repo(txn, name)
            now = time.time_ns()
            # each with the commit where it was: gc keeps that as long as what was deleted otherwise
            for kind in RefKind:
                for ref in list(scan_refs(txn, repo, kind)):
                    move = RefMove(repo, kind, ref.name, None, ref.commit)
                    move_ref(txn, move, who=self.author, why="repo delete", time_ns=now)
            txn.delete(Table.REPOS, os.fsencode(name))
            for table in (Table.REFS, Table.COMMITS, Table.WORKTREES):
                for key in [key for key, _ in txn.scan(table, repo.key)]:
                    txn.delete(table, key)
            change = {"op": "repo-delete", "repo": name, "repo_id": f"{repo.id:016x}"}
            log_change(txn, change, who=self.author, why="repo delete", time_ns=now)
        self._append_log()

    # Refs

    @contextmanager
    def change_refs(self) -> Iterator[Transaction]:
        """A durable change of repos and refs: all of it when the block ends, none when it raises; then its lines in refs.log."""
        with self.objects.index.write() as txn:
            yield txn
        self._append_log()

    def refs(self, repo: str, kind: RefKind = RefKind.BRANCH) -> list[RefInfo]:
        """All refs of a kind, by name. Raises NotFound."""
        with self.objects.index.read() as txn:
            return list(scan_refs(txn, get_repo(txn, repo), kind))

    def branches(self, repo: str) -> list[RefInfo]:
        """All branches of a repo, by name. Raises NotFound."""
        return self.refs(repo)

    def ref(self, repo: str, kind: RefKind, name: str) -> RefInfo | None:
        """One ref, or None. Raises NotFound for the repo."""
        with self.objects.index.read() as txn:
            return get_ref(txn, get_repo(txn, repo), kind, name)

    def head(self, repo: str, branch: str) -> ObjectId | None:
        """The commit of a branch; None when it has none yet. Raises NotFound."""
        ref = self.ref(repo, RefKind.BRANCH, branch)
        if ref is None:
            raise self._revisions.not_there(repo, branch)
        return ref.commit

    def set_ref(
        self, repo: str, kind: RefKind, name: str, new: ObjectId | None, *, expected: ObjectId | None, why: str
    ) -> None:
        """Move or make a ref; for a branch, `new` None makes one without commits.

        Raises Conflict, NotFound, InvalidInput.
        """
        if kind is not RefKind.JOB:
            check_ref_name(name, kind.name.lower())
        with self.objects.index.write() as txn:
            info = get_repo(txn, repo)
            move = RefMove(info, kind, name, new, expected, create_empty=new is None)
            move_ref(txn, move, who=self.author, why=why, time_ns=time.time_ns())
            if new is not None and txn.get(Table.OBJECTS, new) is None:
                raise NotFound(f"the commit {new.hex()[:12]} was dropped by a garbage collection; nothing was changed")
            if new is not None:
                know_commit(txn, info, load_commit(self.objects, new))
        self._append_log()

    def create_branch(self, repo: str, name: str, start: ObjectId | None) -> None:
        """A new branch at a commit, or without one. Raises AlreadyExists, InvalidInput, NotFound."""
        if self.ref(repo, RefKind.BRANCH, name) is not None:
            raise AlreadyExists(f"there is a branch {repo}@{name} already")
        if self.ref(repo, RefKind.TAG, name) is not None:
            raise AlreadyExists(f"{repo}@{name} is a tag", hint="give the branch another name")
        self.set_ref(repo, RefKind.BRANCH, name, start, expected=None, why="branch")

    def delete_branch(self, repo: str, name: str) -> RefInfo:
        """Delete a branch; its commits stay readable by id. Raises NotFound, NotPermitted."""
        with self.objects.index.write() as txn:
            info = get_repo(txn, repo)
            ref = get_ref(txn, info, RefKind.BRANCH, name)
            if ref is None:
                raise self._revisions.not_there(repo, name)
            if info.default_branch == name:
                raise NotPermitted(f"{repo}@{name} is the default branch of '{repo}' and stays")
            move = RefMove(info, RefKind.BRANCH, name, None, ref.commit)
            move_ref(txn, move, who=self.author, why="branch delete", time_ns=time.time_ns())
            for key in [key for key, _ in txn.scan(Table.WORKTREES, info.key + os.fsencode(name) + b"+")]:
                txn.delete(Table.WORKTREES, key)
        self._append_log()
        return ref

    # Revisions

    def resolve(self, repo: str, revision: Revision) -> Resolved:
        """What a revision means. Raises NotFound, AmbiguousRevision."""
        found = self._revisions.resolve(repo, revision)
        commit = found.commit
        if commit is not None and self.keeps_resolved and not self._kept.add(commit.id, self.has_commit):
            raise NotFound(f"the commit {commit.id.hex()[:12]} was dropped by a garbage collection just now")
        return found

    def read_commit(self, id: ObjectId) -> Commit:
        """A commit by its id. Raises NotFound, Corrupt."""
        return load_commit(self.objects, id)

    def has_commit(self, id: ObjectId) -> bool:
        """Whether a commit is there, and with it its history and tree."""
        return self.objects.index.get(Table.OBJECTS, id) is not None

    def history(self, commit: Commit | None) -> Iterator[Commit]:
        """The commit and its first-parent ancestors, newest first."""
        return first_parents(self.objects, commit)

    def empty_root(self) -> Entry:
        """What a branch without commits shows."""
        return directory_entry(EMPTY_DIRECTORY, uid=os.getuid(), gid=os.getgid())

    def root_of(self, resolved: Resolved) -> Entry:
        """The root directory of a resolved revision."""
        return self.empty_root() if resolved.commit is None else resolved.commit.tree

    # Commits

    def make_commit(
        self,
        batch: Batch,
        *,
        tree: Entry,
        parents: Sequence[ObjectId],
        message: str,
        author: str | None,
        origin: Mapping[str, Any],
        provenance: Mapping[str, Any] | None = None,
    ) -> Commit:
        """Add a commit object to the batch; no ref names it yet."""
        height, jump = chain_position(batch, parents[0] if parents else None)
        raw = encode_commit(
            tree=tree,
            parents=tuple(parents),
            height=height,
            jump=jump,
            message=message,
            author=self.author if author is None else author,
            time_ns=time.time_ns(),
            origin=origin,
            provenance=provenance,
        )
        return load_commit(batch, batch.add_object(RecordKind.COMMIT, raw))

    def commit(
        self,
        batch: Batch,
        repo: str,
        branch: str,
        *,
        tree: Entry,
        expected: ObjectId | None,
        message: str,
        author: str | None = None,
        origin: Mapping[str, Any],
        provenance: Mapping[str, Any] | None = None,
        worktree: WorktreeKey | None = None,
    ) -> Commit:
        """Commit `tree` on top of `expected`, the head on which it was built: atomic, durable when this returns.

        With `worktree`, the same transaction sets that worktree's base to the new commit and its generation one up.
        Raises Conflict when the head moved, NoSpace; then nothing has changed.
        """
        info = self.repo(repo)
        parents = [] if expected is None else [expected]
        commit = self.make_commit(
            batch,
            tree=tree,
            parents=parents,
            message=message,
            author=author,
            origin=origin,
            provenance=provenance,
        )

        def more(txn: Transaction) -> None:
            if worktree is not None:
                state = WorktreeState(worktree.generation + 1, commit.id)
                put_worktree(txn, info, branch, worktree.name, state)

        move = RefMove(info, RefKind.BRANCH, branch, commit.id, expected)
        self.publish(batch, [(move, commit)], why=str(origin.get("how", "commit")), more=more)
        return commit

    def publish(
        self,
        batch: Batch,
        moves: Sequence[tuple[RefMove, Commit]],
        *,
        why: str,
        more: Callable[[Transaction], None] | None = None,
    ) -> None:
        """Make a batch durable and move refs to commits in it, all or nothing. Raises Conflict, NoSpace."""
        batch.prepare()
        now = time.time_ns()
        with self.critical():
            with self.objects.index.write() as txn:
                for move, commit in moves:
                    _check_alive(txn, move.repo)
                    move_ref(txn, move, who=commit.author, why=why, time_ns=now)
                    know_commit(txn, move.repo, commit)
                batch.publish(txn)
                if more is not None:
                    more(txn)
            batch.published()
            self._append_log()

    # Worktrees

    def worktree_state(self, repo: str, branch: str, name: str = "") -> WorktreeState:
        """Generation and base of a worktree; generation 0 on the head for one that was never written to.

        Raises NotFound.
        """
        with self.objects.index.read() as txn:
            info = get_repo(txn, repo)
            state = get_worktree(txn, info, branch, name)
        return state or WorktreeState(0, self.head(repo, branch))

    def worktrees(self, repo: str) -> list[tuple[str, str]]:
        """Branch and name of each private worktree of a repo. Raises NotFound."""
        with self.objects.index.read() as txn:
            return list(private_worktrees(txn, get_repo(txn, repo)))

    def has_worktree(self, repo: str, branch: str, name: str) -> bool:
        """Whether there is such a private worktree. Raises NotFound (repo)."""
        with self.objects.index.read() as txn:
            return get_worktree(txn, get_repo(txn, repo), branch, name) is not None

    def drop_worktree(self, repo: str, branch: str, name: str) -> None:
        """Take away the row of a worktree; its owner does. Durable. Raises NotFound (repo)."""
        with self.objects.index.write() as txn:
            drop_worktree(txn, get_repo(txn, repo), branch, name)

    def set_worktree_state(self, repo: str, branch: str, name: str, generation: int, base: ObjectId | None) -> None:
        """Move a worktree without a commit: begin, rebase, discard. Durable. Raises NotFound."""
        with self.objects.index.write() as txn:
            put_worktree(txn, get_repo(txn, repo), branch, name, WorktreeState(generation, base))


def know_commit(txn: Transaction, repo: RepoInfo, commit: Commit) -> None:
    """List a commit as one of the repo's, and what it descends from."""
    height = commit.height.to_bytes(_HEIGHT_BYTES, "little")
    if not txn.put(Table.COMMITS, repo.key + commit.id, height, overwrite=False):
        return
    for source in (commit.provenance or {}).get("inputs", ()):
        txn.put(Table.DESCENDS, bytes.fromhex(source["commit"]) + commit.id, repo.key)


def _check_alive(txn: Transaction, repo: RepoInfo) -> None:
    """Refuse a repo that was deleted, also when another has its name now. Raises NotFound."""
    raw = txn.get(Table.REPOS, os.fsencode(repo.name))
    if raw is None or RepoInfo.decode(os.fsencode(repo.name), raw).id != repo.id:
        raise NotFound(f"the repo '{repo.name}' was deleted meanwhile; nothing was committed")
