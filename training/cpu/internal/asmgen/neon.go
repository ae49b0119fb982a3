package main

import (
	"fmt"
	"strings"
)

// arm writes the kernels for ARM64. A logical vector of 16 float32 is four registers of four lanes. What Go's assembler
// has no name for is written as a WORD with the GNU mnemonic behind it; a test assembles those and compares. Integer
// registers are those that neither Go nor a platform reserves: R0 to R15.
type arm struct{ gen }

// quad is a logical vector: registers V(4v) to V(4v+3).
type quad int

// one is a single register that every quarter of a logical vector uses.
type one int

type register interface{ quarter(q int) int }

func (v quad) quarter(q int) int { return 4*int(v) + q }
func (v one) quarter(int) int    { return int(v) }

// names gives the registers of v as VLD1 and VST1 want them.
func (v quad) names() string {
	var s []string
	for q := range 4 {
		s = append(s, fmt.Sprintf("V%d.S4", v.quarter(q)))
	}
	return "[" + strings.Join(s, ", ") + "]"
}

// word emits an instruction by its encoding.
func (g *arm) word(code uint32, format string, a ...any) {
	g.line("WORD $0x%08x // %s", code, fmt.Sprintf(format, a...))
}

// three are instructions d = n op m over four float32 lanes, by their encoding with registers zero.
var three = map[string]uint32{
	"fadd": 0x4e20d400, "fsub": 0x4ea0d400, "fmul": 0x6e20dc00, "fdiv": 0x6e20fc00,
	"fmla": 0x4e20cc00, "fmls": 0x4ea0cc00, // d ± n·m, fused
	"fcmgt": 0x6ea0e400, // d = n > m ? ones : zeros
}

func (g *arm) three(name string, d, n, m int) {
	g.word(three[name]|uint32(m<<16|n<<5|d), "%s v%d.4s, v%d.4s, v%d.4s", name, d, n, m)
}

// f emits d = n op m for a logical vector.
func (g *arm) f(name string, d, n, m register) {
	for q := range 4 {
		g.three(name, d.quarter(q), n.quarter(q), m.quarter(q))
	}
}

func (g *arm) fsqrt(d, n quad) {
	for q := range 4 {
		d, n := d.quarter(q), n.quarter(q)
		g.word(0x6ea1f800|uint32(n<<5|d), "fsqrt v%d.4s, v%d.4s", d, n)
	}
}

// fmlaLane emits d += n·m[0], fused.
func (g *arm) fmlaLane(d, n, m int) {
	g.word(0x4f801000|uint32(m<<16|n<<5|d), "fmla v%d.4s, v%d.4s, v%d.s[0]", d, n, m)
}

// sshr emits d = n >> 1, arithmetic.
func (g *arm) sshr(d, n quad) {
	for q := range 4 {
		d, n := d.quarter(q), n.quarter(q)
		g.word(0x4f000400|(64-1)<<16|uint32(n<<5|d), "sshr v%d.4s, v%d.4s, #1", d, n)
	}
}

// v emits an instruction of Go's assembler on a logical vector, operands in Go's order (destination last).
func (g *arm) v(name, arrangement string, a ...register) {
	for q := range 4 {
		var s []string
		for _, r := range a {
			s = append(s, fmt.Sprintf("V%d.%s", r.quarter(q), arrangement))
		}
		g.line("%s %s", name, strings.Join(s, ", "))
	}
}

func (g *arm) move(d quad, n register) { g.v("VMOV", "B16", n, d) }

// choose sets d, a mask of lanes, to x where it is set and to y where it is not.
func (g *arm) choose(d quad, x, y register) { g.v("VBSL", "B16", y, x, d) }

func (g *arm) zero(v int)               { g.line("VEOR V%d.B16, V%d.B16, V%d.B16", v, v, v) }
func (g *arm) load(base string, v quad) { g.line("VLD1 (%s), %s", base, v.names()) }
func (g *arm) store(v quad, base string) {
	g.line("VST1 %s, (%s)", v.names(), base)
}

// constant loads a constant, replicated, from the function's literal pool.
func (g *arm) constant(k konst, v one) one {
	x := uint64(g.consts[string(k)])
	g.line("VMOVQ $0x%016x, $0x%016x, V%d // %s", x<<32|x, x<<32|x, int(v), string(k))
	return v
}

