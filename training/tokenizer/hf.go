package tokenizer

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"
)

// Tokenizer is a tokenizer read from a tokenizer.json by [Read]. It does not
// change and may be used by many goroutines at once.
type Tokenizer struct {
	tables     *tables
	normalise  []func(*tables, []byte) []byte // in order
	raw        matcher                        // tokens found before normalising
	normalised matcher                        // and after it
	pre        preTokenizer
	model      bpe
	prefix     []int32 // of the post-processor's template
	suffix     []int32
	decoders   []decoder // none: byte-level
	tokens     []string  // by id
	known      []bool    // ids that are tokens
	special    []bool
	bytes      [][]byte // byte-level: what each token stands for
	ids        map[string]int32
	pool       sync.Pool // of *scratch
}

// preTokenizer cuts normalised text into words.
type preTokenizer struct {
	scan        scanner // nil: one word
	prefixSpace bool    // ByteLevel's
	meta        *metaspaceOptions
}

type metaspaceOptions struct {
	replacement []byte
	scheme      string // always, first or never
	split       bool
}

// Size is the number of ids a model needs rows for: the largest id and one.
func (t *Tokenizer) Size() int { return len(t.tokens) }

// ID returns the id of a token as the file writes it.
func (t *Tokenizer) ID(token string) (id int32, ok bool) {
	id, ok = t.ids[token]
	return id, ok
}

// Fits tells whether a model of that many embedding rows has one for every
// token; it may have more. If not, the error is an [ErrUnsupported].
func (t *Tokenizer) Fits(rows int) error {
	if t.Size() > rows {
		return fmt.Errorf("tokenizer: %w: it has ids up to %d, the model has %d rows of embeddings: use the %s that came with the model", ErrUnsupported, t.Size()-1, rows, JSONFile)
	}
	return nil
}

// Encode returns the ids of a text, without those that the post-processor
// adds at its ends; see [Tokenizer.Wrap]. Added tokens written out in the text
// are found. Text that is not UTF-8 is taken byte by byte: byte-level and
// byte-fallback tokenizers have tokens for that, others take their unknown
// token.
func (t *Tokenizer) Encode(text []byte) []int32 { return t.Append(nil, text) }

// Append is [Tokenizer.Encode] into dst.
func (t *Tokenizer) Append(dst []int32, text []byte) []int32 {
	s, _ := t.pool.Get().(*scratch)
	if s == nil {
		s = newScratch()
	}
	defer t.pool.Put(s)
	token := func(id int32) { dst = append(dst, id) }
	t.raw.split(t.tables, text, func(piece []byte, at int) {
		for _, f := range t.normalise {
			piece = f(t.tables, piece)
		}
		t.normalised.split(t.tables, piece, func(piece []byte, in int) {
			if len(piece) > 0 {
				dst = t.words(s, piece, at+in == 0, dst)
			}
		}, token)
	}, token)
	return dst
}

// Wrap returns the ids with the tokens that the file's post-processor puts
// around a text, such as that of its beginning.
func (t *Tokenizer) Wrap(ids []int32) []int32 { return slices.Concat(t.prefix, ids, t.suffix) }

// words appends the tokens of a piece without added tokens; first says
// whether the text begins with it.
func (t *Tokenizer) words(s *scratch, piece []byte, first bool, dst []int32) []int32 {
	p := &t.pre
	if p.prefixSpace && piece[0] != ' ' {
		piece = append([]byte{' '}, piece...)
	}
	switch {
	case p.scan != nil:
		for len(piece) > 0 {
			n := p.scan(t.tables, piece)
			dst = t.model.word(s, piece[:n], dst)
			piece = piece[n:]
		}
		return dst
	case p.meta != nil:
		m := p.meta
		piece = bytes.ReplaceAll(piece, []byte{' '}, m.replacement)
		if !bytes.HasPrefix(piece, m.replacement) && (m.scheme == "always" || m.scheme == "first" && first) {
			piece = slices.Concat(m.replacement, piece)
		}
		for m.split {
			i := bytes.Index(piece[min(1, len(piece)):], m.replacement) + 1
			if i == 0 {
				break
			}
			dst = t.model.word(s, piece[:i], dst)
			piece = piece[i:]
		}
	}
	return t.model.word(s, piece, dst)
}

