"""Small TIFFs that store one picture in many ways, and PNGs of what is to be seen. Needs numpy, Pillow, tifffile and imagecodecs.

The name up to the first "-" is that of the PNG that a file is compared with; files named "refused-…" have to be refused.
"""

import struct
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

here = Path(__file__).parent
rgb = np.asarray(Image.open(here.parent.parent / "photos" / "flower.jpg").convert("RGB").resize((40, 24), Image.Resampling.LANCZOS))
grey = np.asarray(Image.fromarray(rgb).convert("L"))
ramp = np.linspace(0, 255, 40).astype(np.uint8)[None].repeat(24, 0)
alpha = ramp[..., None]
random = np.random.default_rng(1)


def wide(picture, kind):
    """Samples of more bits that round to the same 8."""
    if kind == "f4" or kind == "f8" or kind == "f2":
        return (picture / 255).astype(kind)
    if kind == "u2":
        return (picture.astype(np.int64) * 257 + random.integers(-100, 100, picture.shape)).clip(0, 65535).astype(np.uint16)
    return (picture.astype(np.uint64) * 257 * 65537).astype(np.uint32)


def png(name, picture):
    Image.fromarray(picture).save(here / f"{name}.png", optimize=True)


def tiff(name, picture, **options):
    tifffile.imwrite(here / f"{name}.tif", picture, metadata=None, software=False, **options)


def white(picture, alpha):
    return np.rint(picture * (alpha / 255.0) + 255 - alpha).astype(np.uint8)


