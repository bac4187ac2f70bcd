"""The versions that a job reads and the branch that it writes: names in a spec become commits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pfsmount.errors import InvalidInput, NotFound
from pfsmount.ids import ObjectId
from pfsmount.repo.commit import Commit, parse_root
from pfsmount.repo.refs import RefKind
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
from pfsmount.revision import DEFAULT_BRANCH, Revision, parse_revision
from pfsmount.tree.entry import Entry
from runner.input_spec import InputSpec, with_leaves
from runner.plan import Source
from runner.record import Record
from runner.spec import JobSpec, Merge, check_spec, same_inputs, same_pipeline


@dataclass(frozen=True, slots=True)
class PinnedInput:
    """An input with the commit that the job reads."""

    spec: InputSpec
    commit: Commit

    def as_json(self) -> dict[str, Any]:
        """As a commit's provenance has it."""
        return {**self.spec.as_json(), "commit": self.commit.id.hex()}


def complete_spec(store: Store, spec: JobSpec) -> JobSpec:
    """The spec with the default branches filled in. Raises NotFound, InvalidInput."""
    inputs = []
    for source in spec.inputs:
        default = store.repo(source.repo).default_branch
        revision = parse_revision(default) if source.revision == Revision() else source.revision
        inputs.append(replace(source, revision=revision))
    return check_spec(complete_output(store, replace(spec, input=with_leaves(spec.input, iter(inputs)))))


def complete_output(store: Store, spec: JobSpec) -> JobSpec:
    """The spec with the branch of its output filled in."""
    branch = spec.output_branch
    if not branch:
        try:
            branch = store.repo(spec.output_repo).default_branch
        except NotFound:
            branch = DEFAULT_BRANCH
    return replace(spec, output_branch=branch)


def pin_inputs(store: Store, spec: JobSpec) -> list[PinnedInput]:
    """What the inputs are now. Raises NotFound, AmbiguousRevision, InvalidInput (a branch without commits, a private worktree)."""
    pinned = []
    for source in spec.inputs:
        if source.revision.worktree is not None:
            raise InvalidInput(
                f"{source.repo}@{source.revision} is uncommitted work, and a job reads commits",
                hint=f"'pfs commit {source.repo}@{source.revision}' brings it into the branch",
            )
        commit = store.resolve(source.repo, source.revision).commit
        if commit is None:
            raise InvalidInput(
                f"{source.repo}@{source.branch} has no commits yet, so there is nothing to read",
                hint=f"'pfs put FILES {source.repo}@{source.branch}:/' makes one",
            )
        pinned.append(PinnedInput(source, commit))
    return pinned


def uncommitted(store: Store, spec: JobSpec) -> list[tuple[str, str, int]]:
    """Repo, branch and number of uncommitted changes of the inputs that have any: the job does not see them."""
    found = []
    for repo, branch in dict.fromkeys((source.repo, source.branch) for source in spec.inputs):
        if store.ref(repo, RefKind.BRANCH, branch) is None:
            continue
        with Worktree.open(store, repo, branch) as worktree:
            count = sum(1 for _ in worktree.changes())
        if count:
            found.append((repo, branch, count))
    return found


@dataclass(frozen=True, slots=True)
class Previous:
    """The job that made the head of the output branch."""

    commit: Commit
    record: Record

    @property
    def provenance(self) -> Mapping[str, Any]:
        assert self.commit.provenance is not None
        return self.commit.provenance

    @property
    def program(self) -> str:
        """The id of its program, in hex."""
        return str(self.provenance["code"]["program"])

    @property
    def total(self) -> int:
        """How many datums made its results."""
        return int(self.provenance["counts"]["total"])

    def commits_of(self, pinned: Sequence[PinnedInput]) -> list[str]:
        """The commits that it read of these inputs, in hex, in their order. They are the same inputs (`would_do_the_same`)."""
        left = list(self.provenance["inputs"])
        found = []
        for source in pinned:
            wanted = source.spec.as_json()
            at = next(i for i, used in enumerate(left) if all(used.get(key) == wanted[key] for key in wanted))
            found.append(str(left.pop(at)["commit"]))
        return found

    def roots_of(self, store: Store, pinned: Sequence[PinnedInput]) -> list[Entry]:
        """The trees that it read of these inputs. Raises NotFound when a commit is not in the store any more."""
        return [store.read_commit(ObjectId(bytes.fromhex(commit))).tree for commit in self.commits_of(pinned)]

    def would_do_the_same(self, spec: JobSpec) -> bool:
        """Whether it read the inputs of this spec, at whatever commits, and laid results together in the same way."""
        made = self.provenance["spec"]
        return same_inputs(made, spec) and made.get("merge", Merge.ERROR) == spec.merge

    @property
    def recovered(self) -> int:
        """How many datums have no results, and are to be tried again."""
        return int(self.provenance["counts"].get("recovered", 0))

    @property
    def can_be_built_on(self) -> bool:
        """Whether all its datums have results, and none depends on more than its matches."""
        return not self.recovered and not self.provenance.get("links")


@dataclass(frozen=True, slots=True)
class Output:
    """The branch that a job writes, as it is when the job starts."""

    head: Commit | None
    exists: bool
    """The repo is there."""
    previous: Previous | None
    """What made the head, when that is an earlier run of the same pipeline."""


def look_at_output(store: Store, spec: JobSpec, *, take_over: bool) -> Output:
    """Where the job stands with its output branch.

    Raises InvalidInput when a person or another pipeline made the head, unless `take_over`.
    """
    try:
        ref = store.ref(spec.output_repo, RefKind.BRANCH, spec.output_branch)
    except NotFound:
        return Output(None, False, None)
    if ref is None or ref.commit is None:
        return Output(None, True, None)
    head = store.read_commit(ref.commit)
    made = head.provenance
    if made is not None and same_pipeline(made["spec"], spec):
        return Output(head, True, Previous(head, Record(store.objects, parse_root(made["record"]))))
    if take_over:
        return Output(head, True, None)
    raise InvalidInput(
        f"{spec.output} was made by {_maker(head)}, and this job would replace all of it",
        hint="write to another branch, or say --replace (the history stays)",
    )


def _maker(head: Commit) -> str:
    if head.provenance is None:
        return f"{head.author} ({head.origin.get('how', 'commit')})"
    sources: Sequence[Mapping[str, Any]] = head.provenance["spec"]["inputs"]
    return "another job, from " + ", ".join(f"{one['repo']}@{one['branch']}:{one['glob']}" for one in sources)


def sources_of(pinned: Sequence[PinnedInput], base_roots: Sequence[Entry] | None) -> list[Source]:
    """The inputs as the plan takes them."""
    roots: Sequence[Entry | None] = [None] * len(pinned) if base_roots is None else base_roots
    return [Source(source.commit.tree, base) for source, base in zip(pinned, roots, strict=True)]
