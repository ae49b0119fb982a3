package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/consensus/beacon"
	"github.com/blockzero-net/bzd/consensus/runner"
	"github.com/blockzero-net/bzd/consensus/wire"
	"github.com/blockzero-net/bzd/content/blockstore"
	"github.com/blockzero-net/bzd/content/exchange"
	"github.com/blockzero-net/bzd/content/gateway"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/p2p"
	"github.com/blockzero-net/bzd/p2p/discovery"
	"github.com/blockzero-net/bzd/p2p/gossip"
	"github.com/blockzero-net/bzd/training/cpu"
)

// Node is one participant. New opens what it keeps, Run takes part until its context ends, Close releases everything in
// reverse order.
type Node struct {
	cfg     Config
	on      Chain
	backend *cpu.Backend
	store   *blockstore.Store
	host    *p2p.Host
	content *files
	gossip  *gossip.Gossip
	finder  *discovery.Discovery // nil without Config.DHT
	beacon  *beacon.Cache
	closers []func() error

	commits, agree *gossip.Topic
	headTopic      *gossip.Topic
	wal            *runner.WAL
	restored       [][]byte // what wal held when it was opened

	genesis  protocol.Genesis
	local    *local.Network
	phi      *local.Phi
	parent   protocol.Hash // the decision that phi rests on: certified, or prepared after that
	bound    bool          // to a decision that is not here: no votes in this cycle
	phiCycle uint64        // the cycle that phi begins

	mu         sync.Mutex
	registry   map[protocol.ID]protocol.Key
	snapshot   protocol.Snapshot                      // of the current cycle
	checker    consensus.Checker                      // under snapshot
	codecs     wire.Codecs                            // of the current cycle and the one before
	checked    map[protocol.Hash]consensus.Valid      // what gossip accepted and not yet delivered, by the hash of its packing
	relayed    map[protocol.Hash]bool                 // what gossip accepted in the current cycle, by the message's hash
	pulled     map[protocol.ID]int                    // lists asked for in the current cycle, by signer
	offenders  map[protocol.Hash]map[protocol.ID]bool // by merge
	proofs     []protocol.EquivocationProof           // for the next instances
	announced  map[protocol.Hash]bool                 // certificates that went around in the current cycle, by decision
	custody    *custody                               // of the current cycle, nil on a node that does not validate
	current    []*agreementRun                        // that take messages
	early      []consensus.Valid                      // messages for an instance that has not begun here
	gateway    string                                 // its address
	candidates []*local.Phi                           // checkpoints computed here in the current cycle
	memory     *local.Memory                          // what this miner keeps from cycle to cycle; nil before it is read

	sent    map[protocol.Hash]bool // messages of the agreement that this node sent in the current cycle, by their hash
	telling map[peer.ID]int        // repetitions under way
	history *history
	heads   heads
	payload uint64                // bound of a delta's payload; zero before there is a checkpoint
	entered uint64                // the cycle that snapshot starts
	last    *protocol.Certificate // of the merge that made phi; nil while phi is genesis's

	shown      *gateway.Catalogue // what the gateway serves; nil without one
	running    context.Context    // of Run: what goes on behind a cycle ends with it
	background sync.WaitGroup
}