// spread loads a float32 argument into every lane of v.
func (g *arm) spread(name string, off map[string]int, v one) one {
	g.line("FMOVS %s+%d(FP), F%d", name, off[name], int(v))
	g.line("VDUP V%d.S[0], V%d.S4", int(v), int(v))
	return v
}

// each emits body once per 16 elements; n is in R6 and the pointers advance by 64 bytes.
func (g *arm) each(ptrs []string, body func()) {
	g.line("LSR $4, R6, R6")
	g.line("CBZ R6, done")
	g.label("loop")
	body()
	for _, p := range ptrs {
		g.line("ADD $64, %s, %s", p, p)
	}
	g.line("SUB $1, R6, R6")
	g.line("CBNZ R6, loop")
	g.label("done")
}

// fold reduces the 16 lanes of v to lane 0 of its first register: l with l+8, then +4, +2, +1. op takes the lower
// lane first. V28 is overwritten.
func (g *arm) fold(v quad, op func(d, n, m int)) int {
	r := v.quarter
	op(r(0), r(0), r(2))
	op(r(1), r(1), r(3))
	op(r(0), r(0), r(1))
	g.line("VEXT $8, V%d.B16, V%d.B16, V28.B16", r(0), r(0))
	op(r(0), r(0), 28)
	g.line("VEXT $4, V%d.B16, V%d.B16, V28.B16", r(0), r(0))
	op(r(0), r(0), 28)
	return r(0)
}

func (g *arm) ret(v int, off map[string]int) {
	g.line("FMOVS F%d, ret+%d(FP)", v, off["ret"])
	g.line("RET")
}

// tile emits C[m, 16] = or += sum over k of A[i,k]·B[k,j], k in order, one fused multiply-add a step. The offsets are
// those of the tile struct in kernels.go of package cpu.
func (g *arm) tile(m int) {
	g.begin(fmt.Sprintf("gemm%dx16", m), "is the tile kernel of that size.", []param{{"t", "*tile"}}, false,
		map[string]string{"t": "R0"})
	g.line("MOVD 0(R0), R1") // R1 to R6: rows of A
	g.line("MOVD 8(R0), R7")
	g.line("MOVD 16(R0), R8")
	g.line("MOVD 24(R0), R9")
	g.line("MOVD 40(R0), R10")
	g.line("MOVD 48(R0), R11")
	g.line("MOVD 56(R0), R12")
	g.line("MOVD 64(R0), R13")
	for i := 1; i < m; i++ {
		g.line("ADD R7, R%d, R%d", i, i+1)
	}
	for i := range 4 * m {
		g.zero(i)
	}
	b := quad(6)
	g.line("MOVD $0, R14") // k·aCol
	g.line("CBZ R10, done")
	g.label("loop")
	g.line("VLD1.P 64(R9), %s", b.names())
	for i := range m {
		a := 28 + i%4
		g.line("FMOVS (R%d)(R14), F%d", i+1, a)
		for q := range 4 {
			g.fmlaLane(quad(i).quarter(q), b.quarter(q), a)
		}
	}
	g.line("ADD R8, R14, R14")
	g.line("SUB $1, R10, R10")
	g.line("CBNZ R10, loop")
	g.label("done")
	g.line("CBZ R13, store")
	g.line("MOVD R13, R1")
	for i := range m {
		g.load("R1", b)
		g.f("fadd", quad(i), b, quad(i))
		if i+1 < m {
			g.line("ADD R12, R1, R1")
		}
	}
	g.label("store")
	for i := range m {
		g.store(quad(i), "R11")
		if i+1 < m {
			g.line("ADD R12, R11, R11")
		}
	}
	g.line("RET")
}

// neonKernels writes every kernel.
func neonKernels() *gen {
	g := &arm{gen{isa: neon}}
	const rows = 6
	for m := 1; m <= rows; m++ {
		g.tile(m)
	}
	g.decl.WriteString("// gemmNEON runs the tile kernel of m rows and 16 columns.\n" +
		"func gemmNEON(m, _ int, t *tile) {\n\tswitch m {\n")
	for m := 1; m <= rows; m++ {
		fmt.Fprintf(&g.decl, "\tcase %d:\n\t\tgemm%dx16NEON(t)\n", m, m)
	}
	g.decl.WriteString("\tdefault:\n\t\tpanic(\"cpu: no such tile\")\n\t}\n}\n\n")
	g.widen()
	g.transpose("transpose", "*float32", "sets dst[x, r] = src[r, x] for 8 rows r of n values, n a multiple of 16. "+
		"A row of dst is 64 bytes, one of src srcRow.", false)
	g.transpose("transposeHalf", "*uint16", "is transpose for bfloat16 values.", true)
	g.reductions()
	g.elementwise()
	g.activations()
	g.optimizer()
	return &g.gen
}

