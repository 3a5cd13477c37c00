"""Makes reference.safetensors: what the public evaluation on DAVIS gives on small made-up videos.

    git clone https://github.com/facebookresearch/dino
    git clone https://github.com/davisvideochallenge/davis2017-evaluation
    pip install numpy opencv-python-headless pillow safetensors scipy tqdm
    python3 tests/data/video/make.py dino davis2017-evaluation

The functions are those of the two repositories. What they ask of PyTorch is answered by `numpy_torch.py` beside this file.
"""

import json
import pathlib
import sys
import tempfile

import cv2
import numpy as np
import scipy.ndimage
from PIL import Image
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import numpy_torch  # noqa: E402

np.in1d = np.isin  # Gone from newer versions.
dino, metrics, statistics = numpy_torch.public(*sys.argv[1:3])
random = np.random.default_rng(11)
tensors, expected = {}, {}


def smooth(shape, sigma):
    noise = scipy.ndimage.gaussian_filter(random.normal(size=shape), sigma)
    return (noise / noise.std()).astype(np.float32)


# A video of features: a smooth field that drifts, a little of it new in each frame.
ROWS, COLUMNS, DIM, FRAMES, PATCH, SIZE = 8, 11, 6, 10, 4, (45, 30)
field = smooth((ROWS + FRAMES, COLUMNS + FRAMES, DIM), (1.2, 1.2, 0))
features = np.stack([field[t // 2 : t // 2 + ROWS, t // 3 : t // 3 + COLUMNS].reshape(-1, DIM) for t in range(FRAMES)])
features = (features + 0.25 * random.normal(size=features.shape)).astype(np.float32)
first = np.zeros((ROWS, COLUMNS), np.uint8)
first[1:5, 2:6], first[4:8, 7:10] = 1, 3
tensors |= {"features": features, "first": first}


class Arguments:
    output_dir, n_last_frames, topk, patch_size = "", 7, 5, PATCH


soft = []
propagate = dino.label_propagation


def remembered(*arguments):
    answer = propagate(*arguments)
    soft.append(answer[0].array[0])
    return answer


dino.label_propagation = remembered
dino.read_frame = lambda name: (int(pathlib.Path(name).stem), SIZE[1], SIZE[0])
for neighbourhood in [12, 2, 0]:
    dino.args = args = Arguments()
    args.size_mask_neighborhood = neighbourhood
    rows = numpy_torch.Tensor(features)
    dino.extract_feature = lambda model, frame, return_h_w=False: (rows[frame], ROWS, COLUMNS) if return_h_w else rows[frame]
    soft.clear()
    with tempfile.TemporaryDirectory() as args.output_dir:
        one_hot = dino.to_one_hot(numpy_torch.Tensor(first[None].astype(np.float32)))
        names = [f"{frame:05}.jpg" for frame in range(FRAMES)]
        dino.eval_video_tracking_davis(args, None, names, "video", one_hot, np.zeros(SIZE[::-1], np.uint8), np.zeros((256, 3), np.uint8))
        found = [np.array(Image.open(pathlib.Path(args.output_dir, "video", f"{frame:05}.png"))) for frame in range(1, FRAMES)]
    tensors[f"soft.{neighbourhood}"] = np.stack(soft)
    tensors[f"labels.{neighbourhood}"] = np.stack(found)

# Masks, some of them empty, and their measures.
FRAMES, SIZE = 7, (60, 84)
truth = (smooth((FRAMES, *SIZE), (0.5, 6, 6)) > 0.6).astype(np.uint8)
answer = np.roll(truth, (2, 3), (1, 2)) & (smooth((FRAMES, *SIZE), (0.5, 4, 4)) < 1.2)
truth[3], answer[4], truth[5], answer[5] = 0, 0, 0, 0
truth[6, 20:, 50:] = 1  # As far as the edges.
tensors |= {"truth": np.packbits(truth.reshape(FRAMES, -1), axis=1), "answer": np.packbits(answer.reshape(FRAMES, -1), axis=1)}
expected["j"] = metrics.db_eval_iou(truth, answer).tolist()
expected["f"] = metrics.db_eval_boundary(truth, answer).tolist()
expected["f_of_large"] = [metrics.db_eval_boundary(*[np.kron(m[frame], np.ones((5, 5), np.uint8)) for m in (truth, answer)]) for frame in (0, 6)]
lists = [random.random(length).round(6) for length in (1, 2, 3, 6, 11, 38, 102)]
expected["statistics"] = [{"values": values.tolist(), "expected": [float(x) for x in statistics(values)]} for values in lists]

# Sizes of frames and masks.
expected["sizes"] = []
read_frame = numpy_torch.public(*sys.argv[1:3])[0].read_frame
with tempfile.TemporaryDirectory() as folder:
    for width, height in [(854, 480), (480, 854), (1280, 720), (910, 480), (641, 479), (300, 200)]:
        path = str(pathlib.Path(folder, "frame.png"))
        cv2.imwrite(path, np.zeros((height, width, 3), np.uint8))
        expected["sizes"].append({"size": [width, height], "expected": list(read_frame(path)[0].array.shape[:0:-1])})
    picture = np.clip(128 + 60 * smooth((37, 90, 3), (2, 2, 0)) + 8 * random.normal(size=(37, 90, 3)), 0, 255).astype(np.uint8)
    cv2.imwrite(path, picture[:, :, ::-1])
    tensors["picture"] = picture
    tensors["picture.64"] = read_frame(path, [64])[0].array.astype(np.float32)[:, ::4, ::4]
    tensors["picture.20"] = cv2.resize(picture, (64, 20))
nearest = [(854, 53), (832, 854), (424, 854), (480, 30), (61, 83)]
expected["nearest"] = []
for source, target in nearest:
    row = Image.fromarray(np.arange(source, dtype=np.int32)[None])
    expected["nearest"].append({"source": source, "expected": np.array(row.resize((target, 1), 0))[0].tolist()})

save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, HERE / "reference.safetensors", {"config": json.dumps(expected)})
