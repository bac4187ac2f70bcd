"""Commands run one after another by a container runtime itself, without an engine: the yardstick of warm containers.

    python -m tools.bench_suite.exec_loop RUNTIME BUNDLE ROOT COUNT

prints the median time, in seconds, of `RUNTIME exec` in a container that runs. To be started in a mount namespace of its own (`unshare -m`): crun
does not start where both versions of cgroups are mounted, so one is taken away.
"""

from __future__ import annotations

import subprocess
import sys

from tools.bench_suite.bench import median_time

_NAME = "pfs-bench"


def main() -> None:
    runtime, bundle, root, times = sys.argv[1:]
    subprocess.run(["umount", "/sys/fs/cgroup/unified"], stderr=subprocess.DEVNULL, check=False)
    command = [runtime, "--root", root]

    def run(*arguments: str, to: int | None = None) -> None:
        # the container itself must not hold what our caller reads
        subprocess.run([*command, *arguments], stdin=subprocess.DEVNULL, stdout=to, stderr=to, check=True)

    run("run", "--detach", "--bundle", bundle, _NAME, to=subprocess.DEVNULL)
    try:
        print(median_time(lambda i: run("exec", _NAME, "true"), int(times)))
    finally:
        run("delete", "--force", _NAME)


if __name__ == "__main__":
    main()
