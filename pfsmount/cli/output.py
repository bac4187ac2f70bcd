"""What both command lines share: finding the store, printing, progress, and the one table of exit codes.

| exit code | when |
|---|---|
| 0 | done, or nothing to do |
| 1 | it failed; the message says what and what to do |
| 2 | the command line cannot be understood |
| 3 | a conflict: a head moved, or changes touch one path |
| 130, 143, 129 | interrupted: by Ctrl-C, SIGTERM, SIGHUP |
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pfsmount.cli import interruption, waiting
from pfsmount.errors import Conflict, InvalidInput, NotADirectory, NotAStore, NotFound, NotPermitted, PfsError
from pfsmount.ids import display

if TYPE_CHECKING:
    from pfsmount.repo.store import Store

EXIT_FAILED, EXIT_USAGE, EXIT_CONFLICT, EXIT_INTERRUPTED = 1, 2, 3, 130
_DEPTH = 20_000
"""Python frames: directories can lie 2 000 deep (PATH_MAX), and since Python 3.11 frames take no C stack."""
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_store_option: Path | None = None
# typer has its own click, or that of the package, by its version: this is UsageError of either
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def use_store(path: Path | None) -> None:
    """Remember what `--store` said, for `open_store`."""
    global _store_option
    if path is not None:
        _store_option = path


def store_path(option: Path | None = None) -> Path:
    """Where the store is: `--store`, else $PFS_STORE, else the user's data directory."""
    option = option or _store_option
    if option is not None:
        return option.absolute()
    named = os.environ.get("PFS_STORE")
    if named:
        return Path(named).absolute()
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(data) / "pfs" / "store"


def open_store(option: Path | None = None) -> Store:
    """Open the store that the user means. Raises NotAStore with what to do."""
    from pfsmount.repo.store import Store

    path = store_path(option)
    waiting.tell_who_holds(path)
    try:
        store = Store.open(path, author=author())
    except NotAStore as error:
        named = _store_option or option or os.environ.get("PFS_STORE")
        hint = error.hint if named else "make one with 'pfs init', or name one with --store or PFS_STORE"
        raise NotAStore(error.message, hint=hint) from None
    store.critical = interruption.held_back
    store.after_moves = partial(_let_mounts_catch_up, path)
    store.keeps_resolved = True
    return store


def _let_mounts_catch_up(store: Path) -> None:
    """What is done after a command shows what the command did, in every mount."""
    if any((store / "run").glob("mount-*.json")):
        from pfsmount.fs.control import refresh

        refresh(store)


def author() -> str:
    """Who makes commits: `$PFS_AUTHOR`, else user@host."""
    named = os.environ.get("PFS_AUTHOR")
    if named:
        return named
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def exit_code(error: BaseException) -> int:
    """The exit code for an error: the only place that decides it."""
    if isinstance(error, InvalidInput):
        return EXIT_USAGE
    if isinstance(error, Conflict):
        return EXIT_CONFLICT
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return EXIT_FAILED


def run_app(app: typer.Typer, name: str) -> None:
    """Run a Typer app; every error ends as one line (and what to do), never as a traceback."""
    sys.setrecursionlimit(_DEPTH)
    with errors_told(name):
        raise SystemExit(app(prog_name=name, standalone_mode=False))


@contextmanager
def errors_told(name: str) -> Iterator[None]:
    """An error inside ends the program with one line, what to do, and its exit code."""
    try:
        yield
    except PfsError as error:
        print_error(name, error)
        raise SystemExit(exit_code(error)) from None
    except interruption.Interrupted as interrupted:
        start = "\n" if sys.stderr.isatty() else ""  # behind the terminal's ^C
        print(f"{start}{name}: {interruption.message()}", file=sys.stderr, flush=True)
        # everything is given back; what Python does at its end is only a moment in which a second signal would kill
        os._exit(interrupted.exit_code)
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(EXIT_FAILED) from None
    except typer.Abort:  # end of input at a question
        print(f"\n{name}: nothing was done", file=sys.stderr)
        raise SystemExit(EXIT_FAILED) from None
    except OSError as error:
        named = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
        what = f"{error.strerror or error}" + (f": {named}" if named else "")
        print(f"{name}: {display(what)}", file=sys.stderr)
        raise SystemExit(EXIT_FAILED) from None
    except _UsageError as error:
        _print_usage_error(name, error)
        raise SystemExit(EXIT_USAGE) from None
    except (RecursionError, MemoryError) as error:
        what = (
            "directories lie too deep in one another"
            if isinstance(error, RecursionError)
            else "there is not enough memory"
        )
        print(f"{name}: {what} for this command", file=sys.stderr)
        raise SystemExit(EXIT_FAILED) from None
    except Exception as error:
        if os.environ.get("PFS_DEBUG"):
            raise
        print(
            f"{name}: this is a bug in pfs: {type(error).__name__}: {error} (PFS_DEBUG=1 shows where)",
            file=sys.stderr,
        )
        raise SystemExit(EXIT_FAILED) from None


