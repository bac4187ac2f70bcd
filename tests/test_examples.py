"""The examples, run as a user runs them: each its own scratch directory, home and store."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from runner.spec import Merge
from runner.spec_file import FileSpec, read_specs
from tests.conftest import ROOT

EXAMPLES = ROOT / "examples"
RUNS = sorted(path.parent.name for path in EXAMPLES.glob("*/run"))
# datum counts are exact and seconds are not: a busy machine may take its time
SLOW = pytest.mark.timeout(900)


@dataclass
class World:
    """Where one example ran, and what it printed."""

    work: Path
    env: dict[str, str]
    printed: str = ""

    def call(self, *command: str | Path) -> str:
        """What a command prints, in the scratch directory and with the store of the example."""
        env = {**self.env, "PFS_STORE": str(self.work / "store")}
        done = subprocess.run(command, cwd=self.work, env=env, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def run(self, name: str) -> None:
        done = subprocess.run(
            [EXAMPLES / name / "run"], env=self.env, capture_output=True, text=True, check=False, timeout=850
        )
        self.printed = done.stdout
        assert done.returncode == 0, done.stdout + done.stderr
        noise = [line for line in done.stderr.splitlines() if not re.match(r"pfsjob: ", line)]
        assert not noise, done.stderr

    def datums(self) -> list[tuple[int, int]]:
        """How many datums each job processed and skipped, in the order of the jobs."""
        found = re.findall(r"(\d+) processed · (\d+) skipped · (\d+) failed", self.printed)
        assert {failed for _, _, failed in found} == {"0"}
        return [(int(processed), int(skipped)) for processed, skipped, _ in found]

    def file(self, path: str) -> str:
        return self.call("pfs", "cat", path)


def bash(script: str, env: dict[str, str]) -> None:
    """Run what an example needs; where that cannot be had, skip with what it says about it."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], env=env, capture_output=True, text=True, check=False, timeout=800
    )
    if done.returncode:
        pytest.skip(f"what the example needs is not here and cannot be installed: {done.stderr.strip()}")


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    """An environment in which the programs and packages of the examples are installed."""
    prefix = Path(sys.prefix)
    mine = {"PFS_VENV": str(prefix)} if (prefix / "pfs-venv").exists() else {}
    env = {**os.environ, **mine, "NO_COLOR": "1"}
    needed = " ".join(getattr(request, "param", ()))
    bash(f"source {EXAMPLES}/prelude.sh; setup examples {needed}", env)
    home = tmp_path / "home"
    home.mkdir()
    venv = mine.get("PFS_VENV", str(ROOT / ".venv"))
    yield World(
        tmp_path / "work",
        {
            **env,
            "HOME": str(home),
            "PFS_EXAMPLE_DIR": str(tmp_path / "work"),
            "PATH": f"{venv}/bin:{os.environ['PATH']}",
        },
    )
    assert not list(home.iterdir()), "an example left something in the home directory"


def specs_of(path: Path) -> list[FileSpec]:
    return read_specs(path.read_bytes(), path.name, processors=2, directory=path.parent)


def test_the_specs_of_the_examples_are_read_without_a_complaint() -> None:
    """All of them name programs that are there; the only warning is that Pachyderm's name no image."""
    assert RUNS == ["edges", "training", "variants", "wordcount"]
    files = [path for name in RUNS for kind in ("json", "yaml") for path in (EXAMPLES / name).glob(f"*.{kind}")]
    warnings: list[str] = []
    for path in files:
        for one in specs_of(path):
            warnings += one.warnings
            script = [word for word in one.spec.command if word.endswith((".py", ".sh"))]
            assert all((path.parent / word).is_file() for word in script)
    assert len(files) == 7
    assert len(warnings) == 2
    assert all("no image" in warning for warning in warnings)


def test_the_two_spellings_of_the_edges_are_the_same_jobs() -> None:
    """Pachyderm's two files and pfs's one describe jobs that differ in nothing that is in a datum's key."""
    edges = EXAMPLES / "edges"
    theirs = [one.spec for name in ("edges.json", "montage.json") for one in specs_of(edges / name)]
    ours = [one.spec for one in specs_of(edges / "edges.yaml")]
    assert theirs == ours


def test_every_example_has_a_page_that_names_its_command() -> None:
    index = (EXAMPLES / "README.md").read_text()
    for name in RUNS:
        page = (EXAMPLES / name / "README.md").read_text()
        assert f"./examples/{name}/run" in page
        assert f"./examples/{name}/run" in index
        assert len(page.splitlines()) < 90
        for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page):
            assert (EXAMPLES / name / picture).stat().st_size <= 200_000


