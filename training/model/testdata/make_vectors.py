"""Writes golden_*.json.gz: tiny random qwen3_moe models with the logits, losses and gradients that transformers gives.

Needs torch and transformers (made with torch 2.9.1, transformers 4.57.3). Run in this directory: python3 make_vectors.py
"""
import gzip, json
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

CASES = {
    "even": dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
                 num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, max_position_embeddings=64, norm_topk_prob=True,
                 tie_word_embeddings=False, rope_theta=10000.0, rms_norm_eps=1e-6),
    "odd": dict(vocab_size=37, hidden_size=20, num_hidden_layers=3, num_attention_heads=3, num_key_value_heads=1, head_dim=10,
                num_experts=5, num_experts_per_tok=3, moe_intermediate_size=13, max_position_embeddings=48, norm_topk_prob=False,
                tie_word_embeddings=True, rope_theta=1000000.0, rms_norm_eps=1e-5),
}
SEQ = {"even": 48, "odd": 21}

for name, fields in CASES.items():
    torch.manual_seed(7)
    cfg = Qwen3MoeConfig(**fields, decoder_sparse_step=1, mlp_only_layers=[], use_sliding_window=False, attn_implementation="eager")
    model = Qwen3MoeForCausalLM(cfg).float().eval()
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_(torch.randn_like(p) * 0.3 + (1.0 if "norm" in n else 0.0))
    ids = torch.randint(0, cfg.vocab_size, (2, SEQ[name] + 1))
    tokens, targets = ids[:, :-1], ids[:, 1:]
    logits = model(tokens).logits
    losses = torch.nn.functional.cross_entropy(logits.reshape(-1, cfg.vocab_size), targets.reshape(-1), reduction="none")
    losses.mean().backward()
    out = {
        "config": json.loads(cfg.to_json_string(use_diff=False)),
        "seq": SEQ[name], "tokens": tokens.reshape(-1).tolist(), "targets": targets.reshape(-1).tolist(),
        "logits": logits.detach().reshape(-1).tolist(), "losses": losses.detach().tolist(),
        "weights": {n: p.detach().reshape(-1).tolist() for n, p in model.named_parameters()},
        "grads": {n: (p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1).tolist() for n, p in model.named_parameters()},
    }
    with gzip.GzipFile(f"golden_{name}.json.gz", "wb", mtime=0) as f:
        f.write(json.dumps(out).encode())
    print(name, "loss", float(losses.mean().detach()))
