"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pfsmount
from tools.bench_suite.bench import PROJECT

_LIBRARIES = ("blake3", "lmdb", "pyfuse3", "trio")


def machine_facts(directory: Path) -> dict[str, Any]:
    """Kernel, processor, memory, filesystem of `directory`, versions."""
    kind, options = _filesystem(directory)
    return {
        "kernel": platform.release(),
        "cpu": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "filesystem": kind,
        "mount_options": options,
        "directory": os.fspath(directory),
        "load": os.getloadavg()[0],
        "root": os.geteuid() == 0,
        "python": platform.python_version(),
        "pfs": pfsmount.__version__,
        "revision": _revision(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
    }


def describe_machine(facts: dict[str, Any]) -> str:
    """The same in a line or two."""
    return (
        f"Linux {facts['kernel']}, {facts['cpus']} × {facts['cpu']}, {facts['memory_bytes'] / (1 << 30):.0f} GiB, "
        f"{facts['filesystem']}, Python {facts['python']}, {'root' if facts['root'] else 'not root'}, "
        f"load {facts['load']:.1f}\npfs {facts['pfs']} ({facts['revision']}), in {facts['directory']}"
    )


def _field(path: str, name: str) -> str:
    try:
        for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    except OSError:
        pass
    return ""


def _filesystem(path: Path) -> tuple[str, str]:
    """Type and options of the mount that holds a path."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    found = ("unknown", "")
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            found = after.split()[0], after.split()[-1]
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _revision() -> str:
    try:
        said = subprocess.run(
            ["git", "-C", PROJECT, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
        )
    except OSError:
        return "unknown"
    return said.stdout.strip() or "unknown"
