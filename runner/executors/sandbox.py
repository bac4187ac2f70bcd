"""The worker process of the executor `process`: the child's side.

    runner ── keeper ── slot ── PID 1 of a datum (`datum.py`) ── the command
              └ makes   └ PID 1 of a PID namespace that ends with it, and everything below with it
                namespaces

The runner starts the keeper, which makes the worker's namespaces, forks the slot and then only waits for it. The slot answers
orders from the socket, one at a time; the PID 1 of each datum is forked ahead of its order.

Who dies, and what follows: the command → its PID 1 leaves, the kernel kills what the command left behind. PID 1 of a datum (a
timeout, a cancellation) → the kernel kills the datum. The slot → the kernel kills everything in its PID namespace. The
keeper → the slot, by its parent-death signal. The runner, even by SIGKILL → the keeper by its own, and the slot reads the end
of the socket.

Only modules that load in a few milliseconds are imported here and below.
"""

from __future__ import annotations

import gc
import math
import os
import select
import sys
import time

from runner.executors import cells, datum, namespaces, syscalls, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from resource import struct_rusage
    from typing import NoReturn

# How long killed processes may take to disappear: freeing hundreds of gigabytes takes tens of seconds. One that hangs in the
# kernel (a dead network filesystem) never does.
PATIENCE_S = 30.0
# A command that has run for so long leaves the processor to us for preparing the next datum; sooner we would delay it.
BRIEF_S = 0.005
LONGEST_POLL_S = 86_400.0
_SIGINT, _SIGKILL = 2, 9
_ENOMEM = 12


def main() -> NoReturn:
    """`IMPORT_ROOT SOCKET PARENT DEATHS [STEM…]`: the fd of the socket to the runner, the runner's pid, and for `cells` the
    file that counts deaths and the cgroups of the datums."""
    socket, parent, deaths, stems = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5:]
    os.set_inheritable(socket, False)
    syscalls.ignore_signal(_SIGINT)  # a datum may send it to its PID 1, which has no use for KeyboardInterrupt
    places = open_cells(socket, stems)
    host, view = make_places(socket)
    die_with_parent()
    if os.getppid() != parent:  # it died before we asked to hear of it
        os._exit(1)
    slot = os.fork()
    if slot:
        greet(socket, None, slot=slot)
        os.close(socket)
        _, status = os.waitpid(slot, 0)
        code = os.waitstatus_to_exitcode(status)
        os._exit(code if code >= 0 else 128 - code)
    die_with_parent()
    gc.disable()
    gc.freeze()
    Slot(socket, host, view, places, cells.Deaths(deaths)).serve()
    os._exit(0)


def die_with_parent() -> None:
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, _SIGKILL)


def open_cells(socket: int, stems: list[str]) -> list[cells.Cell]:
    """Where a process may not enter them, tells the runner, and exits."""
    try:
        found = cells.open_cells(stems)
        for cell in found:
            try_to_enter(cell)
        return found
    except OSError as error:
        greet(socket, "cgroup", error.errno or 0)
        os._exit(1)


def try_to_enter(cell: cells.Cell) -> None:
    """In a child, so that the worker stays where it is. Raises OSError."""
    child = os.fork()
    if child == 0:
        number = 255
        try:
            cell.enter()
            number = 0
        except OSError as error:
            number = error.errno or number
        finally:
            os._exit(number)
    number = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if number:
        number = number if number > 0 else _ENOMEM  # killed
        raise OSError(number, os.strerror(number))


def make_places(socket: int) -> tuple[namespaces.Place, namespaces.Place]:
    """The host place and the view. Where the machine refuses, tells the runner which step it was, and exits."""
    step = "proc"
    try:
        if not namespaces.may_mount():
            allowed = namespaces.capabilities("CapBnd" if os.geteuid() else "CapPrm")
            step = "user namespace"
            namespaces.enter_user_namespace()
            namespaces.limit_capabilities(allowed)
            step = "mount namespace"
            syscalls.unshare(syscalls.CLONE_NEWNS)
        step = "root directory"
        view = namespaces.build_view()
        step = "pid namespace"
        # Each datum gets an IPC namespace too: where the machine has none, that shows now.
        syscalls.unshare(syscalls.CLONE_NEWPID | syscalls.CLONE_NEWIPC)
        return namespaces.Place.current(), view
    except OSError as error:
        greet(socket, step, error.errno or 0)
        os._exit(1)


def greet(socket: int, step: str | None, errno: int = 0, slot: int = 0) -> None:
    greeting: wire.Greeting = {"step": step, "errno": errno, "slot": slot}
    wire.write_all(socket, wire.pack(greeting))


