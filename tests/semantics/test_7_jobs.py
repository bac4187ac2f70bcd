"""Jobs

`pfsjob run --input 'images@master:/*' --output edges@master -- python3 edges.py` runs a command once for each datum and commits what it wrote. All of it: [JOBS.md](JOBS.md).
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from pfsmount.objects.index import Table
from pfsmount.objects.store import ObjectStore
from tests.semantics.scene import Scene, wait_for

# Writes its input in capitals under the same name; fails on a file that says so; waits where a file says so.
UPPER = """
import os, pathlib, sys
for source in sorted(pathlib.Path("/pfs/images").rglob("*")):
    if source.is_file():
        text = source.read_text()
        print("reading", source.name)
        if text == "bad":
            sys.exit("cannot read " + source.name)
        if text == "wait":
            open("reached", "w").close()
            open("gate").close()
        pathlib.Path("/pfs/out", source.name).write_text(text.upper())
"""


def upper(scene: Scene, *options: str, output: str = "upper@master", glob: str = "/*", code: int = 0) -> dict[str, Any]:
    """Run the job that writes capitals."""
    if not (scene.root / "code").exists():
        scene.write({"upper.py": UPPER}, "code")
    inputs = ("--input", f"images@master:{glob}")
    return scene.job(*inputs, "--output", output, *options, "--", "python3", "code/upper.py", code=code)


def shell(
    scene: Scene, script: str, *options: str, glob: str = "/*", output: str = "out@master", code: int = 0
) -> dict[str, Any]:
    """Run a job whose program is a line of shell."""
    inputs = ("--input", f"images@master:{glob}")
    return scene.job(*inputs, "--output", output, *options, "--", "/bin/sh", "-ec", script, code=code)


def counts(result: dict[str, Any]) -> tuple[int, int, int]:
    """Processed, skipped, failed."""
    return result["processed"], result["skipped"], result["failed"]


def test_a_datum(jobs: Scene) -> None:
    """S100 The command is run once for each path that the glob matches

    A path may be a file, or a directory with everything below it: the glob `/` is one datum of the whole repo, `/*` one for each entry at the top. Each run sees its own files only, at
    `/pfs/<input>/<path>`, and an empty `/pfs/out`. What it writes there, from all runs together, is the commit.
    """
    jobs.put({"a": "1", "b": "2", "dir/c": "3", "dir/d": "4"})
    look = 'cd /pfs; seen=$(find . | sort); for path in images/*; do echo "$seen" > out/$(basename "$path"); done'
    assert counts(shell(jobs, look)) == (3, 0, 0)
    assert jobs.cat("out@master:/a").split() == [".", "./images", "./images/a", "./out"]
    assert jobs.cat("out@master:/dir").split() == [
        ".",
        "./images",
        "./images/dir",
        "./images/dir/c",
        "./images/dir/d",
        "./out",
    ]
    assert shell(jobs, look, glob="/", output="whole@master")["processed"] == 1
    assert jobs.ls("whole@master") == ["a", "b", "dir"]


def test_what_a_datum_sees(jobs: Scene) -> None:
    """S101 A datum sees exactly what decides whether it is run again

    Of its inputs: names, contents, and which files are executable. Modes are 0644 or 0755, every time is 2000-01-01, the owner is the running user, there are no extended attributes, and nothing can be
    written to. Of the environment: `PATH`, `HOME`, `LANG`, `TZ`, what `--env` gives, and what pfs sets.
    """
    top = jobs.write({"secret": "x", "tool": "#!/bin/sh\n"}, "local/in")
    (top / "secret").chmod(0o600)
    (top / "tool").chmod(0o750)
    jobs.pfs("put", jobs.root / "local", "images@master:/")
    jobs.environment["NOT_PASSED_ON"] = "1"
    look = (
        "cd /pfs/images; find . ! -name . -printf '%P %m %TY %u\\n' | sort > /pfs/out/files; "
        "env | cut -d= -f1 | sort > /pfs/out/env; echo y > in/secret || echo refused > /pfs/out/write; true"
    )
    shell(jobs, look, "--env", "MINE=1")
    assert jobs.cat("out@master:/write") == "refused\n"
    user = jobs.cat("out@master:/files").split()[3]
    assert jobs.cat("out@master:/files").splitlines() == [
        f"in 755 2000 {user}", f"in/secret 644 2000 {user}", f"in/tool 755 2000 {user}",
    ]  # fmt: skip
    seen = set(jobs.cat("out@master:/env").split())
    assert seen >= {"PATH", "HOME", "LANG", "TZ", "MINE", "PFS_JOB_ID"}
    assert "NOT_PASSED_ON" not in seen
    assert jobs.cat("images@master:/in/secret") == "x"


def test_fresh_places(jobs: Scene) -> None:
    """S102 A datum sees nothing that another left behind

    `/tmp`, `/var/tmp` and `/dev/shm` are fresh for each, `/pfs/out` is empty. Processes that a datum leaves running are ended with it.
    """
    jobs.put({"a": "1", "b": "2", "c": "3"})
    os.mkfifo(jobs.root / "gate")
    leave = (
        "ls -A /tmp /var/tmp /dev/shm /pfs/out > /pfs/out/$(basename /pfs/images/*); "
        "touch /tmp/left /var/tmp/left /dev/shm/left; cat gate > /dev/null 2>&1 &"
    )
    assert counts(shell(jobs, leave, "--workers", "1")) == (3, 0, 0)
    for name in "abc":
        assert "left" not in jobs.cat(f"out@master:/{name}")
    assert _nobody_waits(jobs.root / "gate")


def test_nothing_is_done_twice(jobs: Scene) -> None:
    """S103 What has been done is not done again

    A datum that the same program has processed before, in any job, on any branch, is skipped, and its results are used. One more photo is one run.
    """
    jobs.put({"a": "1", "b": "2"})
    assert counts(upper(jobs)) == (2, 0, 0)
    jobs.put({"c": "3"})
    assert counts(upper(jobs)) == (1, 2, 0)
    assert counts(upper(jobs, output="elsewhere@master")) == (0, 3, 0)
    assert jobs.ls("elsewhere@master") == ["a", "b", "c"]
    assert jobs.cat("upper@master:/c") == "3"


def test_what_makes_it_run_again(jobs: Scene) -> None:
    """S104 What could change a result runs the datum again, and nothing else does

    It runs again when content, name or executability of its files change, the command and its arguments, the code (the source files beside the script, or `--code DIR`), or a variable given with `--env`. It does not for
    times, owners and other permissions, or for who runs it in which job.
    """
    top = jobs.write({"a": "x", "b": "y"})
    jobs.pfs("put", top, "images@master:/")
    assert counts(upper(jobs)) == (2, 0, 0)
    os.utime(top / "a", (7, 7))
    (top / "b").chmod(0o640)
    jobs.pfs("put", top, "images@master:/")
    assert counts(upper(jobs)) == (0, 2, 0)
    (top / "a").write_text("changed")
    (top / "b").rename(top / "renamed")
    jobs.pfs("put", "--delete", top, "images@master:/")
    assert counts(upper(jobs)) == (2, 0, 0)
    assert counts(upper(jobs, "--env", "LEVEL=2")) == (2, 0, 0)
    jobs.write({"helper.py": "# a module beside the script\n"}, "code")
    assert counts(upper(jobs)) == (2, 0, 0)
    jobs.write({"notes.txt": "no code\n"}, "code")
    assert upper(jobs)["nothing_to_do"]


def test_the_result_is_that_of_a_run_from_scratch(jobs: Scene) -> None:
    """S105 The result is the same as from a run from scratch

    The output's tree is exactly the union of what its datums wrote. When an input goes, what was made from it goes.
    """
    jobs.put({"a": "1", "b": "2", "c": "3"})
    upper(jobs)
    jobs.pfs("rm", "images@master:/b")
    jobs.put({"a": "changed", "d": "4"})
    assert counts(upper(jobs)) == (2, 1, 0)
    assert jobs.ls("upper@master") == ["a", "c", "d"]
    fresh = Scene(jobs.root / "fresh")
    fresh.root.mkdir()
    fresh.pfs("init")
    fresh.pfs("repo", "create", "images")
    fresh.put({"a": "changed", "c": "3", "d": "4"})
    assert counts(upper(fresh)) == (3, 0, 0)
    assert fresh.log("upper")[0]["content_id"] == jobs.log("upper")[0]["content_id"]


def test_one_output_commit_for_each_input_commit(jobs: Scene) -> None:
    """S106 A new commit of the input gives a commit of the output

    Even when the results are equal, so that each version of the input has its result. For the same commit there is nothing to do, and the old job is named.
    """
    jobs.put({"a": "1"})
    first = upper(jobs, glob="/a")
    again = upper(jobs, glob="/a")
    assert (again["nothing_to_do"], again["job"], again["commit"]) == (True, first["job"], first["commit"])
    jobs.put({"b": "2"})
    assert counts(upper(jobs, glob="/a")) == (0, 1, 0)
    second, before = jobs.log("upper")
    assert before["commit"] == first["commit"]
    assert second["content_id"] == before["content_id"]


def test_a_failing_datum(jobs: Scene) -> None:
    """S107 A failing datum fails the job, and nothing is committed

    The others are finished and kept, and every log. The next run does only what is missing.
    """
    jobs.put({"a": "1", "b": "bad", "c": "3"})
    result = upper(jobs, code=1)
    assert counts(result) == (2, 0, 1)
    assert result["commit"] is None
    assert jobs.json("log", "upper") == []
    failed = jobs.run("pfsjob", "logs", str(result["job"]), "--failed").stdout
    assert "cannot read b" in failed
    assert "reading a" in jobs.run("pfsjob", "logs", str(result["job"])).stdout
    jobs.put({"b": "2"})
    assert counts(upper(jobs)) == (1, 2, 0)
    assert jobs.ls("upper@master") == ["a", "b", "c"]


def test_two_datums_one_path(jobs: Scene) -> None:
    """S108 Two datums that write one path fail the job

    The message names the path and both. No result ever depends on which was last.
    """
    jobs.put({"a": "1", "b": "2"})
    result = shell(jobs, "cat /pfs/images/* > /pfs/out/same", code=1)
    assert all(word in result["reason"] for word in ("/same", "/a", "/b"))
    assert result["commit"] is None


def test_uncommitted_input(mounted: Scene, jobs: Scene) -> None:
    """S109 A job reads commits, never work that is still going on

    What is uncommitted on its input's branch is not seen, and one line says so. `--commit MESSAGE` commits it first.
    """
    mounted.put({"a": "1"})
    (mounted.master / "b").write_text("2")
    mounted.write({"upper.py": UPPER}, "code")
    arguments = ("run", "--input", "images@master:/*", "--output", "upper@master")
    done = mounted.run("pfsjob", *arguments, "--", "python3", "code/upper.py")
    assert "images@master has 1 uncommitted change, which the job does not see" in done.stderr
    assert mounted.ls("upper@master") == ["a"]
    mounted.run("pfsjob", *arguments, "--commit", "one more", "--", "python3", "code/upper.py")
    assert mounted.ls("upper@master") == ["a", "b"]
    assert mounted.log()[0]["message"] == "one more"
    assert sorted(os.listdir(mounted.mount_point / "upper@master")) == ["a", "b"]


def test_somebody_elses_branch(jobs: Scene) -> None:
    """S110 A job does not overwrite what it did not make

    An output branch whose head a person or another pipeline (other inputs) committed is refused; `--replace` takes it over. The old commits stay. If the branch moves while the job
    runs, the results become a commit that is not on the branch, and is named.
    """
    jobs.put({"a": "1"})
    jobs.pfs("repo", "create", "upper")
    by_hand = jobs.put({"by hand": "x"}, "upper@master:/")
    jobs.write({"upper.py": UPPER}, "code")
    arguments = ("run", "--input", "images@master:/*", "--output", "upper@master")
    assert "--replace" in jobs.run("pfsjob", *arguments, "--", "python3", "code/upper.py", code=None).stderr
    assert jobs.log("upper")[0]["commit"] == by_hand
    upper(jobs, "--replace")
    assert jobs.ls("upper@master") == ["a"]
    assert jobs.log("upper")[1]["commit"] == by_hand
    for name in ("gate", "reached"):
        os.mkfifo(jobs.root / name)
    jobs.put({"b": "wait"})
    runner = jobs.start("pfsjob", "run", "--json", *arguments[1:], "--", "python3", "code/upper.py")
    (jobs.root / "reached").open().close()
    moved = jobs.put({"moved": "x"}, "upper@master:/")
    (jobs.root / "gate").open("w").close()
    out, _ = runner.communicate(timeout=60)
    kept = json.loads(out.splitlines()[-1])["commit"]
    assert (runner.returncode, jobs.log("upper")[0]["commit"]) == (3, moved)
    assert jobs.ls(f"upper@{kept}") == ["a", "b"]


def test_a_killed_runner(jobs: Scene) -> None:
    """S111 A job that is stopped or killed loses no finished datum

    Ctrl-C and SIGTERM end it and keep what has finished; so does `kill -9` of the runner, for all that finished 0.2 s before. Nothing is on the branch, nothing is left running, the job is listed
    as killed or interrupted, and the next run goes on from there.
    """
    jobs.put({"a": "1", "b": "2", "wait": "wait"})
    jobs.write({"upper.py": UPPER}, "code")
    for name in ("gate", "reached"):
        os.mkfifo(jobs.root / name)
    for end, state in ((signal.SIGKILL, "interrupted"), (signal.SIGINT, "killed")):
        arguments = ("run", "--workers", "1", "--input", "images@master:/*", "--output", "upper@master")
        runner = jobs.start("pfsjob", *arguments, "--", "python3", "code/upper.py")
        (jobs.root / "reached").open().close()
        wait_for(lambda: _results(jobs) == 2, "the results of two datums")
        runner.send_signal(end)
        runner.communicate(timeout=60)
        wait_for(lambda: _nobody_waits(jobs.root / "gate"), "the program to be ended")
        listed = json.loads(jobs.run("pfsjob", "list", "--json").stdout)
        assert listed[0]["state"] == state
        assert jobs.json("log", "upper") == []
    jobs.put({"wait": "no more"})
    assert counts(upper(jobs)) == (1, 2, 0)


def _results(scene: Scene) -> int:
    """How many datums' results are durable."""
    store = ObjectStore(scene.store)
    try:
        with store.index.read() as txn:
            return txn.count(Table.RESULTS)
    finally:
        store.close()


