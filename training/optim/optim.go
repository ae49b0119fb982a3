package optim

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/blockzero-net/bzd/training/backend"
)

// Param is one run of values with its gradient.
type Param struct {
	Name        string
	Value, Grad backend.Buffer
}

// Config are the constants of AdamW.
type Config struct {
	Beta1, Beta2 float64 // decay of the first and second moment
	Eps          float64 // added to the root of the second moment
	Decay        float64 // decoupled weight decay, multiplied by the learning rate
	Clip         float64 // largest global norm of the gradient; 0 means no clipping
	// Half keeps the moments in bfloat16, rounded as docs/spec/exact.md says: half the memory, other bits.
	Half bool
}

// Defaults are the constants used for genesis and by miners unless told otherwise.
func Defaults() Config { return Config{Beta1: 0.9, Beta2: 0.95, Eps: 1e-8, Decay: 0, Clip: 1} }

// Validate reports every fault at once.
func (c Config) Validate() error {
	var faults []error
	check := func(ok bool, field string, v float64, want string) {
		if !ok {
			faults = append(faults, fmt.Errorf("optim: %s is %v, must be %s", field, v, want))
		}
	}
	check(c.Beta1 >= 0 && c.Beta1 < 1, "Beta1", c.Beta1, "at least 0 and below 1")
	check(c.Beta2 > 0 && c.Beta2 < 1, "Beta2", c.Beta2, "between 0 and 1")
	check(float32(c.Eps) > 0, "Eps", c.Eps, "above 0 as a float32, it keeps the step finite")
	check(c.Decay >= 0 && c.Decay < 1, "Decay", c.Decay, "at least 0 and below 1")
	check(c.Clip >= 0, "Clip", c.Clip, "at least 0")
	check(!c.Half || c.Beta1 <= halfBeta, "Beta1", c.Beta1, "at most 0.98 with moments in bfloat16, which would not decay")
	check(!c.Half || c.Beta2 <= halfBeta, "Beta2", c.Beta2, "at most 0.98 with moments in bfloat16, which would not decay")
	return errors.Join(faults...)
}

// halfBeta is the slowest decay of moments in bfloat16. A factor within 2⁻⁸ of 1 is rounded away, and one near that loses
// much of what it should decay by.
const halfBeta = 0.98

// AdamW holds the moments. It is for one goroutine.
type AdamW struct {
	Config
	b              backend.Backend
	params         []Param
	grads, m, v    []backend.Buffer
	half           backend.HalfMoments // nil unless Config.Half
	halfM, halfV   [][]uint16          // instead of m and v
	steps          int
	power1, power2 float64 // β₁ᵗ and β₂ᵗ
}

// New starts with zero moments.
func New(b backend.Backend, c Config, params []Param) (*AdamW, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	o := &AdamW{Config: c, b: b, params: params, power1: 1, power2: 1}
	if c.Half {
		var ok bool
		if o.half, ok = b.(backend.HalfMoments); !ok {
			return nil, fmt.Errorf("optim: moments in bfloat16: %w (%s); keep them in float32", backend.ErrUnsupported, b.Name())
		}
	}
	for _, p := range params {
		o.grads = append(o.grads, p.Grad)
		if c.Half {
			o.halfM, o.halfV = append(o.halfM, make([]uint16, p.Value.Len())), append(o.halfV, make([]uint16, p.Value.Len()))
			continue
		}
		o.m, o.v = append(o.m, b.Alloc(p.Value.Len())), append(o.v, b.Alloc(p.Value.Len()))
	}
	return o, nil
}

