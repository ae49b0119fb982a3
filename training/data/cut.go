package data

import (
	"bytes"
	"crypto/sha256"
	"io"
	"slices"
	"unicode/utf8"
)

// Cut returns the length of the first piece of text, at most limit ≥ 4: all of
// it if it fits, else up to and including the last line end that fits, else up
// to the last UTF-8 boundary that fits. It is 0 only for empty text.
func Cut(text []byte, limit int) int {
	if len(text) <= limit {
		return len(text)
	}
	if i := bytes.LastIndexByte(text[:limit], '\n'); i >= 0 {
		return i + 1
	}
	for n := limit; n > limit-utf8.UTFMax; n-- {
		if utf8.RuneStart(text[n]) {
			return n
		}
	}
	return limit
}

// cutReader calls emit with each piece of r until emit returns false. The
// piece is only valid during the call. buf is working space, longer than limit.
func cutReader(r io.Reader, buf []byte, limit int, emit func([]byte) bool) error {
	have, eof := 0, false
	for {
		for !eof && have < len(buf) {
			n, err := r.Read(buf[have:])
			have += n
			if err == io.EOF {
				eof = true
			} else if err != nil {
				return err
			}
		}
		at := 0
		for have-at > limit || eof && at < have {
			n := Cut(buf[at:have], limit)
			if !emit(buf[at : at+n]) {
				return nil
			}
			at += n
		}
		if eof {
			return nil
		}
		have = copy(buf, buf[at:have])
	}
}

// collector keeps the pieces with the smallest hashes: in ascending order of
// hash, without repeats, as many as fit into maxBytes and MaxPieces. What it
// keeps does not depend on the order in which pieces come, and collecting in
// parts and merging gives the same, since a piece that fits among all fits
// among some.
type collector struct {
	maxBytes int64
	pieces   []piece
	bytes    int64
	full     bool
	limit    [32]byte // if full: this hash and those above are out
}

// add takes a piece; text is copied if it is kept.
func (c *collector) add(text []byte) {
	h := sha256.Sum256(text)
	if c.out(h) {
		return
	}
	c.keep(piece{h, bytes.Clone(text)})
}

func (c *collector) out(h [32]byte) bool {
	return c.full && bytes.Compare(h[:], c.limit[:]) >= 0
}

func (c *collector) keep(p piece) {
	c.pieces = append(c.pieces, p)
	c.bytes += int64(len(p.text))
	if c.bytes > c.maxBytes+c.maxBytes/4 || len(c.pieces) > MaxPieces+MaxPieces/4 {
		c.prune()
	}
}

// prune sorts, drops repeats and everything from the first piece that does not
// fit.
func (c *collector) prune() {
	slices.SortFunc(c.pieces, func(a, b piece) int { return bytes.Compare(a.hash[:], b.hash[:]) })
	c.pieces = slices.CompactFunc(c.pieces, func(a, b piece) bool { return a.hash == b.hash })
	c.bytes = 0
	for i, p := range c.pieces {
		if i == MaxPieces || c.bytes+int64(len(p.text)) > c.maxBytes {
			c.full, c.limit = true, p.hash
			clear(c.pieces[i:])
			c.pieces = c.pieces[:i]
			return
		}
		c.bytes += int64(len(p.text))
	}
}

// merge takes over the pieces of another collector with the same bound.
func (c *collector) merge(o *collector) {
	for _, p := range o.pieces {
		if !c.out(p.hash) {
			c.keep(p)
		}
	}
}
