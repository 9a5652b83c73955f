"""Compares a trained run with its export in Python: the similarities of samples and texts, their
order, and the accuracies of the recipe's questions.

    python tests/python/compare.py RUN SHARDS [--record FILE] TEXT…

in the repository root after a build. `records/` holds what this script and families.sh wrote.
`vljepa-launch search` gives Rust's similarities of SHARDS with each TEXT. Clips are first made into
clips of JPEGs, which both sides decode with libjpeg-turbo, so that both see the same pixels. Needs
torch, transformers, pillow and pyyaml.

Tolerance of a similarity: both sides compute in f32, whose rounding is 6e-8. The longest sums have
256 terms, so a sum is right to 16 × 6e-8 = 1e-6; 40 of them follow each other, which gives
√40 × 1e-6 = 6e-6. Models that differ in one respect must exceed it, or the comparison shows nothing.
"""

import argparse
import io
import json
import platform
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import torch
import transformers
import yaml
from PIL import Image

TOLERANCE = 1e-5


def program(name, *arguments):
    return subprocess.run([f"target/release/{name}", *map(str, arguments)],
                          check=True, stdout=subprocess.PIPE, text=True).stdout


def samples(shards):
    """Members of each sample, by key: {ending: bytes}."""
    found = {}
    for shard in sorted(shards.glob("*.tar")) if shards.is_dir() else [shards]:
        with tarfile.open(shard) as tar:
            for member in tar:
                key, ending = member.name.split(".", 1)
                found.setdefault(key, {})[ending] = tar.extractfile(member).read()
    return found


def clip(sample, frames):
    """Pixels (t, h, w, 3) of `frames` frames of a picture, or of a clip of JPEGs."""
    whole_jpeg = re.compile(rb"\xff\xd8\xff.*?\xff\xd9", re.S)
    jpegs = [sample["jpg"]] if "jpg" in sample else whole_jpeg.findall(sample["mp4"])
    last = len(jpegs) - 1
    chosen = [jpegs[i * last // (frames - 1)] for i in range(frames)]
    images = [Image.open(io.BytesIO(jpeg)).convert("RGB") for jpeg in chosen]
    return torch.stack([torch.frombuffer(bytearray(i.tobytes()), dtype=torch.uint8).view(i.height, i.width, 3)
                        for i in images])


def similarities(model, clips, query, texts):
    embedded = torch.cat([model.embed_clips(part, query) for part in clips.split(64)])
    return embedded @ model.embed_texts(texts).T


def wrong(name, model):
    """Makes the model wrong in one respect, and returns what undoes it."""
    config, rotary = model.config, model.predictor.rotary_emb
    if name == "other mask":
        part = config["predictor"]
        before = part["attention"]
        part["attention"] = {"causal": "bidirectional", "bidirectional": "causal"}[before]
        return lambda: part.update(attention=before)
    if name == "no normalisation":
        config["normalise"] = False
        return lambda: config.update(normalise=True)
    if name == "other pixels":
        before = config["mean"]
        config["mean"] = [0.5, 0.5, 0.4]
        return lambda: config.update(mean=before)
    before = rotary.inv_freq
    rotary.inv_freq = before * 1.01
    return lambda: setattr(rotary, "inv_freq", before)


def compare_search(run, model, recipe, shards, texts, work):
    """Greatest difference of a similarity, also of wrong models, and pairs in another order."""
    if any("mp4" in sample for sample in samples(shards).values()):
        program("vljepa-shards", "prepare", "webdataset", shards, "--into", work / "prepared")
        shards = work / "prepared"
    found = samples(shards)
    retrieval = [task for task in recipe["evaluation"]["tasks"] if task["kind"] == "retrieval"]
    query = retrieval[0]["query"] if retrieval else ""
    keys = list(found)
    clips = torch.stack([clip(found[key], recipe["stages"][-1]["frames"]) for key in keys])
    rust = torch.zeros(len(keys), len(texts))
    for i, text in enumerate(texts):
        said = program("vljepa-launch", "search", run, shards, text, "--limit", len(keys), "--json")
        scores = {result["key"]: result["score"] for result in json.loads(said)["results"]}
        rust[:, i] = torch.tensor([scores[key] for key in keys])
    ours = similarities(model, clips, query, texts)
    difference = lambda: (similarities(model, clips, query, texts) - rust).abs().max().item()
    figures = {"samples": len(keys), "texts": len(texts), "greatest difference": difference(),
               "spread of the similarities": rust.std().item()}
    # Samples in another order, apart from those that are closer than the tolerance on both sides.
    order = lambda x: (x[:, None] - x[None]).masked_fill((x[:, None] - x[None]).abs() < TOLERANCE, 0).sign()
    apart = order(rust) * order(ours) < 0
    figures["pairs in another order"] = int(apart.sum()) // 2
    figures["wrong models"] = {}
    for name in ["other mask", "no normalisation", "other pixels", "other rotary"]:
        undo = wrong(name, model)
        figures["wrong models"][name] = difference()
        undo()
    right = figures["greatest difference"] < TOLERANCE and not figures["pairs in another order"]
    return figures, right and all(value > TOLERANCE for value in figures["wrong models"].values())


def compare_answers(run, model, recipe):
    """Accuracies of the tasks with questions about pictures, beside those in `scores.json`."""
    scores, figures = json.loads((run / "scores.json").read_text()), {}
    for task in recipe["evaluation"]["tasks"]:
        if not isinstance(task["kind"], dict) or "question_answering" not in task["kind"]:
            continue
        kind = task["kind"]["question_answering"]
        candidates = sorted(kind["candidates"])
        asked = [(sample, question) for sample in samples(Path(task["shards"])).values()
                 for question in json.loads(sample["json"])["questions"]
                 if question["kind"] == kind["question_kind"]]
        clips = torch.stack([clip(sample, task["frames"]) for sample, _ in asked])
        predicted = model.embed_clips(clips, [question["question"] for _, question in asked])
        best = (predicted @ model.embed_texts(candidates).T).argmax(1)
        right = sum(candidates[i] == question["answer"] for i, (_, question) in zip(best, asked))
        rust = scores[task["name"]]["value"]
        figures[task["name"]] = {"python": right / len(asked), "rust": rust, "n": len(asked)}
    return figures, all(abs(f["python"] - f["rust"]) < 1e-9 for f in figures.values())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("shards", type=Path)
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        program("vljepa-launch", "export", arguments.run, work / "exported")
        sys.path.append(str(work / "exported"))
        from modeling_vl_jepa import VlJepa
        model = VlJepa.from_pretrained(work / "exported")
        recipe = yaml.safe_load((work / "exported/recipe.yaml").read_text())
        searched, same = compare_search(arguments.run, model, recipe, arguments.shards, arguments.texts, work)
    answered, equal = compare_answers(arguments.run, model, recipe)
    record = {
        "command": shlex.join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "transformers": transformers.__version__},
        "families": [model.config[part]["family"] for part in ("x_encoder", "predictor", "y_encoder")],
        "search": searched,
        "questions": answered,
    }
    text = json.dumps(record, indent=1)
    print(text)
    if arguments.record:
        arguments.record.write_text(text + "\n")
    sys.exit(None if same and equal else "Python and Rust disagree, or a wrong model was not noticed")


if __name__ == "__main__":
    main()
