package beacon

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"filippo.io/age/armor"
	"github.com/drand/drand/v2/common"
	"github.com/drand/drand/v2/crypto"
	"github.com/drand/tlock"
)

// The vectors of testdata are public: the key and rounds of drand's quicknet (chain
// 52db9ba70e0cc0f6eaf7803dd07447a1f5477735fd3f661792ba94600c84e971, api.drand.sh/<chain>/public/<round>), and a file that
// drand's own command line locked to round 12040883 (drand/tlock, tlock_test.go, TestDecryptText).

type vector struct {
	Round                 uint64
	Signature, Randomness string
}

func quicknet(t testing.TB) (public Public, rounds []vector) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "quicknet.json"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Public Public
		Rounds []vector
	}
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	if file.Public.String() != QuicknetPublic || len(file.Rounds) == 0 {
		t.Fatalf("vectors of the key %v", file.Public)
	}
	return file.Public, file.Rounds
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestQuicknet verifies what the real beacon signed.
func TestQuicknet(t *testing.T) {
	public, rounds := quicknet(t)
	for _, v := range rounds {
		sig := unhex(t, v.Signature)
		if err := public.Verify(v.Round, sig); err != nil {
			t.Errorf("round %d: %v", v.Round, err)
		}
		if err := public.Verify(v.Round+1, sig); !errors.Is(err, ErrSignature) {
			t.Errorf("round %d's signature for the next round: %v", v.Round, err)
		}
		if r := Randomness(sig); v.Randomness != "" && hex.EncodeToString(r[:]) != v.Randomness {
			t.Errorf("round %d: randomness %x, want %s", v.Round, r, v.Randomness)
		}
	}
}

// identity opens an age file whose key was timelocked, with our Unlock.
type identity struct {
	t      *testing.T
	public Public
	sig    []byte
}

func (id identity) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	for _, s := range stanzas {
		if s.Type == "tlock" {
			id.t.Logf("locked: %s", base64.StdEncoding.EncodeToString(s.Body))
			seed, err := Unlock(id.public, id.sig, s.Body)
			return seed[:], err
		}
	}
	return nil, age.ErrIncorrectIdentity
}

// TestUnlocksFileOfTlock opens a file that drand's command line made, with the signature that drand published later.
func TestUnlocksFileOfTlock(t *testing.T) {
	public, rounds := quicknet(t)
	f, err := os.Open(filepath.Join("testdata", "quicknet-12040883.age"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	last := rounds[len(rounds)-1]
	if last.Round != 12040883 {
		t.Fatalf("the last vector is of round %d", last.Round)
	}
	plain, err := age.Decrypt(armor.NewReader(f), identity{t, public, unhex(t, last.Signature)})
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(plain)
	if err != nil || strings.TrimSpace(string(got)) != "hello world" {
		t.Fatalf("opened %q, %v", got, err)
	}
}

// TestSameAsTlock locks with one and opens with the other, both ways, and compares keys and signatures with drand's.
func TestSameAsTlock(t *testing.T) {
	key := testKey(t)
	scheme := *crypto.NewPedersenBLSUnchainedG1()
	point := scheme.KeyGroup.Point()
	if err := point.UnmarshalBinary(key.Public().Bytes()); err != nil {
		t.Fatal(err)
	}
	const round = 77
	sig := sign(t, key, round)
	if err := scheme.VerifyBeacon(&common.Beacon{Round: round, Signature: sig}, point); err != nil {
		t.Errorf("drand refuses our signature: %v", err)
	}
	theirs, err := scheme.AuthScheme.Sign(key.scalar, scheme.DigestBeacon(&common.Beacon{Round: round}))
	if err != nil || !bytes.Equal(theirs, sig) {
		t.Errorf("drand signs %x (%v), we %x", theirs, err, sig)
	}

	seed := [SeedSize]byte{1, 2, 3, 15: 0xff}
	ours, err := Lock(key.Public(), round, seed)
	if err != nil {
		t.Fatal(err)
	}
	c, err := tlock.BytesToCiphertext(scheme, ours)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := tlock.TimeUnlock(scheme, point, common.Beacon{Round: round, Signature: sig}, c); err != nil || [SeedSize]byte(got) != seed {
		t.Errorf("tlock opens our lock to %x, %v", got, err)
	}

	if c, err = tlock.TimeLock(scheme, point, round, seed[:]); err != nil {
		t.Fatal(err)
	}
	locked, err := tlock.CiphertextToBytes(scheme, c)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Unlock(key.Public(), sig, locked); err != nil || got != seed {
		t.Errorf("we open tlock's lock to %x, %v", got, err)
	}
}
