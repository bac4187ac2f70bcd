"""`pfs lineage`: from a result back to what people put in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Run, run_command

SCRIPT = """\
import pathlib
for path in pathlib.Path("/pfs").glob("*/*.txt"):
    if path.parent.name != "out":
        (pathlib.Path("/pfs/out") / path.name).write_text(path.read_text().upper())
"""


@pytest.fixture
def chain(pfs: Run, tmp_path: Path) -> Run:
    """texts → upper → twice, two jobs one after the other."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "upper.py").write_text(SCRIPT)
    (tmp_path / "texts").mkdir()
    for name in ("a", "b"):
        (tmp_path / "texts" / f"{name}.txt").write_text(name)
    store: Path = pfs.store  # type: ignore[attr-defined]
    for args in (["repo", "create", "texts"], ["put", tmp_path / "texts", "texts@master", "-m", "the texts"]):
        assert pfs(*args).returncode == 0
    for source, target in (("texts", "upper"), ("upper", "twice")):
        job = ["run", "--input", f"{source}@master:/*", "--output", f"{target}@master", "--", "python3", "upper.py"]
        done = run_command("runner.cli", store, *job, cwd=code)
        if "user namespaces" in done.stderr:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stderr
    return pfs


def test_lineage_goes_back_to_what_was_put(chain: Run) -> None:
    """It names the jobs, commands, code ids, datums, input files and commits, down to the put."""
    found = json.loads(chain("lineage", "twice@master:/a.txt", "--json").stdout)
    assert found["provenance"]["command"] == ["python3", "upper.py"]
    (datum,) = found["datums"]
    (middle,) = datum["inputs"]
    assert (middle["repo"], middle["path"]) == ("upper", "/a.txt")
    assert middle["provenance"]["job"] != found["provenance"]["job"]
    (source,) = middle["datums"][0]["inputs"]
    assert (source["repo"], source["path"], source["message"]) == ("texts", "/a.txt", "the texts")
    assert source["provenance"] is None
    shown = chain("lineage", "twice@master:/a.txt").stdout
    for word in ("twice@", "upper@", "texts@", "upper.py", "python3", "the texts", "exit 0"):
        assert word in shown
    assert "b.txt" not in shown


def test_lineage_goes_through_a_merge(chain: Run, tmp_path: Path) -> None:
    """What a merge took from the other branch came from there, not from the merge."""
    assert chain("branch", "twice@old", "master").returncode == 0
    (tmp_path / "note").write_text("by hand")
    assert chain("put", tmp_path / "note", "twice@old:/").returncode == 0
    assert chain("rm", "twice@old:/a.txt").returncode == 0
    (tmp_path / "other").write_text("by another hand")
    assert chain("put", tmp_path / "other", "twice@master:/").returncode == 0
    assert chain("merge", "twice@master", "twice@old").returncode == 0
    shown = chain("lineage", "twice@old:/b.txt").stdout
    assert "the texts" in shown
    other = json.loads(chain("lineage", "twice@old:/other", "--json").stdout)
    assert (other["provenance"], other["message"].startswith("put")) == (None, True)
    note = json.loads(chain("lineage", "twice@old:/note", "--json").stdout)
    assert note["message"].startswith("put")


def test_lineage_of_a_directory_has_all_its_datums(chain: Run) -> None:
    """Everything below counts."""
    found = json.loads(chain("lineage", "twice@master", "--json").stdout)
    assert sorted(datum["inputs"][0]["path"] for datum in found["datums"]) == ["/a.txt", "/b.txt"]


def test_lineage_of_what_is_not_there(chain: Run) -> None:
    """A clear error."""
    done = chain("lineage", "twice@master:/nothing")
    assert (done.returncode, "there is no /nothing" in done.stderr) == (1, True)


def test_lineage_of_deleted_repos(chain: Run) -> None:
    """It is there until gc takes it; then the commit is still named, and it is said why nothing more is."""
    (commit,) = json.loads(chain("log", "texts@master", "--json").stdout)
    assert chain("repo", "delete", "--yes", "texts").returncode == 0
    assert "the texts" in chain("lineage", "upper@master:/a.txt").stdout
    assert chain("repo", "create", "texts").returncode == 0
    assert chain("gc", "--keep", "0d").returncode == 0
    done = chain("lineage", "upper@master:/a.txt")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"texts@{commit['commit'][:12]}:/a.txt" in done.stdout
    assert "not in the store any more" in done.stdout
    found = json.loads(chain("lineage", "twice@master:/a.txt", "--json").stdout)
    (source,) = found["datums"][0]["inputs"][0]["datums"][0]["inputs"]
    assert (source["commit"], source["id"]) == (commit["commit"], None)
