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

// one lets one of four validators be of a kind, the others honest, in a network where nothing else happens.
func one(instance protocol.Instance, kind func() sim.Adversary) func(seed uint64) sim.Config {
	return func(seed uint64) sim.Config {
		return sim.Config{
			Seed: seed, Stakes: []uint64{1, 1, 1, 1}, Start: 1000, Delta: 100, Rounds: 2, Instance: instance,
			Net:         sim.Net{Fastest: 1, Slowest: 40, Direct: true},
			Adversaries: map[int]sim.Adversary{int(seed % 4): kind()},
		}
	}
}

// slow is a network of honest validators in which messages take up to three δ.
func slow(seed uint64) sim.Config {
	cfg := one(protocol.InstanceW, func() sim.Adversary { return sim.Honest{} })(seed)
	cfg.Slowest, cfg.Adversaries = 300, nil
	return cfg
}

// TestMutations: each rule that is left out breaks a promise, and the promise that is named. The same networks break none
// while the rules stand.
func TestMutations(t *testing.T) {
	for rule, c := range map[string]struct {
		without  consensus.Rules
		property sim.Property
		network  func(seed uint64) sim.Config
		from     uint64 // the first seed, near one that is known to show it
	}{
		"no lock":           {consensus.Rules{NoLock: true}, sim.Agreement, cut, 0},
		"weak quorum":       {consensus.Rules{WeakQuorum: true}, sim.Agreement, attack, 0},
		"commit behind":     {consensus.Rules{CommitBehind: true}, sim.Agreement, attack, 40},
		"null all the same": {consensus.Rules{NullAfterCommit: true}, sim.Honesty, attack, 0},
		"type unsigned":     {consensus.Rules{TypeUnsigned: true}, sim.Proof, one(protocol.InstanceW, func() sim.Adversary { return &sim.Forger{} }), 0},
		"round unsigned": {consensus.Rules{RoundUnsigned: true}, sim.Proof,
			one(protocol.InstanceW, func() sim.Adversary { return &sim.Equivocator{} }), 0},
		"timing":    {consensus.Rules{Timing: true}, sim.Verdict, slow, 0},
		"no commit": {consensus.Rules{NoCommit: true}, sim.Originality, one(protocol.InstanceW, func() sim.Adversary { return &sim.Copier{} }), 0},
		"no parent": {consensus.Rules{NoParent: true}, sim.Derivation, one(protocol.InstanceM, func() sim.Adversary { return sim.Orphan{} }), 0},
	} {
		t.Run(rule, func(t *testing.T) {
			t.Parallel()
			const most = 1000
			for seed := c.from; seed < c.from+most; seed++ {
				cfg := c.network(seed)
				cfg.Setup = func(_ int, config *consensus.Config) { consensus.SetRules(config, c.without) }
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
