"""Fixtures of the promises: a fresh store for each test, mounted where the test says so."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.semantics.scene import Scene


@pytest.fixture(scope="session")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the empty repo `images`, made once by the commands; to be copied, not used."""
    scene = Scene(tmp_path_factory.mktemp("semantics"))
    scene.pfs("init")
    scene.pfs("repo", "create", "images")
    return scene.store


@pytest.fixture
def scene(new_store: Path, tmp_path: Path) -> Iterator[Scene]:
    """A directory with a store that has the empty repo `images`."""
    shutil.copytree(new_store, tmp_path / "store")
    found = Scene(tmp_path)
    yield found
    found.clean_up()


@pytest.fixture
def need_mounts() -> None:
    """Skips where nothing can be mounted."""
    problem = _fuse_problem()
    if problem:
        pytest.skip(f"NO MOUNTED TESTS: {problem}")


@pytest.fixture
def mounted(scene: Scene, need_mounts: None) -> Scene:
    """The same, mounted at `mnt`."""
    scene.mount()
    return scene


@pytest.fixture
def jobs(scene: Scene) -> Scene:
    """The same as `scene`, where jobs can be run."""
    problem = _job_problem()
    if problem:
        pytest.skip(f"NO TESTS OF JOBS: {problem}")
    return scene


@functools.cache
def _fuse_problem() -> str:
    from pfsmount.errors import PfsError
    from pfsmount.fs.mountpoint import check_machine

    try:
        check_machine()
    except PfsError as error:
        return str(error)
    return ""


@functools.cache
def _job_problem() -> str:
    import trio

    from runner.executors.process import ProcessExecutor

    return "; ".join(str(obstacle) for obstacle in trio.run(ProcessExecutor().preflight))