func (g *arm) widen() {
	reg := map[string]string{"dst": "R0", "src": "R1", "n": "R6", "dstPanel": "R2"}
	g.begin("widen", "sets n values, a multiple of 16, to bfloat16 ones; 16 of them lie dstPanel bytes from the next.",
		[]param{{"dst", "*float32"}, {"src", "*uint16"}, {"n", "int"}, {"dstPanel", "int"}}, false, reg)
	g.each(nil, func() {
		g.line("VLD1.P 32(R1), [V4.H8, V5.H8]")
		for q := range 4 {
			if q%2 == 0 {
				g.line("VUSHLL $0, V%d.H4, V%d.S4", 4+q/2, q)
			} else {
				g.line("VUSHLL2 $0, V%d.H8, V%d.S4", 4+q/2, q)
			}
			g.line("VSHL $16, V%d.S4, V%d.S4", q, q)
		}
		g.store(0, "R0")
		g.line("ADD R2, R0, R0")
	})
	g.line("RET")
}

// transpose works on blocks of 8 rows by 4 columns.
func (g *arm) transpose(name, source, doc string, half bool) {
	g.begin(name, doc, []param{{"dst", "*float32"}, {"src", source}, {"n", "int"}, {"srcRow", "int"}}, false,
		map[string]string{"dst": "R0", "src": "R1", "n": "R9", "srcRow": "R10"})
	for r := 1; r < 8; r++ { // R1 to R8: rows of src
		g.line("ADD R10, R%d, R%d", r, r+1)
	}
	g.line("MOVD $64, R11")
	g.line("CBZ R9, done")
	g.label("loop")
	for r := range 8 {
		if half {
			g.line("FMOVD.P 8(R%d), F%d", r+1, r)
			g.line("VUSHLL $0, V%d.H4, V%d.S4", r, r)
			g.line("VSHL $16, V%d.S4, V%d.S4", r, r)
		} else {
			g.line("FMOVQ.P 16(R%d), F%d", r+1, r)
		}
	}
	for r := 0; r < 8; r += 2 { // columns 0 and 2, then 1 and 3, of two rows
		g.line("VTRN1 V%d.S4, V%d.S4, V%d.S4", r+1, r, 8+r)
		g.line("VTRN2 V%d.S4, V%d.S4, V%d.S4", r+1, r, 9+r)
	}
	for x := range 4 {
		for side := range 2 {
			v := 8 + 4*side + x%2
			g.line("VTRN%d V%d.D2, V%d.D2, V%d.D2", 1+x/2, v+2, v, 16+side)
		}
		g.line("VST1.P [V16.S4, V17.S4], (R0)(R11)")
	}
	g.line("SUB $4, R9, R9")
	g.line("CBNZ R9, loop")
	g.label("done")
	g.line("RET")
}

