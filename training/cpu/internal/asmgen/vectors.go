package main

// vectors emits the element-wise and reduction kernels, of any length n.
func (g *gen) vectors() {
	g.reductions()
	g.elementwise()
	g.activations()
	g.optimizer()
	g.rows()
}

func ptrs(names ...string) []param {
	var p []param
	for _, n := range names {
		p = append(p, param{n, "*float32"})
	}
	return append(p, param{"n", "int"})
}

func scalars(p []param, names ...string) []param {
	for _, n := range names {
		p = append(p, param{n, "float32"})
	}
	return p
}

func (g *gen) ret(x string, off map[string]int) {
	g.line("VMOVSS %s, ret+%d(FP)", x, off["ret"])
	g.end()
}

func (g *gen) reductions() {
	reg := map[string]string{"x": "SI", "y": "DI", "z": "DX", "dst": "DI", "n": "CX"}

	off := g.begin("dot", "returns the lane-tree sum of x·y.", ptrs("x", "y"), true, reg)
	g.op("VXORPS", vec(0), vec(0), vec(0))
	g.loop([]string{"SI", "DI"}, 7, func() {
		g.load("SI", 1)
		g.load("DI", 2)
		g.acc("VFMADD231PS", 2, 1, 0)
	})
	g.ret(g.fold("VADDPS", 0, 1), off)

	off = g.begin("maximum", "returns the lane-tree maximum of x.", ptrs("x"), true, reg)
	g.op("VMOVUPS", g.f32("negInf", negInf), vec(0))
	g.loop([]string{"SI"}, 7, func() {
		g.load("SI", 1)
		g.acc("VMAXPS", 1, 0, 0) // acc > x ? acc : x
	})
	g.ret(g.fold("VMAXPS", 0, 1), off)

	off = g.begin("expSum", "writes exp(x·scale − shift) to dst and returns its lane-tree sum.",
		scalars(ptrs("dst", "x"), "scale", "shift"), true, reg)
	g.broadcastArg("scale", off["scale"], 5)
	g.broadcastArg("shift", off["shift"], 6)
	g.op("VXORPS", vec(7), vec(7), vec(7))
	g.hold(8, g.exponents()...)
	g.loop([]string{"SI", "DI"}, 4, func() {
		g.load("SI", 0)
		g.op("VFMSUB213PS", vec(6), vec(5), vec(0)) // x·scale − shift
		g.exp(0, 1, 2, 3)
		g.store(0, "DI")
		g.acc("VADDPS", 0, 7, 7)
	})
	g.ret(g.fold("VADDPS", 7, 1), off)
}

// exponents are the constants of exp, and others.
func (g *gen) exponents(others ...konst) []konst {
	k := append([]konst{g.f32("expMin", expMin), g.f32("expMax", expMax), g.f32("log2e", log2e), g.f32("magic", magic),
		g.f32("ln2Hi", ln2Hi), g.f32("ln2Lo", ln2Lo)}, others...)
	for i := range expC {
		k = append(k, g.expC(i))
	}
	return k
}

func (g *gen) expC(i int) konst { return g.f32("exp"+string(rune('0'+i)), expC[i]) }

// exp replaces v by its exponential. t, r, p are overwritten. See docs/spec/exact.md.
func (g *gen) exp(v, t, r, p vec) {
	g.op("VMAXPS", g.f32("expMin", expMin), v, v)
	g.op("VMINPS", g.f32("expMax", expMax), v, v)
	g.op("VMOVUPS", g.f32("log2e", log2e), t)
	g.op("VFMADD213PS", g.f32("magic", magic), v, t) // t = x·log2e + magic: round to nearest integer
	g.op("VSUBPS", g.f32("magic", magic), t, r)      // r = n
	g.op("VFNMADD231PS", g.f32("ln2Hi", ln2Hi), r, v)
	g.op("VFNMADD231PS", g.f32("ln2Lo", ln2Lo), r, v) // v = x − n·ln2
	g.op("VMOVUPS", g.expC(7), p)
	for i := 6; i >= 0; i-- {
		g.op("VFMADD213PS", g.expC(i), v, p) // p = p·v + c
	}
	if g.isa == avx512 {
		g.op("VSCALEFPS", r, p, v) // p·2^n, rounded once
		return
	}
	g.op("VPSUBD", g.f32("magic", magic), t, t) // n as an integer
	g.op("VPSRAD", imm(1), t, r)                // h = n >> 1
	g.op("VPSUBD", r, t, t)                     // n − h
	g.op("VPADDD", g.u32("bias", 127), r, r)
	g.op("VPADDD", g.u32("bias", 127), t, t)
	g.op("VPSLLD", imm(23), r, r)
	g.op("VPSLLD", imm(23), t, t)
	g.op("VMULPS", r, p, p)
	g.op("VMULPS", t, p, v)
}

