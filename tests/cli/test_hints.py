"""What people type first, and what they are told."""

from __future__ import annotations

import pytest

from tests.conftest import Run


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["branch", "images", "dev"], "pfs branch images@dev"),
        (["branch", "--delete", "images@v1"], "pfs tag --delete images@v1"),
        (["reset", "images"], "pfs reset images"),
        (["rm", "-r", "images@master:/"], "images:/PATH"),
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
