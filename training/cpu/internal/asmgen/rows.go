package main

// rows emits the kernels that work on several rows at a time.
func (g *gen) rows() {
	g.norms()
	g.ropes()
	g.softmax()
	g.chain()
}

// row sets up the pointers of a pass over a row, CX being its length, and emits the loop. done names its end.
func (g *gen) row(name string, from map[string]string, ptrs []string, spare vec, body func()) {
	for _, to := range ptrs {
		g.line("MOVQ %s, %s", from[to], to)
	}
	g.line("MOVQ BX, CX")
	g.turns(name, ptrs, body)
	g.line("TESTQ R10, R10")
	g.line("JZ %sDone", name)
	g.tail(spare, body)
	g.label(name + "Done")
}

// width splits the length of a row, in BX, for row: R10 takes the rest, and the mask is made for it.
func (g *gen) width() {
	g.line("MOVQ BX, R10")
	g.line("ANDQ $15, R10")
	g.tailMask()
}

func (g *gen) norms() {
	params := func(names ...string) []param {
		var p []param
		for _, n := range names {
			p = append(p, param{n, "*float32"})
		}
		return append(p, param{"rows", "int"}, param{"n", "int"})
	}
	reg := map[string]string{"y": "DI", "dx": "DI", "inv": "R8", "x": "SI", "w": "DX", "dy": "R9", "rows": "R14", "n": "BX"}
	next := func(ptrs ...string) {
		g.line("ADDQ $4, R8")
		for _, p := range ptrs {
			g.line("LEAQ (%s)(BX*4), %s", p, p)
		}
		g.line("DECQ R14")
		g.line("JNZ row")
		g.end()
	}
	x := func(v vec) string { return "X" + vec(v).at(g, 0)[1:] }

	off := g.begin("norm", "sets y = (x·inv)·w of rows of n values, n as float32 being d, with inv = 1/√(dot(x, x)/d + eps).",
		scalars(params("y", "inv", "x", "w"), "eps", "d"), false, reg)
	g.line("VMOVSS eps+%d(FP), %s", off["eps"], x(3))
	g.line("VMOVSS d+%d(FP), %s", off["d"], x(4))
	g.width()
	g.label("row")
	g.op("VXORPS", vec(0), vec(0), vec(0))
	g.row("squares", map[string]string{"R11": "SI"}, []string{"R11"}, 7, func() {
		g.load("R11", 1)
		g.acc("VFMADD231PS", 1, 1, 0)
	})
	s := g.fold("VADDPS", 0, 1)
	g.line("VDIVSS %s, %s, %s", x(4), s, s)
	g.line("VADDSS %s, %s, %s", x(3), s, s)
	g.line("VSQRTSS %s, %s, %s", s, s, s)
	g.line("VMOVSS %s, %s", g.f32("one", 1).at(g, 0), x(1))
	g.line("VDIVSS %s, %s, %s", s, x(1), x(1))
	g.line("VMOVSS %s, (R8)", x(1))
	g.op("VBROADCASTSS", word(x(1)), vec(2))
	g.row("scale", map[string]string{"R11": "SI", "R12": "DI", "R9": "DX"}, []string{"R11", "R12", "R9"}, 7, func() {
		g.op("VMULPS", mem{"R11", 0}, vec(2), vec(1))
		g.op("VMULPS", mem{"R9", 0}, vec(1), vec(1))
		g.store(1, "R12")
	})
	next("SI", "DI")

	off = g.begin("normGrads", "adds the gradient of norm to dx.", scalars(params("dx", "dy", "inv", "x", "w"), "d"), false, reg)
	g.line("VMOVSS d+%d(FP), %s", off["d"], x(4))
	g.width()
	g.label("row")
	g.op("VXORPS", vec(0), vec(0), vec(0))
	g.row("dot", map[string]string{"R11": "R9", "R12": "DX", "AX": "SI"}, []string{"R11", "R12", "AX"}, 7, func() {
		g.load("R11", 1)
		g.op("VMULPS", mem{"R12", 0}, vec(1), vec(1))
		g.load("AX", 2)
		g.acc("VFMADD231PS", 2, 1, 0)
	})
	s = g.fold("VADDPS", 0, 1)
	g.op("VBROADCASTSS", word("(R8)"), vec(2))
	for range 3 {
		g.line("VMULSS %s, %s, %s", x(2), s, s)
	}
	g.line("VDIVSS %s, %s, %s", x(4), s, s)
	g.line("VXORPS %s, %s, %s", g.u32("signBit", 1<<31).at(g, 0), s, s)
	g.op("VBROADCASTSS", word(s), vec(3))
	g.row("grad", map[string]string{"R11": "R9", "R12": "DX", "AX": "SI", "R15": "DI"}, []string{"R11", "R12", "AX", "R15"}, 7, func() {
		g.load("R11", 1)
		g.op("VMULPS", mem{"R12", 0}, vec(1), vec(1))
		g.op("VMULPS", vec(2), vec(1), vec(1))
		g.op("VFMADD231PS", mem{"AX", 0}, vec(3), vec(1))
		g.op("VADDPS", mem{"R15", 0}, vec(1), vec(1))
		g.store(1, "R15")
	})
	next("SI", "DI", "R9")
}

