"""`pfsjob` as a person uses it: real processes, in namespaces of their own, over a real store."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from runner.executors.process import ProcessExecutor

PROJECT = Path(__file__).resolve().parents[2]
NOBODY = 65534
UPPER = """
import os, sys
source = os.environ["in"]
name = os.path.basename(source)
print("reading", name)
if "bad" in name:
    sys.exit("cannot read " + name)
if os.path.exists("gate") and name.startswith("wait"):
    open("reached", "w").close()
    open("gate").read()
with open(source) as file, open("/pfs/out/" + name, "w") as out:
    out.write(file.read().upper())
"""


@functools.cache
def obstacles() -> str:
    return "; ".join(str(one) for one in trio.run(ProcessExecutor().preflight))


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if obstacles():
        pytest.skip(obstacles())


class Shell:
    """A directory, a store, and the two commands."""

    def __init__(self, root: Path, python: str = sys.executable, user: int | None = None) -> None:
        self.root, self._python, self._user = root, python, user
        site = next(path for path in sys.path if path.endswith("site-packages"))
        self.env = {
            "PATH": f"{Path(python).parent}:/usr/bin:/bin",
            "HOME": os.fspath(root),
            "PFS_STORE": os.fspath(root / "store"),
            "PFS_AUTHOR": "tester@here",
            "PYTHONPATH": f"{PROJECT}:{site}",
        }

    def start(self, command: str, *arguments: str) -> subprocess.Popen[str]:
        module = {"pfs": "pfsmount.cli.app", "pfsjob": "runner.cli"}[command]
        return subprocess.Popen(
            [self._python, "-m", module, *arguments],
            cwd=self.root,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            user=self._user,
            group=self._user,
            extra_groups=None if self._user is None else [],
        )

    def run(self, command: str, *arguments: str, code: int = 0) -> str:
        """Standard output; the exit code must be `code`, and then standard error is in it, too."""
        process = self.start(command, *arguments)
        out, errors = process.communicate(timeout=60)
        assert process.returncode == code, out + errors
        assert "Traceback" not in errors
        return out + errors

    def job(self, *options: str, code: int = 0) -> dict[str, Any]:
        """Run the job over `in` with --json."""
        process = self.start("pfsjob", *self.arguments(*options, "--json"))
        out, errors = process.communicate(timeout=60)
        assert process.returncode == code, out + errors
        value = json.loads(out.splitlines()[-1])
        assert isinstance(value, dict)
        return value

    def arguments(self, *options: str, output: str = "out@master") -> list[str]:
        python = self._python
        return ["run", "--input", "in@master:/*", "--output", output, *options, "--", python, "code/upper.py"]

    def put(self, files: Mapping[str, str]) -> None:
        shutil.rmtree(self.root / "new", ignore_errors=True)
        (self.root / "new").mkdir()
        for name, text in files.items():
            (self.root / "new" / name).write_text(text)
        if self._user is not None:
            subprocess.run(["chown", "-R", f"{self._user}:{self._user}", self.root / "new"], check=True)
        self.run("pfs", "put", "new", "in@master:/")

    def cat(self, target: str) -> str:
        return self.run("pfs", "cat", target)


def set_up(shell: Shell) -> Shell:
    (shell.root / "code").mkdir()
    (shell.root / "code" / "upper.py").write_text(UPPER)
    shell.run("pfs", "init")
    shell.run("pfs", "repo", "create", "in")
    return shell


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return set_up(Shell(tmp_path))


def wait_until(condition: Callable[[], bool]) -> None:
    """Looks again and again until something has come true."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        os.sched_yield()