def _print_usage_error(name: str, error: Any) -> None:
    """What cannot be understood, and the command's form, in two lines."""
    context, text = error.ctx, error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":  # a program or group without a command
        error.show()
        return
    if context is None:
        print_error(name, InvalidInput(text[:1].lower() + text[1:].rstrip("."), hint=f"'{name} --help' explains it"))
        return
    command = context.command_path
    usage = " ".join([command, *context.command.collect_usage_pieces(context)])
    note(f"{command}: {text[:1].lower()}{text[1:].rstrip('.')}")
    note(f"  hint: {usage}; '{command} --help' explains it")


def print_error(name: str, error: PfsError) -> None:
    """One line for what happened, one for what to do."""
    note(f"{name}: {error.message}")
    if isinstance(error, Conflict):
        for path in error.paths:
            note(f"  {display(path)}")
    if error.hint:
        note(f"  hint: {error.hint}")


@contextmanager
def place_to_write(hint: str) -> Iterator[None]:
    """What the system refuses inside is told with what to do about it."""
    try:
        yield
    except PfsError as error:
        if error.hint is None and isinstance(error.__cause__ or error, OSError | NotFound | NotADirectory):
            raise type(error)(error.message, hint=hint) from None
        raise


def say(text: str = "") -> None:
    """A line for a person, on standard output."""
    sys.stdout.write(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") + "\n")


def note(text: str) -> None:
    """A line beside the result, on standard error; on a terminal it is broken between words, as wide as that is."""
    if sys.stderr.isatty():
        text = wrapped(text, os.get_terminal_size(sys.stderr.fileno()).columns)
    print(text, file=sys.stderr)


def wrapped(text: str, width: int) -> str:
    """Each line of a text, broken between words to at most `width` columns, what follows set in by two more than its start."""
    import textwrap

    lines = []
    for line in text.split("\n"):
        indent = " " * (len(line) - len(line.lstrip(" ")) + 2)
        if len(line) > width > len(indent) + 20:
            broken = textwrap.wrap(
                line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
            )
            line = "\n".join(broken)
        lines.append(line)
    return "\n".join(lines)


def print_json(value: Any) -> None:
    """A value as JSON; names that are not UTF-8 appear as lone surrogates (\\udcXX)."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=True)
    sys.stdout.write("\n")


def print_json_line(value: Any) -> None:
    """Print a value on one line, at once: one of many that a program reads as they come."""
    sys.stdout.write(json.dumps(value, ensure_ascii=True) + "\n")
    sys.stdout.flush()


def print_json_list(values: Iterable[Any]) -> None:
    """As `print_json` of a list, each value as soon as it is there."""
    empty = True
    for value in values:
        text = json.dumps(value, indent=2, ensure_ascii=True).replace("\n", "\n  ")
        sys.stdout.write(("[" if empty else ",") + "\n  " + text)
        empty = False
    sys.stdout.write("[]\n" if empty else "\n]\n")


def table(rows: Iterable[Sequence[str]], headers: Sequence[str] | None = None) -> None:
    """Rows in columns; a column whose cells all look like numbers is set to the right."""
    lines = [list(row) for row in rows]
    if not lines:
        return
    shown = ([list(headers)] if headers else []) + lines
    widths = [max(len(row[i]) for row in shown) for i in range(len(shown[0]))]
    right = [all(row[i][:1].isdigit() for row in lines) for i in range(len(widths))]
    for row in shown:
        cells = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        say("  ".join(cells).rstrip())


def human_size(count: int) -> str:
    """Bytes for people: `412 B`, `1.4 MiB`."""
    size = float(count)
    for unit in _UNITS:
        if size < 1024 or unit == _UNITS[-1]:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def relative_time(time_ns: int, now_ns: int | None = None) -> str:
    """How long ago: `3 minutes ago`; the date when it is more than 30 days."""
    seconds = ((time.time_ns() if now_ns is None else now_ns) - time_ns) / 1e9
    if seconds < 10:
        return "just now" if seconds > -10 else "in the future"
    for limit, unit, name in ((60, 1, "second"), (3600, 60, "minute"), (86400, 3600, "hour")):
        if seconds < limit:
            count = int(seconds / unit)
            return f"{count} {name}{'s' * (count != 1)} ago"
    days = int(seconds / 86400)
    return f"{days} day{'s' * (days != 1)} ago" if days <= 30 else local_time(time_ns)[:10]


def local_time(time_ns: int) -> str:
    """`2026-11-22 14:03:11 +0100`."""
    seconds = time_ns // 1_000_000_000
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(seconds))


def first_line(text: str) -> str:
    """The first line of a message, for a terminal."""
    return display(text.split("\n", 1)[0])


def plural(count: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


class Progress:
    """A progress bar on a terminal, nothing anywhere else. A context manager; cheap to update often.

    `total` None shows counts without an end. With `printing`, the command writes its result to standard output as it goes: no bar where that
    is a terminal too.
    """

    _INTERVAL = 0.1

    def __init__(self, title: str, total: int | None = None, *, printing: bool = False) -> None:
        self._title, self._total = title, total
        self._shown = sys.stderr.isatty() and not (printing and sys.stdout.isatty())
        self._next = 0.0
        self._started = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self._shown:
            from rich.console import Console
            from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = [SpinnerColumn(), TextColumn("{task.description}")]
            if self._total is not None:
                columns += [BarColumn(), TextColumn("{task.fields[done]}")]
            columns += [TextColumn("{task.fields[note]}", markup=False), TimeElapsedColumn()]
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, note="", done="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def shown(self) -> bool:
        """Whether there is a bar."""
        return self._bar is not None

    def update(self, done: int = 0, note: str = "", *, total: int | None = None) -> None:
        """Show how far it is; calls within a tenth of a second of the last are dropped, but for the end."""
        if self._bar is None:
            return
        if total is not None:
            self._total = total
        if self._is_due(done):
            self._bar.update(self._task, completed=done, note=note, total=self._total, done=f"{done}/{self._total}")

    def transfer(self, files: int, size: int, done: int | None = None) -> None:
        """The same for files and their bytes, with the rate; `done` counts towards the total where that is not `size`."""
        if self._bar is None:
            return
        done = size if done is None else done
        if self._is_due(done):
            rate = human_size(int(size / max(time.monotonic() - self._started, 0.001)))
            note = f"{plural(files, 'file')}, {human_size(size)}, {rate}/s"
            percent = f"{100 * done // self._total}%" if self._total else ""
            self._bar.update(self._task, completed=done, note=note, total=self._total, done=percent)

    def work(self, what: str, done: int, total: int) -> None:
        """What is being done, and how many bytes of how many are, with the rate."""
        if self._bar is None:
            return
        self._total = total
        if what != self._title or self._is_due(done):
            self._title = what
            rate = human_size(int(done / max(time.monotonic() - self._started, 0.001)))
            note = f"{human_size(done)} of {human_size(total)}, {rate}/s"
            percent = f"{100 * done // total}%" if total else ""
            self._bar.update(self._task, description=what, completed=done, total=total, note=note, done=percent)

    def _is_due(self, done: int) -> bool:
        now = time.monotonic()
        if now < self._next and done != self._total:
            return False
        self._next = now + self._INTERVAL
        return True


def require_yes(question: str, kept: str, *, yes: bool) -> None:
    """The one rule for what cannot be taken back: `--yes`, or a yes on a terminal. `kept` says what is still there without it.

    Raises NotPermitted.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise NotPermitted(kept, hint="--yes does it without asking")
    if not typer.confirm(question, err=True):
        raise NotPermitted(kept)
