#!/usr/bin/env python3
"""Writes vectors.json beside this file from the rules in docs/spec/data.md.

An implementation of its own, in plain Python without other modules: if the Go
package and this script disagree, one of them does not follow the page.
"""
import base64
import hashlib
import json
import pathlib

M64 = 1 << 64


def sha(b):
    return hashlib.sha256(b).digest()


def le64(n):
    return n.to_bytes(8, "little")


def key(label, *fixed_then_numbers):
    b = label.encode()
    for x in fixed_then_numbers:
        b += x if isinstance(x, bytes) else le64(x)
    return sha(b)


def word(k, c):
    return int.from_bytes(sha(k + le64(c))[:8], "little")


class Stream:
    def __init__(self, k):
        self.k, self.c = k, 0

    def below(self, n):
        limit = M64 - M64 % n
        while True:
            x = word(self.k, self.c)
            self.c += 1
            if x < limit:
                return x % n


def permute(k, n, x):
    h = 1
    while 1 << (2 * h) < n:
        h += 1
    mask = (1 << h) - 1
    while True:
        left, right = x >> h, x & mask
        for r in range(8):
            left, right = right, left ^ (word(k, (r << 32) | right) & mask)
        x = left << h | right
        if x < n:
            return x


def cut(text, limit):
    out = []
    while text:
        if len(text) <= limit:
            n = len(text)
        else:
            n = text.rfind(b"\n", 0, limit) + 1
            if n == 0:
                n = limit
                for back in range(4):
                    if text[limit - back] & 0xC0 != 0x80:
                        n = limit - back
                        break
        out.append(text[:n])
        text = text[n:]
    return out


def held_out(h, permille):
    return int.from_bytes(h[:8], "big") % 1000 < permille


# dag-cbor

def head(major, n):
    for size, info in ((0, None), (1, 24), (2, 25), (4, 26), (8, 27)):
        if size == 0 and n < 24:
            return bytes([major << 5 | n])
        if size and n < 1 << (8 * size):
            return bytes([major << 5 | info]) + n.to_bytes(size, "big")
    raise ValueError(n)


class Link(bytes):
    """The SHA-256 of a raw block."""


def cbor(v):
    if isinstance(v, Link):
        return head(6, 42) + cbor(b"\x00\x01\x55\x12\x20" + bytes(v))
    if isinstance(v, int):
        return head(0, v)
    if isinstance(v, bytes):
        return head(2, len(v)) + v
    if isinstance(v, str):
        return head(3, len(v.encode())) + v.encode()
    if isinstance(v, list):
        return head(4, len(v)) + b"".join(map(cbor, v))
    keys = sorted(v, key=lambda k: (len(k), k))
    return head(5, len(v)) + b"".join(cbor(k) + cbor(v[k]) for k in keys)


def cid(record):
    raw = b"\x01\x71\x12\x20" + sha(record)
    return "b" + base64.b32encode(raw).decode().lower().rstrip("=")


def sample_id(doc, offset, window):
    return sha(b"bzd/sample/1" + doc + offset.to_bytes(4, "little") + window.to_bytes(4, "little"))


def entry(doc, offset, window):
    return {"document": doc.hex(), "offset": offset, "id": sample_id(doc, offset, window).hex()}


def windows(size, window):
    return 0 if size < window else (size - window) // (window - 1) + 1