func (g *gen) ropes() {
	g.begin("ropes", "rotates the heads of a row, 2n values each: (x, y) to (x·c − y·s, y·c + x·s), the first product of each fused.",
		[]param{{"x", "*float32"}, {"c", "*float32"}, {"s", "*float32"}, {"rows", "int"}, {"n", "int"}}, false,
		map[string]string{"x": "SI", "c": "R8", "s": "R9", "rows": "R14", "n": "BX"})
	g.width()
	g.label("row")
	g.line("LEAQ (SI)(BX*4), DX")
	g.row("turn", map[string]string{"R11": "SI", "R12": "DX", "AX": "R8", "DI": "R9"}, []string{"R11", "R12", "AX", "DI"}, 7, func() {
		g.load("R11", 0)
		g.load("R12", 1)
		g.load("DI", 2)
		g.load("AX", 3)
		g.op("VMULPS", vec(2), vec(1), vec(4)) // y·s
		g.op("VMULPS", vec(2), vec(0), vec(5)) // x·s
		g.op("VFMSUB132PS", vec(3), vec(4), vec(0))
		g.op("VFMADD132PS", vec(3), vec(5), vec(1))
		g.store(0, "R11")
		g.store(1, "R12")
	})
	g.line("LEAQ (DX)(BX*4), SI")
	g.line("DECQ R14")
	g.line("JNZ row")
	g.end()
}

// softmax is for the rows of a block of attention.
func (g *gen) softmax() {
	off := g.begin("softmax", "sets up to 16 rows of n values, n a multiple of 16, stride bytes apart, to their softmax of x·scale; row r is without its last 15 − r values.",
		[]param{{"x", "*float32"}, {"rows", "int"}, {"stride", "int"}, {"n", "int"}, {"scale", "float32"}}, false,
		map[string]string{"x": "DI", "rows": "R14", "stride": "R9", "n": "BX"})
	g.broadcastArg("scale", off["scale"], 5)
	if g.isa == avx512 {
		g.line("MOVL $0xfffe, AX")
	} else {
		g.lanes = true
		g.line("LEAQ ·lanes<>+124(SB), R13")
	}
	g.label("row")
	if g.isa == avx512 {
		g.line("KMOVW AX, K1")
		g.line("VMOVUPS ·negInf<>(SB), Z0")
		g.line("VMOVUPS Z0, K1, -64(DI)(BX*4)")
		g.line("SHLL $1, AX")
	} else {
		g.line("VMOVUPS ·negInf<>(SB), Y0")
		for h := range 2 {
			g.line("VMOVUPS %d(R13), Y1", 32*h)
			g.line("VMASKMOVPS Y0, Y1, %d(DI)(BX*4)", 32*h-64)
		}
		g.line("SUBQ $4, R13")
	}
	pass := func(name string, body func()) {
		g.line("MOVQ DI, SI")
		g.line("MOVQ BX, CX")
		g.turns(name, []string{"SI"}, body)
	}
	g.op("VMOVUPS", g.f32("negInf", negInf), vec(0))
	pass("max", func() { g.op("VMAXPS", mem{"SI", 0}, vec(0), vec(0)) }) // acc > x ? acc : x
	m := g.fold("VMAXPS", 0, 1)
	scale := "X" + vec(5).at(g, 0)[1:]
	g.line("VMULSS %s, %s, %s", scale, m, m)
	g.op("VBROADCASTSS", word(m), vec(6))
	g.op("VXORPS", vec(7), vec(7), vec(7))
	pass("exp", func() {
		g.load("SI", 0)
		g.op("VFMSUB213PS", vec(6), vec(5), vec(0)) // x·scale − shift
		g.exp(0, 1, 2, 3)
		g.store(0, "SI")
		g.op("VADDPS", vec(0), vec(7), vec(7))
	})
	s := g.fold("VADDPS", 7, 1)
	one := "X" + vec(2).at(g, 0)[1:]
	g.line("VMOVSS %s, %s", g.f32("one", 1).at(g, 0), one)
	g.line("VDIVSS %s, %s, %s", s, one, one)
	g.op("VBROADCASTSS", word(one), vec(2))
	pass("scale", func() {
		g.op("VMULPS", mem{"SI", 0}, vec(2), vec(1))
		g.store(1, "SI")
	})
	g.line("ADDQ R9, DI")
	g.line("DECQ R14")
	g.line("JNZ row")
	g.end()
}

// chain is the one sum that has a single accumulator.
func (g *gen) chain() {
	off := g.begin("chain", "returns the sum of x·y in order of the values, which are at least one.", ptrs("x", "y"), true,
		map[string]string{"x": "SI", "y": "DI", "n": "CX"})
	g.line("VXORPS X0, X0, X0")
	g.label("loop")
	g.line("VMOVSS (SI), X1")
	g.line("VFMADD231SS (DI), X1, X0")
	g.line("ADDQ $4, SI")
	g.line("ADDQ $4, DI")
	g.line("DECQ CX")
	g.line("JNZ loop")
	g.ret("X0", off)
}
