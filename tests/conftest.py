"""Fixtures that all tests share: a real store in a temporary directory, and the two commands as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pfsmount.objects.layout import create_store
from pfsmount.objects.store import ObjectStore
from pfsmount.repo.store import Store
from runner.executors.containers.docker_api import DockerEngine
from runner.executors.containers.podman import PodmanEngine
from tests.engines import docker_daemon, podman_service, podman_storage
from tests.figures import Tell, summary, teller

# Installed commands find themselves compiled. With this set, as on some machines, each of the thousands of commands here would compile itself anew: a third of a second.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
ROOT = Path(__file__).resolve().parent.parent
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    """An empty store on disk, not open."""
    path = tmp_path / "store"
    Store.create(path)
    return path


@pytest.fixture
def store(store_path: Path) -> Iterator[Store]:
    """An open store with an empty repo `images`."""
    with Store.open(store_path, author="tester@here") as opened:
        opened.create_repo("images")
        yield opened


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[ObjectStore]:
    """An open object store."""
    path = tmp_path / "objects"
    create_store(path)
    opened = ObjectStore(path)
    yield opened
    opened.close()


def run_command(
    module: str, store: Path, *args: str | bytes | Path, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module args` against a store; `check=False` unless given, text output, surrogateescape."""
    env = {**os.environ, "PFS_STORE": str(store), "PFS_AUTHOR": "tester@here", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", module, *args]
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        command,
        env=env,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        stdin=options.pop("stdin", subprocess.DEVNULL) if "input" not in options else None,
        timeout=120,
        **options,
    )


@pytest.fixture
def pfs(tmp_path: Path) -> Run:
    """`pfs ARGS…` against a store of its own (made by `pfs init`)."""
    store = tmp_path / "pfs-store"

    def run(*args: str | bytes, **options: object) -> subprocess.CompletedProcess[str]:
        return run_command("pfsmount.cli.app", store, *args, **options)

    run.store = store  # type: ignore[attr-defined]
    assert run("init").returncode == 0
    return run


@pytest.fixture(scope="session")
def podman() -> Iterator[PodmanEngine]:
    """Podman with an image of busybox, or a skip that says what is missing."""
    with podman_storage() as engine:
        yield engine


@pytest.fixture(scope="session")
def docker() -> Iterator[DockerEngine]:
    """A Docker daemon with the same image."""
    with docker_daemon() as engine:
        yield engine


@pytest.fixture(scope="session")
def service() -> Iterator[DockerEngine]:
    """Podman behind Docker's API."""
    with podman_service() as engine:
        yield engine


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Tell:
    """Lets a test tell what it counted: at the end of the run, whether it passes or not."""
    return teller(record_property)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What was counted, for whoever quotes it."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    properties = [one for report in reports for one in getattr(report, "user_properties", ())]
    if lines := summary(properties):
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)
