"""Checks and times the bfloat16 matrix products of training/cuda/kernels on an NVIDIA GPU, against PyTorch in the same run.

    python3 bench/cuda/gemm.py [--out DIR] [--variants DIR] [--only WORD] [--quick]

It loads the checked-in PTX. DIR (variants beside this file) may have other builds of the same sources: NAME.cubin or NAME.ptx
beside NAME.json, which gives "file" (gemm_bf16 or gemm_bf16_sm90), the constants as in BUILTIN of gemm_build.py, and "shared" if
a block is to take more shared memory, as on a card where fewer fit. Each build runs in a process of its own, so that one that
faults or hangs costs only its own lines. Results go to gemm.json in the directory of --out; the exit status is 1 if a check failed.
"""
import argparse, json, multiprocessing, os, statistics, sys, time, traceback

import torch

from gemm_build import BUILTIN, HERE, KERNELS, Build, div

LIMIT = {torch.bfloat16: 5e-3, torch.float32: 1e-4}


# ---- checks

SENTINEL = 3072.0


def matrix(rows, cols, pad=0, shift=0, dtype=torch.bfloat16, value=None):
    """A matrix with pad extra values per row and shift values before it; what surrounds it is SENTINEL."""
    ld = cols + pad
    store = torch.full((shift + (rows + 1) * ld,), SENTINEL, dtype=dtype, device="cuda")
    t = store[shift:shift + rows * ld].view(rows, ld)[:, :cols]
    if isinstance(value, float):
        t.fill_(value)
    else:
        t.copy_(torch.randn(rows, cols, device="cuda") if value is None else value)
    t.store, t.pad, t.shift = store, pad, shift
    return t


def stray(t):
    """Whether anything around the matrix was overwritten."""
    rows, ld = t.shape[0], t.shape[1] + t.pad
    s = t.store
    around = [s[:t.shift], s[t.shift + rows * ld:]]
    if t.pad:
        around.append(s[t.shift:t.shift + rows * ld].view(rows, ld)[:, t.shape[1]:].flatten())
    return any(bool((x != SENTINEL).any()) for x in around if x.numel())


def error(y, want):
    y = y.float()
    if not bool(torch.isfinite(y).all()):
        return float("inf")
    norm = float(want.norm())
    return float((y - want).norm()) / norm if norm else float(y.norm())


def product(layout, a, b):
    a, b = a.float(), b.float()
    return a @ b.t() if layout == "nt" else a @ b if layout == "nn" else a.t() @ b


def operands(layout, m, n, k, **how):
    if layout == "nt":
        return matrix(m, k, **how), matrix(n, k, **how)
    if layout == "nn":
        return matrix(m, k, **how), matrix(k, n, **how)
    return matrix(k, m, **how), matrix(k, n, **how)


