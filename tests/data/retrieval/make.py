"""Makes reference.safetensors and gnd_tiny.pkl: what the public evaluations of retrieval and copy detection give on made-up features.

    git clone https://github.com/facebookresearch/dino
    pip install numpy pillow safetensors
    python3 tests/data/retrieval/make.py dino

The functions are those of that repository; pictures are made smaller by Pillow.
"""

import ast
import contextlib
import io
import json
import os
import pathlib
import pickle
import re
import sys
import tempfile

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).resolve().parent
np.in1d = np.isin  # Gone from newer versions.


def taken(file, names):
    """Functions and classes of a file of the public code, without what the others import."""
    tree = ast.parse(pathlib.Path(sys.argv[1], file).read_text())
    tree.body = [node for node in tree.body if getattr(node, "name", None) in names]
    scope = {"np": np, "os": os, "torch": None}
    exec(compile(tree, file, "exec"), scope)
    return [scope[name] for name in names]


compute_ap, compute_map = taken("utils.py", ["compute_ap", "compute_map"])
Copydays, score = taken("eval_copy_detection.py", ["CopydaysDataset", "score_ap_from_ranks_1"])
# NumPy's arrays only: the branch for tensors is not reached.
(PCA,) = taken("utils.py", ["PCA"])
random = np.random.default_rng(5)
tensors, expected = {}, {}

# Retrieval: some queries have nothing easy, or nothing at all.
PICTURES, QUERIES = 60, 7
gnd = []
for query in range(QUERIES):
    order = random.permutation(PICTURES).tolist()
    easy, hard, junk = [(4, 5, 6), (0, 3, 2), (1, 0, 0), (12, 9, 8), (0, 0, 5), (2, 2, 0), (5, 1, 20)][query]
    lists = order[:easy], order[easy : easy + hard], order[easy + hard : easy + hard + junk]
    gnd.append({"bbx": [1.5, 2, 30, 40.25], "easy": sorted(lists[0]), "hard": sorted(lists[1]), "junk": sorted(lists[2])})
similarity = random.normal(size=(QUERIES, PICTURES)).astype(np.float32)
for query, judged in enumerate(gnd):
    similarity[query, judged["easy"] + judged["junk"]] += 1.5
    similarity[query, judged["hard"]] += 0.7
ranks = np.argsort(-similarity.T, axis=0)
tensors["similarity"] = similarity
concatenated = {"easy": ("easy", "hard junk"), "medium": ("easy hard", "junk"), "hard": ("hard", "easy junk")}
for name, (relevant, ignored) in concatenated.items():
    join = lambda judged, keys: np.concatenate([judged[key] for key in keys.split()])  # noqa: E731
    lists = [{"ok": join(judged, relevant), "junk": join(judged, ignored)} for judged in gnd]
    mean, _, precisions, _ = compute_map(ranks, lists, [1, 5, 10])
    expected[name] = [100 * float(mean), *(100 * precisions).tolist()]
names = {"imlist": [f"all_{n:03}" for n in range(PICTURES)], "qimlist": [f"query_{n}" for n in range(QUERIES)], "gnd": gnd}
(HERE / "gnd_tiny.pkl").write_bytes(pickle.dumps(names, protocol=2))
expected["precision"] = []
for length in (1, 3, 9):
    found = sorted(random.choice(30, length, replace=False).tolist())
    value = float(score(found, length + 2))
    assert value == compute_ap(found, length + 2)
    expected["precision"].append({"ranks": found, "relevant": length + 2, "expected": value})

# Copy detection, with fewer pictures than Copydays has.
ORIGINALS, DISTRACTORS, DIM = 30, 25, 5
strong = sorted(f"{2000 + random.integers(ORIGINALS):04}{n:02}.jpg" for n in range(40))
expected["strong"] = strong
with tempfile.TemporaryDirectory() as folder:
    dataset = Copydays(folder)
    dataset.block_names = ["original", "strong", "jpegqual/3"]
    for name in dataset.block_names:
        files = strong if name == "strong" else [f"{2000 + n:04}00.jpg" for n in range(ORIGINALS)]
        pathlib.Path(folder, name).mkdir(parents=True)
        for file in files:
            pathlib.Path(folder, name, file).touch()
    dataset.nblocks, dataset.q_block_sizes = 3, np.array([ORIGINALS, len(strong), ORIGINALS])
    originals = random.normal(size=(ORIGINALS, DIM))
    shown = [int(name[:4]) - 2000 for name in strong]
    copies = [originals, originals[shown] + 0.9 * random.normal(size=(len(strong), DIM)), originals + 0.5 * random.normal(size=(ORIGINALS, DIM))]
    queries = np.concatenate(copies).astype(np.float32) + 3
    database = np.concatenate([originals, random.normal(size=(DISTRACTORS, DIM))]).astype(np.float32) + 3
    others = (random.normal(size=(50, DIM)) * [3, 1, 1, 0.2, 1e-4] + 3).astype(np.float32)
    tensors |= {"queries": queries, "database": database, "others": others}
    mean = others.mean(axis=0)
    pca = PCA(dim=DIM, whit=0.5)
    with contextlib.redirect_stdout(io.StringIO()):
        pca.train_pca(others.T @ others / len(others))
    for name, change in [("plain", lambda rows: rows), ("whitened", lambda rows: pca.apply(rows - mean))]:
        one, other = change(queries), change(database)
        one, other = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (one, other)]
        similar = one @ other.T
        tensors[f"similar.{name}"] = similar.astype(np.float32)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            dataset.eval_result(np.argsort(-similar, axis=1)[:, :20], None)
        expected[name] = [float(value) for value in re.findall(r"mAP=([\d.]+)", said.getvalue())]

# Pictures made smaller; the larger one is first averaged over squares of pixels.
for width, height, side in [(150, 113, 32), (90, 60, 48)]:
    noise = np.kron(random.integers(0, 200, (height // 5 + 1, width // 5 + 1, 3)), np.ones((5, 5, 1)))[:height, :width]
    picture = (noise + random.integers(0, 56, (height, width, 3))).astype(np.uint8)
    tensors[f"picture.{side}"] = picture
    small = Image.fromarray(picture)
    small.thumbnail((side, side), Image.LANCZOS)
    tensors[f"small.{side}"] = np.array(small)
expected["thumbnails"] = []
for size in [(1024, 768), (768, 1024), (500, 333), (200, 100), (1001, 37), (2000, 3), (224, 224)]:
    empty = Image.new("L", size)
    empty.thumbnail((224, 224))
    expected["thumbnails"].append({"size": size, "expected": empty.size})

save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, HERE / "reference.safetensors", {"config": json.dumps(expected)})
