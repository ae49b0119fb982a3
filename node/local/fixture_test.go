package local_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/blockzero-net/bzd/content/checkpoint/safetensors"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/data"
	"github.com/blockzero-net/bzd/training/delta"
	"github.com/blockzero-net/bzd/training/model"
)

// The fixture's domains: two that groups serve, and the canary.
const (
	ledger = "ledger"
	maths  = data.Maths
	prose  = data.Prose
)

// scratch is a directory for what tests share; it lives as long as the process.
var scratch string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "bzd-local-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		scratch = dir
		return m.Run()
	}())
}

// text writes files of seeded text to a new directory and makes a dataset of them. Nothing in it depends on the machine
// or the version of Go.
func text(t testing.TB, name string, files int, write func(g *rand.Rand, s *strings.Builder)) *data.Dataset {
	t.Helper()
	dir := t.TempDir()
	for i := range files {
		g := rand.New(rand.NewPCG(7, uint64(i)))
		var s strings.Builder
		for s.Len() < 1000 {
			write(g, &s)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%04d.txt", i)), []byte(s.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d, err := data.FromDir(name, dir, data.Options{HeldOut: 300, PieceSize: 2048})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// sentence is prose of a kind: English words in English order.
func sentence(g *rand.Rand, s *strings.Builder) {
	pick := func(words string) string {
		w := strings.Fields(words)
		return w[g.IntN(len(w))]
	}
	noun := func() string {
		return pick("river miller stone garden winter letter house lantern soldier daughter village morning mountain table silence brother window harbour storm candle")
	}
	verb := func() string {
		return pick("remembered crossed found followed opened carried watched forgot answered left kept heard")
	}
	mark := func() string { return pick("quietly slowly often never again early alone together twice gladly") }
	switch g.IntN(3) {
	case 0:
		fmt.Fprintf(s, "The %s %s the %s, and %s the %s %s it.\n", noun(), verb(), noun(), mark(), noun(), verb())
	case 1:
		fmt.Fprintf(s, "When the %s %s %s, a %s %s the %s.\n", noun(), verb(), mark(), noun(), verb(), noun())
	default:
		fmt.Fprintf(s, "Her %s %s no %s of that %s, so they say.\n", noun(), verb(), noun(), noun())
	}
}

// entry is a line of a ledger: columns that look like nothing in the other domains.
func entry(g *rand.Rand, s *strings.Builder) {
	kind, amount := "DEBIT ", g.IntN(1_000_000)
	if g.IntN(2) == 0 {
		kind = "CREDIT"
	}
	fmt.Fprintf(s, "#%05d|%s|%04d.%02d|ACCT-%03d|OK\n", g.IntN(100_000), kind, amount/100, amount%100, g.IntN(40))
}

func exercises(t testing.TB) *data.Dataset {
	t.Helper()
	d, err := data.Math([32]byte{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// datasets makes the three domains anew.
func datasets(t testing.TB) []*data.Dataset {
	return []*data.Dataset{text(t, prose, 60, sentence), text(t, ledger, 60, entry), exercises(t)}
}

// options found a network that is about as small as the rules allow.
func options() local.GenesisOptions {
	p := protocol.DemoParams() // every number that a job here computes with is set below
	p.SequenceLength, p.CanaryPermille = 48, 250
	p.ScoreSamples, p.MergeSamples, p.ProbeSamples, p.ExcludeCycles = 16, 8, 8, 1
	p.AlphaGrid = []protocol.Rational{{Num: 0, Den: 1}, {Num: 1, Den: 2}, {Num: 1, Den: 1}}
	p.ConfidenceMilli, p.CanaryToleranceNano, p.RewardPower = 1000, 10_000_000, 1
	p.GroupMassNum, p.GroupMassDen = 2, 1
	p.TopK = 0 // deltas hold everything, so that what comes of them can be computed by hand
	o := local.GenesisOptions{Name: "test", Canary: prose, Params: p, Plan: local.DefaultPlan()}
	o.Plan.Windows = 16
	return o
}

func newBackend(t testing.TB, o cpu.Options) *cpu.Backend {
	t.Helper()
	b, err := cpu.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// embedded is the base model of the binary.
func embedded(t testing.TB, b backend.Backend) *model.Model {
	t.Helper()
	m, err := local.EmbeddedBase(b)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// tinyRecipe trains a base that even the scalar kernels get through in a second.
func tinyRecipe() local.Recipe {
	r := local.DefaultRecipe()
	c := model.Config{Vocab: 256, Dim: 16, Layers: 2, Heads: 2, KVHeads: 1, HeadDim: 8, Experts: 4, TopK: 2, Width: 16,
		Positions: 48, Normalize: true, RopeTheta: 10000, NormEps: 1e-6, AuxCoef: 0.01}
	r.Config, r.Seq = c.JSON(), 48
	r.Steps, r.Batch, r.Warmup, r.LearningRate = 16, 4, 2, 1e-2
	return r
}

// tiny trains the base of tinyRecipe and returns its file as well.
func tiny(t testing.TB, b backend.Backend, canary *data.Dataset) (*model.Model, []byte) {
	t.Helper()
	r := tinyRecipe()
	weights, err := local.TrainBase(t.Context(), b, r, canary, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	return loadBase(t, b, r, weights), weights
}

func loadBase(t testing.TB, b backend.Backend, r local.Recipe, weights []byte) *model.Model {
	t.Helper()
	c, err := model.ParseConfig(r.Config)
	if err != nil {
		t.Fatal(err)
	}
	f, err := safetensors.New("base", bytes.NewReader(weights), int64(len(weights)))
	if err != nil {
		t.Fatal(err)
	}
	m, err := model.New(b, c, func(s model.Spec, dst []float32) error { return f.ReadFiniteF32(s.Name, dst) })
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// world is a founded network with its datasets, and its first checkpoint, loaded.
type world struct {
	b        *cpu.Backend
	base     *model.Model
	sets     []*data.Dataset
	dir      string // of the checkpoint
	admitted []local.Admission
	n        *local.Network
	p        *local.Phi
}

// newWorld founds a network on base in dir.
func newWorld(t testing.TB, b *cpu.Backend, base *model.Model, sets []*data.Dataset, dir string) *world {
	t.Helper()
	w := &world{b: b, base: base, sets: sets, dir: dir}
	g, admitted, err := local.Compose(b, &local.Phi{Model: base}, sets, dir, options())
	if err != nil {
		t.Fatal(err)
	}
	w.admitted = admitted
	if w.n, err = local.NewNetwork(g, sets); err != nil {
		t.Fatal(err)
	}
	if w.p, err = local.LoadPhi(b, dir); err != nil {
		t.Fatal(err)
	}
	return w
}

var (
	sharedOnce sync.Once
	sharedIt   *world
)

// shared is a network on the embedded base that tests read and nobody changes.
func shared(t testing.TB) *world {
	t.Helper()
	sharedOnce.Do(func() {
		b := newBackend(t, cpu.Options{Threads: 2})
		sharedIt = newWorld(t, b, embedded(t, b), datasets(t), filepath.Join(scratch, "genesis"))
	})
	if sharedIt == nil {
		t.Fatal("the shared network could not be founded; see the first failure")
	}
	return sharedIt
}

// tinyWorld is a network of the tiny base of the test's own.
func tinyWorld(t testing.TB) *world {
	t.Helper()
	b, sets := newBackend(t, cpu.Options{Threads: 1}), datasets(t)
	base, _ := tiny(t, b, sets[0])
	return newWorld(t, b, base, sets, filepath.Join(t.TempDir(), "genesis"))
}

// briefSteps is enough for the embedded base to learn something of a domain.
const briefSteps = 16

// brief is a short training run.
func brief(group, seed string) local.TrainOptions {
	o := local.DefaultTrain(group, seed, 0)
	o.Tokens = briefSteps * int64(o.Batch) * 48
	o.LearningRate = 2e-3
	return o
}

func (w *world) train(t testing.TB, o local.TrainOptions) *delta.Delta {
	t.Helper()
	d, _, err := local.Train(t.Context(), w.n, w.p, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

var (
	trainedLock sync.Mutex
	trainedBy   = map[[2]string]*delta.Delta{}
)

// trained is the delta of a brief run on the shared network.
func trained(t testing.TB, group, seed string) *delta.Delta {
	t.Helper()
	w, key := shared(t), [2]string{group, seed}
	trainedLock.Lock()
	defer trainedLock.Unlock()
	if trainedBy[key] == nil {
		trainedBy[key] = w.train(t, brief(group, seed))
	}
	return trainedBy[key]
}

// remake returns a delta of the same kind with every unit changed by f.
func (w *world) remake(t testing.TB, d *delta.Delta, f func(int32) int32) *delta.Delta {
	t.Helper()
	want, err := w.n.Expect(w.p, d.Header().Group)
	if err != nil {
		t.Fatal(err)
	}
	units := make([][]int32, len(want.Tensors))
	for i := range units {
		for _, u := range d.Units(i) {
			units[i] = append(units[i], f(u))
		}
	}
	out, err := delta.New(want, units)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func negated(u int32) int32 { return -u }

func submission(id byte, d *delta.Delta) local.Submission {
	return local.Submission{Miner: protocol.ID{id}, Group: d.Header().Group, Delta: d, Status: protocol.StatusOK}
}

func accepted(id byte, d *delta.Delta, points uint64) local.Accepted {
	return local.Accepted{Miner: protocol.ID{id}, Group: d.Header().Group, Delta: d, Points: points}
}

func payload(t testing.TB, d *delta.Delta) []byte {
	t.Helper()
	return d.Payload()
}

// sameDelta fails the test unless a and b are the same update.
func sameDelta(t testing.TB, a, b *delta.Delta) bool {
	t.Helper()
	return bytes.Equal(payload(t, a), payload(t, b))
}

// files reads all files of a directory.
func files(t testing.TB, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(b)
	}
	return out
}

// weights digests every tensor of a model.
func weights(m *model.Model) map[string][32]byte {
	out := map[string][32]byte{}
	for _, s := range m.Specs() {
		out[s.Name] = sha256.Sum256(fmt.Appendf(nil, "%x", m.Read(s.Name)))
	}
	return out
}

// names lists a directory, hidden files too.
func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}
