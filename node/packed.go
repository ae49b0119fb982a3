package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/consensus/wire"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/p2p/gossip"
)

// keptCodecs is of how many cycles messages are understood: what is said of one that ends arrives in the next.
const keptCodecs = 2

// newCodec begins to pack messages of a cycle. It knows the participants that the chain has, whoever is excluded here.
// Called with mu held.
func (n *Node) newCodec(cycle uint64, s protocol.Snapshot) {
	n.codecs = append(wire.Codecs{wire.New(n.cfg.Network, cycle, s)}, n.codecs[:min(len(n.codecs), keptCodecs-1)]...)
}

// packing returns the codecs of now.
func (n *Node) packing() wire.Codecs {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.codecs
}

// judge unpacks and checks a message. What everybody must see as wrong is rejected, what depends on local knowledge is
// ignored.
func (n *Node) judge(from peer.ID, packed []byte) (v consensus.Valid, verdict gossip.Verdict) {
	raw, err := n.packing().Unpack(packed)
	if unknown := (*wire.UnknownError)(nil); errors.As(err, &unknown) {
		n.pull(from, *unknown)
	}
	switch {
	case errors.Is(err, wire.ErrCodec):
		return v, gossip.Ignore
	case err != nil:
		return v, gossip.Reject
	}
	m, err := consensus.DecodeMessage(raw)
	if err != nil {
		return v, gossip.Reject
	}
	n.mu.Lock()
	checker := n.checker
	n.mu.Unlock()
	v, err = checker.Check(m)
	switch {
	case err == nil && n.apart(v):
		return v, gossip.Ignore
	case err == nil:
		return v, gossip.Accept
	case errors.Is(err, consensus.ErrIgnore): // perhaps right under another snapshot
		return v, gossip.Ignore
	}
	return v, gossip.Reject
}

// judgeMessage decides about a message of the agreement before it is relayed. Gossip drops what it has seen by its
// bytes; a message that comes in other ones is dropped here.
func (n *Node) judgeMessage(_ context.Context, from peer.ID, packed []byte) gossip.Verdict {
	v, verdict := n.judge(from, packed)
	if verdict != gossip.Accept {
		return verdict
	}
	name := protocol.Hash(sha256.Sum256(v.Message().Encode()))
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.relayed[name] {
		return gossip.Ignore
	}
	if len(n.relayed) < maxRelayed {
		n.relayed[name] = true
	}
	if len(n.checked) < maxChecked {
		n.checked[sha256.Sum256(packed)] = v
	}
	return gossip.Accept
}

// Bounds of what is remembered in a cycle: messages that went around, and messages that wait for delivery, so that
// their signatures are verified once.
const (
	maxRelayed = 1 << 16
	maxChecked = 1024
)

// accepted returns a message that gossip delivers.
func (n *Node) accepted(packed []byte) (v consensus.Valid, ok bool) {
	name := protocol.Hash(sha256.Sum256(packed))
	n.mu.Lock()
	v, ok = n.checked[name]
	delete(n.checked, name)
	n.mu.Unlock()
	if !ok {
		v, verdict := n.judge("", packed)
		return v, verdict == gossip.Accept
	}
	return v, ok
}

// maxPulls is how many lists of one signer are asked for in a cycle, past the proposals that name them.
const maxPulls = 2

// pull asks for a list that refers to what is not known here: the peer that sent it, then its signer.
func (n *Node) pull(from peer.ID, list wire.UnknownError) {
	n.mu.Lock()
	defer n.mu.Unlock()
	signer, ok := n.snapshot.Find(list.Signer)
	if !ok || !signer.Roles.Has(protocol.RoleValidator) || n.pulled[list.Signer] >= maxPulls {
		return
	}
	n.pulled[list.Signer]++
	n.background.Go(func() {
		peers := []peer.ID{from}
		if p, ok := n.host.PeerOf(list.Signer); ok && p != from {
			peers = append(peers, p)
		}
		for _, p := range peers {
			message, err := n.askFor(n.running, p, list.Name)
			if err != nil {
				continue
			}
			if v, verdict := n.judge(p, message); verdict == gossip.Accept {
				n.deliver(v)
				return
			}
		}
	})
}

// askFor asks a peer for the message of that name and returns it packed.
func (n *Node) askFor(ctx context.Context, p peer.ID, name consensus.Name) (packed []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	packed, err = n.host.Request(ctx, p, askRecord, append([]byte{byte(name.Kind)}, name.Hash[:]...))
	if err == nil && len(packed) == 0 {
		err = fmt.Errorf("%s does not have %s %s", p, name.Kind, name.Hash)
	}
	return packed, err
}
