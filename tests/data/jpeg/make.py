"""Makes small JPEGs of rare kinds, and beside each the pixels that Pillow reads from it. Needs `pillow`.

restart.jpg   4:2:0 with restart markers
ycck.jpg      four components with Adobe's transform 2 (YCCK)
rgb.jpg       three components stored as RGB, with Adobe's transform 0
rgb_ids.jpg   the same without any marker: only the components' names say so
"""

import pathlib

from PIL import Image

folder = pathlib.Path(__file__).parent
small = Image.open(folder / "../../photos/coffee.png").convert("RGB").resize((75, 50), Image.Resampling.BICUBIC)


def marker(data, code):
    """Start and end of a segment."""
    at = data.index(bytes([0xFF, code]))
    return at, at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")


small.save(folder / "restart.jpg", quality=90, subsampling="4:2:0", restart_marker_rows=1)

small.convert("CMYK").save(folder / "ycck.jpg", quality=95)
data = bytearray((folder / "ycck.jpg").read_bytes())
start, end = marker(data, 0xEE)
data[end - 1] = 2
(folder / "ycck.jpg").write_bytes(data)

small.save(folder / "rgb.jpg", quality=95, keep_rgb=True)
data = (folder / "rgb.jpg").read_bytes()
start, end = marker(data, 0xEE)
(folder / "rgb_ids.jpg").write_bytes(data[:start] + data[end:])

for path in folder.glob("*.jpg"):
    Image.open(path).convert("RGB").save(path.with_suffix(".png"), optimize=True)
