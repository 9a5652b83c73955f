"""Makes `resizes.json` and `bicubic.json`, the golden numbers of `data/src/transform/tests`, with
torchvision and Pillow.

    python3 -m venv venv; venv/bin/pip install torch==2.15.0 torchvision==0.29.2 pillow==13.0.0 numpy==2.4.6
    venv/bin/python make_resizes.py

The pictures are computed by the same formula here and in the tests. Each case has the pixels of
torchvision's tensor operations with antialiasing, of Pillow's bilinear filter, and of torchvision
without antialiasing, as hexadecimal digits. The cases of `bicubic.json` have the pixels of Pillow's
bicubic filter, and of its bilinear filter.
"""

import json

import numpy
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

SIZE = 12
SHORT = SIZE * 256 // 224


def picture(width, height):
    y, x = numpy.mgrid[0:height, 0:width]
    channels = [7 * x + 13 * y, x * x + 3 * y, x * y + 40]
    return (numpy.stack(channels, axis=2) % 256).astype(numpy.uint8)


def torchvision(pixels, crop, antialias):
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    if crop == "center":
        tensor = functional.resize(tensor, [SHORT], antialias=antialias)
        tensor = functional.center_crop(tensor, [SIZE, SIZE])
    else:
        left, top, width, height = crop
        tensor = functional.resized_crop(tensor, top, left, height, width, [SIZE, SIZE], antialias=antialias)
    return tensor.permute(1, 2, 0).numpy()


def pillow(pixels, crop, short=SHORT, resample=Image.BILINEAR):
    image = Image.fromarray(pixels)
    width, height = image.size
    if crop != "center":
        left, top, width, height = crop
        return numpy.asarray(image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), resample))
    if width <= height:
        size = short, short * height // width
    else:
        size = short * width // height, short
    left, top = (round((side - SIZE) / 2) for side in size)
    return numpy.asarray(image.resize(size, resample).crop((left, top, left + SIZE, top + SIZE)))


CASES = [
    # larger, 1.5 times smaller, 4 times smaller, odd sides, nearly the same size
    *((size, "center") for size in [(7, 9), (20, 27), (52, 60), (31, 23), (13, 14), (14, 13), (101, 37)]),
    *((size, (0, 0, *size)) for size in [(7, 9), (18, 18), (48, 48), (31, 23), (13, 12)]),
    # (left, top, width, height) of a crop
    *(((61, 47), crop) for crop in [(3, 5, 50, 40), (0, 7, 61, 39), (11, 0, 18, 19), (20, 20, 9, 7)]),
]

goldens = []
for (width, height), crop in CASES:
    pixels = picture(width, height)
    goldens.append({
        "width": width, "height": height, "size": SIZE, "crop": None if crop == "center" else crop,
        "torchvision": torchvision(pixels, crop, True).tobytes().hex(),
        "pillow": pillow(pixels, crop).tobytes().hex(),
        "not_antialiased": torchvision(pixels, crop, False).tobytes().hex(),
    })
with open("resizes.json", "w") as file:
    file.write("[\n" + ",\n".join(map(json.dumps, goldens)) + "\n]\n")

goldens = []
for (width, height), crop in CASES:
    # CLIP's preprocessing resizes the shorter side to the size of the crop.
    pixels = picture(width, height)
    filters = {"bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR}
    goldens.append({
        "width": width, "height": height, "size": SIZE, "crop": None if crop == "center" else crop,
        **{name: pillow(pixels, crop, SIZE, resample).tobytes().hex() for name, resample in filters.items()},
    })
with open("bicubic.json", "w") as file:
    file.write("[\n" + ",\n".join(map(json.dumps, goldens)) + "\n]\n")
