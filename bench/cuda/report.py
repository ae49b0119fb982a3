"""Joins what bench/cuda/run.sh measured and prints it as Markdown.

    report.py --collect DIR --out FILE    gathers the JSON files of one run into one
    report.py FILE...                     prints the tables of one or several runs; of two that measured the same the last counts
"""
import argparse
import json
import os
import sys

MIB = 2**20


def collect(a):
    out = {"results": {}, "parts": {}, "failed": (a.failed or "").split()}
    for name in sorted(os.listdir(a.collect)):
        path = os.path.join(a.collect, name)
        if name.endswith(".json") and not name.startswith("fail_"):
            try:
                with open(path) as f:
                    out["results"][name[:-5]] = json.load(f)
            except ValueError:
                pass  # the part failed, and is listed as such
        elif name in ("smi.txt", "version.txt"):
            with open(path) as f:
                out[name[:-4]] = f.read().strip()
        elif name == "parts.txt":
            with open(path) as f:
                out["parts"] = {w[0]: {"code": int(w[1]), "seconds": int(w[2])} for w in map(str.split, f)}
        elif name.endswith(".log"):
            with open(path, errors="replace") as f:
                out.setdefault("tails", {})[name[:-4]] = f.read()[-4000:]
    with open(a.out, "w") as f:
        json.dump(out, f, indent=1)
        f.write("\n")


def join(files):
    whole = {"results": {}, "parts": {}, "failed": [], "tails": {}}
    for path in files:
        with open(path) as f:
            r = json.load(f)
        for key in ("results", "parts", "tails"):
            whole[key].update(r.get(key, {}))
        # What failed once and was run again counts as it ended last.
        whole["failed"] = [x for x in whole["failed"] if x not in r.get("parts", {})] + r.get("failed", [])
        for key in ("smi", "version"):
            whole[key] = r.get(key, whole.get(key))
    return whole


class Table:
    def __init__(self, title, *head):
        self.title, self.head, self.rows = title, head, []

    def add(self, *cells):
        self.rows.append([c if isinstance(c, str) else number(c) for c in cells])

    def print(self):
        if not self.rows:
            return
        print("### %s\n" % self.title)
        print("| " + " | ".join(self.head) + " |")
        print("|" + "-|" * len(self.head))
        for r in self.rows:
            print("| " + " | ".join(r) + " |")
        print()


def number(x):
    if x is None:
        return ""
    if isinstance(x, int) or abs(x) >= 1000:
        return "{:,.0f}".format(x)
    return "%.3g" % x if abs(x) < 10 else "%.1f" % x


def verdict(ratio, goal, least=True):
    """The ratio, and whether it is what was aimed at."""
    ok = ratio >= goal if least else ratio <= goal
    return "%.2f%s" % (ratio, "" if ok else " (aim %s %.2f)" % ("≥" if least else "≤", goal))


