"""Our server beside two Python ones and beside what ONNX Runtime alone reaches: the same ViT-S/16 with random weights, the same JPEG, the
same cores, one run. Prints tables in Markdown.

Each Python server first tries a grid of processes, threads and batch sizes, and goes on with the best.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "training/bench"))
from model import export_ours, network  # noqa: E402


def processes(pid):
    """A process and all that it started."""
    found = [pid]
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += processes(int(child))
    return found


def usage(pid):
    """Seconds of processor time and highest resident bytes so far, of a process and all that it started."""
    seconds = memory = 0
    for one in processes(pid):
        try:
            times = Path(f"/proc/{one}/stat").read_text().rsplit(")")[-1].split()
            status = Path(f"/proc/{one}/status").read_text()
        except FileNotFoundError:
            continue
        seconds += (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
        memory += int(status.split("VmHWM:")[1].split()[0]) * 1024
    return seconds, memory


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Server:
    """A running server; `ready` is asked until it answers."""

    def __init__(self, command, port, ready, **environment):
        self.port, began = port, time.monotonic()
        log = open(os.path.join(tempfile.gettempdir(), "bench-server.log"), "w")
        self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=HERE, env={**os.environ, **environment}, start_new_session=True)
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{ready}", timeout=2):
                    break
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    break
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() - began > 90:
                sys.exit(f"{command[:4]} does not start: {Path(log.name).read_text()[-2000:]}")
            time.sleep(0.02)
        self.start = time.monotonic() - began

    def close(self):
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            pass
        # Also what it started and left behind.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Bench:
    def __init__(self, args, folder):
        self.args, self.folder = args, folder
        self.picture = folder / "picture.jpg"

    def make(self):
        from PIL import Image

        # 854 x 480, as video frames are: a photo enlarged to it.
        with Image.open(self.args.photo) as photo:
            photo.convert("RGB").resize((854, 480), Image.Resampling.BICUBIC).save(self.picture, quality=90)
        self.models = export_ours(self.args.trainer, network(), self.folder)

    def load(self, server, connections, seconds, body=None):
        """Drives a server; requests/s, times, processor time."""
        command = [self.args.load, f"http://127.0.0.1:{server.port}/embed", "--file", self.picture, "--connections", connections]
        command += ["--seconds", seconds, *(["--json", body] if body else [])]
        before, began = usage(server.process.pid)[0], time.monotonic()
        said = json.loads(subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout)
        seconds_used, memory = usage(server.process.pid)
        return {**said, "cores": (seconds_used - before) / (time.monotonic() - began), "memory": memory}

    def ours(self, precision, device="cpu"):
        port = free_port()
        command = [self.args.server, "serve", "--model", f"vits={self.folder / 'model'}", "--precision", precision, "--device", device]
        return Server([*map(str, command), "--listen", f"127.0.0.1:{port}"], port, "/readyz"), None

    def limit(self, precision, device):
        """What ONNX Runtime reaches on a device without a server, in a process of its own."""
        command = [self.args.limit, "--model", self.folder / "model", "--file", self.picture, "--precision", precision, "--device", device]
        command += ["--seconds", self.args.seconds]
        return json.loads(subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout)

    def peer(self, kind, model, processes, threads, batch):
        # Another one for each start: processes of the last one may still hold theirs.
        port = free_port()
        command = [sys.executable, "peer.py", kind, "--model", model, "--port", port, "--threads", threads]
        command += ["--workers", processes, "--max-batch", batch]
        ready = "/docs" if kind == "fastapi" else "/health"
        return Server([*map(str, command)], port, ready), "image" if kind == "litserve" else None

    def best_peer(self, kind, model):
        tried = {}
        for arrangement in [(1, 2, 1), (1, 2, 8), (2, 1, 1), (2, 1, 4)]:
            server, body = self.peer(kind, model, *arrangement)
            self.load(server, 4, 1, body)
            tried[arrangement] = self.load(server, 4, self.args.seconds / 2, body)["requests_per_second"]
            server.close()
        grid = ", ".join(f"{p} x {t} threads, batch {b}: {rate:.1f}" for (p, t, b), rate in tried.items())
        print(f"- {kind} on {Path(model).name}, requests/s at 4 connections by processes, threads and batch: {grid}", flush=True)
        return max(tried, key=tried.get)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", type=Path, required=True)
    parser.add_argument("--trainer", type=Path, required=True)
    parser.add_argument("--load", type=Path, required=True)
    parser.add_argument("--limit", type=Path, required=True)
    parser.add_argument("--photo", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=6)
    args = parser.parse_args()
    for name in ("server", "trainer", "load", "limit", "photo"):
        setattr(args, name, getattr(args, name).resolve())
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        bench.make()
        limits = {}
        for precision in ("f32", "int8"):
            limit = limits[precision] = bench.limit(precision, "cpu")
            print(f"- {precision}: ONNX Runtime alone {limit['runtime']:.1f} pictures/s, with decoding and transform {limit['with_decoding']:.1f} (the limit)")
        print(f"- decoding and transform of the {bench.picture.stat().st_size // 1024} KB JPEG: {limits['f32']['prepare_ms']:.2f} ms of one core")
        candidates = {f"dino-server, {precision}": lambda precision=precision: bench.ours(precision) for precision in ("f32", "int8")}
        try:
            limit = bench.limit("f32", "openvino")
            print(f"- OpenVINO alone {limit['runtime']:.1f} pictures/s, with decoding and transform {limit['with_decoding']:.1f}; lowest cosine to f32 {limit['cosine']:.6f}")
            candidates["dino-server, f32 on OpenVINO"] = lambda: bench.ours("f32", "openvino")
        except subprocess.CalledProcessError as error:
            reason = error.stderr.partition("\n\nStack backtrace")[0].split("\n")
            print(f"- OpenVINO is left out: {' '.join(line.strip() for line in reason if line)}")
        for kind in ("fastapi", "litserve"):
            for precision in ("f32", "int8"):
                model = str(bench.models[precision])
                best = bench.best_peer(kind, model)
                candidates[f"{kind}, {precision}"] = lambda kind=kind, model=model, best=best: bench.peer(kind, model, *best)
        columns = (1, 4, 16, 64)
        found = {}
        print("\n| server | start, s | memory, MB | " + " | ".join(f"{c} connections" for c in columns) + " |")
        print("| --- | --- | --- |" + " --- |" * len(columns))
        for name, start in candidates.items():
            server, body = start()
            bench.load(server, 4, 1, body)
            found[name] = {c: bench.load(server, c, args.seconds, body) for c in columns}
            memory = usage(server.process.pid)[1] / 1e6
            server.close()
            cells = [f"{f['requests_per_second']:.1f} /s, {f['p50_ms']:.0f} / {f['p99_ms']:.0f} ms, {f['cores']:.1f} cores" for f in found[name].values()]
            failed = sum(f["failed"] for f in found[name].values())
            print(f"| {name} | {server.start:.2f} | {memory:.0f} | " + " | ".join(cells) + f" |{f' {failed} failed' if failed else ''}", flush=True)
        print("\nA cell: requests/s, median / 99th percentile of the time of one, cores used (one of the two drives the load at times).\n")
        rate = lambda name, c: found[name][c]["requests_per_second"]  # noqa: E731
        peers = [name for name in candidates if not name.startswith("dino")]
        better = lambda precision, c: max(rate(name, c) for name in peers if name.endswith(precision))  # noqa: E731
        print("| ratio | " + " | ".join(f"{c} connections" for c in columns) + " |")
        print("| --- |" + " --- |" * len(columns))
        rows = {
            "f32 to its limit": lambda c: rate("dino-server, f32", c) / limits["f32"]["with_decoding"],
            "f32 to the better peer": lambda c: rate("dino-server, f32", c) / better("f32", c),
            "int8 to its limit": lambda c: rate("dino-server, int8", c) / limits["int8"]["with_decoding"],
            "int8 to the better peer in f32": lambda c: rate("dino-server, int8", c) / better("f32", c),
            "int8 to the better peer in int8": lambda c: rate("dino-server, int8", c) / better("int8", c),
            **(
                {"f32 on OpenVINO to f32": lambda c: rate("dino-server, f32 on OpenVINO", c) / rate("dino-server, f32", c)}
                if "dino-server, f32 on OpenVINO" in found
                else {}
            ),
            # A request waits for all that are before it: connections / rate.
            "f32: 99th percentile to what the queue implies": lambda c: found["dino-server, f32"][c]["p99_ms"] / (c / rate("dino-server, f32", c) * 1e3),
        }
        for name, ratio in rows.items():
            print(f"| {name} | " + " | ".join(f"{ratio(c):.2f}" for c in columns) + " |")


if __name__ == "__main__":
    main()
