"""Attention of training/cuda against PyTorch: correctness in float64, speed, and the tiles to choose among.

    python3 bench/cuda/attention.py [--sweep] [--only WORD]

Without --sweep the checked-in kernels alone are checked and timed. Results go to $OUT/attention.json."""

import argparse
import math
import os

import torch

from device import HERE, Parts, ceil, compiled, error, milliseconds, module

# (batch, seq, heads, kvheads, hd) of the timings; the first is the one that counts.
SHAPES = [(4, 2048, 16, 16, 128), (4, 2048, 16, 4, 128), (4, 2048, 16, 16, 64), (1, 4096, 32, 8, 128)]

# The tables of flash.cu: D BM BN THREADS shared.
FORWARD = {
    32: ("flash_fwd_d32", 128, 64, 128, 16384),
    64: ("flash_fwd_d64", 128, 64, 128, 32768),
    96: ("flash_fwd_d96", 128, 64, 128, 49152),
    128: ("flash_fwd_d128", 128, 64, 128, 65536),
}
KEYS = {
    32: ("flash_dkdv_d32", 64, 128, 256, 33792),
    64: ("flash_dkdv_d64", 64, 128, 256, 66560),
    96: ("flash_dkdv_d96", 64, 64, 128, 49664),
    128: ("flash_dkdv_d128", 64, 64, 128, 66048),
}
QUERIES = {
    32: ("flash_dq_d32", 64, 64, 128, 16384),
    64: ("flash_dq_d64", 64, 64, 128, 32768),
    96: ("flash_dq_d96", 64, 64, 128, 49152),
    128: ("flash_dq_d128", 64, 64, 128, 65536),
}


