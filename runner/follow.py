"""Following branches: when the heads that a job reads have moved, and that one process at a time follows for an output.

Nothing is remembered between runs but what is in the store: whoever starts to follow again runs what the output's last job does not
have, and nothing twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pfsmount.errors import NotFound, Unavailable
from pfsmount.ids import ObjectId
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.layout import disk_errors
from pfsmount.objects.locks import is_path_locked, try_lock
from pfsmount.repo.store import Store
from runner.spec import JobSpec


def input_heads(store: Store, spec: JobSpec) -> list[ObjectId] | None:
    """The commits that a job would read now, of a spec with all branches named; None while an input has none yet. Raises NotFound (no such repo)."""
    heads = []
    for source in spec.inputs:
        store.repo(source.repo)
        try:
            commit = store.resolve(source.repo, source.revision).commit
        except NotFound:
            commit = None
        if commit is None:
            return None
        heads.append(commit.id)
    return heads


@contextmanager
def following(store: Store, spec: JobSpec) -> Iterator[None]:
    """Be the one who follows for the output of this spec. Raises Unavailable when another process does."""
    with disk_errors("beginning to follow"):
        fd = os.open(_place(store, spec.output), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not try_lock(fd):
            pid = follower(store, spec.output)
            raise Unavailable(
                f"{spec.output} is followed for already, by process {pid}",
                hint=f"end that first: pfsjob stop {spec.output}",
            )
        os.pwrite(fd, f"{os.getpid():<20}\n".encode("ascii"), 0)
        yield
    finally:
        os.close(fd)


def follower(store: Store, output: str) -> int | None:
    """The process that follows for an output (`repo@branch`), or None."""
    place = _place(store, output)
    if not is_path_locked(place):
        return None
    try:
        return int(place.read_text("ascii"))
    except (OSError, ValueError):
        return None


def _place(store: Store, output: str) -> Path:
    return store.path / "run" / f"follow-{hash_bytes(os.fsencode(output)).hex()[:16]}"
