package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/consensus/beacon"
	"github.com/blockzero-net/bzd/consensus/runner"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/p2p"
	"github.com/blockzero-net/bzd/p2p/gossip"
)

// Topics and protocols of the network.
const (
	topicCommit = "commit" // commitments of miners
	topicAgree  = "agree"  // lists, scores, proposals, votes, certificates
	topicHead   = "head"   // validators' Heads
)

var (
	askRecord = p2p.Protocol{Name: "record", MaxRequest: 64, MaxResponse: consensus.MaxMessage, Bound: true}
	// tell brings one packed message of the agreement to one validator, past gossip. There is no answer.
	tell = p2p.Protocol{Name: "tell", MaxRequest: consensus.MaxMessage, MaxResponse: 0, Bound: true}
)

// agreement is the part of a node that takes messages for one instance.
type agreementRun struct {
	*runner.Runner
	instance protocol.Instance
}

// earlyMessages bounds what is kept for an instance that has not begun here.
const earlyMessages = 256

// agreement starts an instance: messages that came early are handed to it.
func (n *Node) agreement(ctx context.Context, t timeline, s protocol.Snapshot, i protocol.Instance, parent protocol.Hash, start uint64,
	derive func(consensus.Set) (protocol.Value, error)) (*agreementRun, error) {
	sig, err := n.beacon.Signature(ctx, t.anchor) // not known when the snapshot was taken
	if err != nil {
		return nil, fmt.Errorf("beacon round %d: %w", t.anchor, err)
	}
	proposers := consensus.Proposers(protocol.Hash(beacon.Randomness(sig)), i, s, consensus.Ranks*int(t.schedule.Rounds))
	key := n.cfg.Key
	if n.bound {
		key = nil
	}
	r, err := runner.New(runner.Config{
		Machine: consensus.Config{
			Network: n.cfg.Network, Cycle: t.cycle, Instance: i, Parent: parent, Self: n.cfg.ID, Key: key, Snapshot: s,
			Proposers: proposers, Start: int64(start), Delta: int64(t.schedule.DeltaMillis), Rounds: int64(t.schedule.Rounds),
			Derive: derive, Restore: n.restored,
		},
		Network: validators{n}, Clock: cycleClock{n, t}, Log: n.wal,
		Fault: func(err error) { n.trouble(t.cycle, err) }, Proof: func(p protocol.EquivocationProof) { n.accuse(t.cycle, s, p) },
	})
	if err != nil {
		return nil, err
	}
	run := &agreementRun{r, i}
	n.mu.Lock()
	n.current = append(n.current, run)
	early, proofs := n.early, slices.Clone(n.proofs)
	n.early = nil
	n.mu.Unlock()
	for _, p := range proofs {
		if m, err := consensus.NewMessage(p); err == nil {
			_ = run.Receive(m.Encode()) // refused once the offender is in no snapshot
		}
	}
	for _, m := range early {
		n.deliver(m)
	}
	return run, nil
}

// follow keeps an instance running behind its first output, until the cycle ends: a late certificate is adopted, and
// validators that miss what this one has get it. Then it closes the instance.
func (n *Node) follow(t timeline, run *agreementRun) {
	n.background.Go(func() {
		defer run.Close()
		ctx, cancel := context.WithDeadline(n.running, t.at(t.End))
		defer cancel()
		for {
			out, err := run.Run(ctx)
			if err != nil {
				return
			}
			if out.Certificate != nil {
				n.learn(*out.Certificate)
				n.announce(*out.Certificate)
			}
		}
	})
}

// agreed reports how an instance went until its first output.
func (n *Node) agreed(cycle uint64, run *agreementRun, outcome consensus.Outcome) {
	m := run.Metrics()
	a := Agreement{Instance: run.instance.String(), Outcome: outcome.String(), Prepared: m.Prepared, Committed: m.Committed, Decided: m.Decided,
		Sent: map[string]uint64{}, Received: map[string]uint64{}, Ignored: m.Ignored, Refused: m.Refused}
	var sent, received uint64
	for k := range m.Sent {
		kind := consensus.Kind(k).String()
		if m.Sent[k] > 0 {
			a.Sent[kind], sent = m.Sent[k], sent+m.Sent[k]
		}
		if m.Received[k] > 0 {
			a.Received[kind], received = m.Received[k], received+m.Received[k]
		}
	}
	n.event(Event{Kind: Agreed, Cycle: cycle, Agreement: &a, Text: fmt.Sprintf(
		"%s %s: prepared after %d ms, committed after %d, certificate after %d; %d messages sent, %d new, %d ignored, %d refused",
		a.Instance, a.Outcome, a.Prepared, a.Committed, a.Decided, sent, received, a.Ignored, a.Refused)})
}

// cycleClock is a cycle's time in milliseconds since its anchor.
type cycleClock struct {
	n *Node
	t timeline
}

func (c cycleClock) Now() int64 { return c.t.since(c.n.cfg.Now()) }

func (c cycleClock) At(millis int64, f func()) (stop func()) {
	timer := time.AfterFunc(time.Duration(millis-c.Now())*time.Millisecond, f)
	return func() { timer.Stop() }
}

