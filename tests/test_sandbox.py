"""The executor `process` on the real kernel: what a command sees, what it cannot touch, and that nothing of it stays.

As root all of it runs a second time as an ordinary user, in user namespaces: `test_all_of_this_as_an_ordinary_user`.
"""

from __future__ import annotations

import errno
import os
import pwd
import re
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from runner.executors import datum, mounts, refusals
from runner.executors.base import (
    MADE_MTIME_NS,
    Bind,
    ExecutorUnavailable,
    Outcome,
    Reason,
    Task,
    TaskRefused,
    Worker,
    WorkerLost,
)
from runner.executors.process import ProcessExecutor

PROJECT = Path(__file__).resolve().parents[1]
ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/", "LANG": "C.UTF-8", "TZ": "UTC"}
EXECUTOR = ProcessExecutor()
AS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not AS_ROOT, reason="needs root")


@pytest.fixture(scope="module", autouse=True)
def _works_here() -> None:
    obstacles = trio.run(EXECUTOR.preflight)
    if obstacles:
        pytest.skip("; ".join(map(str, obstacles)))


def host_mounts(place: Path) -> set[str]:
    """Mounts where we work; other tests may mount elsewhere at the same time."""
    points = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    ours = ("/pfs", "/tmp", "/var/tmp", "/dev/shm", "/proc", "/", os.fspath(place))
    return {point for point in points if point in ours or point.startswith(("/pfs/", f"{place}/", "/proc/"))}


@pytest.fixture(autouse=True)
def _host_stays_as_it_is(tmp_path: Path) -> Iterator[None]:
    before = host_mounts(tmp_path), Path("/pfs").exists()
    yield
    assert (host_mounts(tmp_path), Path("/pfs").exists()) == before


class Scene:
    """One datum: its input directory, output and log; and a word that is in the argv of all that it starts."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.images = place / "images"
        self.out = place / "out"
        self.log = place / "log"
        for directory in (self.images, self.out):
            directory.mkdir(parents=True)
        (self.images / "a.txt").write_text("a picture")
        self.mark = uuid.uuid4().hex

    def task(self, script: str = "", **changes: Any) -> Task:
        task = Task(
            binds=[Bind(os.fsencode(self.images), b"images")],
            out=self.out,
            argv=["sh", "-c", script, self.mark],
            env=ENV,
            cwd=Path("/"),
            log=self.log,
        )
        return replace(task, **changes)

    def run(self, script: str = "", **changes: Any) -> str:
        """What the script printed; it has succeeded."""
        (outcome,) = run_all(self.task(script, **changes))
        text = self.log.read_text()
        self.log.unlink()
        assert outcome.ok, (outcome, text)
        return text

    def processes(self) -> list[int]:
        """Those whose command line has the mark, or that are children of such."""
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and self._is_mine(entry)]

    def _is_mine(self, entry: Path) -> bool:
        try:
            return self.mark.encode() in (entry / "cmdline").read_bytes()
        except OSError:
            return False  # gone meanwhile


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "datum")


def run_all(*tasks: Task) -> list[Outcome]:
    async def main() -> list[Outcome]:
        async with EXECUTOR.open_worker() as worker:
            return [await worker.run(task) for task in tasks]

    return trio.run(main)


def wait_until(condition: Callable[[], bool], limit_s: float = 20) -> None:
    """For what other processes do, of which nothing tells us."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# ---- what a command sees --------------------------------------------------------------------------------------------


def test_pfs_has_the_datum_and_nothing_else(scene: Scene) -> None:
    assert scene.run("cd /pfs; find . | sort").split() == [".", "./images", "./images/a.txt", "./out"]


def test_single_files_and_directories_are_shown_at_their_paths(scene: Scene) -> None:
    (scene.images / "b").mkdir()
    (scene.images / "b" / "c.txt").write_text("c")
    source = os.fsencode(scene.images)
    binds = [Bind(source + b"/a.txt", b"images/x/y/a.txt"), Bind(source + b"/b", b"images/b"), Bind(source, b"all")]
    text = scene.run(
        "cd /pfs; find images -type f | sort; cat images/x/y/a.txt; echo; cat images/b/c.txt; echo; ls all", binds=binds
    )
    assert text.split() == ["images/b/c.txt", "images/x/y/a.txt", "a", "picture", "c", "a.txt", "b"]


