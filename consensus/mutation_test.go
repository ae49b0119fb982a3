package consensus_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/consensus/sim"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// attack is a network of four or seven under the strongest adversary there is: a third that acts as one, cuts that come and
// go, and proposers on both sides.
func attack(seed uint64) sim.Config {
	rng := rand.New(rand.NewPCG(seed, 3))
	n := []int{4, 7}[rng.IntN(2)]
	cfg := sim.Config{
		Seed: seed, Stakes: slices.Repeat([]uint64{1}, n), Start: 1000, Delta: 100, Rounds: int64(1 + rng.IntN(3)),
		Net:         sim.Net{Fastest: 1, Slowest: []int64{70, 300, 900}[rng.IntN(3)], Direct: true, Loss: []int{0, 0, 200, 400}[rng.IntN(4)]},
		Adversaries: make(map[int]sim.Adversary), Proposers: rng.Perm(n),
		Until: 8000,
	}
	if rng.IntN(2) == 0 {
		cfg.Instance = protocol.InstanceM
	}
	var ring sim.Ring
	for _, i := range rng.Perm(n)[:(n-1)/3] {
		cfg.Adversaries[i] = ring.Member()
	}
	for from := int64(1000); from < 1100+300*cfg.Rounds+1500; {
		to := from + 50 + rng.Int64N(400)
		cfg.Partitions = append(cfg.Partitions, sim.Partition{From: from, To: to, Side: rng.Perm(n)[:1+rng.IntN(n-1)]})
		from = to + rng.Int64N(100)
	}
	return cfg
}

// cut is a network of four, one of them dishonest. The first proposer is cut off about when it certifies, and the first of
// the next round has heard of nothing.
func cut(seed uint64) sim.Config {
	rng := rand.New(rand.NewPCG(seed, 4))
	var ring sim.Ring
	from := 1100 + rng.Int64N(150)
	return sim.Config{
		Seed: seed, Stakes: []uint64{1, 1, 1, 1}, Start: 1000, Delta: 100, Rounds: 3, Proposers: []int{1, 2, 0, 3},
		Net:         sim.Net{Fastest: 1, Slowest: 40, Direct: true},
		Adversaries: map[int]sim.Adversary{0: ring.Member()},
		Partitions:  []sim.Partition{{From: from, To: 1700, Side: []int{1}}, {From: 1100, To: 1395, Side: []int{3}}},
	}
}

// with lets some validators be of a kind, the others honest, in a network where nothing else happens.
func with(seed uint64, instance protocol.Instance, kind func() sim.Adversary) sim.Config {
	cfg := sim.Config{
		Seed: seed, Stakes: slices.Repeat([]uint64{1}, 7), Start: 1000, Delta: 100, Rounds: 2, Instance: instance,
		Net:         sim.Net{Fastest: 1, Slowest: 40, Direct: true},
		Adversaries: map[int]sim.Adversary{int(seed % 7): kind(), int((seed + 3) % 7): kind()},
	}
	return cfg
}

// TestMutations: each rule that is left out breaks a promise, and the promise that is named. The same networks break none
// while the rules stand.
func TestMutations(t *testing.T) {
	for rule, c := range map[string]struct {
		property sim.Property
		network  func(seed uint64) sim.Config
	}{
		"no lock":           {sim.Agreement, cut},
		"weak quorum":       {sim.Agreement, attack},
		"commit behind":     {sim.Agreement, attack},
		"null all the same": {sim.Honesty, attack},
		"type unsigned": {sim.Proof, func(seed uint64) sim.Config {
			return with(seed, protocol.InstanceW, func() sim.Adversary { return &sim.Forger{} })
		}},
		"round unsigned": {sim.Proof, func(seed uint64) sim.Config {
			return with(seed, protocol.InstanceW, func() sim.Adversary { return &sim.Equivocator{} })
		}},
		"timing": {sim.Verdict, func(seed uint64) sim.Config {
			cfg := with(seed, protocol.InstanceW, func() sim.Adversary { return sim.Honest{} })
			cfg.Slowest = 300
			return cfg
		}},
		"no commit": {sim.Originality, func(seed uint64) sim.Config {
			return with(seed, protocol.InstanceW, func() sim.Adversary { return &sim.Copier{} })
		}},
		"no parent": {sim.Derivation, func(seed uint64) sim.Config {
			return with(seed, protocol.InstanceM, func() sim.Adversary { return sim.Orphan{} })
		}},
	} {
		t.Run(rule, func(t *testing.T) {
			t.Parallel()
			leave := consensus.Mutations[rule]
			if leave == nil {
				t.Fatal("no such rule")
			}
			const most = 1000
			for seed := range uint64(most) {
				cfg := c.network(seed)
				cfg.Setup = func(_ int, c *consensus.Config) { leave(c) }
				r, err := sim.Run(cfg)
				if err != nil {
					t.Fatal(err)
				}
				i := slices.IndexFunc(r.Check(), func(b sim.Broken) bool { return b.Property == c.property })
				if i < 0 {
					continue
				}
				t.Logf("seed %d: %s", seed, r.Check()[i])
				cfg = c.network(seed)
				if r, err = sim.Run(cfg); err != nil || len(r.Check()) > 0 {
					t.Fatalf("the rules stand and %v, %v\n%s", r.Check(), err, r.Transcript)
				}
				return
			}
			t.Fatalf("%d networks, and %s holds without it", most, c.property)
		})
	}
}
