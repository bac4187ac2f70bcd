"""Commands under `iolog.c`: counted, recorded, killed at a step, or with a step that fails."""

from __future__ import annotations

import enum
import errno
import json
import os
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

SOURCE = Path(__file__).with_name("iolog.c")
_COUNTER = struct.Struct("<QQ240s")


class Mode(enum.IntEnum):
    """What the shim does; the values are those of `iolog.c`."""

    RECORD = 1
    KILL = 2
    FAIL = 3
    COUNT = 4


TORN, ONWARDS, _MATCH = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    """Exit code; negative: the signal that ended it."""
    out: str
    errors: str
    steps: int
    """How many steps there were."""
    at: str
    """The step at which it was stopped, or that failed; empty: none was."""


def compiler() -> str | None:
    """The C compiler; pyfuse3 needs one too."""
    return shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")


def build(directory: Path) -> Path:
    """Compile the shim. Raises CalledProcessError with what the compiler says in `stderr`."""
    library = directory / "iolog.so"
    command = [
        compiler() or "cc",
        "-O2",
        "-Wall",
        "-shared",
        "-fPIC",
        "-o",
        str(library),
        str(SOURCE),
        "-ldl",
        "-lpthread",
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


class Zygote:
    """A process that runs commands under the shim, each in a fork of it: 20 ms instead of 300. A context manager."""

    def __init__(self, library: Path, scratch: Path) -> None:
        self._scratch = scratch
        self.counter = scratch / "counter"
        self.library = library
        environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.zygote"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(30)

    def steps(self) -> tuple[int, str]:
        """How many steps were counted since the last command began, and which of them was stopped."""
        count, _, what = _COUNTER.unpack(self.counter.read_bytes())
        return count, what.split(b"\0", 1)[0].decode(errors="replace")

    def lift(self) -> None:
        """From now on nothing fails in the processes of the last command."""
        with self.counter.open("r+b") as file:
            os.pwrite(file.fileno(), (1).to_bytes(8, "little"), 8)

    def run(
        self,
        program: str,
        *arguments: str | Path,
        store: Path,
        mode: Mode = Mode.COUNT,
        at: int = 0,
        error: int = 0,
        options: int = 0,
        match: str = "",
        log: Path | None = None,
        stdin: Path | None = None,
    ) -> Done:
        """Run `pfs` or `pfsjob` (or `python`: a script and its arguments) to its end.

        With `match`, only steps that fit this pattern are counted (`write /refs.log`; `*` fits everything).
        """
        self.counter.unlink(missing_ok=True)  # a daemon of an earlier command may have it
        self.counter.write_bytes(_COUNTER.pack(0, 0, match.encode()))
        request: dict[str, Any] = {
            "program": program,
            "arguments": [str(argument) for argument in arguments],
            "cwd": str(self._scratch),
            "environment": {"PFS_STORE": str(store), "PFS_AUTHOR": "tester@here"},
            "store": str(store),
            "log": str(log or self._scratch / "log"),
            "counter": str(self.counter),
            "mode": int(mode),
            "at": at,
            "errno": error,
            "options": options | (_MATCH if match else 0),
            "stdin": str(stdin or os.devnull),
            "stdout": str(self._scratch / "out"),
            "stderr": str(self._scratch / "errors"),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        out, errors = ((self._scratch / name).read_text(errors="surrogateescape") for name in ("out", "errors"))
        return Done(code, out, errors, *self.steps())


def error_name(number: int) -> str:
    """`ENOSPC` for 28."""
    return errno.errorcode[number]
