"""Speed and memory of public backbones' shapes, with random weights: ONNX Runtime in f32 and int8, and OpenVINO where it is there, each in a
process of its own. Prints rows of a Markdown table.

    python3 tests/bench/models.py --trainer target/release/dino-train --limit target/release/limit --photo tests/photos/china.jpg
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

# Name: channels, blocks, patch, side that the positions are of, names of which release.
SHAPES = {
    "DINO ViT-S/16": (384, 12, 16, 224, 1),
    "DINO ViT-S/8": (384, 12, 8, 224, 1),
    "DINO ViT-B/16": (768, 12, 16, 224, 1),
    "DINO ViT-B/8": (768, 12, 8, 224, 1),
    "DINOv2 ViT-S/14": (384, 12, 14, 518, 2),
    "DINOv2 ViT-B/14": (768, 12, 14, 518, 2),
}
# High bytes of bfloat16 numbers between 0.008 and 0.03, of either sign.
SMALL = bytes(0x3C | (byte & 0x80) for byte in range(256))


def noise(count):
    """Random bfloat16 numbers, little-endian."""
    numbers = bytearray(os.urandom(2 * count))
    numbers[1::2] = numbers[1::2].translate(SMALL)
    return bytes(numbers)


def tensors(dim, depth, patch, side, release):
    """Shapes by the names of the public releases; of what is 1 in a new network, that number."""
    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, 1 + (side // patch) ** 2, dim)}
    shapes |= {"patch_embed.proj.weight": (dim, 3, patch, patch), "patch_embed.proj.bias": (dim,)}
    if release == 2:
        shapes["mask_token"] = (1, dim)
    layers = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim), "mlp.fc1": (4 * dim, dim), "mlp.fc2": (dim, 4 * dim)}
    for block in range(depth):
        for name, shape in layers.items():
            shapes |= {f"blocks.{block}.{name}.weight": shape, f"blocks.{block}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{block}.{name}.weight": (dim,), f"blocks.{block}.{name}.bias": (dim,)}
        if release == 2:
            shapes |= {f"blocks.{block}.{name}.gamma": (dim,) for name in ("ls1", "ls2")}
    return shapes | {"norm.weight": (dim,), "norm.bias": (dim,)}


def write(path, shapes):
    """A safetensors file."""
    header, parts, at = {}, [], 0
    for name, shape in shapes.items():
        count = 1
        for length in shape:
            count *= length
        ones = name.endswith("gamma") or ("norm" in name and name.endswith("weight"))
        parts.append(struct.pack("<H", 0x3F80) * count if ones else noise(count))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + 2 * count]}
        at += 2 * count
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainer", type=Path, required=True)
    parser.add_argument("--limit", type=Path, required=True)
    parser.add_argument("--photo", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--only", default="", help="part of the names to measure")
    args = parser.parse_args()
    print("| shape | f32, pictures/s | MB | int8, pictures/s | MB | OpenVINO, pictures/s | MB | its cosine |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, shape in SHAPES.items():
        if args.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            weights, model = Path(folder, "weights.safetensors"), Path(folder, "model")
            write(weights, tensors(*shape))
            command = [args.trainer, "export", "--checkpoint", weights, "--out", model, "--precision", "f32", "--precision", "int8", "--unmeasured"]
            subprocess.run([*map(str, command)], check=True, stderr=subprocess.DEVNULL)
            cells = []
            for precision, device in [("f32", "cpu"), ("int8", "cpu"), ("f32", "openvino")]:
                command = [args.limit, "--model", model, "--file", args.photo, "--precision", precision, "--device", device, "--seconds", args.seconds]
                done = subprocess.run([*map(str, command)], capture_output=True, text=True)
                if done.returncode:
                    print(done.stderr, file=sys.stderr)
                    cells += ["", ""]
                    continue
                found = json.loads(done.stdout)
                cells += [f"{found['runtime']:.1f}", f"{found['memory'] / 1e6:.0f}"]
                if found["cosine"] is not None:
                    cells.append(f"{found['cosine']:.5f}")
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
