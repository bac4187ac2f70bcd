"""tools/bench measures: the smallest sizes run, and say what they should."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tools.bench_suite import job_container_rows, mount_rows
from tools.bench_suite.__main__ import MODULES
from tools.bench_suite.bench import Bench
from tools.bench_suite.commit_rows import count_syncs
from tools.bench_suite.measure import Result, run_row
from tools.bench_suite.report import as_json, summary, table
from tools.bench_suite.row import (
    SMALL,
    Contest,
    Row,
    Side,
    Sizes,
    Unavailable,
    all_rows,
    at_least_rate,
    at_least_speed,
    at_most,
    at_most_more,
    at_most_times,
    format_value,
)

PROJECT = Path(__file__).resolve().parents[1]


def bench(*arguments: str | Path) -> str:
    """Run tools/bench without its set-up."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tools.bench_suite", *arguments],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows_of(module: ModuleType) -> list[str]:
    return [name for name, row in all_rows().items() if row.set_up.__module__ == module.__name__]


def test_the_list_has_every_row() -> None:
    listed = [line.split()[0] for line in bench("--list").splitlines()]
    assert listed == [name for module in MODULES for name in rows_of(module)]
    assert sorted(listed) == sorted(all_rows())


@pytest.mark.parametrize(
    "module",
    # twenty rows, of which each mounts twice, and whose code is the same for all settings; an engine with its own storage
    [
        pytest.param(module, marks=[pytest.mark.long] if module in (mount_rows, job_container_rows) else [])
        for module in MODULES
    ],
    ids=lambda module: module.__name__.rpartition(".")[2],
)
def test_every_row_runs_with_the_smallest_sizes(tmp_path: Path, module: ModuleType) -> None:
    names = rows_of(module)
    options = ("--small", "--repeat", "1", "--dir", tmp_path / "work", "--json", tmp_path / "results.json")
    said = bench(*options, "--only", *names)
    results = json.loads((tmp_path / "results.json").read_text())
    assert os.listdir(tmp_path / "work") == []
    assert str(tmp_path / "work") not in Path("/proc/self/mounts").read_text()
    assert [row["name"] for row in results["rows"]] == names
    assert results["machine"].keys() >= {"kernel", "cpu", "cpus", "filesystem", "python", "pfs"}
    for row in results["rows"]:
        assert row["title"] in said
        if row["status"] == "not available":
            assert row["reason"]
            continue
        assert row["status"] == "measured"
        assert row["ours"]["median"] > 0
        for yardstick in row["yardsticks"]:
            assert yardstick["ratio"] == pytest.approx(row["ours"]["median"] / yardstick["median"])


def row(*goals: Any, set_up: Any = None) -> Row:
    def default(bench: Bench) -> Contest:
        ours, theirs = iter([3.0, 9.0, 2.0]), iter([1.0, 2.0, 1.5])
        return Contest(Side("ours", lambda: next(ours)), [Side("theirs", lambda: next(theirs))], (30, "files"))

    return Row("name", "a title of {datums}", set_up or default, goals)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "work"


def run(one: Row, workspace: Path) -> Result:
    with Bench(workspace, SMALL) as place:
        return run_row(one, place, 3)


def test_medians_ratios_and_goals(workspace: Path) -> None:
    goals = (at_most_times(1.9), at_least_speed(0.4), at_most(3), at_most_more(0.5, "datums"))
    result = run(row(*goals, at_least_rate(11, "files")), workspace)
    assert [side.median for side in result.sides] == [3.0, 1.5]
    assert result.ratios() == [2.0]
    found = result.as_json(SMALL)["goals"]
    values = [(2.0, False), (0.5, True), (3.0, True), (0.5, True), (10.0, False)]
    assert [(goal["value"], goal["met"]) for goal in found] == values
    shown = table([result], Sizes())
    assert "goal ≤ 1.9× MISSED" in shown
    assert "goal ≥ 0.4× speed: 0.50× met" in shown
    assert "10 files/s" in shown
    assert "goal ≥ 11 files/s MISSED" in shown
    assert "MISSED" not in table([result], SMALL)
    assert summary([result], Sizes()) == "1 rows; 3 of 5 goals met; missed: name"


