package main

import (
	"bytes"
	"fmt"
	"math"
	"sort"
	"strings"
)

type isa int

const (
	avx2   isa = 256
	avx512 isa = 512
)

func (w isa) suffix() string { return map[isa]string{avx2: "AVX2", avx512: "AVX512"}[w] }

// gen accumulates the assembly text and the Go declarations of the kernels.
type gen struct {
	asm, decl bytes.Buffer
	isa       isa
	consts    map[string]uint32
	lanes     bool // the table of masks is wanted
	frame     int  // bytes of locals of the next function
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
			g.line("MOVQ %s+%d(FP), %s", p.name, off[p.name], r)
		}
	}
	return off
}

func (g *gen) end() {
	g.line("VZEROUPPER")
	g.line("RET")
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

// konst is a constant replicated over a vector.
type konst string

func (k konst) at(*gen, int) string { return "·" + string(k) + "<>(SB)" }

type imm int

func (i imm) at(*gen, int) string { return fmt.Sprintf("$%d", int(i)) }

// op emits one logical instruction, operands in Go's order (destination last).
func (g *gen) op(name string, a ...operand) {
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
	if g.lanes { // 16 lanes from 64 − 4n are n ones and zeros
		for i := range 32 {
			fmt.Fprintf(&b, "DATA ·lanes<>+%d(SB)/4, $0x%08x\n", 4*i, map[bool]uint32{true: 0xffffffff}[i < 16])
		}
		b.WriteString("GLOBL ·lanes<>(SB), RODATA|NOPTR, $128\n\n")
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

// loop emits body once per 16 elements; n is in CX and the pointers advance by 64 bytes.
func (g *gen) loop(ptrs []string, body func()) {
	g.line("SHRQ $4, CX")
	g.line("JZ done")
	g.label("loop")
	body()
	for _, p := range ptrs {
		g.line("ADDQ $64, %s", p)
	}
	g.line("DECQ CX")
	g.line("JNZ loop")
	g.label("done")
}
