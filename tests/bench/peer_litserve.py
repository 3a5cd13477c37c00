"""The LitServe peer. A module of its own: LitServe's workers are new processes that import the class."""

import base64

import litserve
import numpy

from peer import Model, prepare


class Api(litserve.LitAPI):
    def __init__(self, model, threads, **options):
        super().__init__(**options)
        self.path, self.threads = model, threads

    def setup(self, device):
        self.model = Model(self.path, self.threads)

    def decode_request(self, request):
        return prepare(base64.b64decode(request["image"]))

    def predict(self, x):
        return self.model(x if x.ndim == 4 else x[None])

    def batch(self, inputs):
        return numpy.stack(inputs)

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return {"embedding": numpy.ravel(output).tolist()}


def server(args):
    more = {"batch_timeout": 0.005} if args.max_batch > 1 else {}
    api = Api(args.model, args.threads, max_batch_size=args.max_batch, api_path="/embed", **more)
    return litserve.LitServer(api, accelerator="cpu", workers_per_device=args.workers)
