"""The memory-bound kernels of training/cuda against PyTorch: correctness, and speed as a share of the card's copy bandwidth.

    python3 bench/cuda/membound.py [--only WORD]

Each line counts the bytes that must be read and written once. Results go to $OUT/membound.json."""

import argparse
import math

import torch
import torch.nn.functional as F

from device import Long, Parts, ceil, error, milliseconds, module

TYPE = {"f": torch.float32, "b": torch.bfloat16}
ROWS, WIDTH, HEADS, HD, SEQ = 32768, 2048, 16, 128, 2048
EXPERTS, TOP, EXPERT_WIDTH, TOKENS, VOCAB = 64, 8, 1024, 8192, 50304
SETS = 2  # of buffers in turn; each is larger than the L2


def random(letter, *shape):
    return torch.randn(*shape, device="cuda").to(TYPE[letter])


def blank(letter, *shape):
    return torch.full(shape, float("nan"), device="cuda", dtype=TYPE[letter])


def limit(letter):
    return 5e-3 if letter == "b" else 3e-6


def require(what, got, want, most=None):
    most = most or limit("b" if got.dtype == torch.bfloat16 else "f")
    e = error(got, want)
    if not e < most:
        raise AssertionError(f"{what}: relative error {e:.2e}, limit {most:.0e}")


def per_row(rows, d):
    if d <= 1024:
        return (ceil(rows, 8),), (32, 8)
    return (rows,), (64,) if d <= 2048 else (128,) if d <= 4096 else (256,)


def per_slot(rows, width):
    if width <= 512:
        return (ceil(rows, 8),), (32, 8)
    return (rows,), (128,) if width <= 1024 else (256,)


def flat(n):
    return (ceil(n, 2048),), (256,)


class Report:
    """Collects lines: name, time, share of copy bandwidth."""

    def __init__(self, copy):
        self.copy, self.lines = copy, {}

    def time(self, name, calls, size, torch_calls=None):
        ms = milliseconds(calls, rounds=11)
        rate = size / ms / 1e9
        line = {"ms": ms, "TB/s": rate, "share": rate / self.copy}
        text = f"  {name:24} {ms:8.4f} ms {rate:6.2f} TB/s {100 * rate / self.copy:5.0f}% of copy"
        if torch_calls:
            line["torch ms"] = milliseconds(torch_calls, rounds=7)
            text += f"   torch {line['torch ms']:8.4f} ms, {line['torch ms'] / ms:5.2f}×"
        self.lines[name] = line
        print(text, flush=True)


