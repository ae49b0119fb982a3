"""Checks and times the bfloat16 matrix products of training/cuda/kernels on an NVIDIA GPU, against PyTorch in the same run.

    python3 bench/cuda/gemm.py [--out DIR] [--variants DIR] [--only WORD] [--quick]

It loads the checked-in PTX. --variants names a directory with other builds of the same sources: NAME.cubin or NAME.ptx beside
NAME.json, which gives "file" (gemm_bf16 or gemm_bf16_sm90) and the tile constants. Each build runs in a process of its own, so
that one that faults or hangs costs only its own lines. Results go to DIR/gemm.json; the exit status is 1 if a check failed.
"""
import argparse, ctypes, json, multiprocessing, os, statistics, sys, time, traceback

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
KERNELS = os.path.join(HERE, "..", "..", "training", "cuda", "kernels")
ADD, VECTOR = 1, 2
BUILTIN = {
    "sm90": dict(file="gemm_bf16_sm90", path="ptx/gemm_bf16_sm90.sm_90a.ptx",
                 TILE_M=128, TILE_N=256, STAGES=4, STAGING=2, CLUSTER=2),
    "sm80": dict(file="gemm_bf16", path="ptx/gemm_bf16.sm_80.ptx",
                 TILE_M=128, TILE_N=128, TILE_K=32, WARPS_M=2, WARPS_N=2, STAGES=4),
}
LIMIT = {torch.bfloat16: 5e-3, torch.float32: 1e-4}


