package cuda

import (
	"encoding/binary"
	"slices"

	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/cuda/kernels"
)

// Tiles of the kernels in kernels/gemm_bf16.cu and kernels/gemm_bf16_sm90.cu, where their arguments are described.
const (
	tileM, tileN     = 128, 128
	tileThreads      = 128
	tileShared       = 65536
	hopperM, hopperN = 128, 256
	hopperThreads    = 384
	stepK            = 64 // of the reduction, per step of a kernel of sm_90a
	hopperShared     = 230400
	mapBytes         = 128

	flagAdd    = 1
	flagVector = 2
)

// matrix is a row-major matrix in a buffer.
type matrix struct {
	*buffer
	rows, cols int
}

// vector says whether rows start at multiples of 16 bytes, which both the copy engine and vector loads need.
func (m matrix) vector() bool { return m.aligned() && m.kind.bytes(m.cols)%16 == 0 }

// hopper says whether the kernels for sm_90a can multiply these matrices.
func (b *Backend) hopper(all ...matrix) bool {
	if b.info.Major != 9 || b.info.Minor != 0 {
		return false
	}
	least := 64 // smaller ones have not been tried on a card
	if b.untried {
		least = 1
	}
	for _, m := range all {
		if !m.vector() || m.rows < least || m.cols < least {
			return false
		}
	}
	_, ok := kernels.Find("gemm_nt_bf16_sm90", b.info.Major, b.info.Minor)
	return ok
}

// tensorMap is the map of a matrix.
func (b *Backend) tensorMap(m matrix) TensorMap {
	t, err := b.drv.TensorMap(m.spec())
	if err != nil {
		b.fail(err)
	}
	return t
}

func (m matrix) spec() TensorSpec {
	wide := m.kind == f32
	t := TensorSpec{Base: m.ptr, Wide: wide, Rows: m.rows, Cols: m.cols, Stride: m.cols, BoxRows: 64, BoxCols: 64}
	if wide {
		t.BoxCols = 32
	}
	return t
}

// product sets y to a product of bfloat16 matrices, or adds it. The layout says which: nt is a·bᵀ, nn a·b, tn aᵀ·b.
func (b *Backend) product(layout string, y, a, c matrix, add bool) {
	m, n, k := y.rows, y.cols, a.cols
	if layout == "tn" {
		k = a.rows
	}
	flags := 0
	if add {
		flags = flagAdd
	}
	name := "gemm_" + layout + "_" + y.kind.String()
	if b.err == nil && y.ptr != 0 && a.ptr != 0 && c.ptr != 0 && b.hopper(y, a, c) {
		tiles := ceil(m, hopperM) * ceil(n, hopperN)
		if parts := b.parts(tiles, k); parts > 1 {
			height := ceil(m, 64) * 64
			partial := b.scratch(f32, parts*height*n)
			b.persistent("gemm_"+layout+"_parts_sm90", tiles*parts, b.tensorMap(a), b.tensorMap(c), b.tensorMap(matrix{partial, parts * height, n}),
				m, n, k, parts)
			b.launch("gemm_sum_parts_"+y.kind.String(), dims{ceil(m*n, 1024), 1, 1}, dims{256, 1, 1}, 0, y.buffer, partial, parts, int64(height*n),
				int64(m*n), flags)
			b.release(partial)
			return
		}
		b.persistent(name+"_sm90", tiles, b.tensorMap(a), b.tensorMap(c), b.tensorMap(y), m, n, k, flags)
		return
	}
	if a.vector() && c.vector() {
		flags |= flagVector
	}
	b.launch(name, dims{ceil(m, tileM) * ceil(n, tileN), 1, 1}, dims{tileThreads, 1, 1}, tileShared, y.buffer, a.buffer, c.buffer, m, n, k,
		a.cols, c.cols, y.cols, flags)
}

// persistent launches a kernel of sm_90a whose blocks share so many tiles.
func (b *Backend) persistent(name string, tiles int, args ...any) {
	b.launch(name, dims{min(b.info.SMs, tiles), 1, 1}, dims{hopperThreads, 1, 1}, hopperShared, args...)
}

