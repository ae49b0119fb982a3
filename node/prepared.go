package node

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/p2p"
)

// prepared is a merge that a quorum prepared. It may be certified without anybody here knowing, so the next cycle builds on
// it: whoever signed a COMMIT-V for it does, and the others once they hear of it.
type prepared struct {
	lock     protocol.Lock
	proposal protocol.Proposal
}

// certificate is the place of a prepared merge in a lineage. It has no signatures: its decision names all that is in it, and
// what rests on it has a quorum's.
func (p prepared) certificate() protocol.Certificate {
	return protocol.Certificate{Version: protocol.Version, Network: p.proposal.Network, Cycle: p.proposal.Cycle, Instance: p.proposal.Instance,
		Parent: p.proposal.Parent, Proposal: &p.proposal}
}

func (p prepared) order(q prepared) int {
	return cmp.Or(cmp.Compare(p.lock.Cycle, q.lock.Cycle), cmp.Compare(p.lock.Round, q.lock.Round))
}

// askPrepared is answered with a prepared merge: of a decision, 32 bytes, or the highest one of a cycle, 8 bytes little
// endian, or a later one. The answer is the length of the lock, 4 bytes little endian, the lock and the proposal.
var askPrepared = p2p.Protocol{Name: "prepared", MaxRequest: len(protocol.Hash{}), MaxResponse: 1 << 20}

func (p prepared) encode() ([]byte, error) {
	lock, err := protocol.Encode(p.lock)
	if err != nil {
		return nil, err
	}
	proposal, err := protocol.Encode(p.proposal)
	if err != nil {
		return nil, err
	}
	return slices.Concat(binary.LittleEndian.AppendUint32(nil, uint32(len(lock))), lock, proposal), nil
}

// decodePrepared checks that the lock is on the proposal, and that it is a merge; no signature is verified.
func decodePrepared(raw []byte) (p prepared, err error) {
	if len(raw) < 4 || uint64(binary.LittleEndian.Uint32(raw)) > uint64(len(raw)-4) {
		return p, errors.New("a prepared merge that is cut off")
	}
	n := binary.LittleEndian.Uint32(raw)
	if p.lock, err = protocol.DecodeLock(raw[4 : 4+n]); err != nil {
		return p, err
	}
	if p.proposal, err = protocol.DecodeProposal(raw[4+n:]); err != nil {
		return p, err
	}
	if p.lock.Digest != p.proposal.Decision() || p.lock.Instance != protocol.InstanceM || p.lock.Cycle != p.proposal.Cycle || p.lock.Parent != p.proposal.Parent {
		return p, errors.New("a prepared merge whose lock is on something else")
	}
	return p, nil
}

const preparedSuffix = ".prepared"

// readPrepared reads the prepared merges that the directory of a history holds.
func readPrepared(dir string) (map[protocol.Hash]prepared, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*"+preparedSuffix))
	if err != nil {
		return nil, err
	}
	all := map[protocol.Hash]prepared{}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		p, err := decodePrepared(raw)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f, err)
		}
		all[p.lock.Digest] = p
	}
	return all, nil
}

// prepare keeps a prepared merge, durably: a lock of a higher round on the same decision replaces the one before.
func (h *history) prepare(p prepared) error {
	raw, err := p.encode()
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if old, ok := h.prepared[p.lock.Digest]; ok && old.lock.Round >= p.lock.Round {
		return nil
	}
	path := filepath.Join(h.dir, fmt.Sprintf("%08d-%x%s", p.lock.Cycle, p.lock.Digest[:8], preparedSuffix))
	if err := os.WriteFile(path+".new", raw, 0o644); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	h.prepared[p.lock.Digest] = p
	return nil
}

// highest returns the highest prepared merge of a cycle or a later one that no null certificate puts an end to.
func (h *history) highest(from uint64) (best prepared, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.prepared {
		decision, settled := h.decisions[slot{p.lock.Cycle, protocol.InstanceM}]
		if p.lock.Cycle >= from && (!settled || decision == p.lock.Digest) && (!ok || p.order(best) > 0) {
			best, ok = p, true
		}
	}
	return best, ok
}

// preparedOf answers askPrepared.
func (n *Node) preparedOf(_ context.Context, _ peer.ID, request []byte) ([]byte, error) {
	var p prepared
	var ok bool
	switch len(request) {
	case len(protocol.Hash{}):
		n.history.mu.Lock()
		p, ok = n.history.prepared[protocol.Hash(request)]
		n.history.mu.Unlock()
	case 8:
		p, ok = n.history.highest(binary.LittleEndian.Uint64(request))
	default:
		return nil, p2p.ErrRefused
	}
	if !ok {
		return nil, p2p.ErrNotFound
	}
	return p.encode()
}

