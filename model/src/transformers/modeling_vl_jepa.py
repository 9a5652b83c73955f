"""VL-JEPA (arXiv 2512.10942) in PyTorch, over Hugging Face transformers.

`vljepa-launch export` wrote this file and the folder around it. Needs torch, transformers 4.57 and
pillow. The X-encoder maps frames to visual tokens, the predictor maps visual tokens and a query to
the embedding of the answer, and the Y-encoder maps a text to its embedding. Letters in shapes: b
clips, t frames, n tokens, d width of a part, e width of the shared embedding.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModel
from transformers.models.m2m_100.modeling_m2m_100 import M2M100Encoder

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class VlJepa(nn.Module):
    """The three encoders and the maps between them. All weights are f32 and fixed."""

    def __init__(self, folder):
        super().__init__()
        folder = Path(folder)
        self.config = json.loads((folder / "vl_jepa.json").read_text())
        if self.config["unsupported"]:
            raise ValueError(f"{folder}: {self.config['unsupported']}")
        family = self.config["y_encoder"]["family"]
        text_class = M2M100Encoder if family == "sonar" else AutoModel
        # transformers warns that VJEPA2Model's own predictor is new: nothing uses it.
        self.x_encoder = AutoModel.from_pretrained(folder / "x_encoder", dtype=torch.float32)
        self.predictor = AutoModel.from_pretrained(folder / "predictor", dtype=torch.float32)
        self.y_encoder = text_class.from_pretrained(folder / "y_encoder", dtype=torch.float32)
        maps = load_file(folder / "projections.safetensors")
        names = [name.split(".")[1] for name in maps if name.endswith(".weight")]
        self.maps = nn.ModuleDict({name: linear(maps, f"projections.{name}") for name in names})
        dense = [folder / "y_encoder" / name for name in self.config["y_encoder"]["dense"]]
        self.dense = nn.Sequential(*(linear(load_file(at / "model.safetensors"), "linear") for at in dense))
        self.queries = self.tokenizer(folder, "predictor")
        self.targets = self.tokenizer(folder, "y_encoder")
        self.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(cls, folder):
        """The model in a folder that `vljepa-launch export` wrote."""
        return cls(folder)

    @torch.inference_mode()
    def embed_clips(self, frames, query=""):
        """Predicted embeddings (b, e). `frames` are u8 (b, t, h, w, 3), or one clip as a list of PIL
        images. `query` is one text for all clips, or a list of b texts."""
        visual = self.maps["vision"](self.visual_tokens(self.pixels(frames)))
        texts = [query] * len(visual) if isinstance(query, str) else query
        ids, is_query = self.encoded(self.queries, texts)
        words = self.predictor.get_input_embeddings()(ids)
        if "text" in self.maps:
            words = self.maps["text"](words)
        tokens = torch.cat([visual, words], 1)
        is_token = torch.cat([is_query.new_ones(visual.shape[:2]), is_query], 1)
        mask = self.mask(is_token)
        hidden = self.predictor(inputs_embeds=tokens, attention_mask=mask).last_hidden_state
        pooled = self.pooled(hidden, is_token, self.config["predictor"]["pooling"])
        return self.normalised(self.maps["predictor_head"](pooled))

    @torch.inference_mode()
    def embed_texts(self, texts):
        """Embeddings (b, e) of target texts, which must not be empty."""
        if not all(texts):
            raise ValueError("a target text is empty")
        settings = self.config["y_encoder"]
        ids, is_token = self.encoded(self.targets, [settings["prompt"] + text for text in texts])
        words = self.y_encoder.get_input_embeddings()(ids)
        hidden = self.y_encoder(inputs_embeds=words, attention_mask=is_token.long()).last_hidden_state
        pooled = self.dense(self.pooled(hidden, is_token, settings["pooling"]))
        if "y_head" in self.maps:
            pooled = self.maps["y_head"](pooled)
        return self.normalised(pooled)

    def rank(self, frames, question, answers):
        """Answers to a question about one clip, best first, each with its similarity."""
        scores = self.embed_clips(frames, question)[0] @ self.embed_texts(answers).T
        order = scores.argsort(descending=True, stable=True)
        return [(answers[i], scores[i].item()) for i in order]

    def pixels(self, frames):
        """Normalised pixels (b, t, 3, h, w) of frames of any size."""
        size, short = self.config["image_size"], self.config["shortest_side"]
        if isinstance(frames, (list, tuple)):
            frames = torch.stack([as_tensor(frame) for frame in frames])[None]
        frames = torch.as_tensor(frames).cpu()
        if frames.shape[2:4] != (size, size):
            method = FILTERS[self.config["interpolation"]]
            frames = torch.stack([
                torch.stack([resized(frame, size, short, method) for frame in clip]) for clip in frames
            ])
        tubelet = self.config["tubelet_size"]
        if frames.shape[1] < tubelet:
            frames = torch.cat([frames] + [frames[:, -1:]] * (tubelet - frames.shape[1]), 1)
        mean, std = (torch.tensor(self.config[key]) for key in ("mean", "std"))
        return ((frames / 255 - mean) / std).permute(0, 1, 4, 2, 3).to(self.predictor.device)

    def visual_tokens(self, pixels):
        """Visual tokens (b, n, d): all tubelets of a clip in the order of time, row, column."""
        settings = self.config["x_encoder"]
        if settings["family"] == "vjepa2":
            encoded = self.x_encoder(pixel_values_videos=pixels, skip_predictor=True)
            return encoded.last_hidden_state
        b, t = pixels.shape[:2]
        x = self.x_encoder(pixel_values=pixels.flatten(0, 1)).last_hidden_state
        if settings["family"] == "clip":
            x = x[:, 1:]  # without the cls token
            if settings["final_norm"]:
                x = self.x_encoder.vision_model.post_layernorm(x)
        if settings["pool"] > 1:
            side = round(x.shape[1] ** 0.5)
            x = x.transpose(1, 2).unflatten(2, (side, side))
            x = F.avg_pool2d(x, settings["pool"]).flatten(2).transpose(1, 2)
        return x.unflatten(0, (b, t)).flatten(1, 2)

    def mask(self, is_token):
        """What is added to the predictor's logits, (b, 1, n, n): padding is no key."""
        n = is_token.shape[1]
        allowed = is_token[:, None, None, :].expand(-1, 1, n, n)
        if self.config["predictor"]["attention"] == "causal":
            allowed = allowed & allowed.new_ones(n, n).tril()
        lowest = torch.finfo(torch.float32).min
        return torch.zeros(allowed.shape, device=allowed.device).masked_fill(~allowed, lowest)

    def tokenizer(self, folder, part):
        tokenizer = Tokenizer.from_file(str(folder / part / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.config[part]["max_tokens"])
        return tokenizer

    def encoded(self, tokenizer, texts):
        """Ids (b, n), padded on the right, and which of them are tokens. An empty text has none."""
        rows = [tokenizer.encode(text).ids if text else [] for text in texts]
        n = max(len(row) for row in rows)
        ids = torch.tensor([row + [0] * (n - len(row)) for row in rows], dtype=torch.long)
        is_token = torch.tensor([[i < len(row) for i in range(n)] for row in rows], dtype=torch.bool)
        return ids.to(self.predictor.device), is_token.to(self.predictor.device)

    def pooled(self, hidden, is_token, pooling):
        """Mean of the tokens of each row, or its last token, (b, d)."""
        if pooling == "last":
            return hidden[torch.arange(len(hidden)), is_token.sum(1) - 1]
        return (hidden * is_token[..., None]).sum(1) / is_token.sum(1, keepdim=True)

    def normalised(self, x):
        return F.normalize(x, dim=-1) if self.config["normalise"] else x


def linear(tensors, name):
    """Linear map of the tensors `<name>.weight` and, if there is one, `<name>.bias`."""
    weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    layer.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return layer


def as_tensor(image):
    """Pixels (h, w, 3) of a PIL image."""
    image = image.convert("RGB")
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, 3)


def resized(frame, size, short, method):
    """Square of a frame (h, w, 3): its centre, after the shorter side was resized to `short` pixels;
    or, if `short` is None, the whole frame."""
    image = Image.fromarray(frame.numpy())
    if short is None:
        return as_tensor(image.resize((size, size), method))
    width, height = image.size
    scale = lambda side: short * side // min(width, height)
    image = image.resize((scale(width), scale(height)), method)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return as_tensor(image.crop((left, top, left + size, top + size)))
