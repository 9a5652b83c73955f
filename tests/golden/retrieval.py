#!/usr/bin/env python3
"""Golden ranks of texts in a pool of samples, in f64 with numpy: ties count against the right sample.
usage: python retrieval.py OUT
Samples 0 to 9 are repeated bit for bit, 10 to 19 twice as long, and 20 to 29 with one element changed by one unit of rounding, so that f32
cannot order them. Texts are near their samples. Some texts have several right samples, and one of them is repeated."""
import json, os, sys
import numpy as np
from safetensors.numpy import save_file

SAMPLES, TEXTS, WIDTH = 90, 60, 24
rng = np.random.default_rng(0)
samples = rng.standard_normal((SAMPLES, WIDTH)).astype(np.float32)
samples[60:70] = samples[0:10]
samples[70:80] = 2 * samples[10:20]
samples[80:90] = samples[20:30]
samples[80:90, 0] = np.nextafter(samples[80:90, 0], np.float32(9))
texts = (samples[:TEXTS] + 2.5 * rng.standard_normal((TEXTS, WIDTH))).astype(np.float32)
right = [[i] + ([(i * 7) % 60, 60 + i % 30] if i % 5 == 0 else []) for i in range(TEXTS)]

def cosine(a, b, dtype=np.float64):
    a, b = a.astype(dtype), b.astype(dtype)
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())

def rank(scores, right, ties):
    best = max(scores[j] for j in right)
    wrong = [s for j, s in enumerate(scores) if j not in right]
    return 1 + int(sum(s > best or (ties and s == best) for s in wrong))

scores = [[cosine(t, s) for s in samples] for t in texts]
ranks = [rank(s, set(r), True) for s, r in zip(scores, right)]
optimistic = [rank(s, set(r), False) for s, r in zip(scores, right)]
in_f32 = [rank([cosine(t, s, np.float32) for s in samples], set(r), True) for t, r in zip(texts, right)]
print('first', ranks.count(1), 'ties decide', sum(a != b for a, b in zip(ranks, optimistic)), 'f32 decides otherwise', sum(a != b for a, b in zip(ranks, in_f32)))
folder = f'{sys.argv[1]}/retrieval'
os.makedirs(folder, exist_ok=True)
json.dump({'right': right, 'ranks': ranks, 'optimistic': optimistic, 'in_f32': in_f32}, open(f'{folder}/config.json', 'w'))
save_file({'in.samples': samples, 'in.texts': texts}, f'{folder}/io.safetensors')
