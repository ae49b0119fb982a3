package sim

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/internal/protocol"
)

var (
	update = flag.Bool("update", false, "write the transcripts of testdata anew")
	runs   = flag.Int("runs", 50, "random networks to sweep")
)

// adversaries are what scenarios and the sweep call them.
var adversaries = map[string]func() Adversary{
	"liar":           func() Adversary { return Liar{} },
	"silent-leader":  func() Adversary { return SilentLeader{} },
	"half-leader":    func() Adversary { return HalfLeader{} },
	"phantom-leader": func() Adversary { return PhantomLeader{} },
	"wrong-leader":   func() Adversary { return WrongLeader{} },
	"equivocator":    func() Adversary { return &Equivocator{} },
	"two-faced":      func() Adversary { return TwoFaced{} },
	"late-scorer":    func() Adversary { return LateScorer{} },
	"babbler":        func() Adversary { return Babbler{} },
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
	return Config{Stakes: equal(n), Start: 1000, Delta: 100, Rounds: 2, Fastest: 10, Slowest: 40, Relay: 2}
}

func play(t *testing.T, cfg Config) *Result {
	t.Helper()
	r, err := Run(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, broken := range r.Check() {
		t.Errorf("%s", broken)
	}
	if t.Failed() {
		t.Logf("%+v\n%s", cfg, r.Transcript)
	}
	return r
}

// TestScenarios plays testdata/*.txt: the part above ---- says what happens, the part below is the transcript.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d scenarios, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			script, want, _ := strings.Cut(string(b), "----\n")
			cfg, err := parse(script)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, cfg).Transcript
			if *update {
				if err := os.WriteFile(file, []byte(script+"----\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != want {
				t.Errorf("the transcript changed; see it with -update and git diff\n%s", got)
			}
		})
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
			"seed": {0, 1}, "validators": {0, 1}, "latency": {0, 2}, "loss": {0, 1}, "partition": {1, 2}, "offline": {1, 0}, "skew": {1, 1},
			"crash": {1, 2}, "until": {0, 1}, "adversary": {1, 0}, "stakes": {0, 1}, "merge": {}, "proposers": {1, 0},
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
		case "proposers":
			cfg.Proposers = nodes
		case "latency":
			cfg.Fastest, cfg.Slowest = numbers[0], numbers[1]
		case "loss":
			cfg.Loss = int(numbers[0])
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
			cfg.Adversaries[nodes[0]] = make()
		}
	}
	return cfg, nil
}

