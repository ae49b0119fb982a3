package tokenizer

import (
	"bytes"
	"container/heap"
	"fmt"
	"unicode/utf8"
)

// bpe is the model: it turns a word into tokens by merging neighbours, the
// merge that was learnt first before others, of equal ones the leftmost.
type bpe struct {
	vocab        map[string]int32
	merges       map[uint64]merge
	ignoreMerges bool

	// Byte-level: the token of a byte, and of a whole word, for ignoreMerges.
	byteLevel bool
	byteIDs   [256]int32
	whole     map[string]int32

	// Else: of a character, with what stands for one that is not there.
	chars        map[rune]int32
	unk          int32 // -1: none
	fuseUnk      bool
	byteFallback bool
	fallback     [256]int32 // -1: none

	// cut, if not 0, is a character before which a word may be cut without
	// changing its tokens, unless one of cutAfter precedes it: no merge joins
	// the two.
	cut      rune
	cutAfter map[rune]bool
}

type merge struct{ rank, id int32 }

func pair(a, b int32) uint64 { return uint64(uint32(a))<<32 | uint64(uint32(b)) }

// scratch is what one encoding needs; it is reused, by one caller at a time.
type scratch struct {
	cache map[string]span
	ids   []int32 // of cache
	sym   []int32
	rank  []int32
	next  []int32
	prev  []int32
	queue queue
}

type span struct{ at, n int32 }

const (
	cacheWords  = 1 << 16
	cacheLength = 64 // of the longest word kept, in bytes
	longWord    = 64 // symbols; longer ones use the queue
)

func newScratch() *scratch { return &scratch{cache: map[string]span{}} }

// word appends the tokens of a word.
func (m *bpe) word(s *scratch, w []byte, dst []int32) []int32 {
	if m.cut == 0 {
		return m.segment(s, w, dst)
	}
	start := 0
	sep := []byte(string(m.cut))
	for at := 0; ; {
		i := bytes.Index(w[at:], sep)
		if i < 0 {
			return m.segment(s, w[start:], dst)
		}
		at += i
		if at > start {
			r, n := utf8.DecodeLastRune(w[:at])
			if _, known := m.chars[r]; known && !m.cutAfter[r] && (r != utf8.RuneError || n > 1) {
				dst = m.segment(s, w[start:at], dst)
				start = at
			}
		}
		at += len(sep)
	}
}

func (m *bpe) segment(s *scratch, w []byte, dst []int32) []int32 {
	if len(w) == 0 {
		return dst
	}
	if p, ok := s.cache[string(w)]; ok {
		return append(dst, s.ids[p.at:p.at+p.n]...)
	}
	n := len(dst)
	dst = m.merged(s, w, dst)
	if len(w) <= cacheLength && len(s.cache) < cacheWords {
		s.cache[string(w)] = span{int32(len(s.ids)), int32(len(dst) - n)}
		s.ids = append(s.ids, dst[n:]...)
	}
	return dst
}

func (m *bpe) merged(s *scratch, w []byte, dst []int32) []int32 {
	if m.ignoreMerges {
		if id, ok := m.whole[string(w)]; ok {
			return append(dst, id)
		}
	}
	s.sym = s.sym[:0]
	if m.byteLevel {
		for _, b := range w {
			s.sym = append(s.sym, m.byteIDs[b])
		}
	} else {
		m.symbols(s, w)
	}
	if len(s.sym) > longWord {
		return m.mergeLong(s, dst)
	}
	return m.mergeShort(s, dst)
}

// symbols puts the tokens of single characters into s.sym.
func (m *bpe) symbols(s *scratch, w []byte) {
	unk := false // one is pending
	flush := func() {
		if unk {
			s.sym = append(s.sym, m.unk)
			unk = false
		}
	}
	for i := 0; i < len(w); {
		r, n := utf8.DecodeRune(w[i:])
		c := w[i : i+n]
		i += n
		if r != utf8.RuneError || n > 1 {
			if id, ok := m.chars[r]; ok {
				flush()
				s.sym = append(s.sym, id)
				continue
			}
		}
		if m.byteFallback && m.falls(c) {
			for _, b := range c { // a pending unk stays pending, as in the reference
				s.sym = append(s.sym, m.fallback[b])
			}
			continue
		}
		if !m.fuseUnk {
			flush()
		}
		unk = true
	}
	flush()
}

func (m *bpe) falls(c []byte) bool {
	for _, b := range c {
		if m.fallback[b] < 0 {
			return false
		}
	}
	return true
}

const noRank = int32(1<<31 - 1)

func (m *bpe) rankOf(a, b int32) int32 {
	if x, ok := m.merges[pair(a, b)]; ok {
		return x.rank
	}
	return noRank
}

