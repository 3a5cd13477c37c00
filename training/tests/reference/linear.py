"""Writes linear.safetensors: the public linear evaluation's classifier, trained by PyTorch on given features.

python linear.py (needs torch and safetensors)
"""

import torch
from safetensors.torch import save_file

torch.manual_seed(0)
PICTURES, FEATURES, CLASSES, EPOCHS, BATCH, LR = 22, 7, 5, 3, 8, 0.9
features = torch.randn(PICTURES, FEATURES)
labels = torch.randint(0, CLASSES, (PICTURES,))
linear = torch.nn.Linear(FEATURES, CLASSES)
linear.weight.data.normal_(mean=0.0, std=0.01)
linear.bias.data.zero_()
tensors = {"features": features, "labels": labels, "first.weight": linear.weight.data.clone(), "first.bias": linear.bias.data.clone()}
optimizer = torch.optim.SGD(linear.parameters(), LR * BATCH / 256.0, momentum=0.9, weight_decay=0)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS, eta_min=0)
orders, losses = [], []
for epoch in range(EPOCHS):
    order = torch.randperm(PICTURES)
    orders.append(order)
    for rows in order.split(BATCH):
        loss = torch.nn.CrossEntropyLoss()(linear(features[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    scheduler.step()
tensors |= {"orders": torch.stack(orders), "losses": torch.tensor(losses), "last.weight": linear.weight.data, "last.bias": linear.bias.data}
save_file(tensors, "linear.safetensors", {"lr": str(LR), "batch": str(BATCH)})