def test_directories_that_lead_to_binds_look_the_same_in_every_run(scene: Scene) -> None:
    binds = [Bind(os.fsencode(scene.images / "a.txt"), b"images/x/a.txt")]
    text = scene.run("stat -c '%a %Y' /pfs /pfs/images /pfs/images/x", binds=binds)
    assert text.split() == ["755", str(MADE_MTIME_NS // 10**9)] * 3


def test_a_symlink_is_shown_as_the_symlink_it_is(scene: Scene) -> None:
    for name, target in (("inside", "a.txt"), ("outside", "/etc/passwd")):
        (scene.images / name).symlink_to(target)
    names = ("inside", "outside", "a.txt")
    binds = [Bind(os.fsencode(scene.images / name), b"images/" + name.encode()) for name in names]
    text = scene.run("cd /pfs/images; cat inside; echo; readlink outside", binds=binds)
    assert text.splitlines() == ["a picture", "/etc/passwd"]


ODD_NAMES = [b"new\nline", b"\xff\xfe", b"n" * 255, b"*?[a]", b" ", b"-rf", b"\\", b'"$HOME`', "å".encode(), b"..."]


def test_any_name_can_be_shown(scene: Scene) -> None:
    directory = os.fsencode(scene.images)
    for name in ODD_NAMES:
        with open(os.path.join(directory, name), "wb") as file:
            file.write(name)
    one_by_one = [Bind(os.path.join(directory, name), b"single/" + name) for name in ODD_NAMES]
    binds = [Bind(directory, b"\xffin\nput"), *one_by_one]
    reader = b"""
import os
for place, more in ((b"/pfs/\\xffin\\nput", [b"a.txt"]), (b"/pfs/single", [])):
    names = sorted(os.listdir(place))
    assert [name for name in names if name not in more and open(os.path.join(place, name), "rb").read() != name] == []
    open(b"/pfs/out/" + os.path.basename(place), "wb").write(b"/".join(names))
"""
    scene.run(argv=["/usr/bin/python3", "-c", reader], binds=binds)
    assert (scene.out / "single").read_bytes().split(b"/") == sorted(ODD_NAMES)
    assert Path(os.fsdecode(os.fsencode(scene.out) + b"/\xffin\nput")).exists()


def test_a_thousand_files_out_of_another_tree(scene: Scene) -> None:
    """More than a process may have open files, and than one batch."""
    names = [f"{number % 10}/{number}" for number in range(1500)]
    for digit in range(10):
        (scene.images / str(digit)).mkdir()
    for name in names:
        (scene.images / name).write_text(name)
    binds = [Bind(os.fsencode(scene.images / name), b"images/" + name.encode()) for name in names]
    text = scene.run("ulimit -n; cd /pfs/images; find . -type f | wc -l; cat $(find . -type f) | wc -c", binds=binds)
    assert text.split()[1:] == ["1500", str(sum(map(len, names)))]


def test_inputs_cannot_be_written(scene: Scene) -> None:
    binds = [
        Bind(os.fsencode(scene.images), b"images"),
        Bind(os.fsencode(scene.images / "a.txt"), b"single/a.txt"),
    ]
    places = "/pfs/images/a.txt /pfs/images/new /pfs/single/a.txt /pfs/single/new /pfs/new /new"
    text = scene.run(f"for place in {places}; do (echo x >> $place); done; rm /pfs/images/a.txt; exit 0", binds=binds)
    assert text.count("Read-only file system") == 7
    assert (scene.images / "a.txt").read_text() == "a picture"


def test_mounts_below_an_input_are_shown_and_cannot_be_written(scene: Scene) -> None:
    """An input that is a mount, with a mount in it: here another datum's /pfs, seen from a runner inside that datum."""
    inner = """
        import os, sys, trio
        from pathlib import Path
        sys.path.append(os.environ["PROJECT"])
        from runner.executors.base import Bind, Task
        from runner.executors.process import ProcessExecutor

        async def main():
            async with ProcessExecutor().open_worker() as worker:
                script = "cat /pfs/deep/images/a.txt; ls /pfs; echo x > /pfs/deep/out/x || echo x > /pfs/out/y"
                binds = [Bind(b"/pfs", b"deep")]
                out = Path("/tmp/out")
                out.mkdir()
                task = Task(binds, out, ["sh", "-c", script], dict(os.environ), Path("/"), Path("/tmp/log"))
                print(await worker.run(task), Path("/tmp/log").read_text(), os.listdir(out), flush=True)

        trio.run(main)
    """
    site = os.path.dirname(os.path.dirname(trio.__file__))
    env = {**ENV, "PROJECT": os.fspath(PROJECT), "PYTHONPATH": site}
    visible = [PROJECT, Path(site), Path(sys.executable), Path(sys.prefix), Path(sys.base_prefix)]
    argv = [sys.executable, "-c", textwrap.dedent(inner)]
    text = scene.run(argv=argv, env=env, keep_visible=visible)
    assert "Reason.OK" in text, text
    assert "a picturedeep\nout\n" in text
    assert "Read-only file system" in text
    assert text.rstrip().endswith("['y']")
    assert list(scene.out.iterdir()) == []


def test_out_is_the_given_directory(scene: Scene) -> None:
    scene.run('test -z "$(ls -A /pfs/out)" && mkdir /pfs/out/d && echo hello > /pfs/out/d/f && ln -s f /pfs/out/d/l')
    assert (scene.out / "d" / "f").read_text() == "hello\n"
    assert (scene.out / "d" / "f").stat().st_uid == os.geteuid()
    assert stat.S_IMODE((scene.out / "d" / "f").stat().st_mode) == 0o644
    assert os.readlink(scene.out / "d" / "l") == "f"


def test_a_bind_can_be_writable(scene: Scene) -> None:
    binds = [Bind(os.fsencode(scene.images), b"scratch/s", read_only=False)]
    assert "Read-only" in scene.run("echo x > /pfs/scratch/s/new; (echo x > /pfs/scratch/t); true", binds=binds)
    assert (scene.images / "new").read_text() == "x\n"


def test_temporary_directories_are_fresh_for_each_datum(scene: Scene) -> None:
    places = ["/tmp", "/var/tmp", "/dev/shm"]
    name = f"left-by-{scene.mark}"
    write = "; ".join(f"stat -c %a {place}; ls -A {place}; echo x > {place}/{name}" for place in places)
    outcomes = run_all(scene.task(write), scene.task(write))
    assert [outcome.reason for outcome in outcomes] == [Reason.OK] * 2
    assert scene.log.read_text() == "1777\n" * 6
    assert not any(Path(place, name).exists() for place in places)


@pytest.fixture
def in_tmp() -> Iterator[Path]:
    place = Path("/tmp", f"pfs-test-{uuid.uuid4().hex}")
    place.mkdir()
    yield place
    subprocess.run(["rm", "-r", place], check=True)


def test_kept_paths_stay_in_fresh_directories(scene: Scene, in_tmp: Path) -> None:
    code, other = in_tmp / "code", in_tmp / "other"
    for directory in (code / "deep", other, in_tmp / "real"):
        directory.mkdir(parents=True)
    (code / "deep" / "main.sh").write_text("cat data; pwd")
    (code / "data").write_text("kept\n")
    (in_tmp / "real" / "f").write_text("by its link\n")
    (in_tmp / "link").symlink_to("real")
    keep = [code / "deep", code, in_tmp / "link", in_tmp / "missing", Path("/usr")]
    script = f"sh {code}/deep/main.sh; cat {in_tmp}/link/f; ls {in_tmp}"
    text = scene.run(script, cwd=code, keep_visible=keep)
    assert text.split("\n") == ["kept", os.fspath(code), "by its link", "code", "link", "real", ""]


def test_a_kept_file_is_alone_in_its_directory(scene: Scene, in_tmp: Path) -> None:
    for name in ("main.sh", "private"):
        (in_tmp / name).write_text("echo works")
    text = scene.run(f"sh {in_tmp}/main.sh; ls {in_tmp}", keep_visible=[in_tmp / "main.sh"], cwd=Path("/tmp"))
    assert text.split() == ["works", "main.sh"]


def test_a_hidden_working_directory_is_explained(scene: Scene, in_tmp: Path) -> None:
    (outcome,) = run_all(scene.task("true", cwd=in_tmp))
    assert outcome.reason is Reason.NO_CWD
    assert outcome.message == f"cannot work in '{in_tmp}': No such file or directory; each datum has its own"


def test_the_rest_of_the_host_is_where_it_was(scene: Scene) -> None:
    names = [name for name in os.listdir("/") if name != "pfs" and not stat.S_ISSOCK(os.lstat(f"/{name}").st_mode)]
    assert sorted(scene.run("ls -A /").split()) == sorted([*names, "pfs"])
    links = [name for name in names if os.path.islink(f"/{name}")]
    assert scene.run(" ".join(["readlink", *(f"/{name}" for name in links), "/proc/self/root"])).split() == [
        *(os.readlink(f"/{name}") for name in links),
        "/",
    ]


# ---- what a command is given ----------------------------------------------------------------------------------------


def test_the_environment_is_exactly_what_was_given(scene: Scene) -> None:
    env = {"PATH": ENV["PATH"], "A": "b=c\nd", "NAME": os.fsdecode(b"\xff")}
    (outcome,) = run_all(scene.task(argv=["env", "-0"], env=env))
    assert outcome.ok
    assert sorted(scene.log.read_bytes().split(b"\0")) == sorted(
        [b"", b"PATH=" + os.fsencode(env["PATH"]), b"A=b=c\nd", b"NAME=\xff"]
    )


def test_the_command_runs_as_the_same_user_with_the_same_privileges(scene: Scene) -> None:
    script = "id -u; id -g; grep -E '^(Cap|NoNewPrivs|Seccomp|Uid|Gid)' /proc/self/status; ulimit -a; nice; umask"
    plain = subprocess.run(["sh", "-c", f"umask 022; {script}"], env=ENV, capture_output=True, text=True, check=True)
    assert scene.run(script) == plain.stdout


def test_the_command_starts_like_from_a_shell(scene: Scene) -> None:
    """Signals as by default, nothing open but the standard three, a session and a process group of its own."""
    reader = """
import os
lines = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(*(int(lines[name], 16) for name in ("SigIgn", "SigBlk")), os.getsid(0) == os.getpid() == os.getpgid(0))
print([fd for fd in range(3, 1000) if os.path.exists(f"/proc/self/fd/{fd}")], os.read(0, 1))
"""
    text = scene.run(argv=["/usr/bin/python3", "-S", "-c", f"import os{reader}"])
    ignored, blocked, leads = text.splitlines()[0].split()
    # CPython ignores these two, glibc's posix_spawn the two that are its own
    assert int(ignored) & ~sum(1 << number - 1 for number in (signal.SIGPIPE, signal.SIGXFSZ, 32, 33)) == 0
    assert (blocked, leads) == ("0", "True")
    assert text.splitlines()[1] == "[] b''"
    assert scene.run("grep SigIgn /proc/self/status").split()[1] in ("0" * 16, f"{1 << 31 | 1 << 32:016x}")


def test_processes_of_others_are_not_seen(scene: Scene) -> None:
    """Two or three: the datum's PID 1, the shell, ls."""
    names = scene.run("ls /proc").split()
    assert len([name for name in names if name.isdigit()]) <= 3
    assert scene.run("readlink /proc/self; exec readlink /proc/self").split() == ["3", "2"]


def test_shared_memory_of_one_datum_is_not_seen_by_the_next(scene: Scene) -> None:
    outcomes = run_all(scene.task("ipcmk -M 4096 >/dev/null; ipcs -m | grep -c 0x"), scene.task("ipcs -m | grep -c 0x"))
    assert [outcome.exit_code for outcome in outcomes] == [0, 1]
    assert scene.log.read_text() == "1\n0\n"


def test_output_of_any_size_goes_to_the_log_in_order(scene: Scene) -> None:
    script = "for i in 1 2 3; do head -c 10000000 /dev/zero | tr '\\0' $i; echo $i >&2; done"
    (outcome,) = run_all(scene.task(script))
    assert outcome.ok
    assert scene.log.read_bytes() == b"".join(digit * 10_000_000 + digit + b"\n" for digit in (b"1", b"2", b"3"))


def test_stdin_of_any_size_can_be_read(scene: Scene) -> None:
    data = os.urandom(1000) * 10_000
    scene.run("cat > /pfs/out/copy", stdin=data)
    assert (scene.out / "copy").read_bytes() == data


def test_stdin_cannot_be_written(scene: Scene) -> None:
    assert "cannot" in scene.run("(echo x >&0) || echo cannot; exit 0", stdin=b"data")


def test_a_hermetic_command_has_a_network_of_its_own(scene: Scene) -> None:
    dialogue = """
import socket
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
client.sendall(b"heard")
print(server.accept()[0].recv(10), [name for _, name in socket.if_nameindex()])
try:
    socket.create_connection(("192.0.2.1", 9), timeout=5)
except OSError as error:
    print(error)
"""
    text = scene.run(argv=["/usr/bin/python3", "-c", dialogue], hermetic=True)
    assert "b'heard' ['lo'" in text
    assert "Network is unreachable" in text
    names = [name for _, name in socket.if_nameindex()]
    assert scene.run("cat /proc/net/dev").count(":") == len(names)


def test_accounts_of_time_and_memory(scene: Scene) -> None:
    program = "import time; data = bytes(range(256)) * 400_000\nwhile time.process_time() < 0.3: pass"
    (outcome,) = run_all(scene.task(argv=["/usr/bin/python3", "-c", program]))
    assert outcome.ok
    assert 100_000_000 < outcome.max_rss < 300_000_000
    assert 0.2 < outcome.user_s + outcome.system_s < 5
    assert outcome.ended_ns - outcome.started_ns >= 300_000_000
    (idle,) = run_all(scene.task("exec sleep 0.2"))
    assert idle.user_s + idle.system_s < 0.1
    assert idle.ended_ns - idle.started_ns >= 200_000_000


# ---- which command it is --------------------------------------------------------------------------------------------


@pytest.fixture
def programs(in_tmp: Path) -> Path:
    files = {
        "plain": ("#!/bin/sh\necho plain", 0o644),
        "orphan": ("#!/no/such/interpreter\n", 0o755),
        "noise": ("no program", 0o755),
        "first/tool": ("", 0o644),
        "second/tool": ("#!/bin/sh\necho second", 0o755),
        "there/sh": ("#!/bin/sh\necho other shell", 0o755),
    }
    for name, (text, mode) in files.items():
        path = in_tmp / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
    return in_tmp


@pytest.mark.parametrize(
    ("name", "reason", "exit_code", "said"),
    [
        ("plain", Reason.NOT_EXECUTABLE, 126, "plain: Permission denied"),
        ("orphan", Reason.NOT_EXECUTABLE, 126, "orphan: the interpreter that it names does not exist"),
        ("noise", Reason.NOT_EXECUTABLE, 126, "noise: Exec format error"),
        ("first", Reason.NOT_EXECUTABLE, 126, "first: Permission denied"),
        ("none", Reason.NOT_FOUND, 127, "none: No such file or directory"),
        ("plain/none", Reason.NOT_FOUND, 127, "plain/none: No such file or directory"),
    ],
)
def test_what_cannot_be_run_is_said_as_a_shell_says_it(
    scene: Scene, programs: Path, name: str, reason: Reason, exit_code: int, said: str
) -> None:
    task = scene.task(argv=[f"./{name}"], cwd=programs, keep_visible=[programs])
    outcome, by_path, after = run_all(task, replace(task, argv=[os.fspath(programs / name)]), scene.task("true"))
    assert (outcome.reason, outcome.exit_code, outcome.message) == (reason, exit_code, f"./{said}")
    assert (by_path.reason, by_path.exit_code, by_path.message) == (reason, exit_code, f"{programs}/{said}")
    assert scene.log.read_text() == f"./{said}\n{programs}/{said}\n"
    assert after.ok


def test_the_path_is_searched_as_a_shell_does(scene: Scene, programs: Path) -> None:
    def find(name: str, *directories: str) -> Outcome:
        env = {"PATH": ":".join(directories)}
        (outcome,) = run_all(scene.task(argv=[name], env=env, cwd=programs / "there", keep_visible=[programs]))
        return outcome

    assert find("tool", f"{programs}/missing", f"{programs}/first", f"{programs}/second").ok
    assert find("sh", "", "/bin").ok
    assert scene.log.read_text() == "second\nother shell\n"
    assert find("tool", f"{programs}/first", "/bin").message == "tool: Permission denied"
    assert find("tool", "/bin").reason is Reason.NOT_FOUND
    assert find("", "/bin").reason is Reason.NOT_FOUND


def test_without_a_path_the_usual_one_is_searched(scene: Scene) -> None:
    scene.run(argv=["true"], env={})


def test_too_many_arguments(scene: Scene) -> None:
    outcome, after = run_all(scene.task(argv=["true", *["x" * 100_000] * 100]), scene.task("true"))
    assert (outcome.reason, outcome.exit_code) == (Reason.NOT_EXECUTABLE, 126)
    assert "Argument list too long" in outcome.message
    assert after.ok


def test_a_signal_that_ends_the_command(scene: Scene) -> None:
    outcomes = run_all(scene.task("kill -9 $$"), scene.task("kill -SEGV $$"), scene.task("exit 255"))
    assert [(o.reason, o.signal, o.exit_code) for o in outcomes] == [
        (Reason.SIGNALLED, signal.SIGKILL, None),
        (Reason.SIGNALLED, signal.SIGSEGV, None),
        (Reason.FAILED, None, 255),
    ]


def test_a_command_cannot_end_what_watches_it(scene: Scene) -> None:
    text = scene.run(
        "trap '' INT TERM HUP; for s in INT TERM HUP USR1 KILL; do kill -$s 1; kill -$s -1; done; echo alive"
    )
    assert text.endswith("alive\n")


# ---- nothing stays --------------------------------------------------------------------------------------------------

# Ignores what can be ignored, leaves its session and its parent.
STUBBORN = """
trap '' TERM INT HUP
(setsid sh -c 'trap "" TERM HUP; touch /pfs/out/begun; while :; do sleep 1000; done' "$0" &) &
while :; do sleep 1000; done
"""


def test_what_a_command_leaves_running_is_killed_and_the_command_succeeded(scene: Scene) -> None:
    stubborn = STUBBORN.strip().splitlines()[:2]
    script = "\n".join([*stubborn, "while ! test -e /pfs/out/begun; do sleep 0.01; done; exit 0"])
    scene.run(script)
    assert scene.processes() == []


def test_a_time_limit_kills_the_whole_tree(scene: Scene) -> None:
    async def main() -> Outcome:
        async with EXECUTOR.open_worker() as worker:
            outcome = await worker.run(scene.task(STUBBORN, timeout=1))
            assert scene.processes() == []
            return outcome

    outcome = trio.run(main)
    assert (outcome.reason, outcome.exit_code, outcome.signal) == (Reason.TIMEOUT, None, signal.SIGKILL)
    assert (scene.out / "begun").exists()
    assert 0.9 <= (outcome.ended_ns - outcome.started_ns) / 1e9 < 60  # two clocks


async def start_stubborn(worker: Worker, scene: Scene, nursery: trio.Nursery) -> list[WorkerLost]:
    """Returns when the tree of processes is there; how `run` fails, if it does, is put into the list later."""
    failures: list[WorkerLost] = []

    async def run() -> None:
        try:
            await worker.run(scene.task(STUBBORN))
        except WorkerLost as error:
            failures.append(error)

    nursery.start_soon(run)
    await trio.to_thread.run_sync(wait_until, (scene.out / "begun").exists)
    assert scene.processes() != []
    return failures


def test_a_cancellation_kills_the_whole_tree(scene: Scene) -> None:
    async def main() -> None:
        async with EXECUTOR.open_worker() as worker:
            async with trio.open_nursery() as nursery:
                await start_stubborn(worker, scene, nursery)
                nursery.cancel_scope.cancel()
            assert scene.processes() == []
            assert (await worker.run(scene.task("true"))).ok

    trio.run(main)


def test_a_worker_whose_context_ends_takes_everything_along(scene: Scene) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery, EXECUTOR.open_worker() as worker:
            await start_stubborn(worker, scene, nursery)
            nursery.cancel_scope.cancel()
        assert scene.processes() == []

    trio.run(main)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("victim", ["keeper", "slot"])
def test_a_worker_that_is_killed_is_an_error_and_takes_its_datum_along(scene: Scene, victim: str) -> None:
    before = set(children(os.getpid()))

    async def main() -> None:
        async with EXECUTOR.open_worker() as worker:
            (keeper,) = set(children(os.getpid())) - before
            pid = keeper if victim == "keeper" else children(keeper)[0]
            async with trio.open_nursery() as nursery:
                failures = await start_stubborn(worker, scene, nursery)
                os.kill(pid, signal.SIGKILL)
            assert ["killed by signal 9" in str(failure) for failure in failures] == [True]
            assert scene.processes() == []
            with pytest.raises(WorkerLost, match="killed by signal 9"):
                await worker.run(scene.task("true"))

    trio.run(main)
    assert set(children(os.getpid())) == before


def test_the_first_process_of_a_datum_that_is_killed_is_an_error_of_that_datum(scene: Scene) -> None:
    before = set(children(os.getpid()))

    async def main() -> None:
        async with EXECUTOR.open_worker() as worker:
            (keeper,) = set(children(os.getpid())) - before
            async with trio.open_nursery() as nursery:
                failures = await start_stubborn(worker, scene, nursery)
                for first in children(children(keeper)[0]):
                    if children(first):
                        os.kill(first, signal.SIGKILL)
            assert ["watched the datum was killed by signal 9" in str(failure) for failure in failures] == [True]
            assert scene.processes() == []
            assert (await worker.run(scene.task("true"))).ok

    trio.run(main)


def test_nothing_outlives_a_runner_that_is_killed(scene: Scene) -> None:
    program = f"""
        import sys, trio
        from pathlib import Path
        sys.path[:0] = [{os.fspath(PROJECT)!r}, {os.path.dirname(os.path.dirname(trio.__file__))!r}]
        from runner.executors.base import Bind, Task
        from runner.executors.process import ProcessExecutor

        async def main():
            async with ProcessExecutor().open_worker() as worker:
                out, log = Path({os.fspath(scene.out)!r}), Path({os.fspath(scene.log)!r})
                argv = ["sh", "-c", {STUBBORN!r}, {scene.mark!r}]
                await worker.run(Task([], out, argv, {ENV!r}, Path("/"), log))

        trio.run(main)
    """
    runner = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    try:
        wait_until((scene.out / "begun").exists)
        keeper = children(runner.pid)[0]
        family = [keeper, *children(keeper)]
        assert len(family) == 2
        for descendant in family:
            family += children(descendant) if descendant not in family[:2] else []
    finally:
        runner.kill()
        runner.wait()
    wait_until(lambda: scene.processes() == [] and not any(Path(f"/proc/{pid}").exists() for pid in family))


def test_two_workers_do_not_see_each_other(tmp_path: Path) -> None:
    left, right = Scene(tmp_path / "left"), Scene(tmp_path / "right")

    async def main() -> None:
        async with EXECUTOR.open_worker() as one, EXECUTOR.open_worker() as other, trio.open_nursery() as nursery:
            await start_stubborn(one, left, nursery)
            script = "ls -A /tmp /dev/shm; cat /pfs/images/a.txt; find /pfs; cat /proc/*/cmdline | tr '\\0' ' '"
            assert (await other.run(right.task(script))).ok
            nursery.cancel_scope.cancel()

    trio.run(main)
    text = right.log.read_text()
    assert "begun" not in text
    assert left.mark not in text
    assert right.mark in text


def test_no_process_and_no_file_descriptor_is_left_of_a_worker(scene: Scene) -> None:
    def held() -> tuple[list[int], int]:
        return children(os.getpid()), len(os.listdir("/proc/self/fd"))

    run_all(scene.task("true"))
    before = held()
    for _ in range(3):
        run_all(scene.task("true"), scene.task("false"))
    assert held() == before


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"out": Path("/no/out")}, {"binds": [Bind(b"/no/\nin", b"images")]}])
def test_a_task_that_cannot_be_shown_is_refused_on_one_line(scene: Scene, changes: dict[str, Any]) -> None:
    with pytest.raises(
        TaskRefused, match=r"^cannot show '/no/(out|\\nin)' at '/pfs/(out|images)': No such file or dir"
    ) as e:
        run_all(scene.task("true", **changes))
    assert "\n" not in str(e.value)


