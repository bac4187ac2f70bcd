"""Makes many small photographs of the thirteen that scikit-image and scikit-learn ship: crops of different places, every other one mirrored.

    python3 photos.py TARGET [MORE]

The same pictures every time: seventeen of each of twelve photographs go to TARGET, those of the thirteenth to MORE.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from PIL import Image, ImageOps

EACH = 17
SIZE = (240, 180)
LAST = "rocket"
SKIMAGE = "astronaut.png camera.png chelsea.png coffee.png coins.png hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png retina.jpg rocket.jpg"
SKLEARN = "china.jpg flower.jpg"


def package_dir(name: str) -> Path:
    # found, not imported: that would take seconds
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"there is no package {name}: pip install '.[examples]'")
    return Path(found.submodule_search_locations[0])


def crop(photo: Image.Image, number: int) -> Image.Image:
    """Of the golden ratio's multiples no two are close: so are the places in which the crops lie."""
    along, down, zoom = ((number * step) % 1.0 for step in (0.6180, 0.7549, 0.3247))
    width = photo.width * (0.45 + 0.4 * zoom)
    height = min(photo.height, width * SIZE[1] / SIZE[0])
    width = height * SIZE[0] / SIZE[1]
    left, top = along * (photo.width - width), down * (photo.height - height)
    piece = photo.resize(SIZE, Image.Resampling.LANCZOS, (left, top, left + width, top + height))
    return ImageOps.mirror(piece) if number % 2 else piece


def main(target: Path, more: Path) -> None:
    skimage, sklearn = package_dir("skimage") / "data", package_dir("sklearn") / "datasets/images"
    sources = [skimage / name for name in SKIMAGE.split()] + [sklearn / name for name in SKLEARN.split()]
    for source in sources:
        directory = more if source.stem == LAST else target
        directory.mkdir(parents=True, exist_ok=True)
        photo = Image.open(source).convert("RGB")
        for number in range(1, EACH + 1):
            crop(photo, number).save(directory / f"{source.stem}-{number:02}.jpg", quality=90)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
