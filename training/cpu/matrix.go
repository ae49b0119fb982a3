package cpu

import "unsafe"

// blockK is the length of a k-block: a product is a sequence of fused multiply-adds within a block, and block sums are
// added in order. It is part of docs/spec/exact.md.
const blockK = 256

// blockN is how many columns of the right-hand matrix are packed at a time: with blockK rows they stay in a core's second
// level cache while all rows of the left one pass by. It is a multiple of every tile's width.
const blockN = 256

// view is a left-hand operand: value (i, k) at data[i·row + k·col].
type view struct {
	data     []float32
	row, col int
}

// right is a right-hand operand [k, n]: value (k, j) at k·row + j of f or half, or at j·row + k if turned. Packed, f holds
// panels of 16 columns and row values for each k, padded with zeros, row being the rows that a panel has.
type right struct {
	f              []float32
	half           []uint16 // bfloat16 values instead of f
	row            int
	turned, packed bool
	far            bool // it is not in the cache, and all of f or half is wanted in the end
}

// span is where columns n0 to n1 of a far operand of k rows lie, if that is in one piece.
func (r right) span(k, n0, n1 int) (at, bytes uintptr) {
	switch {
	case !r.far:
	case r.turned && r.half == nil:
		at, bytes = uintptr(unsafe.Pointer(&r.f[n0*r.row])), uintptr(4*(n1-n0)*r.row)
	case r.turned:
		at, bytes = uintptr(unsafe.Pointer(&r.half[n0*r.row])), uintptr(2*(n1-n0)*r.row)
	case n1-n0 < r.row:
	case r.half == nil:
		at, bytes = uintptr(unsafe.Pointer(&r.f[0])), uintptr(4*k*r.row)
	default:
		at, bytes = uintptr(unsafe.Pointer(&r.half[0])), uintptr(2*k*r.row)
	}
	return at, bytes
}

// from is packed r without its first rows.
func (r right) from(k0 int) right { return right{f: r.f[16*k0:], row: r.row, packed: true} }

// panels is how many values k rows of n columns take when packed.
func panels(k, n int) int { return (n + 15) / 16 * k * 16 }

// packed packs all of r, [k, n], into dst.
func (b *Backend) packed(w *work, dst []float32, r right, k, n int) right {
	b.pack(w, dst, r, 0, k, 0, n)
	return right{f: dst, row: k, packed: true}
}

// pack packs the rows k0 to k0+k and the columns j0 to j0+n of r into dst, in panels of k rows.
func (b *Backend) pack(w *work, dst []float32, r right, k0, k, j0, n int) {
	if k == 0 || n == 0 {
		return
	}
	_ = dst[:panels(k, n)]
	if !r.turned {
		at := k0*r.row + j0
		if r.half == nil {
			b.move(dst, r.f[at:], k, n, r.row, 16, 16*k)
		} else {
			b.widen(dst, r.half[at:], k, n, r.row, 16, 16*k)
		}
		return
	}
	for j := 0; j < n; j += 8 {
		at, d := (j0+j)*r.row+k0, dst[j/16*16*k+j%16:]
		switch whole := k &^ 15; {
		case n-j < 8:
			b.packFew(w, d, r, at, k, n-j)
		case r.half == nil:
			b.transpose(d, r.f[at:], whole, r.row)
		default:
			b.transposeHalf(d, r.half[at:], whole, r.row)
		}
		if n-j >= 8 {
			for x := k &^ 15; x < k; x++ {
				for c := range 8 {
					d[16*x+c] = r.value(at + c*r.row + x)
				}
			}
		}
	}
	if n%16 != 0 && n%16 <= 8 { // the other half of the last panel
		d := dst[n/16*16*k:]
		for x := range k {
			clear(d[16*x+8 : 16*x+16])
		}
	}
}

// packFew transposes fewer than 8 rows from at on, and zeros for those that are missing.
func (b *Backend) packFew(w *work, d []float32, r right, at, k, rows int) {
	clear(w.few[:])
	for x0 := 0; x0 < k; x0 += blockK {
		x := min(blockK, k-x0)
		for c := range rows {
			for i := range x {
				w.few[c*blockK+i] = r.value(at + c*r.row + x0 + i)
			}
		}
		whole := x &^ 15
		b.transpose(d[16*x0:], w.few[:], whole, blockK)
		for i := whole; i < x; i++ {
			for c := range 8 {
				d[16*(x0+i)+c] = w.few[c*blockK+i]
			}
		}
	}
}

func (r right) value(at int) float32 {
	if r.half == nil {
		return r.f[at]
	}
	return widened(r.half[at])
}

// stripLen is how many values of a strip of the left-hand matrix are copied: k for each of up to 16 rows, with a distance
// between them that keeps them out of one another's cache lines.
const (
	stripRow = blockK + 16
	stripLen = 16 * stripRow
)

// product sets (or adds to) columns n0 to n1 of the rows m0 to m1 of c, with row stride ldc, the product of a and r
// over k.
func (b *Backend) product(w *work, c []float32, ldc int, a view, r right, k, m0, m1, n0, n1 int, add bool) {
	base := c
	if !add {
		base = nil
	}
	b.productOnto(w, c, base, ldc, a, r, k, m0, m1, n0, n1)
}

