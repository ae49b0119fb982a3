"""Writes sealing.json, which the Go tests of this directory read.

    python make_vectors.py

needs cryptography (recorded with 48.0.0). It follows docs/spec/sealing.md and shares no code with the package.
"""

import base64
import hashlib
import json
import pathlib

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SEGMENT = (1 << 20) - 16


def head(major, n):
    if n < 24:
        return bytes([major << 5 | n])
    for info, length in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if n < 1 << 8 * length:
            return bytes([major << 5 | info]) + n.to_bytes(length, "big")


def link(codec, name):
    return bytes.fromhex("d82a582500") + cid(codec, hashlib.sha256(name).digest())


def cid(codec, digest):
    return bytes([1, codec, 0x12, 0x20]) + digest


def text(c):
    return "b" + base64.b32encode(c).decode().lower().rstrip("=")


def pattern(n):
    """Byte i is the low byte of i xor the byte above it."""
    return bytes((i ^ i >> 8) & 255 for i in range(n))


slots = [
    # version, network name, cycle, base name, group, miner's byte
    (1, b"network", 0, b"base", "code", 0x00),
    (1, b"network", 23, b"base", "code", 0x07),
    (1, b"network", 24, b"base", "code", 0x07),
    (1, b"other", 1_000_000, b"phi", "a-group-with-a-long-name", 0xff),
    (1, b"network", 1 << 40, b"base", "code", 0x07),
]
sizes = [1, 1000, SEGMENT, SEGMENT + 1, 2 * SEGMENT + 1]

vectors = []
for i, (version, network, cycle, base, group, miner) in enumerate(slots):
    size = sizes[i]
    seed = hashlib.sha256(b"seed %d" % i).digest()[:16]
    fields = (head(0, version) + link(0x71, network) + head(0, cycle) + link(0x70, base)
              + head(3, len(group)) + group.encode() + head(2, 32) + bytes([miner]) * 32)
    info = head(4, 6) + fields
    key = HKDF(hashes.SHA256(), 32, salt=None, info=info).derive(seed)
    payload = pattern(size)
    segments = []
    for k in range(0, -(-size // SEGMENT)):
        sealed = ChaCha20Poly1305(key).encrypt(
            k.to_bytes(12, "big"), payload[k * SEGMENT:(k + 1) * SEGMENT], head(4, 7) + fields + head(0, k))
        segments.append({
            "size": len(sealed), "cid": text(cid(0x55, hashlib.sha256(sealed).digest())),
            "first": sealed[:32].hex(), "tag": sealed[-16:].hex(),
        })
    vectors.append({
        "version": version, "network": text(cid(0x71, hashlib.sha256(network).digest())), "cycle": cycle,
        "base": text(cid(0x70, hashlib.sha256(base).digest())), "group": group, "miner": (bytes([miner]) * 32).hex(),
        "seed": seed.hex(), "info": info.hex(), "key": key.hex(), "size": size, "segments": segments,
    })

out = pathlib.Path(__file__).parent / "sealing.json"
out.write_text(json.dumps(vectors, indent=1) + "\n")
