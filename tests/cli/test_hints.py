"""What people type first, and what they are told."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.conftest import Run


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["branch", "images", "dev"], "pfs branch images@dev"),
        (["branch", "--delete", "images@v1"], "pfs tag --delete images@v1"),
        (["reset", "images"], "pfs reset images"),
        (["rm", "-r", "images@master:/"], "images:/PATH"),
        (["branch", "images@feature/x"], "'feature-x' would do"),
        (["ls", "images~1"], "images@master~1"),
        (["ls", "images@master/a"], "images@master:/a"),
        (["diff", "images@a..b"], "pfs diff images@a images@b"),
        (["log", "images@v1..images@master"], "pfs diff images@v1 images@master"),
        (["merge", "dev", "master"], "pfs merge REPO@dev REPO@master"),
        (["put", "--delete", "--exclude", "*.png", ".", "images@master:/"], "--exclude alone"),
    ],
    ids=" ".join,
)
def test_the_way_out_is_named(pfs: Run, args: list[str], hint: str) -> None:
    for command in (["repo", "create", "images"], ["put", "-", "images@master:/a"], ["tag", "images@v1"]):
        assert pfs(*command).returncode == 0
    said = pfs(*args)
    assert said.returncode == 2
    assert hint in said.stderr
    assert "Traceback" not in said.stderr
    assert pfs("rm", "-f", "images@master:/no").stdout.startswith("nothing changed: images@master has nothing there")


def test_a_branch_without_its_repo_is_of_the_repo_that_is_named(pfs: Run) -> None:
    for command in (
        ["repo", "create", "images"],
        ["put", "-", "images@master:/a"],
        ["branch", "images@dev"],
        ["put", "-", "images@dev:/b"],
        ["merge", "images@dev", "master"],
        ["put", "-", "images@dev:/c"],
        ["merge", "dev", "images@master"],
        ["branch", "images@a..b"],
        ["log", "images@a..b"],
    ):
        done = pfs(*command)
        assert done.returncode == 0, (command, done.stderr)
    assert pfs("ls", "images").stdout.split() == ["a", "b", "c"]


def test_conflicts_are_shown_as_paths_are_everywhere(pfs: Run, tmp_path: Path) -> None:
    (tmp_path / "link").mkdir()
    os.symlink("one", tmp_path / "link" / "link")
    for command in (
        ["repo", "create", "images"],
        ["put", str(tmp_path), "images@master:/", "--exclude", "*"],
        ["branch", "images@dev"],
        ["put", str(tmp_path / "link"), "images@dev:/"],
        ["put", "-", "images@master:/link"],
    ):
        done = pfs(*command)
        assert done.returncode == 0, (command, done.stderr)
    said = pfs("merge", "images@dev", "images")
    assert said.returncode == 3
    (first, mine, theirs) = said.stdout.splitlines()
    assert first.startswith("C  /link  ("), said.stdout
    assert "mode 0644" in mine
    assert theirs.split()[:2] == ["theirs", "symlink,"]
    assert "mode" not in theirs


def test_commits_of_a_repo_that_was_deleted(pfs: Run, tmp_path: Path) -> None:
    """Also when there is another repo of that name."""
    (tmp_path / "a").touch()
    assert pfs("repo", "create", "images").returncode == 0
    assert pfs("put", tmp_path / "a", "images@master:/a").returncode == 0
    (commit,) = json.loads(pfs("log", "images", "--json").stdout)
    assert pfs("repo", "delete", "images", "--yes").returncode == 0
    assert "'pfs reflog images'" in pfs("ls", "images@master").stderr
    assert "repo deleted" in pfs("reflog", "images").stdout
    assert pfs("repo", "create", "images").returncode == 0
    for args in (["cat", "images@ID:/a"], ["log", "images@ID"], ["branch", "images@old", "ID"], ["diff", "images@ID"]):
        done = pfs(*(arg.replace("ID", commit["commit"][:12]) for arg in args))
        assert done.returncode == 1
        assert "commits are deleted with their repo" in done.stderr
