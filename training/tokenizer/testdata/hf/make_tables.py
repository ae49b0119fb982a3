#!/usr/bin/env python3
"""Writes ../../unicode.txt: the character classes and the canonical
decompositions that Hugging Face's tokenizers (made with 0.22.2) uses. Every
class is asked of the library itself, because Go's tables are of another
Unicode version. Only the values of combining classes, which never change, and
the candidates for decompositions come from Python's unicodedata.

Lines: a name, then its content.
  L, N, S   ranges of \\p{L}, \\p{N} and \\s as its patterns see them
  W         ranges of \\w as added tokens with single_word see it
  C n       ranges of combining class n
  D c  a b  c decomposes into a (and b)
  P c  a b  a and b compose to c
All numbers are hexadecimal, ranges are differences: a skip from the end of the
last range, then a length less one, left out when 0."""
import pathlib
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers

OUT = pathlib.Path(__file__).parent.parent.parent / "unicode.txt"
ALL = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def ranges(members):
    runs = []
    for c in sorted(members):
        if runs and runs[-1][1] == c - 1:
            runs[-1][1] = c
        else:
            runs.append([c, c])
    out, last = [], 0
    for a, b in runs:
        out.append(f"{a - last:x}" + (f"+{b - a:x}" if b > a else ""))
        last = b
    return " ".join(out)


def members(pattern):
    left = set(normalizers.Replace(Regex(pattern), "").normalize_str("".join(map(chr, ALL))))
    return [c for c in ALL if chr(c) not in left]


def words():
    t = Tokenizer(models.BPE({"x": 0, "?": 1}, [], unk_token="?"))
    t.add_tokens([AddedToken("@@", single_word=True, normalized=False)])
    out = []
    for i in range(0, len(ALL), 1 << 14):
        part = ALL[i : i + (1 << 14)]
        for c, e in zip(part, t.encode_batch([chr(c) + "@@" for c in part])):
            if c != ord("@") and e.ids[-1] != 2:
                out.append(c)
    return out


def main():
    lines = [f"L {ranges(members(chr(92) + 'p{L}'))}", f"N {ranges(members(chr(92) + 'p{N}'))}", f"S {ranges(members(chr(92) + 's'))}", f"W {ranges(words())}"]
    nfc, nfd = normalizers.NFC().normalize_str, normalizers.NFD().normalize_str
    classes = {}
    for c in ALL:
        n = unicodedata.combining(chr(c))
        if n == 0:
            continue
        x = chr(c)
        moves = nfd("a" + x + "\u0334") == "a\u0334" + x if n > 1 else nfd("a\u0345" + x) == "a" + x + "\u0345"
        if moves:
            classes.setdefault(n, []).append(c)
    for n in sorted(classes):
        lines.append(f"C {n:x} {ranges(classes[n])}")
    for c in ALL:
        if 0xAC00 <= c < 0xD7A4:
            continue
        d = unicodedata.decomposition(chr(c))
        full = nfd(chr(c))
        if full == chr(c):
            continue
        parts = d.split()
        assert parts and not d.startswith("<") and len(parts) <= 2, hex(c)
        back = "".join(chr(int(p, 16)) for p in parts)
        assert nfd(back) == full, hex(c)
        kind = "P" if len(parts) == 2 and nfc(back) == chr(c) else "D"
        lines.append(" ".join([kind, f"{c:x}"] + [f"{int(p, 16):x}" for p in parts]))
    OUT.write_text("\n".join(lines) + "\n")


main()
