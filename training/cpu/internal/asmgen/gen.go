package main

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"sort"
	"strings"
)

type isa int

const (
	neon   isa = 128
	avx2   isa = 256
	avx512 isa = 512
)

func (w isa) suffix() string { return map[isa]string{neon: "NEON", avx2: "AVX2", avx512: "AVX512"}[w] }

// move is the instruction that loads an integer register.
func (w isa) move() string {
	if w == neon {
		return "MOVD"
	}
	return "MOVQ"
}

// gen accumulates the assembly text and the Go declarations of the kernels.
type gen struct {
	asm, decl bytes.Buffer
	isa       isa
	consts    map[string]uint32
	lanes     bool // the table of masks is wanted
	frame     int  // bytes of locals of the next function
	masked    bool // within the body of a tail
	spare     vec  // what masked operations overwrite
	held      map[konst]vec
}

func (g *gen) line(format string, a ...any) { fmt.Fprintf(&g.asm, "\t"+format+"\n", a...) }
func (g *gen) label(l string)               { fmt.Fprintf(&g.asm, "%s:\n", l) }

// param is one argument of a kernel.
type param struct{ name, typ string }

func (p param) size() int {
	if p.typ == "float32" {
		return 4
	}
	return 8
}

// begin opens a function and loads its pointer and integer arguments into the named registers. It returns the frame
// offset of every argument.
func (g *gen) begin(name, doc string, params []param, ret bool, regs map[string]string) map[string]int {
	full := name + g.isa.suffix()
	var args []string
	off := map[string]int{}
	n := 0
	for i, p := range params {
		n = (n + p.size() - 1) &^ (p.size() - 1)
		off[p.name] = n
		n += p.size()
		if i+1 < len(params) && params[i+1].typ == p.typ {
			args = append(args, p.name)
		} else {
			args = append(args, p.name+" "+p.typ)
		}
	}
	result := ""
	if ret {
		n = (n + 7) &^ 7
		off["ret"] = n
		n += 4
		result = " (ret float32)"
	}
	fmt.Fprintf(&g.decl, "// %s %s\n//\n//go:noescape\nfunc %s(%s)%s\n\n", full, doc, full, strings.Join(args, ", "), result)
	fmt.Fprintf(&g.asm, "\n// func %s(%s)%s\nTEXT ·%s(SB), NOSPLIT, $%d-%d\n", full, strings.Join(args, ", "), result, full, g.frame, n)
	for _, p := range params {
		if r, ok := regs[p.name]; ok {
			g.line("%s %s+%d(FP), %s", g.isa.move(), p.name, off[p.name], r)
		}
	}
	return off
}

func (g *gen) end() {
	g.line("VZEROUPPER")
	g.line("RET")
	g.held = nil
}

// hold keeps constants in registers, from first on, to the end of the function, if the instruction set has enough of them.
func (g *gen) hold(first vec, constants ...konst) {
	if g.isa != avx512 {
		return
	}
	held := map[konst]vec{}
	for i, k := range constants {
		g.op("VMOVUPS", k, first+vec(i))
		held[k] = first + vec(i)
	}
	g.held = held
}

// operand of a logical vector instruction.
type operand interface{ at(g *gen, half int) string }

type vec int

func (v vec) at(g *gen, half int) string {
	if g.isa == avx512 {
		return fmt.Sprintf("Z%d", int(v))
	}
	return fmt.Sprintf("Y%d", 2*int(v)+half)
}

// mem is 16 consecutive float32 at off(base).
type mem struct {
	base string
	off  int
}

func (m mem) at(g *gen, half int) string {
	o := m.off + 32*half
	if o == 0 {
		return "(" + m.base + ")"
	}
	return fmt.Sprintf("%d(%s)", o, m.base)
}

// cell is 16 consecutive float32 at index(base).
type cell struct{ base, index string }

func (c cell) at(_ *gen, half int) string {
	if half == 0 {
		return fmt.Sprintf("(%s)(%s*1)", c.base, c.index)
	}
	return fmt.Sprintf("%d(%s)(%s*1)", 32*half, c.base, c.index)
}

// konst is a constant replicated over a vector.
type konst string