def test_the_story(shell: Shell) -> None:
    shell.put({"a": "x", "b": "y"})
    said = shell.run("pfsjob", *shell.arguments())
    assert "2 processed · 0 skipped · 0 failed" in said
    assert "out@master is now" in said
    assert shell.cat("out@master:/a") == "X"

    assert "nothing to do" in shell.run("pfsjob", *shell.arguments())

    shell.put({"c": "z"})
    result = shell.job()
    assert (result["processed"], result["skipped"], result["failed"]) == (1, 2, 0)
    assert result["state"] == "success"
    assert shell.run("pfs", "ls", "out@master").split() == ["a", "b", "c"]

    (shell.root / "code" / "upper.py").write_text(UPPER.replace("upper()", "lower()"))
    assert shell.job()["processed"] == 3
    assert shell.cat("out@master:/c") == "z"
    lineage = shell.run("pfs", "lineage", "out@master:/c")
    assert "code/upper.py" in lineage
    assert "in@" in lineage


def test_a_failing_datum(shell: Shell) -> None:
    shell.put({"a": "x", "bad": "y"})
    said = shell.run("pfsjob", *shell.arguments(), code=1)
    assert "/bad: exit code 1" in said
    assert "| cannot read bad" in said
    assert "the next run does only what is missing" in said
    job = json.loads(shell.run("pfsjob", "list", "--json"))[0]["job"]
    assert "cannot read bad" in shell.run("pfsjob", "logs", job[4:12], "--failed")
    assert shell.run("pfsjob", "logs", job, "--datum", "/a") == "reading a\n"
    assert "exit code 1" in shell.run("pfsjob", "inspect", job)
    shell.run("pfs", "rm", "in@master:/bad")
    assert shell.job()["skipped"] == 1


def test_a_killed_runner_loses_no_finished_datum(shell: Shell) -> None:
    job, process = run_until_the_gate(shell)
    process.kill()
    process.communicate()
    assert [one["state"] for one in json.loads(shell.run("pfsjob", "list", "--json"))] == ["interrupted"]
    assert "its runner died" in shell.run("pfsjob", "inspect", job)
    wait_until(lambda: not waiting_datums(shell))
    (shell.root / "gate").unlink()
    result = shell.job()
    assert (result["processed"], result["skipped"]) == (1, 2)
    assert shell.run("pfs", "ls", "out@master").split() == ["a", "b", "wait"]
    assert os.listdir(shell.root / "store" / "jobs") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_job_keeps_what_has_finished(shell: Shell, number: signal.Signals) -> None:
    job, process = run_until_the_gate(shell)
    process.send_signal(number)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; nothing was committed" in errors
    assert "2 of 3 datums" in said
    assert not waiting_datums(shell)
    assert json.loads(shell.run("pfsjob", "inspect", job, "--json"))["state"] == "killed"
    assert os.listdir(shell.root / "store" / "jobs") == []
    (shell.root / "gate").unlink()
    result = shell.job()
    assert (result["processed"], result["skipped"]) == (1, 2)


def test_a_killed_runner_leaves_its_mount_to_the_next_one(shell: Shell) -> None:
    needs_fuse()
    _, process = run_until_the_gate(shell, "--inputs", "mount")
    process.kill()
    process.communicate()
    assert len(mounts_of_jobs(shell)) == 1
    (shell.root / "gate").unlink()
    assert shell.job()["processed"] == 1
    assert mounts_of_jobs(shell) == []


def mounts_of_jobs(shell: Shell) -> list[str]:
    """Where the store is mounted for jobs."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [line.split()[1] for line in lines if f"{shell.root}/store" in line and "/pfs-job-" in line]


def run_until_the_gate(shell: Shell, *options: str) -> tuple[str, subprocess.Popen[str]]:
    """A job that has finished two datums and hangs in a third."""
    shell.put({"a": "x", "b": "y", "wait": "z"})
    os.mkfifo(shell.root / "gate")
    os.mkfifo(shell.root / "reached")
    process = shell.start("pfsjob", *shell.arguments("--workers", "1", *options))
    (shell.root / "reached").open().close()

    wait_until(lambda: results_in(shell) == 2)
    (job,) = json.loads(shell.run("pfsjob", "list", "--json"))
    assert job["state"] == "running"
    return job["job"], process


def results_in(shell: Shell) -> int:
    """How many results are durable."""
    program = (
        "import sys; from pathlib import Path; from pfsmount.objects.store import ObjectStore; "
        "from pfsmount.objects.index import Table\n"
        "store = ObjectStore(Path(sys.argv[1]))\n"
        "with store.index.read() as txn: print(txn.count(Table.RESULTS))"
    )
    command = [sys.executable, "-c", program, os.fspath(shell.root / "store")]
    return int(subprocess.run(command, env=shell.env, capture_output=True, text=True, check=True).stdout)


def waiting_datums(shell: Shell) -> list[int]:
    """Processes that run the program of this shell's jobs."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            if b"code/upper.py" in command[1:2] and os.path.samefile(entry / "cwd", shell.root):
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return found


