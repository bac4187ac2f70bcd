"""The program of a job: what a command names, and the hash of all of it that a datum can see.

The hash (`Program.id`, kind `pfs 1 datum key`) is that of canonical JSON with the command, stdin, the environment that was given, the user's id,
the working directory, whether there is a network, and the content ids of the executable, of the interpreter that its first line names,
of each argument that is a file, and of the code; and the names and versions of what is installed in a virtual environment that one of these
programs is of.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pfsmount.config import MIB
from pfsmount.errors import InvalidInput, NotFound, PermissionDenied
from pfsmount.ids import EntryName, ObjectId, RepoPath, display
from pfsmount.objects.batch import Batch
from pfsmount.objects.hashing import HashKind, file_hasher, hash_bytes
from pfsmount.objects.layout import disk_errors
from pfsmount.repo.commit import dump_json
from pfsmount.tree.entry import Entry
from runner.source_files import SOURCE_SUFFIXES, SourceFile, TooMuch, find_code, find_sources, store_sources
from runner.spec import JobSpec

KEPT_MAX = 64 * MIB
"""A file named in the command that is larger counts in the key, but no copy of it is kept with the record."""
_ARGUMENTS = EntryName(b"+arguments")
_SHELL_OPTION = re.compile(r"-[a-z]*c\Z")
_OF_THE_SYSTEM = ("/bin", "/sbin", "/usr/bin", "/usr/sbin")
_BETWEEN_WORDS = re.compile(r"[\s;&|<>()\"'`]+")


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever runs the job, as the command line sees them: the library looks none of this up."""

    cwd: Path
    home: Path
    path: str
    """Their PATH."""
    uid: int
    user: str
    host: str


@dataclass(frozen=True, slots=True)
class Image:
    """A container image, as an engine has it."""

    reference: str
    """As the spec names it."""
    id: str
    """`sha256:…` of its configuration: what decides whether two images are the same."""
    digests: tuple[str, ...]
    """Where registries know it by a digest: `name@sha256:…`."""
    engine: str
    command: tuple[str, ...] = ()
    """What it runs by itself."""

    def as_json(self) -> dict[str, Any]:
        """As a commit's provenance has it."""
        return {"reference": self.reference, "id": self.id, "digests": list(self.digests)}


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file that the command names: as the executable, its interpreter, or an argument."""

    text: str
    """As named; for the executable the path that was found."""
    place: Path
    id: ObjectId
    argument: int | None = None
    """Which argument names it."""
    stored: RepoPath | None = None
    """Where its copy is in the record's `code/`."""

    def as_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"path": self.text, "id": self.id.hex()}
        if self.argument is not None:
            value["argument"] = self.argument
            value["stored"] = None if self.stored is None else os.fsdecode(b"/".join(self.stored))
        return value


@dataclass(frozen=True, slots=True)
class Program:
    """A resolved command."""

    id: ObjectId
    command: tuple[str, ...]
    """Of a spec without one, the image's."""
    executable: NamedFile | None
    """None in a container."""
    interpreter: NamedFile | None
    files: tuple[NamedFile, ...]
    directory: Path | None
    """Where the code is."""
    code: Entry
    """The record's `code/`."""
    notes: tuple[str, ...] = ()
    """What the user should know, one line each."""
    image: Image | None = None
    packages: tuple[str, ...] = ()
    """`name-version` of what is installed in the virtual environments that its programs are of."""

    def as_json(self) -> dict[str, Any]:
        """As a commit's provenance has it."""
        value: dict[str, Any] = {
            "executor": "process" if self.image is None else self.image.engine,
            "program": self.id.hex(),
            "files": [file.as_json() for file in self.files],
        }
        if self.executable is not None:
            value["executable"] = self.executable.as_json()
        if self.image is not None:
            value["image"] = self.image.as_json()
        if self.packages:
            value["packages"] = list(self.packages)
        if self.interpreter is not None:
            value["interpreter"] = self.interpreter.as_json()
        if self.directory is not None:
            value["directory"] = {
                "path": os.fspath(self.directory),
                "id": self.code.content.hex(),
                "files": self.code.files,
            }
        return value

    def places(self) -> list[Path]:
        """What the program must find where it is, even below /tmp."""
        programs = [file.place for file in (self.executable, self.interpreter) if file is not None]
        found = [file.place for file in self.files]
        for place in programs:
            found.append(place)
            if (environment := _environment_of(place)) is not None:
                found.append(environment)
        if self.directory is not None:
            found.append(self.directory)
        return found


