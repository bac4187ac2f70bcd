"""Draws the edges of each picture in /pfs/images, in the picture's own colours on black."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

IMAGES, OUT = Path("/pfs/images"), Path("/pfs/out")

cv2.setNumThreads(1)
for path in sorted(IMAGES.iterdir()):
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise SystemExit(f"{path} is no picture")
    smooth = cv2.bilateralFilter(picture, d=7, sigmaColor=60, sigmaSpace=5)
    low, high = np.percentile(cv2.Laplacian(smooth, cv2.CV_32F), (88, 98)) * 12
    lines = cv2.Canny(smooth, float(low), float(high), L2gradient=True)
    light = cv2.GaussianBlur(cv2.dilate(lines, np.ones((2, 2), np.uint8)), (0, 0), 0.7).astype(np.float32) / 255
    ink = 110 + cv2.GaussianBlur(picture, (0, 0), 3).astype(np.float32) * (145 / 255)
    cv2.imwrite(str(OUT / f"{path.stem}.png"), (ink * light[..., np.newaxis]).astype(np.uint8))
