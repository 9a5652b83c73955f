"""Writes the files of this folder with PyTorch (2.15 wrote those that are committed):

    python make.py

vjepa2.pt            V-JEPA 2 as Meta publishes it, in small: the trained encoder, its average,
                     the predictor, the optimizer's state
vjepa2.safetensors   the average, under the names of transformers
vjepa2_1.pt          V-JEPA 2.1 in the same form
vjepa2_1_dist.pt     the same average as a distilled model, which is published as `ema_encoder`
vjepa2_1.safetensors the average, under the names of the first file without prefixes
pe.pt                PE-core: vision tower with its pooling and projection, text tower
pe.safetensors       the part of the vision tower that makes tokens
pe_text.pt           PE-core again, with the whole text tower and a part of the vision tower
pe_whole.pt          PE-core with all tensors of both towers
clip_whole.safetensors, siglip2_whole.safetensors
                     CLIP and SigLIP 2 in the same way
clip_resnet_whole.safetensors
                     CLIP with a ResNet in the same way, in OpenAI's names
sonar.pt             SONAR's text encoder as Meta publishes it: a state dictionary, and the table of embeddings
                     as a module, which the dictionary may hold too
sonar_decoder.pt     SONAR's text decoder as Meta publishes it: a state dictionary, with the output map that is the table
m2m100.safetensors   the same encoder in M2M100 as transformers names it, with the table that its decoder shares
clip.safetensors     CLIP as transformers names it: both towers and projections
siglip2.safetensors  SigLIP 2 as transformers names it: vision tower with its pooling, text tower
tensors.pt           tensors of several kinds, among them a pickled module as in SONAR's file
tensors4.pt          the same with protocol 4 of pickle
tensors.json         what a reader must find in them
harmful.pt           a pickle that calls os.system where it is executed
legacy.pt            a file of the format before PyTorch 1.6
torchscript.pt       a program of TorchScript, which OpenAI's files of CLIP are
"""
import collections, json, os, pathlib, torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
WIDTH, LAYERS, MLP, PATCH = 16, 2, 32, 8


def encoder(generator, sizes, alone=()):
    """Names and tensors of an encoder as Meta's code names them: `sizes` of maps and norms outside the
    blocks, and of tensors that stand `alone`."""
    def normal(*shape):
        return (torch.randn(*shape, generator=generator) * 0.1).half()

    sizes = dict(sizes)
    for i in range(LAYERS):
        sizes |= {
            f"blocks.{i}.norm1": (WIDTH,), f"blocks.{i}.attn.qkv": (3 * WIDTH, WIDTH),
            f"blocks.{i}.attn.proj": (WIDTH, WIDTH), f"blocks.{i}.norm2": (WIDTH,),
            f"blocks.{i}.mlp.fc1": (MLP, WIDTH), f"blocks.{i}.mlp.fc2": (WIDTH, MLP),
        }
    tensors = {}
    for name, shape in sizes.items():
        tensors |= {f"{name}.weight": normal(*shape), f"{name}.bias": normal(shape[0])}
    return tensors | {name: normal(*shape) for name, shape in dict(alone).items()}


def vjepa2(generator):
    return encoder(generator, {"patch_embed.proj": (WIDTH, 3, 2, PATCH, PATCH), "norm": (WIDTH,)})


def vjepa2_1(generator):
    maps = {"patch_embed.proj": (WIDTH, 3, 2, PATCH, PATCH), "patch_embed_img.proj": (WIDTH, 3, 1, PATCH, PATCH)}
    norms = {f"norms_block.{i}": (WIDTH,) for i in range(4)}
    alone = {name: (1, 1, WIDTH) for name in ["img_mod_embed", "video_mod_embed"]}
    return encoder(generator, maps | norms, alone)


def transformers(tensors):
    """The same under the names of transformers, which splits queries, keys and values."""
    found = {}
    for name, tensor in tensors.items():
        kind = name.rsplit(".", 1)[1]
        if name.startswith("patch_embed"):
            found[f"encoder.embeddings.patch_embeddings.proj.{kind}"] = tensor
        elif name.startswith("norm"):
            found[f"encoder.layernorm.{kind}"] = tensor
        elif ".attn.qkv." in name:
            layer = name.split(".")[1]
            for part, rows in zip(["query", "key", "value"], tensor.chunk(3)):
                found[f"encoder.layer.{layer}.attention.{part}.{kind}"] = rows.clone()
        else:
            found[name.replace("blocks.", "encoder.layer.").replace(".attn.", ".attention.")] = tensor
    return found


