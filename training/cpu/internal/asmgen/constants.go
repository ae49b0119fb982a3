package main

import "math"

// The constants of exp. Package cpu declares the same values for its scalar code; a test there compares the two.
var (
	negInf float32 = float32(math.Inf(-1))
	expMin float32 = -104
	expMax float32 = 88.72
	log2e  float32 = 0x1.715476p+0
	magic  float32 = 0x1.8p+23
	ln2Hi  float32 = 0x1.62e4p-1
	ln2Lo  float32 = 0x1.7f7d1cp-20
	expC           = [8]float32{1, 1, 0.5, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040}
)
