package protocol

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestCertificates: stakes are ann 10, ben 20, cat 30, dan 40, and 67 certify.
func TestCertificates(t *testing.T) {
	s, p := sampleSnapshot(), sampleProposal()
	for _, names := range [][]string{{"cat", "dan"}, {"ben", "cat", "dan"}, {"ann", "ben", "dan"}, sampleValidators} {
		if err := certify(p, names...).Verify(s); err != nil {
			t.Errorf("by %v: %v", names, err)
		}
		if err := certifyNull(InstanceW, names...).Verify(s); err != nil {
			t.Errorf("null by %v: %v", names, err)
		}
		lock := lockOn(p, 1, names...)
		if err := lock.Verify(s); err != nil {
			t.Errorf("lock by %v: %v", names, err)
		}
	}
	if err := certify(sampleMergeProposal(), "cat", "dan").Verify(s); err != nil {
		t.Errorf("of M: %v", err)
	}

	type change struct {
		name string
		c    Certificate
		want error
	}
	broken := func(name string, want error, f func(*Certificate)) change {
		c := certify(sampleProposal(), "ben", "cat", "dan")
		f(&c)
		return change{name, c, want}
	}
	signed := func(i int, by string, v Vote) func(*Certificate) {
		return func(c *Certificate) { c.Signatures[i] = VoteSig{idFor(by), signedBy(by, v).Sig} }
	}
	// vote is ben's, changed; his signature is put in its place.
	bens := slices.IndexFunc(certify(p, "ben", "cat", "dan").Signatures, func(v VoteSig) bool { return v.Validator == idFor("ben") })
	vote := func(f func(*Vote)) func(*Certificate) {
		v := voteOn(p, p.Round, VoteCommit, "ben")
		f(&v)
		return signed(bens, "ben", v)
	}
	for _, c := range []change{
		{"too little stake: 60", certify(p, "ben", "dan"), ErrQuorum},
		{"just too little: 60 of all but dan", certify(p, "ann", "ben", "cat"), ErrQuorum},
		{"a miner signs", certify(p, "cat", "dan", "mia"), ErrSigner},
		{"a stranger signs", certify(p, "cat", "dan", "eve"), ErrSigner},
		broken("no signatures", ErrInvalid, func(c *Certificate) { c.Signatures = nil }),
		broken("twice the same", ErrInvalid, func(c *Certificate) { c.Signatures[0] = c.Signatures[1] }),
		broken("out of order", ErrInvalid, func(c *Certificate) { slices.Reverse(c.Signatures) }),
		broken("an empty signature", ErrInvalid, func(c *Certificate) { c.Signatures[1].Sig = Sig{} }),
		broken("a wrong signature", ErrSignature, func(c *Certificate) { c.Signatures[1].Sig[5] ^= 1 }),
		broken("another's signature", ErrSignature, func(c *Certificate) { c.Signatures[0].Sig = c.Signatures[1].Sig }),
		broken("wrong parent", ErrInvalid, func(c *Certificate) { c.Parent = hashFor("another parent") }),
		broken("wrong cycle", ErrInvalid, func(c *Certificate) { c.Cycle++ }),
		broken("wrong round", ErrSignature, func(c *Certificate) { c.Round++ }),
		broken("wrong instance", ErrInvalid, func(c *Certificate) { c.Instance = InstanceM }),
		broken("wrong network", ErrInvalid, func(c *Certificate) { c.Network = LinkTo(DagCBOR, nil) }),
		broken("wrong snapshot", ErrSnapshot, func(c *Certificate) { c.Snapshot = hashFor("another snapshot") }),
		broken("turned into a null", ErrSignature, func(c *Certificate) { c.Proposal = nil }),
		broken("its proposal not the proposer's", ErrSignature, func(c *Certificate) { c.Proposal.Sig[0] ^= 1 }),
		broken("a vote of another parent", ErrSignature, vote(func(v *Vote) { v.Parent = hashFor("another parent") })),
		broken("a vote for something else", ErrSignature, vote(func(v *Vote) { v.Digest = hashFor("another value") })),
		broken("a vote of another round", ErrSignature, vote(func(v *Vote) { v.Round = 0 })),
		broken("a vote of another cycle", ErrSignature, vote(func(v *Vote) { v.Cycle++ })),
		broken("a vote of the other instance", ErrSignature, vote(func(v *Vote) { v.Instance = InstanceM })),
		broken("a prepare", ErrSignature, vote(func(v *Vote) { v.Type = VotePrepare })),
		broken("a vote of another network", ErrSignature, vote(func(v *Vote) { v.Network = LinkTo(DagCBOR, nil) })),
	} {
		if err := c.c.Verify(s); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}

	// A proposer who is no validator certifies nothing, whoever votes for it.
	mine := sampleMergeProposal()
	mine.Proposer = idFor("mia")
	if err := certify(signedBy("mia", mine), "cat", "dan").Verify(s); !errors.Is(err, ErrSigner) {
		t.Errorf("a miner's proposal: %v", err)
	}
	// A proposal may be certified in a later round than its own.
	late := certify(p, "cat", "dan")
	late.Round = 9
	late.Signatures = signatures([]string{"cat", "dan"}, func(name string) Sig { return voteOn(p, 9, VoteCommit, name).Sig })
	if err := late.Verify(s); err != nil {
		t.Errorf("in a later round: %v", err)
	}
	// Nulls of the other instance are not nulls of this one.
	null := certifyNull(InstanceM, "cat", "dan")
	null.Instance = InstanceW
	if err := null.Verify(s); !errors.Is(err, ErrSignature) {
		t.Errorf("nulls of M as nulls of W: %v", err)
	}
	// Prepares are not commits.
	prepared := certify(p, "cat", "dan")
	prepared.Signatures = lockOn(p, p.Round, "cat", "dan").Signatures
	if err := prepared.Verify(s); !errors.Is(err, ErrSignature) {
		t.Errorf("a certificate of prepares: %v", err)
	}
	lock := lockOn(p, 2, "cat", "dan")
	lock.Signatures = certify(p, "cat", "dan").Signatures
	if err := lock.Verify(s); !errors.Is(err, ErrSignature) {
		t.Errorf("a lock of commits: %v", err)
	}
	// The stake of the snapshot decides, and no other snapshot's.
	poor := sampleSnapshot()
	for i := range poor.Participants {
		poor.Participants[i].Stake = 0
	}
	c := certify(p, sampleValidators...)
	c.Snapshot = poor.Digest()
	if err := c.Verify(poor); !errors.Is(err, ErrQuorum) {
		t.Errorf("without stake: %v", err)
	}
}