class Slot:
    """Runs orders from a socket, one at a time, until the socket ends."""

    def __init__(
        self,
        socket: int,
        host: namespaces.Place,
        view: namespaces.Place,
        places: list[cells.Cell],
        deaths: cells.Deaths,
    ) -> None:
        self._deaths = deaths
        self._cells = places  # the next datum's is the first
        self._socket = socket
        self._host = host
        self._view = view
        self._pid_namespace = os.open(b"/proc/self/ns/pid", os.O_RDONLY)
        self._heard = bytearray()
        self._spare: First | None = None

    def serve(self) -> None:
        self.make_spare()
        while (order := self._next_order()) is not None:
            reply = self._run(order)
            try:
                wire.write_all(self._socket, wire.pack(reply))
            except BrokenPipeError:
                return
            if not reply["usable"]:
                return
            self.make_spare()

    def _run(self, order: wire.Order) -> wire.Reply:
        try:
            first = self._spare or self._fork()
        except OSError as error:
            return failure(f"cannot start a process for the datum: {error.strerror}", lost=True)
        self._spare = None
        try:
            account = cells.Account(first.cell, self._deaths)
            first.give(order)
            return Run(self, self._socket, first, account, order["timeout"]).watch()
        except cells.TakenAway as error:
            return failure(str(error), lost=True, usable=False)

    def make_spare(self) -> None:
        """Forks the next datum's PID 1 ahead of time. Where that fails now, the next order says why if it still does."""
        if self._spare is None:
            try:
                self._spare = self._fork()
            except OSError:
                pass

    def _next_order(self) -> wire.Order | None:
        while True:
            while (frame := wire.take(self._heard)) is not None:
                if frame != wire.KILL:
                    order: wire.Order = frame
                    return order
            if not self.hear():
                return None

    def hear(self) -> bool:
        """Reads what is there, or waits for something; False at the end of the socket."""
        data = os.read(self._socket, 1 << 20)
        self._heard += data
        return bool(data)

    def must_stop(self) -> bool:
        """Called when the socket has something to read: whether the runner wants the datum dead, or is dead itself."""
        if not self.hear():
            return True
        return bool(wire.take(self._heard) == wire.KILL)

    def _fork(self) -> First:
        """The PID 1 of a new PID namespace, waiting for its order.

        Only a child of the process that made the namespace can be the first in it. A second unshare is refused until we are
        back in our own, which an ordinary user may enter because the slot's belongs to the same user namespace.
        """
        cell = self._cells[0] if self._cells else None
        orders, give = os.pipe()
        report, tell = os.pipe()
        try:
            syscalls.unshare(syscalls.CLONE_NEWPID)
            try:
                pid = os.fork()
                if pid == 0:
                    for fd in (self._socket, give, report):
                        os.close(fd)
                    datum.run(self._host, self._view, cell, orders, tell)
            finally:
                syscalls.setns(self._pid_namespace, syscalls.CLONE_NEWPID)
        except OSError:
            os.close(give)
            os.close(report)
            raise
        finally:
            os.close(orders)
            os.close(tell)
        self._cells.reverse()
        return First(pid, give, report, cell)


class First:
    """The slot's hold on the first process of a datum."""

    def __init__(self, pid: int, give: int, report: int, cell: cells.Cell | None) -> None:
        self.pid = pid
        self.report = report
        self.cell = cell
        self._give = give

    def give(self, order: wire.Order) -> None:
        try:
            wire.write_all(self._give, wire.pack(order))
        except BrokenPipeError:
            pass  # it is dead, and its report or its exit status says why
        os.close(self._give)


