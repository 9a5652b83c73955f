#!/usr/bin/env python3
"""Golden embeddings of a whole CLIP with a ResNet, as a second implementation: convolutions and batch norms of PyTorch in
evaluation mode, written from clip/model.py of openai/CLIP.   usage: python clip_resnet.py OUT
Two clips of two frames, whose embeddings are averaged, and three texts. `wrong.*` are results of mistakes. Weights are f16
numbers, in which the file holds them."""
import math, sys
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from dual import golden, unit
from text import ended_texts, pe_shapes
from vision import layer_norm, linear, normal, random_weights

EPS = 1e-5

def blocks(c):
    """Name, inner width, and whether rows and columns are halved, of each block of the four stages."""
    for stage, count in enumerate(c['layers']):
        for i in range(count):
            yield f'visual.layer{stage + 1}.{i}.', c['width'] * 2 ** stage, stage > 0 and i == 0, i == 0

def shapes(c, output):
    w, d = c['width'], 32 * c['width']
    convolutions = {'visual.conv1': ('visual.bn1', w // 2, 3, 3), 'visual.conv2': ('visual.bn2', w // 2, w // 2, 3), 'visual.conv3': ('visual.bn3', w, w // 2, 3)}
    inputs = w
    for name, inner, _, first in blocks(c):
        sizes = {'conv1': ('bn1', inner, inputs, 1), 'conv2': ('bn2', inner, inner, 3), 'conv3': ('bn3', 4 * inner, inner, 1)}
        if first:
            sizes['downsample.0'] = ('downsample.1', 4 * inner, inputs, 1)
        convolutions |= {name + conv: (name + bn, *rest) for conv, (bn, *rest) in sizes.items()}
        inputs = 4 * inner
    found = {}
    for conv, (bn, outputs, inputs, kernel) in convolutions.items():
        found[f'{conv}.weight'] = (outputs, inputs, kernel, kernel)
        found |= {f'{bn}.{vector}': (outputs,) for vector in ['weight', 'bias', 'running_mean', 'running_var']}
    pool = 'visual.attnpool.'
    found[pool + 'positional_embedding'] = ((c['image_size'] // 32) ** 2 + 1, d)
    for part, rows in [('q_proj', d), ('k_proj', d), ('v_proj', d), ('c_proj', output)]:
        found |= {f'{pool}{part}.weight': (rows, d), f'{pool}{part}.bias': (rows,)}
    return found

def features(c, p, x, relu_after_sum=True, strides=False, statistics=True):
    """Features (b, d, h, w) of frames. The three last arguments make mistakes."""
    def normed(x, bn):
        mean, variance = (p[f'{bn}.{v}'] for v in ['running_mean', 'running_var'])
        if not statistics:
            mean, variance = torch.zeros_like(mean), torch.ones_like(variance)
        return F.batch_norm(x, mean, variance, p[bn + '.weight'], p[bn + '.bias'], training=False, eps=EPS)
    def convolved(x, conv, bn, **how):
        return normed(F.conv2d(x, p[conv + '.weight'], **how), bn)
    for i in [1, 2, 3]:
        x = F.relu(convolved(x, f'visual.conv{i}', f'visual.bn{i}', stride=2 if i == 1 else 1, padding=1))
    x = F.avg_pool2d(x, 2)
    for name, _, halves, first in blocks(c):
        y = F.relu(convolved(x, name + 'conv1', name + 'bn1'))
        stride = 2 if halves and strides else 1
        y = F.relu(convolved(y, name + 'conv2', name + 'bn2', padding=1, stride=stride))
        halve = lambda x: F.avg_pool2d(x, 2) if halves else x
        y = convolved(y if stride == 2 else halve(y), name + 'conv3', name + 'bn3')
        y = y + (convolved(halve(x), name + 'downsample.0', name + 'downsample.1') if first else x)
        x = F.relu(y) if relu_after_sum else y
    return x

def pooled(c, p, x, mean_first=True):
    """Attention of the mean to itself and to all pixels."""
    pool = 'visual.attnpool.'
    x = x.flatten(2).transpose(1, 2)
    mean = x.mean(1, keepdim=True)
    x = torch.cat([mean, x] if mean_first else [x, mean], 1)
    x = x + p[pool + 'positional_embedding']
    query = x[:, :1] if mean_first else x[:, -1:]
    q, k, v = (linear(i, p, f'{pool}{n}_proj').unflatten(-1, (c['heads'], -1)).transpose(1, 2) for n, i in [('q', query), ('k', x), ('v', x)])
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2), p, pool + 'c_proj')[:, 0]

def texts(c, p, ids):
    """The causal text tower with quick GELU; the last token has the largest id."""
    n = ids.shape[1]
    causal = torch.full((n, n), -math.inf, dtype=p['text_projection'].dtype).triu(1)
    x = p['token_embedding.weight'][ids] + p['positional_embedding'][:n]
    for i in range(c['layers']):
        b = f'transformer.resblocks.{i}.'
        qkv = F.linear(layer_norm(x, p, b + 'ln_1', EPS), p[b + 'attn.in_proj_weight'], p[b + 'attn.in_proj_bias'])
        q, k, v = (t.unflatten(-1, (c['heads'], -1)).transpose(1, 2) for t in qkv.chunk(3, -1))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + causal
        x = x + linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2), p, b + 'attn.out_proj')
        y = linear(layer_norm(x, p, b + 'ln_2', EPS), p, b + 'mlp.c_fc')
        x = x + linear(y * torch.sigmoid(1.702 * y), p, b + 'mlp.c_proj')
    x = layer_norm(x, p, 'ln_final', EPS)
    return x[torch.arange(len(ids)), ids.argmax(-1)] @ p['text_projection']

