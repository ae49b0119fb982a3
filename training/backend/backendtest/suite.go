package backendtest

import (
	"math"
	"testing"

	"github.com/blockzero-net/bzd/training/backend"
)

// Options say what a backend claims.
type Options struct {
	// Exact backends implement docs/spec/exact.md to the bit.
	Exact bool
	// Tolerance is the largest error of a value relative to the largest magnitude of its tensor; 0 means 2e-6, which
	// float32 with any order of summation keeps.
	Tolerance float64
}

// RunAll runs the suite as subtests.
func RunAll(t *testing.T, b backend.Backend, opts Options) {
	if opts.Tolerance == 0 {
		opts.Tolerance = 2e-6
	}
	sections := []struct {
		name string
		run  func(l *lab)
	}{
		{"Memory", testMemory},
		{"Linear", testLinear},
		{"RMSNorm", testRMSNorm},
		{"HeadNormRope", testHeadNormRope},
		{"Attention", testAttention},
		{"Mixture", testMixture},
		{"Routing", testRouting},
		{"Embed", testEmbed},
		{"CrossEntropy", testCrossEntropy},
		{"AdamW", testAdamW},
		{"SumSquares", testSumSquares},
		{"Refresh", testRefresh},
		{"Composition", testComposition},
		{"Concurrency", testConcurrency},
		{"Digests", testDigests},
		{"Block", testBlock},
	}
	for _, s := range sections {
		t.Run(s.name, func(t *testing.T) {
			l := newLab(t, b, opts)
			s.run(l)
			l.verify()
		})
	}
}

// guard is what surrounds every buffer: a quiet NaN, so that a value read by mistake shows in the result.
const (
	guard   = 0x7fc0beef
	guarded = 24
)

// lab gives buffers out and checks afterwards that only what may change did.
type lab struct {
	*testing.T
	b    backend.Backend
	opts Options
	rand *source
	held []held
}

type held struct {
	whole  backend.Buffer
	off, n int
	input  []float32 // not nil: must still have these values
}

func newLab(t *testing.T, b backend.Backend, opts Options) *lab {
	return &lab{T: t, b: b, opts: opts, rand: newSource(1)}
}

func (l *lab) place(v []float32, input bool) backend.Buffer {
	off := 1 + len(l.held)%(guarded-1)
	all := make([]float32, len(v)+2*guarded)
	for i := range all {
		all[i] = math.Float32frombits(guard)
	}
	copy(all[off:], v)
	h := held{whole: l.b.Alloc(len(all)), off: off, n: len(v)}
	if input {
		h.input = v
	}
	l.b.Write(h.whole, all)
	l.held = append(l.held, h)
	return h.whole.Slice(off, len(v))
}

// in returns a buffer of values that no operation may change.
func (l *lab) in(v []float32) backend.Buffer { return l.place(v, true) }

// inout returns a buffer of values that may change.
func (l *lab) inout(v []float32) backend.Buffer { return l.place(v, false) }

// out returns a buffer full of NaN, for results that are set.
func (l *lab) out(n int) backend.Buffer {
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(math.NaN())
	}
	return l.place(v, false)
}

func (l *lab) read(b backend.Buffer) []float32 {
	v := make([]float32, b.Len())
	l.b.Read(v, b)
	return v
}

// weight prepares a matrix that no operation may change.
func (l *lab) weight(v []float32, out, in int) backend.Weight { return l.b.Prepare(l.in(v), out, in) }

// sync waits for results that come late.
func (l *lab) sync() {
	l.Helper()
	if err := l.b.Sync(); err != nil {
		l.Fatalf("Sync: %v", err)
	}
}

// verify checks guards and inputs of all buffers given out, and forgets them.
func (l *lab) verify() {
	l.Helper()
	if err := l.b.Sync(); err != nil {
		l.Errorf("Sync: %v", err)
	}
	for _, h := range l.held {
		all := l.read(h.whole)
		for i, x := range all {
			inside := i >= h.off && i < h.off+h.n
			if !inside && math.Float32bits(x) != guard {
				l.Errorf("a value outside a buffer was written: %d of %d", i-h.off, h.n)
				break
			}
			if inside && h.input != nil && math.Float32bits(x) != math.Float32bits(h.input[i-h.off]) {
				l.Errorf("an input was changed: value %d of %d is %v, was %v", i-h.off, h.n, x, h.input[i-h.off])
				break
			}
		}
	}
	l.held = nil
}

// near compares a result with its float64 reference.
func (l *lab) near(name string, got []float32, want []float64) {
	l.Helper()
	if len(got) != len(want) {
		l.Fatalf("%s: %d values, want %d", name, len(got), len(want))
	}
	var size, worst float64
	at := -1
	for _, w := range want {
		size = math.Max(size, math.Abs(w))
	}
	for i, w := range want {
		if d := math.Abs(float64(got[i]) - w); !(d <= worst) {
			worst, at = d, i
		}
	}
	if !(worst <= l.opts.Tolerance*size+1e-30) {
		l.Errorf("%s: value %d of %d is %v, reference %v (off by %.2g of the largest)", name, at, len(want), got[at], want[at], worst/size)
	}
}

// same compares bits, or for a backend that is not exact, values.
func (l *lab) same(name string, got, want []float32) {
	l.Helper()
	if !l.opts.Exact {
		l.near(name, got, wide(want))
		return
	}
	l.identical(name, got, want)
}

// identical compares bits.
func (l *lab) identical(name string, got, want []float32) {
	l.Helper()
	if len(got) != len(want) {
		l.Fatalf("%s: %d values, want %d", name, len(got), len(want))
	}
	for i := range want {
		if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
			l.Errorf("%s: value %d of %d is %v (%08x), want %v (%08x)", name, i, len(want), got[i], math.Float32bits(got[i]), want[i], math.Float32bits(want[i]))
			return
		}
	}
}

func wide(v []float32) []float64 {
	w := make([]float64, len(v))
	for i, x := range v {
		w[i] = float64(x)
	}
	return w
}

// source is splitmix64. The digests depend on it, so it is written out here.
type source struct{ state uint64 }

func newSource(seed uint64) *source { return &source{seed} }

func (s *source) next() uint64 {
	s.state += 0x9e3779b97f4a7c15
	z := s.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// intn returns a number from 0 to n−1.
func (s *source) intn(n int) int { return int(s.next() >> 32 % uint64(n)) }

// value returns a multiple of 2⁻²³ in [−1, 1).
func (s *source) value() float32 { return float32(int32(s.next()>>40)-1<<23) / (1 << 23) }

// values returns n values times a; a power of two keeps them exact.
func (s *source) values(n int, a float32) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = s.value() * a
	}
	return v
}

// ids returns n numbers below limit.
func (s *source) ids(n, limit int) []int32 {
	v := make([]int32, n)
	for i := range v {
		v[i] = int32(s.intn(limit))
	}
	return v
}
