package main

// packing emits the kernels that bring operands of products into the order in which the strips read them.
func (g *gen) packing() {
	g.move("move", "*float32", "copies rows of n values, 16 at a time: row r, vector p goes to dst + r·dstRow + p·dstPanel. Strides are in bytes. The last vector is padded with zeros.",
		func(last bool) { g.loadFrom("SI", 0, last) }, 64)
	g.move("widen", "*uint16", "is move for bfloat16 values. "+map[isa]string{avx512: "", avx2: "n is a multiple of 16."}[g.isa],
		func(last bool) {
			switch {
			case g.isa == avx512 && last:
				g.line("VPMOVZXWD.Z (SI), K1, Z0")
			case g.isa == avx512:
				g.line("VPMOVZXWD (SI), Z0")
			case last:
				return
			default:
				g.line("VPMOVZXWD (SI), Y0")
				g.line("VPMOVZXWD 16(SI), Y1")
			}
			g.op("VPSLLD", imm(16), vec(0), vec(0))
		}, 32)
	if g.isa == avx2 {
		g.transpose("transpose", "*float32", "sets dst[x, r] = src[r, x] for 8 rows r of n values, n a multiple of 16. A row of dst is 64 bytes, one of src srcRow.", false)
		g.transpose("transposeHalf", "*uint16", "is transpose for bfloat16 values.", true)
	}
}

// loadFrom loads vector 0, masked if it is the last.
func (g *gen) loadFrom(base string, off int, last bool) {
	switch {
	case !last:
		g.op("VMOVUPS", mem{base, off}, vec(0))
	case g.isa == avx512:
		g.line("VMOVUPS.Z %s, K1, Z0", mem{base, off}.at(g, 0))
	default:
		for h := range 2 {
			g.line("VMASKMOVPS %s, Y%d, Y%d", mem{base, off}.at(g, h), 14+h, h)
		}
	}
}

func (g *gen) move(name, source, doc string, load func(last bool), bytes int) {
	g.begin(name, doc, []param{{"dst", "*float32"}, {"src", source}, {"rows", "int"}, {"n", "int"}, {"srcRow", "int"}, {"dstRow", "int"}, {"dstPanel", "int"}},
		false, map[string]string{"dst": "R8", "src": "R9", "rows": "R10", "n": "R11", "srcRow": "R12", "dstRow": "R13", "dstPanel": "DX"})
	g.line("MOVQ R11, BX")
	g.line("ANDQ $15, BX")
	g.line("SHRQ $4, R11")
	g.line("TESTQ BX, BX")
	g.line("JZ row")
	g.mask("BX")
	g.label("row")
	g.line("MOVQ R9, SI")
	g.line("MOVQ R8, DI")
	g.line("MOVQ R11, CX")
	g.line("TESTQ CX, CX")
	g.line("JZ tail")
	g.label("loop")
	load(false)
	g.line("PREFETCHT0 (SI)(R12*4)")
	g.op("VMOVUPS", vec(0), mem{"DI", 0})
	g.line("ADDQ $%d, SI", bytes)
	g.line("ADDQ DX, DI")
	g.line("DECQ CX")
	g.line("JNZ loop")
	g.label("tail")
	g.line("TESTQ BX, BX")
	g.line("JZ done")
	load(true)
	g.op("VMOVUPS", vec(0), mem{"DI", 0})
	g.label("done")
	g.line("ADDQ R12, R9")
	g.line("ADDQ R13, R8")
	g.line("DECQ R10")
	g.line("JNZ row")
	g.end()
}

// transpose works on blocks of 8 by 8 words of 32 bits, two of them side by side. Of bfloat16 values a word holds two
// neighbours. It asks for the next 8 rows early: several short rows are a pattern that processors do not foresee.
func (g *gen) transpose(name, source, doc string, half bool) {
	g.begin(name, doc, []param{{"dst", "*float32"}, {"src", source}, {"n", "int"}, {"srcRow", "int"}}, false,
		map[string]string{"dst": "DI", "src": "SI", "n": "CX", "srcRow": "R11"})
	g.line("LEAQ (R11)(R11*2), R12")
	g.line("LEAQ (SI)(R11*4), R9")
	g.line("LEAQ (SI)(R11*8), R10")
	g.line("LEAQ (R9)(R11*8), R13")
	if half {
		g.op("VMOVUPS", g.u32("upper", 0xffff0000), vec(7)) // Y14 and Y15
	}
	g.label("loop")
	rows := [...]string{"", "(R11*1)", "(R11*2)", "(R12*1)"}
	for _, at := range rows {
		g.line("PREFETCHT0 (R10)%s", at)
		g.line("PREFETCHT0 (R13)%s", at)
	}
	blocks := 2
	if half {
		blocks = 1 // of 16 values a row already
	}
	for block := range blocks {
		for r, at := range rows {
			for side := range 2 { // Y r: columns 0 to 3 of rows r and r+4; Y r+4: columns 4 to 7
				off := 32*block + 16*side
				g.line("VMOVUPS %d(SI)%s, X%d", off, at, r+4*side)
				g.line("VINSERTF128 $1, %d(R9)%s, Y%d, Y%d", off, at, r+4*side, r+4*side)
			}
		}
		for side := range 2 {
			y := 4 * side
			g.line("VUNPCKLPS Y%d, Y%d, Y8", y+1, y)
			g.line("VUNPCKHPS Y%d, Y%d, Y9", y+1, y)
			g.line("VUNPCKLPS Y%d, Y%d, Y10", y+3, y+2)
			g.line("VUNPCKHPS Y%d, Y%d, Y11", y+3, y+2)
			for c, in := range [4][2]int{{8, 10}, {8, 10}, {9, 11}, {9, 11}} {
				g.line("%s Y%d, Y%d, Y12", [...]string{"VUNPCKLPD", "VUNPCKHPD"}[c%2], in[1], in[0])
				if !half {
					g.line("VMOVUPS Y12, %d(DI)", 64*(8*block+y+c))
					continue
				}
				g.line("VPSLLD $16, Y12, Y13")
				g.line("VMOVUPS Y13, %d(DI)", 128*(y+c))
				g.line("VANDPS Y14, Y12, Y12")
				g.line("VMOVUPS Y12, %d(DI)", 128*(y+c)+64)
			}
		}
	}
	for _, p := range []string{"SI", "R9", "R10", "R13"} {
		g.line("ADDQ $%d, %s", 32*blocks, p)
	}
	g.line("ADDQ $1024, DI")
	g.line("SUBQ $16, CX")
	g.line("JNZ loop")
	g.end()
}
