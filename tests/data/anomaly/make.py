"""Makes reference.safetensors: what AnomalyDINO's own functions give on small made-up features.

    git clone https://github.com/dammsi/AnomalyDINO
    pip install numpy scipy scikit-learn opencv-python-headless pillow tqdm
    python3 tests/data/anomaly/make.py AnomalyDINO

Neighbours are found by numpy in place of faiss, whose flat index computes the same.
"""

import json
import pathlib
import sys
import types

import cv2  # noqa: F401
import numpy as np
import scipy.stats  # noqa: F401
import sklearn.decomposition  # noqa: F401
from sklearn.metrics import roc_auc_score

# What the public code imports and these functions do not use.
for name in ["torch", "torchvision", "torchvision.models", "torchvision.transforms", "matplotlib", "matplotlib.pyplot", "tifffile"]:
    sys.modules.setdefault(name, types.ModuleType(name))
sys.modules["torchvision"].models = sys.modules["torchvision.models"]
sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
sys.modules["matplotlib"].pyplot = sys.modules["matplotlib.pyplot"]
sys.path.insert(0, sys.argv[1])
from src.backbones import DINOv2Wrapper  # noqa: E402
from src.post_eval import compute_pro, mean_top1p, trapezoid  # noqa: E402
from src.utils import dists2map  # noqa: E402

random = np.random.default_rng(7)
GRID, DIM, SIZE, PICTURES = (15, 14), 8, (47, 61), 6
tensors = {}


def normal(*shape):
    return random.normal(size=shape).astype(np.float32)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# Patches of good pictures lie around few directions; those of an anomaly lie elsewhere.
centres = normal(5, DIM)
stored = centres[random.integers(5, size=160)] + 0.3 * normal(160, DIM)
features, masks, distances, maps, scores = [], [], [], [], []
for picture in range(PICTURES):
    rows = centres[random.integers(5, size=GRID[0] * GRID[1])] + 0.3 * normal(GRID[0] * GRID[1], DIM)
    mask = np.zeros(SIZE, np.uint8)
    if picture % 2:
        for top, left, height, width in [(5, 6, 9, 12), (30, 40, 6 + picture, 8)]:
            mask[top : top + height, left : left + width] = 255
        mask[14, 18] = 255  # Touches the first region at its corner.
        for row in range(GRID[0]):
            for column in range(GRID[1]):
                y, x = int((row + 0.5) * SIZE[0] / GRID[0]), int((column + 0.5) * SIZE[1] / GRID[1])
                if mask[y, x]:
                    rows[row * GRID[1] + column] = 0.6 * rows[row * GRID[1] + column] + 1.2 * normal(DIM)
    # As faiss.IndexFlatL2 on normalised rows: squared distance / 2.
    squares = ((unit(rows)[:, None] - unit(stored)[None]) ** 2).sum(-1).min(1)
    distance = (squares / 2).astype(float).reshape(GRID)
    features.append(rows)
    masks.append(mask)
    distances.append(distance)
    maps.append(dists2map(distance, SIZE))
    scores.append(mean_top1p(distance.flatten()))
fprs, pros = compute_pro(maps, [mask.astype(int) for mask in masks])
figures = {
    "grid": GRID,
    "size": SIZE,
    "image_auroc": roc_auc_score([mask.any() for mask in masks], scores),
    "pixel_auroc": roc_auc_score(np.array(masks).ravel() > 0, np.array(maps).ravel()),
    "pro": trapezoid(fprs, pros, x_max=0.3) / 0.3,
}
tensors |= {"stored": stored, "features": np.array(features), "masks": np.array(masks), "maps": np.array(maps[:2]).astype(np.float32)}
tensors |= {"distances": np.array(distances).astype(np.float32), "scores": np.array(scores).astype(np.float32)}
# A map that is larger and one that is smaller than the grid is wide.
tensors["map_wide"] = dists2map(distances[0], (9, 200)).astype(np.float32)

# Masking: an object in the middle, with both signs of its component, and one that is too small for the middle.
wrapper = object.__new__(DINOv2Wrapper)
for name, sign, extent in [("up", 1, (3, 12)), ("down", -1, (3, 12)), ("small", 1, (6, 9))]:
    rows = normal(GRID[0] * GRID[1], DIM)
    direction = sign * np.eye(DIM, dtype=np.float32)[2] * 30
    for row in range(*extent):
        for column in range(extent[0], extent[1] - 1):
            if (row, column) != (7, 7):
                rows[row * GRID[1] + column] += direction
    tensors[f"masking_{name}"] = rows
    tensors[f"foreground_{name}"] = wrapper.compute_background_mask(rows, GRID, masking_type=True).astype(np.uint8)

header, data = {"__metadata__": {"config": json.dumps(figures)}}, b""
for name, tensor in sorted(tensors.items()):
    tensor = np.ascontiguousarray(tensor, np.uint8 if tensor.dtype == np.uint8 else np.float32)
    kind = "U8" if tensor.dtype == np.uint8 else "F32"
    header[name] = {"dtype": kind, "shape": tensor.shape, "data_offsets": [len(data), len(data) + tensor.nbytes]}
    data += tensor.tobytes()
encoded = json.dumps(header).encode()
encoded += b" " * (-len(encoded) % 8)
file = pathlib.Path(__file__).with_name("reference.safetensors")
file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
print(file, len(data), figures)
