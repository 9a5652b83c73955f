#!/usr/bin/env python3
"""PyTorch program for comparison: one VL-JEPA training step at the paper's shapes.

It is written as a good PyTorch engineer would write it: plain modules with
F.scaled_dot_product_attention (flash), bf16 autocast over f32 parameters, torch.compile, fused
AdamW, global norm clipping. Weights and inputs are random; the arithmetic and the shapes are the
paper's (V-JEPA 2 ViT-L frozen, eight bidirectional Llama-3.2-1B layers, EmbeddingGemma-300M, 1,536-d
InfoNCE with --negatives rows in place of other ranks' rows).

  python torch_step.py --frames 2 --batch 128          images (one frame, duplicated)
  python torch_step.py --frames 8 --batch 48           video
  python torch_step.py --frames 32 --batch 12          long video
  python torch_step.py --device cpu --tiny --mode eager   shows that it works, on any machine
  python torch_step.py --device cpu --threads 2 --mode eager --dims '{"vd":64,…}' --patch 8
    --crop 32 --frames 4 --query 7 --train-vision         for comparison with the host backend, with
                                                          the quickstart's dimensions in --dims
Dimensions: v* X-encoder (d width, h heads, f MLP, l layers), p* predictor (kv key-value heads, hd
head width; qv vocabulary of its own token embeddings, 0 for none), y* Y-encoder, e shared embedding.
Prints one JSON line: samples/s (median), ms per step, peak memory, TFLOP/s as counted by `flops`.
"""
import argparse, json, math, statistics, time
import torch, torch.nn as nn, torch.nn.functional as F


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def angles(positions, dim, theta, device):
    f = theta ** (-torch.arange(0, dim, 2, device=device).float() / dim)
    a = positions[:, None].float() * f
    return torch.cat((a, a), -1)


class RMSNorm(nn.Module):
    def __init__(self, d, eps, plus_one=False):
        super().__init__()
        self.weight, self.eps, self.one = nn.Parameter(torch.zeros(d) if plus_one else torch.ones(d)), eps, float(plus_one)

    def forward(self, x):
        h = x.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)
        return (h * (self.one + self.weight.float())).to(x.dtype)


class ViTBlock(nn.Module):
    def __init__(self, d, heads, ffn):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(d, eps=1e-6), nn.LayerNorm(d, eps=1e-6)
        self.qkv, self.proj, self.fc1, self.fc2, self.h = nn.Linear(d, 3 * d), nn.Linear(d, d), nn.Linear(d, ffn), nn.Linear(ffn, d), heads

    def forward(self, x, cos, sin):
        b, n, d = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, n, 3, self.h, d // self.h).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        return x + self.fc2(F.gelu(self.fc1(self.n2(x))))


class DecoderBlock(nn.Module):
    """Llama (gemma=False) or Gemma 3 (gemma=True) layer, bidirectional."""

    def __init__(self, d, heads, kv, hd, ffn, gemma):
        super().__init__()
        self.h, self.kv, self.hd, self.gemma = heads, kv, hd, gemma
        eps = 1e-6 if gemma else 1e-5
        self.q, self.k, self.v = (nn.Linear(d, m * hd, bias=False) for m in (heads, kv, kv))
        self.o = nn.Linear(heads * hd, d, bias=False)
        self.gate, self.up, self.down = nn.Linear(d, ffn, bias=False), nn.Linear(d, ffn, bias=False), nn.Linear(ffn, d, bias=False)
        self.n1, self.n2 = RMSNorm(d, eps, gemma), RMSNorm(d, eps, gemma)
        if gemma:
            self.p1, self.p2, self.qn, self.kn = RMSNorm(d, eps, True), RMSNorm(d, eps, True), RMSNorm(hd, eps, True), RMSNorm(hd, eps, True)

    def forward(self, x, cos, sin):
        b, n, _ = x.shape
        h = self.n1(x)
        q, k, v = (f(h).view(b, n, m, self.hd).transpose(1, 2) for f, m in ((self.q, self.h), (self.k, self.kv), (self.v, self.kv)))
        if self.gemma:
            q, k = self.qn(q), self.kn(k)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        a = self.o(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).reshape(b, n, -1))
        x = x + (self.p1(a) if self.gemma else a)
        h = self.n2(x)
        g = F.gelu(self.gate(h), approximate="tanh") if self.gemma else F.silu(self.gate(h))
        m = self.down(g * self.up(h))
        return x + (self.p2(m) if self.gemma else m)