// New opens the node's directory and its sockets. It fetches nothing yet.
func New(cfg Config) (_ *Node, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, registry: map[protocol.ID]protocol.Key{}, sent: map[protocol.Hash]bool{}, checked: map[protocol.Hash]consensus.Valid{}, relayed: map[protocol.Hash]bool{}, pulled: map[protocol.ID]int{}, offenders: map[protocol.Hash]map[protocol.ID]bool{}, announced: map[protocol.Hash]bool{}, telling: map[peer.ID]int{}, heads: heads{latest: map[protocol.ID]protocol.Head{}}}
	defer func() {
		if err != nil {
			n.Close()
		}
	}()
	for _, d := range []string{"checkpoints", "blocks"} {
		if err := os.MkdirAll(filepath.Join(cfg.Dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if n.backend, err = cpu.New(cpu.Options{Threads: 1, ISA: cpu.ISA(cfg.ISA)}); err != nil {
		return nil, err
	}
	o := blockstore.DefaultOptions()
	o.Links, o.Quota = exchange.Links, uint64(cfg.Quota)<<20
	if n.store, err = blockstore.Open(filepath.Join(cfg.Dir, "blocks"), o); err != nil {
		return nil, err
	}
	n.closers = append(n.closers, n.store.Close)
	if n.host, err = n.listen(); err != nil {
		return nil, err
	}
	n.closers = append(n.closers, n.host.Close)
	var c exchange.Config
	if cfg.DHT {
		if n.finder, err = n.discover(); err != nil {
			return nil, err
		}
		n.closers = append(n.closers, n.finder.Close)
		c.Finder = n.finder
	}
	x := exchange.New(n.host.Libp2p(), n.store, c)
	n.closers = append(n.closers, x.Close)
	n.content = &files{Exchange: x, dir: filepath.Join(cfg.Dir, "checkpoints"), report: n.event, now: cfg.Now,
		serves: !cfg.Roles.Has(protocol.RoleMiner) && !cfg.Roles.Has(protocol.RoleValidator)}
	return n, nil
}

// clock is the real time for p2p.
type clock struct{ now func() time.Time }

func (c clock) Now() time.Time                         { return c.now() }
func (c clock) After(d time.Duration) <-chan time.Time { return time.NewTimer(d).C }

// What one peer may ask of a node: a validator tells another some messages every δ.
const (
	peerRate     = 200 // a second
	peerRequests = 32  // at once
)

func (n *Node) listen() (*p2p.Host, error) {
	key, err := p2p.LoadKey(filepath.Join(n.cfg.Dir, "peer.key"))
	if err != nil {
		return nil, err
	}
	c := p2p.Config{Limits: p2p.Limits{PeerRate: peerRate, PeerRequests: peerRequests, Requests: 4 * peerRequests}, Network: n.cfg.Network, Key: key, Listen: n.cfg.Listen, Bootstrap: n.cfg.Bootstrap, Clock: clock{n.cfg.Now},
		Registry: func(id protocol.ID) (protocol.Key, bool) {
			n.mu.Lock()
			defer n.mu.Unlock()
			k, ok := n.registry[id]
			return k, ok
		}}
	h, err := p2p.New(c)
	if err != nil {
		return nil, err
	}
	if n.cfg.Key != nil {
		b, err := p2p.NewBinding(n.cfg.Network, n.cfg.ID, h.ID(), n.cfg.Key)
		if err == nil {
			err = h.SetBinding(b)
		}
		if err != nil {
			return nil, errors.Join(err, h.Close())
		}
	}
	return h, nil
}

// discover joins the network's DHT: all but miners, who may be behind a NAT, answer others from the start.
func (n *Node) discover() (*discovery.Discovery, error) {
	return discovery.New(n.host.Libp2p(), discovery.Config{
		Network: n.cfg.Network, Clock: n.host.Clock(),
		Server: n.cfg.Roles&^protocol.RoleMiner != 0,
		Participant: func(p peer.ID) (protocol.ID, bool) {
			standing, id := n.host.Standing(p)
			return id, standing == p2p.Bound
		}})
}

// Addrs are the addresses that others can dial.
func (n *Node) Addrs() []string { return n.host.Addrs() }

// Gateway is the address of the HTTP gateway, empty if there is none.
func (n *Node) Gateway() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.gateway
}

// Checkpoint is the checkpoint that the node holds after Start, and its directory. A node that comes late has none before
// Run has found out which one stands.
func (n *Node) Checkpoint() (protocol.Link, string) {
	if n.phi == nil {
		return protocol.Link{}, ""
	}
	return n.phi.Link, n.content.checkpointDir(n.phi.Link)
}

// Store is the node's block store, for a founder to put the genesis in.
func (n *Node) Store() exchange.Putter { return n.content }

// Close releases what New and Run opened, in reverse order, and waits for what Run left under way.
func (n *Node) Close() error {
	var errs []error
	for i := len(n.closers) - 1; i >= 0; i-- {
		errs = append(errs, n.closers[i]())
	}
	n.closers = nil
	n.background.Wait()
	return errors.Join(errs...)
}

func (n *Node) threads() int { return max(1, n.cfg.Threads) }

func (n *Node) schedule() protocol.Schedule { return n.genesis.Params.Schedule }

func (n *Node) event(e Event) {
	if n.cfg.Events != nil {
		n.cfg.Events(e)
	}
}

func (n *Node) trouble(cycle uint64, err error) {
	if !errors.Is(err, context.Canceled) {
		n.event(Event{Kind: Trouble, Cycle: cycle, Text: err.Error()})
	}
}

// payloadLimit bounds the payload of one delta. Nothing is taken before there is a checkpoint to know it from.
func (n *Node) payloadLimit() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.payload
}

