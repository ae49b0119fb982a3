"""Times the training step and the evaluation of `bzd bench step` in PyTorch eager: the same shape, batch and group, the
hub frozen, gradients only for the group's experts and their router rows. Every variant runs in a process of its own.

Usage: step.py [--out DIR] [shape flags] [--variants a,b] [--limit SECONDS] [--device cuda|cpu]

Variants:
  plain-grouped-*  hand-written model, torch's grouped matrix product, experts sorted by a stable sort
  plain-loop-*     the same with a loop over experts and F.linear
  hf-sliced-*      transformers' OlmoeForCausalLM with the trained slice of its fused experts as parameters of its own
  hf-stock-*       the stock module: all experts get gradients, those of others are set to zero before the step
-bf16 trains bfloat16 parameters, -master float32 ones that are cast on the way forward (as bzd does). -chunked computes
the head and the loss in pieces that are computed again on the way back, which saves memory.
"""
import argparse
import gc
import json
import math
import os
import subprocess
import sys
import time

VARIANTS = ["plain-grouped-master", "plain-grouped-bf16", "hf-sliced-grouped_mm-bf16", "hf-sliced-eager-bf16", "plain-loop-bf16",
            "plain-grouped-master-chunked", "plain-loop-master", "hf-sliced-grouped_mm-master", "hf-stock-grouped_mm", "hf-stock-eager",
            "hf-stock-batched_mm", "hf-stock-deepgemm", "hf-stock-sonicmoe"]


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("layers", 4), ("dim", 2048), ("heads", 16), ("kv-heads", 16), ("head-dim", 128), ("experts", 64), ("topk", 8),
                          ("width", 1024), ("vocab", 50304), ("batch", 4), ("seq", 2048), ("trained", 8), ("steps", 10), ("warmup", 3)):
        p.add_argument("--" + name, type=int, default=default)
    p.add_argument("--lr", type=float, default=1e-4)
    p.add_argument("--variants", default=",".join(VARIANTS))
    p.add_argument("--limit", type=float, default=140, help="seconds for all variants; those that find no time are left out")
    p.add_argument("--each", type=float, default=40, help="seconds for one variant")
    p.add_argument("--device", default="cuda")
    p.add_argument("--out", default=os.environ.get("OUT", ""), help="directory for torch.json; without it the result is printed")
    p.add_argument("--one", default="", help=argparse.SUPPRESS)
    return p.parse_args()


def driver(a):
    start, results = time.time(), []
    env = dict(os.environ, HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", PYTHONUNBUFFERED="1", TOKENIZERS_PARALLELISM="false")
    for v in a.variants.split(","):
        left = a.limit - (time.time() - start)
        if left < 8:
            results.append({"variant": v, "error": "no time left"})
            continue
        began = time.time()
        try:
            p = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", v], env=env, capture_output=True, text=True,
                               timeout=min(a.each, left))
            line = p.stdout.strip().splitlines()[-1] if p.stdout.strip() else ""
            r = json.loads(line) if p.returncode == 0 and line.startswith("{") else {
                "variant": v, "error": (p.stderr.strip().splitlines() or ["exit code %d" % p.returncode])[-1][:300]}
        except subprocess.TimeoutExpired:
            r = {"variant": v, "error": "took more than %.0f s" % min(a.each, left)}
        except ValueError as e:
            r = {"variant": v, "error": "unreadable output: %s" % e}
        r["wall_seconds"] = round(time.time() - began, 1)
        results.append(r)
        print(summary(r), flush=True)
    good = [r for r in results if r.get("train_tokens_per_second")]
    evals = [r for r in results if r.get("eval_tokens_per_second")]
    out = {"config": {k: getattr(a, k) for k in ("layers", "dim", "heads", "kv_heads", "head_dim", "experts", "topk", "width", "vocab",
                                                 "batch", "seq", "trained")}, "variants": results}
    if good:
        out["best_train"] = max(good, key=lambda r: r["train_tokens_per_second"])["variant"]
        out["least_memory"] = min(good, key=lambda r: r["train_peak_bytes"])["variant"]
    if evals:
        out["best_eval"] = max(evals, key=lambda r: r["eval_tokens_per_second"])["variant"]
    text = json.dumps(out, indent=1)
    if a.out:
        with open(os.path.join(a.out, "torch.json"), "w") as f:
            f.write(text + "\n")
    else:
        print(text)
    return 0 if good else 1