func (k konst) at(g *gen, half int) string {
	if v, ok := g.held[k]; ok {
		return v.at(g, half)
	}
	return k.memory()
}

func (k konst) memory() string { return "·" + string(k) + "<>(SB)" }

// word is an operand that is the same everywhere.
type word string

func (w word) at(*gen, int) string { return string(w) }

type imm int

func (i imm) at(*gen, int) string { return fmt.Sprintf("$%d", int(i)) }

// op emits one logical instruction, operands in Go's order (destination last). Masked, a first operand in memory is read
// in the lanes of the mask only.
func (g *gen) op(name string, a ...operand) {
	if m, ok := a[0].(mem); ok && g.masked {
		g.masked = false
		if g.isa == avx512 {
			g.op(name, slices.Insert(slices.Clone(a), len(a)-1, operand(word("K1")))...)
		} else {
			t := word(fmt.Sprintf("Y%d", 2*int(g.spare)+1))
			for h := range 2 {
				g.line("VMASKMOVPS %s, %s, %s", m.at(g, h), g.lanesOf(h), t)
				s := []string{string(t)}
				for _, x := range a[1:] {
					s = append(s, x.at(g, h))
				}
				g.line("%s %s", name, strings.Join(s, ", "))
			}
		}
		g.masked = true
		return
	}
	halves := 1
	if g.isa == avx2 {
		halves = 2
	}
	for h := range halves {
		var s []string
		for _, x := range a {
			s = append(s, x.at(g, h))
		}
		g.line("%s %s", name, strings.Join(s, ", "))
	}
}

// f32 registers a float32 constant.
func (g *gen) f32(name string, v float32) konst { return g.u32(name, math.Float32bits(v)) }

func (g *gen) u32(name string, v uint32) konst {
	if g.consts == nil {
		g.consts = map[string]uint32{}
	}
	g.consts[name] = v
	return konst(name)
}

func (g *gen) constants() []byte {
	var b bytes.Buffer
	var names []string
	for n := range g.consts {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		for i := range 16 {
			fmt.Fprintf(&b, "DATA ·%s<>+%d(SB)/4, $0x%08x\n", n, 4*i, g.consts[n])
		}
		fmt.Fprintf(&b, "GLOBL ·%s<>(SB), RODATA|NOPTR, $64\n\n", n)
	}
	if g.lanes { // 16 lanes from 64 − 4n are n ones, then zeros; those from 128 − 4n are n zeros, then ones
		for i := range 48 {
			fmt.Fprintf(&b, "DATA ·lanes<>+%d(SB)/4, $0x%08x\n", 4*i, map[bool]uint32{true: 0xffffffff}[i < 16 || i >= 32])
		}
		b.WriteString("GLOBL ·lanes<>(SB), RODATA|NOPTR, $192\n\n")
	}
	return b.Bytes()
}

// broadcastArg loads a float32 argument into every lane of v.
func (g *gen) broadcastArg(name string, off int, v vec) {
	g.op("VBROADCASTSS", arg{name, off}, v)
}

type arg struct {
	name string
	off  int
}

func (a arg) at(*gen, int) string { return fmt.Sprintf("%s+%d(FP)", a.name, a.off) }

// fold reduces the 16 lanes of v to lane 0 of X(v): l with l+8, then +4, +2, +1. tmp is overwritten.
func (g *gen) fold(op string, v, tmp vec) string {
	var lo, hi, t string // YMM names
	if g.isa == avx512 {
		lo, t = fmt.Sprintf("Y%d", int(v)), fmt.Sprintf("Y%d", int(tmp))
		hi = t
		g.line("VEXTRACTF64X4 $1, Z%d, %s", int(v), hi)
	} else {
		lo, hi, t = fmt.Sprintf("Y%d", 2*int(v)), fmt.Sprintf("Y%d", 2*int(v)+1), fmt.Sprintf("Y%d", 2*int(tmp))
	}
	x, tx := "X"+lo[1:], "X"+t[1:]
	g.line("%s %s, %s, %s", op, hi, lo, lo)
	g.line("VEXTRACTF128 $1, %s, %s", lo, tx)
	g.line("%s %s, %s, %s", op, tx, x, x)
	g.line("VPERMILPS $14, %s, %s", x, tx)
	g.line("%s %s, %s, %s", op, tx, x, x)
	g.line("VPERMILPS $1, %s, %s", x, tx)
	g.line("%s %s, %s, %s", op, tx, x, x)
	return x
}