// harvest ends this validator's part in agreements and keeps what those on a merge prepared: nothing is signed there any
// more that the next cycle's parent does not know of.
func (n *Node) harvest(runs []*agreementRun) {
	for _, r := range runs {
		r.Retire()
		if r.instance != protocol.InstanceM {
			continue
		}
		lock, proposal := r.Prepared()
		if lock == nil || proposal == nil {
			continue
		}
		if err := n.history.prepare(prepared{*lock, *proposal}); err != nil {
			n.trouble(lock.Cycle, fmt.Errorf("keep what was prepared: %w", err))
		}
	}
}

// recollect takes from the journal what this validator signed COMMIT-Vs for before a restart.
func (n *Node) recollect() error {
	proposals := map[protocol.Hash]protocol.Proposal{}
	for _, b := range n.restored {
		m, err := consensus.DecodeMessage(b)
		if err != nil {
			continue // the machine says so
		}
		switch r, _ := m.Record(); r := r.(type) {
		case protocol.Proposal:
			proposals[r.Decision()] = r
		case protocol.Lock:
			if p, ok := proposals[r.Digest]; ok && r.Instance == protocol.InstanceM {
				if err := n.history.prepare(prepared{r, p}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// after is the first cycle whose merge this node's last certificate says nothing about.
func (n *Node) after() uint64 {
	if n.last == nil {
		return 0
	}
	return n.last.Cycle + 1
}

// certified is the last certified decision that this node rests on, zero in the beginning.
func (n *Node) certified() protocol.Hash {
	if n.last == nil {
		return protocol.Hash{}
	}
	return n.last.Decision()
}

// buildOn moves to the highest merge that was prepared after the last certified one, and before a cycle, if there is one:
// here or at a peer. Without it this validator, if it is bound to it, must not vote in the cycle.
func (n *Node) buildOn(ctx context.Context, p *past, cycle uint64) error {
	best, ok := n.history.highest(n.after())
	n.ask(ctx, askPrepared, binary.LittleEndian.AppendUint64(nil, n.after()), func(raw []byte) bool {
		x, err := decodePrepared(raw)
		if err != nil || x.lock.Cycle < n.after() || x.lock.Cycle >= cycle || ok && x.order(best) <= 0 {
			return false
		}
		err = p.verifyPrepared(ctx, x)
		if err == nil {
			err = n.history.prepare(x)
		}
		if err != nil {
			n.trouble(cycle, fmt.Errorf("what a peer says was prepared: %w", err))
			return false
		}
		best, ok = x, true
		return false // all of them
	})
	best, ok = n.history.highest(n.after())
	if !ok || best.lock.Cycle >= cycle {
		n.parent = n.certified()
		base := n.genesis.Checkpoint
		if n.last != nil {
			base = n.last.Proposal.Value.Merge.Next
		}
		return n.moveTo(ctx, base) // what this node built on may have come to nothing
	}
	met, err := lineage(best.certificate(), n.certified(), p.find(ctx))
	if err == nil && !met {
		err = fmt.Errorf("%w: what cycle %d prepared does not rest on this node's last decision", errLineage, best.lock.Cycle)
	}
	if err == nil {
		err = n.moveTo(ctx, best.proposal.Value.Merge.Next)
	}
	if err != nil {
		n.bound = true
		return fmt.Errorf("cycle %d may have been decided without this node, which does not vote before it knows: %w", best.lock.Cycle, err)
	}
	n.parent = best.lock.Digest
	return nil
}

// verifyPrepared checks the lock against the snapshot of its cycle.
func (p *past) verifyPrepared(ctx context.Context, x prepared) error {
	if x.lock.Network != p.n.cfg.Network {
		return errors.New("of another network")
	}
	s, err := p.snapshot(ctx, x.lock.Cycle)
	if err != nil {
		return err
	}
	w, err := p.find(ctx)(x.proposal.Parent)
	if err != nil {
		return err
	}
	out, err := p.offenders(ctx, w.Parent)
	if err != nil {
		return err
	}
	return x.lock.Verify(without(s, out))
}

// prepared returns the prepared merge of a decision, from a peer if it is not here. Only what a quorum rests on is asked for:
// the decision itself says that the answer is right.
func (p *past) prepared(ctx context.Context, decision protocol.Hash) (found prepared, ok bool) {
	p.n.history.mu.Lock()
	found, ok = p.n.history.prepared[decision]
	p.n.history.mu.Unlock()
	if ok {
		return found, true
	}
	ok = p.n.ask(ctx, askPrepared, decision[:], func(raw []byte) bool {
		x, err := decodePrepared(raw)
		if err == nil && x.lock.Digest == decision {
			found = x
			return true
		}
		return false
	})
	return found, ok
}