def summary(r):
    if "error" in r:
        return "%-32s %s" % (r["variant"], r["error"])
    return "%-32s train %8.0f tok/s, %6.0f MiB; eval %8.0f tok/s, %6.0f MiB" % (
        r["variant"], r["train_tokens_per_second"], r["train_peak_bytes"] / 2**20, r["eval_tokens_per_second"], r["eval_peak_bytes"] / 2**20)


# ---- from here on one variant, in its own process ----

def grouped_mm(x, w, offs):
    """Rows of x, sorted by group, times w [groups, in, out]."""
    import torch
    f = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm
    return f(x, w, offs=offs)


def rotate(x, cos, sin):
    import torch
    h = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., h:], x[..., :h]), -1) * sin


class Split:
    """The experts of a layer: frozen [E-T, 2F, D], [E-T, D, F], and trained ones of the same form, the last T."""

    def __init__(self, frozen, trained):
        self.frozen_in, self.frozen_out = frozen
        self.trained_in, self.trained_out = trained

    def weights(self, dtype):
        return self.trained_in.to(dtype), self.trained_out.to(dtype)


def experts_forward(x, index, weight, e, grouped):
    """x [n, D], index and weight [n, k] to [n, D]."""
    import torch
    import torch.nn.functional as F
    n, k = index.shape
    frozen = e.frozen_in.shape[0]
    total = frozen + e.trained_in.shape[0]
    order = torch.sort(index.reshape(-1), stable=True)
    rows = x[order.indices // k]
    counts = torch.bincount(order.values, minlength=total)
    tin, tout = e.weights(x.dtype)
    if grouped:
        offs = counts.cumsum(0).to(torch.int32)
        cut = int(offs[frozen - 1]) if frozen else 0  # the one thing the host must know
        parts = []
        for lo, hi, o, w1, w2 in ((0, cut, offs[:frozen], e.frozen_in, e.frozen_out), (cut, n * k, offs[frozen:] - cut, tin, tout)):
            if w1.shape[0] == 0 or lo == hi:
                parts.append(rows[lo:hi])
                continue
            gate, up = grouped_mm(rows[lo:hi], w1.transpose(1, 2), o).chunk(2, -1)
            parts.append(grouped_mm(F.silu(gate) * up, w2.transpose(1, 2), o))
        out = torch.cat(parts)
    else:
        parts, at = [], 0
        for i, c in enumerate(counts.tolist()):
            if c == 0:
                continue
            w1, w2 = (e.frozen_in[i], e.frozen_out[i]) if i < frozen else (tin[i - frozen], tout[i - frozen])
            gate, up = F.linear(rows[at:at + c], w1).chunk(2, -1)
            parts.append(F.linear(F.silu(gate) * up, w2))
            at += c
        out = torch.cat(parts)
    out = out * weight.reshape(-1)[order.indices, None].to(out.dtype)
    back = torch.empty_like(order.indices)
    back[order.indices] = torch.arange(n * k, device=x.device)
    return out[back].view(n, k, -1).sum(1)  # no atomics, and sums in float32


def random(shape, dtype, device, scale):
    import torch
    return torch.empty(shape, dtype=dtype, device=device).uniform_(-scale, scale)


class Plain:
    def __init__(self, a, device, master):
        import torch
        dt, top = torch.bfloat16, torch.float32 if master else torch.bfloat16
        d, f, t, q, kv = a.dim, a.width, a.trained, a.heads * a.head_dim, a.kv_heads * a.head_dim
        ones = lambda n: torch.ones(n, dtype=dt, device=device)
        matrix = lambda *s, dtype=dt: random(s, dtype, device, math.sqrt(3 / s[-1]))
        self.a, self.embed, self.head, self.norm = a, random((a.vocab, d), dt, device, 1), matrix(a.vocab, d), ones(d)
        self.layers, self.params = [], []
        for _ in range(a.layers):
            y = {"n1": ones(d), "n2": ones(d), "qn": ones(a.head_dim), "kn": ones(a.head_dim), "q": matrix(q, d), "k": matrix(kv, d),
                 "v": matrix(kv, d), "o": matrix(d, q), "rows": matrix(a.experts - t, d)}
            mine = [matrix(t, 2 * f, d, dtype=top), matrix(t, d, f, dtype=top), matrix(t, d, dtype=top)]
            for p in mine:
                p.requires_grad_(True)
            y["experts"] = Split((matrix(a.experts - t, 2 * f, d), matrix(a.experts - t, d, f)), mine[:2])
            y["own"] = mine[2]
            self.params += mine
            self.layers.append(y)
        inv = 1 / 10000 ** (torch.arange(0, a.head_dim, 2, device=device).float() / a.head_dim)
        angle = torch.outer(torch.arange(a.seq, device=device).float(), inv)
        self.cos, self.sin = torch.cat((angle, angle), -1).cos().to(dt), torch.cat((angle, angle), -1).sin().to(dt)

    def hidden(self, tokens, grouped):
        import torch
        import torch.nn.functional as F
        a = self.a
        b, s = tokens.shape
        h = F.embedding(tokens, self.embed)
        for y in self.layers:
            x = F.rms_norm(h, (a.dim,), y["n1"], 1e-5)
            heads = lambda w, n: F.linear(x, w).view(b, s, n, a.head_dim)
            q = rotate(F.rms_norm(heads(y["q"], a.heads), (a.head_dim,), y["qn"], 1e-5).transpose(1, 2), self.cos, self.sin)
            k = rotate(F.rms_norm(heads(y["k"], a.kv_heads), (a.head_dim,), y["kn"], 1e-5).transpose(1, 2), self.cos, self.sin)
            v = heads(y["v"], a.kv_heads).transpose(1, 2)
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=a.heads != a.kv_heads)
            h = h + F.linear(o.transpose(1, 2).reshape(b, s, -1), y["o"])
            x = F.rms_norm(h, (a.dim,), y["n2"], 1e-5).view(b * s, a.dim)
            logits = F.linear(x, torch.cat((y["rows"], y["own"].to(x.dtype))))
            weight, index = torch.topk(torch.softmax(logits, -1, dtype=torch.float32), a.topk)
            h = h + experts_forward(x, index, weight, y["experts"], grouped).view(b, s, a.dim)
        return F.rms_norm(h, (a.dim,), self.norm, 1e-5).view(b * s, a.dim)

    def loss(self, tokens, targets, grouped, chunked):
        import torch
        import torch.nn.functional as F
        from torch.utils.checkpoint import checkpoint
        h = self.hidden(tokens, grouped)
        piece = lambda x, y: F.cross_entropy(F.linear(x, self.head).float(), y, reduction="sum")
        if not chunked:
            return piece(h, targets) / len(targets)
        total = 0
        for lo in range(0, len(targets), 2048):
            x, y = h[lo:lo + 2048], targets[lo:lo + 2048]
            total = total + (checkpoint(piece, x, y, use_reentrant=False) if torch.is_grad_enabled() else piece(x, y))
        return total / len(targets)


