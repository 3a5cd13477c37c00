"""Writes dense.safetensors: linear heads for segmentation and depth, trained by PyTorch on given features.

python dense.py (needs torch and safetensors)

The modules are those of the public configurations: SyncBatchNorm and a 1x1 convolution for segmentation, a 1x1 convolution on patch
and CLS tokens with uniform bins for depth. The losses follow AdaBins and MegaDepth on each picture's rows and columns.
"""

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(0)
PICTURES, ROWS, COLUMNS, FEATURES = 3, 5, 6, 7
HEIGHT, WIDTH = 37, 41
STEPS, LR, BETAS = 4, 1e-2, (0.9, 0.999)
CLASSES, IGNORE = 4, 255
BINS, UPSAMPLE, MIN_DEPTH, MAX_DEPTH, EPS = 16, 4, 0.001, 10.0, 1e-3
tensors = {}


def keep(name, tensor):
    tensors[name] = tensor.detach().to(torch.float32).contiguous().clone()


def maps(features):
    """[n, patches, F] to [n, F, rows, columns]"""
    return features.transpose(1, 2).reshape(len(features), -1, ROWS, COLUMNS)


def patches(images):
    """[n, C, rows, columns] to [n, patches, C]"""
    return images.flatten(2).transpose(1, 2)


def enlarge(images, size=(HEIGHT, WIDTH)):
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def rate(step):
    """Polynomial decay of power 1 with a linear warm-up, as mmcv's PolyLrUpdaterHook gives it."""
    warmup, ratio = 2, 1e-6
    regular = LR * (1 - step / STEPS)
    return regular * (1 - (1 - step / warmup) * (1 - ratio)) if step < warmup else regular


def train(module, parameters, loss, decay, prefix):
    optimizer = torch.optim.AdamW(parameters.values(), LR, BETAS, weight_decay=decay)
    losses = []
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = rate(step)
        value = loss(module, step)
        optimizer.zero_grad()
        value.backward()
        if step == 0:
            for name, parameter in parameters.items():
                keep(f"{prefix}.gradient.{name}", parameter.grad)
        optimizer.step()
        losses.append(value.detach())
    keep(f"{prefix}.losses", torch.stack(losses))
    for name, parameter in parameters.items():
        keep(f"{prefix}.last.{name}", parameter)


def segmentation():
    features = torch.randn(PICTURES, ROWS * COLUMNS, FEATURES, dtype=torch.float64) * 2 + 1
    labels = torch.randint(0, CLASSES, (PICTURES, HEIGHT, WIDTH))
    labels[torch.rand(labels.shape) < 0.2] = IGNORE
    labels[2, :20] = IGNORE
    norm = torch.nn.BatchNorm2d(FEATURES).double()
    norm.weight.data.uniform_(0.5, 1.5)
    norm.bias.data.normal_(std=0.3)
    conv = torch.nn.Conv2d(FEATURES, CLASSES, 1).double()
    conv.weight.data.normal_(std=0.5)
    head = torch.nn.Sequential(norm, conv)
    parameters = {"norm.weight": norm.weight, "norm.bias": norm.bias, "weight": conv.weight, "bias": conv.bias}
    keep("segmentation.features", features)
    keep("segmentation.labels", labels)
    for name, parameter in parameters.items():
        keep(f"segmentation.first.{name}", parameter)
    keep("segmentation.logits", patches(head(maps(features))))
    keep("segmentation.enlarged", enlarge(head(maps(features)))[0].permute(1, 2, 0))
    norm.reset_running_stats()

    def loss(head, _):
        return F.cross_entropy(enlarge(head(maps(features))), labels, ignore_index=IGNORE)

    train(head, parameters, loss, 1e-4, "segmentation")
    head.eval()
    logits = head(maps(features))
    keep("segmentation.served", patches(logits))
    answer = enlarge(logits).argmax(1)
    labelled = labels != IGNORE
    intersection = torch.stack([((answer == c) & (labels == c)).sum() for c in range(CLASSES)])
    union = torch.stack([(((answer == c) & labelled) | (labels == c)).sum() for c in range(CLASSES)])
    keep("segmentation.answer", answer)
    keep("segmentation.iou", intersection / union)
    keep("segmentation.accuracy", ((answer == labels) & labelled).sum() / labelled.sum())