def test_two_jobs_at_once(shell: Shell) -> None:
    shell.put({f"{i}": f"{i}" for i in range(20)})
    both = [
        shell.start("pfsjob", *shell.arguments("--env", f"N={i}", "--json", output=f"out{i}@master")) for i in range(2)
    ]
    for process in both:
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert json.loads(out.splitlines()[-1])["processed"] == 20
    for i in range(2):
        assert len(shell.run("pfs", "ls", f"out{i}@master").split()) == 20


def needs_fuse() -> None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK) or shutil.which("fusermount3") is None:
        pytest.skip("needs FUSE")


@pytest.mark.parametrize("staging", ["copy", "mount"])
def test_what_a_datum_sees(shell: Shell, staging: str) -> None:
    if staging == "mount":
        needs_fuse()
    look = "find -L /pfs -mindepth 1 -printf '%y %m %T@ %p\\n' | sort > /pfs/out/seen; env | cut -d= -f1 | sort > /pfs/out/env"
    shell.put({"a": "x"})
    (shell.root / "new" / "sub").mkdir()
    (shell.root / "new" / "sub" / "tool").write_text("#!")
    (shell.root / "new" / "sub" / "tool").chmod(0o755)
    (shell.root / "new" / "sub" / "secret").write_text("!")
    (shell.root / "new" / "sub" / "secret").chmod(0o600)
    shell.run("pfs", "put", "new", "in@master:/")
    options = ("--inputs", staging, "-i", "in@master:/sub", "-o", "out@master")
    said = shell.run("pfsjob", "run", *options, "--", "/bin/sh", "-c", look)
    assert "cannot be mounted" not in said
    assert mounts_of_jobs(shell) == []
    seen = [line.split() for line in shell.cat("out@master:/seen").splitlines()]
    times = {line[3]: float(line[2]) for line in seen if line[3].startswith("/pfs/in")}
    assert {(line[0], line[1], line[3]) for line in seen if not line[3].startswith("/pfs/out")} == {
        ("d", "755", "/pfs/in"),
        ("d", "755", "/pfs/in/sub"),
        ("f", "755", "/pfs/in/sub/tool"),
        ("f", "644", "/pfs/in/sub/secret"),
    }
    assert set(times.values()) == {946684800.0}
    assert "PATH" in shell.cat("out@master:/env").split()


@pytest.mark.parametrize("staging", ["copy", "mount"])
def test_a_matched_symlink_can_be_followed(shell: Shell, staging: str) -> None:
    if staging == "mount":
        needs_fuse()
    shell.put({"a": "x"})
    (shell.root / "new" / "link").symlink_to("deep/next")
    (shell.root / "new" / "deep").mkdir()
    (shell.root / "new" / "deep" / "next").symlink_to("../a")
    (shell.root / "new" / "out").symlink_to("../../etc/passwd")
    shell.run("pfs", "put", "new", "in@master:/")
    look = (
        "cat $in > /pfs/out/text; find /pfs/in -printf '%y %T@ %P\\n' | sort > /pfs/out/seen; ln -s $in /pfs/out/same"
    )
    options = ("--inputs", staging, "-i", "in@master:/link", "-o", "out@master", "--", "/bin/sh", "-c", look)
    assert "leads out" not in shell.run("pfsjob", "run", *options)
    assert (shell.cat("out@master:/text"), shell.cat("out@master:/same")) == ("x", "x")
    seen = [line.split() for line in shell.cat("out@master:/seen").splitlines()]
    assert [(kind, *path) for kind, _, *path in seen] == [
        ("d",),
        ("d", "deep"),
        ("f", "a"),
        ("l", "deep/next"),
        ("l", "link"),
    ]
    assert {float(time) for _, time, *_ in seen} == {946684800.0}
    if staging == "copy":
        dangling = ("-i", "in@master:/out", "-o", "out2@master", "--", "/bin/sh", "-c", "ls -l $in > /pfs/out/seen")
        assert "in:/out → ../../etc/passwd" in shell.run("pfsjob", "run", *dangling)
        assert "/pfs/in/out -> ../../etc/passwd" in shell.cat("out2@master:/seen")