// random draws a hostile network: 4 to 16 validators, up to a third of the stake dishonest or offline, loss, partitions,
// crashes, skewed clocks.
func random(seed uint64) Config {
	rng := rand.New(rand.NewPCG(seed, 1))
	n := 4 + rng.IntN(13)
	cfg := base(n)
	cfg.Seed = seed
	cfg.Rounds = int64(1 + rng.IntN(4))
	cfg.Fastest, cfg.Slowest = 1, int64(20+rng.IntN(300))
	cfg.Adversaries, cfg.Skew = make(map[int]Adversary), make(map[int]int64)
	if rng.IntN(2) == 0 {
		cfg.Loss = rng.IntN(400)
	}
	if rng.IntN(3) == 0 {
		cfg.Instance = protocol.InstanceM
	}
	for i := range cfg.Stakes {
		cfg.Stakes[i] = 1 + rng.Uint64N(20)
	}
	var total, spent uint64
	for _, s := range cfg.Stakes {
		total += s
	}
	names := make([]string, 0, len(adversaries))
	for name := range adversaries {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, i := range rng.Perm(n) {
		switch {
		case 3*(spent+cfg.Stakes[i]) >= total: // honest
		case rng.IntN(4) == 0:
			cfg.Offline = append(cfg.Offline, i)
			spent += cfg.Stakes[i]
		default:
			cfg.Adversaries[i] = adversaries[names[rng.IntN(len(names))]]()
			spent += cfg.Stakes[i]
		}
		if rng.IntN(4) == 0 {
			cfg.Skew[i] = rng.Int64N(200) - 100
		}
		if rng.IntN(8) == 0 {
			cfg.Crashes = append(cfg.Crashes, Crash{i, rng.IntN(12), Phase(rng.IntN(3)), rng.Int64N(400)})
		}
	}
	for range rng.IntN(3) {
		from := 800 + rng.Int64N(1000)
		cfg.Partitions = append(cfg.Partitions, Partition{from, from + rng.Int64N(800), rng.Perm(n)[:1+rng.IntN(n-1)]})
	}
	cfg.Proposers = rng.Perm(n)[:1+rng.IntN(min(n, int(3*cfg.Rounds)))]
	return cfg
}

// TestSweep plays random hostile networks, each twice: every promise holds, and the transcripts are the same.
func TestSweep(t *testing.T) {
	count := make(map[consensus.Outcome]int)
	for seed := range uint64(*runs) {
		r := play(t, random(seed))
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
		if again := play(t, random(seed)); again.Transcript != r.Transcript {
			t.Fatalf("seed %d: two runs, two transcripts\n%s\n\n%s", seed, r.Transcript, again.Transcript)
		}
		for _, n := range r.Nodes {
			for _, o := range n.Outputs {
				count[o.Output.Outcome]++
			}
		}
	}
	t.Logf("outputs: %v", count)
	for _, o := range []consensus.Outcome{consensus.Certified, consensus.Null, consensus.Fallback} {
		if count[o] == 0 {
			t.Errorf("the sweep never saw the outcome %s", o)
		}
	}
}

// TestLiveness says what the agreement gives where it must: with messages below δ, everybody certifies within δ of the
// first honest turn, whoever else is silent, lies, or babbles.
func TestLiveness(t *testing.T) {
	for _, n := range []int{4, 7, 16} {
		for name, byzantine := range adversaries {
			if name == "equivocator" || name == "half-leader" {
				continue // these split the one vote there is
			}
			cfg := base(n)
			cfg.Seed = uint64(n)
			cfg.Adversaries = make(map[int]Adversary)
			bad := (n - 1) / 3
			for i := range bad {
				cfg.Adversaries[i] = byzantine()
			}
			r := play(t, cfg)
			for _, node := range r.Nodes[bad:] {
				first := node.Outputs[0]
				if first.Output.Outcome != consensus.Certified || first.At > node.Setup.Turn(uint32(bad))+cfg.Delta {
					t.Errorf("%d validators, %d %s: v%d has %s at %d ms", n, bad, name, node.Index, first.Output.Outcome, first.At)
				}
			}
			if t.Failed() {
				t.Fatal(r.Transcript)
			}
		}
	}
}

// TestCrashEverywhere crashes each of two validators, one of them the proposer, at every Ready and in every phase of the
// work on it. Whatever it measures in its next life, it never contradicts what it signed in the one before.
func TestCrashEverywhere(t *testing.T) {
	for _, instance := range []protocol.Instance{protocol.InstanceW, protocol.InstanceM} {
		for node := range 2 {
			crashes := 0
			for ready := 0; ; ready++ {
				hit := false
				for _, phase := range []Phase{BeforePersist, BeforeSend, BeforeAdvance} {
					for _, down := range []int64{1, 900} {
						cfg := base(4)
						cfg.Instance = instance
						cfg.Crashes = []Crash{{node, ready, phase, down}}
						r := play(t, cfg)
						if t.Failed() {
							t.FailNow()
						}
						if r.Nodes[node].lives > 1 {
							hit = true
							crashes++
						}
					}
				}
				if !hit {
					break
				}
			}
			if crashes < 15 {
				t.Errorf("instance %s: v%d crashed only %d times", instance, node, crashes)
			}
		}
	}
}

// TestAmnesia shows that the crash test can fail: without its log a validator does sign twice.
func TestAmnesia(t *testing.T) {
	for ready := range 8 {
		cfg := base(4)
		cfg.Crashes = []Crash{{1, ready, BeforeAdvance, 1}}
		r, err := run(cfg, true)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Check()) > 0 {
			return
		}
	}
	t.Error("a validator without memory never contradicted itself; the check is blind")
}