// validators reaches the other validators: by gossip, directly where that does not bring a message a second time, and by
// asking peers for records.
type validators struct{ n *Node }

// Bounds of repetitions: the next one comes soon enough.
const (
	tellTime   = time.Second
	maxTelling = 8 // to one peer at a time
)

// Send spreads a message by gossip and, what others wait for or may have missed, past it to every connected validator:
// gossip takes a hop or a heartbeat longer, and forgets what it has seen only after minutes.
func (v validators) Send(ctx context.Context, message []byte) error {
	n := v.n
	for _, m := range n.misbehave(message) {
		fresh := n.first(m.bytes)
		packed := n.packing().Pack(m.bytes)
		if !fresh || m.only != nil || urgent(m.bytes) {
			for i, to := range n.validatorPeers() {
				if m.only == nil || m.only(i) {
					n.tell(to, packed)
				}
			}
		}
		if fresh && m.only == nil {
			if err := n.agree.Publish(ctx, packed); err != nil {
				return err
			}
		}
	}
	return nil
}

// urgent reports whether a round waits for a message.
func urgent(message []byte) bool {
	switch consensus.Kind(message[0]) {
	case consensus.KindProposal, consensus.KindVote, consensus.KindStatus:
		return true
	}
	return false
}

// Tell gives a message to one validator if it is connected.
func (v validators) Tell(to protocol.ID, message []byte) {
	if p, ok := v.n.host.PeerOf(to); ok {
		v.n.tell(p, v.n.packing().Pack(message))
	}
}

// tell brings a packed message to one peer behind the caller's back: one that hangs must not hold up what is for the others. With
// too many under way to it the message is dropped; it will be repeated.
func (n *Node) tell(to peer.ID, packed []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.telling[to] >= maxTelling {
		return
	}
	n.telling[to]++
	n.background.Go(func() {
		ctx, cancel := context.WithTimeout(n.running, tellTime)
		defer cancel()
		n.host.Request(ctx, to, tell, packed) // who does not answer is told again
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.telling[to]--; n.telling[to] == 0 {
			delete(n.telling, to)
		}
	})
}

// first reports whether a message was not sent before in this cycle, and remembers it.
func (n *Node) first(message []byte) bool {
	name := protocol.Hash(sha256.Sum256(message))
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.sent[name] {
		return false
	}
	n.sent[name] = true
	return true
}

// validatorPeers are the other validators of the snapshot that are connected.
func (n *Node) validatorPeers() []peer.ID {
	n.mu.Lock()
	s := n.snapshot
	n.mu.Unlock()
	var out []peer.ID
	for _, v := range s.Validators() {
		if p, ok := n.host.PeerOf(v.ID); ok && v.ID != n.cfg.ID {
			out = append(out, p)
		}
	}
	return out
}

// told takes what another validator repeats. It is judged as if it had come by gossip, and goes no further.
func (n *Node) told(_ context.Context, from peer.ID, packed []byte) ([]byte, error) {
	v, verdict := n.judge(from, packed)
	if verdict != gossip.Accept {
		return nil, p2p.ErrRefused
	}
	n.deliver(v)
	return nil, nil
}

// fetchers is how many peers are asked for a record at a time, fetchTime how long: one that is silent must not cost a round.
const (
	fetchers  = 3
	fetchTime = 500 * time.Millisecond
)

// Fetch asks validators, beginning with another one for each record.
func (v validators) Fetch(ctx context.Context, name consensus.Name) ([]byte, error) {
	peers := v.n.validatorPeers()
	if len(peers) == 0 {
		return nil, errors.New("no validator to ask")
	}
	first := int(name.Hash[0]) % len(peers)
	peers = append(peers[first:], peers[:first]...)
	for some := range slices.Chunk(peers, fetchers) {
		found := make(chan []byte, len(some))
		asking, cancel := context.WithCancel(ctx)
		for _, p := range some {
			go func() {
				packed, err := v.n.askFor(asking, p, name)
				var m consensus.Message
				if err == nil {
					packed, err = v.n.packing().Unpack(packed)
				}
				if err == nil {
					m, err = consensus.DecodeMessage(packed)
				}
				if err != nil || m.Kind != name.Kind {
					m.Bytes = nil
				}
				found <- m.Bytes
			}()
		}
		for range some {
			if b := <-found; len(b) > 0 {
				cancel()
				return b, nil
			}
		}
		cancel()
	}
	return nil, errors.New("no validator has it")
}

// held answers askRecord. Who asks for a list may know fewer commitments.
func (n *Node) held(_ context.Context, _ peer.ID, request []byte) ([]byte, error) {
	if len(request) != 1+len(protocol.Hash{}) {
		return nil, errors.New("not a name")
	}
	name := consensus.Name{Kind: consensus.Kind(request[0]), Hash: protocol.Hash(request[1:])}
	n.mu.Lock()
	runs := slices.Clone(n.current)
	n.mu.Unlock()
	for _, r := range runs {
		if b, ok := r.Held(name); ok {
			return n.packing().PackWhole(consensus.Message{Kind: name.Kind, Bytes: b}.Encode()), nil
		}
	}
	return nil, nil
}

