package protocol

import (
	"bytes"
	"errors"
	"testing"
)

// TestEquivocations: each kind proven, and next to each what is no offence.
func TestEquivocations(t *testing.T) {
	s := sampleSnapshot()
	// Each pair is of one signer, who signs both after the changes.
	commitment := func(f func(*Commitment)) Signed {
		c := sampleCommitment()
		f(&c)
		return signedBy("mia", c)
	}
	vote := func(f func(*Vote)) Signed {
		v := sampleVote()
		f(&v)
		return signedBy("ben", v)
	}
	proposal := func(f func(*Proposal)) Signed {
		p := sampleMergeProposal()
		f(&p)
		return signedBy("ben", p)
	}
	null := func(f func(*StatusVote)) Signed {
		v := nullOf(InstanceW, "ben")
		f(&v)
		return signedBy("ben", v)
	}
	score := func(f func(*ScoreCommit)) Signed {
		c := sampleScoreCommit()
		f(&c)
		return signedBy("ann", c)
	}
	list := func(f func(*List)) Signed {
		l := sampleList()
		f(&l)
		return signedBy("ann", l)
	}
	another := LinkTo(DagCBOR, []byte("another"))
	for _, c := range []struct {
		name string
		a, b Signed
		want Equivocation // 0: no offence
	}{
		{"two manifests", sampleCommitment(), commitment(func(c *Commitment) { c.Manifest = another }), EquivocationCommitment},
		{"two sizes", sampleCommitment(), commitment(func(c *Commitment) { c.Size++ }), EquivocationCommitment},
		{"commitments of two cycles", sampleCommitment(), commitment(func(c *Commitment) { c.Manifest, c.Cycle = another, 8 }), 0},
		{"commitments of two groups", sampleCommitment(), commitment(func(c *Commitment) { c.Manifest, c.Group = another, "asm" }), 0},
		{"commitments of two networks", sampleCommitment(), commitment(func(c *Commitment) { c.Manifest, c.Network = another, another }), 0},
		{"one commitment twice", sampleCommitment(), sampleCommitment(), 0},

		{"votes for two decisions", sampleVote(), vote(func(v *Vote) { v.Digest = hashFor("x") }), EquivocationVote},
		{"votes on two parents", sampleVote(), vote(func(v *Vote) { v.Parent = hashFor("x") }), EquivocationVote},
		{"prepare and commit", sampleVote(), vote(func(v *Vote) { v.Type, v.Digest = VotePrepare, hashFor("x") }), 0},
		{"votes of two rounds", sampleVote(), vote(func(v *Vote) { v.Round, v.Digest = 3, hashFor("x") }), 0},
		{"votes of two instances", sampleVote(), vote(func(v *Vote) { v.Instance, v.Digest = InstanceM, hashFor("x") }), 0},
		{"votes of two cycles", sampleVote(), vote(func(v *Vote) { v.Cycle, v.Digest = 8, hashFor("x") }), 0},
		{"one vote twice", sampleVote(), sampleVote(), 0},

		{"two values", sampleMergeProposal(), proposal(func(p *Proposal) { p.Value.Merge = &MergeValue{Alpha: 2, Next: LinkTo(DagPB, nil)} }), EquivocationProposal},
		{"two sets of evidence", sampleMergeProposal(), proposal(func(p *Proposal) { p.Proofs = []Hash{hashFor("x")} }), EquivocationProposal},
		{"proposals of two rounds", sampleMergeProposal(), proposal(func(p *Proposal) { p.Round, p.Proofs = 1, []Hash{hashFor("x")} }), 0},
		{"proposals of two cycles", sampleMergeProposal(), proposal(func(p *Proposal) { p.Cycle, p.Proofs = 8, []Hash{hashFor("x")} }), 0},
		{"one proposal twice", sampleMergeProposal(), sampleMergeProposal(), 0},

		{"commit and null", sampleVote(), null(func(*StatusVote) {}), EquivocationNull},
		{"commit after the null", vote(func(v *Vote) { v.Round = 4 }), null(func(*StatusVote) {}), 0},
		{"commit and null on another parent", sampleVote(), null(func(v *StatusVote) { v.Parent = Hash{} }), EquivocationNull},
		{"null and commit", null(func(*StatusVote) {}), sampleVote(), EquivocationNull},
		{"prepare and null", vote(func(v *Vote) { v.Type = VotePrepare }), null(func(*StatusVote) {}), 0},
		{"commit and lock", sampleVote(), null(func(v *StatusVote) { v.Type, v.LockDigest = StatusLock, hashFor("x") }), 0},
		{"commit and null of the other instance", sampleVote(), null(func(v *StatusVote) { v.Instance = InstanceM }), 0},
		{"commit and null of another cycle", sampleVote(), null(func(v *StatusVote) { v.Cycle = 8 }), 0},
		{"two nulls", null(func(*StatusVote) {}), null(func(v *StatusVote) { v.Parent = Hash{} }), 0},
		{"commit of ben, null of cat", sampleVote(), nullOf(InstanceW, "cat"), 0},

		{"two score commits", sampleScoreCommit(), score(func(c *ScoreCommit) { c.Digest = hashFor("x") }), EquivocationScoreCommit},
		{"score commits of two cycles", sampleScoreCommit(), score(func(c *ScoreCommit) { c.Digest, c.Cycle = hashFor("x"), 8 }), 0},
		{"one score commit twice", sampleScoreCommit(), sampleScoreCommit(), 0},

		{"two lists", sampleList(), list(func(l *List) { l.Entries = l.Entries[:1] }), EquivocationList},
		{"lists of two cycles", sampleList(), list(func(l *List) { l.Entries, l.Cycle = nil, 8 }), 0},
		{"one list twice", sampleList(), sampleList(), 0},

		{"vote and list", sampleVote(), sampleList(), 0},
		{"two heads", sampleHead(), sampleHead(), 0},
		{"two score vectors", sampleScores(), sampleScores(), 0},
	} {
		proof, err := NewEquivocationProof(c.a, c.b)
		if c.want == 0 {
			if err == nil {
				t.Errorf("%s: proves %s", c.name, proof.Kind)
			}
			if _, err := proof.Verify(s); err == nil {
				t.Errorf("%s: verifies", c.name)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		o, err := proof.Verify(s)
		if err != nil || o.Kind != c.want || o.Offender != c.a.Signer() || o.Cycle != 7 || o.Network != sampleNetwork {
			t.Errorf("%s: %+v, %v", c.name, o, err)
		}
		if (o.Group != "") != (c.want == EquivocationCommitment) {
			t.Errorf("%s: group %q", c.name, o.Group)
		}
		// The pair has one proof, whichever came first, and it survives the wire.
		if turned, err := NewEquivocationProof(c.b, c.a); err != nil || turned.Digest() != proof.Digest() {
			t.Errorf("%s: turned around it is another proof (%v)", c.name, err)
		}
		b, err := Encode(proof)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeEquivocationProof(b); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestFramingFails: nobody can be made an offender by what others sign.
func TestFramingFails(t *testing.T) {
	s := sampleSnapshot()
	one, two := sampleVote(), sampleVote()
	two.Digest = hashFor("x")
	two = signedBy("ben", two)
	proof := proofOf(one, two)

	forged := proofOf(one, signedBy("eve", two))
	if _, err := forged.Verify(s); !errors.Is(err, ErrSignature) {
		t.Errorf("eve signs in ben's name: %v", err)
	}
	forged = proofOf(signedBy("eve", one), signedBy("eve", two))
	if _, err := forged.Verify(s); !errors.Is(err, ErrSignature) {
		t.Errorf("eve signs both: %v", err)
	}
	stranger := func(v Vote) Vote {
		v.Validator = idFor("eve")
		return signedBy("eve", v)
	}
	if _, err := proofOf(stranger(one), stranger(two)).Verify(s); !errors.Is(err, ErrSigner) {
		t.Errorf("eve is no participant: %v", err)
	}
	cats := two
	cats.Validator = idFor("cat")
	if p, err := NewEquivocationProof(one, signedBy("cat", cats)); err == nil {
		t.Errorf("ben and cat disagree: %s", p.Kind)
	}

	// Two signatures of one message are not two statements. ed25519 lets the signer make others; here one is forged by hand.
	same := one
	same.Sig[0] ^= 1
	if p, err := NewEquivocationProof(one, same); err == nil {
		t.Errorf("one statement, two signatures: %s", p.Kind)
	}

	for name, f := range map[string]func(*EquivocationProof){
		"kind 0":          func(p *EquivocationProof) { p.Kind = 0 },
		"unknown kind":    func(p *EquivocationProof) { p.Kind = EquivocationList + 1 },
		"another kind":    func(p *EquivocationProof) { p.Kind = EquivocationCommitment },
		"out of order":    func(p *EquivocationProof) { p.First, p.Second = p.Second, p.First },
		"one missing":     func(p *EquivocationProof) { p.Second = nil },
		"trailing bytes":  func(p *EquivocationProof) { p.First = append(bytes.Clone(p.First), 0) },
		"another version": func(p *EquivocationProof) { p.Version = 2 },
	} {
		bad := proof
		f(&bad)
		if _, err := bad.Verify(s); err == nil {
			t.Errorf("%s: verifies", name)
		}
		if err := bad.Validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
