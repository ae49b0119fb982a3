package sim

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// Net is how messages travel. What a validator says it sends to its peers: to everybody, or to its mesh. Who hears a
// message for the first time passes it on to its mesh, as GossipSub does; what is said again goes to the peers and no
// further, as the node's request tell.
type Net struct {
	// A message takes from Fastest to Slowest milliseconds; with Regions validator i is in Regions[i % len] and a message
	// takes what the table says.
	Fastest, Slowest int64
	Regions          *Regions
	// Jitter is the mean of an exponential delay on top, in milliseconds.
	Jitter int64
	// Of a thousand messages, Loss do not arrive, until Calm.
	Loss int
	Calm int64 // 0: never
	// Direct: everybody is everybody's peer.
	Direct bool
	// Mesh is about how many others a validator passes on to; 0: nobody passes anything on.
	Mesh int
	// Heartbeat is how often, in milliseconds, a validator tells some others what it has heard in the last three, so that
	// they can ask for it; 0: never.
	Heartbeat int64
	// Bandwidth is what a validator's line carries each way, in bytes per millisecond; 0: anything.
	Bandwidth int64
	// Packed: messages are packed as package wire does.
	Packed bool
	// Copy is microseconds of one processor for every copy of a message, and Verify for each signature of one that is new.
	// All validators share so many Processors; 0: each has one.
	Copy, Verify int64
	Processors   int
}

// Regions are places, and the milliseconds that a message takes from one to another.
type Regions struct {
	Names  []string
	OneWay [][]int64 // microseconds
}

// Traffic is what a validator sent and received, in bytes and messages, by kind of message; index 0 is gossip's own.
type Traffic struct {
	Sent, Received                 [16]int64
	SentMessages, ReceivedMessages [16]int64
}

// Bytes returns the sums.
func (t Traffic) Bytes() (sent, received int64) {
	for i := range t.Sent {
		sent += t.Sent[i]
		received += t.Received[i]
	}
	return sent, received
}

// Sizes of what goes with messages, in bytes: around each, gossip's identifiers, and what packets cost.
const (
	frame     = 90 // IP, UDP, QUIC, stream and RPC headers
	messageID = 34
	request   = 100
)

// Gossip's numbers, as GossipSub's defaults.
const (
	lazy    = 6    // peers that hear of what a validator has
	history = 3    // heartbeats
	large   = 1024 // bytes; of such a message peers are told that they need not send it
)

const never = -1 << 62

// envelope is a message on the wire, one for all its copies.
type envelope struct {
	message consensus.Message
	record  protocol.Record // nil: does not decode
	size    int64
	cost    int64   // microseconds to judge it
	arrived []int64 // by validator: when gossip brought it first
	signer  int     // the validator that alone signed it, or -1
	token   consensus.Valid
	wrong   error // what a checker says of it
	checked bool
	tried   int // how often it was stepped unchecked
}

// line is a validator's end of the network.
type line struct {
	mesh     []int
	up, down int64       // when the line is free
	cpu      int64       // when the processor is
	heard    []*envelope // since the last heartbeats
	beats    [history]int
}

// mesh connects the validators at random, each with about Mesh others, both ways.
func (n *network) mesh() {
	all := len(n.nodes)
	for i, node := range n.nodes {
		for tries := 0; len(node.line.mesh) < min((n.cfg.Mesh+1)/2*2, all-1) && n.cfg.Mesh > 0 && tries < 8*all; tries++ {
			other := n.rng.IntN(all)
			if peer := n.nodes[other]; other != i && !slices.Contains(node.line.mesh, other) &&
				(len(peer.line.mesh) < n.cfg.Mesh || tries > 4*all) {
				node.line.mesh = append(node.line.mesh, other)
				peer.line.mesh = append(peer.line.mesh, i)
			}
		}
	}
}

// envelope returns the one envelope of a message.
func (n *network) envelope(m consensus.Message) *envelope {
	key := string(m.Encode())
	if e, ok := n.envelopes[key]; ok {
		return e
	}
	size := len(key)
	if n.codec != nil {
		size = len(n.codec.Pack([]byte(key)))
	}
	e := &envelope{message: m, size: int64(size) + frame, cost: n.cfg.Verify, arrived: make([]int64, len(n.nodes)), signer: -1}
	for i := range e.arrived {
		e.arrived[i] = never
	}
	if r, err := m.Record(); err == nil {
		e.record = r
		if s, ok := r.(protocol.Signed); ok && n.index(s.Signer()) < len(n.nodes) {
			e.signer = n.index(s.Signer())
		}
		switch r := r.(type) {
		case protocol.Certificate:
			e.cost *= int64(len(r.Signatures))
		case protocol.Lock:
			e.cost *= int64(len(r.Signatures))
		case protocol.Proposal:
			if r.Lock != nil {
				e.cost *= int64(1 + len(r.Lock.Signatures))
			}
		case protocol.ScoreCommit:
			n.result.commits[r.Digest] = n.result.commits[r.Digest] || n.now < n.latest*milli
		}
	}
	n.envelopes[key] = e
	return e
}