def step(whole):
    t = Table("Training step and evaluation", "", "tokens/s", "ms", "peak MiB allocated", "with the driver's", "loss of the first steps")
    r = whole["results"]

    def ours(name, label, what):
        x = r.get("bzd-" + name)
        if x and x.get(what + "_tokens_per_second"):
            losses = x.get("losses") or []
            t.add(label, x[what + "_tokens_per_second"], 1000 * x["step_seconds" if what == "train" else "eval_seconds"],
                  x.get(what + "_peak_bytes", 0) // MIB, x.get(what + "_peak_driver_bytes", 0) // MIB,
                  " ".join("%.4f" % l for l in losses[:3]) if what == "train" else "%.4f" % x.get("eval_loss", 0))
            return x
        return None

    train, evaluation = ours("fast-train", "bzd fast, training", "train"), ours("fast-eval", "bzd fast, evaluation", "eval")
    ours("untried-train", "bzd fast with untried kernels, training", "train")
    ours("untried-eval", "bzd fast with untried kernels, evaluation", "eval")
    exact = ours("exact-step", "bzd exact, training", "train")
    ours("exact-step", "bzd exact, evaluation", "eval")
    torch = r.get("torch") or {}
    variants = {v["variant"]: v for v in torch.get("variants", [])}
    for v in variants.values():
        for what in ("train", "eval"):
            if v.get(what + "_tokens_per_second"):
                t.add("PyTorch %s, %s" % (v["variant"], "training" if what == "train" else "evaluation"), v[what + "_tokens_per_second"],
                      1000 * v[what + "_seconds"], v[what + "_peak_bytes"] // MIB, v[what + "_peak_driver_bytes"] // MIB,
                      " ".join("%.4f" % l for l in v[what + "_losses"][:3]))
        if "error" in v:
            t.add("PyTorch " + v["variant"], "did not run: " + v["error"].replace("|", "/")[:120], "", "", "", "")
    t.print()

    s = Table("Against the fastest PyTorch eager variant", "", "bzd", "PyTorch", "ratio", "variant")
    for what, mine, best in (("train", train, torch.get("best_train")), ("eval", evaluation, torch.get("best_eval"))):
        if mine and best:
            key, word = what + "_tokens_per_second", "training step" if what == "train" else "evaluation"
            s.add(word + ", tokens/s", mine[key], variants[best][key], verdict(mine[key] / variants[best][key], 1.2), best)
            key = what + "_peak_bytes"
            if variants[best][key]:
                s.add(word + ", peak MiB", mine[key] // MIB, variants[best][key] // MIB, verdict(mine[key] / variants[best][key], 0.7, False), best)
    if train and torch.get("least_memory"):
        v = variants[torch["least_memory"]]
        if v["train_peak_bytes"]:
            s.add("training step, peak MiB, against the least", train["train_peak_bytes"] // MIB, v["train_peak_bytes"] // MIB,
                  verdict(train["train_peak_bytes"] / v["train_peak_bytes"], 0.7, False), v["variant"])
    if train and exact and exact.get("step_seconds"):
        s.add("exact mode, times the time of fast: training", exact["step_seconds"], train["step_seconds"], "%.1f" % (exact["step_seconds"] / train["step_seconds"]), "")
    if evaluation and exact and exact.get("eval_seconds"):
        s.add("exact mode, times the time of fast: evaluation", exact["eval_seconds"], evaluation["eval_seconds"], "%.1f" % (exact["eval_seconds"] / evaluation["eval_seconds"]), "")
    if train and train.get("planned_bytes") and train.get("train_peak_bytes"):
        s.add("memory planned, allocated, MiB", train["planned_bytes"] // MIB, train["train_peak_bytes"] // MIB, "%.2f" % (train["train_peak_bytes"] / train["planned_bytes"]), "")
    s.print()


def memory(whole):
    t = Table("The training step in less memory", "", "tokens/s", "peak MiB", "micro-batch", "recompute", "experts on the card, MiB")
    for name, x in sorted(whole["results"].items()):
        if name.startswith("bzd-memory") and x.get("train_tokens_per_second"):
            t.add(name[len("bzd-memory-"):] + ", %d layers" % x["config"]["Layers"], x["train_tokens_per_second"], x.get("train_peak_bytes", 0) // MIB,
                  "%d of %d" % (x["micro"], x["batch"]), "yes" if x["recompute"] else "no", str(x["resident"] // MIB) if x.get("resident") else "all")
    t.print()


def bits(whole):
    t = Table("Exact mode against the processor", "", "digest", "")
    r = whole["results"]
    for name in sorted(r):
        if name.startswith("bzd-bits") and name.endswith("-cuda"):
            here, there = r[name], r.get(name[:-4] + "cpu")
            c = here["config"]
            same = bool(there) and here["digest"] == there["digest"] and here["losses"] == there["losses"]
            t.add("%s, width %d, %d layers, batch %d×%d" % (here["shape"], c["Dim"], c["Layers"], here["batch"], here["seq"]), here["digest"][:16],
                  "the same bits" if same else "**DIFFERENT**")
    t.print()


def gemm(whole):
    t = Table("bfloat16 products", "", "kernel", "ms", "TFLOP/s", "PyTorch's best ms", "ratio")
    for build in whole["results"].get("gemm") or []:
        for row in build.get("times", []):
            best = min([v["ms"] for v in row["torch"].values()] or [0])
            t.add(row["what"], "%s %s" % (build["build"], row["kernel"]), row["ms"], row["tflops"], best, verdict(best / row["ms"], 0.7) if best else "")
        bad = [c for c in build.get("checks", []) if not c["ok"]]
        if bad or "failure" in build:
            t.add(build["build"], build.get("failure") or "%d checks failed" % len(bad), "", "", "", "**FAILED**")
    t.print()


def attention(whole):
    t = Table("Attention", "batch, seq, heads, kv heads, head", "pass", "ms", "PyTorch ms", "ratio", "PyTorch's backend")
    parts = (whole["results"].get("attention") or {}).get("parts", {})
    ours, theirs = parts.get("ours"), parts.get("torch")
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for shape, line in ours.items():
            for i, what in enumerate(("forward", "backward")):
                rivals = {k[len(shape) + 1:]: v[i] for k, v in theirs.items() if k.startswith(shape)}
                if rivals:
                    best = min(rivals, key=rivals.get)
                    t.add(shape.strip("()"), what, line[what], rivals[best], verdict(rivals[best] / line[what], 0.6), best)
    t.print()


def membound(whole):
    found = whole["results"].get("membound") or {}
    t = Table("Memory-bound kernels, as a share of the bandwidth of a copy", "kernel", "ms", "share", "PyTorch ms")
    for part in found.get("parts", {}).values():
        if not isinstance(part, dict):
            continue
        for name, x in part.items():
            if isinstance(x, dict) and "share" in x:
                t.add(name, x.get("ms"), verdict(x["share"], 0.8), x.get("torch ms"))
    t.print()
    if found.get("copy"):
        print("A copy moves %.2f TB/s.\n" % found["copy"])
    if found.get("failed"):
        print("**Failed: %s**\n" % ", ".join(found["failed"]))


def exact(whole):
    lines = whole["results"].get("exact") or []
    t = Table("Exact kernels: products and attention", "", "ms", "TFLOP/s", "PyTorch TFLOP/s in float32", "ratio", "of peak")
    m = Table("Exact kernels: memory-bound", "", "ms", "GB/s", "share of copy")
    for x in lines:
        if "tflops" in x:
            t.add(x["what"], x["ms"], x["tflops"], x.get("torch_tflops"), x.get("ratio"), x.get("peak"))
        elif "gbps" in x:
            m.add(x["what"], x["ms"], x["gbps"], verdict(x["copy"], 0.8))
    t.print()
    m.print()
    checks = [x for x in lines if "check" in x]
    if checks:
        print("%d of %d checks against the specification passed.\n" % (sum(bool(x["ok"]) for x in checks), len(checks)))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--collect")
    p.add_argument("--failed")
    p.add_argument("--out")
    p.add_argument("files", nargs="*")
    a = p.parse_args()
    if a.collect:
        collect(a)
        return
    if not a.files:
        p.error("no results.json given")
    whole = join(a.files)
    print("## GPU\n\n```\n%s\n%s\n```\n" % (whole.get("smi") or "", whole.get("version") or ""))
    versions = {v["versions"] for v in (whole["results"].get("torch") or {}).get("variants", []) if "versions" in v}
    if versions:
        print("PyTorch: %s\n" % max(versions, key=len))
    for show in (step, memory, bits, gemm, attention, membound, exact):
        try:
            show(whole)
        except (KeyError, TypeError, ValueError, AttributeError) as e:  # a part that ended half-way must not hide the others
            print("**%s: results not understood: %r**\n" % (show.__name__, e))
    t = Table("Parts", "part", "exit code", "seconds")
    for name, x in whole["parts"].items():
        t.add(name, x["code"], x["seconds"])
    t.print()
    if whole["failed"]:
        print("**Failed: %s**" % ", ".join(whole["failed"]))


if __name__ == "__main__":
    sys.exit(main())
