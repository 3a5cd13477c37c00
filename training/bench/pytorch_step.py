"""Times whole steps of DINO or DINOv2 in PyTorch on random pixels, and prints one JSON line: what `dino-train` is compared with.

The network, the loss and the optimiser are those of the papers, written with PyTorch's own fast parts: fused AdamW,
multi-tensor moving average, and attention either plain or by `scaled_dot_product_attention`. The losses are in `pytorch_losses.py`.
"""

import argparse
import json
import resource
import statistics
import time

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from pytorch_losses import Dino, Dinov2


class LayerScale(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, x):
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, dim, heads, sdpa, scaled):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.scale1, self.scale2 = (LayerScale(dim) if scaled else nn.Identity() for _ in range(2))
        self.heads, self.sdpa = heads, sdpa

    def attention(self, x):
        n, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        if self.sdpa:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = ((q @ k.transpose(-2, -1)) * (dim // self.heads) ** -0.5).softmax(-1) @ v
        return self.proj(out.transpose(1, 2).reshape(n, tokens, dim))

    def forward(self, x):
        x = x + self.scale1(self.attention(self.norm1(x)))
        return x + self.scale2(self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class Vit(nn.Module):
    """With DINOv2's mask token and layer scales, where they are wanted."""

    def __init__(self, a, dinov2=False):
        super().__init__()
        self.grid = a.global_size // a.patch
        self.embed = nn.Conv2d(3, a.dim, a.patch, a.patch)
        self.cls = nn.Parameter(torch.randn(1, 1, a.dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, self.grid**2 + 1, a.dim) * 0.02)
        self.blocks = nn.ModuleList(Block(a.dim, a.heads, a.attention == "sdpa", dinov2) for _ in range(a.depth))
        self.norm = nn.LayerNorm(a.dim, eps=1e-6)
        if dinov2:
            self.mask_token = nn.Parameter(torch.zeros(1, a.dim))

    def forward(self, x, places=None, hidden=None):
        """Features of CLS, one a picture, and behind them those of the tokens at `places`, which count through all pictures. The mask
        token takes the place of patches that are `hidden` [pictures, patches]."""
        rows = self.embed(x)
        h, w = rows.shape[2:]
        positions = self.positions[:, 1:]
        if h != self.grid:
            positions = positions.reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
            positions = F.interpolate(positions, size=(h, w), mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2)
        rows = rows.flatten(2).transpose(1, 2)
        if hidden is not None:
            rows = torch.where(hidden.unsqueeze(-1), self.mask_token, rows)
        rows = rows + positions
        cls = (self.cls + self.positions[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([cls, rows], 1)
        for block in self.blocks:
            x = block(x)
        first = x[:, 0]
        return self.norm(first if places is None else torch.cat([first, x.flatten(0, 1).index_select(0, places)]))


class Convnext(nn.Module):
    """torchvision's ConvNeXt tiny without a classifier: the mean of the last stage, normalised."""

    def __init__(self, a):
        super().__init__()
        self.net = torchvision.models.convnext_tiny(weights=None, stochastic_depth_prob=0.0)
        self.net.classifier = nn.Sequential(self.net.classifier[0], self.net.classifier[1])
        self.format = torch.channels_last if a.layout == "channels_last" else torch.contiguous_format
        self.net.to(memory_format=self.format)

    def forward(self, x):
        return self.net(x.contiguous(memory_format=self.format))


class Head(nn.Module):
    def __init__(self, dim, a):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, a.hidden), nn.GELU(), nn.Linear(a.hidden, a.hidden), nn.GELU(), nn.Linear(a.hidden, a.bottleneck)
        )
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(a.bottleneck, a.out, bias=False))
        self.last.parametrizations.weight.original0.data.fill_(1)
        self.last.parametrizations.weight.original0.requires_grad = False

    def forward(self, x):
        return self.last(F.normalize(self.mlp(x), dim=-1))


def main():
    p = argparse.ArgumentParser(description=__doc__)
    for name, default in dict(dim=192, depth=6, heads=3, patch=8, locals=8, batch=32, out=1024, hidden=512, bottleneck=128).items():
        p.add_argument(f"--{name}", type=int, default=default)
    p.add_argument("--global", dest="global_size", type=int, default=48)
    p.add_argument("--local", dest="local_size", type=int, default=24)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--warmup", type=int, default=2)
    p.add_argument("--steps", type=int, default=8)
    p.add_argument("--bf16", action="store_true")
    p.add_argument("--tf32", action="store_true")
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    p.add_argument("--method", choices=["dino", "dinov2"], default="dino", help="dinov2 with Sinkhorn-Knopp and one head for CLS and patches")
    p.add_argument("--convnext", action="store_true", help="ConvNeXt tiny in place of a vision transformer")
    p.add_argument("--layout", choices=["contiguous", "channels_last"], default="channels_last", help="of a ConvNeXt's pictures")
    p.add_argument("--attention", choices=["plain", "sdpa"], default="sdpa")
    a = p.parse_args()
    dinov2 = a.method == "dinov2"
    if a.convnext and dinov2:
        p.error("--method dinov2 is for vision transformers: leave out --convnext")
    torch.set_num_threads(a.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = a.tf32
    torch.set_default_device(a.device)
    torch.manual_seed(0)
    network = lambda: [Convnext(a), Head(768, a)] if a.convnext else [Vit(a, dinov2), Head(a.dim, a)]
    student, teacher = (nn.ModuleList(network()) for _ in range(2))
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    trained = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
    decayed = [p for name, p in trained if p.ndim > 1 and not name.endswith(".bias")]
    others = [p for name, p in trained if p.ndim <= 1 or name.endswith(".bias")]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.04}, {"params": others, "weight_decay": 0.0}], lr=5e-4, fused=True
    )
    pairs = list(zip(teacher.parameters(), student.parameters()))
    global_crops = torch.randn(2 * a.batch, 3, a.global_size, a.global_size)
    local_crops = torch.randn(a.locals * a.batch, 3, a.local_size, a.local_size)
    loss_of = Dinov2(a) if dinov2 else Dino(a)
    seconds = []
    for number in range(a.warmup + a.steps):
        since = time.perf_counter()
        loss = loss_of(student, teacher, global_crops, local_crops)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for _, p in trained:
            nn.utils.clip_grad_norm_([p], 3.0)
        optimizer.step()
        with torch.no_grad():
            ts, ss = [t for t, _ in pairs], [s.detach() for _, s in pairs]
            torch._foreach_mul_(ts, 0.996)
            torch._foreach_add_(ts, ss, alpha=0.004)
        assert torch.isfinite(loss)  # waits for the device
        if number >= a.warmup:
            seconds.append(time.perf_counter() - since)
    median = statistics.median(seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"images_per_second": a.batch / median, "step_ms": 1e3 * median, "peak_mb": peak}))


if __name__ == "__main__":
    main()
