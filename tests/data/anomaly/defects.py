"""Paints defects on textures of tests/photos and measures how well the demo model finds them, beside an untrained one.

    pip install numpy pillow
    python3 tests/data/anomaly/defects.py target/release/dino-train

Four textures: 16 pictures of each to compare with, and 25 to measure with, 20 of them with one of five kinds of defects. All are cut
from one region of a photograph at random places, so that they overlap. The same each time.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

ROOT = pathlib.Path(__file__).resolve().parents[3]
SIDE = 80
# Photo, and the part of it (left, top, right, bottom).
TEXTURES = {
    "wood": ("coffee.png", (484, 0, 600, 400)),
    "leaves": ("china.jpg", (330, 290, 560, 420)),
    "petals": ("flower.jpg", (190, 110, 430, 330)),
    "cloth": ("astronaut.png", (60, 260, 190, 490)),
}
KINDS = ["scratch", "spot", "hole", "stain", "foreign"]
random = np.random.default_rng(3)


def cut(photo: Image.Image, part: tuple[int, int, int, int]) -> Image.Image:
    left, top, right, bottom = part
    x, y = random.integers(left, right - SIDE + 1), random.integers(top, bottom - SIDE + 1)
    return photo.crop((x, y, x + SIDE, y + SIDE))


def painted(picture: Image.Image, kind: str, other: Image.Image) -> tuple[Image.Image, Image.Image]:
    """A picture with a defect, and its mask."""
    mask = Image.new("L", picture.size)
    draw = ImageDraw.Draw(mask)
    x, y = (int(value) for value in random.integers(18, SIDE - 18, 2))
    size = int(random.integers(5, 11))
    if kind == "scratch":
        angle = random.uniform(0, np.pi)
        dx, dy = 2.2 * size * np.cos(angle), 2.2 * size * np.sin(angle)
        draw.line([(x - dx, y - dy), (x + dx, y + dy)], fill=255, width=3)
    elif kind == "foreign":
        draw.rectangle([x - size, y - size, x + size, y + size], fill=255)
    else:
        draw.ellipse([x - size, y - size * 0.8, x + size, y + size * 0.8], fill=255)
    mean = np.asarray(picture, float).mean((0, 1))
    filling = {
        "scratch": Image.new("RGB", picture.size, tuple(int(value) for value in np.clip(mean + 90, 0, 255))),
        "spot": Image.new("RGB", picture.size, tuple(int(value) for value in np.roll(mean, 1))),
        "hole": Image.new("RGB", picture.size, (12, 12, 12)),
        # Coloured, with the texture still to be seen.
        "stain": Image.blend(picture, Image.new("RGB", picture.size, tuple(int(255 - value) for value in mean)), 0.45),
        "foreign": other,
    }[kind]
    soft = mask.filter(ImageFilter.GaussianBlur(0.7))
    return Image.composite(filling, picture, soft), mask


def main() -> None:
    program, photos = sys.argv[1], ROOT / "tests/photos"
    opened = {name: Image.open(photos / name).convert("RGB") for name in {photo for photo, _ in TEXTURES.values()}}
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for number, (name, (photo, part)) in enumerate(TEXTURES.items()):
            other_photo, other_part = list(TEXTURES.values())[(number + 1) % len(TEXTURES)]
            at = pathlib.Path(place) / name
            for path in ["train/good", "test/good", *[f"{folder}/{kind}" for folder in ["test", "ground_truth"] for kind in KINDS]]:
                (at / path).mkdir(parents=True)
            for index in range(16):
                cut(opened[photo], part).save(at / f"train/good/{index}.png")
            for index in range(5):
                cut(opened[photo], part).save(at / f"test/good/{index}.png")
            for kind in KINDS:
                for index in range(4):
                    picture, mask = painted(cut(opened[photo], part), kind, cut(opened[other_photo], other_part))
                    picture.save(at / f"test/{kind}/{index}.png")
                    mask.save(at / f"ground_truth/{kind}/{index}_mask.png")
            command = [program, "anomaly-eval", "--model", str(ROOT / "models/demo"), "--normal", str(at / "train/good")]
            command += ["--test", str(at / "test"), "--masks", str(at / "ground_truth"), "--segment-size", "80", "--baselines"]
            report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            rows.append((name, report))
    print("| texture | image AUROC | pixel AUROC | PRO | untrained: image AUROC | pixel AUROC | PRO |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    figures = ["image_auroc", "pixel_auroc", "pro"]
    values = [[report[name] for name in figures] + [report["untrained"][name] for name in figures] for _, report in rows]
    for name, row in [*zip(TEXTURES, values), ("mean", np.mean(values, 0))]:
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in row) + " |")


main()
