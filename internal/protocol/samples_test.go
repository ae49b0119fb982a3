package protocol

import (
	"crypto/ed25519"
	"crypto/sha256"
	"slices"
	"testing"
)

// The sample network: four validators of stake 10, 20, 30 and 40, so S = 100 and q = 67, and three miners.
var (
	sampleNetwork    = LinkTo(DagCBOR, []byte("genesis"))
	sampleValidators = []string{"ann", "ben", "cat", "dan"}
	sampleMiners     = []string{"mia", "moe", "max"}
)

// keyFor is the private key of a name, the same in every run.
func keyFor(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte("key of " + name))
	return ed25519.NewKeyFromSeed(seed[:])
}

// idFor is the id of a name.
func idFor(name string) ID { return sha256.Sum256([]byte("id of " + name)) }

func hashFor(name string) Hash { return sha256.Sum256([]byte("hash of " + name)) }

func sorted(hashes ...Hash) []Hash {
	slices.SortFunc(hashes, Hash.Compare)
	return hashes
}

func sampleSnapshot() Snapshot {
	s := Snapshot{Version: Version, Height: 360, Hash: hashFor("block 360")}
	for i, name := range sampleValidators {
		s.Participants = append(s.Participants, Participant{ID: idFor(name), Key: KeyOf(keyFor(name)), Stake: 10 * uint64(i+1), Roles: RoleValidator})
	}
	for _, name := range sampleMiners {
		s.Participants = append(s.Participants, Participant{ID: idFor(name), Key: KeyOf(keyFor(name)), Roles: RoleMiner | RoleGateway, Group: "go"})
	}
	slices.SortFunc(s.Participants, func(a, b Participant) int { return a.ID.Compare(b.ID) })
	return s
}

// signer is a pointer to a signed record.
type signer[T any] interface {
	*T
	Sign(key ed25519.PrivateKey) error
}

// signedBy returns the record with the signature of a name.
func signedBy[T any, P signer[T]](name string, record T) T {
	if err := P(&record).Sign(keyFor(name)); err != nil {
		panic(err)
	}
	return record
}

func sampleBinding() Binding {
	return signedBy("ann", Binding{Version: Version, Network: sampleNetwork, ID: idFor("ann"), Key: KeyOf(keyFor("ann")), PeerID: []byte("peer of ann")})
}

func sampleHead() Head {
	certificate := LinkTo(DagCBOR, []byte("certificate 6"))
	return signedBy("ann", Head{Version: Version, Network: sampleNetwork, Cycle: 7, Checkpoint: LinkTo(DagPB, []byte("checkpoint 7")), Certificate: &certificate, ID: idFor("ann")})
}

func sampleCommitment() Commitment {
	return signedBy("mia", Commitment{Version: Version, Network: sampleNetwork, Cycle: 7, Group: "go", Miner: idFor("mia"), Manifest: LinkTo(DagCBOR, []byte("manifest")), Size: 320})
}

func sampleManifest() Manifest {
	h, attestation := sampleDelta(), LinkTo(DagCBOR, []byte("attestation"))
	return Manifest{
		Version: Version, Network: sampleNetwork, Cycle: 7, Base: h.Base, Group: h.Group, Miner: idFor("mia"), Codec: h.Codec,
		Tensors: h.Tensors, Size: h.Size,
		Segments: []Segment{
			{Block: LinkTo(Raw, []byte("segment 0")), Size: 32 + SegmentOverhead},
			{Block: LinkTo(Raw, []byte("segment 1")), Size: 256 + SegmentOverhead},
		},
		Round: 12345, LockedSeed: make([]byte, LockedSeedSize), Attestation: &attestation,
	}
}

func sampleAttestation() Attestation {
	datasets := []Link{LinkTo(DagCBOR, []byte("dataset a")), LinkTo(DagCBOR, []byte("dataset b"))}
	slices.SortFunc(datasets, Link.Compare)
	return Attestation{Version: Version, Datasets: datasets, Root: hashFor("samples"), Samples: 1000, Tokens: 128_000}
}