def test_an_input_cannot_be_written_to(shell: Shell) -> None:
    shell.put({"a": "x"})
    write = "echo y > $in; echo y > /pfs/in/new; cat $in > /pfs/out/a"
    shell.run("pfsjob", "run", "-i", "in@master:/*", "-o", "out@master", "--", "/bin/sh", "-c", write)
    assert shell.cat("out@master:/a") == "x"
    assert shell.cat("in@master:/a") == "x"


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["-i", "in@master:/*", "-o", "out@master", "--", "no-such-program"], "no-such-program: command not found", 1),
        (["-i", "in@master:/*", "-o", "out@master", "--", "./code"], "there is no program ./code", 1),
        (["-i", "nope@master:/*", "-o", "out@master", "--", "true"], "there is no repo 'nope'", 1),
        (["-i", "in@master", "-o", "out@master", "--", "true"], "does not say which files are one datum", 2),
        (["-i", "in@master:/[", "-o", "out@master", "--", "true"], "has a '[' without its ']'", 2),
        (["-i", "in@master:/*", "-o", "in@master", "--", "true"], "is both input and output", 2),
        (["-i", "in@master:/*", "-i", "in@master:/", "-o", "out@master", "--", "true"], "two inputs have the name", 2),
        (["-i", "in@master:/*", "-o", "out@master:/x", "--", "true"], "is a whole branch", 2),
        (["-i", "in@master:/*", "-o", "out@master", "-e", "X", "--", "true"], "write it as NAME=VALUE", 2),
        (["-i", "in@master:/*", "-o", "out@master", "--timeout", "0", "--", "true"], "leaves no time", 2),
        (["-i", "in@master:/*", "-o", "out@master", "--code", "nowhere", "--", "true"], "does not exist", 2),
    ],
)
def test_bad_input_is_one_clear_line(shell: Shell, arguments: list[str], said: str, code: int) -> None:
    shell.put({"a": "x"})
    output = shell.run("pfsjob", "run", *arguments, code=code)
    assert said in output
    assert [line.split()[0] for line in shell.run("pfs", "repo", "list").splitlines() if line.startswith("out")] == []


def test_a_datum_that_takes_too_long(shell: Shell) -> None:
    shell.put({"a": "x"})
    os.mkfifo(shell.root / "never")
    said = shell.run(
        *("pfsjob", "run", "-i", "in@master:/*", "-o", "out@master", "--timeout", "0.2", "--"),
        *("/bin/cat", "never"),
        code=1,
    )
    assert "/a: took too long" in said


def test_uncommitted_work_is_not_seen(shell: Shell) -> None:
    needs_fuse()
    shell.put({"a": "x"})
    (shell.root / "mnt").mkdir()
    shell.run("pfs", "mount", "mnt")
    try:
        (shell.root / "mnt" / "in@master" / "b").write_text("y")
        said = shell.run("pfsjob", *shell.arguments())
        assert "in@master has 1 uncommitted change, which the job does not see" in said
        assert os.listdir(shell.root / "mnt" / "out@master") == ["a"]
        said = shell.run("pfsjob", *shell.arguments("--commit", "b as well"))
        assert "committed; in@master is now" in said
        assert sorted(os.listdir(shell.root / "mnt" / "out@master")) == ["a", "b"]
    finally:
        shell.run("pfs", "umount", "mnt")


