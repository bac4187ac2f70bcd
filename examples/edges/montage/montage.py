"""Lays all pictures of /pfs/images on one sheet, and lets them fade into their drawings in /pfs/edges from left to right."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

IMAGES, EDGES, OUT = Path("/pfs/images"), Path("/pfs/edges"), Path("/pfs/out")
COLUMNS = 17
TILE = (120, 90)
GAP = 4

drawings = sorted(EDGES.iterdir())
photos = {path.stem: path for path in IMAGES.iterdir()}
rows = -(-len(drawings) // COLUMNS)
sheet = Image.new("RGB", (COLUMNS * (TILE[0] + GAP) + GAP, rows * (TILE[1] + GAP) + GAP), (9, 11, 16))
for number, path in enumerate(drawings):
    row, column = divmod(number, COLUMNS)
    drawing = Image.open(path).convert("RGB").resize(TILE)
    photo = Image.open(photos[path.stem]).convert("RGB").resize(TILE)
    # a ramp over the middle of the sheet: how much of the drawing is seen at each place of this tile
    ramp = [(column + x / TILE[0]) / COLUMNS * 1.8 - 0.4 for x in range(TILE[0])]
    mask = Image.new("L", (TILE[0], 1))
    mask.putdata([round(255 * min(1.0, max(0.0, share))) for share in ramp])
    tile = Image.composite(drawing, photo, mask.resize(TILE))
    sheet.paste(tile, (GAP + column * (TILE[0] + GAP), GAP + row * (TILE[1] + GAP)))
sheet.save(OUT / "montage.png")
print(f"{len(drawings)} pictures in {rows} rows")
