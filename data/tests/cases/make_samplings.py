"""Makes JPEGs of every chroma subsampling, large enough that a region of them can be decoded alone,
and prints the checksums of Pillow's pixels for `data/src/decode/jpeg/tests`.

    python3 -m venv venv; venv/bin/pip install pillow==13.0.0 simplejpeg==1.9.0
    venv/bin/python make_samplings.py
"""

import zlib

import numpy
import simplejpeg
from PIL import Image

WIDTH, HEIGHT = 119, 93
random = numpy.random.default_rng(5)
# Small blocks of strong colours, so that neighbouring chroma values differ everywhere.
blocks = random.integers(0, 256, (HEIGHT // 3, WIDTH // 3 + 1, 3), dtype=numpy.uint8)
pixels = numpy.ascontiguousarray(blocks.repeat(3, axis=0).repeat(3, axis=1)[:HEIGHT, :WIDTH])


def save(name, jpeg):
    with open(name, "wb") as file:
        file.write(jpeg)
    with Image.open(name) as picture:
        print(f'("{name}", {zlib.crc32(picture.convert("RGB").tobytes()):#x}),')


for sampling in ["444", "440", "422", "420", "411"]:
    save(f"sampling_{sampling}.jpg", simplejpeg.encode_jpeg(pixels, quality=50, colorsubsampling=sampling))
grey = numpy.ascontiguousarray(pixels[:, :, :1])
save("sampling_grey.jpg", simplejpeg.encode_jpeg(grey, quality=50, colorspace="GRAY", colorsubsampling="Gray"))
