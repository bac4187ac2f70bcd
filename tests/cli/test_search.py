"""`pfs find`, `glob`, `du`, `stats`, `reflog`, `tag`: what is printed, and what is refused."""

from __future__ import annotations

import json
import subprocess

import pytest

from pfsmount.cli.search import _kinds, _sizes
from pfsmount.errors import InvalidInput
from pfsmount.ids import parse_path
from pfsmount.repo.ingest import commit_edit
from pfsmount.repo.store import Store
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import Entry, Kind, file_entry
from pfsmount.tree.ingest import ingest_bytes
from tests.conftest import Run, run_command

STRANGE = b"new\nline \xff{*}"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two commits of a file with a strange name in a directory; an empty repo. Nobody changes them."""
    path = tmp_path_factory.mktemp("search") / "store"
    Store.create(path)
    with Store.open(path, author="tester@here") as store:
        store.create_repo("images")
        store.create_repo("empty")
        for data in (b"x" * 2000, b"y" * 3000):
            with store.objects.batch() as batch:
                changes = {parse_path(b"d/" + STRANGE): file_entry(ingest_bytes(batch, data), len(data))}

                def edit(root: Entry) -> Entry:
                    return edit_paths(batch, root, changes)  # noqa: B023

                commit_edit(store, batch, "images", "master", edit, message="one\ntwo", origin={"how": "test"})

    def run(*args: str | bytes) -> subprocess.CompletedProcess[str]:
        return run_command("pfsmount.cli.app", path, *args)

    return run


def test_strange_names(images: Run) -> None:
    """Names are shown with escapes on lines, and as they are with -0 and in JSON."""
    shown = "images@master:/d/new\\nline \\xff{*}"
    raw = "images@master:/d/new\nline \udcff{*}"
    assert images("find", "images@master", "--type", "f").stdout == shown + "\n"
    assert images("glob", "images@master:/*/*", "-0").stdout == raw + "\0"
    assert images("cat", raw).stdout == "y" * 3000
    (found,) = json.loads(images("glob", r"images@master:/d/*\{\*\}", "--json").stdout)
    assert (found["place"], found["size"]) == (raw, 3000)
    assert images("du", raw).stdout.split()[:3] == ["3000", "4096", "1"]
    assert images("find", b"images@master:/d/" + STRANGE, "-l").stdout.endswith(f"{shown}\n")


def test_tables(images: Run) -> None:
    """Messages of several lines take one; an empty repo is no special case."""
    for arguments in (["reflog", "images", "-n", "1"], ["branch", "images"], ["repo", "inspect", "images"]):
        shown = images(*arguments).stdout
        assert ("one" in shown, "two" in shown) == (True, False), arguments
    assert images("du", "-s", "empty").stdout.split() == ["0", "0", "0", "empty:/"]
    assert images("find", "empty").stdout == "empty:/\n"
    assert json.loads(images("stats", "--json").stdout)["repos"][1]["commits"] == 2
    assert "only here" in images("stats").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["find", "images", "--name", "a/b"],
        ["find", "images", "--type", "x"],
        ["find", "images", "--size", "10X"],
        ["find", "images", "--name", "a", "-iname", "b"],
        ["find", "images", "-iname", "a/b"],
        ["find", "images", "--id", "xyz"],
        ["glob", "images@master"],
        ["glob", "images@master:/[a"],
        ["du", "-s", "-d", "2", "images"],
        ["tag", "images@a:b"],
        ["reset", "images@master"],
        ["reset", "images@master", "--undo", "master"],
        ["branch", "images@new", "empty@master"],
        ["branch", "--move", "images@master"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_understood(images: Run, arguments: list[str]) -> None:
    """Exit code 2, with what is wrong."""
    done = images(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "bug in pfs" not in done.stderr


def test_sizes_and_kinds() -> None:
    """+ is more, - is less, none is exactly; units are powers of 1024."""
    assert _sizes(["+10M"]) == (10 * 1024**2 + 1, None)
    assert _sizes(["-4k"]) == (None, 4095)
    assert _sizes(["0"]) == (0, 0)
    assert _sizes(["+1KiB", "-2G"]) == (1025, 2 * 1024**3 - 1)
    assert _kinds("f,l") == (Kind.FILE, Kind.SYMLINK)
    for wrong in ("", "x", "+", "1.5M", "+-1"):
        with pytest.raises(InvalidInput):
            _sizes([wrong])