// send gives a message of its own to a validator's peers.
func (n *network) send(from *Node, m consensus.Message) {
	e := n.envelope(m)
	again := from.sent[e]
	if !again {
		from.sent[e] = true
		e.arrived[from.Index] = n.now
		from.line.heard = append(from.line.heard, e)
		n.logf(from, "%s", n.describe(e))
		if from.bad == nil && e.signer == from.Index {
			n.result.Signed = append(n.result.Signed, e.record.(protocol.Signed))
		}
	}
	for _, to := range n.peers(from) {
		if from.bad == nil {
			n.transmit(from, to, e, 0, again)
			continue
		}
		for _, p := range from.bad.Out(from, to.Index, m, e.record) {
			n.transmit(from, to, n.envelope(p.Message), p.After, again)
		}
	}
}

// peers are whom a validator sends what it says.
func (n *network) peers(from *Node) (peers []*Node) {
	if !n.cfg.Direct {
		for _, i := range from.line.mesh {
			peers = append(peers, n.nodes[i])
		}
		return peers
	}
	for _, to := range n.nodes {
		if to != from {
			peers = append(peers, to)
		}
	}
	return peers
}

// reaches reports whether something sent now from one node arrives at another.
func (n *network) reaches(from, to *Node) bool {
	now := floorDiv(n.now, milli)
	for _, p := range n.cfg.Partitions {
		if now >= p.From && now < p.To && slices.Contains(p.Side, from.Index) != slices.Contains(p.Side, to.Index) {
			return false
		}
	}
	lost := n.cfg.Loss > 0 && n.rng.IntN(1000) < n.cfg.Loss
	return !lost || n.cfg.Calm > 0 && now >= n.cfg.Calm
}

// latency draws how long a message is on its way, in microseconds.
func (n *network) latency(from, to *Node) int64 {
	var base int64
	if r := n.cfg.Regions; r != nil {
		base = r.OneWay[from.Index%len(r.OneWay)][to.Index%len(r.OneWay)]
	} else {
		base = n.cfg.Fastest*milli + n.rng.Int64N((n.cfg.Slowest-n.cfg.Fastest)*milli+1)
	}
	if n.cfg.Jitter > 0 {
		// An exponential's logarithm base 2 by its bits: the leading zeros of a random word, and a linear rest.
		w := n.rng.Uint64()
		zeros := int64(bits.LeadingZeros64(w | 1))
		base += (zeros*1000 + n.rng.Int64N(1000)) * n.cfg.Jitter * milli * 693 / 1_000_000
	}
	return base
}

// transmit puts a copy on the line of its sender, after some milliseconds. A copy that is told goes no further.
func (n *network) transmit(from, to *Node, e *envelope, after int64, told bool) {
	if after > 0 {
		n.at(n.now+after*milli, func() { n.transmit(from, to, e, 0, told) })
		return
	}
	kind := min(int(e.message.Kind), 15)
	from.Traffic.Sent[kind] += e.size
	from.Traffic.SentMessages[kind]++
	depart := n.now
	if n.cfg.Bandwidth > 0 {
		depart = max(n.now, from.line.up) + e.size*milli/n.cfg.Bandwidth
		from.line.up = depart
	}
	if n.reaches(from, to) && !to.offline {
		n.at(depart+n.latency(from, to), func() { n.arrive(from, to, e, told) })
	}
}

// arrive takes a copy off the line and hands it to the processor.
func (n *network) arrive(from, to *Node, e *envelope, told bool) {
	kind := min(int(e.message.Kind), 15)
	to.Traffic.Received[kind] += e.size
	to.Traffic.ReceivedMessages[kind]++
	if to.Machine == nil {
		return
	}
	done := n.now
	if n.cfg.Bandwidth > 0 {
		done = max(done, to.line.down) + e.size*milli/n.cfg.Bandwidth
		to.line.down = done
	}
	known := e.arrived[to.Index] != never
	if !known && !told {
		e.arrived[to.Index] = n.now
		for range to.line.mesh {
			if e.size >= large {
				n.control(to, nil, messageID)
			}
		}
	}
	cost := n.cfg.Copy
	if !known || told {
		cost += e.cost
	}
	cpu := &to.line.cpu
	if n.cfg.Processors > 0 {
		cpu = n.processor()
	}
	*cpu = max(done, *cpu) + cost
	done = *cpu
	switch {
	case known && !told: // gossip drops it
	case done == n.now:
		n.deliver(from, to, e, told)
	default:
		n.at(done, func() { n.deliver(from, to, e, told) })
	}
}

// processor is the shared one that is free first.
func (n *network) processor() *int64 {
	if n.processors == nil {
		n.processors = make([]int64, n.cfg.Processors)
	}
	return &n.processors[slices.Index(n.processors, slices.Min(n.processors))]
}

// control counts what gossip says about messages.
func (n *network) control(from, to *Node, size int64) {
	from.Traffic.Sent[0] += size
	from.Traffic.SentMessages[0]++
	if to != nil {
		to.Traffic.Received[0] += size
		to.Traffic.ReceivedMessages[0]++
	}
}

