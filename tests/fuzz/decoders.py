"""All decoders of bytes that come from a disk, a socket or a person, with valid examples of what they read.

A new public function named `decode…`, `read_…`, `parse_…` (or with `scan` or `replay` in its name) has to be in `DECODERS`, or in
`NOT_DECODERS` with the reason.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfsmount.cli.times import parse_time
from pfsmount.errors import Corrupt, InvalidInput, NotAStore, PfsError, StoreTooNew
from pfsmount.fs.answers import answer_of, status_of
from pfsmount.fs.options import parse_options
from pfsmount.fs.records import parse_record
from pfsmount.fs.server import request_of
from pfsmount.ids import EntryName, ObjectId, parse_entry_name, parse_object_id, parse_path
from pfsmount.objects.hashing import HashKind, hash_bytes
from pfsmount.objects.holds import Held, read_line
from pfsmount.objects.layout import read_store_info
from pfsmount.objects.object_look import decode_location, decode_tombstone
from pfsmount.objects.segment import (
    Location,
    PieceColumns,
    RecordKind,
    SegmentKind,
    SegmentRow,
    TableOfContents,
    decode_footer,
    decode_header,
    decode_seal,
    encode_footer,
    encode_header,
    encode_record,
    read_footer,
    scan_records,
)
from pfsmount.objects.segment_scan import scan_segment
from pfsmount.repo import journal, reflog
from pfsmount.repo.archive_read import Archive, ArchiveError
from pfsmount.repo.commit import decode_commit, dump_json, dump_root, encode_commit
from pfsmount.repo.excludes import Excludes
from pfsmount.repo.fsck_refs import replay_log
from pfsmount.repo.pending_merge import parse_pending
from pfsmount.repo.rebuild import read_lines
from pfsmount.repo.refs import RepoInfo, decode_worktree
from pfsmount.repo.replay import Replay
from pfsmount.repo.results import ResultRow, encode_result
from pfsmount.revision import check_ref_name, check_repo_name, parse_mount_name, parse_revision, parse_target
from pfsmount.tree.directory import EMPTY_DIRECTORY, directory_entry
from pfsmount.tree.entry import Entry, decode_entry, decode_leaf, encode_leaf, file_entry, symlink_entry
from pfsmount.tree.globs import Glob
from pfsmount.tree.manifest import HOLE, Manifest, encode_manifest
from pfsmount.tree.merge import Reason
from pfsmount.tree.node import Child, Node, NodeDraft, entry_item
from pfsmount.tree.xattrs import decode_xattrs, encode_xattrs
from runner.executors import wire
from runner.executors.containers import orders
from runner.input_spec import parse_input
from runner.record import parse_datum, parse_job
from runner.spec import parse_env, parse_output
from runner.spec_file import read_specs
from tests.fuzz.archives import ARCHIVES

ID = ObjectId(bytes(range(32)))
NONCE = b"n" * 16
DIRECTORY = directory_entry(EMPTY_DIRECTORY, mode=0o750, uid=3, mtime_ns=-5)


@dataclass(frozen=True, slots=True)
class Decoder:
    """One way in."""

    name: str
    """`module:function` or `module:Class.method`, or what is read when several functions do it."""
    read: Callable[[bytes], object]
    """Decode, and use all that was decoded."""
    seeds: Sequence[bytes]
    errors: tuple[type[BaseException], ...] = (Corrupt,)
    json: bool = False
    """What is mutated is JSON."""
    seal: Callable[[bytes], bytes] = bytes
    """Gives what was mutated the checksum or frame that it must have."""
    canonical: Callable[[Any], bytes] | None = None
    """What is decoded has one encoding, this."""


def in_file(use: Callable[[Path], object]) -> Callable[[bytes], object]:
    """A decoder of a file."""
    path = Path(tempfile.mkdtemp(prefix="pfs-fuzz-")) / "file"
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return use(path)

    return read


def on_descriptor(use: Callable[[int], object]) -> Callable[[bytes], object]:
    """A decoder of an open file."""

    def read(path: Path) -> object:
        fd = os.open(path, os.O_RDONLY)
        try:
            return use(fd)
        finally:
            os.close(fd)

    return in_file(read)


def text(use: Callable[[str], object]) -> Callable[[bytes], object]:
    """A decoder of what a person wrote."""
    return lambda data: use(os.fsdecode(data))


# Segments

TOC = TableOfContents(7, 8192, [(ID, 5000), (HOLE, 4096)], (3, 128))
RECORDS = encode_header(SegmentKind.META, 9, b"i" * 16, NONCE)
for _payload in (b"first", b"", b"x" * 300):
    RECORDS += encode_record(RecordKind.XATTRS, hash_bytes(_payload, HashKind.XATTRS), _payload, len(RECORDS), NONCE)


def _contents(data: bytes) -> TableOfContents:
    table = TableOfContents.decode(data)
    for _, place in table.locations():
        place.encode()
    return table


def _scan(data: bytes) -> None:
    assert all(record.offset + len(record.payload) <= len(data) for record in scan_records(data, NONCE))


def _scan_file(fd: int) -> None:
    for nonce in (NONCE, None):
        list(scan_segment(fd, os.fstat(fd).st_size, nonce, lambda offset, length: None))


# Trees


def _entry(data: bytes) -> Entry:
    return decode_entry(data[:64], data[64:])


ENTRIES = (
    file_entry(ID, 10, mode=0o4755, uid=7, mtime_ns=123_456_789_012),
    symlink_entry(b"some/where", mtime_ns=-1),
    DIRECTORY,
    file_entry(ID, 1).replace(xattrs=encode_xattrs({b"user.a": b"b"})),
    DIRECTORY.replace(xattrs_id=ID),
)
LEAF = NodeDraft(0, [entry_item(b"%02d" % i, entry) for i, entry in enumerate(ENTRIES)])
INNER = NodeDraft(1, [Child(name, ID, ID, 3, 2, 100) for name in (b"bb", b"cc", b"dd")])


def _node(data: bytes) -> None:
    node = Node(data)
    for i, name in enumerate(node.names):
        assert node.position(name) == i
        node.item(i)
        if not node.level:
            node.entry(i)
    if len(node):
        draft = NodeDraft(node.level)
        draft.extend(node, 0, len(node))
        assert Node(draft.encode()).names == node.names
        draft.summary()


def _manifest(data: bytes) -> Manifest:
    found = Manifest.decode(data)
    assert all(found.index_at(start) == i for i, start in enumerate(found.starts[:-1]))
    return found


def _encode_manifest(found: Manifest) -> bytes:
    rows = [(id, found.length(i)) for i, id in enumerate(found.ids)]
    return encode_manifest(found.level, found.file_id, rows)


def _commit(provenance: dict[str, Any] | None) -> bytes:
    return encode_commit(
        tree=DIRECTORY.replace(xattrs=encode_xattrs({b"user.a": b"b"})),
        parents=(ID, ID),
        height=4,
        jump=ID,
        message="größe \udcff",
        author="me@here",
        time_ns=1_700_000_000_000_000_000,
        origin={"how": "put"},
        provenance=provenance,
    )


PROVENANCE = {
    "job": "job-0",
    "inputs": [{"name": "in", "repo": "in", "branch": "master", "glob": "/*", "commit": ID.hex()}],
    "record": dump_root(DIRECTORY),
    "spec": {"output": {"repo": "out", "branch": "master"}},
}

# Logs

CHANGES: tuple[dict[str, Any], ...] = (
    {"op": "repo-create", "repo": "images", "repo_id": "0" * 15 + "1", "description": "", "default_branch": "master"},
    {"op": "ref", "repo_id": "0" * 15 + "1", "kind": "branch", "name": "master", "old": None, "new": ID.hex()},
    {"op": "default", "repo_id": "0" * 15 + "1", "name": "try"},
    {"op": "repo-delete", "repo_id": "0" * 15 + "1", "repo": "images", "description": ""},
)
LINES = [dump_json({"n": n, "t": 5, "who": "me", "why": "x", **of}).encode() for n, of in enumerate(CHANGES, 1)]
LOG = b"".join(map(reflog.encode_line, LINES))
RECORDS_OF_JOURNAL: list[list[Any]] = [
    ["new", 2, 1, "d", "dir", 0o755, 0, 0, 5, None, 5],
    ["new", 3, 2, "f", "file", 0o644, 0, 0, 5, None, 5],
    ["new", 4, 2, "l", "symlink", 0o777, 0, 0, 5, "target", 5],
    ["link", 3, 1, "g", 6],
    ["rename", 2, "l", 1, "m", 0, 7],
    ["attr", 3, {"mode": 0o600, "uid": 1, "gid": 2, "mtime_ns": 9}],
    ["xattr", 3, "user.a", "eA=="],
    ["entry", 3, *(journal.value_text(part) for part in file_entry(ID, 100).encode())],
    ["size", 3, 50],
    ["extent", 3, 0, 10],
    ["whole", 3],
    ["resolve", "/d/f", "mine", "0123"],
    ["rename", 1, "d", 1, "g", 2, 8],
    ["unlink", 1, "m", 9],
]


def seal_log(data: bytes) -> bytes:
    """Lines of JSON as a refs.log."""
    return b"".join(map(reflog.encode_line, data.split(b"\n")))


def _replay_changes(data: bytes) -> None:
    replay = Replay()
    for line in data.split(b"\n"):
        change = reflog.decode_line(line)
        if change is not None:
            replay.apply(change)
    for repo in replay.repos.values():
        repo.encode()


def _log_file(path: Path) -> None:
    list(read_lines(path))
    replay_log(path, 100, lambda what: None, lambda n, line: None)
    reflog.last_number(path)


def _read_log(path: Path) -> None:
    list(reflog.read_log(path))


def seal_journal(data: bytes) -> bytes:
    """A JSON array of records as a journal."""
    digits, out = b"", []
    try:
        records = json.loads(data)
    except RecursionError:
        records = [[data.decode()]]
    for record in records if isinstance(records, list) else [records]:
        line, digits = journal.encode_line(record, digits)
        out.append(line)
    return b"".join(out)


def _journal_file(path: Path) -> None:
    reader = journal.JournalReader(path)
    try:
        list(reader.records())
        reader.is_damaged()
    finally:
        reader.close()
    journal.journal_roots(path)


def seal_pending(data: bytes) -> bytes:
    """A record as the file of a merge that waits."""
    return seal_journal(b"[%b]" % data)


PENDING = ["merge", 1, "images@try", ID.hex(), "message", "me", 5, [["/a", "mine", "0123"]]]

# Stores, mounts, jobs

STORE_JSON = b'{"created_ns":5,"features":[],"format":1,"id":"' + b"ab" * 16 + b'","kind":"pfs store"}'
RECORD_JSON = (
    b'{"pid":1,"mount":"/m","store":"/s","socket":"mount-1.sock","log":"","uid":0,"since_ns":1,"allow_other":false}'
)
REQUESTS = (
    b'{"op":"commit","repo":"images","branch":"master","message":"m","paths":["/a"],"author":null}',
    b'{"op":"resolve","repo":"images","branch":"master","how":"mine"}',
    b'{"op":"info"}',
)
SIDE = {"kind": "file", "size": 1, "mode": "0644", "mtime_ns": 1, "id": ID.hex()}
ANSWER = {
    "repo": "images",
    "branch": "master",
    "name": "",
    "base": ID.hex(),
    "head": None,
    "changes": [
        {
            "path": "/a",
            "what": "new",
            "kind": "file",
            "size": 1,
            "files": 1,
            "old": [file_entry(ID, 1).encode()[0].hex(), ""],
        }
    ],
    "unversioned": ["/fifo"],
    "conflicts": [
        {
            "path": "/b",
            "reason": Reason.CONTENT.value,
            "base": SIDE,
            "mine": SIDE,
            "theirs": None,
            "resolution": "mine",
            "last": {"mine": None, "theirs": {"commit": ID.hex(), "author": "me", "time_ns": 1}},
        }
    ],
    "owner": None,
}
DATUM = {
    "inputs": [{"name": "in", "path": "/a", "id": ID.hex(), "kind": "file"}],
    "exit": 0,
    "started_ns": 1,
    "ended_ns": 2,
    "max_rss": 3,
    "user_s": 0.1,
    "system_s": 0,
    "job": "job-0",
}


def _store_info(path: Path) -> None:
    path.replace(path.with_name("store.json"))
    read_store_info(path.parent)


def _members(path: Path) -> None:
    with path.open("rb") as file:
        archive = Archive(file, "it")
        for member in archive.members():
            if member.size <= 1 << 20 and member.kind.name == "FILE":
                archive.read(member)


def cut_frames(data: bytes) -> None:
    """A worker is this interpreter's own child: its frames are right, or cut short by its death. A length alone makes nobody take memory."""
    whole = wire.pack(data)
    assert wire.take(bytearray(whole)) == data
    assert wire.take(bytearray(whole[: len(data) + 3])) is None
    assert wire.take(bytearray((b"\x7f" + data)[:8].ljust(20, b"\xff"))) is None


