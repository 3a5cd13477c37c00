"""Times the multi-crop augmentation of the DINO paper in torchvision on one core, and prints one JSON line."""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms

torch.set_num_threads(1)


class Blur:
    def __init__(self, p):
        self.p = p

    def __call__(self, picture):
        return picture.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0))) if random.random() <= self.p else picture


class Solarise:
    def __init__(self, p):
        self.p = p

    def __call__(self, picture):
        return ImageOps.solarize(picture) if random.random() < self.p else picture


def crop(size, scale, blur, solarise):
    return transforms.Compose([
        transforms.RandomResizedCrop(size, scale=scale, interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(0.5),
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
        transforms.RandomGrayscale(0.2),
        Blur(blur),
        Solarise(solarise),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--images", required=True)
    p.add_argument("--repeats", type=int, default=4)
    a = p.parse_args()
    files = sorted(f for f in Path(a.images).rglob("*") if f.suffix.lower() in (".jpg", ".jpeg"))
    views = [crop(224, (0.4, 1.0), 1.0, 0.0), crop(224, (0.4, 1.0), 0.1, 0.2)] + [crop(96, (0.05, 0.4), 0.5, 0.0)] * 8
    decoded = [Image.open(f).convert("RGB") for f in files]

    def speed(pictures):
        since = time.perf_counter()
        for picture in pictures:
            picture = picture if isinstance(picture, Image.Image) else Image.open(picture).convert("RGB")
            for view in views:
                view(picture)
        return len(pictures) / (time.perf_counter() - since)

    speed(decoded[:4])
    print(json.dumps({"cached": speed(decoded * a.repeats), "decoded": speed(files * a.repeats)}))


main()
