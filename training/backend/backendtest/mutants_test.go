package backendtest_test

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/backend/backendtest"
	"github.com/blockzero-net/bzd/training/cpu"
)

// mutant is package cpu's backend with one fault.
type mutant struct {
	backend.Backend
	linear           func(y, x backend.Buffer, w backend.Weight)
	linearGradInput  func(dx, dy backend.Buffer, w backend.Weight, add bool)
	linearGradWeight func(dw, dy, x backend.Buffer, rows int)
	rmsNormGrad      func(dx, dw, dy, inv, x, w backend.Buffer)
	headNormRopeGrad func(dx, dw, dy, inv, x, w backend.Buffer, r backend.Rope, heads, seq int)
	attention        func(out, q, k, v backend.Buffer, a backend.Attn)
	attentionGrad    func(dq, dk, dv, dout, out, q, k, v backend.Buffer, a backend.Attn)
	newMix           func(s backend.MixtureShape, rows int, keep bool) backend.Mix
	mixture          func(y, x, logits backend.Buffer, e []backend.Expert, m backend.Mix)
	mixtureGrad      func(dx, dlogits, dy, x backend.Buffer, e []backend.Expert, g []backend.ExpertGrad, m backend.Mix, balance float32)
	embedGrad        func(dtable, dy backend.Buffer, ids []int32)
	crossEntropy     func(losses []float64, logits backend.Buffer, targets []int32, scale float32)
	adamW            func(p, m, v, g backend.Buffer, h backend.AdamW)
	sumSquares       func(x []backend.Buffer) []float32
	add              func(dst, x backend.Buffer)
	columns          func(dst, x backend.Buffer, cols []int)
	prepare          func(w backend.Buffer, out, in int) backend.Weight
	sync             func() error
	addBias          func(x, bias backend.Buffer)
	rotate           func(y, x backend.Buffer, r backend.Rope, dim, heads, seq int, back bool)
	swiGLUGrad       func(dgate, dup, dy, gate, up backend.Buffer)
	addGated         func(y, x, gate backend.Buffer)
	addGatedGrad     func(dx, dgate, dy, x, gate backend.Buffer)
}

func newMutant(b backend.Backend) *mutant {
	return &mutant{
		Backend: b, linear: b.Linear, linearGradInput: b.LinearGradInput, linearGradWeight: b.LinearGradWeight, rmsNormGrad: b.RMSNormGrad,
		headNormRopeGrad: b.HeadNormRopeGrad, attention: b.Attention, attentionGrad: b.AttentionGrad, newMix: b.NewMix, mixture: b.Mixture,
		mixtureGrad: b.MixtureGrad, embedGrad: b.EmbedGrad, crossEntropy: b.CrossEntropy, adamW: b.AdamW, sumSquares: b.SumSquares,
		add: b.Add, columns: b.Columns, prepare: b.Prepare, sync: b.Sync,
		addBias: b.AddBias, rotate: b.Rotate, swiGLUGrad: b.SwiGLUGrad, addGated: b.AddGated, addGatedGrad: b.AddGatedGrad,
	}
}

// stale is a weight that multiplies by what it was prepared from, whatever came after.
type stale struct {
	backend.Weight
	packed backend.Weight
}

func inside(w backend.Weight) backend.Weight {
	if s, ok := w.(stale); ok {
		return s.packed
	}
	return w
}

func insides(e []backend.Expert) []backend.Expert {
	var all []backend.Expert
	for _, x := range e {
		all = append(all, backend.Expert{Gate: inside(x.Gate), Up: inside(x.Up), Down: inside(x.Down)})
	}
	return all
}