// parts is in how many parts a reduction of length k is done, for a result of so many tiles. A sum of parts costs about a
// launch, which is worth some steps.
func (b *Backend) parts(tiles, k int) int {
	const worth, least = 12, 8
	steps := ceil(k, stepK)
	parts := min(b.info.SMs/tiles, steps/least)
	if !b.untried || parts < 2 {
		return 1
	}
	each := ceil(steps, parts)
	if steps-each < worth {
		return 1
	}
	return ceil(steps, each)
}

// table is where the matrices of a layer's experts are, for kernels: addresses and, on sm_90a, tensor maps. The matrices
// are all of one shape.
type table struct {
	at       []Ptr // of the host's knowledge, to see whether it still holds
	pointers *buffer
	maps     *buffer // nil if the copy engine cannot be used
}

// tableOf lists one matrix of every expert: the same ones give the same table again. place numbers the three of an expert.
func (b *Backend) tableOf(experts []backend.Expert, place int) *table {
	pick := func(e backend.Expert) *weight { return [...]backend.Weight{e.Gate, e.Up, e.Down}[place].(*weight) }
	at := make([]Ptr, len(experts))
	for i, e := range experts {
		if v := b.operand(pick(e)); v != nil {
			at[i] = v.ptr
		}
	}
	first := pick(experts[0])
	for _, t := range first.tables {
		if slices.Equal(t.at, at) {
			return t
		}
	}
	t := b.newTable(at, matrix{&buffer{kind: first.kind}, first.out, first.in})
	if len(first.tables) == tablesKept {
		first.tables = first.tables[1:]
	}
	first.tables = append(first.tables, t)
	return t
}

// tablesKept is enough for an overlay and its base, each at two places.
const tablesKept = 4

// newTable makes a table of matrices of the kind and shape of m at these addresses.
func (b *Backend) newTable(at []Ptr, m matrix) *table {
	t := &table{at: at}
	addresses := make([]uint64, len(at))
	hopper := true
	for i, p := range at {
		addresses[i] = uint64(p)
		hopper = hopper && p != 0 && b.hopper(matrix{&buffer{ptr: p, kind: m.kind}, m.rows, m.cols})
	}
	t.pointers = upload(b.device, addresses)
	if !hopper || b.err != nil {
		return t
	}
	raw := make([]uint64, 0, len(at)*mapBytes/8)
	for _, p := range at {
		tm := b.tensorMap(matrix{&buffer{ptr: p, kind: m.kind}, m.rows, m.cols})
		for i := 0; i < mapBytes; i += 8 {
			raw = append(raw, binary.NativeEndian.Uint64(tm[i:]))
		}
	}
	t.maps = upload(b.device, raw)
	return t
}

// grouped multiplies the rows of every expert by its matrix: y = a·wᵀ (nt) or a·w (nn). Expert e has the rows
// offsets[e] … offsets[e+1].
func (b *Backend) grouped(layout string, y, a matrix, t *table, offsets *buffer, add bool) {
	experts := len(t.at)
	n, k := y.cols, a.cols
	flags := 0
	if add {
		flags = flagAdd
	}
	name := "gemm_" + layout + "_grouped_" + y.kind.String()
	if t.maps != nil && b.err == nil && b.hopper(y, a) {
		tiles := (ceil(a.rows, hopperM) + experts) * ceil(n, hopperN)
		b.persistent(name+"_sm90", tiles, b.tensorMap(a), t.maps, b.tensorMap(y), y.buffer, offsets, experts, n, k, n, flags)
		return
	}
	ldw := k
	if layout == "nn" {
		ldw = n
	}
	if a.vector() && ldw%8 == 0 && alignedAll(t.at) {
		flags |= flagVector
	}
	b.launch(name, dims{ceil(n, tileN) * (ceil(a.rows, tileM) + experts), 1, 1}, dims{tileThreads, 1, 1}, tileShared, y.buffer, a.buffer, t.pointers,
		offsets, experts, n, k, a.cols, ldw, n, flags)
}

