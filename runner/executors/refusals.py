"""Why a machine refuses the namespaces that process jobs need, and what its owner can do: a pure function of facts."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from runner.executors import namespaces

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


def explain(step: str, number: int, facts: Facts) -> tuple[tuple[str, str], ...]:
    """The obstacles behind errno `number` at `step` of a worker's start: what it is, and what to do about it."""
    if _version(facts.kernel) < OLDEST_KERNEL:
        return ((f"process jobs need Linux 5.12 or newer; this is {facts.kernel}", "use a newer kernel"),)
    if step == "proc":
        return (("there is no /proc, which process jobs need", "mount -t proc proc /proc"),)
    found = () if facts.privileged else tuple(_sysctl_obstacles(facts))
    if found:
        return found
    if facts.container or facts.seccomp:
        return (
            (
                f"this container does not allow what process jobs need ({step}: {os.strerror(number)})",
                "run it with --privileged, or with --cap-add SYS_ADMIN --security-opt seccomp=unconfined "
                "--security-opt apparmor=unconfined",
            ),
        )
    if number == errno.ENOSPC:
        return ((f"too many namespaces are in use ({step})", "raise the limits in /proc/sys/user"),)
    if number == errno.EINVAL and "namespace" in step:
        return ((f"this kernel was built without {step}s", "use a distribution's kernel"),)
    todo = "see the kernel's log (dmesg) for a security module's refusal"
    if not facts.privileged:
        todo = f"run as root, or {todo}"
    return ((f"process jobs cannot make their {step}: {os.strerror(number)}", todo),)


def _sysctl_obstacles(facts: Facts) -> list[tuple[str, str]]:
    found = []
    if facts.max_user_namespaces == 0:
        found.append(
            ("user namespaces are switched off (user.max_user_namespaces=0)", "sysctl user.max_user_namespaces=15000")
        )
    if facts.unprivileged_userns_clone == 0:
        found.append(
            (
                "only root may use user namespaces (kernel.unprivileged_userns_clone=0)",
                "sysctl kernel.unprivileged_userns_clone=1",
            )
        )
    if facts.apparmor_restrict_unprivileged_userns == 1:
        found.append(
            (
                "AppArmor restricts user namespaces to known programs (kernel.apparmor_restrict_unprivileged_userns=1)",
                "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
            )
        )
    return [(what, f"as root: {todo}, or run the job as root") for what, todo in found]


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
