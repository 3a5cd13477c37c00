"""Masks of a video's frames by the first frame's, through a server: POST /segment?collection=…

    python3 by_example.py http://localhost:8080 DAVIS [k=5] [temperature=0.07] [size=480]

DAVIS has for each video a folder with `frames` and `masks` of the same names. Prints the region similarity J of each object (the
intersection of its mask with the drawn one over their union, averaged over the frames between the first and the last) and the mean, as
`dino-train video-eval` does. Needs NumPy and Pillow.
"""

import base64
import io
import json
import pathlib
import sys
import urllib.request

import numpy as np
from PIL import Image


def ask(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server + path, data, {"Content-Type": "application/json"}, method=method)
    answer = urllib.request.urlopen(request).read()
    return json.loads(answer) if answer else None


def encoded(content):
    return base64.b64encode(content).decode()


def png(mask):
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, "PNG")
    return encoded(file.getvalue())


def drawn(path):
    mask = np.array(Image.open(path))
    # White on black is one object.
    return (mask > 0).astype(np.uint8) if set(np.unique(mask)) <= {0, 255} else mask


server, folder = sys.argv[1].rstrip("/"), pathlib.Path(sys.argv[2])
options = dict(option.split("=") for option in sys.argv[3:])
size = int(options.pop("size", 480))
query = "".join(f"&{name}={value}" for name, value in options.items())
figures = {}
for video in sorted(path for path in folder.iterdir() if path.is_dir()):
    frames, masks = sorted((video / "frames").iterdir()), sorted((video / "masks").iterdir())
    first = drawn(masks[0])
    numbers = [int(number) for number in np.unique(first) if number not in (0, 255)]
    ask("PUT", f"/collections/{video.name}", {"kind": "patches", "size": size})
    picture = encoded(frames[0].read_bytes())
    items = [{"id": str(number), "image": picture, "mask": png(first == number), "labels": [str(number)]} for number in numbers]
    ask("POST", f"/collections/{video.name}/items", {"items": items})
    overlaps = {number: [] for number in numbers}
    for frame, mask in list(zip(frames, masks))[1:-1]:
        found = np.zeros(first.shape, np.uint8)
        body = {"images": [encoded(frame.read_bytes())]}
        for painted in ask("POST", f"/segment?collection={video.name}{query}", body)["results"][0]["masks"]:
            found[np.array(Image.open(io.BytesIO(base64.b64decode(painted["png"])))) > 0] = int(painted["label"])
        truth = drawn(mask)
        for number in numbers:
            union = np.sum((found == number) | (truth == number))
            overlaps[number].append(np.sum((found == number) & (truth == number)) / union if union else 1.0)
    ask("DELETE", f"/collections/{video.name}")
    for number in numbers:
        figures[f"{video.name}_{number}"] = round(float(np.mean(overlaps[number])), 4)
print(json.dumps({"J": round(float(np.mean(list(figures.values()))), 4), "objects": figures}))
