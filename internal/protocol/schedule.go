package protocol

import "fmt"

// Bounds of a schedule and of the agreement's rounds.
const (
	maxSchedule  = 1 << 20 // beacon rounds and blocks of one cycle
	maxRounds    = 64      // agreement rounds of one instance, those after its deadline too
	maxScheduled = 32      // those before
)

// Schedule says when the phases of a cycle end, in beacon rounds after the cycle's anchor. The agreements of W and of M
// take time of their own, in milliseconds: δ for the vectors to arrive and three steps of δ in each of R rounds.
type Schedule struct {
	// Commit is T_c: commitments seen later are late.
	Commit uint32 `cbor:"commit"`
	// Custody is T_a: what every validator holds by then goes on its LIST.
	Custody uint32 `cbor:"custody"`
	// Open is T_k: the beacon round that opens every seal. The round after it draws the samples.
	Open uint32 `cbor:"open"`
	// Evaluate is T_e: rows not finished by then are notscored.
	Evaluate uint32 `cbor:"evaluate"`
	// Search is how many rounds the line search has, from the deadline of W on.
	Search uint32 `cbor:"search"`
	// End is the last round of the cycle: by then weights are on chain.
	End uint32 `cbor:"end"`
	// DeltaMillis is δ, the milliseconds within which an honest message reaches every honest validator.
	DeltaMillis uint32 `cbor:"delta"`
	// Rounds is R, the rounds of 3δ that one instance has before its deadline.
	Rounds uint32 `cbor:"rounds"`
	// CycleBlocks is the number of chain blocks from the start of a cycle to the start of the next.
	CycleBlocks uint32 `cbor:"blocks"`
}

// Deadlines are the ends of a cycle's phases, in milliseconds after the anchor.
type Deadlines struct {
	Commit, Custody, Open, Evaluate uint64
	W                               uint64 // D_W: the agreement on weights has a result
	Search                          uint64 // the line search ends and the agreement on the merge begins
	M                               uint64 // D_M: the agreement on the merge has a result
	End                             uint64
}

// AgreeMillis returns how long one instance of agreement may take: δ + 3Rδ.
func (s Schedule) AgreeMillis() uint64 {
	return uint64(s.DeltaMillis) * (1 + 3*uint64(s.Rounds))
}

// Deadlines returns the ends of the phases for a beacon of one round per periodMillis:
//
//	D_W = T_e + δ + 3Rδ
//	D_M = D_W + Search + δ + 3Rδ
//
// The error is not nil if the agreements do not end before the cycle does.
func (s Schedule) Deadlines(periodMillis uint32) (Deadlines, error) {
	at := func(rounds uint32) uint64 { return uint64(rounds) * uint64(periodMillis) }
	d := Deadlines{Commit: at(s.Commit), Custody: at(s.Custody), Open: at(s.Open), Evaluate: at(s.Evaluate), End: at(s.End)}
	d.W = d.Evaluate + s.AgreeMillis()
	d.Search = d.W + at(s.Search)
	d.M = d.Search + s.AgreeMillis()
	if d.M > d.End {
		return d, fmt.Errorf("%w: at %d ms per beacon round the merge is decided %d ms after the anchor, but the cycle ends after %d ms; raise schedule.end or lower schedule.delta or schedule.rounds",
			ErrInvalid, periodMillis, d.M, d.End)
	}
	return d, nil
}

// Validate implements [Record].
func (s Schedule) Validate() error { return validate("schedule", s) }

func (s Schedule) faults(f faults) {
	before := uint32(0)
	for _, phase := range []struct {
		field  string
		round  uint32
		breaks string
	}{
		{"commit", s.Commit, "a miner needs time to train and to commit"},
		{"custody", s.Custody, "a validator needs time to fetch what was committed"},
		{"open", s.Open, "custody is worth something only if it is signed before anything can be read"},
		{"evaluate", s.Evaluate, "a validator needs time to measure what was opened"},
	} {
		if phase.round <= before || phase.round > maxSchedule {
			f.add(phase.field, "round %d is not between %d and %d: %s", phase.round, uint64(before)+1, maxSchedule, phase.breaks)
		}
		before = phase.round
	}
	if s.Search == 0 || s.Search > maxSchedule {
		f.add("search", "%d rounds is not between 1 and %d: the line search needs time to measure the joint step", s.Search, maxSchedule)
	}
	if least := uint64(s.Evaluate) + uint64(s.Search); uint64(s.End) <= least || s.End > maxSchedule {
		f.add("end", "round %d is not between %d and %d: the cycle must not end before its line search does", s.End, least+1, maxSchedule)
	}
	if s.DeltaMillis == 0 || s.DeltaMillis > 60_000 {
		f.add("delta", "%d ms is not between 1 and 60000: below, no message arrives in time; above, the agreement takes hours", s.DeltaMillis)
	}
	if s.Rounds == 0 || s.Rounds > maxScheduled {
		f.add("rounds", "%d is not between 1 and %d: without a round nothing is ever certified", s.Rounds, maxScheduled)
	}
	if s.CycleBlocks == 0 || s.CycleBlocks > maxSchedule {
		f.add("blocks", "%d is not between 1 and %d: a cycle starts at a block of its own", s.CycleBlocks, maxSchedule)
	}
}