func sampleList() List {
	entries := []ListEntry{
		{Miner: idFor("mia"), Group: "go", Manifest: LinkTo(DagCBOR, []byte("manifest")), Bucket: 2, State: ListHeld},
		{Miner: idFor("moe"), Group: "go", Manifest: LinkTo(DagCBOR, []byte("manifest of moe")), Bucket: 4, State: ListLate},
	}
	slices.SortFunc(entries, ListEntry.Compare)
	return signedBy("ann", List{Version: Version, Network: sampleNetwork, Cycle: 7, Validator: idFor("ann"), Entries: entries})
}

func sampleScores() ScoreVector {
	rows := []Row{
		{Miner: idFor("mia"), Gain: 5_000_000, StdErr: 400_000, N: 128, Status: StatusOK},
		{Miner: idFor("mia"), Shard: 1, Gain: 4_000_000, StdErr: 500_000, N: 128, Status: StatusOK},
		{Miner: idFor("moe"), Status: StatusLate},
	}
	slices.SortStableFunc(rows, func(a, b Row) int { return a.Miner.Compare(b.Miner) })
	return signedBy("ann", ScoreVector{
		Version: Version, Network: sampleNetwork, Cycle: 7, Parent: hashFor("parent"), Validator: idFor("ann"), List: sampleList().Digest(),
		Groups: []GroupRows{{Group: "go", Rows: rows}}, Salt: hashFor("salt"),
	})
}

func sampleScoreCommit() ScoreCommit {
	return signedBy("ann", ScoreCommit{Version: Version, Network: sampleNetwork, Cycle: 7, Validator: idFor("ann"), Digest: sampleScores().CommitDigest()})
}

func sampleMergeVector() MergeVector {
	return signedBy("ann", MergeVector{Version: Version, Network: sampleNetwork, Cycle: 7, Parent: hashFor("W"), Validator: idFor("ann"), Measure: sampleMeasure(), Alpha: 1})
}

// sampleProposal is ann's in round 2, on a lock of round 0.
func sampleProposal() Proposal {
	weights := []MinerWeight{
		{Miner: idFor("mia"), Group: "go", Status: StatusOK, Weight: WeightTotal / 4, Part: WeightTotal / 4},
		{Miner: idFor("moe"), Group: "go", Status: StatusLate},
		{Miner: idFor("max"), Group: "go", Status: StatusOK, Weight: WeightTotal / 4 * 3, Part: WeightTotal / 4 * 3},
	}
	slices.SortFunc(weights, MinerWeight.Compare)
	p := Proposal{
		Version: Version, Network: sampleNetwork, Cycle: 7, Instance: InstanceW, Round: 2, Parent: hashFor("parent"), Proposer: idFor("ann"),
		Vectors: sorted(sampleScores().Digest(), hashFor("vector")), Lists: sorted(sampleList().Digest(), hashFor("list")),
		Proofs: []Hash{hashFor("proof")},
		Value:  Value{Weights: &WeightsValue{Weights: weights, MergeSet: hashFor("merge set")}},
	}
	lock := lockOn(p, 0, "ben", "cat", "dan")
	p.Lock = &lock
	return signedBy("ann", p)
}

func sampleMergeProposal() Proposal {
	return signedBy("ben", Proposal{
		Version: Version, Network: sampleNetwork, Cycle: 7, Instance: InstanceM, Parent: hashFor("W"), Proposer: idFor("ben"),
		Vectors: []Hash{sampleMergeVector().Digest()}, Lists: []Hash{}, Proofs: []Hash{},
		Value: Value{Merge: &MergeValue{Alpha: 1, Excluded: []string{"asm"}, Next: LinkTo(DagPB, []byte("checkpoint 8"))}},
	})
}

// voteOn is a name's vote for a decision in a round.
func voteOn(p Proposal, round uint32, step VoteType, name string) Vote {
	return signedBy(name, Vote{Version: Version, Network: p.Network, Cycle: p.Cycle, Instance: p.Instance, Round: round, Type: step,
		Parent: p.Parent, Digest: p.Decision(), Validator: idFor(name)})
}

