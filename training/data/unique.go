package data

import (
	"bytes"
	"crypto/sha256"
	"math/bits"
	"math/rand/v2"
)

// unique leaves out of the held-out windows those whose text also occurs in a
// train piece, at any offset, and all but the first of those with equal text:
// what was seen in training measures memory, and what is there twice counts
// double (licence headers, tables).
//
// The train text is scanned once with a rolling hash whose table comes from the
// dataset's own digest; a hit is confirmed by comparing bytes, so the result
// depends on the text alone.
func (d *Dataset) unique(held []ref, window int) []ref {
	if len(held) == 0 {
		return nil
	}
	text := func(r ref) []byte { return d.pieces[r.piece].text[r.offset : int(r.offset)+window] }

	seen := make(map[[32]byte]struct{}, len(held))
	left := make([]ref, 0, len(held))
	for _, r := range held {
		h := sha256.Sum256(text(r))
		if _, dup := seen[h]; !dup {
			seen[h] = struct{}{}
			left = append(left, r)
		}
	}

	roll := newRoller(d.digest, window)
	byHash := make(map[uint64][]int32, len(left))
	filter := newFilter(len(left))
	for i, r := range left {
		h := roll.sum(text(r))
		byHash[h] = append(byHash[h], int32(i))
		filter.add(h)
	}
	gone := make([]bool, len(left))
	for i := range d.pieces {
		if PoolOf(d.pieces[i].hash, d.rec.HeldOut) == HeldOut {
			continue
		}
		roll.scan(d.pieces[i].text, filter, func(at int, h uint64) {
			for _, j := range byHash[h] {
				if !gone[j] && bytes.Equal(text(left[j]), d.pieces[i].text[at:at+window]) {
					gone[j] = true
				}
			}
		})
	}
	out := left[:0]
	for i, r := range left {
		if !gone[i] {
			out = append(out, r)
		}
	}
	return out
}

// roller computes hashes of all windows of a text: of a window of n bytes c,
// the exclusive or of rotl(table[c_i], n−1−i) (cyclic polynomials, Cohen 1997).
type roller struct {
	window   int
	in, drop [256]uint64 // of the byte that comes, and of the one that leaves
}

func newRoller(digest [32]byte, window int) *roller {
	r := &roller{window: window}
	random := rand.NewChaCha8(digest)
	for c := range r.in {
		r.in[c] = random.Uint64()
		r.drop[c] = bits.RotateLeft64(r.in[c], window)
	}
	return r
}

func (r *roller) sum(b []byte) uint64 {
	var h uint64
	for _, c := range b {
		h = bits.RotateLeft64(h, 1) ^ r.in[c]
	}
	return h
}

// scan calls visit with the offset and the hash of every window of text that
// the filter does not exclude.
func (r *roller) scan(text []byte, f *filter, visit func(at int, h uint64)) {
	if len(text) < r.window {
		return
	}
	h := r.sum(text[:r.window])
	if f.has(h) {
		visit(0, h)
	}
	past := text[:len(text)-r.window]
	for i, c := range text[r.window:] {
		h = bits.RotateLeft64(h, 1) ^ r.in[c] ^ r.drop[past[i]]
		if f.has(h) {
			visit(i+1, h)
		}
	}
}

// filter answers "certainly not" for most hashes without a map lookup.
type filter struct {
	bits []uint64
	mask uint64
}

func newFilter(n int) *filter {
	words := 1 << bits.Len(uint(n)) // 64 to 128 bits per entry
	return &filter{make([]uint64, words), uint64(words)*64 - 1}
}

func (f *filter) add(h uint64)      { h &= f.mask; f.bits[h>>6] |= 1 << (h & 63) }
func (f *filter) has(h uint64) bool { h &= f.mask; return f.bits[h>>6]>>(h&63)&1 != 0 }
