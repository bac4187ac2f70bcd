"""Programs that people use, in a mounted branch and on the disk beside it: the same output, the same files; and all of it is there after a commit and a remount.

Each script runs in an empty directory. Then the branch is committed and mounted anew, and the second script, which must find everything as it was left, runs in both.
"""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.mounted.conftest import Mount
from tests.mounted.showing import differences, run, shown, versioned


class Program(NamedTuple):
    """What is done with it."""

    first: str
    then: str
    needs: tuple[str, ...]
    by_chance: tuple[str, ...] = ()
    """Names of files with content that is another at each run."""


GIT = r"""
export GIT_AUTHOR_NAME=x GIT_AUTHOR_EMAIL=x@y GIT_COMMITTER_NAME=x GIT_COMMITTER_EMAIL=x@y HOME=/nowhere GIT_CONFIG_NOSYSTEM=1
export GIT_AUTHOR_DATE='1700000000 +0000' GIT_COMMITTER_DATE='1700000000 +0000'
"""
PROGRAMS = {
    "git": Program(
        GIT
        + r"""
        git init -q -b main repo && cd repo
        mkdir -p src/deep
        for i in $(seq 60); do seq $i 1000 > src/file$i; seq $i > src/deep/$i.txt; done
        git add -A && git commit -qm one
        git checkout -qb side && sed -i s/5/five/ src/file5 && git mv src/file6 src/renamed && git commit -qam side
        git checkout -q main && sed -i s/7/seven/ src/file7 && git commit -qam main && git merge -q --no-edit side
        git stash list; echo changed >> src/file9; git stash -q && git stash pop -q; git status --short; git checkout -q src/file9
        git rm -q src/file10 && git commit -qm gone && git tag -am tagged v1
        cd .. && git clone -q repo clone && git clone -q --no-local --bare repo bare.git
        cd clone && echo more > more && git add more && git commit -qm more && git push -q origin HEAD:pushed
        cd ../repo && git worktree add -q ../tree pushed && git fsck --strict && git gc -q --aggressive --prune=now && git fsck --strict
        git repack -adq && git count-objects && git log --all --format='%H %s' && git ls-tree -r HEAD
        """,
        GIT
        + r"""
        for i in repo clone bare.git tree; do git -C $i fsck --strict --full; git -C $i log --all --format='%H %s'; done
        for i in repo clone tree; do git -C $i status --short; git -C $i diff --stat HEAD~1; done
        cd clone && git pull -q --no-rebase origin main && echo x > x && git add x && git commit -qm after && git gc -q && git fsck --strict && git rev-parse HEAD
        """,
        ("git",),
        by_chance=("index", ".idx", ".pack", ".rev", ".bitmap", "logs", "packed-refs", "objects", "config", ".git"),
    ),
    "make": Program(
        r"""
        printf '#define ANSWER 42\n' > answer.h
        printf '#include "answer.h"\nint answer(void) { return ANSWER; }\n' > answer.c
        printf '#include <stdio.h>\nint answer(void);\nint main(void) { printf("%%d\\n", answer()); return 0; }\n' > main.c
        printf 'CC = gcc\nprogram: main.o answer.o\n\t$(CC) -o $@ main.o answer.o\nanswer.o: answer.h\n' > Makefile
        printf 'lib.a: answer.o main.o\n\tar rcs $@ answer.o main.o\n' >> Makefile
        make -r -R program .SUFFIXES: 2>/dev/null || true
        make && ./program && make && make lib.a && ar t lib.a
        touch answer.h && make && make
        sed -i s/42/43/ answer.h && make && ./program && make
        """,
        r"""
        make -q && make && ./program && touch answer.c && make && make && rm main.o && make && ./program
        make -B && ./program && make lib.a && make -q lib.a
        """,
        ("make", "gcc", "ar"),
    ),
    "tar": Program(
        r"""
        mkdir -p tree/deep/er tree/empty && seq 5000 > tree/file && seq 100000 > tree/deep/big && ln -s ../file tree/deep/link
        printf '#!/bin/sh\n' > tree/deep/er/script && chmod 750 tree/deep/er/script && truncate -s 3M tree/holes && printf x >> tree/holes
        ln tree/file tree/hard && touch -d '2001-02-03 04:05:06.789012345 UTC' tree/file tree/deep tree/empty
        tar cf a.tar tree && tar czSf b.tar.gz tree && mkdir out && tar xf a.tar -C out && tar df a.tar -C out && tar xzSf b.tar.gz -C out && tar df b.tar.gz -C out
        tar cf - -C tree . | (mkdir piped && cd piped && tar xpf -) && diff -r tree piped && stat -c %y piped/file piped/deep piped/empty
        mkdir more && seq 5 > more/later && tar rf a.tar more/later && tar uf a.tar tree && tar tf a.tar | sort | uniq -c && tar --delete -f a.tar tree/holes && tar tf a.tar | sort
        cp -a tree copied && diff -r tree copied
        """,
        r"""
        tar xOf a.tar tree/file | cksum && tar df a.tar --exclude=hard && tar df b.tar.gz -C out --exclude=hard && diff -r tree piped && diff -r tree copied && stat -c '%y %a' tree/file tree/deep
        tar xf a.tar --overwrite && tar df a.tar
        """,
        ("tar", "gzip", "diff"),
        by_chance=("a.tar", "b.tar.gz"),
    ),
    "rsync": Program(
        r"""
        mkdir -p from/deep/er from/empty && seq 100000 > from/big && seq 9 > from/deep/file && ln -s big from/link && ln from/big from/deep/hard
        printf 'x\n' > from/deep/er/script && chmod 755 from/deep/er/script && touch -hd '2001-02-03 04:05:06.789012345 UTC' from/deep/file from/link from/deep from
        rsync -a from/ to && rsync -ai from/ to && rsync -aiH --delete from/ linked && rsync -aiH --delete from/ linked && rsync -aci from/ to
        sed -i s/9/nine/ from/big && rm from/deep/file && seq 3 > from/new && touch -d '2002-02-03 04:05:06.7 UTC' from/big from/new from/deep from
        rsync -ai --delete --inplace --no-whole-file from/ to && rsync -ai --delete from/ to
        rsync -ai --delete --backup --backup-dir=../old from/ linked && rsync -ai from/ --link-dest=../to third && diff -r from to && diff -r from third
        """,
        r"""
        rsync -ai --delete from/ to && rsync -aci --delete from/ third && rsync -ai from/ to --dry-run --checksum && touch from/new && rsync -ai from/ to && rsync -ai from/ to
        """,
        ("rsync", "diff"),
    ),
    "find": Program(
        r"""
        mkdir -p old/deep && seq 3 > old/a && seq 4 > old/deep/b && touch -d '2001-01-01' old/a old/deep/b old/deep old && touch -d '2001-01-02' mark
        printf 'young\n' > young && touch -d '2001-01-02 00:00:00.000000001' tick && touch -d '2001-01-02' same
        find . -newer mark -not -name . | sort && find . -not -newer mark | sort && find . -newermt 2001-01-01T12:00 -type f | sort
        find . -size +5c -type f | sort && find . -empty | sort && find . -perm -u+w -type d | sort && find old -depth -print | tail -1
        seq 6 > old/deep/b && find . -newer mark -type f | sort && find . -samefile mark && find . -links +1 -type f
        find . -name '*a*' -exec sh -c 'echo "$1" | wc -c' _ {} \; | sort && find old -name b -delete && find . -mmin -60 | sort
        """,
        r"""
        find . -newer mark -type f | sort && find . -not -newer mark | sort && find . -newermt 2001-01-01T12:00 | sort && find . -newer tick | sort
        touch mark && find . -newer mark && find . -type f -exec cksum {} + | sort
        """,
        ("find", "cksum"),
    ),
    "sed": Program(
        r"""
        for i in $(seq 20); do seq $i 50 > f$i; done && chmod 640 f3 && chmod 755 f4 && ln f5 hard && ln -s f6 link && mkdir d && cp f7 d
        sed -i 's/1/one/g' f* d/f7 && cat hard f5 | cksum && sed -i.bak '$d' f8 && sed -i --follow-symlinks 2d link && sed -i 3d hard && readlink link
        sed -i -n 'w copy' f9 && sed -i '1r f10' f11 && stat -c '%n %a %h %s' f* link hard && perl -pi -e 's/2/two/' f12 f13 && cat * 2>/dev/null | cksum
        """,
        r"""
        sed -i 's/one/1/g' f* && cat f* | cksum && sed -i 1d f1 && cat f1 && stat -c '%n %a %s' f* && ls -A
        """,
        ("sed", "perl", "cksum"),
    ),
    "samtools": Program(
        r"""
        awk 'BEGIN { srand(1); for (i = 0; i < 60000; i++) printf "%s", substr("ACGT", int(rand() * 4) + 1, 1) }' | fold -w 60 > bases
        (echo '>one'; cat bases) > ref.fa && samtools faidx ref.fa && samtools faidx ref.fa one:101-160
        (printf '@HD\tVN:1.6\n@SQ\tSN:one\tLN:60000\n'; tr -d '\n' < bases | awk '{ srand(2); for (i = 0; i < 12000; i++) { at = int(rand() * 59900) + 1;
            printf "r%d\t0\tone\t%d\t60\t100M\t*\t0\t0\t%s\t*\n", i, at, substr($0, at, 100) } }') > reads.sam
        samtools view --no-PG -b -o reads.bam reads.sam && samtools sort --no-PG -m 1M -@ 2 -T part -o sorted.bam reads.bam && samtools index sorted.bam
        samtools quickcheck sorted.bam && samtools flagstat sorted.bam && samtools view -c sorted.bam one:1000-2000 && samtools view sorted.bam | cksum && ls
        """,
        r"""
        samtools quickcheck sorted.bam && samtools idxstats sorted.bam && samtools view sorted.bam one:30000-30200 && samtools depth -r one:5-900 sorted.bam | cksum
        samtools sort --no-PG -n -T part -o named.bam sorted.bam && samtools view named.bam | head -3 && samtools faidx ref.fa one:59990-60000
        """,
        ("samtools", "awk", "cksum"),
    ),
}


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.mkdir()
    return path


