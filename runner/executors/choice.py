"""Which executor runs a job, and the image that its containers are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import trio

from pfsmount.errors import InvalidInput, NotFound, PfsError
from pfsmount.ids import display
from runner.executors.base import Executor, ExecutorUnavailable, Obstacle
from runner.executors.containers.engine import Engine, ImageInfo, ImageMissing
from runner.program import Image
from runner.spec import JobSpec

PROCESS, PODMAN, DOCKER = "process", "podman", "docker"
NAMES = (PROCESS, PODMAN, DOCKER)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the caller says about this machine."""

    cache: Path
    """A directory for what is made once and used by all jobs."""
    docker_host: str | None = None
    """Where Docker's API is; None: where Docker's own client looks."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where the commands of a job run."""

    name: str
    image: Image | None
    open: Callable[[Path], Executor]
    """The executor of a job that works in this directory."""
    notes: tuple[str, ...] = ()
    """What the user should know, one line each."""


def choose_runtime(spec: JobSpec, settings: Settings) -> Runtime:
    """The executor that a spec names; else `process` without an image, and with one the first engine that has it.

    Blocks: an image that no engine has is fetched. Raises InvalidInput, ImageMissing, ExecutorUnavailable.
    """
    name = spec.executor or ("" if spec.image else PROCESS)
    if name == PROCESS:
        return _process(spec)
    if not spec.image:
        raise InvalidInput(f"{name} runs containers, and the job names no image", hint="name one with --image")
    engines = [_engine(one, settings) for one in ((name,) if name else (PODMAN, DOCKER))]
    engine, info = trio.run(_find, engines, spec.image)
    image = Image(spec.image, info.id, info.digests, engine.name, info.entrypoint + info.cmd)

    def open_executor(directory: Path) -> Executor:
        from runner.executors.containers.executor import ContainerExecutor

        work = directory / "c"
        work.mkdir(mode=0o755)
        return ContainerExecutor(
            engine,
            info.id,
            work=work,
            cache=settings.cache,
            user=spec.user,
            workdir=spec.working_dir,
            limits=spec.limits,
            gpus=spec.gpus,
            hermetic=spec.hermetic,
            isolate=spec.isolate,
            labels={"pfs.job": directory.name},
        )

    return Runtime(engine.name, image, open_executor)


def _process(spec: JobSpec) -> Runtime:
    from runner.executors.process import ProcessExecutor

    if spec.user:
        raise InvalidInput("a program of this machine runs as whoever runs the job", hint="a user needs an image")
    notes = []
    if spec.image:
        notes.append(
            f"runs programs of this machine, not the image {display(spec.image)}, because the executor is 'process'"
        )
    if spec.gpus:
        notes.append("programs of this machine see all its GPUs: the number asked for is not looked at")
    return Runtime(PROCESS, None, lambda directory: ProcessExecutor(spec.limits), tuple(notes))


def _engine(name: str, settings: Settings) -> Engine:
    if name == PODMAN:
        from runner.executors.containers.podman import PodmanEngine

        return PodmanEngine()
    if name == DOCKER:
        from runner.executors.containers.docker_api import DockerEngine

        return DockerEngine(settings.docker_host)
    raise InvalidInput(f"there is no executor '{display(name)}'", hint=f"there are {', '.join(NAMES)}")


async def _find(engines: Iterable[Engine], reference: str) -> tuple[Engine, ImageInfo]:
    """The first engine that has the image, or can get it."""
    usable, obstacles = [], list[Obstacle]()
    for engine in engines:
        found = await engine.obstacles()
        obstacles += found
        if not found:
            usable.append(engine)
    if not usable:
        raise ExecutorUnavailable(obstacles)
    for engine in usable:
        try:
            return engine, await engine.find_image(reference)
        except ImageMissing:
            continue
    failures: list[PfsError] = []
    for engine in usable:
        try:
            return engine, await engine.pull_image(reference)
        except NotFound as error:
            failures.append(error)
    raise failures[0]
