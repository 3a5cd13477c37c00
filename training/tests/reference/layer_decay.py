"""Writes layer_decay.json: factors of the learning rate by DINOv2's own code.

python3 layer_decay.py PATH/dinov2/utils/param_groups.py (facebookresearch/dinov2, commit b8931f7)
"""

import importlib.util
import json
import sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("param_groups", sys.argv[1])
public = importlib.util.module_from_spec(spec)
spec.loader.exec_module(public)


class Parameter:
    requires_grad = True


class Module:
    def __init__(self, names, depth=None):
        self.names = names
        if depth is not None:
            self.n_blocks, self.chunked_blocks = depth, False

    def named_parameters(self):
        return [(name, Parameter()) for name in self.names]


def backbone(depth):
    names = ["cls_token", "pos_embed", "register_tokens", "mask_token", "patch_embed.proj.weight", "patch_embed.proj.bias"]
    block = ["norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias", "ls1.gamma"]
    block += ["norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias", "ls2.gamma"]
    names += [f"blocks.{index}.{name}" for index in range(depth) for name in block]
    return names + ["norm.weight", "norm.bias"]


head = Module(["mlp.0.weight", "mlp.0.bias", "mlp.4.weight", "last_layer.weight_g", "last_layer.weight_v"])
cases = []
for depth, rate, patch_embed in [(12, 0.9, 0.2), (4, 0.75, 1.0), (24, 1.0, 0.2)]:
    factors = {}
    for prefix, module in [("backbone", Module(backbone(depth), depth)), ("head", head)]:
        for group in public.get_params_groups_with_decay(module, rate, patch_embed):
            factors[f"{prefix}.{group['name']}"] = group["lr_multiplier"]
    cases.append({"depth": depth, "rate": rate, "patch_embed": patch_embed, "factors": factors})
lines = ",\n".join(json.dumps(case) for case in cases)
Path(__file__).with_name("layer_decay.json").write_text(f"[\n{lines}\n]\n")
