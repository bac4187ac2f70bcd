"""The bytes of format 1: a change of any of these is a new format version.

`format-1.json` was written by `python -m tests.golden.test_format` when the format was decided; it is never written again for format 1.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pfsmount.ids import ObjectId
from pfsmount.objects import hashing, segment
from pfsmount.objects.segment import Location, RecordKind, SegmentKind, SegmentRow, TableOfContents
from pfsmount.repo import commit, reflog, refs
from pfsmount.tree import boundaries, manifest, node, xattrs
from pfsmount.tree.directory import EMPTY_DIRECTORY, directory_entry
from pfsmount.tree.entry import EMPTY_FILE_ID, encode_leaf, file_entry, symlink_entry
from pfsmount.tree.node import Child, entry_item

GOLDEN = Path(__file__).with_name("format-1.json")
NONCE, STORE = bytes(range(16)), bytes(range(16, 32))
ID = ObjectId(bytes(range(32)))
OTHER = ObjectId(bytes(range(100, 132)))
T = 1_234_567_890_123_456_789


def _entries() -> dict[str, Any]:
    return {
        "file": file_entry(ID, 5000, mode=0o4755, uid=1000, gid=100, mtime_ns=T),
        "file with xattrs": file_entry(ID, 0, mtime_ns=-5).replace(
            xattrs=xattrs.encode_xattrs({b"user.b": b"\0\1", b"user.a": b""})
        ),
        "file with large xattrs": file_entry(ID, 2**40, mtime_ns=2**70).replace(xattrs_id=OTHER),
        "symlink": symlink_entry(b"../a \xff", mtime_ns=T),
        "directory": directory_entry(EMPTY_DIRECTORY, mode=0o1777, mtime_ns=T),
    }


def _trees() -> dict[str, bytes]:
    entries = _entries()
    leaf = [entry_item(name.encode(), entry) for name, entry in sorted(entries.items())]
    inner = [Child(b"m\xff", ID, OTHER, 3, 4, 5), Child(b"z", OTHER, ID, 6, 7, 2**60)]
    made = {f"entry: {name}": b"".join(encode_leaf(b"n\xff", entry)) for name, entry in entries.items()}
    made |= {
        "node: empty": node.NodeDraft(0).encode(),
        "node: leaf": node.NodeDraft(0, leaf).encode(),
        "node: leaf content id": node.NodeDraft(0, leaf).content(),
        "node: inner": node.NodeDraft(2, inner).encode(),
        "node: inner content id": node.NodeDraft(2, inner).content(),
        "node: ranks of n0 to n9999": bytes(boundaries.rank(b"n%d" % i) for i in range(10_000)),
    }
    rows = [(ID, 4 << 20), (ObjectId(bytes(32)), 70_000), (OTHER, 17)]
    made["manifest: leaf root"] = manifest.encode_manifest(0, OTHER, rows)
    made["manifest: inner"] = manifest.encode_manifest(1, ObjectId(bytes(32)), rows[:1])
    return made


def _segments() -> dict[str, bytes]:
    table = TableOfContents(7, 8192, [(ID, 5000), (OTHER, 4096)], (3, 64))
    first = TableOfContents(7, 0, [(ID, 1)])
    return {
        "segment: header": segment.encode_header(SegmentKind.TINY, 42, STORE, NONCE),
        "segment: record": segment.encode_record(RecordKind.NODE, ID, b"payload", 64, NONCE),
        "segment: table of contents": table.encode(),
        "segment: first table of contents": first.encode(),
        "segment: footer": segment.encode_footer(first.encode(), 4096, STORE),
        "segment: location": Location(42, (1 << 44) + 4096, RecordKind.PIECE, 4 << 20).encode(),
        "segment: row": SegmentRow(SegmentKind.DATA, True, 1 << 30, 4096, NONCE, 3, 64).encode(),
    }


def _commits() -> dict[str, bytes]:
    encoded = commit.encode_commit(
        tree=_entries()["directory"],
        parents=(ID, OTHER),
        height=3,
        jump=OTHER,
        message="größe\nline two \udcff",
        author="me@here",
        time_ns=T,
        origin={"how": "put", "from": "/a/\udcfe"},
        provenance={"job": "job-1", "inputs": [{"repo": "images", "commit": ID.hex()}]},
    )
    repo = refs.RepoInfo("images", 2**62 + 1, "photos", T, "master")
    return {
        "commit": encoded,
        "refs.log line": reflog.encode_line(commit.dump_json({"n": 1, "op": "ref", "who": "é"}).encode("ascii")),
        "repos row": repo.encode(),
        "refs key": refs.ref_key(repo, refs.RefKind.BRANCH, "master"),
        "worktrees key": refs.worktree_key(repo, "master", "mine"),
    }


def _hashes() -> dict[str, bytes]:
    made: dict[str, bytes] = {f"hash: {kind.name}": hashing.hash_bytes(b"pfs", kind) for kind in hashing.HashKind}
    return made | {"hash: empty file": EMPTY_FILE_ID, "hash: empty directory": EMPTY_DIRECTORY.id}


def encodings() -> dict[str, str]:
    """Everything that the format fixes, made now; long values by their hash."""
    made = _hashes() | _segments() | _trees() | _commits()
    return {
        name: raw.hex() if len(raw) <= 1000 else f"{len(raw)} bytes, {hashing.hash_bytes(raw).hex()}"
        for name, raw in made.items()
    }


@pytest.mark.parametrize("name", list(encodings()))
def test_bytes_of_format_1(name: str) -> None:
    """The bytes are what they were when format 1 was decided."""
    assert encodings()[name] == json.loads(GOLDEN.read_text())[name]


def test_nothing_was_dropped() -> None:
    """Each pinned encoding is still made."""
    assert set(json.loads(GOLDEN.read_text())) == set(encodings())


def test_what_was_encoded_is_read_back() -> None:
    """The pinned bytes decode to what they were made from."""
    golden = {name: text for name, text in json.loads(GOLDEN.read_text()).items() if "bytes," not in text}
    decoded = commit.decode_commit(bytes.fromhex(golden["commit"]))
    assert decoded.parents == (ID, OTHER)
    assert decoded.message.endswith("\udcff")
    assert decoded.tree == _entries()["directory"]
    leaf = node.Node(bytes.fromhex(golden["node: inner"]))
    assert leaf.child(1) == Child(b"z", OTHER, ID, 6, 7, 2**60)
    assert Location.decode(bytes.fromhex(golden["segment: location"])).offset == (1 << 44) + 4096
    assert TableOfContents.decode(bytes.fromhex(golden["segment: table of contents"])).previous == (3, 64)


if __name__ == "__main__":
    if GOLDEN.exists():
        sys.exit(f"{GOLDEN} exists: format 1 is decided")
    GOLDEN.write_text(json.dumps(encodings(), indent=1, sort_keys=True) + "\n")