def _hold(data: bytes) -> None:
    held = Held()
    for line in data.decode("ascii", "replace").split("\n"):
        read_line(line, held)


_BAD = (InvalidInput,)
# Specs

PIPELINE = json.dumps(
    {
        "pipeline": {"name": "montage", "project": {"name": "default"}},
        "transform": {
            "image": "dpokidov/imagemagick:7",
            "cmd": ["sh"],
            "stdin": ["montage /pfs/images/* /pfs/out/m.png"],
            "env": {"A": "1"},
            "acceptReturnCode": [1],
        },
        "input": {
            "cross": [
                {"pfs": {"repo": "images", "glob": "/"}},
                {"join": [{"pfs": {"repo": r, "glob": "/(*)/*", "joinOn": "$1", "outerJoin": True}} for r in "ab"]},
            ]
        },
        "resourceLimits": {"memory": "1.5Gi", "cpu": "500m", "gpu": {"type": "nvidia.com/gpu", "number": 1}},
        "parallelismSpec": {"constant": "4"},
        "datumTimeout": "1h30m",
        "metadata": {"labels": {"a": [1.5, None]}},
    }
).encode()
OLD_PIPELINE = json.dumps(
    {
        "pipeline": {"name": "map"},
        "transform": {"cmd": ["/map"], "err_cmd": ["true"], "secrets": [], "user": 7},
        "parallelism_spec": {"coefficient": 0.5, "strategy": "COEFFICIENT"},
        "inputs": [{"repo": {"name": "in"}, "branch": "master~2", "glob": "/*", "lazy": "true"}],
        "egress": {"URL": ""},
        "enable_stats": True,
        "resource_requests": {"gpu": 1, "disk": "1G"},
    }
).encode()
JOBS = rb"""
input:
- &i {repo: images, branch: master, glob: "/(*).png", join_on: $1}
- join: [{<<: *i, name: again}, {input: "x=b:/(*)", join_on: $1}]
output: edges@master
command: |
  python3 /edges.py
limits: {memory: 2G, cpus: 1.5, pids: 200}
timeout: 500ms
metadata: {<<: {a: !!str 1}, b: "\x41\u263a"}
...
"""


