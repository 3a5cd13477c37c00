"""Compares a whole step of DINO or DINOv2 of `dino-train` with PyTorch's, and the augmentation with torchvision's, on the same cores.

Each shape is measured in rounds, the candidates one after another in each round; a figure is the median over rounds.
PyTorch counts with the best point of the printed grid.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEMO = dict(dim=192, depth=6, heads=3, patch=8, batch=32, **{"global": 48, "local": 24})
TINY = dict(dim=192, depth=12, heads=3, patch=16, batch=8, **{"global": 224, "local": 96})
SMALL = dict(dim=384, depth=12, heads=6, patch=16, batch=4, **{"global": 224, "local": 96})
SHAPES = {
    "demo: dim 192, depth 6, patch 8, 48 px, batch 32": DEMO,
    "ViT-Ti/16, 224 px, batch 8": TINY,
    "ViT-S/16, 224 px, batch 4": SMALL,
    "DINOv2: dim 192, depth 6, patch 8, 48 px, batch 32": DEMO | {"method": "dinov2"},
    "DINOv2: ViT-S/16, 224 px, batch 4": SMALL | {"method": "dinov2"},
    "DINOv2: ViT-S/16, 224 px, batch 4, 65536 outputs": SMALL | {"method": "dinov2", "out": 65536, "hidden": 2048, "bottleneck": 256},
    "ConvNeXt tiny, 224 px, batch 4": dict(convnext=True, batch=4, **{"global": 224, "local": 96}),
}


def run(command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def flags(shape):
    return [part for name, value in shape.items() for part in ([f"--{name}"] if value is True else [f"--{name}", value])]


def median(runs, key):
    return statistics.median(run[key] for run in runs)


def model():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def steps(args):
    cores = len(os.sched_getaffinity(0))
    thread_counts = sorted({1, cores})
    precisions = [False] + ([True] if any(unit in open("/proc/cpuinfo").read() for unit in ("amx_bf16", "avx512_bf16")) else [])
    print(f"Whole training steps, 2 global and 8 local crops, {cores} cores of {model()}; images/s, median of {args.rounds} rounds\n")
    print("| shape | precision | dino-train | PyTorch | ratio | peak memory, MB | PyTorch's |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    grid = []
    for name, shape in SHAPES.items():
        if args.only not in name:
            continue
        for bf16 in precisions:
            extra = ["--bf16"] if bf16 else []
            own = [args.step, *flags(shape), *extra, "--threads", cores]
            option, values = ("--layout", ("contiguous", "channels_last")) if "convnext" in shape else ("--attention", ("plain", "sdpa"))
            theirs = {
                (value, threads): [
                    sys.executable, HERE / "pytorch_step.py", *flags(shape), *extra, option, value, "--threads", threads,
                ]
                for value in values
                for threads in thread_counts
            }
            # One look at the whole grid, then rounds with its best point.
            looks = {point: run([*command, "--steps", 3]) for point, command in theirs.items()}
            best = max(looks, key=lambda point: looks[point]["images_per_second"])
            grid += [(name, bf16, *point, look["images_per_second"]) for point, look in looks.items()]
            ours, torch = [], []
            for _ in range(args.rounds):
                ours.append(run(own))
                torch.append(run(theirs[best]))
            a, b = median(ours, "images_per_second"), median(torch, "images_per_second")
            print(
                f"| {name} | {'bf16' if bf16 else 'f32'} | {a:.1f} | {b:.1f} ({best[0]}, {best[1]} threads) | **{a / b:.2f}** "
                f"| {median(ours, 'peak_mb'):.0f} | {median(torch, 'peak_mb'):.0f} |",
                flush=True,
            )
    print("\nPyTorch's grid, images/s of one look of three steps:\n")
    for name, bf16, option, threads, speed in grid:
        print(f"- {name}, {'bf16' if bf16 else 'f32'}, {option}, {threads} threads: {speed:.1f}")


def crops(args):
    print("\nAugmentation on one core, 2 crops of 224 and 8 of 96 out of pictures in memory; pictures/s\n")
    ours, theirs = [], []
    for _ in range(args.rounds):
        ours.append(run([args.augment, "--images", args.pictures]))
        theirs.append(run([sys.executable, HERE / "torchvision_crops.py", "--images", args.pictures]))
    print("| | dino-train | torchvision | ratio |\n| --- | --- | --- | --- |")
    for key, what in (("decoded", "with decoding"), ("cached", "of decoded pictures")):
        a, b = median(ours, key), median(theirs, key)
        print(f"| {what} | {a:.1f} | {b:.1f} | **{a / b:.2f}** |")


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--step", required=True, help="the built program train_step")
    p.add_argument("--augment", required=True, help="the built program augment")
    p.add_argument("--pictures", required=True, help="a folder of JPEG pictures for the augmentation")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--only", default="", help="shapes whose names contain this; the augmentation is left out with it")
    args = p.parse_args()
    steps(args)
    if not args.only:
        crops(args)


if __name__ == "__main__":
    main()
