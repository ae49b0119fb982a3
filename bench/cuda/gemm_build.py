"""Calls the kernels of training/cuda/kernels/gemm_bf16.cu, gemm_bf16_sm90.cu and gemm_fused_sm90.cu with torch tensors, for gemm.py."""
import ctypes, os, time

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
KERNELS = os.path.join(HERE, "..", "..", "training", "cuda", "kernels")
ADD, VECTOR = 1, 2
BUILTIN = {
    "sm90": dict(file="gemm_bf16_sm90", path="ptx/gemm_bf16_sm90.sm_90a.ptx", TILE_M=128, TILE_N=256),
    "sm80": dict(file="gemm_bf16", path="ptx/gemm_bf16.sm_80.ptx",
                 TILE_M=128, TILE_N=128, TILE_K=32, WARPS_M=2, WARPS_N=2, STAGES=4),
}
FUSED = ("gemm_nn_grouped_sum_sm90", "gemm_nt_grouped_swiglu_sm90", "gemm_nn_grouped_swiglu_grad_sm90", "gemm_row_dots")


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
            if shared > 48 * 1024 and name.startswith("gemm_n") or name.startswith("gemm_t"):
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
            elif a is None:
                v = ctypes.c_uint64(0)
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
            self.shared = 230400
        else:
            self.threads = s["WARPS_M"] * s["WARPS_N"] * 32
            self.shared = s.get("shared", s["STAGES"] * (s["TILE_M"] + s["TILE_N"]) * s["TILE_K"] * 2)
        self.sms = torch.cuda.get_device_properties(0).multi_processor_count
        end = "_sm90" if self.hopper else ""
        names = [f"gemm_{l}{g}_{t}{end}" for l in ("nt", "nn", "tn") for g in ("", "_grouped") for t in ("bf16", "f32")]
        sums = ["gemm_sum_parts_f32", "gemm_sum_parts_bf16"]
        if self.hopper:
            more = [f"gemm_{l}_parts_sm90" for l in ("nt", "nn", "tn")] + list(FUSED)
        else:
            names += ["cast_f32_bf16", "cast_bf16_f32"] + sums
        begin = time.time()
        self.kernels = self.driver.load(spec["path"], names, self.shared)
        if self.hopper:
            self.kernels.update(self.driver.load(os.path.join(KERNELS, "ptx/gemm_fused_sm90.sm_90a.ptx"), more, self.shared))
            self.kernels.update(self.driver.load(os.path.join(KERNELS, "ptx/gemm_bf16.sm_80.ptx"), sums, 0))
            self.kernels.update(self.driver.load(os.path.join(KERNELS, "ptx/fast.sm_80.ptx"), ["swiglu_bb", "swiglu_grad_b"], 0))
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
            grid = min(self.sms, tiles)
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

    # Kernels that sm_90a alone has.

    def parts(self, layout, y, a, b, parts, add):
        """y (+)= a product whose reduction is done in parts."""
        m, n = y.shape
        k = a.shape[0] if layout == "tn" else a.shape[1]
        height = div(m, 64) * 64
        x = torch.full((parts * height, n), float("nan"), device="cuda")
        tiles = div(m, 128) * div(n, 256) * parts
        args = [self.driver.map(a), self.driver.map(b), self.driver.map(x), m, n, k, parts]
        first = self.start(self.kernels[f"gemm_{layout}_parts_sm90"], min(self.sms, tiles), args, (y, a, b, x))
        total = self.kernels["gemm_sum_parts_" + ("bf16" if y.dtype == torch.bfloat16 else "f32")]
        rest = [y, x, parts, Long(height * n), Long(m * n), ADD if add else 0]

        def go():
            first()
            self.driver.launch(total, div(m * n, 1024), 256, 0, rest)
        return go

    def upper(self, rows, experts, n, width=256):
        return min(self.sms, (div(rows, 128) + experts) * div(n, width))

    def sum(self, y, a, bs, a2, b2s, offsets):
        """y = a·bs[e] + a2·b2s[e]."""
        maps, maps2 = self.driver.maps(bs), self.driver.maps(b2s)
        args = [self.driver.map(a), maps, self.driver.map(a2), maps2, self.driver.map(y), y, offsets, len(bs), y.shape[1], a.shape[1], y.stride(0)]
        return self.start(self.kernels["gemm_nn_grouped_sum_sm90"], self.upper(len(y), len(bs), y.shape[1]), args, (y, a, bs, a2, b2s, offsets, maps, maps2))

    def swiglu(self, g, u, a, x, gates, ups, offsets, keep):
        """g = x·gates[e]ᵀ, u = x·ups[e]ᵀ, a = silu(g)·u."""
        maps, maps2, d = self.driver.maps(gates), self.driver.maps(ups), self.driver
        args = [d.map(x), maps, maps2, d.map(g), d.map(u), d.map(a), g, u, a, offsets, len(gates), a.shape[1], x.shape[1], a.stride(0), int(keep)]
        return self.start(self.kernels["gemm_nt_grouped_swiglu_sm90"], self.upper(len(x), len(gates), a.shape[1], 128), args, (g, u, a, x, gates, ups, offsets, maps, maps2))

    def swiglu_grad(self, dw, wa, g, u, dy, downs, weight, source, wanted, offsets):
        """g and u become their gradients for dy·downs[e] times the weight of the row."""
        maps, d, rows, n = self.driver.maps(downs), self.driver, len(dy), g.shape[1]
        dots = torch.full((rows, div(n, 256)), float("nan"), device="cuda")
        args = [d.map(dy), maps, d.map(g), d.map(u), d.map(g if wa is None else wa), g, u, wa, dots, weight, source, wanted, offsets, len(downs), n,
                dy.shape[1], g.stride(0)]
        first = self.start(self.kernels["gemm_nn_grouped_swiglu_grad_sm90"], self.upper(rows, len(downs), n), args,
                           (wa, g, u, dy, downs, weight, source, wanted, offsets, maps))
        rest = [dw, dots, source, rows, dots.shape[1]]

        def go():
            first()
            self.driver.launch(self.kernels["gemm_row_dots"], div(rows, 256), 256, 0, rest)
        return go

    def swiglu_after(self, a, g, u):
        rows, n = a.shape
        return lambda: self.driver.launch(self.kernels["swiglu_bb"], div(rows * div(n, 8), 256), 256, 0, [a, g, u, rows, n, n, n])

    def swiglu_grad_after(self, dw, wa, da, g, u, weight, source, expert, wanted):
        rows, n = da.shape
        args = [g, u, wa, dw, da, g, u, weight, source, expert, wanted, rows, n, n, n]
        return lambda: self.driver.launch(self.kernels["swiglu_grad_b"], rows, 128 if n <= 1024 else 256, 0, args)

    def cast(self, y, x):
        name = "cast_f32_bf16" if y.dtype == torch.bfloat16 else "cast_bf16_f32"
        self.driver.launch(self.kernels[name], div(x.numel(), 2048), 256, 0, [y, x, Long(x.numel())])
