"""The exact scan of `/anomaly` beside faiss's flat index and a plain matrix product: `make bench-anomaly`.

Each looks for the nearest of 90,000 stored patches (100 pictures of 900) for each of 900, 384 numbers, on the same cores, one after the
other in each round. The scan's own rows come from `anomaly_time`, which this starts.
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import faiss
import numpy as np

QUERIES, ROWS, DIM = 900, 90_000, 384
THREADS, ROUNDS, LOOKS = 2, 3, 5
# A multiplication and an addition.
OPERATIONS = 2 * QUERIES * ROWS * DIM


def unit(rng, count):
    rows = rng.standard_normal((count, DIM), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def milliseconds(run):
    times = []
    for _ in range(LOOKS):
        began = time.perf_counter()
        run()
        times.append((time.perf_counter() - began) * 1e3)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", type=Path, default="target/dist/anomaly_time")
    args = parser.parse_args()

    faiss.omp_set_num_threads(THREADS)
    rng = np.random.default_rng(1)
    rows, queries = unit(rng, ROWS), unit(rng, QUERIES)
    index = faiss.IndexFlatIP(DIM)
    index.add(rows)
    # In blocks, so that writing 900 x 90,000 products does not count.
    blocks = [np.ascontiguousarray(rows[first : first + 4500].T) for first in range(0, ROWS, 4500)]

    times = {"scan over bytes": [], "faiss, flat": [], "matrix product of floats alone": []}
    for _ in range(ROUNDS):
        done = subprocess.run([args.program], env={"RAYON_NUM_THREADS": str(THREADS)}, stdout=subprocess.PIPE, text=True, check=True)
        found = re.search(r"nearest of (\d+) patches among (\d+): ([\d.]+) ms", done.stdout)
        if not found or (int(found[1]), int(found[2])) != (QUERIES, ROWS):
            sys.exit(f"{args.program} measures other shapes than this:\n{done.stdout}")
        times["scan over bytes"].append(float(found[3]))
        times["faiss, flat"] += milliseconds(lambda: index.search(queries, 1))
        times["matrix product of floats alone"] += milliseconds(lambda: [queries @ block for block in blocks])
    print(done.stdout)
    print("| | ms, median | fastest | 10^9 operations/s, fastest |\n| --- | --- | --- | --- |")
    for name, found in times.items():
        print(f"| {name} | {statistics.median(found):.0f} | {min(found):.0f} | {OPERATIONS / min(found) / 1e6:.0f} |")


if __name__ == "__main__":
    main()
