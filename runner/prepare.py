"""What a job would do: names become commits, the command a program, and both the datums to run. Nothing is run, or seen by others.

`run_job` and `pfsjob plan` begin here, so that what is shown is what happens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from pfsmount.errors import NotFound
from pfsmount.ids import ObjectId
from pfsmount.repo.commit import Commit
from pfsmount.repo.store import Store
from runner.datum import Datum
from runner.inputs import PinnedInput, Previous, complete_spec, look_at_output, pin_inputs, sources_of
from runner.plan import Part, may_repeat, plan_added, plan_all, plan_removed, plan_tree
from runner.program import Caller, Image, Program, in_directory, resolve_program
from runner.spec import JobSpec


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job that could be started."""

    spec: JobSpec
    """With all branches named."""
    caller: Caller
    """In the directory where the command starts."""
    pinned: list[PinnedInput]
    program: Program
    head: Commit | None
    """Of the output branch."""
    previous: Previous | None
    """The job that made the head, when it was of the same pipeline."""
    base: Previous | None
    """The same, when a plan can build on its record."""
    part: Part
    """The inputs, on top of the base if there is one."""

    @property
    def nothing_to_do(self) -> Previous | None:
        """The job that did just this already."""
        done = self.previous
        if done is None or self.spec.reprocess or done.recovered or not self._same_program(done):
            return None
        same = done.commits_of(self.pinned) == [source.commit.id.hex() for source in self.pinned]
        return done if same else None

    def _same_program(self, done: Previous) -> bool:
        return done.program == self.program.id.hex() and done.would_do_the_same(self.spec)

    def to_add(self) -> Iterator[Datum]:
        """The datums that the base does not have, or all."""
        if self.base is None:
            return self.all_datums()
        return plan_added(self.program.id, self.part)

    def to_remove(self) -> list[ObjectId]:
        """The keys that the base has and this job does not."""
        return [] if self.base is None else list(plan_removed(self.program.id, self.part))

    def all_datums(self) -> Iterator[Datum]:
        """All of them, in order."""
        return plan_all(self.program.id, self.part, repeats=may_repeat(self.spec.input))


def prepare(
    store: Store,
    spec: JobSpec,
    caller: Caller,
    image: Image | None,
    *,
    take_over: bool = False,
    incremental: bool = True,
) -> Prepared:
    """Find out what a job would do. The copies of its code are in the store afterwards, named by nothing.

    Raises NotFound, InvalidInput (a spec that does not fit, an output that somebody else made), PermissionDenied, NoSpace.
    """
    spec = complete_spec(store, spec)
    if image is None:
        caller = in_directory(spec, caller)
    pinned = pin_inputs(store, spec)
    with store.objects.batch() as batch:
        program = resolve_program(batch, spec, caller, image)
        if batch.objects_added:
            batch.flush()
    output = look_at_output(store, spec, take_over=take_over)
    base = output.previous if incremental else None
    roots = None
    if base is not None and _can_build(base, spec, program):
        with suppress(NotFound):  # gc has collected what it read
            roots = base.roots_of(store, pinned)
    if roots is None:
        base = None
    part = plan_tree(store.objects, spec.input, sources_of(pinned, roots))
    return Prepared(spec, caller, pinned, program, output.head, output.previous, base, part)


def _can_build(previous: Previous, spec: JobSpec, program: Program) -> bool:
    """Whether what changed since a job is all that this one has to look at."""
    if previous.program != program.id.hex() or not previous.would_do_the_same(spec):
        return False
    return previous.can_be_built_on and not spec.reprocess and not may_repeat(spec.input)
