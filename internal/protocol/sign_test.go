package protocol

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
)

// resigned returns a record of the same kind that carries another record's signature.
func resigned(t *testing.T, r Signed, sig Sig) Signed {
	t.Helper()
	switch r := r.(type) {
	case Binding:
		r.Sig = sig
		return r
	case Head:
		r.Sig = sig
		return r
	case Commitment:
		r.Sig = sig
		return r
	case List:
		r.Sig = sig
		return r
	case ScoreCommit:
		r.Sig = sig
		return r
	case ScoreVector:
		r.Sig = sig
		return r
	case MergeVector:
		r.Sig = sig
		return r
	case Proposal:
		r.Sig = sig
		return r
	case Vote:
		r.Sig = sig
		return r
	case StatusVote:
		r.Sig = sig
		return r
	case Submission:
		r.Sig = sig
		return r
	}
	t.Fatalf("a signed record %T that the tests do not know", r)
	return nil
}

// sigOf reads the signature off the end of the signed form: the only byte string of 64 under the key "sig".
func sigOf(t *testing.T, r Signed) (s Sig) {
	t.Helper()
	b, err := Encode(r)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := bytes.Cut(b, []byte("\x63sig\x58\x40"))
	if !ok {
		t.Fatalf("%T has no signature", r)
	}
	copy(s[:], rest)
	return s
}

// TestSignatures: every signed record verifies with its signer's key, alone with it, and alone as it is.
func TestSignatures(t *testing.T) {
	for _, r := range signedSamples() {
		name := nameOf(t, r.Signer())
		key, other := KeyOf(keyFor(name)), KeyOf(keyFor("eve"))
		if !r.VerifySig(key) {
			t.Errorf("%T: its own signature does not verify", r)
		}
		if r.VerifySig(other) || r.VerifySig(Key{}) {
			t.Errorf("%T: verifies with another key", r)
		}
		sig := sigOf(t, r)
		for i := range sig {
			bad := sig
			bad[i] ^= 1
			if resigned(t, r, bad).VerifySig(key) {
				t.Errorf("%T: verifies with byte %d of the signature changed", r, i)
			}
		}
		// S + L is the same number modulo the group's order: a second signature that anybody could make.
		if resigned(t, r, addOrder(sig)).VerifySig(key) {
			t.Errorf("%T: verifies with an S that is not reduced", r)
		}
		if err := resigned(t, r, Sig{}).Validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%T: without a signature: %v", r, err)
		}
	}
}

// addOrder adds the order of the group to the second half of a signature.
func addOrder(s Sig) Sig {
	order, _ := new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
	little := bytes.Clone(s[32:])
	slices.Reverse(little)
	sum := order.Add(order, new(big.Int).SetBytes(little)).FillBytes(make([]byte, 32))
	slices.Reverse(sum)
	copy(s[32:], sum)
	return s
}

// TestSignedBytesAreBound changes every byte of every signed record: what still decodes no longer verifies.
func TestSignedBytesAreBound(t *testing.T) {
	for _, entry := range records {
		r, ok := entry.sample.(Signed)
		if !ok {
			continue
		}
		key := KeyOf(keyFor(nameOf(t, r.Signer())))
		b, err := Encode(r)
		if err != nil {
			t.Fatal(err)
		}
		decoded := 0
		for i := range b {
			other := bytes.Clone(b)
			other[i] ^= 1
			v, err := entry.decode(other)
			if err != nil {
				continue
			}
			decoded++
			if v.(Signed).VerifySig(key) {
				t.Errorf("%s: byte %d is not signed", entry.name, i)
			}
		}
		if decoded < 64 { // the signature alone
			t.Errorf("%s: only %d changes decode; the test shows little", entry.name, decoded)
		}
	}
}

