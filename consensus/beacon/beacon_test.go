package beacon

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	bls "github.com/drand/kyber-bls12381"
)

func testKey(t testing.TB) Key {
	t.Helper()
	k, err := NewKey([32]byte{1: 42})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sign(t testing.TB, k Key, round uint64) []byte {
	t.Helper()
	sig, err := k.Sign(round)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// TestVector fixes how a key follows from its seed, and the format of a locked seed: testdata/onekey.json was made by this
// package and never changes.
func TestVector(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("testdata", "onekey.json"))
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Seed, Signature, Locked, Opened string
		Public                          Public
		Round                           uint64
	}
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	k, err := NewKey([32]byte(unhex(t, v.Seed)))
	if err != nil || !k.Public().Equal(v.Public) {
		t.Errorf("key %v, %v", k.Public(), err)
	}
	sig := sign(t, k, v.Round)
	if hex.EncodeToString(sig) != v.Signature {
		t.Errorf("signature %x", sig)
	}
	if seed, err := Unlock(v.Public, sig, unhex(t, v.Locked)); err != nil || hex.EncodeToString(seed[:]) != v.Opened {
		t.Errorf("opened %x, %v", seed, err)
	}
	other, err := NewKey([32]byte{})
	if err != nil || other.Public().Equal(k.Public()) {
		t.Errorf("another seed gave the same key, %v", err)
	}
}

