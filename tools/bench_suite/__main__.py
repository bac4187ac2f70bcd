"""`python -m tools.bench_suite`: the command behind tools/bench."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from tools.bench_suite import (
    care_rows,
    commit_rows,
    history_rows,
    job_container_rows,
    job_rows,
    memory_rows,
    mount_rows,
    mount_write_rows,
    scale_rows,
    size_rows,
    store_rows,
)
from tools.bench_suite.bench import PROJECT, Bench
from tools.bench_suite.machine import describe_machine, machine_facts
from tools.bench_suite.measure import Result, run_row
from tools.bench_suite.report import as_json, summary, table
from tools.bench_suite.row import SMALL, Row, Sizes, all_rows

# Importing them registers their rows; this is the order in which they are run.
MODULES = (
    store_rows,
    care_rows,
    commit_rows,
    scale_rows,
    history_rows,
    size_rows,
    memory_rows,
    mount_rows,
    mount_write_rows,
    job_rows,
    job_container_rows,
)


def main() -> int:
    """Returns 0 when every row that can be measured here was measured, whatever came out."""
    rows = {
        name: row for module in MODULES for name, row in all_rows().items() if row.set_up.__module__ == module.__name__
    }
    options = _parser(list(rows)).parse_args()
    sizes = SMALL if options.small else Sizes()
    if options.list:
        for row in rows.values():
            print(f"{row.name:<24} {row.title.format_map(sizes.words())}{' (heavy)' if row.heavy else ''}")
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    started = time.time()
    base = (options.dir or _own_directory()).absolute()
    _delete_leftovers(base)
    wanted = options.only or [name for name, row in rows.items() if options.heavy or not row.heavy]
    base.mkdir(parents=True, exist_ok=True)
    facts = machine_facts(base)
    print(describe_machine(facts) + "\n", flush=True)
    results: list[Result] = []
    try:
        with Bench(base / f"work-{os.getpid()}", sizes) as bench:
            for name in wanted:
                results.append(_run(rows[name], bench, options.repeat))
                print(table(results[-1:], sizes), flush=True)
            _progress("deleting what was made")
        _progress("")
    finally:  # an interrupted run has measured something, too
        stamp = time.strftime("%Y-%m-%dT%H-%M-%S", time.localtime(started))
        path: Path = options.json or _own_directory() / f"{stamp}.json"
        when = {"started": started, "seconds": time.time() - started, "repeat": options.repeat, "small": options.small}
        path.write_text(json.dumps(as_json(results, sizes, facts, when), indent=1, ensure_ascii=False) + "\n")
    print("\n" + summary(results, sizes))
    print(f"{time.time() - started:.0f} s in all; also in {path}")
    return int(any(result.status == "failed" for result in results))


def _run(row: Row, bench: Bench, repeat: int) -> Result:
    result = run_row(row, bench, repeat, lambda text: _progress(f"{row.name}: {text}"))
    _progress("")
    return result


def _delete_leftovers(base: Path) -> None:
    """Delete what a run left that was killed outright."""
    for path in base.glob("work-*"):
        number = path.name.removeprefix("work-")
        if number.isdigit() and not Path("/proc", number).exists():
            shutil.rmtree(path, ignore_errors=True)


def _progress(text: str) -> None:
    """On a terminal, one line that is written over."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _own_directory() -> Path:
    """`.bench` in the project, which git does not see."""
    path = PROJECT / ".bench"
    path.mkdir(exist_ok=True)
    ignore = path / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")
    return path


def _parser(names: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/bench",
        description="Measure pfs, each row against its yardstick in the same run: ours, theirs, ours, theirs … "
        "Shown are medians, in brackets the least and the greatest value, and the ratio of the medians.",
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help="only these rows")
    parser.add_argument("--heavy", action="store_true", help="also rows that take minutes each, or tens of GB")
    parser.add_argument("--list", action="store_true", help="list the rows")
    parser.add_argument("--small", action="store_true", help="tiny sizes: seconds; the numbers mean nothing")
    parser.add_argument("--repeat", type=_positive, default=3, metavar="N", help="repeats of each side (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the JSON goes (.bench/DATE.json)")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where to work (.bench); what is made there is deleted")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; what was made is deleted")