class Finite:
    def __init__(self, name, files, permille, limit, max_bytes):
        pieces = {}
        for f in files:
            for p in cut(f, limit):
                pieces[sha(p)] = p
        self.pieces, total = [], 0
        for h in sorted(pieces):
            if total + len(pieces[h]) > max_bytes:
                break
            total += len(pieces[h])
            self.pieces.append((h, pieces[h]))
        self.permille = permille
        self.record = cbor({
            "kind": "pieces", "name": name, "bytes": total, "heldOut": permille, "version": 1,
            "pieces": [Link(h) for h, _ in self.pieces],
        })

    def refs(self, pool, window):
        return [
            (h, k * (window - 1), p[k * (window - 1):k * (window - 1) + window])
            for h, p in self.pieces if held_out(h, self.permille) == pool
            for k in range(windows(len(p), window))
        ]

    def held(self, window):
        train = [p for h, p in self.pieces if not held_out(h, self.permille)]
        seen, out = set(), []
        for h, o, t in self.refs(True, window):
            if t not in seen and not any(t in p for p in train):
                out.append((h, o))
            seen.add(t)
        return out

    def draw(self, seed, n, window, exclude):
        held = self.held(window)
        s = Stream(key("bzd/draw/1", seed, sha(self.record), window))
        out = []
        while len(out) < n:
            h, o = held[s.below(len(held))]
            i = sample_id(h, o, window)
            if i in exclude or (h, o) in out:
                continue
            out.append((h, o))
        return out

    def order(self, seed, window, i):
        train = self.refs(False, window)
        epoch, j = divmod(i, len(train))
        k = key("bzd/order/1", seed, sha(self.record), window, epoch)
        return train[permute(k, len(train), j)][:2]


class Math:
    def __init__(self, seed):
        self.seed, self.permille = seed, 100
        self.record = cbor({
            "kind": "generator", "name": "math", "heldOut": 100, "version": 1,
            "generator": {"name": "math", "seed": seed, "version": 1},
        })

    def piece(self, i):
        s = Stream(key("bzd/math/1", self.seed, i))
        b = s.below

        def number(digits):
            d = b(digits)
            low, high = (10**d if d else 0), 10 ** (d + 1)
            return low + b(high - low)

        def between(low, high):
            return low + b(high - low + 1)

        def numbers():
            return [number(2) for _ in range(between(3, 6))]

        def row(xs):
            return " ".join(map(str, xs))

        out, size = "", 1024 + b(960)
        while len(out) < size:
            kind = b(12)
            if kind in (0, 1, 4):
                x, y = number(3), number(3)
                if kind == 0:
                    line = f"{x} + {y} = {x + y}"
                elif kind == 1:
                    x, y = max(x, y), min(x, y)
                    line = f"{x} - {y} = {x - y}"
                else:
                    line = f"{x} {'<' if x < y else '>' if x > y else '='} {y}"
            elif kind == 2:
                x, y = number(3), number(2)
                line = f"{x} * {y} = {x * y}"
            elif kind == 3:
                y, q = between(2, 12), number(2)
                r = between(0, y - 1)
                line = f"{y * q + r} / {y} = {q} r {r}"
            elif kind == 5:
                k, x, c = between(2, 9), between(0, 20), between(1, 50)
                line = f"{k}x + {c} = {k * x + c}, x = {x}"
            elif kind == 6:
                step, x = between(2, 12), number(2)
                line = f"add {step}: " + row(x + t * step for t in range(6))
            elif kind == 7:
                ratio, x = between(2, 5), between(1, 9)
                line = f"times {ratio}: " + row(x * ratio**t for t in range(5))
            elif kind == 8:
                f = [between(1, 9), between(1, 9)]
                while len(f) < 7:
                    f.append(f[-2] + f[-1])
                line = "fib: " + row(f)
            elif kind == 9:
                xs = numbers()
                line = f"sort {row(xs)} = {row(sorted(xs))}"
            elif kind == 10:
                x = number(3)
                line = "count: " + row(range(x, x + 8))
            else:
                xs = numbers()
                line = f"max {row(xs)} = {max(xs)}"
            out += line + "\n"
        return out.encode()

    def draw(self, seed, n, window):
        s = Stream(key("bzd/draw/1", seed, sha(self.record), window))
        out = []
        while len(out) < n:
            i = s.below(1 << 40)
            p = self.piece(i)
            if not held_out(sha(p), self.permille):
                continue
            o = s.below(windows(len(p), window)) * (window - 1)
            if (i, sha(p), o) not in out:
                out.append((i, sha(p), o))
        return out

    def order(self, seed, window, i):
        epoch, j = divmod(i, 1 << 34)
        k = key("bzd/order/1", seed, sha(self.record), window, epoch)
        c = 64 * j
        while True:
            n = permute(k, 1 << 40, c % (1 << 40))
            p = self.piece(n)
            if not held_out(sha(p), self.permille):
                break
            c += 1
        s = Stream(key("bzd/order-window/1", k, j))
        return n, sha(p), s.below(windows(len(p), window)) * (window - 1)


