"""Makes the files of this folder with transformers: a small ConvNeXt of DINOv3 with random weights, and what it answers.

pip install torch transformers safetensors; run it inside this folder.
"""

import torch
from safetensors.torch import save_file
from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel

torch.manual_seed(0)
config = DINOv3ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 2, 1], hidden_act="gelu")
model = DINOv3ConvNextModel(config).eval()
with torch.no_grad():
    for name, parameter in model.named_parameters():
        scale = 0.3 if parameter.ndim > 1 else 0.5
        offset = 1.0 if name.endswith(("norm.weight", "gamma")) else 0.0
        parameter.copy_(torch.randn_like(parameter) * scale + offset)
model.save_pretrained(".")

expected = {}
for name, (height, width) in {"whole": (64, 96), "tall": (160, 32)}.items():
    pixels = torch.randn(2, 3, height, width)
    with torch.no_grad():
        outputs = model(pixel_values=pixels)
    tokens = outputs.last_hidden_state[:, 1:].transpose(1, 2)
    expected[f"{name}.input"] = pixels
    expected[f"{name}.embedding"] = outputs.pooler_output
    expected[f"{name}.feature_map"] = tokens.reshape(2, -1, height // 32, width // 32)
save_file({name: tensor.contiguous() for name, tensor in expected.items()}, "expected.safetensors")
