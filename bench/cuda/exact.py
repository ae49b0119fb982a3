"""Checks and times the kernels of exact mode (training/cuda/kernels/*exact.cu) on an NVIDIA GPU, against PyTorch in float32.

    python3 bench/cuda/exact.py [--out DIR] [--only FAMILY] [--tiles]

It loads the checked-in PTX. "check" compares bits with the arithmetic of docs/spec/exact.md done in NumPy; the other families
time. Each runs in a process of its own with a limit, so that one that faults or hangs costs only its own lines. --tiles times
products in other shapes too, for which it needs nvcc. Results go to DIR/exact.json; the exit status is 1 if a check failed.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
KERNELS = os.path.join(HERE, "..", "..", "training", "cuda", "kernels")
LIMITS = {"check": 60, "gemm": 40, "experts": 40, "attention": 40, "rows": 40, "tiles": 120}
NT, NN, TN = 0, 1, 2
FORMS = ["nt", "nn", "tn"]


def div(a, b):
    return -(-a // b)


# ---- the arithmetic, in NumPy


def fma(a, b, c):
    """a·b + c of float32, rounded once: the sum in float64 is rounded to odd, then the second rounding cannot err."""
    p = a.astype(np.float64) * b.astype(np.float64)
    z = np.asarray(c, np.float32).astype(np.float64)
    s = p + z
    t = s - p
    err = (p - (s - t)) + (z - t)
    bits = s.view(np.int64)
    step = np.where((err > 0) == (s > 0), 1, -1)
    odd = np.where((err != 0) & (bits & 1 == 0), bits + step, bits)
    return odd.view(np.float64).astype(np.float32)


def product(a, b, c=None):
    """A [m, k] times B [k, n], blocks of 256, added to c if it is given."""
    for k0 in range(0, a.shape[1], 256):
        s = np.zeros((a.shape[0], b.shape[1]), np.float32)
        for k in range(k0, min(k0 + 256, a.shape[1])):
            s = fma(*np.broadcast_arrays(a[:, k, None], b[None, k]), s)
        c = s if c is None else c + s
    return c


def fold(lanes):
    for w in (8, 4, 2, 1):
        lanes = lanes[..., :w] + lanes[..., w : 2 * w]
    return lanes[..., 0]


def dot(x, y):
    lanes = np.zeros(x.shape[:-1] + (16,), np.float32)
    for i in range(0, x.shape[-1], 16):
        n = min(16, x.shape[-1] - i)
        lanes[..., :n] = fma(x[..., i : i + n], y[..., i : i + n], lanes[..., :n])
    return fold(lanes)


def of_bits(b):
    return np.array(b, np.uint32).view(np.float32)


def exp(x):
    f = np.float32
    x = np.where(x > f(-104), x, f(-104))
    x = np.where(x < f(88.72), x, f(88.72)).astype(f)
    full = lambda v: np.full_like(x, v)
    magic = full(of_bits(0x4B400000))
    t = fma(x, full(of_bits(0x3FB8AA3B)), magic)
    n = t - magic
    r = fma(-n, full(of_bits(0x3F317200)), x)
    r = fma(-n, full(of_bits(0x35BFBE8E)), r)
    p = full(of_bits(0x39500D01))
    for c in (0x3AB60B61, 0x3C088889, 0x3D2AAAAB, 0x3E2AAAAB, 0x3F000000, 0x3F800000, 0x3F800000):
        p = fma(p, r, full(of_bits(c)))
    k = t.view(np.int32) - magic.view(np.int32)
    h = k >> 1
    two = lambda e: ((e + 127).astype(np.uint32) << np.uint32(23)).view(f)
    return (p * two(h)) * two(k - h)


# ---- the driver


class Kernels:
    """Modules and launches through the driver API; PyTorch owns the context and the memory."""

    started = False

    def __init__(self, *paths):
        import torch

        self.torch = torch
        torch.zeros(1, device="cuda")
        self.lib = ctypes.CDLL("libcuda.so.1")
        self.modules = [self.load(p) for p in paths]
        self.functions = {}
        if not Kernels.started:
            Kernels.started = True
            sys.stdin.readline()  # the family's turn on the device

    def call(self, name, *args):
        status = getattr(self.lib, name)(*args)
        if status:
            text = ctypes.c_char_p()
            self.lib.cuGetErrorName(status, ctypes.byref(text))
            raise RuntimeError(f"{name}: {text.value.decode() if text.value else status}")

    def load(self, path):
        image = open(path, "rb").read() + b"\0"
        log = ctypes.create_string_buffer(1 << 14)
        options, values = (ctypes.c_int * 2)(5, 6), (ctypes.c_void_p * 2)(ctypes.addressof(log), len(log))
        module = ctypes.c_void_p()
        try:
            self.call("cuModuleLoadDataEx", ctypes.byref(module), image, 2, options, values)
        except RuntimeError as e:
            raise RuntimeError(f"{path}: {e}: {log.value.decode(errors='replace')[:2000]}")
        return module

    def function(self, name):
        if name not in self.functions:
            f = ctypes.c_void_p()
            for i, m in enumerate(self.modules):
                if self.lib.cuModuleGetFunction(ctypes.byref(f), m, name.encode()) == 0:
                    break
                if i == len(self.modules) - 1:
                    raise RuntimeError(f"no kernel {name}")
            self.functions[name] = f
        return self.functions[name]

    def __call__(self, name, grid, block, *args):
        grid = tuple(grid) + (1,) * (3 - len(grid))
        slots, hold = (ctypes.c_void_p * len(args))(), []
        for i, a in enumerate(args):
            if a is None:
                v = ctypes.c_uint64(0)
            elif isinstance(a, self.torch.Tensor):
                v = ctypes.c_uint64(a.data_ptr())
            elif isinstance(a, float):
                v = ctypes.c_float(a)
            elif isinstance(a, Long):
                v = ctypes.c_int64(a)
            else:
                v = ctypes.c_int32(a)
            hold.append(v)
            slots[i] = ctypes.addressof(v)
        stream = ctypes.c_void_p(self.torch.cuda.current_stream().cuda_stream)
        self.call("cuLaunchKernel", self.function(name), *grid, block, 1, 1, 0, stream, slots, None)

    def time(self, f, budget=0.1, least=3):
        """Median milliseconds."""
        torch = self.torch
        f()
        torch.cuda.synchronize()
        times, total = [], 0.0
        while len(times) < least or (total < budget * 1000 and len(times) < 200):
            a, b = torch.cuda.Event(True), torch.cuda.Event(True)
            a.record()
            f()
            b.record()
            b.synchronize()
            times.append(a.elapsed_time(b))
            total += times[-1]
        return statistics.median(times)


class Long(int):
    pass


def ptx(name):
    return os.path.join(KERNELS, "ptx", name + ".sm_80.ptx")


class Gemm:
    """One product, as training/cuda launches it."""

    SIDES = {"": (64, 64), "any": (64, 128)}

    def __init__(self, kernels):
        self.k = kernels

    def strides(self, form, m, n, k):
        return [(k, k, n), (k, n, n), (m, n, n)][form]

    def run(self, form, c, a, b, m, n, k, add=False, tile="", name=None):
        side, threads = self.SIDES[tile]
        self.launch(form, tile, name, (div(n, side), div(m, side)), threads, b, c, a, b, None, None, None, 0, m, n, k, add)

    def grouped(self, form, c, a, b, pointers, offsets, experts, m, n, k, add=False, tile="", half=False, listed=None):
        """For TN, pointers are to C and b is the right operand; else pointers are to B."""
        side, threads = self.SIDES[tile]
        if form == TN:
            grid = (div(n, side), div(m, side), len(listed))
        else:
            grid = (div(n, side), m // side + experts)
        self.launch(form, tile, None, grid, threads, half, c, a, b, pointers, offsets, listed, experts, m, n, k, add)

    def launch(self, form, tile, name, grid, threads, half, c, a, b, pointers, offsets, listed, experts, m, n, k, add):
        if half is not True and half is not False:
            half = half.dtype == self.k.torch.bfloat16
        args = [c, a, b, pointers, offsets, listed, experts, m, n, k, *self.strides(form, m, n, k), int(add)]
        if tile == "any":
            self.k("gemm_exact_any", grid, threads, *args, form, int(half))
        else:
            self.k(name or f"gemm_exact_{FORMS[form]}_{'bf16' if half else 'f32'}{tile}", grid, threads, *args)


def pointers(torch, tensors):
    return torch.tensor([t.data_ptr() for t in tensors], dtype=torch.int64, device="cuda")


class Report:
    def __init__(self):
        self.lines = []

    def add(self, **line):
        self.lines.append(line)
        print("@" + json.dumps(line), flush=True)


# ---- families


def values(rng, shape, scale=1.0):
    x = rng.uniform(-1, 1, shape) * np.exp2(-rng.integers(0, 20, shape)) * scale
    x[rng.integers(0, 16, shape) == 0] *= 0
    return x.astype(np.float32)


def check(report):
    import torch

    g = Gemm(Kernels(ptx("gemm_exact"), ptx("exact"), ptx("mixture_exact")))
    rng = np.random.default_rng(1)
    up = lambda x: torch.from_numpy(np.ascontiguousarray(x)).cuda()

    def same(what, got, want):
        got, want = got.cpu().numpy().view(np.uint32), np.ascontiguousarray(want).view(np.uint32)
        wrong = int((got != want).sum())
        report.add(check=what, values=int(want.size), wrong=wrong, ok=wrong == 0)

    for m, n, k, scale in [(140, 136, 600, 1.0), (72, 200, 264, 1.0), (20, 24, 40, 2.0**-76), (33, 15, 257, 1.0)]:
        a, b, base = values(rng, (m, k), scale), values(rng, (k, n), scale), values(rng, (m, n), scale * scale)
        b = (b.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        want = {False: product(a, b), True: product(a, b, base)}
        for form in (NT, NN, TN):
            A = up(a.T if form == TN else a)
            for half in (False, True) if form != TN else (False,):
                B = up(b.T if form == NT else b)
                B = B.to(torch.bfloat16) if half else B
                for tile in ("", "any"):
                    if tile != "any" and (m % 4 or n % 8 or k % 8):
                        continue
                    for add in (False, True):
                        c = up(base) if add else torch.full((m, n), float("nan"), device="cuda")
                        g.run(form, c, A, B, m, n, k, add, tile)
                        same(f"{FORMS[form]} {m}x{n}x{k} {'bf16' if half else 'f32'} tile{tile} add={add} scale={scale:g}", c, want[add])

    # Two different kernels, one result, at full size.
    A, B = torch.randn(2048, 4096, device="cuda"), torch.randn(2048, 4096, device="cuda")
    c = [torch.empty(2048, 2048, device="cuda") for _ in range(2)]
    for x, tile in zip(c, ("", "any")):
        g.run(NT, x, A, B, 2048, 2048, 4096, tile=tile)
    same("nt 2048x2048x4096, with vectors and without", c[0], c[1].cpu().numpy())
    exact = A.double() @ B.double().T
    off = float((c[0].double() - exact).norm() / exact.norm())
    report.add(check="nt 2048x2048x4096, distance from float64", error=off, ok=off < 1e-6)

    # Grouped: every expert against a product of its own. One has no rows.
    sizes = [130, 0, 300, 1, 77]
    offsets = torch.tensor([0, *np.cumsum(sizes)], dtype=torch.int32, device="cuda")
    rows, n, k = sum(sizes), 136, 264
    for half in (False, True):
        kind = torch.bfloat16 if half else torch.float32
        x = torch.randn(rows, k, device="cuda")
        for form in (NT, NN):
            w = [torch.randn((n, k) if form == NT else (k, n), device="cuda").to(kind) for _ in sizes]
            at = pointers(torch, w)
            want = torch.empty(rows, n, device="cuda")
            for e, s in enumerate(sizes):
                lo = sum(sizes[:e])
                if s:
                    g.run(form, want[lo:], x[lo:], w[e], s, n, k, tile="any")
            for tile in ("", "any"):
                got = torch.full((rows, n), float("nan"), device="cuda")
                g.grouped(form, got, x, None, at, offsets, len(sizes), rows, n, k, tile=tile, half=half)
                same(f"grouped {FORMS[form]} {'bf16' if half else 'f32'} tile{tile}", got, want.cpu().numpy())
    x, y = torch.randn(rows, n, device="cuda"), torch.randn(rows, k, device="cuda")
    listed = torch.tensor([4, 1, 2], dtype=torch.int32, device="cuda")
    for tile in ("", "any"):
        got = [torch.ones(n, k, device="cuda") for _ in listed]
        g.grouped(TN, None, x, y, pointers(torch, got), offsets, len(sizes), n, k, 0, add=True, tile=tile, listed=listed)
        for c, e in zip(got, listed.tolist()):
            lo, want = sum(sizes[:e]), torch.ones(n, k, device="cuda")
            if sizes[e]:
                g.run(TN, want, x[lo:], y[lo:], n, k, sizes[e], add=True, tile="any")
            same(f"grouped tn tile{tile} expert {e}", c, want.cpu().numpy())

    # Row sums, root, division; exp over everything that matters, denormal results included.
    x, w = values(rng, (50, 2050), 2.0), values(rng, (2050,))
    y, inv = torch.empty(50, 2050, device="cuda"), torch.empty(50, device="cuda")
    g.k("exact_rms_norm", (div(50, 8),), 128, y, inv, up(x), up(w), 50, 2050, 1e-6)
    want = np.float32(1) / np.sqrt(dot(x, x) / np.float32(2050) + np.float32(1e-6))
    same("rms_norm inv", inv, want)
    same("rms_norm y", y, (x * want[:, None]) * w)
    gate, u = rng.uniform(-110, 100, 1 << 18).astype(np.float32), values(rng, (1 << 18,))
    a = torch.empty(1 << 18, device="cuda")
    g.k("mixture_exact_silumul", (div(1 << 18, 1024),), 256, a, up(gate), up(u), Long(1 << 18))
    same("silumul", a, (gate * (np.float32(1) / (np.float32(1) + exp(-gate)))) * u)


def peak(torch):
    """TFLOP/s of float32 at the highest clock, or None."""
    p = torch.cuda.get_device_properties(0)
    try:
        mhz = float(subprocess.run(["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"], capture_output=True, text=True).stdout.split()[0])
    except (OSError, ValueError, IndexError):
        return None
    lanes = 64 if (p.major, p.minor) == (8, 0) else 128
    return p.multi_processor_count * lanes * 2 * mhz * 1e6 / 1e12


def torch_float32():
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    return torch


def timed(report, what, flops, ours, theirs, top):
    rate = lambda ms: flops / ms / 1e9 if ms else None
    report.add(what=what, ms=ours, tflops=rate(ours), torch_ms=theirs, torch_tflops=rate(theirs), ratio=theirs / ours if theirs else None, peak=rate(ours) / top if top else None)


def gemm(report):
    torch = torch_float32()
    g, top = Gemm(Kernels(ptx("gemm_exact"))), peak(torch)
    report.add(note="float32 peak at the highest clock, TFLOP/s", value=top)
    for m, n, k in [(4096, 4096, 4096), (4096, 64, 2048), (4096, 2048, 2048), (2048, 50304, 2048)]:
        flops = 2 * m * n * k
        for form in (NT, NN, TN):
            if form != NT and n == 50304:
                continue
            A = torch.randn((k, m) if form == TN else (m, k), device="cuda")
            B = torch.randn((n, k) if form == NT else (k, n), device="cuda")
            c = torch.empty(m, n, device="cuda")
            theirs = g.k.time(lambda: torch.mm(A.T if form == TN else A, B.T if form == NT else B, out=c), 0.1)
            cube = m == n == k
            for half in (False, True) if form != TN else (False,):
                b = B.to(torch.bfloat16) if half else B
                for tile in ["", "any"] if cube and not half else [""]:
                    ours = g.k.time(lambda: g.run(form, c, A, b, m, n, k, tile=tile), 0.1)
                    timed(report, f"{FORMS[form]} {m}x{n}x{k} {'bf16' if half else 'f32'} weights{tile and ', one value at a time'}", flops, ours, theirs, top)


def experts(report):
    torch = torch_float32()
    g, top = Gemm(Kernels(ptx("gemm_exact"))), peak(torch)
    # OLMoE: 64 experts, 8 per token, 2048 wide, 1024 inside; 4096 tokens.
    E, slots, d, f = 64, 32768, 2048, 1024
    cuts = torch.sort(torch.randint(0, slots + 1, (E - 1,), generator=torch.Generator().manual_seed(1))).values.tolist()
    even = [slots // E * e for e in range(E + 1)]
    for name, offsets in [("even", even), ("uneven", [0, *cuts, slots])]:
        off = torch.tensor(offsets, dtype=torch.int32, device="cuda")
        for form, m, n, k in [(NT, slots, f, d), (NT, slots, d, f), (NN, slots, d, f), (NN, slots, f, d)]:
            x, c = torch.randn(slots, k, device="cuda"), torch.empty(slots, n, device="cuda")
            w = [torch.randn((n, k) if form == NT else (k, n), device="cuda") for _ in range(E)]

            def loop():
                for e in range(E):
                    lo, hi = offsets[e], offsets[e + 1]
                    if hi > lo:
                        torch.mm(x[lo:hi], w[e].T if form == NT else w[e], out=c[lo:hi])

            theirs = g.k.time(loop, 0.1)
            for half in (False, True):
                ws = [v.to(torch.bfloat16) for v in w] if half else w
                at = pointers(torch, ws)
                ours = g.k.time(lambda: g.grouped(form, c, x, None, at, off, E, slots, n, k, half=half), 0.1)
                timed(report, f"experts {name} {FORMS[form]} {k}->{n} {'bf16' if half else 'f32'} weights", 2 * slots * n * k, ours, theirs, top)
        listed = list(range(0, E, 4))
        dy, x = torch.randn(slots, f, device="cuda"), torch.randn(slots, d, device="cuda")
        grads = [torch.zeros(f, d, device="cuda") for _ in listed]
        at, ids = pointers(torch, grads), torch.tensor(listed, dtype=torch.int32, device="cuda")

        def sums():
            for i, e in enumerate(listed):
                lo, hi = offsets[e], offsets[e + 1]
                grads[i].addmm_(dy[lo:hi].T, x[lo:hi])

        rows = sum(offsets[e + 1] - offsets[e] for e in listed)
        theirs = g.k.time(sums, 0.1)
        ours = g.k.time(lambda: g.grouped(TN, None, dy, x, at, off, E, f, d, 0, add=True, listed=ids), 0.1)
        timed(report, f"experts {name} tn, 16 trained", 2 * rows * f * d, ours, theirs, top)


def attention(report):
    torch = torch_float32()
    k, top = Kernels(ptx("attention_exact")), peak(torch)
    scaled = torch.nn.functional.scaled_dot_product_attention
    for B, T, H, KV, d in [(1, 2048, 16, 16, 128), (8, 512, 16, 16, 128), (32, 128, 16, 4, 64)]:
        pad, group = (T + 15) // 16 * 16, H // KV
        q, out, dout, dq = (torch.randn(B * T, H * d, device="cuda") for _ in range(4))
        key, v, dk, dv = (torch.randn(B * T, KV * d, device="cuda") for _ in range(4))
        p, ds = torch.empty(B * H, T, pad, device="cuda"), torch.empty(B * KV, T, pad, device="cuda")
        t, w = div(T, 64), div(d, 64)
        axes = lambda count, stride, member: (B * count, T, pad, d, H, KV, count, stride, member)
        scale = d**-0.5

        def forward():
            k("attention_exact_scores", (B * H, t, t), 128, p, q, key, *axes(H, 1, 0), 0)
            k("attention_exact_softmax", (div(B * H * T, 8),), 128, p, B * H * T, T, pad, scale)
            k("attention_exact_values", (B * H, t, w), 128, out, p, v, *axes(H, 1, 0), 0)

        def backward():
            for member in range(group):
                a = axes(KV, group, member)
                k("attention_exact_scores", (B * KV, t, t), 128, ds, dout, v, *a, 1)
                k("attention_exact_softmax_grad", (div(B * KV * T, 8),), 128, ds, p, *a, scale)
                k("attention_exact_values", (B * KV, t, w), 128, dq, ds, key, *a, 1)
                k("attention_exact_columns", (B * KV, t, w), 128, dv, p, dout, *a, 0, int(member > 0))
                k("attention_exact_columns", (B * KV, t, w), 128, dk, ds, q, *a, 1, int(member > 0))

        heads = lambda x, n: x.view(B, T, n, d).transpose(1, 2).detach().requires_grad_()
        Q, K, V, G = heads(q, H), heads(key, KV), heads(v, KV), heads(dout, H).detach()
        full = lambda x: x.repeat_interleave(group, 1)
        with torch.no_grad():
            theirs = k.time(lambda: scaled(Q, full(K), full(V), is_causal=True), 0.1)
        ours = k.time(forward, 0.1)
        ref = scaled(Q, full(K), full(V), is_causal=True)
        flops = 2 * B * H * T * T * d  # half of the square, two products
        off = float((out.view(B, T, H, d).transpose(1, 2) - ref.detach()).norm() / ref.detach().norm())
        report.add(check=f"attention {B}x{T}, distance from PyTorch", error=off, ok=off < 1e-5)
        timed(report, f"attention {B}x{T} {H}/{KV} heads of {d}, forward", flops, ours, theirs, top)
        theirs = k.time(lambda: torch.autograd.grad(ref, (Q, K, V), G, retain_graph=True), 0.1)
        ours = k.time(backward, 0.1)
        for name, got, want in zip(("dq", "dk", "dv"), (dq, dk, dv), torch.autograd.grad(ref, (Q, K, V), G)):
            got = got.view(B, T, -1, d).transpose(1, 2)
            off = float((got - want).norm() / want.norm())
            report.add(check=f"attention {B}x{T} {name}, distance from PyTorch", error=off, ok=off < 1e-4)
        timed(report, f"attention {B}x{T} {H}/{KV} heads of {d}, backward (4 products here, 5 there)", 2 * flops, ours, theirs, top)


def rows(report):
    import torch

    k = Kernels(ptx("exact"), ptx("mixture_exact"))
    big = torch.randn(1 << 27, device="cuda")
    other = torch.empty_like(big)
    copy = 2 * big.numel() * 4 / k.time(lambda: other.copy_(big)) / 1e6
    report.add(note="copy, GB/s", value=copy)

    def line(what, moved, f):
        ms = k.time(f, 0.1)
        report.add(what=what, ms=ms, gbps=moved / ms / 1e6, copy=moved / ms / 1e6 / copy)

    def r(*shape):
        return torch.randn(*shape, device="cuda")

    n, d, H, hd = 16384, 2048, 16, 128
    x, y, dy, w, inv = r(n, d), r(n, d), r(n, d), r(d), r(n)
    table = n * d * 4
    line("rms_norm 16384x2048", 2 * table, lambda: k("exact_rms_norm", (div(n, 8),), 128, y, inv, x, w, n, d, 1e-6))
    line("rms_norm_grad", 4 * table, lambda: k("exact_rms_norm_grad", (div(n, 8),), 128, y, dy, inv, x, w, n, d))
    dw = r(d)
    line("norm_weight_grad", 2 * table, lambda: k("exact_norm_weight_grad", (div(d, 32),), 256, dw, dy, inv, x, n, d))
    hw, hi, cos, sin = r(hd), r(n * H), r(2048, hd // 2), r(2048, hd // 2)
    line("head_norm_rope 16 heads of 128", 2 * table, lambda: k("exact_head_norm_rope", (div(n * H, 8),), 128, y, hi, x, hw, cos, sin, n * H, hd, H, 2048, 1e-6))
    line("head_norm_rope_grad", 4 * table, lambda: k("exact_head_norm_rope_grad", (div(n * H, 8),), 128, y, dy, hi, x, hw, cos, sin, n * H, hd, H, 2048))
    line("norm_weight_grad of heads", 2 * table, lambda: k("exact_norm_weight_grad", (div(hd, 32),), 256, hw, dy, hi, x, n * H, hd))
    line("silumul", 3 * table, lambda: k("mixture_exact_silumul", (div(n * d, 1024),), 256, y, x, dy, Long(n * d)))
    line("silumul_grad", 5 * table, lambda: k("mixture_exact_silumul_grad", (div(n * d, 1024),), 256, y, big, dy, x, dy, Long(n * d)))
    ids = torch.randint(0, 50304, (n,), dtype=torch.int32, device="cuda")
    emb = r(50304, d)
    line("embed", 2 * table, lambda: k("exact_embed_f32", (n, div(d, 512)), 128, y, emb, ids, n, d))

    E, top, t = 64, 8, 4096
    s = t * top
    logits, probs, weights, dweights = r(t, E), r(t, E), r(s), r(s)
    chosen, place, source = (torch.zeros(s, dtype=torch.int32, device="cuda") for _ in range(3))
    runs = div(s, 256)
    counts, offsets = torch.zeros(runs * E, dtype=torch.int32, device="cuda"), torch.zeros(E + 1, dtype=torch.int32, device="cuda")

    def route():
        k("mixture_exact_route", (div(t, 8),), 128, probs, chosen, weights, logits, t, E, top, 1)
        k("mixture_exact_count", (runs,), 256, counts, chosen, s, E)
        k("mixture_exact_offsets", (1,), 256, offsets, counts, runs, E)
        k("mixture_exact_place", (runs,), 256, place, source, chosen, counts, offsets, s, E)

    line("route and place 4096 tokens, 8 of 64", 3 * t * E * 4, route)
    g = r(s, d)
    o = r(s, d)
    wide = s * d * 4
    line("slot_grad", 2 * wide + wide // top, lambda: k("mixture_exact_slot_grad", (div(s, 8),), 128, dweights, g, dy, o, place, weights, s, top, d))
    line("route_grad", 4 * t * E * 4, lambda: k("mixture_exact_route_grad", (div(t, 64),), 64, logits, probs, chosen, weights, dweights, offsets, t, E, top, 1, 0.01))
    ok = bool((torch.sort(place).values == torch.arange(s, device="cuda", dtype=torch.int32)).all())
    order = bool((source.view(-1).long() // top >= 0).all()) and bool((chosen[source.long()][1:] >= chosen[source.long()][:-1]).all())
    report.add(check="slots are a permutation, by expert", ok=ok and order)
    del g, o, emb

    V, tokens = 50304, 2048
    l = r(tokens, V)
    targets = torch.randint(0, V, (tokens,), dtype=torch.int32, device="cuda")
    losses = torch.zeros(tokens, dtype=torch.float64, device="cuda")
    line("cross_entropy 2048x50304, loss", l.numel() * 4, lambda: k("exact_cross_entropy", (div(tokens, 8),), 128, losses, l, targets, tokens, V, 0.0))
    want = torch.nn.functional.cross_entropy(l.double(), targets.long(), reduction="none")
    off = float((losses - want).abs().max())
    report.add(check="cross_entropy, distance from float64", error=off, ok=off < 1e-4)
    line("cross_entropy, with gradient", 2 * l.numel() * 4, lambda: k("exact_cross_entropy", (div(tokens, 8),), 128, losses, l, targets, tokens, V, 1e-3))
    del l
    for count, size in [(192, 1 << 19), (48, 1 << 21), (1, 1 << 21)]:
        parts = [big[i * size : (i + 1) * size] for i in range(min(count, big.numel() // size))]
        at, lengths, sums = pointers(torch, parts), torch.full((len(parts),), size, dtype=torch.int64, device="cuda"), r(len(parts))
        line(f"sum_squares of {len(parts)} x {size}", len(parts) * size * 4, lambda: k("exact_sum_squares", (len(parts),), 128, sums, at, lengths))


# Other shapes of the tile: warps, tile of k, and their instances.
SHAPES = {
    "64x64, 64 threads": ("1, 2", {}),
    "128x128, 256 threads": ("2, 4", {}),
    "64x128, 128 threads": ("1, 4", {}),
    "128x64, 128 threads": ("2, 2", {}),
    "256x64, 256 threads": ("4, 2", {}),
    "128x128, k 8": ("2, 4", {"#define TILE_K 16": "#define TILE_K 8", "#define BLOCK_TILES 16": "#define BLOCK_TILES 32"}),
}


def tiles(report):
    torch = torch_float32()
    top, p = peak(torch), torch.cuda.get_device_properties(0)
    arch = f"sm_{p.major}{p.minor}"
    flags = ["-std=c++17", "--fmad=false", "-O3", f"-arch={arch}", "-cubin", "--expt-relaxed-constexpr"]
    with tempfile.TemporaryDirectory() as scratch:
        builds = {}
        for i, (name, (warps, edits)) in enumerate(SHAPES.items()):
            place = os.path.join(scratch, str(i))
            os.mkdir(place)
            for f in ("common.cuh", "ptx.cuh", "exact_product.cuh", "gemm_exact.cu"):
                text = open(os.path.join(KERNELS, f)).read()
                for a, b in edits.items():
                    text = text.replace(a, b)
                if f == "gemm_exact.cu":
                    text = text[: text.index("ROWS_KERNEL(gemm_exact_nt_f32,")]
                    text += f"ROWS_KERNEL(v_nt, {warps}, float, true)\nROWS_KERNEL(v_nn, {warps}, float, false)\nSUM_KERNEL(v_tn, {warps})\n"
                open(os.path.join(place, f), "w").write(text)
            out = os.path.join(place, "v.cubin")
            builds[name] = (warps, out, subprocess.Popen(["nvcc", *flags, "-o", out, os.path.join(place, "gemm_exact.cu")], stderr=subprocess.PIPE, text=True))
        n = 4096
        a, b, c = (torch.randn(n, n, device="cuda") for _ in range(3))
        for name, (warps, out, process) in builds.items():
            _, err = process.communicate()
            if process.returncode:
                report.add(note=f"{name} did not compile", value=err[-500:])
                continue
            g = Gemm(Kernels(out))
            wm, wn = map(int, warps.split(","))
            for form in (NT, NN, TN):
                args = [c, a, b, None, None, None, 0, n, n, n, n, n, n, 0]
                ours = g.k.time(lambda: g.k("v_" + FORMS[form], (div(n, 32 * wn), div(n, 64 * wm)), 32 * wm * wn, *args), 0.1)
                timed(report, f"tile {name} {FORMS[form]}", 2 * n**3, ours, None, top)


FAMILIES = {f.__name__: f for f in (check, gemm, experts, attention, rows, tiles)}


def show(lines):
    cell = lambda v, form: format(v, form) if v is not None else ""
    print(f"{'':62} {'ms':>9} {'TFLOP/s':>8} {'PyTorch':>8} {'ratio':>6} {'peak':>6}")
    for l in lines:
        if "tflops" in l:
            print(f"{l['what']:62} {l['ms']:9.3f} {l['tflops']:8.2f} {cell(l['torch_tflops'], '8.2f'):>8} {cell(l['ratio'], '6.2f'):>6} {cell(l['peak'], '6.2f'):>6}")
    print(f"{'':62} {'ms':>9} {'GB/s':>8} {'of copy':>8}")
    for l in lines:
        if "gbps" in l:
            print(f"{l['what']:62} {l['ms']:9.4f} {l['gbps']:8.0f} {l['copy']:8.2f}")
    for l in lines:
        if "note" in l:
            print(f"{l['note']}: {l['value']}")
    checks = [l for l in lines if "check" in l]
    for l in checks:
        if not l["ok"]:
            print("FAILED", json.dumps(l))
    print(f"{sum(l['ok'] for l in checks)} of {len(checks)} checks passed")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=os.environ.get("OUT", "."))
    parser.add_argument("--only", choices=FAMILIES, action="append")
    parser.add_argument("--tiles", action="store_true")
    parser.add_argument("--family", help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.family:
        FAMILIES[o.family](Report())
        return 0
    names = o.only or [f for f in FAMILIES if f != "tiles" or o.tiles]
    # All begin at once, for PyTorch and the driver's compiler take their time; then one after another has the device.
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running = {n: subprocess.Popen([sys.executable, os.path.abspath(__file__), "--family", n], **pipes) for n in names}
    lines, failed = [], False
    for name, process in running.items():
        try:
            out, err = process.communicate("go\n", timeout=LIMITS[name])
            status = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            status = f"no end within {LIMITS[name]} s"
        lines += [dict(json.loads(l[1:]), family=name) for l in out.splitlines() if l.startswith("@")]
        if status:
            failed = True
            print(f"{name}: {status}\n{err[-3000:]}")
    show(lines)
    with open(os.path.join(o.out, "exact.json"), "w") as f:
        json.dump(lines, f, indent=1)
    return int(failed or any(not l.get("ok", True) for l in lines))


if __name__ == "__main__":
    sys.exit(main())
