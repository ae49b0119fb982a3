package backendtest

import (
	"math"

	"github.com/blockzero-net/bzd/training/backend"
)

// The reference: every forward operation in float64, the naive way.

func refLinear(x, w []float64, out, in int) []float64 {
	rows := len(x) / in
	y := make([]float64, rows*out)
	for r := range rows {
		for o := range out {
			var sum float64
			a, b := x[r*in:][:in], w[o*in:][:in]
			for i, v := range a {
				sum += v * b[i]
			}
			y[r*out+o] = sum
		}
	}
	return y
}

func transpose(x []float64, rows, cols int) []float64 {
	y := make([]float64, len(x))
	for r := range rows {
		for c := range cols {
			y[c*rows+r] = x[r*cols+c]
		}
	}
	return y
}

func refRMSNorm(x, w []float64, eps float64) (y, inv []float64) {
	d := len(w)
	y, inv = make([]float64, len(x)), make([]float64, len(x)/d)
	for r := range inv {
		var ss float64
		for _, v := range x[r*d:][:d] {
			ss += v * v
		}
		inv[r] = 1 / math.Sqrt(ss/float64(d)+eps)
		for i := range d {
			y[r*d+i] = x[r*d+i] * inv[r] * w[i]
		}
	}
	return y, inv
}

func refHeadNormRope(x, w, cos, sin []float64, heads, seq int, eps float64) (y, inv []float64) {
	y, inv = refRMSNorm(x, w, eps)
	d, h := len(w), len(w)/2
	for i := range inv {
		p := i / heads % seq * h
		for j := range h {
			a, b := y[i*d+j], y[i*d+h+j]
			y[i*d+j] = a*cos[p+j] - b*sin[p+j]
			y[i*d+h+j] = b*cos[p+j] + a*sin[p+j]
		}
	}
	return y, inv
}

func refAttention(q, k, v []float64, s backend.AttentionShape) []float64 {
	qw, kw, hd := s.Heads*s.HeadDim, s.KVHeads*s.HeadDim, s.HeadDim
	out := make([]float64, len(q))
	p := make([]float64, s.Seq)
	for r := range len(q) / qw {
		first := r / s.Seq * s.Seq
		for h := range s.Heads {
			kv := h * s.KVHeads / s.Heads * hd
			largest := math.Inf(-1)
			for j := first; j <= r; j++ {
				var dot float64
				for i := range hd {
					dot += q[r*qw+h*hd+i] * k[j*kw+kv+i]
				}
				p[j-first] = dot / math.Sqrt(float64(hd))
				largest = math.Max(largest, p[j-first])
			}
			var sum float64
			for j := first; j <= r; j++ {
				p[j-first] = math.Exp(p[j-first] - largest)
				sum += p[j-first]
			}
			for j := first; j <= r; j++ {
				for i := range hd {
					out[r*qw+h*hd+i] += p[j-first] / sum * v[j*kw+kv+i]
				}
			}
		}
	}
	return out
}

// refExpert is gate, up [width, model] and down [model, width].
type refExpert struct{ gate, up, down []float64 }

// refMixture also returns the load-balance loss, for the given loads or, with loads nil, for its own.
func refMixture(x, logits []float64, experts []refExpert, s backend.MixtureShape, loads []int) (y []float64, load []int, balance float64) {
	tokens := len(x) / s.Model
	y, load = make([]float64, len(x)), make([]int, s.Experts)
	mean := make([]float64, s.Experts)
	for t := range tokens {
		p := softmax(logits[t*s.Experts:][:s.Experts])
		for e := range p {
			mean[e] += p[e] / float64(tokens)
		}
		chosen := largest(logits[t*s.Experts:][:s.Experts], s.TopK)
		total := 1.0
		if s.Normalize {
			total = 0
			for _, e := range chosen {
				total += p[e]
			}
		}
		row := x[t*s.Model:][:s.Model]
		for _, e := range chosen {
			load[e]++
			g, u := refLinear(row, experts[e].gate, s.Width, s.Model), refLinear(row, experts[e].up, s.Width, s.Model)
			for i := range g {
				g[i] = g[i] / (1 + math.Exp(-g[i])) * u[i]
			}
			for i, v := range refLinear(g, experts[e].down, s.Model, s.Width) {
				y[t*s.Model+i] += p[e] / total * v
			}
		}
	}
	if loads == nil {
		loads = load
	}
	for e := range mean {
		balance += float64(s.Experts) * float64(loads[e]) / float64(tokens) * mean[e]
	}
	return y, load, balance
}