def test_a_process_that_cannot_be_killed_is_given_up(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopping the slot stands for one that hangs."""
    monkeypatch.setattr("runner.executors.process._STOPPING_S", 0.3)
    before = set(children(os.getpid()))

    async def main() -> None:
        async with EXECUTOR.open_worker() as worker:
            (keeper,) = set(children(os.getpid())) - before
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    await start_stubborn(worker, scene, nursery)
                    os.kill(children(keeper)[0], signal.SIGSTOP)
                    scope.cancel()
            with pytest.raises(WorkerLost, match="does not answer"):
                await worker.run(scene.task("true"))

    trio.run(main)
    wait_until(lambda: scene.processes() == [])


FACTS = refusals.Facts(
    privileged=False,
    kernel="6.1.0-18-amd64",
    max_user_namespaces=15000,
    unprivileged_userns_clone=1,
    apparmor_restrict_unprivileged_userns=0,
    container=False,
    seccomp=False,
)


@pytest.mark.parametrize(
    ("changes", "step", "number", "said"),
    [
        ({"kernel": "5.10.0"}, "root directory", errno.ENOSYS, ["needs? Linux 5.12", "5.10.0"]),
        ({}, "proc", errno.ENOENT, ["/proc", "mount -t proc"]),
        ({"max_user_namespaces": 0}, "user namespace", errno.ENOSPC, ["user.max_user_namespaces=15000"]),
        ({"unprivileged_userns_clone": 0}, "user namespace", errno.EPERM, ["kernel.unprivileged_userns_clone=1"]),
        (
            {"apparmor_restrict_unprivileged_userns": 1},
            "user namespace",
            errno.EACCES,
            ["AppArmor", "kernel.apparmor_restrict_unprivileged_userns=0", "as root"],
        ),
        (
            {"max_user_namespaces": 0, "apparmor_restrict_unprivileged_userns": 1},
            "user namespace",
            errno.ENOSPC,
            ["max_user_namespaces", "apparmor_restrict"],
        ),
        ({"seccomp": True}, "user namespace", errno.EPERM, ["container", "--privileged", "seccomp=unconfined"]),
        ({"container": True, "privileged": True}, "root directory", errno.EACCES, ["container", "apparmor=unconfined"]),
        ({}, "user namespace", errno.ENOSPC, ["no user namespace is left", "/proc/sys/user"]),
        ({}, "user namespace", errno.EINVAL, ["kernel has no user namespaces"]),
        ({}, "root directory", errno.EPERM, ["Operation not permitted", "run the job as root"]),
        ({"privileged": True}, "root directory", errno.EPERM, ["Operation not permitted", "dmesg"]),
    ],
)
def test_a_refusal_is_explained(changes: dict[str, Any], step: str, number: int, said: list[str]) -> None:
    obstacles = refusals.explain(step, number, replace(FACTS, **changes))
    lines = list(map(str, obstacles))
    assert all("\n" not in line for line in lines)
    for pattern in said:
        assert any(re.search(pattern, line) for line in lines), lines
    assert str(ExecutorUnavailable(obstacles)) == f"{obstacles[0].problem} ({obstacles[0].remedy})"


def test_a_machine_without_user_namespaces_says_so(scene: Scene) -> None:
    """A real one: a user namespace in which there may be no others, and a user in it who has no capabilities."""
    program = f"""
        import sys, trio
        sys.path[:0] = [{os.fspath(PROJECT)!r}, {os.path.dirname(os.path.dirname(trio.__file__))!r}]
        from runner.executors.process import ProcessExecutor
        print(*trio.run(ProcessExecutor().preflight), sep="\\n")
    """
    inside = 'echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --inh-caps=-all --bounding-set=-all "$@"'
    run = subprocess.run(
        ["unshare", "-Ur", "sh", "-c", inside, "sh", sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
    )
    assert run.stdout == (
        "user namespaces are switched off (user.max_user_namespaces=0): "
        "as root: sysctl -w user.max_user_namespaces=15000; or run the job as root\n"
    ), run.stderr


def test_a_worker_imports_only_what_loads_quickly() -> None:
    """Half of a worker's start is its imports."""
    program = "import sys; sys.path.append(sys.argv[1]); import runner.executors.sandbox; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-I", "-S", "-c", program, PROJECT], text=True).split()
    slow = {"dataclasses", "enum", "inspect", "json", "re", "signal", "socket", "subprocess", "trio", "typing"}
    assert slow.isdisjoint(loaded)
    assert {name for name in loaded if name.startswith(("runner", "pfsmount"))} == {
        "runner",
        "runner.executors",
        *(
            f"runner.executors.{name}"
            for name in ("cells", "datum", "mounts", "namespaces", "sandbox", "syscalls", "wire")
        ),
    }


