"""What revisions mean: branches, tags, jobs, beginnings of commit ids, and steps back from them (the grammar is `pfsmount.revision`)."""

from __future__ import annotations

from dataclasses import dataclass

from pfsmount.errors import AmbiguousRevision, NotFound
from pfsmount.ids import ObjectId
from pfsmount.objects.index import Table, Transaction
from pfsmount.objects.store import ObjectStore
from pfsmount.repo.commit import Commit, ancestor_at, load_commit
from pfsmount.repo.refs import RefKind, RepoInfo, get_ref, get_repo, get_worktree, private_worktrees, scan_refs
from pfsmount.revision import Revision, is_commit_prefix

_PREFIX_SHOWN = 12
"""Digits of a commit's id where commands show it short."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a revision means now."""

    repo: RepoInfo
    commit: Commit | None
    """None: a branch that has no commit yet."""
    branch: str | None = None
    """Set when the revision is a branch and nothing more: a place that can be written."""
    worktree: str | None = None


class Revisions:
    """The revisions of a store's repos."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def resolve(self, repo: str, revision: Revision) -> Resolved:
        """What a revision means. Raises NotFound, AmbiguousRevision."""
        with self._objects.index.read() as txn:
            info = get_repo(txn, repo)
            base = revision.base or info.default_branch
            branch = get_ref(txn, info, RefKind.BRANCH, base)
            ref = branch or get_ref(txn, info, RefKind.TAG, base)
            id = ref.commit if ref is not None else _by_prefix(txn, info, base)
            if ref is None and id is None:
                job = get_ref(txn, info, RefKind.JOB, base)
                id = None if job is None else job.commit
            within = None if revision.within is None else _by_prefix(txn, info, revision.within)
            private = revision.worktree is None or get_worktree(txn, info, base, revision.worktree) is not None
        if ref is None and id is None:
            raise self.not_there(repo, base)
        commit = None if id is None else load_commit(self._objects, id)
        commit = self._take_steps(f"{repo}@{base}", commit, revision)
        if revision.within is not None:
            commit = self._within(repo, revision, commit, within)
        plain = branch is not None and not revision.steps and revision.within is None
        if not (private and (plain or revision.worktree is None)):
            raise self._no_worktree(repo, base, revision, plain)
        return Resolved(info, commit, base if plain else None, revision.worktree if plain else None)

    def _take_steps(self, name: str, commit: Commit | None, revision: Revision) -> Commit | None:
        for step in revision.steps:
            count = 0 if commit is None else commit.height + 1
            height = count - 1 - step.count if step.kind == "back" else step.count - 1
            if commit is None or not 0 <= height < count:
                commits = "no commits yet" if not count else "one commit" if count == 1 else f"{count} commits"
                raise NotFound(f"'{name}' has {commits}, so there is no {Revision(name, (step,))}")
            commit = ancestor_at(self._objects, commit, height)
        return commit

    def _within(self, repo: str, revision: Revision, head: Commit | None, id: ObjectId | None) -> Commit:
        wanted = None if id is None else load_commit(self._objects, id)
        if (
            wanted is None
            or head is None
            or wanted.height > head.height
            or ancestor_at(self._objects, head, wanted.height).id != wanted.id
        ):
            raise NotFound(f"the commit '{revision.within}' is not in the history of {repo}@{revision.base}")
        return wanted

    def not_there(self, repo: str, text: str) -> NotFound:
        """The error for a branch, tag or commit that is none of a repo's."""
        import difflib

        with self._objects.index.read() as txn:
            info = get_repo(txn, repo)
            names = [ref.name for kind in (RefKind.BRANCH, RefKind.TAG) for ref in scan_refs(txn, info, kind)]
        near = difflib.get_close_matches(text, names, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"branches and tags: {', '.join(names) or 'none'}"
        if not near and len(text) >= _PREFIX_SHOWN and is_commit_prefix(text):
            what_was = f"'pfs reflog {repo}' shows what there was"
            hint = f"commits are deleted with their repo, also when another has its name now; {what_was}"
        return NotFound(f"'{repo}' has no branch, tag or commit '{text}'", hint=hint)

    def _no_worktree(self, repo: str, base: str, revision: Revision, plain: bool) -> NotFound:
        if not plain:
            return NotFound(f"only a branch has private worktrees, and '{repo}@{revision}' does not begin with one")
        with self._objects.index.read() as txn:
            there = list(private_worktrees(txn, get_repo(txn, repo)))
        names = [f"{base}+{name}" for branch, name in there if branch == base]
        hint = f"there are {', '.join(names)}" if names else f"'pfs begin {repo}@{base} NAME' makes one"
        return NotFound(f"'{repo}' has no private worktree '{base}+{revision.worktree}'", hint=hint)


def _by_prefix(txn: Transaction, repo: RepoInfo, prefix: str) -> ObjectId | None:
    """The commit of a repo that a prefix names, or None. Raises AmbiguousRevision."""
    if not is_commit_prefix(prefix):
        return None
    start = bytes.fromhex(prefix[: len(prefix) & ~1])
    found = []
    for key, _ in txn.scan(Table.COMMITS, repo.key + start):
        id = key[len(repo.key) :]
        if id.hex().startswith(prefix):
            found.append(ObjectId(id))
            if len(found) > 1:
                raise AmbiguousRevision(
                    f"'{prefix}' fits more than one commit of '{repo.name}': "
                    f"{found[0].hex()[:16]} and {found[1].hex()[:16]}",
                    hint="give more digits",
                )
    return found[0] if found else None
