package optim_test

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/optim"
)

// set is parameters whose values a test can read and whose gradients it can write.
type set struct {
	b      backend.Backend
	params []optim.Param
}

// newSet has three parameters: a whole number of vectors, a part of one, and a single value.
func newSet(t testing.TB) *set {
	t.Helper()
	b, err := cpu.New(cpu.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	s := &set{b: b}
	for i, n := range []int{32, 21, 1} {
		p := optim.Param{Name: string(rune('a' + i)), Value: b.Alloc(n), Grad: b.Alloc(n)}
		b.Write(p.Value, noise(uint32(i+1), n, 1))
		s.params = append(s.params, p)
	}
	return s
}

// noise is n reproducible values between −size and size.
func noise(seed uint32, n int, size float32) []float32 {
	v := make([]float32, n)
	for i := range v {
		seed = seed*1664525 + 1013904223
		v[i] = (float32(seed>>8)/(1<<23) - 1) * size
	}
	return v
}

func (s *set) optimizer(t testing.TB, c optim.Config) *optim.AdamW {
	t.Helper()
	o, err := optim.New(s.b, c, s.params)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func (s *set) values() []float32 {
	return s.read(func(p optim.Param) backend.Buffer { return p.Value })
}
func (s *set) grads() []float32 { return s.read(func(p optim.Param) backend.Buffer { return p.Grad }) }

func (s *set) read(of func(optim.Param) backend.Buffer) []float32 {
	var all []float32
	for _, p := range s.params {
		v := make([]float32, of(p).Len())
		s.b.Read(v, of(p))
		all = append(all, v...)
	}
	return all
}

func (s *set) setGrads(v []float32) {
	for _, p := range s.params {
		s.b.Write(p.Grad, v[:p.Grad.Len()])
		v = v[p.Grad.Len():]
	}
}

const total = 32 + 21 + 1

// gradient is that of step i: of changing size, and with exact zeros.
func gradient(i int) []float32 {
	g := noise(uint32(100+i), total, float32(math.Pow(10, float64(i%5-3))))
	g[i%total], g[7] = 0, 0
	return g
}

// sameBits compares the bits of two runs of values.
func sameBits(t *testing.T, what string, got, want []float32) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", what, len(got), len(want))
	}
	for i := range got {
		if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
			t.Fatalf("%s: value %d is %v, want %v", what, i, got[i], want[i])
		}
	}
}

// TestAdamW compares two hundred steps with the formulas of the paper in float64.
func TestAdamW(t *testing.T) {
	for name, c := range map[string]optim.Config{
		"defaults":  optim.Defaults(),
		"decay":     {Beta1: 0.9, Beta2: 0.999, Eps: 1e-8, Decay: 0.1, Clip: 0},
		"no memory": {Beta1: 0, Beta2: 0.5, Eps: 1e-3, Decay: 0.01, Clip: 0.05},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSet(t)
			o := s.optimizer(t, c)
			p, m, v := make([]float64, total), make([]float64, total), make([]float64, total)
			for i, x := range s.values() {
				p[i] = float64(x)
			}
			schedule := optim.Schedule{Peak: 1e-2, Warmup: 10}
			const steps = 200
			for k := range steps {
				g := gradient(k)
				s.setGrads(g)
				lr := schedule.LR(k, steps)
				got := o.Step(lr)
				var norm float64
				for _, x := range g {
					norm += float64(x) * float64(x)
				}
				norm = math.Sqrt(norm)
				if math.Abs(got-norm) > 1e-6*norm {
					t.Fatalf("step %d: norm %v, want %v", k, got, norm)
				}
				clip := 1.0
				if c.Clip > 0 && norm > c.Clip {
					clip = c.Clip / norm
				}
				for i := range p {
					x := float64(g[i]) * clip
					m[i] = c.Beta1*m[i] + (1-c.Beta1)*x
					v[i] = c.Beta2*v[i] + (1-c.Beta2)*x*x
					mHat, vHat := m[i]/(1-math.Pow(c.Beta1, float64(k+1))), v[i]/(1-math.Pow(c.Beta2, float64(k+1)))
					p[i] -= lr*c.Decay*p[i] + lr*mHat/(math.Sqrt(vHat)+c.Eps)
				}
				sameBits(t, "gradient after the step", s.grads(), g)
			}
			moved := 0.0
			start := newSet(t).values()
			for i, x := range s.values() {
				if math.Abs(float64(x)-p[i]) > 2e-5 {
					t.Errorf("value %d is %v, float64 says %v", i, x, p[i])
				}
				moved = math.Max(moved, math.Abs(float64(x-start[i])))
			}
			if moved < 0.05 {
				t.Errorf("nothing moved further than %v, so nothing was compared", moved)
			}
		})
	}
}

