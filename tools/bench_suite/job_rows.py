"""Rows of the jobs."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tools.bench_suite.bench import Bench
from tools.bench_suite.row import Broken, Contest, Side, at_most_more, row


class RunningJob:
    """A job with one datum a file, in a new store each time, so that nothing has run before."""

    def __init__(self, bench: Bench, source: Path, datums: int) -> None:
        self._bench, self._source, self._datums = bench, source, datums
        self._store = bench.directory

    def prepare(self) -> None:
        self._store = self._bench.store(("images", "copies"))
        self._bench.pfs(self._store, "put", self._source, "images@master:/")

    def run(self) -> None:
        # cp takes the datum's one file, whatever its name
        command = ("cp", "-r", "/pfs/images/.", "/pfs/out")
        options = ("--json", "--workers", "1", "--input", "images@master:/*/*", "--output", "copies@master")
        said = self._bench.pfsjob(self._store, "run", *options, "--", *command)
        processed = json.loads(said)["processed"]
        if processed != self._datums:
            raise Broken(f"the job processed {processed} datums, not {self._datums}")


@row("job", "a job over {datums} datums, one worker", at_most_more(0.005, "datums"))
def job(bench: Bench) -> Contest:
    bench.need_jobs()
    count = bench.sizes.datums
    source = bench.tree(count)
    running = RunningJob(bench, source, count)
    names = [os.fspath(path) for path in sorted(source.glob("*/*"))]

    def fork_and_exec() -> None:
        out = bench.fresh("out")
        out.mkdir()
        for name in names:
            child = os.posix_spawnp("cp", ["cp", "-r", name, os.fspath(out)], os.environ)
            _, status = os.waitpid(child, 0)
            if status:
                raise Broken(f"cp {name} ended with {os.waitstatus_to_exitcode(status)}")

    return Contest(
        Side("pfsjob run", running.run, running.prepare),
        [Side("fork and exec of the command", fork_and_exec)],
        (count, "datums"),
    )
