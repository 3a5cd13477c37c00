"""Speed and memory of public backbones' shapes, with random weights: ONNX Runtime in f32 and int8, and OpenVINO where it is there, each in a
process of its own. On each core one session of one thread runs one picture after another, as in the server. Prints rows of a Markdown table.

    .cache/bench-serve/bin/python tests/bench/models.py --trainer target/release/dino-train

DINO_OPENVINO_LIBRARY names OpenVINO's plug-in, which `make openvino` fetches.
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
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


def sessions(model, device):
    """One for each core, laid out as by the server (src/vision/model/plugin.rs)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    providers = {"providers": ["CPUExecutionProvider"]}
    if device == "openvino":
        onnxruntime.register_execution_provider_library("openvino", os.environ["DINO_OPENVINO_LIBRARY"])
        found = [one for one in onnxruntime.get_ep_devices() if one.ep_name == "OpenVINOExecutionProvider" and one.device.type.name == "CPU"]
        layout = {"CPU": {"NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "1", "ENABLE_CPU_PINNING": "NO"}}
        options.add_provider_for_devices(found, {"load_config": json.dumps(layout)})
        providers = {}
    return [onnxruntime.InferenceSession(str(model), sess_options=options, **providers) for _ in range(os.cpu_count())]


def measure(model, device, seconds):
    """Pictures a second, most bytes in memory, and the cosine of CLS to what the first measurement of the folder gave."""
    import numpy

    all_sessions = sessions(model, device)
    picture = numpy.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=numpy.float32)
    run = lambda session: session.run(["last_hidden_state"], {"pixel_values": picture})[0]  # noqa: E731
    cls = [run(session) for session in all_sessions][0][0, 0]
    until, counts = time.monotonic() + seconds, [0] * len(all_sessions)

    def work(index):
        while time.monotonic() < until:
            run(all_sessions[index])
            counts[index] += 1

    began = time.monotonic()
    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(all_sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = sum(counts) / (time.monotonic() - began)
    reference = model.with_name("reference.npy")
    if not reference.exists():
        numpy.save(reference, cls)
    exact = numpy.load(reference)
    cosine = float(exact @ cls / (numpy.linalg.norm(exact) * numpy.linalg.norm(cls)))
    memory = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    print(json.dumps({"rate": rate, "memory": memory, "cosine": cosine}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainer", type=Path)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--only", default="", help="part of the names to measure")
    parser.add_argument("--measure", nargs=2, metavar=("MODEL", "DEVICE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return measure(Path(args.measure[0]), args.measure[1], args.seconds)
    print("| shape | f32, pictures/s | MB | int8, pictures/s | MB | OpenVINO, pictures/s | MB | cosine of int8, OpenVINO |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, shape in SHAPES.items():
        if args.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            weights, model = Path(folder, "weights.safetensors"), Path(folder, "model")
            write(weights, tensors(*shape))
            command = [args.trainer, "export", "--checkpoint", weights, "--out", model, "--precision", "f32", "--precision", "int8", "--unmeasured"]
            subprocess.run([*map(str, command)], check=True, stderr=subprocess.DEVNULL)
            cells, cosines = [], []
            for file, device in [("model.onnx", "cpu"), ("model.int8.onnx", "cpu"), ("model.onnx", "openvino")]:
                command = [sys.executable, __file__, "--measure", model / file, device, "--seconds", args.seconds]
                done = subprocess.run([*map(str, command)], capture_output=True, text=True)
                if done.returncode:
                    print(done.stderr.strip().splitlines()[-1], file=sys.stderr)
                    cells += ["", ""]
                    continue
                found = json.loads(done.stdout.strip().splitlines()[-1])
                cells += [f"{found['rate']:.1f}", f"{found['memory'] / 1e6:.0f}"]
                cosines.append(f"{found['cosine']:.5f}")
            print(f"| {name} | " + " | ".join(cells) + f" | {', '.join(cosines[1:])} |", flush=True)
    return None


if __name__ == "__main__":
    main()
