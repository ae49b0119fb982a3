package node

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/blockzero-net/bzd/content/blockstore"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/p2p"
	"github.com/blockzero-net/bzd/p2p/gossip"
)

// Questions about what was decided. Both are answered to everybody: who comes late has no binding that counts yet.
var (
	// askHead is answered with a Head: the node's own, or the latest that it heard.
	askHead = p2p.Protocol{Name: "head", MaxRequest: 0, MaxResponse: 1 << 10}
	// askCertificate is answered with a certificate, null or not: that of a decision, 32 bytes, or of a cycle, 8 bytes
	// little endian, and instance, one byte.
	askCertificate = p2p.Protocol{Name: "certificate", MaxRequest: len(protocol.Hash{}), MaxResponse: 1 << 20}
)

// Bounds of what a node asks when it comes late.
const (
	maxAsked      = 16 // peers asked at once
	maxCandidates = 8  // certificates that Heads name and that are looked at
	maxUnresolved = 8  // cycles after the last merge of which a certificate is asked for
)

// askTime is how long a question to several peers takes at most: one that stays silent must not hold up a cycle.
const askTime = 3 * time.Second

// heads are the Heads that a node heard of, the latest of each validator. Its own is among them once it has one.
type heads struct {
	mu     sync.Mutex
	latest map[protocol.ID]protocol.Head
	own    []byte
}

// take keeps a Head whose signature was verified; it reports whether it is news.
func (h *heads) take(x protocol.Head) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if old, ok := h.latest[x.ID]; ok && old.Cycle >= x.Cycle {
		return false
	}
	h.latest[x.ID] = x
	return true
}

// only forgets the Heads of everybody else.
func (h *heads) only(registered map[protocol.ID]protocol.Key) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id := range h.latest {
		if _, ok := registered[id]; !ok {
			delete(h.latest, id)
		}
	}
}

func (h *heads) list() []protocol.Head {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []protocol.Head
	for _, x := range h.latest {
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b protocol.Head) int { return cmp.Or(cmp.Compare(b.Cycle, a.Cycle), a.ID.Compare(b.ID)) })
	return out
}

// answer is what askHead is answered with, nil if nothing is known.
func (h *heads) answer() []byte {
	h.mu.Lock()
	own := h.own
	h.mu.Unlock()
	if own != nil {
		return own
	}
	for _, x := range h.list() {
		if raw, err := protocol.Encode(x); err == nil {
			return raw
		}
	}
	return nil
}

// showHead signs the node's Head and, while the node runs, spreads it.
func (n *Node) showHead() {
	if n.cfg.Key == nil || n.phi == nil {
		return
	}
	h := protocol.Head{Version: protocol.Version, Network: n.cfg.Network, Cycle: n.phiCycle, Checkpoint: n.phi.Link, ID: n.cfg.ID}
	if n.last != nil {
		l := n.last.Digest().Link()
		h.Certificate = &l
	}
	raw, err := []byte(nil), h.Sign(n.cfg.Key)
	if err == nil {
		raw, err = protocol.Encode(h)
	}
	if err != nil {
		n.trouble(n.phiCycle, fmt.Errorf("own head: %w", err))
		return
	}
	n.heads.mu.Lock()
	n.heads.own = raw
	n.heads.mu.Unlock()
	if ctx := n.running; ctx != nil && ctx.Err() == nil && n.cfg.Roles.Has(protocol.RoleValidator) {
		// Its own topic refuses what is no news, and the Head of a validator that is not in this snapshot.
		if err := n.headTopic.Publish(ctx, raw); err != nil && ctx.Err() == nil && !errors.Is(err, gossip.ErrInvalid) && !errors.Is(err, gossip.ErrClosed) {
			n.trouble(n.phiCycle, fmt.Errorf("own head: %w", err))
		}
	}
}

// judgeHead decides about a Head before it is relayed. Only validators' are, and of each one per cycle.
func (n *Node) judgeHead(_ context.Context, _ peer.ID, raw []byte) gossip.Verdict {
	h, err := protocol.DecodeHead(raw)
	if err != nil || h.Network != n.cfg.Network {
		return gossip.Reject
	}
	n.mu.Lock()
	s, cycle := n.snapshot, n.entered
	n.mu.Unlock()
	switch err := s.Check(h, protocol.RoleValidator); {
	case errors.Is(err, protocol.ErrSignature):
		return gossip.Reject
	case err != nil || h.Cycle > cycle+1 || !n.heads.take(h):
		return gossip.Ignore
	}
	return gossip.Accept
}

// headOf answers askHead.
func (n *Node) headOf(context.Context, peer.ID, []byte) ([]byte, error) {
	raw := n.heads.answer()
	if raw == nil {
		return nil, p2p.ErrNotFound
	}
	return raw, nil
}

// certificateOf answers askCertificate.
func (n *Node) certificateOf(_ context.Context, _ peer.ID, request []byte) ([]byte, error) {
	var raw []byte
	var err error
	switch len(request) {
	case len(protocol.Hash{}):
		n.history.mu.Lock()
		s, ok := n.history.slots[protocol.Hash(request)]
		n.history.mu.Unlock()
		if !ok {
			return nil, p2p.ErrNotFound
		}
		raw, err = n.history.raw(s)
	case 9:
		raw, err = n.history.raw(slot{binary.LittleEndian.Uint64(request), protocol.Instance(request[8])})
	default:
		return nil, p2p.ErrRefused
	}
	if err == nil && raw == nil {
		err = p2p.ErrNotFound
	}
	return raw, err
}

// ask puts a question to peers, those with a binding first, several at once, and returns when one answer is accepted or
// all were heard. accept is called by one goroutine at a time; a peer's answer is hostile until it is.
func (n *Node) ask(ctx context.Context, p p2p.Protocol, request []byte, accept func([]byte) bool) bool {
	peers := n.host.Peers()
	slices.SortStableFunc(peers, func(a, b p2p.Peer) int {
		rank := func(x p2p.Peer) int {
			if x.Standing == p2p.Bound {
				return 0
			}
			return 1
		}
		return cmp.Compare(rank(a), rank(b))
	})
	peers = peers[:min(len(peers), maxAsked)]
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	answers := make(chan []byte, len(peers))
	for _, to := range peers {
		go func() {
			raw, err := n.host.Request(ctx, to.Peer, p, request)
			if err != nil {
				raw = nil
			}
			answers <- raw
		}()
	}
	for range peers {
		if raw := <-answers; len(raw) > 0 && accept(raw) {
			return true
		}
	}
	return false
}

// keepCertificate keeps a verified certificate, as a file and as a block that peers can fetch by the CID in a Head.
func (n *Node) keepCertificate(ctx context.Context, c protocol.Certificate) {
	fresh, err := n.history.keep(c)
	if fresh && c.Instance == protocol.InstanceM && !c.Null() {
		var raw []byte
		if raw, err = protocol.Encode(c); err == nil {
			var b blocks.Block
			if b, err = blocks.NewBlockWithCid(raw, c.Digest().Link().Cid()); err == nil {
				err = n.content.Put(ctx, b)
			}
			if err == nil {
				err = n.store.Pin(ctx, blockstore.Pin{Owner: owner(pinCertificate, "%d", c.Cycle), Blocks: []cid.Cid{b.Cid()}})
			}
		}
	}
	if err != nil {
		n.trouble(c.Cycle, fmt.Errorf("keep certificate: %w", err))
	}
}
