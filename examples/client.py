"""Asks a server for the class of every picture below a folder, and prints the share that is right.

    python3 examples/client.py http://localhost:8080 tests/data/caltech101-val

The folder holds one folder for each class. Needs nothing but Python.
"""

import concurrent.futures
import json
import pathlib
import sys
import urllib.request


def classify(server: str, picture: pathlib.Path) -> str | None:
    """The label that the neighbours in the collection `default` vote for, also where they are not like the picture."""
    headers = {"Content-Type": "application/octet-stream"}
    request = urllib.request.Request(f"{server}/classify?k=5&min_similarity=0", picture.read_bytes(), headers)
    with urllib.request.urlopen(request) as response:
        return json.load(response)["results"][0]["label"]


def main(server: str, folder: str) -> None:
    pictures = sorted(path for path in pathlib.Path(folder).glob("*/*") if path.is_file())
    # Several requests at once keep all of the server's workers busy.
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        labels = list(pool.map(lambda picture: classify(server, picture), pictures))
    right = sum(label == picture.parent.name for label, picture in zip(labels, pictures))
    print(f"{right} of {len(pictures)} right")


main(*sys.argv[1:])
