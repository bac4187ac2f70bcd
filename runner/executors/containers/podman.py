"""Podman, through its command: it has no daemon, and an ordinary user has containers of their own."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence

import trio

from runner.executors.base import Obstacle
from runner.executors.containers.engine import (
    ContainerOptions,
    EngineError,
    ImageInfo,
    ImageMissing,
    Mount,
    image_from,
)

# Words of podman and its runtimes (in small letters) that a setting helps against; tried on hosts that refuse the defaults.
_SETTINGS = {
    "rlimit": 'in containers.conf, [containers]: default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]',
    "hybrid": 'in containers.conf, [engine]: runtime = "runc" and cgroup_manager = "cgroupfs"',
    "systemd": 'in containers.conf, [engine]: cgroup_manager = "cgroupfs"',
    "subuid": "give the user ids in /etc/subuid and /etc/subgid: usermod --add-subuids 100000-165535 "
    "--add-subgids 100000-165535 USER",
    "newuidmap": "apt-get install uidmap",
    "xdg_runtime_dir": "log in with a session, or set XDG_RUNTIME_DIR to a directory of mode 0700",
}


class PodmanEngine:
    """`command` may have global options (`--root DIR`); `env` is its whole environment, None: the caller's."""

    name = "podman"

    def __init__(self, command: Sequence[str] = ("podman",), *, env: Mapping[str, str] | None = None) -> None:
        self._command = tuple(command)
        self._env = None if env is None else dict(env)

    @property
    def command(self) -> tuple[str, ...]:
        return self._command

    @property
    def unshare(self) -> tuple[str, ...]:
        return (*self._command, "unshare")

    @property
    def env(self) -> Mapping[str, str] | None:
        return self._env

    async def obstacles(self) -> tuple[Obstacle, ...]:
        path = None if self._env is None else self._env.get("PATH", os.defpath)
        if shutil.which(self._command[0], path=path) is None:
            return (Obstacle(f"{self._command[0]} is not installed", "apt-get install podman"),)
        try:
            await self.version()
        except EngineError as error:
            return (Obstacle(error.message, error.hint or "see whether `podman info` works"),)
        return ()

    async def version(self) -> str:
        return (await self._run("version", "--format", "{{.Client.Version}}")).strip()

    async def is_rootless(self) -> bool:
        return (await self._run("info", "--format", "{{.Host.Security.Rootless}}")).strip() == "true"

    async def find_image(self, reference: str) -> ImageInfo:
        try:
            (document,) = json.loads(await self._run("image", "inspect", reference))
        except EngineError as error:
            if "no such image" in error.message or "image not known" in error.message:
                raise ImageMissing(f"podman has no image {reference}", hint=f"podman pull {reference}") from error
            raise
        return image_from(document)

    async def pull_image(self, reference: str) -> ImageInfo:
        try:
            await self._run("pull", "--quiet", reference)
        except EngineError as error:
            raise ImageMissing(f"cannot get the image {reference}: {error.message}", hint=error.hint) from error
        return await self.find_image(reference)

    async def start(self, options: ContainerOptions) -> str:
        return (await self._run("run", *arguments_of(options))).strip()

    async def remove(self, container: str) -> None:
        await self._run("rm", "--force", "--ignore", "--volumes", "--time=0", container)

    async def _run(self, *arguments: str) -> str:
        """What it prints. It is not killed when the caller is cancelled: half of a change is worse than a wait."""
        try:
            with trio.CancelScope(shield=True):
                done = await trio.run_process(
                    [*self._command, *arguments],
                    stdin=subprocess.DEVNULL,
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                    env=self._env,
                    start_new_session=True,  # Ctrl-C is for the runner to act on
                )
        except OSError as error:
            raise EngineError(f"cannot start {self._command[0]}: {error.strerror}") from error
        if done.returncode:
            raise refusal(done.stderr.decode(errors="replace"))
        return done.stdout.decode(errors="replace")


def refusal(said: str) -> EngineError:
    """From what podman prints: warnings of its log, then `Error: …`."""
    lines = [line for line in said.splitlines() if line and not line.startswith("time=")]
    last = (lines or said.splitlines() or ["podman failed and said nothing"])[-1]
    hint = next((setting for word, setting in _SETTINGS.items() if word in said.lower()), None)
    return EngineError(f"podman: {last.removeprefix('Error: ')}", hint=hint)


def arguments_of(options: ContainerOptions) -> list[str]:
    return [*("--detach", "--rm", "--pull=never", "--ipc=private"), *_options(options), options.image]


def _options(options: ContainerOptions) -> Iterator[str]:
    yield f"--entrypoint={json.dumps([options.entrypoint])}"
    for mount in options.mounts:
        yield f"--mount={describe_mount(mount)}"
    for name, value in options.labels.items():
        yield f"--label={name}={value}"
    if options.user:
        yield f"--user={options.user}"
    if options.workdir:
        yield f"--workdir={options.workdir}"
    if options.hermetic:
        yield "--network=none"
    if options.gpus:
        yield "--device=nvidia.com/gpu=all"
    limits = options.limits
    if limits.memory is not None:
        yield f"--memory={limits.memory}b"
        yield f"--memory-swap={limits.memory}b"
    if limits.cpus is not None:
        yield f"--cpus={limits.cpus}"
    if limits.pids is not None:
        yield f"--pids-limit={limits.pids}"


def describe_mount(mount: Mount) -> str:
    """Fields in CSV, so that any path can be given."""
    fields = ["type=bind", f"src={mount.source}", f"dst={mount.target}", f"ro={str(mount.read_only).lower()}"]
    if mount.propagates:
        fields.append("bind-propagation=rslave")
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()
