#!/usr/bin/env python3
"""Partitions of sequences by scikit-learn's Ward clustering in which only neighbours merge.
usage: pip install scikit-learn==1.9.1; python ward.py OUT
`removed` are the borders between items in the order in which they disappear: without the first k of them, a sequence of T items has T − k
segments. `wrong` are those of a mistake: the distance of means without the sizes of the segments."""
import json, sys
import numpy as np
from sklearn.cluster import AgglomerativeClustering

def rng(seed):
    return np.random.default_rng(seed)

def borders(labels):
    return {int(i) for i in np.flatnonzero(np.diff(labels)) + 1}

def removed(x):
    t = len(x)
    chain = np.eye(t, k=1) + np.eye(t, k=-1)
    cut = lambda n: borders(AgglomerativeClustering(n_clusters=n, linkage='ward', connectivity=chain).fit_predict(x))
    cuts = [cut(n) for n in range(t, 0, -1)]
    gone = [before - after for before, after in zip(cuts, cuts[1:])]
    assert all(len(g) == 1 for g in gone)
    return [g.pop() for g in gone]

def without_sizes(x):
    segments, gone = [[i] for i in range(len(x))], []
    while len(segments) > 1:
        distances = [((x[a].mean(0) - x[b].mean(0)) ** 2).sum() for a, b in zip(segments, segments[1:])]
        at = int(np.argmin(distances))
        gone.append(segments[at + 1][0])
        segments[at:at + 2] = [segments[at] + segments[at + 1]]
    return gone

SEQUENCES = {
    'noise': rng(1).normal(size=(30, 6)),
    'walk': rng(2).normal(size=(40, 4)).cumsum(0),
    'scenes': np.repeat(rng(3).normal(size=(8, 5)), [1, 7, 3, 12, 2, 5, 4, 6], axis=0) + 0.1 * rng(4).normal(size=(40, 5)),
    'drift': np.stack([np.linspace(0, 1, 25), np.linspace(0, 1, 25) ** 2], 1),
    'equal': np.repeat(rng(5).integers(-2, 3, size=(9, 2)), 3, axis=0),  # many equal costs
    'steps': np.arange(16)[:, None] % 4,
    'two': rng(6).normal(size=(2, 3)),
}
out = {}
for name, x in SEQUENCES.items():
    x = x.astype(np.float32).astype(np.float64)
    out[name] = {'embeddings': x.tolist(), 'removed': removed(x), 'wrong': without_sizes(x)}
    print(name, len(x), sum(set(out[name]['removed'][:k]) != set(out[name]['wrong'][:k]) for k in range(len(x))))
with open(f'{sys.argv[1]}/ward.json', 'w') as file:
    json.dump(out, file)
