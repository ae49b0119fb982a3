package main

import "fmt"

// tile gives the largest register tile: rows by 16-column vectors.
func (w isa) tile() (rows, vectors int) {
	if w == avx512 {
		return 14, 2
	}
	return 6, 1
}

// unroll is how many steps of k one turn of a tile's loop takes.
const unroll = 4

// strips emits one kernel per height of a strip, and a dispatcher.
func (g *gen) strips() {
	rows, _ := g.isa.tile()
	for m := 1; m <= rows; m++ {
		g.strip(m)
	}
	fmt.Fprintf(&g.decl, "// strip%s runs the kernel of strips of m rows.\nfunc strip%s(m int, t *tile) {\n\tswitch m {\n", g.isa.suffix(), g.isa.suffix())
	for m := 1; m <= rows; m++ {
		fmt.Fprintf(&g.decl, "\tcase %d:\n\t\tstrip%d%s(t)\n", m, m, g.isa.suffix())
	}
	g.decl.WriteString("\tdefault:\n\t\tpanic(\"cpu: no strip of that height\")\n\t}\n}\n\n")
}

// strip emits C[m, n] = or += sum over k of A[i,k]·B[k,j], k in order, one fused multiply-add a step, as a row of tiles.
// Columns beyond n are computed from the panel's padding and not stored.
//
// The tile struct (see kernels.go of package cpu): a 0, aRow 8, aCol 16, b 24, bPanel 32, k 40, c 48, cRow 56, base 64,
// n 72, ahead 80; strides in bytes. The locals are the columns left, and the offsets to the next panel and columns of C.
func (g *gen) strip(m int) {
	_, wide := g.isa.tile()
	g.frame = 24
	defer func() { g.frame = 0 }()
	g.begin(fmt.Sprintf("strip%d", m), "multiplies a strip of that many rows.", []param{{"t", "*tile"}}, false, map[string]string{"t": "DI"})
	g.line("MOVQ 8(DI), R11")
	g.line("MOVQ 16(DI), R13")
	g.line("MOVQ 56(DI), R14")
	g.line("LEAQ (R11)(R11*2), R12")
	g.line("MOVQ 72(DI), AX")
	g.line("MOVQ AX, 0(SP)")
	g.line("MOVQ 80(DI), R15")
	g.line("MOVQ $0, 8(SP)")
	g.line("MOVQ $0, 16(SP)")
	g.label("next")
	g.line("CMPQ 0(SP), $%d", 16*wide)
	g.line("JLT last")
	g.tile("full", m, wide, false)
	g.line("MOVQ 32(DI), AX")
	for range wide {
		g.line("ADDQ AX, 8(SP)")
	}
	g.line("ADDQ $%d, 16(SP)", 64*wide)
	g.line("SUBQ $%d, 0(SP)", 16*wide)
	g.line("JMP next")
	g.label("last")
	if wide == 2 {
		g.line("CMPQ 0(SP), $16")
		g.line("JGT two")
	}
	g.line("CMPQ 0(SP), $0")
	g.line("JEQ end")
	g.tile("one", m, 1, true)
	if wide == 2 {
		g.line("JMP end")
		g.label("two")
		g.line("SUBQ $16, 0(SP)")
		g.tile("pair", m, 2, true)
	}
	g.label("end")
	g.end()
}