func (m *mutant) Linear(y, x backend.Buffer, w backend.Weight) { m.linear(y, x, inside(w)) }
func (m *mutant) LinearGradInput(dx, dy backend.Buffer, w backend.Weight, add bool) {
	m.linearGradInput(dx, dy, inside(w), add)
}
func (m *mutant) LinearGradWeight(dw, dy, x backend.Buffer, rows int) {
	m.linearGradWeight(dw, dy, x, rows)
}
func (m *mutant) RMSNormGrad(dx, dw, dy, inv, x, w backend.Buffer) {
	m.rmsNormGrad(dx, dw, dy, inv, x, w)
}
func (m *mutant) HeadNormRopeGrad(dx, dw, dy, inv, x, w backend.Buffer, r backend.Rope, heads, seq int) {
	m.headNormRopeGrad(dx, dw, dy, inv, x, w, r, heads, seq)
}
func (m *mutant) Attention(out, q, k, v backend.Buffer, a backend.Attn) {
	m.attention(out, q, k, v, a)
}
func (m *mutant) AttentionGrad(dq, dk, dv, dout, out, q, k, v backend.Buffer, a backend.Attn) {
	m.attentionGrad(dq, dk, dv, dout, out, q, k, v, a)
}
func (m *mutant) NewMix(s backend.MixtureShape, rows int, keep bool) backend.Mix {
	return m.newMix(s, rows, keep)
}
func (m *mutant) Mixture(y, x, logits backend.Buffer, e []backend.Expert, mx backend.Mix) {
	m.mixture(y, x, logits, insides(e), mx)
}
func (m *mutant) MixtureGrad(dx, dlogits, dy, x backend.Buffer, e []backend.Expert, g []backend.ExpertGrad, mx backend.Mix, balance float32) {
	m.mixtureGrad(dx, dlogits, dy, x, insides(e), g, mx, balance)
}
func (m *mutant) Embed(y backend.Buffer, table backend.Weight, ids []int32) {
	m.Backend.Embed(y, inside(table), ids)
}
func (m *mutant) EmbedGrad(dtable, dy backend.Buffer, ids []int32) { m.embedGrad(dtable, dy, ids) }
func (m *mutant) CrossEntropy(losses []float64, logits backend.Buffer, targets []int32, scale float32) {
	m.crossEntropy(losses, logits, targets, scale)
}
func (m *mutant) AdamW(p, mo, v, g backend.Buffer, h backend.AdamW) { m.adamW(p, mo, v, g, h) }
func (m *mutant) SumSquares(x []backend.Buffer) []float32           { return m.sumSquares(x) }
func (m *mutant) Add(dst, x backend.Buffer)                         { m.add(dst, x) }
func (m *mutant) Columns(dst, x backend.Buffer, cols []int)         { m.columns(dst, x, cols) }
func (m *mutant) Prepare(w backend.Buffer, out, in int) backend.Weight {
	return m.prepare(w, out, in)
}
func (m *mutant) Sync() error                    { return m.sync() }
func (m *mutant) AddBias(x, bias backend.Buffer) { m.addBias(x, bias) }
func (m *mutant) Rotate(y, x backend.Buffer, r backend.Rope, dim, heads, seq int, back bool) {
	m.rotate(y, x, r, dim, heads, seq, back)
}
func (m *mutant) SwiGLUGrad(dgate, dup, dy, gate, up backend.Buffer) {
	m.swiGLUGrad(dgate, dup, dy, gate, up)
}
func (m *mutant) AddGated(y, x, gate backend.Buffer) { m.addGated(y, x, gate) }
func (m *mutant) AddGatedGrad(dx, dgate, dy, x, gate backend.Buffer) {
	m.addGatedGrad(dx, dgate, dy, x, gate)
}

// times returns a copy of x times a.
func (m *mutant) times(x backend.Buffer, a float32) backend.Buffer {
	v := make([]float32, x.Len())
	m.Read(v, x)
	for i := range v {
		v[i] *= a
	}
	c := m.Alloc(len(v))
	m.Write(c, v)
	return c
}

// bump moves value i of b to the next float32.
func (m *mutant) bump(b backend.Buffer, i int) {
	v := make([]float32, 1)
	m.Read(v, b.Slice(i, 1))
	v[0] = math.Nextafter32(v[0], 1e9)
	m.Write(b.Slice(i, 1), v)
}

