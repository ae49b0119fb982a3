package consensus

import (
	"slices"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// unasked is how many records of one kind are kept of one signer without a proposal that names them: one counts, and a
// second may prove that its signer says two things.
const unasked = 2

// maxProofs is how many proofs are kept, and named, without a proposal that names them.
const maxProofs = 256

// named is a vector, list or proof: what proposals name by digest.
type named struct {
	message Message
	record  protocol.Record
	signer  protocol.ID   // of a proof: the offender
	opens   protocol.Hash // of a score vector: the commit that it opens
	convict bool          // a proof that its offender's vector and list do not count
}

// slot is where the records of one kind and signer are found.
type slot struct {
	kind   Kind
	signer protocol.ID
}

// evidence holds the records that a value is derived from. What goes in has been verified: signature, network, cycle,
// and for vectors the parent.
type evidence struct {
	held    map[protocol.Hash]named
	by      map[slot][]protocol.Hash // as they came
	proofs  []protocol.Hash          // as they came
	wanted  map[Name]bool            // named by a proposal and not held
	commits map[protocol.ID]protocol.ScoreCommit
	guilty  map[protocol.ID]bool
}

func newEvidence() evidence {
	return evidence{
		held:    make(map[protocol.Hash]named),
		by:      make(map[slot][]protocol.Hash),
		wanted:  make(map[Name]bool),
		commits: make(map[protocol.ID]protocol.ScoreCommit),
		guilty:  make(map[protocol.ID]bool),
	}
}

// room reports whether a record may be kept: a proposal names it, or its signer has not filled its share.
func (e *evidence) room(n Name, signer protocol.ID) bool {
	if e.wanted[n] {
		return true
	}
	if n.Kind == KindProof {
		return len(e.proofs) < maxProofs && len(e.by[slot{n.Kind, signer}]) < unasked
	}
	return len(e.by[slot{n.Kind, signer}]) < unasked
}

func (e *evidence) put(hash protocol.Hash, r named) {
	if _, ok := e.held[hash]; ok {
		return
	}
	e.held[hash] = r
	s := slot{r.message.Kind, r.signer}
	e.by[s] = append(e.by[s], hash)
	if r.message.Kind == KindProof {
		e.proofs = append(e.proofs, hash)
	}
	if r.convict {
		e.guilty[r.signer] = true
	}
	delete(e.wanted, Name{r.message.Kind, hash})
}

// first returns the earliest record of a kind and signer for which ok holds.
func (e *evidence) first(kind Kind, signer protocol.ID, ok func(named) bool) (protocol.Hash, bool) {
	for _, h := range e.by[slot{kind, signer}] {
		if ok(e.held[h]) {
			return h, true
		}
	}
	return protocol.Hash{}, false
}

// committed reports whether a score vector opens what its validator committed to in time.
func (e *evidence) committed(r named) bool {
	c, ok := e.commits[r.signer]
	return ok && !c.Digest.IsZero() && r.opens == c.Digest
}

// names are the digests that a proposal is about, each list sorted.
type names struct{ vectors, lists, proofs []protocol.Hash }

// collect returns what this node would propose: the vectors that count here, their lists and every proof.
func (m *Machine) collect() (n names, stake uint64) {
	e := &m.evidence
	for _, v := range m.validators {
		if e.guilty[v.ID] || v.Stake == 0 {
			continue
		}
		var list protocol.Hash
		h, ok := e.first(m.vectorKind(), v.ID, func(r named) bool {
			scores, w := r.record.(protocol.ScoreVector)
			if !w {
				return true
			}
			list = scores.List
			l, held := e.held[list]
			return (e.committed(r) || m.cfg.rules.NoCommit) && (list.IsZero() || held && l.message.Kind == KindList && l.signer == v.ID)
		})
		if ok {
			n.vectors = append(n.vectors, h)
			stake += v.Stake
		}
		if m.cfg.Instance != protocol.InstanceW {
			continue
		}
		if !ok || list.IsZero() {
			list, _ = e.first(KindList, v.ID, func(named) bool { return true })
		}
		if !list.IsZero() {
			n.lists = append(n.lists, list)
		}
	}
	n.proofs = slices.Clone(e.proofs[:min(len(e.proofs), maxProofs)])
	for _, list := range [][]protocol.Hash{n.vectors, n.lists, n.proofs} {
		slices.SortFunc(list, protocol.Hash.Compare)
	}
	return n, stake
}

// missing lists what a proposal names and this node does not hold.
func (m *Machine) missing(p protocol.Proposal) (missing []Name) {
	for _, part := range []struct {
		kind   Kind
		hashes []protocol.Hash
	}{{m.vectorKind(), p.Vectors}, {KindList, p.Lists}, {KindProof, p.Proofs}} {
		for _, h := range part.hashes {
			if _, ok := m.evidence.held[h]; !ok {
				missing = append(missing, Name{part.kind, h})
			}
		}
	}
	return missing
}

// gather builds the set that names stand for and checks what must hold of every set: the vectors have the stake of a
// quorum, nobody has two vectors or two lists, every score vector's list is there, and nobody whom a proof convicts has
// either. All are held. What it checks is the same for everybody who holds them.
func (m *Machine) gather(n names) (Set, error) {
	var s Set
	guilty := make(map[protocol.ID]bool)
	for _, h := range n.proofs {
		r := m.evidence.held[h]
		proof, ok := r.record.(protocol.EquivocationProof)
		if !ok {
			return s, peer("proposal: %s is not a proof", h)
		}
		s.Proofs = append(s.Proofs, proof)
		if r.convict {
			guilty[r.signer] = true
		}
	}
	lists := make(map[protocol.ID]protocol.Hash)
	for _, h := range n.lists {
		r := m.evidence.held[h]
		list, ok := r.record.(protocol.List)
		_, twice := lists[r.signer]
		if !ok || twice || guilty[r.signer] || m.cfg.Instance != protocol.InstanceW {
			return s, peer("proposal: list %s of %s does not belong there", h, r.signer)
		}
		s.Lists = append(s.Lists, list)
		lists[r.signer] = h
	}
	var stake uint64
	seen := make(map[protocol.ID]bool)
	for _, h := range n.vectors {
		r := m.evidence.held[h]
		if r.message.Kind != m.vectorKind() || seen[r.signer] || guilty[r.signer] {
			return s, peer("proposal: vector %s of %s does not belong there", h, r.signer)
		}
		seen[r.signer] = true
		stake += m.stake[r.signer]
		switch v := r.record.(type) {
		case protocol.ScoreVector:
			if !v.List.IsZero() && lists[v.Validator] != v.List {
				return s, peer("proposal: the list of vector %s is missing", h)
			}
			s.Scores = append(s.Scores, v)
		case protocol.MergeVector:
			s.Merges = append(s.Merges, v)
		}
	}
	if stake < m.quorum {
		return s, peer("proposal: vectors of stake %d, a quorum is %d", stake, m.quorum)
	}
	return s, nil
}

// surprising reports whether a proposal rests to a third or more on scores that this node did not see committed to in
// time. Nobody honest signs such a proposal: its vectors may have been written after others were open. A node that missed
// most commits cannot tell, and asks nothing. Less than a third is let pass, or one validator that sends its commit to
// half of the others could split the vote.
func (m *Machine) surprising(p protocol.Proposal) bool {
	if m.cfg.Instance != protocol.InstanceW || m.cfg.rules.NoCommit {
		return false
	}
	var known, unseen uint64
	for id := range m.evidence.commits {
		known += m.stake[id]
	}
	if known < m.quorum {
		return false
	}
	for _, h := range p.Vectors {
		if r := m.evidence.held[h]; r.message.Kind == KindScoreVector && !m.evidence.committed(r) {
			unseen += m.stake[r.signer]
		}
	}
	return unseen > (m.total-1)/3
}

func (m *Machine) vectorKind() Kind {
	if m.cfg.Instance == protocol.InstanceW {
		return KindScoreVector
	}
	return KindMergeVector
}