// tile emits one tile of m rows and v vectors. If it is the last, 0(SP) says how many columns of its last vector to store.
func (g *gen) tile(name string, m, v int, last bool) {
	acc := func(i, j int) vec { return vec(i*v + j) }
	b := func(j int) vec { return vec(m*v + j) }
	bc := vec(m*v + v)
	g.line("MOVQ 0(DI), R8")
	g.line("MOVQ 24(DI), SI")
	g.line("ADDQ 8(SP), SI")
	g.line("MOVQ 40(DI), CX")
	g.line("MOVQ 48(DI), DX")
	g.line("ADDQ 16(SP), DX")
	bases := []string{"R8", "R9", "R10"}
	for i := 1; 5*i < m; i++ { // each base serves five rows: base + {0, 1, 2, 3, 4}·aRow
		g.line("LEAQ (%s)(R11*4), %s", bases[i-1], bases[i])
		g.line("ADDQ R11, %s", bases[i])
	}
	if v == 2 {
		g.line("MOVQ 32(DI), BX")
		g.line("ADDQ SI, BX")
	}
	row := func(i int) string {
		r := bases[i/5]
		return [...]string{"(" + r + ")", "(" + r + ")(R11*1)", "(" + r + ")(R11*2)", "(" + r + ")(R12*1)", "(" + r + ")(R11*4)"}[i%5]
	}
	g.line("MOVQ DX, AX")
	for i := range m {
		g.line("PREFETCHT0 (AX)")
		if v == 2 {
			g.line("PREFETCHT0 64(AX)")
		}
		if i+1 < m {
			g.line("ADDQ R14, AX")
		}
		for j := range v {
			g.op("VXORPS", acc(i, j), acc(i, j), acc(i, j))
		}
	}
	step := func(off int) {
		g.op("VMOVUPS", mem{"SI", off}, b(0))
		if v == 2 {
			g.op("VMOVUPS", mem{"BX", off}, b(1))
		}
		for i := range m {
			if g.isa == avx512 {
				g.line("VBROADCASTSS %s, Z%d", row(i), int(bc))
				for j := range v {
					g.line("VFMADD231PS Z%d, Z%d, Z%d", int(b(j)), int(bc), int(acc(i, j)))
				}
				continue
			}
			one := 2 * int(bc) // a single YMM holds the broadcast for both halves
			g.line("VBROADCASTSS %s, Y%d", row(i), one)
			for h := range 2 {
				g.line("VFMADD231PS Y%d, Y%d, Y%d", 2*int(b(0))+h, one, 2*int(acc(i, 0))+h)
			}
		}
		for i := 0; 5*i < m; i++ {
			g.line("ADDQ R13, %s", bases[i])
		}
	}
	advance := func(steps int) {
		g.line("ADDQ $%d, SI", 64*steps)
		if v == 2 {
			g.line("ADDQ $%d, BX", 64*steps)
		}
	}
	g.line("SUBQ $%d, CX", unroll)
	g.line("JLT %sRest", name)
	g.label(name + "Loop")
	for i := range unroll {
		step(64 * i)
		if i%2 == 0 {
			g.line("PREFETCHT1 (R15)")
			g.line("ADDQ $64, R15")
		}
	}
	advance(unroll)
	g.line("SUBQ $%d, CX", unroll)
	g.line("JGE %sLoop", name)
	g.label(name + "Rest")
	g.line("ADDQ $%d, CX", unroll)
	g.line("JZ %sSum", name)
	g.label(name + "Single")
	step(0)
	advance(1)
	g.line("DECQ CX")
	g.line("JNZ %sSingle", name)
	g.label(name + "Sum")
	if last {
		g.mask("0(SP)")
	}
	masked := func(j int) bool { return last && j == v-1 }
	g.line("MOVQ 64(DI), AX")
	g.line("TESTQ AX, AX")
	g.line("JZ %sStore", name)
	g.line("ADDQ 16(SP), AX")
	for i := range m {
		for j := range v {
			g.addTo(acc(i, j), "AX", 64*j, masked(j))
		}
		if i+1 < m {
			g.line("ADDQ R14, AX")
		}
	}
	g.label(name + "Store")
	for i := range m {
		for j := range v {
			g.storeTo(acc(i, j), "DX", 64*j, masked(j))
		}
		if i+1 < m {
			g.line("ADDQ R14, DX")
		}
	}
}

// mask makes the first n lanes of a vector those that masked operations touch: in K1, or in Y14 and Y15. It overwrites AX
// and CX.
func (g *gen) mask(n string) {
	g.line("MOVQ %s, CX", n)
	if g.isa == avx512 {
		g.line("MOVL $1, AX")
		g.line("SHLL CX, AX")
		g.line("DECL AX")
		g.line("KMOVW AX, K1")
		return
	}
	g.lanes = true
	g.line("LEAQ ·lanes<>(SB), AX")
	g.line("SHLQ $2, CX")
	g.line("SUBQ CX, AX")
	g.line("VMOVUPS 64(AX), Y14")
	g.line("VMOVUPS 96(AX), Y15")
}

// addTo adds what lies at off(base) to v. Masked, it overwrites Y12 and Y13.
func (g *gen) addTo(v vec, base string, off int, masked bool) {
	switch {
	case !masked:
		g.op("VADDPS", mem{base, off}, v, v)
	case g.isa == avx512:
		g.line("VADDPS %s, Z%d, K1, Z%d", mem{base, off}.at(g, 0), int(v), int(v))
	default:
		for h := range 2 {
			g.line("VMASKMOVPS %s, Y%d, Y%d", mem{base, off}.at(g, h), 14+h, 12+h)
			g.line("VADDPS Y%d, %s, %s", 12+h, v.at(g, h), v.at(g, h))
		}
	}
}

func (g *gen) storeTo(v vec, base string, off int, masked bool) {
	switch {
	case !masked:
		g.op("VMOVUPS", v, mem{base, off})
	case g.isa == avx512:
		g.line("VMOVUPS Z%d, K1, %s", int(v), mem{base, off}.at(g, 0))
	default:
		for h := range 2 {
			g.line("VMASKMOVPS %s, Y%d, %s", v.at(g, h), 14+h, mem{base, off}.at(g, h))
		}
	}
}
