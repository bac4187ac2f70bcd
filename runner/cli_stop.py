"""`pfsjob stop`: end a job that another process runs."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable

from pfsmount.cli import output
from pfsmount.errors import InvalidInput, NotPermitted, Unavailable
from pfsmount.ids import display
from pfsmount.repo.store import Store
from runner.follow import follower
from runner.jobs import JobStore

_POLL_S = 0.05
_PATIENCE_S = 60.0


def stop_job(store: Store, wanted: str, *, wait: bool) -> None:
    """Ask the runner of a job, or who follows for an output, to end, and wait until it has.

    Raises InvalidInput (it does not run), NotPermitted, Unavailable.
    """
    if "@" in wanted:
        _stop_following(store, wanted, wait=wait)
        return
    jobs = JobStore(store)
    job = jobs.find(wanted)
    if not jobs.is_running(job.id):
        raise InvalidInput(f"{job.id} does not run: it is {job.phase}", hint="'pfsjob list' shows those that do")
    runner = jobs.live(job.id).runner()
    if runner is None:
        raise Unavailable(f"nobody knows the process that runs {job.id}", hint="try again in a moment")
    pid, host = runner
    if host != socket.gethostname():
        raise Unavailable(f"{job.id} runs on {host}", hint=f"stop it there: pfsjob stop {job.id}")
    _ask(pid, job.id)
    if not wait:
        output.say(f"asked {job.id} to stop")
        return
    _wait(lambda: jobs.is_running(job.id), job.id, pid)
    job = jobs.find(job.id)
    kept = output.plural(int(job.origin["processed"]), "finished datum")
    output.say(f"{job.id} is {job.phase}; kept: {kept}")


def _stop_following(store: Store, target: str, *, wait: bool) -> None:
    pid = follower(store, target)
    if pid is None:
        raise InvalidInput(f"nobody follows for {display(target)}", hint="'pfsjob run --follow' would")
    _ask(pid, target)
    if wait:
        _wait(lambda: follower(store, target) == pid, f"following for {target}", pid)
    output.say(f"{display(target)} is no longer followed for")


def _ask(pid: int, what: str) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except PermissionError:
        raise NotPermitted(f"{what} is run by another user, as process {pid}") from None
    except ProcessLookupError:
        pass  # it has ended meanwhile


def _wait(runs: Callable[[], bool], what: str, pid: int) -> None:
    end = time.monotonic() + _PATIENCE_S
    while runs():
        if time.monotonic() > end:
            raise Unavailable(f"{what} has not ended within {_PATIENCE_S:.0f} s; its process is {pid}")
        time.sleep(_POLL_S)