def test_kept_paths_that_would_be_hidden(in_tmp: Path) -> None:
    (in_tmp / "a" / "b").mkdir(parents=True)
    (in_tmp / "a-b").touch()
    (in_tmp / "link").symlink_to("a/b")
    place = os.fsencode(in_tmp)
    kept = [place + b"/a/b/../b", place + b"/a", place + b"/a-b", place + b"/link", place + b"/none", b"/tmp", b"/usr"]
    assert mounts.hidden_paths(kept) == [place + b"/a", place + b"/a-b", place + b"/link"]
    assert mounts.hidden_paths([place + b"/link"]) == [place + b"/a/b", place + b"/link"]


def test_candidates_of_a_command(in_tmp: Path) -> None:
    assert list(datum.candidates(b"a/b", {})) == [b"a/b"]
    assert list(datum.candidates(b"sh", {b"PATH": b"/none:/bin"})) == [b"/bin/sh"]


# ---- as root --------------------------------------------------------------------------------------------------------

IN_ANOTHER_WORLD = """
import os, subprocess, sys, trio
from pathlib import Path
sys.path[:0] = {paths!r}
from runner.executors.base import Bind, Task
from runner.executors.process import ProcessExecutor

def mounts():
    return sorted(open("/proc/self/mountinfo").read().splitlines())

async def main():
    place = Path({place!r})
    before = mounts()
    script = "cat /pfs/images/a.txt; mount -t tmpfs tmpfs /mnt; mount -t tmpfs tmpfs /pfs/out; mount -t tmpfs tmpfs /pfs/images"
    async with ProcessExecutor().open_worker() as worker:
        task = Task([Bind(os.fsencode(place / "images"), b"images")], place / "out", ["sh", "-c", script], {env!r}, Path("/"), place / "log")
        outcome = await worker.run(task)
        assert mounts() == before, mounts()
        if Path("/late").exists():
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/late"], check=True)
            Path("/late/file").write_text("late")
            binds = [Bind(b"/late/file", b"in/file")]
            argv = ["cat", "/pfs/in/file", "/late/file"]
            late = await worker.run(Task(binds, place / "out", argv, {env!r}, Path("/"), place / "log"))
            subprocess.run(["umount", "/late"], check=True)
            assert late.ok
    assert mounts() == before, mounts()
    print(outcome.reason.value, (place / "log").read_text())

trio.run(main)
"""


