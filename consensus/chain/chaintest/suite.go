package chaintest

import (
	"context"
	"crypto/ed25519"
	"errors"
	"math"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/blockzero-net/bzd/consensus/chain"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// Member is a participant whose keys the suite may use.
type Member struct {
	protocol.Participant
	Key ed25519.PrivateKey // the protocol key
}

// Chain is a fresh chain for one test: at least block 1 is final, the head is in the first half of a cycle that is not
// cycle 0, and the registry held Members at the block that started it.
type Chain struct {
	Client  chain.Client
	Network protocol.Link
	// Members are at least two validators and two miners, none both.
	Members []Member
	// Cycle returns the cycle whose window is open at a block, and the block that started it.
	Cycle func(height uint64) (cycle, start uint64)
	// Advance makes at least that many further blocks final.
	Advance func(t *testing.T, blocks uint64)
	// Join adds a participant to the registry, from a block after the present head on; nil if the chain under test has no
	// such way.
	Join func(t *testing.T) protocol.ID
	// Weights reads back what stands for a cycle and validator, by another way than Submit's own; false for nothing.
	Weights func(t *testing.T, cycle uint64, validator protocol.ID) ([]protocol.MinerWeight16, bool)
	// Down makes every endpoint unreachable for good; nil if the chain under test has no such way.
	Down func(t *testing.T)
}

// RunAll runs the suite as subtests, each on a chain of its own.
func RunAll(t *testing.T, factory func(t *testing.T) Chain) {
	for _, s := range []struct {
		name string
		run  func(*testing.T, Chain)
	}{
		{"Head", testHead},
		{"Snapshot", testSnapshot},
		{"Join", testJoin},
		{"Submit", testSubmit},
		{"SubmitOnce", testSubmitOnce},
		{"SubmitWindow", testSubmitWindow},
		{"SubmitRefused", testSubmitRefused},
		{"Cancelled", testCancelled},
		{"Unavailable", testUnavailable},
		{"Concurrent", testConcurrent},
	} {
		t.Run(s.name, func(t *testing.T) {
			c := factory(t)
			if len(c.with(protocol.RoleValidator)) < 2 || len(c.with(protocol.RoleMiner)) < 2 {
				t.Fatal("the factory gave too few members")
			}
			s.run(t, c)
		})
	}
}

func (c Chain) with(role protocol.Role) (members []Member) {
	for _, m := range c.Members {
		if m.Roles.Has(role) {
			members = append(members, m)
		}
	}
	return members
}

func (c Chain) head(t *testing.T) chain.Block {
	t.Helper()
	b, err := c.Client.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (c Chain) snapshot(t *testing.T, height uint64) protocol.Snapshot {
	t.Helper()
	s, err := c.Client.Snapshot(t.Context(), height)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// submission is a signed one of a member, with a weight for each miner; the second differs with n.
func (c Chain) submission(t *testing.T, m Member, cycle uint64, n uint16) protocol.Submission {
	t.Helper()
	s := protocol.Submission{Version: protocol.Version, Network: c.Network, Cycle: cycle, Validator: m.ID}
	for i, miner := range c.with(protocol.RoleMiner) {
		w := protocol.MinerWeight16{Miner: miner.ID, Weight: 1 + n + uint16(i)}
		if i == 0 {
			w.Weight = math.MaxUint16
		}
		s.Weights = append(s.Weights, w)
	}
	slices.SortFunc(s.Weights, func(a, b protocol.MinerWeight16) int { return a.Miner.Compare(b.Miner) })
	return resign(t, s, m)
}

func resign(t *testing.T, s protocol.Submission, m Member) protocol.Submission {
	t.Helper()
	if err := s.Sign(m.Key); err != nil {
		t.Fatal(err)
	}
	return s
}

func testHead(t *testing.T, c Chain) {
	before := c.head(t)
	if before.Height == 0 || before.Hash.IsZero() || before.Time.IsZero() {
		t.Fatalf("head %+v", before)
	}
	if again := c.head(t); again.Height < before.Height {
		t.Errorf("height %d after %d", again.Height, before.Height)
	}
	c.Advance(t, 3)
	after := c.head(t)
	if after.Height < before.Height+3 || !after.Time.After(before.Time) || after.Hash == before.Hash {
		t.Errorf("three blocks after %+v: %+v", before, after)
	}
}

func testSnapshot(t *testing.T, c Chain) {
	head := c.head(t)
	_, start := c.Cycle(head.Height)
	s := c.snapshot(t, start)
	if err := s.Validate(); err != nil || s.Height != start || s.Hash.IsZero() {
		t.Errorf("snapshot of block %d: height %d, hash %v, %v", start, s.Height, s.Hash, err)
	}
	for _, m := range c.Members {
		if p, ok := s.Find(m.ID); !ok || p != m.Participant {
			t.Errorf("participant %v is %+v, want %+v", m.ID, p, m.Participant)
		}
	}
	if at := c.snapshot(t, head.Height); at.Hash != head.Hash || at.Height != head.Height {
		t.Errorf("the snapshot of %+v is of block %d %v", head, at.Height, at.Hash)
	}
	again := c.snapshot(t, start)
	again.Participants[0].Stake++
	c.Advance(t, 2)
	if later := c.snapshot(t, start); !reflect.DeepEqual(later, s) {
		t.Error("the snapshot of a final block changed")
	}
	for _, height := range []uint64{c.head(t).Height + 1_000_000, 1 << 62, math.MaxUint64} {
		if _, err := c.Client.Snapshot(t.Context(), height); !errors.Is(err, chain.ErrUnknownBlock) {
			t.Errorf("block %d: %v", height, err)
		}
	}
}

func testJoin(t *testing.T, c Chain) {
	if c.Join == nil {
		t.Skip("the registry cannot be changed from here")
	}
	head := c.head(t)
	before := c.snapshot(t, head.Height)
	id := c.Join(t)
	if now := c.snapshot(t, head.Height); !reflect.DeepEqual(now, before) {
		t.Error("joining changed the past")
	}
	c.Advance(t, 2)
	if _, ok := c.snapshot(t, c.head(t).Height).Find(id); !ok {
		t.Error("who joined is not in the registry")
	}
}

func (c Chain) standing(t *testing.T, want protocol.Submission) {
	t.Helper()
	got, ok := c.Weights(t, want.Cycle, want.Validator)
	if !ok || !slices.Equal(got, want.Weights) {
		t.Errorf("on chain stands %v, want %v", got, want.Weights)
	}
}

func testSubmit(t *testing.T, c Chain) {
	cycle, _ := c.Cycle(c.head(t).Height)
	for _, m := range c.with(protocol.RoleValidator) {
		s := c.submission(t, m, cycle, 0)
		kept := slices.Clone(s.Weights)
		if err := c.Client.Submit(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(s.Weights, kept) {
			t.Error("Submit changed its argument")
		}
		c.standing(t, s)
	}
}

func testSubmitOnce(t *testing.T, c Chain) {
	cycle, _ := c.Cycle(c.head(t).Height)
	m := c.with(protocol.RoleValidator)[0]
	s := c.submission(t, m, cycle, 0)
	for range 3 {
		if err := c.Client.Submit(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Client.Submit(t.Context(), c.submission(t, m, cycle, 7)); !errors.Is(err, chain.ErrConflict) {
		t.Errorf("a second submission: %v", err)
	}
	c.standing(t, s)
	for now, _ := c.Cycle(c.head(t).Height); now == cycle; now, _ = c.Cycle(c.head(t).Height) {
		c.Advance(t, 1)
	}
	if err := c.Client.Submit(t.Context(), s); err != nil {
		t.Errorf("the same submission after the window closed: %v", err)
	}
}

func testSubmitWindow(t *testing.T, c Chain) {
	cycle, _ := c.Cycle(c.head(t).Height)
	m := c.with(protocol.RoleValidator)[0]
	for _, other := range []uint64{cycle - 1, cycle + 1, cycle + 1_000_000, 1 << 62, math.MaxUint64} {
		s := c.submission(t, m, other, 0)
		if err := c.Client.Submit(t.Context(), s); !errors.Is(err, chain.ErrWindow) {
			t.Errorf("cycle %d during cycle %d: %v", other, cycle, err)
		}
		if w, ok := c.Weights(t, other, m.ID); ok {
			t.Errorf("cycle %d stands with %v", other, w)
		}
	}
}

func testSubmitRefused(t *testing.T, c Chain) {
	cycle, _ := c.Cycle(c.head(t).Height)
	validator, miner := c.with(protocol.RoleValidator)[0], c.with(protocol.RoleMiner)[0]
	good := c.submission(t, validator, cycle, 0)

	of := func(change func(*protocol.Submission)) protocol.Submission {
		s := good
		s.Weights = slices.Clone(good.Weights)
		change(&s)
		return resign(t, s, validator)
	}
	unsigned, bent := good, good
	unsigned.Sig = protocol.Sig{}
	bent.Sig[9] ^= 1
	for name, s := range map[string]protocol.Submission{
		"a miner's":          c.submission(t, miner, cycle, 0),
		"not signed":         unsigned,
		"badly signed":       bent,
		"signed by another":  resign(t, good, c.with(protocol.RoleValidator)[1]),
		"of another network": of(func(s *protocol.Submission) { s.Network = protocol.LinkTo(protocol.DagCBOR, []byte("elsewhere")) }),
		"of another version": of(func(s *protocol.Submission) { s.Version++ }),
		"for a validator": of(func(s *protocol.Submission) {
			s.Weights = []protocol.MinerWeight16{{Miner: validator.ID, Weight: 65535}}
		}),
		"for a stranger": of(func(s *protocol.Submission) {
			s.Weights = []protocol.MinerWeight16{{Miner: protocol.ID{7}, Weight: 65535}}
		}),
		"with a weight too small":    of(func(s *protocol.Submission) { s.Weights = []protocol.MinerWeight16{{Miner: miner.ID, Weight: 1}} }),
		"in the wrong order":         of(func(s *protocol.Submission) { slices.Reverse(s.Weights) }),
		"of somebody not registered": resign(t, func() protocol.Submission { s := good; s.Validator = protocol.ID{9}; return s }(), validator),
	} {
		if err := c.Client.Submit(t.Context(), s); !errors.Is(err, chain.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if w, ok := c.Weights(t, cycle, validator.ID); ok {
		t.Errorf("on chain stands %v", w)
	}
	empty := of(func(s *protocol.Submission) { s.Weights = nil })
	if err := c.Client.Submit(t.Context(), empty); err != nil {
		t.Errorf("a cycle in which nobody is paid: %v", err)
	}
}

func testCancelled(t *testing.T, c Chain) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := c.submission(t, c.with(protocol.RoleValidator)[0], 1, 0)
	_, errHead := c.Client.Head(ctx)
	_, errSnapshot := c.Client.Snapshot(ctx, 0)
	for name, err := range map[string]error{"Head": errHead, "Snapshot": errSnapshot, "Submit": c.Client.Submit(ctx, s)} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s with a cancelled context: %v", name, err)
		}
	}
}

func testUnavailable(t *testing.T, c Chain) {
	if c.Down == nil {
		t.Skip("the chain cannot be taken down from here")
	}
	cycle, _ := c.Cycle(c.head(t).Height)
	s := c.submission(t, c.with(protocol.RoleValidator)[0], cycle, 0)
	c.Down(t)
	_, errHead := c.Client.Head(t.Context())
	_, errSnapshot := c.Client.Snapshot(t.Context(), 0)
	for name, err := range map[string]error{"Head": errHead, "Snapshot": errSnapshot, "Submit": c.Client.Submit(t.Context(), s)} {
		if !errors.Is(err, chain.ErrUnavailable) {
			t.Errorf("%s without an endpoint: %v", name, err)
		}
	}
}

func testConcurrent(t *testing.T, c Chain) {
	head := c.head(t)
	cycle, start := c.Cycle(head.Height)
	want := c.snapshot(t, start)
	var all sync.WaitGroup
	for i := range 4 {
		for _, m := range c.with(protocol.RoleValidator) {
			s := c.submission(t, m, cycle, 0)
			all.Go(func() {
				for range 3 {
					if b, err := c.Client.Head(t.Context()); err != nil || b.Height < head.Height {
						t.Errorf("head %d, %v", b.Height, err)
					}
					if got, err := c.Client.Snapshot(t.Context(), start); err != nil || !reflect.DeepEqual(got, want) {
						t.Errorf("snapshot differs, %v", err)
					}
					if err := c.Client.Submit(t.Context(), s); err != nil {
						t.Errorf("submission by caller %d: %v", i, err)
					}
				}
			})
		}
	}
	all.Wait()
}
