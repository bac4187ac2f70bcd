"""What commits and trees are made of: against following every id, one by one."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest

from pfsmount.ids import ObjectId, parse_path
from pfsmount.objects.index import Table
from pfsmount.objects.marks import Marks
from pfsmount.objects.segment import Location, RecordKind
from pfsmount.repo.ingest import commit_edit
from pfsmount.repo.reachable import Missing, Reachable
from pfsmount.repo.store import Store
from pfsmount.tree.directory import EMPTY_DIRECTORY, walk
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import EMPTY_FILE_ID, Entry, Kind, file_entry, symlink_entry
from pfsmount.tree.ingest import ingest_bytes
from pfsmount.tree.manifest import load_manifest, pieces
from pfsmount.tree.node import load_node
from pfsmount.tree.xattrs import with_xattrs

LARGE = os.urandom(9 << 20)


def commit(store: Store, files: Mapping[str, bytes | None], xattr: bytes = b"") -> ObjectId:
    """One commit; an xattr goes to the root's first file."""
    with store.objects.batch() as batch:
        changes: dict[tuple[bytes, ...], Entry | None] = {}
        for name, data in files.items():
            entry = None if data is None else file_entry(ingest_bytes(batch, data), len(data))
            if entry is not None and xattr:
                entry, xattr = with_xattrs(batch, entry, {b"user.note": xattr}), b""
            changes[parse_path(name)] = entry
        changes[parse_path("link")] = symlink_entry(b"target")

        def edit(root: Entry) -> Entry:
            return edit_paths(batch, root, changes)  # type: ignore[arg-type]

        made = commit_edit(store, batch, "images", "master", edit, message="m", origin={"how": "test"})
    assert made is not None
    return made.id


def needed(store: Store, head: ObjectId) -> set[ObjectId]:
    """All ids that a commit needs, its history included."""
    ids = {head}
    made = store.read_commit(head)
    directories = []
    for _, entry in walk(store.objects, made.tree):
        if entry.xattrs_id is not None:
            ids.add(entry.xattrs_id)
        if entry.is_directory and entry.id != EMPTY_DIRECTORY.id:
            directories.append(entry.id)
        elif entry.kind is Kind.FILE and entry.id != EMPTY_FILE_ID:
            ids.add(entry.id)
            place = store.objects.locate(entry.id)
            assert place is not None
            if place.kind is RecordKind.MANIFEST:
                ids.update(id for _, id, _ in pieces(store.objects, load_manifest(store.objects, entry.id)) if id)
    while directories:
        ids.add(directories[-1])
        node = load_node(store.objects, directories.pop())
        directories += [node.child(i).id for i in range(len(node))] if node.level else []
    return ids.union(*(needed(store, parent) for parent in made.parents))


def history(store: Store) -> ObjectId:
    """Three commits that share most of what they have."""
    commit(
        store,
        {f"many/{i}": b"%d" % (i % 50) for i in range(400)} | {"empty": b"", "many/0": b"", "large": LARGE},
        b"x" * 3000,
    )
    commit(store, {"a/b/c": b"t" * 5000, "many/7": b"new", "large": LARGE[:1000] + LARGE})
    return commit(store, {"a": None, "alone": b"alone"})


def places(store: Store, ids: set[ObjectId]) -> set[tuple[int, int]]:
    found = [store.objects.locate(id) for id in ids]
    return {place[:2] for place in found if place is not None}


def marked(store: Store, marks: Marks) -> set[tuple[int, int]]:
    with store.objects.index.read() as txn:
        every = [Location.decode(raw) for _, raw in txn.scan(Table.OBJECTS)]
    return {place[:2] for place in every if place in marks}


def test_marks_exactly_what_a_commit_and_its_history_need(store: Store) -> None:
    head = history(store)
    with store.objects.batch() as batch:  # what nothing needs
        batch.add_piece(b"unused" * 1000)
        batch.flush()
    marks, missing = Marks(store.objects), list[Missing]()
    reach = Reachable(store.objects, marks, missing.append)
    reach.commits([head])
    assert not missing
    assert marked(store, marks) == places(store, needed(store, head))
    met = reach.count
    assert met == len(marked(store, marks))
    reach.commits([head])
    assert reach.count == met


@pytest.mark.parametrize("kind", [RecordKind.COMMIT, RecordKind.NODE, RecordKind.PIECE, RecordKind.XATTRS])
def test_what_is_missing_is_told_with_who_names_it_and_the_rest_is_marked(store: Store, kind: RecordKind) -> None:
    head = history(store)
    every = needed(store, head) - {head}
    lost = next(id for id in sorted(every) if (place := store.objects.locate(id)) is not None and place.kind is kind)
    with store.objects.index.write() as txn:
        txn.delete(Table.OBJECTS, lost)
    marks, missing = Marks(store.objects), list[Missing]()
    Reachable(store.objects, marks, missing.append).commits([head])
    assert missing
    assert {(one.id, one.kind) for one in missing} == {(lost, kind)}
    assert all(one.parent in every | {head} and one.commit is not None and not one.damage for one in missing)
    if kind in (RecordKind.PIECE, RecordKind.XATTRS):
        assert marked(store, marks) == places(store, (every | {head}) - {lost})


def test_what_is_damaged_is_told(store: Store) -> None:
    head = history(store)
    tree = store.read_commit(head).tree.id
    place = store.objects.locate(tree)
    assert place is not None
    path = store.objects.directory / f"{place.segment:08x}.meta"
    with path.open("r+b") as file:
        file.seek(place.offset + 20)
        file.write(b"\xff\xff")
    missing = list[Missing]()
    Reachable(store.objects, Marks(store.objects), missing.append).commits([head])
    assert [(one.id, one.commit, bool(one.damage)) for one in missing] == [(tree, head, True)]