def script(text: str, where: Path) -> list[str]:
    """The lines that it prints, without where it is and which bytes of a gc there were."""
    printed = run("sh", "-eu", "-c", text, cwd=where, env={**os.environ, "LC_ALL": "C"})
    return printed.replace(str(where), "HERE").splitlines()


def by_chance(path: str, names: tuple[str, ...]) -> bool:
    return any(path.endswith(name) or f"{name}/" in path for name in names)


@pytest.mark.parametrize(
    "name", [name if name == "make" else pytest.param(name, marks=pytest.mark.long) for name in PROGRAMS]
)
@pytest.mark.timeout(600)
def test_the_same_as_on_the_disk(mount: Mount, disk: Path, name: str) -> None:
    program = PROGRAMS[name]
    for needed in program.needs:
        if shutil.which(needed) is None:
            pytest.skip(f"{name.upper()} NOT RUN IN A MOUNT: {needed} is not installed")
    here = mount.master / "work"
    here.mkdir()
    (disk / "work").mkdir()
    assert script(program.first, here) == script(program.first, disk / "work")
    found = differences(shown(here), shown(disk / "work"))
    assert {path: both for path, both in found.items() if not by_chance(path, program.by_chance)} == {}
    kept_by_a_commit(mount, here)
    assert script(program.then, here) == script(program.then, disk / "work")
    kept_by_a_commit(mount, here)


