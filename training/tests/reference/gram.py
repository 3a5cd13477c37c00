"""Writes gram.safetensors: Gram anchoring to an anchor that sees larger pictures, by DINOv3's public code.

    python gram.py PATH/dinov3

The folder is that of github.com/facebookresearch/dinov3. Needs torch and safetensors.
"""

import re
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

ROOT = Path(sys.argv[1])
exec((ROOT / "loss/gram_loss.py").read_text())
# The lines that bring the anchor's features to the student's grid.
TEXT = (ROOT / "train/ssl_meta_arch.py").read_text()
RESIZE = textwrap.dedent(re.search(r"^ *patches_hw = .*?(?=^ *assert teacher_patches)", TEXT, re.S | re.M).group())

OUT = {}
PICTURES, DIM = 2, 6
# Twice as fine, half as fine again, finer by a fifth, and as fine.
for seed, (case, own, anchor) in enumerate([("double", 4, 8), ("more", 4, 6), ("odd", 5, 6), ("same", 3, 3)]):
    torch.manual_seed(seed)
    student = torch.randn(PICTURES, own**2, DIM).requires_grad_()
    teacher_patches = torch.randn(PICTURES, anchor**2, DIM)
    OUT[f"{case}.student"], OUT[f"{case}.anchor"] = student.detach().clone(), teacher_patches.clone()
    if own != anchor:
        names = {"torch": torch, "teacher_patches": teacher_patches, "N": anchor, "N_student": own}
        names["self"] = SimpleNamespace(gram_global_teacher_resize_method="bicubic", gram_global_teacher_resize_antialias=False)
        exec(RESIZE, names)
        teacher_patches = names["teacher_patches"]
    OUT[f"{case}.resampled"] = teacher_patches.contiguous()
    loss = GramLoss(remove_neg=False)(student, teacher_patches)
    (OUT[f"{case}.gradient"],) = torch.autograd.grad(loss, student)
    OUT[f"{case}.loss"] = loss.detach().reshape(1)
save_file(OUT, Path(__file__).with_name("gram.safetensors"))
