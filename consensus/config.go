package consensus

import (
	"crypto/ed25519"
	"errors"
	"math"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// Config is everything a [Machine] knows before the first message. Times are milliseconds since the cycle's anchor.
type Config struct {
	Network  protocol.Link // the genesis document
	Cycle    uint64
	Instance protocol.Instance
	Parent   protocol.Hash // the decision before this one; records under another parent do not count

	Self protocol.ID        // this participant
	Key  ed25519.PrivateKey // its protocol key; nil for an observer, which signs nothing and outputs all the same

	Snapshot  protocol.Snapshot
	Proposers []protocol.ID // as [Proposers] draws them, best 3R; [Config.Proposer] says whose turn is when

	Start  int64 // when inputs close: T_e in W, the end of the line search in M
	Delta  int64 // δ
	Rounds int64 // R: the machine has an output at Start + δ + 3Rδ

	// Derive computes the value that follows from a set. It must be a pure function: every validator that holds the set
	// must get the same value. An error that wraps ErrUnavailable means that this node cannot tell yet; any other means
	// that the set has no value, and a proposal that names it is its proposer's fault. It is called synchronously, once
	// per decision and once for an output without certificate. The set's slices must not be changed or kept.
	Derive func(Set) (protocol.Value, error)

	// Restore holds the records that an earlier machine of this validator asked to persist, in order; those of other
	// instances are skipped. Without them a validator that restarts may sign twice.
	Restore [][]byte

	rules rules
}

// rules leaves rules out: tests show with it that they would notice.
type rules struct {
	NoLock          bool // prepares whatever is valid, locked or not
	NoLockProposal  bool // proposes its own in spite of the lock it knows
	WeakQuorum      bool // one unit of stake less is a quorum
	NullAfterCommit bool // says null although it signed a COMMIT-V
	CommitBehind    bool // signs a COMMIT-V of a round that it has left
	TypeUnsigned    bool // a vote counts as a PREPARE and as a COMMIT-V
	RoundUnsigned   bool // a vote counts in every round
	Timing          bool // a proposal that comes a δ after its turn is its proposer's fault
	NoCommit        bool // scores count without a commit
	NoParent        bool // records under another parent count
}

// Set is the evidence a value is derived from: the records that a proposal names, in the order of their digests.
type Set struct {
	Scores []protocol.ScoreVector       // of W, one per validator
	Merges []protocol.MergeVector       // of M, one per validator
	Lists  []protocol.List              // of W, one per validator
	Proofs []protocol.EquivocationProof // verified
}

// Input is what this validator measured: the scores of W or the line search of M. The machine fills in version, network,
// cycle, parent, validator and signature.
type Input struct {
	// Scores needs its list, groups and salt, 32 random bytes.
	Scores *protocol.ScoreVector
	// Merge needs its measure and alpha.
	Merge *protocol.MergeVector
}

// Outcome says how an instance ended.
type Outcome uint8

// The outcomes.
const (
	Certified Outcome = 1 // Value is Certificate.Proposal.Value, and nobody will ever hold another certificate
	Null      Outcome = 2 // Certificate proves that nothing else is or will be certified
	Fallback  Outcome = 3 // the deadline passed; nothing is known
)

// String returns the outcome's name.
func (o Outcome) String() string {
	switch o {
	case Certified:
		return "certified"
	case Null:
		return "null"
	case Fallback:
		return "fallback"
	}
	return "none"
}

// Output is what an instance ends with. Every machine has one at its deadline, or before; a machine whose first one was
// a Fallback has a second if a certificate comes after all, with Late set.
type Output struct {
	Outcome Outcome
	// Value is the certified one. In the other outcomes it is uncertified: derived from the vectors that arrived here if
	// those have the stake of a quorum, else nil.
	Value       *protocol.Value
	Certificate *protocol.Certificate // nil in a Fallback
	Late        bool
}

// Name names a record to fetch: the kind says how to decode it, Hash.Link() is its CID.
type Name struct {
	Kind Kind
	Hash protocol.Hash
}

// Reply is a message for one validator that lacks it.
type Reply struct {
	To      protocol.ID
	Message Message
}

// Ready is what the caller must do, in this order: make Persist durable, send, and only then believe the output; fetch
// at leisure and Step what was found. Then Advance. Nothing in it may be changed.
type Ready struct {
	Persist [][]byte  // records for the log, in order, as one batch
	Send    []Message // to every validator
	Reply   []Reply
	Need    []Name // records that a proposal names and that are not held; named again until they are
	Proofs  []protocol.EquivocationProof
	Output  *Output
}

// Empty reports whether there is nothing to do.
func (r Ready) Empty() bool {
	return len(r.Persist) == 0 && len(r.Send) == 0 && len(r.Reply) == 0 && len(r.Need) == 0 && len(r.Proofs) == 0 && r.Output == nil
}

// maxMillis bounds the times of a configuration, so that no sum of them overflows: 35 years.
const maxMillis = 1 << 40

// Ranks is how many proposers a round has, one every δ.
const Ranks = 3

// Open returns when the first proposer may be voted for: Start + δ.
func (c Config) Open() int64 { return c.Start + c.Delta }

// Turn returns when the proposer of turn r = 3·round + rank may be voted for: Open + rδ.
func (c Config) Turn(r uint32) int64 { return c.Open() + int64(r)*c.Delta }

// Proposer returns whose turn it is in a round at a rank below [Ranks]; ok is false if there are too few validators for
// that rank. Turns go through Proposers and begin anew, one further if else the same would come first in every round.
func (c Config) Proposer(round uint32, rank int) (id protocol.ID, ok bool) {
	n := len(c.Proposers)
	if rank >= min(Ranks, n) {
		return id, false
	}
	turn := Ranks*int(round) + rank
	if n%Ranks == 0 {
		turn += Ranks * int(round) / n
	}
	return c.Proposers[turn%n], true
}

// rank returns a proposer's rank in a round, -1 if it has no turn.
func (c Config) rank(round uint32, id protocol.ID) int {
	for j := range Ranks {
		if p, ok := c.Proposer(round, j); ok && p == id {
			return j
		}
	}
	return -1
}

// Deadline returns when the machine ends: Open + 3Rδ.
func (c Config) Deadline() int64 { return c.Open() + 3*c.Rounds*c.Delta }

// Validate reports every fault at once, each an [ErrBug].
func (c Config) Validate() error {
	var errs []error
	add := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, bug(format, args...))
		}
	}
	add(c.Network.Defined(), "config: no network")
	add(c.Instance == protocol.InstanceW || c.Instance == protocol.InstanceM, "config: instance %d is not W (1) or M (2)", c.Instance)
	if err := c.Snapshot.Validate(); err != nil {
		errs = append(errs, bug("config: snapshot: %w", err))
	}
	add(c.Snapshot.TotalStake() > 0, "config: no validator of the snapshot has stake; nothing would ever be certified")
	if c.Key != nil {
		p, ok := c.Snapshot.Find(c.Self)
		add(ok && p.Roles.Has(protocol.RoleValidator), "config: %s is no validator of the snapshot; leave the key out to observe", c.Self)
		add(!ok || protocol.KeyOf(c.Key) == p.Key, "config: the key is not the one that the snapshot has for %s", c.Self)
	}
	add(len(c.Proposers) > 0 && len(c.Proposers) <= MaxProposers, "config: %d proposers, want 1 to %d", len(c.Proposers), MaxProposers)
	seen := make(map[protocol.ID]bool)
	for _, id := range c.Proposers {
		p, ok := c.Snapshot.Find(id)
		add(ok && p.Roles.Has(protocol.RoleValidator), "config: proposer %s is no validator of the snapshot", id)
		add(!seen[id], "config: proposer %s has two ranks", id)
		seen[id] = true
	}
	add(c.Start > -maxMillis && c.Start < maxMillis, "config: start at %d ms", c.Start)
	add(c.Delta > 0 && c.Delta < math.MaxInt32, "config: δ of %d ms; a message takes time to arrive", c.Delta)
	add(c.Rounds > 0 && c.Rounds <= maxRounds/2, "config: %d rounds, want 1 to %d; without a round nothing is ever certified", c.Rounds, maxRounds/2)
	add(c.Derive != nil, "config: no Derive; no value could be proposed or checked")
	return errors.Join(errs...)
}
