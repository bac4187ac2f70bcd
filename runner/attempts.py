"""A datum is run until it does not fail, or has been tried often enough.

What the machine did to it (`WorkerLost`) is not counted here: another worker runs it again (`runner.schedule`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import trio

from pfsmount.objects.layout import disk_errors
from runner.executors.base import Outcome, Reason, Task, Worker
from runner.spec import JobSpec

# Another try would find the same.
_FOR_GOOD = (Reason.NOT_FOUND, Reason.NOT_EXECUTABLE, Reason.NO_CWD)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a datum ended, after all that was tried."""

    outcome: Outcome
    tries: int = 1
    recovered: bool = False
    """It failed, and the job goes on without it."""


async def run_attempts(worker: Worker, task: Task, spec: JobSpec, clean: Callable[[], None]) -> Ended:
    """Run a datum's command, again when it fails, and at last the command for errors. `clean` empties its output; blocking.

    Raises what `Worker.run` does.
    """
    for tried in range(1, spec.tries + 1):
        outcome = _accepted(await worker.run(task), spec)
        if outcome.ok or outcome.reason in _FOR_GOOD or tried == spec.tries:
            break
        await trio.to_thread.run_sync(clean)
        _say(task, f"try {tried} of {spec.tries}: {outcome.how}; once more")
    if outcome.ok or not spec.err_command:
        return Ended(outcome, tried)
    await trio.to_thread.run_sync(clean)
    _say(task, f"{outcome.how}; running the command for errors")
    stdin = None if spec.err_stdin is None else os.fsencode(spec.err_stdin)
    mended = await worker.run(replace(task, argv=spec.err_command, stdin=stdin))
    return Ended(outcome, tried, recovered=mended.ok)


def _accepted(outcome: Outcome, spec: JobSpec) -> Outcome:
    """The outcome, as success when the exit code is one that the spec accepts."""
    if outcome.reason is Reason.FAILED and outcome.exit_code in spec.accept_return_code:
        return replace(outcome, reason=Reason.OK)
    return outcome


def _say(task: Task, text: str) -> None:
    with disk_errors("writing to the log of a datum"), open(task.log, "ab") as log:
        log.write(f"pfs: {text}\n".encode("utf-8", "surrogateescape"))
