package sim

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/consensus/wire"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// Config is one run. Times are milliseconds since the anchor. The zero value of a field is its least eventful one.
type Config struct {
	Seed     uint64
	Stakes   []uint64 // one validator each
	Instance protocol.Instance
	Start    int64
	Delta    int64
	Rounds   int64
	// Proposers are validators by rank; nil: in order.
	Proposers []int
	// Miners is how many each validator scores; 0: 3.
	Miners int

	Net
	Partitions  []Partition
	Offline     []int
	Skew        map[int]int64 // added to a validator's clock
	Adversaries map[int]Adversary
	Crashes     []Crash
	// Setup may change the machine of a validator before it starts.
	Setup func(node int, c *consensus.Config)
	// Until is when the run ends; 0: 10 δ after the deadline.
	Until int64
	// Brief ends the run 2 δ after every honest validator that is up has its certificate, and keeps no transcript.
	Brief bool

	heard func(n *Node, at int64, v consensus.Valid) // every message that an honest machine takes
}

// Partition separates the validators of Side from the others for a while: what is sent across is lost.
type Partition struct {
	From, To int64
	Side     []int
}

// Phase is where in the work on one Ready a validator crashes.
type Phase int

// The phases.
const (
	BeforePersist Phase = iota
	BeforeSend          // persisted
	BeforeAdvance       // sent
)

// Crash stops a validator at its Ready of that number, counted from 0 over all its lives, for a while.
type Crash struct {
	Node, Ready int
	Phase       Phase
	Down        int64
}

// Timed is an output and when it came, by the validator's own clock and by everybody's.
type Timed struct {
	At     int64
	Micros int64 // since the anchor
	Output consensus.Output
}

// Node is one validator.
type Node struct {
	Index   int
	Machine *consensus.Machine // nil while it is down
	Keys    ed25519.PrivateKey
	Setup   consensus.Config
	Outputs []Timed
	Readies int // over all lives
	Traffic Traffic
	Steps   int64 // messages that its machines took

	net     *network
	log     [][]byte
	sent    map[*envelope]bool
	bad     Adversary
	offline bool
	lives   int
	tick    int64 // the tick that is scheduled
	line    line
}

// Result is what came of a run.
type Result struct {
	Transcript string
	Nodes      []*Node
	Signed     []protocol.Signed      // everything that honest validators sent, each once
	commits    map[protocol.Hash]bool // what was committed to before Start, by the slowest clock
	Blamed     []string               // who called an honest validator's message wrong
	cfg        Config
	deadline   int64
}

type network struct {
	forgetful  bool
	cfg        Config
	rng        *rand.Rand
	now        int64 // microseconds since the anchor
	seq        int64
	events     queue
	nodes      []*Node
	envelopes  map[string]*envelope
	checker    consensus.Checker
	derived    map[protocol.Hash]derived
	codec      *wire.Codec // nil: nothing is packed
	text       strings.Builder
	result     Result
	latest     int64   // when scores may be committed to by the slowest clock
	news       bool    // somebody had an output
	processors []int64 // when each of the shared ones is free
	err        error
}

// Cast returns the validators of a configuration, not started, for those who run them elsewhere. The error is about the
// configuration.
func Cast(cfg Config) ([]*Node, error) {
	n, err := newNetwork(cfg)
	return n.nodes, err
}

// Prepare returns what a validator brings to its machine: its list, which is nil in the merge, and what it measured.
func (n *Node) Prepare() (list *consensus.Message, in consensus.Input, err error) {
	if n.Setup.Instance == protocol.InstanceM {
		v := search(n)
		return nil, consensus.Input{Merge: &v}, nil
	}
	l := entries(n)
	if err := l.Sign(n.Keys); err != nil {
		return nil, in, err
	}
	m, err := consensus.NewMessage(l)
	if err != nil {
		return nil, in, err
	}
	v := scores(n, l.Digest())
	if n.bad != nil {
		n.bad.Scores(&v)
	}
	return &m, consensus.Input{Scores: &v}, nil
}

// Run plays one configuration. The error is about the configuration.
func Run(cfg Config) (*Result, error) { return run(cfg, false) }

