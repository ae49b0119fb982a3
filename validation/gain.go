package validation

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/big"
	"sort"
)

// ErrTooFew is returned for a stratum with fewer than two documents: it has no standard error.
var ErrTooFew = errors.New("fewer than two documents, no standard error")

// Stratum is a paired measurement on samples of one pool: losses before and after an update in nano-nats per token, and
// the document of each sample.
type Stratum struct {
	Before, After []int64
	Documents     [][32]byte
}

// Gain returns the mean of Before − After over all samples of all strata in nano-nats, rounded half away from zero, and
// its standard error, rounded up.
//
// With n samples in all and, in stratum s, n_s samples of mean m_s in C_s documents, the variance of the mean is
// Σ_s C_s/(C_s−1)·Σ_c (Σ_{i∈c} (d_i − m_s))² / n²: samples of one document are not independent, and how many samples come
// from which stratum is fixed, not drawn. All of it is integer arithmetic.
func Gain(strata ...Stratum) (mean int64, stderr uint64, n int, err error) {
	total := new(big.Int)
	variance := new(big.Rat) // times n²
	for _, s := range strata {
		sum, v, err := s.moments()
		if err != nil {
			return 0, 0, 0, err
		}
		total.Add(total, sum)
		variance.Add(variance, v)
		n += len(s.Before)
	}
	if n == 0 {
		return 0, 0, 0, ErrTooFew
	}
	mean, err = int64Of(divRound(total, int64(n)))
	if err != nil {
		return 0, 0, 0, err
	}
	variance.Quo(variance, new(big.Rat).SetInt(new(big.Int).Mul(big.NewInt(int64(n)), big.NewInt(int64(n)))))
	root := sqrtUp(ceil(variance))
	if !root.IsUint64() {
		return 0, 0, 0, fmt.Errorf("standard error does not fit: losses differ by more than %d nano-nats", int64(math.MaxInt64))
	}
	return mean, root.Uint64(), n, nil
}

// moments returns Σ d_i and C/(C−1)·Σ_c (Σ_{i∈c} (d_i − mean))².
func (s Stratum) moments() (sum *big.Int, v *big.Rat, err error) {
	k := len(s.Before)
	if len(s.After) != k || len(s.Documents) != k {
		return nil, nil, fmt.Errorf("stratum of %d losses before, %d after, %d documents", k, len(s.After), len(s.Documents))
	}
	diff := func(i int) *big.Int { return new(big.Int).Sub(big.NewInt(s.Before[i]), big.NewInt(s.After[i])) }
	sum = new(big.Int)
	order := make([]int, k)
	for i := range order {
		order[i] = i
		sum.Add(sum, diff(i))
	}
	sort.SliceStable(order, func(a, b int) bool {
		return bytes.Compare(s.Documents[order[a]][:], s.Documents[order[b]][:]) < 0
	})
	clusters, squares, u := int64(0), new(big.Int), new(big.Int)
	for at, i := range order {
		// k·(d_i − mean) = k·d_i − sum is an integer.
		d := diff(i)
		u.Add(u, d.Mul(d, big.NewInt(int64(k))).Sub(d, sum))
		if at+1 == k || s.Documents[order[at+1]] != s.Documents[i] {
			squares.Add(squares, new(big.Int).Mul(u, u))
			u.SetInt64(0)
			clusters++
		}
	}
	if clusters < 2 {
		return nil, nil, ErrTooFew
	}
	squares.Mul(squares, big.NewInt(clusters))
	den := new(big.Int).Mul(big.NewInt(int64(k)), big.NewInt(int64(k)))
	return sum, new(big.Rat).SetFrac(squares, den.Mul(den, big.NewInt(clusters-1))), nil
}

// divRound is a/b rounded half away from zero, b > 0.
func divRound(a *big.Int, b int64) *big.Int {
	twice := new(big.Int).Lsh(new(big.Int).Abs(a), 1)
	q := twice.Add(twice, big.NewInt(b)).Quo(twice, big.NewInt(2*b))
	if a.Sign() < 0 {
		q.Neg(q)
	}
	return q
}

func int64Of(x *big.Int) (int64, error) {
	if !x.IsInt64() {
		return 0, fmt.Errorf("mean of %v nano-nats does not fit", x)
	}
	return x.Int64(), nil
}

func ceil(r *big.Rat) *big.Int {
	q, m := new(big.Int).QuoRem(r.Num(), r.Denom(), new(big.Int))
	if m.Sign() > 0 {
		q.Add(q, big.NewInt(1))
	}
	return q
}

func sqrtUp(x *big.Int) *big.Int {
	r := new(big.Int).Sqrt(x)
	if new(big.Int).Mul(r, r).Cmp(x) < 0 {
		r.Add(r, big.NewInt(1))
	}
	return r
}
