package main

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/consensus/runner"
	"github.com/blockzero-net/bzd/consensus/sim"
	"github.com/blockzero-net/bzd/consensus/wire"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/devnet"
	"github.com/blockzero-net/bzd/p2p"
	"github.com/blockzero-net/bzd/p2p/gossip"
)

// hostsBench is an agreement among real hosts in this process, connected to each other, with real logs: so many validators,
// none of them faulty.
type hostsBench struct {
	validators int
	miners     int
	delta      int64 // ms
	now        func() time.Time
	dir        string
	// attach gives a host an address to listen on and its transport; nil: TCP over the loopback device.
	attach func(host int) (listen string, transport libp2p.Option)
	// lead is how many milliseconds an instance has before its Start, for lists and commits of all to reach all: in a cycle
	// they have minutes.
	lead int64
}

// hostsFigures are what it gives for both instances.
type hostsFigures struct {
	Validators int          `json:"validators"`
	Miners     int          `json:"miners"`
	Delta      int64        `json:"delta_ms"`
	Decision   [2]sim.Times `json:"decision_ms"` // of W, of M, from the first turn
	// Alone is Decision in processor time of this process, divided by the processors: what it would be were nobody else here,
	// since the hosts keep all processors busy.
	Alone     [2]sim.Times `json:"decision_alone_ms"`
	CPU       float64      `json:"cpu_seconds"` // of one validator in a cycle, everything included
	Simulated [2]sim.Times `json:"simulated_ms"`
	// Certified of Instances hosts decided by the deadline, of both instances; times are theirs.
	Certified int `json:"certified"`
	Instances int `json:"instances"`
}

const (
	hostsTopic   = "agree"
	hostsSettle  = 2 * time.Second // for meshes to form
	hostsTimeout = 5 * time.Minute
	hostsEach    = 8 // hosts that one processor is for, at production's δ of a second
)

var (
	hostsTell = p2p.Protocol{Name: "tell", MaxRequest: consensus.MaxMessage + 1, Bound: true}
	hostsAsk  = p2p.Protocol{Name: "record", MaxRequest: 64, MaxResponse: consensus.MaxMessage, Bound: true}
)

// The node's bounds.
const (
	hostsTellTime  = time.Second
	hostsTelling   = 8 // to one peer at a time
	hostsFetchers  = 3 // asked at a time
	hostsFetchTime = 500 * time.Millisecond
)

// benchHost is one validator.
type benchHost struct {
	ctx    context.Context // of the whole bench
	part   *sim.Node
	host   *p2p.Host
	gossip *gossip.Gossip
	topic  *gossip.Topic
	codec  *wire.Codec
	wal    *runner.WAL

	checker consensus.Checker

	mu      sync.Mutex
	runner  *runner.Runner
	sent    map[protocol.Hash]bool
	telling map[peer.ID]int
	peers   []peer.ID
}

func (h *hostsBench) run(ctx context.Context) (f hostsFigures, err error) {
	ctx, cancel := context.WithTimeout(ctx, hostsTimeout)
	defer cancel()
	f = hostsFigures{Validators: h.validators, Miners: h.miners, Delta: h.delta}
	began := h.now()
	hosts, err := h.start(ctx)
	h.lead = 6*h.delta + h.now().Sub(began).Milliseconds()
	defer func() {
		for _, b := range hosts {
			err = errors.Join(err, b.close())
		}
	}()
	if err != nil {
		return f, err
	}
	for i, instance := range []protocol.Instance{protocol.InstanceW, protocol.InstanceM} {
		before, _ := devnet.Usage()
		took, err := h.instance(ctx, hosts, instance)
		if err != nil {
			return f, err
		}
		f.Instances, f.Certified = f.Instances+len(hosts), f.Certified+len(took)
		if len(took) > 0 {
			f.Decision[i], f.Alone[i] = sim.Percentiles(column(took, 0)), sim.Percentiles(column(took, 1))
		}
		after, _ := devnet.Usage()
		f.CPU += (after - before).Seconds() / float64(h.validators)
	}
	return f, nil
}

