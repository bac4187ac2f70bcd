"""Docker Engine, and all that speak its API (`podman system service`): through docker-py, which this module alone imports.

docker-py blocks, so its calls are made in threads. They are not interrupted: a container whose start nobody waits for any more
would be left behind.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from runner.executors.base import Obstacle
from runner.executors.containers.engine import ContainerOptions, EngineError, ImageInfo, ImageMissing, image_from

if TYPE_CHECKING:
    import docker

T = TypeVar("T")
_CONFLICT = 409
_USUAL_HOST = "unix:///var/run/docker.sock"
_PATIENCE_S = 300  # for one answer: a registry may be slow


class DockerEngine:
    """`host` is where the API is, as in DOCKER_HOST; None: where docker-py looks by itself (DOCKER_HOST, the usual socket)."""

    name = "docker"
    unshare: tuple[str, ...] = ()
    env: Mapping[str, str] | None = None

    def __init__(self, host: str | None = None) -> None:
        self._host = host

    @property
    def host(self) -> str | None:
        return self._host

    async def obstacles(self) -> tuple[Obstacle, ...]:
        try:
            await self.version()
        except EngineError as error:
            return (Obstacle(error.message, error.hint or "see whether `docker version` works"),)
        return ()

    async def version(self) -> str:
        return str(await self._call(lambda client: client.version()["Version"]))

    async def is_rootless(self) -> bool:
        options = await self._call(lambda client: client.info().get("SecurityOptions") or ())
        return any("name=rootless" in option for option in options)

    async def find_image(self, reference: str) -> ImageInfo:
        try:
            return image_from(await self._call(lambda client: client.images.get(reference).attrs))
        except EngineError as error:
            if _is_not_found(error):
                raise ImageMissing(f"docker has no image {reference}", hint=f"docker pull {reference}") from error
            raise

    async def pull_image(self, reference: str) -> ImageInfo:
        def pull(client: docker.DockerClient) -> Any:
            from docker.utils import parse_repository_tag

            # without a tag docker-py would get all that there are
            tagged = parse_repository_tag(reference)[1]
            return client.images.pull(reference, tag=None if tagged else "latest").attrs

        try:
            return image_from(await self._call(pull))
        except EngineError as error:
            raise ImageMissing(f"cannot get the image {reference}: {error.message}", hint=error.hint) from error

    async def start(self, options: ContainerOptions) -> str:
        def start(client: docker.DockerClient) -> str:
            container = client.containers.create(**arguments_of(options))
            try:
                container.start()
            except BaseException:
                container.remove(force=True, v=True)
                raise
            return str(container.id)

        return await self._call(start)

    async def remove(self, container: str) -> None:
        def remove(client: docker.DockerClient) -> None:
            from docker.errors import APIError, NotFound

            try:
                client.api.remove_container(container, force=True, v=True)
            except NotFound:
                return
            except APIError as error:
                if error.status_code != _CONFLICT:
                    raise
                with suppress(NotFound):  # the daemon itself is at it
                    client.api.wait(container, condition="removed")

        await self._call(remove)

    async def _call(self, ask: Callable[[docker.DockerClient], T]) -> T:
        def call() -> T:
            import docker
            import requests.exceptions

            try:
                with closing(self._connect()) as client:
                    return ask(client)
            except docker.errors.APIError as error:
                raise EngineError(f"docker: {error.explanation or error}") from error
            except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
                raise EngineError(f"the Docker daemon does not answer: {error}", hint=_hint(str(error))) from error

        with trio.CancelScope(shield=True):
            answer = await trio.to_thread.run_sync(call)
        return answer

    def _connect(self) -> docker.DockerClient:
        import docker
        from docker.utils import kwargs_from_env

        settings = kwargs_from_env() if self._host is None else {"base_url": self._host}
        try_socket(settings.setdefault("base_url", _USUAL_HOST))
        return docker.DockerClient(**settings, timeout=_PATIENCE_S)


def try_socket(host: str) -> None:
    """Before docker-py does, which says less of what is wrong and leaves its socket open. Raises EngineError."""
    scheme, _, path = host.partition("://")
    if not scheme.endswith("unix"):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path if path.startswith("/") else f"/{path}")
        except OSError as error:
            message = f"the Docker daemon does not answer at {host}: {error.strerror or error}"
            raise EngineError(message, hint=_hint(message)) from error


def _is_not_found(error: EngineError) -> bool:
    import docker

    return isinstance(error.__cause__, docker.errors.NotFound)


def _hint(said: str) -> str:
    if "Permission denied" in said:
        return "add the user to the group docker, or use podman"
    return "start it (systemctl start docker), or say where it is with DOCKER_HOST"


def arguments_of(options: ContainerOptions) -> dict[str, Any]:
    """For `containers.create` of docker-py."""
    from docker.types import DeviceRequest
    from docker.types import Mount as DockerMount

    limits = options.limits
    given = {
        "user": options.user or None,
        "working_dir": options.workdir or None,
        "network_mode": "none" if options.hermetic else None,
        "mem_limit": limits.memory,
        "memswap_limit": limits.memory,
        "nano_cpus": None if limits.cpus is None else round(limits.cpus * 1e9),
        "pids_limit": limits.pids,
        "device_requests": [DeviceRequest(count=options.gpus, capabilities=[["gpu"]])] if options.gpus else None,
    }
    return {
        "image": options.image,
        "entrypoint": [options.entrypoint],
        "labels": dict(options.labels),
        "auto_remove": True,
        "ipc_mode": "private",
        "mounts": [
            DockerMount(
                mount.target,
                str(mount.source),
                type="bind",
                read_only=mount.read_only,
                propagation="rslave" if mount.propagates else None,
            )
            for mount in options.mounts
        ],
        **{name: value for name, value in given.items() if value is not None},
    }