// TestClip takes a norm of a power of two, so that clipping is an exact factor: a clipped step equals an unclipped one
// of the smaller gradient, bit for bit. The norm is that of all parameters together.
func TestClip(t *testing.T) {
	large, small := make([]float32, total), make([]float32, total)
	for _, i := range []int{0, 5, 40, total - 1} { // in all three parameters
		large[i], small[i] = 4, 0.5
	}
	run := func(clip float64, g []float32) (*set, optim.State, float64) {
		s := newSet(t)
		c := optim.Defaults()
		c.Clip = clip
		s.setGrads(g)
		o := s.optimizer(t, c)
		norm := o.Step(1e-2)
		return s, o.State(), norm
	}
	clipped, clippedState, norm := run(1, large)
	if norm != 8 {
		t.Errorf("norm %v, want 8, before clipping", norm)
	}
	unclipped, state, norm := run(0, small)
	if norm != 1 {
		t.Errorf("norm %v, want 1", norm)
	}
	sameBits(t, "clipped step", clipped.values(), unclipped.values())
	sameBits(t, "clipped first moments", clippedState.M, state.M)
	sameBits(t, "clipped second moments", clippedState.V, state.V)
	_, atBound, _ := run(1, small)
	sameBits(t, "first moments at the bound", atBound.M, state.M)
	s := newSet(t)
	o := s.optimizer(t, optim.Config{Beta1: 0.5, Beta2: 0.5, Eps: 1e-8, Clip: 8})
	s.setGrads(large)
	o.Step(0)
	if m := o.State().M; m[0] != 2 || m[1] != 0 || m[total-1] != 2 {
		t.Errorf("first moments %v after a gradient of 4 at the bound, want half of it", m)
	}
}

// TestDecay: with no gradient there is decay alone, and it is multiplied by the learning rate.
func TestDecay(t *testing.T) {
	s := newSet(t)
	before := s.values()
	c := optim.Defaults()
	c.Decay = 0.25
	if norm := s.optimizer(t, c).Step(0.5); norm != 0 {
		t.Fatalf("norm %v of no gradient", norm)
	}
	for i, x := range s.values() {
		if want := before[i] - before[i]/8; x != want {
			t.Fatalf("value %d is %v, want 7/8 of %v", i, x, before[i])
		}
	}
	s = newSet(t)
	s.optimizer(t, optim.Defaults()).Step(0.5)
	sameBits(t, "no gradient and no decay", s.values(), before)
}

