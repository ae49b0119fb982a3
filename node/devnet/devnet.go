package devnet

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	blocks "github.com/ipfs/go-block-format"

	"github.com/blockzero-net/bzd/consensus/beacon"
	"github.com/blockzero-net/bzd/consensus/chain/dev"
	"github.com/blockzero-net/bzd/content/exchange"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/data"
)

// Options say what network to run.
type Options struct {
	Miners, Validators int
	Cycles             int
	Seed               string
	Dir                string
	Genesis            string          // directory of the network to run: genesis.cbor and genesis/; empty: one on the embedded base
	Sets               []*data.Dataset // the text of this machine, the canary included
	Faults             map[Fault]int
	Byzantine          []string // how validators cheat in the agreement, one each
	Partition          int      // for so many cycles after the first the validators are two halves that do not hear each other
	ISA                string
	Workers            int
	Gateway            string  // address of the HTTP gateway; empty: a free port of 127.0.0.1
	DHT                bool    // nodes find checkpoints over a DHT too, which nodes that are all peers have no use for
	Headroom           float64 // how many times what the work takes here the phases get; 0 means 2.5
	Now                func() time.Time
	// Profile is a file for the CPU profile of the run, for go tool pprof; empty: none.
	Profile string

	Event func(name string, e node.Event) // called from many goroutines. May be nil
	Done  func(Cycle)                     // after every cycle, in order. May be nil
	// Chain is called once the chain runs, with the time of its first block and the time between two. May be nil.
	Chain func(genesis time.Time, period time.Duration)
	Log   func(format string, a ...any) // set-up, in words. May be nil
	// Serve is called at the end, while the gateway still answers; the network stops when it returns. May be nil.
	Serve func(Result)
}

// Fault is something that happens to a number of participants.
type Fault string

// The faults.
const (
	Offline          Fault = "offline"           // miners that never start
	Late             Fault = "late"              // miners that commit after the deadline
	Corrupt          Fault = "corrupt"           // miners whose sealed bytes are no delta
	Withhold         Fault = "withhold"          // miners that commit without serving blocks
	Worse            Fault = "worse"             // miners that submit the opposite of what they learned
	ValidatorOffline Fault = "validator-offline" // validators that never start
	SilentLeader     Fault = "silent-leader"     // validators that never propose
)

// MinerFaults and ValidatorFaults list the faults by whom they befall.
var (
	MinerFaults     = []Fault{Offline, Late, Corrupt, Withhold, Worse}
	ValidatorFaults = []Fault{ValidatorOffline, SilentLeader}
)

// Validate reports every fault of the options at once.
func (o Options) Validate() error {
	var errs []error
	need := func(ok bool, format string, a ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, a...))
		}
	}
	need(o.Miners >= 1 && o.Miners <= 64, "%d miners, want 1 to 64", o.Miners)
	need(o.Validators >= 1 && o.Validators <= 64, "%d validators, want 1 to 64", o.Validators)
	need(o.Headroom == 0 || o.Headroom >= 1 && o.Headroom <= 100, "headroom %v, want 1 to 100: below, no phase would end in time", o.Headroom)
	need(o.Cycles >= 1, "%d cycles, want at least 1", o.Cycles)
	miners, validators := 0, 0
	for f, k := range o.Faults {
		need(k >= 0, "--fault %s=%d", f, k)
		switch {
		case slices.Contains(MinerFaults, f):
			miners += k
		case slices.Contains(ValidatorFaults, f):
			validators += k
		default:
			need(false, "no fault is called %q; there are %v and %v", f, MinerFaults, ValidatorFaults)
		}
	}
	for _, b := range o.Byzantine {
		need(slices.Contains(node.Byzantines, b), "--fault byzantine=%s; there are %v", b, node.Byzantines)
	}
	validators += len(o.Byzantine)
	need(o.Partition >= 0, "--fault partition=%d", o.Partition)
	need(miners < max(o.Miners, 1), "%d of %d miners fail; at least one must be honest", miners, o.Miners)
	need(3*validators <= o.Validators, "%d of %d validators fail; the agreement bears up to a third", validators, o.Validators)
	return errors.Join(errs...)
}

// member is one node of the network.
type member struct {
	name      string
	id        protocol.ID
	chainKey  ed25519.PrivateKey
	key       ed25519.PrivateKey
	roles     protocol.Role
	group     string
	behaviour node.Behaviour
	offline   bool
	node      *node.Node
}

const stake = 1000

