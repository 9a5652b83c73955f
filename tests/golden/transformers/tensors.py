"""Writes `tensors.json` beside each `config.json` below this folder: names and shapes of the tensors
of the class of transformers that the configuration names. No weights are made.

    pip install torch==2.15.0 transformers==4.57.6; python tensors.py
"""

import json
from pathlib import Path

import torch
import transformers
from transformers.models.m2m_100.modeling_m2m_100 import M2M100Encoder

for path in sorted(Path(__file__).parent.glob("*/*/config.json")):
    config = transformers.AutoConfig.from_pretrained(path.parent)
    [name] = config.architectures
    model = M2M100Encoder if name == "M2M100Encoder" else getattr(transformers, name)
    with torch.device("meta"):
        tensors = model(config).state_dict()
    shapes = {name: list(tensor.shape) for name, tensor in sorted(tensors.items())}
    lines = ",\n".join(f"{json.dumps(name)}: {shape}" for name, shape in shapes.items())
    path.with_name("tensors.json").write_text("{\n" + lines + "\n}\n")