func TestRestoreContinues(t *testing.T) {
	const steps, stop = 40, 17
	c := optim.Defaults()
	c.Decay = 0.01
	step := func(s *set, o *optim.AdamW, from, to int) {
		for k := from; k < to; k++ {
			s.setGrads(gradient(k))
			o.Step(1e-2 / float64(k+1))
		}
	}
	whole := newSet(t)
	wholeOpt := whole.optimizer(t, c)
	step(whole, wholeOpt, 0, steps)

	first := newSet(t)
	firstOpt := first.optimizer(t, c)
	step(first, firstOpt, 0, stop)
	state, values := firstOpt.State(), first.values()
	if state.Steps != stop {
		t.Errorf("state after %d steps says %d", stop, state.Steps)
	}
	step(first, firstOpt, stop, stop+3) // the state read out must not follow
	second := newSet(t)
	for _, p := range second.params {
		second.b.Write(p.Value, values[:p.Value.Len()])
		values = values[p.Value.Len():]
	}
	secondOpt := second.optimizer(t, c)
	if err := secondOpt.Restore(state); err != nil {
		t.Fatal(err)
	}
	step(second, secondOpt, stop, steps)
	sameBits(t, "values", second.values(), whole.values())
	got, want := secondOpt.State(), wholeOpt.State()
	sameBits(t, "first moments", got.M, want.M)
	sameBits(t, "second moments", got.V, want.V)
	if got.Steps != want.Steps {
		t.Errorf("%d steps, want %d", got.Steps, want.Steps)
	}
}

func TestRestoreRefuses(t *testing.T) {
	s := newSet(t)
	o := s.optimizer(t, optim.Defaults())
	s.setGrads(gradient(0))
	o.Step(1e-2)
	before := o.State()
	for name, bad := range map[string]optim.State{
		"short m":   {Steps: 1, M: make([]float32, total-1), V: make([]float32, total)},
		"short v":   {Steps: 1, M: make([]float32, total), V: make([]float32, total-1)},
		"long":      {Steps: 1, M: make([]float32, total+1), V: make([]float32, total+1)},
		"empty":     {},
		"negative":  {Steps: -1, M: make([]float32, total), V: make([]float32, total)},
		"m instead": {Steps: 1, M: make([]float32, 2*total)},
	} {
		if err := o.Restore(bad); err == nil {
			t.Errorf("%s: restored", name)
		}
		after := o.State()
		sameBits(t, name+": first moments", after.M, before.M)
		sameBits(t, name+": second moments", after.V, before.V)
		if after.Steps != before.Steps {
			t.Errorf("%s: %d steps", name, after.Steps)
		}
	}
}

// TestRestoreManySteps restores a count that nobody could have stepped to; the powers of β are at rest long before, so
// it must not take as long as the steps would have.
func TestRestoreManySteps(t *testing.T) {
	s := newSet(t)
	o := s.optimizer(t, optim.Defaults())
	done := make(chan error, 1)
	go func() {
		done <- o.Restore(optim.State{Steps: 1 << 40, M: make([]float32, total), V: make([]float32, total)})
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("still multiplying after ten seconds")
	}
	s.setGrads(gradient(1))
	before := s.values()
	o.Step(1e-2)
	for i, x := range s.values() { // no bias is left to correct: a first step of 0.1/√0.05 of the learning rate
		if d := math.Abs(float64(x - before[i])); d > 0.0045 || math.IsNaN(d) {
			t.Fatalf("value %d moved by %v", i, d)
		}
	}
}

func TestNotFiniteGradientMovesNothing(t *testing.T) {
	for name, bad := range map[string]float32{
		"NaN": float32(math.NaN()), "+Inf": float32(math.Inf(1)), "-Inf": float32(math.Inf(-1)),
		"square past float32": 1e30,
	} {
		for _, at := range []int{0, 33, total - 1} {
			s, twin := newSet(t), newSet(t)
			o, twinOpt := s.optimizer(t, optim.Defaults()), twin.optimizer(t, optim.Defaults())
			for _, x := range []struct {
				s *set
				o *optim.AdamW
			}{{s, o}, {twin, twinOpt}} {
				x.s.setGrads(gradient(0))
				x.o.Step(1e-2)
			}
			g := gradient(1)
			g[at] = bad
			s.setGrads(g)
			if norm := o.Step(1e-2); !math.IsNaN(norm) && !math.IsInf(norm, 0) {
				t.Errorf("%s: norm %v", name, norm)
			}
			sameBits(t, name+": values", s.values(), twin.values())
			sameBits(t, name+": first moments", o.State().M, twinOpt.State().M)
			sameBits(t, name+": second moments", o.State().V, twinOpt.State().V)
			for _, x := range []struct {
				s *set
				o *optim.AdamW
			}{{s, o}, {twin, twinOpt}} {
				x.s.setGrads(gradient(2))
				x.o.Step(1e-2)
			}
			sameBits(t, name+": the step after", s.values(), twin.values())
		}
	}
}

