#!/usr/bin/env python3
"""Golden outputs and gradients of SONAR's text encoder and of the text towers of PE-core, CLIP and SigLIP 2.
usage: python text.py OUT
SONAR runs in transformers as the encoder of M2M100, CLIP and SigLIP 2 as their text models. PE's tower is a second implementation, written from
core/vision_encoder/pe.py of facebookresearch/perception_models, because transformers has only variants of it."""
import math, sys
import torch
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, M2M100Config, SiglipTextConfig, SiglipTextModel
from transformers.models.m2m_100.modeling_m2m_100 import M2M100Encoder
from vision import gelu, layer_norm, linear, normal, random_weights, report, write

def texts(seed, vocabulary, lengths):
    """Ids from 4 on and a mask, padded with 1, which M2M100 takes for padding."""
    ids = torch.randint(4, vocabulary, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return ids * mask + (1 - mask), mask

def golden(name, config, weights, ids, mask, seed, forward):
    """`forward` maps weights to outputs, of which `embedding` (b, e) is differentiated with random weights."""
    in_f32 = forward(weights)
    loss_weight = normal(seed, *in_f32['embedding'].shape)
    def graded(dtype):
        p = {n: w.detach().to(dtype).clone().requires_grad_() for n, w in weights.items()}
        out = forward(p)
        (out['embedding'] * loss_weight.to(dtype)).sum().backward()
        return out | {f'grad.{n}': w.grad for n, w in p.items()}
    with_f32, out = graded(torch.float32), graded(torch.float64)
    plain = {k: v for k, v in out.items() if not k.startswith('grad.')}
    report(name, plain, with_f32)
    gradients = {k: v for k, v in out.items() if k.startswith('grad.')}
    def relative(k):
        scale = k.replace('k_proj.bias', 'q_proj.bias')       # gradients of key biases are 0 but for rounding
        return (out[k] - with_f32[k].double()).abs().max().item() / out[scale].abs().max().item()
    worst = max(relative(k) for k in gradients)
    print(f'{name} gradients: f32 differs by {worst:.1e} of the largest element')
    write(sys.argv[1], name, config, weights, {'in.input_ids': ids, 'in.attention_mask': mask, 'in.loss_weight': loss_weight,
        **{f'out.{k}': v for k, v in plain.items()}, **gradients})

def sonar(name, seed, lengths, **sizes):
    c = M2M100Config(encoder_layerdrop=0, dropout=0, attention_dropout=0, activation_function='relu', scale_embedding=True,
                     pad_token_id=1, max_position_embeddings=64, attn_implementation='eager', **sizes)
    model = M2M100Encoder(c).eval()
    weights = random_weights(seed, {n: tuple(p.shape) for n, p in model.named_parameters()})
    # As large as the sinusoids when multiplied by the root of the width.
    weights['embed_tokens.weight'] = normal(seed + 3, *weights['embed_tokens.weight'].shape) / math.sqrt(c.d_model)
    ids, mask = texts(seed + 1, c.vocab_size, lengths)
    def forward(p):
        dtype = p['layer_norm.weight'].dtype
        model.to(dtype).embed_positions.weights = model.embed_positions.get_embedding(66, c.d_model, 1).to(dtype)
        h = torch.func.functional_call(model, p, (ids, mask)).last_hidden_state
        valid = mask[..., None].to(dtype)
        return {'last_hidden_state': h, 'embedding': (h * valid).sum(1) / (valid.sum(1) + 1e-7)}
    keys = ['model_type', 'd_model', 'encoder_layers', 'encoder_attention_heads', 'encoder_ffn_dim', 'activation_function', 'vocab_size']
    golden(name, {key: getattr(c, key) for key in keys}, weights, ids, mask, seed + 2, forward)

def pe_shapes(c):
    d, f = c['width'], 4 * c['width']
    shapes = {'token_embedding.weight': (c['vocab_size'], d), 'positional_embedding': (c['context_length'], d), 'text_projection': (d, c['output_dim'])}
    for i in range(c['layers']):
        b = f'transformer.resblocks.{i}.'
        shapes |= {b + 'attn.in_proj_weight': (3 * d, d), b + 'attn.in_proj_bias': (3 * d,)}
        for n, shape in {'ln_1': (d,), 'attn.out_proj': (d, d), 'ln_2': (d,), 'mlp.c_fc': (f, d), 'mlp.c_proj': (d, f)}.items():
            shapes |= {f'{b}{n}.weight': shape, f'{b}{n}.bias': shape[:1]}
    return shapes | {'ln_final.weight': (d,), 'ln_final.bias': (d,)}

def ended_texts(seed, vocabulary, lengths):
    """Like `texts`, but the last token, the end of the text, has the largest id, and texts are padded with 0."""
    ids, mask = texts(seed, vocabulary - 2, lengths)
    ids[range(len(lengths)), [n - 1 for n in lengths]] = vocabulary - 1
    return ids * mask, mask

def pe_forward(c, p, ids):
    n, eps = ids.shape[1], 1e-5
    causal = torch.full((n, n), -math.inf, dtype=p['text_projection'].dtype).triu(1)
    x = p['token_embedding.weight'][ids] + p['positional_embedding'][:n]
    for i in range(c['layers']):
        b = f'transformer.resblocks.{i}.'
        qkv = F.linear(layer_norm(x, p, b + 'ln_1', eps), p[b + 'attn.in_proj_weight'], p[b + 'attn.in_proj_bias'])
        q, k, v = (t.unflatten(-1, (c['heads'], -1)).transpose(1, 2) for t in qkv.chunk(3, -1))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + causal
        x = x + linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2), p, b + 'attn.out_proj')
        x = x + linear(gelu(linear(layer_norm(x, p, b + 'ln_2', eps), p, b + 'mlp.c_fc')), p, b + 'mlp.c_proj')
    h = layer_norm(x, p, 'ln_final', eps)
    return {'last_hidden_state': h, 'embedding': h[range(len(ids)), ids.argmax(-1)] @ p['text_projection']}