def _nobody_waits(fifo: Path) -> bool:
    """True when no process has the reading end of a FIFO open, or tries to."""
    try:
        fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return True
    os.close(fd)
    return False


def test_links_to_inputs(jobs: Scene) -> None:
    """S112 A result may be an input, at no cost

    A symlink in `/pfs/out` to a file or directory of an input becomes that file or directory, by reference. Links inside `/pfs/out` stay links.
    """
    jobs.put({"large": os.urandom(6 << 20)})
    before = jobs.stored_bytes()
    shell(jobs, "ln -s /pfs/images/large /pfs/out/copy; ln -s copy /pfs/out/link")
    shown = jobs.json("show", "out@master:/copy")
    assert (shown["kind"], shown["id"]) == ("file", jobs.json("show", "images@master:/large")["id"])
    assert jobs.json("show", "out@master:/link")["kind"] == "symlink"
    assert jobs.stored_bytes() - before < 100_000


def test_no_network(jobs: Scene) -> None:
    """S113 `--hermetic` takes the network away

    Without it a datum has that of the machine, and the job's record says so.
    """
    jobs.put({"a": "1"})
    shell(jobs, "ls /sys/class/net > /dev/null; cat /proc/net/dev | grep -c : > /pfs/out/interfaces", "--hermetic")
    assert jobs.cat("out@master:/interfaces").strip() == "1"