class Problem:
    def __init__(self, batch, seq, heads, kvheads, hd, seed=0):
        self.batch, self.seq, self.heads, self.kvheads, self.hd = batch, seq, heads, kvheads, hd
        g = torch.Generator("cuda").manual_seed(seed)
        rows = batch * seq

        def fresh(h):
            return torch.randn(rows, h * hd, device="cuda", generator=g).bfloat16()

        self.q, self.k, self.v, self.dout = fresh(heads), fresh(kvheads), fresh(kvheads), fresh(heads)
        nan = float("nan")
        self.out, self.dq = torch.full_like(self.q, nan), torch.full_like(self.q, nan)
        self.dk, self.dv = torch.full_like(self.k, nan), torch.full_like(self.k, nan)
        self.lse = torch.full((rows, heads), nan, device="cuda")
        self.padded = ceil(seq, 128) * 128
        self.stats = torch.full((batch * heads, self.padded, 2), nan, device="cuda")
        self.scale = 1 / math.sqrt(hd)
        self.d = 32 * ceil(hd, 32)

    def flops(self):
        return 4 * self.batch * self.heads * self.seq * (self.seq + 1) / 2 * self.hd

    def group(self, heads, sharing):
        """How many heads the blocks work on at a time, as in fast_attention.go."""
        pairs, most = self.batch * heads, max(1, (16 << 20) // (self.seq * self.hd * 4)) * sharing
        return ceil(pairs, ceil(pairs, most))

    def shape(self, group):
        h, kv = self.heads * self.hd, self.kvheads * self.hd
        return (self.batch, self.seq, self.heads, self.kvheads, self.hd, h, h, kv, kv, self.scale, group)

    def forward(self, m, tile, group=None):
        name, bm, _, threads, shared = tile
        group = group or self.group(self.heads, self.heads // self.kvheads)
        return m.prepare(name, (self.batch * self.heads * ceil(self.seq, bm),), (threads,), shared,
                         self.out, self.lse, self.q, self.k, self.v, *self.shape(group))

    def prologue(self, m):
        lanes = 16 if self.hd > 64 else 8 if self.hd > 32 else 4
        return m.prepare("flash_stats", (ceil(self.batch * self.padded * self.heads * lanes, 256),), (256,), 0, self.stats, self.dout,
                         self.out, self.lse, self.batch, self.seq, self.heads, self.hd, self.heads * self.hd)

    def backward(self, m):
        calls = [self.prologue(m), self.keys(m, KEYS[self.d]), self.queries(m, QUERIES[self.d])]

        def all_three():
            for c in calls:
                c()

        return all_three

    def keys(self, m, tile, group=None):
        name, _, bn, threads, shared = tile
        group = group or self.group(self.kvheads, 1)
        return m.prepare(name, (self.batch * self.kvheads * ceil(self.seq, bn),), (threads,), shared, self.dk, self.dv, self.dout,
                         self.q, self.k, self.v, self.stats, *self.shape(group))

    def queries(self, m, tile, group=None):
        name, bm, _, threads, shared = tile
        group = group or self.group(self.heads, self.heads // self.kvheads)
        return m.prepare(name, (self.batch * self.heads * ceil(self.seq, bm),), (threads,), shared, self.dq, self.dout, self.q,
                         self.k, self.v, self.stats, *self.shape(group))

    def torch_inputs(self):
        def view(x, h):
            return x.view(self.batch, self.seq, h, self.hd).transpose(1, 2).detach().requires_grad_()

        return view(self.q, self.heads), view(self.k, self.kvheads), view(self.v, self.kvheads)

    def reference(self):
        """out, lse, dq, dk, dv in float64, a head at a time."""
        b, s, h, kv, d = self.batch, self.seq, self.heads, self.kvheads, self.hd
        q, k, v = (x.double().view(b, s, n, d).transpose(1, 2) for x, n in ((self.q, h), (self.k, kv), (self.v, kv)))
        do = self.dout.double().view(b, s, h, d).transpose(1, 2)
        out, dq = torch.empty_like(q), torch.empty_like(q)
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        lse = torch.empty(b, h, s, dtype=torch.float64, device="cuda")
        mask = torch.ones(s, s, dtype=torch.bool, device="cuda").triu(1)
        for i in range(h):
            j = i // (h // kv)
            x = (q[:, i] @ k[:, j].transpose(1, 2) * self.scale).masked_fill_(mask, -math.inf)
            lse[:, i] = x.logsumexp(-1)
            p = (x - lse[:, i, :, None]).exp()
            out[:, i] = p @ v[:, j]
            dp = do[:, i] @ v[:, j].transpose(1, 2)
            ds = p * (dp - (p * dp).sum(-1, keepdim=True)) * self.scale
            dq[:, i] = ds @ k[:, j]
            dk[:, j] += ds.transpose(1, 2) @ q[:, i]
            dv[:, j] += p.transpose(1, 2) @ do[:, i]

        def rows(x):
            return x.transpose(1, 2).reshape(b * s, -1)

        return rows(out), lse.transpose(1, 2).reshape(b * s, h), rows(dq), rows(dk), rows(dv)


LIMIT = 8e-3  # relative error of bfloat16 results


def require(what, e, limit):
    if not e < limit:
        raise AssertionError(f"{what}: relative error {e:.2e}, limit {limit:.0e}")


def check_gradients(p, what, want, worst):
    for name, got, ref in (("dq", p.dq, want[2]), ("dk", p.dk, want[3]), ("dv", p.dv, want[4])):
        e = error(got, ref)
        if p.seq == 1 and name != "dv":
            e = got.abs().max().item()  # they are 0
        worst[name] = max(worst.get(name, 0), e)
        require(f"{what} {name}", e, LIMIT)
        got.fill_(float("nan"))


def check():
    m, worst = module("flash"), {}
    shapes = [(2, 5, 2, 1, 16), (1, 77, 4, 2, 32), (3, 130, 2, 2, 48), (2, 1000, 4, 1, 64), (1, 129, 2, 2, 72), (2, 333, 4, 4, 96),
              (2, 517, 6, 2, 128), (1, 1, 1, 1, 128), (4, 2048, 4, 2, 128), (1, 2048, 8, 8, 64), (1, 2500, 2, 1, 120)]
    for shape in shapes:
        p = Problem(*shape, seed=sum(shape))
        want = p.reference()
        p.forward(m, FORWARD[p.d])()
        e, l = error(p.out, want[0]), error(p.lse, want[1])
        worst["out"], worst["lse"] = max(worst.get("out", 0), e), max(worst.get("lse", 0), l if p.seq > 1 else 0)
        require(f"{shape} out", e, LIMIT)
        require(f"{shape} lse", l, 1e-5)
        p.backward(m)()
        check_gradients(p, str(shape), want, worst)
    print("  worst relative errors: " + ", ".join(f"{k} {v:.1e}" for k, v in worst.items()), flush=True)
    # A hundred runs, with other work around them, give the same bits.
    p = Problem(2, 2048, 8, 4, 128)
    p.forward(m, FORWARD[128])()
    f, first = p.backward(m), None
    noise = torch.randn(1024, 1024, device="cuda")
    for i in range(100):
        if i % 3 == 0:
            noise @ noise
        f()
        now = torch.cat([x.flatten().view(torch.int16).clone() for x in (p.dq, p.dk, p.dv)])
        if first is None:
            first = now
        if not torch.equal(first, now):
            raise AssertionError(f"run {i} of the gradient differs")
    print("  100 runs of the gradient: the same bits", flush=True)
    return worst


def backends():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    import contextlib
    yield "default", contextlib.nullcontext
    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"):
        yield name.split("_")[0].lower(), lambda n=name: sdpa_kernel(getattr(SDPBackend, n))


def time_torch():
    results = {}
    for shape in SHAPES:
        p = Problem(*shape)
        q, k, v = p.torch_inputs()
        do = p.dout.view(p.batch, p.seq, p.heads, p.hd).transpose(1, 2)
        gqa = {"enable_gqa": True} if p.heads != p.kvheads else {}
        for name, context in backends():
            try:
                with context():
                    def forward():
                        with torch.no_grad():
                            torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, **gqa)

                    fwd = milliseconds([forward])
                    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, **gqa)
                    bwd = milliseconds([lambda: torch.autograd.grad(out, (q, k, v), do, retain_graph=True)])
            except RuntimeError as e:
                print(f"  torch {name:10} {shape}: {str(e).splitlines()[0][:90]}", flush=True)
                continue
            results[f"{shape} {name}"] = [fwd, bwd]
            print(f"  torch {name:10} {shape}: forward {fwd:.3f} ms {p.flops() / fwd / 1e9:.0f} TFLOP/s, "
                  f"backward {bwd:.3f} ms {2.5 * p.flops() / bwd / 1e9:.0f} TFLOP/s", flush=True)
    return results


def time_ours():
    m, results = module("flash"), {}
    for shape in SHAPES:
        p = Problem(*shape)
        line = {"forward": milliseconds([p.forward(m, FORWARD[p.d])]), "backward": milliseconds([p.backward(m)]),
                "stats": milliseconds([p.prologue(m)]), "dkdv": milliseconds([p.keys(m, KEYS[p.d])]),
                "dq": milliseconds([p.queries(m, QUERIES[p.d])])}
        if shape == SHAPES[0]:
            for g in (4, 16, 64):
                line[f"forward, group {g}"] = milliseconds([p.forward(m, FORWARD[p.d], g)])
                line[f"dkdv, group {g}"] = milliseconds([p.keys(m, KEYS[p.d], g)])
                line[f"dq, group {g}"] = milliseconds([p.queries(m, QUERIES[p.d], g)])
        results[str(shape)] = line
        print(f"  {shape}: " + ", ".join(f"{k} {v:.3f}" for k, v in line.items()) + " ms", flush=True)
    return results


def variants(kind):
    """The lines KIND(D, BM, BN, warps, stages, blocks) of flash_sweep.cu."""
    import re
    with open(os.path.join(HERE, "flash_sweep.cu")) as f:
        for line in f:
            found = re.match(kind + r"\((.*)\)$", line.strip())
            if found:
                yield tuple(int(x) for x in found.group(1).split(","))


def shared_of(kind, d, bm, bn, stages):
    q, k = bm * d * 2, bn * d * 2
    if kind == "F":
        return q + 2 * stages * k
    if kind == "Q":
        return 2 * q + 2 * stages * k
    return 2 * k + 2 * stages * q + stages * bm * 8


def sweep(kind, prefix, d):
    m = compiled(os.path.join(HERE, "flash_sweep.cu"))
    shape = (4, 2048, 16, 16, d)
    p, results = Problem(*shape), {}
    small = Problem(2, 300, 4, 2, d, seed=5)
    want = small.reference()
    for s in (small, p):
        s.forward(m, (f"fwd_{d}_128_64_4_1_2", 128, 64, 128, shared_of("F", d, 128, 64, 1)))()
        s.prologue(m)()
    for v in variants(kind):
        if v[0] != d:
            continue
        _, bm, bn, warps, stages, _ = v
        name = f"{prefix}_" + "_".join(map(str, v))
        tile = (name, bm, bn, warps * 32, shared_of(kind, d, bm, bn, stages))
        make = {"F": Problem.forward, "K": Problem.keys, "Q": Problem.queries}[kind]
        try:
            make(small, m, tile)()
            pairs = {"F": [(small.out, want[0])], "Q": [(small.dq, want[2])], "K": [(small.dk, want[3]), (small.dv, want[4])]}
            e = max(error(got, ref) for got, ref in pairs[kind])
            if not e < LIMIT:
                raise RuntimeError(f"relative error {e:.2e}")
            ms = milliseconds([make(p, m, tile)], rounds=9)
        except RuntimeError as problem:
            print(f"  {name}: {problem}", flush=True)
            continue
        blocks, registers, local = m.occupancy(name, warps * 32, tile[4])
        products = {"F": 2, "Q": 3, "K": 4}[kind]
        rate = p.flops() / 2 * products / ms / 1e9
        results[name] = {"ms": ms, "tflops": rate, "blocks": blocks, "registers": registers, "local": local, "shared": tile[4]}
        print(f"  {name:24} {ms:.3f} ms {rate:4.0f} TFLOP/s, {blocks} blocks/SM, {registers} registers, {local} local, {tile[4]} shared",
              flush=True)
    return results


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--sweep", action="store_true", help="time the tiles of flash_sweep.cu too")
    a.add_argument("--only", default="", help="only parts with this word in their name")
    options = a.parse_args()
    parts = Parts(60)
    todo = [("check", check), ("torch", time_torch), ("ours", time_ours)]
    if options.sweep:
        for d in (128, 64):
            todo += [(f"sweep {prefix} {d}", sweep, kind, prefix, d) for kind, prefix in (("F", "fwd"), ("K", "dkdv"), ("Q", "dq"))]
    for name, *call in todo:
        if options.only in name:
            parts.run(name, *call)
    theirs, ours = parts.results.get("torch"), parts.results.get("ours")
    if isinstance(theirs, dict) and isinstance(ours, dict):
        print(f"{'batch, seq, heads, kvheads, hd':32} {'':9} {'ours ms':>8} {'TFLOP/s':>8}   ours/torch speed: default, and each backend")
        for shape in SHAPES:
            flops = 4 * shape[0] * shape[2] * shape[1] * (shape[1] + 1) / 2 * shape[4]
            for i, what in enumerate(("forward", "backward")):
                ms = ours[str(shape)][what]
                ratios = ", ".join(f"{k.split(') ')[1]} {v[i] / ms:.2f}" for k, v in theirs.items() if k.startswith(str(shape)))
                print(f"{str(shape):32} {what:9} {ms:8.3f} {flops * (1, 2.5)[i] / ms / 1e9:8.0f}   {ratios}")
    parts.finish("attention.json")


main()