// TestDomains: the signed bytes of no record begin like those of another, so that a signature of one is never one of
// another; and a kind's prefix is what the specification says.
func TestDomains(t *testing.T) {
	kinds := map[string]Signed{}
	want := []string{"binding", "head", "commitment", "list", "score-commit", "score-vector", "merge-vector", "proposal", "vote", "status-vote", "submission"}
	for i, r := range signedSamples() {
		message := r.SigningBytes()
		prefix, encoding, _ := bytes.Cut(message, []byte{0})
		if string(prefix) != "bzd/"+want[i]+"/1" {
			t.Errorf("%T is signed as %q", r, prefix)
		}
		if other, taken := kinds[string(prefix)]; taken {
			t.Errorf("%T and %T have one domain", r, other)
		}
		kinds[string(prefix)] = r
		b, err := Encode(r)
		if err != nil {
			t.Fatal(err)
		}
		sig := sigOf(t, r)
		if unsigned := bytes.Replace(b, sig[:], make([]byte, len(sig)), 1); !bytes.Equal(unsigned, encoding) {
			t.Errorf("%T: what is signed is not the encoding with a zero signature", r)
		}
	}
	// One person signs every kind; each signature is tried on every other record.
	for _, from := range signedSamples() {
		for _, to := range signedSamples() {
			key := KeyOf(keyFor(nameOf(t, to.Signer())))
			same := string(from.SigningBytes()) == string(to.SigningBytes())
			if resigned(t, to, sigOf(t, from)).VerifySig(key) != same {
				t.Errorf("a signature of %T on %T", from, to)
			}
		}
	}
	// The same fields under two domains.
	var a, b Sig
	if err := errors.Join(sign(keyFor("ann"), signingBytes("one", sampleVote()), &a), sign(keyFor("ann"), signingBytes("two", sampleVote()), &b)); err != nil {
		t.Fatal(err)
	}
	if verify(KeyOf(keyFor("ann")), signingBytes("two", sampleVote()), a) || !verify(KeyOf(keyFor("ann")), signingBytes("two", sampleVote()), b) {
		t.Error("the domain is not signed")
	}
}

func TestSignRefuses(t *testing.T) {
	c := sampleCommitment()
	for _, key := range []ed25519.PrivateKey{nil, make([]byte, 32), make([]byte, 65)} {
		before := c.Sig
		if err := c.Sign(key); !errors.Is(err, errCannotSign) || c.Sig != before {
			t.Errorf("signed with %d bytes of key: %v", len(key), err)
		}
		if KeyOf(key) != (Key{}) {
			t.Errorf("a public key out of %d bytes", len(key))
		}
	}
	c.Manifest = Link{}
	if err := c.Sign(keyFor("mia")); !errors.Is(err, errCannotSign) {
		t.Errorf("signed a commitment to nothing: %v", err)
	}
	if c.SigningBytes() != nil || c.VerifySig(KeyOf(keyFor("mia"))) {
		t.Error("a record without an encoding has signed bytes")
	}
	if !(Proposal{}).Decision().IsZero() || !(Certificate{}).Decision().IsZero() || !(ScoreVector{}).CommitDigest().IsZero() || !(List{}).Digest().IsZero() {
		t.Error("a record without an encoding has a digest")
	}
	// A binding is only ever signed by the key in it.
	b := sampleBinding()
	b = signedBy("eve", b)
	if b.VerifySig(KeyOf(keyFor("eve"))) || b.VerifySig(KeyOf(keyFor("ann"))) {
		t.Error("a binding of ann's key signed by eve")
	}
}

func TestHashLink(t *testing.T) {
	l := sampleList()
	b, err := Encode(l)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := l.Digest().Link(), LinkTo(DagCBOR, b); got != want {
		t.Errorf("the digest names %s, the block is %s", got, want)
	}
}

func TestHexText(t *testing.T) {
	type all struct {
		Key  Key
		Sig  Sig
		Hash Hash
	}
	in := all{KeyOf(keyFor("ann")), sampleVote().Sig, hashFor("x")}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out all
	if err := json.Unmarshal(b, &out); err != nil || out != in {
		t.Fatalf("%s came back as %+v: %v", b, out, err)
	}
	for _, field := range []string{"Key", "Sig", "Hash"} {
		for _, text := range []string{"", "00", strings.Repeat("zz", 32), strings.Repeat("zz", 64)} {
			if err := json.Unmarshal([]byte(`{"`+field+`":"`+text+`"}`), &out); !errors.Is(err, ErrInvalid) {
				t.Errorf("%q as a %s: %v", text, field, err)
			}
		}
	}
}
