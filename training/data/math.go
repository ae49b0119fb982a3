package data

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strconv"
)

// generator makes the pieces of an endless dataset. It is safe for concurrent
// use and its pieces are a function of its seed and their number alone.
type generator interface {
	// piece is piece number i < 2⁴⁰, minPiece() to MaxPiece bytes. The caller
	// owns it.
	piece(i uint64) piece
	minPiece() int
}

func openGenerator(r GeneratorRef) (generator, error) {
	if r.Name == mathName && r.Version == mathVersion {
		return &mathGenerator{r.Seed}, nil
	}
	return nil, fmt.Errorf("%w: %q version %d; this build has %q version %d", ErrGenerator, r.Name, r.Version, mathName, mathVersion)
}

const (
	mathName    = "math"
	mathVersion = 1

	mathMinPiece = 1024
	mathSpread   = 960 // a piece ends with the line that reaches 1024 + below(960)
	mathKinds    = 12
)

// Math is the endless domain of solved exercises, one per line.
func Math(seed [32]byte) (*Dataset, error) {
	return fromRecord(Record{
		Name: Maths, Kind: KindGenerator, HeldOut: defaultHeldOut,
		Generator: GeneratorRef{Name: mathName, Version: mathVersion, Seed: seed},
	}, nil)
}

type mathGenerator struct{ seed [32]byte }

func (g *mathGenerator) minPiece() int { return mathMinPiece }

func (g *mathGenerator) piece(i uint64) piece {
	m := mathWriter{stream: stream{key: deriveKey(labelMath, g.seed[:], i)}, out: make([]byte, 0, 2048)}
	size := mathMinPiece + int(m.below(mathSpread))
	for len(m.out) < size {
		m.line(m.below(mathKinds))
	}
	return piece{sha256.Sum256(m.out), m.out}
}

type mathWriter struct {
	stream
	out []byte
}

// number has 1 to digits decimal digits, each count equally likely.
func (m *mathWriter) number(digits uint64) int {
	low, high := uint64(0), uint64(10)
	for range m.below(digits) {
		low, high = high, high*10
	}
	return int(low + m.below(high-low))
}

// between is uniform in [low, high].
func (m *mathWriter) between(low, high int) int { return low + int(m.below(uint64(high-low+1))) }

// put appends strings and ints as they are.
func (m *mathWriter) put(parts ...any) {
	for _, p := range parts {
		switch v := p.(type) {
		case string:
			m.out = append(m.out, v...)
		case int:
			m.out = strconv.AppendInt(m.out, int64(v), 10)
		}
	}
}

// row puts each number after a space.
func (m *mathWriter) row(numbers []int) {
	for _, n := range numbers {
		m.put(" ", n)
	}
}

// line writes one exercise with its answer; docs/spec/data.md has the table.
// The order of draws within a line is part of the format.
func (m *mathWriter) line(kind uint64) {
	switch kind {
	case 0:
		a, b := m.number(3), m.number(3)
		m.put(a, " + ", b, " = ", a+b)
	case 1:
		a, b := m.number(3), m.number(3)
		a, b = max(a, b), min(a, b)
		m.put(a, " - ", b, " = ", a-b)
	case 2:
		a, b := m.number(3), m.number(2)
		m.put(a, " * ", b, " = ", a*b)
	case 3:
		b, q := m.between(2, 12), m.number(2)
		r := m.between(0, b-1)
		m.put(b*q+r, " / ", b, " = ", q, " r ", r)
	case 4:
		a, b := m.number(3), m.number(3)
		sign := [...]string{" < ", " = ", " > "}[sgn(a, b)+1]
		m.put(a, sign, b)
	case 5:
		k, x, c := m.between(2, 9), m.between(0, 20), m.between(1, 50)
		m.put(k, "x + ", c, " = ", k*x+c, ", x = ", x)
	case 6:
		step, a := m.between(2, 12), m.number(2)
		m.put("add ", step, ":")
		for i := range 6 {
			m.put(" ", a+i*step)
		}
	case 7:
		ratio, a := m.between(2, 5), m.between(1, 9)
		m.put("times ", ratio, ":")
		for range 5 {
			m.put(" ", a)
			a *= ratio
		}
	case 8:
		a, b := m.between(1, 9), m.between(1, 9)
		m.put("fib:")
		for range 7 {
			m.put(" ", a)
			a, b = b, a+b
		}
	case 9:
		list := m.list()
		m.put("sort")
		m.row(list)
		m.put(" =")
		slices.Sort(list)
		m.row(list)
	case 10:
		a := m.number(3)
		m.put("count:")
		for i := range 8 {
			m.put(" ", a+i)
		}
	case 11:
		list := m.list()
		m.put("max")
		m.row(list)
		m.put(" = ", slices.Max(list))
	}
	m.put("\n")
}

// list is 3 to 6 numbers of 1 or 2 digits.
func (m *mathWriter) list() []int {
	list := make([]int, m.between(3, 6))
	for i := range list {
		list[i] = m.number(2)
	}
	return list
}

func sgn(a, b int) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