def clip_resnet(name, seed, vision, text):
    weights = random_weights(seed, shapes(vision, text['output_dim']) | pe_shapes(text) | {'logit_scale': ()})
    # Variances between about 1/4 and 4, and means that are not small, so that statistics matter.
    for key, w in weights.items():
        if key.endswith('running_var'):
            weights[key] = torch.exp(5 * w)
        if key.endswith('running_mean'):
            weights[key] = 5 * w
    weights = {key: w.half().float() for key, w in weights.items()}
    ids, _ = ended_texts(seed + 1, text['vocab_size'], [4, 8, 2])
    images = normal(seed + 2, 2, 2, 3, vision['image_size'], vision['image_size'])
    images[:, 1] *= 4   # else the embeddings of noise have nearly the same length
    def forward(p, x):
        right = features(vision, p, x)
        mistakes = {'no_relu_after_sum': {'relu_after_sum': False}, 'strides': {'strides': True}, 'no_statistics': {'statistics': False}}
        wrong = {key: pooled(vision, p, features(vision, p, x, **how)) for key, how in mistakes.items()}
        wrong |= {'mean_last': pooled(vision, p, right, mean_first=False)}
        return {'frames': pooled(vision, p, right), 'texts': texts(text, p, ids)} | wrong
    config = {f'vision.{k}': v for k, v in vision.items()} | {f'text.{k}': v for k, v in text.items()}
    golden(name, config, weights, images, ids, forward)
    stored = {key: w.half() for key, w in weights.items()}
    stored |= {key.replace('running_var', 'num_batches_tracked'): torch.tensor(7) for key in weights if key.endswith('running_var')}
    save_file(stored, f'{sys.argv[1]}/{name}/model.safetensors')

if __name__ == '__main__':
    clip_resnet('dual_clip_resnet', 1400, dict(width=4, layers=[1, 2, 1, 1], heads=8, image_size=64),
                dict(vocab_size=50, width=24, layers=1, heads=2, context_length=8, output_dim=20))
