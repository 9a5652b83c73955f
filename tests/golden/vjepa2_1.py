#!/usr/bin/env python3
"""Golden outputs and gradients of V-JEPA 2.1's encoder.   usage: python vjepa2_1.py OUT
A second implementation, written from app/vjepa_2_1/models/{vision_transformer.py,utils/modules.py} of
facebookresearch/vjepa2, because transformers has no V-JEPA 2.1."""
import sys
import torch
from torch.nn import functional as F
from vision import attention, gelu, layer_norm, linear, normal, random_weights, report, write

PRETRAINED_GRID = 16    # rows and columns of patches to which positions are scaled: 256 / 16

def shapes(c):
    d, f, p = c['hidden_size'], c['intermediate_size'], c['patch_size']
    s = {'patch_embed.proj.weight': (d, 3, c['tubelet_size'], p, p), 'patch_embed.proj.bias': (d,),
         'patch_embed_img.proj.weight': (d, 3, 1, p, p), 'patch_embed_img.proj.bias': (d,),
         'img_mod_embed': (1, 1, d), 'video_mod_embed': (1, 1, d)}
    block = {'norm1': (d,), 'attn.qkv': (3 * d, d), 'attn.proj': (d, d), 'norm2': (d,), 'mlp.fc1': (f, d), 'mlp.fc2': (d, f)}
    linears = {f'blocks.{i}.{n}': shape for i in range(c['num_hidden_layers']) for n, shape in block.items()}
    linears['norms_block.3'] = (d,)
    for n, shape in linears.items():
        s |= {f'{n}.weight': shape, f'{n}.bias': shape[:1]}
    return s

def angles(c, grid, dtype):
    """Angles of the pairs of a head: time, row, column, each with the frequencies 10000^(-2i/axis)."""
    axis = 2 * (c['hidden_size'] // c['num_attention_heads'] // 3 // 2)
    omega = 10000.0 ** (-torch.arange(0, axis, 2, dtype=dtype) / axis)
    t, h, w = torch.meshgrid(*(torch.arange(n, dtype=dtype) for n in grid), indexing='ij')
    scaled = lambda at, n: at * (PRETRAINED_GRID - 1) / (n - 1) if n > 1 else at
    positions = (t, scaled(h, grid[1]), scaled(w, grid[2]))
    return torch.cat([at.flatten()[:, None] * omega for at in positions], -1)

def forward(c, p, frames):
    """Frames (B, T, C, H, W), normalised: a video, or an image if T is 1. Returns each stage's tokens."""
    x = frames.transpose(1, 2)
    which, modality = ('patch_embed_img', 'img_mod_embed') if x.shape[2] == 1 else ('patch_embed', 'video_mod_embed')
    weight = p[f'{which}.proj.weight']
    x = F.conv3d(x, weight, p[f'{which}.proj.bias'], stride=weight.shape[2:])
    angle = angles(c, x.shape[2:], x.dtype)
    x = x.flatten(2).transpose(1, 2) + p[modality]
    out = {'patch_embed': x}
    eps = c['layer_norm_eps']
    for i in range(c['num_hidden_layers']):
        b = f'blocks.{i}.'
        y = attention(linear(layer_norm(x, p, b + 'norm1', eps), p, b + 'attn.qkv'), c['num_attention_heads'], angle)
        x = x + linear(y, p, b + 'attn.proj')
        x = x + linear(gelu(linear(layer_norm(x, p, b + 'norm2', eps), p, b + 'mlp.fc1')), p, b + 'mlp.fc2')
        out.setdefault('layer0', x)
    return out | {'tokens': layer_norm(x, p, 'norms_block.3', eps)}

def gradients(tokens, p, d):
    """Gradient of every weight. Zero for the patch map and the embedding of the other modality."""
    tokens.backward(d.to(tokens.dtype))
    return {n: torch.zeros_like(w) if w.grad is None else w.grad for n, w in p.items()}

def golden(name, seed, **config):
    c = dict(model_type='vjepa2_1', tubelet_size=2, layer_norm_eps=1e-6, pretrained_grid=PRETRAINED_GRID, **config)
    weights, side = random_weights(seed, shapes(c)), c['patch_size']
    frames = {'video': normal(seed + 1, 2, 4, 3, 3 * side, 5 * side), 'image': normal(seed + 2, 2, 1, 3, 3 * side, 5 * side),
              'strip': normal(seed + 3, 1, 1, 3, side, 4 * side)}                    # one row: its position stays 0
    io = {f'in.{kind}': x for kind, x in frames.items()}
    for kind, x in frames.items():
        p = {n: w.double().requires_grad_() for n, w in weights.items()}
        out = forward(c, p, x.double())
        report(f'{name} {kind}', out, forward(c, weights, x))
        io |= {f'out.{kind}.{stage}': v for stage, v in out.items()}
        if kind != 'strip':
            io[f'in.{kind}.d_tokens'] = d = normal(seed + 4, *out['tokens'].shape)
            grads = gradients(out['tokens'], p, d)
            p32 = {n: w.clone().requires_grad_() for n, w in weights.items()}
            grads32 = gradients(forward(c, p32, x)['tokens'], p32, d)
            worst = max((g - grads32[n].double()).abs().max() / g.abs().max() for n, g in grads.items() if g.any())
            print(f'{name} {kind} gradients: f32 differs by {worst.item():.1e} of the largest element of a tensor')
            io |= {f'grad_{kind}.{n}': g for n, g in grads.items()}
    write(sys.argv[1], name, c, weights, io)

golden('vjepa2_1_h32', 100, patch_size=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
# A head of 64 elements, as published: 20 for each axis, the last 4 not rotated.
golden('vjepa2_1_h64_d64', 200, patch_size=2, hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=64)
