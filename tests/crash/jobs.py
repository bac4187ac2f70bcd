"""A job under the shim: what it is, and what must be true of its results, its record and its commit wherever it was stopped.

What must hold: a result that was saved is there, whole, and its datum does not run again; each job's ref names a record that can be read; each commit of the output branch has
its provenance (the job, inputs that are there, the datums whose results it is exactly), and each job that says it made a commit has made one; the next run works.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from pfsmount.errors import NotAStore
from pfsmount.ids import ObjectId
from pfsmount.objects.hashing import hash_bytes
from pfsmount.repo.commit import Commit, parse_root
from pfsmount.repo.refs import RefKind
from pfsmount.repo.results import find_result
from pfsmount.repo.store import Store
from pfsmount.tree.content import open_content
from pfsmount.tree.directory import lookup, walk
from pfsmount.tree.entry import EMPTY_FILE_ID, Entry, Kind
from runner.record import OUT, Record
from tests.crash.workloads import IMAGES, Command, Workload, World

PROGRAM = "cd /pfs/images; for f in *; do grep -q fail $f && exit 3; wc -c < $f > /pfs/out/$f; done; exit 0"
"""The sizes of the files, unless one of them says that it fails."""
ARGUMENTS = (
    "run",
    "--workers",
    "1",
    "--input",
    "images@master:/*",
    "--output",
    "sizes@master",
    "--",
    "sh",
    "-c",
    PROGRAM,
)
RUN: Command = ("pfsjob", *ARGUMENTS)
JOB = """
import json, os, sys
from pathlib import Path
import runner.collect
from runner.cli import main
from tests.crash.checking import view_at, view_of
from tests.crash.replay import mark

log, code = Path(argv[0]), int(argv[1])
runner.collect.FLUSH_DATUMS = 1  # each result is saved by itself
flush = runner.collect.Collector.flush

def flush_and_tell(collector):
    flush(collector)
    keys = bytes(collector.keys)
    saved = [keys[at : at + 32].hex() for at in range(0, len(keys), 32)]
    mark(log, json.dumps({"view": view_of(collector._store), "saved": saved}).encode())

runner.collect.Collector.flush = flush_and_tell
sys.argv = ["pfsjob", *argv[2:]]
try:
    main()
except SystemExit as end:
    assert end.code == code, end.code
mark(log, json.dumps({"view": view_at(Path(os.environ["PFS_STORE"]))}).encode())
"""


def job(code: int) -> Command:
    """The job, as a process that acknowledges each result when it is saved, and ends with this exit code."""
    return ("python", JOB, "{log}", str(code), *ARGUMENTS)


FILES: tuple[Command, ...] = (*IMAGES, ("pfs", "put", "{files}/old", "{files}/fails", "images@master:/"))
MENDED: Command = ("pfs", "put", "{files}/gone", "images@master:/fails")
JOBS = Workload(
    "jobs",
    FILES,
    (job(1), MENDED, job(0), ("pfs", "put", "{files}/mine", "images@master:/mine"), job(0)),
    atomic=False,
    per_step=1,
)
"""A job of which one datum fails, one that makes the first commit, one that builds on it."""


def check_jobs(path: Path, saved: Collection[str]) -> None:
    """All but the next run."""
    try:
        opened = Store.open(path)
    except NotAStore:
        assert not saved
        return
    with opened as store:
        for key in saved:
            _check_result(store, ObjectId(bytes.fromhex(key)))
        for repo in store.repos():
            for ref in store.refs(repo.name, RefKind.JOB):
                assert ref.commit is not None
                _check_record(store, repo.name, store.read_commit(ref.commit))
        for commit in outputs(store):
            _check_output(store, commit)


def outputs(store: Store) -> list[Commit]:
    """The commits of the job's output branch, newest first."""
    if not any(repo.name == "sizes" for repo in store.repos()):
        return []
    head = store.head("sizes", "master")
    return [] if head is None else [*store.history(store.read_commit(head))]


def _check_result(store: Store, key: ObjectId) -> None:
    entry = find_result(store, key)
    assert entry is not None, f"the result of {key.hex()[:12]} was saved, and is gone"
    assert lookup(store.objects, entry.id, OUT) is not None
    _read(store, entry)


def _read(store: Store, root: Entry) -> dict[str, bytes]:
    """The files below a directory, verified."""
    found = {}
    for path, entry in walk(store.objects, root):
        if entry.kind is Kind.FILE:
            data = b"" if entry.id == EMPTY_FILE_ID else open_content(store.objects, entry).read(0, entry.size)
            assert entry.id == EMPTY_FILE_ID or hash_bytes(data) == entry.id
            found["/".join(name.decode() for name in path)] = data
    return found


def _check_record(store: Store, repo: str, commit: Commit) -> None:
    """The record that a job's ref names; when it says that there is a commit, that one is on the branch, with this record."""
    record, origin = Record(store.objects, commit.tree), commit.origin
    assert record.job()["state"] == origin["state"]
    datums = [*record.datums()]
    failed = sum(not one.ok for one in datums)
    if origin["reason"] is None:
        assert failed == origin["failed"]
    else:  # of a job that could not go on, what could not be stored is counted all the same
        assert failed <= origin["failed"]
    for datum in datums:
        assert (datum.out is not None) is datum.ok
        assert datum.log is not None
        _read(store, datum.entry)
    if origin["state"] == "failed":
        assert failed or origin["reason"], "a failed job that does not say why"
    assert (origin["commit"] is not None) is (origin["state"] == "success")
    if origin["commit"] is not None:
        made = {one.id.hex(): one for one in outputs(store)}.get(origin["commit"])
        assert made is not None, f"{origin['job']} says that it made {origin['commit']}, which is not on the branch"
        assert made.provenance is not None
        assert parse_root(made.provenance["record"]).id == commit.tree.id


def _check_output(store: Store, commit: Commit) -> None:
    """A commit has the provenance that explains all of it."""
    made = commit.provenance
    assert made is not None, f"{commit.id.hex()} has no provenance"
    assert made["command"] == list(ARGUMENTS[-3:])
    for source in made["inputs"]:
        store.read_commit(ObjectId(bytes.fromhex(source["commit"])))
    ref = store.ref("sizes", RefKind.JOB, made["job"])
    assert ref is not None
    assert ref.commit is not None, f"{commit.id.hex()} is there, and its job is not"
    assert store.read_commit(ref.commit).origin["commit"] == commit.id.hex()
    results: dict[str, bytes] = {}
    for datum in Record(store.objects, parse_root(made["record"])).datums():
        assert datum.out is not None
        results |= _read(store, datum.out)
    assert _read(store, commit.tree) == results
    assert results


def run_again(world: World, path: Path, saved: Collection[str]) -> None:
    """The next run: its results are those of its inputs, and nothing that was saved is done again."""
    with Store.open(path) as store:
        head = store.head("images", "master")
        assert head is not None
        files = _read(store, store.read_commit(head).tree)
    done = world.zygote.run(*RUN, store=path)
    fails = any(b"fail" in data for data in files.values())
    assert done.code == fails, f"{done.code} {done.out} {done.errors}"
    skipped = re.search(r"(\d+) skipped", done.out)
    assert skipped is not None, done.out
    assert int(skipped[1]) >= len(saved), f"{len(saved)} results were saved, and {done.out}"
    check_jobs(path, saved)
    assert not [one for one in (path / "jobs").iterdir() if not one.name.startswith(".")], "left-overs of a job stay"
    if not fails:
        with Store.open(path) as store:
            assert _read(store, outputs(store)[0].tree) == {name: b"%d\n" % len(data) for name, data in files.items()}
