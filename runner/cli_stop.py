"""`pfsjob stop`: end a job that another process runs."""

from __future__ import annotations

import os
import signal
import socket
import time

from pfsmount.cli import output
from pfsmount.errors import InvalidInput, NotPermitted, Unavailable
from pfsmount.repo.store import Store
from runner.jobs import JobStore

_POLL_S = 0.05
_PATIENCE_S = 60.0


def stop_job(store: Store, prefix: str, *, wait: bool) -> None:
    """Ask the runner of a job to end it, and wait until it has. Raises InvalidInput (it does not run), NotPermitted, Unavailable."""
    jobs = JobStore(store)
    job = jobs.find(prefix)
    if not jobs.is_running(job.id):
        raise InvalidInput(f"{job.id} does not run: it is {job.phase}", hint="'pfsjob list' shows those that do")
    runner = jobs.live(job.id).runner()
    if runner is None:
        raise Unavailable(f"nobody knows the process that runs {job.id}", hint="try again in a moment")
    pid, host = runner
    if host != socket.gethostname():
        raise Unavailable(f"{job.id} runs on {host}", hint=f"stop it there: pfsjob stop {job.id}")
    try:
        os.kill(pid, signal.SIGTERM)
    except PermissionError:
        raise NotPermitted(f"{job.id} is run by another user, as process {pid}") from None
    except ProcessLookupError:
        pass  # it has ended meanwhile
    if not wait:
        output.say(f"asked {job.id} to stop")
        return
    end = time.monotonic() + _PATIENCE_S
    while jobs.is_running(job.id):
        if time.monotonic() > end:
            raise Unavailable(f"{job.id} has not ended within {_PATIENCE_S:.0f} s; its runner is process {pid}")
        time.sleep(_POLL_S)
    job = jobs.find(job.id)
    kept = output.plural(int(job.origin["processed"]), "finished datum")
    output.say(f"{job.id} is {job.phase}; kept: {kept}")