// members makes the participants: miners in turn over the groups, validators of equal stake. Faults befall the last.
func members(o Options, groups []protocol.Group) []*member {
	var out []*member
	add := func(name string, roles protocol.Role, group string) *member {
		chain, own := sha256.Sum256([]byte("bzd/devnet/chain/"+o.Seed+"/"+name)), sha256.Sum256([]byte("bzd/devnet/protocol/"+o.Seed+"/"+name))
		m := &member{name: name, roles: roles, group: group, chainKey: ed25519.NewKeyFromSeed(chain[:]), key: ed25519.NewKeyFromSeed(own[:])}
		m.id = protocol.ID(m.chainKey.Public().(ed25519.PublicKey))
		out = append(out, m)
		return m
	}
	for i := range o.Miners {
		g := groups[i%len(groups)]
		add(fmt.Sprintf("%s-%d", g.Name, i/len(groups)+1), protocol.RoleMiner, g.Name)
	}
	for i := range o.Validators {
		add(fmt.Sprintf("validator-%d", i+1), protocol.RoleValidator, "")
	}
	last := o.Miners
	befall := func(f Fault, do func(m *member)) {
		for range o.Faults[f] {
			last--
			do(out[last])
		}
	}
	befall(Offline, func(m *member) { m.offline = true })
	befall(Late, func(m *member) { m.behaviour.Late = true })
	befall(Corrupt, func(m *member) { m.behaviour.Corrupt = true })
	befall(Withhold, func(m *member) { m.behaviour.Withhold = true })
	befall(Worse, func(m *member) { m.behaviour.Worse = true })
	last = o.Miners + o.Validators
	befall(ValidatorOffline, func(m *member) { m.offline = true })
	befall(SilentLeader, func(m *member) { m.behaviour.Silent = true })
	for _, b := range o.Byzantine {
		last--
		out[last].behaviour.Byzantine = b
	}
	if o.Partition > 0 {
		validators := out[o.Miners:]
		for i, m := range validators {
			m.behaviour.ApartFrom, m.behaviour.ApartTo = 1, o.Partition
			for j, other := range validators {
				if i%2 != j%2 {
					m.behaviour.Apart = append(m.behaviour.Apart, other.id)
				}
			}
		}
	}
	return out
}

// network is a running devnet.
type network struct {
	Options
	genesis protocol.Genesis
	link    protocol.Link
	seed    *member
	members []*member
	local   *local.Network
	backend *cpu.Backend
	period  time.Duration
	report  *reporter

	perExpert int64  // weights of an expert and its router row
	first     uint64 // cycle of this run
}

// Run founds the network in Options.Dir, or goes on with the one that is there, runs its cycles and returns what came of
// it. Everything it started has stopped when it returns.
func Run(ctx context.Context, o Options) (Result, error) {
	if err := o.Validate(); err != nil {
		return Result{}, err
	}
	start := o.Now()
	profile := startProfile()
	defer profile.stop()
	w := &network{Options: o}
	var err error
	if w.backend, err = cpu.New(cpu.Options{Threads: 1, ISA: cpu.ISA(o.ISA)}); err != nil {
		return Result{}, err
	}
	if err := w.found(); err != nil {
		return Result{}, err
	}
	w.members = members(o, w.genesis.Groups)
	w.report = newReporter(w)
	defer w.close()
	if err := w.open(ctx); err != nil {
		return Result{}, err
	}
	if err := w.measure(ctx); err != nil {
		return Result{}, err
	}
	if err := w.run(ctx); err != nil {
		return Result{}, err
	}
	r := w.report.result()
	r.Gateway = w.seed.node.Gateway()
	r.Seconds = o.Now().Sub(start).Seconds()
	if r.Cost, err = profile.cost(o.Profile); err != nil {
		return Result{}, err
	}
	if o.Serve != nil {
		o.Serve(r)
	}
	return r, nil
}

func (w *network) log(format string, a ...any) {
	if w.Log != nil {
		w.Log(format, a...)
	}
}

// found composes the genesis from the embedded base, or copies the one given, once per directory.
func (w *network) found() error {
	dir, file := filepath.Join(w.Dir, "genesis"), filepath.Join(w.Dir, "genesis.cbor")
	raw, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(w.Dir, 0o755); err != nil {
			return err
		}
		if raw, err = w.compose(dir); err != nil {
			return err
		}
		if err := os.WriteFile(file, raw, 0o644); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	if w.genesis, err = protocol.DecodeGenesis(raw); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	w.link = protocol.LinkTo(protocol.DagCBOR, raw)
	w.local, err = local.NewNetwork(w.genesis, w.Sets)
	return err
}

