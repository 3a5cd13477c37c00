"""As much of PyTorch as the public evaluation on DAVIS uses, in numpy, and that evaluation's functions."""

import importlib
import sys
import types

import numpy as np


class Tensor:
    """An array of float32 with the methods of a tensor."""

    def __init__(self, array):
        self.array = np.asarray(array)

    def __getattr__(self, name):
        if name in {"cuda", "cpu", "contiguous", "float", "type"}:
            return lambda *arguments, **named: self
        raise AttributeError(name)

    shape = property(lambda self: self.array.shape)
    T = property(lambda self: Tensor(self.array.T))

    def __array__(self, dtype=None, copy=None):
        return np.array(self.array, dtype=dtype)

    def __getitem__(self, key):
        return Tensor(self.array[raw(key)])

    def __setitem__(self, key, value):
        self.array[raw(key)] = raw(value)

    def __truediv__(self, other):
        return Tensor(self.array / raw(other))

    def __sub__(self, other):
        return Tensor(self.array - raw(other))

    def __add__(self, other):
        return Tensor(self.array + raw(other))

    def __lt__(self, other):
        return Tensor(self.array < raw(other))

    def __gt__(self, other):
        return self.array > raw(other)

    def __int__(self):
        return int(self.array)

    def __len__(self):
        return len(self.array)

    def __imul__(self, other):
        self.array *= raw(other)
        return self

    def sub_(self, other):
        self.array -= np.float32(other)

    def div_(self, other):
        self.array /= np.float32(other)

    def size(self):
        return self.array.shape

    def max(self):
        return Tensor(self.array.max())

    def min(self):
        return Tensor(self.array.min())

    def squeeze(self):
        return Tensor(self.array.squeeze())

    def unsqueeze(self, axis):
        return Tensor(np.expand_dims(self.array, axis))

    def repeat(self, *counts):
        return Tensor(np.tile(self.array, counts))

    def reshape(self, *shape):
        return Tensor(self.array.reshape(*shape))

    view = reshape

    def permute(self, *axes):
        return Tensor(self.array.transpose(axes))

    def transpose(self, one, other):
        return Tensor(self.array.swapaxes(one, other))

    def scatter_(self, axis, places, value):
        np.put_along_axis(self.array, places.array.astype(np.int64), value, axis)
        return self


def raw(value):
    return value.array if isinstance(value, Tensor) else value


def normalize(tensor, dim, p):
    length = np.sqrt((tensor.array**2).sum(axis=dim, keepdims=True, dtype=np.float32))
    return Tensor(tensor.array / np.maximum(length, np.float32(1e-12)))


def interpolate(tensor, scale_factor, mode, align_corners=None, recompute_scale_factor=None):
    """Bilinear, pixels by their middles, as with align_corners=False."""
    assert mode == "bilinear"
    array = tensor.array
    for axis in (2, 3):
        length = array.shape[axis]
        places = np.maximum((np.arange(int(length * scale_factor)) + 0.5) / scale_factor - 0.5, 0).astype(np.float32)
        low = places.astype(int)
        share = (places - low).astype(np.float32)
        share = share[:, None] if axis == 2 else share
        array = array.take(low, axis) * (1 - share) + array.take(np.minimum(low + 1, length - 1), axis) * share
    return Tensor(array.astype(np.float32))


def topk(tensor, dim, k):
    rows = tensor.array.shape[dim]
    return Tensor(np.partition(tensor.array, rows - k, axis=dim)[rows - k :]), None


def public(dino, davis):
    """`eval_video_segmentation`, `metrics` and `db_statistics` of checkouts of facebookresearch/dino and davis2017-evaluation."""
    for name in ["torch", "torch.nn", "torch.nn.functional", "torchvision", "torchvision.transforms", "utils", "vision_transformer", "skimage", "skimage.morphology"]:
        sys.modules[name] = types.ModuleType(name)
    torch, functional = sys.modules["torch"], sys.modules["torch.nn.functional"]
    torch.nn, torch.nn.functional = sys.modules["torch.nn"], functional
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
    functional.normalize, functional.interpolate = normalize, interpolate
    torch.no_grad = lambda: lambda function: function
    torch.LongTensor, torch.topk = None, topk
    torch.zeros = lambda *shape: Tensor(np.zeros(shape, np.float32))
    torch.stack = lambda tensors: Tensor(np.stack([raw(tensor) for tensor in tensors]))
    torch.cat = lambda tensors: Tensor(np.concatenate([raw(tensor) for tensor in tensors]))
    torch.from_numpy = lambda array: Tensor(array.astype(np.float32))
    torch.exp = lambda tensor: Tensor(np.exp(tensor.array))
    torch.bmm = torch.mm = lambda one, other: Tensor(one.array @ other.array)
    torch.sum = lambda tensor, keepdim, axis: Tensor(tensor.array.sum(axis=axis, keepdims=keepdim))
    torch.min = lambda tensor, dim: (Tensor(tensor.array.min(axis=dim)), None)
    torch.max = lambda tensor, dim: (None, Tensor(tensor.array.argmax(axis=dim)))
    sys.modules["skimage.morphology"].disk = disk
    # What the functions above do not use.
    for name in ["pandas", "davis2017.davis"]:
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["davis2017.davis"].DAVIS = None
    sys.path[:0] = [dino, davis]
    sys.modules.pop("eval_video_segmentation", None)
    modules = [importlib.import_module(name) for name in ["eval_video_segmentation", "davis2017.metrics", "davis2017.utils"]]
    return modules[0], modules[1], modules[2].db_statistics


def disk(radius):
    """That of scikit-image."""
    side = np.arange(-radius, radius + 1)
    return (side[:, None] ** 2 + side**2 <= radius**2).astype(np.uint8)
