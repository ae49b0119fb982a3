package tokenizer

import (
	_ "embed"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

// unicodeText holds the character classes and decompositions of the reference
// library, written by testdata/hf/make_tables.py. They are not those of Go's
// unicode package, whose Unicode version is another one.
//
//go:embed unicode.txt
var unicodeText string

// Classes of a character, as bits.
const (
	letter  uint8 = 1 << iota // \p{L}
	number                    // \p{N}
	space                     // \s
	newline                   // CR or LF, which are space too
	word                      // \w
	unquiet                   // may change or join what is before it under NFC
)

// tables says what the reference library knows of characters.
type tables struct {
	ascii   [utf8.RuneSelf]uint8
	page    [(utf8.MaxRune + 1) >> 8]uint16 // of blocks
	blocks  [][256]uint8
	class   map[rune]uint8   // combining class if not 0
	parts   map[rune][2]rune // canonical decomposition, one level; the second may be 0
	compose map[[2]rune]rune // primary composites, without Hangul syllables
}

// loadTables parses [unicodeText] once; a fault in it is a bug.
var loadTables = sync.OnceValue(func() *tables {
	t, err := parseTables(unicodeText)
	if err != nil {
		panic("tokenizer: unicode.txt: " + err.Error())
	}
	return t
})

func parseTables(text string) (*tables, error) {
	bits := make([]uint8, utf8.MaxRune+1)
	t := &tables{class: map[rune]uint8{}, parts: map[rune][2]rune{}, compose: map[[2]rune]rune{}}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		var err error
		switch f[0] {
		case "L":
			err = eachRune(f[1:], func(r rune) { bits[r] |= letter })
		case "N":
			err = eachRune(f[1:], func(r rune) { bits[r] |= number })
		case "S":
			err = eachRune(f[1:], func(r rune) { bits[r] |= space })
		case "W":
			err = eachRune(f[1:], func(r rune) { bits[r] |= word })
		case "C":
			var n []rune
			if n, err = runes(f[1:2]); err != nil {
				break
			}
			err = eachRune(f[2:], func(r rune) { t.class[r] = uint8(n[0]); bits[r] |= unquiet })
		case "D", "P":
			var c []rune
			if c, err = runes(f[1:]); err != nil {
				break
			}
			c = append(c, 0)
			t.parts[c[0]] = [2]rune{c[1], c[2]}
			if f[0] == "D" {
				bits[c[0]] |= unquiet
			} else {
				t.compose[[2]rune{c[1], c[2]}] = c[0]
				bits[c[2]] |= unquiet
			}
		default:
			err = fmt.Errorf("unknown line %q", f[0])
		}
		if err != nil {
			return nil, err
		}
	}
	bits['\r'] |= newline
	bits['\n'] |= newline
	for r := hangulV; r < hangulV+vCount; r++ {
		bits[r] |= unquiet
	}
	for r := hangulT + 1; r < hangulT+tCount; r++ {
		bits[r] |= unquiet
	}
	copy(t.ascii[:], bits)
	seen := map[[256]uint8]uint16{}
	for p := range t.page {
		b := [256]uint8(bits[p<<8:])
		n, ok := seen[b]
		if !ok {
			n = uint16(len(t.blocks))
			seen[b] = n
			t.blocks = append(t.blocks, b)
		}
		t.page[p] = n
	}
	return t, nil
}

func runes(fields []string) ([]rune, error) {
	var out []rune
	for _, f := range fields {
		n, err := strconv.ParseUint(f, 16, 21)
		if err != nil {
			return nil, err
		}
		out = append(out, rune(n))
	}
	return out, nil
}

// eachRune calls f with every rune of ranges written as in unicode.txt.
func eachRune(fields []string, f func(rune)) error {
	at := rune(0)
	for _, x := range fields {
		skip, more, _ := strings.Cut(x, "+")
		if more == "" {
			more = "0"
		}
		n, err := runes([]string{skip, more})
		if err != nil {
			return err
		}
		for r := at + n[0]; r <= at+n[0]+n[1]; r++ {
			f(r)
		}
		at += n[0] + n[1]
	}
	return nil
}

