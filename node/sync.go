package node

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
)

// Start fetches what the node computes with: the genesis by its CID, the datasets its roles need, and the checkpoint of
// the genesis, or the last one it held before a restart. It needs peers, not the chain.
func (n *Node) Start(ctx context.Context) error {
	raw, err := n.content.Block(ctx, n.cfg.Network.Cid())
	if err != nil {
		return fmt.Errorf("genesis %s: %w", n.cfg.Network, err)
	}
	if n.genesis, err = protocol.DecodeGenesis(raw); err != nil {
		return fmt.Errorf("genesis %s: %w", n.cfg.Network, err)
	}
	if err := n.pinGenesis(ctx); err != nil {
		return err
	}
	sets, err := n.datasets(ctx)
	if err != nil {
		return err
	}
	if n.local, err = local.NewNetwork(n.genesis, sets); err != nil {
		return err
	}
	if n.cfg.Roles.Has(protocol.RoleValidator) {
		if err := n.openJournal(); err != nil {
			return err
		}
	}
	if n.history, err = openHistory(filepath.Join(n.cfg.Dir, "certificates")); err != nil {
		return err
	}
	if err := n.recollect(); err != nil {
		return err
	}
	if err := n.join(ctx); err != nil {
		return err
	}
	if last := n.history.last(); last != nil {
		n.parent, n.phiCycle, n.last = last.Decision(), last.Cycle+1, last
		err = n.moveTo(ctx, last.Proposal.Value.Merge.Next)
	} else if !n.late(ctx) {
		err = n.moveTo(ctx, n.genesis.Checkpoint)
	}
	if err != nil {
		return err
	}
	n.showHead()
	if n.cfg.Gateway != "" {
		if err := n.serveGateway(ctx); err != nil {
			return err
		}
	}
	n.event(Event{Kind: Started, Text: fmt.Sprint(n.Addrs())})
	return nil
}

// late reports whether a peer says that the network has left its first checkpoint behind. Then that is not fetched: Run
// finds out what is true, when it has the chain to verify it, and fetches what stands now.
func (n *Node) late(ctx context.Context) bool {
	return n.ask(ctx, askHead, nil, func(raw []byte) bool {
		h, err := protocol.DecodeHead(raw)
		return err == nil && h.Network == n.cfg.Network && h.Certificate != nil
	})
}

// moveTo makes a checkpoint the current one.
func (n *Node) moveTo(ctx context.Context, l protocol.Link) error {
	if n.phi != nil && n.phi.Link == l {
		return nil
	}
	if err := n.pinCheckpoint(ctx, l); err != nil {
		return err
	}
	dir, err := n.content.checkpoint(ctx, l)
	if err != nil {
		return err
	}
	if n.finder != nil {
		n.finder.Announce(append(n.texts(), l.Cid())...) // checkpoints before it are for peers that ask
	}
	if !n.cfg.Roles.Has(protocol.RoleMiner) && !n.cfg.Roles.Has(protocol.RoleValidator) {
		n.phi = &local.Phi{Link: l} // held and served, not computed with
		return nil
	}
	p, err := n.load(l, dir)
	if err != nil {
		return err
	}
	n.phi = p
	n.mu.Lock()
	n.payload = payloadLimit(n.local, p)
	n.mu.Unlock()
	return nil
}

// payloadLimit bounds the payload of one delta: the most that any group's takes in the network's codec.
func payloadLimit(n *local.Network, p *local.Phi) uint64 {
	limit := uint64(0)
	for _, g := range n.Genesis.Groups {
		if want, err := n.Expect(p, g.Name); err == nil {
			if most, err := want.MaxPayload(); err == nil {
				limit = max(limit, most)
			}
		}
	}
	return limit
}

