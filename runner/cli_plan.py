"""`pfsjob plan`: what a job would do, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from pfsmount.cli import output
from pfsmount.errors import NotFound
from pfsmount.repo.store import Store
from pfsmount.revision import DEFAULT_BRANCH
from runner.cli_run import caller, note_warnings, settings
from runner.cli_spec import SpecFlags
from runner.executors.choice import choose_runtime
from runner.finish import JobDraft, draft_of
from runner.follow import input_heads
from runner.inputs import complete_output, complete_spec
from runner.prepare import Prepared, prepare
from runner.preview import Choice, Preview
from runner.spec import JobSpec

_JOBS_SHOWN = 5


def print_plans(store: Store, flags: SpecFlags, *, limit: int, everything: bool, replace: bool, json: bool) -> None:
    """Print what each job would do. Raises PfsError when one could not start."""
    values = []
    waited_for: dict[tuple[str, str], str] = {}
    for one in flags.specs():
        note_warnings(one)
        spec = complete_output(store, one.spec)
        before = [waited_for[place] for place in _read(spec) if place in waited_for]
        waited_for[spec.output_repo, spec.output_branch] = spec.output
        if before and not _is_there(store, spec):
            output.note(f"pfsjob: {spec.output} cannot be planned before {', '.join(before)} has results")
            continue
        plan = _Plan(store, spec, replace=replace, everything=everything)
        if json:
            values.append(plan.as_json())
        else:
            plan.print(limit)
        if before:
            output.note(
                f"pfsjob: {spec.output} is planned over {', '.join(before)} as it is now; the job above it would change that"
            )
        elif not plan.changes_output:
            del waited_for[spec.output_repo, spec.output_branch]
    if json:
        output.print_json(values[0] if len(values) == 1 else values)


def _read(spec: JobSpec) -> list[tuple[str, str]]:
    """What a job reads: repos and branches, where none is named the one that a job's output has by default."""
    return list(dict.fromkeys((source.repo, source.branch or DEFAULT_BRANCH) for source in spec.inputs))


def _is_there(store: Store, spec: JobSpec) -> bool:
    """Whether all that a job reads has a commit."""
    try:
        return input_heads(store, complete_spec(store, spec)) is not None
    except NotFound:
        return False


class _Plan:
    """The datums of one job, looked at."""

    def __init__(self, store: Store, spec: JobSpec, *, replace: bool, everything: bool) -> None:
        runtime = choose_runtime(spec, settings())
        self._ready: Prepared = prepare(store, spec, caller(), runtime.image, take_over=replace)
        self._draft: JobDraft = draft_of(self._ready)
        self._preview = Preview(store, self._ready, self._draft)
        self._everything = everything
        self._to_run = 0
        self._jobs: Counter[str] = Counter()
        """How many datums would be reused of which job, as far as they were looked at."""

    def _choices(self) -> Iterator[Choice]:
        """The datums, counted as they go by; none is kept."""
        for choice in self._preview.all() if self._everything else self._preview.to_run():
            if choice.reused is None:
                self._to_run += 1
            else:
                self._jobs[choice.reused] += 1
            yield choice

    @property
    def changes_output(self) -> bool:
        """Whether the job would make a commit."""
        return self._ready.nothing_to_do is None

    @property
    def _reused(self) -> int:
        """How many datums have results already."""
        return self._jobs.total() if self._everything else self._preview.reused

    def as_json(self) -> dict[str, Any]:
        done = self._ready.nothing_to_do
        datums = [choice.as_json() for choice in self._choices()]
        return {
            "output": self._ready.spec.output,
            "program": self._ready.program.id.hex(),
            "inputs": [source.as_json() for source in self._ready.pinned],
            "to_run": self._to_run,
            "reused": self._reused,
            "removed": len(self._draft.removed),
            "nothing_to_do": None if done is None else str(done.provenance["job"]),
            "datums": datums,
        }

    def print(self, limit: int) -> None:
        done = self._ready.nothing_to_do
        if done is not None:
            output.say(
                f"nothing to do: {self._ready.spec.output} has these results already, by {done.provenance['job']}"
            )
        count = 0
        for choice in self._choices():
            count += 1
            if not limit or count <= limit:
                verb, why = ("run", choice.why) if choice.reused is None else ("reuse", f"from {choice.reused}")
                output.say(f"  {verb:<6} {choice.datum}  ({why})")
        if limit and count > limit:
            output.say(f"  … and {output.plural(count - limit, 'more datum')} (--limit 0 shows all)")
        text = f"{self._ready.spec.output}: {output.plural(self._to_run, 'datum')} to run, {self._reused:,} reused"
        if self._draft.removed:
            text += f", {output.plural(len(self._draft.removed), 'datum')} of the last job replaced or gone"
        output.say(text)
        for job, number in self._jobs.most_common(_JOBS_SHOWN):
            output.say(f"  {number:,} from {job}")