func TestSchedule(t *testing.T) {
	s := optim.Schedule{Peak: 1, Warmup: 3}
	for i, want := range []float64{0.25, 0.5, 0.75, 1, 0.8, 0.6, 0.4, 0.2, 0} {
		if got := s.LR(i, 8); math.Abs(got-want) > 1e-15 {
			t.Errorf("step %d of 8: %v, want %v", i, got, want)
		}
	}
	for i, want := range []float64{0.5, 0.25, 0} {
		if got := (optim.Schedule{Peak: 0.5}).LR(i, 2); got != want {
			t.Errorf("step %d of 2 without warm-up: %v, want %v", i, got, want)
		}
	}
	if got := (optim.Schedule{Peak: 0.5}).LR(0, 1); got != 0.5 {
		t.Errorf("the only step has rate %v, want the peak", got)
	}
}

func TestConfigValidate(t *testing.T) {
	if err := optim.Defaults().Validate(); err != nil {
		t.Error(err)
	}
	bad := optim.Config{Beta1: 1, Beta2: 0, Eps: 0, Decay: -1, Clip: -1}
	err := bad.Validate()
	if err == nil {
		t.Fatal("everything wrong and no fault")
	}
	for _, field := range []string{"Beta1", "Beta2", "Eps", "Decay", "Clip"} {
		if !strings.Contains(err.Error(), field+" is") {
			t.Errorf("%s is not in %q", field, err)
		}
	}
	if n := strings.Count(err.Error(), "\n") + 1; n != 5 {
		t.Errorf("%d faults, want 5: %v", n, err)
	}
	b := newSet(t).b
	for _, v := range []float64{math.NaN(), math.Inf(-1), -1e-9, 1, math.Inf(1)} {
		for name, set := range map[string]func(*optim.Config){
			"Beta1": func(c *optim.Config) { c.Beta1 = v }, "Beta2": func(c *optim.Config) { c.Beta2 = v },
			"Eps": func(c *optim.Config) { c.Eps = v }, "Decay": func(c *optim.Config) { c.Decay = v }, "Clip": func(c *optim.Config) { c.Clip = v },
		} {
			if v >= 1 && (name == "Eps" || name == "Clip") {
				continue // large is odd, not wrong
			}
			c := optim.Defaults()
			set(&c)
			if _, err := optim.New(b, c, nil); err == nil || !strings.Contains(err.Error(), name+" is") {
				t.Errorf("%s of %v: %v", name, v, err)
			}
		}
	}
}

// TestEpsOfFloat32: Eps is added in float32. One that is zero there would divide zero by zero wherever nothing flows.
func TestEpsOfFloat32(t *testing.T) {
	c := optim.Defaults()
	c.Eps = 1e-60
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "Eps is") {
		t.Errorf("1e-60: %v", err)
	}
	c.Eps = math.SmallestNonzeroFloat32
	s := newSet(t)
	before := s.values()
	s.optimizer(t, c).Step(1e-2)
	sameBits(t, "no gradient and the smallest Eps", s.values(), before)
}

// TestShapes: what the learning rate does after the warm-up.
func TestShapes(t *testing.T) {
	for shape, want := range map[optim.Shape][]float64{
		optim.Constant: {0.5, 1, 1, 1, 1, 1}, optim.Cosine: {0.5, 1, (2 + math.Sqrt2) / 4, 0.5, (2 - math.Sqrt2) / 4, 0},
	} {
		s := optim.Schedule{Peak: 1, Warmup: 1, Shape: shape}
		for i, w := range want {
			if got := s.LR(i, 5); math.Abs(got-w) > 1e-15 {
				t.Errorf("%v, step %d of 5: %v, want %v", shape, i, got, w)
			}
		}
		var read optim.Shape
		if err := read.Set(shape.String()); err != nil || read != shape {
			t.Errorf("%v is read as %v: %v", shape, read, err)
		}
	}
	var read optim.Shape
	if err := read.Set("linear"); err != nil || read != optim.Linear {
		t.Errorf("linear is read as %v: %v", read, err)
	}
	if err := read.Set("steps"); err == nil {
		t.Error("no such shape")
	}
}

