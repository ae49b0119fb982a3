package consensus

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"math"
	"slices"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// Machine is one instance of agreement of one cycle at one participant. It is not safe for concurrent use; the same
// calls give the same results.
//
// What this validator signs counts for the machine itself only after Advance, that is once it is durable: nothing that
// could be forgotten is ever part of a certificate.
type Machine struct {
	cfg        Config
	key        ed25519.PrivateKey // nil: sign nothing
	validators []protocol.Participant
	stake      map[protocol.ID]uint64
	total      uint64
	quorum     uint64
	snapshot   protocol.Hash

	now      int64 // of the last Tick
	beat     int64 // the last point of the grid Start + kδ, as k
	evidence evidence
	turns    []turn // by round
	nulls    map[protocol.ID]protocol.StatusVote
	tried    int // records held at the last attempt to propose, -1 to try again

	own       [KindProof + 1]Message // durable records of this validator, to be sent again
	committed bool                   // this validator has an input
	revealed  bool
	proposed  bool
	voted     bool
	nulled    bool

	certificate *protocol.Certificate
	asked       bool // somebody seems not to have the certificate
	ended       bool // a Fallback was output
	final       bool // the certificate was output

	pending  Ready
	signed   []Message // of pending.Persist: counted on Advance
	inflight *Ready
	waiting  []Message // of inflight.Persist
}

