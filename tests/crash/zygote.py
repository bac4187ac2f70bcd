"""The process that runs commands for crash tests: loaded with `iolog.c`, it has imported everything and forks a child for each command.

A request is a line of JSON on standard input, an answer a line on standard output (see `shim.Zygote`). The child is the real command: it tells the
shim what to do with its steps, then runs `main` of the command line.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import pkgutil
import signal
import sys
import traceback
from types import ModuleType
from typing import Any

import pfsmount
import runner
import runner.cli
from pfsmount.cli import app

_SECONDS_MAX = 90
_MAINS = {"pfs": app.main, "pfsjob": runner.cli.main}


def _import_all(package: ModuleType) -> None:
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def _child(request: dict[str, Any]) -> int:
    os.setsid()
    for fd, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        flags = os.O_RDONLY if fd == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        file = os.open(request[name], flags, 0o600)
        os.dup2(file, fd)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(fd, "w" if fd else "r", errors="surrogateescape") for fd in range(3))
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    sys.argv = [request["program"], *request["arguments"]]
    shim = ctypes.CDLL(None)
    configured = shim.iolog_configure(
        os.fsencode(request["store"]),
        os.fsencode(request["log"]),
        os.fsencode(request["counter"]),
        request["mode"],
        ctypes.c_uint64(request["at"]),
        request["errno"],
        request["options"],
    )
    assert configured == 0
    try:
        if request["program"] == "python":
            exec(request["arguments"][0], {"argv": request["arguments"][1:]})
        else:
            _MAINS[request["program"]]()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:
        traceback.print_exc()
        return 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def main() -> None:
    """Answer requests until the end of standard input."""
    for package in (pfsmount, runner):
        _import_all(package)
    answers = os.fdopen(os.dup(1), "w")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if not pid:
            code = 98
            try:
                signal.alarm(_SECONDS_MAX)  # a command that hangs ends with SIGALRM
                answers.close()
                code = _child(request)
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        answers.write(json.dumps(os.waitstatus_to_exitcode(status)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