def test_combined_inputs(jobs: Scene) -> None:
    """S340 Inputs are combined as a spec says, and a change runs only the combinations that it is in

    By `cross`, `union`, `join` on a part of the path, and `group`; they nest. Results are always those of a run from scratch.
    """
    jobs.pfs("repo", "create", "labels")
    jobs.put({"1.png": "one", "2.png": "two", "3.png": "three"})
    jobs.put({"1.txt": "ONE", "2.txt": "TWO"}, "labels@master:/")
    parts = [
        {"input": "images@master:/(*).png", "join_on": "$1"},
        {"input": "labels@master:/(*).txt", "join_on": "$1"},
    ]
    command = "cat $images $labels > /pfs/out/$PACH_DATUM_images_JOIN_ON"
    spec = {"input": {"join": parts}, "output": "pairs@master", "command": command, "env": {"PATH": os.environ["PATH"]}}
    jobs.write({"pairs.json": json.dumps(spec)}, "code")
    assert counts(jobs.job("-f", "code/pairs.json")) == (2, 0, 0)
    assert jobs.ls("pairs@master") == ["1", "2"]
    jobs.put({"2.txt": "zwei", "3.txt": "drei"}, "labels@master:/")
    assert counts(jobs.job("-f", "code/pairs.json")) == (2, 1, 0)
    assert [jobs.cat(f"pairs@master:/{name}") for name in "123"] == ["oneONE", "twozwei", "threedrei"]