// join subscribes to the topics and answers questions.
func (n *Node) join(ctx context.Context) error {
	var err error
	if n.gossip, err = gossip.New(ctx, n.host, gossip.Options{Topics: []string{topicCommit, topicAgree, topicHead}, MaxMessage: consensus.MaxMessage}); err != nil {
		return err
	}
	n.closers = append(n.closers, func() error { n.gossip.Close(); return nil })
	if n.commits, err = n.gossip.Join(topicCommit, n.judgeCommit); err != nil {
		return err
	}
	if n.agree, err = n.gossip.Join(topicAgree, n.judgeMessage); err != nil {
		return err
	}
	if n.headTopic, err = n.gossip.Join(topicHead, n.judgeHead); err != nil {
		return err
	}
	n.host.Handle(askRecord, n.held)
	n.host.Handle(tell, n.told)
	n.host.Handle(askHead, n.headOf)
	n.host.Handle(askPrepared, n.preparedOf)
	n.host.Handle(askCertificate, n.certificateOf)
	return nil
}

// judgeCommit decides about a commitment before it is relayed: what everybody must see as wrong is rejected, what depends
// on local knowledge is ignored.
func (n *Node) judgeCommit(_ context.Context, _ peer.ID, raw []byte) gossip.Verdict {
	c, err := protocol.DecodeCommitment(raw)
	if err != nil || c.Network != n.cfg.Network {
		return gossip.Reject
	}
	n.mu.Lock()
	s := n.snapshot
	n.mu.Unlock()
	p, ok := s.Find(c.Miner)
	if !ok || !p.Roles.Has(protocol.RoleMiner) || p.Group != c.Group {
		return gossip.Ignore // perhaps in another snapshot
	}
	if !c.VerifySig(p.Key) {
		return gossip.Reject
	}
	n.packing().Know(c)
	return gossip.Accept
}

// listenToTopics hands accepted messages to the cycle that is under way.
func (n *Node) listenToTopics(ctx context.Context) {
	n.background.Go(func() {
		for {
			m, err := n.commits.Next(ctx)
			if err != nil {
				return
			}
			if c, err := protocol.DecodeCommitment(m.Data); err == nil {
				n.takeCommit(ctx, m.From, c)
			}
		}
	})
	n.background.Go(func() {
		for {
			if _, err := n.headTopic.Next(ctx); err != nil { // judged is taken
				return
			}
		}
	})
	n.background.Go(func() {
		for {
			m, err := n.agree.Next(ctx)
			if err != nil {
				return
			}
			if v, ok := n.accepted(m.Data); ok && !m.Own {
				n.deliver(v)
			}
		}
	})
}

// takeCommit takes a commitment that a peer passed on.
func (n *Node) takeCommit(ctx context.Context, from peer.ID, c protocol.Commitment) {
	n.mu.Lock()
	k := n.custody
	n.mu.Unlock()
	if k != nil && c.Cycle == k.t.cycle {
		k.take(ctx, from, c)
	}
}

// deliver gives a checked message to whom it concerns.
func (n *Node) deliver(v consensus.Valid) {
	m := v.Message()
	switch m.Kind {
	case consensus.KindCertificate:
		if c, err := protocol.DecodeCertificate(m.Bytes); err == nil {
			n.learn(c)
			n.hears(c.Decision())
		}
	case consensus.KindList:
		if l, err := protocol.DecodeList(m.Bytes); err == nil {
			n.mu.Lock()
			k := n.custody
			n.mu.Unlock()
			if k != nil && l.Cycle == k.t.cycle {
				k.addList(l)
			}
		}
	}
	n.mu.Lock()
	runs := append([]*agreementRun(nil), n.current...)
	n.mu.Unlock()
	taken := false
	for _, r := range runs {
		err := r.ReceiveValid(v)
		if errors.Is(err, consensus.ErrBug) { // checked under the snapshot of the cycle before
			err = r.Receive(m.Encode())
		}
		taken = taken || err == nil
	}
	if !taken && (m.Kind == consensus.KindMergeVector || m.Kind == consensus.KindProposal || m.Kind == consensus.KindVote || m.Kind == consensus.KindList ||
		m.Kind == consensus.KindStatus || m.Kind == consensus.KindLock) {
		n.mu.Lock()
		if len(n.early) < earlyMessages {
			n.early = append(n.early, v)
		}
		n.mu.Unlock()
	}
}

// publishList sends a validator's list to all.
func (n *Node) publishList(ctx context.Context, l protocol.List) error {
	m, err := consensus.NewMessage(l)
	if err != nil {
		return err
	}
	return validators{n}.Send(ctx, m.Encode())
}

// openJournal opens the write-ahead log of what this validator signed.
func (n *Node) openJournal() error {
	w, records, err := runner.OpenWAL(filepath.Join(n.cfg.Dir, "journal"), func([]byte) bool { return true })
	if err != nil {
		return err
	}
	n.wal, n.restored = w, records
	n.closers = append(n.closers, w.Close)
	return nil
}
