"""Compares exported models with timm's and transformers' own networks, of full size and with random weights.

Each case makes a network with its library, saves it as users have it, exports it with dino-train, and compares all tokens (of
ConvNeXts embedding and feature map) in two picture sizes within atol = rtol = 1e-4. The table on stdout says the largest difference and
the exporter's peak of memory as a multiple of the weights in float32. Cases run one at a time, each in a process of its own.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOLERANCE = 1e-4
# Depth, width, heads of the releases.
SHAPES = {
    "T": (12, 192, 3),
    "S": (12, 384, 6),
    "S+": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "H+": (32, 1280, 20),
    "g": (40, 1536, 24),
}
CONVNEXT = {
    "T": ([3, 3, 9, 3], [96, 192, 384, 768]),
    "S": ([3, 3, 27, 3], [96, 192, 384, 768]),
    "B": ([3, 3, 27, 3], [128, 256, 512, 1024]),
    "L": ([3, 3, 27, 3], [192, 384, 768, 1536]),
}
TIMM_SIZES = {"T": "tiny", "S": "small", "S+": "small_plus", "B": "base", "L": "large", "H+": "huge_plus", "g": "giant"}


def cases():
    """The function of each case, by its name; what takes more than a few gigabytes is marked."""
    found = {}

    def add(name, make, *arguments, large=False):
        found[name] = (make, arguments, large)

    for size in ("S", "B"):
        for patch in (16, 8):
            add(f"transformers DINO ViT-{size}/{patch}", hf_dino, size, patch)
            add(f"timm DINO ViT-{size}/{patch}", timm_vit, f"vit_{TIMM_SIZES[size]}_patch{patch}_224")
    for size in ("S", "B", "L", "g"):
        large = size in ("L", "g")
        for registers in (False, True):
            words = " with registers" if registers else ""
            add(f"transformers DINOv2 ViT-{size}/14{words}", hf_dinov2, size, registers, large=large)
            reg = "reg4_" if registers else ""
            add(f"timm DINOv2 ViT-{size}/14{words}", timm_vit, f"vit_{TIMM_SIZES[size]}_patch14_{reg}dinov2", large=large)
    for size in ("S", "S+", "B", "L", "H+"):
        large = size in ("L", "H+")
        add(f"transformers DINOv3 ViT-{size}/16", hf_dinov3, size, large=large)
        add(f"timm DINOv3 ViT-{size}/16", timm_vit, f"vit_{TIMM_SIZES[size]}_patch16_dinov3", large=large)
        add(f"timm DINOv3 ViT-{size}/16, with biases", timm_vit, f"vit_{TIMM_SIZES[size]}_patch16_dinov3_qkvb", large=large)
    add("timm EUPE ViT-T/16", timm_vit, "vit_tiny_patch16_dinov3_qkvb")
    for size in CONVNEXT:
        large = size == "L"
        add(f"transformers DINOv3 ConvNeXt-{size}", hf_convnext, size, large=large)
        add(f"timm DINOv3 and EUPE ConvNeXt-{size}", timm_convnext, f"convnext_{TIMM_SIZES[size]}", large=large)
    for form in FORMS:
        add(f"transformers DINOv2 ViT-S/14, {form}", hf_dinov2, "S", False, form)
    return found


def randomised(network):
    """Weights under which every part of a network shows in its output."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scales = "norm" in name and name.endswith("weight") or "gamma" in name or "lambda" in name
            if scales:
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim < 2 or "token" in name or "pos" in name:
                parameter.copy_(0.1 * noise)
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            # What goes back into the residual stream adds up over the blocks.
            if any(part in name for part in ("attn.proj.", "fc2", "o_proj", "down_proj", "output.dense", "weights_out", "w3", "conv2")):
                parameter.mul_(0.3)
    return network.eval()