// loop emits body once per 16 elements and, masked, for those that remain; n is in CX and the pointers advance by 64
// bytes. It overwrites AX, R10, R13 and spare. Within body, what depends on the number of lanes goes through load, store
// and acc.
func (g *gen) loop(ptrs []string, spare vec, body func()) {
	g.line("MOVQ CX, R10")
	g.line("ANDQ $15, R10")
	g.turns("loop", ptrs, body)
	g.line("TESTQ R10, R10")
	g.line("JZ done")
	g.tailMask()
	g.tail(spare, body)
	g.label("done")
}

// turns emits body CX/16 times.
func (g *gen) turns(name string, ptrs []string, body func()) {
	g.line("SHRQ $4, CX")
	g.line("JZ %sEnd", name)
	g.label(name)
	body()
	for _, p := range ptrs {
		g.line("ADDQ $64, %s", p)
	}
	g.line("DECQ CX")
	g.line("JNZ %s", name)
	g.label(name + "End")
}

// tailMask prepares the mask of the first R10 lanes: K1, or R13 pointing to it. It overwrites AX and CX.
func (g *gen) tailMask() {
	if g.isa == avx512 {
		g.line("MOVQ R10, CX")
		g.line("MOVL $1, AX")
		g.line("SHLL CX, AX")
		g.line("DECL AX")
		g.line("KMOVW AX, K1")
		return
	}
	g.lanes = true
	g.line("LEAQ ·lanes<>+64(SB), R13")
	g.line("MOVQ R10, AX")
	g.line("SHLQ $2, AX")
	g.line("SUBQ AX, R13")
}

// tail emits body masked.
func (g *gen) tail(spare vec, body func()) {
	g.masked, g.spare = true, spare
	body()
	g.masked = false
}

// lanesOf loads half h of the mask to the first register of spare.
func (g *gen) lanesOf(h int) string {
	y := fmt.Sprintf("Y%d", 2*int(g.spare))
	g.line("VMOVUPS %d(R13), %s", 32*h, y)
	return y
}

// load sets v to the vector at base; lanes that are masked out become zeros.
func (g *gen) load(base string, v vec) {
	switch {
	case !g.masked:
		g.op("VMOVUPS", mem{base, 0}, v)
	case g.isa == avx512:
		g.line("VMOVUPS.Z (%s), K1, Z%d", base, int(v))
	default:
		for h := range 2 {
			g.line("VMASKMOVPS %s, %s, %s", mem{base, 0}.at(g, h), g.lanesOf(h), v.at(g, h))
		}
	}
}

// store writes v to base, without the lanes that are masked out.
func (g *gen) store(v vec, base string) {
	switch {
	case !g.masked:
		g.op("VMOVUPS", v, mem{base, 0})
	case g.isa == avx512:
		g.line("VMOVUPS Z%d, K1, (%s)", int(v), base)
	default:
		for h := range 2 {
			g.line("VMASKMOVPS %s, %s, %s", v.at(g, h), g.lanesOf(h), mem{base, 0}.at(g, h))
		}
	}
}

// acc is op on an accumulator: lanes that are masked out keep what they hold.
func (g *gen) acc(name string, a, b, into vec) {
	switch {
	case !g.masked:
		g.op(name, a, b, into)
	case g.isa == avx512:
		g.line("%s Z%d, Z%d, K1, Z%d", name, int(a), int(b), int(into))
	default:
		t := fmt.Sprintf("Y%d", 2*int(g.spare)+1)
		for h := range 2 {
			g.line("VMOVAPS %s, %s", into.at(g, h), t)
			g.line("%s %s, %s, %s", name, a.at(g, h), b.at(g, h), t)
			g.line("VBLENDVPS %s, %s, %s, %s", g.lanesOf(h), t, into.at(g, h), into.at(g, h))
		}
	}
}
