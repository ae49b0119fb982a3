package validation_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/validation"
)

// pool gives its samples in the order of their hash with the seed.
type pool struct {
	size  int
	seeds [][32]byte
	most  int // largest draw asked for
}

func sampleID(i int) [32]byte { return sha256.Sum256(binary.LittleEndian.AppendUint64(nil, uint64(i))) }

func (p *pool) Draw(seed [32]byte, n int, exclude validation.Set) ([]validation.Sample, error) {
	p.seeds = append(p.seeds, seed)
	p.most = max(p.most, n)
	type ranked struct {
		rank [32]byte
		id   int
	}
	var order []ranked
	for i := range p.size {
		id := sampleID(i)
		if _, skip := exclude[id]; !skip {
			order = append(order, ranked{sha256.Sum256(append(seed[:], id[:]...)), i})
		}
	}
	if len(order) < n {
		return nil, fmt.Errorf("%d samples left", len(order))
	}
	slices.SortFunc(order, func(a, b ranked) int { return bytes.Compare(a.rank[:], b.rank[:]) })
	var list []validation.Sample
	for _, r := range order[:n] {
		list = append(list, validation.Sample{ID: sampleID(r.id), Document: doc(r.id / 3)})
	}
	return list, nil
}

func beacon(cycle int) validation.Beacon {
	return sha256.Sum256(fmt.Appendf(nil, "beacon of cycle %d", cycle))
}

// window is what a node with k earlier beacons passes to Draw in a cycle.
func window(cycle, k int) []validation.Beacon {
	var list []validation.Beacon
	for i := 0; i <= k && i <= cycle; i++ {
		list = append(list, beacon(cycle-i))
	}
	return list
}

func ids(samples ...[]validation.Sample) [][32]byte {
	var list [][32]byte
	for _, s := range slices.Concat(samples...) {
		list = append(list, s.ID)
	}
	return list
}

// TestDrawsOfManyCycles follows the draws that were really made: for K cycles nothing is drawn again.
func TestDrawsOfManyCycles(t *testing.T) {
	const cycles, k = 30, 4
	q := validation.Quota{Score: 9, Merge: 5}
	p := &pool{size: 400}
	probe := validation.Set{}
	for i := range 20 {
		probe[sampleID(i*17)] = struct{}{}
	}
	last := map[[32]byte]int{} // the cycle that drew a sample last
	again := 0
	for cycle := range cycles {
		score, merge, err := validation.Draw(p, "go", uint64(cycle), window(cycle, k), q, probe)
		if err != nil {
			t.Fatal(err)
		}
		if len(score) != q.Score || len(merge) != q.Merge {
			t.Fatalf("cycle %d: %d and %d samples", cycle, len(score), len(merge))
		}
		for _, id := range ids(score, merge) {
			if before, ok := last[id]; ok {
				if before == cycle {
					t.Errorf("cycle %d drew %x twice", cycle, id[:4])
				} else if cycle-before <= k {
					t.Errorf("cycle %d drew %x, as did cycle %d", cycle, id[:4], before)
				}
				again++
			}
			if _, ok := probe[id]; ok {
				t.Errorf("cycle %d drew %x of the probe", cycle, id[:4])
			}
			last[id] = cycle
		}
		// A newcomer with nothing but the last K beacons draws the same; to one who knows more of the past, but is asked
		// for K, the older beacons are nothing.
		chain := make([]validation.Beacon, cycle+1)
		for i := range chain {
			chain[i] = beacon(i)
			if i < cycle-k {
				chain[i] = validation.Beacon{}
			}
		}
		slices.Reverse(chain)
		s, m, err := validation.Draw(&pool{size: 400}, "go", uint64(cycle), chain[:min(k, cycle)+1], q, probe)
		if err != nil || !slices.Equal(ids(s, m), ids(score, merge)) || len(s) != len(score) {
			t.Fatalf("cycle %d: a newcomer draws something else (%v)", cycle, err)
		}
	}
	if again == 0 {
		t.Error("nothing was ever drawn again in 30 cycles; the pool is too large to show that exclusion ends")
	}
}