def hf_dino(folder, size, patch):
    from transformers import ViTConfig, ViTModel

    depth, dim, heads = SHAPES[size]
    config = ViTConfig(
        hidden_size=dim,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * dim,
        patch_size=patch,
        image_size=224,
        qkv_bias=True,
    )
    network = randomised(ViTModel(config, add_pooling_layer=False))
    network.save_pretrained(folder)
    return network, lambda x: {"last_hidden_state": network(x, interpolate_pos_encoding=True).last_hidden_state}, patch


def hf_dinov2(folder, size, registers, form="safetensors"):
    from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    depth, dim, heads = SHAPES[size]
    config, model = (Dinov2WithRegistersConfig, Dinov2WithRegistersModel) if registers else (Dinov2Config, Dinov2Model)
    config = config(
        hidden_size=dim,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        patch_size=14,
        image_size=518,
        use_swiglu_ffn=size == "g",
    )
    network = randomised(model(config))
    network = FORMS[form](network, folder)
    return network, lambda x: {"last_hidden_state": network(x).last_hidden_state}, 14


def hf_dinov3(folder, size):
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    depth, dim, heads = SHAPES[size]
    gated = size in ("S+", "H+")
    config = DINOv3ViTConfig(
        hidden_size=dim,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size={"S+": 1536, "H+": 5120}.get(size, 4 * dim),
        hidden_act="silu" if gated else "gelu",
        use_gated_mlp=gated,
        patch_size=16,
        num_register_tokens=4,
    )
    network = randomised(DINOv3ViTModel(config))
    network.save_pretrained(folder)
    return network, lambda x: {"last_hidden_state": network(x).last_hidden_state}, 16


def hf_convnext(folder, size):
    from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel

    depths, dims = CONVNEXT[size]
    network = randomised(DINOv3ConvNextModel(DINOv3ConvNextConfig(depths=depths, hidden_sizes=dims)))
    network.save_pretrained(folder)

    def answer(x):
        outputs = network(x)
        rows, columns = x.shape[2] // 32, x.shape[3] // 32
        cells = outputs.last_hidden_state[:, 1:].transpose(1, 2).reshape(x.shape[0], -1, rows, columns)
        return {"embedding": outputs.pooler_output, "feature_map": cells}

    return network, answer, 32


def timm_saved(folder, name, **more):
    import timm

    network = randomised(timm.create_model(name, pretrained=False, num_classes=0, **more))
    timm.models.save_for_hf(network, folder, safe_serialization=True)
    return network


def timm_vit(folder, name):
    free = {} if "dinov3" in name else {"dynamic_img_size": True}
    network = timm_saved(folder, name, **free)
    patch = network.patch_embed.patch_size[0]
    return network, lambda x: {"last_hidden_state": network.forward_features(x)}, patch


def timm_convnext(folder, name):
    network = timm_saved(folder, name)
    return network, lambda x: {"embedding": network(x), "feature_map": network.head.norm(network.forward_features(x))}, 32


def saved_as(dtype):
    def save(network, folder):
        network.to(dtype()).save_pretrained(folder)
        return network.float()

    return save


def sharded(network, folder):
    network.save_pretrained(folder, max_shard_size="20MB")
    return network


def pickled(name, wrap, config=True):
    """A file of torch.save; without config.json its heads are one for each 64 channels."""

    def save(network, folder):
        import torch

        if config:
            network.config.save_pretrained(folder)
        torch.save(wrap(network.state_dict()), Path(folder) / name)
        return network

    return save


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def bfloat16():
    import torch

    return torch.bfloat16


def float16():
    import torch

    return torch.float16


def lightning(state):
    return {"epoch": 3, "pytorch-lightning_version": "2.5.0", "state_dict": under("model.", state), "hyper_parameters": {"lr": 1e-4}}


FORMS = {
    "safetensors": lambda network, folder: (network.save_pretrained(folder), network)[1],
    "bfloat16": saved_as(bfloat16),
    "float16": saved_as(float16),
    "shards": sharded,
    "pytorch_model.bin": pickled("pytorch_model.bin", dict),
    "Lightning": pickled("last.ckpt", lightning),
    "DDP": pickled("checkpoint.pth", lambda state: {"model": under("module.", state), "epoch": 3}),
    "torch.compile": pickled("compiled.pt", lambda state: under("_orig_mod.", state)),
}


