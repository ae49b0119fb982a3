package cuda

import (
	"encoding/binary"
	"fmt"

	"github.com/blockzero-net/bzd/training/backend"
)

// form is how the operands of a product lie: which of kernels/gemm_exact.cu it is.
type form int

const (
	formNT form = iota // a·bᵀ
	formNN             // a·b
	formTN             // aᵀ·b
)

func (f form) String() string { return [...]string{"nt", "nn", "tn"}[f] }

// exactTile is the side of a tile and its block. Larger ones were slower on an H100.
type exactTile struct{ side, threads int }

var (
	vectorTile = exactTile{64, 64}
	anyTile    = exactTile{64, 128}
)

// exactProduct is one launch: C [m, n], set or added, of A and B, or such a product for every expert.
type exactProduct struct {
	form    form
	c, a, b *buffer
	kind    kind // of B
	m, n, k int
	add     bool

	// For experts: pointers to B (to C if the form is tn), the gathered rows of each, and for tn which experts, how many.
	pointers, offsets, list *buffer
	experts, listed         int
	aligned                 bool // all pointers are multiples of 16
}

// strides are those of rows of A, B and C.
func (p exactProduct) strides() (a, b, c int) {
	switch p.form {
	case formNT:
		return p.k, p.k, p.n
	case formNN:
		return p.k, p.n, p.n
	default:
		return p.m, p.n, p.n
	}
}

// vectors says whether the kernels that read vectors can be used.
func (p exactProduct) vectors() bool {
	for _, x := range []*buffer{p.a, p.b, p.c} {
		if x != nil && !x.aligned() {
			return false
		}
	}
	a, b, c := p.strides()
	width := 4
	if p.kind == bf16 {
		width = 8
	}
	return a%4 == 0 && b%width == 0 && c%4 == 0 && (p.offsets == nil || p.aligned)
}

func (b *Backend) exactProduct(p exactProduct) {
	t, name := anyTile, "gemm_exact_any"
	vectors := p.vectors()
	if vectors {
		t = vectorTile
		name = "gemm_exact_" + p.form.String() + "_" + p.kind.String()
	}
	grid := dims{ceil(p.n, t.side), ceil(p.m, t.side), 1}
	switch {
	case p.offsets == nil:
	case p.form == formTN:
		grid[2] = p.listed
	default:
		grid[1] = p.m/t.side + p.experts // each expert's last tile may be short
	}
	lda, ldb, ldc := p.strides()
	args := []any{p.c, p.a, p.b, p.pointers, p.offsets, p.list, p.experts, p.m, p.n, p.k, lda, ldb, ldc, flag(p.add)}
	if !vectors {
		args = append(args, int(p.form), flag(p.kind == bf16))
	}
	b.launch(name, grid, dims{t.threads, 1, 1}, 0, args...)
}

func flag(x bool) int {
	if x {
		return 1
	}
	return 0
}

func (b *Backend) exactLinear(y, x *buffer, w *weight) {
	v := b.operand(w)
	b.exactProduct(exactProduct{form: formNT, c: y, a: x, b: v, kind: v.kind, m: x.n / w.in, n: w.out, k: w.in})
}

func (b *Backend) exactLinearGradInput(dx, dy *buffer, w *weight, add bool) {
	v := b.operand(w)
	b.exactProduct(exactProduct{form: formNN, c: dx, a: dy, b: v, kind: v.kind, m: dy.n / w.out, n: w.in, k: w.out, add: add})
}

func (b *Backend) exactLinearGradWeight(dw, dy, x *buffer, rows int) {
	b.exactProduct(exactProduct{form: formTN, c: dw, a: dy, b: x, m: dy.n / rows, n: x.n / rows, k: rows, add: true})
}

// exactTable is a list of addresses on the device.
type exactTable struct {
	pointers *buffer
	list     *buffer // of experts, if not all
	count    int
	aligned  bool
}

// exactTables keeps the tables uploaded before: the same addresses come again with every batch.
type exactTables map[string]*exactTable

// tablesMost bounds what is kept. A model has three tables per layer and kind, training as many again.
const tablesMost = 4096

func (b *Backend) exactTable(tables exactTables, at []uint64, list []int32) *exactTable {
	key := make([]byte, 0, 8*len(at)+4*len(list))
	for _, p := range at {
		key = binary.LittleEndian.AppendUint64(key, p)
	}
	for _, e := range list {
		key = binary.LittleEndian.AppendUint32(key, uint32(e))
	}
	if t, ok := tables[string(key)]; ok {
		return t
	}
	t := &exactTable{count: len(at), aligned: true, pointers: upload(b.device, at)}
	for _, p := range at {
		t.aligned = t.aligned && p%16 == 0
	}
	if list != nil {
		t.list = upload(b.device, list)
	}
	if b.err != nil {
		return t
	}
	if len(tables) >= tablesMost {
		clear(tables)
	}
	tables[string(key)] = t
	return t
}

// exactExperts multiplies every expert's rows of a by one of its matrices, chosen by which: c [slots, n] = a·wᵀ (nt) or a·w
// (nn). Experts that use does not name are left out. Those in float32 and those in bfloat16 have a launch each.
func (b *Backend) exactExperts(p exactProduct, m *exactMix, experts []backend.Expert, which func(backend.Expert) backend.Weight, use func(e int) bool) {
	for _, k := range []kind{f32, bf16} {
		at, any := make([]uint64, len(experts)), false
		for e := range experts {
			w := which(experts[e]).(*weight)
			if out, in := w.Shape(); p.form == formNT && (out != p.n || in != p.k) || p.form == formNN && (out != p.k || in != p.n) {
				panic(fmt.Sprintf("cuda: expert %d has a weight [%d, %d]", e, out, in))
			}
			if v := b.operand(w); v != nil && v.kind == k && use(e) {
				at[e], any = uint64(v.ptr), true
			}
		}
		if !any {
			continue
		}
		t := b.exactTable(m.tables, at, nil)
		p.kind, p.pointers, p.aligned, p.offsets, p.experts = k, t.pointers, t.aligned, m.offsets, len(experts)
		b.exactProduct(p)
	}
}

// exactExpertSums adds aᵀ·x over every listed expert's rows to its gradient.
func (b *Backend) exactExpertSums(p exactProduct, m *exactMix, grads []backend.ExpertGrad, which func(backend.ExpertGrad) backend.Buffer) {
	var at []uint64
	var list []int32
	for e, g := range grads {
		if d := on(which(g)); d != nil {
			mustMatch("gradient of an expert", d.n, p.m*p.n)
			at, list = append(at, uint64(d.ptr)), append(list, int32(e))
		}
	}
	if len(list) == 0 {
		return
	}
	t := b.exactTable(m.tables, at, list)
	p.form, p.add, p.pointers, p.aligned, p.offsets, p.list, p.listed, p.experts = formTN, true, t.pointers, t.aligned, m.offsets, t.list, t.count, m.Experts
	b.exactProduct(p)
}
