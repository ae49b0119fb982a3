"""Writes the vectors that the Go tests of this directory read.

    python make_vectors.py

needs torch and safetensors (recorded with torch 2.9.1, safetensors 0.8.0). The tests themselves need no Python. The
vectors come from other code than the package under test: tensor files from the reference library, the index from
json.dumps, CIDs from the dag-pb encoder below.

    reference/    tensor files of many dtypes, and reference.json: what they hold
    vector/       a checkpoint; vector.json: its CID, the CIDs of its files, and CIDs of synthetic streams
    hostile/      tensor files that must be refused
    hostile-index/  indexes that must be refused
"""

import base64
import hashlib
import json
import pathlib
import shutil
import struct

import torch
from safetensors.torch import save, save_file

here = pathlib.Path(__file__).parent
CHUNK, LINKS = 1 << 20, 174


def fresh(name):
    d = here / name
    shutil.rmtree(d, ignore_errors=True)
    d.mkdir()
    return d


# --- UnixFS, by hand ---------------------------------------------------------------------------------------------

RAW, DAG_PB = 0x55, 0x70


def varint(n):
    out = b""
    while n >= 0x80:
        out += bytes([n & 0x7F | 0x80])
        n >>= 7
    return out + bytes([n])


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def cid(codec, block):
    return bytes([1, codec, 0x12, 32]) + hashlib.sha256(block).digest()


def text(c):
    return "b" + base64.b32encode(c).decode().lower().rstrip("=")


def pb_node(data, links):  # links: (name, cid, tsize)
    out = b""
    for name, c, tsize in links:
        out += field(2, field(1, c) + field(2, name.encode()) + b"\x18" + varint(tsize))
    return out + field(1, data)


def file_dag(chunks):
    """(cid, tsize) of a file given as an iterable of chunks."""
    level = []  # cid, tsize, file size
    for c in chunks:
        level.append((cid(RAW, c), len(c), len(c)))
    if not level:
        level = [(cid(RAW, b""), 0, 0)]
    while len(level) > 1:
        above = []
        for i in range(0, len(level), LINKS):
            group = level[i : i + LINKS]
            size = sum(g[2] for g in group)
            data = b"\x08\x02\x18" + varint(size) + b"".join(b"\x20" + varint(g[2]) for g in group)
            block = pb_node(data, [("", g[0], g[1]) for g in group])
            above.append((cid(DAG_PB, block), len(block) + sum(g[1] for g in group), size))
        level = above
    return level[0][:2]


def split(data):
    return [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)]


def directory(files):  # name -> bytes
    links = [(name, *file_dag(split(files[name]))) for name in sorted(files)]
    return cid(DAG_PB, pb_node(b"\x08\x01", links)), {name: text(c) for name, c, _ in links}


# --- tensor files of the reference library -----------------------------------------------------------------------


def bits32(values):
    return torch.tensor([v - (1 << 32) if v >> 31 else v for v in values], dtype=torch.int32).view(torch.float32)


def bits16(values):
    return torch.tensor([v - (1 << 16) if v >> 15 else v for v in values], dtype=torch.int16).view(torch.bfloat16)


# -0, denormals (smallest and largest), extremes, infinities, quiet and signalling NaN with payloads
F32 = [0, 0x80000000, 1, 0x807FFFFF, 0x00800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x3F800001, 0x7F800000, 0xFF800000, 0x7FC00001, 0xFFA00000]
BF16 = [0, 0x8000, 1, 0x807F, 0x0080, 0x7F7F, 0xFF7F, 0x3F81, 0x7F80, 0xFF80, 0x7FC1, 0xFFA0]
g = torch.Generator().manual_seed(1)

