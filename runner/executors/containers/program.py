"""The program `init.c`, compiled on first use: a static file that runs in any image."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from runner.executors.base import ExecutorUnavailable, Obstacle

SOURCE = Path(__file__).with_name("init.c")
_FLAGS = ("-static", "-Os", "-s", "-Wall", "-Wextra")
# musl's start-up code is smaller; its headers lack nothing that we use.
_COMPILERS = ("musl-gcc", "gcc", "cc", "clang")
_REMEDY = "apt-get install gcc libc6-dev"


def init_program(cache: Path) -> Path:
    """The compiled program, in `cache`, under the hash of its source. Several processes may ask at once.

    Raises ExecutorUnavailable where there is no compiler that can make it.
    """
    source = SOURCE.read_bytes()
    name = f"init-{os.uname().machine}-{hashlib.sha256(source).hexdigest()[:16]}"
    program = cache / name
    if not program.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _compile(program)
    return program


def _compile(program: Path) -> None:
    said = ""
    with tempfile.TemporaryDirectory(dir=program.parent, prefix="compiling-") as place:
        for compiler in filter(shutil.which, _COMPILERS):
            made = Path(place, "init")
            done = subprocess.run(
                [compiler, *_FLAGS, "-o", made, SOURCE], capture_output=True, text=True, errors="replace", check=False
            )
            if done.returncode == 0:
                made.chmod(0o755)
                made.replace(program)
                return
            errors = [line for line in done.stderr.splitlines() if "error" in line]
            said = said or (errors or [f"{compiler} exits with {done.returncode}"])[0]
    problem = "jobs in containers need a C compiler once, for the program that is PID 1 in a container"
    if said:
        problem = f"the program that is PID 1 in a container cannot be compiled: {said}"
    raise ExecutorUnavailable([Obstacle(problem, _REMEDY)])
