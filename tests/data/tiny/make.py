"""Makes model.onnx: a graph with the inputs and outputs of a model folder, small enough to check by hand.

A patch token is the mean colour of its 8 x 8 pixels, the CLS token the mean colour of the picture, a key twice the
patch token, and the one head attends with the softmax over the tokens' brightness. Needs the package `onnx`.
"""

import hashlib
import json
import pathlib

import onnx
from onnx import TensorProto, helper

PATCH = 8
folder = pathlib.Path(__file__).parent


def node(operator, inputs, output, **attributes):
    return helper.make_node(operator, inputs, [output], **attributes)


def integers(name, values):
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


graph = helper.make_graph(
    [
        node("AveragePool", ["pixel_values"], "cells", kernel_shape=[PATCH, PATCH], strides=[PATCH, PATCH]),
        node("Reshape", ["cells", "flat"], "columns"),
        node("Transpose", ["columns"], "patches", perm=[0, 2, 1]),
        node("GlobalAveragePool", ["pixel_values"], "mean"),
        node("Reshape", ["mean", "one_row"], "cls"),
        node("Concat", ["cls", "patches"], "last_hidden_state", axis=1),
        node("Add", ["patches", "patches"], "keys"),
        node("ReduceSum", ["last_hidden_state", "last_axis"], "brightness", keepdims=0),
        node("Softmax", ["brightness"], "weights", axis=-1),
        node("Unsqueeze", ["weights", "head_axis"], "attention"),
    ],
    "tiny",
    [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
    [
        helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "tokens", 3]),
        helper.make_tensor_value_info("attention", TensorProto.FLOAT, ["batch", 1, "tokens"]),
        helper.make_tensor_value_info("keys", TensorProto.FLOAT, ["batch", "patches", 3]),
    ],
    [integers("flat", [0, 3, -1]), integers("one_row", [0, 1, 3]), integers("last_axis", [-1]), integers("head_axis", [1])],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnx.checker.check_model(model)
onnx.save(model, folder / "model.onnx")

sha256 = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
manifest = {
    "format": 1,
    "architecture": "dino-vit",
    "patch_size": PATCH,
    "dim": 3,
    "depth": 1,
    "heads": 1,
    "registers": 0,
    "position_interpolation": "none",
    "transform": {
        "resize": {"shorter": 36},
        "crop": [32, 32],
        "interpolation": "bicubic",
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
    },
    "source": {"file": "make.py", "layout": "none", "sha256": sha256},
    "files": {"f32": {"name": "model.onnx", "sha256": sha256}},
    "made_by": "tests/data/tiny/make.py",
}
(folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
