"""Attention of training/cuda/kernels/flash_sm90.cu against float64 and PyTorch: correctness, determinism, speed, and the
constants to choose among.

    python3 bench/cuda/attention_sm90.py [--variants DIR] [--only WORD] [--limit SECONDS]

Every variant is a build of flash_sm90.cu with other constants: DIR/NAME.cubin where it is there, else nvcc's. Each runs in a
process of its own. Results go to $OUT/attention_sm90.json; the exit status is 1 if a variant failed."""

import argparse
import ctypes
import math
import os
import subprocess
import time

import torch

from device import KERNELS, Module, Parts, ceil, error, milliseconds, module

# (batch, seq, heads, kvheads, hd) of the timings; the first is the one that counts.
SHAPES = [(4, 2048, 16, 16, 128), (4, 2048, 16, 4, 128), (1, 4096, 32, 8, 128), (4, 2048, 16, 16, 64)]
CHECKS = [(1, 64, 1, 1, 128), (1, 128, 1, 1, 128), (1, 256, 1, 1, 128), (1, 1, 1, 1, 128), (2, 333, 4, 2, 128), (3, 65, 2, 2, 128),
          (2, 517, 6, 2, 128), (1, 2048, 8, 2, 128), (5, 1000, 16, 16, 128), (1, 256, 1, 1, 64), (2, 77, 4, 2, 64), (2, 1000, 6, 3, 64),
          (3, 2048, 16, 4, 64)]
LIMIT, LSE = 8e-3, 1e-5

# The tuples of flash_sm90.cu.
DEFAULT = {"FWD_128": (2, 128, 2, 1, 8), "FWD_64": (3, 128, 2, 1, 8), "KEYS_128": (2, 64, 4, 1, 1), "KEYS_64": (2, 64, 4, 1, 0),
           "QUERIES_128": (2, 64, 4, 1, 0), "QUERIES_64": (2, 128, 2, 1, 0)}
VARIANTS = {
    "default": {},
    "plain": {"FWD_128": (2, 128, 2, 0, 0), "FWD_64": (3, 128, 2, 0, 0), "KEYS_128": (2, 64, 4, 0, 0), "KEYS_64": (2, 128, 3, 0, 1),
              "QUERIES_128": (2, 128, 2, 0, 0), "QUERIES_64": (2, 128, 3, 0, 0)},
    "b": {"FWD_128": (2, 128, 2, 0, 8), "FWD_64": (2, 128, 4, 1, 8), "KEYS_128": (2, 64, 3, 0, 0), "KEYS_64": (2, 64, 6, 0, 0),
          "QUERIES_128": (2, 64, 4, 0, 0), "QUERIES_64": (2, 64, 6, 1, 0)},
    "c": {"FWD_128": (2, 128, 2, 1, 0), "FWD_64": (3, 128, 2, 0, 8), "KEYS_128": (2, 64, 4, 0, 1), "KEYS_64": (2, 64, 4, 0, 1),
          "QUERIES_128": (2, 64, 4, 1, 1), "QUERIES_64": (3, 64, 4, 1, 0)},
    "d": {"FWD_128": (3, 64, 2, 1, 8), "FWD_64": (3, 64, 4, 1, 8), "KEYS_128": (2, 64, 2, 0, 0), "KEYS_64": (2, 64, 4, 1, 1),
          "QUERIES_128": (2, 64, 4, 0, 1), "QUERIES_64": (3, 64, 4, 0, 0)},
    "e": {"FWD_128": (2, 64, 4, 1, 8), "FWD_64": (2, 128, 4, 0, 8), "KEYS_128": (2, 64, 3, 1, 1), "KEYS_64": (2, 64, 6, 1, 0),
          "QUERIES_128": (3, 64, 2, 0, 0), "QUERIES_64": (2, 64, 6, 0, 1)},
}


