"""What goes in comes out again: through put and get, and through tars."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.nasty_tree import everything, make_nasty_tree
from tests.conftest import Run


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree, made once; not to be changed."""
    path = tmp_path_factory.mktemp("nasty") / "tree"
    make_nasty_tree(path)
    return path


@pytest.fixture
def images(pfs: Run) -> Run:
    """A store with an empty repo."""
    assert pfs("repo", "create", "images").returncode == 0
    return pfs


def done(run: Run, *command: str | bytes | Path) -> None:
    result = run(*command)
    assert (result.returncode, result.stderr) == (0, "")


def test_everything_through_put_get_and_tar(images: Run, nasty: Path, tmp_path: Path) -> None:
    """Directory → version → directory; version → our tar → GNU tar's directory; our tar → the same version."""
    done(images, "put", nasty, "images@master:/t")
    done(images, "get", "images@master:/t", tmp_path / "got")
    assert everything(tmp_path / "got") == everything(nasty)
    shutil.rmtree(tmp_path / "got")
    done(images, "get", "images@master:/t", "--tar", tmp_path / "out.tar")
    os.mkdir(tmp_path / "extracted")
    subprocess.run(
        ["tar", "-C", tmp_path / "extracted", "--warning=no-timestamp", "--xattrs", "-xpf", tmp_path / "out.tar"],
        check=True,
    )
    assert everything(tmp_path / "extracted") == everything(nasty)
    again = images("put", "--tar", tmp_path / "out.tar", "images@master:/t")
    assert "nothing changed" in again.stdout


@pytest.mark.parametrize("options", [["--format=posix"], ["--format=posix", "--sparse-version=0.1"], ["--format=gnu"]])
def test_everything_through_gnu_tar(images: Run, nasty: Path, tmp_path: Path, options: list[str]) -> None:
    """Directory → GNU tar's archive → version → directory. Its own old format has whole seconds and no attributes."""
    pax = options[0] == "--format=posix"
    archive = tmp_path / "in.tar"
    subprocess.run(
        ["tar", "-C", nasty, *options, *(["--xattrs"] if pax else []), "-S", "-cf", archive, "."],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    done(images, "put", "--tar", archive, "images@master:/t")
    done(images, "get", "images@master:/t", tmp_path / "got")
    got, wanted = everything(tmp_path / "got"), everything(nasty)
    if not pax:
        got = {path: (*one[:3], one[4]) for path, one in got.items()}
        wanted = {path: (*one[:3], one[4]) for path, one in wanted.items()}
    assert got == wanted


def test_through_bsdtar(images: Run, tmp_path: Path) -> None:
    """Names, attributes with odd names, times (not before 1970, which bsdtar itself gets wrong), and back."""
    if shutil.which("bsdtar") is None:
        pytest.skip("bsdtar is not installed")
    top = tmp_path / "top"
    (top / "sub").mkdir(parents=True)
    for name in (b"not utf-8 \xff", b"\xfe" * 200, "größe".encode() * 20):
        with open(os.path.join(os.fsencode(top), name), "wb") as file:
            file.write(name)
            os.utime(file.fileno(), ns=(1, 1_234_567_890_123_456_789))
    with open(top / "sparse", "wb") as file:
        file.truncate(9 << 20)
        file.write(b"start")
    os.symlink(b"\xff" * 150, os.fsencode(top / "link"))
    try:
        os.setxattr(top / "sparse", "user.größe", b"\0\xff")
    except OSError:
        pytest.skip("this filesystem has no extended attributes")
    subprocess.run(
        ["bsdtar", "-C", top, "--format=pax", "-cf", tmp_path / "in.tar", "."],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    done(images, "put", "--tar", tmp_path / "in.tar", "images@master:/t")
    done(images, "get", "images@master:/t", "--tar", tmp_path / "out.tar")
    (tmp_path / "got").mkdir()
    extracted = subprocess.run(
        ["bsdtar", "-C", tmp_path / "got", "-xpf", tmp_path / "out.tar"], capture_output=True, check=True
    )
    assert extracted.stderr == b""
    assert everything(tmp_path / "got", root=False) == everything(top, root=False)