// run with forgetful validators shows what the log is for.
func run(cfg Config, forgetful bool) (*Result, error) {
	n, err := newNetwork(cfg)
	if err != nil {
		return nil, err
	}
	n.forgetful = forgetful
	for _, node := range n.nodes {
		if !node.offline {
			n.at((n.cfg.Start-2*n.cfg.Delta-n.cfg.Skew[node.Index])*milli, func() { n.start(node) })
		}
	}
	deadline := n.nodes[0].Setup.Deadline()
	until := cfg.Until
	if until == 0 {
		until = deadline + 10*cfg.Delta
	}
	until *= milli
	for n.err == nil {
		e, ok := n.events.pop()
		if !ok || e.at > until {
			break
		}
		n.now = e.at
		e.do()
		if n.news && cfg.Brief && n.decided() {
			until, cfg.Brief = min(until, n.now+2*cfg.Delta*milli), false
		}
		n.news = false
	}
	n.result.Transcript, n.result.Nodes, n.result.deadline, n.result.cfg = n.text.String(), n.nodes, deadline, n.cfg
	return &n.result, n.err
}

// decided reports whether every honest validator that is up has a certificate.
func (n *network) decided() bool {
	for _, node := range n.nodes {
		if node.Honest() && (len(node.Outputs) == 0 || node.Outputs[len(node.Outputs)-1].Output.Certificate == nil) {
			return false
		}
	}
	return true
}

// Honest reports whether the validator takes part and keeps the rules.
func (n *Node) Honest() bool { return n.bad == nil && !n.offline }

func newNetwork(cfg Config) (*network, error) {
	if cfg.Instance == 0 {
		cfg.Instance = protocol.InstanceW
	}
	if cfg.Miners == 0 {
		cfg.Miners = 3
	}
	n := &network{
		cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 0)),
		envelopes: make(map[string]*envelope), derived: make(map[protocol.Hash]derived),
	}
	n.result.commits, n.latest = make(map[protocol.Hash]bool), cfg.Start
	for _, skew := range cfg.Skew {
		n.latest = max(n.latest, cfg.Start-skew)
	}
	snapshot := protocol.Snapshot{Version: protocol.Version, Height: 1, Hash: sha256.Sum256([]byte("block"))}
	for i, stake := range n.cfg.Stakes {
		var seed [32]byte
		binary.BigEndian.PutUint64(seed[:], uint64(i))
		key := ed25519.NewKeyFromSeed(seed[:])
		id := id(i)
		snapshot.Participants = append(snapshot.Participants, protocol.Participant{
			ID: id, Key: protocol.KeyOf(key), Stake: stake, Roles: protocol.RoleValidator,
		})
		node := &Node{
			Index: i, Keys: key, net: n, sent: make(map[*envelope]bool), bad: n.cfg.Adversaries[i],
			offline: slices.Contains(n.cfg.Offline, i), tick: -1,
		}
		node.Setup.Self, node.Setup.Key = id, key
		n.nodes = append(n.nodes, node)
	}
	ranks := n.cfg.Proposers
	if ranks == nil {
		for i := range min(len(n.nodes), int(3*n.cfg.Rounds)) {
			ranks = append(ranks, i)
		}
	}
	for _, node := range n.nodes {
		s := &node.Setup
		s.Network = protocol.LinkTo(protocol.DagCBOR, []byte("sim"))
		s.Cycle, s.Instance, s.Parent = 7, n.cfg.Instance, sha256.Sum256([]byte("parent"))
		s.Snapshot, s.Start, s.Delta, s.Rounds = snapshot, n.cfg.Start, n.cfg.Delta, n.cfg.Rounds
		s.Derive = n.derive(snapshot)
		for _, r := range ranks {
			s.Proposers = append(s.Proposers, n.nodes[r].Setup.Self)
		}
		if n.cfg.Setup != nil {
			n.cfg.Setup(node.Index, s)
		}
	}
	n.checker = consensus.NewChecker(n.nodes[0].Setup.Network, snapshot)
	if n.cfg.Packed {
		participants := slices.Clone(snapshot.Participants)
		for m := range n.cfg.Miners {
			participants = append(participants, protocol.Participant{ID: miner(m)})
		}
		n.codec = wire.New(n.nodes[0].Setup.Network, n.nodes[0].Setup.Cycle, protocol.Snapshot{Participants: participants})
		for _, e := range entries(n.nodes[0]).Entries {
			n.codec.Know(e.Miner, e.Manifest) // everybody holds everything before the lists are sent
		}
	}
	n.mesh()
	return n, nil
}

// milli is a millisecond in the simulation's microseconds.
const milli = 1000

func (n *network) at(t int64, do func()) {
	n.seq++
	n.events.push(event{max(t, n.now), n.seq, do})
}