// New returns a machine. The error is an [ErrBug] that names every fault of the configuration, or that the records to
// restore are another validator's. Tick comes first.
func New(cfg Config) (*Machine, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	m := &Machine{
		cfg:        cfg,
		key:        cfg.Key,
		validators: cfg.Snapshot.Validators(),
		stake:      make(map[protocol.ID]uint64),
		total:      cfg.Snapshot.TotalStake(),
		quorum:     cfg.Snapshot.Quorum(),
		snapshot:   cfg.Snapshot.Digest(),
		now:        math.MinInt64,
		beat:       math.MinInt64,
		evidence:   newEvidence(),
		turns:      make([]turn, len(cfg.Proposers)),
		nulls:      make(map[protocol.ID]protocol.StatusVote),
		tried:      -1,
	}
	for _, v := range m.validators {
		m.stake[v.ID] = v.Stake
	}
	for _, b := range cfg.Restore {
		if err := m.restore(b); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Tick tells the time, in milliseconds since the anchor. A time before the last one changes nothing.
func (m *Machine) Tick(nowMillis int64) {
	if nowMillis < m.now || nowMillis >= maxMillis || nowMillis <= -maxMillis {
		return
	}
	m.now = nowMillis
	if k := floorDiv(m.now-m.cfg.Start, m.cfg.Delta); k > m.beat {
		m.beat = k
		m.tried = -1
		m.again()
	}
	m.progress()
}

// early is how many δ before Start a commit begins to be repeated.
const early = 4

// Next returns the next time at which a Tick has something to do: a point of the grid Start + kδ, on which every deadline
// lies.
func (m *Machine) Next() int64 {
	if m.now == math.MinInt64 {
		return -maxMillis + 1
	}
	return m.cfg.Start + max(m.beat+1, -early)*m.cfg.Delta
}

// Deadline returns when the machine has an output at the latest.
func (m *Machine) Deadline() int64 { return m.cfg.Deadline() }

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// Ready returns what is to be done. Until Advance it returns the same again, whatever happens meanwhile.
func (m *Machine) Ready() Ready {
	if m.inflight == nil {
		if m.pending.Empty() {
			return Ready{}
		}
		taken := m.pending
		m.inflight, m.waiting = &taken, m.signed
		m.pending, m.signed = Ready{}, nil
	}
	return *m.inflight
}

// Advance says that what the last Ready asked for was done.
func (m *Machine) Advance() {
	signed := m.waiting
	m.inflight, m.waiting = nil, nil
	if m.now == math.MinInt64 {
		return
	}
	for _, message := range signed {
		m.count(message, true)
	}
	if len(signed) > 0 {
		m.progress()
	}
}

// Mute is for a log that fails: what was not Advanced is dropped, unsent, and from now on the machine signs and sends
// nothing. It goes on collecting what others sign, and has its output in time.
func (m *Machine) Mute() {
	out := m.pending.Output
	if m.inflight != nil && out == nil {
		out = m.inflight.Output
	}
	m.key, m.own = nil, [len(m.own)]Message{}
	m.inflight, m.waiting, m.signed = nil, nil, nil
	m.pending = Ready{Need: m.pending.Need, Proofs: m.pending.Proofs, Output: out}
}

// Held returns the message of a vector, list or proof that this machine holds, for peers that fetch it.
func (m *Machine) Held(hash protocol.Hash) (Message, bool) {
	r, ok := m.evidence.held[hash]
	return r.message, ok
}

// Input gives the machine what this validator measured. It is signed and, in W, committed to; a second input, one after
// a restart that remembers the first, and scores after Start are an [ErrIgnore]. The list that scores name is to be
// Stepped like any other, or the scores do not count.
func (m *Machine) Input(in Input) error {
	w := m.cfg.Instance == protocol.InstanceW
	switch {
	case (in.Scores != nil) != w || (in.Merge != nil) == w:
		return bug("input: W takes scores, M a merge")
	case m.now == math.MinInt64:
		return bug("input before the first tick")
	case m.key == nil:
		return ignore("input: an observer has none")
	case m.committed:
		return ignore("input: there is one already")
	case w && m.now >= m.cfg.Start:
		return ignore("input: scores at %d ms, but they were to be committed to before %d", m.now, m.cfg.Start)
	case m.now >= m.cfg.Deadline():
		return ignore("input after the deadline")
	}
	if !w {
		v := *in.Merge
		v.Version, v.Network, v.Cycle, v.Parent, v.Validator = protocol.Version, m.cfg.Network, m.cfg.Cycle, m.cfg.Parent, m.cfg.Self
		if err := v.Sign(m.key); err != nil {
			return bug("input: %w", err)
		}
		if err := m.emit(v, true); err != nil {
			return err
		}
		m.committed, m.revealed = true, true
		m.progress()
		return nil
	}
	v := *in.Scores
	if v.Salt.IsZero() {
		return bug("input: scores without salt; their commit would not hide them")
	}
	v.Version, v.Network, v.Cycle, v.Parent, v.Validator = protocol.Version, m.cfg.Network, m.cfg.Cycle, m.cfg.Parent, m.cfg.Self
	if err := v.Sign(m.key); err != nil {
		return bug("input: %w", err)
	}
	c := protocol.ScoreCommit{Version: protocol.Version, Network: v.Network, Cycle: v.Cycle, Validator: v.Validator, Digest: v.CommitDigest()}
	if err := c.Sign(m.key); err != nil {
		return bug("input: %w", err)
	}
	if _, err := NewMessage(v); err != nil { // before the commit is on its way
		return err
	}
	if err := errors.Join(m.emit(c, true), m.emit(v, false)); err != nil {
		return err
	}
	m.committed = true
	m.progress()
	return nil
}

// emit queues a record of this validator: for the log, to be counted once it is durable and, unless withheld, to be sent.
func (m *Machine) emit(r protocol.Record, send bool) error {
	message, err := NewMessage(r)
	if err != nil {
		return err
	}
	m.pending.Persist = append(m.pending.Persist, message.Encode())
	m.signed = append(m.signed, message)
	if send {
		m.pending.Send = append(m.pending.Send, message)
	}
	return nil
}

// count takes a durable record of this validator into its own tallies. fresh: by this very machine, not restored.
func (m *Machine) count(message Message, fresh bool) {
	r, err := message.Record()
	if err != nil { // it was encoded here
		return
	}
	if m.key != nil {
		m.own[message.Kind] = message
	}
	switch r := r.(type) {
	case protocol.ScoreCommit:
		if _, ok := m.evidence.commits[r.Validator]; !ok {
			m.evidence.commits[r.Validator] = r
		}
	case protocol.ScoreVector:
		m.evidence.put(r.Digest(), named{message: message, record: r, signer: r.Validator})
	case protocol.MergeVector:
		m.evidence.put(r.Digest(), named{message: message, record: r, signer: r.Validator})
	case protocol.Proposal:
		if c := m.turns[r.Round].add(r); c != nil && fresh {
			c.state = valid
		}
	case protocol.Vote:
		m.turns[r.Round].vote(r)
	case protocol.StatusVote:
		m.nulls[r.Validator] = r
	}
}

// restore takes back what an earlier machine persisted.
func (m *Machine) restore(b []byte) error {
	message, err := DecodeMessage(b)
	if err != nil {
		return bug("restore: %w", err)
	}
	r, err := message.Record()
	if err != nil {
		return bug("restore: %w", err)
	}
	w := m.cfg.Instance == protocol.InstanceW
	mine := func(network protocol.Link, cycle uint64, instance bool) bool {
		return network == m.cfg.Network && cycle == m.cfg.Cycle && instance
	}
	parent := m.cfg.Parent
	count := false
	switch r := r.(type) {
	case protocol.ScoreCommit:
		if count = mine(r.Network, r.Cycle, w); count {
			m.committed = true
		}
	case protocol.ScoreVector:
		count = mine(r.Network, r.Cycle, w) && r.Parent == parent
	case protocol.MergeVector:
		if mine(r.Network, r.Cycle, !w) {
			m.committed, m.revealed, count = true, true, r.Parent == parent
		}
	case protocol.Proposal:
		if mine(r.Network, r.Cycle, r.Instance == m.cfg.Instance) {
			m.proposed, count = true, r.Parent == parent && int(r.Round) < len(m.turns)
		}
	case protocol.Vote:
		if mine(r.Network, r.Cycle, r.Instance == m.cfg.Instance) {
			m.voted, count = true, r.Parent == parent && int(r.Round) < len(m.turns)
		}
	case protocol.StatusVote:
		if mine(r.Network, r.Cycle, r.Instance == m.cfg.Instance) {
			m.nulled, count = true, r.Parent == parent
		}
	case protocol.Certificate:
		if mine(r.Network, r.Cycle, r.Instance == m.cfg.Instance) && r.Parent == parent && r.Snapshot == m.snapshot {
			m.certificate = &r
		}
	}
	if !count {
		return nil
	}
	if s, ok := r.(protocol.Signed); ok {
		if s.Signer() != m.cfg.Self {
			return bug("restore: a %s of %s, but this is %s: the log of another validator", message.Kind, s.Signer(), m.cfg.Self)
		}
		if err := m.cfg.Snapshot.Check(s, protocol.RoleValidator); err != nil {
			return bug("restore: a %s: %w", message.Kind, err)
		}
	}
	m.count(message, false)
	return nil
}

// again repeats what may have been lost, once every δ, after the deadline ever more rarely: own records until there is a
// certificate, then the certificate if somebody still asks, and the names of what is missing.
func (m *Machine) again() {
	if past := m.beat - (1 + 3*m.cfg.Rounds); past > 8 && past&(past-1) != 0 {
		return
	}
	if m.certificate != nil {
		if message, err := NewMessage(*m.certificate); m.asked && m.key != nil && err == nil {
			m.pending.Send = append(m.pending.Send, message)
		}
		m.asked = false
		return
	}
	for kind, message := range m.own {
		switch Kind(kind) {
		case KindScoreCommit:
			if m.beat < -early || m.now >= m.cfg.Start {
				continue
			}
		case KindScoreVector, KindMergeVector: // the largest; once there is a valid proposal, who needs it fetches it
			if !m.revealed || m.voted {
				continue
			}
		}
		m.send(message)
	}
	m.pending.Need = nil
	for i := range m.turns {
		for _, c := range m.turns[i].proposals {
			if c.state == unavailable {
				c.state = waiting
			}
			if c.state == waiting {
				m.want(c.proposal)
			}
		}
	}
}

// want asks for what a proposal names and this node does not hold.
func (m *Machine) want(p protocol.Proposal) {
	for _, n := range m.missing(p) {
		m.evidence.wanted[n] = true
		if !slices.Contains(m.pending.Need, n) {
			m.pending.Need = append(m.pending.Need, n)
		}
	}
}

// send queues a message unless it is none or queued already.
func (m *Machine) send(message Message) {
	if message.Kind == 0 {
		return
	}
	for _, queued := range m.pending.Send {
		if queued.Kind == message.Kind && bytes.Equal(queued.Bytes, message.Bytes) {
			return
		}
	}
	m.pending.Send = append(m.pending.Send, message)
}
