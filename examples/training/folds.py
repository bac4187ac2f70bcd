"""Splits the handwritten digits that scikit-learn ships into folds: each is held out once, and the others are what is learned from.

python3 folds.py TARGET
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold

FOLDS = 4


def main(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    pixels, labels = digits.data.astype(np.uint8), digits.target.astype(np.uint8)
    splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    for number, (train, test) in enumerate(splitter.split(pixels, labels), 1):
        np.savez_compressed(
            target / f"fold-{number}.npz", x=pixels[train], y=labels[train], x_test=pixels[test], y_test=labels[test]
        )
    print(f"{FOLDS} folds of {len(labels)} digits in {target}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
