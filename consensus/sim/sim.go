package sim

import (
	"bytes"
	"container/heap"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/blockzero-net/bzd/consensus"
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
	// A message takes from Fastest to Slowest, and Loss of a thousand do not arrive.
	Fastest, Slowest int64
	Loss             int
	// Relay is to how many others, drawn anew each time, a validator forwards what was new to it, as gossip does.
	Relay       int
	Partitions  []Partition
	Offline     []int
	Skew        map[int]int64 // added to a validator's clock
	Adversaries map[int]Adversary
	Crashes     []Crash
	// Until is when the run ends; 0: 10 δ after the deadline.
	Until int64
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

// Adversary is what a dishonest validator does: it runs the machine, lies about its scores, and changes what it sends.
type Adversary interface {
	// Scores may change the validator's vector before it is committed to.
	Scores(v *protocol.ScoreVector)
	// Out returns what one recipient gets in place of m.
	Out(n *Node, to int, m consensus.Message) []consensus.Message
}

// Timed is an output and when it came, by the validator's own clock.
type Timed struct {
	At     int64
	Output consensus.Output
}

// Node is one validator.
type Node struct {
	Index int
	Config
	Machine *consensus.Machine // nil while it is down
	Keys    ed25519.PrivateKey
	Setup   consensus.Config
	Outputs []Timed
	Readies int // over all lives

	log   [][]byte
	sent  map[string]bool
	bad   Adversary
	lives int
	tick  int64 // the tick that is scheduled
}

// Result is what came of a run.
type Result struct {
	Transcript string
	Nodes      []*Node
	Signed     []protocol.Signed // everything that honest validators sent, each once
	deadline   int64
}

type event struct {
	at, seq int64
	do      func()
}

type queue []event

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(event)) }
func (q *queue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

type network struct {
	forgetful bool
	cfg       Config
	rng       *rand.Rand
	now       int64
	seq       int64
	events    queue
	nodes     []*Node
	text      strings.Builder
	signed    []protocol.Signed
	err       error
}

// Run plays one configuration. The error is about the configuration.
func Run(cfg Config) (*Result, error) { return run(cfg, false) }

// run with forgetful validators shows what the log is for.
func run(cfg Config, forgetful bool) (*Result, error) {
	if cfg.Instance == 0 {
		cfg.Instance = protocol.InstanceW
	}
	n := &network{cfg: cfg, forgetful: forgetful, rng: rand.New(rand.NewPCG(cfg.Seed, 0))}
	if err := n.build(); err != nil {
		return nil, err
	}
	deadline := n.nodes[0].Setup.Deadline()
	until := cfg.Until
	if until == 0 {
		until = deadline + 10*cfg.Delta
	}
	for len(n.events) > 0 && n.err == nil {
		e := heap.Pop(&n.events).(event)
		if e.at > until {
			break
		}
		n.now = e.at
		e.do()
	}
	return &Result{Transcript: n.text.String(), Nodes: n.nodes, Signed: n.signed, deadline: deadline}, n.err
}

func (n *network) build() error {
	snapshot := protocol.Snapshot{Version: protocol.Version, Height: 1, Hash: sha256.Sum256([]byte("block"))}
	for i, stake := range n.cfg.Stakes {
		var seed [32]byte
		binary.BigEndian.PutUint64(seed[:], uint64(i))
		key := ed25519.NewKeyFromSeed(seed[:])
		id := protocol.ID{byte(i >> 8), byte(i), 31: 1}
		snapshot.Participants = append(snapshot.Participants, protocol.Participant{
			ID: id, Key: protocol.KeyOf(key), Stake: stake, Roles: protocol.RoleValidator,
		})
		node := &Node{Index: i, Config: n.cfg, Keys: key, sent: make(map[string]bool), bad: n.cfg.Adversaries[i], tick: -1}
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
		s.Snapshot, s.Start, s.Delta, s.Rounds, s.Derive = snapshot, n.cfg.Start, n.cfg.Delta, n.cfg.Rounds, derive(snapshot)
		for _, r := range ranks {
			s.Proposers = append(s.Proposers, n.nodes[r].Setup.Self)
		}
		if slices.Contains(n.cfg.Offline, node.Index) {
			continue
		}
		n.at(n.cfg.Start-2*n.cfg.Delta-n.cfg.Skew[node.Index], func() { n.start(node) })
	}
	return nil
}

func (n *network) at(t int64, do func()) {
	n.seq++
	heap.Push(&n.events, event{max(t, n.now), n.seq, do})
}

func (n *network) logf(node *Node, format string, args ...any) {
	fmt.Fprintf(&n.text, "%6d v%d %s\n", n.now, node.Index, fmt.Sprintf(format, args...))
}

// clock is the node's own.
func (n *network) clock(node *Node) int64 { return n.now + n.cfg.Skew[node.Index] }

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
	if n.cfg.Instance == protocol.InstanceW {
		list := protocol.List{Version: protocol.Version, Network: setup.Network, Cycle: setup.Cycle, Validator: setup.Self}
		if err := list.Sign(node.Keys); err != nil {
			n.err = err
			return
		}
		m, err := consensus.NewMessage(list)
		if err != nil {
			n.err = err
			return
		}
		_ = machine.Step(m)
		n.send(node, m) // as the custody phase does
		v := scores(node, list.Digest())
		if node.bad != nil {
			node.bad.Scores(&v)
		}
		_ = machine.Input(consensus.Input{Scores: &v}) // refused after a restart that remembers one, or too late
	} else {
		v := search(node)
		n.at(n.cfg.Start, func() {
			if node.Machine == machine {
				machine.Tick(n.clock(node))
				_ = machine.Input(consensus.Input{Merge: &v})
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
		count := node.Readies
		node.Readies++
		crash := func(p Phase) bool {
			i := slices.IndexFunc(n.cfg.Crashes, func(c Crash) bool { return c.Node == node.Index && c.Ready == count && c.Phase == p })
			if i < 0 {
				return false
			}
			n.logf(node, "crashes at ready %d, %s", count, [...]string{"nothing persisted", "persisted", "sent"}[p])
			node.Machine = nil
			n.at(n.now+max(1, n.cfg.Crashes[i].Down), func() { n.start(node) })
			return true
		}
		if crash(BeforePersist) {
			return
		}
		for _, r := range ready.Persist {
			node.log = append(node.log, bytes.Clone(r))
		}
		if crash(BeforeSend) {
			return
		}
		for _, m := range ready.Send {
			n.send(node, m)
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
			node.Outputs = append(node.Outputs, Timed{n.clock(node), *ready.Output})
			n.logf(node, "OUTPUT %s", describe(*ready.Output))
		}
		if crash(BeforeAdvance) {
			return
		}
		node.Machine.Advance()
	}
	if node.Machine == nil {
		return
	}
	if next := node.Machine.Next(); next != node.tick {
		node.tick = next
		machine := node.Machine
		n.at(next-n.cfg.Skew[node.Index], func() {
			if node.Machine == machine {
				machine.Tick(n.clock(node))
				n.pump(node)
			}
		})
	}
}

func (n *network) index(id protocol.ID) int {
	return slices.IndexFunc(n.nodes, func(node *Node) bool { return node.Setup.Self == id })
}

// reaches reports whether a message sent now from one node arrives at another.
func (n *network) reaches(from, to int) bool {
	for _, p := range n.cfg.Partitions {
		if n.now >= p.From && n.now < p.To && slices.Contains(p.Side, from) != slices.Contains(p.Side, to) {
			return false
		}
	}
	return n.rng.IntN(1000) >= n.cfg.Loss
}

func (n *network) latency() int64 {
	return n.cfg.Fastest + n.rng.Int64N(n.cfg.Slowest-n.cfg.Fastest+1)
}

// send gives a message to everybody else.
func (n *network) send(from *Node, m consensus.Message) {
	if key := string(m.Encode()); !from.sent[key] {
		from.sent[key] = true
		n.logf(from, "%s", n.describe(m))
		if r, err := m.Record(); err == nil && from.bad == nil {
			if s, ok := r.(protocol.Signed); ok && s.Signer() == from.Setup.Self {
				n.signed = append(n.signed, s)
			}
		}
	}
	for _, to := range n.nodes {
		if to == from {
			continue
		}
		out := []consensus.Message{m}
		if from.bad != nil {
			out = from.bad.Out(from, to.Index, m)
		}
		for _, m := range out {
			if n.reaches(from.Index, to.Index) {
				n.at(n.now+n.latency(), func() { n.deliver(to, m) })
			}
		}
	}
}

func (n *network) deliver(to *Node, m consensus.Message) {
	if to.Machine == nil {
		return
	}
	to.Machine.Tick(n.clock(to))
	if err := to.Machine.Step(m); err == nil {
		for range n.cfg.Relay {
			if next := n.nodes[n.rng.IntN(len(n.nodes))]; next != to && n.reaches(to.Index, next.Index) {
				n.at(n.now+n.latency(), func() { n.deliver(next, m) })
			}
		}
	}
	n.pump(to)
}

// fetch asks every node that can be reached, and the first that holds the record answers.
func (n *network) fetch(node *Node, name consensus.Name) {
	for _, from := range n.nodes {
		if from == node || from.Machine == nil || !n.reaches(node.Index, from.Index) {
			continue
		}
		if m, ok := from.Machine.Held(name.Hash); ok {
			n.at(n.now+2*n.latency(), func() { n.deliver(node, m) })
			return
		}
	}
}