// of returns the classes of the character that text begins with and its
// length. A byte that is not UTF-8 is a character without class.
func (t *tables) of(text []byte) (uint8, int) {
	if b := text[0]; b < utf8.RuneSelf {
		return t.ascii[b], 1
	}
	r, n := utf8.DecodeRune(text)
	return t.blocks[t.page[r>>8]][r&0xff], n
}

func (t *tables) ofRune(r rune) uint8 { return t.blocks[t.page[r>>8]][r&0xff] }

const (
	hangulS, hangulL, hangulV, hangulT rune = 0xac00, 0x1100, 0x1161, 0x11a7
	lCount, vCount, tCount             rune = 19, 21, 28
	sCount                                  = lCount * vCount * tCount
)

// nfc returns text in Normalization Form C, text itself if it is already.
// Bytes that are not UTF-8 stay as they are and nothing joins over them.
// Unlike golang.org/x/text it never inserts a joiner into long runs of marks.
func (t *tables) nfc(text []byte) []byte {
	var out []byte
	done, head := 0, 0 // text[:done] is in out; a segment may begin at head
	for i := 0; i < len(text); {
		if text[i] < utf8.RuneSelf {
			head = i
			i++
			continue
		}
		c, n := t.of(text[i:])
		if c&unquiet == 0 {
			head = i
			i += n
			continue
		}
		for i < len(text) && text[i] >= utf8.RuneSelf {
			if c, n = t.of(text[i:]); c&unquiet == 0 {
				break
			}
			i += n
		}
		if r, n := utf8.DecodeRune(text[head:]); r == utf8.RuneError && n == 1 {
			head++
		}
		out = append(out, text[done:head]...)
		out = t.composed(out, text[head:i])
		done, head = i, i
	}
	if done == 0 {
		return text
	}
	return append(out, text[done:]...)
}

// composed appends a segment of valid UTF-8 in NFC.
func (t *tables) composed(dst, segment []byte) []byte {
	var rs []rune
	for len(segment) > 0 {
		r, n := utf8.DecodeRune(segment)
		rs, segment = t.decompose(rs, r), segment[n:]
	}
	for i := 0; i < len(rs); {
		j := i
		for j < len(rs) && t.class[rs[j]] != 0 {
			j++
		}
		if j > i {
			slices.SortStableFunc(rs[i:j], func(a, b rune) int { return int(t.class[a]) - int(t.class[b]) })
		}
		i = max(j, i+1)
	}
	starter, last, n := -1, uint8(0), 0
	for i, r := range rs {
		class := t.class[r]
		if starter >= 0 && (n == starter+1 || last < class && last != 0) {
			if c := t.join(rs[starter], r); c != 0 {
				rs[starter] = c
				continue
			}
		}
		if class == 0 {
			starter = n
		}
		last = class
		rs[n] = rs[i]
		n++
	}
	for _, r := range rs[:n] {
		dst = utf8.AppendRune(dst, r)
	}
	return dst
}

func (t *tables) decompose(dst []rune, r rune) []rune {
	if s := r - hangulS; s >= 0 && s < sCount {
		dst = append(dst, hangulL+s/(vCount*tCount), hangulV+s%(vCount*tCount)/tCount)
		if s%tCount != 0 {
			dst = append(dst, hangulT+s%tCount)
		}
		return dst
	}
	p, ok := t.parts[r]
	if !ok {
		return append(dst, r)
	}
	dst = t.decompose(dst, p[0])
	if p[1] != 0 {
		dst = t.decompose(dst, p[1])
	}
	return dst
}

// join returns the primary composite of two characters, 0 if there is none.
func (t *tables) join(a, b rune) rune {
	if l, v := a-hangulL, b-hangulV; l >= 0 && l < lCount && v >= 0 && v < vCount {
		return hangulS + (l*vCount+v)*tCount
	}
	if s, x := a-hangulS, b-hangulT; s >= 0 && s < sCount && s%tCount == 0 && x > 0 && x < tCount {
		return a + x
	}
	return t.compose[[2]rune{a, b}]
}
