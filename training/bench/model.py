"""Compares our ONNX graph of a ViT-S/16 at 224 pixels with PyTorch's own ONNX export of the same weights, with PyTorch itself and
with torch.compile, and our int8 with our f32, on the same cores.

Everything is measured in rounds, the candidates one after another in each round; a figure is the median over rounds, in images/s.
The weights are random: speed does not depend on them.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy
import onnxruntime
import torch

from compare import model as processor
from pytorch_step import Vit

SIDE = 224


class Tokens(Vit):
    """The whole sequence after the final norm, as the model folder's graph gives it."""

    def forward(self, x):
        rows = self.embed(x).flatten(2).transpose(1, 2) + self.positions[:, 1:]
        cls = (self.cls + self.positions[:, :1]).expand(x.shape[0], -1, -1)
        x = torch.cat([cls, rows], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def network():
    torch.manual_seed(0)
    shape = argparse.Namespace(dim=384, depth=12, heads=6, patch=16, global_size=SIDE, attention="sdpa")
    return Tokens(shape).eval()


def public_names(net):
    """The state dictionary under the names of the public DINO release."""
    names = {"embed.": "patch_embed.proj.", "cls": "cls_token", "positions": "pos_embed"}
    parts = {".qkv.": ".attn.qkv.", ".proj.": ".attn.proj.", ".fc1.": ".mlp.fc1.", ".fc2.": ".mlp.fc2."}
    renamed = {}
    for name, value in net.state_dict().items():
        for old, new in names.items():
            name = new + name[len(old) :] if name.startswith(old) else name
        for old, new in parts.items():
            name = name.replace(old, new) if name.startswith("blocks.") else name
        renamed[name] = value
    return renamed


def export_ours(program, net, folder):
    torch.save(public_names(net), folder / "vit.pth")
    command = [program, "export", "--checkpoint", folder / "vit.pth", "--out", folder / "model"]
    subprocess.run([*map(str, command), "--precision", "f32", "--precision", "int8", "--unmeasured"], check=True, stderr=subprocess.DEVNULL)
    return {"f32": folder / "model/model.onnx", "int8": folder / "model/model.int8.onnx"}


def export_theirs(net, folder):
    """Both of PyTorch's exporters, with a free batch; one that fails is named and left out."""
    made, pixels = {}, torch.randn(2, 3, SIDE, SIDE)
    for name, how in {
        "PyTorch's export": dict(dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)),
        "PyTorch's older export": dict(dynamo=False, dynamic_axes={"x": {0: "batch"}}, input_names=["x"], opset_version=17),
    }.items():
        path = folder / f"{len(made)}.onnx"
        try:
            torch.onnx.export(net, (pixels,), str(path), verbose=False, **how)
            made[name] = path
        except Exception as error:
            print(f"{name} fails: {str(error).splitlines()[0]}", file=sys.stderr)
    return made


def session(path, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])


class Sessions:
    """Some sessions side by side, each fed by a thread of its own, as the server runs them."""

    def __init__(self, path, sessions, threads):
        self.sessions = [session(path, threads) for _ in range(sessions)]

    def __call__(self, pixels, repeats):
        def work(one):
            name = one.get_inputs()[0].name
            for _ in range(repeats):
                one.run(None, {name: pixels})

        workers = [threading.Thread(target=work, args=(one,)) for one in self.sessions]
        [worker.start() for worker in workers]
        [worker.join() for worker in workers]
        return len(self.sessions) * repeats * len(pixels)


class Torch:
    def __init__(self, net, threads):
        self.net, self.threads = net, threads

    def __call__(self, pixels, repeats):
        torch.set_num_threads(self.threads)
        with torch.inference_mode():
            for _ in range(repeats):
                self.net(torch.from_numpy(pixels))
        return repeats * len(pixels)


