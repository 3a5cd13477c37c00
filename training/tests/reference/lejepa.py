"""Writes lejepa.safetensors: LeJEPA's loss by the SIGReg class and the loss lines of the public MINIMAL.md.

    python lejepa.py PATH/MINIMAL.md

The file is of github.com/rbalestr-lab/lejepa. Needs torch and safetensors.
"""

import re
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

TEXT = Path(sys.argv[1]).read_text().replace('device="cuda"', 'device="cpu"')
SIGREG = re.search(r"^class SIGReg.*?(?=^class )", TEXT, re.S | re.M).group()
INV = re.search(r"inv_loss = (.*)", TEXT).group(1)
LOSS = re.search(r"lejepa_loss = (.*)", TEXT).group(1).replace("cfg.lamb", "lamb")
exec(SIGREG)

OUT = {}
VIEWS, PICTURES, DIM = 4, 9, 6
for seed, (case, scale, shift) in enumerate([("near", 1.0, 0.0), ("narrow", 0.2, 0.0), ("wide", 3.0, 0.7)]):
    torch.manual_seed(seed)
    picture = torch.randn(PICTURES, DIM)
    proj = (scale * (picture + 0.5 * torch.randn(VIEWS, PICTURES, DIM)) + shift).requires_grad_()
    state = torch.get_rng_state()
    directions = torch.randn(DIM, 256)
    OUT[f"{case}.directions"] = directions / directions.norm(p=2, dim=0)
    OUT[f"{case}.embeddings"] = proj.detach().clone()
    # The example's views are all of one kind; in the paper the first ones are global, and the centre is theirs.
    for centre, line in [("all", INV), ("global", INV.replace("proj.mean(0)", "proj[:2].mean(0)"))]:
        torch.set_rng_state(state)
        inv_loss, sigreg_loss, lamb = eval(line), SIGReg()(proj), 0.02
        loss = eval(LOSS)
        (gradient,) = torch.autograd.grad(loss, proj)
        OUT[f"{case}.{centre}.values"] = torch.stack([loss, inv_loss, sigreg_loss]).detach()
        OUT[f"{case}.{centre}.gradient"] = gradient
    torch.set_rng_state(state)
    (gradient,) = torch.autograd.grad(SIGReg()(proj), proj)
    OUT[f"{case}.sigreg.gradient"] = gradient
save_file(OUT, Path(__file__).with_name("lejepa.safetensors"))
