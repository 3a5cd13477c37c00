"""Trains the head of `dino-train linear --task segmentation` once more, by PyTorch, and prints the figures of both.

python dense.py --trainer target/dist/dino-train --model models/demo --data FRAMES (needs requirements.txt beside it)

FRAMES holds `SCENE_00000.jpg` and `SCENE_00000_mask.png`. Scenes are measured two by two, in alphabetical order, by
heads that learnt from all others. dino-train runs as a program. PyTorch's side shares nothing with it but the ONNX file
and the manifest: Pillow reads and resizes, ONNX Runtime's Python package gives the features, PyTorch trains the head
and enlarges its answers. Both take the same seeds, which mean other random numbers on each side: figures may differ by
as much as they do over seeds. The head and its training are those of DINOv2's public configuration for ADE20K
(mmsegmentation's BNHead).
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import PIL
import torch
import torch.nn.functional as F
from PIL import Image

IGNORE = 255
EPOCHS, BATCH = 100, 16
# Of the public configuration: 1,500 of 40,000 steps warm up.
WARMUP, START = 1500 / 40_000, 1e-6
BETAS, DECAY = (0.9, 0.999), 1e-4
MASK = "_mask.png"


def scene_of(picture):
    return picture.stem.rsplit("_", 1)[0]


def folds(pictures):
    """Pairs of scenes in alphabetical order, the last without a partner where their number is odd."""
    scenes = sorted({scene_of(picture) for picture in pictures})
    return [scenes[at : at + 2] for at in range(0, len(scenes), 2)]


def by_dino_train(args, pictures, scenes, seed):
    """mIoU of each learning rate, from the last line of the program."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("train", "val"):
            (Path(folder) / name).mkdir()
        for picture in pictures:
            name = "val" if scene_of(picture) in scenes else "train"
            (Path(folder) / name / picture.name).symlink_to(picture)
        # ONNX Runtime on the CPU, as on PyTorch's side.
        command = [args.trainer, "linear", "--task", "segmentation", "--model", args.model, "--device", "cpu"]
        command += ["--train", Path(folder) / "train", "--val", Path(folder) / "val", "--masks", args.data]
        command += ["--epochs", EPOCHS, "--batch-size", BATCH, "--seed", seed, "--lr", ",".join(map(str, args.lr))]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    report = json.loads(done.stdout.strip().splitlines()[-1])
    # Its names of the rates need not be written as Python writes them.
    found = {float(lr): figures["miou"] for lr, figures in report["by_lr"].items()}
    return [found[lr] for lr in args.lr]


