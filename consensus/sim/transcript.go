package sim

import (
	"fmt"
	"strings"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/internal/protocol"
)

func name(node int) string { return fmt.Sprintf("v%d", node) }

func short(h protocol.Hash) string { return h.String()[:6] }

// decision is what is voted on.
func (n *network) decision(digest protocol.Hash) string {
	s := n.nodes[0].Setup
	if digest == protocol.NullDecision(s.Network, s.Cycle, s.Instance, s.Parent) {
		return "null"
	}
	return "decision " + short(digest)
}

// describe is a message as the transcript shows it.
func (n *network) describe(e *envelope) string {
	switch r := e.record.(type) {
	case nil:
		return "sends nonsense"
	case protocol.Proposal:
		again := ""
		if r.Lock != nil {
			again = fmt.Sprintf(", locked in round %d", r.Lock.Round)
		}
		return fmt.Sprintf("propose round %d decision %s: %d vectors, %d lists, %d proofs%s", r.Round, short(r.Decision()),
			len(r.Vectors), len(r.Lists), len(r.Proofs), again)
	case protocol.Vote:
		step := "commit"
		if r.Type == protocol.VotePrepare {
			step = "prepare"
		}
		return fmt.Sprintf("%s round %d %s", step, r.Round, n.decision(r.Digest))
	case protocol.StatusVote:
		if r.Type == protocol.StatusLock {
			return fmt.Sprintf("status round %d: lock of round %d on %s", r.Round, r.LockRound, n.decision(r.LockDigest))
		}
		return fmt.Sprintf("status round %d: null", r.Round)
	case protocol.Lock:
		return fmt.Sprintf("lock round %d on %s", r.Round, n.decision(r.Digest))
	case protocol.Certificate:
		return certificate(r)
	case protocol.EquivocationProof:
		return "proof of " + r.Kind.String()
	}
	return e.message.Kind.String()
}

func certificate(c protocol.Certificate) string {
	var signers []string
	for _, s := range c.Signatures {
		signers = append(signers, name(int(s.Validator[0])<<8|int(s.Validator[1])))
	}
	what := "null certificate"
	if !c.Null() {
		what = fmt.Sprintf("certificate round %d decision %s", c.Round, short(c.Decision()))
	}
	return what + " by " + strings.Join(signers, " ")
}

func describe(o consensus.Output) string {
	s := o.Outcome.String()
	if o.Late {
		s = "late " + s
	}
	switch {
	case o.Value == nil:
		return s + ", no value"
	case o.Value.Merge != nil:
		return fmt.Sprintf("%s, alpha %d", s, o.Value.Merge.Alpha)
	}
	s += ", weights"
	for _, w := range o.Value.Weights.Weights {
		s += fmt.Sprintf(" %d", w.Weight)
	}
	return s
}
