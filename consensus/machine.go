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
// could be forgotten is ever part of a lock or certificate.
type Machine struct {
	cfg        Config
	key        ed25519.PrivateKey // nil: sign nothing
	checker    Checker
	validators []protocol.Participant
	stake      map[protocol.ID]uint64
	total      uint64
	quorum     uint64
	null       protocol.Hash // the null decision

	now        int64 // of the last Tick
	beat       int64 // the last point of the grid Start + kδ, as k
	evidence   evidence
	rounds     []round
	candidates map[protocol.Hash]*candidate // by decision
	tried      int                          // records held at the last attempt to propose, -1 to try again

	top   *protocol.Lock        // of the highest round known
	heard map[protocol.ID]int64 // the beat of the last vote, STATUS or repeated vector of who has no certificate

	commits map[protocol.ID]protocol.Vote       // of each validator the COMMIT-V of the lowest round
	nulls   map[protocol.ID]protocol.StatusVote // of each validator the null of the highest round

	own       [ownSlots]Message // durable records of this validator, to be sent again
	committed bool              // this validator has an input
	revealed  bool
	barred    bool // signed votes under another parent in an earlier life
	// What this validator signed, whether durable already or not.
	entered  int           // the lowest round in which it may vote
	prepared int           // the highest round in which it signed a PREPARE, -1 if none
	voted    int           // the highest round in which it signed a COMMIT-V, -1 if none
	said     int           // the highest round for which it signed a STATUS, -1 if none
	locked   int           // the round of its own lock, -1 if none
	lockedTo protocol.Hash // what that is on

	certificate *protocol.Certificate
	decided     protocol.Hash // the certificate's decision
	ended       bool          // a Fallback was output
	final       bool          // the certificate was output

	pending  Ready
	signed   []Message // of pending.Persist: counted on Advance
	inflight *Ready
	waiting  []Message // of inflight.Persist
}

// The last message of each kind is repeated; a PREPARE and a COMMIT-V each.
const (
	slotCommit = KindLock + 1
	ownSlots   = slotCommit + 1
)

