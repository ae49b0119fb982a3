package main

import "fmt"

// tile gives the largest register tile: rows by 16-column vectors.
func (w isa) tile() (rows, vectors int) {
	if w == avx512 {
		return 14, 2
	}
	return 6, 1
}

// gemmAll emits one kernel per tile height (and per tile width 16 and 32 for AVX-512) and a dispatcher.
func (g *gen) gemmAll() {
	rows, vectors := g.isa.tile()
	for v := 1; v <= vectors; v++ {
		for m := 1; m <= rows; m++ {
			g.gemm(m, v)
		}
	}
	fmt.Fprintf(&g.decl, "// gemm%s runs the tile kernel of m rows and v vectors of 16 columns.\nfunc gemm%s(m, v int, t *tile) {\n\tswitch v<<8 | m {\n", g.isa.suffix(), g.isa.suffix())
	for v := 1; v <= vectors; v++ {
		for m := 1; m <= rows; m++ {
			fmt.Fprintf(&g.decl, "\tcase %d<<8 | %d:\n\t\tgemm%dx%d%s(t)\n", v, m, m, 16*v, g.isa.suffix())
		}
	}
	g.decl.WriteString("\tdefault:\n\t\tpanic(\"cpu: no such tile\")\n\t}\n}\n\n")
}

// gemm emits C[m, 16v] = or += sum over k of A[i,k]·B[k,j], k in order, one fused multiply-add a step.
//
// The tile struct (see kernels.go of package cpu): a 0, aRow 8, aCol 16, b 24, bPanel 32, k 40, c 48, cRow 56, add 64;
// strides in bytes.
func (g *gen) gemm(m, v int) {
	name := fmt.Sprintf("gemm%dx%d", m, 16*v)
	g.begin(name, "is the tile kernel of that size.", []param{{"t", "*tile"}}, false, map[string]string{"t": "DI"})
	acc := func(i, j int) vec { return vec(i*v + j) }
	b := func(j int) vec { return vec(m*v + j) }
	bc := vec(m*v + v)
	g.line("MOVQ 0(DI), R8")
	g.line("MOVQ 8(DI), R11")
	g.line("MOVQ 16(DI), R13")
	g.line("MOVQ 24(DI), SI")
	g.line("MOVQ 40(DI), CX")
	g.line("MOVQ 48(DI), DX")
	g.line("MOVQ 56(DI), R14")
	g.line("LEAQ (R11)(R11*2), R12")
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
	for i := range m {
		for j := range v {
			g.op("VXORPS", acc(i, j), acc(i, j), acc(i, j))
		}
	}
	g.line("TESTQ CX, CX")
	g.line("JZ done")
	g.label("loop")
	g.op("VMOVUPS", mem{"SI", 0}, b(0))
	if v == 2 {
		g.op("VMOVUPS", mem{"BX", 0}, b(1))
		g.line("ADDQ $64, BX")
	}
	g.line("ADDQ $64, SI")
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
	g.line("DECQ CX")
	g.line("JNZ loop")
	g.label("done")
	g.line("CMPQ 64(DI), $0")
	g.line("JEQ store")
	g.line("MOVQ DX, AX")
	for i := range m {
		for j := range v {
			g.op("VADDPS", mem{"AX", 64 * j}, acc(i, j), acc(i, j))
		}
		if i+1 < m {
			g.line("ADDQ R14, AX")
		}
	}
	g.label("store")
	for i := range m {
		for j := range v {
			g.op("VMOVUPS", acc(i, j), mem{"DX", 64 * j})
		}
		if i+1 < m {
			g.line("ADDQ R14, DX")
		}
	}
	g.end()
}