// Step moves every parameter against its gradient and returns the gradient's global norm before clipping. A norm that
// is not finite moves nothing.
func (o *AdamW) Step(lr float64) (norm float64) {
	for _, s := range o.b.SumSquares(o.grads) {
		norm += float64(s)
	}
	norm = math.Sqrt(norm)
	if math.IsNaN(norm) || math.IsInf(norm, 0) {
		return norm
	}
	o.steps++
	o.power1 = float64(o.power1 * o.Beta1)
	o.power2 = float64(o.power2 * o.Beta2)
	h := backend.AdamW{
		Clip: 1, Beta1: float32(o.Beta1), One1: float32(1 - o.Beta1), Beta2: float32(o.Beta2), One2: float32(1 - o.Beta2),
		Step: float32(lr / (1 - o.power1)), Root: float32(1 / math.Sqrt(1-o.power2)), Eps: float32(o.Eps), Decay: float32(lr * o.Decay),
	}
	if o.Clip > 0 && norm > o.Clip {
		h.Clip = float32(o.Clip / norm)
	}
	for i, p := range o.params {
		if o.Half {
			o.half.AdamWHalf(p.Value, o.halfM[i], o.halfV[i], p.Grad, h)
		} else {
			o.b.AdamW(p.Value, o.m[i], o.v[i], p.Grad, h)
		}
	}
	return norm
}

// State is everything a continued run needs besides the parameters: the step count and both moments, concatenated in the
// order of the parameters.
type State struct {
	Steps        int
	M, V         []float32 // nil if they are kept in bfloat16
	HalfM, HalfV []uint16  // bfloat16 values; nil unless they are kept so
}

// Half reports whether the moments are in bfloat16.
func (s State) Half() bool { return s.M == nil && s.HalfM != nil }

// Len is the number of values of either moment, -1 if the two differ or are of two kinds.
func (s State) Len() int {
	switch m, h := len(s.M), len(s.HalfM); {
	case m != len(s.V) || h != len(s.HalfV) || m > 0 && h > 0:
		return -1
	default:
		return m + h
	}
}

// Second gives the second moments from that value on in float32.
func (s State) Second(dst []float32, from int) {
	if !s.Half() {
		copy(dst, s.V[from:])
		return
	}
	for i := range dst {
		dst[i] = math.Float32frombits(uint32(s.HalfV[from+i]) << 16)
	}
}

// State reads the state out.
func (o *AdamW) State() State {
	if o.Half {
		return State{Steps: o.steps, HalfM: slices.Concat(o.halfM...), HalfV: slices.Concat(o.halfV...)}
	}
	return State{Steps: o.steps, M: join(o.b, o.m), V: join(o.b, o.v)}
}

// Restore puts a state back. It refuses one of another size or kind.
func (o *AdamW) Restore(s State) error {
	n := 0
	for _, p := range o.params {
		n += p.Value.Len()
	}
	switch {
	case s.Len() != n || s.Steps < 0:
		return fmt.Errorf("optim: state of %d and %d moments after %d steps, parameters have %d values",
			len(s.M)+len(s.HalfM), len(s.V)+len(s.HalfV), s.Steps, n)
	case n > 0 && s.Half() != o.Half:
		kind := map[bool]string{false: "float32", true: "bfloat16"}
		return fmt.Errorf("optim: state with moments in %s, this optimizer keeps them in %s", kind[s.Half()], kind[o.Half])
	}
	if o.Half {
		at := 0
		for i := range o.halfM {
			copy(o.halfM[i], s.HalfM[at:])
			copy(o.halfV[i], s.HalfV[at:])
			at += len(o.halfM[i])
		}
	} else {
		split(o.b, o.m, s.M)
		split(o.b, o.v, s.V)
	}
	o.steps, o.power1, o.power2 = s.Steps, 1, 1
	for range s.Steps {
		next1, next2 := o.power1*o.Beta1, o.power2*o.Beta2
		if next1 == o.power1 && next2 == o.power2 {
			break // at rest, so a count read from a file cannot keep this loop busy
		}
		o.power1, o.power2 = next1, next2
	}
	return nil
}

func join(b backend.Backend, parts []backend.Buffer) []float32 {
	n := 0
	for _, p := range parts {
		n += p.Len()
	}
	out := make([]float32, n)
	at := 0
	for _, p := range parts {
		b.Read(out[at:at+p.Len()], p)
		at += p.Len()
	}
	return out
}

func split(b backend.Backend, parts []backend.Buffer, v []float32) {
	for _, p := range parts {
		b.Write(p, v[:p.Len()])
		v = v[p.Len():]
	}
}
