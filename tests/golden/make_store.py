"""Makes the golden store of a format: `python -m tests.golden.make_store`. Once a format is released its store is never made again."""

from __future__ import annotations

import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from pfsmount.objects.layout import FORMAT
from pfsmount.repo.overlay_nodes import NodeKind
from pfsmount.repo.store import Store
from pfsmount.repo.worktree import Worktree
from pfsmount.revision import parse_revision
from pfsmount.tree.directory import walk
from tests.conftest import run_command

HERE = Path(__file__).parent
SCRIPT = """\
import pathlib
for path in pathlib.Path("/pfs/images").iterdir():
    (pathlib.Path("/pfs/out") / path.name).write_text(str(path.lstat().st_size))
"""


def describe(store: Store) -> dict[str, Any]:
    """Everything that can be read from the golden store, as JSON."""
    found: dict[str, Any] = {}
    for repo in store.repos():
        for ref in store.branches(repo.name):
            resolved = store.resolve(repo.name, parse_revision(ref.name))
            for commit in store.history(resolved.commit):
                found[f"{repo.name}@{ref.name} {commit.height}"] = {
                    "commit": commit.id.hex(),
                    "message": commit.message,
                    "entries": [
                        [os.fsdecode(b"/".join(path)), entry.kind.name, entry.mode, entry.mtime_ns, entry.id.hex()]
                        for path, entry in walk(store.objects, commit.tree)
                    ],
                }
    with Worktree.open(store, "images", "master") as worktree:
        found["uncommitted"] = [[os.fsdecode(b"/".join(change.path)), change.what] for change in worktree.changes()]
    return found


def main() -> None:
    archive = HERE / f"store-{FORMAT}.tar.xz"
    if archive.exists():
        sys.exit(f"{archive} exists: format {FORMAT} is decided")
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        path = top / "store"
        photos = top / "photos"
        (photos / "empty dir").mkdir(parents=True)
        (photos / "large").write_bytes(b"pfs " * (5 << 18))
        (photos / "small").write_bytes(b"s" * 5000)
        (photos / "tiny").write_bytes(b"t")
        (photos / "tiny").chmod(0o755)
        (photos / "link").symlink_to("tiny")
        with open(os.path.join(os.fsencode(photos), b"not utf-8 \xff"), "wb"):
            pass
        with open(photos / "sparse", "wb") as file:
            file.truncate(1 << 20)
        (top / "job.py").write_text(SCRIPT)
        job = ["run", "--input", "images@master:/*", "--output", "sizes@master", "--", "python3", "job.py"]
        for module, args in (
            ("pfsmount.cli.app", ["init"]),
            ("pfsmount.cli.app", ["repo", "create", "images", "-d", "golden"]),
            ("pfsmount.cli.app", ["put", photos, "images@master:/", "-m", "first"]),
            ("pfsmount.cli.app", ["rm", "images@master:/small", "-m", "second"]),
            ("pfsmount.cli.app", ["branch", "images@dev", "images@master~1"]),
            ("runner.cli", job),
        ):
            done = run_command(module, path, *args, cwd=top)
            assert done.returncode == 0, done.stderr
        with Store.open(path) as store:
            with Worktree.open(store, "images", "master", own=True) as worktree:
                node = worktree.make(worktree.root, b"uncommitted", NodeKind.FILE, mode=0o644, uid=0, gid=0)
                worktree.write(node, 0, b"not yet")
                worktree.unlink(worktree.root, b"tiny")
            expected = describe(store)
        (HERE / f"store-{FORMAT}.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")
        with tarfile.open(archive, "w:xz") as tar:
            tar.add(path, "store")
    print(archive, archive.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