def resolve_program(batch: Batch, spec: JobSpec, caller: Caller, image: Image | None = None) -> Program:
    """Find and read what the command names; copies of the code go into the batch.

    Raises NotFound (no such command), PermissionDenied, InvalidInput, NoSpace.
    """
    if image is not None:
        return _of_image(batch, spec, image)
    executable = find_executable(spec.command[0], caller, spec.env)
    interpreter = _interpreter_of(executable.place)
    arguments = _file_arguments(spec.command, caller, _search_path(caller, spec.env))
    sources, directory, notes = _code_of(spec, arguments, caller)
    files, kept = _place_arguments(arguments, sources, caller)
    code = store_sources(batch, sources + kept)
    for file in files:
        if file.stored is None and not _is_installed(file.place, caller):
            notes = (
                *notes,
                f"{display(file.text)} is larger than {KEPT_MAX // MIB} MiB: named in the record, not kept",
            )
    named = [executable, *([] if interpreter is None else [interpreter]), *files]
    packages = _packages([file.place for file in named])
    facts = {
        **_given(spec, spec.command, contained=False),
        **({"packages": packages} if packages else {}),
        "executor": "process",
        "user": caller.uid,
        "cwd": os.fspath(caller.cwd),
        "executable": executable.id.hex(),
        "interpreter": None if interpreter is None else interpreter.id.hex(),
        "files": [[file.argument, file.text, file.id.hex()] for file in files],
        "code": code.content.hex(),
    }
    id = hash_bytes(dump_json(facts).encode("ascii"), HashKind.DATUM_KEY)
    return Program(
        id,
        spec.command,
        executable,
        interpreter,
        tuple(files),
        directory,
        code,
        tuple(notes),
        packages=tuple(packages),
    )


def _environment_of(place: Path) -> Path | None:
    """The virtual environment that a program is of."""
    top = place.parent.parent
    return top if place.parent.name == "bin" and (top / "pyvenv.cfg").exists() else None


def _packages(places: Iterable[Path]) -> list[str]:
    """What is installed beside these programs, by names and versions: the same in another place with the same packages."""
    environments = {environment for place in places if (environment := _environment_of(place)) is not None}
    names = {
        info.name.removesuffix(".dist-info")
        for environment in environments
        for info in environment.glob("lib/python*/site-packages/*.dist-info")
    }
    return sorted(names)


def _of_image(batch: Batch, spec: JobSpec, image: Image) -> Program:
    """A command in a container: its files are the image's, and the id of that covers them."""
    command = spec.command or image.command
    if not command:
        raise InvalidInput(
            f"the image {display(image.reference)} runs nothing by itself, and the spec names no command",
            hint="name one behind '--', or as 'cmd' in the spec's transform",
        )
    if spec.code is not None:
        raise InvalidInput("--code is for programs of this machine", hint="in a container, the code is in the image")
    facts = {
        **_given(spec, command, contained=True),
        "executor": "container",
        "image": image.id,
        "user": spec.user,
        "cwd": spec.working_dir,
    }
    id = hash_bytes(dump_json(facts).encode("ascii"), HashKind.DATUM_KEY)
    return Program(id, command, None, None, (), None, store_sources(batch, []), image=image)


def _given(spec: JobSpec, command: Sequence[str], *, contained: bool) -> dict[str, Any]:
    """What the key has of any program. What is as usual, and was not there in the first version, is left out."""
    facts: dict[str, Any] = {
        "v": 1,
        "command": list(command),
        "stdin": spec.stdin,
        "env": dict(spec.env),
        "network": network_of(spec, contained=contained),
    }
    more = {
        "err_command": list(spec.err_command),
        "err_stdin": spec.err_stdin,
        "accept_return_code": sorted(spec.accept_return_code),
        "salt": spec.salt,
    }
    return facts | {key: value for key, value in more.items() if value}


def network_of(spec: JobSpec, *, contained: bool) -> str:
    """What network a datum has, as the record and the key say it: none, the host's, or what the engine gives to containers."""
    if spec.hermetic:
        return "none"
    return "engine" if contained else "host"


def find_executable(name: str, caller: Caller, env: Mapping[str, str]) -> NamedFile:
    """The file that a shell would run. Raises NotFound, PermissionDenied."""
    if "/" in name:
        place = caller.cwd / name
        if not place.is_file():
            raise NotFound(f"there is no program {display(name)}", hint=f"looked from {display(os.fspath(caller.cwd))}")
        if not os.access(place, os.X_OK):
            raise PermissionDenied(
                f"{display(name)} is not executable", hint=f"chmod +x {display(name)}, or name its interpreter"
            )
    else:
        found = shutil.which(name, path=_search_path(caller, env))
        if found is None:
            hint = "it is in this directory, but not in PATH" if (caller.cwd / name).is_file() else None
            raise NotFound(
                f"{display(name)}: command not found",
                hint=f"write it as ./{display(name)}: {hint}" if hint else "is it installed, and in PATH?",
            )
        place = Path(found)
    return NamedFile(os.fspath(place), place, _content_id(place))


def _search_path(caller: Caller, env: Mapping[str, str]) -> str:
    """The PATH of a datum, relative to the job's directory, not to that of this process."""
    path = env.get("PATH", caller.path)
    return os.pathsep.join(os.fspath(caller.cwd / part) for part in path.split(os.pathsep))


def _interpreter_of(executable: Path) -> NamedFile | None:
    """What the first line of a script names, if it is one."""
    with disk_errors(f"reading {display(os.fspath(executable))}"), open(executable, "rb") as file:
        first = file.read(256)
    words = first[2:].split(b"\n")[0].split() if first.startswith(b"#!") else []
    place = Path(os.fsdecode(words[0])) if words else None
    if place is None or not place.is_file():
        return None
    return NamedFile(os.fspath(place), place, _content_id(place))


