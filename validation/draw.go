package validation

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// Sample is one held-out sequence.
type Sample struct {
	ID       [32]byte // of the sample: what exclusion goes by
	Document [32]byte // the piece of text it comes from: the cluster of standard errors
	Tokens   []int32
}

// Set is a set of sample ids.
type Set map[[32]byte]struct{}

// Pool is a domain's held-out pool.
type Pool interface {
	// Draw returns n distinct samples outside exclude, in an order that seed fixes. The first m of them do not depend on
	// n. It fails when the pool has no n such samples. It is safe for concurrent use.
	Draw(seed [32]byte, n int, exclude Set) ([]Sample, error)
}

// Beacon is one cycle's public randomness.
type Beacon [32]byte

// Quota is how many samples a cycle takes from a domain: Score for split A, which scores, Merge for split B, which
// decides the merge. No sample is in both.
type Quota struct{ Score, Merge int }

// Draw returns the samples of one cycle. beacons[0] is the randomness of the cycle, beacons[k] that of k cycles before;
// probe is never drawn.
//
// A cycle's candidates are the first 2·(Score+Merge) samples that its seed gives outside the probe. Drawn are the first
// candidates that were no candidate in any earlier cycle of beacons. So whoever knows the last K beacons knows what the
// last K cycles may have used, without the history before them; a pool too small for K cycles fails here.
func Draw(p Pool, domain string, cycle uint64, beacons []Beacon, q Quota, probe Set) (score, mergeSplit []Sample, err error) {
	n := q.Score + q.Merge
	used := Set{}
	for k := 1; k < len(beacons) && uint64(k) <= cycle; k++ {
		past, err := p.Draw(seed(beacons[k], cycle-uint64(k), domain), 2*n, probe)
		if err != nil {
			return nil, nil, fmt.Errorf("candidates of cycle %d in %s: %w", cycle-uint64(k), domain, err)
		}
		for _, s := range past {
			used[s.ID] = struct{}{}
		}
	}
	all, err := p.Draw(seed(beacons[0], cycle, domain), 2*n, probe)
	if err != nil {
		return nil, nil, fmt.Errorf("candidates of cycle %d in %s: %w", cycle, domain, err)
	}
	fresh := make([]Sample, 0, n)
	for _, s := range all {
		if _, ok := used[s.ID]; !ok && len(fresh) < n {
			fresh = append(fresh, s)
		}
	}
	if len(fresh) < n {
		return nil, nil, fmt.Errorf("held-out pool of %s is too small: %d of %d candidates of cycle %d were not used in the %d cycles before, %d are needed",
			domain, len(fresh), len(all), cycle, len(beacons)-1, n)
	}
	return fresh[:q.Score:q.Score], fresh[q.Score:], nil
}

// seed is SHA-256("bzd/draw/1" ‖ beacon ‖ cycle as 8 bytes little endian ‖ domain).
func seed(b Beacon, cycle uint64, domain string) [32]byte {
	h := append([]byte("bzd/draw/1"), b[:]...)
	h = binary.LittleEndian.AppendUint64(h, cycle)
	return sha256.Sum256(append(h, domain...))
}
