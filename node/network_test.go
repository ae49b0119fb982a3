package node

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"

	"github.com/blockzero-net/bzd/consensus/beacon"
	"github.com/blockzero-net/bzd/consensus/chain/dev"
	"github.com/blockzero-net/bzd/content/checkpoint/safetensors"
	"github.com/blockzero-net/bzd/content/exchange"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/data"
	"github.com/blockzero-net/bzd/training/model"
)

// A network of these tests is real in everything but its size: a model of some thousand weights, rounds of a third of a
// second, real sockets and disks.

// world is a founded network, before anybody takes part in it.
type world struct {
	genesis protocol.Genesis
	link    protocol.Link
	sets    []*data.Dataset
	dir     string // of the first checkpoint
	period  time.Duration
}

var worlds = sync.OnceValues(found)

// found founds the network on a base that is trained for the purpose. Its files stay until the process ends.
func found() (w world, err error) {
	start := time.Now()
	top, err := os.MkdirTemp("", "bzd-node-test-")
	if err != nil {
		return w, err
	}
	b, err := cpu.New(cpu.Options{Threads: 1})
	if err != nil {
		return w, err
	}
	prose, err := text(top, data.Prose, func(g *rand.Rand) string {
		words := strings.Fields("river miller stone garden winter letter house lantern soldier village morning table silence window storm candle")
		return fmt.Sprintf("The %s of the %s found a %s, and then the %s.\n", words[g.IntN(16)], words[g.IntN(16)], words[g.IntN(16)], words[g.IntN(16)])
	})
	if err != nil {
		return w, err
	}
	ledger, err := text(top, "ledger", func(g *rand.Rand) string {
		return fmt.Sprintf("#%05d|DEBIT |%04d.%02d|ACCT-%03d|OK\n", g.IntN(100_000), g.IntN(10_000), g.IntN(100), g.IntN(40))
	})
	if err != nil {
		return w, err
	}
	maths, err := data.Math([32]byte{1, 2, 3})
	if err != nil {
		return w, err
	}
	w.sets = []*data.Dataset{prose, ledger, maths}
	r := local.DefaultRecipe()
	c := model.Config{Vocab: 256, Dim: 16, Layers: 2, Heads: 2, KVHeads: 1, HeadDim: 8, Experts: 4, TopK: 2, Width: 16,
		Positions: 48, Normalize: true, RopeTheta: 10000, NormEps: 1e-6, AuxCoef: 0.01}
	r.Config, r.Seq = c.JSON(), 48
	r.Steps, r.Batch, r.Warmup, r.LearningRate = 48, 4, 2, 1e-2
	weights, err := local.TrainBase(context.Background(), b, r, prose, "", nil)
	if err != nil {
		return w, err
	}
	f, err := safetensors.New("base", bytes.NewReader(weights), int64(len(weights)))
	if err != nil {
		return w, err
	}
	base, err := model.New(b, c, func(s model.Spec, dst []float32) error { return f.ReadFiniteF32(s.Name, dst) })
	if err != nil {
		return w, err
	}
	p := protocol.DemoParams()
	p.SequenceLength, p.CanaryPermille = 48, 250
	p.ScoreSamples, p.MergeSamples, p.ProbeSamples, p.ExcludeCycles = 16, 8, 8, 1
	p.Schedule = protocol.Schedule{Commit: 3, Custody: 4, Open: 5, Evaluate: 8, Search: 2, End: 18, DeltaMillis: 150, Rounds: 2, CycleBlocks: 19}
	p.CanaryToleranceNano = 50_000_000
	o := local.GenesisOptions{Name: "test", Canary: data.Prose, Params: p, Plan: local.DefaultPlan()}
	o.Plan.Windows = 16
	w.dir = filepath.Join(top, "genesis")
	if w.genesis, _, err = local.Compose(b, &local.Phi{Model: base}, w.sets, w.dir, o); err != nil {
		return w, err
	}
	raw, err := protocol.Encode(w.genesis)
	w.link = protocol.LinkTo(protocol.DagCBOR, raw)
	// Founding takes a tenth of a second where nothing else is done; a slower machine, or the race detector, gets more time.
	w.period = min(max(3*time.Since(start)/2, 300*time.Millisecond), 2*time.Second).Round(50 * time.Millisecond)
	return w, err
}

