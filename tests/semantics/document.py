"""docs/SEMANTICS.md from the docstrings of the tests beside this file: `python -m tests.semantics.document --write`.

Each module `test_*.py` (but test_document.py) is a section: the first line of its docstring is the title, the rest its introduction. Each test
in it is a promise: `S12 The title`, an empty line, the text. A promise's number stays with it for ever; a new one takes the next that was
never used, wherever it stands.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
DOCUMENT = HERE.parents[1] / "docs" / "SEMANTICS.md"
_TITLE = re.compile(r"S(\d+) (\S.*)\Z")
_HEAD = """# What you can rely on

Each paragraph below is a promise, and each promise is a test: this text is made from the docstrings of the tests in `tests/semantics/`, which show them
with the real commands (`./tools/test tests/semantics`). Numbers stay; what is not promised here may change. The bytes on disk: [FORMAT.md](FORMAT.md);
jobs in detail: [JOBS.md](JOBS.md); locks and order: [CONCURRENCY.md](CONCURRENCY.md); why things are as they are: [decisions](decisions/).
"""


@dataclass(frozen=True, slots=True)
class Promise:
    """One paragraph and its test."""

    number: int
    title: str
    text: str
    test: str


@dataclass(frozen=True, slots=True)
class Section:
    """The promises of one module."""

    title: str
    text: str
    promises: tuple[Promise, ...]


class BadPromise(Exception):
    """A docstring that is not `S<number> <title>`, an empty line, text."""


def sections() -> list[Section]:
    """All sections, in the order of the files' names."""
    return [_section(path) for path in sorted(HERE.glob("test_*.py")) if path.name != "test_document.py"]


def _section(path: Path) -> Section:
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    title, _, text = inspect.cleandoc(ast.get_docstring(tree) or "").partition("\n\n")
    if not title:
        raise BadPromise(f"{path.name} has no docstring")
    return Section(title.rstrip("."), text, tuple(_promises(path, tree)))


def _promises(path: Path, tree: ast.Module) -> Iterator[Promise]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            title, _, text = inspect.cleandoc(ast.get_docstring(node) or "").partition("\n\n")
            match = _TITLE.match(title)
            if match is None or not text:
                raise BadPromise(f"{path.name}: the docstring of {node.name} is not a promise")
            yield Promise(int(match[1]), match[2], text, f"{path.name}::{node.name}")


def generate() -> str:
    """The whole document."""
    parts = [_HEAD]
    for section in sections():
        parts.append(f"## {section.title}\n")
        if section.text:
            parts.append(f"{section.text}\n")
        for promise in section.promises:
            parts.append(f"### S{promise.number} {promise.title}\n")
            parts.append(f"{promise.text}\n")
    return "\n".join(parts)


def main() -> int:
    """Writes the document with `--write`; else says whether it is what it should be."""
    text = generate()
    if sys.argv[1:] == ["--write"]:
        DOCUMENT.write_text(text, encoding="utf-8")
        return 0
    if DOCUMENT.exists() and DOCUMENT.read_text(encoding="utf-8") == text:
        return 0
    print(f"{DOCUMENT} is not what the tests say; python -m tests.semantics.document --write", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
