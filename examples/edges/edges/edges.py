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
    grey = cv2.cvtColor(smooth, cv2.COLOR_BGR2GRAY)
    # thresholds that follow the picture's own contrast: a soft one has edges, too
    steep = cv2.magnitude(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    low, high = (float(level) for level in np.percentile(steep, (80, 94)))
    lines = cv2.Canny(grey, low, high, L2gradient=True)
    light = cv2.GaussianBlur(cv2.dilate(lines, np.ones((2, 2), np.uint8)), (0, 0), 0.7).astype(np.float32) / 255
    ink = 110 + cv2.GaussianBlur(picture, (0, 0), 3).astype(np.float32) * (145 / 255)
    cv2.imwrite(str(OUT / f"{path.stem}.png"), (ink * light[..., np.newaxis]).astype(np.uint8))
