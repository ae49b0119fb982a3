"""The peers of `bzd bench engine`: products in OpenBLAS (numpy's wheel) and a mixture-of-experts model in eager PyTorch.

It reads one request a line, JSON, and answers each with the seconds of single runs: of processor time on one thread,
otherwise of the clock. The model is written by hand with the fused operations that torch has (scaled_dot_product_attention,
AdamW in one kernel), which is faster than the one of transformers; its hub is frozen.
"""
import json
import os
import sys
import time

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy starts its threads

import numpy as np
import torch
import torch.nn.functional as F


def runs(f, seconds, threads):
    clock = time.process_time if threads == 1 else time.perf_counter
    out, begin = [], time.perf_counter()
    while not out or time.perf_counter() - begin < seconds:
        start = clock()
        f()
        out.append(clock() - start)
    return out


def product(q):
    r = np.random.default_rng(1)
    m, n, k = q["m"], q["n"], q["k"]
    new = lambda *shape: r.standard_normal(shape, dtype=np.float32)
    groups = [(new(m, k), new(n, k).T if q["turned"] else new(k, n), np.empty((m, n), np.float32)) for _ in range(q["groups"])]

    def run():
        for a, b, c in groups:
            np.matmul(a, b, out=c)
    return run


class Model(torch.nn.Module):
    def __init__(self, c, trained):
        super().__init__()
        self.c = c
        new = lambda *shape: torch.nn.Parameter(torch.randn(*shape) / shape[-1] ** 0.5, requires_grad=False)
        qw, kw = c["heads"] * c["head_dim"], c["kv_heads"] * c["head_dim"]
        self.embed, self.head, self.norm = new(c["vocab"], c["dim"]), new(c["vocab"], c["dim"]), torch.ones(c["dim"])
        self.layers = []
        self.trained = []
        for _ in range(c["layers"]):
            y = {"q": new(qw, c["dim"]), "k": new(kw, c["dim"]), "v": new(kw, c["dim"]), "o": new(c["dim"], qw),
                 "router": new(c["experts"], c["dim"]).requires_grad_(),
                 "experts": [[new(c["width"], c["dim"]), new(c["width"], c["dim"]), new(c["dim"], c["width"])] for _ in range(c["experts"])]}
            self.trained.append(y["router"])
            for e in y["experts"][c["experts"] - trained:]:
                self.trained += [w.requires_grad_() for w in e]
            self.layers.append(y)
        half = c["head_dim"] // 2
        angle = torch.outer(torch.arange(c["seq"]).float(), c["theta"] ** (-torch.arange(half).float() / half))
        self.cos, self.sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)

    def rotate(self, x, heads):
        c = self.c
        x = x.view(-1, c["seq"], heads, c["head_dim"]).transpose(1, 2)
        x = F.rms_norm(x, (c["head_dim"],), eps=c["eps"])
        a, b = x.chunk(2, -1)
        return x * self.cos + torch.cat((-b, a), -1) * self.sin

    def experts(self, x, y):
        c = self.c
        p = F.softmax(F.linear(x, y["router"]), -1)
        w, chosen = p.topk(c["topk"])
        if c["normalize"]:
            w = w / w.sum(-1, keepdim=True)
        slots, order = chosen.flatten().sort(stable=True)
        rows, out = order // c["topk"], []
        for part, (gate, up, down) in zip(x[rows].split(torch.bincount(slots, minlength=c["experts"]).tolist()), y["experts"]):
            out.append(F.linear(F.silu(F.linear(part, gate)) * F.linear(part, up), down))
        out = torch.cat(out) * w.flatten()[order, None]
        return torch.zeros_like(x).index_add(0, rows, out)

    def loss(self, tokens, targets):
        c = self.c
        h = F.embedding(tokens, self.embed).view(-1, c["dim"])
        norm = lambda x: F.rms_norm(x, (c["dim"],), self.norm, c["eps"])
        for y in self.layers:
            x = norm(h)
            q, k = self.rotate(F.linear(x, y["q"]), c["heads"]), self.rotate(F.linear(x, y["k"]), c["kv_heads"])
            v = F.linear(x, y["v"]).view(-1, c["seq"], c["kv_heads"], c["head_dim"]).transpose(1, 2)
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            h = h + F.linear(o.transpose(1, 2).reshape(h.shape[0], -1), y["o"])
            h = h + self.experts(norm(h), y)
        return F.cross_entropy(F.linear(norm(h), self.head), targets.flatten())


def model(q):
    torch.manual_seed(1)
    torch.set_num_threads(q["threads"])
    m = Model(q["config"], q["trained"])
    tokens = torch.randint(0, q["config"]["vocab"], (q["batch"], q["config"]["seq"]))
    targets = torch.randint(0, q["config"]["vocab"], tokens.shape)

    def evaluate():
        with torch.no_grad():
            m.loss(tokens, targets)

    if not q["train"]:
        return evaluate
    adam = torch.optim.AdamW(m.trained, lr=1e-6, weight_decay=0, fused=True)

    def step():
        adam.zero_grad(set_to_none=True)
        m.loss(tokens, targets).backward()
        torch.nn.utils.clip_grad_norm_(m.trained, 1.0)
        adam.step()
    return step


def main():
    print(json.dumps({"numpy": np.__version__, "torch": torch.__version__}), flush=True)
    task, run = None, None
    for line in sys.stdin:
        q = json.loads(line)
        seconds = q.pop("seconds")
        if q != task:
            run = None  # gives the memory back
            task, run = q, {"product": product, "model": model}[q["op"]](q)
            run()
        print(json.dumps(runs(run, seconds, q["threads"])), flush=True)


if __name__ == "__main__":
    main()
