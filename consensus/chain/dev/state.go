package dev

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/blockzero-net/bzd/consensus/chain"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// Kinds of journal entries after the header.
const (
	kindRegistration uint32 = 1
	kindSubmission   uint32 = 2
)

// entry is one entry of the journal after the header.
type entry struct {
	Kind   uint32 `cbor:"kind"`
	Height uint64 `cbor:"height"` // of the block that holds it
	Body   []byte `cbor:"body"`   // the record as it was sent
}

// Validate implements protocol.Record.
func (e entry) Validate() error {
	if e.Kind != kindRegistration && e.Kind != kindSubmission {
		return fmt.Errorf("dev chain: an entry of kind %d", e.Kind)
	}
	return nil
}

// event is a registration and the first block that has it.
type event struct {
	height uint64
	r      Registration
}

type slot struct {
	cycle     uint64
	validator protocol.ID
}

// state is the chain as a value: entries in, answers out. No clock, no disk. It is not safe for concurrent use.
type state struct {
	header
	hash     protocol.Hash // of the chain
	maxStake uint64

	events   []event // heights ascend
	registry map[protocol.ID]protocol.Participant
	latest   map[protocol.ID]stored
	weights  map[slot][]byte // canonical submissions
	top      uint64          // no block below can change any more

	recent []protocol.Snapshot // a few that were asked for, the last at the end
}

// stored is the last registration of a participant.
type stored struct {
	sequence uint64
	height   uint64
	body     []byte
}

func newState(h header, maxStake uint64) (*state, error) {
	hash, err := h.chain()
	if err != nil {
		return nil, err
	}
	s := &state{
		header: h, hash: hash, maxStake: maxStake,
		registry: make(map[protocol.ID]protocol.Participant),
		latest:   make(map[protocol.ID]stored),
		weights:  make(map[slot][]byte),
	}
	for _, p := range h.Participants {
		s.registry[p.ID] = p
	}
	return s, nil
}

// head returns the height at a time; false before genesis. It never goes back behind a block that holds an entry.
func (s *state) head(now time.Time) (uint64, bool) {
	since := now.UnixMilli() - int64(s.Genesis)
	if since < 0 && s.top == 0 {
		return 0, false
	}
	s.top = max(s.top, uint64(max(since, 0))/s.BlockMillis)
	return s.top, true
}

// block returns the block of a height: its time and a hash that depends on the chain and the height alone.
func (s *state) block(height uint64) chain.Block {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(append([]byte("bzd/devchain-block/1\x00"), s.hash[:]...), height))
	return chain.Block{Height: height, Hash: sum, Time: time.UnixMilli(int64(s.Genesis + height*s.BlockMillis)).UTC()}
}

// snapshot returns the registry at a final block. The participants are shared; nobody may change them.
func (s *state) snapshot(height uint64) (protocol.Snapshot, error) {
	if height > s.top {
		return protocol.Snapshot{}, fmt.Errorf("%w: block %d, the last final one is %d", chain.ErrUnknownBlock, height, s.top)
	}
	for _, known := range s.recent {
		if known.Height == height {
			return known, nil
		}
	}
	at := make(map[protocol.ID]protocol.Participant)
	for _, p := range s.header.Participants {
		at[p.ID] = p
	}
	for _, e := range s.events {
		if e.height > height {
			break
		}
		change(at, e.r)
	}
	snapshot := protocol.Snapshot{Version: protocol.Version, Height: height, Hash: s.block(height).Hash, Participants: sorted(at)}
	if len(s.recent) >= 16 {
		s.recent = slices.Delete(s.recent, 0, 1)
	}
	s.recent = append(s.recent, snapshot)
	return snapshot, nil
}

func change(registry map[protocol.ID]protocol.Participant, r Registration) {
	if r.leaves() {
		delete(registry, r.Participant.ID)
	} else {
		registry[r.Participant.ID] = r.Participant
	}
}

func sorted(registry map[protocol.ID]protocol.Participant) []protocol.Participant {
	list := make([]protocol.Participant, 0, len(registry))
	for _, p := range registry {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b protocol.Participant) int { return a.ID.Compare(b.ID) })
	return list
}

