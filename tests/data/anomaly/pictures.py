"""Cuts the pictures of docs/patches.md out of a photograph: wood, and the same wood with a scratch.

    pip install pillow
    python3 tests/data/anomaly/pictures.py
"""

import pathlib

from PIL import Image, ImageDraw

here = pathlib.Path(__file__).parent
photo = Image.open(here.parent.parent / "photos/coffee.png").convert("RGB")
SIDE = 112


def cut(x: int, y: int) -> Image.Image:
    return photo.crop((x, y, x + SIDE, y + SIDE))


for number, place in enumerate([(486, 20), (488, 90), (486, 170), (484, 250)], 1):
    cut(*place).save(here / f"wood-{number}.jpg", quality=90)
cut(487, 285).save(here / "wood-new.jpg", quality=90)
scratched = cut(487, 130)
draw = ImageDraw.Draw(scratched)
draw.line([(30, 70), (52, 52), (80, 47)], fill=(225, 220, 210), width=5)
scratched.save(here / "wood-scratched.jpg", quality=90)