// halfOf is the rule of docs/spec/exact.md by itself: of the two bfloat16 neighbours the nearer, of equals the even one.
func halfOf(x float32) uint16 {
	lo := uint16(math.Float32bits(x) >> 16)
	at := func(h uint16) float64 { return float64(math.Float32frombits(uint32(h) << 16)) }
	switch a, b := math.Abs(float64(x)-at(lo)), math.Abs(at(lo+1)-float64(x)); {
	case a < b || a == b && lo%2 == 0:
		return lo
	default:
		return lo + 1
	}
}

// TestHalf: moments in bfloat16 are those in float32 of one step from what was kept, rounded, and move a parameter as they
// are before that. A state goes on, and only in its own kind.
func TestHalf(t *testing.T) {
	c := optim.Defaults()
	c.Half = true
	s := newSet(t)
	o := s.optimizer(t, c)
	widen := func(h []uint16) []float32 {
		v := make([]float32, len(h))
		for i, x := range h {
			v[i] = math.Float32frombits(uint32(x) << 16)
		}
		return v
	}
	for k := range 60 {
		before := o.State()
		twin := newSet(t)
		values := s.values()
		for _, p := range twin.params {
			twin.b.Write(p.Value, values[:p.Value.Len()])
			values = values[p.Value.Len():]
		}
		full := twin.optimizer(t, optim.Defaults())
		if err := full.Restore(optim.State{Steps: before.Steps, M: widen(before.HalfM), V: widen(before.HalfV)}); err != nil {
			t.Fatal(err)
		}
		for _, x := range []*set{s, twin} {
			x.setGrads(gradient(k))
		}
		o.Step(1e-2)
		full.Step(1e-2)
		sameBits(t, "values", s.values(), twin.values())
		got, want := o.State(), full.State()
		for i := range want.M {
			if got.HalfM[i] != halfOf(want.M[i]) || got.HalfV[i] != halfOf(want.V[i]) {
				t.Fatalf("step %d, value %d: moments %04x and %04x of %v and %v", k, i, got.HalfM[i], got.HalfV[i], want.M[i], want.V[i])
			}
		}
		if !got.Half() || got.M != nil || got.Len() != total {
			t.Fatalf("state %+v", got)
		}
		second := make([]float32, 3)
		got.Second(second, 4)
		sameBits(t, "second moments", second, widen(got.HalfV[4:7]))
		again := s.optimizer(t, c)
		if err := again.Restore(got); err != nil {
			t.Fatal(err)
		}
		o = again
	}
	if err := o.Restore(optim.State{M: make([]float32, total), V: make([]float32, total)}); err == nil || !strings.Contains(err.Error(), "bfloat16") {
		t.Errorf("a state in float32: %v", err)
	}
	if err := s.optimizer(t, optim.Defaults()).Restore(o.State()); err == nil {
		t.Error("an optimizer in float32 takes a state in bfloat16")
	}
	mixed := o.State()
	mixed.HalfV, mixed.V = nil, make([]float32, total)
	if err := o.Restore(mixed); err == nil {
		t.Error("moments of two kinds")
	}
	c.Beta2 = 0.999
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "Beta2") {
		t.Errorf("moments that would not decay: %v", err)
	}
	type plain struct{ backend.Backend }
	c = optim.Defaults()
	c.Half = true
	if _, err := optim.New(plain{s.b}, c, s.params); !errors.Is(err, backend.ErrUnsupported) {
		t.Errorf("a backend without them: %v", err)
	}
}
