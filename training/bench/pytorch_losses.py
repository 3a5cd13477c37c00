"""The losses of DINO and DINOv2 in PyTorch: the forward passes of student and teacher over one batch, and what they come to."""

import math
import random

import numpy
import torch
import torch.nn.functional as F


class Dino:
    """CLS of all crops, with a centre that moves (Caron et al. 2021)."""

    def __init__(self, a):
        self.a, self.centre = a, torch.zeros(1, a.out)

    def __call__(self, student, teacher, global_crops, local_crops):
        with autocast(self.a):
            with torch.no_grad():
                outputs = teacher[1](teacher[0](global_crops)).float()
            features = torch.cat([student[0](global_crops), student[0](local_crops)])
            logits = student[1](features).float()
        targets = ((outputs - self.centre) / 0.04).softmax(-1)
        self.centre = self.centre * 0.9 + outputs.mean(0, keepdim=True) * 0.1
        return cross_entropy(logits, targets, self.a.batch)


class Dinov2:
    """CLS of all crops, hidden patches (iBOT) and KoLeo, with balanced targets and one head (Oquab et al. 2023)."""

    def __init__(self, a):
        self.a = a
        source, side = random.Random(0), a.global_size // a.patch
        # Drawn ahead: in training the loader's processes do it, beside the steps.
        self.masks = iter([Masks(draw(2 * a.batch, side, source), a.device) for _ in range(a.warmup + a.steps)])

    def __call__(self, student, teacher, global_crops, local_crops):
        masks = next(self.masks)
        crops, patches = len(global_crops), len(masks.places)
        # The head sees CLS and hidden patches alone, in one call.
        with autocast(self.a):
            with torch.no_grad():
                outputs = teacher[1](teacher[0](global_crops, masks.places)).float()
            seen = student[0](global_crops, masks.places, masks.hidden)
            logits = student[1](torch.cat([seen, student[0](local_crops)])).float()
        targets, patch_targets = (sinkhorn(part) for part in outputs.split([crops, patches]))
        of_global, of_patches, of_local = logits.split([crops, patches, len(local_crops)])
        whole = cross_entropy(torch.cat([of_global, of_local]), targets, self.a.batch)
        ibot = -((of_patches / 0.1).log_softmax(-1) * patch_targets).sum(-1) @ masks.weights
        apart = sum(koleo(features.float()) for features in seen[:crops].split(self.a.batch))
        return whole + ibot + 0.1 * apart


def autocast(a):
    return torch.autocast(a.device, dtype=torch.bfloat16, enabled=a.bf16)


def cross_entropy(logits, targets, pictures):
    """The mean over pairs of a view of the teacher's and another of the student's."""
    logs = (logits / 0.1).log_softmax(-1).split(pictures)
    terms = [-(t * s).sum(-1).mean() for i, t in enumerate(targets.split(pictures)) for j, s in enumerate(logs) if i != j]
    return sum(terms) / len(terms)


def sinkhorn(logits):
    """The teacher's distributions, balanced over the rows in three rounds."""
    shares = ((logits - logits.max()) / 0.04).exp_()
    for _ in range(3):
        shares /= shares.sum(0, keepdim=True) * shares.shape[1]
        shares /= shares.sum(1, keepdim=True)
    return shares


def koleo(features):
    """The mean of -ln(distance to the nearest neighbour)."""
    unit = F.normalize(features, dim=-1)
    nearest = (unit @ unit.T).detach().fill_diagonal_(-1).argmax(1)
    return -(F.pairwise_distance(unit, unit[nearest], eps=1e-8) + 1e-8).log().mean()


class Masks:
    """Patches of a batch's global crops that the student does not see."""

    def __init__(self, hidden, device):
        crops, patches = hidden.shape
        crop, patch = hidden.nonzero()
        # Those of a crop count 1 / crops together.
        weights = 1 / (crops * hidden.sum(1)[crop])
        # In front of a crop's patches there is CLS.
        places = crop * (1 + patches) + 1 + patch
        self.hidden, self.places, self.weights = (torch.from_numpy(x).to(device) for x in (hidden, places, weights.astype("float32")))


def draw(crops, side, source):
    """Half of the crops with 10 to 50 % of their patches hidden, shares spread evenly: [crops, side * side]."""
    hidden, masked = numpy.zeros((crops, side, side), bool), crops // 2
    for i, crop in enumerate(source.sample(range(crops), masked)):
        share = 0.1 + 0.4 * (i + source.random()) / masked
        hide(hidden[crop], int(side * side * share), source)
    return hidden.reshape(crops, -1)


def hide(mask, wanted, source):
    """Blocks, as BEiT draws them, until as many patches are hidden as wanted, or ten blocks on end do not fit."""
    side, tries = len(mask), 0
    while (left := wanted - int(mask.sum())) > 0 and tries < 10:
        tries += 1
        most = min(left, mask.size // 2)
        area, aspect = source.uniform(4, most), math.exp(source.uniform(math.log(0.3), -math.log(0.3)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if max(height, width) >= side:
            continue
        top, start = source.randint(0, side - height), source.randint(0, side - width)
        block = mask[top : top + height, start : start + width]
        if 0 < block.size - int(block.sum()) <= most:
            block[:], tries = True, 0