def export(program, folder, out):
    """Peak of the exporter's memory in bytes."""
    command = [program, "export", "--checkpoint", folder, "--out", out, "--unmeasured"]
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(command, stderr=said)
        # What wait4 says of a child begins with the memory of the process that forked it.
        peak = 0
        while child.poll() is None:
            with contextlib.suppress(OSError, ValueError, StopIteration):
                status = Path(f"/proc/{child.pid}/status").read_text().splitlines()
                peak = max(peak, int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024)
            time.sleep(0.01)
        if child.returncode != 0:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)}\n{said.read()}")
    return peak


def compare(name, program):
    """One case: what becomes its row of the table."""
    import numpy
    import onnxruntime
    import torch

    make, arguments, _ = cases()[name]
    with tempfile.TemporaryDirectory() as work:
        checkpoint, out = os.path.join(work, "checkpoint"), os.path.join(work, "model")
        os.mkdir(checkpoint)
        network, answer, patch = make(checkpoint, *arguments)
        bytes_of_weights = 4 * sum(parameter.numel() for parameter in network.parameters())
        generator = torch.Generator().manual_seed(1)
        # The usual size, and one whose sides differ.
        side = 224 // patch * patch
        sizes = [(side, side), (patch * max(2, 160 // patch), patch * max(3, 288 // patch))]
        pixels = [torch.randn(1, 3, *size, generator=generator) for size in sizes]
        with torch.no_grad():
            expected = [{output: value.numpy() for output, value in answer(x).items()} for x in pixels]
        del network, answer
        peak = export(program, checkpoint, out)
        session = onnxruntime.InferenceSession(os.path.join(out, "model.onnx"), providers=["CPUExecutionProvider"])
        largest, fits = 0.0, True
        for x, wanted in zip(pixels, expected):
            outputs = session.run(list(wanted), {"pixel_values": x.numpy()})
            for found, value in zip(outputs, wanted.values()):
                if found.shape != value.shape:
                    raise SystemExit(f"{name}: an output has the shape {found.shape}, not {value.shape}")
                difference = numpy.abs(found - value)
                largest = max(largest, float(difference.max()))
                fits &= bool((difference <= TOLERANCE + TOLERANCE * numpy.abs(value)).all())
    return {"name": name, "weights": bytes_of_weights, "largest": largest, "peak": peak, "fits": fits}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True, help="dino-train")
    parser.add_argument("--only", default="", help="cases whose names have all of these words")
    parser.add_argument("--large", action="store_true", help="also models of 300 million parameters and more: up to 14 GB of memory")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(compare(arguments.case, arguments.program)))
        return
    words = arguments.only.split()
    chosen = [
        name
        for name, (_, _, large) in cases().items()
        if (arguments.large or not large) and all(word in name.replace(",", "").split() for word in words)
    ]
    if arguments.list:
        print("\n".join(chosen))
        return
    print("| layout | weights, MB | largest difference | peak memory / weights |\n| --- | --- | --- | --- |", flush=True)
    failed = []
    for name in chosen:
        command = [sys.executable, __file__, "--program", arguments.program, "--case", name]
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if run.returncode != 0:
            failed.append(name)
            print(f"| {name} | | failed | |\n{run.stderr.strip()[-2000:]}", flush=True)
            continue
        row = json.loads(run.stdout.splitlines()[-1])
        failed += [] if row["fits"] else [name]
        mark = "" if row["fits"] else " (too much)"
        print(
            f"| {row['name']} | {row['weights'] / 1e6:.0f} | {row['largest']:.1e}{mark} | {row['peak'] / row['weights']:.2f} |",
            flush=True,
        )
    sys.exit(f"not equal: {', '.join(failed)}" if failed or not chosen else 0)


if __name__ == "__main__":
    main()
