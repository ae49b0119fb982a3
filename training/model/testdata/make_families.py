"""Writes family_*.json.gz: logits, losses and gradients of tiny models of every family, as transformers computes them.

Weights are not in the files: both sides make them from the tensor's name (see values). Needs torch and transformers
(made with torch 2.9.1, transformers 4.57.3). Run in this directory: python3 make_families.py
"""
import base64, gzip, json, re
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

COMMON = dict(vocab_size=64, num_hidden_layers=2, max_position_embeddings=64, pad_token_id=None)
CASES = {
    "olmoe": dict(model_type="olmoe", hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_experts=5,
                  num_experts_per_tok=2, intermediate_size=24, norm_topk_prob=False),
    "mixtral": dict(model_type="mixtral", hidden_size=32, num_attention_heads=4, num_key_value_heads=1, head_dim=8,
                    num_local_experts=4, num_experts_per_tok=2, intermediate_size=24, tie_word_embeddings=True),
    "qwen2_moe": dict(model_type="qwen2_moe", hidden_size=24, num_attention_heads=2, num_key_value_heads=2, num_experts=5,
                      num_experts_per_tok=3, moe_intermediate_size=13, shared_expert_intermediate_size=20, norm_topk_prob=False),
    "qwen3_moe": dict(model_type="qwen3_moe", hidden_size=20, num_attention_heads=2, num_key_value_heads=1, head_dim=12,
                      num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=True),
}
SEQ, SEQUENCES = 33, 2


def values(name, shape):
    """splitmix64 from the FNV-1a hash of the name: multiples of 2^-23 in [-1, 1), times a power of two."""
    state = 0xcbf29ce484222325
    for c in name.encode():
        state = (state ^ c) * 0x100000001b3 % 2**64
    n = int(np.prod(shape))
    with np.errstate(over="ignore"):
        z = np.uint64(state) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9e3779b97f4a7c15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xbf58476d1ce4e5b9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94d049bb133111eb)
        z = z ^ z >> np.uint64(31)
    v = ((z >> np.uint64(40)).astype(np.int64) - 2**23).astype(np.float32) / 2**23
    if name.endswith("norm.weight"):
        v = 1 + v / 8
    elif len(shape) > 1 and "embed" not in name:
        v = v / 2
    return v.reshape(shape)


def canonical(name):
    """The name that qwen3_moe has for a tensor."""
    name = name.replace(".block_sparse_moe.", ".mlp.")
    for old, new in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
        name = re.sub(rf"(experts\.\d+)\.{old}\.", rf"\1.{new}.", name)
    return name


def pack(v):
    return base64.b64encode(np.asarray(v, dtype="<f4").tobytes()).decode()


def model_of(fields):
    fields = {**COMMON, **fields}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields), attn_implementation="eager").float().eval()
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_(torch.from_numpy(values(canonical(n), p.shape)))
    return model


if __name__ == "__main__":
    for case, fields in CASES.items():
        model = model_of(fields)
        cfg = model.config
        ids = np.array([[(i * i + 7 * i * s + 3 * s) % cfg.vocab_size for i in range(SEQ + 1)] for s in range(1, SEQUENCES + 1)])
        tokens, targets = torch.from_numpy(ids[:, :-1]), torch.from_numpy(ids[:, 1:].copy())
        logits = model(tokens).logits
        losses = torch.nn.functional.cross_entropy(logits.reshape(-1, cfg.vocab_size), targets.reshape(-1), reduction="none")
        losses.mean().backward()
        out = {
            "config": json.loads(cfg.to_json_string(use_diff=True)), "seq": SEQ,
            "names": {n: list(p.shape) for n, p in model.named_parameters()},
            "tokens": tokens.reshape(-1).tolist(), "targets": targets.reshape(-1).tolist(),
            "logits": pack(logits.detach().reshape(-1)), "losses": losses.detach().tolist(),
            "grads": {canonical(n): pack(p.grad if p.grad is not None else torch.zeros_like(p)) for n, p in model.named_parameters()},
        }
        with gzip.GzipFile(f"family_{case}.json.gz", "wb", mtime=0) as f:
            f.write(json.dumps(out).encode())
        print(case, "loss", float(losses.mean().detach()))
