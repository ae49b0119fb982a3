package protocol

import (
	"errors"
	"math"
	"math/big"
	"testing"
)

// TestQuorum: q = ⌊2S/3⌋ + 1, at the edges and where 2S does not fit.
func TestQuorum(t *testing.T) {
	for _, c := range []struct{ total, want uint64 }{
		{0, 1}, {1, 1}, {2, 2}, {3, 3}, {4, 3}, {5, 4}, {6, 5}, {7, 5}, {99, 67}, {100, 67}, {101, 68}, {102, 69},
		{math.MaxInt64, 6148914691236517205}, {math.MaxUint64, 12297829382473034411},
	} {
		if got := quorum(c.total); got != c.want {
			t.Errorf("of %d: %d, want %d", c.total, got, c.want)
		}
	}
	for total := range uint64(1000) {
		q := quorum(total)
		if q != 2*total/3+1 {
			t.Fatalf("of %d: %d", total, q)
		}
		// Two quorums share more than a third, and a quorum can be had without any third of the stake.
		if total > 0 && (3*(2*q-total) <= total || q > total) {
			t.Fatalf("of %d: two quorums of %d share %d", total, q, 2*q-total)
		}
	}
	for _, total := range []uint64{math.MaxUint64, math.MaxUint64 - 1, math.MaxUint64 - 2, math.MaxInt64} {
		exact := new(big.Int).SetUint64(total)
		exact.Mul(exact, big.NewInt(2)).Div(exact, big.NewInt(3)).Add(exact, big.NewInt(1))
		if quorum(total) != exact.Uint64() {
			t.Errorf("of %d: %d, want %d", total, quorum(total), exact)
		}
	}
}

func TestSnapshot(t *testing.T) {
	s := sampleSnapshot()
	if s.TotalStake() != 100 || s.Quorum() != 67 {
		t.Errorf("S = %d, q = %d", s.TotalStake(), s.Quorum())
	}
	if n := len(s.Validators()); n != len(sampleValidators) {
		t.Errorf("%d validators", n)
	}
	for _, v := range s.Validators() {
		if v.Roles != RoleValidator || nameOf(t, v.ID) == "" {
			t.Errorf("%+v among the validators", v)
		}
	}
	for _, p := range s.Participants {
		if got, ok := s.Find(p.ID); !ok || got != p {
			t.Errorf("found %+v for %s", got, p.ID)
		}
	}
	if p, ok := s.Find(idFor("eve")); ok || p != (Participant{}) {
		t.Errorf("found %+v for a stranger", p)
	}
	// A miner's stake never counts.
	for i := range s.Participants {
		if s.Participants[i].Roles.Has(RoleMiner) {
			s.Participants[i].Stake = math.MaxUint64
		}
	}
	if err := s.Validate(); err != nil || s.TotalStake() != 100 {
		t.Errorf("with rich miners S = %d, %v", s.TotalStake(), err)
	}
	if s.Digest() == sampleSnapshot().Digest() {
		t.Error("two snapshots, one digest")
	}
	empty := Snapshot{Version: Version}
	if err := empty.Validate(); err != nil || empty.Quorum() != 1 {
		t.Errorf("an empty registry: %v, q = %d", err, empty.Quorum())
	}
}

func TestCheck(t *testing.T) {
	s := sampleSnapshot()
	for _, r := range signedSamples() {
		role := RoleValidator
		if _, isCommitment := r.(Commitment); isCommitment {
			role = RoleMiner
		}
		if err := s.Check(r, role); err != nil {
			t.Errorf("%T: %v", r, err)
		}
		if err := s.Check(r, RoleMiner|RoleValidator); !errors.Is(err, ErrSigner) {
			t.Errorf("%T of somebody without the role: %v", r, err)
		}
		if err := (Snapshot{}).Check(r, role); !errors.Is(err, ErrSigner) {
			t.Errorf("%T of a stranger: %v", r, err)
		}
		if err := s.Check(resigned(t, r, sigOf(t, sampleBinding())), role); (err == nil) != (sigOf(t, r) == sigOf(t, sampleBinding())) {
			t.Errorf("%T with another signature: %v", r, err)
		}
	}
	eve := sampleCommitment()
	eve = signedBy("eve", eve)
	if err := s.Check(eve, RoleMiner); !errors.Is(err, ErrSignature) {
		t.Errorf("in mia's name by eve: %v", err)
	}
}

func TestDeadlines(t *testing.T) {
	d, err := ProductionParams().Schedule.Deadlines(3000)
	want := Deadlines{Commit: 3_000_000, Custody: 3_060_000, Open: 3_075_000, Evaluate: 3_855_000, W: 3_868_000, Search: 4_048_000, M: 4_061_000, End: 4_200_000}
	if err != nil || d != want {
		t.Errorf("production: %+v, %v", d, err)
	}
	if length := uint64(ProductionParams().Schedule.CycleBlocks) * 12_000; length < d.End+3000 {
		t.Errorf("a production cycle ends %d ms after its anchor, but the next starts after %d", d.End, length)
	}
	demo := DemoParams().Schedule
	if demo.AgreeMillis() != 700 {
		t.Errorf("the demo agrees within %d ms", demo.AgreeMillis())
	}
	if d, err := demo.Deadlines(700); err != nil || d.M != 21*700+1400 {
		t.Errorf("demo at 700 ms: %+v, %v", d, err)
	}
	if _, err := demo.Deadlines(699); !errors.Is(err, ErrInvalid) {
		t.Errorf("demo at 699 ms: %v", err)
	}
	// The largest schedule does not overflow.
	s := Schedule{Commit: 1, Custody: 2, Open: 3, Evaluate: maxSchedule / 2, Search: maxSchedule/2 - 1, End: maxSchedule, DeltaMillis: 60_000, Rounds: maxScheduled, CycleBlocks: 1}
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	if d, err := s.Deadlines(math.MaxUint32); err != nil || d.End != maxSchedule*math.MaxUint32 {
		t.Errorf("the largest: %+v, %v", d, err)
	}
}
