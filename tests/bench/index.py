"""Compares collections with hnswlib, faiss, usearch and hnsw_rs as it comes on the same vectors and the same cores: `make bench-index`.

Recall@10 against queries per second, time to build, memory; the exact scan against faiss's flat index and against what
the cores read from memory; a million vectors as bytes; the most memory that building, opening and restoring take. Each library runs in a process of its own, over the whole printed
grid, and counts with its best point.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

K = 10
WIDTHS = [10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
# Links of a node, width of the search for them.
GRID = [(16, 128), (16, 200), (32, 200)]
# Without this much recall a point does not count.
WANTED = 0.99
ROWS, QUERIES, DIM, CLUSTERS = 100_000, 1_000, 384, 1_000
# Most memory of a process at each step, in times of the vectors (docs/operations.md).
PROMISED = {"build": 3.3, "open": 2.0, "restore": 2.0}
# Pixels of the pictures that patch tokens come from.
SIDE = 288


def normalised(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clustered(rng, count, centres):
    near = normalised(rng.standard_normal((count, DIM))) * 0.8
    return normalised(centres[np.arange(count) % CLUSTERS] + near)


def tokens(args, out):
    """Patch tokens of pictures, by the demo model, 1,296 of each."""
    model = out / f"model-{SIDE}"
    if not model.exists():
        model.mkdir()
        manifest = json.loads((args.model / "manifest.json").read_text())
        manifest["transform"].update(resize={"shorter": SIDE}, crop=[SIDE, SIDE])
        (model / "manifest.json").write_text(json.dumps(manifest))
        (model / manifest["files"]["f32"]["name"]).write_bytes((args.model / manifest["files"]["f32"]["name"]).read_bytes())
    file = out / f"patches-{SIDE}.npy"
    subprocess.run([args.server, "embed", "--images", args.pictures, "--model", model, "--out", file, "--pooling", "patches"], check=True)
    rows = np.load(file)
    rows = rows.reshape(-1, rows.shape[-1])
    # The same patch twice, of a plain sky for example, makes the nearest ten a matter of taste.
    return np.unique(np.round(rows, 4), axis=0)


def make(args, out, name):
    """DATA.npy, DATA.queries.npy and DATA.truth.npy."""
    data = out / (name if name == "clustered" else f"{name}-{SIDE}")
    if data.with_suffix(".truth.npy").exists():
        return data
    rng = np.random.default_rng(20)
    if name == "clustered":
        centres = normalised(rng.standard_normal((CLUSTERS, DIM)))
        rows, queries = clustered(rng, ROWS, centres), clustered(rng, QUERIES, centres)
    else:
        found = normalised(rng.permutation(tokens(args, out)))
        if len(found) < QUERIES + ROWS:
            sys.exit(f"only {len(found)} tokens: give more pictures")
        queries, rows = found[:QUERIES], found[QUERIES : QUERIES + ROWS]
    truth = np.argsort(-(queries @ rows.T), axis=1, kind="stable")[:, :K].astype(np.int32)
    np.save(data.with_suffix(".npy"), rows)
    np.save(data.with_suffix(".queries.npy"), queries)
    np.save(data.with_suffix(".truth.npy"), truth)
    return data


def resident():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1000


def ask(search, queries, truth):
    search(queries[:20])
    began = time.perf_counter()
    found = search(queries)
    seconds = time.perf_counter() - began
    right = sum(len(np.intersect1d(found[i][:K], truth[i])) for i in range(len(queries)))
    return {"qps": len(queries) / seconds, "recall": right / truth.size}


def hnswlib_index(rows, links, width, threads):
    import hnswlib

    index = hnswlib.Index(space="ip", dim=rows.shape[1])
    index.init_index(max_elements=len(rows), ef_construction=width, M=links)
    index.add_items(rows, num_threads=threads)

    def search(ef, threads):
        index.set_ef(ef)
        return lambda queries: index.knn_query(queries, k=K, num_threads=threads)[0]

    return search


def faiss_index(rows, links, width, threads):
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexHNSWFlat(rows.shape[1], links, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = width
    index.add(rows)

    def search(ef, threads):
        faiss.omp_set_num_threads(threads)
        index.hnsw.efSearch = ef
        return lambda queries: index.search(queries, K)[1]

    return search


def usearch_index(rows, links, width, threads):
    from usearch.index import Index

    index = Index(ndim=rows.shape[1], metric="ip", dtype="f32", connectivity=links, expansion_add=width)
    index.add(np.arange(len(rows)), rows, threads=threads)

    def search(ef, threads):
        index.expansion_search = ef
        return lambda queries: index.search(queries, K, threads=threads).keys

    return search


BUILDERS = {"hnswlib": hnswlib_index, "faiss": faiss_index, "usearch": usearch_index}


def measure(library, data, links, width):
    """One library at one way of building, at all widths of the search; one JSON object a line."""
    rows, queries, truth = (np.load(f"{data}{part}.npy") for part in ("", ".queries", ".truth"))
    before, began = resident(), time.perf_counter()
    search = BUILDERS[library](rows, links, width, 2)
    built, memory = time.perf_counter() - began, resident() - before
    # All of them keep a copy of the vectors; ours are in the store.
    memory -= rows.nbytes / 1e6
    for threads in (1, 2):
        for ef in WIDTHS:
            point = ask(search(ef, threads), queries, truth)
            print(json.dumps({"threads": threads, "ef": ef, "build_s": built, "graph_mb": memory, **point}), flush=True)


def measure_flat(data):
    """faiss's flat index: one query at a time, and all of them together."""
    import faiss

    rows, queries, truth = (np.load(f"{data}{part}.npy") for part in ("", ".queries", ".truth"))
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    for threads in (1, 2):
        faiss.omp_set_num_threads(threads)
        one = ask(lambda queries: [index.search(query[None], K)[1][0] for query in queries], queries, truth)
        many = ask(lambda queries: index.search(queries, K)[1], queries, truth)
        print(json.dumps({"threads": threads, "gb_per_s": rows.nbytes * one["qps"] / 1e9, "batch_qps": many["qps"], **one}), flush=True)