def test_what_cannot_be_measured_says_why(workspace: Path) -> None:
    def unavailable(bench: Bench) -> Contest:
        raise Unavailable("the moon is full")

    def broken(bench: Bench) -> Contest:
        return Contest(Side("ours", lambda: bench.to_null("sh", "-c", "echo no way >&2; exit 3")))

    results = [run(row(set_up=set_up), workspace) for set_up in (unavailable, broken)]
    assert [result.status for result in results] == ["not available", "failed"]
    assert summary(results, SMALL) == "0 rows; not available: name; failed: name"
    shown = table(results, SMALL)
    assert "not available: the moon is full" in shown
    assert "failed: sh: exit code 3: no way" in shown
    assert [one["reason"] for one in as_json(results, SMALL, {}, {})["rows"]] == [result.reason for result in results]


def test_what_a_row_opens_is_closed(workspace: Path) -> None:
    closed = []

    def set_up(bench: Bench) -> Contest:
        bench.at_end(lambda: closed.append(True))
        bench.note("a remark")
        raise Unavailable("no")

    assert run(row(set_up=set_up), workspace).notes == ["a remark"]
    assert closed == [True]
    assert not workspace.exists()


def test_one_repeat_where_one_says_it_all(workspace: Path) -> None:
    once = replace(row(), once=True)
    assert [side.values for side in run(once, workspace).sides] == [[3.0], [1.0]]


def test_syncs_are_counted_between_the_marks() -> None:
    trace = """\
7 openat(AT_FDCWD, "/s/index/data.mdb", O_WRONLY|O_DSYNC|O_CLOEXEC) = 5
7 openat(AT_FDCWD, "/s/segments/1.data", O_RDWR|O_CLOEXEC) = 6
7 fdatasync(6)                          = 0
7 openat(AT_FDCWD, "/pfs-bench/start", O_RDONLY|O_CLOEXEC) = -1 ENOENT (No such file or directory)
7 pwrite64(6, "...", 4096, 0)           = 4096
7 fdatasync(6)                          = 0
7 pwrite64(5, "...", 64, 0)             = 64
8 fsync(9 <unfinished ...>
8 <... fsync resumed>)                  = 0
7 openat(AT_FDCWD, "/pfs-bench/end", O_RDONLY|O_CLOEXEC) = -1 ENOENT (No such file or directory)
7 fdatasync(6)                          = 0
"""
    assert count_syncs(trace.splitlines()) == {"fdatasync": 1, "fsync": 1, "write to O_DSYNC": 1}


def test_an_interrupted_run_leaves_what_it_measured_and_nothing_else(tmp_path: Path) -> None:
    """Also what an earlier run left that was killed outright is deleted."""
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    (tmp_path / f"work-{int(dead.stdout)}" / "store").mkdir(parents=True)
    command: list[str | Path] = [sys.executable, "-P", "-m", "tools.bench_suite", "--small", "--dir", tmp_path]
    command += ["--json", tmp_path / "results.json", "--only", "diff", *(["put-small"] * 50)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert any(line.startswith(b"diff") for line in process.stdout)
        assert (tmp_path / f"work-{process.pid}").is_dir()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"Traceback" not in said
    assert os.listdir(tmp_path) == ["results.json"]
    assert json.loads((tmp_path / "results.json").read_text())["rows"][0]["name"] == "diff"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (2.345, "seconds", "2.35 s"),
        (241.2, "seconds", "241 s"),
        (0.0123, "seconds", "12.3 ms"),
        (0.00001, "seconds", "10 µs"),
        (512, "bytes", "512 B"),
        (5 << 20, "bytes", "5 MiB"),
        (4, "count", "4"),
    ],
)
def test_values_for_people(value: float, unit: Any, text: str) -> None:
    assert format_value(value, unit) == text