def _specs(name: str) -> Callable[[bytes], object]:
    """Read a spec file, and show its jobs."""

    def read(data: bytes) -> object:
        specs = read_specs(data, name, processors=4, directory=Path("/d"))
        return [(json.dumps(spec.spec.as_json(), allow_nan=False), "".join(spec.warnings).encode()) for spec in specs]

    return read


DECODERS = (
    Decoder(
        "pfsmount.objects.segment:Location.decode",
        Location.decode,
        [Location(1, 1 << 40, RecordKind.NODE, 9).encode()],
        canonical=Location.encode,
    ),
    Decoder(
        "pfsmount.objects.object_look:decode_location",
        decode_location,
        [Location(1, 5, RecordKind.NODE, 9).encode()],
        (),
    ),
    Decoder(
        "pfsmount.objects.segment:SegmentRow.decode",
        SegmentRow.decode,
        [SegmentRow(SegmentKind.DATA, True, 99, 1, NONCE, 4, 5).encode()],
    ),
    Decoder("pfsmount.objects.segment:decode_header", decode_header, [RECORDS[:64]]),
    Decoder("pfsmount.objects.segment:scan_records", _scan, [RECORDS], ()),
    Decoder("pfsmount.objects.segment_scan:scan_segment", on_descriptor(_scan_file), [RECORDS], ()),
    Decoder(
        "pfsmount.objects.segment:TableOfContents.decode", _contents, [TOC.encode()], canonical=TableOfContents.encode
    ),
    Decoder(
        "pfsmount.objects.segment:decode_footer",
        on_descriptor(decode_footer),
        [bytes(4096) + encode_footer(TOC.encode(), 4096, b"i" * 16)],
    ),
    Decoder(
        "pfsmount.objects.segment:decode_seal",
        on_descriptor(decode_seal),
        [bytes(4096) + encode_footer(TOC.encode(), 4096, b"i" * 16)],
    ),
    Decoder(
        "pfsmount.objects.segment:PieceColumns.decode", lambda data: PieceColumns.decode(data).rows(), [TOC.encode()]
    ),
    Decoder(
        "pfsmount.objects.segment:read_footer",
        on_descriptor(read_footer),
        [bytes(4096) + encode_footer(TOC.encode(), 4096, b"i" * 16)],
        (),
    ),
    Decoder("pfsmount.objects.object_look:decode_tombstone", decode_tombstone, [bytes(range(40))], ()),
    Decoder(
        "pfsmount.objects.layout:read_store_info",
        in_file(_store_info),
        [STORE_JSON],
        (Corrupt, NotAStore, StoreTooNew),
        json=True,
    ),
    Decoder("store.json, any bytes", in_file(_store_info), [STORE_JSON], (Corrupt, NotAStore, StoreTooNew)),
    Decoder("pfsmount.objects.holds:read_line", _hold, [b"segment 5 64\ncommit " + ID.hex().encode() + b"\n"], ()),
    Decoder(
        "pfsmount.tree.entry:decode_entry",
        _entry,
        [b"".join(entry.encode()) for entry in ENTRIES],
        canonical=lambda entry: b"".join(entry.encode()),
    ),
    Decoder(
        "pfsmount.tree.entry:decode_leaf",
        lambda data: decode_leaf(data[:64], data[64:]),
        [b"".join(encode_leaf(b"name", entry)) for entry in ENTRIES],
        canonical=lambda found: b"".join(encode_leaf(*found)),
    ),
    Decoder("pfsmount.tree.node:Node", _node, [LEAF.encode(), INNER.encode(), NodeDraft(0).encode()]),
    Decoder(
        "pfsmount.tree.manifest:Manifest.decode",
        _manifest,
        [encode_manifest(0, ID, [(ID, 5), (HOLE, 1 << 40), (ID, 4 << 20)]), encode_manifest(2, HOLE, [(ID, 1 << 50)])],
        canonical=_encode_manifest,
    ),
    Decoder(
        "pfsmount.tree.xattrs:decode_xattrs",
        decode_xattrs,
        [encode_xattrs({b"user.a": b"b" * 300, b"user.b": b""})],
        canonical=encode_xattrs,
    ),
    Decoder("pfsmount.repo.commit:decode_commit", decode_commit, [_commit(None), _commit(PROVENANCE)], json=True),
    Decoder("commits, any bytes", decode_commit, [_commit(None)]),
    Decoder(
        "pfsmount.repo.commit:parse_root", lambda data: decode_commit(data).tree.encode(), [_commit(None)], json=True
    ),
    Decoder(
        "pfsmount.repo.refs:RepoInfo.decode",
        lambda data: RepoInfo.decode(b"images", data).encode(),
        [RepoInfo("images", 5, "d", 6, "master").encode()],
        json=True,
    ),
    Decoder(
        "names of repos in the index",
        lambda data: RepoInfo.decode(data, RepoInfo("", 5, "d", 6, "master").encode()),
        [b"images"],
    ),
    Decoder("pfsmount.repo.refs:decode_worktree", decode_worktree, [bytes(40)]),
    Decoder(
        "pfsmount.repo.results:ResultRow.decode",
        lambda data: ResultRow.decode(ID, data),
        [encode_result(ID, DIRECTORY, 9)],
        canonical=lambda row: encode_result(*row),
    ),
    Decoder("pfsmount.repo.reflog:decode_line", _replay_changes, [LOG], ()),
    Decoder("pfsmount.repo.reflog:parse_change", _replay_changes, LINES, (), json=True, seal=seal_log),
    Decoder("pfsmount.repo.rebuild:read_lines", in_file(_log_file), [LOG]),
    Decoder("pfsmount.repo.fsck_refs:replay_log", in_file(_log_file), LINES, json=True, seal=seal_log),
    Decoder("pfsmount.repo.reflog:read_log", in_file(_read_log), [LOG]),
    Decoder(
        "pfsmount.repo.journal:decode_line",
        lambda data: journal.decode_line(data, b""),
        [journal.encode_line(["whole", 3], b"")[0][:-1]],
        (),
    ),
    Decoder(
        "journals",
        in_file(_journal_file),
        [dump_json([["journal", 1, ID.hex()], *RECORDS_OF_JOURNAL]).encode()],
        json=True,
        seal=seal_journal,
    ),
    Decoder(
        "journals, any bytes",
        in_file(_journal_file),
        [seal_journal(dump_json([["journal", 1, None], *RECORDS_OF_JOURNAL]).encode())],
    ),
    Decoder(
        "pfsmount.repo.pending_merge:parse_pending",
        parse_pending,
        [dump_json(PENDING).encode()],
        json=True,
        seal=seal_pending,
    ),
    Decoder("pfsmount.repo.archive_read:Archive", in_file(_members), ARCHIVES, (ArchiveError,)),
    Decoder("pfsmount.fs.records:parse_record", parse_record, [RECORD_JSON], (), json=True),
    Decoder("pfsmount.fs.server:request_of", request_of, REQUESTS, _BAD, json=True),
    Decoder("requests, any bytes", request_of, REQUESTS, _BAD),
    Decoder(
        "pfsmount.fs.answers:answer_of",
        answer_of,
        [b'{"error":{"kind":"Conflict","message":"m","hint":null,"paths":["/a"]}}'],
        (PfsError, ConnectionError),
        json=True,
    ),
    Decoder(
        "pfsmount.fs.answers:status_of",
        lambda data: status_of(answer_of(data)),
        [dump_json(ANSWER).encode()],
        (PfsError, ConnectionError),
        json=True,
    ),
    Decoder("runner.record:parse_datum", parse_datum, [dump_json(DATUM).encode()], (), json=True),
    Decoder("runner.record:parse_job", parse_job, [dump_json(DATUM).encode()], json=True),
    Decoder("runner.executors.containers.orders:parse_reply", orders.parse_reply, [bytes(56)], (ValueError,)),
    Decoder("runner.executors.wire:read_one", cut_frames, [wire.pack({"error": "x", "lost": False}) * 3], ()),
    Decoder("runner.input_spec:parse_input", text(parse_input), [b"name=images@master~2:/*.jpg", b"images:/"], _BAD),
    Decoder("runner.spec:parse_output", text(parse_output), [b"edges@master"], _BAD),
    Decoder("runner.spec:parse_env", text(lambda pair: parse_env([pair])), [b"NAME=value"], _BAD),
    Decoder("runner.spec_file:read_specs", _specs("x.json"), [PIPELINE, OLD_PIPELINE], _BAD, json=True),
    Decoder("runner.spec_file:read_specs, damaged", _specs("x.json"), [PIPELINE, OLD_PIPELINE], _BAD),
    Decoder("runner.spec_file:read_specs of YAML", _specs("x.yaml"), [JOBS], _BAD),
    Decoder(
        "pfsmount.ids:parse_object_id",
        text(parse_object_id),
        [ID.hex().encode()],
        _BAD,
        canonical=lambda id: bytes(id.hex(), "ascii"),
    ),
    Decoder("pfsmount.fs.options:parse_options", text(lambda it: parse_options([it])), [b"ro,allow_other"], _BAD),
    Decoder("pfsmount.ids:parse_entry_name", parse_entry_name, [b"name"], _BAD, canonical=bytes),
    Decoder("pfsmount.ids:parse_path", parse_path, [b"/a/b/c"], _BAD),
    Decoder(
        "pfsmount.revision:parse_revision",
        text(lambda it: str(parse_revision(it))),
        [b"master~2.3^@0123456789+mine", b"v1.x"],
        _BAD,
    ),
    Decoder("pfsmount.revision:parse_mount_name", text(parse_mount_name), [b"images@master~2"], _BAD),
    Decoder("pfsmount.revision:parse_target", text(lambda it: str(parse_target(it))), [b"images@master~2:/a/b"], _BAD),
    Decoder("names of refs and repos", text(lambda it: (check_ref_name(it), check_repo_name(it))), [b"images"], _BAD),
    Decoder(
        "pfsmount.cli.times:parse_time", text(parse_time), [b"2026-11-22 17:43", b"3 days ago", b"@1700000000"], _BAD
    ),
    Decoder(
        "globs",
        text(lambda it: Glob(it).match((EntryName(b"a.jpg"),))),
        [b"/2026/*/a?[b-d].{jpg,png}", b"**/!(a|b)c@(x|y)[[:alpha:]]"],
        _BAD,
    ),
    Decoder("excludes", text(lambda it: Excludes([it])(b"a/b", True)), [b"*.o", b"/build/", b"a/**/b"], _BAD),
)

