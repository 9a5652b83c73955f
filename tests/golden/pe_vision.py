#!/usr/bin/env python3
"""Golden outputs of PE-core's vision tower.   usage: python pe_vision.py OUT
A second implementation, written from core/vision_encoder/pe.py of facebookresearch/perception_models, because
transformers has only variants of it."""
import sys
import torch
from torch.nn import functional as F
from vision import attention, gelu, layer_norm, linear, normal, random_weights, report, write

def shapes(c):
    d, f, p = c['width'], c['mlp_width'], c['patch_size']
    tokens = (c['image_size'] // p) ** 2 + c['use_cls_token']
    s = {'conv1.weight': (d, 3, p, p), 'positional_embedding': (tokens, d)}
    if c['use_cls_token']:
        s['class_embedding'] = (d,)
    block = {'ln_1': (d,), 'attn.out_proj': (d, d), 'ln_2': (d,), 'mlp.c_fc': (f, d), 'mlp.c_proj': (d, f)}
    linears = {f'transformer.resblocks.{i}.{n}': shape for i in range(c['layers']) for n, shape in block.items()}
    for n, shape in (linears | {'ln_pre': (d,), 'ln_post': (d,)}).items():
        s |= {f'{n}.weight': shape, f'{n}.bias': shape[:1]}
    for i in range(c['layers']):
        s |= {f'transformer.resblocks.{i}.attn.in_proj_weight': (3 * d, d), f'transformer.resblocks.{i}.attn.in_proj_bias': (3 * d,)}
    return {f'visual.{n}': shape for n, shape in s.items()}

def angles(c, rows, columns, dtype):
    """Angles of the pairs of a head: columns (x) first, then rows (y), each over half of the head."""
    axis = c['width'] // c['heads'] // 2
    omega = 10000.0 ** (-torch.arange(0, axis, 2, dtype=dtype) / axis)
    y, x = torch.meshgrid(torch.arange(rows, dtype=dtype), torch.arange(columns, dtype=dtype), indexing='ij')
    first = 1 if c['use_cls_token'] else 0
    angle = torch.cat([(at.flatten()[:, None] + first) * omega for at in (x, y)], -1)
    return torch.cat([torch.zeros_like(angle[:1]), angle]) if c['use_cls_token'] else angle

def forward(c, p, image, cls=False):
    """Image (B, C, H, W), normalised. Returns the patches' tokens of the last block, and those after ln_post. With `cls`,
    the cls token is the first of them."""
    v, eps = 'visual.', c['layer_norm_eps']
    first = 0 if cls else c['use_cls_token']
    x = F.conv2d(image, p[v + 'conv1.weight'], stride=c['patch_size'])
    rows, columns = x.shape[2:]
    x = x.flatten(2).transpose(1, 2)
    if c['use_cls_token']:
        x = torch.cat([p[v + 'class_embedding'].expand(len(x), 1, -1), x], 1)
    x = x + p[v + 'positional_embedding']
    x = layer_norm(x, p, v + 'ln_pre', eps)
    out, angle = {'ln_pre': x}, angles(c, rows, columns, x.dtype)
    for i in range(c['layers']):
        b = f'visual.transformer.resblocks.{i}.'
        qkv = layer_norm(x, p, b + 'ln_1', eps) @ p[b + 'attn.in_proj_weight'].T + p[b + 'attn.in_proj_bias']
        x = x + linear(attention(qkv, c['heads'], angle), p, b + 'attn.out_proj')
        x = x + linear(gelu(linear(layer_norm(x, p, b + 'ln_2', eps), p, b + 'mlp.c_fc')), p, b + 'mlp.c_proj')
    return out | {'last_block': x[:, first:], 'ln_post': layer_norm(x, p, v + 'ln_post', eps)[:, first:]}

def golden(name, seed, **config):
    c = dict(model_type='pe_vision', layer_norm_eps=1e-5, **config)
    weights, size = random_weights(seed, shapes(c)), c['image_size']
    images = normal(seed + 1, 2, 3, size, size)
    out = forward(c, {n: w.double() for n, w in weights.items()}, images.double())
    report(name, out, forward(c, weights, images))
    frames = images.unsqueeze(1)                # (B, T, C, H, W): two clips of one frame
    write(sys.argv[1], name, c, weights, {'in.frames': frames, **{f'out.{stage}': v for stage, v in out.items()}})

if __name__ == '__main__':
    golden('pe_vision_cls', 300, patch_size=4, width=32, layers=2, heads=2, mlp_width=64, image_size=16, use_cls_token=1)
    # Without a cls token, and a head of 96 elements, as in PE-Core-G14-448.
    golden('pe_vision_d96', 400, patch_size=4, width=96, layers=1, heads=1, mlp_width=64, image_size=12, use_cls_token=0)
