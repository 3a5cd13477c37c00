"""The embedding servers that people write in Python around ONNX Runtime, for `make bench`.

  peer.py fastapi|litserve --model MODEL.onnx --port PORT --threads N --workers N --max-batch N
"""

import argparse
import asyncio
import io
from concurrent.futures import ThreadPoolExecutor

import numpy
import onnxruntime
from PIL import Image

MEAN = numpy.array([0.485, 0.456, 0.406], numpy.float32)
STD = numpy.array([0.229, 0.224, 0.225], numpy.float32)


def prepare(data):
    """The evaluation transform: shorter side to 256, centre of 224, normalised, [3, 224, 224]."""
    picture = Image.open(io.BytesIO(data))
    # JPEGs are decoded at a reduced scale, which Pillow offers and a careful author uses.
    picture.draft("RGB", (256, 256))
    picture = picture.convert("RGB")
    scale = 256 / min(picture.size)
    picture = picture.resize([max(256, round(side * scale)) for side in picture.size], Image.Resampling.BICUBIC)
    left, top = ((side - 224) // 2 for side in picture.size)
    pixels = numpy.asarray(picture.crop((left, top, left + 224, top + 224)), numpy.float32)
    return ((pixels / 255 - MEAN) / STD).transpose(2, 0, 1)


class Model:
    def __init__(self, path, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    def __call__(self, batch):
        tokens = self.session.run(["last_hidden_state"], {self.name: numpy.ascontiguousarray(batch)})[0]
        return tokens[:, 0]


def fastapi(args):
    from fastapi import FastAPI, Request

    app = FastAPI()
    model = Model(args.model, args.threads)
    pool, queue = ThreadPoolExecutor(max_workers=2), asyncio.Queue()

    async def work():
        """Takes what waits, up to the batch, whenever the model is free."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await queue.get()]
            while len(batch) < args.max_batch and not queue.empty():
                batch.append(queue.get_nowait())
            vectors = await loop.run_in_executor(pool, lambda: model(numpy.stack([pixels for pixels, _ in batch])))
            for (_, future), vector in zip(batch, vectors):
                future.set_result(vector)

    @app.on_event("startup")
    async def start():
        app.state.task = asyncio.create_task(work())

    @app.post("/embed")
    async def embed(request: Request):
        data, loop = await request.body(), asyncio.get_running_loop()
        pixels = await loop.run_in_executor(pool, prepare, data)
        future = loop.create_future()
        await queue.put((pixels, future))
        return {"embedding": (await future).tolist()}

    return app


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("kind", choices=["fastapi", "litserve"])
parser.add_argument("--model", required=True)
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--workers", type=int, default=1)
parser.add_argument("--max-batch", type=int, default=1)


def build():
    """What uvicorn's own workers import."""
    import os
    import shlex

    return fastapi(parser.parse_args(shlex.split(os.environ["PEER"])))


if __name__ == "__main__":
    args = parser.parse_args()
    if args.kind == "fastapi":
        import os
        import shlex
        import sys

        import uvicorn

        os.environ["PEER"] = shlex.join(sys.argv[1:])
        uvicorn.run("peer:build", factory=True, port=args.port, workers=args.workers, log_level="error")
    else:
        from peer_litserve import server

        server(args).run(port=args.port, num_api_servers=1, log_level="error", generate_client_file=False)
