"""The commands of a program: each is loaded when it is asked for, and knows `--store`.

Loading and building all of them took a tenth of a second, half of what a small command costs.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup, TyperOption
from typer.main import get_command

from pfsmount.cli import output
from pfsmount.errors import InvalidInput
from pfsmount.ids import display

if TYPE_CHECKING:
    from typer import Context


@dataclass(frozen=True, slots=True)
class Command:
    """Where a command is: `module:function` or `module:app`, and what click is told about it."""

    place: str
    settings: dict[str, Any] = field(default_factory=dict)

    def build(self, name: str) -> Any:
        """Load the module and make the parser of the command."""
        module, _, attribute = self.place.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        app = found
        if not isinstance(found, typer.Typer):
            app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
            app.command(name, context_settings=self.settings or None)(found)
        built = get_command(app)
        built.name = name
        return built


class _Commands(MutableMapping[str, Any]):
    """Commands by name, in the order of the help page, each built at its first use."""

    def __init__(self, places: dict[str, Command], built: MutableMapping[str, Any]) -> None:
        self._places, self._built = places, built

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = self._places[name].build(name)
        return with_store(self._built[name])

    def __setitem__(self, name: str, command: Any) -> None:
        self._built[name] = command

    def __delitem__(self, name: str) -> None:
        self._places.pop(name, None)
        self._built.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._places or name in self._built

    def __iter__(self) -> Iterator[str]:
        yield from self._places
        yield from (name for name in self._built if name not in self._places)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class CommandGroup(TyperGroup):
    """A program of commands: those in `places`, and those that were registered with Typer."""

    places: dict[str, Command] = {}  # noqa: RUF012 - click's way: a subclass for each program

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands(self.places, self.commands)
        self.params.append(_store_option())

    def answer(self, name: str) -> str | None:
        """What to do instead, for a name that is a command of other tools."""
        return None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Raises InvalidInput for what `answer` knows."""
        if args[0] not in self.commands:
            answer = self.answer(args[0])
            if answer is not None:
                raise InvalidInput(f"there is no '{ctx.command_path} {display(args[0])}'", hint=answer)
        return super().resolve_command(ctx, args)


def _name_as_manuals_do(argument: Any) -> None:
    """`TARGET`, `[TARGET]` and `PATH…`; typer writes `{target}`."""
    name = argument.metavar or argument.name.upper() + ("…" if argument.nargs == -1 else "")

    def make_metavar(*_: Any, usage: bool = False, **__: Any) -> str:
        return f"[{name}]" if usage and not argument.required else name

    argument.make_metavar = make_metavar


def _store_option() -> TyperOption:
    return TyperOption(
        param_decls=["--store"],
        metavar="DIR",
        expose_value=False,
        callback=_use_store,
        help="The store; default: $PFS_STORE, else the user's data directory.",
    )


def _use_store(context: Context, parameter: Any, value: str | None) -> None:
    if value is not None:
        output.use_store(Path(value))


def with_store(command: Any) -> Any:
    """The command, and those below it, with `--store`: it is understood before and after a command's name, as restic's -r."""
    if all("--store" not in parameter.opts for parameter in command.params):
        command.params.append(_store_option())
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                _name_as_manuals_do(parameter)
        for below in getattr(command, "commands", {}).values():
            with_store(below)
    return command