def wrapped(tensors):
    return collections.OrderedDict((f"module.backbone.{name}", t) for name, t in tensors.items())


generator = torch.Generator().manual_seed(0)
average, trained = vjepa2(generator), {n: torch.zeros_like(t) for n, t in vjepa2(generator).items()}
position = torch.ones(1, 4, WIDTH)
torch.save(
    {
        "encoder": wrapped(trained | {"pos_embed": position}),
        "predictor": wrapped({"norm.weight": torch.ones(4)}),
        "target_encoder": wrapped(average | {"pos_embed": position}),
        "opt": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "scaler": None, "epoch": 40, "loss": 0.5, "lr": 2.5e-4, "batch_size": 24, "world_size": 128,
    },
    HERE / "vjepa2.pt",
)
save_file(transformers(average), HERE / "vjepa2.safetensors")

average = vjepa2_1(generator)
predictor = wrapped({"norm.weight": torch.ones(4)})
optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
trained = {name: torch.zeros_like(tensor) for name, tensor in average.items()}
torch.save(
    {"encoder": wrapped(trained), "predictor": predictor, "target_encoder": wrapped(average), "opt": optimizer, "epoch": 40},
    HERE / "vjepa2_1.pt",
)
torch.save({"ema_encoder": wrapped(average), "predictor": predictor, "epoch": 40}, HERE / "vjepa2_1_dist.pt")
save_file(average, HERE / "vjepa2_1.safetensors")



def pe(generator, grid=4):
    """PE's vision tower up to its tokens, with a cls token."""
    def normal(*shape):
        return (torch.randn(*shape, generator=generator) * 0.1).half()

    tensors = {
        "conv1.weight": normal(WIDTH, 3, PATCH, PATCH), "class_embedding": normal(WIDTH),
        "positional_embedding": normal(grid * grid + 1, WIDTH),
    }
    sizes = {"ln_pre": (WIDTH,), "ln_post": (WIDTH,)}
    for i in range(LAYERS):
        block = f"transformer.resblocks.{i}"
        tensors |= {f"{block}.attn.in_proj_weight": normal(3 * WIDTH, WIDTH), f"{block}.attn.in_proj_bias": normal(3 * WIDTH)}
        sizes |= {
            f"{block}.ln_1": (WIDTH,), f"{block}.attn.out_proj": (WIDTH, WIDTH), f"{block}.ln_2": (WIDTH,),
            f"{block}.mlp.c_fc": (MLP, WIDTH), f"{block}.mlp.c_proj": (WIDTH, MLP),
        }
    for name, shape in sizes.items():
        tensors |= {f"{name}.weight": normal(*shape), f"{name}.bias": normal(shape[0])}
    return {f"visual.{name}": tensor for name, tensor in tensors.items()}


tower = pe(generator)
others = {
    "visual.attn_pool.probe": (1, 1, WIDTH), "visual.attn_pool.attn.in_proj_weight": (3 * WIDTH, WIDTH),
    "visual.proj": (WIDTH, 8), "token_embedding.weight": (5, 8), "positional_embedding": (4, 8),
    "transformer.resblocks.0.ln_1.weight": (8,), "ln_final.weight": (8,), "text_projection": (8, 8), "logit_scale": (),
}
torch.save(collections.OrderedDict(tower | {n: torch.ones(s) for n, s in others.items()}), HERE / "pe.pt")
save_file(tower, HERE / "pe.safetensors")