func (m *bpe) mergeShort(s *scratch, dst []int32) []int32 {
	sym := s.sym
	s.rank = s.rank[:0]
	for i := 0; i+1 < len(sym); i++ {
		s.rank = append(s.rank, m.rankOf(sym[i], sym[i+1]))
	}
	rank := s.rank
	for {
		best, at := noRank, -1
		for i, r := range rank {
			if r < best {
				best, at = r, i
			}
		}
		if at < 0 {
			return append(dst, sym...)
		}
		sym[at] = m.merges[pair(sym[at], sym[at+1])].id
		sym = append(sym[:at+1], sym[at+2:]...)
		rank = append(rank[:at], rank[at+1:]...)
		if at < len(rank) {
			rank[at] = m.rankOf(sym[at], sym[at+1])
		}
		if at > 0 {
			rank[at-1] = m.rankOf(sym[at-1], sym[at])
		}
	}
}

type candidate struct{ rank, at, a, b int32 }

type queue []candidate

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return q[i].rank < q[j].rank || q[i].rank == q[j].rank && q[i].at < q[j].at
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(candidate)) }
func (q *queue) Pop() any {
	x := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return x
}

func (m *bpe) mergeLong(s *scratch, dst []int32) []int32 {
	sym, n := s.sym, int32(len(s.sym))
	s.next, s.prev, s.queue = s.next[:0], s.prev[:0], s.queue[:0]
	for i := range n {
		s.next, s.prev = append(s.next, i+1), append(s.prev, i-1)
		if i+1 < n {
			if r := m.rankOf(sym[i], sym[i+1]); r != noRank {
				s.queue = append(s.queue, candidate{r, i, sym[i], sym[i+1]})
			}
		}
	}
	heap.Init(&s.queue)
	push := func(i, j int32) {
		if r := m.rankOf(sym[i], sym[j]); r != noRank {
			heap.Push(&s.queue, candidate{r, i, sym[i], sym[j]})
		}
	}
	for len(s.queue) > 0 {
		c := heap.Pop(&s.queue).(candidate)
		i := c.at
		if sym[i] != c.a || s.next[i] >= n || sym[s.next[i]] != c.b {
			continue
		}
		j := s.next[i]
		sym[i] = m.merges[pair(c.a, c.b)].id
		sym[j] = -1
		s.next[i] = s.next[j]
		if s.next[j] < n {
			s.prev[s.next[j]] = i
			push(i, s.next[j])
		}
		if s.prev[i] >= 0 {
			push(s.prev[i], i)
		}
	}
	for _, id := range sym {
		if id >= 0 {
			dst = append(dst, id)
		}
	}
	return dst
}

// finish prepares what follows from the vocabulary and the merges, which
// readModel has filled in. It returns the field that is at fault.
func (m *bpe) finish(merged []string) (field string, err error) {
	if m.byteLevel {
		m.whole = make(map[string]int32, len(m.vocab))
		for t, id := range m.vocab {
			if raw, ok := rawBytes(t); ok {
				m.whole[string(raw)] = id
			}
		}
		for b := range 256 {
			id, ok := m.whole[string([]byte{byte(b)})]
			if !ok {
				return "model.vocab", fmt.Errorf("has no token for byte %#02x, %s: text with it would be lost", b, quote(string(runeOf(b))))
			}
			m.byteIDs[b] = id
		}
		return "", nil
	}
	m.whole = m.vocab
	m.chars = map[rune]int32{}
	for t, id := range m.vocab {
		if r, n := utf8.DecodeRuneInString(t); n == len(t) && n > 0 {
			m.chars[r] = id
		}
	}
	all := m.byteFallback
	for b := range m.fallback {
		id, ok := m.vocab[fmt.Sprintf("<0x%02X>", b)]
		if !ok {
			id, all = -1, false
		}
		m.fallback[b] = id
	}
	if !all && m.unk < 0 {
		return "model.unk_token", fmt.Errorf("is null and there are not all 256 tokens <0x00> to <0xFF> with byte_fallback: characters outside the vocabulary would be lost")
	}
	// Byte tokens and unk are not the text they stand for, so that cutting is
	// only safe where the character before is in the vocabulary itself.
	if _, ok := m.chars[metaspace]; ok && !m.ignoreMerges {
		m.cut, m.cutAfter = metaspace, map[rune]bool{}
		for _, t := range merged {
			last := rune(-1)
			for _, r := range t {
				if r == metaspace && last >= 0 {
					m.cutAfter[last] = true
				}
				last = r
			}
		}
	}
	return "", nil
}

// metaspace is the character that SentencePiece puts for a space.
const metaspace = '▁'

// rawBytes returns the bytes that a byte-level token stands for.
func rawBytes(token string) ([]byte, bool) {
	out := make([]byte, 0, len(token))
	for _, r := range token {
		b, ok := byteOf(r)
		if !ok {
			return nil, false
		}
		out = append(out, b)
	}
	return out, true
}

// byteOf inverts runeOf.
func byteOf(r rune) (byte, bool) {
	switch {
	case r >= '!' && r <= '~', r >= 0xa1 && r <= 0xac, r >= 0xae && r <= 0xff:
		return byte(r), true
	case r >= 0x100 && r <= 0x120:
		return byte(r - 0x100), true
	case r >= 0x121 && r <= 0x142:
		return byte(r - 0x121 + 0x7f), true
	case r == 0x143:
		return 0xad, true
	}
	return 0, false
}
