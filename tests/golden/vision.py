"""Shared by the scripts of vision encoders: random weights, attention, and the files of a folder.
Weights and inputs are f32 numbers. Results are computed in f64 and rounded to f32 when written."""
import json, math, os
import torch
from safetensors.torch import save_file

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

def random_weights(seed, shapes):
    """Every tensor random: factors of norms around 1, biases and embeddings around 0, matrices by fan-in."""
    generator, weights = torch.Generator().manual_seed(seed), {}
    for name, shape in sorted(shapes.items()):
        r = torch.randn(shape, generator=generator)
        if len(shape) == 1 or 'embed' in name and len(shape) == 3:
            one = 1.0 if name.endswith('weight') else 0.0
            weights[name] = one + 0.1 * r
        else:
            weights[name] = r / math.sqrt(math.prod(shape[1:]))
    return weights

def linear(x, p, name):
    bias = p.get(name + '.bias')
    y = x @ p[name + '.weight'].flatten(1).T
    return y if bias is None else y + bias

def layer_norm(x, p, name, eps):
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * p[name + '.weight'] + p[name + '.bias']

def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

def rotate(z, angles):
    """Rotates the pairs (2i, 2i+1) of the last axis by angles (tokens, pairs), as complex numbers."""
    turned = torch.view_as_complex(z.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(-2)

def attention(qkv, heads, angles):
    """qkv (B, N, 3·D) to (B, N, D). Pairs of a head beyond `angles` are not rotated."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in qkv.chunk(3, -1))
    turn = lambda z: torch.cat([rotate(z[..., :2 * angles.shape[1]], angles), z[..., 2 * angles.shape[1]:]], -1)
    scores = turn(q) @ turn(k).transpose(-1, -2) / math.sqrt(q.shape[-1])
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)

def write(out, name, config, weights, io):
    folder = f'{out}/{name}'
    os.makedirs(folder, exist_ok=True)
    f32 = lambda tensors: {k: v.detach().to(torch.float32).contiguous().clone() for k, v in tensors.items()}
    save_file(f32(weights), f'{folder}/model.safetensors')
    save_file(f32(io), f'{folder}/io.safetensors')
    with open(f'{folder}/config.json', 'w') as file:
        json.dump(config, file, indent=1)

def report(name, outputs, in_f32):
    """Prints how far f32 arithmetic in PyTorch is from f64: the scale of the tests' tolerances."""
    for key, value in outputs.items():
        difference = (value - in_f32[key].double()).abs().max().item()
        print(f'{name} {key}: largest {value.abs().max().item():.2f}, f32 differs by {difference:.1e}')