reference = {
    "f32": ({"model.b.weight": bits32(F32).reshape(3, 4), "model.a.weight": torch.randn(5, generator=g)}, {"format": "pt"}),
    "bf16": ({"model.b.weight": bits16(BF16).reshape(2, 3, 2), "model.a.weight": torch.randn(5, generator=g).bfloat16()}, {"format": "pt"}),
    # an odd number of BF16 bytes before F32 would leave the F32 unaligned: the library puts larger types first
    "mixed": ({"a": bits16(BF16[:3]), "b": bits32(F32[:3]), "c": torch.randn(2, 2, generator=g).bfloat16(), "d": torch.randn(1, generator=g)}, {"format": "pt"}),
    "shapes": ({"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 3), "ones": torch.ones(1, 1, 1, 1)}, {"format": "pt"}),
    "types": (
        {
            "bool": torch.tensor([True, False]),
            "f16": torch.tensor([1.5, -2], dtype=torch.float16),
            "f64": torch.tensor([1 / 3], dtype=torch.float64),
            "f8_e4m3": torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
            "f8_e5m2": torch.tensor([1.0, 2.0]).to(torch.float8_e5m2),
            "i16": torch.tensor([-3], dtype=torch.int16),
            "i32": torch.tensor([-3], dtype=torch.int32),
            "i64": torch.tensor([-3], dtype=torch.int64),
            "i8": torch.tensor([-3], dtype=torch.int8),
            "u8": torch.tensor([200], dtype=torch.uint8),
        },
        {"format": "pt", "clé": "naïve \"quoted\" \\ \n"},
    ),
    "plain": ({"x": torch.tensor([1.0])}, None),
}


def describe(t):
    raw = bytes(t.contiguous().flatten().view(torch.uint8).tolist()) if t.dim() else t.reshape(1).view(torch.uint8).numpy().tobytes()
    d = {"dtype": str(t.dtype), "shape": list(t.shape), "raw": raw.hex()}
    if t.dtype in (torch.float32, torch.bfloat16):
        # widened by torch as integers: BF16 is the upper half of a float32
        if t.dtype == torch.bfloat16:
            d["bits"] = [(int(v) & 0xFFFF) << 16 for v in t.flatten().view(torch.int16).tolist()]
        else:
            d["bits"] = [int(v) & 0xFFFFFFFF for v in t.flatten().view(torch.int32).tolist()]
    return d


out = fresh("reference")
listing = {}
for name, (tensors, metadata) in reference.items():
    save_file(tensors, out / f"{name}.safetensors", metadata=metadata)
    listing[name] = {"metadata": metadata, "tensors": {k: describe(v) for k, v in tensors.items()}}
(out / "reference.json").write_text(json.dumps(listing, indent=1, sort_keys=True) + "\n")


# --- a checkpoint -------------------------------------------------------------------------------------------------


def formula(n, step):
    """Values that Go computes too: exact in BF16."""
    return ((torch.arange(n, dtype=torch.int64) * step) % 255 - 127).to(torch.float32) / 64


def checkpoint(documents, groups):
    files = {name: data for name, data in documents.items()}
    weight_map, total = {}, 0
    for name, tensors in groups.items():
        files[name] = save(tensors, metadata={"format": "pt"})
        for k, v in tensors.items():
            weight_map[k] = name
            total += v.numel() * v.element_size()
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    files["model.safetensors.index.json"] = (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
    return files


gate = "model.layers.0.mlp.gate.weight"
expert = "model.layers.0.mlp.experts.{}.{}_proj.weight"
small = checkpoint(
    {
        "config.json": b'{\n  "model_type": "qwen3_moe"\n}\n',
        "protocol.cbor": bytes.fromhex("a0"),
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b"{}",
    },
    {
        "hub-00001.safetensors": {
            "model.embed_tokens.weight": formula(24, 7).reshape(6, 4).bfloat16(),
            expert.format(0, "up"): formula(8, 3).reshape(2, 4).bfloat16(),
        },
        "hub-00002.safetensors": {"model.norm.weight": bits16(BF16[:8])},
        "router.safetensors": {gate: formula(12, 5).reshape(3, 4) / 1000},
        "experts-code.safetensors": {
            expert.format(1, "down"): bits32(F32[:8]).reshape(4, 2),
            expert.format(1, "gate"): formula(8, 11).reshape(2, 4),
            expert.format(1, "up"): formula(8, 13).reshape(2, 4),
        },
    },
)
out = fresh("vector")
for name, data in small.items():
    (out / name).write_bytes(data)
root, file_cids = directory(small)

# Three chunks and a bit; the test builds the same tensors, so the file itself is not recorded.
large = checkpoint({"config.json": b"{}"}, {"hub-00001.safetensors": {"w": formula(1_600_000, 7).bfloat16(), "x": formula(1, 1).bfloat16()}})
large_root, large_cids = directory(large)


def pattern(size):
    """Chunk i is filled with the byte i mod 251."""
    for i in range(0, size, CHUNK):
        yield bytes([i // CHUNK % 251]) * min(CHUNK, size - i)


sizes = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, LINKS * CHUNK, LINKS * CHUNK + 1, 2 * LINKS * CHUNK + CHUNK + 5]
vector = {
    "root": text(root),
    "files": file_cids,
    "large_root": text(large_root),
    "large_files": large_cids,
    "streams": [{"size": n, "cid": text(file_dag(pattern(n))[0]), "tsize": file_dag(pattern(n))[1]} for n in sizes],
}
(here / "vector.json").write_text(json.dumps(vector, indent=1) + "\n")


# --- files to be refused ------------------------------------------------------------------------------------------

out = fresh("hostile")


def hostile(name, header, data=b"", length=None):
    if not isinstance(header, bytes):
        header = (header if isinstance(header, str) else json.dumps(header)).encode()
    n = len(header) if length is None else length
    (out / f"{name}.safetensors").write_bytes(struct.pack("<Q", n) + header + data)


def t(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


good = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
(out / "empty.safetensors").write_bytes(b"")
(out / "short.safetensors").write_bytes(b"\x00" * 7)
hostile("no-header", b"")
hostile("length-huge", b"{}", length=(1 << 64) - 1)
hostile("length-over-cap", b"{}", length=100_000_001)
hostile("length-past-end", b"{}", length=3)
hostile("length-negative", b"{}", length=1 << 63)
hostile("truncated", {"a": t(0, 8, [2])}, b"\x00" * 7)
hostile("trailing", {"a": t(0, 4, [1])}, b"\x00" * 5)
hostile("trailing-json", '{"a":' + good + "} {}", b"\x00" * 4)
hostile("overlap", {"a": t(0, 8, [2]), "b": t(4, 12, [2])}, b"\x00" * 12)
hostile("same-range", {"a": t(0, 4, [1]), "b": t(0, 4, [1])}, b"\x00" * 4)
hostile("hole", {"a": t(0, 4, [1]), "b": t(8, 12, [1])}, b"\x00" * 12)
hostile("hole-at-start", {"a": t(4, 8, [1])}, b"\x00" * 8)
hostile("offsets-reversed", {"a": t(4, 0, [1])}, b"\x00" * 4)
hostile("offsets-negative", {"a": t(-4, 0, [1])}, b"\x00" * 4)
hostile("offsets-one", {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4]}}, b"\x00" * 4)
hostile("offsets-three", {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}}, b"\x00" * 4)
hostile("offsets-outside", {"a": t(0, 1 << 62, [1 << 60])}, b"\x00" * 4)
hostile("offsets-above-63-bits", '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}}', b"\x00" * 4)
hostile("size-mismatch", {"a": t(0, 8, [1])}, b"\x00" * 8)
hostile("shape-negative", {"a": t(0, 4, [-1])}, b"\x00" * 4)
hostile("shape-fraction", '{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}', b"\x00" * 4)
hostile("shape-overflow", {"a": t(0, 4, [1 << 32, 1 << 32])}, b"\x00" * 4)
hostile("shape-overflow-zero", {"a": t(0, 0, [1 << 40, 1 << 40, 0])})
hostile("shape-overflow-bytes", {"a": t(0, 0, [1 << 62])})
hostile("shape-long", {"a": t(0, 4, [1] * 17)}, b"\x00" * 4)
hostile("shape-null", {"a": {"dtype": "F32", "shape": None, "data_offsets": [0, 4]}}, b"\x00" * 4)
hostile("dtype-unknown", {"a": t(0, 4, [1], "F31")}, b"\x00" * 4)
hostile("dtype-number", {"a": t(0, 4, [1], 32)}, b"\x00" * 4)
hostile("dtype-case", {"a": t(0, 4, [1], "f32")}, b"\x00" * 4)
hostile("field-missing", '{"a":{"dtype":"F32","shape":[1]}}', b"\x00" * 4)
hostile("field-unknown", '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}', b"\x00" * 4)
hostile("duplicate-tensor", '{"a":' + good + ',"a":' + good + "}", b"\x00" * 4)
hostile("duplicate-escaped", '{"a":' + good + ',"\\u0061":' + good + "}", b"\x00" * 4)
hostile("duplicate-field", '{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}', b"\x00" * 4)
hostile("duplicate-metadata", '{"__metadata__":{"k":"1","k":"2"},"a":' + good + "}", b"\x00" * 4)
hostile("metadata-number", '{"__metadata__":{"k":1},"a":' + good + "}", b"\x00" * 4)
hostile("metadata-array", '{"__metadata__":[],"a":' + good + "}", b"\x00" * 4)
hostile("name-empty", '{"":' + good + "}", b"\x00" * 4)
hostile("name-long", '{"' + "a" * 1025 + '":' + good + "}", b"\x00" * 4)
hostile("not-an-object", "[" + good + "]", b"\x00" * 4)
hostile("leading-space", ' {"a":' + good + "}", b"\x00" * 4)
hostile("unfinished", '{"a":' + good, b"\x00" * 4)
hostile("comma", '{"a":' + good + ",}", b"\x00" * 4)
hostile("nested", '{"a":' + "[" * 50_000, b"")
hostile("nested-field", '{"a":{"dtype":"F32","shape":[[[[[[1]]]]]],"data_offsets":[0,4]}}', b"\x00" * 4)
hostile("utf8", b'{"a\xff":' + good.encode() + b"}", b"\x00" * 4)
hostile("surrogate", '{"a\\ud800":' + good + "}", b"\x00" * 4)

out = fresh("hostile-index")
for name, data in {
    "parent": '{"weight_map":{"a":"../x.safetensors"}}',
    "absolute": '{"weight_map":{"a":"/etc/x.safetensors"}}',
    "backslash": '{"weight_map":{"a":"..\\\\x.safetensors"}}',
    "subdirectory": '{"weight_map":{"a":"sub/x.safetensors"}}',
    "dot": '{"weight_map":{"a":".x.safetensors"}}',
    "nul": '{"weight_map":{"a":"x\\u0000.safetensors"}}',
    "suffix": '{"weight_map":{"a":"config.json"}}',
    "no-name": '{"weight_map":{"a":".safetensors"}}',
    "long": '{"weight_map":{"a":"' + "x" * 200 + '.safetensors"}}',
    "number": '{"weight_map":{"a":1}}',
    "array": '{"weight_map":[]}',
    "empty-map": '{"weight_map":{}}',
    "no-map": '{"metadata":{}}',
    "empty": "",
    "null": "null",
    "duplicate-tensor": '{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}',
    "duplicate-map": '{"weight_map":{"a":"x.safetensors"},"weight_map":{"a":"x.safetensors"}}',
    "metadata-nested": '{"metadata":{"x":{}},"weight_map":{"a":"x.safetensors"}}',
    "unknown": '{"weights":{},"weight_map":{"a":"x.safetensors"}}',
    "trailing": '{"weight_map":{"a":"x.safetensors"}} x',
    "nested": '{"metadata":' + "[" * 50_000,
}.items():
    (out / f"{name}.json").write_text(data)