// compose makes the checkpoint of the genesis in dir and returns the document.
func (w *network) compose(dir string) ([]byte, error) {
	if w.Genesis != "" {
		w.log("copying the network in %s to %s", w.Genesis, w.Dir)
		raw, err := os.ReadFile(filepath.Join(w.Genesis, "genesis.cbor"))
		if err != nil {
			return nil, err
		}
		_, err = local.Export(filepath.Join(w.Genesis, "genesis"), dir)
		return raw, err
	}
	w.log("founding a network from the embedded base in %s", w.Dir)
	base, err := local.EmbeddedBase(w.backend)
	if err != nil {
		return nil, err
	}
	g, _, err := local.Compose(w.backend, &local.Phi{Model: base}, w.Sets, dir, local.DefaultGenesis())
	if err != nil {
		return nil, err
	}
	return protocol.Encode(g)
}

// open starts the bootstrap node with the genesis, and every other node with its address; they fetch the rest.
func (w *network) open(ctx context.Context) error {
	w.seed = &member{name: "seed", roles: protocol.RoleBootstrap | protocol.RoleGateway}
	if err := w.openNode(w.seed, nil); err != nil {
		return err
	}
	if err := w.publish(ctx); err != nil {
		return err
	}
	if err := w.seed.node.Start(ctx); err != nil {
		return err
	}
	addrs := w.seed.node.Addrs()
	w.log("bootstrap node at %v serves the genesis %s", addrs, w.link)
	w.log("gateway: curl %s/ipfs/%s/config.json", w.seed.node.Gateway(), w.genesis.Checkpoint)
	var wg sync.WaitGroup
	errs := make([]error, len(w.members))
	for i, m := range w.members {
		if m.offline {
			continue
		}
		if err := w.openNode(m, addrs); err != nil {
			return err
		}
		wg.Go(func() {
			if err := m.node.Start(ctx); err != nil {
				errs[i] = fmt.Errorf("%s: %w", m.name, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (w *network) openNode(m *member, bootstrap []string) (err error) {
	c := node.Config{
		Dir: filepath.Join(w.Dir, m.name), Network: w.link, Roles: m.roles, ID: m.id, Key: m.key, Group: m.group,
		Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Bootstrap: bootstrap, Threads: 1, ISA: w.ISA, Seed: w.Seed + "/" + m.name,
		Behaviour: m.behaviour, DHT: w.DHT, Now: w.Now, Events: func(e node.Event) { w.report.event(m, e) },
	}
	if m == w.seed {
		c.Gateway = cmp.Or(w.Gateway, "127.0.0.1:0")
	}
	m.node, err = node.New(c)
	if err != nil {
		return fmt.Errorf("%s: %w", m.name, err)
	}
	return nil
}

// publish puts the genesis, its checkpoint and the datasets into the bootstrap node.
func (w *network) publish(ctx context.Context) error {
	store := w.seed.node.Store()
	raw, err := protocol.Encode(w.genesis)
	if err != nil {
		return err
	}
	b, err := blocks.NewBlockWithCid(raw, w.link.Cid())
	if err != nil {
		return err
	}
	if err := store.PutMany(ctx, []blocks.Block{b}); err != nil {
		return err
	}
	if _, _, err := exchange.Publish(ctx, store, filepath.Join(w.Dir, "genesis")); err != nil {
		return err
	}
	for _, d := range w.local.Data {
		if _, _, err := exchange.PublishDataset(ctx, store, d.Record(), d.Pieces()); err != nil {
			return err
		}
	}
	return nil
}

// Bounds of the beacon's period.
const (
	minPeriod = 750 * time.Millisecond
	maxPeriod = 20 * time.Second
)

const defaultHeadroom = 2.5

// measure sets the length of a beacon round from the speed of this machine: rounds are counted in the genesis, their
// length enters no checkpoint, draw or order.
func (w *network) measure(ctx context.Context) error {
	dir := filepath.Join(w.Dir, "genesis")
	for _, m := range w.members {
		if m.node == nil || !m.roles.Has(protocol.RoleValidator) {
			continue
		}
		if l, d := m.node.Checkpoint(); l.Defined() { // a network that goes on is where its validators are
			w.report.base, dir = l, d
			break
		}
	}
	phi, err := local.LoadPhi(w.backend, dir)
	if err != nil {
		return err
	}
	seq, err := w.local.Sequence(dir)
	if err != nil {
		return err
	}
	w.perExpert = int64(3*phi.Model.Width*phi.Model.Dim + phi.Model.Dim)
	start := w.Now()
	probe, err := w.local.Probe(ctx, phi, w.Workers)
	if err != nil {
		return err
	}
	took := w.Now().Sub(start)
	w.report.last = probe
	p := w.genesis.Params
	tokens := float64(len(w.genesis.Domains)) * float64(p.ProbeSamples) // in samples, as everything below
	perSample := took.Seconds() / tokens
	scored := float64(w.Validators) * float64(p.ScoreSamples) * float64(w.Miners+len(w.genesis.Groups))
	searched := float64(w.Validators) * float64(p.MergeSamples) * float64(len(w.genesis.Domains)) * float64(len(p.AlphaGrid))
	s := p.Schedule
	need := max(
		scored*perSample/float64(s.Evaluate-s.Open-1),
		searched*perSample/float64(s.Search),
		float64(w.Miners)*2.3*local.DefaultTokens/float64(seq)*perSample/float64(s.Commit), // to train on a token costs that many times its forward pass
	)
	headroom := w.Headroom
	if headroom == 0 {
		headroom = defaultHeadroom
	}
	period := time.Duration(headroom * need * float64(time.Second)).Round(50 * time.Millisecond)
	w.period = min(max(period, minPeriod), maxPeriod)
	w.log("%.0f samples/s here: beacon rounds of %v, cycles of %v", 1/perSample, w.period, time.Duration(s.CycleBlocks)*w.period)
	return nil
}

// run starts the chain and lets every node take part until the last cycle is over.
func (w *network) run(ctx context.Context) error {
	listener, err := dev.Listen("127.0.0.1:0")
	if err != nil {
		return err
	}
	server, err := w.chain()
	if err != nil {
		listener.Close()
		return err
	}
	defer server.Close()
	go server.Serve(listener)
	info := server.Info()
	if w.Chain != nil {
		w.Chain(info.Genesis, w.period)
	}
	if since := w.Now().Sub(info.Genesis); since > 0 { // the chain went on while nobody was there
		w.first = uint64(since/w.period)/uint64(info.CycleBlocks) + 1
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for _, m := range append([]*member{w.seed}, w.members...) {
		if m.offline {
			continue
		}
		client, err := dev.NewClient(dev.ClientConfig{Endpoints: []string{listener.Addr().String()}})
		if err != nil {
			return err
		}
		defer client.Close()
		wg.Go(func() {
			on := node.Chain{Client: client, BlockPeriod: w.period, Beacon: client, Public: info.Beacon.Public, Clock: info.Clock()}
			if err := m.node.Run(ctx, on, w.first+uint64(w.Cycles)); err != nil && !errors.Is(err, context.Canceled) {
				mu.Lock()
				errs = append(errs, fmt.Errorf("%s: %w", m.name, err))
				mu.Unlock()
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	err = w.report.watch(ctx, done)
	cancel()
	<-done
	return errors.Join(append(errs, err)...)
}

// chain starts the development chain, or goes on with the one in the directory. A chain that is there keeps its genesis
// time and its periods.
func (w *network) chain() (*dev.Server, error) {
	dir, file := filepath.Join(w.Dir, "chain"), filepath.Join(w.Dir, "period")
	seed := sha256.Sum256([]byte("bzd/devnet/beacon/" + w.Seed))
	cfg := dev.Config{Dir: dir, Network: w.link, BeaconSeed: seed, CycleBlocks: w.genesis.Params.Schedule.CycleBlocks, Now: w.Now}
	raw, err := os.ReadFile(file)
	switch {
	case err == nil:
		if w.period, err = time.ParseDuration(string(raw)); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	case errors.Is(err, os.ErrNotExist):
		if err := os.WriteFile(file, []byte(w.period.String()), 0o644); err != nil {
			return nil, err
		}
		cfg.Genesis, cfg.Participants = w.Now().Add(time.Second).Truncate(time.Millisecond), w.participants()
	default:
		return nil, err
	}
	cfg.BlockPeriod, cfg.Beacon = w.period, beacon.Clock{Period: w.period}
	return dev.New(cfg)
}

func (w *network) participants() []protocol.Participant {
	var out []protocol.Participant
	for _, m := range w.members {
		p := protocol.Participant{ID: m.id, Key: protocol.KeyOf(m.key), Roles: m.roles, Group: m.group}
		if m.roles.Has(protocol.RoleValidator) {
			p.Stake = stake
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b protocol.Participant) int { return a.ID.Compare(b.ID) })
	return out
}

// close stops the nodes in reverse order.
func (w *network) close() {
	for i := len(w.members) - 1; i >= 0; i-- {
		if n := w.members[i].node; n != nil {
			n.Close()
		}
	}
	if w.seed != nil && w.seed.node != nil {
		w.seed.node.Close()
	}
}
