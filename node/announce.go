package node

import (
	"slices"
	"time"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/consensus/beacon"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// announce gossips a certificate for those who take no part in the agreement. Every validator makes its own, and they are
// large, so one does it: the proposer, or if nothing is heard of it the next one in the order of ids, δ later, and so on.
func (n *Node) announce(c protocol.Certificate) {
	message, err := consensus.NewMessage(c)
	if err != nil {
		return
	}
	n.mu.Lock()
	validators := n.snapshot.Validators()
	n.mu.Unlock()
	at := func(id protocol.ID) int {
		return slices.IndexFunc(validators, func(p protocol.Participant) bool { return p.ID == id })
	}
	self, first := at(n.cfg.ID), 0
	if c.Proposal != nil {
		first = max(0, at(c.Proposal.Proposer))
	}
	if self < 0 {
		return
	}
	place := (self - first + len(validators)) % len(validators)
	n.background.Go(func() {
		wait := time.Duration(place) * time.Duration(n.schedule().DeltaMillis) * time.Millisecond
		if beacon.Sleep(n.running, wait) != nil || !n.hears(c.Decision()) {
			return
		}
		_ = n.agree.Publish(n.running, n.packing().Pack(message.Encode())) // refused if it is of no use to anybody any more
	})
}

// hears notes that a certificate went around, and reports whether it is the first.
func (n *Node) hears(decision protocol.Hash) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.announced[decision] {
		return false
	}
	n.announced[decision] = true
	return true
}

// maxAccused bounds the proofs that are given to the instances that follow.
const maxAccused = 64

// accused keeps a proof for the proposals of later instances.
func (n *Node) accused(p protocol.EquivocationProof) (fresh bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	digest := p.Digest()
	if len(n.proofs) >= maxAccused || slices.ContainsFunc(n.proofs, func(q protocol.EquivocationProof) bool { return q.Digest() == digest }) {
		return false
	}
	n.proofs = append(n.proofs, p)
	return true
}
