package sim

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// TestLiarsMoveNothing: liars with all but a third of the stake, who agree on what they want and have the first turn, move
// no certified score beyond what honest validators measured. (Check says so of every run; here lies are all there is.)
func TestLiarsMoveNothing(t *testing.T) {
	for seed := range uint64(40) {
		cfg := base(10)
		cfg.Seed = seed
		cfg.Adversaries = map[int]Adversary{0: Liar{}, 1: Liar{}, 2: Liar{}}
		r := play(t, cfg)
		if t.Failed() {
			return
		}
		for _, n := range r.Nodes {
			if o := n.Outputs[0].Output; n.bad == nil && o.Outcome != consensus.Certified {
				t.Fatalf("seed %d: %s has %s", seed, n.name(), o.Outcome)
			}
		}
	}
	// A stake more, and they do: the promise rests on its assumption.
	cfg := base(10)
	cfg.Adversaries = map[int]Adversary{0: Liar{}, 1: Liar{}, 2: Liar{}, 3: Liar{}}
	cfg.Offline = []int{4, 5, 6}
	cfg.Stakes = []uint64{20, 20, 20, 20, 10, 10, 10, 10, 10, 10}
	r, err := Run(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(r.Check(), func(b Broken) bool { return b.Property == Range }) {
		t.Error("liars with more than half of the stake moved nothing; the check is blind")
	}
}

// TestHealing: whatever was cut and lost before, once everything arrives everybody soon holds what anybody holds.
func TestHealing(t *testing.T) {
	sweep(t, 60, func(seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 7))
		n := 4 + rng.IntN(7)
		cfg := base(n)
		cfg.Seed, cfg.Loss = seed, rng.IntN(300)
		if rng.IntN(2) == 0 {
			cfg.Direct, cfg.Mesh, cfg.Heartbeat = false, 4, 70
		}
		for range 1 + rng.IntN(3) {
			from := 900 + rng.Int64N(900)
			cfg.Partitions = append(cfg.Partitions, Partition{from, from + rng.Int64N(1200), rng.Perm(n)[:1+rng.IntN(n-1)]})
		}
		cfg.Calm = 3000
		cfg.Until = 12_000
		r := play(t, cfg)
		if t.Failed() {
			return
		}
		held := 0
		for _, node := range r.Nodes {
			if node.Outputs[len(node.Outputs)-1].Output.Certificate != nil {
				held++
			}
		}
		if held != 0 && held != n {
			t.Errorf("%d of %d hold a certificate, %d ms after all is well\n%s", held, n, cfg.Until-cfg.Calm, r.Transcript)
		}
	})
}

// TestNoCertificate: with messages below δ an instance ends without a certificate no more often than all R rounds are
// wasted, by the worst proposers there are, who hold β of the stake: βᴿ.
func TestNoCertificate(t *testing.T) {
	const n, bad = 10, 3
	rounds, runs := []int64{1, 2}, 60
	if *long {
		rounds, runs = []int64{1, 2, 3, 4}, 2000
	}
	for _, rounds := range rounds {
		var mu sync.Mutex
		failed := 0
		sweep(t, runs, func(seed uint64) {
			rng := rand.New(rand.NewPCG(seed, 9))
			cfg := base(n)
			cfg.Seed, cfg.Rounds, cfg.Brief, cfg.Mesh = seed, rounds, true, 0
			cfg.Until = 1000 + 100*(1+3*rounds) + 1
			cfg.Adversaries = make(map[int]Adversary)
			kinds := []string{"half-leader", "last-minute", "equivocator", "selective", "vote-withholder"}
			for _, i := range rng.Perm(n)[:bad] {
				cfg.Adversaries[i] = adversaries[kinds[rng.IntN(len(kinds))]]()
			}
			cfg.Proposers = draw(cfg, seed)
			r := play(t, cfg)
			if t.Failed() {
				return
			}
			for _, node := range r.Nodes {
				if node.bad == nil && node.Outputs[0].Output.Certificate == nil {
					mu.Lock()
					failed++
					mu.Unlock()
					return
				}
			}
		})
		bound := math.Pow(float64(bad)/n, float64(rounds))
		mean := float64(runs) * bound
		most := mean + 3*math.Sqrt(mean*(1-bound))
		t.Logf("R = %d: %d of %d without a certificate, the bound is %.1f, with chance %.1f", rounds, failed, runs, mean, most)
		if float64(failed) > most {
			t.Errorf("R = %d: %d of %d runs without a certificate; the bound is %.1f", rounds, failed, runs, most)
		}
	}
}

// draw is the proposers of a run, as consensus draws them.
func draw(cfg Config, seed uint64) (ranks []int) {
	var s protocol.Snapshot
	for i, stake := range cfg.Stakes {
		s.Participants = append(s.Participants, protocol.Participant{ID: id(i), Stake: stake, Roles: protocol.RoleValidator})
	}
	for _, p := range consensus.Proposers(protocol.Hash{byte(seed), byte(seed >> 8), 1}, protocol.InstanceW, s, int(3*cfg.Rounds)) {
		ranks = append(ranks, int(p[0])<<8|int(p[1]))
	}
	return ranks
}