def transformers_model(a, device, kind, implementation, master):
    """The model, its loss, its trained parameters, and what to do with gradients before the step."""
    import torch
    import torch.nn.functional as F
    from torch import nn
    from transformers import OlmoeConfig, OlmoeForCausalLM
    config = OlmoeConfig(vocab_size=a.vocab, hidden_size=a.dim, intermediate_size=a.width, num_hidden_layers=a.layers,
                         num_attention_heads=a.heads, num_key_value_heads=a.kv_heads, num_experts=a.experts, num_experts_per_tok=a.topk,
                         max_position_embeddings=max(4096, a.seq), norm_topk_prob=False, tie_word_embeddings=False, use_cache=False,
                         pad_token_id=None, bos_token_id=None, eos_token_id=None)
    config._attn_implementation = "sdpa"
    if kind == "stock":
        config._experts_implementation = implementation
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = OlmoeForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.train()
    for p in model.parameters():
        p.requires_grad_(False)
        if p.dim() > 1:
            p.data.uniform_(-math.sqrt(3 / p.shape[-1]), math.sqrt(3 / p.shape[-1]))
    model.model.embed_tokens.weight.data.uniform_(-1, 1)
    t, frozen, params, masks = a.trained, a.experts - a.trained, [], []
    for layer in model.model.layers:
        moe = layer.mlp
        if kind == "stock":
            for p in (moe.experts.gate_up_proj, moe.experts.down_proj, moe.gate.weight):
                p.requires_grad_(True)
                params.append(p)
                masks.append(p)
            continue
        top = torch.float32 if master else torch.bfloat16
        own = [nn.Parameter(w.data[frozen:].to(top, copy=True)) for w in (moe.experts.gate_up_proj, moe.experts.down_proj, moe.gate.weight)]
        rest = [w.data[:frozen].clone() for w in (moe.experts.gate_up_proj, moe.experts.down_proj, moe.gate.weight)]
        params += own

        class Experts(nn.Module):
            def __init__(self, e):
                super().__init__()
                self.e = e

            def forward(self, x, index, weight):
                return experts_forward(x, index, weight, self.e, implementation == "grouped_mm")

        class Router(nn.Module):
            def __init__(self, rest, own):
                super().__init__()
                self.rest, self.own = rest, own

            def forward(self, x):
                x = x.reshape(-1, a.dim)
                logits = F.linear(x, torch.cat((self.rest, self.own.to(x.dtype))))
                weight, index = torch.topk(torch.softmax(logits, -1, dtype=torch.float32), a.topk)
                return logits, weight.to(x.dtype), index

        moe.experts, moe.gate = Experts(Split(rest[:2], own[:2])), Router(rest[2], own[2])
    gc.collect()

    def loss(tokens, targets):
        logits = model(input_ids=tokens, use_cache=False).logits
        return F.cross_entropy(logits.float().view(-1, a.vocab), targets)

    def mask():
        for p in masks:
            p.grad[:frozen] = 0

    return loss, params, mask


