#!/usr/bin/env python3
"""Golden step of a token-predicting VLM, after PLM's rules (facebookresearch/perception_models: apps/plm/transformer.py,
core/vision_projector/mlp.py): tokens of PE's last block without cls and last norm, two linear maps with GELU between them, mean of 2×2,
Llama over [before ; vectors ; question ; answer], mean of the cross-entropy over all tokens of all answers.
usage: python vlm.py OUT      after pe_vision.py and language_model.py, whose models it takes from OUT
Frames: two for each of three clips. A step of AdamW changes all but the vision tower, with decay on matrices."""
import json, sys
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from pe_vision import forward as vision
from vision import gelu, linear, normal, random_weights, report, write

OUT, RATE, DECAY, NEW = sys.argv[1], 1e-2, 0.1, 8
VISION, LLAMA = 'pe_vision_cls', 'llama_lm'
BEFORE, START, END = [5, 6], [7, 8], [9, 10]                   # tokens before the vectors, and those that begin and end answers
QUESTIONS = [[21, 22, 23, 11], [11], [24, 25, 11]]
ANSWERS = [[31, 32, 33], [34], [35, 36, 37, 38, 39]]
CANDIDATES = [[31], [31, 32, 33], [40, 41], [34, 42]]          # each is measured with the first token of END

def squares(x, side):
    """Mean of 2×2 of the side×side tokens of each frame, (frames, tokens, d)."""
    x = x.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    return F.avg_pool2d(x, 2).flatten(2).transpose(1, 2)

def project(p, tokens, side, mean_first=False):
    """(frames, side², d_x) to (frames, side²/4, d)."""
    tokens = squares(tokens, side) if mean_first else tokens
    out = linear(gelu(linear(tokens, p, 'projector.first')), p, 'projector.second')
    return out if mean_first else squares(out, side)

def read(p, before, after, vectors):
    """Input of the language model for one row."""
    table = p['model.embed_tokens.weight']
    return torch.cat([table[torch.tensor(before)], vectors, table[torch.tensor(after, dtype=torch.long)]])

def logits_of(model, p, x):
    """Logits (tokens, v) for the vectors x (tokens, d)."""
    tied = {n: w for n, w in p.items() if n.startswith('model.')} | {'lm_head.weight': p['model.embed_tokens.weight']}
    return torch.func.functional_call(model, tied, (), {'inputs_embeds': x[None]}).logits[0]

def losses(model, p, vectors, header=True):
    """Cross-entropy of each token of each answer."""
    rows = []
    for question, answer, own in zip(QUESTIONS, ANSWERS, vectors):
        text = START + answer + END
        logits = logits_of(model, p, read(p, BEFORE, question + text[:-1], own))
        own = F.cross_entropy(logits[-len(text):], torch.tensor(text), reduction='none')
        rows.append(own if header else own[len(START):])
    return rows

def candidates(model, p, vectors):
    """Mean loss of each candidate in each row."""
    means = []
    for question, own in zip(QUESTIONS, vectors):
        for candidate in CANDIDATES:
            text = candidate + END[:1]
            logits = logits_of(model, p, read(p, BEFORE, question + START + text[:-1], own))
            means.append(F.cross_entropy(logits[-len(text):], torch.tensor(text)))
    return torch.stack(means).view(len(QUESTIONS), -1)

def texts(model, p, vectors):
    """Most probable texts of NEW tokens, by transformers' greedy search."""
    model.load_state_dict({n: w for n, w in p.items() if n.startswith('model.')}, strict=False)
    model.tie_weights()
    model.generation_config.eos_token_id = None
    written = []
    for question, own in zip(QUESTIONS, vectors):
        x = read(p, BEFORE, question + START, own)[None]
        mask = torch.ones(x.shape[:2], dtype=torch.long)
        new = model.generate(inputs_embeds=x, attention_mask=mask, do_sample=False, max_new_tokens=NEW, pad_token_id=1)
        written.append(new[0].tolist())
    return written

def run(dtype, c, frozen, model, weights, frames):
    side, rows = c['image_size'] // c['patch_size'], len(ANSWERS)
    model.to(dtype)
    p = {n: w.to(dtype).clone().requires_grad_() for n, w in weights.items()}
    tokens = vision(c, {n: w.to(dtype) for n, w in frozen.items()}, frames.flatten(0, 1).to(dtype))['last_block']
    vectors = lambda **how: project(p, tokens, side, **how).unflatten(0, (rows, 2)).flatten(1, 2)
    each = losses(model, p, vectors())
    loss = torch.cat(each).mean()
    loss.backward()
    grads = {f'grad.{n}': w.grad.clone() for n, w in p.items()}
    with torch.no_grad():
        out = {'out.vectors': vectors(), 'out.losses': torch.cat(each), 'out.loss': loss[None], 'out.candidates': candidates(model, p, vectors()),
               'wrong.mean_first': torch.cat(losses(model, p, vectors(mean_first=True))).mean()[None],
               'wrong.without_header': torch.cat(losses(model, p, vectors(), header=False)).mean()[None],
               'wrong.mean_of_means': torch.stack([own.mean() for own in each]).mean()[None]}
        written = texts(model, p, vectors())
        group = lambda matrix: dict(params=[w for w in p.values() if (w.ndim > 1) == matrix], weight_decay=DECAY if matrix else 0.0)
        torch.optim.AdamW([group(True), group(False)], lr=RATE, betas=(0.9, 0.95), eps=1e-8).step()
        out['out.loss_after'] = torch.cat(losses(model, p, vectors())).mean()[None]
    return out, grads, {f'after.{n}': w.detach() for n, w in p.items()}, written

def main():
    config = lambda name: json.load(open(f'{OUT}/{name}/config.json'))
    c, llama = config(VISION), config(LLAMA)
    model = LlamaForCausalLM(LlamaConfig(**llama, max_position_embeddings=128, tie_word_embeddings=True, attn_implementation='eager')).eval()
    d = llama['hidden_size']
    own = random_weights(900, {'projector.first.weight': (d, c['width']), 'projector.first.bias': (d,),
                               'projector.second.weight': (d, d), 'projector.second.bias': (d,)})
    weights = load_file(f'{OUT}/{LLAMA}/model.safetensors') | own
    frames = normal(901, len(ANSWERS), 2, 3, c['image_size'], c['image_size'])
    (with_f32, grads_f32, _, texts_f32), (out, grads, after, written) = (
        run(dtype, c, load_file(f'{OUT}/{VISION}/model.safetensors'), model, weights, frames) for dtype in (torch.float32, torch.float64))
    report('vlm_step', out, with_f32)
    far = max(((grads[k] - grads_f32[k].double()).abs().max() / grads[k].abs().max()).item() for k in grads)
    print('vlm_step', f'gradients: {far:.1e}', written)
    assert written == texts_f32, 'texts depend on rounding'
    config = dict(vision=VISION, language_model=LLAMA, before=BEFORE, start=START, end=END, questions=QUESTIONS, answers=ANSWERS,
                  candidates=CANDIDATES, texts=written, lr=RATE, wd=DECAY, betas=[0.9, 0.95], eps=1e-8)
    write(OUT, 'vlm_step', config, own, {'in.frames': frames, **out, **grads, **after})

main()
