"""Compares the totals with what a Counter finds in the same texts, in one go.

python3 check.py TEXTS TOTALS.tsv
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path


def main(texts: Path, totals: Path) -> None:
    expected: Counter[str] = Counter()
    for path in texts.iterdir():
        expected.update(re.findall("[a-z]+", path.read_text(encoding="utf-8").lower(), re.ASCII))
    rows = [line.split("\t") for line in totals.read_text().splitlines()]
    found = {word: int(count) for count, word in rows}
    if len(rows) != len(found) or found != expected:
        raise SystemExit(f"the totals are wrong: {sorted(found.items() ^ expected.items())[:10]}")
    print(f"right: {expected.total()} words, {len(expected)} different ones")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
