"""`pfs put --tar` and `pfs get --tar`: what goes through an archive, and what does not."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfsmount.errors import NotADirectory, NotFound, NotPermitted, PfsError
from pfsmount.ids import EntryName, RepoPath, parse_path
from pfsmount.objects.layout import create_store
from pfsmount.objects.store import ObjectStore, open_objects
from pfsmount.repo import unsorted_tree
from pfsmount.repo.archive import ArchiveIngest, put_archive
from pfsmount.repo.archive_read import Archive, ArchiveError
from pfsmount.repo.commit import Commit
from pfsmount.repo.excludes import Excludes
from pfsmount.repo.store import Store
from pfsmount.repo.unsorted_tree import UnsortedTree
from pfsmount.tree.content import read_small
from pfsmount.tree.directory import EMPTY_DIRECTORY, directory_entry, find, walk
from pfsmount.tree.entry import EMPTY_FILE_ID, Entry, file_entry
from tests.conftest import Run


def member(name: str | bytes, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(os.fsdecode(name))
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def archive(*members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A tar archive of these members, in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as tar:
        for one in members:
            info, data = one if isinstance(one, tuple) else (one, b"")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture
def images(pfs: Run) -> Run:
    """A store with an empty repo."""
    assert pfs("repo", "create", "images").returncode == 0
    return pfs


def put(store: Store, data: bytes, *, target: str = "t", exclude: Sequence[str] = (), delete: bool = False) -> Commit:
    """What `pfs put --tar` does; the head afterwards."""
    put_archive(
        store,
        io.BufferedReader(io.BytesIO(data)),
        "it",
        "images",
        "master",
        parse_path(target),
        message="",
        delete=delete,
        origin={},
        exclude=Excludes(exclude).covers,
    )
    head = store.head("images", "master")
    assert head is not None
    return store.read_commit(head)


def listed(store: Store, commit: Commit, below: str = "t") -> list[str]:
    top = find(store.objects, commit.tree, parse_path(below))
    assert top is not None
    return ["/".join(map(os.fsdecode, path)) for path, _ in walk(store.objects, top) if path]


def content(store: Store, commit: Commit, path: str) -> bytes:
    entry = find(store.objects, commit.tree, parse_path(path))
    assert entry is not None
    return read_small(store.objects, entry)


def test_numbers_that_fill_their_fields(store: Store) -> None:
    """Without a NUL or blank behind the last digit, as the format allows."""
    raw = bytearray(archive((member("f", mtime=0o14512345670, uid=0o12345670), b"x" * 100)))
    raw[108:116], raw[124:136], raw[136:148] = b"12345670", b"000000000144", b"014512345670"
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    head = put(store, bytes(raw))
    assert content(store, head, "t/f") == b"x" * 100
    entry = find(store.objects, head.tree, parse_path("t/f"))
    assert entry is not None
    assert (entry.mtime_ns, entry.uid) == (0o14512345670 * 10**9, 0o12345670)


def test_the_last_of_two_members_counts(store: Store) -> None:
    """As with tar; entries may come in any order, directories after what is in them."""
    data = archive(
        (member("b/x"), b"1"), (member("a"), b"2"), member("b", tarfile.DIRTYPE, mode=0o700), (member("b/x"), b"3")
    )
    head = put(store, data)
    assert listed(store, head) == ["a", "b", "b/x"]
    assert content(store, head, "t/b/x") == b"3"
    entry = find(store.objects, head.tree, parse_path("t/b"))
    assert entry is not None
    assert entry.mode == 0o700


def test_hard_links_become_the_same_content(store: Store) -> None:
    """Also links to links, and to what only the target has."""
    data = archive(
        (member("z"), b"data"),
        member("a", tarfile.LNKTYPE, linkname="z"),
        member("b/c", tarfile.LNKTYPE, linkname="./a"),
    )
    assert content(store, put(store, data), "t/b/c") == b"data"
    later = archive(member("later", tarfile.LNKTYPE, linkname="b/c"))
    assert content(store, put(store, later), "t/later") == b"data"
    with pytest.raises(NotFound, match="hard link to 'no', which is not in the archive"):
        put(store, archive(member("bad", tarfile.LNKTYPE, linkname="no")))


def test_a_hard_link_is_what_its_target_was_when_it_came(store: Store) -> None:
    """Not what a later member of that name is, nor what the target of the put has; also through links, and links that are replaced."""

    def link(name: str, to: str) -> tarfile.TarInfo:
        return member(name, tarfile.LNKTYPE, linkname=to)

    data = archive(
        *((member("f"), b"1"), link("a", "f"), (member("f"), b"2"), link("b", "f"), link("c", "a")),
        *(link("a", "b"), link("d", "a"), link("a", "a"), (member("f"), b"3"), (member("b"), b"4")),
        *(link("e", "b"), link("f", "f"), link("z/new", "old"), (member("old"), b"new"), link("z/old", "old")),
    )
    put(store, archive((member("old"), b"old"), (member("f"), b"0"), (member("a"), b"0")))
    head = put(store, data)
    found = {name: content(store, head, f"t/{name}") for name in (*"abcdef", "z/new", "z/old", "old")}
    assert found == {
        "a": b"2",
        "b": b"4",
        "c": b"1",
        "d": b"2",
        "e": b"4",
        "f": b"3",
        "z/new": b"old",
        "z/old": b"new",
        "old": b"new",
    }
    with pytest.raises(NotFound, match="'t1' is a hard link to 't2', which is not in the archive before it"):
        put(store, archive(link("t1", "t2"), (member("t2"), b"1")))


LINKED = st.lists(
    st.tuples(st.sampled_from("abcdefg"), st.one_of(st.integers(0, 9), st.sampled_from("abcdefg"))), max_size=30
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LINKED, st.sampled_from([1, 3, 100]))
def test_hard_links_are_those_of_a_dictionary(
    objects: ObjectStore, tmp_path: Path, steps: list[tuple[str, int | str]], remembered: int
) -> None:
    """Files and links in any order, against a dictionary; with few links remembered, so that links are followed in passes, and spooled."""
    want: dict[str, int] = {name: -ord(name) for name in "abc"}  # what is elsewhere
    there: dict[RepoPath, Entry] = {
        (EntryName(name.encode()),): file_entry(EMPTY_FILE_ID, 0, mtime_ns=number) for name, number in want.items()
    }
    made: set[str] = set()
    with (
        pytest.MonkeyPatch.context() as patch,
        objects.batch() as batch,
        UnsortedTree(batch, tmp_path, run_bytes=500) as tree,
    ):
        patch.setattr(unsorted_tree, "_LINKS_REMEMBERED", remembered)
        for name, what in steps:
            if isinstance(what, int):
                want[name] = what
                tree.add((EntryName(name.encode()),), file_entry(EMPTY_FILE_ID, 0, mtime_ns=what))
            elif what in want:
                want[name] = want[what]
                tree.add_link((EntryName(name.encode()),), (EntryName(what.encode()),))
            else:
                continue
            made.add(name)
        built = tree.build(directory_entry(EMPTY_DIRECTORY), lambda path: there.get(path))
        found = {path[0].decode(): entry.mtime_ns for path, entry in walk(batch, built) if path}
    assert found == {name: want[name] for name in made}


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "is empty"),
        (b"hello\n", "is not a tar archive"),
        (b"x" * 5000, "is not a tar archive"),
        (archive((member("../x"), b"1")), "'..' in its name"),
        (archive((member("a/../../x"), b"1")), "'..' in its name"),
        (archive((member("n" * 256), b"1")), "256 bytes is too long"),
        (archive((member("a"), b"1"), (member("a/b"), b"2")), "lies below 'a'"),
        (archive(member("a", tarfile.SYMTYPE, linkname="/etc"), (member("a/b"), b"2")), "lies below 'a'"),
        (archive(member("a", tarfile.DIRTYPE), member("b", tarfile.LNKTYPE, linkname="a")), "hard link to a directory"),
        (archive((member("."), b"1")), "has no name"),
        (archive((member("f"), b"1" * 2000))[:2048], "is cut short"),
        (archive((member("f"), b"1" * 2000))[:2560], "without an end marker"),
        (
            gzip.compress(archive((member("f"), os.urandom(9000))))[:4000],
            "is cut short: its gzip data ends in the middle",
        ),
        (archive((member("f"), b"1" * 600), (member("g"), b"2")).replace(b"ustar", b"USTAR"), "not a tar archive"),
    ],
)
def test_a_bad_archive_commits_nothing(store: Store, data: bytes, complaint: str) -> None:
    """It is said what was wrong, and nothing stays behind."""
    with pytest.raises(PfsError) as raised:
        put(store, data)
    assert complaint in raised.value.message
    assert store.head("images", "master") is None
    assert list((store.path / "tmp").iterdir()) == []


def test_damage_in_the_middle_is_no_end(store: Store) -> None:
    """`tarfile` takes a header that is none for the end of the archive, and loses the rest without a word."""
    data = bytearray(archive((member("a"), b"1"), (member("b"), b"2")))
    data[1024 + 5] ^= 1
    with pytest.raises(ArchiveError, match="is damaged at byte"):
        put(store, bytes(data))
    broken = bytearray(gzip.compress(archive((member("a"), os.urandom(100_000)))))
    broken[-5] ^= 1  # its checksum
    with pytest.raises(ArchiveError):
        put(store, bytes(broken))


@pytest.mark.parametrize(
    ("compress", "program"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")]
)
def test_compressed_data_that_is_cut_or_damaged(store: Store, compress: Callable[[bytes], bytes], program: str) -> None:
    """It is called that, wherever it happens; how far the archive came out of it would only mislead."""
    data = compress(archive((member("f"), os.urandom(100_000)), (member("g"), b"2")))
    for length in (30, len(data) // 2, len(data) - 1):
        with pytest.raises(ArchiveError, match=f"is cut short: its {program} data ends in the middle") as cut:
            put(store, data[:length])
        assert f"{program} -t" in str(cut.value.hint)
    half = len(data) // 2
    with pytest.raises(ArchiveError, match=f"is damaged.* its {program} data (cannot be|is no)") as damaged:
        put(store, data[:half] + bytes(100) + data[half + 100 :])
    assert f"{program} -t" in str(damaged.value.hint)
    assert store.head("images", "master") is None


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compression_is_recognised(store: Store, compress: Callable[[bytes], bytes]) -> None:
    """Whatever the file is called."""
    assert content(store, put(store, compress(archive((member("a"), b"1")))), "t/a") == b"1"


def test_what_is_said_about_odd_members(images: Run, tmp_path: Path) -> None:
    """A leading slash is taken off, devices are left out, what stands behind the end is not read: each with a word."""
    data = archive((member("/etc/x"), b"1"), member("dev/null", tarfile.CHRTYPE), member("fifo", tarfile.FIFOTYPE))
    (tmp_path / "a.tar").write_bytes(data + archive((member("more"), b"1")))
    done = images("put", "--tar", tmp_path / "a.tar", "images@master")
    assert done.returncode == 0
    for words in ("the leading '/' was taken off 1 name", "dev/null is a FIFO or device", "behind the archive's end"):
        assert words in done.stderr
    assert images("ls", "-R", "images@master").stdout == "etc/\netc/x\n"


def test_the_reserved_name(store: Store) -> None:
    """`.pfs` is refused at the root of a branch only, and can be left out."""
    data = archive((member("./.pfs/x"), b"1"), (member("y"), b"2"))
    with pytest.raises(NotPermitted, match="belongs to pfs"):
        put(store, data, target="")
    assert listed(store, put(store, data, target="", exclude=["/.pfs"]), "") == ["y"]
    assert listed(store, put(store, data)) == [".pfs", ".pfs/x", "y"]


def test_exclude(images: Run, store: Store, tmp_path: Path) -> None:
    """A name anywhere, a path from the top, directories only with a slash at the end; in archives as in directories."""
    names = ("keep", "a.tmp", "d/b.tmp", "d/keep", "build/x", "d/build", "top/x", "d/top/x")
    source = tmp_path / "source"
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    wanted = ["d", "d/build", "d/keep", "d/top", "d/top/x", "keep"]
    head = put(store, archive(*((member(name), b"x") for name in names)), exclude=["*.tmp", "build/", "/top"])
    assert listed(store, head) == wanted
    options = ["--exclude", "*.tmp", "--exclude", "build/", "--exclude", "/top"]
    assert images("put", source, "images@master:/u", *options).returncode == 0
    found = [one["path"] for one in json.loads(images("ls", "-R", "--json", "images@master:/u").stdout)]
    assert found == wanted
    assert images("put", source, "images@master:/u", "--exclude", "[").returncode == 2


def test_an_archive_onto_what_is_there(store: Store) -> None:
    """Laid over as by put; directories that the archive does not list keep what they are; `--delete` mirrors."""
    put(store, archive(member("d", tarfile.DIRTYPE, mode=0o750), (member("d/old"), b"old")))
    head = put(store, archive((member("d/new"), b"new")))
    assert listed(store, head) == ["d", "d/new", "d/old"]
    entry = find(store.objects, head.tree, parse_path("t/d"))
    assert entry is not None
    assert entry.mode == 0o750
    assert put(store, archive((member("d/new"), b"new"))).id == head.id
    assert listed(store, put(store, archive((member("d/new"), b"new")), delete=True)) == ["d", "d/new"]
    with pytest.raises(NotADirectory):
        put(store, archive(member("d/new", tarfile.DIRTYPE)))


def test_standard_input_and_output(images: Run, tmp_path: Path) -> None:
    """Pipes, and the same bytes for the same version every time."""
    data = archive((member("a"), b"1"), (member("b" * 150 + "/c"), b"2"))
    done = images("put", "--tar", "-", "images@master:/t", input=data.decode("latin-1"))
    assert done.returncode == 0, done.stderr
    first, second = (images("get", "images@master:/t", "--tar", "-").stdout for _ in range(2))
    assert first == second
    with tarfile.open(fileobj=io.BytesIO(first.encode())) as tar:
        assert [one.name for one in tar][:2] == [".", "a"]
    assert images("get", "images@master:/t", "--tar", tmp_path / "x.tgz").returncode == 0
    assert gzip.decompress((tmp_path / "x.tgz").read_bytes()) == first.encode()
    assert images("get", "images@master:/t/a", "--tar", tmp_path / "one.tar").returncode == 0
    with tarfile.open(tmp_path / "one.tar") as tar:
        assert tar.getnames() == ["a"]


def test_a_reader_that_goes_away(images: Run, tmp_path: Path) -> None:
    """`pfs get --tar - | head -c 1` ends without a word."""
    (tmp_path / "large").write_bytes(os.urandom(3 << 20))
    images("put", tmp_path / "large", "images@master:/t/large")
    environment = {**os.environ, "PFS_STORE": str(images.store)}  # type: ignore[attr-defined]
    command = f"{sys.executable} -m pfsmount.cli.app get images@master:/t --tar - | head -c 1"
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, timeout=60, cwd=Path.cwd())
    assert (done.stdout, done.stderr) == (b".", b"")


def test_options_that_do_not_go_together(images: Run, tmp_path: Path) -> None:
    """One sentence and exit code 2."""
    for command in (
        ["put", "x", "images@master", "--tar", "y"],
        ["get", "images@master", "x", "--tar", "y"],
        ["get", "images@master"],
        ["put"],
    ):
        done = images(*command)
        assert (done.returncode, done.stderr.count("\n") <= 3) == (2, True), done.stderr
    assert "there is no file" in images("put", "--tar", "missing.tar", "images@master").stderr
    assert "does not write zstd" in images("get", "images@master", "--tar", tmp_path / "x.tar.zst").stderr


def test_more_members_than_are_sorted_at_once(objects: ObjectStore, tmp_path: Path) -> None:
    """Runs are spooled and merged; the tree does not depend on the order, nor on the runs."""
    names = [(f"d{i % 7}".encode(), f"f{i * 7919 % 3001}".encode()) for i in range(3001)]
    ids = set()
    default = directory_entry(EMPTY_DIRECTORY)
    for order, run_bytes in ((names, 1 << 24), (names[::-1], 20_000), (sorted(names), 3_000)):
        with objects.batch() as batch, UnsortedTree(batch, tmp_path, run_bytes=run_bytes) as tree:
            for path in order:
                tree.add(path, file_entry(EMPTY_FILE_ID, 0))  # type: ignore[arg-type]
            built = tree.build(default, lambda path: None)
            assert sum(1 for path, _ in walk(batch, built) if len(path) == 2) == 3001
        ids.add(built.id)
    assert len(ids) == 1
    assert list(tmp_path.glob("tmp*")) == []


def test_no_damage_makes_a_bug(tmp_path: Path) -> None:
    """Bytes cut off, changed, left out, with right checksums and with wrong ones: a PfsError or a tree."""
    create_store(tmp_path / "s")
    top = tmp_path / "top"
    top.mkdir()
    (top / "file").write_bytes(b"x" * 700)
    (top / ("l" * 120)).symlink_to("y" * 150)
    with open(top / "sparse", "wb") as file:
        file.truncate(5 << 20)
        file.write(b"start")
    whole = subprocess.run(
        ["tar", "-C", top, "-S", "--format=posix", "-c", "."], capture_output=True, check=True
    ).stdout
    headers = [at for at in range(0, len(whole), 512) if whole[at + 257 : at + 262] == b"ustar"]
    chance = random.Random(3)
    with open_objects(tmp_path / "s") as objects:
        for turn in range(150):
            data = bytearray(whole)
            if turn % 3 == 0:
                del data[chance.randrange(len(data)) :]
            elif turn % 3 == 1:
                at = chance.choice(headers)
                data[at + chance.randrange(512)] = chance.choice((0, 32, 48, 57, 128, 255))
                data[at + 148 : at + 156] = b" " * 8
                data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
            else:
                at = chance.randrange(0, len(data), 512)
                del data[at : at + 512]
            with objects.batch() as batch:
                try:
                    reader = Archive(io.BufferedReader(io.BytesIO(bytes(data))), "it")
                    ArchiveIngest(batch, (), None).run(reader)
                except PfsError:
                    continue