def div(a, b):
    return -(-a // b)


# ---- the driver

class Driver:
    def __init__(self):
        self.lib = ctypes.CDLL("libcuda.so.1")
        self.keep = []

    def call(self, name, *args):
        status = getattr(self.lib, name)(*args)
        if status:
            text = ctypes.c_char_p()
            self.lib.cuGetErrorName(status, ctypes.byref(text))
            raise RuntimeError(f"{name}: {text.value.decode() if text.value else status}")

    def load(self, path, names, shared):
        image = open(path, "rb").read() + b"\0"
        log = ctypes.create_string_buffer(1 << 14)
        options = (ctypes.c_int * 2)(5, 6)  # error log buffer, its size
        values = (ctypes.c_void_p * 2)(ctypes.addressof(log), len(log))
        module = ctypes.c_void_p()
        try:
            self.call("cuModuleLoadDataEx", ctypes.byref(module), image, 2, options, values)
        except RuntimeError as e:
            raise RuntimeError(f"{e}: {log.value.decode(errors='replace')[:2000]}")
        kernels = {}
        for name in names:
            f = ctypes.c_void_p()
            self.call("cuModuleGetFunction", ctypes.byref(f), module, name.encode())
            if shared > 48 * 1024 and not name.startswith("cast"):
                self.call("cuFuncSetAttribute", f, 8, shared)  # most dynamic shared memory
            kernels[name] = f
        return kernels

    def map(self, t):
        """Tensor map of a matrix, as 128 bytes: boxes of 64 rows of 128 bytes, 128-byte swizzle, zeros out of bounds."""
        kind, width = {torch.bfloat16: (9, 64), torch.float32: (7, 32)}[t.dtype]
        raw = ctypes.create_string_buffer(128 + 64)
        at = (ctypes.addressof(raw) + 63) & ~63
        rows, cols = t.shape
        stride = t.stride(0) if rows > 1 else max(t.stride(0), cols)
        self.call("cuTensorMapEncodeTiled", ctypes.c_void_p(at), kind, 2, ctypes.c_void_p(t.data_ptr()),
                  (ctypes.c_uint64 * 2)(cols, rows), (ctypes.c_uint64 * 1)(stride * t.element_size()),
                  (ctypes.c_uint32 * 2)(width, 64), (ctypes.c_uint32 * 2)(1, 1), 0, 3, 2, 0)
        return Map(ctypes.string_at(at, 128))

    def maps(self, tensors):
        """The maps of several matrices in device memory."""
        blob = b"".join(self.map(t).data for t in tensors)
        return torch.frombuffer(bytearray(blob), dtype=torch.uint8).cuda()

    def launch(self, f, grid, block, shared, args):
        slots = (ctypes.c_void_p * len(args))()
        hold = []
        for i, a in enumerate(args):
            if isinstance(a, Map):
                slots[i] = a.address
                continue
            if isinstance(a, torch.Tensor):
                v = ctypes.c_uint64(a.data_ptr())
            elif isinstance(a, Long):
                v = ctypes.c_int64(a.value)
            else:
                v = ctypes.c_int32(a)
            hold.append(v)
            slots[i] = ctypes.addressof(v)
        self.call("cuLaunchKernel", f, grid, 1, 1, block, 1, 1, shared,
                  ctypes.c_void_p(torch.cuda.current_stream().cuda_stream), slots, None)


class Map:
    def __init__(self, data):
        self.data = data
        self.raw = ctypes.create_string_buffer(128 + 64)
        self.address = (ctypes.addressof(self.raw) + 63) & ~63
        ctypes.memmove(self.address, data, 128)


class Long:
    def __init__(self, value):
        self.value = value


# ---- one build of the kernels

class Build:
    """Calls the kernels of a build with torch tensors. The methods return a function that launches."""

    def __init__(self, name, spec):
        self.name, self.s, self.driver = name, spec, Driver()
        self.hopper = spec["file"].endswith("sm90")
        s = spec
        if self.hopper:
            self.threads = 384
            self.shared = s["STAGES"] * (s["TILE_M"] + s["TILE_N"]) * 128 + s["STAGING"] * 16384 + 1024
        else:
            self.threads = s["WARPS_M"] * s["WARPS_N"] * 32
            self.shared = s["STAGES"] * (s["TILE_M"] + s["TILE_N"]) * s["TILE_K"] * 2
        self.sms = torch.cuda.get_device_properties(0).multi_processor_count
        end = "_sm90" if self.hopper else ""
        names = [f"gemm_{l}{g}_{t}{end}" for l in ("nt", "nn", "tn") for g in ("", "_grouped") for t in ("bf16", "f32")]
        if not self.hopper:
            names += ["cast_f32_bf16", "cast_bf16_f32"]
        begin = time.time()
        self.kernels = self.driver.load(spec["path"], names, self.shared)
        self.load_seconds = time.time() - begin

    def kernel(self, layout, group, y):
        t = "bf16" if y.dtype == torch.bfloat16 else "f32"
        return self.kernels[f"gemm_{layout}{group}_{t}{'_sm90' if self.hopper else ''}"]

    def vector(self, *tensors):
        ok = all(t.data_ptr() % 16 == 0 and t.stride(0) % 8 == 0 and t.shape[1] % 8 == 0 for t in tensors)
        return VECTOR if ok else 0

    def start(self, f, grid, args, keep):
        def go():
            self.driver.launch(f, grid, self.threads, self.shared, args)
        go.keep = keep
        return go

    def dense(self, layout, y, a, b, add):
        m, n = y.shape
        k = a.shape[0] if layout == "tn" else a.shape[1]
        f = self.kernel(layout, "", y)
        tiles = div(m, self.s["TILE_M"]) * div(n, self.s["TILE_N"])
        if self.hopper:
            c = self.s["CLUSTER"]
            grid = min(self.sms // c, div(div(m, self.s["TILE_M"]), c) * div(n, self.s["TILE_N"])) * c
            args = [self.driver.map(a), self.driver.map(b), self.driver.map(y), m, n, k, ADD if add else 0]
        else:
            grid = tiles
            args = [y, a, b, m, n, k, a.stride(0), b.stride(0), y.stride(0), (ADD if add else 0) | self.vector(a, b)]
        return self.start(f, grid, args, (y, a, b))

    def rows(self, layout, y, a, bs, offsets, add):
        """y[rows of e] = a[rows of e] · bs[e]; offsets is a device tensor of int32."""
        n, k, experts = y.shape[1], a.shape[1], len(bs)
        f = self.kernel(layout, "_grouped", y)
        flags = ADD if add else 0
        upper = div(n, self.s["TILE_N"]) * (div(a.shape[0], self.s["TILE_M"]) + experts)
        if self.hopper:
            maps = self.driver.maps(bs)
            args = [self.driver.map(a), maps, self.driver.map(y), y, offsets, experts, n, k, y.stride(0), flags]
            return self.start(f, min(self.sms, upper), args, (y, a, bs, offsets, maps))
        table = torch.tensor([b.data_ptr() for b in bs], dtype=torch.int64).cuda()
        flags |= self.vector(a, *bs)
        args = [y, a, table, offsets, experts, n, k, a.stride(0), bs[0].stride(0), y.stride(0), flags]
        return self.start(f, upper, args, (y, a, bs, offsets, table))

    def reduce(self, ys, a, b, offsets, chosen, add):
        """ys[i] = a[rows of e]ᵀ · b[rows of e], e = chosen[i]."""
        (m, n), count = ys[0].shape, len(ys)
        f = self.kernel("tn", "_grouped", ys[0])
        flags = ADD if add else 0
        tiles = div(m, self.s["TILE_M"]) * div(n, self.s["TILE_N"]) * count
        chosen = torch.tensor(chosen, dtype=torch.int32).cuda()
        if self.hopper:
            table = self.driver.maps(ys)
            args = [self.driver.map(a), self.driver.map(b), table, offsets, chosen, count, m, n, flags]
            return self.start(f, min(self.sms, tiles), args, (ys, a, b, offsets, chosen, table))
        table = torch.tensor([y.data_ptr() for y in ys], dtype=torch.int64).cuda()
        args = [table, a, b, offsets, chosen, count, m, n, a.stride(0), b.stride(0), ys[0].stride(0), flags | self.vector(a, b)]
        return self.start(f, tiles, args, (ys, a, b, offsets, chosen, table))

    def cast(self, y, x):
        name = "cast_f32_bf16" if y.dtype == torch.bfloat16 else "cast_bf16_f32"
        self.driver.launch(self.kernels[name], div(x.numel(), 2048), 256, 0, [y, x, Long(x.numel())])


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
        return ok

    def dense(self, layout, m, n, k, dtype, add, pad=0, shift=0):
        a, b = operands(layout, m, n, k, pad=pad, shift=shift)
        old = torch.randn(m, n, device="cuda") if add else torch.full((m, n), float("nan"), device="cuda")
        y = matrix(m, n, pad=pad, shift=shift, dtype=dtype, value=old)
        want = product(layout, a, b) + (y.float() if add else 0)
        self.build.dense(layout, y, a, b, add)()
        torch.cuda.synchronize()
        short = "bf16" if dtype == torch.bfloat16 else "f32"
        ok = self.record(f"{layout}_{short}", f"{m}x{n}x{k}{' add' if add else ''}{f' pad {pad}' if pad else ''}{f' shift {shift}' if shift else ''}",
                         error(y, want), LIMIT[dtype], stray(y))
        if not ok and (m, n, k) == (128, 256, 64):
            self.dump(layout, short)

    def dump(self, layout, short):
        """Leaves a small product with recognisable values for study."""
        a, b = operands(layout, 128, 256, 64)
        a.zero_()
        for i in range(64):
            a[(i, i) if layout != "tn" else (i, i)] = 1
        k = torch.arange(64, device="cuda").view(64, 1).float()
        n = torch.arange(256, device="cuda").view(1, 256).float()
        out = {}
        for what, v in (("k", k + 0 * n), ("n", 0 * k + n)):  # small integers are exact in bf16
            b.copy_((v if layout != "nt" else v.t())[:b.shape[0], :b.shape[1]] % 256)
            y = matrix(128, 256, dtype=torch.bfloat16 if short == "bf16" else torch.float32)
            self.build.dense(layout, y, a, b, False)()
            torch.cuda.synchronize()
            out[what] = y.float().cpu().tolist()
        if self.out and len(os.listdir(self.out)) < 6:
            json.dump(out, open(os.path.join(self.out, f"fail_{self.build.name}_{layout}_{short}.json"), "w"))

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
        if not self.build.hopper:
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
            print(f"  {self.build.name:<24} {what:<26} {name:<5} {best[name]:8.4f} ms {row['tflops']:6.0f} TFLOP/s  " + "  ".join(
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

    def run(self, quick):
        self.dense(4096, 4096, 4096)
        if not quick:
            self.dense(8192, 2048, 2048)
            self.dense(8192, 8192, 8192, ("nt",))
        self.experts(65536, 64, 2048, 1024, quick)
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
    p.add_argument("--variants")
    p.add_argument("--only", default="")
    p.add_argument("--quick", action="store_true", help="fewer shapes for the built-in kernels too")
    p.add_argument("--limit", type=float, default=45, help="seconds for one build")
    o = p.parse_args()
    builds = {name: dict(spec, path=os.path.join(KERNELS, spec["path"])) for name, spec in BUILTIN.items()}
    rest = {}
    if o.variants:
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
