package sim

import (
	"errors"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// Tape is everything one validator heard in one run of an instance, every signature verified already: what a machine costs
// by itself.
type Tape struct {
	setup consensus.Config
	list  *consensus.Message
	in    consensus.Input
	heard []taped
}

type taped struct {
	at      int64 // by the validator's clock
	message consensus.Valid
}

// Record plays the first run of a measurement and keeps what its first validator that is up heard.
func (w WAN) Record(instance protocol.Instance) (*Tape, error) {
	cfg := w.config(0, instance)
	var t Tape
	cfg.heard = func(n *Node, at int64, v consensus.Valid) {
		if t.setup.Derive == nil {
			t.setup = n.Setup
			t.list, t.in, _ = n.Prepare()
		}
		if t.setup.Self == n.Setup.Self {
			t.heard = append(t.heard, taped{at, v})
		}
	}
	_, err := Run(cfg)
	return &t, err
}

// Len is the number of messages.
func (t *Tape) Len() int { return len(t.heard) }

// Vote returns the first vote on the tape, and a checker that passes it.
func (t *Tape) Vote() (consensus.Checker, consensus.Message, error) {
	for _, h := range t.heard {
		if m := h.message.Message(); m.Kind == consensus.KindVote {
			return consensus.NewChecker(t.setup.Network, t.setup.Snapshot), m, nil
		}
	}
	return consensus.Checker{}, consensus.Message{}, errors.New("sim: a tape without a vote")
}

// Play steps a new machine through the tape. The error is that it did not end with a certificate.
func (t *Tape) Play() error {
	m, err := consensus.New(t.setup)
	if err != nil {
		return err
	}
	certified := false
	work := func() {
		for {
			r := m.Ready()
			if r.Empty() {
				return
			}
			certified = certified || r.Output != nil && r.Output.Outcome == consensus.Certified
			m.Advance()
		}
	}
	m.Tick(t.heard[0].at)
	if t.list != nil {
		_ = m.Step(*t.list)
		_ = m.Input(t.in)
	}
	for _, h := range t.heard {
		for next := m.Next(); next <= h.at; next = m.Next() {
			m.Tick(next)
			if t.list == nil && next >= t.setup.Start {
				_ = m.Input(t.in) // refused but once
			}
			work()
		}
		m.Tick(h.at)
		_ = m.StepValid(h.message)
		work()
	}
	if !certified {
		return errors.New("sim: a tape without a certificate")
	}
	return nil
}