def lines(command):
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "RAYON_NUM_THREADS": "2"}
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return [json.loads(line) for line in done.stdout.splitlines()]


def best(points, threads):
    """The fastest point that finds enough."""
    good = [p for p in points if p["threads"] == threads and p["recall"] >= WANTED]
    return max(good, key=lambda p: p["qps"], default=None)


def graphs(args, data):
    commands = {"dino": [args.example, "graph", data]}
    # The library that builds our graphs, with its own search.
    for links, width in GRID:
        settings = ["env", f"M={links}", f"EF_CONSTRUCTION={width}"]
        commands[f"hnsw_rs M={links} ef_construction={width}"] = [*settings, args.example, "hnsw_rs", data]
    for library in BUILDERS:
        for links, width in GRID:
            commands[f"{library} M={links} ef_construction={width}"] = [sys.executable, __file__, "measure", library, data, links, width]
    print(f"\n### Graphs, {data.name}\n\nAll points (threads: width recall queries/s):\n", flush=True)
    curves = {}
    for name, command in commands.items():
        points = curves[name] = lines(command)
        for threads in (1, 2):
            row = ", ".join(f"{p['ef']} {p['recall']:.4f} {p['qps']:.0f}" for p in points if p["threads"] == threads)
            print(f"- {name}, {threads}: {row}", flush=True)
    print(f"\n| | width | recall@10 | queries/s, one thread | two | to build, s | graph, MB |\n| --- | --- | --- | --- | --- | --- | --- |")
    for name, points in curves.items():
        one, two = best(points, 1), best(points, 2)
        if one and two:
            print(f"| {name} | {one['ef']} | {one['recall']:.4f} | {one['qps']:.0f} | {two['qps']:.0f} | {one['build_s']:.0f} | {one['graph_mb']:.0f} |")
        else:
            print(f"| {name} | | under {WANTED} | | | {points[0]['build_s']:.0f} | {points[0]['graph_mb']:.0f} |")


def scans(args, data):
    ours, flat = lines([args.example, "scan", data]), lines([sys.executable, __file__, "flat", data])
    print(f"\n### Exact search, {data.name}\n\n| threads | dino, queries/s | GB/s | memory, GB/s | faiss flat, queries/s | GB/s | faiss, all queries at once |\n| --- | --- | --- | --- | --- | --- | --- |")
    for own, other in zip(ours, flat):
        print(f"| {own['threads']} | {own['qps']:.1f} | {own['gb_per_s']:.1f} | {own['memory_gb_per_s']:.1f} | {other['qps']:.1f} | {other['gb_per_s']:.1f} | {other['batch_qps']:.1f} |")


def million(args, out):
    folder = out / "million"
    if not (folder / "questions.json").exists():
        lines([args.example, "million", folder])
    print("\n### A million vectors of 384 as bytes\n\n| threads | exact asked for | recall@10 | ms a search | resident, MB | peak, MB | to open, s |\n| --- | --- | --- | --- | --- | --- | --- |")
    for p in lines([args.example, "million", folder]):
        print(f"| {p['threads']} | {p['exact']} | {p['recall']:.4f} | {p['ms']:.1f} | {p['resident_mb']} | {p['peak_mb']} | {p['opened_s']:.0f} |")


def memory(args, out):
    """What the steps in the life of a collection take at most; ends with an error where that is more than docs/operations.md says."""
    folder = out / "memory"
    shutil.rmtree(folder, ignore_errors=True)
    print(f"\n### Peak memory, {ROWS} vectors of {DIM}\n\n| step | peak, MB | times the vectors | promised | s |\n| --- | --- | --- | --- | --- |")
    kept = True
    for step in ("fill", *PROMISED):
        point = lines([args.example, "memory", step, folder, ROWS])[0]
        if step in PROMISED:
            kept &= point["times"] <= PROMISED[step]
            print(f"| {step} | {point['peak_mb']} | {point['times']:.2f} | {PROMISED[step]} | {point['s']:.0f} |", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    if not kept:
        sys.exit("a step took more memory than docs/operations.md says")


def main():
    if sys.argv[1:2] == ["measure"]:
        return measure(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    if sys.argv[1:2] == ["flat"]:
        return measure_flat(sys.argv[2])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--example", type=Path, default="target/dist/index_bench")
    parser.add_argument("--server", type=Path, default="target/dist/dino-server")
    parser.add_argument("--model", type=Path, default="models/demo")
    parser.add_argument("--pictures", type=Path, default="tests/data/caltech101-val", help="where the real vectors come from")
    parser.add_argument("--out", type=Path, default=".cache/bench-index")
    parser.add_argument("--only", choices=["graphs", "scans", "million", "memory"], action="append")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = args.only or ["graphs", "scans", "million", "memory"]
    cores = len(os.sched_getaffinity(0))
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.processor())
    print(f"{ROWS} vectors, {QUERIES} queries, {cores} cores of {model}")
    for name in ("clustered", "tokens"):
        if "graphs" in wanted:
            graphs(args, make(args, args.out, name))
        if "scans" in wanted:
            scans(args, make(args, args.out, name))
    if "million" in wanted:
        million(args, args.out)
    if "memory" in wanted:
        memory(args, args.out)


if __name__ == "__main__":
    main()