def test_unknown_jobs(shell: Shell) -> None:
    assert "there is no job 'job-123456'" in shell.run("pfsjob", "inspect", "job-123456", code=1)
    assert "no jobs yet" in shell.run("pfsjob", "list")


# ---- an ordinary user ----------------------------------------------------------------------------------------------


def interpreter_for_all() -> str | None:
    """A Python that every user may run, of the version that this one's packages are built for."""
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        check = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]!r})"
        try:
            done = subprocess.run([python, "-c", check], user=NOBODY, group=NOBODY, extra_groups=[], cwd="/")
        except OSError:
            continue
        if done.returncode == 0:
            return python
    return None


@pytest.fixture
def nobodys_shell() -> Iterator[Shell]:
    if os.getuid():
        pytest.skip("needs root, to become an ordinary user")
    python = interpreter_for_all()
    if python is None:
        pytest.skip("no Python of this version that an ordinary user may run")
    place = Path(tempfile.mkdtemp(prefix="pfs-nobody-"))
    place.chmod(0o755)
    os.chown(place, NOBODY, NOBODY)
    try:
        yield set_up(Shell(place, python, NOBODY))
    finally:
        shutil.rmtree(place)


def test_an_ordinary_user(nobodys_shell: Shell) -> None:
    shell = nobodys_shell
    shell.put({"a": "x", "b": "y"})
    assert shell.job()["processed"] == 2
    shell.put({"c": "z"})
    result = shell.job()
    assert (result["processed"], result["skipped"]) == (1, 2)
    assert shell.cat("out@master:/c") == "Z"
    locked = "mkdir -p /pfs/out/d; echo x > /pfs/out/d/f; chmod 200 /pfs/out/d/f; chmod 500 /pfs/out/d"
    shell.run("pfsjob", "run", "-i", "in@master:/a", "-o", "locked@master", "--", "/bin/sh", "-c", locked)
    assert shell.cat("locked@master:/d/f") == "x\n"
    assert os.listdir(shell.root / "store" / "jobs") == []


@pytest.mark.long
def test_two_runs_at_once_share_their_datums(shell: Shell) -> None:
    (shell.root / "code" / "slow.sh").write_text(
        'n=${in##*/}\necho "$$" >> ran/"$n"\nwhile ! [ -e go ]; do sleep 0.1; done\ncp "$in" /pfs/out/"$n"\n'
    )
    (shell.root / "ran").mkdir()
    shell.put({f"{i}": f"{i}" for i in range(8)})
    arguments = ["run", "--input", "in@master:/*", "--workers", "2", "--json", "--", "sh", "code/slow.sh"]
    runs = [shell.start("pfsjob", *arguments[:3], "--output", f"out@{branch}", *arguments[3:]) for branch in "ab"]
    wait_until(lambda: len(os.listdir(shell.root / "ran")) == 4)
    (shell.root / "go").touch()
    results = []
    for run in runs:
        out, errors = run.communicate(timeout=60)
        assert run.returncode == 0, errors
        results.append(json.loads(out.splitlines()[-1]))
    assert [len(path.read_text().split()) for path in (shell.root / "ran").iterdir()] == [1] * 8
    assert [result["total"] for result in results] == [8, 8]
    assert sum(result["processed"] for result in results) == 8
    assert min(result["processed"] for result in results) > 0
    assert shell.cat("out@a:/7") == shell.cat("out@b:/7") == "7"


@pytest.mark.long
def test_what_a_killed_run_had_begun_is_run_by_the_other(shell: Shell) -> None:
    (shell.root / "code" / "slow.sh").write_text('touch begun\n[ -e go ] || sleep 60\ncp "$in" /pfs/out/\n')
    shell.put({"1": "1"})
    arguments = ["--input", "in@master:/*", "--json", "--", "sh", "code/slow.sh"]
    first = shell.start("pfsjob", "run", "--output", "out@a", *arguments)
    wait_until(lambda: (shell.root / "begun").exists())
    second = shell.start("pfsjob", "run", "--output", "out@b", *arguments)
    time.sleep(0.5)
    (shell.root / "go").touch()
    first.kill()
    first.communicate()
    out, errors = second.communicate(timeout=60)
    assert second.returncode == 0, errors
    assert json.loads(out.splitlines()[-1])["processed"] == 1