// nullOf is a name's null in round 4 of an instance of the sample's cycle.
func nullOf(i Instance, name string) StatusVote {
	return signedBy(name, StatusVote{Version: Version, Network: sampleNetwork, Cycle: 7, Instance: i, Round: 4, Type: StatusNull, Parent: hashFor("parent"), Validator: idFor(name)})
}

// signatures collects one signature per name, in order of ids.
func signatures(names []string, sig func(name string) Sig) []VoteSig {
	var list []VoteSig
	for _, name := range names {
		list = append(list, VoteSig{idFor(name), sig(name)})
	}
	slices.SortFunc(list, func(a, b VoteSig) int { return a.Validator.Compare(b.Validator) })
	return list
}

func lockOn(p Proposal, round uint32, names ...string) Lock {
	return Lock{Version: Version, Network: p.Network, Cycle: p.Cycle, Instance: p.Instance, Round: round, Parent: p.Parent,
		Digest: p.Decision(), Snapshot: sampleSnapshot().Digest(),
		Signatures: signatures(names, func(name string) Sig { return voteOn(p, round, VotePrepare, name).Sig })}
}

// certify is the certificate of a proposal by the commit votes of names.
func certify(p Proposal, names ...string) Certificate {
	return Certificate{Version: Version, Network: p.Network, Cycle: p.Cycle, Instance: p.Instance, Round: p.Round, Parent: p.Parent,
		Proposal: &p, Snapshot: sampleSnapshot().Digest(),
		Signatures: signatures(names, func(name string) Sig { return voteOn(p, p.Round, VoteCommit, name).Sig })}
}

func certifyNull(i Instance, names ...string) Certificate {
	v := Vote{Version: Version, Network: sampleNetwork, Cycle: 7, Instance: i, Round: 4, Type: VoteCommit, Parent: hashFor("parent"),
		Digest: NullDecision(sampleNetwork, 7, i, hashFor("parent"))}
	return Certificate{Version: Version, Network: sampleNetwork, Cycle: 7, Instance: i, Round: v.Round, Parent: v.Parent, Snapshot: sampleSnapshot().Digest(),
		Signatures: signatures(names, func(name string) Sig { v.Validator = idFor(name); return signedBy(name, v).Sig })}
}

func sampleVote() Vote { return voteOn(sampleProposal(), 2, VoteCommit, "ben") }

func sampleStatusLock() StatusVote {
	return signedBy("cat", StatusVote{Version: Version, Network: sampleNetwork, Cycle: 7, Instance: InstanceW, Round: 4, Type: StatusLock,
		Parent: hashFor("parent"), LockRound: 2, LockDigest: sampleProposal().Decision(), Validator: idFor("cat")})
}

func sampleEquivocation() EquivocationProof {
	other := sampleCommitment()
	other.Manifest = LinkTo(DagCBOR, []byte("another manifest"))
	return proofOf(sampleCommitment(), signedBy("mia", other))
}

// proofOf is the proof of two statements that conflict.
func proofOf(a, b Signed) EquivocationProof {
	p, err := NewEquivocationProof(a, b)
	if err != nil {
		panic(err)
	}
	return p
}

func sampleSubmission() Submission {
	return signedBy("ann", Submission{Version: Version, Network: sampleNetwork, Cycle: 7, Validator: idFor("ann"), Weights: ScaleU16(sampleProposal().Value.Weights.Weights)})
}

// signedSamples has every signed record.
func signedSamples() []Signed {
	return []Signed{
		sampleBinding(), sampleHead(), sampleCommitment(), sampleList(), sampleScoreCommit(), sampleScores(), sampleMergeVector(),
		sampleProposal(), sampleVote(), sampleStatusLock(), sampleSubmission(),
	}
}

// nameOf is whose id it is.
func nameOf(t *testing.T, id ID) string {
	t.Helper()
	for _, name := range slices.Concat(sampleValidators, sampleMiners) {
		if idFor(name) == id {
			return name
		}
	}
	t.Fatalf("no sample participant is %s", id)
	return ""
}