// enter begins a cycle: the snapshot's registry counts from now on.
func (n *Node) enter(t timeline, s protocol.Snapshot) {
	registry := map[protocol.ID]protocol.Key{}
	for _, p := range s.Participants {
		registry[p.ID] = p.Key
	}
	n.mu.Lock()
	over := n.current
	n.registry, n.snapshot, n.entered, n.custody, n.early = registry, s, t.cycle, nil, nil
	n.checker = consensus.NewChecker(n.cfg.Network, s)
	n.current, n.bound = nil, false // each is closed by follow
	n.announced = map[protocol.Hash]bool{}
	n.proofs = slices.DeleteFunc(n.proofs, func(p protocol.EquivocationProof) bool { _, err := p.Verify(s); return err != nil })
	n.newCodec(t.cycle, s)
	n.sent, n.checked = map[protocol.Hash]bool{}, map[protocol.Hash]consensus.Valid{}
	n.relayed, n.pulled = map[protocol.Hash]bool{}, map[protocol.ID]int{}
	if n.cfg.Roles.Has(protocol.RoleValidator) {
		n.custody = n.newCustody(t, s)
	}
	n.mu.Unlock()
	n.harvest(over)
	n.heads.only(registry)
	n.host.Refresh()
}

// enterLate prepares for the cycle that is under way, in which this node takes no part: it can then know who its peers
// are, and fetch what it lacks before the next cycle begins.
func (n *Node) enterLate(ctx context.Context, cycle uint64) error {
	s, err := n.on.Client.Snapshot(ctx, startHeight(n.schedule(), cycle))
	if err != nil {
		return fmt.Errorf("snapshot of cycle %d: %w", cycle, err)
	}
	registry := map[protocol.ID]protocol.Key{}
	for _, p := range s.Participants {
		registry[p.ID] = p.Key
	}
	n.mu.Lock()
	n.registry, n.snapshot, n.entered = registry, s, cycle
	n.checker = consensus.NewChecker(n.cfg.Network, s)
	n.newCodec(cycle, s)
	n.mu.Unlock()
	n.host.Refresh()
	if err := n.catchUp(ctx, cycle); err != nil {
		return err
	}
	_, err = n.exclude(ctx, s)
	return err
}

// learn keeps a certificate of the current cycle if it is valid under its snapshot.
func (n *Node) learn(c protocol.Certificate) {
	n.mu.Lock()
	s, cycle := n.snapshot, n.entered
	n.mu.Unlock()
	if c.Network != n.cfg.Network || c.Cycle != cycle || c.Verify(s) != nil {
		return
	}
	n.keepCertificate(context.Background(), c)
}

// past verifies certificates of cycles that are over, each against the chain's snapshot of its cycle.
type past struct {
	n         *Node
	snapshots map[uint64]protocol.Snapshot
}

func (n *Node) past() *past { return &past{n, map[uint64]protocol.Snapshot{}} }

// verify checks a certificate that a peer sent. The error of a chain that does not answer is returned like that of a bad
// certificate: neither can be believed.
func (p *past) verify(ctx context.Context, c protocol.Certificate) error {
	if c.Network != p.n.cfg.Network {
		return errors.New("a certificate of another network")
	}
	s, err := p.snapshot(ctx, c.Cycle)
	if err != nil {
		return err
	}
	merge := c.Parent
	if c.Instance == protocol.InstanceM {
		w, err := p.find(ctx)(c.Parent)
		if err != nil {
			return err
		}
		merge = w.Parent
	}
	out, err := p.offenders(ctx, merge)
	if err != nil {
		return err
	}
	return c.Verify(without(s, out))
}

// snapshot is the chain's of a cycle.
func (p *past) snapshot(ctx context.Context, cycle uint64) (protocol.Snapshot, error) {
	if s, ok := p.snapshots[cycle]; ok {
		return s, nil
	}
	s, err := p.n.on.Client.Snapshot(ctx, startHeight(p.n.schedule(), cycle))
	if err != nil {
		return s, fmt.Errorf("snapshot of cycle %d: %w", cycle, err)
	}
	p.snapshots[cycle] = s
	return s, nil
}

// find returns the certificate of a decision, from a peer if it is not here.
func (p *past) find(ctx context.Context) func(protocol.Hash) (protocol.Certificate, error) {
	return func(decision protocol.Hash) (protocol.Certificate, error) {
		if c, err := p.n.history.of(decision); err == nil {
			return c, nil
		}
		var found protocol.Certificate
		ok := p.n.ask(ctx, askCertificate, decision[:], func(raw []byte) bool {
			c, err := protocol.DecodeCertificate(raw)
			if err != nil || c.Decision() != decision || p.verify(ctx, c) != nil {
				return false
			}
			found = c
			return true
		})
		if !ok {
			if x, ok := p.prepared(ctx, decision); ok {
				return x.certificate(), nil
			}
			return found, errNoCertificate
		}
		p.n.keepCertificate(ctx, found)
		return found, nil
	}
}