func TestVerify(t *testing.T) {
	k := testKey(t)
	for _, round := range []uint64{1, 2, 1 << 40, 1<<64 - 1} {
		sig := sign(t, k, round)
		if err := k.Public().Verify(round, sig); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		for i := range sig {
			bad := bytes.Clone(sig)
			bad[i] ^= 1
			if err := k.Public().Verify(round, bad); !errors.Is(err, ErrSignature) {
				t.Fatalf("round %d, byte %d flipped: %v", round, i, err)
			}
			if testing.Short() && i > 4 {
				break
			}
		}
	}
	infinity := make([]byte, SignatureSize)
	infinity[0] = 0xc0
	for name, sig := range map[string][]byte{"nothing": nil, "short": make([]byte, 47), "long": make([]byte, 49), "zeros": make([]byte, 48), "infinity": infinity} {
		if err := k.Public().Verify(1, sig); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := k.Public().Verify(0, sign(t, k, 1)); !errors.Is(err, ErrRound) {
		t.Errorf("round 0: %v", err)
	}
	if _, err := k.Sign(0); !errors.Is(err, ErrRound) {
		t.Errorf("sign round 0: %v", err)
	}
	if err := (Public{}).Verify(1, sign(t, k, 1)); !errors.Is(err, ErrPublic) {
		t.Errorf("zero key: %v", err)
	}
	if _, err := (Key{}).Sign(1); !errors.Is(err, ErrPublic) {
		t.Errorf("zero secret key: %v", err)
	}
}

func TestPublic(t *testing.T) {
	k := testKey(t)
	text, err := json.Marshal(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	var back Public
	if err := json.Unmarshal(text, &back); err != nil || !back.Equal(k.Public()) || !bytes.Equal(back.Bytes(), k.Public().Bytes()) {
		t.Errorf("%s became %v, %v", text, back, err)
	}
	infinity, err := bls.NullKyberG2().Null().MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	off := k.Public().Bytes()
	off[95] ^= 1
	for name, b := range map[string][]byte{"nothing": nil, "short": make([]byte, 95), "zeros": make([]byte, 96), "infinity": infinity, "off the curve": off} {
		if _, err := ParsePublic(b); !errors.Is(err, ErrPublic) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, s := range []string{"", "zz", k.Public().String()[1:], "zz" + k.Public().String()[2:]} {
		if err := back.UnmarshalText([]byte(s)); !errors.Is(err, ErrPublic) {
			t.Errorf("%q: %v", s, err)
		}
	}
	if !back.Equal(k.Public()) {
		t.Error("a refused text changed the key")
	}
	if s := (Public{}).String(); s != "" {
		t.Errorf("zero key prints %q", s)
	}
}

func TestLock(t *testing.T) {
	k := testKey(t)
	seed := [SeedSize]byte{9, 8, 7}
	locked, err := Lock(k.Public(), 5, seed)
	if err != nil || len(locked) != 128 {
		t.Fatalf("%d bytes, %v", len(locked), err)
	}
	if got, err := Unlock(k.Public(), sign(t, k, 5), locked); err != nil || got != seed {
		t.Fatalf("opened %x, %v", got, err)
	}
	again, err := Lock(k.Public(), 5, seed)
	if err != nil || bytes.Equal(again, locked) {
		t.Errorf("two locks of one seed are equal: the seed could be guessed (%v)", err)
	}
	if got, err := Unlock(k.Public(), sign(t, k, 6), locked); !errors.Is(err, ErrLocked) || got != [SeedSize]byte{} {
		t.Errorf("another round's signature: %x, %v", got, err)
	}
	stranger, err := NewKey([32]byte{2})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Unlock(k.Public(), sign(t, stranger, 5), locked); !errors.Is(err, ErrLocked) {
		t.Errorf("another key's signature: %v", err)
	}
	for i := 0; i < len(locked); i += 5 {
		bad := bytes.Clone(locked)
		bad[i] ^= 0x10
		if _, err := Unlock(k.Public(), sign(t, k, 5), bad); !errors.Is(err, ErrLocked) {
			t.Errorf("byte %d flipped: %v", i, err)
		}
	}
	for _, n := range []int{0, 1, 127, 129, 1 << 20} {
		if _, err := Unlock(k.Public(), sign(t, k, 5), make([]byte, n)); !errors.Is(err, ErrLocked) {
			t.Errorf("%d zeros: %v", n, err)
		}
	}
	if _, err := Unlock(Public{}, sign(t, k, 5), locked); !errors.Is(err, ErrPublic) {
		t.Errorf("unlock with the zero key: %v", err)
	}
	if _, err := Lock(Public{}, 5, seed); !errors.Is(err, ErrPublic) {
		t.Errorf("zero key: %v", err)
	}
	if _, err := Lock(k.Public(), 0, seed); !errors.Is(err, ErrRound) {
		t.Errorf("round 0: %v", err)
	}
	infinity := make([]byte, SignatureSize)
	infinity[0] = 0xc0
	for _, sig := range [][]byte{nil, make([]byte, SignatureSize), infinity} {
		if _, err := Unlock(k.Public(), sig, locked); !errors.Is(err, ErrSignature) {
			t.Errorf("signature %x: %v", sig, err)
		}
	}
}

// TestConcurrent shares one key among goroutines; the race detector watches the curve library.
func TestConcurrent(t *testing.T) {
	k := testKey(t)
	var all sync.WaitGroup
	for i := range uint64(4) {
		all.Go(func() {
			sig, err := k.Sign(i + 1)
			if err != nil {
				t.Error(err)
				return
			}
			if err := k.Public().Verify(i+1, sig); err != nil {
				t.Error(err)
			}
			seed := [SeedSize]byte{byte(i)}
			locked, err := Lock(k.Public(), i+1, seed)
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := Unlock(k.Public(), sig, locked); err != nil || got != seed {
				t.Errorf("%x, %v", got, err)
			}
		})
	}
	all.Wait()
}

func TestClock(t *testing.T) {
	genesis := time.Unix(1_700_000_000, 0)
	c := Clock{genesis, 3 * time.Second}
	for _, v := range []struct {
		after time.Duration
		round uint64
	}{{-time.Hour, 0}, {-1, 0}, {0, 1}, {3*time.Second - 1, 1}, {3 * time.Second, 2}, {time.Hour, 1201}} {
		if got := c.RoundAt(genesis.Add(v.after)); got != v.round {
			t.Errorf("at genesis%+v: round %d, want %d", v.after, got, v.round)
		}
		if got := c.RoundAfter(genesis.Add(v.after)); got != v.round+1 || !c.TimeOf(got).After(genesis.Add(v.after)) {
			t.Errorf("after genesis%+v: round %d", v.after, got)
		}
	}
	for _, round := range []uint64{1, 2, 1000, 3_000_000_000} {
		if got := c.RoundAt(c.TimeOf(round)); got != round {
			t.Errorf("round %d is published at the time of round %d", round, got)
		}
		if got := c.RoundAt(c.TimeOf(round).Add(-1)); round > 1 && got != round-1 {
			t.Errorf("just before round %d: %d", round, got)
		}
	}
	far := genesis.Add(1<<63 - 1)
	for _, round := range []uint64{1 << 62, 1<<64 - 1} {
		if got := c.TimeOf(round); !got.Equal(far) {
			t.Errorf("round %d at %v", round, got)
		}
	}
	if q := QuicknetClock(); q.RoundAt(time.Unix(1692806364, 0)) != 1000 || q.Validate() != nil {
		t.Error("quicknet published round 1000 at 1692806364")
	}
	if err := (Clock{}).Validate(); err == nil {
		t.Error("the zero clock is valid")
	}
	if got := (Clock{Genesis: genesis}).RoundAt(far); got != 0 {
		t.Errorf("a clock that stands is at round %d", got)
	}
}

func FuzzUnlock(f *testing.F) {
	k := testKey(f)
	sig := sign(f, k, 5)
	locked, err := Lock(k.Public(), 5, [SeedSize]byte{1})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sig, locked)
	f.Add(sig, locked[:127])
	f.Add(locked[:48], locked)
	f.Fuzz(func(t *testing.T, s, b []byte) {
		seed, err := Unlock(k.Public(), s, b)
		switch {
		case err == nil:
			if len(b) != LockedSize || len(s) != SignatureSize {
				t.Fatalf("opened %d bytes with a signature of %d", len(b), len(s))
			}
		case !errors.Is(err, ErrLocked) && !errors.Is(err, ErrSignature):
			t.Fatalf("untyped error %v", err)
		case seed != [SeedSize]byte{}:
			t.Fatalf("seed %x with error %v", seed, err)
		}
	})
}

func FuzzVerify(f *testing.F) {
	k := testKey(f)
	f.Add(uint64(5), sign(f, k, 5))
	f.Add(uint64(6), sign(f, k, 5))
	f.Add(uint64(0), []byte{0xc0})
	f.Fuzz(func(t *testing.T, round uint64, sig []byte) {
		switch err := k.Public().Verify(round, sig); {
		case err == nil:
			if want := sign(t, k, round); !bytes.Equal(sig, want) {
				t.Fatalf("round %d has a second signature %x beside %x", round, sig, want)
			}
		case !errors.Is(err, ErrSignature) && !errors.Is(err, ErrRound):
			t.Fatalf("untyped error %v", err)
		}
	})
}

func FuzzParsePublic(f *testing.F) {
	f.Add(testKey(f).Public().Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParsePublic(b)
		if err == nil && !bytes.Equal(p.Bytes(), b) || err != nil && !errors.Is(err, ErrPublic) {
			t.Fatalf("%x gave %v, %v", b, p, err)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	k := testKey(b)
	for b.Loop() {
		sign(b, k, 5)
	}
}

func BenchmarkVerify(b *testing.B) {
	k := testKey(b)
	sig := sign(b, k, 5)
	for b.Loop() {
		if err := k.Public().Verify(5, sig); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLock(b *testing.B) {
	k := testKey(b)
	for b.Loop() {
		if _, err := Lock(k.Public(), 5, [SeedSize]byte{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUnlock(b *testing.B) {
	k := testKey(b)
	sig := sign(b, k, 5)
	locked, err := Lock(k.Public(), 5, [SeedSize]byte{})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Unlock(k.Public(), sig, locked); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParsePublic(b *testing.B) {
	p := testKey(b).Public().Bytes()
	for b.Loop() {
		if _, err := ParsePublic(p); err != nil {
			b.Fatal(err)
		}
	}
}
