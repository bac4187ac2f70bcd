"""The figures at the end of a run: of all tests, from all processes, nothing twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.figures import summary, teller

COUNTING = """
import pytest

@pytest.mark.parametrize("name", ["a", "b"])
def test_counts(name, tell):
    tell("power cuts", name, crash_points=40, disks=1200)

def test_fails(tell):
    tell("a soak", "a minute", commits=7)
    assert False
"""


def test_the_larger_of_two_tiers_counts() -> None:
    told: list[tuple[str, object]] = []
    tell = teller(lambda name, value: told.append((name, value)))
    tell("kills", "put", crash_points=90, runs=8)
    tell("kills", "put", crash_points=90, runs=180)
    tell("kills", "gc", crash_points=1000, runs=3000)
    tell("a soak", "a minute", commits=5)
    assert summary([("other", 1), *told]) == [
        "kills, gc: 1,000 crash points, 3,000 runs",
        "kills, put: 90 crash points, 180 runs",
        "kills in all: 1,090 crash points, 3,180 runs",
        "a soak, a minute: 5 commits",
    ]


def test_a_run_ends_with_them(tmp_path: Path) -> None:
    """Also when tests fail, and when they run in several processes."""
    (tmp_path / "test_counting.py").write_text(COUNTING)
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_terminal_summary, tell\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            "2",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            tmp_path,
            "-c",
            "/dev/null",
            tmp_path,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "power cuts in all: 80 crash points, 2,400 disks" in done.stdout, done.stdout + done.stderr
    assert "a soak, a minute: 7 commits" in done.stdout