def pe_text(name, seed, lengths, **c):
    ids, mask = ended_texts(seed + 1, c['vocab_size'], lengths)
    weights = random_weights(seed, pe_shapes(c))
    golden(name, dict(model_type='pe_text', layer_norm_eps=1e-5, **c), weights, ids, mask, seed + 2, lambda p: pe_forward(c, p, ids))

def tower(name, seed, lengths, model, output):
    """The text tower of CLIP or SigLIP 2, whose result `output` is the embedding. SigLIP 2 takes no mask: its padding is
    read like other tokens."""
    c = model.config
    weights = random_weights(seed, {n: tuple(p.shape) for n, p in model.named_parameters()})
    ids, real = ended_texts(seed + 1, c.vocab_size, lengths)
    mask = torch.ones_like(real) if c.model_type.startswith('siglip') else real
    def forward(p):
        model.to(next(iter(p.values())).dtype)
        torch.set_default_dtype(model.dtype)                # CLIP makes its causal mask in the default type
        o = torch.func.functional_call(model.eval(), p, (ids,))
        torch.set_default_dtype(torch.float32)
        return {'last_hidden_state': o.last_hidden_state, 'embedding': o[output]}
    keys = ['model_type', 'hidden_size', 'num_hidden_layers', 'num_attention_heads', 'intermediate_size', 'hidden_act',
            'layer_norm_eps', 'vocab_size', 'max_position_embeddings']
    config = {key: getattr(c, key) for key in keys} | {'output_size': forward(weights)['embedding'].shape[1]}
    golden(name, config, weights, ids, mask, seed + 2, forward)

if __name__ == '__main__':
    sonar('sonar', 700, [3, 7, 5], vocab_size=60, d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=96)
    pe_text('pe_text', 800, [4, 8, 2], vocab_size=50, width=32, layers=2, heads=2, context_length=8, output_dim=24)
    sizes = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96,
                 max_position_embeddings=8, attn_implementation='sdpa')
    clip = CLIPTextConfig(projection_dim=24, eos_token_id=49, bos_token_id=48, pad_token_id=0, **sizes)
    tower('clip_text', 900, [4, 8, 2], CLIPTextModelWithProjection(clip), 'text_embeds')
    tower('siglip2_text', 1000, [4, 8, 2], SiglipTextModel(SiglipTextConfig(projection_size=24, **sizes)), 'pooler_output')