class Checks:
    def __init__(self, build, out):
        self.build, self.out, self.rows, self.failed = build, out, [], set()

    def record(self, kernel, case, err, limit, over):
        ok = err < limit and not over
        self.rows.append(dict(build=self.build.name, kernel=kernel, case=case, error=err, ok=ok, stray=over))
        if not ok:
            if len([r for r in self.rows if not r["ok"]]) <= 12:
                print(f"  FAIL {self.build.name} {kernel} {case}: error {err:.3g}{' and stray writes' if over else ''}", flush=True)
            self.failed.add(kernel)

    def dense(self, layout, m, n, k, dtype, add, pad=0, shift=0):
        a, b = operands(layout, m, n, k, pad=pad, shift=shift)
        old = torch.randn(m, n, device="cuda") if add else torch.full((m, n), float("nan"), device="cuda")
        y = matrix(m, n, pad=pad, shift=shift, dtype=dtype, value=old)
        want = product(layout, a, b) + (y.float() if add else 0)
        self.build.dense(layout, y, a, b, add)()
        torch.cuda.synchronize()
        short = "bf16" if dtype == torch.bfloat16 else "f32"
        self.record(f"{layout}_{short}", f"{m}x{n}x{k}{' add' if add else ''}{f' pad {pad}' if pad else ''}{f' shift {shift}' if shift else ''}",
                         error(y, want), LIMIT[dtype], stray(y))

    def grouped(self, sizes, n, k, dtype, add, pad=0, shift=0):
        offsets = torch.tensor([0] + sizes).cumsum(0).int().cuda()
        ends = [int(x) for x in offsets.tolist()]
        rows, short = ends[-1], "bf16" if dtype == torch.bfloat16 else "f32"
        case = f"{len(sizes)} experts {rows}x{n}x{k}{' add' if add else ''}{f' pad {pad}' if pad else ''}{f' shift {shift}' if shift else ''}"
        for layout in ("nt", "nn"):
            a = matrix(rows, k, pad=pad, shift=shift)
            bs = [matrix(*((n, k) if layout == "nt" else (k, n)), pad=pad, shift=shift) for _ in sizes]
            old = torch.randn(rows, n, device="cuda") if add else torch.full((rows, n), float("nan"), device="cuda")
            y = matrix(rows, n, pad=pad, shift=shift, dtype=dtype, value=old)
            want = torch.cat([product(layout, a[i:j], b) for i, j, b in zip(ends, ends[1:], bs)])
            want += y.float() if add else 0
            self.build.rows(layout, y, a, bs, offsets, add)()
            torch.cuda.synchronize()
            self.record(f"{layout}_grouped_{short}", case, error(y, want), LIMIT[dtype], stray(y))
        a, b = matrix(rows, n, pad=pad, shift=shift), matrix(rows, k, pad=pad, shift=shift)
        chosen = [e for e in range(len(sizes)) if e % 3 != 1]
        ys = [matrix(n, k, pad=pad, shift=shift, dtype=dtype, value=None if add else float("nan")) for _ in chosen]
        want = [product("tn", a[ends[e]:ends[e + 1]], b[ends[e]:ends[e + 1]]) + (y.float() if add else 0) for e, y in zip(chosen, ys)]
        self.build.reduce(ys, a, b, offsets, chosen, add)()
        torch.cuda.synchronize()
        self.record(f"tn_grouped_{short}", case, max(error(y, w) for y, w in zip(ys, want)), LIMIT[dtype], any(map(stray, ys)))

    def parts(self, layout, m, n, k, parts, dtype, add):
        a, b = operands(layout, m, n, k)
        y = matrix(m, n, dtype=dtype, value=None if add else float("nan"))
        want = product(layout, a, b) + (y.float() if add else 0)
        self.build.parts(layout, y, a, b, parts, add)()
        torch.cuda.synchronize()
        self.record(f"{layout}_parts_{'bf16' if dtype == torch.bfloat16 else 'f32'}", f"{m}x{n}x{k} in {parts}{' add' if add else ''}", error(y, want),
                    LIMIT[dtype], stray(y))

    def fused(self, sizes, n, k, pad=0):
        """The experts' products with what is around them: x [rows, k], g, u and a [rows, n]."""
        offsets = torch.tensor([0] + sizes).cumsum(0).int().cuda()
        ends = offsets.tolist()
        ranges, rows, nan = list(zip(ends, ends[1:])), ends[-1], float("nan")
        case = f"{len(sizes)} experts {rows}x{n}x{k}{f' pad {pad}' if pad else ''}"
        torch16, bad = torch.bfloat16, lambda *all: any(map(stray, all))

        def experts(*shape):
            return [matrix(*shape, pad=pad, value=torch.randn(*shape, device="cuda") * shape[1] ** -0.5) for _ in sizes]

        def each(a, bs, layout):
            return torch.cat([product(layout, a[i:j], b) for (i, j), b in zip(ranges, bs)])

        gates, ups, downs = experts(n, k), experts(n, k), experts(k, n)
        x = matrix(rows, k, pad=pad)
        wg, wu = each(x, gates, "nt"), each(x, ups, "nt")
        for keep in (True, False):
            g, u, a = (matrix(rows, n, pad=pad, value=nan) for _ in range(3))
            self.build.swiglu(g, u, a, x, gates, ups, offsets, keep)()
            torch.cuda.synchronize()
            self.record("swiglu", case + (" keep" if keep else ""), error(a, torch.nn.functional.silu(wg) * wu), LIMIT[torch16], bad(g, u, a))
            if keep:
                self.record("swiglu", case + " g", error(g, wg), LIMIT[torch16], False)
                self.record("swiglu", case + " u", error(u, wu), LIMIT[torch16], False)
            else:
                touched = not bool(g.isnan().all() and u.isnan().all())
                self.record("swiglu", case + " keeps nothing", float(touched), 0.5, False)
        g, u, y = matrix(rows, n, pad=pad), matrix(rows, n, pad=pad), matrix(rows, k, pad=pad, value=nan)
        want = each(g, gates, "nn") + each(u, ups, "nn")
        self.build.sum(y, g, gates, u, ups, offsets)()
        torch.cuda.synchronize()
        self.record("sum_bf16", case, error(y, want), LIMIT[torch16], bad(y))

        weight, source = torch.rand(rows, device="cuda"), torch.randperm(rows, device="cuda").int()
        omega = weight[source.long()].view(rows, 1)
        dy = matrix(rows, k, pad=pad)
        da, fg, fu = each(dy, downs, "nn"), g.float(), u.float()
        sig = torch.sigmoid(fg)
        silu = fg * sig
        wdg, wdu, wwa = da * omega * fu * (sig + silu * (1 - sig)), da * omega * silu, silu * fu * omega
        wdw = torch.zeros(rows, device="cuda")
        wdw[source.long()] = (da * silu * fu).sum(1)
        for how in ("all", "some", "none"):
            dg, du, wa = matrix(rows, n, pad=pad, value=fg), matrix(rows, n, pad=pad, value=fu), matrix(rows, n, pad=pad, value=nan)
            chosen = [float(how == "all" or how == "some" and e % 3 != 1) for e in range(len(sizes))]
            wanted = torch.tensor(chosen).int().cuda() if how == "some" else None
            dw = torch.full((rows,), nan, device="cuda")
            self.build.swiglu_grad(dw, None if how == "none" else wa, dg, du, dy, downs, weight, source, wanted, offsets)()
            torch.cuda.synchronize()
            mine = torch.tensor([c for c, s in zip(chosen, sizes) for _ in range(s)], device="cuda") > 0
            self.record("swiglu_grad", case + f" {how} dg", error(dg, wdg), LIMIT[torch16], bad(dg, du, wa))
            self.record("swiglu_grad", case + f" {how} du", error(du, wdu), LIMIT[torch16], False)
            self.record("swiglu_grad_f32", case + f" {how} dw", error(dw, wdw), LIMIT[torch.float32], False)
            self.record("swiglu_grad", case + f" {how} wa", error(wa[mine], wwa[mine]), LIMIT[torch16], not bool(wa[~mine].isnan().all()))

    def casts(self):
        for n, shift in ((1, 0), (7, 0), (100003, 0), (1 << 20, 0), (4099, 1), (4096, 4)):
            x = torch.randn(n + shift, device="cuda")[shift:]
            y = torch.empty(n + shift, device="cuda", dtype=torch.bfloat16)[shift:]
            z = torch.empty(n + shift, device="cuda")[shift:]
            self.build.cast(y, x)
            self.build.cast(z, y)
            torch.cuda.synchronize()
            self.record("cast", f"{n} shift {shift}", 0.0 if bool((y == x.bfloat16()).all() and (z == y.float()).all()) else 1.0, 0.5, False)

    def run(self, quick):
        torch.manual_seed(1)
        shapes = [(128, 256, 64), (128, 256, 256), (256, 512, 512), (8, 8, 8), (1, 8, 8), (200, 264, 136), (333, 520, 712),
                  (1000, 1000, 1000)] + ([] if quick else [(64, 2048, 2048), (2304, 1544, 4104), (4096, 4096, 4096)])
        for layout in ("nt", "nn", "tn"):
            for dtype in (torch.bfloat16, torch.float32):
                for i, (m, n, k) in enumerate(shapes):
                    if layout == "tn" and m % 8:
                        m = div(m, 8) * 8
                    self.dense(layout, m, n, k, dtype, i % 2 == 1)
                self.dense(layout, 200, 136, 328, dtype, False, pad=8)
                self.dense(layout, 264, 392, 72, dtype, True, pad=24)
        sizes = [5, 0, 128, 129, 1, 0, 300, 64, 127]
        for dtype in (torch.bfloat16, torch.float32):
            for add in (False, True):
                self.grouped(sizes, 264, 136, dtype, add)
                self.grouped(sizes, 256, 512, dtype, add, pad=8)
            if not quick:
                self.grouped(spread(8192, 64), 1024, 2048, dtype, False)
                self.grouped([0, 0, 3], 64, 64, dtype, True)
        if self.build.hopper:
            for layout in ("nt", "nn", "tn"):
                for dtype in (torch.bfloat16, torch.float32):
                    for m, n, k, parts in ((8, 2048, 8192, 16), (8, 8, 100 * 8, 3), (200, 136, 1000, 7), (64, 264, 64, 1), (136, 256, 4096, 33)):
                        self.parts(layout, m, n, k, parts, dtype, add=m != 64)
            for n, k, pad in ((264, 136, 0), (256, 512, 8), (64, 64, 0), (8, 8, 0), (520, 200, 24)):
                self.fused(sizes, n, k, pad)
            if not quick:
                self.fused(spread(8192, 64), 1024, 2048)
                self.fused([0, 0, 3], 64, 64)
                self.fused([0, 4096, 0, 1, 63, 64, 65], 1024, 256)
        else:
            for layout in ("nt", "nn", "tn"):
                for dtype in (torch.bfloat16, torch.float32):
                    for m, n, k in ((33, 17, 5), (100, 77, 129), (1, 1, 1), (3, 300, 2)):
                        self.dense(layout, m, n, k, dtype, True)
                        self.dense(layout, m, n, k, dtype, False, pad=1, shift=1)
                    self.dense(layout, 128, 64, 64, dtype, False, shift=1)
            for dtype in (torch.bfloat16, torch.float32):
                self.grouped(sizes, 37, 45, dtype, True, pad=2, shift=1)
                self.grouped(sizes, 37, 45, dtype, False)
            self.casts()
        return self.rows