class Kernel:
    """What a tuple means: rows of queries and keys of a tile, threads and shared memory of a block."""

    def __init__(self, kind, d, values):
        groups, step, stages = values[:3]
        own, other = 64 * groups * d * 2, step * d * 2
        self.threads = (groups + 1) * 128
        self.rows = 64 * groups
        if kind == "FWD":
            self.name, self.shared = f"flash_fwd_sm90_d{d}", 2 * own + 2 * stages * other + 1024
        elif kind == "KEYS":
            self.name, self.shared = f"flash_dkdv_sm90_d{d}", 3 * own + stages * (2 * other + step * 8) + 1024
        else:
            self.name, self.shared = f"flash_dq_sm90_d{d}", 3 * own + 2 * stages * other + 1024


class Map:
    """Tensor map of a bfloat16 matrix: boxes of 64 rows of 128 bytes, 128-byte swizzle, zeros out of bounds."""

    def __init__(self, cuda, t):
        self.raw = ctypes.create_string_buffer(128 + 64)
        self.address = (ctypes.addressof(self.raw) + 63) & ~63
        rows, cols = t.shape
        status = cuda.cuTensorMapEncodeTiled(
            ctypes.c_void_p(self.address), 9, 2, ctypes.c_void_p(t.data_ptr()), (ctypes.c_uint64 * 2)(cols, rows),
            (ctypes.c_uint64 * 1)(cols * 2), (ctypes.c_uint32 * 2)(64, 64), (ctypes.c_uint32 * 2)(1, 1), 0, 3, 2, 0)
        if status:
            raise RuntimeError(f"cuTensorMapEncodeTiled: {status}")
        self.tensor = t


class Build(Module):
    """A build of flash_sm90.cu. Kernels take Maps too."""

    def __init__(self, path, options):
        super().__init__(path)
        self.options = {**DEFAULT, **options}
        self.sms = torch.cuda.get_device_properties(0).multi_processor_count

    def kernel(self, kind, d):
        return Kernel(kind, d, self.options[f"{kind}_{d}"])

    def prepare(self, name, grid, block, shared, *args):
        if name not in self.functions:
            f = ctypes.c_void_p()
            self.check(self.cuda.cuModuleGetFunction(ctypes.byref(f), self.module, name.encode()), name)
            self.check(self.cuda.cuFuncSetAttribute(f, 8, shared), name + " shared memory")
            self.functions[name] = f
        f, values = self.functions[name], []
        for a in args:
            if isinstance(a, Map):
                values.append(a.address)
            elif a is None or isinstance(a, torch.Tensor):
                values.append(ctypes.c_void_p(0 if a is None else a.data_ptr()))
            elif isinstance(a, int):
                values.append(ctypes.c_int(a))
            else:
                values.append(ctypes.c_float(a))
        array = (ctypes.c_void_p * len(values))(*[v if isinstance(v, int) else ctypes.addressof(v) for v in values])
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)

        def launch(keep=(values, args)):
            self.check(self.cuda.cuLaunchKernel(f, grid, 1, 1, block, 1, 1, shared, stream, array, None), name)

        return launch


