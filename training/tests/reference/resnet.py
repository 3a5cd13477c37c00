"""Writes resnet.safetensors: a narrow torchvision ResNet in training, and whole DINO steps of one with batch norm in its head.

    python resnet.py CHECKOUT [SEED]

CHECKOUT is a clone of github.com/facebookresearch/dino, whose head, multi-crop wrapper, parameter groups and LARS are used.
Needs torch, torchvision and safetensors. Computed in float64, written in float32.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

sys.path.insert(0, sys.argv[1])
import utils  # noqa: E402
from vision_transformer import DINOHead  # noqa: E402

torch.set_default_dtype(torch.float64)
# One whose rectifiers meet no value so near to 0 that float32 may see it on the other side.
torch.manual_seed(int(sys.argv[2]) if len(sys.argv) > 2 else 15)
OUT = {}
NEAREST = []
WIDTH = 2


def narrow(block, units):
    net = ResNet(block, units)
    net.inplanes = WIDTH
    net.conv1 = nn.Conv2d(3, WIDTH, 7, 2, 3, bias=False)
    net.bn1 = nn.BatchNorm2d(WIDTH)
    for stage, count in enumerate(units):
        layer = net._make_layer(block, WIDTH << stage, count, stride=1 if stage == 0 else 2)
        setattr(net, f"layer{stage + 1}", layer)
    for name, parameter in net.named_parameters():
        if parameter.dim() == 1:  # else all scales are 1 and all shifts 0
            nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.2)
    net.fc = nn.Identity()
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(lambda _, inputs: NEAREST.append(inputs[0].detach().abs().min().item()))
    return net.double()


def keep(prefix, tensors):
    for name, tensor in tensors.items():
        if "num_batches_tracked" not in name:
            OUT[f"{prefix}.{name}"] = tensor.detach().float().clone().contiguous()


def forward(name, block, units):
    net = narrow(block, units).train()
    keep(f"{name}.init", net.state_dict())
    pictures = torch.randn(3, 3, 44, 33)
    features = net(pictures)
    weights = torch.randn_like(features)
    (features * weights).sum().backward()
    keep(name, {"input": pictures, "features": features, "weights": weights})
    keep(f"{name}.grad", {k: p.grad for k, p in net.named_parameters()})
    keep(f"{name}.running", {k: b for k, b in net.named_buffers()})
    keep(name, {"evaluated": net.eval()(pictures)})


def steps(name, start, crops, make_optimizer, lr, decay, clip):
    """As main_dino.py's train_one_epoch, the last layer frozen in the first step."""
    def build():
        backbone = narrow(Bottleneck, [1, 1, 1, 1])
        return utils.MultiCropWrapper(backbone, DINOHead(32 * WIDTH, 24, use_bn=True, norm_last_layer=False, hidden_dim=20, bottleneck_dim=12)).double()

    student, teacher = build(), build()
    student.load_state_dict(start or student.state_dict())
    teacher.load_state_dict(student.state_dict())
    optimizer = make_optimizer(utils.get_params_groups(student))
    center = torch.zeros(1, 24)
    losses = []
    first = {k: v.clone() for k, v in student.state_dict().items()}
    for step in range(len(crops)):
        for i, group in enumerate(optimizer.param_groups):
            group["lr"] = lr
            if i == 0:
                group["weight_decay"] = decay
        with torch.no_grad():
            targets = teacher(crops[step][:2])
        out = student(crops[step])
        q = F.softmax((targets - center) / 0.04, dim=-1).chunk(2)
        p = [F.log_softmax(v / 0.1, dim=-1) for v in out.chunk(len(crops[step]))]
        pairs = [-(q[t] * p[v]).sum(-1).mean() for t in range(2) for v in range(len(p)) if v != t]
        loss = sum(pairs) / len(pairs)
        center = center * 0.9 + targets.mean(0, keepdim=True) * 0.1
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if start is None and step == 0:
            keep("init.grad", {k: p.grad for k, p in student.named_parameters()})
        utils.clip_gradients(student, clip)
        utils.cancel_gradients_last_layer(step, student, 1)
        optimizer.step()
        with torch.no_grad():
            for q_, k_ in zip(student.parameters(), teacher.parameters()):
                k_.data.mul_(0.9).add_(0.1 * q_.detach().data)
    keep(f"{name}.student", student.state_dict())
    keep(f"{name}.teacher", teacher.state_dict())
    keep(name, {"losses": torch.tensor(losses), "settings": torch.tensor([lr, decay, clip])})
    return first


forward("basic", BasicBlock, [2, 1, 1, 1])
forward("bottleneck", Bottleneck, [1, 2, 1, 1])
crops = [[torch.randn(4, 3, 40, 40) for _ in range(2)] + [torch.randn(4, 3, 24, 24) for _ in range(2)] for _ in range(3)]
for i, step in enumerate(crops):
    keep(f"crops{i}", {"global": torch.cat(step[:2]), "local": torch.cat(step[2:])})
start = steps("sgd", None, crops, lambda groups: torch.optim.SGD(groups, lr=0, momentum=0.9), 0.03, 0.1, 0.3)
steps("lars", start, crops, utils.LARS, 1.0, 0.1, 0.0)
keep("init", start)
save_file(OUT, Path(__file__).resolve().parent / "resnet.safetensors")
print(f"nearest to 0 before a rectifier: {min(NEAREST):.1e}")