NOT_DECODERS = {
    "pfsmount.objects.holds:read_holds": "each line is read_line's",
    "pfsmount.objects.segment_scan:read_range": "gives bytes",
    "pfsmount.objects.segment_scan:PieceScan.read_now": "gives bytes",
    "pfsmount.objects.segment:SegmentReader.read_uncached": "gives bytes",
    "pfsmount.objects.uncached:Uncached.read_into": "gives bytes",
    "pfsmount.objects.reading:read_object": "the object is checked against its id, and decoded elsewhere",
    "pfsmount.repo.overlay_data:read_all": "gives bytes",
    "pfsmount.repo.overlay_data:read_nowait": "gives bytes",
    "pfsmount.repo.pending_merge:read_pending": "the line is parse_pending's",
    "pfsmount.repo.reading_worker:read_run": "reads files of the user; the request is this process' own",
    "pfsmount.repo.refs:scan_refs": "rows are _decode_ref's, in the hostile stores",
    "pfsmount.repo.store:Store.read_commit": "decode_commit",
    "pfsmount.tree.content:read_small": "gives bytes",
    "pfsmount.cli.work:read_status": "status_of",
    "pfsmount.objects.index:Transaction.scan": "gives rows",
    "runner.executors.cells:parse_counts": "text of the kernel's",
    "runner.executors.cells:parse_keyed": "text of the kernel's",
    "pfsmount.repo.provenance:read_datum_json": "gives bytes, which are parse_datum's",
    "runner.record:Record.read_log": "gives bytes",
    "runner.record:read_datum": "parse_datum",
}
