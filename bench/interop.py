"""Loads a checkpoint directory in transformers and compares with bzd. Usage: interop.py BZD DIR

Fails unless the model loads without missing or unexpected weights, the tokenizer gives the bytes, and the greedy
continuations of three prompts are those of bzd.
"""
import subprocess
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

bzd, path = sys.argv[1:]
PROMPTS = ["func main() {\n\tfor i := range ", "The reflexion of light is ", "12 + 30 = "]
NEW = 60

model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, dtype=torch.float32)
for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
    assert not info[what], f"{what}: {info[what]}"
model.eval()
tokenizer = AutoTokenizer.from_pretrained(path)
text = "Optick 3 + 4 = 7\n\tif x >= 0 { é € }"
assert tokenizer.encode(text, add_special_tokens=False) == list(text.encode()), "tokenizer does not give the bytes"
assert tokenizer.decode(list(text.encode())) == text, "tokenizer does not invert"

for prompt in PROMPTS:
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        out = model.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0, attention_mask=torch.ones_like(ids))
    want = bytes(out[0].tolist())
    got = subprocess.run([bzd, "sample", "--checkpoint", path, "--prompt", prompt, "-n", str(NEW)], check=True, capture_output=True).stdout
    assert got == want + b"\n", f"continuations differ\nbzd          {got!r}\ntransformers {want!r}"
    print(f"same greedy continuation of {prompt!r}: {want[len(prompt.encode()):]!r}")
print("transformers loads the checkpoint and agrees")
