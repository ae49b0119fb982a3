"""Times the demo model's shape in PyTorch on one thread: evaluation, and a training step of one expert group with the
hub frozen (weight gradients only for its experts and the router). Prints tokens per second.

Needs torch and transformers. Usage: torch_step.py SECONDS
"""
import sys
import time

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

torch.set_num_threads(1)
torch.manual_seed(1)
config = Qwen3MoeConfig(vocab_size=256, hidden_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
                        num_experts=14, num_experts_per_tok=2, moe_intermediate_size=192, max_position_embeddings=128, norm_topk_prob=True,
                        tie_word_embeddings=False, decoder_sparse_step=1, mlp_only_layers=[])
model = Qwen3MoeForCausalLM(config).float()
for name, p in model.named_parameters():
    p.requires_grad_(".mlp.gate." in name or any(f".experts.{e}." in name for e in (12, 13)))
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-3)
tokens = torch.randint(0, 256, (8, 129))
x, y = tokens[:, :-1], tokens[:, 1:]


def loss():
    logits = model(x, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.reshape(-1, 256), y.reshape(-1))


def evaluate():
    with torch.no_grad():
        loss()


def step():
    optimizer.zero_grad(set_to_none=True)
    loss().backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()


seconds = float(sys.argv[1])
for name, f in (("eval", evaluate), ("train-group", step)):
    f()
    n, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        f()
        n += 1
    print(f"torch {torch.__version__} {name} {n * x.numel() / (time.process_time() - start):.0f} tokens/s")
