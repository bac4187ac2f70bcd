"""Provenance"""

from __future__ import annotations

import json

from blake3 import blake3

from tests.semantics.scene import Scene
from tests.semantics.test_7_jobs import UPPER, upper


def test_no_output_without_its_history(jobs: Scene) -> None:
    """S130 No result of a job is without its history

    The commit itself says which commits were read, through which globs, what command was run with which environment by whom, where and when, and the content ids of the program: executable, files, code.
    There is no way to commit a job's results without it.
    """
    source = jobs.put({"a": "1"})
    upper(jobs, "--env", "LEVEL=2")
    made = jobs.log("upper")[0]["provenance"]
    assert [(one["repo"], one["commit"], one["glob"]) for one in made["inputs"]] == [("images", source, "/*")]
    assert made["command"] == ["python3", "code/upper.py"]
    assert made["env"]["LEVEL"] == "2"
    assert all(made[key] for key in ("job", "host", "user", "network", "code", "record"))
    ids = json.dumps(made["code"])
    assert blake3(UPPER.encode()).hexdigest() in ids


def test_lineage(jobs: Scene) -> None:
    """S131 `pfs lineage` leads from a result back to what people put in

    For one file: the job and command that made it, the datum, its input files, the commits that brought those, and who made them; through as many jobs as there were.
    """
    jobs.put({"a": "1", "b": "2"}, message="two letters")
    upper(jobs)
    jobs.job(
        "--input",
        "upper@master:/*",
        "--output",
        "twice@master",
        "--",
        "/bin/sh",
        "-c",
        "cat /pfs/upper/* /pfs/upper/* > /pfs/out/$(basename $upper)",
    )
    found = jobs.json("lineage", "twice@master:/a")
    (datum,) = found["datums"]
    (middle,) = datum["inputs"]
    assert (middle["repo"], middle["path"], middle["provenance"]["command"]) == (
        "upper",
        "/a",
        ["python3", "code/upper.py"],
    )
    (source,) = middle["datums"][0]["inputs"]
    assert (source["repo"], source["path"], source["message"], source["author"]) == (
        "images",
        "/a",
        "two letters",
        "tester@here",
    )
    shown = jobs.pfs("lineage", "twice@master:/a")
    assert all(word in shown for word in ("twice@", "upper@", "images@", "upper.py", "two letters"))
    assert ":/b " not in shown


def test_the_code_is_kept(jobs: Scene) -> None:
    """S132 The code is kept with what it made

    The script as it was when it ran is in the job's record, which can be listed and read as any version; so are the logs.
    """
    jobs.put({"a": "1"})
    result = upper(jobs)
    jobs.write({"upper.py": "changed since"}, "code")
    record = f"upper@{result['job']}"
    (kept,) = [name for name in jobs.ls(f"{record}:/code", "-R") if name.endswith("upper.py")]
    assert jobs.cat(f"{record}:/code/{kept}") == UPPER
    assert jobs.run("pfsjob", "logs", str(result["job"])).stdout.endswith("reading a\n")


def test_jobs_are_listed(jobs: Scene) -> None:
    """S133 Every job is listed, the failed ones too

    With its state, counts, command and output; `inspect` says everything about one.
    """
    jobs.put({"a": "bad"})
    failed = upper(jobs, code=1)
    jobs.put({"a": "good"})
    done = upper(jobs)
    listed = json.loads(jobs.run("pfsjob", "list", "--json").stdout)
    assert [(one["job"], one["state"]) for one in listed] == [(done["job"], "success"), (failed["job"], "failed")]
    done_inspecting = jobs.run("pfsjob", "inspect", str(failed["job"]))
    assert "code/upper.py" in done_inspecting.stdout
    assert "cannot read a" in done_inspecting.stdout + done_inspecting.stderr
