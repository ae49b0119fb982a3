package sim

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// adversaries are what scenarios and the sweep call them.
var adversaries = map[string]func() Adversary{
	"silent":            func() Adversary { return Silent{} },
	"late":              func() Adversary { return Late{By: 130} },
	"liar":              func() Adversary { return Liar{} },
	"late-scorer":       func() Adversary { return LateScorer{} },
	"silent-leader":     func() Adversary { return SilentLeader{} },
	"half-leader":       func() Adversary { return HalfLeader{} },
	"last-minute":       func() Adversary { return LastMinuteLeader{} },
	"phantom-leader":    func() Adversary { return PhantomLeader{} },
	"wrong-leader":      func() Adversary { return WrongLeader{} },
	"selective":         func() Adversary { return Selective{} },
	"vector-withholder": func() Adversary { return VectorWithholder{} },
	"vote-withholder":   func() Adversary { return VoteWithholder{} },
	"equivocator":       func() Adversary { return &Equivocator{} },
	"two-faced":         func() Adversary { return TwoFaced{} },
	"copier":            func() Adversary { return &Copier{} },
	"orphan":            func() Adversary { return Orphan{} },
	"forger":            func() Adversary { return &Forger{} },
	"replayer":          func() Adversary { return &Replayer{} },
	"spammer":           func() Adversary { return &Spammer{} },
}

func equal(n int) []uint64 {
	stakes := make([]uint64, n)
	for i := range stakes {
		stakes[i] = 10
	}
	return stakes
}

// base is a quiet network of n.
func base(n int) Config {
	return Config{
		Stakes: equal(n), Start: 1000, Delta: 100, Rounds: 2,
		Net: Net{Fastest: 10, Slowest: 40, Direct: true, Mesh: 2},
	}
}

// parse reads a scenario: one setting a line, # begins a comment.
func parse(script string) (Config, error) {
	cfg := base(4)
	cfg.Adversaries, cfg.Skew = make(map[int]Adversary), make(map[int]int64)
	for line := range strings.Lines(script) {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		var nodes []int
		var numbers []int64
		for _, w := range words[1:] {
			if x, ok := strings.CutPrefix(w, "v"); ok {
				if i, err := strconv.Atoi(x); err == nil {
					nodes = append(nodes, i)
				}
			} else if x, err := strconv.ParseInt(w, 10, 64); err == nil {
				numbers = append(numbers, x)
			}
		}
		need := map[string][2]int{
			"seed": {0, 1}, "validators": {0, 1}, "latency": {0, 2}, "regions": {}, "loss": {0, 1}, "calm": {0, 1}, "gossip": {0, 2},
			"partition": {1, 2}, "offline": {1, 0}, "skew": {1, 1}, "crash": {1, 2}, "until": {0, 1}, "adversary": {1, 0},
			"ring": {1, 0}, "stakes": {0, 1}, "merge": {}, "proposers": {1, 0}, "rounds": {0, 1}, "delta": {0, 1},
		}
		if n, ok := need[words[0]]; !ok || len(nodes) < n[0] || len(numbers) < n[1] {
			return cfg, fmt.Errorf("bad line %q", line)
		}
		switch last := words[len(words)-1]; words[0] {
		case "seed":
			cfg.Seed = uint64(numbers[0])
		case "validators":
			cfg.Stakes = equal(int(numbers[0]))
		case "stakes":
			cfg.Stakes = nil
			for _, s := range numbers {
				cfg.Stakes = append(cfg.Stakes, uint64(s))
			}
		case "merge":
			cfg.Instance = protocol.InstanceM
		case "rounds":
			cfg.Rounds = numbers[0]
		case "delta":
			cfg.Delta = numbers[0]
		case "proposers":
			cfg.Proposers = nodes
		case "latency":
			cfg.Fastest, cfg.Slowest = numbers[0], numbers[1]
		case "regions":
			cfg.Regions, cfg.Jitter = TenRegions(), 5
		case "gossip": // only: mesh and heartbeat
			cfg.Direct, cfg.Mesh, cfg.Heartbeat = false, int(numbers[0]), numbers[1]
		case "loss":
			cfg.Loss = int(numbers[0])
		case "calm":
			cfg.Calm = numbers[0]
		case "partition":
			cfg.Partitions = append(cfg.Partitions, Partition{numbers[0], numbers[1], nodes})
		case "offline":
			cfg.Offline = nodes
		case "skew":
			cfg.Skew[nodes[0]] = numbers[0]
		case "until":
			cfg.Until = numbers[0]
		case "crash":
			phase := slices.Index([]string{"nothing", "persisted", "sent"}, last)
			if phase < 0 {
				return cfg, fmt.Errorf("bad phase in %q", line)
			}
			cfg.Crashes = append(cfg.Crashes, Crash{nodes[0], int(numbers[0]), Phase(phase), numbers[1]})
		case "adversary":
			make, ok := adversaries[last]
			if !ok {
				return cfg, fmt.Errorf("no adversary %q", last)
			}
			for _, i := range nodes {
				cfg.Adversaries[i] = make()
			}
		case "ring":
			var r Ring
			for _, i := range nodes {
				cfg.Adversaries[i] = r.Member()
			}
		}
	}
	return cfg, nil
}