def measure(candidates, batches, rounds, seconds):
    """Median rates by (candidate, batch), each figure over about so many seconds."""
    rng = numpy.random.default_rng(0)
    pixels = {batch: rng.standard_normal((batch, 3, SIDE, SIDE), dtype=numpy.float32) for batch in batches}
    keys = [(name, batch) for batch in batches for name in candidates]

    def once(key, repeats):
        name, batch = key
        time.sleep(0.3)  # the threads of the one before go on spinning for a while
        began = time.perf_counter()
        images = candidates[name](pixels[batch], repeats)
        return images, time.perf_counter() - began

    for key in keys:  # buffers are allocated and threads started
        once(key, 1)
    repeats = {key: max(1, round(seconds / once(key, 1)[1])) for key in keys}
    runs = {key: [] for key in keys}
    for turn in range(rounds):
        # Each round starts elsewhere, so that none is always the one behind a certain other.
        first = turn * len(keys) // rounds
        for key in keys[first:] + keys[:first]:
            images, took = once(key, repeats[key])
            runs[key].append(images / took)
    return {key: statistics.median(figures) for key, figures in runs.items()}


def compiled(net):
    try:
        quick = torch.compile(net)
        with torch.inference_mode():
            quick(torch.randn(1, 3, SIDE, SIDE))
        return quick
    except Exception as error:
        print(f"torch.compile does not work here: {type(error).__name__}", file=sys.stderr)
        return None


def agreement(net, files):
    pixels = torch.randn(1, 3, SIDE, SIDE)
    with torch.inference_mode():
        wanted = net(pixels).numpy()
    for name, path in files.items():
        one = session(path, 1)
        found = one.run(None, {one.get_inputs()[0].name: pixels.numpy()})[0]
        assert found.shape == wanted.shape, name
        worst = numpy.abs(found - wanted).max()
        assert worst < 1e-3, f"{name} answers something else: {worst}"


def table(title, rates, names, batches):
    print(f"\n{title}\n")
    print("| | " + " | ".join(f"batch {batch}" for batch in batches) + " |")
    print("| --- " * (len(batches) + 1) + "|", flush=True)
    for name in names:
        print(f"| {name} | " + " | ".join(f"{rates[name, batch]:.1f}" for batch in batches) + " |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True, help="dino-train")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    cores = len(os.sched_getaffinity(0))
    threads = sorted({1, cores})
    versions = f"ONNX Runtime {onnxruntime.__version__}, PyTorch {torch.__version__.split('+')[0]}"
    print(f"ViT-S/16, {SIDE} px, {cores} cores of {processor()}, {versions}; images/s, median of {args.rounds} rounds")

    with tempfile.TemporaryDirectory() as folder:
        folder, net = Path(folder), network()
        ours, theirs = export_ours(args.program, net, folder), export_theirs(net, folder)
        agreement(net, {"ours": ours["f32"], **theirs})
        candidates = {}
        for count in threads:
            label = f"{count} thread" + "s" * (count > 1)
            candidates[f"ours, {label}"] = Sessions(ours["f32"], 1, count)
            for name, path in theirs.items():
                candidates[f"{name}, {label}"] = Sessions(path, 1, count)
            candidates[f"PyTorch, {label}"] = Torch(net, count)
        quick = compiled(net)
        if quick is not None:
            candidates[f"torch.compile, {cores} threads"] = Torch(quick, cores)
        rates = measure(candidates, args.batches, args.rounds, args.seconds)
        table("One session", rates, candidates, args.batches)
        for batch in args.batches:
            best = lambda own: max(rates[name, batch] for name in candidates if name.startswith("ours") == own)
            print(f"\nbatch {batch}: ours {best(True):.1f}, the best of the others {best(False):.1f}: {best(True) / best(False):.2f}", end="")
        print(flush=True)

        arrangements = sorted({(cores, 1), (1, cores)}, reverse=True)
        candidates = {
            f"{precision}, {sessions} x {count}": Sessions(ours[precision], sessions, count)
            for precision in ("f32", "int8")
            for sessions, count in arrangements
        }
        rates = measure(candidates, args.batches, args.rounds, args.seconds)
        table("Our precisions, sessions x threads", rates, candidates, args.batches)
        best = {precision: max(rate for (name, _), rate in rates.items() if name.startswith(precision)) for precision in ("f32", "int8")}
        print(f"\nint8 {best['int8']:.1f}, f32 {best['f32']:.1f}: {best['int8'] / best['f32']:.2f}")


if __name__ == "__main__":
    main()
