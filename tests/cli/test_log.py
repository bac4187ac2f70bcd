"""`pfs log`: which commits, which of them, and how they are shown."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import datetime, timedelta

import pytest

from pfsmount.cli.times import parse_time
from pfsmount.errors import InvalidInput
from pfsmount.ids import parse_path
from pfsmount.repo.ingest import commit_edit
from pfsmount.repo.store import Store
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import Entry, file_entry
from pfsmount.tree.ingest import ingest_bytes
from tests.conftest import Run, run_command

STRANGE = (b"new\nline", b"not utf-8 \xff\xfe", b"*?[]{}!()@+^", b"x" * 255, "größe".encode())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Commits 'first' (all files), then one for each change, then one that removes. Nobody changes it."""
    path = tmp_path_factory.mktemp("log") / "store"
    names = (b"top.jpg", b"2026/cat.jpg", b"2026/sub/dog.jpg", b"2026/notes.txt", *STRANGE)
    Store.create(path)
    with Store.open(path, author="tester@here") as store:
        store.create_repo("images")
        store.create_repo("empty")
        commit(store, "first", dict.fromkeys(names, b"1"))
        for name in names[:3]:
            commit(store, f"change {os.fsdecode(name)}", {name: b"22"})
        for name in STRANGE:
            commit(store, "change strange", {name: b"22"})
        commit(store, "remove top.jpg", {b"top.jpg": None})

    def run(*args: str | bytes) -> subprocess.CompletedProcess[str]:
        return run_command("pfsmount.cli.app", path, *args)

    return run


def commit(store: Store, message: str, files: dict[bytes, bytes | None]) -> None:
    """One commit that sets or removes files."""
    with store.objects.batch() as batch:
        changes = {
            parse_path(name): None if data is None else file_entry(ingest_bytes(batch, data), len(data))
            for name, data in files.items()
        }

        def edit(root: Entry) -> Entry:
            return edit_paths(batch, root, changes)

        commit_edit(store, batch, "images", "master", edit, message=message, origin={"how": "test"})


def messages(pfs: Run, *arguments: str | bytes) -> list[str]:
    """The messages of the commits that `pfs log` lists."""
    done = pfs("log", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return [commit["message"] for commit in json.loads(done.stdout)]


def test_of_paths(images: Run) -> None:
    """A file, a directory, a path in the target, several paths, globs: the commits that changed them, the removal included."""
    for arguments, expected in (
        (["images:/top.jpg"], ["remove top.jpg", "change top.jpg", "first"]),
        (["images@master~1", "top.jpg"], ["change top.jpg", "first"]),
        (["images", "--", "2026"], ["change 2026/sub/dog.jpg", "change 2026/cat.jpg", "first"]),
        (["images:/2026", "--", "sub/dog.jpg", "nothing"], ["change 2026/sub/dog.jpg", "first"]),
        (
            ["images", "--", "2026/cat.jpg", "top.jpg"],
            ["remove top.jpg", "change 2026/cat.jpg", "change top.jpg", "first"],
        ),
        (["images", "--", "*.jpg"], ["remove top.jpg", "change top.jpg", "first"]),
        (
            ["images", "--", "**.jpg"],
            ["remove top.jpg", "change 2026/sub/dog.jpg", "change 2026/cat.jpg", "change top.jpg", "first"],
        ),
        (["images:/2026", "--", "*.jpg"], ["change 2026/cat.jpg", "first"]),
        (["images", "-n", "1", "--", "top.jpg"], ["remove top.jpg"]),
        (["images", "--", "2026/notes.txt"], ["first"]),
        (["images", "--", "top.jpg/below"], []),
    ):
        assert messages(images, *arguments) == expected, arguments


def test_of_strange_names(images: Run) -> None:
    """Any name can be asked for, one that would be no glob or another one too."""
    for name in STRANGE:
        assert messages(images, "images", "--", name) == ["change strange", "first"], name
    assert messages(images, b"images:/" + STRANGE[1]) == ["change strange", "first"]


def test_what_git_users_type(images: Run) -> None:
    """--author, --grep, --since, --until, -n, --oneline."""
    assert len(messages(images, "images", "--author", "^tester@")) == 10
    assert messages(images, "images", "--author", "someone") == []
    assert messages(images, "images", "--grep", "cat|dog") == ["change 2026/sub/dog.jpg", "change 2026/cat.jpg"]
    assert len(messages(images, "images", "--since", "1 hour ago")) == 10
    assert messages(images, "images", "--since", "2099-01-01") == []
    assert messages(images, "images", "--until", "yesterday") == []
    lines = images("log", "images", "--oneline", "-n", "2").stdout.splitlines()
    assert [line.split("  ")[1] for line in lines] == ["remove top.jpg", "change strange"]
    done = images("log", "images", "--", "no/such")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no commit of images changed /no/such" in done.stderr
    for wrong in (["--since", "gestern"], ["--author", "["], ["-n", "0"], ["--", "../x"]):
        assert images("log", "images", *wrong).returncode == 2, wrong


def test_without_commits(images: Run) -> None:
    """An empty branch has an empty log."""
    assert json.loads(images("log", "empty", "--json").stdout) == []
    done = images("log", "empty", "--", "a")
    assert (done.returncode, "no commits yet" in done.stderr) == (0, True)


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("now", timedelta()),
        ("3 days ago", timedelta(days=3)),
        ("2.weeks.ago", timedelta(weeks=2)),
        ("90m", timedelta(minutes=90)),
        ("1 hour", timedelta(hours=1)),
        ("yesterday", timedelta(days=1, hours=15, minutes=30)),
        ("today", timedelta(hours=15, minutes=30)),
        ("2026-11-22 15:00", timedelta(minutes=30)),
        ("2026-11-21", timedelta(days=1, hours=15, minutes=30)),
        ("@1700000000", None),
    ],
)
def test_times(text: str, ago: timedelta | None) -> None:
    """Points in time as git's users write them."""
    now = datetime(2026, 11, 22, 15, 30).astimezone()
    expected = 1_700_000_000 if ago is None else round((now - ago).timestamp())
    assert parse_time(text, now) == expected * 1_000_000_000


@pytest.mark.parametrize("text", ["", "gestern", "@", "@x", "3 dogs ago", "2026-13-01", "99999999999 years ago"])
def test_no_times(text: str) -> None:
    """What cannot be read is refused."""
    with pytest.raises(InvalidInput, match="is not a time"):
        parse_time(text)
