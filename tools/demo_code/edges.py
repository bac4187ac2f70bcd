"""Draws each photo as lines of light: the user's code of the demo's job.

Knows nothing of pfs: it reads pictures from a directory and writes pictures to another.

    python3 edges.py [INPUT [OUTPUT]]       default: /pfs/images /pfs/out
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Picture: TypeAlias = NDArray[np.uint8]


def draw(photo: Picture) -> Picture:
    """The edges of a BGR photo in its own colours on near-black, of the same size."""
    # a picture of any size is drawn with lines of about the same weight
    scale = max(1.0, max(photo.shape[:2]) / 600)
    smooth = cv2.bilateralFilter(photo, d=9, sigmaColor=50, sigmaSpace=5)
    smooth = cv2.GaussianBlur(smooth, (0, 0), 1.1 * scale)

    # soft slopes: the strongest of the three channels, so that red on a green of equal brightness is an edge too
    colours = smooth.astype(np.float32)
    slopes = cv2.magnitude(cv2.Scharr(colours, cv2.CV_32F, 1, 0), cv2.Scharr(colours, cv2.CV_32F, 0, 1)).max(axis=2)
    slopes = np.clip(slopes / np.percentile(slopes, 98.5), 0, 1)

    # crisp lines: thresholds that follow the photo's own contrast
    grey = cv2.cvtColor(smooth, cv2.COLOR_BGR2GRAY)
    steep = cv2.magnitude(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    weak, strong = (float(level) for level in np.percentile(steep, (80, 93)))
    lines = cv2.dilate(cv2.Canny(grey, weak, strong, L2gradient=True), np.ones((round(scale), round(scale)), np.uint8))
    crisp = cv2.GaussianBlur(lines, (0, 0), 0.6 * scale).astype(np.float32) / 255

    light = 0.7 * np.maximum(slopes - 0.12, 0) + 1.1 * crisp
    light += 0.35 * cv2.GaussianBlur(light, (0, 0), 4 * scale)
    light = np.clip(light, 0, 1)

    # the ink is the photo's own colour, made bright
    ink = cv2.cvtColor(cv2.GaussianBlur(photo, (0, 0), 3 * scale), cv2.COLOR_BGR2HSV).astype(np.float32)
    ink[..., 1] = np.clip(ink[..., 1] * 1.25, 0, 185)
    ink[..., 2] = 190 + ink[..., 2] * 65 / 255
    ink = cv2.cvtColor(ink.astype(np.uint8), cv2.COLOR_HSV2BGR).astype(np.float32)

    paper = np.array((16, 11, 9), np.float32)
    drawing: Picture = (paper + (ink - paper) * light[..., np.newaxis]).astype(np.uint8)
    return drawing


def main(source: str = "/pfs/images", target: str = "/pfs/out") -> None:
    # jobs run side by side already
    cv2.setNumThreads(1)
    for path in sorted(path for path in Path(source).rglob("*") if path.is_file()):
        photo = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if photo is None:
            sys.exit(f"{path.name} is not a picture that OpenCV can read")
        result = Path(target) / f"{path.stem}.png"
        if not cv2.imwrite(str(result), draw(photo)):
            sys.exit(f"cannot write {result}")
        print(f"{path.name}: {photo.shape[1]}×{photo.shape[0]} drawn")


if __name__ == "__main__":
    main(*sys.argv[1:])
