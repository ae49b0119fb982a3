package kernels_test

import (
	"math"
	"slices"
	"testing"

	"github.com/blockzero-net/bzd/training/cuda"
)

// routing is what the kernels of moe.cu found for one batch.
type routing struct {
	tokens, experts, top             int
	probs, weight                    array
	expert, place, source, offsets   []int32
	expertAt, placeAt, sourceAt, off cuda.Ptr
}

func route(d *device, logits array, tokens, experts, top, normalize int) routing {
	slots := tokens * top
	r := routing{tokens: tokens, experts: experts, top: top, probs: d.blank('f', tokens*experts, 0), weight: d.blank('f', slots, 0),
		expertAt: d.alloc(4 * slots), placeAt: d.alloc(4 * slots), sourceAt: d.alloc(4 * slots), off: d.alloc(4 * (experts + 1))}
	runs := ceil(slots, 1024)
	counts, first := d.alloc(4*runs*experts), d.alloc(4*runs*experts)
	d.launch("moe_route", line(ceil(tokens, 16)), line(256), 0, r.probs.p, r.expertAt, r.weight.p, logits.p, tokens, experts, top, normalize)
	d.launch("moe_count", line(runs), line(256), 0, counts, r.expertAt, slots, experts)
	d.launch("moe_offsets", line(1), line(256), 0, r.off, first, counts, runs, experts)
	d.launch("moe_place", line(runs), line(256), 0, r.placeAt, r.sourceAt, first, r.expertAt, slots, experts)
	r.expert, r.place, r.source = get[int32](d, r.expertAt, slots), get[int32](d, r.placeAt, slots), get[int32](d, r.sourceAt, slots)
	r.offsets = get[int32](d, r.off, experts+1)
	r.probs.v, r.weight.v = r.probs.values(), r.weight.values()
	return r
}

