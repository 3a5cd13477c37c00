"""Writes masks.json: what pycocotools makes of masks on a grid of patches.

    pip install pycocotools numpy
    python tests/data/coco/make.py tests/data/coco/masks.json [polygons.json]

Each mask is drawn on its patches and enlarged to the picture's size by nearest neighbours. `counts`, `area` and `bbox` are pycocotools'.
`polygons` are our own, those of the file's last version, or of the list that the test prints where they differ. They are written only if
pycocotools draws the very same mask from them.
"""

import json
import sys

import numpy as np
import pycocotools
from pycocotools import mask as coco

SIZES = [(64, 32), (97, 43), (7, 7), (300, 9), (488, 427), (1, 1)]
GRIDS = [(4, 8), (5, 3), (1, 6), (7, 9)]
DRAWN = {
    "nothing": ["....", "...."],
    "everything": ["####", "####"],
    "first pixel": ["#...", "...."],
    "last column": ["...#", "...#"],
    "a ring": [".....", ".###.", ".#.#.", ".###.", "....."],
    "two that touch at a corner": ["##..", "##..", "..##", "..##"],
    "a checkerboard": ["#.#.#", ".#.#.", "#.#.#"],
    "rings in each other": ["#######", "#.....#", "#.###.#", "#.#.#.#", "#.###.#", "#.....#", "#######"],
}


def enlarged(cells, width, height):
    rows, columns = cells.shape
    y = (2 * np.arange(height) + 1) * rows // (2 * height)
    x = (2 * np.arange(width) + 1) * columns // (2 * width)
    return cells[np.ix_(y, x)].astype(np.uint8)


def main(path, polygons_of=None):
    if polygons_of:
        known = json.load(open(polygons_of))
    else:
        known = [mask["polygons"] for mask in json.load(open(path))["masks"]]
    random = np.random.default_rng(9)
    masks = [(name, np.array([[cell == "#" for cell in row] for row in drawn])) for name, drawn in DRAWN.items()]
    masks += [(f"random {at}", random.random(GRIDS[at % len(GRIDS)]) < 0.5) for at in range(12)]
    written = []
    for at, (name, cells) in enumerate(masks):
        for width, height in [SIZES[at % len(SIZES)], SIZES[(at + 3) % len(SIZES)]]:
            pixels = enlarged(cells, width, height)
            encoded = coco.encode(np.asfortranarray(pixels))
            polygons = known[len(written)]
            if pixels.any():
                drawn = coco.decode(coco.merge(coco.frPyObjects(polygons, height, width)))
                assert (drawn == pixels).all(), f"{name} at {width}x{height}: pycocotools draws another mask from the polygons"
            written.append({
                "name": name, "width": width, "height": height,
                "cells": ["".join("#" if cell else "." for cell in row) for row in cells],
                "counts": encoded["counts"].decode(), "area": int(coco.area(encoded)),
                "bbox": [int(side) for side in coco.toBbox(encoded)], "polygons": polygons,
            })
    version = getattr(pycocotools, "__version__", None) or __import__("importlib.metadata").metadata.version("pycocotools")
    lines = ",\n".join(json.dumps(mask, separators=(",", ":")) for mask in written)
    open(path, "w").write(f'{{"made_by":"pycocotools {version}","masks":[\n{lines}\n]}}\n')


main(*sys.argv[1:])
