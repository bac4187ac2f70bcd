"""The layers of the code hold, because this test fails when they do not.

Every import counts: at the top of a module, inside a function, under `TYPE_CHECKING`, and through
`importlib.import_module` with a literal name. Each kind of type-only or lazy exception starts as a convenience and ends as
a knot of modules that can only be understood, tested and replaced together.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PACKAGES = ("pfsmount", "runner")

# The longest prefix decides. Modules of one layer may import each other; layers of equal rank may not.
RANKS = {
    "pfsmount": 0,  # errors, ids, revision, config
    "pfsmount.objects": 1,
    "pfsmount.tree": 2,
    "pfsmount.repo": 3,
    "pfsmount.views": 4,
    "pfsmount.fs": 5,
    "runner": 5,
    "pfsmount.cli": 6,
    "runner.cli": 6,
}
BASE = {"pfsmount", "pfsmount.errors", "pfsmount.ids", "pfsmount.revision", "pfsmount.config"}

# Both commands print, and end, in the same way.
SHARED_BY_EQUALS = {("runner.cli", "pfsmount.cli.output"), ("runner.cli", "pfsmount.cli.commands")}

# One door per library: what it does to us, and what replacing it costs, stays in one place.
DOORS = {
    # a pure function, like hashlib's; the kinds of hashes that the format knows are in pfsmount.objects.hashing
    "blake3": ("pfsmount.objects.hashing",),
    # the standard library's own, from Python 3.14 on: until then `put --tar` says what to do with zstd
    "compression": ("pfsmount.repo.decompression",),
    "boto3": ("pfsmount.objects",),
    "botocore": ("pfsmount.objects",),
    # containers of Docker, and of what speaks its API; requests is what docker-py fails with
    "docker": ("runner.executors.containers.docker_api",),
    "requests": ("runner.executors.containers.docker_api",),
    "lmdb": ("pfsmount.objects",),
    "pyfuse3": ("pfsmount.fs",),
    "trio": ("pfsmount.fs", "runner"),
    "typer": ("pfsmount.cli", "runner.cli"),
    "rich": ("pfsmount.cli.output", "runner.cli.output"),
    # specs of jobs; loaded when a spec is YAML, not when a command starts
    "yaml": ("runner.spec_yaml",),
}

HUBS = {"common", "helper", "helpers", "misc", "util", "utils"}


@dataclass(frozen=True)
class Import:
    """One name that a module asks for: `target` is as precise as the tree of files allows."""

    module: str
    line: int
    target: str


def module_files(root: Path) -> dict[str, Path]:
    """The modules of our packages under `root`, by dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(module: str, path: Path, modules: dict[str, Path]) -> Iterator[Import]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        match node:
            case ast.Import(names=names):
                targets = [name.name for name in names]
            case ast.ImportFrom(module=source, names=names, level=level):
                base = ".".join([*package.split(".")[: len(package.split(".")) + 1 - level]]) if level else ""
                base = ".".join(filter(None, (base, source)))
                # `from package import x` asks for the module x where there is one, else for the package
                targets = [f"{base}.{name.name}" if f"{base}.{name.name}" in modules else base for name in names]
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                targets = [name]
            case _:
                continue
        for target in dict.fromkeys(targets):
            yield Import(module, node.lineno, target)


def is_within(module: str, place: str) -> bool:
    """Whether `module` is `place` or inside it; `runner.cli_run` counts as inside `runner.cli`."""
    return module == place or module.startswith((f"{place}.", f"{place}_"))


def layer_of(module: str) -> str:
    return max((layer for layer in RANKS if is_within(module, layer)), key=len)


def is_allowed(source: str, target: str) -> bool:
    below, above = layer_of(target), layer_of(source)
    return (
        below == above
        or RANKS[below] < RANKS[above]
        or any(is_within(source, user) and is_within(target, used) for user, used in SHARED_BY_EQUALS)
    )