// of returns the certificate of a slot, from a peer if it is not here.
func (p *past) of(ctx context.Context, s slot) (protocol.Certificate, bool) {
	if c, ok, _ := p.n.history.at(s); ok {
		return c, true
	}
	var found protocol.Certificate
	request := append(binary.LittleEndian.AppendUint64(nil, s.cycle), byte(s.instance))
	ok := p.n.ask(ctx, askCertificate, request, func(raw []byte) bool {
		c, err := protocol.DecodeCertificate(raw)
		if err != nil || c.Cycle != s.cycle || c.Instance != s.instance || p.verify(ctx, c) != nil {
			return false
		}
		found = c
		return true
	})
	if ok {
		p.n.keepCertificate(ctx, found)
	}
	return found, ok
}

// catchUp brings a node that missed something to the checkpoint that begins a cycle. It asks peers for their Heads, takes
// the certificates that these name, verifies the latest against the chain's snapshot of its cycle, and so every one that
// it rests on, back to genesis or to the decision that this node has reached; then it fetches the blocks of the
// checkpoint that it lacks. What the Heads say beyond that is not believed.
//
// A cycle between two certified ones is skipped by the word of the quorum that went on without it. Of one after the last
// a null certificate is asked for, a quorum's word that nothing was certified; without, it may yet be, and the node says
// so and carries its checkpoint.
func (n *Node) catchUp(ctx context.Context, cycle uint64) error {
	if n.phi != nil && n.phiCycle >= cycle {
		return nil
	}
	p := n.past()
	best, err := n.latest(ctx, p, cycle)
	if err == nil && best != nil {
		err = n.adopt(ctx, p, *best)
	}
	if err == nil && n.phi == nil {
		err = n.moveTo(ctx, n.genesis.Checkpoint)
	}
	if err != nil {
		return err
	}
	first := n.phiCycle
	if cycle > maxUnresolved {
		first = max(first, cycle-maxUnresolved)
	}
	for c := first; c < cycle; c++ {
		if err := n.resolve(ctx, p, c); err != nil {
			return err
		}
	}
	if n.after() < cycle {
		if err := n.buildOn(ctx, p, cycle); err != nil {
			n.trouble(cycle, err)
		}
	}
	n.phiCycle = cycle
	return nil
}

// latest returns the certificate of the latest merge before a cycle and after this node's own that a Head names, nil if
// there is none. It is verified by itself; what it rests on is not.
func (n *Node) latest(ctx context.Context, p *past, cycle uint64) (*protocol.Certificate, error) {
	s, err := n.on.Client.Snapshot(ctx, startHeight(n.schedule(), cycle))
	if err != nil {
		return nil, fmt.Errorf("snapshot of cycle %d: %w", cycle, err)
	}
	stake := map[protocol.Link]uint64{}
	latest := map[protocol.Link]uint64{}
	count := func(h protocol.Head) {
		if h.Certificate == nil || h.Cycle > cycle {
			return
		}
		v, _ := s.Find(h.ID)
		stake[*h.Certificate] += v.Stake
		latest[*h.Certificate] = max(latest[*h.Certificate], h.Cycle)
	}
	heard := map[protocol.ID]bool{}
	for _, h := range n.heads.list() {
		heard[h.ID] = true
		count(h)
	}
	n.ask(ctx, askHead, nil, func(raw []byte) bool {
		h, err := protocol.DecodeHead(raw)
		if err == nil && h.Network == n.cfg.Network && !heard[h.ID] {
			if who, ok := s.Find(h.ID); ok && h.VerifySig(who.Key) {
				heard[h.ID] = true
				count(h)
			}
		}
		return false // all of them
	})
	candidates := slices.SortedFunc(maps.Keys(latest), func(a, b protocol.Link) int {
		return cmp.Or(cmp.Compare(latest[b], latest[a]), cmp.Compare(stake[b], stake[a]), a.Compare(b))
	})
	var best *protocol.Certificate
	better := func(c protocol.Certificate) bool {
		return !c.Null() && c.Instance == protocol.InstanceM && c.Cycle < cycle && (best == nil || c.Cycle > best.Cycle) &&
			(n.phi == nil || c.Cycle >= n.after())
	}
	if c := n.history.last(); c != nil && better(*c) {
		best = c
	}
	for _, l := range candidates[:min(len(candidates), maxCandidates)] {
		c, err := n.certificateAt(ctx, l)
		if err == nil && better(c) {
			if err = p.verify(ctx, c); err == nil {
				best = &c
			}
		}
		if err != nil && ctx.Err() == nil {
			n.trouble(cycle, fmt.Errorf("certificate %s that a head names: %w", l, err))
		}
	}
	if best != nil {
		n.keepCertificate(ctx, *best)
	}
	return best, ctx.Err()
}

