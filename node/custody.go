package node

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/blockzero-net/bzd/content"
	"github.com/blockzero-net/bzd/content/blockstore"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// custody is what a validator knows of a cycle's commitments: what it saw, when, and whether it holds every block. It
// fetches while the window is open and remembers everything else for the list.
type custody struct {
	n        *Node
	t        timeline
	snapshot protocol.Snapshot

	mu    sync.Mutex
	seen  map[protocol.ID]*claim
	lists map[protocol.ID]protocol.List
	fetch sync.WaitGroup
}

// claim is one miner's commitment. A second, different one makes both void.
type claim struct {
	commitment protocol.Commitment
	bucket     uint32 // whole seconds from the anchor to the first sight
	late       bool
	held       bool
	manifest   *protocol.Manifest
	reason     string                      // why it cannot be taken
	proof      *protocol.EquivocationProof // of a second commitment
}

func (n *Node) newCustody(t timeline, s protocol.Snapshot) *custody {
	return &custody{n: n, t: t, snapshot: s, seen: map[protocol.ID]*claim{}, lists: map[protocol.ID]protocol.List{}}
}

// take takes a commitment whose signature was verified, and starts fetching what it names, first from the peer that passed
// it on: that is its miner, unless they are not connected.
func (c *custody) take(ctx context.Context, from peer.ID, x protocol.Commitment) {
	since := c.t.since(c.n.cfg.Now())
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.seen[x.Miner]; ok {
		if old.commitment.Manifest != x.Manifest && old.proof == nil {
			if p, err := protocol.NewEquivocationProof(old.commitment, x); err == nil {
				old.proof, old.reason = &p, "two different commitments"
			}
		}
		return
	}
	k := &claim{commitment: x, bucket: uint32(max(0, since) / 1000), late: since > int64(c.t.Commit)}
	c.seen[x.Miner] = k
	if k.late {
		k.reason = fmt.Sprintf("committed %d ms after the deadline", since-int64(c.t.Commit))
		return
	}
	c.fetch.Go(func() {
		deadline := c.t.at(c.t.Custody)
		ctx, cancel := context.WithDeadline(ctx, deadline)
		defer cancel()
		m, reason := c.hold(ctx, from, x)
		c.mu.Lock()
		defer c.mu.Unlock()
		k.manifest, k.held = m, reason == ""
		if k.reason == "" {
			k.reason = reason
		}
	})
}

// hold fetches a commitment's manifest and every sealed block, and says why it could not.
func (c *custody) hold(ctx context.Context, from peer.ID, x protocol.Commitment) (*protocol.Manifest, string) {
	raw, err := c.n.content.GetFrom(ctx, from, x.Manifest.Cid())
	if err != nil {
		return nil, "the manifest did not arrive in time"
	}
	m, err := protocol.DecodeManifest(raw.RawData())
	if err != nil {
		return nil, err.Error()
	}
	if err := content.Match(x, m); err != nil {
		return nil, err.Error()
	}
	if err := content.Check(m, c.n.payloadLimit()); err != nil {
		return nil, err.Error()
	}
	if err := c.n.store.Pin(ctx, blockstore.Pin{Owner: owner(pinCycle, "%d/%s", c.t.cycle, x.Miner),
		Blocks: append(content.Segments(m), x.Manifest.Cid())}); err != nil {
		return nil, err.Error()
	}
	if err := c.n.content.Blocks(ctx, from, content.Segments(m)); err != nil {
		return &m, "the sealed blocks did not arrive in time"
	}
	return &m, ""
}

// list is the validator's LIST: what it saw, and what it held when custody closed. What it says is held is on the disk.
func (c *custody) list() protocol.List {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.n.store.Sync(); err != nil {
		c.n.trouble(c.t.cycle, err)
		for _, k := range c.seen {
			k.held = false
		}
	}
	l := protocol.List{Version: protocol.Version, Network: c.n.cfg.Network, Cycle: c.t.cycle, Validator: c.n.cfg.ID}
	for _, k := range c.seen {
		state := protocol.ListIncomplete
		switch {
		case k.late:
			state = protocol.ListLate
		case k.held:
			state = protocol.ListHeld
		}
		l.Entries = append(l.Entries, protocol.ListEntry{Miner: k.commitment.Miner, Group: k.commitment.Group,
			Manifest: k.commitment.Manifest, Bucket: k.bucket, State: state})
	}
	slices.SortFunc(l.Entries, protocol.ListEntry.Compare)
	return l
}

// addList takes another validator's list, whose signature was verified. The first of each counts.
func (c *custody) addList(l protocol.List) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.lists[l.Validator]; !ok {
		c.lists[l.Validator] = l
	}
}

// verdict is what the lists say of one miner: the manifest that counts, or the status and reason why none does.
func (c *custody) verdict(miner protocol.ID) (manifest protocol.Link, status protocol.Status, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	own := ""
	group := ""
	if p, ok := c.snapshot.Find(miner); ok {
		group = p.Group
	}
	if k := c.seen[miner]; k != nil {
		own = k.reason
		if k.proof != nil {
			return protocol.Link{}, protocol.StatusInvalid, own
		}
	}
	manifest, status = timely(c.snapshot, slices.Collect(maps.Values(c.lists)), miner, group)
	switch status {
	case protocol.StatusOK:
		return manifest, status, ""
	case protocol.StatusOffline:
		return protocol.Link{}, status, "no commitment"
	}
	return protocol.Link{}, status, own
}

// proofs are those of two commitments.
func (c *custody) proofs() (out []protocol.EquivocationProof) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.seen {
		if k.proof != nil {
			out = append(out, *k.proof)
		}
	}
	return out
}

// blocksIn reads blocks that must be here, fetching what other validators hold if it is not.
func (n *Node) blocksIn(ctx context.Context) content.Get {
	return func(c cid.Cid) ([]byte, error) { return n.content.Block(ctx, c) }
}
