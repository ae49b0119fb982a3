package validation_test

import (
	"errors"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"

	"github.com/blockzero-net/bzd/validation"
)

func doc(n int) [32]byte { return [32]byte{0: byte(n), 1: byte(n >> 8), 31: 1} }

// stratum makes one of differences before − after, by document.
func stratum(documents ...[]int64) validation.Stratum {
	var s validation.Stratum
	for i, list := range documents {
		for _, d := range list {
			s.Before, s.After, s.Documents = append(s.Before, d), append(s.After, 0), append(s.Documents, doc(i))
		}
	}
	return s
}

// reference computes mean and variance of the mean from their definitions, in fractions.
func reference(strata []validation.Stratum) (mean, variance *big.Rat) {
	n := int64(0)
	mean, variance = new(big.Rat), new(big.Rat)
	for _, s := range strata {
		n += int64(len(s.Before))
	}
	for _, s := range strata {
		var d []*big.Rat
		sum := new(big.Rat)
		for i := range s.Before {
			x := new(big.Rat).Sub(new(big.Rat).SetInt64(s.Before[i]), new(big.Rat).SetInt64(s.After[i]))
			d = append(d, x)
			sum.Add(sum, x)
		}
		m := new(big.Rat).Quo(sum, big.NewRat(int64(len(d)), 1))
		clusters := map[[32]byte]*big.Rat{}
		for i, x := range d {
			if clusters[s.Documents[i]] == nil {
				clusters[s.Documents[i]] = new(big.Rat)
			}
			clusters[s.Documents[i]].Add(clusters[s.Documents[i]], new(big.Rat).Sub(x, m))
		}
		squares := new(big.Rat)
		for _, u := range clusters {
			squares.Add(squares, new(big.Rat).Mul(u, u))
		}
		c := int64(len(clusters))
		variance.Add(variance, squares.Mul(squares, big.NewRat(c, c-1)))
		mean.Add(mean, sum)
	}
	return mean.Quo(mean, big.NewRat(n, 1)), variance.Quo(variance, big.NewRat(n*n, 1))
}

// check compares Gain with the reference: the mean within half a nano-nat, its half going away from zero, the standard
// error the smallest integer whose square is no less than the variance.
func check(t *testing.T, strata ...validation.Stratum) (int64, uint64) {
	t.Helper()
	mean, stderr, n, err := validation.Gain(strata...)
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, s := range strata {
		count += len(s.Before)
	}
	if n != count {
		t.Errorf("%d samples, want %d", n, count)
	}
	wantMean, variance := reference(strata)
	off := new(big.Rat).Sub(new(big.Rat).SetInt64(mean), wantMean)
	half := big.NewRat(1, 2)
	switch c := new(big.Rat).Abs(off).Cmp(half); {
	case c > 0, c == 0 && off.Sign() != wantMean.Sign():
		t.Errorf("mean %d, exactly %s", mean, wantMean.RatString())
	}
	e := new(big.Int).SetUint64(stderr)
	square := func(x *big.Int) *big.Rat { return new(big.Rat).SetInt(new(big.Int).Mul(x, x)) }
	if square(e).Cmp(variance) < 0 {
		t.Errorf("standard error %d, its square is below the variance %s", stderr, variance.RatString())
	}
	if stderr > 0 && square(e.Sub(e, big.NewInt(1))).Cmp(variance) >= 0 {
		t.Errorf("standard error %d, one less would do for the variance %s", stderr, variance.RatString())
	}
	return mean, stderr
}

func TestGain(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var strata []validation.Stratum
		scale := int64(1) << (1 + r.IntN(61))
		for range 1 + r.IntN(3) {
			var s validation.Stratum
			documents := 2 + r.IntN(6)
			for i := range documents + r.IntN(20) {
				k := i // every document once, then some again
				if i >= documents {
					k = r.IntN(documents)
				}
				s.Before = append(s.Before, r.Int64N(2*scale)-scale)
				s.After = append(s.After, r.Int64N(2*scale)-scale)
				s.Documents = append(s.Documents, doc(k))
			}
			strata = append(strata, s)
		}
		mean, stderr := check(t, strata...)
		// Neither the order of samples, nor that of strata, nor the names of documents matter.
		r.Shuffle(len(strata), func(i, j int) { strata[i], strata[j] = strata[j], strata[i] })
		names := r.Perm(1 << 12)
		for _, s := range strata {
			r.Shuffle(len(s.Before), func(i, j int) {
				s.Before[i], s.Before[j] = s.Before[j], s.Before[i]
				s.After[i], s.After[j] = s.After[j], s.After[i]
				s.Documents[i], s.Documents[j] = s.Documents[j], s.Documents[i]
			})
			for i, d := range s.Documents {
				s.Documents[i] = doc(names[int(d[0])+int(d[1])<<8])
			}
		}
		if m, e, _, err := validation.Gain(strata...); m != mean || e != stderr || err != nil {
			t.Fatalf("in another order: %d ± %d, %v, want %d ± %d", m, e, err, mean, stderr)
		}
		// Before and after exchanged, a gain is a loss of the same size.
		for i, s := range strata {
			strata[i].Before, strata[i].After = s.After, s.Before
		}
		if m, e, _, err := validation.Gain(strata...); m != -mean || e != stderr || err != nil {
			t.Fatalf("exchanged: %d ± %d, %v, want %d ± %d", m, e, err, -mean, stderr)
		}
	}
}