// config is the instance as the simulation has it.
func (h *hostsBench) config(instance protocol.Instance) sim.Config {
	return sim.Config{
		Stakes: slices.Repeat([]uint64{1000}, h.validators), Miners: h.miners, Instance: instance, Start: h.lead, Delta: h.delta,
		Rounds: 4, Brief: true,
	}
}

// simulate is the simulation of the same hosts in a network.
func (h *hostsBench) simulate(net sim.Net) (times [2]sim.Times, err error) {
	for i, instance := range []protocol.Instance{protocol.InstanceW, protocol.InstanceM} {
		cfg := h.config(instance)
		cfg.Net = net
		r, err := sim.Run(cfg)
		if err != nil {
			return times, err
		}
		var took []int64
		for _, n := range r.Nodes {
			if len(n.Outputs) == 0 || n.Outputs[0].Output.Outcome != consensus.Certified {
				return times, errors.New("a simulated host ended without a certificate")
			}
			took = append(took, n.Outputs[0].Micros-n.Setup.Turn(0)*1000)
		}
		times[i] = sim.Percentiles(took)
	}
	return times, nil
}

type benchClock struct{ now func() time.Time }

func (c benchClock) Now() time.Time                         { return c.now() }
func (c benchClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// start makes the hosts, connects all with all, and waits until everybody knows everybody.
func (h *hostsBench) start(ctx context.Context) ([]*benchHost, error) {
	parts, err := sim.Cast(h.config(protocol.InstanceW))
	if err != nil {
		return nil, err
	}
	setup := parts[0].Setup
	codec := wire.New(setup.Network, setup.Cycle, setup.Snapshot)
	var hosts []*benchHost
	for i, part := range parts {
		b := &benchHost{
			ctx: ctx, part: part, codec: codec, checker: consensus.NewChecker(setup.Network, setup.Snapshot),
			sent: make(map[protocol.Hash]bool), telling: make(map[peer.ID]int),
		}
		if err := b.start(ctx, h, i); err != nil {
			return hosts, errors.Join(err, b.close())
		}
		hosts = append(hosts, b)
	}
	if err := connect(ctx, hosts); err != nil {
		return hosts, err
	}
	for _, b := range hosts {
		for len(b.topic.Peers()) < len(hosts)-1 || bound(b.host) < len(hosts)-1 {
			if err := wait(ctx, 20*time.Millisecond); err != nil {
				return hosts, fmt.Errorf("%s knows %d of %d peers: %w", b.part.Setup.Self, len(b.topic.Peers()), len(hosts)-1, err)
			}
		}
		b.peers = b.topic.Peers()
	}
	return hosts, wait(ctx, hostsSettle)
}

// connect lets each host dial the half of the others that follow it, one after the other.
func connect(ctx context.Context, hosts []*benchHost) error {
	n := len(hosts)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i, b := range hosts {
		wg.Go(func() {
			for d := 1; 2*d < n || 2*d == n && i < d; d++ {
				errs[i] = errors.Join(errs[i], b.host.Connect(ctx, hosts[(i+d)%n].host.Addrs()[0]))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func bound(h *p2p.Host) (n int) {
	for _, p := range h.Peers() {
		if p.Standing == p2p.Bound {
			n++
		}
	}
	return n
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func (b *benchHost) start(ctx context.Context, h *hostsBench, index int) error {
	setup := b.part.Setup
	sum := sha256.Sum256(append([]byte("host"), setup.Self[:]...))
	key, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(sum[:]))
	if err != nil {
		return err
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return err
	}
	binding, err := p2p.NewBinding(setup.Network, setup.Self, id, b.part.Keys)
	if err != nil {
		return err
	}
	limits := p2p.DefaultLimits()
	limits.Peers, limits.MaxPeers, limits.Requests, limits.PeerRate = 1, 4*h.validators, 1024, 1e6
	limits.FileDescriptors, limits.Memory = 8*h.validators+64, 1<<30
	listen, transport := "/ip4/127.0.0.1/tcp/0", libp2p.Option(nil)
	if h.attach != nil {
		listen, transport = h.attach(index)
	}
	b.host, err = p2p.New(p2p.Config{
		Network: setup.Network, Key: key, Listen: []string{listen}, Transport: transport, Binding: &binding, Clock: benchClock{h.now},
		Limits: limits,
		Registry: func(id protocol.ID) (protocol.Key, bool) {
			p, ok := setup.Snapshot.Find(id)
			return p.Key, ok
		},
	})
	if err != nil {
		return err
	}
	if b.gossip, err = gossip.New(ctx, b.host, gossip.Options{
		Topics: []string{hostsTopic}, MaxMessage: consensus.MaxMessage + 1, PeerRate: 1e6, PeerBurst: 1e6,
	}); err != nil {
		return err
	}
	if b.topic, err = b.gossip.Join(hostsTopic, b.judge); err != nil {
		return err
	}
	b.host.Handle(hostsTell, func(_ context.Context, _ peer.ID, packed []byte) ([]byte, error) {
		b.judge(ctx, "", packed)
		return nil, nil
	})
	b.host.Handle(hostsAsk, b.held)
	if b.wal, _, err = runner.OpenWAL(filepath.Join(h.dir, setup.Self.String()), nil); err != nil {
		return err
	}
	go func() {
		for {
			if _, err := b.topic.Next(ctx); err != nil { // judged is taken
				return
			}
		}
	}()
	return nil
}

// judge is the node's: form and signatures, and what passes goes to the machine.
func (b *benchHost) judge(_ context.Context, _ peer.ID, packed []byte) gossip.Verdict {
	v, err := b.check(packed)
	if err != nil {
		return gossip.Reject
	}
	b.mu.Lock()
	r := b.runner
	b.mu.Unlock()
	if r != nil {
		_ = r.ReceiveValid(v)
	}
	return gossip.Accept
}

func (b *benchHost) check(packed []byte) (consensus.Valid, error) {
	raw, err := b.codec.Unpack(packed)
	if err != nil {
		return consensus.Valid{}, err
	}
	m, err := consensus.DecodeMessage(raw)
	if err != nil {
		return consensus.Valid{}, err
	}
	return b.checker.Check(m)
}

// Send implements runner.Network as the node does: gossip the first time, later to every peer by itself.
func (b *benchHost) Send(ctx context.Context, message []byte) error {
	packed := b.codec.Pack(message)
	name := protocol.Hash(sha256.Sum256(message))
	b.mu.Lock()
	again := b.sent[name]
	b.sent[name] = true
	b.mu.Unlock()
	if !again {
		return b.topic.Publish(ctx, packed)
	}
	for _, p := range b.peers {
		b.tell(p, packed)
	}
	return nil
}

// tell is the node's: what does not get through in time is repeated.
func (b *benchHost) tell(to peer.ID, packed []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.telling[to] >= hostsTelling {
		return
	}
	b.telling[to]++
	go func() {
		ctx, cancel := context.WithTimeout(b.ctx, hostsTellTime)
		defer cancel()
		_, _ = b.host.Request(ctx, to, hostsTell, packed)
		b.mu.Lock()
		defer b.mu.Unlock()
		b.telling[to]--
	}()
}

// Tell implements runner.Network.
func (b *benchHost) Tell(to protocol.ID, message []byte) {
	if p, ok := b.host.PeerOf(to); ok {
		b.tell(p, b.codec.Pack(message))
	}
}

// Fetch implements runner.Network as the node does: some peers after others, beginning with another one for each record.
func (b *benchHost) Fetch(ctx context.Context, name consensus.Name) ([]byte, error) {
	request := append([]byte{byte(name.Kind)}, name.Hash[:]...)
	first := int(name.Hash[0]) % len(b.peers)
	for some := range slices.Chunk(slices.Concat(b.peers[first:], b.peers[:first]), hostsFetchers) {
		found := make(chan []byte, len(some))
		asking, cancel := context.WithTimeout(ctx, hostsFetchTime)
		for _, p := range some {
			go func() {
				answer, _ := b.host.Request(asking, p, hostsAsk, request)
				found <- answer
			}()
		}
		for range some {
			if answer := <-found; len(answer) > 0 {
				cancel()
				return answer, nil
			}
		}
		cancel()
	}
	return nil, errors.New("nobody has it")
}

// held answers Fetch.
func (b *benchHost) held(_ context.Context, _ peer.ID, request []byte) ([]byte, error) {
	b.mu.Lock()
	r := b.runner
	b.mu.Unlock()
	if r == nil || len(request) != 1+len(protocol.Hash{}) {
		return nil, p2p.ErrNotFound
	}
	record, _ := r.Held(consensus.Name{Kind: consensus.Kind(request[0]), Hash: protocol.Hash(request[1:])})
	return record, nil
}

func (b *benchHost) close() (err error) {
	b.mu.Lock()
	r := b.runner
	b.mu.Unlock()
	if r != nil {
		r.Close()
	}
	if b.gossip != nil {
		b.gossip.Close()
	}
	if b.host != nil {
		err = b.host.Close()
	}
	if b.wal != nil {
		err = errors.Join(err, b.wal.Close())
	}
	return err
}

// instanceClock counts milliseconds since an anchor.
type instanceClock struct {
	now    func() time.Time
	anchor time.Time
}

func (c instanceClock) Now() int64 { return c.now().Sub(c.anchor).Milliseconds() }

func (c instanceClock) At(millis int64, f func()) (stop func()) {
	timer := time.AfterFunc(c.anchor.Add(time.Duration(millis)*time.Millisecond).Sub(c.now()), f)
	return func() { timer.Stop() }
}

func column(rows [][2]int64, i int) (out []int64) {
	for _, r := range rows {
		out = append(out, r[i])
	}
	return out
}

// instance runs one instance on all hosts and returns when those that did decided, in microseconds after the first turn, by
// the clock and by the processors.
func (h *hostsBench) instance(ctx context.Context, hosts []*benchHost, instance protocol.Instance) ([][2]int64, error) {
	parts, err := sim.Cast(h.config(instance))
	if err != nil {
		return nil, err
	}
	clock := instanceClock{h.now, h.now()}
	var mu sync.Mutex
	var took [][2]int64
	var before time.Duration // processor time at the first turn
	defer clock.At(parts[0].Setup.Turn(0), func() {
		mu.Lock()
		before = processor()
		mu.Unlock()
	})()
	for i, b := range hosts { // all of them before anybody sends
		r, err := runner.New(runner.Config{Machine: parts[i].Setup, Network: b, Clock: clock, Log: b.wal})
		if err != nil {
			return nil, err
		}
		b.mu.Lock()
		old := b.runner
		b.runner = r
		b.mu.Unlock()
		if old != nil {
			old.Close()
		}
	}
	var wg, after sync.WaitGroup
	running, stop := context.WithCancel(ctx)
	errs := make([]error, len(hosts))
	for i, b := range hosts {
		wg.Go(func() {
			errs[i] = func() error {
				list, in, err := parts[i].Prepare()
				if err != nil {
					return err
				}
				r := b.runner
				if list != nil {
					_ = r.Receive(list.Encode())
					_ = r.Input(in) // too late if this machine is too slow for so many, which the figures say
					if err := b.Send(ctx, list.Encode()); err != nil {
						return err
					}
				} else {
					clock.At(h.lead, func() { _ = r.Input(in) })
				}
				out, err := r.Run(ctx)
				if err != nil {
					return err
				}
				micros, used := h.now().Sub(clock.anchor).Microseconds(), processor()
				after.Go(func() { // it helps the others
					for err == nil {
						_, err = r.Run(running)
					}
				})
				if out.Outcome == consensus.Certified {
					mu.Lock()
					alone := (used - before).Microseconds() / int64(runtime.GOMAXPROCS(0))
					took = append(took, [2]int64{micros - parts[i].Setup.Turn(0)*1000, alone})
					mu.Unlock()
				}
				return nil
			}()
		})
	}
	wg.Wait()
	stop()
	after.Wait()
	return took, errors.Join(errs...)
}

// newHostsBench with a delta of 0 chooses one for this machine. It has its logs in a directory of its own, which done removes.
func newHostsBench(validators, miners int, delta int64, now func() time.Time) (h *hostsBench, done func(), err error) {
	if delta == 0 {
		each := hostsEach * runtime.GOMAXPROCS(0)
		delta = 1000 * int64(max(1, (validators+each-1)/each))
	}
	dir, err := os.MkdirTemp("", "bzd-bench-")
	return &hostsBench{validators: validators, miners: miners, delta: delta, now: now, dir: dir}, func() { os.RemoveAll(dir) }, err
}