def depth():
    features = torch.randn(PICTURES, ROWS * COLUMNS, 2 * FEATURES, dtype=torch.float64)
    truth = torch.rand(PICTURES, HEIGHT, WIDTH, dtype=torch.float64) * 8 + 0.5
    truth[torch.rand(truth.shape) < 0.2] = 0
    truth[1, 5, 5] = 11.0
    conv = torch.nn.Conv2d(2 * FEATURES, BINS, 1).double()
    conv.weight.data.normal_(std=0.3)
    parameters = {"weight": conv.weight, "bias": conv.bias}
    keep("depth.features", features)
    keep("depth.truth", truth)
    for name, parameter in parameters.items():
        keep(f"depth.first.{name}", parameter)
    bins = torch.linspace(MIN_DEPTH, MAX_DEPTH, BINS, dtype=torch.float64)

    def predicted(conv):
        logits = conv(enlarge(maps(features), (UPSAMPLE * ROWS, UPSAMPLE * COLUMNS)))
        weights = torch.relu(logits) + 0.1
        weights = weights / weights.sum(1, keepdim=True)
        return torch.einsum("nkhw,k->nhw", weights, bins)

    def scale_invariant(found, truth, warmup):
        valid = (truth > 0) & (truth <= MAX_DEPTH)
        difference = torch.log(found[valid] + EPS) - torch.log(truth[valid] + EPS)
        mean = 0.15 * difference.mean() ** 2
        return torch.sqrt(mean) if warmup else torch.sqrt(torch.var(difference) + mean)

    def gradient(found, truth):
        total = 0
        for stride in (1, 2, 4, 6):
            small, target = found[:, ::stride, ::stride], truth[:, ::stride, ::stride]
            mask = (target > 0) & (target <= MAX_DEPTH)
            difference = (torch.log(small + EPS) - torch.log(target + EPS)) * mask
            rows = (difference[:, :-2] - difference[:, 2:]).abs() * (mask[:, :-2] & mask[:, 2:])
            columns = (difference[:, :, :-2] - difference[:, :, 2:]).abs() * (mask[:, :, :-2] & mask[:, :, 2:])
            total = total + (rows.sum() + columns.sum()) / mask.sum()
        return total

    def full(conv):
        return enlarge(predicted(conv)[:, None])[:, 0]

    keep("depth.fine", predicted(conv))
    keep("depth.enlarged", full(conv))
    keep("depth.sigloss", scale_invariant(full(conv), truth, False))
    keep("depth.warmup", scale_invariant(full(conv), truth, True))
    keep("depth.gradient_loss", gradient(full(conv), truth))

    def loss(conv, step):
        return scale_invariant(full(conv), truth, step < 1) + 0.5 * gradient(full(conv), truth)

    train(conv, parameters, loss, 1e-2, "depth")
    found = full(conv).clamp(MIN_DEPTH, MAX_DEPTH)
    valid = (truth > MIN_DEPTH) & (truth < MAX_DEPTH)
    figures = []
    for one, target, valid in zip(found, truth, valid):
        one, target = one[valid], target[valid]
        ratio = torch.maximum(one / target, target / one)
        figures.append(torch.stack([
            ((one - target).abs() / target).mean(),
            ((one - target) ** 2).mean().sqrt(),
            *[(ratio < 1.25**power).double().mean() for power in (1, 2, 3)],
        ]))
    keep("depth.served", full(conv))
    keep("depth.figures", torch.stack(figures).mean(0))


segmentation()
depth()
save_file(tensors, "dense.safetensors", {"rows": str(ROWS), "columns": str(COLUMNS), "lr": str(LR)})