// register checks a registration that arrives now. Known ones are not stored again: fresh is false. height is the first
// block that has it.
func (s *state) register(r Registration, body []byte) (height uint64, fresh bool, err error) {
	id := r.Participant.ID
	old, known := s.latest[id]
	_, present := s.registry[id]
	switch {
	case r.Network != s.Network:
		return 0, false, fmt.Errorf("%w: a registration for network %s, this chain is of %s", chain.ErrRefused, r.Network, s.Network)
	case !r.VerifySig():
		return 0, false, fmt.Errorf("%w: the registration is not signed by the key of %s", chain.ErrRefused, id)
	case known && bytes.Equal(old.body, body):
		return old.height, false, nil
	case known && r.Sequence <= old.sequence:
		return 0, false, fmt.Errorf("%w: registration %d of %s, but number %d stands", chain.ErrConflict, r.Sequence, id, old.sequence)
	case r.Participant.Stake > s.maxStake:
		return 0, false, fmt.Errorf("%w: stake %d, at most %d", chain.ErrRefused, r.Participant.Stake, s.maxStake)
	case r.leaves() && !present:
		return 0, false, fmt.Errorf("%w: %s leaves, but is not in the registry", chain.ErrRefused, id)
	}
	next := make(map[protocol.ID]protocol.Participant, len(s.registry)+1)
	for id, p := range s.registry {
		next[id] = p
	}
	change(next, r)
	if err := (protocol.Snapshot{Version: protocol.Version, Participants: sorted(next)}).Validate(); err != nil {
		return 0, false, fmt.Errorf("%w: the registry would be invalid: %w", chain.ErrRefused, err)
	}
	return s.top + 1, true, nil
}

// submit checks weights that arrive now. Known ones are not stored again: fresh is false.
func (s *state) submit(w protocol.Submission, body []byte) (fresh bool, err error) {
	if w.Network != s.Network {
		return false, fmt.Errorf("%w: a submission for network %s, this chain is of %s", chain.ErrRefused, w.Network, s.Network)
	}
	if old, ok := s.weights[slot{w.Cycle, w.Validator}]; ok {
		if bytes.Equal(old, body) {
			return false, nil
		}
		return false, fmt.Errorf("%w: cycle %d of %s", chain.ErrConflict, w.Cycle, w.Validator)
	}
	if now := s.top / uint64(s.CycleBlocks); w.Cycle != now {
		return false, fmt.Errorf("%w: weights of cycle %d in cycle %d", chain.ErrWindow, w.Cycle, now)
	}
	snapshot, err := s.snapshot(w.Cycle * uint64(s.CycleBlocks))
	if err != nil {
		return false, err
	}
	if err := snapshot.Check(w, protocol.RoleValidator); err != nil {
		return false, fmt.Errorf("%w: %w", chain.ErrRefused, err)
	}
	for _, m := range w.Weights {
		if p, ok := snapshot.Find(m.Miner); !ok || !p.Roles.Has(protocol.RoleMiner) {
			return false, fmt.Errorf("%w: a weight for %s, who is no miner in cycle %d", chain.ErrRefused, m.Miner, w.Cycle)
		}
	}
	return true, nil
}

// apply takes an entry that was checked: one that was just written, or one of the journal, whose order is checked again.
func (s *state) apply(e entry) error {
	switch e.Kind {
	case kindRegistration:
		r, err := decode[Registration](e.Body)
		if err != nil {
			return err
		}
		if n := len(s.events); n > 0 && s.events[n-1].height > e.Height || e.Height == 0 || r.Sequence <= s.latest[r.Participant.ID].sequence {
			return fmt.Errorf("dev chain: registration %d of %s at block %d is out of order", r.Sequence, r.Participant.ID, e.Height)
		}
		s.events = append(s.events, event{e.Height, r})
		change(s.registry, r)
		s.latest[r.Participant.ID] = stored{r.Sequence, e.Height, e.Body}
		s.top = max(s.top, e.Height-1)
	case kindSubmission:
		w, err := protocol.DecodeSubmission(e.Body)
		if err != nil {
			return err
		}
		at := slot{w.Cycle, w.Validator}
		if _, ok := s.weights[at]; ok || w.Cycle > math.MaxUint64/uint64(s.CycleBlocks) {
			return fmt.Errorf("dev chain: weights of cycle %d of %s stand twice", w.Cycle, w.Validator)
		}
		s.weights[at] = e.Body
		s.top = max(s.top, e.Height)
	default:
		return errors.New("dev chain: an entry of no kind")
	}
	return nil
}
