"""Fetches the last checkpoint of a devnet's result over its gateway, file by file. Usage: fetch.py RESULT.json DIR

Every file that the index or the names of the Hugging Face layout call for must be there; the checkpoint must be one that
the network certified and not the one that it began with.
"""
import json
import pathlib
import sys
import urllib.request

result, out = json.load(open(sys.argv[1])), pathlib.Path(sys.argv[2])
last = result["cycles"][-1]
assert last["certified"] and last["next"] == result["checkpoint"], f"no certified checkpoint: {last}"
assert last["next"] != last["base"], "nothing was merged"
out.mkdir()
base = f"{result['gateway']}/ipfs/{result['checkpoint']}/"


def fetch(name):
    with urllib.request.urlopen(base + name, timeout=60) as r:
        (out / name).write_bytes(r.read())
    return (out / name).stat().st_size


names = ["config.json", "tokenizer.json", "tokenizer_config.json", "protocol.cbor", "model.safetensors.index.json"]
size = sum(fetch(n) for n in names)
shards = sorted(set(json.loads((out / names[-1]).read_text())["weight_map"].values()))
assert any(s.startswith("hub") for s in shards) and any(s.startswith("experts-") for s in shards), shards
size += sum(fetch(s) for s in shards)
print(f"fetched {result['checkpoint']}: {len(names) + len(shards)} files, {size} bytes")