func TestRouting(t *testing.T) {
	shapes := []struct{ tokens, experts, top, normalize int }{
		{5, 4, 2, 0}, {300, 64, 8, 1}, {33, 256, 16, 0}, {20, 130, 6, 1}, {1, 16, 16, 1}, {17, 3, 1, 0}, {200, 7, 6, 0},
	}
	devices(t, func(d *device) {
		for _, s := range shapes {
			x := make([]float64, s.tokens*s.experts)
			for i := range x {
				x[i] = math.Round(d.r.NormFloat64()*8) / 4 // with ties
			}
			logits := d.array('f', x, 0)
			r := route(d, logits, s.tokens, s.experts, s.top, s.normalize)
			for t := range s.tokens {
				l := x[t*s.experts:][:s.experts]
				sum, total := 0.0, 0.0
				for _, v := range l {
					sum += math.Exp(v)
				}
				order := make([]int32, s.experts)
				for e := range order {
					order[e] = int32(e)
					if p := math.Exp(l[e]) / sum; math.Abs(r.probs.v[t*s.experts+e]-p) > 1e-6*p {
						d.t.Fatalf("probability of %d is %v, want %v", e, r.probs.v[t*s.experts+e], p)
					}
				}
				slices.SortStableFunc(order, func(a, b int32) int { return int(math.Copysign(1, l[b]-l[a])) * b2i(l[a] != l[b]) })
				if got := r.expert[t*s.top:][:s.top]; !slices.Equal(got, order[:s.top]) {
					d.t.Fatalf("token %d went to %v, not %v", t, got, order[:s.top])
				}
				for _, e := range order[:s.top] {
					total += math.Exp(l[e]) / sum
				}
				for i, e := range order[:s.top] {
					want := math.Exp(l[e]) / sum
					if s.normalize == 1 {
						want /= total
					}
					if got := r.weight.v[t*s.top+i]; math.Abs(got-want) > 1e-6*want {
						d.t.Fatalf("weight of slot %d of token %d is %v, want %v", i, t, got, want)
					}
				}
			}
			row := int32(0)
			for e := range s.experts {
				if r.offsets[e] != row {
					d.t.Fatalf("expert %d begins at %d, not %d", e, r.offsets[e], row)
				}
				for slot, chosen := range r.expert {
					if int(chosen) != e {
						continue
					}
					if r.place[slot] != row || r.source[row] != int32(slot) {
						d.t.Fatalf("slot %d is at %d, row %d from %d", slot, r.place[slot], row, r.source[row])
					}
					row++
				}
			}
			if r.offsets[s.experts] != row {
				d.t.Fatalf("%d rows, not %d", r.offsets[s.experts], row)
			}
		}
	})
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestMovement(t *testing.T) {
	shapes := []struct{ tokens, experts, top, width int }{{5, 4, 2, 64}, {19, 8, 5, 300}, {7, 3, 3, 2056}, {4, 4, 1, 33}}
	devices(t, func(d *device) {
		for _, s := range shapes {
			r := route(d, d.random('f', s.tokens*s.experts, 0), s.tokens, s.experts, s.top, 0)
			slots, w := s.tokens*s.top, s.width
			block := line(min(256, ceil(ceil(w, 8), 32)*32))
			for _, l := range []string{"ff", "fb", "bb"} {
				for _, some := range []bool{false, true} {
					x, y := d.random(l[0], s.tokens*w, 0), d.random(l[1], slots*w, 0)
					wanted, list := cuda.Ptr(0), make([]int32, s.experts)
					if some {
						list[1], list[s.experts-1] = 1, 1
						wanted = put(d, list, 0)
					}
					for i, p := range r.place {
						if !some || list[r.expert[i]] != 0 {
							copy(y.v[int(p)*w:][:w], x.v[i/s.top*w:])
						}
					}
					d.launch("moe_gather_"+l, line(s.tokens), block, 0, y.p, x.p, r.placeAt, r.expertAt, wanted, s.tokens, s.top, w)
					y.is("gather "+l, y.v)
				}
			}
			for _, l := range []string{"ff", "bf", "bb"} {
				for _, based := range []bool{false, true} {
					o, y, z := d.random(l[0], slots*w, 0), d.random(l[1], s.tokens*w, 0), d.random(l[1], s.tokens*w, 0)
					baseY, baseZ := cuda.Ptr(0), cuda.Ptr(0)
					combined, scattered := make([]float64, s.tokens*w), make([]float64, s.tokens*w)
					if based {
						baseY, baseZ = y.p, z.p
						copy(combined, y.v)
						copy(scattered, z.v)
					}
					for i, p := range r.place {
						for j := range w {
							combined[i/s.top*w+j] += r.weight.v[i] * o.v[int(p)*w+j]
							scattered[i/s.top*w+j] += o.v[int(p)*w+j]
						}
					}
					d.launch("moe_combine_"+l, line(s.tokens), block, 0, y.p, baseY, o.p, r.placeAt, r.weight.p, s.tokens, s.top, w)
					y.is("combine "+l, combined)
					d.launch("moe_scatter_"+l, line(s.tokens), block, 0, z.p, baseZ, o.p, r.placeAt, s.tokens, s.top, w)
					z.is("scatter "+l, scattered)
				}
			}
		}
	})
}

func TestRouteGrad(t *testing.T) {
	shapes := []struct {
		tokens, experts, top, normalize int
		balance                         float32
	}{{5, 4, 2, 0, 0}, {33, 64, 8, 1, 0.01}, {18, 256, 16, 1, 0}, {40, 100, 3, 0, 0.5}}
	devices(t, func(d *device) {
		for _, s := range shapes {
			r := route(d, d.random('f', s.tokens*s.experts, 0), s.tokens, s.experts, s.top, s.normalize)
			dw, dl := d.random('f', s.tokens*s.top, 0), d.blank('f', s.tokens*s.experts, 0)
			d.launch("moe_route_grad", line(ceil(s.tokens, 16)), line(256), 0, dl.p, r.probs.p, r.expertAt, r.weight.p, dw.p, r.off,
				s.tokens, s.experts, s.top, s.normalize, s.balance)
			want, n := make([]float64, s.tokens*s.experts), float64(s.tokens)
			for t := range s.tokens {
				p, g := r.probs.v[t*s.experts:][:s.experts], want[t*s.experts:][:s.experts]
				for e := range g {
					g[e] = float64(s.balance) * float64(s.experts) * float64(r.offsets[e+1]-r.offsets[e]) / n / n
				}
				total, mean := 1.0, 0.0
				if s.normalize == 1 {
					total = 0
					for i := t * s.top; i < (t+1)*s.top; i++ {
						total += p[r.expert[i]]
						mean += dw.v[i] * r.weight.v[i]
					}
				}
				for i := t * s.top; i < (t+1)*s.top; i++ {
					g[r.expert[i]] += (dw.v[i] - mean) / total
				}
				m := 0.0
				for e := range g {
					m += p[e] * g[e]
				}
				for e := range g {
					g[e] = p[e] * (g[e] - m)
				}
			}
			dl.within("dlogits", want, 2e-5)
		}
	})
}