GATED = 'n=${in##*/}\necho "begin $n"\nwhile ! [ -e go-"$n" ]; do sleep 0.05; done\necho "end $n"\ncp "$in" /pfs/out/\n'


def gated(shell: Shell, *options: str) -> list[str]:
    (shell.root / "code" / "gated.sh").write_text(GATED)
    return ["run", "-i", "in@master:/*", "-o", "out@master", *options, "--", "sh", "code/gated.sh"]


def newest(shell: Shell) -> dict[str, Any]:
    jobs = json.loads(shell.run("pfsjob", "list", "--json"))
    assert isinstance(jobs[0], dict)
    return jobs[0]


def begun(shell: Shell, name: str) -> bool:
    """Whether the newest job runs this datum."""
    logs = shell.root.glob("store/jobs/*/d/*/log")
    return any(f"begin {name}" in log.read_text() for log in logs)


def test_logs_while_a_job_runs(shell: Shell) -> None:
    shell.put({"a": "1", "b": "2"})
    run = shell.start("pfsjob", *gated(shell, "--workers", "2"))
    wait_until(lambda: begun(shell, "a") and begun(shell, "b"))
    follower = shell.start("pfsjob", "logs", "-f")
    one = shell.start("pfsjob", "logs", "-f", "--json", "--datum", "/b")
    assert follower.stdout is not None
    shown = [follower.stdout.readline() for _ in range(4)]
    assert {shown[0] + shown[1], shown[2] + shown[3]} == {"==> /a <==\nbegin a\n", "==> /b <==\nbegin b\n"}
    (shell.root / "go-b").touch()
    while "end b" not in follower.stdout.readline():
        pass
    wait_until(lambda: "==> /b" in shell.run("pfsjob", "logs", newest(shell)["job"]))
    (shell.root / "go-a").touch()
    assert run.communicate(timeout=60)[1].count("Traceback") == 0
    rest, said = follower.communicate(timeout=60)
    assert "end a\n==> /a" in rest
    assert "has ended: success" in said
    events = [json.loads(line) for line in one.communicate(timeout=60)[0].splitlines()]
    assert "".join(event["text"] for event in events if event["event"] == "log") == "begin b\nend b\n"
    assert [event["how"] for event in events if event["event"] == "datum"] == ["ok"]
    assert set(shell.run("pfsjob", "logs", "--grep", "^end").splitlines()[:2]) == {"/a: end a", "/b: end b"}
    shell.run("pfsjob", "logs", "--grep", "(", code=2)


def test_events_for_programs(shell: Shell) -> None:
    shell.put({"a": "1", "bad": "2"})
    run = shell.start("pfsjob", *shell.arguments("--json", "--tries", "2"))
    out, errors = run.communicate(timeout=60)
    assert (run.returncode, errors) == (1, "")
    events = [json.loads(line) for line in out.splitlines()]
    assert {event["event"] for event in events} == {"note", "started", "progress", "datum", "ended"}
    ended = {event["inputs"][0]["path"]: event for event in events if event["event"] == "datum"}
    assert (ended["/a"]["state"], ended["/a"]["exit"], ended["/a"]["tries"]) == ("processed", 0, 1)
    assert (ended["/bad"]["state"], ended["/bad"]["how"], ended["/bad"]["tries"]) == ("failed", "exit code 1", 2)
    assert (events[-1]["event"], events[-1]["state"], events[-1]["failed"]) == ("ended", "failed", 1)