// certificateTime bounds the fetch of one certificate that a Head names: who names what nobody has must not hold up the
// others.
const certificateTime = 5 * time.Second

func (n *Node) certificateAt(ctx context.Context, l protocol.Link) (protocol.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, certificateTime)
	defer cancel()
	raw, err := n.content.Block(ctx, l.Cid())
	if err != nil {
		return protocol.Certificate{}, err
	}
	return protocol.DecodeCertificate(raw)
}

// adopt moves to the checkpoint of a verified certificate if it rests on genesis.
func (n *Node) adopt(ctx context.Context, p *past, c protocol.Certificate) error {
	met, err := lineage(c, n.certified(), p.find(ctx))
	if err != nil {
		return err
	}
	if !met { // both are certified; more stake stands behind the one that others went on from
		n.trouble(c.Cycle, fmt.Errorf("%w: the network went on without the last decision of this node; following cycle %d", errFork, c.Cycle))
	}
	if err := n.moveTo(ctx, c.Proposal.Value.Merge.Next); err != nil {
		return err
	}
	n.parent, n.phiCycle, n.last = c.Decision(), c.Cycle+1, &c
	n.showDecision(ctx, c)
	return nil
}

// resolve finds out what became of a cycle after the last merge that this node knows: a merge after all, or a null
// certificate of it or of the weights under it. Without either it stays open.
func (n *Node) resolve(ctx context.Context, p *past, cycle uint64) error {
	m, ok := p.of(ctx, slot{cycle, protocol.InstanceM})
	if ok && !m.Null() && cycle >= n.after() {
		return n.adopt(ctx, p, m)
	}
	null := ok && m.Null() && n.restsHere(ctx, p, m.Parent, cycle)
	if !null {
		w, ok := p.of(ctx, slot{cycle, protocol.InstanceW})
		null = ok && w.Null()
	}
	n.event(Event{Kind: Carried, Cycle: cycle, Certified: null, Next: n.phi.Link})
	return nil
}

// restsHere reports whether a decision is on the weights of a cycle under this node's own last decision.
func (n *Node) restsHere(ctx context.Context, p *past, decision protocol.Hash, cycle uint64) bool {
	w, err := p.find(ctx)(decision)
	return err == nil && !w.Null() && w.Instance == protocol.InstanceW && w.Cycle == cycle && w.Parent == n.parent
}

// advance ends a cycle: with a certificate the node moves to its checkpoint, without one it carries its own.
func (n *Node) advance(ctx context.Context, t timeline, out consensus.Output) {
	if out.Certificate != nil {
		n.learn(*out.Certificate)
	}
	c, ok := n.awaitCertificate(ctx, t)
	e := Event{Kind: Advanced, Cycle: t.cycle, Certified: ok, Alpha: protocol.Rational{Den: 1}}
	if ok {
		if err := n.adopt(ctx, n.past(), c); err != nil {
			n.trouble(t.cycle, err) // the next cycle's catch-up tries again
		}
		e.Alpha, e.Excluded = n.genesis.Params.AlphaGrid[c.Proposal.Value.Merge.Alpha], c.Proposal.Value.Merge.Excluded
	}
	if n.phi != nil {
		e.Next = n.phi.Link
	}
	n.showHead()
	n.event(e)
}

// awaitCertificate waits for the certificate of the cycle's merge, until a round after D_M, or until a null certificate
// says that there will be none.
func (n *Node) awaitCertificate(ctx context.Context, t timeline) (protocol.Certificate, bool) {
	ctx, cancel := context.WithDeadline(ctx, t.at(t.M).Add(n.on.Clock.Period))
	defer cancel()
	for {
		c, ok, changed := n.history.at(slot{t.cycle, protocol.InstanceM})
		if ok {
			return c, !c.Null()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return c, false
		}
	}
}
