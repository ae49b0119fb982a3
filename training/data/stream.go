package data

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
)

// Domain separation labels; see docs/spec/data.md.
const (
	labelSample      = "bzd/sample/1"
	labelDraw        = "bzd/draw/1"
	labelOrder       = "bzd/order/1"
	labelOrderWindow = "bzd/order-window/1"
	labelMath        = "bzd/math/1"
	labelMathSeed    = "bzd/math-seed/1"
)

// deriveKey is SHA-256(label ‖ fixed ‖ LE64(numbers[0]) ‖ …).
func deriveKey(label string, fixed []byte, numbers ...uint64) [32]byte {
	b := make([]byte, 0, 128)
	b = append(b, label...)
	b = append(b, fixed...)
	for _, n := range numbers {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return sha256.Sum256(b)
}

// word is number c of the stream of key: the first 8 bytes, little endian, of
// SHA-256(key ‖ LE64(c)).
func word(key *[32]byte, c uint64) uint64 {
	var b [40]byte
	copy(b[:], key[:])
	binary.LittleEndian.PutUint64(b[32:], c)
	h := sha256.Sum256(b[:])
	return binary.LittleEndian.Uint64(h[:])
}

// stream reads the words of a key in order.
type stream struct {
	key [32]byte
	ctr uint64
}

// below returns a uniform integer in [0, n), n > 0: words of 2⁶⁴ − (2⁶⁴ mod n)
// or more are skipped, the first other one is taken modulo n.
func (s *stream) below(n uint64) uint64 {
	over := -n % n // 2⁶⁴ mod n
	for {
		x := word(&s.key, s.ctr)
		s.ctr++
		if over == 0 || x < -over {
			return x % n
		}
	}
}

// permutation is a keyed bijection of [0, n): an 8-round balanced Feistel
// network over the smallest 2^2h ≥ n, walked until it lands below n.
type permutation struct {
	key [32]byte
	n   uint64
	h   uint
}

const feistelRounds = 8

// newPermutation requires 1 ≤ n ≤ 2⁶².
func newPermutation(key [32]byte, n uint64) permutation {
	h := uint(bits.Len64(n-1)+1) / 2
	return permutation{key: key, n: n, h: max(h, 1)}
}

// at requires x < n.
func (p *permutation) at(x uint64) uint64 {
	mask := uint64(1)<<p.h - 1
	for {
		l, r := x>>p.h, x&mask
		for round := range uint64(feistelRounds) {
			l, r = r, l^word(&p.key, round<<32|r)&mask
		}
		if x = l<<p.h | r; x < p.n {
			return x
		}
	}
}