png("rgb", rgb)
tiff("rgb-chunky", rgb, photometric="rgb")
tiff("rgb-planar", rgb.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
tiff("rgb-planar-lzw", rgb.transpose(2, 0, 1), photometric="rgb", planarconfig="separate", compression="lzw")
tiff("rgb-planar-deflate-predictor", rgb.transpose(2, 0, 1), photometric="rgb", planarconfig="separate", compression="zlib", predictor=True)
tiff("rgb-tiles-16", rgb, photometric="rgb", tile=(16, 16))
tiff("rgb-bigtiff", rgb, photometric="rgb", bigtiff=True)
tiff("rgb-bigtiff-big-endian", rgb, photometric="rgb", bigtiff=True, byteorder=">")
tiff("rgb-packbits", rgb, photometric="rgb", compression="packbits")
tiff("rgb-16", wide(rgb, "u2"), photometric="rgb", compression="zlib", predictor=True)
tiff("rgb-16-planar", wide(rgb, "u2").transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
tiff("rgb-32", wide(rgb, "u4"), photometric="rgb", compression="zlib")
tiff("rgb-float", wide(rgb, "f4"), photometric="rgb", compression="zlib", predictor=True)
tiff("rgb-half", wide(rgb, "f2"), photometric="rgb", compression="zlib")
tiff("rgb-double", wide(rgb, "f8"), photometric="rgb", compression="zlib")
tiff("rgb-unspecified", np.concatenate([rgb, alpha], 2), photometric="rgb", extrasamples=[0])
tiff("rgb-pages", rgb, photometric="rgb")
tiff("rgb-pages", grey, photometric="minisblack", append=True)

png("white", white(rgb, alpha))
associated = np.rint(rgb * (alpha / 255.0)).astype(np.uint8)
tiff("white-unassociated", np.concatenate([rgb, alpha], 2), photometric="rgb", extrasamples=[2])
tiff("white-associated", np.concatenate([associated, alpha], 2), photometric="rgb", extrasamples=[1])
tiff("white-associated-16", np.concatenate([associated.astype(np.uint16) * 257, alpha.astype(np.uint16) * 257], 2), photometric="rgb", extrasamples=[1])
tiff("white-associated-planar", np.concatenate([associated, alpha], 2).transpose(2, 0, 1), photometric="rgb", planarconfig="separate", extrasamples=[1])

png("grey", grey)
tiff("grey-black", grey, photometric="minisblack")
tiff("grey-white", 255 - grey, photometric="miniswhite")
tiff("grey-16", wide(grey, "u2"), photometric="minisblack")
tiff("grey-32", wide(grey, "u4"), photometric="minisblack")
tiff("grey-float", wide(grey, "f4"), photometric="minisblack", compression="zlib", predictor=True)
tiff("grey-double", wide(grey, "f8"), photometric="minisblack", compression="zlib")

png("greywhite", white(grey[..., None], alpha)[..., 0])
tiff("greywhite-unassociated", np.stack([grey, ramp], 2), photometric="minisblack", extrasamples=[2], planarconfig="contig")
tiff("greywhite-associated", np.stack([np.rint(grey * (ramp / 255.0)).astype(np.uint8), ramp], 2), photometric="minisblack", extrasamples=[1], planarconfig="contig")

bilevel = grey > 100
png("bilevel", (bilevel * 255).astype(np.uint8))
Image.fromarray(bilevel).save(here / "bilevel-black.tif")
Image.fromarray(bilevel).save(here / "bilevel-group4.tif", compression="group4")
tiff("bilevel-white", ~bilevel, photometric="miniswhite")
four = grey // 17
png("four", (four * 17).astype(np.uint8))
tiff("four-bits", four, photometric="minisblack", bitspersample=4)

palette = Image.fromarray(rgb).quantize(256, dither=Image.Dither.NONE)
palette.convert("RGB").save(here / "palette.png", optimize=True)
table = (np.asarray(palette.getpalette() + [0] * 768)[:768].reshape(256, 3).T * 257).astype(np.uint16)
tiff("palette-little", np.asarray(palette), photometric="palette", colormap=table)
tiff("palette-bigtiff-big-endian", np.asarray(palette), photometric="palette", colormap=table, bigtiff=True, byteorder=">")

# Sixteen colours in 4 bits, which neither library writes.
palette = Image.fromarray(rgb).quantize(16, dither=Image.Dither.NONE)
palette.convert("RGB").save(here / "palette16.png", optimize=True)
indices = np.asarray(palette)
strip = (indices[:, ::2] << 4 | indices[:, 1::2]).astype(np.uint8).tobytes()
table = (np.asarray(palette.getpalette() + [0] * 48)[:48].reshape(16, 3).T.astype(np.uint16) * 257).astype("<u2").tobytes()
entries = [(256, 3, 1, 40), (257, 3, 1, 24), (258, 3, 1, 4), (259, 3, 1, 1), (262, 3, 1, 3), (273, 4, 1, 8), (277, 3, 1, 1), (278, 3, 1, 24)]
entries += [(279, 4, 1, len(strip)), (320, 3, 48, 8 + len(strip))]
directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
head = b"II*\0" + struct.pack("<I", 8 + len(strip) + len(table))
(here / "palette16-four-bits.tif").write_bytes(head + strip + table + directory)

cmyk = Image.fromarray(rgb).convert("CMYK")
png("cmyk", np.asarray(cmyk.convert("RGB")))
tiff("cmyk-chunky", np.asarray(cmyk), photometric="separated")
tiff("cmyk-planar", np.asarray(cmyk).transpose(2, 0, 1), photometric="separated", planarconfig="separate")

ycbcr = Image.fromarray(rgb).convert("YCbCr")
png("ycbcr", np.asarray(ycbcr.convert("RGB")))
tiff("ycbcr-full", np.asarray(ycbcr), photometric="ycbcr", subsampling=(1, 1))

tiff("refused-signed", (grey.astype(np.int16) - 100), photometric="minisblack")
tiff("refused-jpeg", rgb, photometric="ycbcr", compression="jpeg")
tiff("refused-twelve-bits", (grey.astype(np.uint16) * 16), photometric="minisblack", bitspersample=12)
tiff("refused-predictor-with-extra-samples", np.concatenate([rgb, alpha], 2), photometric="rgb", extrasamples=[0], compression="zlib", predictor=True)
tiff("refused-lab", rgb, photometric="cielab")
Image.fromarray(bilevel).save(here / "refused-fill-order.tif", compression="group4", tiffinfo={266: 2})
