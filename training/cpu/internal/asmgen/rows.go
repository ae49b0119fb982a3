package main

// rows emits the kernels that work on several rows at a time.
func (g *gen) rows() {
	g.norms()
	g.ropes()
	g.softmax()
	g.softmaxGrads()
	g.slots("mixRows", "sets rows of dst to base plus the weighted sum of k rows of y, those that place names. base may be nil.", true)
	g.slots("addRows", "adds to rows of dst k rows of y, those that place names, one after the other.", false)
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
	g.line("VMOVSS %s, %s", g.f32("one", 1).memory(), x(1))
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

// softmax takes several rows at a time, so that what one waits for does not hold up the others.
func (g *gen) softmax() {
	off := g.begin("softmax", "sets rows of n values, n a multiple of 16, stride bytes apart, to their softmax of x·scale. Of the last 16 values row r "+
		"has the first lanes + r·more only; the others count as −∞.",
		[]param{{"x", "*float32"}, {"rows", "int"}, {"stride", "int"}, {"n", "int"}, {"lanes", "int"}, {"more", "int"}, {"scale", "float32"}}, false,
		map[string]string{"x": "DI", "rows": "R14", "stride": "R9", "n": "SI", "lanes": "CX", "more": "R12"})
	g.line("LEAQ -64(SI*4), SI") // of the last vector
	if g.isa == avx512 {
		g.broadcastArg("scale", off["scale"], 16)
		g.hold(17, g.exponents()...)
		g.line("MOVL $1, AX")
		g.line("SHLL CX, AX")
		g.line("DECL AX")
		g.line("CMPQ R14, $4")
		g.line("JLT rest")
		g.label("four")
		g.softmaxRows("four", 4, 16)
		g.line("SUBQ $4, R14")
		g.line("CMPQ R14, $4")
		g.line("JGE four")
		g.label("rest")
		g.line("TESTQ R14, R14")
		g.line("JZ done")
		g.label("one")
		g.softmaxRows("one", 1, 16)
	} else {
		g.broadcastArg("scale", off["scale"], 7)
		g.lanes = true
		g.line("LEAQ ·lanes<>+64(SB), R13")
		g.line("SHLQ $2, CX")
		g.line("SUBQ CX, R13")
		g.line("SHLQ $2, R12")
		g.label("one")
		g.softmaxRows("one", 1, 7)
	}
	g.line("DECQ R14")
	g.line("JNZ one")
	g.label("done")
	g.end()
}

// softmaxRows emits the softmax of so many rows. The last vectors stay in registers, for what they hold beyond the row is
// not what counts.
func (g *gen) softmaxRows(name string, rows int, scale vec) {
	top, sum, last := func(i int) vec { return vec(i) }, func(i int) vec { return vec(rows + i) }, func(i int) vec { return vec(2*rows + i) }
	v, t, r, p := vec(3*rows), vec(3*rows+1), vec(3*rows+2), vec(3*rows+3)
	base := [...]string{"DI", "R10", "R11", "DX"}
	x := func(v vec) string { return "X" + v.at(g, 0)[1:] }
	for i := range rows {
		if i > 0 {
			g.line("LEAQ (%s)(R9*1), %s", base[i-1], base[i])
		}
		g.op("VMOVUPS", g.f32("negInf", negInf), last(i))
		at := cell{base[i], "SI"}
		if g.isa == avx512 {
			g.line("KMOVW AX, K%d", i+1)
			g.line("VMOVUPS %s, K%d, %s", at.at(g, 0), i+1, last(i).at(g, 0))
			g.line("MOVL R12, CX")
			g.line("SHLL CX, AX")
			g.line("ORL R12, AX")
		} else {
			for h := range 2 {
				g.line("VMOVUPS %d(R13), %s", 32*h, t.at(g, h))
				g.line("VMASKMOVPS %s, %s, %s", at.at(g, h), t.at(g, h), v.at(g, h))
				g.line("VBLENDVPS %s, %s, %s, %s", t.at(g, h), v.at(g, h), last(i).at(g, h), last(i).at(g, h))
			}
			g.line("SUBQ R12, R13")
		}
		g.op("VMOVUPS", g.f32("negInf", negInf), top(i))
	}
	pass := func(pass string, body func(i int, at cell)) {
		g.line("XORL R8, R8")
		g.line("TESTQ SI, SI")
		g.line("JZ %s%sEnd", name, pass)
		g.label(name + pass)
		for i := range rows {
			body(i, cell{base[i], "R8"})
		}
		g.line("ADDQ $64, R8")
		g.line("CMPQ R8, SI")
		g.line("JNE %s%s", name, pass)
		g.label(name + pass + "End")
	}
	pass("Max", func(i int, at cell) { g.op("VMAXPS", at, top(i), top(i)) }) // acc > x ? acc : x
	for i := range rows {
		g.op("VMAXPS", last(i), top(i), top(i))
		m := g.fold("VMAXPS", top(i), v)
		g.line("VMULSS %s, %s, %s", x(scale), m, m)
		g.op("VBROADCASTSS", word(m), top(i))
		g.op("VXORPS", sum(i), sum(i), sum(i))
	}
	exp := func(i int, v vec) {
		g.op("VFMSUB213PS", top(i), scale, v) // x·scale − shift
		g.exp(v, t, r, p)
		g.op("VADDPS", v, sum(i), sum(i))
	}
	pass("Exp", func(i int, at cell) {
		g.op("VMOVUPS", at, v)
		exp(i, v)
		g.op("VMOVUPS", v, at)
	})
	for i := range rows {
		exp(i, last(i))
		s := g.fold("VADDPS", sum(i), v)
		g.line("VMOVSS %s, %s", g.f32("one", 1).memory(), x(t))
		g.line("VDIVSS %s, %s, %s", s, x(t), x(t))
		g.op("VBROADCASTSS", word(x(t)), sum(i))
	}
	pass("Scale", func(i int, at cell) {
		g.op("VMULPS", at, sum(i), t)
		g.op("VMOVUPS", t, at)
	})
	for i := range rows {
		g.op("VMULPS", last(i), sum(i), t)
		g.op("VMOVUPS", t, cell{base[i], "SI"})
	}
	if rows == 1 {
		g.line("ADDQ R9, DI")
	} else {
		g.line("LEAQ (DI)(R9*%d), DI", rows)
	}
}

// softmaxGrads is for the rows of a block of attention.
func (g *gen) softmaxGrads() {
	off := g.begin("softmaxGrads", "sets dst = (p·(dst − dot(p, dst)))·a of rows of n values, n a multiple of 16, stride bytes apart.",
		scalars([]param{{"dst", "*float32"}, {"p", "*float32"}, {"rows", "int"}, {"stride", "int"}, {"n", "int"}}, "a"), false,
		map[string]string{"dst": "DI", "p": "SI", "rows": "R14", "stride": "R9", "n": "BX"})
	g.broadcastArg("a", off["a"], 3)
	g.line("SHLQ $2, BX")
	g.label("row")
	pass := func(name string, body func(dst, p cell)) {
		g.line("XORL R8, R8")
		g.label(name)
		body(cell{"DI", "R8"}, cell{"SI", "R8"})
		g.line("ADDQ $64, R8")
		g.line("CMPQ R8, BX")
		g.line("JNE %s", name)
	}
	g.op("VXORPS", vec(0), vec(0), vec(0))
	pass("dot", func(dst, p cell) {
		g.op("VMOVUPS", p, vec(1))
		g.op("VFMADD231PS", dst, vec(1), vec(0))
	})
	g.op("VBROADCASTSS", word(g.fold("VADDPS", 0, 1)), vec(2))
	pass("grad", func(dst, p cell) {
		g.op("VMOVUPS", dst, vec(1))
		g.op("VSUBPS", vec(2), vec(1), vec(1))
		g.op("VMULPS", p, vec(1), vec(1))
		g.op("VMULPS", vec(3), vec(1), vec(1))
		g.op("VMOVUPS", vec(1), dst)
	})
	g.line("ADDQ R9, DI")
	g.line("ADDQ R9, SI")
	g.line("DECQ R14")
	g.line("JNZ row")
	g.end()
}

// slots emits a kernel over rows of n values, n a multiple of 16, that gather k rows each.
func (g *gen) slots(name, doc string, weighted bool) {
	params := []param{{"dst", "*float32"}, {"y", "*float32"}, {"place", "*int32"}, {"rows", "int"}, {"n", "int"}, {"k", "int"}}
	if weighted {
		params = append(params, param{"base", "*float32"}, param{"weight", "*float32"})
	}
	g.begin(name, doc, params, false, map[string]string{"dst": "DI", "base": "R9", "y": "SI", "place": "DX", "weight": "R11", "rows": "R14", "n": "BX", "k": "R13"})
	g.line("SHLQ $2, BX")
	g.label("row")
	g.line("XORL R8, R8") // bytes into the row
	g.label("vector")
	g.line("XORL R10, R10") // slot
	slot := func() {
		g.line("MOVLQSX (DX)(R10*4), AX")
		g.line("IMULQ BX, AX")
		g.line("ADDQ SI, AX")
	}
	if weighted {
		slot()
		g.op("VBROADCASTSS", word("(R11)"), vec(0))
		g.op("VMULPS", cell{"AX", "R8"}, vec(0), vec(0))
		g.line("JMP next")
		g.label("slot")
		slot()
		g.op("VBROADCASTSS", word("(R11)(R10*4)"), vec(1))
		g.op("VFMADD231PS", cell{"AX", "R8"}, vec(1), vec(0))
	} else {
		g.op("VMOVUPS", cell{"DI", "R8"}, vec(0))
		g.label("slot")
		slot()
		g.op("VADDPS", cell{"AX", "R8"}, vec(0), vec(0))
	}
	g.label("next")
	g.line("INCQ R10")
	g.line("CMPQ R10, R13")
	g.line("JLT slot")
	if weighted {
		g.line("TESTQ R9, R9")
		g.line("JZ store")
		g.op("VADDPS", cell{"R9", "R8"}, vec(0), vec(0))
		g.label("store")
	}
	g.op("VMOVUPS", vec(0), cell{"DI", "R8"})
	g.line("ADDQ $64, R8")
	g.line("CMPQ R8, BX")
	g.line("JNE vector")
	g.line("ADDQ BX, DI")
	g.line("LEAQ (DX)(R13*4), DX")
	if weighted {
		g.line("LEAQ (R11)(R13*4), R11")
		g.line("TESTQ R9, R9")
		g.line("JZ last")
		g.line("ADDQ BX, R9")
		g.label("last")
	}
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
