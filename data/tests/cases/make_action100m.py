"""Makes data/tests/cases/action100m/: the layout of Action100M, small, as pyarrow writes it.

    pip install pyarrow==26.0.1 && python data/tests/cases/make_action100m.py

snappy.parquet and zstd.parquet hold the same 40 videos, in pages and row groups of different kinds.
rows.jsonl is what pyarrow reads from them, one video per line. The texts and times of the first
three videos are written by hand; the tests know them. The other files have a wrong schema.
"""

import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

FOLDER = pathlib.Path(__file__).parent / "action100m"

GPT = pa.struct([
    ("summary", pa.struct([("brief", pa.string()), ("detailed", pa.string())])),
    ("action", pa.struct([("brief", pa.string()), ("detailed", pa.string()), ("actor", pa.string())])),
])
NODE = [
    ("node_id", pa.string()),
    ("parent_id", pa.string()),
    ("level", pa.int64()),
    ("start", pa.float64()),
    ("end", pa.float64()),
    ("plm_caption", pa.string()),
    ("plm_action", pa.string()),
    ("llama3_caption", pa.string()),
    ("gpt", GPT),
]
METADATA = [
    ("title", pa.string()),
    ("description", pa.string()),
    ("view_count", pa.int64()),
    ("like_count", pa.int64()),
    ("duration", pa.int64()),
    ("upload_date", pa.string()),
    ("transcript", pa.list_(pa.struct([("time", pa.string()), ("text", pa.string())]))),
]


def schema(node=NODE):
    return pa.schema([
        ("video_uid", pa.string()),
        ("metadata", pa.struct(METADATA)),
        ("nodes", pa.list_(pa.struct(node))),
    ])


def gpt(brief, detailed, action, how, actor="a hand"):
    return {
        "summary": {"brief": brief, "detailed": detailed},
        "action": {"brief": action, "detailed": how, "actor": actor},
    }


def node(number, parent, level, start, end, gpt=None, caption=None, action=None, frame=None):
    return {
        "node_id": f"node-{number}", "parent_id": parent, "level": level, "start": start, "end": end,
        "plm_caption": caption, "plm_action": action, "llama3_caption": frame, "gpt": gpt,
    }


def by_hand():
    stir = gpt("A hand stirs coffee.", "A right hand stirs coffee in a white mug.", "Stir coffee",
               "Lift the spoon and stir.")
    nothing = gpt("A title is shown.", " ", "N/A", "n/a", "N/A")
    silent = gpt("", "N/A", " N/A\n", "", None)
    metadata = {
        "title": "Journal “39”", "description": "Journal with me!\nLinks", "view_count": 3170,
        "like_count": 227, "duration": 690, "upload_date": "20190212",
        "transcript": [{"time": "0.0", "text": "[Music]"}, {"time": "3.45", "text": "hey  guys"}],
    }
    yield "hySSAAw4t24", metadata, [
        node(0, None, 0, 0.0, 689.8300170898438, stir, "A video about a journal.", "Stir milk"),
        node(1, "node-0", 1, 0.0, 362.25, nothing, None, "N/A"),
        node(2, "node-0", 1, 362.25, 569.5800170898438, silent, "A table.", None, "A frame."),
        node(3, "node-1", 2, 362.25, 370.0, None, None, None, "A frame of a table."),
        node(4, "node-1", 2, 370.0, 370.0, stir),
        node(5, "node-1", 2, 380.0, 371.0, stir),
        node(6, "node-1", 2, float("nan"), 371.0, stir),
        node(7, "node-1", 2, None, 371.0, stir),
        node(8, "node-1", 2, -1.0, 371.0, stir),
    ]
    yield "-a_B0123456", None, [node(0, None, 0, 1.5, 2.5, stir)]
    yield "no-video", {**dict.fromkeys(metadata), "transcript": []}, [node(0, None, 0, 0.0, 9.0, stir)]


def rows():
    yield from by_hand()
    for video in range(37):
        count = video % 5 + 1
        yield f"video{video:03}", {"title": f"Video {video}"}, [
            node(n, None, n, float(n), n + 0.5 + video, gpt(f"Summary {video}.{n}", None, None, None, None))
            for n in range(count)
        ]


def main():
    FOLDER.mkdir(exist_ok=True)
    names = ("video_uid", "metadata", "nodes")
    table = pa.Table.from_pylist([dict(zip(names, row)) for row in rows()], schema=schema())
    pq.write_table(table, FOLDER / "snappy.parquet", compression="snappy", row_group_size=23,
                   data_page_size=256)
    pq.write_table(table, FOLDER / "zstd.parquet", compression="zstd", row_group_size=40,
                   use_dictionary=False, data_page_version="2.0", data_page_size=1024)
    read = pq.read_table(FOLDER / "snappy.parquet").to_pylist()
    assert json.dumps(read) == json.dumps(pq.read_table(FOLDER / "zstd.parquet").to_pylist())
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in read]
    (FOLDER / "rows.jsonl").write_text("".join(lines), encoding="utf-8")

    def wrong(name, table):
        pq.write_table(table, FOLDER / f"wrong_{name}.parquet", compression="none")

    first = table.slice(1, 1)
    as_text = [(key, pa.string() if key == "start" else kind) for key, kind in NODE]
    texts = [{**n, "start": "1.5"} for n in first.column("nodes")[0].as_py()]
    row = {"video_uid": "x", "metadata": None, "nodes": texts}
    wrong("start", pa.Table.from_pylist([row], schema=schema(as_text)))
    wrong("nodes", first.drop_columns(["nodes"]))
    wrong("list", first.set_column(2, "nodes", pa.array(["x"])))
    wrong("gpt", pa.Table.from_pylist(
        [{"video_uid": "x", "nodes": [{"level": 0, "start": 0.0, "end": 1.0}]}],
        schema=schema([pair for pair in NODE if pair[0] in ("level", "start", "end")])))
    dated = pa.array([{"title": "x", "day": 0}], pa.struct([("title", pa.string()), ("day", pa.date32())]))
    wrong("date", first.set_column(1, "metadata", dated))


main()
