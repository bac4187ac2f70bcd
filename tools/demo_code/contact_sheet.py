"""Lays photos and the drawings made of them side by side on one dark sheet.

    python3 contact_sheet.py PHOTOS DRAWINGS SHEET.png [--new NAME]...

A photo and its drawing belong together when their names without suffixes are equal.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WIDTH = 2400
MARGIN = 96
GUTTER = 44
SEAM = 4
CAPTION = 74
HEADER = 210
FOOTER = 40
ROW_HEIGHT = 285
RADIUS = 10

BACKGROUND = (24, 26, 31)
BRIGHT = (236, 238, 241)
MUTED = (132, 140, 152)
ACCENT = (255, 179, 92)
HAIRLINE = (52, 56, 65)


@dataclass(frozen=True)
class Card:
    """A photo and its drawing, which has the same proportions."""

    name: str
    photo: Image.Image
    drawing: Image.Image

    @property
    def proportions(self) -> float:
        """Width by height of one of the two pictures."""
        ratio: float = self.photo.width / self.photo.height
        return ratio


def pair_up(photos: Path, drawings: Path) -> list[Card]:
    found = {path.stem: path for path in drawings.iterdir()}
    return [
        Card(path.name, Image.open(path).convert("RGB"), Image.open(found[path.stem]).convert("RGB"))
        for path in sorted(photos.iterdir())
        if path.stem in found
    ]


def row_height(cards: Sequence[Card]) -> float:
    """The height at which these cards fill the width of the sheet exactly."""
    room = WIDTH - 2 * MARGIN - GUTTER * (len(cards) - 1) - SEAM * len(cards)
    proportions = sum(card.proportions for card in cards)
    return room / (2 * proportions)


def break_into_rows(cards: Sequence[Card]) -> list[Sequence[Card]]:
    """Rows that all fill the width, with heights as near to ROW_HEIGHT, and so to each other, as the order allows."""

    @cache
    def best(start: int) -> tuple[float, tuple[int, ...]]:
        if start == len(cards):
            return 0.0, ()
        choices = []
        for end in range(start + 1, len(cards) + 1):
            rest, ends = best(end)
            choices.append((rest + (row_height(cards[start:end]) - ROW_HEIGHT) ** 2, (end, *ends)))
        return min(choices)

    ends = best(0)[1]
    return [cards[start:end] for start, end in zip((0, *ends), ends, strict=False)]


def font(size: int) -> ImageFont.FreeTypeFont:
    chosen = ImageFont.load_default(size)
    assert isinstance(chosen, ImageFont.FreeTypeFont)
    return chosen


def rounded(left: Image.Image, right: Image.Image, width: int, height: int) -> tuple[Image.Image, Image.Image]:
    """Both pictures as one panel of this size, and the panel's mask."""
    panel = Image.new("RGB", (width, height), BACKGROUND)
    half = (width - SEAM) // 2
    panel.paste(left.resize((half, height), Image.Resampling.LANCZOS), (0, 0))
    panel.paste(right.resize((half, height), Image.Resampling.LANCZOS), (width - half, 0))
    # drawn four times too large: Pillow's own corners are jagged
    mask = Image.new("L", (width * 4, height * 4), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, width * 4 - 1, height * 4 - 1), RADIUS * 4, fill=255)
    return panel, mask.resize((width, height), Image.Resampling.LANCZOS)


def write_title(pen: ImageDraw.ImageDraw, title: str) -> None:
    """Pillow's own font has no arrow: each → of the title is drawn."""
    x, y = float(MARGIN), 76
    for number, words in enumerate(title.split("→")):
        if number:
            tip, middle = x + 78, y - 18
            pen.line((x + 22, middle, tip, middle), ACCENT, 4)
            pen.line((tip - 14, middle - 14, tip, middle, tip - 14, middle + 14), ACCENT, 4, joint="curve")
            x = tip + 22
        pen.text((x, y), words.strip(), BRIGHT, font(54), anchor="ls")
        x += pen.textlength(words.strip(), font(54))


def lay_out(cards: Sequence[Card], title: str, new: set[str]) -> Image.Image:
    rows = break_into_rows(cards)
    heights = [round(row_height(row)) for row in rows]
    sheet = Image.new("RGB", (WIDTH, HEADER + sum(heights) + CAPTION * len(rows) + FOOTER), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    write_title(pen, title)
    subtitle = f"{len(cards)} photos, and what one job drew of each"
    pen.text((MARGIN, 126), subtitle, MUTED, font(28), anchor="ls")
    pen.line((MARGIN, 162, WIDTH - MARGIN, 162), HAIRLINE, 2)

    y = HEADER
    for row, height in zip(rows, heights, strict=True):
        x = float(MARGIN)
        for card in row:
            width = 2 * card.proportions * row_height(row) + SEAM
            panel, mask = rounded(card.photo, card.drawing, round(x + width) - round(x), height)
            sheet.paste(panel, (round(x), y), mask)
            is_new = card.name in new
            base = y + height + 34
            pen.text((round(x) + 2, base), card.name, ACCENT if is_new else BRIGHT, font(24), anchor="ls")
            note = "added in the second commit" if is_new else f"{card.photo.width} x {card.photo.height}"
            pen.text((round(x + width) - 2, base), note, ACCENT if is_new else MUTED, font(20), anchor="rs")
            x += width + GUTTER
        y += height + CAPTION
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("drawings", type=Path)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("--new", action="append", default=[], metavar="NAME", help="a photo of the second commit")
    asked = parser.parse_args()

    cards = pair_up(asked.photos, asked.drawings)
    if not cards:
        parser.exit(1, f"{asked.photos} and {asked.drawings} have no picture in common\n")
    title = f"{asked.photos.name} → {asked.drawings.name}"
    lay_out(cards, title, set(asked.new)).save(asked.sheet)
    print(f"{asked.sheet}: {len(cards)} photos and their drawings")


if __name__ == "__main__":
    main()
