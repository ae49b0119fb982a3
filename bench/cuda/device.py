"""Loads the kernels' PTX with the CUDA driver, launches them on torch's tensors and stream, and times them. Used by
attention.py and membound.py; run on the machine with the GPU."""

import ctypes
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
KERNELS = os.path.join(ROOT, "training", "cuda", "kernels")


def ceil(a, b):
    return -(-a // b)


class Long(int):
    """A 64-bit integer argument."""


class Module:
    """One PTX file. Kernels are launched by name."""

    def __init__(self, path):
        self.cuda = ctypes.CDLL("libcuda.so.1")
        torch.zeros(1, device="cuda")  # makes torch's context current
        log = ctypes.create_string_buffer(1 << 14)
        options = (ctypes.c_int * 2)(5, 6)  # CU_JIT_ERROR_LOG_BUFFER and its size
        values = (ctypes.c_void_p * 2)(ctypes.addressof(log), len(log))
        with open(path, "rb") as f:
            text = f.read() + b"\0"
        self.module, self.functions, self.shared = ctypes.c_void_p(), {}, {}
        self.path = path
        status = self.cuda.cuModuleLoadDataEx(ctypes.byref(self.module), text, 2, options, values)
        if status:
            raise RuntimeError(f"{path}: error {status}: {log.value.decode()}")

    def check(self, status, what):
        if status:
            name = ctypes.c_char_p()
            self.cuda.cuGetErrorName(status, ctypes.byref(name))
            raise RuntimeError(f"{what}: {name.value.decode() if name.value else status}")

    def prepare(self, name, grid, block, shared, *args):
        """Returns a function that launches; the arguments stay alive with it."""
        if name not in self.functions:
            f = ctypes.c_void_p()
            self.check(self.cuda.cuModuleGetFunction(ctypes.byref(f), self.module, name.encode()), name)
            self.functions[name], self.shared[name] = f, 0
        f = self.functions[name]
        if shared > 48 << 10 and self.shared[name] < shared:
            self.check(self.cuda.cuFuncSetAttribute(f, 8, shared), name)
            self.shared[name] = shared
        values = []
        for a in args:
            if a is None:
                values.append(ctypes.c_void_p(0))
            elif isinstance(a, torch.Tensor):
                values.append(ctypes.c_void_p(a.data_ptr()))
            elif isinstance(a, Long):
                values.append(ctypes.c_longlong(a))
            elif isinstance(a, (bool, int)):
                values.append(ctypes.c_int(a))
            else:
                values.append(ctypes.c_float(a))
        array = (ctypes.c_void_p * len(values))(*[ctypes.addressof(v) for v in values])
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        grid, block = tuple(grid) + (1,) * (3 - len(grid)), tuple(block) + (1,) * (3 - len(block))

        def launch(keep=(values, args)):
            self.check(self.cuda.cuLaunchKernel(f, *grid, *block, shared, stream, array, None), name)

        return launch

    def launch(self, name, grid, block, shared, *args):
        self.prepare(name, grid, block, shared, *args)()

    def occupancy(self, name, threads, shared):
        """Blocks per multiprocessor, and the kernel's registers and local bytes per thread."""
        blocks, registers, local = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        f = self.functions[name]
        self.cuda.cuOccupancyMaxActiveBlocksPerMultiprocessor(ctypes.byref(blocks), f, threads, ctypes.c_size_t(shared))
        self.cuda.cuFuncGetAttribute(ctypes.byref(registers), 4, f)
        self.cuda.cuFuncGetAttribute(ctypes.byref(local), 3, f)
        return blocks.value, registers.value, local.value


def module(name):
    """The checked-in PTX of kernels/NAME.cu."""
    return Module(os.path.join(KERNELS, "ptx", name + ".sm_80.ptx"))


def compiled(source):
    """The kernels of a source that is not checked in as PTX: what is built already in out/sweep, else nvcc's."""
    name = os.path.splitext(os.path.basename(source))[0]
    built = os.path.join(ROOT, "out", "sweep", name + ".sm_%d%d.cubin" % torch.cuda.get_device_capability())
    if os.path.exists(built):
        return Module(built)
    out, begin = f"/tmp/{name}.{os.getuid()}.cubin", time.time()
    if not os.path.exists(out) or os.path.getmtime(out) < os.path.getmtime(source):
        subprocess.run(["nvcc", "-cubin", "-arch=native", "--fmad=false", "-std=c++17", "-I", KERNELS, "-o", out, source], check=True)
        print(f"  nvcc {name}: {time.time() - begin:.1f} s", flush=True)
    return Module(out)


def milliseconds(calls, rounds=15, least=1.0):
    """Median time of one call. calls go in turn, each on data of its own, so that none finds its data in the L2. The card
    sleeps while a round is queued: what is timed is the card alone."""
    for c in calls:
        c()
    torch.cuda.synchronize()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def round_of(n):
        torch.cuda._sleep(int(2e6 + n * 60e3))
        begin.record()
        for i in range(n):
            calls[i % len(calls)]()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / n

    guess = min(round_of(len(calls)) for _ in range(2))
    n = max(len(calls), min(50, int(least / guess) + 1))
    return statistics.median(round_of(n) for _ in range(rounds))


def error(got, want):
    """‖got − want‖ / ‖want‖ in float64; NaN stays NaN."""
    got, want = got.double(), want.double()
    return ((got - want).norm() / want.norm().clamp_min(1e-30)).item()


class Parts:
    """Runs the parts of a benchmark one after another, each in a process of its own: a fault costs one part. The parent
    never touches the card."""

    def __init__(self, limit):
        self.limit, self.results, self.failed = limit, {}, []

    def run(self, name, f, *args):
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe(False)

        def child():
            os.setsid()
            try:
                there.send((True, f(*args)))
            except BaseException:
                there.send((False, traceback.format_exc(limit=4)))
            there.close()
            sys.stdout.flush()
            os._exit(0)

        begin = time.time()
        print(f"== {name}", flush=True)
        process = context.Process(target=child)
        process.start()
        there.close()
        good, value = False, f"no answer within {self.limit} s"
        if here.poll(self.limit):
            try:
                good, value = here.recv()
            except EOFError:
                value = "the process died"
        process.join(5)
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        if not good:
            print(value, flush=True)
            self.failed.append(name)
        print(f"   {name}: {time.time() - begin:.1f} s", flush=True)
        self.results[name] = value
        return value if good else None

    def finish(self, file, **more):
        """Writes everything to $OUT and exits: 1 if a part failed."""
        out = os.environ.get("OUT", ".")
        with open(os.path.join(out, file), "w") as f:
            json.dump({"parts": self.results, "failed": self.failed, **more}, f, indent=1, default=str)
        if self.failed:
            print("FAILED: " + ", ".join(self.failed))
        sys.exit(bool(self.failed))