// deliver steps a machine.
func (n *network) deliver(from, to *Node, e *envelope, told bool) {
	if to.Machine == nil {
		return
	}
	to.Machine.Tick(n.clock(to))
	to.Steps++
	if n.cfg.heard != nil && to.Honest() && e.check(n.checker) == nil {
		n.cfg.heard(to, n.clock(to), e.token)
	}
	err := n.step(to.Machine, e)
	if errors.Is(err, consensus.ErrPeer) && to.bad == nil && from.bad == nil && e.signer >= 0 && n.nodes[e.signer].bad == nil {
		n.result.Blamed = append(n.result.Blamed, fmt.Sprintf("%s refused %s of %s: %v", to.name(), n.describe(e), name(e.signer), err))
	}
	if err == nil && !told {
		to.line.heard = append(to.line.heard, e)
		for _, i := range to.line.mesh {
			if peer := n.nodes[i]; peer != from && i != e.signer && !n.declined(e, peer, to) {
				n.forward(to, peer, e)
			}
		}
	}
	if to.bad != nil {
		for _, p := range to.bad.Hear(to, e.message, e.record) {
			if p.To != to.Index {
				n.transmit(to, n.nodes[p.To], n.envelope(p.Message), p.After, false)
			}
		}
	}
	n.pump(to)
}

// check verifies a message once for all.
func (e *envelope) check(c consensus.Checker) error {
	if !e.checked {
		e.checked = true
		e.token, e.wrong = c.Check(e.message)
	}
	return e.wrong
}

// step gives a machine a message. It is checked once for all; one that fails goes to some machines as it is, and to the
// others not at all, as behind a node's gossip.
func (n *network) step(m *consensus.Machine, e *envelope) error {
	switch {
	case e.check(n.checker) == nil:
		return m.StepValid(e.token)
	case e.tried < 2:
		e.tried++
		return m.Step(e.message)
	}
	return e.wrong
}

// declined reports whether a node has heard by now that its peer needs no copy.
func (n *network) declined(e *envelope, peer, node *Node) bool {
	at := e.arrived[peer.Index]
	return e.size >= large && at != never && at+n.latency(peer, node) <= n.now
}

// forward passes on what somebody else said.
func (n *network) forward(from, to *Node, e *envelope) {
	if from.bad == nil {
		n.transmit(from, to, e, 0, false)
		return
	}
	for _, p := range from.bad.Out(from, to.Index, e.message, e.record) {
		n.transmit(from, to, n.envelope(p.Message), p.After, false)
	}
}

// heartbeat tells some peers what a node has heard lately, and they ask for what they miss.
func (n *network) heartbeat(node *Node, life *consensus.Machine) {
	if node.Machine != life {
		return
	}
	n.at(n.now+n.cfg.Heartbeat*milli, func() { n.heartbeat(node, life) })
	w := &node.line
	old := w.beats[0]
	w.heard = w.heard[old:]
	copy(w.beats[:], w.beats[1:])
	for i := range w.beats {
		w.beats[i] -= old
	}
	w.beats[history-1] = len(w.heard)
	if len(w.heard) == 0 || node.bad != nil {
		return
	}
	said := slices.Clone(w.heard)
	for range lazy {
		peer := n.nodes[n.rng.IntN(len(n.nodes))]
		if peer == node || slices.Contains(w.mesh, peer.Index) {
			continue
		}
		n.control(node, peer, frame+int64(len(said))*messageID)
		if peer.offline || !n.reaches(node, peer) {
			continue
		}
		n.at(n.now+n.latency(node, peer), func() { n.hear(node, peer, said) })
	}
}

// hear asks for those of the messages that a node has not.
func (n *network) hear(from, to *Node, said []*envelope) {
	if to.Machine == nil {
		return
	}
	var missing []*envelope
	for _, e := range said {
		if e.arrived[to.Index] == never {
			missing = append(missing, e)
		}
	}
	if len(missing) == 0 {
		return
	}
	n.control(to, from, frame+int64(len(missing))*messageID)
	if n.reaches(to, from) {
		n.at(n.now+n.latency(to, from), func() {
			for _, e := range missing {
				n.forward(from, to, e)
			}
		})
	}
}

// asked is how many peers are asked for a record at once.
const asked = 3

// fetch asks some peers for a record; who has it answers.
func (n *network) fetch(node *Node, name consensus.Name) {
	for _, i := range n.rng.Perm(len(n.nodes))[:min(asked+1, len(n.nodes))] {
		from := n.nodes[i]
		if from == node {
			continue
		}
		n.control(node, from, request)
		if from.offline || !n.reaches(node, from) {
			continue
		}
		n.at(n.now+n.latency(node, from), func() {
			if from.Machine == nil {
				return
			}
			if m, ok := from.Machine.Held(name.Hash); ok {
				n.answer(from, node, m)
			}
		})
	}
}

// answer sends what was asked for.
func (n *network) answer(from, to *Node, m consensus.Message) {
	e := n.envelope(m)
	if from.bad == nil {
		n.transmit(from, to, e, 0, true)
		return
	}
	for _, p := range from.bad.Out(from, to.Index, m, e.record) {
		n.transmit(from, to, n.envelope(p.Message), p.After, true)
	}
}