class VLJEPA(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.patch = nn.Conv3d(3, c["vd"], (2, c["patch"], c["patch"]), (2, c["patch"], c["patch"]))
        self.vit = nn.ModuleList(ViTBlock(c["vd"], c["vh"], c["vf"]) for _ in range(c["vl"]))
        self.vn = nn.LayerNorm(c["vd"], eps=1e-6)
        self.vproj = nn.Linear(c["vd"], c["pd"])
        self.qemb = nn.Embedding(c["qv"], c["pd"]) if c["qv"] else None
        self.pred = nn.ModuleList(DecoderBlock(c["pd"], c["ph"], c["pkv"], c["phd"], c["pf"], False) for _ in range(c["pl"]))
        self.pn, self.phead = RMSNorm(c["pd"], 1e-5), nn.Linear(c["pd"], c["e"])
        self.yemb = nn.Embedding(c["yv"], c["yd"])
        self.y = nn.ModuleList(DecoderBlock(c["yd"], c["yh"], c["ykv"], c["yhd"], c["yf"], True) for _ in range(c["yl"]))
        self.yn, self.yhead = RMSNorm(c["yd"], 1e-6, True), nn.Linear(c["yd"], c["e"])
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        for p in [*self.patch.parameters(), *self.vit.parameters(), *self.vn.parameters()]:
            p.requires_grad_(c["train_vision"])

    def vision(self, x):
        h = self.patch(x).flatten(2).transpose(1, 2)
        a = angles(torch.arange(h.shape[1], device=x.device), h.shape[2] // self.c["vh"], 1e4, x.device)
        for b in self.vit:
            h = b(h, a.cos().to(h.dtype), a.sin().to(h.dtype))
        return self.vn(h)

    def predict(self, s, query=None):
        h = self.vproj(s)
        if query is not None:
            h = torch.cat((h, self.qemb(query).to(h.dtype)), 1)
        a = angles(torch.arange(h.shape[1], device=h.device), self.c["phd"], 5e5, h.device)
        for b in self.pred:
            h = b(h, a.cos().to(h.dtype), a.sin().to(h.dtype))
        return F.normalize(self.phead(self.pn(h).mean(1)).float(), dim=-1)

    def target(self, ids):
        h = self.yemb(ids) * math.sqrt(self.c["yd"])
        a = angles(torch.arange(h.shape[1], device=h.device), self.c["yhd"], 1e4, h.device)
        for b in self.y:
            h = b(h, a.cos().to(h.dtype), a.sin().to(h.dtype))
        return F.normalize(self.yhead(self.yn(h).mean(1)).float(), dim=-1)

    def loss(self, frames, ids, other_p, other_t, query=None):
        with torch.set_grad_enabled(self.c["train_vision"]):
            s = self.vision(frames)
        p, t = self.predict(s, query), self.target(ids)
        z = self.scale.exp()
        own = torch.arange(p.shape[0], device=p.device)
        return 0.5 * (F.cross_entropy(z * p @ torch.cat((t, other_t)).T, own) + F.cross_entropy(z * t @ torch.cat((p, other_p)).T, own))


PAPER = dict(patch=16, train_vision=False, vd=1024, vh=16, vf=4096, vl=24, qv=0, pd=2048, ph=32, pkv=8, phd=64, pf=8192, pl=8, yd=768, yh=3, ykv=1, yhd=256, yf=1152, yl=24, yv=262144, e=1536)
TINY = dict(patch=16, train_vision=False, vd=64, vh=2, vf=256, vl=2, qv=0, pd=128, ph=2, pkv=1, phd=64, pf=256, pl=2, yd=64, yh=2, ykv=1, yhd=32, yf=96, yl=2, yv=512, e=64)


def flops(c, frames, crop, ylen, qlen=0):
    """TFLOP per sample: forward of the X-encoder (and backward if it is trained), forward and backward
    of predictor and Y-encoder. A multiply-add counts as 2 operations."""
    n = frames // 2 * (crop // c["patch"]) ** 2
    vit = c["vl"] * (2 * (4 * c["vd"] + 2 * c["vf"]) * c["vd"] * n + 4 * n * n * c["vd"]) + 2 * n * c["vd"] * 3 * 2 * c["patch"] ** 2
    vit *= 3 if c["train_vision"] else 1
    m, qd, kd = n + qlen, c["ph"] * c["phd"], c["pkv"] * c["phd"]
    pred = c["pl"] * (2 * m * (2 * c["pd"] * qd + 2 * c["pd"] * kd + 3 * c["pd"] * c["pf"]) + 4 * m * m * qd) + 2 * n * c["vd"] * c["pd"]
    yd, ykd = c["yh"] * c["yhd"], c["ykv"] * c["yhd"]
    text = c["yl"] * (2 * ylen * (2 * c["yd"] * yd + 2 * c["yd"] * ykd + 3 * c["yd"] * c["yf"]) + 4 * ylen * ylen * yd)
    return (vit + 3 * (pred + text)) / 1e12


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--frames", type=int, default=2); ap.add_argument("--batch", type=int, default=128)
    ap.add_argument("--crop", type=int, default=256); ap.add_argument("--text", type=int, default=32)
    ap.add_argument("--negatives", type=int, default=24576); ap.add_argument("--steps", type=int, default=20)
    ap.add_argument("--device", default="cuda"); ap.add_argument("--tiny", action="store_true")
    ap.add_argument("--dims", default="{}", help="JSON that overrides dimensions, such as those of the quickstart's model")
    ap.add_argument("--patch", type=int, default=16)
    ap.add_argument("--query", type=int, default=0, help="query tokens after the visual tokens; needs their vocabulary qv in --dims")
    ap.add_argument("--threads", type=int, default=0)
    ap.add_argument("--train-vision", action="store_true", help="also train the X-encoder, as the quickstart does")
    ap.add_argument("--mode", default="default", help="torch.compile mode, or 'eager'")
    a = ap.parse_args()
    if a.tiny:
        a.batch, a.crop, a.negatives, a.steps = min(a.batch, 4), 32, 64, 3
    c = {**(TINY if a.tiny else PAPER), **json.loads(a.dims), "patch": a.patch, "train_vision": a.train_vision}
    if a.threads:
        torch.set_num_threads(a.threads)
    torch.manual_seed(0); torch.set_float32_matmul_precision("high")
    dev, m = torch.device(a.device), VLJEPA(c).to(a.device)
    slow = [p for n, p in m.named_parameters() if p.requires_grad and n.startswith(("y.", "yemb", "yn"))]
    fast = [p for n, p in m.named_parameters() if p.requires_grad and not n.startswith(("y.", "yemb", "yn"))]
    opt = torch.optim.AdamW([dict(params=fast), dict(params=slow, lr=2.5e-6)], lr=5e-5, betas=(0.9, 0.95), weight_decay=0.05, fused=dev.type == "cuda")
    loss_fn = m.loss if a.mode == "eager" else torch.compile(m.loss, mode=None if a.mode == "default" else a.mode)
    frames = torch.randn(a.batch, 3, a.frames, a.crop, a.crop, device=dev, dtype=torch.bfloat16 if dev.type == "cuda" else torch.float32)
    ids = torch.randint(0, c["yv"], (a.batch, a.text), device=dev)
    query = torch.randint(0, c["qv"], (a.batch, a.query), device=dev) if a.query else None
    other = [F.normalize(torch.randn(max(a.negatives - a.batch, 0), c["e"], device=dev), dim=-1) for _ in range(2)]

    def step():
        with torch.autocast(dev.type, torch.bfloat16, enabled=dev.type == "cuda"):
            loss = loss_fn(frames, ids, *other, query)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*fast, *slow], 1.0)
        opt.step(); opt.zero_grad(set_to_none=True)
        return loss

    def timed():
        if dev.type != "cuda":
            t = time.perf_counter(); step(); return (time.perf_counter() - t) * 1e3
        s, e = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        s.record(); step(); e.record(); torch.cuda.synchronize()
        return s.elapsed_time(e)

    for _ in range(2 if a.tiny else 6):
        loss = step()
    if dev.type == "cuda":
        torch.cuda.synchronize(); torch.cuda.reset_peak_memory_stats()
    ms = statistics.median(timed() for _ in range(a.steps))
    tf = flops(c, a.frames, a.crop, a.text, a.query)
    print(json.dumps(dict(peer="torch", torch=torch.__version__, mode=a.mode, frames=a.frames, batch=a.batch, text=a.text, query=a.query, ms=round(ms, 3),
        samples_per_s=round(a.batch / ms * 1e3, 2), tflop_per_sample=round(tf, 4), tflops=round(tf * a.batch / ms * 1e3, 1),
        peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 2) if dev.type == "cuda" else None, loss=round(loss.item(), 4),
        trainable=sum(p.numel() for p in [*fast, *slow]))))


if __name__ == "__main__":
    main()
