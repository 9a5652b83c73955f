#!/usr/bin/env python3
"""Golden embeddings of whole dual encoders: CLIP and SigLIP 2 (fixed resolution) in transformers, PE-core as a second
implementation, written from core/vision_encoder/pe.py of facebookresearch/perception_models.   usage: python dual.py OUT
Two clips of two frames, whose embeddings are averaged, and three texts. `wrong.*` are results of mistakes."""
import math, sys
import torch
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel
import pe_vision
from text import ended_texts, pe_forward, pe_shapes
from vision import gelu, layer_norm, linear, normal, random_weights, report, write

def unit(x):
    return F.normalize(x, dim=-1)

def golden(name, config, weights, images, ids, forward):
    """`forward` maps weights and images (b·t, C, H, W) to embeddings of frames (b·t, e), of mistakes with them, and of texts."""
    def outputs(dtype):
        torch.set_default_dtype(dtype)
        with torch.no_grad():
            o = forward({n: w.to(dtype) for n, w in weights.items()}, images.flatten(0, 1).to(dtype))
        torch.set_default_dtype(torch.float32)
        clips = lambda frames: unit(frames.unflatten(0, images.shape[:2]).mean(1))
        out = {'out.frames': clips(o['frames']), 'out.texts': unit(o['texts']), 'wrong.unit_frames': clips(unit(o['frames']))}
        return out | {f'wrong.{k}': clips(v) for k, v in o.items() if k not in ('frames', 'texts')}
    out = outputs(torch.float64)
    report(name, out, outputs(torch.float32))
    write(sys.argv[1], name, config, weights, {'in.frames': images, 'in.input_ids': ids, **out})

def transformers(name, seed, model):
    v, t = model.config.vision_config, model.config.text_config
    weights = random_weights(seed, {n: tuple(p.shape) for n, p in model.named_parameters()})
    ids, _ = ended_texts(seed + 1, t.vocab_size, [4, 8, 2])
    images = normal(seed + 2, 2, 2, 3, v.image_size, v.image_size)
    def forward(p, x):
        model.to(x.dtype).eval().load_state_dict(p, strict=False)
        # Without the last norm, whose result is replaced by its input.
        hook = model.vision_model.post_layernorm.register_forward_hook(lambda norm, inputs, out: inputs[0])
        without_norm = model.get_image_features(pixel_values=x)
        hook.remove()
        return {'frames': model.get_image_features(pixel_values=x), 'texts': model.get_text_features(input_ids=ids),
                'without_norm': without_norm}
    keys = ['hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads']
    config = {f'{part}.{key}': getattr(c, key) for part, c in [('vision', v), ('text', t)] for key in keys}
    config |= {'image_size': v.image_size, 'patch_size': v.patch_size, 'vocab_size': t.vocab_size,
               'context_length': t.max_position_embeddings, 'output_size': model.get_text_features(input_ids=ids).shape[1]}
    golden(name, config, weights, images, ids, forward)

def pe(name, seed, vision, text):
    d, out = vision['width'], text['output_dim']
    pool = {'attn.out_proj': (d, d), 'layernorm': (d,), 'mlp.c_fc': (4 * d, d), 'mlp.c_proj': (d, 4 * d)}
    shapes = {'probe': (1, 1, d), 'attn.in_proj_weight': (3 * d, d), 'attn.in_proj_bias': (3 * d,)}
    shapes |= {f'{n}.{kind}': s if kind == 'weight' else s[:1] for n, s in pool.items() for kind in ('weight', 'bias')}
    shapes = {f'visual.attn_pool.{n}': s for n, s in shapes.items()} | {'visual.proj': (d, out)}
    weights = random_weights(seed, pe_vision.shapes(vision) | shapes | pe_shapes(text) | {'logit_scale': ()})
    ids, _ = ended_texts(seed + 1, text['vocab_size'], [4, 8, 2])
    images = normal(seed + 2, 2, 2, 3, vision['image_size'], vision['image_size'])
    def embed(p, x):
        a, heads = 'visual.attn_pool.', 8
        qkv = [F.linear(i, w, b) for i, w, b in zip([p[a + 'probe'], x, x], p[a + 'attn.in_proj_weight'].chunk(3), p[a + 'attn.in_proj_bias'].chunk(3))]
        q, k, v = (i.unflatten(-1, (heads, -1)).transpose(1, 2) for i in qkv)
        scores = q @ k.transpose(-1, -2) / math.sqrt(d // heads)
        y = linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2), p, a + 'attn.out_proj')
        y = y + linear(gelu(linear(layer_norm(y, p, a + 'layernorm', 1e-5), p, a + 'mlp.c_fc')), p, a + 'mlp.c_proj')
        return y[:, 0] @ p['visual.proj']
    def forward(p, x):
        o = pe_vision.forward(vision, p, x, cls=True)
        cut = o['ln_post'][:, 1:]
        return {'frames': embed(p, o['ln_post']), 'without_norm': embed(p, o['last_block']), 'without_cls': embed(p, cut),
                'texts': pe_forward(text, p, ids)['embedding']}
    golden(name, {f'vision.{k}': v for k, v in vision.items()} | {f'text.{k}': v for k, v in text.items()},
           weights, images, ids, forward)

if __name__ == '__main__':
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=12, patch_size=4)
    text = dict(vocab_size=50, hidden_size=24, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=8)
    clip = CLIPConfig(projection_dim=20, vision_config=vision, text_config=text | dict(eos_token_id=49, bos_token_id=48, pad_token_id=0))
    transformers('dual_clip', 1100, CLIPModel(clip))
    siglip = SiglipConfig(vision_config=vision, text_config=text | dict(projection_size=32))
    transformers('dual_siglip2', 1200, SiglipModel(siglip))
    pe('dual_pe', 1300, dict(layer_norm_eps=1e-5, patch_size=4, width=32, layers=1, heads=2, mlp_width=64, image_size=12, use_cls_token=1),
       dict(vocab_size=50, width=24, layers=1, heads=2, context_length=8, output_dim=20))