def why_not(source: str, target: str) -> str:
    if source.startswith("runner") and target.startswith("pfsmount.fs"):
        return (
            "the runner gets FUSE inputs from a running `pfs mount` and views from pfsmount.views: with fs/ inside it, "
            "a job and the mount could not fail or be replaced apart"
        )
    return "imports point down only, so that each layer can be understood, tested and replaced without those above it"


def layer_violations(root: Path) -> list[str]:
    modules = module_files(root)
    found = []
    for module, path in modules.items():
        for item in imports_of(module, path, modules):
            where = f"{path.relative_to(root)}:{item.line}: {module}"
            top = item.target.partition(".")[0]
            if top in PACKAGES:
                if not is_allowed(module, item.target):
                    source, target = layer_of(module), layer_of(item.target)
                    found.append(
                        f"{where} (layer {source}, rank {RANKS[source]}) imports {item.target} "
                        f"(layer {target}, rank {RANKS[target]}): {why_not(module, item.target)}"
                    )
            elif top not in sys.stdlib_module_names:
                doors = DOORS.get(top)
                if doors is None:
                    found.append(f"{where} imports {top}, which has no door: decide in DOORS which layer may use it")
                elif not any(is_within(module, door) for door in doors):
                    found.append(
                        f"{where} imports {top}, whose door is {' and '.join(doors)}: a library that is used through one "
                        "door can be understood and replaced in one place"
                    )
    return found


def name_violations(root: Path) -> list[str]:
    found = []
    for module, path in module_files(root).items():
        where = path.relative_to(root)
        name = module.rpartition(".")[2]
        if name in HUBS:
            found.append(f"{where}: a module named {name} draws in what belongs beside its only noun")
        if name in sys.stdlib_module_names and not name.startswith("__"):
            found.append(
                f"{where}: {name} is a module of the standard library; readers and imports mistake one for the other"
            )
        if path.parent == root / "pfsmount" and module not in BASE:
            found.append(
                f"{where}: only {', '.join(sorted(BASE))} are of rank 0; everything else has a layer's package"
            )
    return found


def import_cycle(root: Path) -> list[str]:
    """One cycle of modules that import each other, first and last the same; empty when there is none."""
    modules = module_files(root)
    graph = {
        module: sorted({item.target for item in imports_of(module, path, modules)} & modules.keys() - {module})
        for module, path in modules.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in done:
            return []
        for target in graph[module]:
            if cycle := visit(target, [*trail, module]):
                return cycle
        done.add(module)
        return []

    return next((cycle for module in graph if (cycle := visit(module, []))), [])


def test_imports_point_down_and_libraries_have_one_door() -> None:
    violations = layer_violations(PROJECT)
    assert not violations, "\n" + "\n".join(violations)


def test_modules_are_named_after_their_nouns() -> None:
    violations = name_violations(PROJECT)
    assert not violations, "\n" + "\n".join(violations)


def test_no_modules_import_each_other_in_a_circle() -> None:
    cycle = import_cycle(PROJECT)
    assert not cycle, " → ".join(cycle) + ": a cycle can only be understood, tested and imported whole"


def test_every_layer_exists() -> None:
    """A renamed package must not make its rule silently hold for nothing."""
    modules = module_files(PROJECT)
    later = {"pfsmount.views"}  # kernel views: their rank is decided, their code comes with their issue
    assert {layer for layer in RANKS if layer not in modules} <= later


# ---- the checker itself --------------------------------------------------------------------------------------------


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(source))
    return root


