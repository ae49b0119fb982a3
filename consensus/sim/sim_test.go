package sim

import (
	"cmp"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/internal/protocol"
)

var (
	update = flag.Bool("update", false, "write the transcripts of testdata anew")
	runs   = flag.Int("runs", 500, "random networks to sweep")
	long   = flag.Bool("long", false, "take the time for the larger forms")
	from   = flag.Uint64("from", 0, "seed of the first")
)

func play(t *testing.T, cfg Config) *Result {
	t.Helper()
	r, err := Run(cfg)
	if err != nil {
		t.Error(err)
		return nil
	}
	if broken := r.Check(); len(broken) > 0 {
		t.Errorf("%+v\n%s%v", cfg, r.Transcript, broken)
	}
	return r
}

// TestScenarios plays testdata/*.txt, each twice: the part above ---- says what happens, the part below is the transcript.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d scenarios, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			script, want, _ := strings.Cut(string(b), "----\n")
			var got string
			for range 2 {
				cfg, err := parse(script) // anew: adversaries remember
				if err != nil {
					t.Fatal(err)
				}
				r := play(t, cfg)
				if t.Failed() {
					t.FailNow()
				}
				if got != "" && got != r.Transcript {
					t.Fatalf("two runs, two transcripts\n%s\n\n%s", got, r.Transcript)
				}
				got = r.Transcript
			}
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

// random draws a hostile network: 4 to 10 validators, now and then up to 20, up to a third of the stake dishonest or offline,
// loss, partitions, crashes, skewed clocks, gossip or direct messages.
func random(seed uint64) Config {
	rng := rand.New(rand.NewPCG(seed, 1))
	n := 4 + rng.IntN(7)
	if seed%20 == 0 {
		n *= 2
	}
	cfg := base(n)
	cfg.Seed = seed
	cfg.Rounds = int64(1 + rng.IntN(4))
	cfg.Fastest, cfg.Slowest = 1, int64(20+rng.IntN(300))
	switch rng.IntN(4) {
	case 0:
		cfg.Direct, cfg.Mesh, cfg.Heartbeat = false, 4, 70
	case 1:
		cfg.Regions, cfg.Jitter = TenRegions(), int64(rng.IntN(50))
	case 2:
		cfg.Bandwidth, cfg.Verify, cfg.Copy = int64(20+rng.IntN(1000)), int64(rng.IntN(2000)), 10
	}
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
	var ring *Ring
	if rng.IntN(4) == 0 {
		ring = new(Ring)
	}
	for _, i := range rng.Perm(n) {
		switch {
		case 3*(spent+cfg.Stakes[i]) >= total: // honest
		case ring != nil:
			cfg.Adversaries[i] = ring.Member()
			spent += cfg.Stakes[i]
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

// sweep calls play for every seed, on all processors.
func sweep(t *testing.T, runs int, play func(seed uint64)) {
	var next atomic.Uint64
	next.Store(*from)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for !t.Failed() {
				seed := next.Add(1) - 1
				if seed >= *from+uint64(runs) {
					return
				}
				play(seed)
				if t.Failed() {
					t.Logf("seed %d", seed)
				}
			}
		})
	}
	wg.Wait()
}

// TestSweep plays random hostile networks: every promise holds. Every fifth is played twice, and the transcripts are the same.
func TestSweep(t *testing.T) {
	var mu sync.Mutex
	count := make(map[consensus.Outcome]int)
	sweep(t, *runs, func(seed uint64) {
		r := play(t, random(seed))
		if t.Failed() {
			return
		}
		if seed%5 == 0 {
			if again := play(t, random(seed)); again.Transcript != r.Transcript {
				t.Errorf("two runs, two transcripts\n%s\n\n%s", r.Transcript, again.Transcript)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		for _, n := range r.Nodes {
			for _, o := range n.Outputs {
				count[o.Output.Outcome]++
			}
		}
	})
	t.Logf("outputs: %v", count)
	for _, o := range []consensus.Outcome{consensus.Certified, consensus.Null, consensus.Fallback} {
		if count[o] == 0 {
			t.Errorf("the sweep never saw the outcome %s", o)
		}
	}
}

// TestLiveness says what the agreement gives where it must: with messages well below δ, everybody certifies in the round of
// the first honest turn or the one after, whoever else is silent, lies, babbles or splits the votes.
func TestLiveness(t *testing.T) {
	sizes := []int{4, 7}
	if *long {
		sizes = append(sizes, 16, 31)
	}
	for _, n := range sizes {
		for name, byzantine := range adversaries {
			cfg := base(n)
			bad := (n - 1) / 3
			cfg.Seed, cfg.Rounds = uint64(n), max(4, int64(bad/consensus.Ranks+2)) // a round that an honest one begins
			cfg.Adversaries = make(map[int]Adversary)
			for i := range bad {
				cfg.Adversaries[i] = byzantine()
			}
			r := play(t, cfg)
			if t.Failed() {
				t.FailNow()
			}
			last := r.Nodes[0].Setup.Turn(uint32((bad/consensus.Ranks + 2) * consensus.Ranks))
			for _, node := range r.Nodes[bad:] {
				first := node.Outputs[0]
				if first.Output.Outcome != consensus.Certified || first.At > last {
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
		if slices.ContainsFunc(r.Check(), func(b Broken) bool { return b.Property == Honesty }) {
			return
		}
	}
	t.Error("a validator without memory never contradicted itself; the check is blind")
}

// TestQueue: events come in order of time, and then of scheduling.
func TestQueue(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	var q queue
	for i := range int64(1000) {
		q.push(event{at: rng.Int64N(50), seq: i})
	}
	var got []event
	for {
		e, ok := q.pop()
		if !ok {
			break
		}
		got = append(got, e)
	}
	order := func(a, b event) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.seq, b.seq)) }
	if len(got) != 1000 || !slices.IsSortedFunc(got, order) {
		t.Errorf("%d events, in disorder", len(got))
	}
}