def corpus():
    """Files with a common head, equal pieces, long lines and multi-byte text."""
    s = Stream(sha(b"corpus"))
    words = ["loss", "gain", "mühle", "expert", "ε-close", "round", "日本", "merge", "fold", "drift"]
    out = []
    for f in range(12):
        text = "Licence: do what you like with it, but say so.\n" * 3
        for _ in range(20):
            n = 1 + s.below(12)
            text += " ".join(words[s.below(len(words))] for _ in range(n)) + ("" if s.below(5) == 0 else "\n")
        out.append(text)
    out.append(out[3])
    return out


def main():
    seed = sha(b"seed")
    files = corpus()
    window = 17
    d = Finite("vectors", [f.encode() for f in files], 300, 128, 5000)
    held = d.held(window)
    first = d.draw(seed, 8, window, set())
    exclude = {sample_id(h, o, window) for h, o in first}
    train = len(d.refs(False, window))
    at = [0, 1, 2, train - 1, train, 5 * train + 3]
    m = Math(sha(b"bzd/math-seed/1"))
    below = {}
    for n in (1, 2, 10, 1000, 1 << 40, (1 << 63) + 1):
        s = Stream(seed)
        below[str(n)] = [str(s.below(n)) for _ in range(6)]
    v = {
        "seed": seed.hex(),
        "words": [str(word(seed, c)) for c in range(4)],
        "below": below,
        "permutations": {str(n): [permute(seed, n, x) for x in range(n)] for n in (1, 2, 5, 16, 17, 65)},
        "permutation40": [permute(seed, 1 << 40, x) for x in (0, 1, 2, (1 << 40) - 1)],
        "cuts": [
            {"hex": t.hex(), "limit": n, "lengths": [len(p) for p in cut(t, n)]}
            for t, n in (
                (b"", 4), (b"abc", 4), (b"abcd", 4), (b"abcde", 4), (b"ab\ncd\nefghij\n\n", 5),
                ("aé日本語𝄞x".encode(), 4), (b"\x80" * 9, 4), (b"\n\n\n\n\n", 4),
            )
        ],
        "finite": {
            "files": files, "name": "vectors", "heldOut": 300, "pieceSize": 128, "maxBytes": 5000, "window": window,
            "record": d.record.hex(), "cid": cid(d.record),
            "trainWindows": train, "heldOutWindows": len(held), "heldOutBeforeUnique": len(d.refs(True, window)),
            "draw": [entry(h, o, window) for h, o in first],
            "drawExcludingThose": [entry(h, o, window) for h, o in d.draw(seed, 8, window, exclude)],
            "order": [{"at": i, **entry(*d.order(seed, window, i), window)} for i in at],
        },
        "math": {
            "record": m.record.hex(), "cid": cid(m.record), "window": 129,
            "piece0": m.piece(0).decode(),
            "pieces": [{"number": i, "sha256": sha(m.piece(i)).hex()} for i in (1, 2, 3, 1000, (1 << 40) - 1)],
            "draw": [{"piece": i, **entry(h, o, 129)} for i, h, o in m.draw(seed, 5, 129)],
            "order": [
                {"at": i, "piece": n, **entry(h, o, 129)}
                for i in (0, 1, 2, (1 << 34) - 1, 1 << 34) for n, h, o in [m.order(seed, 129, i)]
            ],
        },
    }
    path = pathlib.Path(__file__).with_name("vectors.json")
    path.write_text(json.dumps(v, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
