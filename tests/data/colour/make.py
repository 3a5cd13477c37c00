"""One picture whose numbers are those of other colour spaces, in every format that says so. Needs Pillow with LittleCMS.

`srgb.png` is what all of them show.
"""

import io
import struct
import zlib
from pathlib import Path

from PIL import Image, ImageCms

here = Path(__file__).parent
srgb = Image.open(here.parent.parent / "photos" / "flower.jpg").convert("RGB").resize((96, 64), Image.Resampling.LANCZOS)
srgb.info.clear()

SRGB_CURVE = [round(65535 * (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4)) for v in (i / 1023 for i in range(1024))]


def profile(name, colorants, gamma, space=b"RGB "):
    """An ICC profile of version 2: three colours at D50 and one tone curve."""
    fixed = lambda values: b"".join(struct.pack(">i", round(value * 65536)) for value in values)
    xyz = lambda values: b"XYZ \0\0\0\0" + fixed(values)
    text = name.encode() + b"\0"
    desc = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
    points = [round(gamma * 256)] if isinstance(gamma, float) else gamma
    curve = b"curv\0\0\0\0" + struct.pack(f">I{len(points)}H", len(points), *points)
    tags = {b"desc": desc, b"cprt": b"text\0\0\0\0none\0", b"wtpt": xyz((0.9642, 1.0, 0.8249))}
    if space == b"RGB ":
        tags |= dict(zip([b"rXYZ", b"gXYZ", b"bXYZ"], map(xyz, colorants))) | {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    else:
        tags |= {b"kTRC": curve}
    table, data = b"", b""
    start = 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        table += tag + struct.pack(">II", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s12x4s4s24x12s48x", start + len(data), b"\0\0\0\0", 0x02100000, b"mntr", space, b"XYZ ", b"acsp", b"\0\0\0\0", fixed((0.9642, 1.0, 0.8249)))
    assert len(head) == 128
    return head + struct.pack(">I", len(tags)) + table + data


P3_COLORANTS = [(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)]
P3 = profile("P3", P3_COLORANTS, 2.2)
P3_SRGB_CURVE = profile("P3", P3_COLORANTS, SRGB_CURVE)
ADOBE = profile("Adobe RGB", [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)], 2.19921875)
GREY = profile("grey", None, 1.8, b"GRAY")


def to(icc):
    return ImageCms.profileToProfile(srgb, ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(icc)), outputMode="RGB")


srgb.save(here / "srgb.png", optimize=True)
for name, icc in [("p3", P3), ("adobe", ADOBE)]:
    picture = to(icc)
    picture.save(here / f"{name}.png", icc_profile=icc, optimize=True)
    picture.save(here / f"{name}.jpg", icc_profile=icc, quality=97, subsampling=0)
    picture.save(here / f"{name}.webp", icc_profile=icc, lossless=True)
    picture.save(here / f"{name}.tif", icc_profile=icc, compression="tiff_adobe_deflate")
(here / "p3.icc").write_bytes(P3)
(here / "grey.icc").write_bytes(GREY)

# The grey of a profile of its own, and what it shows by LittleCMS.
grey = srgb.convert("L")
grey.save(here / "grey.png", icc_profile=GREY, optimize=True)
shown = ImageCms.profileToProfile(grey, ImageCms.ImageCmsProfile(io.BytesIO(GREY)), ImageCms.createProfile("sRGB"), outputMode="RGB")
shown.save(here / "grey_shown.png", optimize=True)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunks(picture, name, *chunks):
    """Puts chunks behind IHDR."""
    file = io.BytesIO()
    picture.info.clear()
    picture.save(file, "PNG", optimize=True)
    file = file.getvalue()
    (here / name).write_bytes(file[:33] + b"".join(chunks) + file[33:])


# P3 with the tone curve of sRGB, by code points (H.273: primaries 12, transfer function 13, RGB, full range).
CICP = chunk(b"cICP", bytes([12, 13, 0, 1]))
with_chunks(to(P3_SRGB_CURVE), "p3_cicp.png", CICP)
# Pure gamma of 1/2.2 with the primaries of P3.
CHRM = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
with_chunks(to(P3), "p3_gama_chrm.png", chunk(b"gAMA", struct.pack(">I", 45455)), chunk(b"cHRM", CHRM))
# Linear light.
linear = srgb.point([round(255 * ((v / 255 + 0.055) / 1.055) ** 2.4 if v > 10 else v / 12.92) for v in range(256)] * 3)
with_chunks(linear, "linear.png", chunk(b"gAMA", struct.pack(">I", 100000)))

# What phones store and the server does not read.
small = srgb.resize((64, 40), Image.Resampling.LANCZOS)
small.save(here / "flower.avif", quality=60)
