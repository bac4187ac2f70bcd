"""Says for whom a command waits: a process that was stopped in the middle of a change keeps the store's writer lock, and LMDB waits for it without a word."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from pfsmount.ids import display

_PATIENCE_S = 3.0
_COMMAND_MAX = 100


def tell_who_holds(store: Path) -> None:
    """From now on, look every few seconds; say it once on standard error when a stopped process holds the writer lock.

    In a thread, because LMDB waits in C: no signal handler runs meanwhile.
    """
    threading.Thread(target=_watch, args=(store / "index",), daemon=True, name="waiting").start()


def _watch(index: Path) -> None:
    told = 0
    while True:
        time.sleep(_PATIENCE_S)
        from pfsmount.objects.writer_lock import lock_holder

        holder = lock_holder(index)
        if holder is None or not holder.is_stopped or holder.pid == told:
            continue
        told = holder.pid
        command = display(holder.command)
        command = command if len(command) <= _COMMAND_MAX else command[:_COMMAND_MAX] + "…"
        lines = [
            f"waiting: process {holder.pid} was stopped while it changed the store, and keeps its writer lock: {command}",
            f"  let it go on ('kill -CONT {holder.pid}'), or end it ('kill -KILL {holder.pid}': what it had acknowledged stays)",
        ]
        if sys.stderr.isatty():  # LMDB waits in C, where Ctrl-C is not looked at
            lines.append("  to end this command instead: Ctrl-\\")
        print("\n".join(lines), file=sys.stderr, flush=True)