// Run takes part until ctx ends or, with until above 0, that cycle would begin. Start comes before.
func (n *Node) Run(ctx context.Context, on Chain, until uint64) error {
	if err := on.Validate(); err != nil {
		return err
	}
	n.on = on
	var err error
	if n.beacon, err = beacon.NewCache(beacon.CacheConfig{Public: on.Public, Clock: on.Clock, Now: n.cfg.Now}, on.Beacon); err != nil {
		return err
	}
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	n.running = ctx
	n.listenToTopics(ctx)
	cycle, err := n.firstCycle(ctx)
	if err != nil {
		return err
	}
	if cycle > 0 {
		if err := n.enterLate(ctx, cycle-1); err != nil {
			n.trouble(cycle-1, err) // its first cycle tries again
		}
	}
	for ; until == 0 || cycle < until; cycle++ {
		if err := n.cycle(ctx, cycle); err != nil {
			return err
		}
	}
	return nil
}

// firstCycle is the one that begins next: the one after the cycle that is under way, or cycle 0 if the chain is at its
// first block. It waits for a chain that does not answer yet.
func (n *Node) firstCycle(ctx context.Context) (uint64, error) {
	for {
		head, err := n.on.Client.Head(ctx)
		if err == nil {
			cycle := cycleAt(n.schedule(), head.Height)
			if head.Height > startHeight(n.schedule(), cycle) {
				cycle++
			}
			return cycle, nil
		}
		if err := beacon.Sleep(ctx, n.on.BlockPeriod/8); err != nil {
			return 0, err
		}
	}
}

// cycle takes part in one cycle. Only the end of ctx is an error; whatever else goes wrong costs this node its part.
func (n *Node) cycle(ctx context.Context, cycle uint64) error {
	t, s, err := n.waitCycle(ctx, cycle)
	if err != nil {
		return err
	}
	// What is made and met in a cycle stays while it lasts, pinned or not.
	defer n.store.Hold()()
	n.enter(t, s)
	if err := n.catchUp(ctx, cycle); err != nil {
		n.trouble(cycle, err)
	}
	if s, err = n.exclude(ctx, s); err != nil {
		n.trouble(cycle, err)
	}
	if n.phi == nil { // nothing to work on; what others decide is learned all the same
		n.advance(ctx, t, consensus.Output{})
		return ctx.Err()
	}
	outer := ctx
	ctx, cancel := context.WithDeadline(ctx, t.at(t.End))
	defer cancel()
	var wg sync.WaitGroup
	if n.cfg.Roles.Has(protocol.RoleMiner) {
		wg.Go(func() {
			if err := n.mine(ctx, t, n.phi); err != nil {
				n.trouble(cycle, err)
			}
		})
	}
	var out consensus.Output
	if me, _ := s.Find(n.cfg.ID); n.custody != nil && !me.Roles.Has(protocol.RoleValidator) {
		n.trouble(cycle, errors.New("this validator is not in the cycle's snapshot and takes no part; "+
			"if it was excluded for signing two things, it needs another identity"))
	} else if c := n.custody; c != nil {
		if out, err = n.validate(ctx, t, s, n.phi, c); err != nil {
			n.trouble(cycle, err)
		}
	}
	wg.Wait()
	n.advance(ctx, t, out)
	if err := n.tidy(n.running, cycle); err != nil {
		n.trouble(cycle, err)
	}
	return outer.Err()
}
