"""Writes sizes.safetensors: what the reference implementations answer at sizes that the golden files do not have.

Run in an environment with torch, transformers and safetensors, from any folder. The weights are those of tests/golden;
the pictures are made by a formula that the Rust test repeats.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel, ViTConfig, ViTModel

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parents[2] / "tests" / "golden" / "checkpoints"
# In patches: wide, tall, larger than any native grid, and one row.
GRIDS = [(3, 5), (5, 3), (8, 8), (1, 9)]


def picture(height, width):
    channel, row, column = np.meshgrid(np.arange(3), np.arange(height), np.arange(width), indexing="ij")
    values = (channel * 7919 + row * 104729 + column * 1299709) % 1009
    return torch.from_numpy(values.astype(np.float32) / np.float32(252) - np.float32(2))[None]


def dino_positions(self, x, height, width):
    """`interpolate_pos_encoding` of github.com/facebookresearch/dino, which passes a scale factor."""
    positions = self.position_embeddings
    count = positions.shape[1] - 1
    if x.shape[1] - 1 == count and height == width:
        return positions
    side, dim = int(count**0.5), x.shape[-1]
    factors = tuple((length // self.patch_size + 0.1) / side for length in (height, width))
    grid = positions[:, 1:].reshape(1, side, side, dim).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, scale_factor=factors, mode="bicubic")
    assert grid.shape[2:] == (height // self.patch_size, width // self.patch_size)
    return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).reshape(1, -1, dim)], dim=1)


def dino():
    """The public .pth layout, in the class whose arithmetic is the same but for the positions."""
    weights = torch.load(GOLDEN / "pth-dino-backbone" / "dino_vit_pretrain.pth", weights_only=True)
    dim = weights["cls_token"].shape[-1]
    side = int((weights["pos_embed"].shape[1] - 1) ** 0.5)
    patch = weights["patch_embed.proj.weight"].shape[-1]
    config = ViTConfig(
        hidden_size=dim, num_hidden_layers=2, num_attention_heads=4, intermediate_size=4 * dim, layer_norm_eps=1e-6,
        image_size=side * patch, patch_size=patch, attn_implementation="eager",
    )
    model = ViTModel(config, add_pooling_layer=False)
    names = {
        "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm",
    }
    state = {}
    for name, value in weights.items():
        stem, _, kind = name.rpartition(".")
        if name in names:
            state[names[name]] = value
        elif stem in names:
            state[f"{names[stem]}.{kind}"] = value
        else:
            _, block, part = stem.split(".", 2)
            to = f"encoder.layer.{block}."
            if part == "attn.qkv":
                for third, role in zip(value.chunk(3), ("query", "key", "value")):
                    state[f"{to}attention.attention.{role}.{kind}"] = third
                continue
            inner = {
                "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
                "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
            }[part]
            state[f"{to}{inner}.{kind}"] = value
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        save_file({k: v.contiguous() for k, v in state.items()}, f"{folder}/model.safetensors", {"format": "pt"})
        model, report = ViTModel.from_pretrained(
            folder, add_pooling_layer=False, output_loading_info=True, attn_implementation="eager"
        )
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    model.embeddings.interpolate_pos_encoding = dino_positions.__get__(model.embeddings)
    return model


def keys_of(model):
    """Catches the last block's keys before rotary positions."""
    caught = []
    linears = [m for n, m in model.named_modules() if n.endswith((".key", ".k_proj"))]
    linears[-1].register_forward_hook(lambda _, __, output: caught.append(output))
    return caught


def main():
    models = {"pth-dino-backbone": dino()}
    for name in ["hf-dino-vit", "hf-dinov2", "hf-dinov2-registers", "hf-dinov3-vit"]:
        extra = {"add_pooling_layer": False} if name == "hf-dino-vit" else {}
        models[name] = AutoModel.from_pretrained(GOLDEN / name, attn_implementation="eager", **extra)
    tensors = {}
    for name, model in models.items():
        model.eval()
        caught = keys_of(model)
        patch = model.config.patch_size
        prefix = 1 + getattr(model.config, "num_register_tokens", 0)
        for rows, columns in GRIDS:
            options = {"interpolate_pos_encoding": True} if isinstance(model, ViTModel) else {}
            with torch.no_grad():
                out = model(picture(rows * patch, columns * patch), output_attentions=True, **options)
            key = f"{name}.{rows}x{columns}"
            tensors[f"{key}.tokens"] = out.last_hidden_state.contiguous()
            tensors[f"{key}.attention"] = out.attentions[-1][:, :, 0].contiguous()
            tensors[f"{key}.keys"] = caught[-1][:, prefix:].contiguous()
    save_file(tensors, HERE / "sizes.safetensors")


if __name__ == "__main__":
    main()