def image_text(generator, positions, alone, others, norms, bias):
    """Vision tower of SigLIP 2 or CLIP, with some tensors of each other part of the model."""
    def normal(*shape):
        return (torch.randn(shape, generator=generator) * 0.1).half()

    sizes = {norm: (WIDTH,) for norm in norms}
    if bias:
        sizes["embeddings.patch_embedding"] = (WIDTH, 3, PATCH, PATCH)
    else:
        alone = alone | {"embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH)}
    for i in range(LAYERS):
        layer = f"encoder.layers.{i}"
        sizes |= {f"{layer}.self_attn.{part}_proj": (WIDTH, WIDTH) for part in ["q", "k", "v", "out"]}
        sizes |= {
            f"{layer}.layer_norm1": (WIDTH,), f"{layer}.layer_norm2": (WIDTH,),
            f"{layer}.mlp.fc1": (MLP, WIDTH), f"{layer}.mlp.fc2": (WIDTH, MLP),
        }
    alone = alone | {"embeddings.position_embedding.weight": (positions, WIDTH)}
    tensors = {name: normal(*shape) for name, shape in alone.items()}
    for name, shape in sizes.items():
        tensors |= {f"{name}.weight": normal(*shape), f"{name}.bias": normal(shape[0])}
    return {f"vision_model.{n}": t for n, t in tensors.items()} | {n: normal(*s) for n, s in others.items()}


save_file(
    image_text(
        generator, 16, {"head.probe": (1, 1, WIDTH)},
        {"text_model.head.weight": (8, 8), "logit_scale": (1,), "logit_bias": (1,)}, ["post_layernorm"], bias=True,
    ),
    HERE / "siglip2.safetensors",
)
clip = image_text(
    generator, 17, {"embeddings.class_embedding": (WIDTH,)},
    {"visual_projection.weight": (8, WIDTH), "text_model.final_layer_norm.weight": (8,), "text_projection.weight": (8, 8), "logit_scale": ()},
    ["pre_layrnorm", "post_layernorm"], bias=False,
)
save_file(clip | {"vision_model.embeddings.position_ids": torch.arange(17)[None]}, HERE / "clip.safetensors")



def blocks(generator, sizes, alone):
    """Tensors of `sizes`, the maps and norms, and of those that stand `alone`."""
    def normal(*shape):
        return (torch.randn(shape, generator=generator) * 0.1).half()

    tensors = {name: normal(*shape) for name, shape in alone.items()}
    for name, shape in sizes.items():
        tensors |= {f"{name}.weight": normal(*shape), f"{name}.bias": normal(shape[0])}
    return tensors


texts = torch.Generator().manual_seed(1)
sizes, alone = {"ln_final": (WIDTH,)}, {
    "token_embedding.weight": (9, WIDTH), "positional_embedding": (6, WIDTH), "text_projection": (WIDTH, 12),
}
for i in range(LAYERS):
    block = f"transformer.resblocks.{i}"
    alone |= {f"{block}.attn.in_proj_weight": (3 * WIDTH, WIDTH), f"{block}.attn.in_proj_bias": (3 * WIDTH,)}
    sizes |= {
        f"{block}.ln_1": (WIDTH,), f"{block}.attn.out_proj": (WIDTH, WIDTH), f"{block}.ln_2": (WIDTH,),
        f"{block}.mlp.c_fc": (MLP, WIDTH), f"{block}.mlp.c_proj": (WIDTH, MLP),
    }
tower = blocks(texts, sizes, alone)
vision = {"visual.conv1.weight": torch.ones(WIDTH, 3, PATCH, PATCH), "visual.proj": torch.ones(WIDTH, 12), "logit_scale": torch.tensor(1.0)}
torch.save(collections.OrderedDict(tower | vision), HERE / "pe_text.pt")

sizes = {"layer_norm": (WIDTH,)}
for i in range(LAYERS):
    sizes |= {f"layers.{i}.self_attn.{part}_proj": (WIDTH, WIDTH) for part in ["k", "v", "q", "out"]}
    sizes |= {
        f"layers.{i}.self_attn_layer_norm": (WIDTH,), f"layers.{i}.fc1": (MLP, WIDTH), f"layers.{i}.fc2": (WIDTH, MLP),
        f"layers.{i}.final_layer_norm": (WIDTH,),
    }
encoder_tensors = blocks(texts, sizes, {})
table = torch.nn.Embedding(9, WIDTH, padding_idx=1).half()
with torch.no_grad():
    table.weight.copy_(torch.randn(9, WIDTH, generator=texts) * 0.1)
state = encoder_tensors | {
    "version": torch.tensor([3.0]), "embed_positions._float_tensor": torch.zeros(1), "embed_tokens.weight": table.weight.detach(),
}
torch.save({"state_dict": collections.OrderedDict(state), "embed_tokens": table}, HERE / "sonar.pt")
decoder = {"model.decoder.layer_norm.weight": torch.ones(WIDTH), "model.decoder.layers.0.fc1.bias": torch.ones(MLP)}
shared = {"model.shared.weight": table.weight.detach()}
save_file({f"model.encoder.{n}": t for n, t in encoder_tensors.items()} | shared | decoder, HERE / "m2m100.safetensors")

def whole(generator, text, outside, alone):
    """Both towers as transformers names them: `outside` holds maps and norms, `alone` other tensors."""
    sizes = {"vision_model.post_layernorm": (WIDTH,), "text_model.final_layer_norm": (text,)} | outside
    for tower, width in [("vision_model", WIDTH), ("text_model", text)]:
        for i in range(LAYERS):
            layer = f"{tower}.encoder.layers.{i}"
            sizes |= {f"{layer}.self_attn.{part}_proj": (width, width) for part in ["q", "k", "v", "out"]}
            sizes |= {
                f"{layer}.layer_norm1": (width,), f"{layer}.layer_norm2": (width,),
                f"{layer}.mlp.fc1": (MLP, width), f"{layer}.mlp.fc2": (width, MLP),
            }
    alone = alone | {"text_model.embeddings.token_embedding.weight": (9, text), "text_model.embeddings.position_embedding.weight": (6, text)}
    return blocks(generator, sizes, alone)


def attention_pool(name, attention, first, last):
    """Sizes of an attention pooling, of tensors that stand alone and of maps and norms."""
    alone = {f"{name}.probe": (1, 1, WIDTH), f"{name}.{attention}.in_proj_weight": (3 * WIDTH, WIDTH), f"{name}.{attention}.in_proj_bias": (3 * WIDTH,)}
    width = 4 * WIDTH if attention == "attn" else MLP
    maps = {f"{name}.{attention}.out_proj": (WIDTH, WIDTH), f"{name}.layernorm": (WIDTH,), f"{name}.{first}": (width, WIDTH), f"{name}.{last}": (WIDTH, width)}
    return alone, maps


both = torch.Generator().manual_seed(2)
alone, maps = attention_pool("visual.attn_pool", "attn", "mlp.c_fc", "mlp.c_proj")
pooled = blocks(both, maps, alone | {"visual.proj": (WIDTH, 12)})
torch.save(collections.OrderedDict(pe(both) | pooled | tower | {"logit_scale": torch.tensor(1.0)}), HERE / "pe_whole.pt")
patches, positions = "vision_model.embeddings.patch_embedding", "vision_model.embeddings.position_embedding.weight"
clip = whole(
    both, 12, {"vision_model.pre_layrnorm": (WIDTH,)},
    {"vision_model.embeddings.class_embedding": (WIDTH,), f"{patches}.weight": (WIDTH, 3, PATCH, PATCH), positions: (17, WIDTH),
     "visual_projection.weight": (8, WIDTH), "text_projection.weight": (8, 12), "logit_scale": ()},
)
save_file(clip, HERE / "clip_whole.safetensors")
alone, maps = attention_pool("vision_model.head", "attention", "mlp.fc1", "mlp.fc2")
outside = maps | {patches: (WIDTH, 3, PATCH, PATCH), "text_model.head": (WIDTH, 12)}
siglip2 = whole(both, 12, outside, alone | {positions: (16, WIDTH), "logit_scale": (1,), "logit_bias": (1,)})
save_file(siglip2, HERE / "siglip2_whole.safetensors")

def resnet(generator, width, layers, output, grid):
    """CLIP's ResNet for frames of `grid`·32 pixels."""
    def normal(*shape):
        return (torch.randn(shape, generator=generator) * 0.1).half()

    def convolution(conv, norm, outputs, inputs, kernel):
        name = f"visual.{norm}"
        return {
            f"visual.{conv}.weight": normal(outputs, inputs, kernel, kernel),
            f"{name}.weight": 1 + normal(outputs), f"{name}.bias": normal(outputs), f"{name}.running_mean": normal(outputs),
            f"{name}.running_var": 1 + normal(outputs).abs(), f"{name}.num_batches_tracked": torch.tensor(7),
        }

    tensors, inputs = {}, width
    for i, (out, into) in enumerate([(width // 2, 3), (width // 2, width // 2), (width, width // 2)], 1):
        tensors |= convolution(f"conv{i}", f"bn{i}", out, into, 3)
    for stage, count in enumerate(layers):
        inner = width * 2**stage
        for i in range(count):
            block = f"layer{stage + 1}.{i}."
            for part, out, into, kernel in [(1, inner, inputs, 1), (2, inner, inner, 3), (3, 4 * inner, inner, 1)]:
                tensors |= convolution(f"{block}conv{part}", f"{block}bn{part}", out, into, kernel)
            if i == 0:
                tensors |= convolution(f"{block}downsample.0", f"{block}downsample.1", 4 * inner, inputs, 1)
            inputs = 4 * inner
    pool = {f"visual.attnpool.{part}_proj": (inputs, inputs) for part in "qkv"} | {"visual.attnpool.c_proj": (output, inputs)}
    return tensors | blocks(generator, pool, {"visual.attnpool.positional_embedding": (grid * grid + 1, inputs)})


beside = torch.Generator().manual_seed(3)
whole_resnet = resnet(beside, 2, [1, 2, 1, 1], 12, 1) | tower | {"logit_scale": torch.tensor(1.0)}
save_file(whole_resnet, HERE / "clip_resnet_whole.safetensors")

numbers = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 8
embedding = torch.nn.Embedding(5, 4, padding_idx=1)
tensors = {
    "state_dict": collections.OrderedDict(weight=numbers, alone=torch.tensor(-1.5)),
    "embed_tokens": embedding,
    "part": numbers[1:3],
    "parameter": torch.nn.Parameter(torch.tensor([0.1, 0.2]).bfloat16()),
    "list": [torch.tensor([2.0]).half(), {"empty": torch.zeros(0, 3)}],
    "transposed": numbers.t(),
    "double": torch.ones(2, dtype=torch.float64),
    "count": 2**40, "negative": -5, "name": "tensors",
}
torch.save(tensors, HERE / "tensors.pt")
torch.save(tensors, HERE / "tensors4.pt", pickle_protocol=4)
found = {
    "state_dict.weight": numbers, "state_dict.alone": tensors["state_dict"]["alone"],
    "embed_tokens.weight": embedding.weight, "part": tensors["part"],
    "parameter": tensors["parameter"], "list.0": tensors["list"][0],
    "list.1.empty": tensors["list"][1]["empty"],
}
lines = [
    json.dumps({"name": n, "shape": list(t.shape), "values": t.detach().float().flatten().tolist()})
    for n, t in found.items()
]
(HERE / "tensors.json").write_text("[\n  " + ",\n  ".join(lines) + "\n]\n")


class Harmful:
    def __reduce__(self):
        return os.system, ("touch executed-by-a-pickle",)


torch.save({"weight": numbers, "harm": Harmful()}, HERE / "harmful.pt")
torch.save({"weight": numbers}, HERE / "legacy.pt", _use_new_zipfile_serialization=False)
torch.jit.script(torch.nn.Linear(1, 1)).save(HERE / "torchscript.pt")

generator = torch.Generator().manual_seed(2)
sizes = {"layer_norm": (WIDTH,)}
for i in range(LAYERS):
    for attention in ["self_attn", "encoder_attn"]:
        sizes |= {f"layers.{i}.{attention}.{part}_proj": (WIDTH, WIDTH) for part in ["k", "v", "q", "out"]}
        sizes |= {f"layers.{i}.{attention}_layer_norm": (WIDTH,)}
    sizes |= {f"layers.{i}.fc1": (MLP, WIDTH), f"layers.{i}.fc2": (WIDTH, MLP), f"layers.{i}.final_layer_norm": (WIDTH,)}
state = blocks(generator, sizes, {"embed_tokens.weight": (9, WIDTH)})
state |= {
    "version": torch.tensor([3.0]), "embed_positions._float_tensor": torch.zeros(1), "output_projection.weight": state["embed_tokens.weight"],
}
torch.save({"state_dict": collections.OrderedDict(state)}, HERE / "sonar_decoder.pt")