// faults are mistakes an implementation might make, each with the section that must find it. Those marked exact are too
// small for a tolerance.
var faults = []struct {
	section, name string
	exact         bool
	mutate        func(m *mutant)
}{
	{"Memory", "Add changes its input", false, func(m *mutant) {
		m.add = func(dst, x backend.Buffer) { m.Backend.Add(dst, x); m.Zero(x) }
	}},
	{"Memory", "Columns ignores the order", false, func(m *mutant) {
		m.columns = func(dst, x backend.Buffer, cols []int) {
			c := append([]int(nil), cols...)
			c[0], c[len(c)-1] = c[len(c)-1], c[0]
			m.Backend.Columns(dst, x, c)
		}
	}},
	{"SumSquares", "a failure of the device", false, func(m *mutant) { m.sync = func() error { return errors.New("device lost") } }},
	{"Linear", "one value off by 1e-5", false, func(m *mutant) {
		m.linear = func(y, x backend.Buffer, w backend.Weight) {
			m.Backend.Linear(y, x, w)
			last := y.Slice(y.Len()-1, 1)
			m.Copy(last, m.times(last, 1+2e-5))
		}
	}},
	{"Linear", "dx always set", false, func(m *mutant) {
		m.linearGradInput = func(dx, dy backend.Buffer, w backend.Weight, _ bool) { m.Backend.LinearGradInput(dx, dy, w, false) }
	}},
	{"Linear", "dw set, not added", false, func(m *mutant) {
		m.linearGradWeight = func(dw, dy, x backend.Buffer, rows int) { m.Zero(dw); m.Backend.LinearGradWeight(dw, dy, x, rows) }
	}},
	{"RMSNorm", "dx set, not added", false, func(m *mutant) {
		m.rmsNormGrad = func(dx, dw, dy, inv, x, w backend.Buffer) { m.Zero(dx); m.Backend.RMSNormGrad(dx, dw, dy, inv, x, w) }
	}},
	{"RMSNorm", "dw forgets the last row", false, func(m *mutant) {
		m.rmsNormGrad = func(dx, dw, dy, inv, x, w backend.Buffer) {
			m.Backend.RMSNormGrad(dx, nil, dy, inv, x, w)
			if n, d := inv.Len()-1, w.Len(); dw != nil && n > 0 {
				m.Backend.RMSNormGrad(m.Alloc(n*d), dw, dy.Slice(0, n*d), inv.Slice(0, n), x.Slice(0, n*d), w)
			}
		}
	}},
	{"HeadNormRope", "gradient rotated the wrong way", false, func(m *mutant) {
		m.headNormRopeGrad = func(dx, dw, dy, inv, x, w backend.Buffer, r backend.Rope, heads, seq int) {
			r.Sin, r.NegSin = r.NegSin, r.Sin
			m.Backend.HeadNormRopeGrad(dx, dw, dy, inv, x, w, r, heads, seq)
		}
	}},
	{"HeadNormRope", "dx added, not set", false, func(m *mutant) {
		m.headNormRopeGrad = func(dx, dw, dy, inv, x, w backend.Buffer, r backend.Rope, heads, seq int) {
			before := m.times(dx, 1)
			m.Backend.HeadNormRopeGrad(dx, dw, dy, inv, x, w, r, heads, seq)
			m.Backend.Add(dx, before)
		}
	}},
	{"Attention", "wrong scale", false, func(m *mutant) {
		m.attention = func(out, q, k, v backend.Buffer, a backend.Attn) {
			m.Backend.Attention(out, m.times(q, 1.0001), k, v, a)
		}
	}},
	{"Attention", "dk of the last row forgotten", false, func(m *mutant) {
		m.attentionGrad = func(dq, dk, dv, dout, out, q, k, v backend.Buffer, a backend.Attn) {
			m.Backend.AttentionGrad(dq, dk, dv, dout, out, q, k, v, a)
			d := a.Shape().HeadDim
			m.Zero(dk.Slice(dk.Len()-d, d))
		}
	}},
	{"Attention", "dv of one value off", false, func(m *mutant) {
		m.attentionGrad = func(dq, dk, dv, dout, out, q, k, v backend.Buffer, a backend.Attn) {
			m.Backend.AttentionGrad(dq, dk, dv, dout, out, q, k, v, a)
			one := dv.Slice(dv.Len()/2, 1)
			m.Copy(one, m.times(one, 1.1))
		}
	}},
	{"Mixture", "normalises always", false, func(m *mutant) {
		m.newMix = func(s backend.MixtureShape, rows int, keep bool) backend.Mix {
			s.Normalize = true
			return m.Backend.NewMix(s, rows, keep)
		}
	}},
	{"Mixture", "no load balance", false, func(m *mutant) {
		m.mixtureGrad = func(dx, dl, dy, x backend.Buffer, e []backend.Expert, g []backend.ExpertGrad, mx backend.Mix, _ float32) {
			m.Backend.MixtureGrad(dx, dl, dy, x, e, g, mx, 0)
		}
	}},
	{"Mixture", "dx set, not added", false, func(m *mutant) {
		m.mixtureGrad = func(dx, dl, dy, x backend.Buffer, e []backend.Expert, g []backend.ExpertGrad, mx backend.Mix, balance float32) {
			if dx != nil {
				m.Zero(dx)
			}
			m.Backend.MixtureGrad(dx, dl, dy, x, e, g, mx, balance)
		}
	}},
	{"Mixture", "weight gradients missing without dx", false, func(m *mutant) {
		m.mixtureGrad = func(dx, dl, dy, x backend.Buffer, e []backend.Expert, g []backend.ExpertGrad, mx backend.Mix, balance float32) {
			if dx == nil {
				g = make([]backend.ExpertGrad, len(g))
			}
			m.Backend.MixtureGrad(dx, dl, dy, x, e, g, mx, balance)
		}
	}},
	{"Routing", "ties to the higher index", false, func(m *mutant) {
		m.mixture = func(y, x, logits backend.Buffer, e []backend.Expert, mx backend.Mix) {
			v := make([]float32, logits.Len())
			m.Read(v, logits)
			for i := range v {
				v[i] += float32(i%len(e)) * 1e-3
			}
			tilted := m.Alloc(len(v))
			m.Write(tilted, v)
			m.Backend.Mixture(y, x, tilted, e, mx)
		}
	}},
	{"Embed", "repeated tokens counted once", false, func(m *mutant) {
		m.embedGrad = func(dtable, dy backend.Buffer, ids []int32) {
			d, seen := dy.Len()/len(ids), map[int32]bool{}
			for i, id := range ids {
				if !seen[id] {
					m.Backend.EmbedGrad(dtable, dy.Slice(i*d, d), []int32{id})
				}
				seen[id] = true
			}
		}
	}},
	{"CrossEntropy", "the last row's gradient without its target", false, func(m *mutant) {
		m.crossEntropy = func(losses []float64, logits backend.Buffer, targets []int32, scale float32) {
			m.Backend.CrossEntropy(losses, logits, targets, scale)
			v := logits.Len() / len(targets)
			m.Backend.Zero(logits.Slice(logits.Len()-v+int(targets[len(targets)-1]), 1))
		}
	}},
	{"AdamW", "no decay", false, func(m *mutant) {
		m.adamW = func(p, mo, v, g backend.Buffer, h backend.AdamW) { h.Decay = 0; m.Backend.AdamW(p, mo, v, g, h) }
	}},
	{"SumSquares", "forgets the last value", false, func(m *mutant) {
		m.sumSquares = func(x []backend.Buffer) []float32 {
			short := append([]backend.Buffer(nil), x...)
			for i, b := range short {
				short[i] = b.Slice(0, b.Len()-1)
			}
			return m.Backend.SumSquares(short)
		}
	}},
	{"Refresh", "packed weights kept", false, func(m *mutant) {
		m.prepare = func(w backend.Buffer, out, in int) backend.Weight {
			v := make([]float32, w.Len())
			m.Read(v, w)
			return stale{m.Backend.Prepare(w, out, in), m.Freeze(v, out, in, false)}
		}
	}},
	{"Composition", "the last bit depends on the number of rows", true, func(m *mutant) {
		m.linear = func(y, x backend.Buffer, w backend.Weight) {
			m.Backend.Linear(y, x, w)
			if _, in := w.Shape(); x.Len() > 19*in {
				m.bump(y, 0)
			}
		}
	}},
	{"Block", "bias on the first row only", false, func(m *mutant) {
		m.addBias = func(x, bias backend.Buffer) { m.Backend.AddBias(x.Slice(0, bias.Len()), bias) }
	}},
	{"Block", "gradient rotated forward", false, func(m *mutant) {
		m.rotate = func(y, x backend.Buffer, r backend.Rope, dim, heads, seq int, _ bool) {
			m.Backend.Rotate(y, x, r, dim, heads, seq, false)
		}
	}},
	{"Block", "positions counted over the batch", false, func(m *mutant) {
		m.rotate = func(y, x backend.Buffer, r backend.Rope, dim, heads, seq int, back bool) {
			m.Backend.Rotate(y, x, r, dim, heads, min(seq+1, r.Cos.Len()*2/dim), back)
		}
	}},
	{"Block", "gradients of gate and up exchanged", false, func(m *mutant) {
		m.swiGLUGrad = func(dgate, dup, dy, gate, up backend.Buffer) { m.Backend.SwiGLUGrad(dup, dgate, dy, gate, up) }
	}},
	{"Block", "set, not added", false, func(m *mutant) {
		m.addGated = func(y, x, gate backend.Buffer) { m.Zero(y); m.Backend.AddGated(y, x, gate) }
	}},
	{"Block", "gradient of the gate without its slope", false, func(m *mutant) {
		m.addGatedGrad = func(dx, dgate, dy, x, gate backend.Buffer) {
			m.Backend.AddGatedGrad(dx, dgate, dy, x, gate)
			m.Copy(dgate, m.times(dgate, 4))
		}
	}},
	{"Digests", "the last bit of one value", true, func(m *mutant) {
		m.attentionGrad = func(dq, dk, dv, dout, out, q, k, v backend.Buffer, a backend.Attn) {
			m.Backend.AttentionGrad(dq, dk, dv, dout, out, q, k, v, a)
			m.bump(dk, dk.Len()-1)
		}
	}},
}