func softmax(x []float64) []float64 {
	p, sum, m := make([]float64, len(x)), 0.0, math.Inf(-1)
	for _, v := range x {
		m = math.Max(m, v)
	}
	for i, v := range x {
		p[i] = math.Exp(v - m)
		sum += p[i]
	}
	for i := range p {
		p[i] /= sum
	}
	return p
}

// largest returns the indices of the k largest values, largest first, ties by lower index.
func largest(x []float64, k int) []int {
	var chosen []int
	taken := make([]bool, len(x))
	for range k {
		best := -1
		for i, v := range x {
			if !taken[i] && (best < 0 || v > x[best]) {
				best = i
			}
		}
		taken[best] = true
		chosen = append(chosen, best)
	}
	return chosen
}

func refCrossEntropy(logits []float64, targets []int32) []float64 {
	vocab := len(logits) / len(targets)
	losses := make([]float64, len(targets))
	for r, t := range targets {
		row := logits[r*vocab:][:vocab]
		m := row[t]
		for _, v := range row {
			m = math.Max(m, v)
		}
		var sum float64
		for _, v := range row {
			sum += math.Exp(v - m)
		}
		losses[r] = math.Log(sum) + m - row[t]
	}
	return losses
}

func refAdamW(p, m, v, g []float64, h backend.AdamW) {
	for i := range p {
		x := g[i] * float64(h.Clip)
		m[i] = float64(h.Beta1)*m[i] + float64(h.One1)*x
		v[i] = float64(h.Beta2)*v[i] + float64(h.One2)*x*x
		p[i] -= float64(h.Decay)*p[i] + m[i]*float64(h.Step)/(math.Sqrt(v[i])*float64(h.Root)+float64(h.Eps))
	}
}

// variable is an argument of a function, with the gradient that the backend gave for it.
type variable struct {
	name string
	x    []float64 // the argument the function reads; moved and put back
	got  []float32 // the gradient buffer afterwards
	base []float32 // its content before, when the gradient was added; nil when it was set
}

// gradients compares with central differences of f: every coordinate of a small argument; of a large one some
// coordinates, and the derivative along random directions, which no wrong coordinate escapes.
func (l *lab) gradients(name string, f func() float64, vars ...variable) {
	l.Helper()
	const step, every, some = 1e-4, 48, 3
	for _, v := range vars {
		if len(v.got) != len(v.x) {
			l.Fatalf("%s: gradient of %s has %d values, want %d", name, v.name, len(v.got), len(v.x))
		}
		got := wide(v.got)
		for i := range v.base {
			got[i] -= float64(v.base[i])
		}
		size := 1e-6
		for i := range got {
			size = math.Max(size, math.Abs(got[i]))
			if v.base != nil {
				size = math.Max(size, math.Abs(float64(v.base[i])))
			}
		}
		before := append([]float64(nil), v.x...)
		derive := func(direction []float64) float64 {
			for i := range v.x {
				v.x[i] = before[i] + step*direction[i]
			}
			up := f()
			for i := range v.x {
				v.x[i] = before[i] - step*direction[i]
			}
			down := f()
			copy(v.x, before)
			return (up - down) / (2 * step)
		}
		coordinates := every
		if len(v.x) > every {
			coordinates = some
		}
		for c := range min(coordinates, len(v.x)) {
			i := c
			if len(v.x) > every {
				i = l.rand.intn(len(v.x))
			}
			one := make([]float64, len(v.x))
			one[i] = 1
			if want := derive(one); !(math.Abs(got[i]-want) <= 4*l.opts.Tolerance*size) {
				l.Errorf("%s: gradient of %s[%d] is %v, finite difference %v (largest %v)", name, v.name, i, got[i], want, size)
				break
			}
		}
		if len(v.x) <= every {
			continue
		}
		for range 2 {
			direction, along := make([]float64, len(v.x)), 0.0
			for i := range direction {
				direction[i] = math.Copysign(1/math.Sqrt(float64(len(v.x))), float64(l.rand.value()))
				along += direction[i] * got[i]
			}
			if want := derive(direction); !(math.Abs(along-want) <= 8*l.opts.Tolerance*size) {
				l.Errorf("%s: derivative along a direction of %s is %v, finite difference %v (largest %v)", name, v.name, along, want, size)
			}
		}
	}
}

// inner is the scalar whose gradient with respect to y is dy.
func inner(y []float64, dy []float32) float64 {
	var s float64
	for i := range y {
		s += y[i] * float64(dy[i])
	}
	return s
}