// productOnto is product that is added to base, which lies as c does, unless it is nil. What has several k-blocks can only
// be added to c itself.
func (b *Backend) productOnto(w *work, c, base []float32, ldc int, a view, r right, k, m0, m1, n0, n1 int) {
	m := m1 - m0
	if m <= 0 || n1 <= n0 {
		return
	}
	// A strip is copied if enough tiles read it and its rows lie so far apart that they may drive one another from the cache.
	copied := n1-n0 > 64 && a.row > blockK || a.col != 1 && n1-n0 > 32
	strips := (m + b.rows - 1) / b.rows
	t := &w.tile
	// Blocks go in the order in which r lies in memory. While one is multiplied by, those that follow are fetched.
	wide, deep := (n1-n0+blockN-1)/blockN, max(1, (k+blockK-1)/blockK)
	at, bytes := r.span(k, n0, n1)
	part, lead := bytes/uintptr(wide*deep), deep
	if !r.turned {
		lead = wide
	}
	for block := range wide * deep {
		j, k0 := n0+block/deep*blockN, block%deep*blockK
		if !r.turned {
			j, k0 = n0+block%wide*blockN, block/wide*blockK
		}
		n := min(blockN, n1-j)
		*t = tile{b: &w.block[0], k: min(blockK, k-k0), cRow: 4 * ldc, n: n}
		onto := base
		if k0 > 0 {
			onto = c
		}
		switch {
		case t.k == 0:
		case r.packed:
			t.b, t.bPanel = &r.f[j*r.row+16*k0], 64*r.row
		default:
			b.pack(w, w.block[:], r, k0, t.k, j, n)
			t.bPanel = 64 * t.k
		}
		ahead, step := uintptr(unsafe.Pointer(t.b)), part/uintptr(strips)
		switch next := block + lead; {
		case at == 0:
		case next < wide*deep:
			ahead = at + uintptr(next)*part
		case w.then != 0:
			ahead = w.then + uintptr(next-wide*deep)*part
		default:
			step = 0
		}
		i := m0
		for s := range strips {
			h := (m1 - i + strips - s - 1) / (strips - s)
			t.a, t.aRow, t.aCol = &w.left[0], 4*a.row, 4*a.col
			switch {
			case t.k == 0:
			case !copied:
				t.a = &a.data[i*a.row+k0*a.col]
			case a.col == 1:
				b.move(w.left[:], a.data[i*a.row+k0:], h, t.k, a.row, stripRow, 16)
				t.aRow = 4 * stripRow
			default:
				b.move(w.left[:], a.data[i*a.row+k0*a.col:], t.k, h, a.col, 16, 0)
				t.aRow, t.aCol = 4, 64
			}
			t.c = &c[i*ldc+j]
			_ = c[(i+h-1)*ldc+j+n-1]
			if onto != nil {
				_ = onto[(i+h-1)*ldc+j+n-1]
				t.base = &onto[i*ldc+j]
			}
			t.ahead = ahead + uintptr(s)*step
			b.strip(h, t)
			i += h
		}
	}
	w.then = 0
}

// grid cuts m rows and n columns into parts that keep all threads busy and runs them in parallel. Columns are cut first:
// a part packs its columns of the right-hand matrix.
func (b *Backend) grid(m, n int, f func(w *work, m0, m1, n0, n1 int)) {
	rows, cols := b.cut(m, n, 4*b.threads)
	across := (n + cols - 1) / cols
	b.par((m+rows-1)/rows*across, func(w *work, i int) {
		m0, n0 := i/across*rows, i%across*cols
		f(w, m0, min(m0+rows, m), n0, min(n0+cols, n))
	})
}

// cut gives the rows and columns of about parts parts of a product, the columns a multiple of 32.
func (b *Backend) cut(m, n, parts int) (rows, cols int) {
	if b.threads == 1 || m == 0 || n == 0 {
		return max(m, 1), max(n, 1)
	}
	across := max(1, min(n/blockN, parts))
	down := max(1, min(m/(4*b.rows), (parts+across-1)/across))
	return (m + down - 1) / down, ((n+across-1)/across + 31) &^ 31
}

// stripOf makes the kernel of strips from that of tiles: for instruction sets that have no other.
func stripOf(rows, vectors int, gemm func(m, v int, t *tile)) func(m int, t *tile) {
	return func(m int, t *tile) {
		for j := 0; j < t.n; j += 16 * vectors {
			e, n := *t, min(16*vectors, t.n-j)
			v := (n + 15) / 16
			e.b = (*float32)(unsafe.Add(unsafe.Pointer(t.b), j/16*t.bPanel))
			e.c = (*float32)(unsafe.Add(unsafe.Pointer(t.c), 4*j))
			if t.base != nil {
				e.base = (*float32)(unsafe.Add(unsafe.Pointer(t.base), 4*j))
			}
			if n == 16*v {
				gemm(m, v, &e)
				continue
			}
			var edge [16 * 32]float32 // a tile that reaches over the last column
			c, base := e.c, e.base
			e.c, e.cRow, e.base = &edge[0], 64*v, nil
			gemm(m, v, &e)
			for i := range m {
				row := unsafe.Slice((*float32)(unsafe.Add(unsafe.Pointer(c), i*t.cRow)), n)
				sums := edge[i*16*v:][:n]
				if base != nil {
					for x, v := range unsafe.Slice((*float32)(unsafe.Add(unsafe.Pointer(base), i*t.cRow)), n) {
						sums[x] = v + sums[x]
					}
				}
				copy(row, sums)
			}
		}
	}
}
