"""`pfsjob` with images, as a person uses it: real containers of podman."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from runner.executors.containers.podman import PodmanEngine
from tests.engines import CACHE, IMAGE, run
from tests.runner.test_cli import Shell, set_up, wait_until


@pytest.fixture
def contained(tmp_path: Path, podman: PodmanEngine) -> Shell:
    """A store, and a `podman` in PATH that has the images of the tests."""
    shell = Shell(tmp_path)
    assert podman.env is not None
    place = tmp_path / "bin"
    place.mkdir()
    real = shutil.which("podman")
    (place / "podman").write_text(f'#!/bin/sh\nexec {real} {" ".join(podman.command[1:])} "$@"\n')
    (place / "podman").chmod(0o755)
    shell.env["PATH"] = f"{place}:{shell.env['PATH']}:/usr/sbin:/sbin"
    shell.env["CONTAINERS_CONF"] = podman.env["CONTAINERS_CONF"]
    shell.env["XDG_CACHE_HOME"] = os.fspath(CACHE)
    return set_up(shell)


def arguments(*options: str, command: str) -> list[str]:
    flags = ["run", "--image", IMAGE, "--hermetic", "-i", "in@master:/*", "-o", "out@master", *options]
    return [*flags, "--", "sh", "-c", command]


UPPER = 'umask 077; echo "reading $in in $PWD as $(id -u), $COLOUR"; tr a-z A-Z < $in > /pfs/out/$(basename $in)'


def test_a_job_in_containers(contained: Shell) -> None:
    contained.put({"a": "one", "b": "two"})
    said = contained.run("pfsjob", *arguments("--user", "1000", command=UPPER))
    assert "2 processed" in said
    assert (contained.cat("out@master:/a"), contained.cat("out@master:/b")) == ("ONE", "TWO")
    listing = contained.run("pfs", "ls", "-l", "out@master")
    assert listing.count("-rw-------") == 2
    assert "reading /pfs/in/a in /home as 1000, green" in contained.run("pfsjob", "logs", "--datum", "/a")
    shown = contained.run("pfsjob", "inspect", newest(contained))
    assert IMAGE in shown
    assert "by podman" in shown
    provenance = json.loads(contained.run("pfs", "show", "--json", "out@master"))["provenance"]
    assert provenance["code"]["image"]["id"].startswith("sha256:")
    assert provenance["network"] == "none"
    assert "nothing to do" in contained.run("pfsjob", *arguments("--user", "1000", command=UPPER))
    # the image's own command, once the spec names none
    flags = arguments(command="")
    contained.run("pfsjob", *flags[: flags.index("--")], "--output", "own@master")
    assert "the image" in contained.run("pfsjob", "logs", "--datum", "/a")


def newest(shell: Shell) -> str:
    return str(json.loads(shell.run("pfsjob", "list", "--json"))[0]["job"])


@pytest.mark.long
def test_a_tag_that_moved_is_said(contained: Shell, podman: PodmanEngine) -> None:
    moved = "localhost/pfs-test:moved"
    run([*podman.command, "tag", IMAGE, moved], env=podman.env)
    contained.put({"a": "one"})
    flags = ["--image", moved, "--hermetic", "-i", "in@master:/*", "-o", "out@master", "--", "sh", "-c", UPPER]
    contained.run("pfsjob", "run", *flags)
    (contained.root / "Containerfile").write_text(f"FROM {IMAGE}\nENV COLOUR=red\n")
    build = ["build", "-q", "-t", moved, "-f", f"{contained.root}/Containerfile", f"{contained.root}/code"]
    run([*podman.command, *build], env=podman.env)
    assert "(changed: the image)" in contained.run("pfsjob", "plan", *flags)
    assert f"the image {moved} is another one than in {newest(contained)}" in contained.run("pfsjob", "run", *flags)
    assert "red" in contained.run("pfsjob", "logs")


@pytest.mark.long
def test_a_container_that_dies_is_told_and_its_datum_runs_again(contained: Shell, podman: PodmanEngine) -> None:
    contained.put({"a": "one"})
    command = "[ -e /pfs/in/a ]; echo begun; sleep 3600"
    job = contained.start("pfsjob", *arguments("--workers", "1", command=command))
    for _ in range(2):
        wait_until(lambda: len(containers(podman)) == 1 and any_log(contained, "begun"))
        subprocess.run([*podman.command, "kill", *containers(podman)], env=podman.env, check=True, capture_output=True)
        wait_until(lambda: not any_log(contained, "begun"))
    out, errors = job.communicate(timeout=60)
    assert job.returncode == 1
    assert "Traceback" not in errors
    assert "/a: " in errors
    assert "container" in errors
    wait_until(lambda: not containers(podman))
    assert "1 failed" in out


def containers(podman: PodmanEngine) -> list[str]:
    return run([*podman.command, "ps", "-q"], env=podman.env).split()


def any_log(shell: Shell, text: str) -> bool:
    return any(text in log.read_text() for log in shell.root.glob("store/jobs/*/d/*/log"))


@pytest.mark.long
def test_a_killed_runner_leaves_no_container(contained: Shell, podman: PodmanEngine) -> None:
    contained.put({"a": "one"})
    job = contained.start("pfsjob", *arguments(command="echo begun; sleep 3600"))
    wait_until(lambda: any_log(contained, "begun"))
    job.kill()
    job.communicate(timeout=60)
    wait_until(lambda: not run([*podman.command, "ps", "-aq"], env=podman.env))
    assert "1 processed" in contained.run("pfsjob", *arguments(command=UPPER))
    assert not list((contained.root / "store" / "jobs").iterdir())


def test_what_an_image_cannot_be(contained: Shell) -> None:
    contained.put({"a": "one"})
    common = ["-i", "in@master:/*", "-o", "out@master"]
    assert "cannot get the image" in contained.run("pfsjob", "run", "--image", "localhost/none", *common, code=1)
    assert "names no image" in contained.run("pfsjob", "run", "--executor", "podman", *common, "--", "true", code=2)
    said = contained.run("pfsjob", "run", "--executor", "lxc", "--image", IMAGE, *common, "--", "true", code=2)
    assert "there are process, podman, docker" in said
    assert "needs an image" in contained.run("pfsjob", "run", "--user", "1", *common, "--", "true", code=2)
