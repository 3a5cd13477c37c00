"""Measures how busy the ONNX sessions are that a pipe, Ray and Spark feed through `dino-server embed --arrow -`.

    .cache/engines/bin/python tests/bench/arrow.py --program target/dist/dino-server --trainer target/dist/dino-train

The model is a ViT-S/16 at 224 pixels with random weights, or the one that --model names; the pictures are photos of 640 x 427, as JPEG. Every process says on stderr what share of the time from its first record batch to its last answer its sessions ran; the last column has it
over the whole command, with the start of the engine and of its workers.
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import pyarrow

from models import SHAPES, tensors, write

ROOT = pathlib.Path(__file__).resolve().parents[2]
PHOTOS = [ROOT / "tests/photos" / name for name in ("china.jpg", "flower.jpg", "rocket.jpg")]
SAID = re.compile(r"answered (\d+) rows, \d+ of them with an error, in ([\d.]+) s, of which the sessions were busy ([\d.]+) %")
WORKERS = 2

def pipe(program: pathlib.Path, model: str, pictures: pathlib.Path) -> None:
    """One process with a session for each worker of the engines, fed from the folder."""
    command = [program, "embed", "--arrow", "-", "--model", model, "--sessions", str(WORKERS)]
    schema = pyarrow.schema({"path": pyarrow.string(), "image": pyarrow.binary()})
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        with pyarrow.ipc.new_stream(process.stdin, schema) as writer:
            paths = sorted(pictures.iterdir())
            for start in range(0, len(paths), 32):
                some = paths[start : start + 32]
                writer.write_batch(pyarrow.record_batch([[path.name for path in some], [path.read_bytes() for path in some]], schema=schema))
        process.stdin.close()
    if process.returncode:
        sys.exit("the pipe failed")


def engine(command: list, example: str, program: pathlib.Path, model: str, pictures: pathlib.Path, out: pathlib.Path) -> None:
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [*command, ROOT / "examples" / example, pictures, out, "--program", program, "--model", model]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", type=pathlib.Path, required=True)
    parser.add_argument("--trainer", type=pathlib.Path, help="makes the model")
    parser.add_argument("--model")
    parser.add_argument("--pictures", type=int, default=1500)
    parser.add_argument("--only", default="", help="pipe, Ray or Spark")
    arguments = parser.parse_args()
    spark = pathlib.Path(sys.executable).with_name("spark-submit")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        pictures, logs, program = folder / "pictures", folder / "logs", folder / "dino-server"
        if arguments.model is None:
            weights, model = folder / "weights.safetensors", folder / "model"
            write(weights, tensors(*SHAPES["DINO ViT-S/16"]))
            command = [arguments.trainer, "export", "--checkpoint", weights, "--out", model, "--precision", "f32", "--unmeasured"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            arguments.model = str(model)
        pictures.mkdir()
        for number in range(arguments.pictures):
            shutil.copy(PHOTOS[number % len(PHOTOS)], pictures / f"{number:05}.jpg")
        # Ray kills the children of its workers: this shell, and not the program, which ends when its input does.
        program.write_text(f'#!/bin/sh\n"{arguments.program.resolve()}" "$@" 2>"{logs}/$$"\nexit $?\n')
        program.chmod(0o755)
        ways = {
            "pipe": lambda: pipe(program, arguments.model, pictures),
            "Ray": lambda: engine([sys.executable], "ray_embed.py", program, arguments.model, pictures, folder / "ray"),
            "Spark": lambda: engine(
                [spark, "--master", f"local-cluster[{WORKERS},1,1024]", "--conf", "spark.ui.enabled=false"],
                "spark_embed.py", program, arguments.model, pictures, folder / "spark",
            ),
        }
        print("| | processes | pictures/s, whole command | busy, each process | busy, whole command |\n| --- | --- | --- | --- | --- |")
        for way, run in ways.items():
            if arguments.only not in way:
                continue
            logs.mkdir()
            begin = time.monotonic()
            run()
            took = time.monotonic() - begin
            time.sleep(2)
            found = [SAID.search(log.read_text()) for log in logs.iterdir()]
            found = [match.groups() for match in found if match]
            busy = sum(float(seconds) * float(percent) / 100 for _, seconds, percent in found)
            sessions = WORKERS if way == "pipe" else 1
            shares = ", ".join(sorted(f"{float(percent) / 100:.3f}" for _, _, percent in found))
            whole = busy * sessions / (WORKERS * took)
            print(f"| {way} | {len(found)} | {arguments.pictures / took:.1f} | {shares} | {whole:.3f} |", flush=True)
            shutil.rmtree(logs)


if __name__ == "__main__":
    main()