func (g *arm) reductions() {
	reg := map[string]string{"dst": "R0", "x": "R1", "y": "R2", "z": "R3", "n": "R6"}
	const acc, v, w = quad(0), quad(1), quad(2)
	clear := func() {
		for q := range 4 {
			g.zero(acc.quarter(q))
		}
	}
	add := func(d, n, m int) { g.three("fadd", d, n, m) }

	off := g.begin("dot", "returns the lane-tree sum of x·y.", ptrs("x", "y"), true, reg)
	clear()
	g.each([]string{"R1", "R2"}, func() {
		g.load("R1", v)
		g.load("R2", w)
		g.f("fmla", acc, v, w)
	})
	g.ret(g.fold(acc, add), off)

	off = g.begin("dot3", "returns the lane-tree sum of (x·y)·z.", ptrs("x", "y", "z"), true, reg)
	clear()
	g.each([]string{"R1", "R2", "R3"}, func() {
		g.load("R1", v)
		g.load("R2", w)
		g.f("fmul", v, v, w)
		g.load("R3", w)
		g.f("fmla", acc, v, w)
	})
	g.ret(g.fold(acc, add), off)

	off = g.begin("chain", "returns the sum of x·y with one accumulator. n is any number.", ptrs("x", "y"), true, reg)
	clear()
	g.line("CBZ R6, done")
	g.label("loop")
	g.line("FMOVS.P 4(R1), F4")
	g.line("FMOVS.P 4(R2), F5")
	g.fmlaLane(0, 4, 5)
	g.line("SUB $1, R6, R6")
	g.line("CBNZ R6, loop")
	g.label("done")
	g.ret(0, off)

	off = g.begin("maximum", "returns the lane-tree maximum of x.", ptrs("x"), true, reg)
	g.move(acc, g.constant(g.f32("negInf", negInf), 28))
	g.each([]string{"R1"}, func() {
		g.load("R1", v)
		g.f("fcmgt", w, acc, v)
		g.choose(w, acc, v)
		g.move(acc, w)
	})
	g.ret(g.fold(acc, func(d, n, m int) {
		g.three("fcmgt", 29, n, m)
		g.line("VBSL V%d.B16, V%d.B16, V29.B16", m, n)
		g.line("VMOV V29.B16, V%d.B16", d)
	}), off)

	off = g.begin("expSum", "writes exp(x·scale − shift) to dst and returns its lane-tree sum.",
		scalars(ptrs("dst", "x"), "scale", "shift"), true, reg)
	scale, shift := g.spread("scale", off, 30), g.spread("shift", off, 31)
	g.constant(g.u32("signBit", 1<<31), 28)
	g.line("VEOR V28.B16, V31.B16, V31.B16") // −shift
	clear()
	g.each([]string{"R0", "R1"}, func() {
		g.load("R1", w)
		g.move(v, shift)
		g.f("fmla", v, w, scale)
		g.exp(v, 2, 3, 4)
		g.store(v, "R0")
		g.f("fadd", acc, acc, v)
	})
	g.ret(g.fold(acc, add), off)
}

// exp replaces v by its exponential. t, r, p, V28 and V29 are overwritten. See docs/spec/exact.md.
func (g *arm) exp(v, t, r, p quad) {
	k := func(name string, x float32, at one) one { return g.constant(g.f32(name, x), at) }
	lo := k("expMin", expMin, 28)
	g.f("fcmgt", t, v, lo)
	g.choose(t, v, lo)
	hi := k("expMax", expMax, 29)
	g.f("fcmgt", v, hi, t)
	g.choose(v, t, hi)
	m := k("magic", magic, 28)
	g.move(t, m)
	g.f("fmla", t, v, k("log2e", log2e, 29)) // t = x·log2e + magic: round to nearest integer
	g.f("fsub", r, t, m)                     // r = n
	g.f("fmls", v, r, k("ln2Hi", ln2Hi, 29))
	g.f("fmls", v, r, k("ln2Lo", ln2Lo, 29)) // v = x − n·ln2
	g.v("VSUB", "S4", m, t, t)               // n as an integer
	g.move(p, k("exp7", expC[7], 29))
	for i := 6; i >= 0; i-- {
		g.move(r, k("exp"+string(rune('0'+i)), expC[i], 29))
		g.f("fmla", r, p, v) // p·v + c
		p, r = r, p
	}
	g.sshr(r, t)               // h = n >> 1
	g.v("VSUB", "S4", r, t, t) // n − h
	bias := g.constant(g.u32("bias", 127), 29)
	g.v("VADD", "S4", bias, r, r)
	g.v("VADD", "S4", bias, t, t)
	for _, x := range []quad{r, t} {
		for q := range 4 {
			g.line("VSHL $23, V%d.S4, V%d.S4", x.quarter(q), x.quarter(q))
		}
	}
	g.f("fmul", p, p, r)
	g.f("fmul", v, p, t)
}

// sigmoid sets s = 1/(1+exp(−x)); x is kept, t, r, p, V28 and V29 overwritten.
func (g *arm) sigmoid(x, s, t, r, p quad) {
	g.v("VEOR", "B16", g.constant(g.u32("signBit", 1<<31), 28), x, s)
	g.exp(s, t, r, p)
	unit := g.constant(g.f32("one", 1), 28)
	g.f("fadd", s, s, unit)
	g.f("fdiv", s, unit, s)
}