def in_another_world(scene: Scene, prepare: str, place: str, root: str = "") -> str:
    """Runs a task as root in a mount namespace that a script has prepared; mounts are shared there as systemd does it."""
    paths = [os.fspath(PROJECT), os.path.dirname(os.path.dirname(trio.__file__))]
    program = IN_ANOTHER_WORLD.format(paths=paths, place=place, env=ENV)
    script = f'set -e; mount --make-rshared /; {prepare}; exec {root} "$@"'
    argv = ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-c", program]
    run = subprocess.run(argv, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


@needs_root
def test_mounts_of_a_datum_do_not_reach_a_host_whose_mounts_are_shared(scene: Scene) -> None:
    assert in_another_world(scene, "true", os.fspath(scene.place)) == "ok a picture\n"


@needs_root
def test_what_the_host_mounts_later_is_seen(scene: Scene) -> None:
    """In a root of its own, because the host's must not get a directory."""
    root = scene.place / "root"
    binds = "; ".join(
        f"mkdir {root}/{name}; mount --rbind /{name} {root}/{name}"
        for name in os.listdir("/")
        if os.path.isdir(f"/{name}") and not os.path.islink(f"/{name}") and name not in ("pfs", "lost+found")
    )
    links = "; ".join(f"ln -s {os.readlink(f'/{n}')} {root}/{n}" for n in os.listdir("/") if os.path.islink(f"/{n}"))
    prepare = (
        f"mkdir {root}; mount -t tmpfs tmpfs {root}; mount --make-shared {root}; {binds}; {links}; mkdir {root}/late"
    )
    world = f"{prepare}; cd {root}; mkdir old; mount --make-private {root}; mount --make-private /; pivot_root . old; cd /; umount -l /old; mount --make-rshared /"
    text = in_another_world(scene, world, os.fspath(scene.place))
    assert text == "ok a picturelatelate\n"


@needs_root
def test_a_chroot_is_a_host_too(scene: Scene) -> None:
    """Its root directory is no mount, so that there is nothing to pivot."""
    root = scene.place / "root"
    root.mkdir()
    names = [name for name in os.listdir("/") if os.path.isdir(f"/{name}") and name not in ("pfs", "lost+found")]
    for name in names:
        if os.path.islink(f"/{name}"):
            (root / name).symlink_to(os.readlink(f"/{name}"))
        else:
            (root / name).mkdir()
    binds = "; ".join(f"mount --rbind /{name} {root}/{name}" for name in names if not os.path.islink(f"/{name}"))
    text = in_another_world(scene, binds, os.fspath(scene.place), root=f"chroot {root}")
    assert text == "ok a picture\n"


ORDINARY_USER = "nobody"


def python_for(user: pwd.struct_passwd) -> str:
    """An interpreter that the user can run, of our version, so that it can import what we import."""
    needed = "import attr, idna, outcome, pytest, sniffio, sortedcontainers, trio, runner"
    tried = []
    for python in dict.fromkeys([sys.executable, "/usr/bin/python3", f"/usr/bin/python3.{sys.version_info.minor}"]):
        try:
            subprocess.run(
                [python, "-c", needed],
                env=user_env(),
                user=user.pw_uid,
                group=user.pw_gid,
                cwd="/",
                capture_output=True,
                text=True,
                check=True,
            )
            return python
        except OSError as error:
            tried.append(f"{python}: {error.strerror}")
        except subprocess.CalledProcessError as error:
            tried.append(f"{python}: {error.stderr.strip().splitlines()[-1]}")
    pytest.skip(f"no Python for the user {user.pw_name}: {'; '.join(tried)}")


def user_env() -> dict[str, str]:
    site = os.path.dirname(os.path.dirname(trio.__file__))
    return {**ENV, "PYTHONPATH": f"{PROJECT}:{site}", "PYTHONDONTWRITEBYTECODE": "1"}


@needs_root
@pytest.mark.timeout(300)
def test_all_of_this_as_an_ordinary_user(in_tmp: Path) -> None:
    user = pwd.getpwnam(ORDINARY_USER)
    python = python_for(user)
    os.chown(in_tmp, user.pw_uid, user.pw_gid)
    suite = ["tests/test_sandbox.py", "tests/contracts/test_executor.py"]
    run = subprocess.run(
        [
            python,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--noconftest",
            f"--basetemp={in_tmp}/tests",
            *suite,
            "-k",
            "not podman",
        ],
        cwd=PROJECT,
        env=user_env(),
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
        capture_output=True,
        text=True,
    )
    print(run.stdout[-3000:])
    assert run.returncode == 0, run.stdout + run.stderr
    skipped = re.findall(r"^SKIPPED .*", run.stdout, re.MULTILINE)
    expected = ("needs root", "limits need a cgroup")
    assert all(any(reason in line for reason in expected) for line in skipped), skipped
