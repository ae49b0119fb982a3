"""The top-k code of training/cuda/kernels/codec.cu on an NVIDIA GPU: compared to the bit with docs/spec/topk.md, and timed; and
the emulator's own kernels on the card, so that what it claims of CUDA is what CUDA does.

    python3 bench/cuda/codec.py [--reference]

--reference needs no card: it checks the definition written here with the vectors of training/delta. Results go to
$OUT/codec.json."""

import os
import random
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
VECTORS = os.path.join(HERE, "..", "..", "training", "delta", "testdata", "topk.txt")
TESTS = os.path.join(HERE, "..", "..", "training", "cuda", "emu", "testdata", "emulator.cu")
CHUNK, LARGEST = 4096, 0x3955


def value(bits):
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def bits(x):
    return struct.unpack("<I", struct.pack("<f", x))[0]


def rounded(numerator, divisor):
    q, rest = divmod(numerator, divisor)
    return q + (2 * rest > divisor or (2 * rest == divisor and q & 1))


def code(x, k):
    """Indices, codes (one number each), scale and residual of a chunk; x and the residual as bits."""
    send = -(-len(x) * k // CHUNK)
    sent = sorted(sorted(range(len(x)), key=lambda i: (-(x[i] & 0x7FFFFFFF), i))[:send])
    fixed = [int(abs(value(x[i])) * 2.0**32) for i in sent]
    total = sum(fixed)
    above = [q for q in fixed if q * send > total]
    numerator, divisor = 2 * total + sum(above), (4 * send + 5 * len(above)) << 8
    shift = max(0, (numerator // divisor).bit_length() - 11)
    r = rounded(numerator, divisor << shift)
    scale = r if r < 1024 else min(LARGEST, (shift << 10) + r)
    if scale == 0:
        return list(range(send)), [0] * send, 0, list(x)
    unit = scale if scale < 1024 else (1024 + (scale & 1023)) << ((scale >> 10) - 1)
    codes, rest = [], list(x)
    for i, q in zip(sent, fixed):
        c = (1 if 2 * q > 5 * unit << 8 else 0) | x[i] >> 31 << 1
        v = (2 + (c & 1)) * unit / 2**24
        rest[i] = bits(value(x[i]) - (-v if c & 2 else v))  # exact in double, so rounded once
        codes.append(c)
    return sent, codes, scale, rest


def packed(codes, stride):
    out = [0] * stride
    for i, c in enumerate(codes):
        out[i // 4] |= c << i % 4 * 2
    return out


def reference():
    with open(VECTORS) as f:
        lines = [line.split() for line in f]
    for at in range(0, len(lines), 6):
        v = {line[0]: line[1:] for line in lines[at : at + 6]}
        indices, codes, scale, rest = code([int(w, 16) for w in v["x"]], int(v["k"][0], 16))
        assert indices == [int(w, 16) for w in v["indices"]], v
        assert bytes(packed(codes, (len(codes) + 3) // 4)).hex() == v["codes"][0], v
        assert scale == int(v["scale"][0], 16) and rest == [int(w, 16) for w in v["residual"]], v
    return f"{len(lines) // 6} vectors agree"


def inputs(seed):
    r = random.Random(seed)
    kinds = [
        lambda i: r.gauss(0, 1e-4),
        lambda i: r.uniform(-1, 1) * 2.0 ** -r.randrange(40),
        lambda i: r.choice((-0.01, 0.0, 0.01)),
        lambda i: -0.125,
        lambda i: 2.0,
        lambda i: r.uniform(-0.5, 0.5) * 2.0**-127,
        lambda i: r.gauss(0, 1e-8),
        lambda i: 0.0 if i % 2 else -0.0,
        lambda i: 1.5 if i == 4095 else 0.0,
    ] + [lambda i: max(-2.0, min(2.0, r.gauss(0, 1) * 2.71828 ** (3 * r.gauss(0, 1)) * 2.0**-12))] * 8
    x = [bits(f(i)) for f in kinds for i in range(CHUNK)]
    return x + [bits(r.gauss(0, 0.01)) for _ in range(777)]


def tensors(torch, n, k):
    chunks = -(-n // CHUNK)
    return (
        torch.full((chunks * k,), -1, dtype=torch.int16, device="cuda"),
        torch.full((chunks * ((k + 3) // 4),), 255, dtype=torch.uint8, device="cuda"),
        torch.full((chunks,), -1, dtype=torch.int16, device="cuda"),
        torch.zeros(1, dtype=torch.int32, device="cuda"),
    )


def exact():
    import torch
    from device import Long, module

    m, x = module("codec"), inputs(1)
    signed = [b - (1 << 32) if b >> 31 else b for b in x]
    compared = 0
    for k in (1, 41, 64, 1000, 4096):
        for offset in (0, 1):
            device = torch.tensor([0] * offset + signed, dtype=torch.int32, device="cuda")
            out = tensors(torch, len(x), k)
            m.launch("topk_code", (len(out[2]),), (256,), 0, *out, device[offset:], Long(len(x)), k)
            indices, codes, scales, flags = (t.tolist() for t in out)
            rest = [v & 0xFFFFFFFF for v in device[offset:].tolist()]
            stride = (k + 3) // 4
            assert flags == [0], flags
            for c, at in enumerate(range(0, len(x), CHUNK)):
                want = code(x[at : at + CHUNK], k)
                where = f"top {k}, offset {offset}, chunk {c}"
                assert [v & 0xFFFF for v in indices[c * k : (c + 1) * k]] == want[0] + [0] * (k - len(want[0])), where
                assert codes[c * stride : (c + 1) * stride] == packed(want[1], stride), where
                assert scales[c] & 0xFFFF == want[2], where
                assert rest[at : at + CHUNK] == want[3], where
                compared += 1
    for bad, flag in ((float("nan"), 1), (float("-inf"), 1), (2.0000002, 2)):
        device = torch.full((CHUNK,), 0.5, device="cuda")
        device[77] = bad
        out = tensors(torch, CHUNK, 41)
        m.launch("topk_code", (1,), (256,), 0, *out, device, Long(CHUNK), 41)
        assert out[3].item() == flag and (device == 0.5).sum().item() == CHUNK - 1, bad
    print(f"  {compared} chunks agree to the bit")
    return compared


def speed():
    import torch
    from device import Long, milliseconds, module

    m, n = module("codec"), 1 << 26
    fresh = torch.randn(n, device="cuda") * 1e-4
    copies = [fresh.clone() for _ in range(2)]
    ms = milliseconds([lambda: copies[0].copy_(copies[1])])
    copy = 8 * n / ms / 1e6
    results = {"copy GB/s": copy}
    print(f"  copy of {n} values: {copy:.0f} GB/s")
    for k in (41, 64):
        out = tensors(torch, n, k)
        # The residual is coded again: its largest values go, but never its bulk.
        ms = milliseconds([m.prepare("topk_code", (n // CHUNK,), (256,), 0, *out, c, Long(n), k) for c in copies])
        rate = 8 * n / ms / 1e6
        results[f"top {k} ms"], results[f"top {k} of copy"] = ms, rate / copy
        print(f"  top {k}: {ms:.3f} ms, {rate:.0f} GB/s of reading and writing: {100 * rate / copy:.0f}% of the copy")
    print("  occupancy (blocks, registers, local bytes):", m.occupancy("topk_code", 256, 0))
    return results


def emulator():
    """Some of emulator.cu's kernels, with the results that the emulator's tests want."""
    import torch
    from device import compiled

    m = compiled(TESTS)
    out = torch.zeros(10, 32, dtype=torch.int32, device="cuda")
    m.launch("test_shuffles", (1,), (32,), 0, out)
    want = [
        lambda l: 5,
        lambda l: l & ~7 | (l + 3) & 7,
        lambda l: l - 3 if l >= 3 else l,
        lambda l: l - 3 if l & 15 >= 3 else l,
        lambda l: l + 2 if l < 30 else l,
        lambda l: l + 2 if l & 3 < 2 else l,
        lambda l: l ^ 9,
        lambda l: 0x49249249,
        lambda l: l ^ 7 if l < 8 else 0xAAAAAA00 - (1 << 32),
        lambda l: 11,
    ]
    assert out.tolist() == [[f(l) for l in range(32)] for f in want], out.tolist()

    k = 48
    a, b = torch.randn(16, k, device="cuda").bfloat16(), torch.randn(8, k, device="cuda").bfloat16()
    for trans in (0, 1):
        c = torch.full((16, 8), float("nan"), device="cuda")
        m.launch("test_mma", (1,), (32,), 0, c, a, b.t().contiguous() if trans else b, k, trans)
        off = (c.double() - a.double() @ b.double().t()).abs().max().item()
        assert off < 1e-5, (trans, off)

    n = 5
    x = torch.randn(n * 256, device="cuda")
    out = torch.full(((n + 1) * 256,), float("nan"), device="cuda")
    m.launch("test_async", (1,), (64,), 2 * 64 * 16, out, x, n)
    assert torch.equal(out[: n * 256], x) and not out[n * 256 : n * 256 + 64].any()

    x = torch.randn(512, device="cuda")
    x[3] = x[16] = x[47] = float("nan")
    x[128:160] = torch.tensor([-0.0, 0.0] * 16)
    out = torch.zeros(32, 4, device="cuda")
    m.launch("test_folds", (8,), (64,), 0, out, x)
    for row, (s, most, s1, m1) in zip(x.view(32, 16).tolist(), out.tolist()):
        lanes = list(row)
        for w in (8, 4, 2, 1):
            lanes = [lanes[i] if lanes[i] > lanes[i + w] else lanes[i + w] for i in range(w)]
        assert struct.pack("<f", most) == struct.pack("<f", m1) and (bits(most) == bits(lanes[0]) or lanes[0] != lanes[0]), row
        assert bits(s) == bits(s1) or s != s, row
    print("  shuffles, mma, ldmatrix, cp.async and folds are as emulated")
    return True


def main():
    print(reference())
    if sys.argv[1:] == ["--reference"]:
        return
    from device import Parts

    parts = Parts(120)
    for f in (emulator, exact, speed):
        parts.run(f.__name__, f)
    parts.finish("codec.json")


if __name__ == "__main__":
    main()