// TestGainByHand has results that can be followed on paper.
func TestGainByHand(t *testing.T) {
	for name, c := range map[string]struct {
		strata []validation.Stratum
		mean   int64
		stderr uint64
	}{
		"nothing changed":          {[]validation.Stratum{stratum([]int64{0, 0}, []int64{0})}, 0, 0},
		"the same everywhere":      {[]validation.Stratum{stratum([]int64{7, 7}, []int64{7})}, 7, 0},
		"half up":                  {[]validation.Stratum{stratum([]int64{1}, []int64{2})}, 2, 1},
		"half down":                {[]validation.Stratum{stratum([]int64{-1}, []int64{-2})}, -2, 1},
		"half of one":              {[]validation.Stratum{stratum([]int64{0}, []int64{1})}, 1, 1},
		"half of minus one":        {[]validation.Stratum{stratum([]int64{0}, []int64{-1})}, -1, 1},
		"a third":                  {[]validation.Stratum{stratum([]int64{0}, []int64{0}, []int64{1})}, 0, 1},
		"two thirds":               {[]validation.Stratum{stratum([]int64{0}, []int64{1}, []int64{1})}, 1, 1},
		"minus two thirds":         {[]validation.Stratum{stratum([]int64{0}, []int64{-1}, []int64{-1})}, -1, 1},
		"exact root":               {[]validation.Stratum{stratum([]int64{-3}, []int64{3})}, 0, 3},             // 2/1·(9+9)/4 = 9
		"root rounded up":          {[]validation.Stratum{stratum([]int64{0}, []int64{0}, []int64{3})}, 1, 1},  // 3/2·6/9 = 1
		"just above a square":      {[]validation.Stratum{stratum([]int64{-3}, []int64{3}, []int64{3})}, 1, 2}, // 3/2·24/9 = 4
		"cluster of equals":        {[]validation.Stratum{stratum([]int64{4, 4}, []int64{-4, -4})}, 0, 4},      // 2/1·(64+64)/16 = 16
		"apart they prove more":    {[]validation.Stratum{stratum([]int64{4}, []int64{4}, []int64{-4}, []int64{-4})}, 0, 3},
		"strata of distant means":  {[]validation.Stratum{stratum([]int64{100}, []int64{100}), stratum([]int64{0}, []int64{0})}, 50, 0},
		"together they vary":       {[]validation.Stratum{stratum([]int64{100}, []int64{100}, []int64{0}, []int64{0})}, 50, 29}, // √(4/3·10000/16)
		"forgetting costs":         {[]validation.Stratum{stratum([]int64{10}, []int64{10}, []int64{10}), stratum([]int64{-90}, []int64{-90})}, -30, 0},
		"a document in two strata": {[]validation.Stratum{stratum([]int64{-3}, []int64{3}), stratum([]int64{-3}, []int64{3})}, 0, 3}, // 2·36/16 = 4.5
	} {
		mean, stderr := check(t, c.strata...)
		if mean != c.mean || stderr != c.stderr {
			t.Errorf("%s: %d ± %d, want %d ± %d", name, mean, stderr, c.mean, c.stderr)
		}
	}
}

