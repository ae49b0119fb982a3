"""Tiny models of every family as transformers writes them, and what transformers says of a model.

families.py make OUT         OUT/models/NAME in every layout that this version of transformers writes, and OUT/NAME.json
families.py expect DIR FILE  loads the model in DIR, which must hold what its class wants and no more, and writes FILE

The files are what TestInterop of node/local compares bzd with. Fused experts are written by transformers 5 alone.
"""
import json
import os
import sys

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../training/model/testdata"))
import make_families as families  # noqa: E402

TEXT = "func main() {\n\tfor i := range 12345 { é € }\n}  "
FIVE = int(transformers.__version__.split(".")[0]) >= 5


def tokenizer():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.train([os.path.join(HERE, "../docs/genesis.md")],
            trainers.BpeTrainer(vocab_size=384, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=t)


def expect(path, file):
    how = {"experts_implementation": "eager"} if FIVE else {}
    model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, dtype=torch.float32,
                                                       attn_implementation="eager", **how)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[what], f"{path}: {what}: {info[what]}"
    model.eval()
    tokens = [(7 * i * i + 3) % model.config.vocab_size for i in range(60)]
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits
    # transformers 4 does not know the class that 5 names in tokenizer_config.json; the file itself both read.
    ids = PreTrainedTokenizerFast(tokenizer_file=os.path.join(path, "tokenizer.json")).encode(TEXT, add_special_tokens=False)
    with open(file, "w") as f:
        json.dump({"Model": os.path.abspath(path), "Text": TEXT, "IDs": ids, "Tokens": tokens, "Logits": logits.reshape(-1).tolist()}, f)


def make(out):
    os.makedirs(os.path.join(out, "models"), exist_ok=True)
    for family, fields in families.CASES.items():
        model = families.model_of({**fields, "vocab_size": 400, "max_position_embeddings": 256})
        model = model.to(torch.bfloat16).float()  # values that bf16 holds
        layouts = {"one-f32": (model, {}), "shards-bf16": (model.to(torch.bfloat16), {"max_shard_size": "40KB"})}
        if FIVE:
            layouts = {f"v5-{k}": v for k, v in layouts.items()}
            layouts["v5-fused"] = (model, {"save_original_format": False})
        for layout, (m, how) in layouts.items():
            path = os.path.join(out, "models", f"{family}-{layout}")
            (m.float() if "f32" in layout or "fused" in layout else m.to(torch.bfloat16)).save_pretrained(path, **how)
            tokenizer().save_pretrained(path)
            names = os.listdir(path)
            assert ("model.safetensors" in names) == ("shards" not in layout), names
            expect(path, os.path.join(out, f"{family}-{layout}.json"))
            print("wrote", path)


if __name__ == "__main__":
    {"make": make, "expect": expect}[sys.argv[1]](*sys.argv[2:])