class Problem:
    def __init__(self, batch, seq, heads, kvheads, hd, seed=0):
        self.batch, self.seq, self.heads, self.kvheads, self.hd = batch, seq, heads, kvheads, hd
        g = torch.Generator("cuda").manual_seed(seed)
        rows = batch * seq

        def fresh(h):
            return torch.randn(rows, h * hd, device="cuda", generator=g).bfloat16()

        self.q, self.k, self.v, self.dout = fresh(heads), fresh(kvheads), fresh(kvheads), fresh(heads)
        self.scale = 1 / math.sqrt(hd)
        self.padded = ceil(seq, 128) * 128
        self.turns = torch.zeros(2, dtype=torch.int32, device="cuda")
        self.stats = torch.full((batch * heads, self.padded, 2), float("nan"), device="cuda")
        # The results, and rows after them that nobody may write.
        nan = float("nan")
        self.out, self.dq = (torch.full((rows + 192, heads * hd), nan, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        self.dk, self.dv = (torch.full((rows + 192, kvheads * hd), nan, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        self.lse = torch.full((rows, heads), nan, device="cuda")
        self.maps = None

    def flops(self):
        return 4 * self.batch * self.heads * self.seq * (self.seq + 1) / 2 * self.hd

    def group(self, share):
        return max(1, int(20e6 / (self.seq * self.hd * 4)) * share)

    def map(self, m):
        if self.maps is None:
            self.maps = [Map(m.cuda, t) for t in (self.q, self.k, self.v, self.dout)]
        return self.maps

    def forward(self, m, group=None, turns=True):
        q, k, v, _ = self.map(m)
        t = m.kernel("FWD", self.hd)
        total = self.batch * self.heads * ceil(self.seq, t.rows)
        return m.prepare(t.name, min(m.sms, total), t.threads, t.shared, q, k, v, self.out, self.lse, self.turns if turns else None,
                         self.batch, self.seq, self.heads, self.kvheads, self.heads * self.hd, self.scale,
                         group or self.group(self.heads // self.kvheads))

    def keys(self, m, group=None, turns=True):
        t, kv = m.kernel("KEYS", self.hd), self.kvheads * self.hd
        total = self.batch * self.kvheads * ceil(self.seq, t.rows)
        return m.prepare(t.name, min(m.sms, total), t.threads, t.shared, *self.map(m), self.dk, self.dv, self.stats,
                         self.turns if turns else None, self.batch, self.seq, self.heads, self.kvheads, kv, kv, self.scale,
                         group or self.group(1))

    def queries(self, m, group=None, turns=True):
        t = m.kernel("QUERIES", self.hd)
        total = self.batch * self.heads * ceil(self.seq, t.rows)
        return m.prepare(t.name, min(m.sms, total), t.threads, t.shared, *self.map(m), self.dq, self.stats,
                         self.turns if turns else None, self.batch, self.seq, self.heads, self.kvheads, self.heads * self.hd, self.scale,
                         group or self.group(self.heads // self.kvheads))

    def statistics(self, out, lse):
        """What flash_stats computes, from out [rows, heads·hd] and lse [rows, heads]."""
        b, s, h = self.batch, self.seq, self.heads
        self.stats[..., 0], self.stats[..., 1] = math.inf, 0
        self.stats[:, :s, 0] = (lse.double() * math.log2(math.e)).float().view(b, s, h).transpose(1, 2).reshape(b * h, s)
        d = (self.dout.float() * out.float()).view(b, s, h, self.hd).sum(-1)
        self.stats[:, :s, 1] = d.transpose(1, 2).reshape(b * h, s)

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
            ds = do[:, i] @ v[:, j].transpose(1, 2)
            ds = p * (ds - (p * ds).sum(-1, keepdim=True)) * self.scale
            dq[:, i] = ds @ k[:, j]
            dk[:, j] += ds.transpose(1, 2) @ q[:, i]
            dv[:, j] += p.transpose(1, 2) @ do[:, i]

        def rows(x):
            return x.transpose(1, 2).reshape(b * s, -1)

        return rows(out), lse.transpose(1, 2).reshape(b * s, h), rows(dq), rows(dk), rows(dv)


class Checker:
    """Compares results and says where they are wrong."""

    def __init__(self, name, step):
        self.name, self.step, self.rows, self.failed, self.told = name, step, [], set(), {}

    def compare(self, what, shape, got, want, limit, p):
        rows = want.shape[0]
        stray = got.shape[0] > rows and not bool(torch.isnan(got[rows:]).all())
        part = got[:rows]
        # A result that is 0 in exact arithmetic has no relative error.
        e = (part.double() - want).norm().item() / max(want.norm().item(), 1e-2 * math.sqrt(want.numel()))
        ok = e < limit and not stray
        self.rows.append({"what": what, "shape": shape, "error": e, "ok": ok, "stray": stray})
        if not ok:
            self.failed.add(what)
            self.told[what] = self.told.get(what, 0) + 1
            if self.told[what] < 3:
                self.tell(what, shape, part.double(), want, limit, stray, p)
        got.fill_(float("nan"))
        return ok

    def tell(self, what, shape, got, want, limit, stray, p):
        print(f"  FAIL {self.name} {what} {shape}: error {error(got, want):.2e}, {int(torch.isnan(got).sum())} of {got.numel()} not numbers"
              f"{', rows beyond the end were written' if stray else ''}", flush=True)
        if what == "lse":
            got, want, width = got[:, :, None], want[:, :, None], 1
        else:
            width = p.hd
        heads = want.numel() // want.shape[0] // width
        got, want = (x.reshape(p.batch, p.seq, heads, width).nan_to_num(1e4) for x in (got, want))
        bad = (got - want).abs() > 0.05 * want.abs().mean() + 0.05 * want.abs()
        print(f"    share of wrong values by sequence {[round(x, 3) for x in bad.double().mean((1, 2, 3)).tolist()[:6]]}"
              f" by head {[round(x, 3) for x in bad.double().mean((0, 1, 3)).tolist()[:8]]}")
        by = [f"{i * 64}:{bad[:, i * 64:i * 64 + 64].double().mean():.3f}" for i in range(ceil(p.seq, 64))]
        print(f"    by 64 rows {' '.join(by[:34])}")
        inside = bad.double().mean((0, 2))  # [seq, width]
        rows = torch.stack([inside[i::64].mean(0) for i in range(min(64, p.seq))])
        print(f"    by row mod 64 {[round(x, 2) for x in rows.mean(1).tolist()]}")
        if width > 1:
            print(f"    by column/8 {[round(x, 2) for x in rows.mean(0).view(-1, 8).mean(1).tolist()]}"
                  f" by column mod 8 {[round(x, 2) for x in rows.mean(0).view(-1, 8).mean(0).tolist()]}")
        first = bad.nonzero()[:1].tolist()
        if first:
            b, r, h, c = first[0]
            e = min(c + 8, width)
            print(f"    first at sequence {b} row {r} head {h} column {c}: got {[round(x, 4) for x in got[b, r, h, c:e].tolist()]}"
                  f" want {[round(x, 4) for x in want[b, r, h, c:e].tolist()]}; by sum over columns {got[b, r, h].sum():.4f} {want[b, r, h].sum():.4f}",
                  flush=True)


def marks(name):
    """A file that says what a variant does, for when it hangs."""
    path = f"/tmp/step.{os.getuid()}.{name}"

    def step(what):
        with open(path, "w") as f:
            f.write(what)

    return path, step


def compile_variant(name, options, directory):
    path = os.path.join(directory or "", name + ".cubin")
    if directory and os.path.exists(path):
        return path
    path = f"/tmp/flash_sm90.{os.getuid()}.{name}.cubin"
    defines = [f"-D{k}={','.join(map(str, v))}" for k, v in options.items()]
    subprocess.run(["nvcc", "-cubin", "-gencode", "arch=compute_90a,code=sm_90a", "--fmad=false", "-std=c++17", "-I", KERNELS, *defines,
                    "-o", path, os.path.join(KERNELS, "flash_sm90.cu")], check=True)
    return path


def check(m, name, step):
    c = Checker(name, step)
    for shape in CHECKS:
        p = Problem(*shape, seed=sum(shape))
        want = p.reference()
        p.statistics(want[0].bfloat16(), want[1].float())
        for turns in (True, False):
            step(f"fwd {shape} turns {turns}")
            p.forward(m, turns=turns)()
            torch.cuda.synchronize()
            c.compare("out", shape, p.out, want[0], LIMIT, p)
            c.compare("lse", shape, p.lse, want[1], LSE, p)
            step(f"dkdv {shape} turns {turns}")
            p.keys(m, turns=turns)()
            torch.cuda.synchronize()
            c.compare("dv", shape, p.dv, want[4], LIMIT, p)
            c.compare("dk", shape, p.dk, want[3], LIMIT, p)
            step(f"dq {shape} turns {turns}")
            p.queries(m, turns=turns)()
            torch.cuda.synchronize()
            c.compare("dq", shape, p.dq, want[2], LIMIT, p)
            if p.turns.any():
                print(f"  FAIL {name} {shape}: the counters are left at {p.turns.tolist()}", flush=True)
                c.failed.add("turns")
                p.turns.zero_()
    worst = {}
    for r in c.rows:
        worst[r["what"]] = max(worst.get(r["what"], 0), r["error"] if r["error"] == r["error"] else math.inf)
    print(f"  {name}: worst relative errors " + ", ".join(f"{k} {v:.1e}" for k, v in worst.items())
          + (f"; FAILING {sorted(c.failed)}" if c.failed else ""), flush=True)
    return c


def check_bits(m, name, step, c):
    p = Problem(2, 1900, 8, 4, 128)
    p.forward(m)()
    p.statistics(p.out[:p.batch * p.seq], p.lse)
    noise, first = torch.randn(1024, 1024, device="cuda"), None
    step("determinism")
    for i in range(30):
        for turns in (True, False):
            for f in (p.forward, p.keys, p.queries):
                if i % 3 == 0:
                    noise @ noise
                f(m, turns=turns, group=1 + i)()
            now = torch.cat([x.flatten().view(torch.int16) for x in (p.out, p.dq, p.dk, p.dv, p.lse)]).clone()
            first = now if first is None else first
            if not torch.equal(first, now):
                where = (first != now).nonzero()
                print(f"  FAIL {name}: run {i} differs in {len(where)} values, first at {where[0].item()}", flush=True)
                c.failed.add("bits")
                return


def run_variant(name, options, directory):
    path, step = marks(name)
    step("load")
    begin = time.time()
    m = Build(compile_variant(name, options, directory), options)
    c = check(m, name, step)
    check_bits(m, name, step, c)
    times = {}
    for shape in SHAPES:
        p = Problem(*shape)
        p.forward(m)()
        p.statistics(p.out[:p.batch * p.seq], p.lse)
        line = times[str(shape)] = {}
        work = p.flops()
        for what, f, products in (("fwd", p.forward, 2), ("dkdv", p.keys, 4), ("dq", p.queries, 3)):
            share = p.heads // p.kvheads if what != "dkdv" else 1
            pairs = p.batch * (p.heads if what != "dkdv" else p.kvheads)
            for key, how in [(f"{g} pairs", {"group": g}) for g in sorted({min(x * share, pairs) for x in (8, 16, 1 << 20)})] + [("shares", {"turns": False})]:
                step(f"time {what} {shape} {key}")
                ms = milliseconds([f(m, **how)], rounds=9)
                line[f"{what} {key}"] = {"ms": ms, "tflops": work / 2 * products / ms / 1e9}
            best = min((v["ms"], k) for k, v in line.items() if k.startswith(what + " "))
            line[what] = {"ms": best[0], "how": best[1][len(what) + 1:], "tflops": work / 2 * products / best[0] / 1e9}
        print(f"  {name:8} {str(shape):24} " + "  ".join(
            f"{k} {v['ms']:.3f} ms {v['tflops']:.0f}" + (f" ({v['how']})" if "how" in v else "") for k, v in line.items()), flush=True)
    registers = {}
    for kind in ("FWD", "KEYS", "QUERIES"):
        for d in (64, 128):
            k = m.kernel(kind, d)
            registers[k.name] = m.occupancy(k.name, k.threads, k.shared)
    return {"options": {k: list(v) for k, v in m.options.items()}, "checks": c.rows, "failed": sorted(c.failed), "times": times,
            "occupancy": registers, "seconds": time.time() - begin}


def time_torch():
    results = {}
    for shape in SHAPES:
        p = Problem(*shape)
        q, k, v = p.torch_inputs()
        do = p.dout.view(p.batch, p.seq, p.heads, p.hd).transpose(1, 2)
        gqa = {"enable_gqa": True} if p.heads != p.kvheads else {}

        def forward():
            with torch.no_grad():
                torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, **gqa)

        fwd = milliseconds([forward])
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, **gqa)
        bwd = milliseconds([lambda: torch.autograd.grad(out, (q, k, v), do, retain_graph=True)])
        results[str(shape)] = [fwd, bwd]
        print(f"  SDPA {shape}: forward {fwd:.3f} ms {p.flops() / fwd / 1e9:.0f} TFLOP/s, backward {bwd:.3f} ms "
              f"{2.5 * p.flops() / bwd / 1e9:.0f} TFLOP/s", flush=True)
    return results


def time_stats():
    m, results = module("flash"), {}
    for shape in SHAPES:
        p = Problem(*shape)
        p.lse.zero_()
        lanes = 16 if p.hd > 64 else 8
        f = m.prepare("flash_stats", (ceil(p.batch * p.padded * p.heads * lanes, 256),), (256,), 0, p.stats, p.turns, 2, p.dout, p.dout, p.lse,
                      p.batch, p.seq, p.heads, p.hd, p.heads * p.hd)
        results[str(shape)] = milliseconds([f])
    print("  flash_stats " + ", ".join(f"{k} {v:.3f} ms" for k, v in results.items()), flush=True)
    return results


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--variants", help="where the built variants are")
    a.add_argument("--only", default="", help="only variants with this word in their name")
    a.add_argument("--limit", type=float, default=20, help="seconds for one variant")
    o = a.parse_args()
    parts, begin = Parts(o.limit), time.time()
    parts.run("torch", time_torch)
    parts.run("stats", time_stats)
    for name, options in VARIANTS.items():
        if o.only and o.only not in name:
            continue
        if time.time() - begin > 75:
            print(f"no time left for {name}")
            continue
        result = parts.run(name, run_variant, name, options, o.variants)
        if result is None:
            path, _ = marks(name)
            if os.path.exists(path):
                print(f"  {name} was at: {open(path).read()}", flush=True)
        elif result["failed"]:
            parts.failed.append(name)
    theirs, stats = parts.results.get("torch"), parts.results.get("stats")
    done = {k: v for k, v in parts.results.items() if k in VARIANTS and isinstance(v, dict)}
    if not isinstance(theirs, dict):
        theirs = {}
    if not isinstance(stats, dict):
        stats = {}
    print(f"\n{'TFLOP/s (speed/SDPA)':26}{'SDPA':>6}" + "".join(f"{n:>13}" for n in done) + "   dkdv and dq: executed; backward: dkdv + dq + flash_stats; the last column takes the best of each")
    for shape in SHAPES:
        key, work = str(shape), Problem.flops(argparse.Namespace(batch=shape[0], seq=shape[1], heads=shape[2], hd=shape[4]))
        f, b = theirs.get(key, [math.nan, math.nan])
        print(f"{key + ' fwd':26}{work / f / 1e9:>6.0f}" + "".join(
            f"{v['times'][key]['fwd']['tflops']:>6.0f} ({f / v['times'][key]['fwd']['ms']:4.2f})" for v in done.values()))
        for what in ("dkdv", "dq"):
            print(f"{'  ' + what:32}" + "".join(f"{v['times'][key][what]['tflops']:>6.0f} {v['times'][key][what]['ms']:.3f}ms"[:13].rjust(13) for v in done.values()))
        extra = stats.get(key, 0.0)
        ms = {n: v["times"][key]["dkdv"]["ms"] + v["times"][key]["dq"]["ms"] + extra for n, v in done.items()}
        if ms:
            good = [v for v in done.values() if not v["failed"]] or list(done.values())
            best = min(v["times"][key]["dkdv"]["ms"] for v in good) + min(v["times"][key]["dq"]["ms"] for v in good) + extra
            print(f"{key + ' backward':26}{work * 2.5 / b / 1e9:>6.0f}" + "".join(f"{work * 2.5 / t / 1e9:>6.0f} ({b / t:4.2f})" for t in ms.values())
                  + f"{work * 2.5 / best / 1e9:>6.0f} ({b / best:4.2f})")
    print(f"{time.time() - begin:.0f} s")
    parts.finish("attention_sm90.json")


if __name__ == "__main__":
    main()