// TestGainExtremes: no losses that fit int64 overflow on the way; what does not fit at the end is an error.
func TestGainExtremes(t *testing.T) {
	const most = math.MaxInt64
	s := validation.Stratum{Before: []int64{most, -most}, After: []int64{-most, most}, Documents: [][32]byte{doc(0), doc(1)}}
	if mean, stderr := check(t, s); mean != 0 || stderr != 2*most {
		t.Errorf("%d ± %d, want 0 ± %d", mean, stderr, uint64(2*most))
	}
	s = validation.Stratum{Before: []int64{most, most, 0}, After: []int64{0, 0, most}, Documents: [][32]byte{doc(0), doc(1), doc(2)}}
	check(t, s)
	check(t, s, s, s)
	s = validation.Stratum{Before: []int64{-1, -1}, After: []int64{most, most}, Documents: [][32]byte{doc(0), doc(1)}}
	if mean, _ := check(t, s); mean != math.MinInt64 {
		t.Errorf("%d, want %d", mean, int64(math.MinInt64))
	}
	s = validation.Stratum{Before: []int64{most, most}, After: []int64{-most, -1}, Documents: [][32]byte{doc(0), doc(1)}}
	if mean, stderr, _, err := validation.Gain(s); err == nil {
		t.Errorf("a mean past int64 became %d ± %d", mean, stderr)
	}
}

func TestGainRefuses(t *testing.T) {
	good := stratum([]int64{1}, []int64{2})
	for name, strata := range map[string][]validation.Stratum{
		"no strata": nil, "empty": {{}}, "one sample": {stratum([]int64{1})}, "one document": {stratum([]int64{1, 2, 3})},
		"one stratum of one document": {good, stratum([]int64{1, 2, 3})}, "one stratum empty": {good, {}, good},
	} {
		if mean, stderr, n, err := validation.Gain(strata...); !errors.Is(err, validation.ErrTooFew) || mean != 0 || stderr != 0 || n != 0 {
			t.Errorf("%s: %d ± %d of %d, %v", name, mean, stderr, n, err)
		}
	}
	for name, s := range map[string]validation.Stratum{
		"a loss short": {Before: good.Before, After: good.After[:1], Documents: good.Documents},
		"a loss more":  {Before: good.Before, After: []int64{1, 2, 3}, Documents: good.Documents},
		"no documents": {Before: good.Before, After: good.After},
	} {
		if _, _, _, err := validation.Gain(good, s); err == nil || errors.Is(err, validation.ErrTooFew) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCoverage simulates what Gain is for: samples of one document share luck, and the strata differ in level. The
// interval of 1.96 standard errors must hold the true mean in about 95 of 100 cases; taking samples for independent would
// hold it far less often, and pooling the strata far too often.
func TestCoverage(t *testing.T) {
	const trials = 2000
	r := rand.New(rand.NewPCG(3, 4))
	sizes := [2][]int{}
	level := [2]float64{5e6, -4e7} // nano-nats
	var truth, samples float64
	for s := range sizes {
		for range 40 - 15*s {
			k := 1 + r.IntN(6)
			sizes[s] = append(sizes[s], k)
			truth += level[s] * float64(k)
			samples += float64(k)
		}
	}
	truth /= samples
	var clustered, single, pooled int
	for range trials {
		var strata, alone []validation.Stratum
		var all validation.Stratum
		for s := range sizes {
			var one validation.Stratum
			for d, k := range sizes[s] {
				luck := r.NormFloat64() * 1e7
				for range k {
					one.Before = append(one.Before, int64(3e9+level[s]+luck+r.NormFloat64()*5e6))
					one.After = append(one.After, 3e9)
					one.Documents = append(one.Documents, doc(1000*s+d))
				}
			}
			strata = append(strata, one)
			all.Before, all.After, all.Documents = append(all.Before, one.Before...), append(all.After, one.After...), append(all.Documents, one.Documents...)
			split := one
			split.Documents = nil
			for i := range one.Before {
				split.Documents = append(split.Documents, doc(i))
			}
			alone = append(alone, split)
		}
		holds := func(strata ...validation.Stratum) int {
			mean, stderr, _, err := validation.Gain(strata...)
			if err != nil {
				t.Fatal(err)
			}
			if math.Abs(float64(mean)-truth) <= 1.96*float64(stderr) {
				return 1
			}
			return 0
		}
		clustered += holds(strata...)
		single += holds(alone...)
		pooled += holds(all)
	}
	rate := func(n int) float64 { return float64(n) / trials }
	if c := rate(clustered); c < 0.925 || c > 0.965 {
		t.Errorf("the interval held the mean in %.3f of the cases, want 0.95", c)
	}
	if c := rate(single); c > 0.85 {
		t.Errorf("without clusters it held the mean in %.3f of the cases; the simulation shows nothing", c)
	}
	if c := rate(pooled); c < 0.99 {
		t.Errorf("without strata it held the mean in %.3f of the cases; the simulation shows nothing", c)
	}
}