TREE = "pfsmount/tree/node.py"
FINE = {
    "pfsmount/__init__.py": "",
    "pfsmount/errors.py": "",
    "pfsmount/objects/__init__.py": "",
    "pfsmount/objects/index.py": "import lmdb",
    "pfsmount/objects/store.py": "from . import index\nfrom ..errors import PfsError",
    TREE: "import json\nfrom pfsmount.objects import store\nfrom pfsmount import errors",
    "pfsmount/repo/refs.py": "",
    "pfsmount/views/erofs.py": "from pfsmount.repo import refs",
    "pfsmount/fs/mount.py": "import pyfuse3, trio\nimport pfsmount.repo.refs",
    "pfsmount/cli/output.py": "from rich.console import Console",
    "runner/job.py": "import trio\nfrom pfsmount.views import erofs",
    "runner/cli.py": "import typer\nfrom pfsmount.cli import output\nfrom runner import job",
}


def test_the_checker_accepts_imports_that_point_down(tmp_path: Path) -> None:
    root = plant(tmp_path, FINE)
    assert layer_violations(root) == []
    assert name_violations(root) == []
    assert import_cycle(root) == []


@pytest.mark.parametrize(
    ("place", "planted", "named"),
    [
        (TREE, "import pfsmount.repo.refs", ("pfsmount.repo.refs", "rank 2", "rank 3", "point down")),
        (TREE, "from pfsmount.repo import refs", ("pfsmount.repo.refs",)),
        (TREE, "from pfsmount.repo.refs import Ref", ("pfsmount.repo.refs",)),
        (TREE, "from ..repo.refs import Ref", ("pfsmount.repo.refs",)),
        (TREE, "from .. import repo", ("pfsmount.tree.node",)),
        (TREE, "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pfsmount.repo import refs", (":3:",)),
        (TREE, "def walk():\n    from pfsmount.repo import refs", (":2:",)),
        (TREE, "import importlib\nimportlib.import_module('pfsmount.repo.refs')", ("pfsmount.repo.refs",)),
        ("pfsmount/errors.py", "from pfsmount.objects import store", ("rank 0", "rank 1")),
        ("pfsmount/fs/mount.py", "import runner.job", ("runner", "rank 5")),
        ("runner/job.py", "from pfsmount.fs import mount", ("pfsmount.fs.mount", "a running `pfs mount`")),
        ("runner/job.py", "from pfsmount.cli import output", ("rank 6",)),
        ("runner/job.py", "def main():\n    import runner.cli", ("rank 6",)),
        ("runner/cli.py", "from pfsmount.cli import app", ("rank 6",)),
        (TREE, "import lmdb", ("lmdb", "pfsmount.objects")),
        ("pfsmount/objects/store.py", "def run():\n    import trio.to_thread", ("trio", "pfsmount.fs")),
        ("pfsmount/cli/app.py", "from rich import print", ("rich", "pfsmount.cli.output")),
        ("runner/job.py", "import typer", ("typer", "runner.cli")),
        (TREE, "import sqlalchemy", ("sqlalchemy", "no door")),
    ],
)
def test_the_checker_catches_a_planted_import(tmp_path: Path, place: str, planted: str, named: tuple[str, ...]) -> None:
    root = plant(tmp_path, {**FINE, "pfsmount/repo/__init__.py": "", "pfsmount/cli/app.py": "", place: planted})
    (violation,) = layer_violations(root)
    assert violation.startswith(f"{place}:")
    for word in named:
        assert word in violation


@pytest.mark.parametrize(
    "planted", ["pfsmount/repo/utils.py", "pfsmount/tree/copy.py", "runner/helpers/__init__.py", "pfsmount/globs.py"]
)
def test_the_checker_catches_a_planted_name(tmp_path: Path, planted: str) -> None:
    root = plant(tmp_path, {**FINE, planted: ""})
    (violation,) = name_violations(root)
    assert violation.startswith(f"{planted}:")


def test_the_checker_catches_a_planted_cycle(tmp_path: Path) -> None:
    root = plant(
        tmp_path, {**FINE, "pfsmount/objects/index.py": "def lazily():\n    from pfsmount.objects import store"}
    )
    assert import_cycle(root) == ["pfsmount.objects.index", "pfsmount.objects.store", "pfsmount.objects.index"]
