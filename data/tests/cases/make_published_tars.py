"""Makes small tars in the layouts that img2dataset and video2dataset write, in `published_tars/`.

    python3 -m venv venv; venv/bin/pip install pillow==13.0.0; venv/bin/python make_published_tars.py

The names, the fields and their order are those of both programs. img2dataset writes a sample for each
download that succeeded, whose key is the number of its shard and its number in the shard; the json
holds the columns of the input (here those of DataComp and YFCC-100M) and what is known of the picture.
video2dataset also writes json and txt for a download that failed, and appends the number of the clip to
the keys of clips that it cut.
"""

import io
import json
import pathlib
import tarfile

from PIL import Image

HERE = pathlib.Path(__file__).resolve().parent
BY = "https://creativecommons.org/licenses/by/2.0/"


def write(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            content = content if isinstance(content, bytes) else content.encode()
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o444
            tar.addfile(member, io.BytesIO(content))


def picture(colour, size):
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, "JPEG", quality=95)
    return data.getvalue()


def image_sample(key, number, caption, colour):
    meta = {
        "uid": f"5f1c3a{number}000000000aa00000000000000", "url": f"https://example.org/{number}.jpg", "caption": caption,
        "license": BY, "clip_l14_similarity_score": 0.25, "key": key, "status": "success", "error_message": None,
        "width": 64, "height": 48, "original_width": 64, "original_height": 48, "exif": "{}", "sha256": "0" * 64,
    }
    return [(f"{key}.jpg", picture(colour, (64, 48))), (f"{key}.txt", caption), (f"{key}.json", json.dumps(meta, indent=4))]


write(HERE / "published_tars/img2dataset/00000.tar",
      image_sample("000000000", 0, "a red square", "red") + image_sample("000000002", 2, "a blue square", "blue"))
write(HERE / "published_tars/img2dataset/00001.tar", image_sample("000010000", 3, "a green square", "green"))

video = (HERE / "h264_closed.mp4").read_bytes()


def video_meta(key, clip, **other):
    return json.dumps({
        "videoID": "abc", "url": "https://example.org/watch?v=abc", "caption": "a moving picture", "clips": clip, "key": key,
        "status": "success", "error_message": None, "yt_meta_dict": {"info": {"title": "moving test picture"}}, **other}, indent=4)


write(HERE / "published_tars/video2dataset/00000.tar", [
    ("000000000_00000.mp4", video), ("000000000_00000.txt", "a moving picture"), ("000000000_00000.json", video_meta("000000000_00000", [[0.0, 0.72]])),
    ("000000000_00001.mp4", video), ("000000000_00001.txt", "a moving picture"), ("000000000_00001.json", video_meta("000000000_00001", [[0.72, 1.44]])),
    ("000000001.txt", "gone"), ("000000001.json", video_meta("000000001", [], status="failed_to_download", error_message="HTTP Error 404", yt_meta_dict=None)),
])
