"""What crash tests share: the compiled shim, the process that runs commands under it, and a place in memory for thousands of stores."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.shim import Zygote, build, compiler
from tests.crash.workloads import World


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    """A directory on tmpfs, where an fsync costs nothing: what it would have kept is the model's business."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="pfs-crash-", dir=place) as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def zygote(memory: Path) -> Iterator[Zygote]:
    """Runs commands under the shim."""
    if compiler() is None:
        pytest.skip("NO CRASH TESTS: there is no C compiler (cc) to build tests/crash/iolog.c with")
    try:
        library = build(memory)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"NO CRASH TESTS: tests/crash/iolog.c cannot be compiled here: {error.stderr}")
    with Zygote(library, memory) as made:
        yield made


@pytest.fixture
def world(zygote: Zygote, memory: Path) -> Iterator[World]:
    """A place for one workload."""
    root = Path(tempfile.mkdtemp(dir=memory))
    made = World(zygote, root)
    yield made
    made.clean_up()
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def need_fuse() -> None:
    """Skips where nothing can be mounted."""
    from pfsmount.errors import PfsError
    from pfsmount.fs.mountpoint import check_machine

    try:
        check_machine()
    except PfsError as error:
        pytest.skip(f"NO MOUNTED TESTS: {error}")