// TestDrawWithoutExclusion repeats samples in the simulation above: it is exclusion that keeps them away.
func TestDrawWithoutExclusion(t *testing.T) {
	q := validation.Quota{Score: 9, Merge: 5}
	last, early := map[[32]byte]int{}, 0
	for cycle := range 30 {
		score, merge, err := validation.Draw(&pool{size: 400}, "go", uint64(cycle), window(cycle, 0), q, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range ids(score, merge) {
			if before, ok := last[id]; ok && cycle-before <= 4 {
				early++
			}
			last[id] = cycle
		}
	}
	if early < 20 {
		t.Errorf("%d samples came again within 4 cycles", early)
	}
}

// TestDrawIsAPrefix: with nothing to leave out, a draw is the beginning of what the pool gives for the seed, split A
// before split B, however many are asked for.
func TestDrawIsAPrefix(t *testing.T) {
	p := &pool{size: 300}
	seed := sha256.Sum256(slices.Concat([]byte("bzd/draw/1"), sha256Of("b"), []byte{0x39, 0x30, 0, 0, 0, 0, 0, 0}, []byte("web")))
	all, err := p.Draw(seed, 300, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range []validation.Quota{{3, 4}, {20, 30}, {100, 50}, {5, 0}, {0, 5}} {
		score, merge, err := validation.Draw(p, "web", 12345, []validation.Beacon{sha256.Sum256([]byte("b"))}, q, nil)
		if err != nil {
			t.Fatal(err)
		}
		if n := q.Score + q.Merge; !slices.Equal(ids(score, merge), ids(all[:n])) || len(score) != q.Score {
			t.Errorf("%+v: not the first %d samples of the seed", q, n)
		}
		// A caller that appends to one split must not reach the other.
		if _ = append(score, validation.Sample{}); len(merge) > 0 && merge[0].ID != all[q.Score].ID {
			t.Errorf("%+v: appending to split A changed split B", q)
		}
	}
}

func sha256Of(s string) []byte { h := sha256.Sum256([]byte(s)); return h[:] }

// TestDrawSeeds: the seed is the promise of docs and of other implementations; each of beacon, cycle and domain changes
// it, and the past is drawn with the seeds that it had.
func TestDrawSeeds(t *testing.T) {
	q := validation.Quota{Score: 2, Merge: 2}
	seeds := func(domain string, cycle uint64, beacons ...validation.Beacon) [][32]byte {
		p := &pool{size: 200}
		if _, _, err := validation.Draw(p, domain, cycle, beacons, q, nil); err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(p.seeds, func(a, b [32]byte) int { return bytes.Compare(a[:], b[:]) })
		return p.seeds
	}
	one := seeds("go", 5, beacon(5))
	if got, want := hex.EncodeToString(one[0][:]), "57451184d6ab34ea1ff5bbd00aae9dc1111d96f4d04f68bc5f91b46039a90bbb"; got != want {
		t.Errorf("seed %s, want %s", got, want)
	}
	distinct := validation.Set{one[0]: {}}
	for _, s := range [][][32]byte{seeds("c", 5, beacon(5)), seeds("go", 6, beacon(5)), seeds("go", 5, beacon(6)), seeds("go", 5<<8, beacon(5))} {
		distinct[s[0]] = struct{}{}
	}
	if len(distinct) != 5 {
		t.Errorf("%d seeds of 5 draws", len(distinct))
	}
	var want [][32]byte
	for c := 3; c <= 5; c++ {
		want = append(want, seeds("go", uint64(c), beacon(c))...)
	}
	slices.SortFunc(want, func(a, b [32]byte) int { return bytes.Compare(a[:], b[:]) })
	if got := seeds("go", 5, beacon(5), beacon(4), beacon(3)); !slices.Equal(got, want) {
		t.Error("cycle 5 draws the past with other seeds than the past did")
	}
	// There is nothing before cycle 0, whatever is passed.
	if got := seeds("go", 1, beacon(1), beacon(0), beacon(9), beacon(8)); len(got) != 2 {
		t.Errorf("cycle 1 draws %d times", len(got))
	}
}

func TestDrawOfSmallPool(t *testing.T) {
	const k = 3
	q := validation.Quota{Score: 5, Merge: 5}
	probe := validation.Set{sampleID(0): {}}
	for _, c := range []struct {
		size, cycle int
		want        string // in the error; "" if there is none
	}{
		{21, 0, ""},                            // candidates of one cycle, and the probe
		{20, 0, "candidates of cycle 0 in go"}, // one less
		{21, 1, "too small"},                   // the same twice
		{30, 8, "too small"},
		{400, 8, ""},
	} {
		score, merge, err := validation.Draw(&pool{size: c.size}, "go", uint64(c.cycle), window(c.cycle, k), q, probe)
		switch {
		case c.want == "" && (err != nil || len(score) != 5 || len(merge) != 5):
			t.Errorf("pool of %d, cycle %d: %d and %d samples, %v", c.size, c.cycle, len(score), len(merge), err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "go") || score != nil || merge != nil):
			t.Errorf("pool of %d, cycle %d: %d and %d samples, %v, want %q", c.size, c.cycle, len(score), len(merge), err, c.want)
		}
	}
	// The candidates of the past fail with the cycle they are of.
	_, _, err := validation.Draw(&pool{size: 10}, "go", 7, window(7, k), q, nil)
	if err == nil || !strings.Contains(err.Error(), "cycle 6 in go") {
		t.Error(err)
	}
}
