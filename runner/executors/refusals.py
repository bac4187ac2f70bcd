"""Why a machine refuses the namespaces that process jobs need, and what its owner can do: a pure function of facts."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from runner.executors import namespaces
from runner.executors.base import Obstacle

OLDEST_KERNEL = (5, 12)  # mount_setattr(2)


@dataclass(frozen=True)
class Facts:
    """What explains a refusal. A sysctl that the kernel does not have is None."""

    privileged: bool
    kernel: str
    max_user_namespaces: int | None
    unprivileged_userns_clone: int | None
    apparmor_restrict_unprivileged_userns: int | None
    container: bool
    seccomp: bool


def collect_facts() -> Facts:
    return Facts(
        privileged=namespaces.may_mount(),
        kernel=os.uname().release,
        max_user_namespaces=_sysctl("user/max_user_namespaces"),
        unprivileged_userns_clone=_sysctl("kernel/unprivileged_userns_clone"),
        apparmor_restrict_unprivileged_userns=_sysctl("kernel/apparmor_restrict_unprivileged_userns"),
        container=any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv")),
        seccomp=_status("Seccomp") == "2",
    )


def explain(step: str, number: int, facts: Facts) -> tuple[Obstacle, ...]:
    """What is behind errno `number` at `step` of a worker's start; at least one obstacle."""
    if _version(facts.kernel) < OLDEST_KERNEL:
        return (Obstacle(f"process jobs need Linux 5.12 or newer, and this is {facts.kernel}", "use a newer kernel"),)
    if step == "proc":
        return (Obstacle("process jobs need /proc, and it is not mounted", "mount -t proc proc /proc"),)
    if not facts.privileged and (switches := _switched_off(facts)):
        return switches
    if facts.container or facts.seccomp:
        return (
            Obstacle(
                f"this container does not allow what process jobs need ({step}: {os.strerror(number)})",
                "run it with --privileged, or with --cap-add SYS_ADMIN --security-opt seccomp=unconfined "
                "--security-opt apparmor=unconfined",
            ),
        )
    if number == errno.ENOSPC:
        return (Obstacle(f"no {step} is left for process jobs", "raise the limits in /proc/sys/user"),)
    if number == errno.EINVAL and step in ("user namespace", "mount namespace", "pid namespace"):
        return (Obstacle(f"this kernel has no {step}s, which process jobs need", "use a distribution's kernel"),)
    remedy = "look in the kernel's log (dmesg) for a security module that refused it"
    return (
        Obstacle(
            f"process jobs need a {step} of their own, which is refused here ({os.strerror(number)})",
            remedy if facts.privileged else f"run the job as root, or {remedy}",
        ),
    )


def _switched_off(facts: Facts) -> tuple[Obstacle, ...]:
    """The settings that keep ordinary users from user namespaces."""
    found = []
    if facts.max_user_namespaces == 0:
        found.append(("user namespaces are switched off", "user.max_user_namespaces", 0, 15000))
    if facts.unprivileged_userns_clone == 0:
        found.append(("only root may use user namespaces", "kernel.unprivileged_userns_clone", 0, 1))
    if facts.apparmor_restrict_unprivileged_userns == 1:
        setting = "kernel.apparmor_restrict_unprivileged_userns"
        found.append(("AppArmor keeps user namespaces from ordinary users' programs", setting, 1, 0))
    return tuple(
        Obstacle(f"{what} ({setting}={now})", f"as root: sysctl -w {setting}={wanted}; or run the job as root")
        for what, setting, now, wanted in found
    )


def _version(release: str) -> tuple[int, ...]:
    """`6.1.0-18-amd64` is (6, 1)."""
    return tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())


def _sysctl(name: str) -> int | None:
    try:
        return int(Path("/proc/sys", name).read_text())
    except (OSError, ValueError):
        return None


def _status(field: str) -> str | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((line.split()[1] for line in lines if line.startswith(f"{field}:")), None)
