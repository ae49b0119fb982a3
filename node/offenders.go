package node

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	blocks "github.com/ipfs/go-block-format"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// proofTime bounds the fetch of one proof that a certificate names.
const proofTime = 5 * time.Second

// offenders are the validators whose equivocation is proven by what the decisions carry that a merge rests on, and its own:
// they are in no snapshot of a cycle that builds on it. Everybody who knows the decision finds the same ones.
func (p *past) offenders(ctx context.Context, merge protocol.Hash) (map[protocol.ID]bool, error) {
	if merge.IsZero() {
		return nil, nil
	}
	p.n.mu.Lock()
	known, ok := p.n.offenders[merge]
	p.n.mu.Unlock()
	if ok {
		return known, nil
	}
	find := p.find(ctx)
	m, err := find(merge)
	if err != nil {
		return nil, err
	}
	w, err := find(m.Parent)
	if err != nil {
		return nil, err
	}
	if m.Null() || w.Null() || w.Instance != protocol.InstanceW || w.Cycle != m.Cycle {
		return nil, fmt.Errorf("%w: cycle %d", errLineage, m.Cycle)
	}
	before, err := p.offenders(ctx, w.Parent)
	if err != nil {
		return nil, err
	}
	all := maps.Clone(before)
	for _, h := range slices.Concat(w.Proposal.Proofs, m.Proposal.Proofs) {
		offence, err := p.proof(ctx, h, m.Cycle)
		if err != nil {
			return nil, err
		}
		if offence.Kind == protocol.EquivocationCommitment {
			continue // the commitments are void, and that is all
		}
		if all == nil {
			all = map[protocol.ID]bool{}
		}
		all[offence.Offender] = true
	}
	p.n.mu.Lock()
	p.n.offenders[merge] = all
	p.n.mu.Unlock()
	return all, nil
}

// proof returns what a proof of a cycle proves. It is a block: here, or at whoever followed that cycle.
func (p *past) proof(ctx context.Context, h protocol.Hash, cycle uint64) (o protocol.Offence, err error) {
	ctx, cancel := context.WithTimeout(ctx, proofTime)
	defer cancel()
	raw, err := p.n.content.Block(ctx, h.Link().Cid())
	if err != nil {
		return o, fmt.Errorf("proof %s of cycle %d: %w", h, cycle, err)
	}
	proof, err := protocol.DecodeEquivocationProof(raw)
	if err != nil {
		return o, err
	}
	s, err := p.snapshot(ctx, cycle)
	if err != nil {
		return o, err
	}
	return proof.Verify(s)
}

// without is a snapshot without offenders.
func without(s protocol.Snapshot, offenders map[protocol.ID]bool) protocol.Snapshot {
	if len(offenders) > 0 {
		s.Participants = slices.DeleteFunc(slices.Clone(s.Participants), func(p protocol.Participant) bool { return offenders[p.ID] })
	}
	return s
}

// exclude takes the offenders that the decision under this cycle convicts out of its snapshot.
func (n *Node) exclude(ctx context.Context, s protocol.Snapshot) (protocol.Snapshot, error) {
	out, err := n.past().offenders(ctx, n.parent)
	if err != nil {
		n.bound = true // with another snapshot its votes would be worth nothing
		return s, fmt.Errorf("who is excluded: %w", err)
	}
	s = without(s, out)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.snapshot, n.checker = s, consensus.NewChecker(n.cfg.Network, s)
	n.checked = map[protocol.Hash]consensus.Valid{}
	if n.custody != nil {
		n.custody.mu.Lock()
		n.custody.snapshot = s
		n.custody.mu.Unlock()
	}
	return s, nil
}

// putProof keeps a proof as a block, under the CID that its digest makes.
func (n *Node) putProof(ctx context.Context, p protocol.EquivocationProof) error {
	raw, err := protocol.Encode(p)
	if err != nil {
		return err
	}
	b, err := blocks.NewBlockWithCid(raw, p.Digest().Link().Cid())
	if err != nil {
		return err
	}
	return n.content.Put(ctx, b)
}