def test_pachyderm_specs(jobs: Scene) -> None:
    """S341 Pachyderm's pipeline specs run as they are, and nothing in them is passed by in silence

    What has no effect here is named in a warning; what cannot be done, or is not known, is an error. Both name file, line and field.
    """
    jobs.put({"a": "1", "b": "2"})
    pipeline = """{
      "pipeline": {"name": "joined"},
      "transform": {"cmd": ["/bin/sh"], "stdin": ["cat /pfs/images/* >> /pfs/out/all"]},
      "input": {"atom": {"repo": "images", "glob": "/*"}},
      "cache_size": "64M"
    }"""
    jobs.write({"joined.json": pipeline, "wrong.json": pipeline.replace("cache_size", "cash_size")}, "code")
    done = jobs.run("pfsjob", "run", "-f", "code/joined.json")
    assert "code/joined.json:5: cache_size has no effect" in done.stderr
    assert jobs.cat("joined@master:/all") == "12"  # a classic pipeline's results are put together
    refused = jobs.run("pfsjob", "run", "-f", "code/wrong.json", code=2).stderr
    assert "code/wrong.json:5: " in refused
    assert "cache_size" in refused


def test_a_plan(jobs: Scene) -> None:
    """S342 `pfsjob plan` says what would run and why

    And, with `--all`, what would be reused, and from which job. It changes nothing.
    """
    jobs.put({"a": "1", "b": "2"})
    flags = ("--input", "images@master:/*", "--output", "out@master", "--", "/bin/sh", "-c", "cp $images /pfs/out")
    assert jobs.run("pfsjob", "plan", *flags).stdout.count("  run  ") == 2
    assert jobs.run("pfsjob", "list").stdout == "no jobs yet\n"
    done = jobs.job(*flags)
    jobs.put({"b": "3", "c": "4"})
    shown = jobs.run("pfsjob", "plan", "--all", *flags).stdout
    assert f"reuse  /a  (from {done['job']})" in shown
    assert "run    /b  (its input changed)" in shown
    assert "run    /c  (its input is new)" in shown


