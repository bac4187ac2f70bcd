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
from pfsmount.tree.globs import Glob
from runner.plan import Source
from runner.record import Record
from runner.spec import InputSpec, JobSpec, check_spec, pipeline_of


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
    branch = spec.output_branch
    if not branch:
        try:
            branch = store.repo(spec.output_repo).default_branch
        except NotFound:
            branch = DEFAULT_BRANCH
    return check_spec(replace(spec, inputs=tuple(inputs), output_branch=branch))


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

    def input_commits(self) -> dict[str, str]:
        """Input name → commit, in hex."""
        return {source["name"]: source["commit"] for source in self.provenance["inputs"]}

    def input_roots(self, store: Store) -> dict[str, Entry]:
        """Input name → tree. Raises NotFound when a commit is not in the store any more."""
        return {
            name: store.read_commit(ObjectId(bytes.fromhex(commit))).tree
            for name, commit in self.input_commits().items()
        }


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
    if made is not None and pipeline_of(made["spec"]) == pipeline_of(spec.as_json()):
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


def sources_of(pinned: Sequence[PinnedInput], base_roots: Mapping[str, Entry] | None) -> list[Source]:
    """The inputs as the plan takes them."""
    return [
        Source(
            source.spec.name,
            Glob(source.spec.glob),
            source.commit.tree,
            None if base_roots is None else base_roots[source.spec.name],
        )
        for source in pinned
    ]