def measure(a):
    import torch
    cuda = a.device == "cuda"
    variant = a.one.split("-")
    torch.manual_seed(1)
    sync = torch.cuda.synchronize if cuda else (lambda: None)
    free = torch.cuda.mem_get_info()[0] if cuda else 0
    versions = "torch %s" % torch.__version__
    if variant[0] == "plain":
        model = Plain(a, a.device, variant[2] == "master")
        loss = lambda x, y: model.loss(x, y, variant[1] == "grouped", "chunked" in variant)
        params, mask = model.params, lambda: None
    else:
        import transformers
        versions += ", transformers %s" % transformers.__version__
        loss, params, mask = transformers_model(a, a.device, variant[1], variant[2], variant[-1] == "master")
    opt = torch.optim.AdamW(params, lr=a.lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0, fused=True)
    batches = [torch.randint(0, a.vocab, (a.batch, a.seq + 1), device=a.device) for _ in range(4)]
    cut = lambda i: (batches[i % 4][:, :-1].contiguous(), batches[i % 4][:, 1:].reshape(-1).contiguous())

    def step(i):
        opt.zero_grad(set_to_none=True)
        l = loss(*cut(i))
        l.backward()
        mask()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        return l.item()

    def evaluate(i):
        with torch.no_grad():
            return loss(*cut(i)).item()

    r = {"variant": a.one, "versions": versions, "device": torch.cuda.get_device_name() if cuda else "cpu",
         "trained_params": sum(p.numel() if variant[:2] != ["hf", "stock"] else p.numel() * a.trained // a.experts for p in params)}
    for what, f in (("eval", evaluate), ("train", step)):  # evaluation first: it needs no moments
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        losses, seconds = [], []
        for i in range(a.warmup + a.steps):
            sync()
            start = time.perf_counter()
            losses.append(f(i))
            sync()
            if i >= a.warmup:
                seconds.append(time.perf_counter() - start)
        seconds.sort()
        median = seconds[len(seconds) // 2]
        r[what + "_seconds"], r[what + "_spread"] = median, [seconds[0], seconds[-1]]
        r[what + "_tokens_per_second"] = a.batch * a.seq / median
        r[what + "_losses"] = [round(x, 5) for x in losses[:4]]
        r[what + "_peak_bytes"] = torch.cuda.max_memory_allocated() if cuda else 0
        r[what + "_reserved_bytes"] = torch.cuda.max_memory_reserved() if cuda else 0
        r[what + "_peak_driver_bytes"] = free - torch.cuda.mem_get_info()[0] if cuda else 0
        if not all(math.isfinite(x) for x in losses):
            raise SystemExit("the loss is not finite: %s" % losses)
    print(json.dumps(r))


if __name__ == "__main__":
    args = arguments()
    if args.one:
        measure(args)
    else:
        sys.exit(driver(args))
