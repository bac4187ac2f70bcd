"""Writes the texts to count: what Python's help() knows of the language, which every Python brings along.

python3 texts.py TARGET
"""

from __future__ import annotations

import sys
from pathlib import Path
from pydoc_data.topics import topics


def main(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name, text in topics.items():
        (target / f"{name}.txt").write_text(text, encoding="utf-8")
    print(f"{len(topics)} texts in {target}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
