package tokenizer

import "bytes"

// A scanner returns the length of the word that text, which is not empty,
// begins with. It is at least 1.
type scanner func(t *tables, text []byte) int

// The patterns that are known, by their exact text. Each has a scanner that
// cuts like the reference library's engine does; there is no other engine.
const (
	patternGPT2   = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
	patternQwen   = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	patternLlama3 = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
)

func scannerOf(pattern string) scanner {
	switch pattern {
	case patternGPT2:
		return scanGPT2
	case patternQwen:
		return func(t *tables, text []byte) int { return scanQwen(t, text, 1) }
	case patternLlama3:
		return func(t *tables, text []byte) int { return scanQwen(t, text, 3) }
	}
	return nil
}

// run returns the end of the characters from i on whose classes, of those in
// mask, are exactly want, at most limit of them.
func (t *tables) run(text []byte, i int, mask, want uint8, limit int) int {
	for i < len(text) && limit > 0 {
		c, n := t.of(text[i:])
		if c&mask != want {
			break
		}
		i += n
		limit--
	}
	return i
}

const unlimited = int(^uint(0) >> 1)

// visible are the classes that " ?[^\s\p{L}\p{N}]+" leaves out.
const visible = space | letter | number

func scanGPT2(t *tables, text []byte) int {
	if text[0] == '\'' {
		if n := contraction(text[1:], false); n > 0 {
			return 1 + n
		}
	}
	c, n := t.of(text)
	at := 0
	if text[0] == ' ' && len(text) > 1 {
		if next, m := t.of(text[1:]); next&space == 0 {
			c, n, at = next, m, 1
		}
	}
	if c&space != 0 {
		return blanks(t, text, n)
	}
	return t.run(text, at+n, visible, c&visible, unlimited)
}

// scanQwen scans the pattern of Qwen, which takes digits one by one, and that
// of Llama 3, which takes up to three.
func scanQwen(t *tables, text []byte, digits int) int {
	if text[0] == '\'' {
		if n := contraction(text[1:], true); n > 0 {
			return 1 + n
		}
	}
	c, n := t.of(text)
	switch {
	case c&letter != 0:
		return t.run(text, n, letter, letter, unlimited)
	case c&number != 0:
		return t.run(text, n, number, number, digits-1)
	}
	next, m := uint8(space), 0
	if n < len(text) {
		next, m = t.of(text[n:])
	}
	if c&newline == 0 && next&letter != 0 {
		return t.run(text, n+m, letter, letter, unlimited)
	}
	if text[0] == ' ' && next&visible == 0 {
		c, n = next, n+m
	}
	if c&space == 0 {
		return t.run(text, t.run(text, n, visible, 0, unlimited), newline, newline, unlimited)
	}
	end := t.run(text, n, space, space, unlimited)
	if last := bytes.LastIndexAny(text[:end], "\r\n"); last >= 0 {
		return last + 1
	}
	return blanks(t, text, n)
}

// blanks matches "\s+(?!\S)|\s+": a run of blanks to the end of the text, or
// all but the last of them if there are two. The first has length n.
func blanks(t *tables, text []byte, n int) int {
	last, end := 0, n
	for end < len(text) {
		c, m := t.of(text[end:])
		if c&space == 0 {
			if last > 0 {
				return last
			}
			return end
		}
		last, end = end, end+m
	}
	return end
}

// contraction returns the length of the s, t, re, ve, m, ll or d that text
// begins with, else 0. With fold, case does not matter and the long s is an s.
func contraction(text []byte, fold bool) int {
	at := func(i int) byte {
		if i >= len(text) {
			return 0
		}
		b := text[i]
		if fold && b >= 'A' && b <= 'Z' {
			b += 'a' - 'A'
		}
		return b
	}
	switch a, b := at(0), at(1); {
	case a == 's', a == 't', a == 'm', a == 'd':
		return 1
	case a == 'r' && b == 'e', a == 'v' && b == 'e', a == 'l' && b == 'l':
		return 2
	case fold && a == 0xc5 && b == 0xbf:
		return 2
	}
	return 0
}
