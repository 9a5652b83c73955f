"""Makes the pictures of this folder. Beside each is its golden PNG: the pixels as Pillow reads them.

    python3 -m venv venv; venv/bin/pip install pillow==13.0.0 simplejpeg==1.9.0
    venv/bin/python make_pictures.py      # needs cjpeg (Debian: libjpeg-turbo-progs)
"""

import subprocess

import numpy
import simplejpeg
from PIL import Image, ImageOps

WIDTH, HEIGHT = 44, 28
y, x = numpy.mgrid[0:HEIGHT, 0:WIDTH]
PIXELS = numpy.stack([5 * x + y, 200 - 3 * x + 2 * y, 40 + (x - 20) ** 2 // 3 + 3 * y], axis=-1)
PICTURE = Image.fromarray(PIXELS.clip(0, 255).astype(numpy.uint8))


def golden(name):
    with Image.open(name) as picture:
        ImageOps.exif_transpose(picture).convert("RGB").save(f"{name}.png", optimize=True)


def save(name, picture=PICTURE, **options):
    picture.save(name, **options)
    golden(name)


def run(name, *command):
    with open(name, "wb") as output:
        subprocess.run(command, check=True, stdout=output)
    golden(name)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


save("subsampled.jpg", quality=80, subsampling=2)
golden("noninterleaved.jpg")  # made by jpegtran from a picture of one scan
save("progressive.jpg", quality=80, progressive=True)
save("grey.jpg", PICTURE.convert("L"), quality=80)
save("cmyk.jpg", PICTURE.convert("CMYK"), quality=80)
for orientation in range(2, 9):
    save(f"exif_{orientation}.jpg", quality=80, exif=turned(orientation))
cmyk = numpy.ascontiguousarray(255 - numpy.asarray(PICTURE.convert("CMYK")))
with open("ycck.jpg", "wb") as output:
    output.write(simplejpeg.encode_jpeg(cmyk, quality=80, colorspace="CMYK", colorsubsampling="420"))
golden("ycck.jpg")
PICTURE.save("/tmp/picture.ppm")
with open("/tmp/scans", "w") as file:
    file.write("0;\n1;\n2;\n")
run("scans.jpg", "cjpeg", "-quality", "80", "-scans", "/tmp/scans", "/tmp/picture.ppm")
run("arithmetic.jpg", "cjpeg", "-quality", "80", "-arithmetic", "/tmp/picture.ppm")
run("restarts.jpg", "cjpeg", "-quality", "80", "-restart", "1", "/tmp/picture.ppm")
save("lossy.webp", quality=80)
save("lossless.webp", lossless=True)
save("exif_6.webp", lossless=True, exif=turned(6))
save("picture.avif", quality=90, subsampling="4:4:4")
PICTURE.save("turned.avif", quality=90, exif=turned(6))
