"""What trees, repos and the store take: against counting every object by its id."""

from __future__ import annotations

import os

from pfsmount.ids import ObjectId, parse_path
from pfsmount.objects.segment import RECORD_BYTES, RecordKind, SegmentKind
from pfsmount.repo.ingest import commit_edit
from pfsmount.repo.store import Store
from pfsmount.repo.store_usage import measure_store
from pfsmount.repo.usage import TreeMeter, directories
from pfsmount.tree.directory import EMPTY_DIRECTORY, directory_entry, walk
from pfsmount.tree.edit import edit_paths
from pfsmount.tree.entry import EMPTY_FILE_ID, Entry, Kind, file_entry, symlink_entry
from pfsmount.tree.ingest import ingest_bytes
from pfsmount.tree.manifest import load_manifest, pieces
from pfsmount.tree.node import load_node

LARGE = os.urandom(9 << 20)


def commit(store: Store, files: dict[str, bytes | Entry | None], repo: str = "images") -> Entry:
    """One commit; the root that it made."""
    with store.objects.batch() as batch:
        changes = {
            parse_path(name): file_entry(ingest_bytes(batch, data), len(data)) if isinstance(data, bytes) else data
            for name, data in files.items()
        }

        def edit(root: Entry) -> Entry:
            return edit_paths(batch, root, changes)

        made = commit_edit(store, batch, repo, "master", edit, message="m", origin={"how": "test"})
    assert made is not None
    return made.tree


def objects_of(store: Store, root: Entry) -> set[tuple[int, int, int]]:
    """Places and stored sizes of everything that a tree needs, found by ids alone."""
    ids: set[ObjectId] = set()
    nodes = [
        entry.id for _, entry in walk(store.objects, root) if entry.is_directory and entry.id != EMPTY_DIRECTORY.id
    ]
    while nodes:
        ids.add(nodes[-1])
        node = load_node(store.objects, nodes.pop())
        nodes += [node.child(i).id for i in range(len(node))] if node.level else []
    for _, entry in walk(store.objects, root):
        if entry.kind is Kind.FILE and entry.id != EMPTY_FILE_ID:
            ids.add(entry.id)
            place = store.objects.locate(entry.id)
            assert place is not None
            if place.kind is RecordKind.MANIFEST:
                ids.update(id for _, id, _ in pieces(store.objects, load_manifest(store.objects, entry.id)) if id)
    found = set()
    for id in ids:
        place = store.objects.locate(id)
        assert place is not None
        small = place.kind is not RecordKind.PIECE or place.length <= 1024
        size = RECORD_BYTES + -(-place.length // 8) * 8 if small else -(-place.length // 4096) * 4096
        found.add((place.segment, place.offset, size))
    return found


def stored(store: Store, *roots: Entry) -> int:
    """Bytes of what these trees need together."""
    return sum(size for *_, size in set().union(*(objects_of(store, root) for root in roots)))


def files(first: bytes) -> dict[str, bytes | Entry | None]:
    """Small, tiny, empty and large files, two alike, a symlink, an empty directory, a directory of several nodes."""
    many: dict[str, bytes | Entry | None] = {f"many/{i}": b"%d" % (i % 50) for i in range(300)}
    return many | {
        "a/one": first,
        "a/deep/er/two": b"t" * 5000,
        "b/two": b"t" * 5000,
        "b/large": LARGE,
        "b/empty": b"",
        "b/link": symlink_entry(b"two"),
        "hollow": directory_entry(EMPTY_DIRECTORY),
    }


def test_trees(store: Store) -> None:
    """Each object counts once, where it comes first; a second version adds what it has that the first has not."""
    old = commit(store, files(b"x" * 3000))
    new = commit(store, {"a/one": b"y" * 3000, "b/large": LARGE + b"more", "many/7": None})
    meter = TreeMeter(store.objects)
    lines = list(meter.measure((), old, None))
    assert [b"/".join(line.path) for line in lines] == [b"a/deep/er", b"a/deep", b"a", b"b", b"hollow", b"many", b""]
    assert lines[-1].stored == stored(store, old)
    assert lines[2].stored == stored(store, next(entry for path, entry in walk(store.objects, old) if path == (b"a",)))
    assert [(line.path, line.entry, None) for line in lines] == list(directories(store.objects, (), old, None))
    (line,) = meter.measure((), new, 0)
    assert line.stored == stored(store, old, new) - stored(store, old)
    assert [line.stored for line in meter.measure((), old, 1)][-1] == 0
    assert [line.path for line in TreeMeter(store.objects).measure((), old, 1)] == [
        (b"a",),
        (b"b",),
        (b"hollow",),
        (b"many",),
        (),
    ]


def test_a_file_and_nothing(store: Store) -> None:
    """A file alone, and the empty tree."""
    root = commit(store, {"one": b"x" * 5000})
    (entry,) = [entry for path, entry in walk(store.objects, root) if path]
    assert [line.stored for line in TreeMeter(store.objects).measure(parse_path("one"), entry, None)] == [8192]
    assert [line.stored for line in TreeMeter(store.objects).measure((), store.empty_root(), None)] == [0]


def test_the_store(store: Store) -> None:
    """Repos share what they share; a branch that went back still counts all commits; sums agree with the segments."""
    store.create_repo("copy")
    store.create_repo("none")
    first = commit(store, files(b"x" * 3000))
    second = commit(store, {"a/one": b"y" * 3000})
    copied = commit(store, {"there": first, "own": b"z" * 2000}, "copy")
    store.set_ref(
        "images", store.refs("images")[0].kind, "master", None, expected=store.head("images", "master"), why="x"
    )
    seen: list[int] = []
    usage = measure_store(store, seen.append)
    images, copy, none = sorted(usage.repos, key=lambda repo: ("images", "copy", "none").index(repo.name))
    assert (images.commits, images.heads.count, images.heads.size) == (2, 0, 0)
    assert images.versions.size == first.size + second.size
    assert (copy.heads.count, copy.heads.size, copy.versions.size) == (copied.files, copied.size, copied.size)
    assert (none.commits, none.stored, none.unique) == (0, 0, 0)
    commits = usage.objects[RecordKind.COMMIT]
    assert commits.count == 3
    assert usage.stored - commits.size == stored(store, first, second, copied)
    own = images.stored + copy.stored - commits.size
    assert own == stored(store, first, second) + stored(store, copied)
    both = stored(store, first, second) + stored(store, copied) - stored(store, first, second, copied)
    assert usage.shared == both
    assert images.unique + copy.unique + both == usage.stored
    assert usage.segments[SegmentKind.DATA].size >= usage.objects[RecordKind.PIECE].size - 300 * 64
    assert usage.index > 0