// text is a dataset of seeded lines.
func text(top, name string, line func(*rand.Rand) string) (*data.Dataset, error) {
	dir := filepath.Join(top, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	for i := range 60 {
		g := rand.New(rand.NewPCG(7, uint64(i)))
		var s strings.Builder
		for s.Len() < 1000 {
			s.WriteString(line(g))
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%04d.txt", i)), []byte(s.String()), 0o600); err != nil {
			return nil, err
		}
	}
	return data.FromDir(name, dir, data.Options{HeldOut: 300, PieceSize: 2048})
}

// rig is a network that runs.
type rig struct {
	t       *testing.T
	world   world
	dir     string
	period  time.Duration
	server  *dev.Server
	address string
	public  beacon.Public
	clock   beacon.Clock
	seed    []string // addresses of the bootstrap node
	people  map[string]*person

	mu     sync.Mutex
	events []said
	more   chan struct{} // closed when there are more events
}

// person is one participant; it may run, stop and run again.
type person struct {
	name  string
	roles protocol.Role
	group string
	id    protocol.ID
	key   ed25519.PrivateKey

	behaviour Behaviour
	node      *Node
	stop      context.CancelFunc
	done      chan error
}

// said is an event of a node.
type said struct {
	name string
	Event
}

// newRig registers validators and a miner per group, and runs the bootstrap node. The chain starts with [rig.begin].
func newRig(t *testing.T, validators int) *rig {
	t.Helper()
	w, err := worlds()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, world: w, dir: t.TempDir(), period: w.period, people: map[string]*person{}, more: make(chan struct{})}
	for i := range validators {
		r.register(fmt.Sprintf("validator-%d", i+1), protocol.RoleValidator, "")
	}
	for _, g := range w.genesis.Groups {
		r.register("miner-"+g.Name, protocol.RoleMiner, g.Name)
	}
	t.Cleanup(func() {
		for _, p := range r.people {
			r.leave(p)
		}
		if r.server != nil {
			r.server.Close()
		}
	})
	r.people["seed"] = &person{name: "seed", roles: protocol.RoleBootstrap | protocol.RoleGateway}
	n := r.open(r.people["seed"])
	raw, err := protocol.Encode(w.genesis)
	r.check(err)
	b, err := blocks.NewBlockWithCid(raw, w.link.Cid())
	r.check(err)
	r.check(n.Store().PutMany(t.Context(), []blocks.Block{b}))
	_, _, err = exchange.Publish(t.Context(), n.Store(), w.dir)
	r.check(err)
	for _, d := range w.sets {
		_, _, err := exchange.PublishDataset(t.Context(), n.Store(), d.Record(), d.Pieces())
		r.check(err)
	}
	r.check(n.Start(t.Context()))
	r.seed = n.Addrs()
	return r
}

func (r *rig) check(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) register(name string, roles protocol.Role, group string) *person {
	chain, own := sha256.Sum256([]byte("chain/"+name)), sha256.Sum256([]byte("own/"+name))
	p := &person{name: name, roles: roles, group: group, key: ed25519.NewKeyFromSeed(own[:])}
	p.id = protocol.ID(ed25519.NewKeyFromSeed(chain[:]).Public().(ed25519.PublicKey))
	r.people[name] = p
	return p
}

func (r *rig) config(p *person) Config {
	c := Config{Dir: filepath.Join(r.dir, p.name), Network: r.world.link, Roles: p.roles, ID: p.id, Key: p.key, Group: p.group,
		Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Bootstrap: r.seed, Threads: 1, Seed: p.name, Behaviour: p.behaviour, Now: time.Now,
		Events: func(e Event) { r.note(p.name, e) }}
	c.DHT = p.roles.Has(protocol.RoleBootstrap)
	if p.roles.Has(protocol.RoleGateway) {
		c.Gateway = "127.0.0.1:0"
	}
	return c
}

func (r *rig) open(p *person) *Node {
	r.t.Helper()
	n, err := New(r.config(p))
	r.check(err)
	p.node = n
	return n
}

// start opens and starts people, at the same time.
func (r *rig) start(names ...string) {
	r.t.Helper()
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		n := r.open(r.people[name])
		wg.Go(func() { errs[i] = n.Start(r.t.Context()) })
	}
	wg.Wait()
	r.check(errors.Join(errs...))
}