def spread(rows, experts):
    """Rows of each expert as a router that is not quite balanced would give."""
    g = torch.Generator().manual_seed(7)
    p = torch.softmax(torch.randn(experts, generator=g) * 0.35, 0)
    sizes = torch.multinomial(p, rows, replacement=True, generator=g).bincount(minlength=experts)
    return sizes.tolist()


# ---- times

def measure(runs, seconds=0.08, least=12):
    """Median milliseconds of one call, taking runs in turn so that caches do not keep one's operands."""
    for r in runs:
        r()
    torch.cuda.synchronize()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for r in runs:
        r()
    end.record()
    end.synchronize()
    once = max(begin.elapsed_time(end) / len(runs), 1e-3)
    inner = max(1, int(0.8 / once))
    times, total, i = [], 0.0, 0
    while len(times) < least or (total < seconds * 1000 and len(times) < 200):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(inner):
            runs[i % len(runs)]()
            i += 1
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / inner)
        total += times[-1] * inner
    return statistics.median(times)


class Times:
    def __init__(self, build):
        self.build, self.rows = build, []

    def line(self, what, work, ours, theirs):
        """work in floating-point operations; ours and theirs: name → list of calls. Both are timed in turn, twice."""
        best = {}
        for _ in range(2):
            for name, runs in {**ours, **theirs}.items():
                try:
                    best[name] = min(best.get(name, 1e9), measure(runs))
                except Exception as e:  # an operation this PyTorch lacks must not end the run
                    if name in ours:
                        raise
                    print(f"  {what}: {name}: {str(e).splitlines()[0][:120]}", flush=True)
                    theirs = {k: v for k, v in theirs.items() if k != name}
        reference = {k: v for k, v in best.items() if k in theirs}
        for name in ours:
            row = dict(build=self.build.name, what=what, kernel=name, ms=best[name], tflops=work / best[name] / 1e9,
                       torch={k: dict(ms=v, tflops=work / v / 1e9, ratio=v / best[name]) for k, v in reference.items()})
            self.rows.append(row)
            print(f"  {self.build.name:<24} {what:<26} {name:<10} {best[name]:8.4f} ms {row['tflops']:6.0f} TFLOP/s  " + "  ".join(
                f"{k} {v:.4f} ms ({v / best[name]:.2f})" for k, v in reference.items()), flush=True)

    def dense(self, m, n, k, layouts=("nt", "nn", "tn")):
        sets = 3
        for layout in layouts:
            pairs = [operands(layout, m, n, k) for _ in range(sets)]
            y16 = [torch.empty(m, n, device="cuda", dtype=torch.bfloat16) for _ in range(sets)]
            y32 = [torch.zeros(m, n, device="cuda") for _ in range(sets)]
            ours = {"bf16": [self.build.dense(layout, y, a, b, False) for (a, b), y in zip(pairs, y16)]}
            if layout == "tn":
                ours["f32"] = [self.build.dense(layout, y, a, b, False) for (a, b), y in zip(pairs, y32)]
                ours["f32+"] = [self.build.dense(layout, y, a, b, True) for (a, b), y in zip(pairs, y32)]
            many = self.build.sms // (div(m, 128) * div(n, 256)) if self.build.hopper else 0
            for parts in sorted({min(many, div(k, 64) // 8), min(many, div(k, 64) // 16)}):
                if parts > 1:
                    ours[f"f32+ in {parts}"] = [self.build.parts(layout, y, a, b, parts, True) for (a, b), y in zip(pairs, y32)]
            view = {"nt": lambda a, b: (a, b.t()), "nn": lambda a, b: (a, b), "tn": lambda a, b: (a.t(), b)}[layout]
            theirs = {"cublas": [lambda p=view(*p), y=y: torch.mm(*p, out=y) for p, y in zip(pairs, y16)]}
            self.line(f"{layout} {m}x{n}x{k}", 2.0 * m * n * k, ours, theirs)

    def experts(self, rows, experts, wide, narrow, quick):
        sizes = spread(rows, experts)
        offsets = torch.tensor([0] + sizes).cumsum(0).int().cuda()
        ends = offsets.tolist()
        ranges = list(zip(ends, ends[1:]))
        last = offsets[1:].contiguous()
        work = 2.0 * rows * wide * narrow
        for n, k in ((narrow, wide), (wide, narrow))[:1 if quick else 2]:
            self.expert_products(n, k, experts, offsets, ranges, last, work)

    def expert_products(self, n, k, experts, offsets, ranges, last, work):
        def new(*shape):
            return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)

        rows = ranges[-1][1]
        w, x, dy = new(experts, n, k), new(rows, k), new(rows, n)
        y, dx, ws = torch.empty_like(dy), torch.empty_like(x), list(w)
        self.line(f"nt experts {k}->{n}", work, {"bf16": [self.build.rows("nt", y, x, ws, offsets, False)]}, {
            "loop": [lambda: [torch.mm(x[i:j], e.t(), out=y[i:j]) for (i, j), e in zip(ranges, ws)]],
            "grouped_mm": [lambda: torch._grouped_mm(x, w.transpose(-2, -1), offs=last)]})
        self.line(f"nn experts {n}->{k}", work, {"bf16": [self.build.rows("nn", dx, dy, ws, offsets, False)]}, {
            "loop": [lambda: [torch.mm(dy[i:j], e, out=dx[i:j]) for (i, j), e in zip(ranges, ws)]],
            "grouped_mm": [lambda: torch._grouped_mm(dy, w, offs=last)]})
        dw32, dw16 = torch.zeros(experts, n, k, device="cuda"), torch.empty_like(w)
        every = list(range(experts))
        ours = {"f32+": [self.build.reduce(list(dw32), dy, x, offsets, every, True)],
                "f32": [self.build.reduce(list(dw32), dy, x, offsets, every, False)],
                "bf16": [self.build.reduce(list(dw16), dy, x, offsets, every, False)]}
        self.line(f"tn experts {n}x{k}", work, ours, {
            "loop": [lambda: [torch.mm(dy[i:j].t(), x[i:j], out=d) for (i, j), d in zip(ranges, dw16)]],
            "grouped_mm": [lambda: torch._grouped_mm(dy.t(), x, offs=last)]})

    def fused(self, rows, experts, wide, narrow):
        """What is done around the experts' products in one kernel, against the kernels that it replaces."""
        sizes = spread(rows, experts)
        offsets = torch.tensor([0] + sizes).cumsum(0).int().cuda()
        b = self.build

        def new(*shape, scale=1.0):
            return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) * scale

        def together(*calls):
            return [lambda: [c() for c in calls]]

        gate, up, down = (list(new(experts, *s, scale=s[1] ** -0.5)) for s in ((narrow, wide), (narrow, wide), (wide, narrow)))
        x, y, y2 = new(rows, wide), new(rows, wide), new(rows, wide)
        g, u, a = new(rows, narrow), new(rows, narrow), new(rows, narrow)
        work = 2.0 * rows * wide * narrow
        self.line("gate, up, silu·u", 2 * work, {
            "fused": [b.swiglu(g, u, a, x, gate, up, offsets, True)],
            "one": [b.swiglu(g, u, a, x, gate, up, offsets, False)],
            "apart": together(b.rows("nt", g, x, gate, offsets, False), b.rows("nt", u, x, up, offsets, False), b.swiglu_after(a, g, u))}, {})
        self.line("dx", 2 * work, {
            "fused": [b.sum(y, g, gate, u, up, offsets)],
            "apart": together(b.rows("nn", y, g, gate, offsets, False), b.rows("nn", y, u, up, offsets, True))}, {})
        weight, source = torch.rand(rows, device="cuda"), torch.randperm(rows, device="cuda").int()
        few = torch.tensor([int(e % 8 == 0) for e in range(experts)]).int().cuda()
        expert = torch.zeros(rows, dtype=torch.int32, device="cuda")
        expert[source.long()] = torch.tensor([e for e, s in enumerate(sizes) for _ in range(s)]).int().cuda()
        dw, da, wa = torch.empty(rows, device="cuda"), new(rows, narrow), new(rows, narrow)
        for what, wanted in (("", None), (" of 8", few)):
            self.line("da and swiglu" + what, work, {
                "fused": [b.swiglu_grad(dw, wa, g, u, y2, down, weight, source, wanted, offsets)],
                "apart": together(b.rows("nn", da, y2, down, offsets, False), b.swiglu_grad_after(dw, da, da, g, u, weight, source, expert, wanted))}, {})

    def run(self, quick):
        self.dense(4096, 4096, 4096)
        if not quick:
            self.dense(8192, 2048, 2048)
            self.dense(8192, 8192, 8192, ("nt",))
            self.dense(8192, 64, 2048, ("nt",))
            self.dense(64, 2048, 8192, ("tn",))
            self.dense(8, 2048, 8192, ("tn",))
            self.dense(2048, 2048, 50304, ("nn",))
        self.experts(65536, 64, 2048, 1024, quick)
        if self.build.hopper:
            self.fused(65536, 64, 2048, 1024)
        return self.rows


def worker(name, spec, out, quick, pipe):
    result = dict(build=name, spec=spec, checks=[], times=[])
    try:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.cuda.init()
        torch.zeros(1, device="cuda")
        build = Build(name, spec)
        result["load_seconds"] = build.load_seconds
        checks = Checks(build, out)
        try:
            checks.run(quick)
        finally:
            result["checks"] = checks.rows
        bad = sum(not r["ok"] for r in checks.rows)
        print(f"  {name}: {len(checks.rows) - bad} of {len(checks.rows)} checks passed"
              + (f"; failing: {', '.join(sorted(checks.failed))}" if bad else "")
              + f"; worst bf16 {worst(checks.rows, 'bf16'):.2g}, f32 {worst(checks.rows, 'f32'):.2g}; loaded in {build.load_seconds:.1f} s", flush=True)
        torch.cuda.empty_cache()
        times = Times(build)
        try:
            times.run(quick)
        finally:
            result["times"] = times.rows
    except Exception as e:
        traceback.print_exc()
        result["failure"] = f"{type(e).__name__}: {e}"
    finally:
        pipe.send(result)
        pipe.close()
    sys.stdout.flush()
    os._exit(0)  # after a device fault the usual way out can hang


def worst(rows, kind):
    return max([r["error"] for r in rows if r["kernel"].endswith(kind)] or [0.0])


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--out", default=os.environ.get("OUT"))
    p.add_argument("--variants", default=os.path.join(HERE, "variants"))
    p.add_argument("--only", default="")
    p.add_argument("--quick", action="store_true", help="fewer shapes for the built-in kernels too")
    p.add_argument("--limit", type=float, default=45, help="seconds for one build")
    o = p.parse_args()
    builds = {name: dict(spec, path=os.path.join(KERNELS, spec["path"])) for name, spec in BUILTIN.items()}
    rest = {}
    if os.path.isdir(o.variants):
        for f in sorted(os.listdir(o.variants)):
            if f.endswith(".json"):
                base = os.path.join(o.variants, f[:-5])
                path = next((base + e for e in (".cubin", ".ptx") if os.path.exists(base + e)), None)
                if path:
                    rest[f[:-5]] = dict(json.load(open(base + ".json")), path=path)
    builds.update(rest)
    results, begin = [], time.time()
    fork = multiprocessing.get_context("fork")  # shares the import of torch; CUDA starts in the child
    for name, spec in builds.items():
        if o.only and o.only not in name:
            continue
        # A build that tells two readings of a format apart is of interest only when the first one fails.
        after = [r for r in results if r["build"] == spec.get("if_failed")]
        if spec.get("if_failed") and all("failure" not in r and all(c["ok"] for c in r["checks"]) for r in after):
            continue
        if not os.path.exists(spec["path"]):
            print(f"{name}: no {spec['path']}", flush=True)
            continue
        print(f"[{time.time() - begin:5.1f} s] {name}", flush=True)
        here, there = fork.Pipe(False)
        child = fork.Process(target=worker, args=(name, spec, o.out, o.quick or name in rest, there))
        child.start()
        there.close()
        result = dict(build=name, failure=f"nothing after {o.limit:.0f} s")
        try:
            if here.poll(o.limit):
                result = here.recv()
        except EOFError:
            result["failure"] = "the process died"
        child.join(3)
        if child.is_alive():
            child.kill()
            child.join(5)
        if "failure" in result:
            print(f"  {name}: {result['failure']}", flush=True)
        results.append(result)
        if o.out:
            json.dump(results, open(os.path.join(o.out, "gemm.json"), "w"), indent=1)
    table(results)
    ok = all("failure" not in r and all(c["ok"] for c in r["checks"]) for r in results)
    print("all checks passed" if ok and results else "SOME CHECKS FAILED", flush=True)
    sys.exit(0 if ok and results else 1)


def table(results):
    """TFLOP/s of every build, with the ratio to PyTorch's best."""
    names = [r["build"] for r in results if r.get("times")]
    lines = {}
    for r in results:
        for t in r.get("times", []):
            best = max([v["tflops"] for v in t["torch"].values()] or [0.0])
            entry = lines.setdefault((t["what"], t["kernel"]), dict(torch=0.0))
            entry["torch"] = max(entry["torch"], best)
            entry[r["build"]] = (t["tflops"], t["tflops"] / best if best else 0.0)
    print(f"\n{'TFLOP/s (share of PyTorch)':<34}{'PyTorch':>8}" + "".join(f"{n[:15]:>16}" for n in names))
    for (what, kernel), e in lines.items():
        cells = "".join(f"{e[n][0]:>9.0f} ({e[n][1]:4.2f})" if n in e else f"{'':>16}" for n in names)
        print(f"{what + ' ' + kernel:<34}{e['torch']:>8.0f}{cells}")


if __name__ == "__main__":
    main()