class Run:
    """One datum, from its order until nothing of it is left."""

    def __init__(self, slot: Slot, socket: int, first: First, account: cells.Account, timeout: float | None) -> None:
        self._slot = slot
        self._account = account
        self._socket = socket
        self._pid = first.pid
        self._report = first.report
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._at_ease = False  # the command runs for longer than BRIEF_S
        self._ended_by: str | None = None  # "timeout", "killed" or "itself"
        self._told = bytearray()
        self._reports: dict[str, wire.Report] = {}

    def watch(self) -> wire.Reply:
        exit_fd = os.pidfd_open(self._pid)
        try:
            if not self._wait_for_exit(exit_fd):
                return failure(
                    "a process of the datum hangs in the kernel and cannot be killed", lost=True, usable=False
                )
            _, status, usage = os.wait4(self._pid, 0)
            ended_ns = time.time_ns()
            while self._read_report():
                pass
            return self._reply(status, usage, ended_ns)
        finally:
            os.close(exit_fd)
            os.close(self._report)

    def _wait_for_exit(self, exit_fd: int) -> bool:
        """Returns when PID 1 is dead, and so everything in its PID namespace; False when that does not come to pass."""
        poller = select.poll()
        for fd in (exit_fd, self._report, self._socket):
            poller.register(fd, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poller.poll(self._milliseconds_left())]
            if not ready:
                self._slot.make_spare()
                self._account.look()
                self._at_ease = True
            if exit_fd in ready:
                return True
            if self._report in ready and (not self._read_report() or self._is_over()):
                # PID 1 leaves now; the kernel kills what the command has left behind.
                poller.unregister(self._report)
                self._deadline = time.monotonic() + PATIENCE_S
                self._ended_by = self._ended_by or "itself"
            if self._socket in ready and self._slot.must_stop():
                poller.unregister(self._socket)
                self._kill("killed")
            if self._deadline is not None and time.monotonic() >= self._deadline:
                if self._ended_by:
                    return False
                self._kill("timeout")

    def _milliseconds_left(self) -> float:
        """Until the deadline, or until there is time for something else."""
        left = math.inf if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        limit = LONGEST_POLL_S if self._at_ease else BRIEF_S
        return min(left, limit) * 1000

    def _kill(self, reason: str) -> None:
        self._ended_by = self._ended_by or reason
        self._deadline = time.monotonic() + PATIENCE_S
        os.kill(self._pid, _SIGKILL)  # not reaped yet, so the pid is still its own

    def _read_report(self) -> bool:
        """Takes in what PID 1 has told; False at the end. May block only while PID 1 is alive and silent."""
        data = os.read(self._report, 1 << 16)
        self._told += data
        while (report := wire.take(self._told)) is not None:
            self._reports[report["kind"]] = report
        return bool(data)

    def _is_over(self) -> bool:
        return not self._reports.keys().isdisjoint(("ended", "not_run", "error"))

    def _reply(self, status: int, usage: struct_rusage, ended_ns: int) -> wire.Reply:
        if (error := self._reports.get("error")) is not None:
            return failure(error["message"], lost=error.get("again", False))
        started = self._reports.get("started")
        result: wire.Result = {
            "reason": self._ended_by or "",
            "exit_code": None,
            "signal": _SIGKILL,
            "message": "",
            "started_ns": started["at_ns"] if started else ended_ns,
            "ended_ns": ended_ns,
            "max_rss": usage.ru_maxrss * 1024,
            "user_s": usage.ru_utime,
            "system_s": usage.ru_stime,
            "struck": [],
            "short": "",
        }
        result["struck"], result["short"] = self._account.total()
        if (ended := self._reports.get("ended")) is not None:
            add_end(result, ended)
        elif (not_run := self._reports.get("not_run")) is not None:
            result["reason"] = not_run["reason"]
            result["exit_code"] = not_run["exit_code"]
            result["signal"] = None
            result["message"] = not_run["message"]
        elif self._ended_by not in ("timeout", "killed"):
            end = os.waitstatus_to_exitcode(status)
            if end == -_SIGKILL and result["short"]:
                result["reason"] = "signalled"  # the kernel's choice fell on PID 1
                return self._answer(result)
            how = f"was killed by signal {-end}" if end < 0 else f"exited with code {end}"
            return failure(f"the process that watched the datum {how}", lost=True)
        return self._answer(result)

    def _answer(self, result: wire.Result) -> wire.Reply:
        blame_memory(result)
        return {"result": result, "error": None, "lost": False, "usable": True}


def blame_memory(result: wire.Result) -> None:
    """A command that failed when a process of it was killed for want of memory has failed by that."""
    if result["short"] == "maybe" and (result["signal"] == _SIGKILL or result["exit_code"] == 128 + _SIGKILL):
        result["short"] = "machine"
    if result["short"] in ("limit", "machine") and result["reason"] in ("failed", "signalled"):
        result["reason"] = "out_of_memory"


def add_end(result: wire.Result, ended: wire.Report) -> None:
    """The command ended by itself, whatever happened to the rest of its processes."""
    code = os.waitstatus_to_exitcode(ended["status"])
    result["ended_ns"] = ended["at_ns"]
    result["user_s"] = max(0.0, result["user_s"] - ended["own_user_s"])
    result["system_s"] = max(0.0, result["system_s"] - ended["own_system_s"])
    result["signal"] = -code if code < 0 else None
    result["exit_code"] = code if code >= 0 else None
    result["reason"] = "ok" if code == 0 else "failed" if code > 0 else "signalled"


def failure(error: str, *, lost: bool = False, usable: bool = True) -> wire.Reply:
    return {"result": None, "error": error, "lost": lost, "usable": usable}
