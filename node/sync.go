package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/libp2p/go-libp2p/core/peer"

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
	last, err := n.lastCertificate()
	if err != nil {
		return err
	}
	link := n.genesis.Checkpoint
	if last != nil {
		link, n.parent, n.phiCycle = last.Proposal.Value.Merge.Next, last.Decision(), last.Cycle+1
	}
	if err := n.moveTo(ctx, link); err != nil {
		return err
	}
	if err := n.join(ctx); err != nil {
		return err
	}
	if n.cfg.Gateway != "" {
		if err := n.serveGateway(); err != nil {
			return err
		}
	}
	n.event(Event{Kind: Started, Text: fmt.Sprint(n.Addrs())})
	return nil
}

// moveTo makes a checkpoint the current one.
func (n *Node) moveTo(ctx context.Context, l protocol.Link) error {
	if n.phi != nil && n.phi.Link == l {
		return nil
	}
	dir, err := n.content.checkpoint(ctx, l)
	if err != nil {
		return err
	}
	if !n.cfg.Roles.Has(protocol.RoleMiner) && !n.cfg.Roles.Has(protocol.RoleValidator) {
		n.phi = &local.Phi{Link: l} // held and served, not computed with
		return nil
	}
	p, err := n.load(dir)
	if err != nil {
		return err
	}
	n.phi = p
	return nil
}

// enter begins a cycle: the snapshot's registry counts from now on.
func (n *Node) enter(t timeline, s protocol.Snapshot) {
	registry := map[protocol.ID]protocol.Key{}
	for _, p := range s.Participants {
		registry[p.ID] = p.Key
	}
	n.mu.Lock()
	n.registry, n.snapshot, n.custody, n.early = registry, s, nil, nil
	n.current = nil // each is closed by follow
	if n.cfg.Roles.Has(protocol.RoleValidator) {
		n.custody = n.newCustody(t, s, n.phi.Link)
	}
	n.mu.Unlock()
	n.host.Refresh()
}

// learn keeps a certificate of a merge if it is valid under the current snapshot.
func (n *Node) learn(c protocol.Certificate) {
	if c.Network != n.cfg.Network || c.Instance != protocol.InstanceM || c.Null() {
		return
	}
	n.mu.Lock()
	_, known := n.certificates[c.Cycle]
	s := n.snapshot
	n.mu.Unlock()
	if known || c.Verify(s) != nil {
		return
	}
	n.keepCertificate(c)
}

// keepCertificate writes a verified certificate to the disk and wakes who waits for it.
func (n *Node) keepCertificate(c protocol.Certificate) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.certificates[c.Cycle]; ok {
		return
	}
	n.certificates[c.Cycle] = c
	raw, err := protocol.Encode(c)
	if err == nil {
		path := n.certificateFile(c.Cycle)
		if err = os.WriteFile(path+".new", raw, 0o644); err == nil {
			err = os.Rename(path+".new", path)
		}
	}
	if err != nil {
		n.event(Event{Kind: Trouble, Cycle: c.Cycle, Text: "keep certificate: " + err.Error()})
	}
	close(n.learned)
	n.learned = make(chan struct{})
}

func (n *Node) certificateFile(cycle uint64) string {
	return filepath.Join(n.cfg.Dir, "certificates", fmt.Sprintf("%08d.cbor", cycle))
}

// lastCertificate reads the certificates kept before a restart and returns the last.
func (n *Node) lastCertificate() (*protocol.Certificate, error) {
	dir := filepath.Join(n.cfg.Dir, "certificates")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.cbor"))
	if err != nil {
		return nil, err
	}
	var last *protocol.Certificate
	for _, f := range files { // sorted by cycle
		raw, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		c, err := protocol.DecodeCertificate(raw)
		if err != nil || c.Null() || c.Proposal.Value.Merge == nil {
			return nil, fmt.Errorf("%s is no certificate of a merge: %w", f, err)
		}
		n.certificates[c.Cycle] = c
		last = &c
	}
	return last, nil
}

// certificateOf answers askCertificate.
func (n *Node) certificateOf(_ context.Context, _ peer.ID, request []byte) ([]byte, error) {
	if len(request) != 8 {
		return nil, errors.New("not a cycle")
	}
	raw, err := os.ReadFile(n.certificateFile(binary.LittleEndian.Uint64(request)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return raw, err
}

// catchUp brings a node that missed cycles to the checkpoint of this one: it asks peers for the certificate of every
// cycle since its own, verifies each against the chain's snapshot of that cycle, and fetches only the last checkpoint's
// missing blocks. A cycle without certificate was carried.
func (n *Node) catchUp(ctx context.Context, t timeline) error {
	var last *protocol.Certificate
	for c := n.phiCycle; c < t.cycle; c++ {
		n.mu.Lock()
		known, ok := n.certificates[c]
		n.mu.Unlock()
		if !ok {
			var err error
			if known, ok, err = n.askCertificate(ctx, c); err != nil {
				return err
			}
		}
		if ok {
			last = &known
		}
	}
	n.phiCycle = t.cycle
	if last == nil {
		return nil
	}
	n.parent = last.Decision()
	return n.moveTo(ctx, last.Proposal.Value.Merge.Next)
}

func (n *Node) askCertificate(ctx context.Context, cycle uint64) (protocol.Certificate, bool, error) {
	s, err := n.on.Client.Snapshot(ctx, startHeight(n.schedule(), cycle))
	if err != nil {
		return protocol.Certificate{}, false, fmt.Errorf("snapshot of cycle %d: %w", cycle, err)
	}
	for _, p := range n.host.Peers() {
		raw, err := n.host.Request(ctx, p.Peer, askCertificate, binary.LittleEndian.AppendUint64(nil, cycle))
		if err != nil || len(raw) == 0 {
			continue
		}
		c, err := protocol.DecodeCertificate(raw)
		if err != nil || c.Network != n.cfg.Network || c.Cycle != cycle || c.Instance != protocol.InstanceM || c.Null() || c.Verify(s) != nil {
			continue
		}
		n.keepCertificate(c)
		return c, true, nil
	}
	return protocol.Certificate{}, false, nil
}

// advance ends a cycle: with a certificate the node moves to its checkpoint, without one it carries its own.
func (n *Node) advance(ctx context.Context, t timeline, out consensus.Output) {
	if out.Outcome == consensus.Certified {
		n.keepCertificate(*out.Certificate)
	}
	c, ok := n.awaitCertificate(ctx, t)
	e := Event{Kind: Advanced, Cycle: t.cycle, Certified: ok, Alpha: protocol.Rational{Den: 1}}
	if ok {
		m := c.Proposal.Value.Merge
		if err := n.moveTo(ctx, m.Next); err != nil {
			n.trouble(t.cycle, err) // the next cycle's catch-up tries again
		} else {
			n.parent, n.phiCycle = c.Decision(), t.cycle+1
		}
		e.Alpha = n.genesis.Params.AlphaGrid[m.Alpha]
	}
	e.Next = n.phi.Link
	n.event(e)
}

// awaitCertificate waits for the cycle's certificate, until a round after D_M.
func (n *Node) awaitCertificate(ctx context.Context, t timeline) (protocol.Certificate, bool) {
	ctx, cancel := context.WithDeadline(ctx, t.at(t.M).Add(n.on.Clock.Period))
	defer cancel()
	for {
		n.mu.Lock()
		c, ok := n.certificates[t.cycle]
		learned := n.learned
		n.mu.Unlock()
		if ok {
			return c, true
		}
		select {
		case <-learned:
		case <-ctx.Done():
			return c, false
		}
	}
}