def test_stopping_a_job_from_elsewhere(shell: Shell) -> None:
    shell.put({"a": "1", "b": "2"})
    (shell.root / "go-a").touch()
    run = shell.start("pfsjob", *gated(shell, "--workers", "1"))
    wait_until(lambda: begun(shell, "b"))
    job = newest(shell)["job"]
    said = shell.run("pfsjob", "stop", job[:12])
    assert said == f"{job} is killed; kept: 1 finished datum\n"
    run.communicate(timeout=60)
    assert run.returncode == 130
    assert "does not run: it is killed" in shell.run("pfsjob", "stop", job, code=2)
    assert processes_of(job) == []


def processes_of(job: str) -> list[str]:
    """The processes that run a datum of a job."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"PFS_JOB_ID={job}".encode() in (place / "environ").read_bytes():
                found.append(place.name)
        except OSError:
            continue
    return found


@pytest.mark.long
def test_following_a_branch(shell: Shell) -> None:
    shell.put({"a": "1", "b": "2"})
    for name in "abcd":
        (shell.root / f"go-{name}").touch()

    def results() -> set[str]:
        made = shell.start("pfs", "ls", "out@master")
        return set((made.communicate(timeout=60)[0]).split())

    follow = shell.start("pfsjob", *gated(shell, "--follow"))
    wait_until(lambda: results() == {"a", "b"})
    assert "followed for already" in shell.run("pfsjob", *gated(shell, "--follow"), code=1)
    shell.put({"c": "3"})
    wait_until(lambda: results() == {"a", "b", "c"})
    follow.kill()
    follow.communicate(timeout=60)
    shell.put({"d": "4"})
    again = shell.start("pfsjob", *gated(shell, "--follow"))
    wait_until(lambda: results() == {"a", "b", "c", "d"})
    assert [newest(shell)[name] for name in ("processed", "skipped")] == [1, 3]
    assert shell.run("pfsjob", "stop", "out@master") == "out@master is no longer followed for\n"
    said = again.communicate(timeout=60)[1]
    assert "following in@master" in said
    assert "Traceback" not in said
    assert "nobody follows" in shell.run("pfsjob", "stop", "out@master", code=2)
    assert "nobody follows" in shell.run("pfsjob", "stop", "\udcff@master", code=2)


def test_a_spec_in_a_file(shell: Shell) -> None:
    shell.put({"a": "1", "b": "2"})
    pipeline = {
        "pipeline": {"name": "upper"},
        "transform": {"cmd": [shell.env["PATH"].split(":")[0] + "/python", "code/upper.py"], "env": {"X": 1}},
        "input": {"atom": {"repo": "in", "glob": "/*"}},
        "cache_size": "1G",
    }
    lines = {"pipeline": {"name": "lines"}, "transform": {"cmd": ["sh"], "stdin": ["cat /pfs/upper/* > /pfs/out/all"]}}
    lines["input"] = {"pfs": {"repo": "upper", "glob": "/"}}
    (shell.root / "jobs.json").write_text(json.dumps(pipeline) + json.dumps(lines))
    planning = shell.start("pfsjob", "plan", "--only", "upper", "--json", "-f", "jobs.json")
    plan = json.loads(planning.communicate(timeout=60)[0])
    assert plan["to_run"] == 2
    said = shell.run("pfsjob", "run", "-f", "jobs.json")
    assert "jobs.json:1: cache_size has no effect" in said
    assert shell.cat("lines@master:/all") == "12"
    said = shell.run("pfsjob", "run", "-f", "jobs.json")
    assert said.count("nothing to do") == 2
    (shell.root / "bad.json").write_text(
        '{"pipeline": {"name": "x"}, "input": {"pfs": {"repo": "in", "glob": "/"}},\n "transform": {"cmd": 3}}'
    )
    assert "bad.json:2: transform.cmd must be" in shell.run("pfsjob", "run", "-f", "bad.json", code=2)
    assert "there is no job 'none'" in shell.run("pfsjob", "run", "-f", "jobs.json", "--only", "none", code=2)
    assert "No such file" in shell.run("pfsjob", "run", "-f", "none.json", code=1)