// TestDecision: what votes are over is the value with its evidence, and nothing else.
func TestDecision(t *testing.T) {
	p := sampleProposal()
	again := p
	again.Round, again.Proposer, again.Lock = 3, idFor("dan"), nil
	again = signedBy("dan", again)
	if p.Decision() != again.Decision() {
		t.Error("proposed again by another, it is another decision")
	}
	if a, b := certify(p, "cat", "dan"), certify(again, sampleValidators...); a.Decision() != b.Decision() || a.Digest() == b.Digest() {
		t.Error("two certificates of one decision")
	}
	for name, f := range map[string]func(*Proposal){
		"network":  func(p *Proposal) { p.Network = LinkTo(DagCBOR, nil) },
		"cycle":    func(p *Proposal) { p.Cycle++ },
		"instance": func(p *Proposal) { p.Instance = InstanceM },
		"parent":   func(p *Proposal) { p.Parent = Hash{} },
		"vectors":  func(p *Proposal) { p.Vectors = p.Vectors[:1] },
		"lists":    func(p *Proposal) { p.Lists = p.Lists[:1] },
		"proofs":   func(p *Proposal) { p.Proofs = nil },
		"value": func(p *Proposal) {
			v := *p.Value.Weights
			v.MergeSet = Hash{}
			p.Value.Weights = &v
		},
	} {
		other := p
		f(&other)
		if other.Decision() == p.Decision() {
			t.Errorf("the decision does not cover the %s", name)
		}
	}
	w, m := certifyNull(InstanceW, "cat", "dan"), certifyNull(InstanceM, "cat", "dan")
	if w.Decision() == m.Decision() || w.Decision() != certifyNull(InstanceW, sampleValidators...).Decision() || w.Decision().IsZero() {
		t.Error("the decision of a null certificate is its instance's")
	}
	if !w.Null() || certify(p, "cat").Null() {
		t.Error("null is the one without a proposal")
	}
	if p.Value.Digest() == sampleMergeProposal().Value.Digest() {
		t.Error("two values, one digest")
	}
}

