#!/usr/bin/env python3
"""Writes vectors.json beside this file from what transformers makes of the
files in ./tokenizer. Needs transformers (made with 4.57.3)."""
import json
import pathlib

import transformers

HERE = pathlib.Path(__file__).parent
TEXTS = [
    "",
    "a",
    "Hello, world",
    " a leading space",
    "   three of them, two after  ",
    "\n",
    "\n\n\tx\r\n\r\n",
    "a , b . don 't ! n't 's",
    "func main() {\n\tfmt.Println(\"hi\")\n}\n",
    "naïve Mühle ÄÖÜ ß",
    "e\u0301 is not \u00e9",
    "日本語 and ελληνικά and עברית",
    "𝄞 🧮 👩‍🔬",
    "\u00a0\u2003\u200b\ufeff",
    "Ġ Ċ are characters too",
    "[CLS] <s> </s> <|endoftext|> <unk>",
    "".join(map(chr, range(0x80))),
    "".join(map(chr, range(0x80, 0x180))),
]


def main():
    t = transformers.AutoTokenizer.from_pretrained(HERE / "tokenizer")
    assert len(t) == 256 and t.all_special_tokens == []
    texts = []
    for x in TEXTS:
        ids = t(x)["input_ids"]
        assert t.decode(ids) == x, x
        texts.append({"text": x, "ids": ids})
    out = {
        "transformers": transformers.__version__,
        "tokens": [t.convert_ids_to_tokens(i) for i in range(256)],
        "texts": texts,
    }
    text = json.dumps(out, ensure_ascii=True, separators=(",", ":")).replace('{"text"', '\n{"text"')
    (HERE / "vectors.json").write_text(text + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
