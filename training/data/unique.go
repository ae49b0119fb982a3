package data

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
)

// unique leaves out of the held-out windows those whose text also occurs in a
// train piece, at any offset, and all but the first of those with equal text:
// what was seen in training measures memory, and what is there twice counts
// double (licence headers, tables).
//
// The train text is scanned once with a rolling hash modulo 2⁶¹ − 1 whose base
// comes from the dataset's own digest; a hit is confirmed by comparing bytes,
// so the result depends on the text alone.
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
		roll.scan(d.pieces[i].text, func(at int, h uint64) {
			if !filter.has(h) {
				return
			}
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

const mersenne61 = 1<<61 - 1

func mulmod(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return addmod(lo&mersenne61, hi<<3|lo>>61)
}

func addmod(a, b uint64) uint64 {
	if a += b; a >= mersenne61 {
		a -= mersenne61
	}
	return a
}

// roller computes polynomial hashes of all windows of a text.
type roller struct {
	window int
	base   uint64
	drop   [256]uint64 // −(c+1)·base^window for each byte c that leaves
}

func newRoller(digest [32]byte, window int) *roller {
	r := &roller{window: window, base: binary.LittleEndian.Uint64(digest[:])%(mersenne61-256) + 256}
	pow := uint64(1)
	for range window {
		pow = mulmod(pow, r.base)
	}
	for c := range uint64(256) {
		r.drop[c] = mersenne61 - mulmod(c+1, pow)
	}
	return r
}

func (r *roller) sum(b []byte) uint64 {
	var h uint64
	for _, c := range b {
		h = addmod(mulmod(h, r.base), uint64(c)+1)
	}
	return h
}

// scan calls visit with the offset and the hash of every window of text.
func (r *roller) scan(text []byte, visit func(at int, h uint64)) {
	if len(text) < r.window {
		return
	}
	h := r.sum(text[:r.window])
	visit(0, h)
	for i := r.window; i < len(text); i++ {
		in := addmod(uint64(text[i])+1, r.drop[text[i-r.window]])
		h = addmod(mulmod(h, r.base), in)
		visit(i-r.window+1, h)
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