// New returns a machine. The error is an [ErrBug] that names every fault of the configuration, or that the records to
// restore are another validator's. Tick comes first.
func New(cfg Config) (*Machine, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	m := &Machine{
		cfg:        cfg,
		key:        cfg.Key,
		checker:    NewChecker(cfg.Network, cfg.Snapshot),
		validators: cfg.Snapshot.Validators(),
		stake:      make(map[protocol.ID]uint64),
		total:      cfg.Snapshot.TotalStake(),
		quorum:     cfg.Snapshot.Quorum(),
		null:       protocol.NullDecision(cfg.Network, cfg.Cycle, cfg.Instance, cfg.Parent),
		now:        math.MinInt64,
		beat:       math.MinInt64,
		evidence:   newEvidence(),
		rounds:     make([]round, maxRounds),
		candidates: make(map[protocol.Hash]*candidate),
		commits:    make(map[protocol.ID]protocol.Vote),
		nulls:      make(map[protocol.ID]protocol.StatusVote),
		heard:      make(map[protocol.ID]int64),
		tried:      -1, prepared: -1, voted: -1, said: -1, locked: -1,
	}
	if cfg.rules.WeakQuorum {
		m.quorum--
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

// Prepared returns the highest lock that this machine knows of and, if it is on a proposal that is held, that; nil for
// none. A parent that may yet be certified is found with it.
func (m *Machine) Prepared() (*protocol.Lock, *protocol.Proposal) {
	if m.top == nil {
		return nil, nil
	}
	if c := m.candidates[m.top.Digest]; c != nil {
		return m.top, &c.proposal
	}
	return m.top, nil
}

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

// Held returns the message of a vector, list or proof that this machine holds, or of a proposal by its decision, for
// peers that fetch it.
func (m *Machine) Held(hash protocol.Hash) (Message, bool) {
	if r, ok := m.evidence.held[hash]; ok {
		return r.message, true
	}
	if c := m.candidates[hash]; c != nil {
		return c.message, true
	}
	return Message{}, false
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

// again repeats what may have been lost, once every δ, after the deadline ever more rarely: own records until there is a
// certificate, and the names of what is missing.
func (m *Machine) again() {
	m.answer()
	if m.now >= m.cfg.Deadline() {
		_, begin := m.recovery()
		if past := (m.now - begin) / m.cfg.Delta; past > 2 && past&(past-1) != 0 {
			return
		}
	}
	if m.certificate != nil {
		return
	}
	for slot, message := range m.own {
		switch Kind(slot) {
		case KindScoreCommit:
			if m.beat < -early || m.now >= m.cfg.Start {
				continue
			}
		case KindScoreVector, KindMergeVector: // the largest; once there is a valid proposal, who needs it fetches it
			if !m.revealed || m.prepared >= 0 || m.beat < 1 {
				continue
			}
			if m.beat != 4 && m.beat != 8 {
				m.remind(message)
				continue
			}
		case KindProposal:
			if m.now >= m.cfg.Deadline() {
				continue
			}
		}
		m.send(message)
	}
	m.pending.Need = nil
	var lacking []Name
	for n := range m.evidence.wanted {
		if n.Kind == KindProposal {
			lacking = append(lacking, n)
		}
	}
	slices.SortFunc(lacking, func(a, b Name) int { return a.Hash.Compare(b.Hash) })
	for _, n := range lacking {
		m.need(n)
	}
	for r := range m.rounds {
		for _, list := range m.rounds[r].proposals {
			for _, c := range list {
				if c.state == unavailable {
					c.state = waiting
				}
				if c.state == waiting {
					m.want(c.proposal)
				}
			}
		}
	}
}

// remind repeats a vector for those whom it helps: the proposers of this turn and the next.
func (m *Machine) remind(vector Message) {
	if vector.Kind == 0 {
		return
	}
	for turn := m.beat - 1; turn <= m.beat && turn < Ranks*m.cfg.Rounds; turn++ {
		if id, ok := m.cfg.Proposer(uint32(turn/Ranks), int(turn%Ranks)); ok && id != m.cfg.Self {
			m.pending.Reply = append(m.pending.Reply, Reply{id, vector})
		}
	}
}

// answerers is how many validators answer one that lacks something, in each δ. Who they are changes with it.
const answerers = 4

// answer sends the certificate, or the highest lock, to validators that were heard of lately and seem to lack it. Both are
// large and everybody makes its own, so few answer.
func (m *Machine) answer() {
	if m.key == nil || m.certificate == nil && m.top == nil {
		return
	}
	var what protocol.Record
	if m.certificate != nil {
		what = *m.certificate
	} else {
		what = *m.top
	}
	n := int64(len(m.validators))
	self := slices.IndexFunc(m.validators, func(v protocol.Participant) bool { return v.ID == m.cfg.Self })
	var message Message
	for j, v := range m.validators {
		place := ((int64(self-j)-answerers*m.beat)%n + n) % n
		if heard, ok := m.heard[v.ID]; !ok || m.beat-heard > 2 || j == self || place >= answerers || m.certificate == nil && m.knows(v.ID) {
			continue
		}
		if message.Kind == 0 {
			var err error
			if message, err = NewMessage(what); err != nil {
				return
			}
		}
		m.pending.Reply = append(m.pending.Reply, Reply{v.ID, message})
	}
}

// hears notes that a validator has no certificate yet.
func (m *Machine) hears(id protocol.ID) {
	if _, ok := m.stake[id]; ok {
		m.heard[id] = m.beat
	}
}

// knows reports whether a validator has shown that it knows of the highest lock.
func (m *Machine) knows(id protocol.ID) bool {
	for k := int(m.top.Round); k < len(m.rounds); k++ {
		if _, ok := m.rounds[k].vote(protocol.VoteCommit, id); ok {
			return true
		}
		if s, ok := m.rounds[k].statuses[id]; ok && s.Type == protocol.StatusLock && s.LockRound >= m.top.Round {
			return true
		}
	}
	return false
}

// want asks for what a proposal names and this node does not hold.
func (m *Machine) want(p protocol.Proposal) {
	for _, n := range m.missing(p) {
		m.need(n)
	}
}

// lack asks for the proposal of a decision, unless that was done since the last beat.
func (m *Machine) lack(decision protocol.Hash) {
	if n := (Name{KindProposal, decision}); !m.evidence.wanted[n] {
		m.need(n)
	}
}

func (m *Machine) need(n Name) {
	m.evidence.wanted[n] = true
	if !slices.Contains(m.pending.Need, n) {
		m.pending.Need = append(m.pending.Need, n)
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