def nbytes(*tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


def copy_bandwidth():
    """Bytes read and written per second in TB/s, by torch's copy."""
    a = torch.randn(1 << 28, device="cuda")
    b = torch.empty_like(a)
    best = 2 * nbytes(a) / milliseconds([lambda: b.copy_(a), lambda: a.copy_(b)]) / 1e9
    c, d = a[: 1 << 25], b[: 1 << 25]
    e, f = a[1 << 27:][: 1 << 25], b[1 << 27:][: 1 << 25]
    small = 2 * nbytes(c) / milliseconds([lambda: d.copy_(c), lambda: f.copy_(e)]) / 1e9
    print(f"  copy of 1 GiB {best:.2f} TB/s, of 128 MiB {small:.2f} TB/s", flush=True)
    return best


ODD = [(3, 64), (9, 512), (5, 1000), (7, 2048), (2, 4200), (3, 9000), (3, 37), (2, 4111)]


def norm64(x, w, eps=1e-5):
    x = x.double()
    inv = 1 / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return x * inv * w.double(), inv[:, 0]


def norm_grad64(dy, x, w, eps=1e-5):
    x, w = x.double().requires_grad_(), w.double().requires_grad_()
    inv = 1 / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return torch.autograd.grad(x * inv * w, (x, w), dy.double())


def norms(copy):
    m, r = module("norm"), Report(copy)
    for rows, d in ODD:
        grid, block = per_row(rows, d)
        w = random("f", d)
        for l in ("ff", "fb", "bb"):
            x, y, inv = random(l[0], rows, d), blank(l[1], rows, d), blank("f", rows)
            m.launch("rmsnorm_" + l, grid, block, 0, y, inv, x, w, rows, d, 1e-5)
            want, want_inv = norm64(x, w)
            require(f"rmsnorm_{l} {rows}×{d}", y, want)
            require("inv", inv, want_inv)
        for l in ("fff", "fbf", "bbf", "bbb"):
            x, dy, dx = random(l[0], rows, d), random(l[1], rows, d), random(l[2], rows, d)
            inv = norm64(x, w)[1].float()
            want, want_w = norm_grad64(dy, x, w)
            sum_ = dx.double() + want
            m.launch("rmsnorm_grad_" + l, grid, block, 0, dx, dx, dy, inv, x, w, rows, d)
            require(f"rmsnorm_grad_{l} {rows}×{d}", dx, sum_)
            if l != "bbf":
                partial, dw = blank("f", 5, d), blank("f", d)
                m.launch("rmsnorm_wgrad_" + l[:2], (ceil(d, 256), 5), (256,), 0, partial, dy, inv, x, rows, d)
                m.launch("reduce_rows", (ceil(d, 32),), (256,), 0, dw, partial, 5, d, 0)
                require(f"rmsnorm_wgrad_{l[:2]} {rows}×{d}", dw, want_w)
    for d in (WIDTH, 1024, 4096):
        rows = ROWS * WIDTH // d
        grid, block = per_row(rows, d)
        w, inv = random("f", d), random("f", rows)
        half = w.bfloat16()
        for l in ("bb", "fb", "ff") if d == WIDTH else ("bb",):
            sets = [(random(l[0], rows, d), blank(l[1], rows, d)) for _ in range(SETS)]
            theirs = [lambda x=x: F.rms_norm(x, (d,), half, 1e-5) for x, _ in sets] if l == "bb" else None
            r.time(f"rmsnorm_{l} {d}", [m.prepare("rmsnorm_" + l, grid, block, 0, y, inv, x, w, rows, d, 1e-5) for x, y in sets],
                   nbytes(*sets[0]), theirs)
    d, rows = WIDTH, ROWS
    grid, block = per_row(rows, d)
    w, inv = random("f", d), random("f", rows)
    for l in ("fbf", "bbf", "bbb"):
        sets = [(random(l[0], rows, d), random(l[1], rows, d), random(l[2], rows, d)) for _ in range(SETS)]
        r.time("rmsnorm_grad_" + l, [m.prepare("rmsnorm_grad_" + l, grid, block, 0, dx, dx, dy, inv, x, w, rows, d) for x, dy, dx in sets],
               nbytes(*sets[0], sets[0][2]))
    partial = blank("f", 64, d)
    r.time("rmsnorm_wgrad_bb", [m.prepare("rmsnorm_wgrad_bb", (ceil(d, 256), 64), (256,), 0, partial, dy, inv, x, rows, d)
                                for dy, x in [(random("b", rows, d), random("b", rows, d)) for _ in range(SETS)]], 4 * rows * d)
    return r.lines


def rotate(y, cos, sin, heads, sign=1):
    rows, hd = y.shape[0], y.shape[1] // heads
    y = y.view(rows, heads, 2, hd // 2)
    c = cos.double()[torch.arange(rows, device="cuda") % cos.shape[0]][:, None]
    s = sign * sin.double()[torch.arange(rows, device="cuda") % cos.shape[0]][:, None]
    a, b = y[:, :, 0], y[:, :, 1]
    return torch.stack((a * c - b * s, b * c + a * s), 2).reshape(rows, -1)


def heads(copy):
    m, r = module("norm"), Report(copy)

    def shape(rows):
        return (ceil(rows, 8),), (256,)

    for rows, h, seq, hd in [(6, 3, 3, 128), (10, 2, 5, 64), (7, 1, 7, 16), (5, 3, 5, 96), (4, 5, 2, 40), (3, 2, 3, 6), (1030, 16, 103, 128),
                              (70, 19, 35, 128), (600, 4, 60, 128)]:
        grid, block = shape(rows)
        w, angle = random("f", hd), 3 * random("f", seq, hd // 2)
        cos, sin = angle.cos(), angle.sin()
        for l in ("ff", "fb", "bb"):
            x, y, inv = random(l[0], rows, h * hd), blank(l[1], rows, h * hd), blank("f", rows * h)
            m.launch("headnorm_rope_" + l, grid, block, 0, y, inv, x, w, cos, sin, rows, h, seq, hd, h * hd, h * hd, 1e-5)
            want, want_inv = norm64(x.view(-1, hd), w)
            require(f"headnorm_rope_{l} {rows}×{h}×{hd}", y, rotate(want.view(rows, -1), cos, sin, h))
            require("inv", inv, want_inv)
        for l in ("fff", "bff", "bbb"):
            x, dy, dx = random(l[0], rows, h * hd), random(l[1], rows, h * hd), blank(l[2], rows, h * hd)
            inv = norm64(x.view(-1, hd), w)[1].float()
            want, want_w = norm_grad64(rotate(dy.double(), cos, sin, h, -1).view(-1, hd), x.view(-1, hd), w)
            small = (min(grid[0], 64),)
            partial, dw = blank("f", small[0], hd), blank("f", hd)
            m.launch("headnorm_rope_grad_" + l, small, block, 0, dx, partial, dy, inv, x, w, cos, sin, rows, h, seq, hd, h * hd, h * hd)
            m.launch("reduce_rows", (ceil(hd, 32),), (256,), 0, dw, partial, small[0], hd, 0)
            require(f"headnorm_rope_grad_{l} {rows}×{h}×{hd}", dx, want.view(rows, -1))
            require("dw", dw, want_w, 1e-5)
    rows, h, hd = ROWS, HEADS, HD
    grid, block = shape(rows)
    w, angle, inv = random("f", hd), random("f", SEQ, hd // 2), random("f", rows * h)
    for l in ("bb", "fb"):
        sets = [(random(l[0], rows, h * hd), blank(l[1], rows, h * hd)) for _ in range(SETS)]
        r.time("headnorm_rope_" + l, [m.prepare("headnorm_rope_" + l, grid, block, 0, y, inv, x, w, angle, angle, rows, h, SEQ, hd, h * hd,
                                                h * hd, 1e-5) for x, y in sets], nbytes(*sets[0]) + 4 * rows * h)
    sets = [(random("b", rows, h * hd), random("b", rows, h * hd), blank("b", rows, h * hd)) for _ in range(SETS)]
    few = 4 * torch.cuda.get_device_properties(0).multi_processor_count
    for name, g, part in (("", grid, None), (" and dw", (few,), blank("f", few, hd))):
        r.time("headnorm_rope_grad_bbb" + name, [m.prepare("headnorm_rope_grad_bbb", g, block, 0, dx, part, dy, inv, x, w, angle, angle,
                                                           rows, h, SEQ, hd, h * hd, h * hd) for x, dy, dx in sets], nbytes(*sets[0]))
    return r.lines


def elementwise(copy):
    m, r = module("fast"), Report(copy)
    for rows, width, ld in [(9, 64, 128), (3, 520, 520), (2, 1024, 1032), (3, 2056, 2056), (5, 33, 34)]:
        for l in ("ff", "fb", "bb"):
            g, u, a = random(l[0], rows, ld), random(l[0], rows, ld), blank(l[1], rows, width)
            m.launch("swiglu_" + l, (ceil(rows * ceil(width, 8), 256),), (256,), 0, a, g, u, rows, width, ld, width)
            require("swiglu_" + l, a, (F.silu(g.double()) * u.double())[:, :width])
        for l in "fb":
            g, u, da, w = random(l, rows, ld), random(l, rows, ld), random(l, rows, width), random("f", rows)
            source = torch.randperm(rows, device="cuda").int()
            dw, dg, du, wa = blank("f", rows), torch.zeros_like(g), torch.zeros_like(u), blank(l, rows, width)
            G, U = g.double()[:, :width].requires_grad_(), u.double()[:, :width].requires_grad_()
            a, ws = F.silu(G) * U, w[source.long()].double()[:, None]
            want = torch.autograd.grad(a, (G, U), ws * da.double())
            grid, block = per_slot(rows, width)
            m.launch("swiglu_grad_" + l, grid, block, 0, dg, du, wa, dw, da, g, u, w, source, None, None, rows, width, ld, width)
            require("dg", dg[:, :width], want[0])
            require("du", du[:, :width], want[1])
            require("wa", wa, ws * a)
            require("dw", dw[source.long()], (da.double() * a).sum(1), 1e-5)
    for n in (1, 7, 2048, 5003):
        for l in ("fff", "ffb", "fbb", "bbb"):
            y, a, b = blank(l[0], n), random(l[1], n), random(l[2], n)
            m.launch("sum_" + l, *flat(n), 0, y, a, b, Long(n))
            require("sum_" + l, y, a.double() + b.double())
    rows, width = TOKENS * TOP, EXPERT_WIDTH
    sets = [[random("b", rows, width) for _ in range(3)] for _ in range(SETS)]
    r.time("swiglu_bb", [m.prepare("swiglu_bb", (rows * width // 8 // 256,), (256,), 0, a, g, u, rows, width, width, width)
                         for a, g, u in sets], nbytes(*sets[0]), [lambda g=g, u=u: F.silu(g) * u for _, g, u in sets])
    weight, dw, source = random("f", rows), blank("f", rows), torch.randperm(rows, device="cuda").int()
    grid, block = per_slot(rows, width)
    expert = torch.randint(EXPERTS, (rows,), device="cuda").int()
    wanted = (torch.arange(EXPERTS, device="cuda") < EXPERTS // 8).int()
    for name, e, some, passes in (("", None, None, 6), (", wa of 1/8", expert, wanted, 5 + 1 / 8)):
        r.time("swiglu_grad_b in place" + name, [m.prepare("swiglu_grad_b", grid, block, 0, g, u, a, dw, a, g, u, weight, source, e, some, rows,
                                                           width, width, width) for a, g, u in sets], passes * nbytes(sets[0][0]))
    n = ROWS * WIDTH
    for l in ("fff", "ffb", "bbb"):
        sets = [(blank(l[0], n), random(l[1], n), random(l[2], n)) for _ in range(SETS)]
        r.time("sum_" + l, [m.prepare("sum_" + l, *flat(n), 0, y, a, b, Long(n)) for y, a, b in sets], nbytes(*sets[0]),
               [lambda y=y, a=a, b=b: torch.add(a, b, out=y) for y, a, b in sets])
    return r.lines


LOSS_THREADS = {"f": 1024, "b": 512}


def loss(copy):
    m, r = module("fast"), Report(copy)
    for rows, vocab in [(3, 64), (4, 5003), (2, 11), (3, 3), (5, 50257), (2, 200003)]:
        for l in "fb":
            x = (4 * random("f", rows, vocab)).to(TYPE[l])
            target = torch.randint(vocab, (rows,), device="cuda").int()
            target[0] = vocab - 1
            X = x.double().requires_grad_()
            want = F.cross_entropy(X, target.long(), reduction="none")
            grad, = torch.autograd.grad(want.sum() * 0.25, X)
            losses = torch.full((rows,), float("nan"), device="cuda", dtype=torch.float64)
            for scale in (0.0, 0.25):
                m.launch("cross_entropy_" + l, (rows,), (LOSS_THREADS[l],), 0, losses, x, target, rows, vocab, scale)
                require(f"loss_{l} {rows}×{vocab}", losses, want, 1e-6)
            require(f"gradient_{l} {rows}×{vocab}", x, grad, 5e-3 if l == "b" else 1e-5)
    for l, rows in (("b", 4096), ("f", 2048)):
        sets = [(random(l, rows, VOCAB), torch.randint(VOCAB, (rows,), device="cuda")) for _ in range(SETS)]
        losses = torch.empty(rows, device="cuda", dtype=torch.float64)

        def theirs(x, t):
            x = x.requires_grad_()
            torch.autograd.grad(F.cross_entropy(x, t), x)

        for threads in (512, 1024):
            mark = "" if threads == LOSS_THREADS[l] else f", {threads} threads"
            calls = {k: [m.prepare(f"cross_entropy_{l}", (rows,), (threads,), 0, losses, x, t.int(), rows, VOCAB, k) for x, t in sets]
                     for k in (1e-4, 0.0)}
            r.time(f"cross_entropy_{l}{mark}", calls[1e-4], 2 * nbytes(sets[0][0]),
                   None if mark else [lambda x=x.clone(), t=t: theirs(x, t) for x, t in sets])
            r.time(f"cross_entropy_{l} loss{mark}", calls[0.0], nbytes(sets[0][0]))
        del sets
    return r.lines


def addresses(*tensors):
    return torch.tensor([t.data_ptr() for t in tensors], device="cuda", dtype=torch.int64)


def optimiser(copy):
    m, r = module("optimizer"), Report(copy)
    scalars = (0.7, 0.9, 0.1, 0.95, 0.05, 3e-3, 1.5, 1e-8, 1e-4)
    clip, b1, o1, b2, o2, step, root, eps, decay = (torch.tensor(s).item() for s in scalars)
    for n in (5, 4099):
        p, mm, v, g = random("f", n), random("f", n), random("f", n).abs(), random("f", n)
        x = clip * g.double()
        M, V = b1 * mm.double() + o1 * x, b2 * v.double() + o2 * x * x
        P = p.double() - decay * p.double() - M * step / (V.sqrt() * root + eps)
        half = blank("b", n)
        twice = [x.clone() for x in (p, mm, v)]
        m.launch("adamw", *flat(n), 0, p, mm, v, g, Long(n), *scalars)
        m.launch("adamw_copy", *flat(n), 0, *twice, g, half, Long(n), *scalars)
        if not all(torch.equal(x, y) for x, y in zip(twice, (p, mm, v))) or not torch.equal(half, p.bfloat16()):
            raise AssertionError("the copy differs")
        require("adamw p", p, P)
        require("adamw m", mm, M)
        require("adamw v", v, V)
        partial, at, lengths = torch.empty(2, 3, device="cuda", dtype=torch.float64), addresses(g, p), torch.tensor([n, n], device="cuda")
        m.launch("square_sums", (3, 2), (256,), 0, partial, at, lengths)
        require("square_sums", partial.sum(1), torch.stack((g, p)).double().square().sum(1), 1e-6)
    n = 1 << 26
    p, mm, v, g = random("f", n), random("f", n), random("f", n).abs(), random("f", n)
    steps = torch.zeros(1, device="cuda")

    def theirs():
        torch._fused_adamw_([p], [g], [mm], [v], [], [steps], lr=1e-3, beta1=0.9, beta2=0.95, weight_decay=0.1, eps=1e-8, amsgrad=False,
                            maximize=False)

    r.time("adamw", [m.prepare("adamw", *flat(n), 0, p, mm, v, g, Long(n), *scalars)], 28 * n, [theirs])
    half = blank("b", n)
    r.time("adamw_copy", [m.prepare("adamw_copy", *flat(n), 0, p, mm, v, g, half, Long(n), *scalars)], 30 * n)
    for tensors in (1, 32):
        lengths, shares = torch.full((tensors,), n // tensors, device="cuda"), min(ceil(n // tensors, 1 << 15), max(16, 4096 // tensors))
        partial = torch.empty(tensors * shares, device="cuda", dtype=torch.float64)
        r.time(f"square_sums of {tensors}", [m.prepare("square_sums", (shares, tensors), (256,), 0, partial, addresses(*x.chunk(tensors)), lengths)
                                             for x in (p, g)], 4 * n, [lambda x=x: torch.linalg.vector_norm(x) for x in (p, g)])
    return r.lines


def by_id(ids):
    """The arguments ids, first and order of embed_grad."""
    order = ids.sort(stable=True)
    values, counts = order.values.unique_consecutive(return_counts=True)
    return values.int(), torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int(), order.indices.int()


def embedding(copy):
    m, r = module("fast"), Report(copy)
    for rows, d in [(600, 64), (33, 2600), (50, 13)]:
        ids = torch.randint(5, (rows,), device="cuda").int()
        for l in ("ff", "fb", "bb"):
            table, y = random(l[0], 6, d), blank(l[1], rows, d)
            m.launch("embed_" + l, (rows,), (256,), 0, y, table, ids, rows, d)
            require("embed_" + l, y, table[ids.long()])
        for l in "fb":
            table, dy = random("f", 6, d), random(l, rows, d)
            want = table.double().index_add(0, ids.long(), dy.double())
            lists = by_id(ids)
            m.launch("embed_grad_" + l, (lists[0].numel(), ceil(d, 512)), (64,), 0, table, dy, *lists, d)
            require("embed_grad_" + l, table, want, 1e-5)
    rows, d = ROWS, WIDTH
    table = random("f", VOCAB, d)
    half = table.bfloat16()
    # Words come as in texts: rank k with frequency 1/k.
    frequency = 1 / torch.arange(1, VOCAB + 1, device="cuda").double()
    ids = torch.multinomial(frequency, rows, True).int()
    sets = [blank("b", rows, d) for _ in range(SETS)]
    r.time("embed_bb", [m.prepare("embed_bb", (rows,), (256,), 0, y, half, ids, rows, d) for y in sets], 4 * rows * d,
           [lambda: F.embedding(ids, half)])
    few = 8192
    dy, lists = random("b", few, d), by_id(ids[:few])
    unique = lists[0].numel()
    print(f"  {few} tokens, {unique} of them different, the most frequent {lists[1].diff().max()} times", flush=True)
    r.time("embed_grad_b", [m.prepare("embed_grad_b", (unique, ceil(d, 512)), (64,), 0, table, dy, *lists, d)], nbytes(dy) + 8 * d * unique,
           [lambda: table.index_add_(0, ids[:few], dy.float())])
    return r.lines


class Routing:
    def __init__(self, m, tokens, experts, top, normalize):
        self.m, self.tokens, self.experts, self.top, self.normalize = m, tokens, experts, top, normalize
        self.slots, self.runs = tokens * top, ceil(tokens * top, 1024)
        self.logits = random("f", tokens, experts)
        self.probs, self.weight = blank("f", tokens, experts), blank("f", tokens, top)
        self.expert, self.place, self.source = (torch.full((self.slots,), -1, device="cuda", dtype=torch.int32) for _ in range(3))
        self.offsets = torch.full((experts + 1,), -1, device="cuda", dtype=torch.int32)
        self.counts, self.first = (torch.empty(self.runs * experts, device="cuda", dtype=torch.int32) for _ in range(2))

    def steps(self):
        m, block = self.m, (256,)
        return [
            m.prepare("moe_route", (ceil(self.tokens, 16),), block, 0, self.probs, self.expert, self.weight, self.logits, self.tokens,
                      self.experts, self.top, self.normalize),
            m.prepare("moe_count", (self.runs,), block, 0, self.counts, self.expert, self.slots, self.experts),
            m.prepare("moe_offsets", (1,), block, 0, self.offsets, self.first, self.counts, self.runs, self.experts),
            m.prepare("moe_place", (self.runs,), block, 0, self.place, self.source, self.first, self.expert, self.slots, self.experts),
        ]

    def grad(self, dl, dw, balance):
        return self.m.prepare("moe_route_grad", (ceil(self.tokens, 16),), (256,), 0, dl, self.probs, self.expert, self.weight, dw,
                              self.offsets, self.tokens, self.experts, self.top, self.normalize, balance)

    def check(self):
        for s in self.steps():
            s()
        p = self.logits.double().softmax(-1)
        require("probabilities", self.probs, p)
        order = self.probs.sort(stable=True, dim=-1, descending=True)
        chosen = order.indices[:, : self.top]
        if not torch.equal(chosen.flatten().int(), self.expert):
            raise AssertionError("other experts were chosen")
        w = p.gather(1, chosen)
        require("weights", self.weight, w / w.sum(-1, keepdim=True) if self.normalize else w)
        source = self.expert.sort(stable=True).indices.int()
        place = torch.empty_like(source)
        place[source.long()] = torch.arange(self.slots, device="cuda").int()
        counts = torch.bincount(self.expert, minlength=self.experts)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
        for what, got, want in (("source", self.source, source), ("place", self.place, place), ("offsets", self.offsets, offsets)):
            if not torch.equal(got, want):
                raise AssertionError(f"{what} differs")
        dw, dl = random("f", self.tokens, self.top), blank("f", self.tokens, self.experts)
        L = self.logits.double().requires_grad_()
        P = L.softmax(-1)
        w = P.gather(1, chosen)
        w = w / w.sum(-1, keepdim=True) if self.normalize else w
        balance = 0.01 * self.experts * (counts.double() / self.tokens * P.mean(0)).sum()
        want, = torch.autograd.grad((w * dw.double()).sum() + balance, L)
        self.grad(dl, dw, 0.01)()
        require("dlogits", dl, want, 1e-5)


def mixture(copy):
    m, r = module("moe"), Report(copy)
    for shape in [(5, 4, 2, 0), (300, 64, 8, 1), (33, 256, 16, 0), (2000, 130, 6, 1), (1, 16, 16, 1), (9000, 7, 6, 0)]:
        Routing(m, *shape).check()
    for tokens, experts, top, d in [(5, 4, 2, 64), (190, 8, 5, 300), (77, 3, 3, 2056), (4, 4, 1, 33)]:
        route = Routing(m, tokens, experts, top, 0)
        route.check()
        block = (min(256, 32 * ceil(ceil(d, 8), 32)),)
        place = route.place.long()
        for l in ("ff", "fb", "bb"):
            x, y = random(l[0], tokens, d), blank(l[1], tokens * top, d)
            want = x.to(y.dtype).repeat_interleave(top, 0)
            wanted = (torch.arange(experts, device="cuda") % 2).int()
            some = wanted[route.expert.long()].bool()
            m.launch("moe_gather_" + l, (tokens,), block, 0, y, x, route.place, route.expert, wanted, tokens, top, d)
            if not torch.equal(y[place[some]], want[some]) or not y[place[~some]].isnan().all():
                raise AssertionError("gather of some, " + l)
            m.launch("moe_gather_" + l, (tokens,), block, 0, y, x, route.place, None, None, tokens, top, d)
            if not torch.equal(y[place], want):
                raise AssertionError("gather_" + l)
        for l in ("ff", "bf", "bb"):
            o, base, y = random(l[0], tokens * top, d), random(l[1], tokens, d), blank(l[1], tokens, d)
            rows = o.double()[place].view(tokens, top, d)
            m.launch("moe_combine_" + l, (tokens,), block, 0, y, base, o, route.place, route.weight, tokens, top, d)
            require("combine_" + l, y, base.double() + (rows * route.weight.double()[..., None]).sum(1))
            m.launch("moe_scatter_" + l, (tokens,), block, 0, base, base, o, route.place, tokens, top, d)
            want = rows.sum(1)
            m.launch("moe_scatter_" + l, (tokens,), block, 0, y, None, o, route.place, tokens, top, d)
            require("scatter_" + l, y, want)
    tokens, d = TOKENS, WIDTH
    route = Routing(m, tokens, EXPERTS, TOP, 1)
    route.check()
    for name, call in zip(("moe_route", "moe_count", "moe_offsets", "moe_place"), route.steps()):
        r.time(name, [call], 8 * route.logits.numel() if name == "moe_route" else 8 * route.slots)
    r.time("routing, all four", [lambda steps=route.steps(): [s() for s in steps]], 8 * route.logits.numel(),
           [lambda: torch.sort(torch.topk(route.logits.softmax(-1), TOP).indices.flatten())])
    r.time("moe_route_grad", [route.grad(route.probs.clone(), random("f", tokens, TOP), 0.01)], 8 * route.logits.numel())
    block, token = (256,), torch.arange(tokens, device="cuda").repeat_interleave(TOP)[route.source.long()]
    x, y = random("b", tokens, d), blank("b", tokens * TOP, d)
    r.time("moe_gather_bb", [m.prepare("moe_gather_bb", (tokens,), block, 0, y, x, route.place, None, None, tokens, TOP, d)], nbytes(x, y),
           [lambda: torch.index_select(x, 0, token, out=y)])
    wanted = (torch.arange(EXPERTS, device="cuda") < EXPERTS // 8).int()
    part = int(wanted[route.expert.long()].sum()) / route.slots
    r.time("moe_gather_bb of 1/8", [m.prepare("moe_gather_bb", (tokens,), block, 0, y, x, route.place, route.expert, wanted, tokens, TOP, d)],
           nbytes(x) + part * nbytes(y))
    w = random("f", tokens, d)
    r.time("moe_gather_fb", [m.prepare("moe_gather_fb", (tokens,), block, 0, y, w, route.place, None, None, tokens, TOP, d)], nbytes(w, y))
    o, weight = random("b", tokens * TOP, d), route.weight.flatten()[route.source.long()].bfloat16()[:, None]
    r.time("moe_combine_bb", [m.prepare("moe_combine_bb", (tokens,), block, 0, x, None, o, route.place, route.weight, tokens, TOP, d)],
           nbytes(o, x), [lambda: torch.zeros_like(x).index_add_(0, token, o * weight)])
    z = random("f", tokens, d)
    r.time("moe_scatter_bf", [m.prepare("moe_scatter_bf", (tokens,), block, 0, z, z, o, route.place, tokens, TOP, d)], nbytes(o, z, z))
    return r.lines


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--only", default="", help="only parts with this word in their name")
    options = a.parse_args()
    parts = Parts(40)
    copy = parts.run("copy", copy_bandwidth) or math.nan
    for f in (norms, heads, elementwise, loss, optimiser, embedding, mixture):
        if options.only in f.__name__:
            parts.run(f.__name__, f, copy)
    lines = {k: v for part in parts.results.values() if isinstance(part, dict) for k, v in part.items()}
    slow = [f"{k} {100 * v['share']:.0f}%" for k, v in lines.items() if v["share"] < 0.8]
    print(f"{len(lines)} timed; below 80% of copy ({copy:.2f} TB/s): {', '.join(slow) or 'none'}")
    parts.finish("membound.json", copy=copy)


main()