func TestProposalLock(t *testing.T) {
	s, p := sampleSnapshot(), sampleProposal()
	if err := p.Verify(s); err != nil {
		t.Fatal(err)
	}
	weak := lockOn(p, 0, "ben", "dan")
	p.Lock = &weak
	if err := signedBy("ann", p).Verify(s); !errors.Is(err, ErrQuorum) {
		t.Errorf("on a lock without a quorum: %v", err)
	}
	p.Lock = nil
	if err := p.Verify(s); !errors.Is(err, ErrSignature) {
		t.Errorf("with its lock taken away: %v", err)
	}
	if err := signedBy("ann", p).Verify(s); err != nil {
		t.Errorf("without a lock: %v", err)
	}
}

func TestScoreCommitOpens(t *testing.T) {
	c, v := sampleScoreCommit(), sampleScores()
	if !v.Opens(c) {
		t.Fatal("a vector does not open its commit")
	}
	for name, f := range map[string]func(*ScoreVector){
		"salt":      func(v *ScoreVector) { v.Salt[0] ^= 1 },
		"validator": func(v *ScoreVector) { v.Validator = idFor("ben") },
		"list":      func(v *ScoreVector) { v.List = Hash{} },
		"parent":    func(v *ScoreVector) { v.Parent = Hash{} },
		"cycle":     func(v *ScoreVector) { v.Cycle++ },
		"rows":      func(v *ScoreVector) { v.Groups = nil },
		"network":   func(v *ScoreVector) { v.Network = LinkTo(DagCBOR, nil) },
	} {
		other := v
		f(&other)
		if other.Opens(c) {
			t.Errorf("a vector with another %s opens the commit", name)
		}
	}
	// The signature is not committed to: ed25519 has many for one message, and one vector is one vector.
	v.Sig = Sig{1}
	if !v.Opens(c) {
		t.Error("the signature is part of what was committed to")
	}
	// A copied commit names its author, so it cannot be opened by the copier.
	c.Validator = idFor("ben")
	v.Validator = idFor("ben")
	if v.Opens(c) {
		t.Error("ben opens ann's commit")
	}
	if (ScoreVector{}).Opens(ScoreCommit{}) {
		t.Error("nothing opens nothing")
	}
}

// TestDigestVectors compares the digests that records name each other by with those recorded.
func TestDigestVectors(t *testing.T) {
	path := filepath.Join("testdata", "digests.txt")
	var got strings.Builder
	for _, d := range []struct {
		name string
		hash Hash
	}{
		{"digest of snapshot", sampleSnapshot().Digest()},
		{"digest of list", sampleList().Digest()},
		{"digest of score-vector", sampleScores().Digest()},
		{"commit digest of score-vector", sampleScores().CommitDigest()},
		{"digest of merge-vector", sampleMergeVector().Digest()},
		{"digest of equivocation", sampleEquivocation().Digest()},
		{"decision of proposal", sampleProposal().Decision()},
		{"decision of merge-proposal", sampleMergeProposal().Decision()},
		{"decision of certificate", certify(sampleProposal(), "cat", "dan").Decision()},
		{"decision of null-certificate", certifyNull(InstanceW, "cat", "dan").Decision()},
	} {
		fmt.Fprintf(&got, "%s %s\n", d.hash, d.name)
	}
	want, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && *update {
		want = []byte(got.String())
		err = os.WriteFile(path, want, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("a digest changed; old nodes would not find what it names\n got\n%s\nwant\n%s", &got, want)
	}
}
