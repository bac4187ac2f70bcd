"""What a container engine does for the executor: finds images, starts containers, removes them. Everything else goes past it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pfsmount.errors import NotFound, PfsError
from runner.executors.base import ExecutorError, Limits, Obstacle


class EngineError(ExecutorError):
    """The engine refused, in its own words."""


class ImageMissing(EngineError, NotFound):
    """The engine has no such image, or cannot get it."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What an image says of itself. An empty `user` is root, an empty `workdir` is `/`."""

    id: str
    """The hash by which the engine knows it, with `sha256:`; in most it is that of the image's configuration."""
    digests: tuple[str, ...]  # of its manifest in registries: `name@sha256:…`
    user: str
    workdir: str
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    env: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Mount:
    """A directory of the host in a container. What is mounted in it later is seen only with `propagates`."""

    source: Path
    target: str
    read_only: bool
    propagates: bool = False


@dataclass(frozen=True, slots=True)
class ContainerOptions:
    """How to start a container. What is empty or None is left to the image and the engine."""

    image: str
    entrypoint: str
    mounts: Sequence[Mount]
    user: str = ""
    workdir: str = ""
    limits: Limits = field(default_factory=Limits)
    hermetic: bool = False
    gpus: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)


class Engine(Protocol):
    """Starts containers that the engine itself removes when their first process ends. Raises EngineError."""

    @property
    def name(self) -> str: ...

    @property
    def unshare(self) -> tuple[str, ...]:
        """The command before a command that is to run as root of the containers' user namespace; empty: there is none."""
        ...

    @property
    def env(self) -> Mapping[str, str] | None:
        """The environment of that command; None: the caller's."""
        ...

    async def obstacles(self) -> tuple[Obstacle, ...]:
        """What keeps the engine itself from answering."""
        ...

    async def version(self) -> str: ...

    async def is_rootless(self) -> bool: ...

    async def find_image(self, reference: str) -> ImageInfo:
        """An image that is on this machine. Raises ImageMissing."""
        ...

    async def pull_image(self, reference: str) -> ImageInfo:
        """The image as its registry has it now. Raises ImageMissing."""
        ...

    async def start(self, options: ContainerOptions) -> str:
        """The id of a new container, which runs. It is with none but `mounts` and an IPC namespace of its own."""
        ...

    async def remove(self, container: str) -> None:
        """Kills and removes a container; one that is not there is no error."""
        ...


def argv_of(image: ImageInfo, command: Sequence[str]) -> tuple[str, ...]:
    """What runs in a container: `command` in place of the image's own, as Pachyderm does; else ENTRYPOINT and CMD.

    Raises PfsError where neither says anything.
    """
    argv = tuple(command) or image.entrypoint + image.cmd
    if not argv:
        raise PfsError("the image has no ENTRYPOINT and no CMD", hint="give a command")
    return argv


def image_from(document: Mapping[str, Any]) -> ImageInfo:
    """From the JSON that `image inspect` gives, which podman and docker share."""
    config = document.get("Config") or {}
    identity = str(document["Id"])
    variables = (variable.partition("=") for variable in config.get("Env") or ())
    return ImageInfo(
        id=identity if ":" in identity else f"sha256:{identity}",
        digests=tuple(document.get("RepoDigests") or ()),
        user=config.get("User") or "",
        workdir=config.get("WorkingDir") or "",
        entrypoint=tuple(config.get("Entrypoint") or ()),
        cmd=tuple(config.get("Cmd") or ()),
        env={name: value for name, _, value in variables},
    )
