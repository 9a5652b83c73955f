"""Decodes pictures or clips to square frames with one library, and prints one line of JSON like
`decode.rs`. `compare.py` runs it.

    peers.py PEER [--frames N] [--threads N] [--seconds S] FILE...

The task is that of `decode.rs`: from bytes in memory to 256² RGB pixels. The short side becomes 292
pixels, and the middle is cut. The filter is the one that the docstring of each function names.
"""

import argparse
import io
import json
import threading
import time

SIZE, SHORT = 256, 292


def sides(width, height):
    """Width and height after the short side has become SHORT."""
    if width <= height:
        return SHORT, SHORT * height // width
    return SHORT * width // height, SHORT


def corner(width, height):
    return round((width - SIZE) / 2), round((height - SIZE) / 2)


def uniform(count, n):
    return [i * (count - 1) // (n - 1) for i in range(n)]


def torchvision(data, _):
    """Antialiased. The image operations of torchvision run on the decoded uint8 tensor."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms.v2 import functional

    picture = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    height, width = picture.shape[1:]
    width, height = sides(width, height)
    return functional.center_crop(functional.resize(picture, [height, width], antialias=True), [SIZE, SIZE])


def opencv(data, _):
    """INTER_AREA, which antialiases when it makes a picture smaller."""
    import cv2
    import numpy

    picture = cv2.imdecode(numpy.frombuffer(data, numpy.uint8), cv2.IMREAD_COLOR_RGB)
    width, height = sides(picture.shape[1], picture.shape[0])
    picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    left, top = corner(width, height)
    return picture[top : top + SIZE, left : left + SIZE].copy()


def pillow(data, _):
    """Antialiased."""
    import numpy
    from PIL import Image

    picture = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = sides(*picture.size)
    picture = picture.resize((width, height), Image.BILINEAR)
    left, top = corner(width, height)
    return numpy.asarray(picture.crop((left, top, left + SIZE, top + SIZE)))


def torchcodec(data, frames, mode="exact"):
    """Antialiased, with torchvision's operations on the decoded uint8 tensor."""
    from torchcodec.decoders import VideoDecoder
    from torchvision.transforms.v2 import functional

    decoder = VideoDecoder(data, num_ffmpeg_threads=1, seek_mode=mode)
    clip = decoder.get_frames_at(uniform(decoder.metadata.num_frames, frames)).data
    height, width = clip.shape[2:]
    width, height = sides(width, height)
    return functional.center_crop(functional.resize(clip, [height, width], antialias=True), [SIZE, SIZE])


def torchcodec_approximate(data, frames):
    """Like torchcodec, without its scan of all packets."""
    return torchcodec(data, frames, "approximate")


def torchcodec_transforms(data, frames):
    """FFmpeg's scaler inside of torchcodec."""
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import CenterCrop, Resize

    size = sides(640, 360)
    transforms = [Resize((size[1], size[0])), CenterCrop((SIZE, SIZE))]
    decoder = VideoDecoder(data, num_ffmpeg_threads=1, seek_mode="approximate", transforms=transforms)
    return decoder.get_frames_at(uniform(decoder.metadata.num_frames, frames)).data


def pyav(data, frames):
    """FFmpeg's bilinear scaler, from YUV to the target size at once."""
    import av
    import numpy

    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = "NONE", 1
        wanted = set(uniform(stream.frames, frames))
        width, height = sides(stream.width, stream.height)
        left, top = corner(width, height)
        taken = []
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                pixels = frame.to_ndarray(width=width, height=height, format="rgb24", interpolation="BILINEAR")
                taken.append(pixels[top : top + SIZE, left : left + SIZE])
    return numpy.stack(taken)


def decord(data, frames):
    """FFmpeg's scaler, from YUV to the target size at once."""
    from decord import VideoReader, cpu

    width, height = sides(640, 360)
    reader = VideoReader(io.BytesIO(data), ctx=cpu(0), width=width, height=height, num_threads=1)
    clip = reader.get_batch(uniform(len(reader), frames)).asnumpy()
    left, top = corner(width, height)
    return clip[:, top : top + SIZE, left : left + SIZE].copy()


PEERS = {f.__name__: f for f in (torchvision, opencv, pillow, torchcodec, torchcodec_approximate,
                                 torchcodec_transforms, pyav, decord)}


def one_thread(name):
    """Threads inside of the libraries would use more than one core for one sample."""
    if name.startswith("torch"):
        import torch

        torch.set_num_threads(1)
    if name == "opencv":
        import cv2

        cv2.setNumThreads(1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--frames", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2)
    arguments = parser.parse_args()
    one_thread(arguments.peer)
    decode = PEERS[arguments.peer]
    samples = [open(name, "rb").read() for name in arguments.files]
    counts = []

    def work(end):
        decoded = 0
        while time.perf_counter() < end:
            for data in samples:
                decode(data, arguments.frames)
            decoded += len(samples)
        counts.append(decoded)

    for data in samples:
        decode(data, arguments.frames)
    begun, cpu = time.perf_counter(), time.process_time()
    threads = [threading.Thread(target=work, args=(begun + arguments.seconds,)) for _ in range(arguments.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({
        "peer": arguments.peer, "frames": arguments.frames, "threads": arguments.threads,
        "per_s": sum(counts) / (time.perf_counter() - begun),
        "per_cpu_s": sum(counts) / (time.process_time() - cpu),
    }))


main()
