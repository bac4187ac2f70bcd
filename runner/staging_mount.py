"""Inputs out of a mount: nothing is copied, and a datum of any size starts at once.

A private `pfs mount --present job` of the store, for one job, shows commits as datums see them (fixed times, 0644 and 0755, no attributes). Files and
directories are bound out of it. It is a process of its own, because the runner must not depend on what serves a mount.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from pfsmount.errors import Unavailable
from pfsmount.ids import ObjectId
from pfsmount.objects.layout import disk_errors
from runner.datum import Datum
from runner.executors.base import Bind
from runner.jobs import note_mount, unmount_noted
from runner.staging import CopyStaging, Staged

_READY = b"mounted "
_PATIENCE_S = 20.0
_READ = 65536


class MountStaging:
    """Binds a datum's files out of a mount."""

    name = "mount"

    def __init__(self, place: Path, commits: Sequence[tuple[str, ObjectId]], copies: CopyStaging) -> None:
        """`commits` are repo and commit of each single input; `copies` brings what no mount shows, files of no size."""
        self._places = [os.fsencode(place / f"{repo}@{commit.hex()}") for repo, commit in commits]
        self._copies = copies

    def stage(self, datum: Datum, scratch: Path) -> Staged:
        binds = []
        for text, shown in datum.visible().items():
            name = os.fsencode(text)
            if any(one.empty for one in shown):
                place = os.fsencode(scratch / text)
                with disk_errors("writing the names of a datum's inputs"):
                    self._copies.copy(shown, place)
                binds.append(Bind(place, name, read_only=True))
                continue
            for one in shown:
                source = b"/".join((self._places[one.leaf], *one.path))
                binds.append(Bind(source, b"/".join((name, *one.path)), read_only=True))
        return Staged(tuple(binds))


def open_mount(store: Path, directory: Path, cleanup: ExitStack, *, for_others: bool) -> Path:
    """Mount the store until `cleanup`; returns where. `directory` is the job's; `for_others`: not for this user alone.

    Raises Unavailable with the reason.
    """
    # not in the store, which refuses to be mounted inside itself
    place = Path(tempfile.mkdtemp(prefix=f"pfs-{directory.name}-", dir="/tmp"))
    note_mount(directory, place)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "pfsmount.cli.app",
            "--store",
            store,
            "mount",
            "--foreground",
            "--present",
            "job",
            *(["--allow-other"] if for_others else []),
            place,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the runner, which ends the mount when nothing uses it any more
    )
    cleanup.callback(_close, process, directory)
    said = _wait_ready(process)
    if said is not None:
        raise Unavailable(said)
    threading.Thread(target=_drain, args=(process,), daemon=True).start()
    return place


def _wait_ready(process: subprocess.Popen[bytes]) -> str | None:
    """None when it is mounted, else why not."""
    assert process.stderr is not None
    end = time.monotonic() + _PATIENCE_S
    said = b""
    while (left := end - time.monotonic()) > 0:
        if not select.select([process.stderr], [], [], left)[0]:
            break
        part = os.read(process.stderr.fileno(), _READ)
        said += part
        if any(line.startswith(_READY) for line in said.splitlines()):
            return None
        if not part:
            lines = said.decode("utf-8", "replace").strip().splitlines()
            return lines[0].removeprefix("pfs: ") if lines else "the mount ended without a word"
    return f"the mount was not ready within {_PATIENCE_S:.0f} s"


def _drain(process: subprocess.Popen[bytes]) -> None:
    """Read on what the mount says, so that it never waits for a reader."""
    assert process.stderr is not None
    with suppress(OSError, ValueError):
        while os.read(process.stderr.fileno(), _READ):
            pass


def _close(process: subprocess.Popen[bytes], directory: Path) -> None:
    process.terminate()
    try:
        process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    unmount_noted(directory)
    assert process.stderr is not None
    process.stderr.close()
