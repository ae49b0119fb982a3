#!/usr/bin/env python3
"""Speed of training/tokenizer beside Hugging Face's tokenizers, one thread
each, in one run and on the same files: trains a byte-level BPE of 16,000
tokens per pattern on Go's sources, encodes 12 MB of them, in texts of
10,000 characters, once from a cold start with both, and says whether the ids are equal.

    TOKENIZERS_PARALLELISM=false bench/tokenizer.py
"""
import glob
import hashlib
import importlib.util
import os
import pathlib
import struct
import subprocess
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

from tokenizers import Tokenizer, normalizers, pre_tokenizers  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("make_vectors", ROOT / "training/tokenizer/testdata/hf/make_vectors.py")
mv = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mv)

PROGRAM = """package tokenizer

import ("bytes"; "crypto/sha256"; "encoding/binary"; "fmt"; "os"; "testing"; "time")

func TestSpeed(t *testing.T) {
	file, _ := os.ReadFile(os.Getenv("BZD_TOKENIZER"))
	text, _ := os.ReadFile(os.Getenv("BZD_TEXT"))
	best := time.Hour
	var ids []int32
	for range 3 {
		tok, err := Read("tokenizer.json", file)
		if err != nil { t.Fatal(err) }
		start := time.Now()
		ids = ids[:0]
		for _, x := range bytes.Split(text, []byte{0}) { ids = append(ids, tok.Encode(x)...) }
		best = min(best, time.Since(start))
	}
	var b []byte
	for _, id := range ids { b = binary.LittleEndian.AppendUint32(b, uint32(id)) }
	fmt.Printf("RESULT %f %x\\n", best.Seconds(), sha256.Sum256(b))
}
"""


def main():
    goroot = subprocess.check_output(["go", "env", "GOROOT"], text=True).strip()
    text = ""
    for f in sorted(glob.glob(goroot + "/src/**/*.go", recursive=True)):
        text += open(f, errors="replace").read()
        if len(text) > 12_000_000:
            break
    text = text.replace("\0", "")
    texts = [text[i : i + 10_000] for i in range(0, len(text), 10_000)]
    corpus = texts[:600]
    size = len(text.encode())
    with tempfile.TemporaryDirectory() as tmp:
        tmp = pathlib.Path(tmp)
        (tmp / "text").write_text("\0".join(texts), newline="")
        # The tests of the package, with one more, in a copy of it.
        (tmp / "pkg").mkdir()
        for f in (ROOT / "training/tokenizer").iterdir():
            if f.suffix in (".go", ".txt") and not f.name.endswith("_test.go"):
                (tmp / "pkg" / f.name).write_bytes(f.read_bytes())
        (tmp / "pkg/speed_test.go").write_text(PROGRAM)
        (tmp / "pkg/go.mod").write_text("module speed\n\ngo 1.26\n")
        for name, norm, pre in (
            ("gpt-neox", normalizers.NFC(), pre_tokenizers.ByteLevel(add_prefix_space=False)),
            ("qwen", normalizers.NFC(), mv.split(mv.QWEN)),
            ("llama3", None, mv.split(mv.LLAMA3)),
        ):
            t = mv.byte_level(corpus, 16000, norm, pre)
            t.save(str(tmp / "tokenizer.json"))
            best = 1e9
            for _ in range(3):
                t = Tokenizer.from_file(str(tmp / "tokenizer.json"))
                start = time.perf_counter()
                ids = [i for x in texts for i in t.encode(x).ids]
                best = min(best, time.perf_counter() - start)
            want = hashlib.sha256(struct.pack(f"<{len(ids)}i", *ids)).hexdigest()
            env = dict(os.environ, BZD_TOKENIZER=str(tmp / "tokenizer.json"), BZD_TEXT=str(tmp / "text"), GOMAXPROCS="1", GOFLAGS="-mod=mod")
            out = subprocess.check_output(["go", "test", "-count=1", "-v", "-run", "TestSpeed", "."], cwd=tmp / "pkg", env=env, text=True)
            _, seconds, got = next(x for x in out.splitlines() if x.startswith("RESULT")).split()
            ours, theirs = size / float(seconds) / 1e6, size / best / 1e6
            print(f"{name}: {size / 1e6:.1f} MB, {len(ids)} ids {'equal' if got == want else 'DIFFER'}; ours {ours:.1f} MB/s, tokenizers {theirs:.1f} MB/s, {ours / theirs:.1f}x")


main()