// begin starts the chain.
func (r *rig) begin() {
	r.t.Helper()
	var participants []protocol.Participant
	for _, p := range r.people {
		if p.roles.Has(protocol.RoleBootstrap) {
			continue
		}
		x := protocol.Participant{ID: p.id, Key: protocol.KeyOf(p.key), Roles: p.roles, Group: p.group}
		if p.roles.Has(protocol.RoleValidator) {
			x.Stake = 1000
		}
		participants = append(participants, x)
	}
	slices.SortFunc(participants, func(a, b protocol.Participant) int { return a.ID.Compare(b.ID) })
	l, err := dev.Listen("127.0.0.1:0")
	r.check(err)
	r.server, err = dev.New(dev.Config{Dir: filepath.Join(r.dir, "chain"), Network: r.world.link, BeaconSeed: [32]byte{1},
		CycleBlocks: r.world.genesis.Params.Schedule.CycleBlocks, Now: time.Now, BlockPeriod: r.period, Beacon: beacon.Clock{Period: r.period},
		Genesis: time.Now().Add(time.Second).Truncate(time.Millisecond), Participants: participants})
	r.check(err)
	go r.server.Serve(l)
	info := r.server.Info()
	r.address, r.public, r.clock = l.Addr().String(), info.Beacon.Public, info.Clock()
}

// run lets people that were started take part until they leave.
func (r *rig) run(names ...string) {
	r.t.Helper()
	for _, name := range names {
		p := r.people[name]
		client, err := dev.NewClient(dev.ClientConfig{Endpoints: []string{r.address}})
		r.check(err)
		ctx, cancel := context.WithCancel(context.Background())
		p.stop, p.done = cancel, make(chan error, 1)
		n, done := p.node, p.done
		go func() {
			err := n.Run(ctx, Chain{Client: client, BlockPeriod: r.period, Beacon: client, Public: r.public, Clock: r.clock}, 0)
			client.Close()
			done <- err
		}()
	}
}

// leave stops a participant as a clean exit does.
func (r *rig) leave(p *person) {
	if p.stop != nil {
		p.stop()
		if err := <-p.done; err != nil && !errors.Is(err, context.Canceled) {
			r.t.Errorf("%s: %v", p.name, err)
		}
		p.stop = nil
	}
	if p.node != nil {
		if err := p.node.Close(); err != nil {
			r.t.Errorf("%s: %v", p.name, err)
		}
		p.node = nil
	}
}

func (r *rig) note(name string, e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, said{name, e})
	close(r.more)
	r.more = make(chan struct{})
}

// waitFor returns the first event for which ok holds, waiting for it.
func (r *rig) waitFor(what string, ok func(said) bool) said {
	r.t.Helper()
	timeout := time.NewTimer(2 * time.Minute)
	defer timeout.Stop()
	for {
		r.mu.Lock()
		i := slices.IndexFunc(r.events, ok)
		more := r.more
		var found said
		if i >= 0 {
			found = r.events[i]
		}
		r.mu.Unlock()
		if i >= 0 {
			return found
		}
		select {
		case <-more:
		case <-timeout.C:
			for _, e := range r.all(func(e said) bool { return e.Kind == Trouble }) {
				r.t.Logf("%s, cycle %d: %s", e.name, e.Cycle, e.Text)
			}
			r.t.Fatalf("no %s", what)
		}
	}
}

// advanced waits until somebody has ended a cycle.
func (r *rig) advanced(name string, cycle uint64) said {
	r.t.Helper()
	return r.waitFor(fmt.Sprintf("end of cycle %d at %s", cycle, name), func(e said) bool {
		return e.name == name && e.Kind == Advanced && e.Cycle == cycle
	})
}

func (r *rig) all(ok func(said) bool) []said {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []said
	for _, e := range r.events {
		if ok(e) {
			out = append(out, e)
		}
	}
	return out
}

// certified waits for the first cycle that was certified at somebody, from a cycle on.
func (r *rig) certified(name string, from uint64) said {
	r.t.Helper()
	return r.waitFor(fmt.Sprintf("certified cycle at %s from %d on", name, from), func(e said) bool {
		return e.name == name && e.Kind == Advanced && e.Certified && e.Cycle >= from
	})
}
