"""A store whose objects are all well hashed, and lie: what somebody could hand over as a store to look into."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pfsmount.config import MIB
from pfsmount.ids import ObjectId
from pfsmount.objects.batch import Batch
from pfsmount.objects.hashing import hash_bytes
from pfsmount.objects.index import Table
from pfsmount.objects.segment import RecordKind
from pfsmount.repo.commit import dump_json, encode_commit
from pfsmount.repo.refs import RefKind, RefMove
from pfsmount.repo.store import Store
from pfsmount.tree.directory import EMPTY_DIRECTORY, DirectorySummary, directory_entry
from pfsmount.tree.entry import Entry, file_entry, symlink_entry
from pfsmount.tree.manifest import HOLE, encode_manifest
from pfsmount.tree.node import Child, NodeDraft, entry_item

Items = Sequence[tuple[bytes, Entry]]
NOWHERE = ObjectId(b"\7" * 32)


def directory(batch: Batch, items: Items) -> Entry:
    """A directory of exactly these entries, in this order, in one node."""
    return directory_entry(
        DirectorySummary.of(NodeDraft(0, [entry_item(name, entry) for name, entry in items]).write(batch))
    )


def file(batch: Batch, data: bytes) -> Entry:
    """A file."""
    return file_entry(batch.add_piece(data), len(data))


def manifest(batch: Batch, rows: list[tuple[ObjectId, int]], *, level: int = 0, size: int | None = None) -> Entry:
    """A file with such a manifest, whose id nobody can tell to be wrong without reading it."""
    id = hash_bytes(b"%d %r" % (level, rows))
    raw = bytearray(encode_manifest(level, id, [(of, length & ((1 << 64) - 1)) for of, length in rows if length]))
    if size is not None:
        struct.pack_into("<Q", raw, 8, size)
    batch.add_object(RecordKind.MANIFEST, bytes(raw))
    return file_entry(id, sum(length for _, length in rows) if size is None else size)


def _deep(batch: Batch, depth: int) -> Entry:
    entry = file(batch, b"at the bottom")
    for _ in range(depth):
        entry = directory(batch, [(b"d", entry)])
    return entry


def _laughs(batch: Batch, levels: int) -> Entry:
    entry = directory(batch, [(b"f", file(batch, b"ha"))])
    for _ in range(levels):
        entry = directory(batch, [(b"a", entry), (b"b", entry)])
    return entry


def _nested_manifest(batch: Batch) -> Entry:
    """Eight levels of one piece and one hole in turns: 2^60 ranges in 3 KiB."""
    piece = batch.add_piece(b"p")
    rows: list[tuple[ObjectId, int]] = [(piece, 1), (HOLE, 1)] * 64
    size = 128
    for level in range(6):
        id = batch.add_object(RecordKind.MANIFEST, encode_manifest(level, HOLE, rows))
        rows, size = [(id, size)] * 128, size * 128
    return manifest(batch, rows, level=6)


def _node_as_file(batch: Batch) -> Entry:
    raw = NodeDraft(0, [entry_item(b"f", file(batch, b"x"))]).encode()
    return directory_entry(DirectorySummary(batch.add_piece(raw), EMPTY_DIRECTORY.content_id, 1, 1, 1))


def _xattrs(batch: Batch, name: bytes) -> Entry:
    raw = bytes([len(name)]) + name + (20).to_bytes(4, "little") + bytes(20)
    return file(batch, b"with attributes").replace(xattrs=raw)


def _children_out_of_order(batch: Batch) -> Entry:
    one, two = (NodeDraft(0, [entry_item(name, file(batch, b"x"))]).write(batch) for name in (b"a", b"b"))
    children = [Child(b"b", *two[1:]), Child(b"c", *one[1:])]
    return directory_entry(DirectorySummary.of(NodeDraft(1, children).write(batch)))


def _named(name: bytes) -> Callable[[Batch], Entry]:
    return lambda batch: directory(batch, [(name, file(batch, b"escaped"))])


def _file_of(make: Callable[[Batch], Entry]) -> Callable[[Batch], Entry]:
    return lambda batch: directory(batch, [(b"f", make(batch)), (b"g", file(batch, b"good"))])


TREES: dict[str, Callable[[Batch], Entry]] = {
    "slash": _named(b"../../canary/escaped"),
    "absolute": _named(b"/canary"),
    "parent": _named(b".."),
    "itself": _named(b"."),
    "nul": _named(b"a\0b"),
    "empty-name": _named(b""),
    "twice": lambda batch: directory(
        batch, [(b"x", symlink_entry(b"../../canary")), (b"x", directory(batch, [(b"escaped", file(batch, b"x"))]))]
    ),
    "unsorted": lambda batch: directory(batch, [(b"b", file(batch, b"b")), (b"a", file(batch, b"a"))]),
    "children": _children_out_of_order,
    "link": lambda batch: directory(
        batch, [(b"canary", symlink_entry(b"../../canary")), (b"zz", symlink_entry(b"/etc/passwd"))]
    ),
    "nul-target": _file_of(lambda batch: symlink_entry(b"a").replace(target=b"a\0b", size=3)),
    "no-target": _file_of(lambda batch: symlink_entry(b"a").replace(target=b"", size=0)),
    "small-size": _file_of(lambda batch: file(batch, b"longer than that").replace(size=10)),
    "large-size": _file_of(lambda batch: file(batch, b"short").replace(size=10 << 40)),
    "size-2-63": _file_of(lambda batch: file(batch, b"short").replace(size=1 << 63)),
    "manifest-10-tib": _file_of(lambda batch: manifest(batch, [(HOLE, 10 << 40)]).replace(size=10)),
    "manifest-holes": _file_of(lambda batch: manifest(batch, [(HOLE, 1 << 62)])),
    "manifest-sum": _file_of(lambda batch: manifest(batch, [(HOLE, 5 * MIB), (HOLE, MIB)], size=7 * MIB)),
    "manifest-2-63": _file_of(lambda batch: manifest(batch, [(batch.add_piece(b"p"), 1 << 63)], size=5 * MIB)),
    "manifest-piece": _file_of(lambda batch: manifest(batch, [(batch.add_piece(b"p"), 4 * MIB), (HOLE, MIB)])),
    "manifest-child": _file_of(
        lambda batch: manifest(
            batch, [(batch.add_object(RecordKind.MANIFEST, encode_manifest(0, HOLE, [(HOLE, 5)])), 1 << 40)], level=1
        )
    ),
    "manifest-nowhere": _file_of(lambda batch: manifest(batch, [(NOWHERE, MIB), (HOLE, 8 * MIB)])),
    "node-as-file": _node_as_file,
    "file-is-node": _file_of(lambda batch: file_entry(directory(batch, [(b"n", file(batch, b"n"))]).id, 100)),
    "directory-is-commit": _file_of(
        lambda batch: directory_entry(
            DirectorySummary(batch.add_object(RecordKind.COMMIT, b"{}"), EMPTY_DIRECTORY.content_id, 1, 1, 1)
        )
    ),
    "device": _file_of(lambda batch: file(batch, b"x").replace(mode=0o060666)),
    "setuid": _file_of(lambda batch: file(batch, b"x").replace(mode=0o6755)),
    "ns": _file_of(lambda batch: file(batch, b"x").replace(mtime_ns=((1 << 63) - 1) * 10**9 + 999_999_999)),
    "before": _file_of(lambda batch: file(batch, b"x").replace(mtime_ns=-(1 << 63) * 10**9)),
    "capability": _file_of(lambda batch: _xattrs(batch, b"security.capability")),
    "trusted": _file_of(lambda batch: _xattrs(batch, b"trusted.overlay.redirect")),
    "xattrs-is-piece": _file_of(lambda batch: file(batch, b"x").replace(xattrs_id=batch.add_piece(b"not attributes"))),
    "deep": lambda batch: directory(batch, [(b"d", _deep(batch, 3000))]),
    "wide": lambda batch: directory(batch, [(b"%06d" % n, file(batch, b"w")) for n in range(20_000)]),
    "escapes": lambda batch: directory(batch, [(b"\x1b]0;owned\x07\x1b[31m", file(batch, b"x"))]),
}
"""By the name of their branch."""
ENDLESS: dict[str, Callable[[Batch], Entry]] = {
    "laughs": lambda batch: _laughs(batch, 60),
    "ranges": _file_of(_nested_manifest),
}
"""What says nothing wrong, but is larger than any disk: only what looks at each object once can come to an end."""


def _commit(batch: Batch, tree: Entry, **changes: Any) -> ObjectId:
    value = json.loads(
        encode_commit(
            tree=tree,
            parents=(),
            height=0,
            jump=None,
            message="m",
            author="me",
            time_ns=1,
            origin={"how": "put"},
            provenance=None,
        )
    )
    return batch.add_object(RecordKind.COMMIT, dump_json({**value, **changes}).encode("ascii"))


def _provenance(**changes: Any) -> dict[str, Any]:
    return {"job": "job-1", "inputs": [], "spec": {}, "record": None, "command": ["x"], **changes}


COMMITS: dict[str, Callable[[Batch, Entry], ObjectId]] = {
    "height": lambda batch, tree: _commit(batch, tree, height=1 << 40),
    "height-2-70": lambda batch, tree: _commit(batch, tree, height=1 << 70),
    "time": lambda batch, tree: _commit(batch, tree, time_ns=(1 << 63) - 1),
    "time-2-80": lambda batch, tree: _commit(batch, tree, time_ns=1 << 80),
    "parent-is-node": lambda batch, tree: _commit(batch, tree, parents=[tree.id.hex()], height=1),
    "parent-is-gone": lambda batch, tree: _commit(batch, tree, parents=[NOWHERE.hex()], height=1, jump=NOWHERE.hex()),
    "many-parents": lambda batch, tree: _commit(batch, tree, parents=[_commit(batch, tree).hex()] * 5000, height=1),
    "text": lambda batch, tree: _commit(batch, tree, message="\x1b[31m\n\udcff", author="\x1b]0;x\x07\ud800"),
    "mode": lambda batch, tree: _commit(batch, tree, origin={"how": ["x"], "source": 5, "commit": {}}),
    "provenance": lambda batch, tree: _commit(batch, tree, provenance=_provenance()),
    "record": lambda batch, tree: _commit(batch, tree, provenance=_provenance(inputs="x", record={"id": 5})),
    "no-json": lambda batch, tree: batch.add_object(RecordKind.COMMIT, b"[" * 100_000),
}


def make_hostile_store(path: Path) -> None:
    """Branches of the repo `images`: `good`, and one for each way to lie."""
    Store.create(path)
    with Store.open(path, author="mallory") as store:
        store.create_repo("images")
        with store.objects.batch() as batch:
            good = directory(batch, [(b"a", file(batch, b"a")), (b"d", directory(batch, [(b"e", file(batch, b"e"))]))])
            heads = {"good": _commit(batch, good)}
            for name, tree in {**TREES, **ENDLESS}.items():
                heads[f"t-{name}"] = _commit(batch, tree(batch))
            for name, make in COMMITS.items():
                heads[f"c-{name}"] = make(batch, good)
            chain = heads["good"]
            for height in range(1, 3000):
                chain = _commit(batch, good, parents=[chain.hex()], height=height)
            heads["c-chain"] = chain
            batch.flush()
        info = store.repo("images")
        from pfsmount.repo.refs import move_ref

        with store.objects.index.write() as txn:
            for name, head in heads.items():
                move_ref(txn, RefMove(info, RefKind.BRANCH, name, head), who="m", why="x", time_ns=1)
                txn.put(Table.COMMITS, info.key + head, bytes(8))
        store._append_log()


def branches() -> Iterator[str]:
    """All branches that lie."""
    yield from (f"t-{name}" for name in TREES)
    yield from (f"c-{name}" for name in (*COMMITS, "chain"))
