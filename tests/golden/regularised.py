#!/usr/bin/env python3
"""Golden losses and gradients of VICReg (arXiv 2105.04906) and of LeJEPA's loss (arXiv 2511.08544), in f64 with torch's autograd.
usage: python regularised.py OUT
Both are written from the papers: formulas (1) to (6) of VICReg, Algorithms 1 and 2 of LeJEPA with complex numbers and 17 points of [-5, 5].
The second batch has three columns without spread and a large mean, near collapse."""
import json, os, sys
import torch
from safetensors.torch import save_file

ROWS, WIDTH, DIRECTIONS = 12, 16, 24

def rnd(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float().double()

def vic_reg(p, t, invariance, variance, covariance):
    loss = invariance * ((p - t) ** 2).mean()
    for z in (p, t):
        c = torch.cov(z.T)
        loss = loss + variance / 2 * torch.relu(1 - torch.sqrt(c.diagonal() + 1e-4)).mean()
        loss = loss + covariance * (c - c.diagonal().diag()).square().sum() / z.shape[1]
    return loss

def sig_reg(p, t, weight, directions):
    points = torch.linspace(-5, 5, 17, dtype=torch.float64)
    window = torch.exp(-points ** 2 / 2)
    def statistics(z):
        found = torch.exp(1j * (z @ directions.T)[..., None] * points).mean(0)
        return len(z) * torch.trapezoid((found - window).abs() ** 2 * window, points, dim=-1)
    return (1 - weight) * ((p - t) ** 2).mean() + weight * (statistics(p).mean() + statistics(t).mean()) / 2

directions = rnd(3, DIRECTIONS, WIDTH)
directions = (directions / directions.norm(dim=1, keepdim=True)).float()
io = {'in.directions': directions}
factors = dict(invariance=25.0, variance=25.0, covariance=1.0, weight=0.05)
for i, spread in enumerate((1.3 * torch.ones(WIDTH), torch.tensor([0.01] * 3 + [0.6] * (WIDTH - 3)))):
    for name, loss in (('vic_reg', lambda p, t: vic_reg(p, t, factors['invariance'], factors['variance'], factors['covariance'])),
                       ('sig_reg', lambda p, t: sig_reg(p, t, factors['weight'], directions.double()))):
        p, t = ((rnd(10 * i + j, ROWS, WIDTH) * spread.double() + i).float().double().requires_grad_() for j in (1, 2))
        out = loss(p, t)
        out.backward()
        io |= {f'in.{i}.predicted': p, f'in.{i}.target': t, f'out.{i}.{name}': out,
               f'out.{i}.{name}.d_predicted': p.grad, f'out.{i}.{name}.d_target': t.grad}
        print(i, name, out.item(), p.grad.abs().max().item())

folder = f'{sys.argv[1]}/regularised'
os.makedirs(folder, exist_ok=True)
json.dump(factors, open(f'{folder}/config.json', 'w'), indent=1)
save_file({k: v.detach().float().contiguous().clone() for k, v in io.items()}, f'{folder}/io.safetensors')