// sigmoid sets s = 1/(1+exp(−x)); x is kept, t, r, p overwritten.
func (g *gen) sigmoid(x, s, t, r, p vec) {
	g.op("VXORPS", g.u32("signBit", 1<<31), x, s)
	g.exp(s, t, r, p)
	g.op("VADDPS", g.f32("one", 1), s, s)
	g.op("VMOVUPS", g.f32("one", 1), t)
	g.op("VDIVPS", s, t, s)
}

func (g *gen) elementwise() {
	reg := map[string]string{"dst": "DI", "x": "SI", "y": "DX", "w": "DX", "n": "CX", "dy": "R8", "p": "R9", "c": "R8", "s": "R9"}

	off := g.begin("scale", "sets dst = x·a.", scalars(ptrs("dst", "x"), "a"), false, reg)
	g.broadcastArg("a", off["a"], 0)
	g.loop([]string{"SI", "DI"}, 7, func() {
		g.op("VMULPS", mem{"SI", 0}, vec(0), vec(1))
		g.store(1, "DI")
	})
	g.end()

	g.begin("add", "sets dst = dst + x.", ptrs("dst", "x"), false, reg)
	g.loop([]string{"SI", "DI"}, 7, func() {
		g.load("DI", 1)
		g.op("VADDPS", mem{"SI", 0}, vec(1), vec(1))
		g.store(1, "DI")
	})
	g.end()

	g.begin("sum", "sets dst = x + y.", ptrs("dst", "x", "y"), false, reg)
	g.loop([]string{"SI", "DX", "DI"}, 7, func() {
		g.load("SI", 1)
		g.op("VADDPS", mem{"DX", 0}, vec(1), vec(1))
		g.store(1, "DI")
	})
	g.end()

	off = g.begin("axpy", "sets dst = a·x + dst, fused.", scalars(ptrs("dst", "x"), "a"), false, reg)
	g.broadcastArg("a", off["a"], 0)
	g.loop([]string{"SI", "DI"}, 7, func() {
		g.load("DI", 1)
		g.op("VFMADD231PS", mem{"SI", 0}, vec(0), vec(1))
		g.store(1, "DI")
	})
	g.end()

	off = g.begin("axpyScale", "sets dst = x·(w·a) + dst, fused.", scalars(ptrs("dst", "x", "w"), "a"), false, reg)
	g.broadcastArg("a", off["a"], 0)
	g.loop([]string{"SI", "DI", "DX"}, 7, func() {
		g.op("VMULPS", mem{"DX", 0}, vec(0), vec(1))
		g.load("DI", 2)
		g.op("VFMADD231PS", mem{"SI", 0}, vec(1), vec(2))
		g.store(2, "DI")
	})
	g.end()

	off = g.begin("softmaxGrad", "sets dst = (p·(dy − d))·a.", scalars(ptrs("dst", "p", "dy"), "d", "a"), false, reg)
	g.broadcastArg("d", off["d"], 0)
	g.broadcastArg("a", off["a"], 1)
	g.loop([]string{"DI", "R9", "R8"}, 7, func() {
		g.load("R8", 2)
		g.op("VSUBPS", vec(0), vec(2), vec(2))
		g.op("VMULPS", mem{"R9", 0}, vec(2), vec(2))
		g.op("VMULPS", vec(1), vec(2), vec(2))
		g.store(2, "DI")
	})
	g.end()
}