// groupedSwiglu sets g = x·gateᵀ, u = x·upᵀ and a = silu(g)·u of every expert; g and u may be without buffers, and a may be g
// where the kernels are not fused.
func (b *Backend) groupedSwiglu(a, g, u, x matrix, gate, up *table, offsets *buffer) {
	n, f := x.rows, a.cols
	if b.untried && gate.maps != nil && up.maps != nil && b.err == nil && b.hopper(a, x) && (g.buffer == nil || b.hopper(g, u)) {
		keep := 1
		if g.buffer == nil {
			g, u, keep = a, a, 0
		}
		tiles := (ceil(n, hopperM) + len(gate.at)) * ceil(f, hopperN/2)
		b.persistent("gemm_nt_grouped_swiglu_sm90", tiles, b.tensorMap(x), gate.maps, up.maps, b.tensorMap(g), b.tensorMap(u), b.tensorMap(a),
			g.buffer, u.buffer, a.buffer, offsets, len(gate.at), f, x.cols, f, keep)
		return
	}
	drop := func() {}
	if g.buffer == nil {
		g, u = a, matrix{b.scratch(bf16, n*f), n, f}
		drop = func() { b.release(u.buffer) }
	}
	b.grouped("nt", g, x, gate, offsets, false)
	b.grouped("nt", u, x, up, offsets, false)
	b.launch("swiglu_bb", dims{ceil(n*ceil(f, 8), 256), 1, 1}, dims{256, 1, 1}, 0, a.buffer, g.buffer, u.buffer, n, f, f, f)
	drop()
}

// groupedSum sets y = g·gate + u·up of every expert.
func (b *Backend) groupedSum(y, g, u matrix, gate, up *table, offsets *buffer) {
	if b.untried && gate.maps != nil && up.maps != nil && b.err == nil && b.hopper(y, g, u) {
		tiles := (ceil(y.rows, hopperM) + len(gate.at)) * ceil(y.cols, hopperN)
		b.persistent("gemm_nn_grouped_sum_sm90", tiles, b.tensorMap(g), gate.maps, b.tensorMap(u), up.maps, b.tensorMap(y), y.buffer, offsets,
			len(gate.at), y.cols, g.cols, y.cols)
		return
	}
	b.grouped("nn", y, g, gate, offsets, false)
	b.grouped("nn", y, u, up, offsets, true)
}

func alignedAll(at []Ptr) bool {
	for _, p := range at {
		if p%16 != 0 {
			return false
		}
	}
	return true
}

// groupedGrad adds aᵀ·c over the rows of every expert listed to its gradient: y[i] is [a.cols, c.cols] in float32 for
// expert list[i].
func (b *Backend) groupedGrad(y []*buffer, list *buffer, a, c matrix, offsets *buffer) {
	m, n := a.cols, c.cols
	at := make([]Ptr, len(y))
	for i, g := range y {
		at[i] = g.ptr
	}
	t := b.newTable(at, matrix{&buffer{kind: f32}, m, n})
	if t.maps != nil && b.err == nil && b.hopper(a, c) {
		tiles := ceil(m, hopperM) * ceil(n, hopperN) * len(y)
		b.persistent("gemm_tn_grouped_f32_sm90", tiles, b.tensorMap(a), b.tensorMap(c), t.maps, offsets, list, len(y), m, n, flagAdd)
		return
	}
	flags := flagAdd
	if a.vector() && c.vector() {
		flags |= flagVector
	}
	b.launch("gemm_tn_grouped_f32", dims{ceil(m, tileM) * ceil(n, tileN) * len(y), 1, 1}, dims{tileThreads, 1, 1}, tileShared, t.pointers, a.buffer,
		c.buffer, offsets, list, len(y), m, n, m, n, n, flags)
}

// cast converts between float32 and bfloat16.
func (b *Backend) cast(dst, src *buffer) {
	if dst.kind == src.kind {
		b.copy(dst, src)
		return
	}
	b.launch("cast_"+src.kind.String()+"_"+dst.kind.String(), dims{ceil(src.n, 2048), 1, 1}, dims{256, 1, 1}, 0, dst, src, int64(src.n))
}

// narrow returns x in bfloat16 and at an address that vector loads can use, copied to scratch if it is not.
func (b *Backend) narrow(x *buffer) (y *buffer, release func()) {
	if x.kind == bf16 {
		return x, func() {}
	}
	s := b.scratch(bf16, x.n)
	b.cast(s, x)
	return s, func() { b.release(s) }
}
