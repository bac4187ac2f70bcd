"""`pfs gc`: give back the space of what no version needs any more."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfsmount.cli import output
from pfsmount.cli.repos import JsonFlag
from pfsmount.errors import InvalidInput

if TYPE_CHECKING:
    from pfsmount.objects.sweep import Amount
    from pfsmount.repo.collection import GcPlan

_KINDS = {
    "PIECE": "pieces and files",
    "NODE": "tree nodes",
    "MANIFEST": "manifests",
    "COMMIT": "commits",
    "XATTRS": "xattrs",
}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(\d+)([smhdw])\Z")


def gc(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only show what would go, and what is kept.")
    ] = False,
    keep: Annotated[
        str,
        typer.Option(
            help="How long the reflog, results of datums that nobody uses, and failed jobs keep what they name: 90d, 12h, 0d.",
            metavar="TIME",
        ),
    ] = "90d",
    json: JsonFlag = False,
) -> None:
    """Give back the space of what no version needs any more.

    Kept is all that branches, tags, jobs, uncommitted work, running commands and mounts need, and for 90 days what branches
    were at: until then 'pfs reset' brings back what was reset or deleted. Others may read, write and mount meanwhile, and it may
    be killed at any time: the next one goes on.
    """
    from pfsmount.repo.collection import Collection, collecting

    keep_s = _seconds(keep)
    with output.open_store() as store, collecting(store), output.Progress("collecting") as bar:
        collection = Collection(store, keep_s, lambda what, count: bar.update(note=_note(what, count)))
        plan = collection.plan()
        result = None if dry_run else collection.carry_out()
    if json:
        done = {} if result is None else {"freed": result.freed, "before": result.before, "after": result.after}
        output.print_json({"dry_run": dry_run, **_plan_json(plan), **done})
        return
    for line in _plan_lines(plan, done=not dry_run):
        output.say(line)
    if result is None:
        output.say(f"would free {output.human_size(plan.frees)}")
    else:
        before, after = output.human_size(result.before), output.human_size(result.after)
        output.say(f"freed {output.human_size(result.freed)}: segments took {before}, now {after}")


def _seconds(text: str) -> int:
    found = _DURATION.match(text)
    if found is None:
        raise InvalidInput(f"'{text}' is not a time", hint="write it as 90d, 12h or 0d")
    return min(int(found[1]) * _SECONDS[found[2]], 10**9)


def _note(what: str, count: int) -> str:
    return f"{what}: {output.human_size(count)}" if what.startswith("freeing") else f"{what}: {count:,} objects"


def _plan_lines(plan: GcPlan, *, done: bool) -> list[str]:
    size = output.human_size
    rows = [(why, amount) for why, amount in plan.kept.items() if amount.objects]
    lines = [f"kept by {why}: {output.plural(one.objects, 'object')} ({size(one.size)})" for why, one in rows]
    word = "dropped" if done else "would drop"
    for kind, amount in sorted(plan.dead.items()):
        lines.append(f"{word} {_KINDS.get(kind.name, kind.name.lower())}: {amount.objects:,} ({size(amount.size)})")
    if plan.jobs:
        lines.append(f"{word} failed jobs: {len(plan.jobs):,}")
    if plan.results:
        lines.append(f"{word} unused results of datums: {plan.results:,}")
    if not plan.dead:
        lines.append("nothing to collect")
    return lines


def _plan_json(plan: GcPlan) -> dict[str, Any]:
    def amount(one: Amount) -> dict[str, int]:
        return {"objects": one.objects, "size": one.size}

    return {
        "kept": {why: amount(one) for why, one in plan.kept.items()},
        "dead": {kind.name.lower(): amount(one) for kind, one in sorted(plan.dead.items())},
        "jobs": plan.jobs,
        "results": plan.results,
        "frees": plan.frees,
    }