const faultVariable = "BACKENDTEST_FAULT"

// TestFault runs one section on one fault, in a process started by TestFaults, where it must fail.
func TestFault(t *testing.T) {
	name := os.Getenv(faultVariable)
	if name == "" {
		return
	}
	for _, f := range faults {
		if f.section+"/"+f.name == name {
			b, err := cpu.New(cpu.Options{Threads: 2})
			if err != nil {
				t.Fatal(err)
			}
			m := newMutant(b)
			f.mutate(m)
			backendtest.RunAll(t, m, backendtest.Options{Exact: f.exact})
		}
	}
}

// TestFaults shows that the suite finds each fault.
func TestFaults(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a process for every fault")
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range faults {
		t.Run(f.section+"/"+f.name, func(t *testing.T) {
			t.Parallel()
			c := exec.Command(program, "-test.run=^TestFault$/^"+f.section+"$")
			c.Env = append(os.Environ(), faultVariable+"="+f.section+"/"+f.name)
			out, err := c.CombinedOutput()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			want := fmt.Sprintf("--- FAIL: TestFault/%s ", f.section)
			if err == nil || !strings.Contains(string(out), want) || strings.Contains(string(out), "panic:") {
				t.Errorf("not found; the section says:\n%s", out)
			}
		})
	}
}

// TestNoFault runs the whole suite on the same wrapping without a fault, claiming exactness and not.
func TestNoFault(t *testing.T) {
	b, err := cpu.New(cpu.Options{Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	for _, exact := range []bool{true, false} {
		t.Run(fmt.Sprintf("exact %v", exact), func(t *testing.T) {
			backendtest.RunAll(t, newMutant(b), backendtest.Options{Exact: exact})
		})
	}
}