func (n *network) logf(node *Node, format string, args ...any) {
	if !n.cfg.Brief {
		fmt.Fprintf(&n.text, "%6d v%d %s\n", floorDiv(n.now, milli), node.Index, fmt.Sprintf(format, args...))
	}
}

// clock is the node's own, in milliseconds.
func (n *network) clock(node *Node) int64 { return floorDiv(n.now, milli) + n.cfg.Skew[node.Index] }

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// start begins a life of a node.
func (n *network) start(node *Node) {
	setup := node.Setup
	if !n.forgetful {
		setup.Restore = node.log
	}
	machine, err := consensus.New(setup)
	if err != nil {
		n.err = err
		return
	}
	node.Machine, node.tick = machine, -1
	node.lives++
	if node.lives > 1 {
		n.logf(node, "restarts with %d records", len(node.log))
	}
	machine.Tick(n.clock(node))
	if n.cfg.Mesh > 0 && n.cfg.Heartbeat > 0 {
		n.at(n.now+n.rng.Int64N(n.cfg.Heartbeat*milli), func() { n.heartbeat(node, machine) })
	}
	list, in, err := node.Prepare()
	if err != nil {
		n.err = err
		return
	}
	if list != nil {
		_ = machine.Step(*list)
		n.send(node, *list)   // as the custody phase does
		_ = machine.Input(in) // refused after a restart that remembers one, or too late
	} else {
		n.at(n.cfg.Start*milli, func() {
			if node.Machine == machine {
				machine.Tick(n.clock(node))
				_ = machine.Input(in)
				n.pump(node)
			}
		})
	}
	n.pump(node)
}

// pump does what the machine asks for and schedules its next tick.
func (n *network) pump(node *Node) {
	for node.Machine != nil {
		ready := node.Machine.Ready()
		if ready.Empty() {
			break
		}
		if n.work(node, ready) {
			return
		}
	}
	if node.Machine == nil {
		return
	}
	if next := node.Machine.Next(); next != node.tick {
		node.tick = next
		machine := node.Machine
		n.at((next-n.cfg.Skew[node.Index])*milli, func() {
			if node.Machine == machine {
				machine.Tick(n.clock(node))
				n.pump(node)
			}
		})
	}
}

// work does one Ready and reports whether the node crashed meanwhile.
func (n *network) work(node *Node, ready consensus.Ready) (crashed bool) {
	count := node.Readies
	node.Readies++
	if n.crash(node, count, BeforePersist) {
		return true
	}
	for _, r := range ready.Persist {
		node.log = append(node.log, bytes.Clone(r))
	}
	if n.crash(node, count, BeforeSend) {
		return true
	}
	for _, m := range ready.Send {
		n.send(node, m)
	}
	for _, r := range ready.Reply {
		n.answer(node, n.nodes[n.index(r.To)], r.Message)
	}
	for _, p := range ready.Proofs {
		offence, err := p.Verify(node.Setup.Snapshot)
		if err != nil {
			n.err = fmt.Errorf("sim: v%d has a proof that proves nothing: %w", node.Index, err)
		}
		n.logf(node, "proves %s by v%d", offence.Kind, n.index(offence.Offender))
	}
	for _, name := range ready.Need {
		n.fetch(node, name)
	}
	if ready.Output != nil {
		node.Outputs = append(node.Outputs, Timed{n.clock(node), n.now, *ready.Output})
		n.news = true
		n.logf(node, "OUTPUT %s", describe(*ready.Output))
	}
	if n.crash(node, count, BeforeAdvance) {
		return true
	}
	node.Machine.Advance()
	return false
}

// crash stops a node if the configuration says so.
func (n *network) crash(node *Node, count int, p Phase) bool {
	i := slices.IndexFunc(n.cfg.Crashes, func(c Crash) bool { return c.Node == node.Index && c.Ready == count && c.Phase == p })
	if i < 0 {
		return false
	}
	n.logf(node, "crashes at ready %d, %s", count, [...]string{"nothing persisted", "persisted", "sent"}[p])
	node.Machine = nil
	for _, e := range n.envelopes {
		e.arrived[node.Index] = never // the next life's gossip has seen nothing
	}
	n.at(n.now+max(1, n.cfg.Crashes[i].Down)*milli, func() { n.start(node) })
	return true
}

// id is the id of a validator.
func id(i int) protocol.ID { return protocol.ID{byte(i >> 8), byte(i), 31: 1} }

func (n *network) index(id protocol.ID) int { return int(id[0])<<8 | int(id[1]) }