func (g *arm) elementwise() {
	reg := map[string]string{"dst": "R0", "x": "R1", "y": "R2", "dy": "R2", "w": "R3", "p": "R3", "c": "R3", "s": "R4", "n": "R6"}

	off := g.begin("scale", "sets dst = x·a.", scalars(ptrs("dst", "x"), "a"), false, reg)
	a := g.spread("a", off, 28)
	g.each([]string{"R0", "R1"}, func() {
		g.load("R1", 0)
		g.f("fmul", quad(0), quad(0), a)
		g.store(0, "R0")
	})
	g.line("RET")

	g.begin("add", "sets dst = dst + x.", ptrs("dst", "x"), false, reg)
	g.each([]string{"R0", "R1"}, func() {
		g.load("R0", 0)
		g.load("R1", 1)
		g.f("fadd", quad(0), quad(0), quad(1))
		g.store(0, "R0")
	})
	g.line("RET")

	g.begin("sum", "sets dst = x + y.", ptrs("dst", "x", "y"), false, reg)
	g.each([]string{"R0", "R1", "R2"}, func() {
		g.load("R1", 0)
		g.load("R2", 1)
		g.f("fadd", quad(0), quad(0), quad(1))
		g.store(0, "R0")
	})
	g.line("RET")

	off = g.begin("axpy", "sets dst = a·x + dst, fused.", scalars(ptrs("dst", "x"), "a"), false, reg)
	a = g.spread("a", off, 28)
	g.each([]string{"R0", "R1"}, func() {
		g.load("R0", 0)
		g.load("R1", 1)
		g.f("fmla", quad(0), quad(1), a)
		g.store(0, "R0")
	})
	g.line("RET")

	off = g.begin("mulScale", "sets dst = (x·a)·w.", scalars(ptrs("dst", "x", "w"), "a"), false, reg)
	a = g.spread("a", off, 28)
	g.each([]string{"R0", "R1", "R3"}, func() {
		g.load("R1", 0)
		g.load("R3", 1)
		g.f("fmul", quad(0), quad(0), a)
		g.f("fmul", quad(0), quad(0), quad(1))
		g.store(0, "R0")
	})
	g.line("RET")

	off = g.begin("axpyScale", "sets dst = x·(w·a) + dst, fused.", scalars(ptrs("dst", "x", "w"), "a"), false, reg)
	a = g.spread("a", off, 28)
	g.each([]string{"R0", "R1", "R3"}, func() {
		g.load("R0", 0)
		g.load("R1", 1)
		g.load("R3", 2)
		g.f("fmul", quad(2), quad(2), a)
		g.f("fmla", quad(0), quad(1), quad(2))
		g.store(0, "R0")
	})
	g.line("RET")

	off = g.begin("normGrad", "sets dst = dst + ((dy·w)·inv + b·x), the product with b fused.",
		scalars(ptrs("dst", "dy", "w", "x"), "inv", "b"), false, reg)
	inv, b := g.spread("inv", off, 28), g.spread("b", off, 29)
	g.each([]string{"R0", "R2", "R3", "R1"}, func() {
		g.load("R2", 0)
		g.load("R3", 1)
		g.f("fmul", quad(0), quad(0), quad(1))
		g.f("fmul", quad(0), quad(0), inv)
		g.load("R1", 1)
		g.f("fmla", quad(0), quad(1), b)
		g.load("R0", 1)
		g.f("fadd", quad(0), quad(1), quad(0))
		g.store(0, "R0")
	})
	g.line("RET")

	off = g.begin("softmaxGrad", "sets dst = (p·(dy − d))·a.", scalars(ptrs("dst", "p", "dy"), "d", "a"), false, reg)
	d, a := g.spread("d", off, 28), g.spread("a", off, 29)
	g.each([]string{"R0", "R3", "R2"}, func() {
		g.load("R2", 0)
		g.load("R3", 1)
		g.f("fsub", quad(0), quad(0), d)
		g.f("fmul", quad(0), quad(1), quad(0))
		g.f("fmul", quad(0), quad(0), a)
		g.store(0, "R0")
	})
	g.line("RET")

	// Half a head: x and y are its two halves, rotated in place.
	g.begin("rope", "rotates (x, y) to (x·c − y·s, y·c + x·s), the first product of each fused.",
		ptrs("x", "y", "c", "s"), false, reg)
	g.each([]string{"R1", "R2", "R3", "R4"}, func() {
		g.load("R1", 0)
		g.load("R2", 1)
		g.load("R3", 2)
		g.load("R4", 3)
		g.f("fmul", quad(4), quad(0), quad(3)) // x·s
		g.f("fmul", quad(5), quad(1), quad(3)) // y·s
		g.v("VEOR", "B16", g.constant(g.u32("signBit", 1<<31), 28), quad(5), quad(5))
		g.f("fmla", quad(5), quad(0), quad(2))
		g.f("fmla", quad(4), quad(1), quad(2))
		g.store(5, "R1")
		g.store(4, "R2")
	})
	g.line("RET")
}