func (t *Tokenizer) check(ids []int32) error {
	for i, id := range ids {
		if id < 0 || int(id) >= len(t.known) || !t.known[id] {
			return fmt.Errorf("tokenizer: %w: %d at position %d, the tokenizer has %d", ErrToken, id, i, len(t.tokens))
		}
	}
	return nil
}

// Decode returns the text of ids, special tokens too. For a byte-level
// tokenizer it gives every byte back, so that the parts of a sequence may be
// decoded one by one; for others it is [Tokenizer.Text]. An id that is not a
// token is an [ErrToken].
func (t *Tokenizer) Decode(ids []int32) ([]byte, error) {
	if len(t.decoders) > 0 {
		text, err := t.Text(ids, false)
		return []byte(text), err
	}
	if err := t.check(ids); err != nil {
		return nil, err
	}
	var out []byte
	for _, id := range ids {
		out = append(out, t.bytes[id]...)
	}
	return out, nil
}

// Text decodes like the reference library: bytes that are not UTF-8 become
// U+FFFD, and special tokens may be left out.
func (t *Tokenizer) Text(ids []int32, skipSpecial bool) (string, error) {
	if err := t.check(ids); err != nil {
		return "", err
	}
	if len(t.decoders) == 0 {
		var out []byte
		for _, id := range ids {
			if !skipSpecial || !t.special[id] {
				out = append(out, t.bytes[id]...)
			}
		}
		return lossy(out), nil
	}
	var list []string
	for _, id := range ids {
		if !skipSpecial || !t.special[id] {
			list = append(list, t.tokens[id])
		}
	}
	for _, d := range t.decoders {
		list = d(list)
	}
	return strings.Join(list, ""), nil
}

// A decoder turns the tokens of a sequence into pieces of text, in a chain.
type decoder func([]string) []string

func each(f func(i int, token string) string) decoder {
	return func(list []string) []string {
		for i, x := range list {
			list[i] = f(i, x)
		}
		return list
	}
}

func fuse(list []string) []string { return []string{strings.Join(list, "")} }

func byteFallback(list []string) []string {
	var out []string
	var pending []byte
	flush := func() {
		if utf8.Valid(pending) {
			if len(pending) > 0 {
				out = append(out, string(pending))
			}
		} else {
			for range pending {
				out = append(out, "\ufffd")
			}
		}
		pending = pending[:0]
	}
	for _, x := range list {
		if len(x) == 6 && x[:3] == "<0x" && x[5] == '>' {
			if b, ok := hexByte(x[3:5]); ok {
				pending = append(pending, b)
				continue
			}
		}
		flush()
		out = append(out, x)
	}
	flush()
	return out
}

// hexByte reads two characters as Rust's from_str_radix does, which takes a
// sign.
func hexByte(s string) (byte, bool) {
	if s[0] == '+' {
		s = s[1:]
	}
	n := byte(0)
	for _, c := range []byte(s) {
		switch {
		case c >= '0' && c <= '9':
			n = n<<4 + (c - '0')
		case c >= 'a' && c <= 'f':
			n = n<<4 + (c - 'a' + 10)
		case c >= 'A' && c <= 'F':
			n = n<<4 + (c - 'A' + 10)
		default:
			return 0, false
		}
	}
	return n, true
}

// lossy puts one U+FFFD for every longest part of an ill-formed sequence, as
// the Unicode standard recommends; Go's conversions put one for every byte.
func lossy(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	var out strings.Builder
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r == utf8.RuneError && n == 1 {
			for n < len(b) && !utf8.FullRune(b[:n+1]) {
				n++
			}
		}
		out.WriteRune(r)
		b = b[n:]
	}
	return out.String()
}