func (g *gen) activations() {
	reg := map[string]string{"dst": "DI", "dg": "DI", "du": "BX", "dy": "R8", "gate": "SI", "u": "DX", "n": "CX"}

	g.begin("siluMul", "sets dst = (gate·sigmoid(gate))·u.", ptrs("dst", "gate", "u"), false, reg)
	g.hold(8, g.exponents(g.f32("one", 1), g.u32("signBit", 1<<31))...)
	g.loop([]string{"DI", "SI", "DX"}, 7, func() {
		g.load("SI", 0)
		g.sigmoid(0, 1, 2, 3, 4)
		g.op("VMULPS", vec(0), vec(1), vec(1))
		g.op("VMULPS", mem{"DX", 0}, vec(1), vec(1))
		g.store(1, "DI")
	})
	g.end()

	g.begin("siluMulGrad", "sets dg and du from dy: silu = gate·s; du = dy·silu; dg = (dy·u)·(silu·(1−s) + s).",
		ptrs("dg", "du", "dy", "gate", "u"), false, reg)
	g.hold(8, g.exponents(g.f32("one", 1), g.u32("signBit", 1<<31))...)
	g.loop([]string{"DI", "BX", "R8", "SI", "DX"}, 7, func() {
		g.load("SI", 0)
		g.sigmoid(0, 1, 2, 3, 4)
		g.op("VMULPS", vec(0), vec(1), vec(2)) // silu
		g.load("R8", 3)
		g.op("VMULPS", vec(3), vec(2), vec(4))
		g.store(4, "BX")
		g.op("VMOVUPS", g.f32("one", 1), vec(4))
		g.op("VSUBPS", vec(1), vec(4), vec(4))
		g.op("VFMADD231PS", vec(4), vec(2), vec(1)) // s + silu·(1−s)
		g.op("VMULPS", mem{"DX", 0}, vec(3), vec(3))
		g.op("VMULPS", vec(1), vec(3), vec(3))
		g.store(3, "DI")
	})
	g.end()
}

func (g *gen) optimizer() {
	reg := map[string]string{"p": "DI", "m": "SI", "v": "DX", "grad": "R8", "n": "CX"}
	off := g.begin("adamw", "is one AdamW step on p with moments m, v and gradient grad.",
		scalars(ptrs("p", "m", "v", "grad"), "clip", "b1", "c1", "b2", "c2", "step", "root", "eps", "decay"), false, reg)
	b := func(name string, v vec) { g.broadcastArg(name, off[name], v) }
	g.loop([]string{"DI", "SI", "DX", "R8"}, 7, func() {
		b("clip", 0)
		g.op("VMULPS", mem{"R8", 0}, vec(0), vec(0)) // g·clip
		b("c1", 1)
		g.op("VMULPS", vec(0), vec(1), vec(1))
		b("b1", 2)
		g.op("VFMADD231PS", mem{"SI", 0}, vec(2), vec(1)) // m = b1·m + c1·g
		g.store(1, "SI")
		b("c2", 3)
		g.op("VMULPS", vec(0), vec(3), vec(3))
		g.op("VMULPS", vec(0), vec(3), vec(3))
		b("b2", 2)
		g.op("VFMADD231PS", mem{"DX", 0}, vec(2), vec(3)) // v = b2·v + (c2·g)·g
		g.store(3, "DX")
		g.op("VSQRTPS", vec(3), vec(3))
		b("root", 2)
		b("eps", 4)
		g.op("VFMADD213PS", vec(4), vec(2), vec(3)) // sqrt(v)·root + eps
		b("step", 2)
		g.op("VMULPS", vec(2), vec(1), vec(1))
		g.op("VDIVPS", vec(3), vec(1), vec(1)) // (m·step) / denominator
		g.load("DI", 0)
		b("decay", 2)
		g.op("VFNMADD231PS", vec(2), vec(0), vec(0)) // p − decay·p
		g.op("VSUBPS", vec(1), vec(0), vec(0))
		g.store(0, "DI")
	})
	g.end()
}