def kept_by_a_commit(mount: Mount, here: Path) -> None:
    """All below a directory is the same in the commit, and in the branch after a remount."""
    with (mount.master / "commits").open("a") as file:
        file.write("times alone are nothing to commit\n")
    before = versioned(here)
    mount.commit()
    committed = mount.point / "images@master~0" / here.relative_to(mount.master)
    assert differences(before, versioned(committed)) == {}
    mount.umount()
    mount.mount()
    assert differences(before, versioned(here)) == {}


def wheel(path: Path) -> Path:
    """A package with a module, data and a command, as a wheel."""
    made = path / "greeting-1.0-py3-none-any.whl"
    files = {
        "greeting/__init__.py": "from importlib.resources import files\ndef main():\n    print(files(__name__).joinpath('text').read_text())\n",
        "greeting/text": "hello from a wheel",
        "greeting-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n",
        "greeting-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "greeting-1.0.dist-info/entry_points.txt": "[console_scripts]\ngreet = greeting:main\n",
    }
    with zipfile.ZipFile(made, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr("greeting-1.0.dist-info/RECORD", "".join(f"{name},,\n" for name in files))
    return made


@pytest.mark.long
def test_a_virtual_environment(mount: Mount) -> None:
    """Made, used, committed, and used from the commit."""
    here = mount.master / "work"
    here.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=here)
    python = here / "venv" / "bin" / "python"
    with zipfile.ZipFile(wheel(here)) as archive:
        archive.extractall(next((here / "venv" / "lib").glob("python*")) / "site-packages")
    greet = (python, "-c", "import greeting, sys; greeting.main(); print(sys.prefix)")
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    assert run(*greet, cwd=here, env=env) == f"hello from a wheel\n{here}/venv\n"
    kept_by_a_commit(mount, here)
    assert run(*greet, cwd=here, env=env) == f"hello from a wheel\n{here}/venv\n"
    committed = mount.point / "images@master~0" / "work" / "venv"
    assert run(committed / "bin" / "python", *greet[1:], cwd=here, env=env) == f"hello from a wheel\n{committed}\n"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_virtual_environment_with_pip(mount: Mount) -> None:
    """pip installs itself and a wheel into it, checks, removes and installs again; without a network."""
    here = mount.master / "work"
    here.mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP"))}
    try:
        run(sys.executable, "-m", "venv", "venv", cwd=here, env=env)
    except AssertionError as error:
        if "ensurepip" in str(error):
            pytest.skip("NO PIP IN A MOUNT: this Python came without ensurepip")
        raise
    pip = (here / "venv" / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--no-cache-dir")
    install = (*pip, "install", "-q", "--no-index", wheel(here))
    run(*install, cwd=here, env=env)
    assert run(here / "venv" / "bin" / "greet", cwd=here, env=env) == "hello from a wheel\n"
    kept_by_a_commit(mount, here)
    assert run(here / "venv" / "bin" / "greet", cwd=here, env=env) == "hello from a wheel\n"
    assert "greeting" in run(*pip, "list", cwd=here, env=env)
    run(*pip, "check", cwd=here, env=env)
    run(*pip, "uninstall", "-qy", "greeting", cwd=here, env=env)
    assert not (here / "venv" / "bin" / "greet").exists()
    run(*install, cwd=here, env=env)
    run(*pip, "install", "-q", "--no-index", "--force-reinstall", wheel(here), cwd=here, env=env)
    assert run(here / "venv" / "bin" / "greet", cwd=here, env=env) == "hello from a wheel\n"
    kept_by_a_commit(mount, here)


@pytest.mark.long
def test_opencv(mount: Mount, disk: Path) -> None:
    """Pictures of each kind and a film, written and read, to the same bytes as on the disk."""
    try:
        import cv2
        import numpy as np
    except ImportError:
        pytest.skip("OPENCV NOT RUN IN A MOUNT: it is not installed (pip install opencv-python-headless)")
    down, across = np.indices((240, 320))
    picture = np.stack([across % 256, down % 256, (across * down) % 256], axis=-1).astype(np.uint8)
    here = mount.master / "work"
    here.mkdir()
    for where in (here, disk):
        for kind in ("png", "jpg", "bmp", "tiff", "webp", "ppm"):
            assert cv2.imwrite(str(where / f"picture.{kind}"), picture)
            found = cv2.imread(str(where / f"picture.{kind}"))
            assert found is not None
            assert found.shape == picture.shape
            if kind not in ("jpg", "webp"):
                assert np.array_equal(found, picture)
        film = cv2.VideoWriter(str(where / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (320, 240))
        for number in range(20):
            film.write(np.roll(picture, number, axis=1))
        film.release()
        reading = cv2.VideoCapture(str(where / "film.avi"))
        assert sum(reading.read()[0] for _ in range(25)) == 20
        reading.release()
        np.save(where / "array.npy", picture)
        mapped = np.load(where / "array.npy", mmap_mode="r+")
        mapped[10, 10] = 7
        mapped.flush()
    assert differences(shown(here), shown(disk)) == {}
    kept_by_a_commit(mount, here)
    smaller = cv2.resize(cv2.imread(str(mount.point / "images@master~0" / "work" / "picture.png")), (32, 24))
    assert cv2.imwrite(str(here / "picture.png"), smaller)
    assert np.array_equal(cv2.imread(str(here / "picture.png")), smaller)
    kept_by_a_commit(mount, here)
