#!/usr/bin/env python3
"""Trains a small tokenizer of each family with Hugging Face's tokenizers (made
with 0.22.2), with the families' own normalisers, patterns, special tokens,
post-processors and decoders, and records what the library makes of 5,000
fuzzed strings. Everything it writes lies beside it:

  strings.json.gz     the strings
  FAMILY.json.gz      the tokenizer.json
  FAMILY.vec.gz       JSON: full ids and decoded text of the first strings,
                      then for every string the first 4 bytes of SHA-256 over
                      ids (little-endian int32), over the ids with special
                      tokens added, and over the decoded text; and the same of
                      decoding random ids, with and without special tokens

    make_vectors.py GOROOT

The trainer breaks ties between rare characters by chance, so that a new run
makes other fallback tokenizers; all files are written together.
"""
import base64
import glob
import gzip
import hashlib
import json
import pathlib
import random
import struct
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).parent
FULL, COUNT, RANDOM = 150, 5000, 500
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<s>", "</s>", "<unk>", "<pad>", "<0x41>", "[L]", "[R]", "[W]", "[LRW]", "Å!", "é", "|||EMAIL_ADDRESS|||"]


def char(r):
    k = r.randrange(14)
    if k < 4:
        return chr(r.randrange(0x20, 0x7F))
    if k == 4:
        return r.choice("\n\r\t \u00a0\u2003\u3000\u0085\u000b\u000c\u2028\u1680\u001c\u200b\ufeff")
    if k == 5:
        return chr(r.randrange(0xA0, 0x250))
    if k == 6:
        return chr(r.randrange(0x300, 0x370))
    if k == 7:
        return chr(r.randrange(0x4E00, 0xA000))
    if k == 8:
        return chr(r.randrange(0x1F300, 0x1FAFF))
    if k == 9:
        return chr(r.randrange(0xAC00, 0xD7A4)) if r.random() < 0.5 else chr(r.choice([0x1100, 0x1161, 0x11A8]) + r.randrange(20))
    if k == 10:
        return chr(r.choice([0x660, 0x966, 0xFF10, 0xB2, 0xBC, 0x2160, 0x1D7CE]) + r.randrange(10))
    if k == 11:
        return chr(r.choice([0x370, 0x400, 0x5D0, 0x620, 0x900, 0xE00, 0x10A0, 0x1E00, 0x2100, 0xFB00]) + r.randrange(0x60))
    while True:
        c = r.randrange(0x110000)
        if not 0xD800 <= c < 0xE000:
            return chr(c)


def piece(r, words):
    k = r.randrange(20)
    if k < 5:
        return r.choice(words)
    if k == 5:
        return r.choice("'’") + r.choice(["s", "S", "t", "re", "RE", "Ve", "m", "LL", "l", "d", "ſ", "x", "\u212a"])
    if k == 6:
        return str(r.randrange(10 ** r.randrange(1, 9)))
    if k == 7:
        return " " * r.randrange(1, 12)
    if k == 8:
        return r.choice(["\n", "\r\n", "\r", "\n\n", " \n", "\t\n  ", "\n \n\t"]) * r.randrange(1, 3)
    if k == 9:
        return "\t" * r.randrange(1, 5)
    if k in (10, 11):
        return r.choice(["", " ", "  ", "\n", "a", "_"]) + r.choice(SPECIAL) + r.choice(["", " ", "  ", "\n", "b", "é"])
    if k == 12:
        return r.choice("(){}[]<>.,;:!?/\\-+*=&%$#@~^`\"'") * r.randrange(1, 6)
    if k == 13:
        return r.choice(["👩‍🔬", "🇩🇪", "❤️", "🧮", "𝄞", "e\u0301", "A\u030a", "\u1e9b\u0323", "\u0915\u093c", "ﬁ", "Ǆ", "ß", "İ"])
    if k == 14:
        return r.choice(["a", "e", "o", "q", "\u0928"]) + "".join(chr(r.choice([0x301, 0x323, 0x327, 0x30A, 0x345, 0x334, 0x93C, 0x5B0])) for _ in range(r.randrange(1, 5)))
    if k == 15:
        return r.choice(["▁", "▁▁", "Ġ", "Ċ", "<0x0A>", "<0xE2>", "<0xZZ>"])
    return "".join(char(r) for _ in range(r.randrange(1, 9)))


def strings(seed, words, n):
    r = random.Random(seed)
    fixed = ["", " ", "  ", "a", "\n", "'", "▁", "<s>", " <s> ", "e" + "\u0301" * 40, "Hello, world", "don't  I'LL 'ſ\r\n\r\n x"]
    return fixed + ["".join(r.choice(["", "", " "]) + piece(r, words) for _ in range(r.randrange(1, 12))) for _ in range(n - len(fixed))]


def special(*names, **kw):
    return [AddedToken(n, special=True, normalized=False, **kw) for n in names]


def template(bos, t):
    return processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B:1", special_tokens=[(bos, t.token_to_id(bos))])


def byte_level(corpus, vocab, norm, pre, first=(), ignore_merges=False):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    t.normalizer, t.pre_tokenizer, t.decoder = norm, pre, decoders.ByteLevel()
    t.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=vocab, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), special_tokens=list(first), show_progress=False))
    return t


def split(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)])


def neox(corpus):
    t = byte_level(corpus, 2500, normalizers.NFC(), pre_tokenizers.ByteLevel(add_prefix_space=False), special("|||IP_ADDRESS|||", "<|padding|>"))
    t.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)] + [AddedToken("|||EMAIL_ADDRESS|||", normalized=True)])
    t.add_special_tokens(special("<|endoftext|>"))
    t.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    return t