def _content_id(place: Path) -> ObjectId:
    hasher = file_hasher()
    with disk_errors(f"reading {display(os.fspath(place))}"), open(place, "rb", buffering=0) as file:
        while part := file.read(4 * MIB):
            hasher.update(part)
    return ObjectId(hasher.digest())


def _file_arguments(command: Sequence[str], caller: Caller, path: str) -> list[NamedFile]:
    """The files of this machine that the arguments name: `FILE`, `--option=FILE`, any word of `sh -c 'WORDS'`, also where PATH
    finds it outside of the system's directories, and what Python runs for `DIRECTORY` and `-m MODULE`.

    The first one counts when it is a script of the user's own: anything else is the executable and no more.
    """
    found = []
    for i, argument in enumerate(command):
        for text in _candidates(argument, command[i - 1]) if i else [argument]:
            # in a datum, /pfs is its own
            if not text or "\0" in text or os.path.normpath(caller.cwd / text).startswith("/pfs/"):
                continue
            place = caller.cwd / text
            if i and not _is_file(place) and _SHELL_OPTION.match(command[i - 1]):
                place = _own_tool(text, path) or place
            if not _is_file(place) or (not i and not _is_own_script(text, place, caller)):
                continue
            found.append(NamedFile(text, place, _content_id(place), argument=i))
    return found


def _own_tool(name: str, path: str) -> Path | None:
    """The program that a shell finds under a name, unless it came with the system."""
    found = None if "/" in name else shutil.which(name, path=path)
    return None if found is None or os.path.dirname(found) in _OF_THE_SYSTEM else Path(found)


def _candidates(argument: str, before: str) -> list[str]:
    words = [argument, f"{argument}/__main__.py"]
    if before == "-m":
        module = argument.replace(".", "/")
        words += [f"{module}.py", f"{module}/__main__.py"]
    if argument.startswith("-"):
        words.append(argument.partition("=")[2])
    if _BETWEEN_WORDS.search(argument):
        words += _BETWEEN_WORDS.split(argument)
    return list(dict.fromkeys(words))


def _is_file(place: Path) -> bool:
    try:
        return stat.S_ISREG(os.stat(place).st_mode)
    except OSError:
        return False


def _is_own_script(text: str, place: Path, caller: Caller) -> bool:
    return "/" in text and not _is_installed(place, caller) and _is_script(place)


def _is_installed(place: Path, caller: Caller) -> bool:
    """True for what a shell finds without a path; of that no copies are kept."""
    return os.fspath(place.parent) in caller.path.split(os.pathsep)


def _code_of(
    spec: JobSpec, arguments: Sequence[NamedFile], caller: Caller
) -> tuple[list[SourceFile], Path | None, tuple[str, ...]]:
    """The program's own files, their directory, and what to tell the user."""
    if spec.code is not None:
        directory = caller.cwd / spec.code
        return find_code(directory), directory.resolve(), ()
    script = arguments[0] if arguments else None
    if script is None or not _is_script(script.place):
        return [], None, ()
    directory = script.place.resolve().parent
    try:
        return find_sources(directory, caller.home), directory, ()
    except TooMuch as reason:
        alone = SourceFile(os.fsencode(script.place), (EntryName(os.fsencode(script.place.name)),))
        note = (
            f"{reason}: of the code, only {display(script.text)} itself decides what runs again (--code DIR names more)"
        )
        return [alone], directory, (note,)


def _is_script(place: Path) -> bool:
    if os.fsencode(place.suffix) in SOURCE_SUFFIXES:
        return True
    with disk_errors(f"reading {display(os.fspath(place))}"), open(place, "rb") as file:
        return file.read(2) == b"#!"


def _place_arguments(
    arguments: Sequence[NamedFile], sources: Sequence[SourceFile], caller: Caller
) -> tuple[list[NamedFile], list[SourceFile]]:
    """Where the copies of the named files are in `code/`, and those that are not among the sources."""
    known = {os.path.realpath(source.place): source.path for source in sources if not source.is_symlink}
    files, kept = [], []
    for i, file in enumerate(arguments):
        stored = known.get(os.path.realpath(os.fsencode(file.place)))
        if stored is None and not _is_installed(file.place, caller) and file.place.stat().st_size <= KEPT_MAX:
            number, name = EntryName(b"%d" % i), EntryName(os.fsencode(file.place.name))
            stored = (_ARGUMENTS, number, name)
            kept.append(SourceFile(os.fsencode(file.place), stored))
        files.append(NamedFile(file.text, file.place, file.id, file.argument, stored))
    return files, kept


def in_directory(spec: JobSpec, caller: Caller) -> Caller:
    """The caller, in the directory where a process of this spec starts. Raises InvalidInput when there is none."""
    if not caller.cwd.is_dir():
        raise InvalidInput(f"the working directory {display(os.fspath(caller.cwd))} does not exist any more")
    place = caller.cwd / spec.working_dir
    if not place.is_dir():
        raise InvalidInput(f"the working directory {display(os.fspath(place))} does not exist")
    return replace(caller, cwd=place)