@pytest.mark.long
@SLOW
def test_edges_draws_204_photos_and_then_only_what_changed(world: World) -> None:
    """204 datums and a montage; two datums and a montage after three changes; and for another montage no edges."""
    world.run("edges")
    assert world.datums() == [(204, 0), (1, 0), (2, 202), (1, 0), (0, 204), (1, 0)]
    assert "/rocket-01.jpg  (its input is new)" in world.printed
    assert "2 datums to run, 202 reused" in world.printed
    drawings = world.call("pfs", "ls", "edges@master").split()
    assert len(drawings) == 204
    assert "rocket-01.png" in drawings
    assert "moon-03.png" not in drawings

    look = "import sys; from PIL import Image; i = Image.open(sys.argv[1]); print(*i.size, len(set(i.resize((99, 53)).getdata())))"
    width, height, colours = map(int, world.call("python3", "-W", "ignore", "-c", look, "montage.png").split())
    # 17 columns and 12 rows of 120 × 90 with gaps of 8; and something is to be seen
    assert (width, height) == (17 * 128 + 8, 12 * 98 + 8)
    assert colours > 1000

    # a second run starts anew
    (world.work / "mine.txt").write_text("gone after the next run")
    world.call("bash", "-c", f"source {EXAMPLES}/prelude.sh; begin edges")
    assert not (world.work / "mine.txt").exists()
    assert world.call("pfs", "repo", "list", "--json").strip() in ("[]", "")


@pytest.mark.long
@SLOW
@pytest.mark.parametrize("world", [("samtools", "bcftools")], indirect=True)
def test_variants_are_those_of_whole_bams(world: World) -> None:
    """Split by region, joined, called and merged, twice: the same lines as bcftools calls without any of that."""
    bash(str(EXAMPLES / "variants/fetch"), world.env)
    world.run("variants")
    assert world.datums() == [
        *[(2, 0), (1, 0), (8, 0), (1, 0)],
        # a third person
        *[(1, 2), (0, 1), (4, 8), (1, 0)],
        # another border between two of four regions
        *[(3, 0), (1, 0), (6, 6), (1, 0)],
    ]
    assert len(re.findall(r"the same \d+ variants as without splitting", world.printed)) == 2

    found = [line.split("\t") for line in world.file("variants@master:/variants.vcf").splitlines() if line[0] != "#"]
    # what the test data of samtools is known for
    assert ["17", "828", "T", "C"] in [[row[0], row[1], row[3], row[4]] for row in found]
    assert all(len(row) == 9 + 3 for row in found)

    # the comparison is one: a line less is noticed
    (world.work / "less.vcf").write_text(re.sub(r"(?m)^17\t828\t.*\n", "", (world.work / "variants.vcf").read_text()))
    bams = sorted((world.work / "samples").iterdir())
    with pytest.raises(AssertionError, match="not the variants of the whole BAMs"):
        world.call("./check", "genome/reference.fa", "less.vcf", *bams)


@pytest.mark.long
@SLOW
def test_wordcount_counts_as_a_counter_does(world: World) -> None:
    """Every word of every text; after one more text, one datum of the map and three letters of the reduction."""
    world.run("wordcount")
    texts = sorted((world.work / "texts").iterdir())
    letters = len(world.file("totals@master:/letters.tsv").splitlines())
    assert world.datums() == [(len(texts) - 1, 0), (letters, 0), (1, len(texts) - 1), (3, letters - 3)]

    counted: Counter[str] = Counter()
    for path in texts:
        counted.update(re.findall("[a-z]+", path.read_text().lower(), re.ASCII))
    rows = [line.split("\t") for line in world.file("totals@master:/totals.tsv").splitlines()]
    assert {word: int(count) for count, word in rows} == counted
    # appended in the order of the datums, here the letters
    assert [word for _, word in rows] == sorted(counted)

    # a word's file has a line of each text that has the word, in the order of the texts
    lines = world.file("counts@master:/lambda").splitlines()
    having = [
        (path.name, len(found))
        for path in texts
        if (found := re.findall(r"(?i)(?<![a-z])lambda(?![a-z])", path.read_text()))
    ]
    assert [(name, int(count)) for count, name in map(str.split, lines)] == having
    assert len(having) > 1
    assert [kind.spec.merge for kind in specs_of(EXAMPLES / "wordcount/counts.yaml")] == [Merge.APPEND]


@pytest.mark.long
@SLOW
def test_training_trains_only_what_changed_and_keeps_the_best(world: World) -> None:
    """Five sets of parameters by four folds; another set is four models, one score, one table. The best models work."""
    world.run("training")
    assert world.datums() == [(20, 0), (5, 0), (1, 0), (4, 16), (1, 4), (1, 0)]

    ranks = [line.split("|")[1].strip() for line in world.file("best@master:/table.md").splitlines()[2:]]
    before = [line.split("|")[1].strip() for line in world.file("best@master~1:/table.md").splitlines()[2:]]
    assert sorted(ranks) == sorted(before) == ["forest", "logistic", "nearest", "svm-narrow", "svm-wide"]
    # far too narrow at first, and then the best
    assert (before.index("svm-narrow"), ranks.index("svm-narrow")) == (4, 0)

    # the chosen models are the trained ones, and do what their scores say
    world.call("pfs", "get", "best@master:/best", "best")
    assert sorted(path.name for path in (world.work / "best").iterdir()) == [
        f"fold-{number}.joblib" for number in (1, 2, 3, 4)
    ]
    score = json.loads(world.file("models@master:/svm-narrow/fold-1.json"))
    judge = (
        "import joblib, numpy; data = numpy.load('folds/fold-1.npz');"
        "print((joblib.load('best/fold-1.joblib').predict(data['x_test']) == data['y_test']).sum(), len(data['y_test']))"
    )
    assert world.call("python3", "-c", judge).split() == [str(score["right"]), str(score["of"])]
    assert score["right"] > 0.95 * score["of"]