func (g *arm) activations() {
	reg := map[string]string{"dst": "R0", "dg": "R0", "du": "R1", "dy": "R2", "gate": "R3", "u": "R4", "n": "R6"}

	g.begin("siluMul", "sets dst = (gate·sigmoid(gate))·u.", ptrs("dst", "gate", "u"), false, reg)
	g.each([]string{"R0", "R3", "R4"}, func() {
		g.load("R3", 0)
		g.sigmoid(0, 1, 2, 3, 4)
		g.f("fmul", quad(1), quad(0), quad(1))
		g.load("R4", 2)
		g.f("fmul", quad(1), quad(1), quad(2))
		g.store(1, "R0")
	})
	g.line("RET")

	g.begin("siluMulGrad", "sets dg and du from dy: silu = gate·s; du = dy·silu; dg = (dy·u)·(silu·(1−s) + s).",
		ptrs("dg", "du", "dy", "gate", "u"), false, reg)
	g.each([]string{"R0", "R1", "R2", "R3", "R4"}, func() {
		g.load("R3", 0)
		g.sigmoid(0, 1, 2, 3, 4)
		g.f("fmul", quad(2), quad(0), quad(1)) // silu
		g.load("R2", 3)
		g.load("R4", 5)
		g.f("fmul", quad(4), quad(3), quad(2))
		g.f("fmul", quad(3), quad(3), quad(5))
		g.store(4, "R1")
		g.f("fsub", quad(4), g.constant(g.f32("one", 1), 28), quad(1))
		g.f("fmla", quad(1), quad(2), quad(4)) // s + silu·(1−s)
		g.f("fmul", quad(3), quad(3), quad(1))
		g.store(3, "R0")
	})
	g.line("RET")
}

func (g *arm) optimizer() {
	reg := map[string]string{"p": "R0", "m": "R1", "v": "R2", "grad": "R3", "n": "R6"}
	names := []string{"clip", "b1", "c1", "b2", "c2", "step", "root", "eps", "decay"}
	off := g.begin("adamw", "is one AdamW step on p with moments m, v and gradient grad.",
		scalars(ptrs("p", "m", "v", "grad"), names...), false, reg)
	s := map[string]one{}
	for i, name := range names {
		s[name] = g.spread(name, off, one(20+i))
	}
	const x, m, v, t, den = quad(0), quad(1), quad(2), quad(3), quad(4)
	g.each([]string{"R0", "R1", "R2", "R3"}, func() {
		g.load("R3", x)
		g.f("fmul", x, x, s["clip"])
		g.load("R1", t)
		g.f("fmul", m, x, s["c1"])
		g.f("fmla", m, t, s["b1"]) // m = b1·m + c1·g
		g.store(m, "R1")
		g.load("R2", t)
		g.f("fmul", v, x, s["c2"])
		g.f("fmul", v, v, x)
		g.f("fmla", v, t, s["b2"]) // v = b2·v + (c2·g)·g
		g.store(v, "R2")
		g.fsqrt(v, v)
		g.move(den, s["eps"])
		g.f("fmla", den, v, s["root"]) // sqrt(v)·root + eps
		g.f("fmul", m, m, s["step"])
		g.f("fdiv", m, m, den)
		g.load("R0", x)
		g.move(t, x)
		g.f("fmls", t, x, s["decay"]) // p − decay·p
		g.f("fsub", t, t, m)
		g.store(t, "R0")
	})
	g.line("RET")
}