def qwen(corpus):
    t = byte_level(corpus, 2500, normalizers.NFC(), split(QWEN))
    t.add_special_tokens(special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    t.add_tokens([AddedToken("<tool_call>", normalized=False)])
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    return t


def llama3(corpus):
    t = byte_level(corpus, 2500, None, split(LLAMA3), ignore_merges=True)
    # Words of the vocabulary that no merge reaches, for ignore_merges.
    d = json.loads(t.to_str())
    d["model"]["merges"] = [m for i, m in enumerate(d["model"]["merges"]) if i % 17]
    t = Tokenizer.from_str(json.dumps(d))
    t.add_special_tokens(special("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"))
    t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template("<|begin_of_text|>", t)])
    return t


def gpt2(corpus):
    """A prefix space, and added tokens of every kind."""
    t = byte_level(corpus, 1500, normalizers.NFC(), pre_tokenizers.ByteLevel(add_prefix_space=True))
    t.add_special_tokens(special("<|endoftext|>") + special("[L]", lstrip=True) + special("[R]", rstrip=True))
    t.add_tokens([AddedToken("[W]", single_word=True, normalized=False), AddedToken("[LRW]", single_word=True, lstrip=True, rstrip=True), AddedToken("Å!", normalized=True), AddedToken("é", normalized=False), AddedToken("e", single_word=True)])
    t.post_processor = processors.ByteLevel(trim_offsets=True)
    return t


def fallback(corpus, metaspace, old_merges):
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    chars = sorted(set("".join(corpus[:60])))[:300]
    trainer = trainers.BpeTrainer(vocab_size=2000, limit_alphabet=400, initial_alphabet=chars, special_tokens=special("<unk>", "<s>", "</s>") + [AddedToken(f"<0x{b:02X}>", normalized=False) for b in range(256)], show_progress=False)
    t.train_from_iterator(corpus, trainer)
    d = json.loads(t.to_str())
    d["added_tokens"] = d["added_tokens"][:3]
    d["pre_tokenizer"] = None
    if metaspace:
        d["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    else:
        d["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
    d["decoder"] = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    # Runs of blanks, as these families have; a token of fallback bytes too.
    v, m = d["model"]["vocab"], d["model"]["merges"]
    for n in (2, 4, 8):
        v["▁" * n] = len(v)
        m.insert(n, ["▁" * (n // 2)] * 2)
    t = Tokenizer.from_str(json.dumps(d))
    t.post_processor = template("<s>", t)
    if not old_merges:
        return t
    d = json.loads(t.to_str())
    d["model"]["merges"] = [" ".join(x) for x in d["model"]["merges"]]
    del d["model"]["ignore_merges"]
    return json.dumps(d, ensure_ascii=False, separators=(",", ":"))


def unk(corpus):
    """No fallback bytes: what is not known is <unk>, one for a run."""
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    t.decoder = decoders.Metaspace(prepend_scheme="always", split=True)
    t.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=1000, limit_alphabet=150, special_tokens=special("<unk>", "<s>", "</s>"), show_progress=False))
    return t


def digest(b):
    return hashlib.sha256(b).digest()[:4]


def pack(ids):
    return struct.pack(f"<{len(ids)}i", *ids)


def write(name, data):
    (HERE / name).write_bytes(gzip.compress(data, 9, mtime=0))


def main():
    source = []
    for f in sorted(glob.glob(sys.argv[1] + "/src/strings/*.go") + glob.glob(sys.argv[1] + "/src/net/http/*.go"))[:60]:
        source.append(open(f).read())
    words = sorted(set(" ".join(source[:4]).split()))
    corpus = source + strings(1, words, 8000)
    texts = strings(2, words, COUNT)
    write("strings.json.gz", json.dumps(texts, ensure_ascii=False, separators=(",", ":")).encode())
    families = {
        "neox": neox(corpus), "qwen": qwen(corpus), "llama3": llama3(corpus), "gpt2": gpt2(corpus),
        "mixtral": fallback(corpus, False, True), "llama2": fallback(corpus, True, False), "unk": unk(corpus),
    }
    for name, t in families.items():
        text = t if isinstance(t, str) else t.to_str()
        t = Tokenizer.from_str(text)
        write(name + ".json.gz", text.encode())
        plain = [t.encode(x, add_special_tokens=False).ids for x in texts]
        added = [t.encode(x).ids for x in texts]
        back = [t.decode(x, skip_special_tokens=False) for x in plain]
        r = random.Random(3)
        any_ids = [[r.randrange(t.get_vocab_size()) for _ in range(r.randrange(1, 20))] for _ in range(RANDOM)]
        out = {
            "full": [[i, s] for i, s in zip(plain[:FULL], back[:FULL])],
            "ids": base64.b64encode(b"".join(digest(pack(x)) for x in plain)).decode(),
            "added": base64.b64encode(b"".join(digest(pack(x)) for x in added)).decode(),
            "text": base64.b64encode(b"".join(digest(x.encode()) for x in back)).decode(),
            "random": any_ids,
            "random_text": base64.b64encode(b"".join(digest(t.decode(x, skip_special_tokens=False).encode()) for x in any_ids)).decode(),
            "random_skip": base64.b64encode(b"".join(digest(t.decode(x, skip_special_tokens=True).encode()) for x in any_ids)).decode(),
        }
        write(name + ".vec.gz", json.dumps(out, ensure_ascii=False, separators=(",", ":")).encode())
        print(name, t.get_vocab_size(), sum(map(len, plain)), "ids;", sum(a == b for a, b in zip(back, texts)), "of", len(texts), "come back")


if __name__ == "__main__":
    main()
