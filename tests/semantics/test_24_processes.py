"""Processes in trouble

Everything that processes share is guarded by something that the kernel gives back when a process dies. What a crash or a power cut leaves is in CRASHES.md.
"""

from __future__ import annotations

import signal
import subprocess
import sys

from tests.semantics.scene import PROJECT, Scene

_HOLDER = """
import os, signal, sys
from pathlib import Path
from pfsmount.objects.index import Table
from pfsmount.objects.store import ObjectStore
store = ObjectStore(Path(sys.argv[1]))
with store.index.write() as txn:
    txn.put(Table.META, b"half", b"a change")
    print("ready", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
"""


def _stopped_in_a_change(scene: Scene) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _HOLDER, str(scene.store)]
    holder = subprocess.Popen(command, cwd=PROJECT, env=scene.environment, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    return holder


def test_a_stopped_writer_is_named(scene: Scene) -> None:
    """S240 A command that waits for a stopped process says for which

    A process that is stopped in the middle of a change (Ctrl-Z at the wrong millisecond, a debugger, a frozen container) keeps the store's writer lock. After some
    seconds whoever waits says which process it is and what to do; it goes on as soon as that one goes on, or is killed.
    """
    for end in (signal.SIGCONT, signal.SIGKILL):
        with _stopped_in_a_change(scene) as holder:
            waiting = scene.start("pfs", "repo", "create", f"waits-{end.name.lower()}")
            assert waiting.stderr is not None
            try:
                if end is signal.SIGCONT:
                    assert f"process {holder.pid} was stopped" in waiting.stderr.readline()
                    assert f"kill -CONT {holder.pid}" in waiting.stderr.readline()
            finally:
                holder.send_signal(end)
                out, errors = waiting.communicate(timeout=60)
            assert (waiting.returncode, errors) == (0, "")
            assert "made repo waits" in out
    scene.pfs("fsck", "--data")