class Backbone:
    """Patch features of whole pictures."""

    def __init__(self, folder, threads):
        self.manifest = json.loads((folder / "manifest.json").read_text())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        file = folder / self.manifest["files"]["f32"]["name"]
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.patch = self.manifest["patch_size"]
        self.longer_side = (self.manifest.get("segment") or {}).get("size", 480)
        self.mean, self.std = (np.array(self.manifest["transform"][name], np.float32) for name in ("mean", "std"))

    def input(self, picture):
        """[height, width, 3], normalised. Both sides are the nearest multiples of the patch."""
        scale = self.longer_side / max(picture.size)
        size = [max(int(side * scale / self.patch + 0.5), 1) * self.patch for side in picture.size]
        pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC), np.float32)
        return (pixels / 255 - self.mean) / self.std

    def features(self, pixels):
        """[F, rows, columns]"""
        rows, columns = (side // self.patch for side in pixels.shape[:2])
        name = self.session.get_inputs()[0].name
        batch = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        (tokens,) = self.session.run(["last_hidden_state"], {name: batch})
        # CLS and registers come first.
        patches = torch.from_numpy(tokens[0, 1 + self.manifest.get("registers", 0) :])
        return patches.T.reshape(-1, rows, columns)


class Example:
    """A picture and its mirror image as the head sees them, and its mask at its own size and at that of the input."""

    def __init__(self, path, mask, backbone):
        self.scene = scene_of(path)
        pixels = backbone.input(Image.open(path).convert("RGB"))
        self.views = [backbone.features(view) for view in (pixels, pixels[:, ::-1])]
        small = np.asarray(Image.fromarray(mask).resize(pixels.shape[1::-1], Image.Resampling.NEAREST))
        self.labels = [torch.from_numpy(view.astype(np.int64)) for view in (small, small[:, ::-1])]
        self.truth = torch.from_numpy(mask.astype(np.int64))


def read_masks(paths):
    """Numbers of classes by palette or as greys. Where 0 and 255 are the only ones, 255 is the object."""
    masks = [np.array(Image.open(path)) for path in paths]
    # Masks of one bit a pixel are truths.
    masks = [mask.astype(np.uint8) for mask in masks]
    most = max(int(mask[mask != IGNORE].max(initial=0)) for mask in masks)
    if most == 0:
        masks, most = [mask // IGNORE for mask in masks], 1
    return masks, most + 1


def enlarge(logits, size):
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def train(examples, classes, lr, seed):
    """Batch norm and a 1x1 convolution. In each epoch either a picture or its mirror image is seen."""
    random = torch.Generator().manual_seed(seed)
    width = len(examples[0].views[0])
    norm, conv = torch.nn.BatchNorm2d(width), torch.nn.Conv2d(width, classes, 1)
    torch.nn.init.normal_(conv.weight, std=0.01, generator=random)
    torch.nn.init.zeros_(conv.bias)
    head = torch.nn.Sequential(norm, conv)
    optimizer = torch.optim.AdamW(head.parameters(), lr, BETAS, weight_decay=DECAY)
    steps = EPOCHS * -(-len(examples) // BATCH)
    warmup = int(steps * WARMUP + 0.5)

    def share(step):
        """mmcv's polynomial decay of power 1 with a linear warm-up."""
        regular = 1 - step / steps
        return regular * (1 - (1 - step / warmup) * (1 - START)) if step < warmup else regular

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(examples), generator=random).split(BATCH):
            views = torch.randint(0, 2, (len(chosen),), generator=random)
            seen = list(zip(chosen.tolist(), views.tolist()))
            features = torch.stack([examples[at].views[view] for at, view in seen])
            labels = torch.stack([examples[at].labels[view] for at, view in seen])
            loss = F.cross_entropy(enlarge(head(features), labels.shape[1:]), labels, ignore_index=IGNORE)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return head.eval()


def miou(examples, classes, answer):
    """In percent, from one confusion matrix over the pixels of all pictures. Classes that are nowhere do not count."""
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    for example in examples:
        known = example.truth != IGNORE
        pairs = example.truth[known] * classes + answer(example)[known]
        confusion += torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    right, union = confusion.diag(), confusion.sum(0) + confusion.sum(1) - confusion.diag()
    return 100 * (right[union > 0] / union[union > 0]).mean().item()


@torch.no_grad()
def measure(head, examples, classes):
    answer = lambda example: enlarge(head(example.views[0][None]), example.truth.shape)[0].argmax(0)
    return miou(examples, classes, answer)


def cell(figures):
    spread = f" ± {statistics.stdev(figures):.1f}" if len(figures) > 1 else ""
    return f"{statistics.mean(figures):.1f}{spread}"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--trainer", type=Path, required=True, help="the program dino-train")
    p.add_argument("--model", type=Path, required=True, help="a model folder")
    p.add_argument("--data", type=Path, required=True, help="frames and their masks, all of one size")
    p.add_argument("--lr", type=lambda text: [float(lr) for lr in text.split(",")], default=[0.001, 0.01])
    p.add_argument("--seeds", type=int, default=3, help="how often each head is trained on each side")
    p.add_argument("--threads", type=int, default=2, help="of PyTorch's side")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    args.data = args.data.resolve()
    pictures = sorted(args.data.glob("*_*.jpg"))
    if not pictures:
        p.error(f"--data {args.data}: there are no frames SCENE_NUMBER.jpg")

    backbone = Backbone(args.model, args.threads)
    masks, classes = read_masks([picture.with_name(picture.stem + MASK) for picture in pictures])
    examples = [Example(picture, mask, backbone) for picture, mask in zip(pictures, masks)]
    rows = []
    for scenes in folds(pictures):
        learnt = [example for example in examples if example.scene not in scenes]
        measured = [example for example in examples if example.scene in scenes]
        # Of each side, rate and seed.
        row = [[[] for _ in args.lr] for _ in range(2)]
        for seed in range(args.seeds):
            ours = by_dino_train(args, pictures, scenes, seed)
            theirs = [measure(train(learnt, classes, lr, seed), measured, classes) for lr in args.lr]
            for side, found in zip(row, (ours, theirs)):
                for figures, figure in zip(side, found):
                    figures.append(figure)
            print(f"{', '.join(scenes)}, seed {seed}: dino-train {ours}, PyTorch {theirs}", file=sys.stderr, flush=True)
        nothing = miou(measured, classes, lambda example: torch.zeros_like(example.truth))
        rows.append((", ".join(scenes), [side[at] for at in range(len(args.lr)) for side in row], nothing))

    columns = [f"{side} `lr` {lr}" for lr in args.lr for side in ("dino-train", "PyTorch")]
    print(f"| {' | '.join(['mIoU, scenes measured', *columns, 'background everywhere'])} |")
    print("| --- " * (len(columns) + 2) + "|")
    for name, figures, nothing in rows:
        print(f"| {name} | {' | '.join(map(cell, figures))} | {nothing:.1f} |")
    # The mean over scenes of each seed, and the spread of this mean.
    means = [cell([statistics.mean(of_seed) for of_seed in zip(*column)]) for column in zip(*(row[1] for row in rows))]
    print(f"| mean | {' | '.join(means)} | {statistics.mean(row[2] for row in rows):.1f} |")
    version = subprocess.run([args.trainer, "--version"], capture_output=True, text=True).stdout.strip()
    print(
        f"\nMean ± standard deviation of {args.seeds} seeds. {version}; PyTorch {torch.__version__}, "
        f"ONNX Runtime {onnxruntime.__version__}, Pillow {PIL.__version__}, Python {platform.python_version()}."
    )


if __name__ == "__main__":
    main()