def test_two_jobs_share(jobs: Scene) -> None:
    """S343 Jobs that run at the same time do not run the same datum twice

    What another job runs at the moment is waited for, and its result used; when that job is killed, the datum is run after all.
    """
    jobs.put({name: name for name in "abcd"})
    script = "echo x >> ran/${images##*/}; while ! [ -e go ]; do sleep 0.05; done; cp $images /pfs/out"
    (jobs.root / "ran").mkdir()
    arguments = ("pfsjob", "run", "--workers", "2", "--input", "images@master:/*")
    runs = [jobs.start(*arguments, "--output", f"out@{one}", "--", "/bin/sh", "-c", script) for one in ("x", "y")]
    wait_for(lambda: len(os.listdir(jobs.root / "ran")) == 4, "all datums to have begun")
    (jobs.root / "go").touch()
    for run in runs:
        assert run.communicate(timeout=60)[1].count("Traceback") == 0
        assert run.returncode == 0
    assert [(jobs.root / "ran" / name).read_text() for name in "abcd"] == ["x\n"] * 4
    assert jobs.ls("out@x") == jobs.ls("out@y") == ["a", "b", "c", "d"]


def test_following(jobs: Scene) -> None:
    """S344 `pfsjob run --follow` runs again after each commit on an input

    On the newest head, one job at a time; commits that come meanwhile are one job. It may be killed and started again.
    """
    jobs.put({"a": "1"})
    flags = ("run", "--follow", "--input", "images@master:/*", "--output", "out@master")
    command = ("--", "/bin/sh", "-c", "cp $images /pfs/out")
    for name in "bc":
        run = jobs.start("pfsjob", *flags, *command)
        wait_for(lambda: "out" in jobs.pfs("repo", "list") and jobs.log("out") != [], "the first results")
        jobs.put({name: name})
        wait_for(lambda wanted=name: wanted in jobs.ls("out@master"), "the results of the new commit")  # type: ignore[misc]
        run.kill()
        run.communicate(timeout=60)


def test_appended(jobs: Scene) -> None:
    """S345 With `--merge append`, what several datums write into one file is put together

    In the order of the datums. Without it that is an error, which names both.
    """
    jobs.put({"a": "1", "b": "2", "c": "3"})
    script = "cat $images >> /pfs/out/all"
    refused = shell(jobs, script, code=1)
    assert refused["reason"].startswith("two datums wrote /all: ")
    shell(jobs, script, "--merge", "append")
    assert jobs.cat("out@master:/all") == "123"
    jobs.put({"b": "x"})
    assert counts(shell(jobs, script, "--merge", "append")) == (1, 2, 0)
    assert jobs.cat("out@master:/all") == "1x3"
