"""PID 1 of one datum: shows the command its files, starts it, reaps, and tells the worker how it ended.

It is forked, and most of its mounts are made, before there is a datum: that takes as long as all the rest, and can be done
while the datum before is running.
"""

from __future__ import annotations

import os
import resource
import sys
import time

from runner.executors import cells, mounts, namespaces, syscalls, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn

DEFAULT_PATH = b"/usr/local/bin:/usr/bin:/bin"
# All but SIGKILL and SIGSTOP, and the two that the C library keeps for itself.
_SIGNALS = tuple(number for number in range(1, 65) if number not in (9, 19, 32, 33))
_EINVAL = 22
_SHORT_OF = (11, 12)  # EAGAIN, ENOMEM


class NotRun(Exception):
    """The command cannot be started, by its own fault."""

    def __init__(self, reason: str, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.exit_code = exit_code
        self.message = message


def run(host: namespaces.Place, view: namespaces.Place, cell: cells.Cell | None, orders: int, report: int) -> NoReturn:
    """Called right after the fork. The process ends here, and with it all that the command has left running."""
    try:
        own = mounts.prepare(view)
        host.enter()
        if cell is not None:
            cell.enter()
        order = wire.read_one(orders)
        if order is not None:
            tell(report, run_to_end(order, host, own, cell, report))
        os._exit(0)
    except NotRun as refused:
        tell(
            report,
            {"kind": "not_run", "reason": refused.reason, "exit_code": refused.exit_code, "message": refused.message},
        )
    except mounts.Unmountable as error:
        tell(report, {"kind": "error", "message": str(error)})
    except OSError as error:
        again = error.errno in _SHORT_OF
        tell(report, {"kind": "error", "message": f"cannot prepare the datum: {error}", "again": again})
    except BaseException:
        sys.excepthook(*sys.exc_info())
    os._exit(1)


def tell(report: int, said: wire.Report) -> None:
    wire.write_all(report, wire.pack(said))


def run_to_end(
    order: wire.Order, host: namespaces.Place, own: namespaces.Place, cell: cells.Cell | None, report: int
) -> wire.Report:
    os.umask(0o022)
    log = open_log(order["log"])
    stdin = open_stdin(order["stdin"])
    mounts.show(order, host, own)
    if order["hermetic"]:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        syscalls.raise_loopback()
    for fd, standard in ((stdin, 0), (log, 1), (log, 2)):
        os.dup2(fd, standard)  # inheritable, unlike every other fd here
    started_ns, started = time.time_ns(), time.monotonic_ns()
    tell(report, {"kind": "started", "at_ns": started_ns})
    try:
        enter_directory(order["cwd"])
        command = start(order["argv"], order["env"])
    except NotRun as refused:
        os.write(log, f"{refused.message}\n".encode())
        raise
    if cell is not None:
        cells.spare_me()  # only now: the command would have inherited it
    status = reap_until(command)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "kind": "ended",
        "at_ns": started_ns + time.monotonic_ns() - started,
        "status": status,
        "own_user_s": usage.ru_utime,
        "own_system_s": usage.ru_stime,
    }


def open_log(path: bytes) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise mounts.Unmountable(f"cannot open the log {mounts.quoted(path)}: {error.strerror}") from error


def open_stdin(data: bytes | None) -> int:
    """A file in memory, not a pipe: a command that does not read it can neither fail by that nor keep anybody waiting."""
    if data is None:
        return os.open(b"/dev/null", os.O_RDONLY)
    try:
        fd = os.memfd_create("stdin", syscalls.MFD_CLOEXEC | syscalls.MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != _EINVAL:  # a kernel before 6.3
            raise
        fd = os.memfd_create("stdin", syscalls.MFD_CLOEXEC)
    try:
        wire.write_all(fd, data)
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    finally:
        os.close(fd)


def enter_directory(path: bytes) -> None:
    try:
        os.chdir(path)
    except OSError as error:
        why = error.strerror
        if (path + b"/").startswith(tuple(own + b"/" for own in (mounts.PFS, *mounts.FRESH))):
            why = f"{why}; each datum has its own"
        raise NotRun("no_cwd", 126, f"cannot work in {mounts.quoted(path)}: {why}") from error


def start(argv: list[bytes], env: dict[bytes, bytes]) -> int:
    """The pid of the command: in a session of its own, signals as by default, nothing open but 0, 1 and 2.

    Raises NotRun with what a shell would say. posix_spawn does not copy this process's memory map, as fork would.
    """
    name = mounts.quoted(argv[0])[1:-1]
    refused = NotRun("not_found", 127, f"{name}: command not found")
    if b"/" in argv[0]:
        refused = NotRun("not_found", 127, f"{name}: No such file or directory")
    for path in candidates(argv[0], env):
        try:
            return os.posix_spawn(path, argv, env, setsid=True, setsigdef=_SIGNALS, setsigmask=())
        except (FileNotFoundError, NotADirectoryError):
            if os.path.exists(path):
                shown = mounts.quoted(path)[1:-1]
                refused = NotRun("not_executable", 126, f"{shown}: the interpreter that it names does not exist")
        except OSError as error:
            if error.errno in _SHORT_OF:
                raise
            if refused.exit_code == 127:  # a later directory of PATH may have one that can be run
                refused = NotRun("not_executable", 126, f"{name}: {error.strerror}")
    raise refused


def candidates(name: bytes, env: dict[bytes, bytes]) -> Iterator[bytes]:
    """Existing paths that a shell would try for `name`, in order."""
    if b"/" in name:
        yield name
    elif name:
        for directory in env.get(b"PATH", DEFAULT_PATH).split(b":"):
            path = os.path.join(directory or b".", name)
            if os.path.lexists(path):
                yield path


def reap_until(command: int) -> int:
    """The wait status of `command`; its orphans are reaped meanwhile, as PID 1 must."""
    while True:
        pid, status = os.wait()
        if pid == command:
            return status
