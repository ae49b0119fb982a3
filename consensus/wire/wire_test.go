package wire

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/internal/protocol"
)

var update = flag.Bool("update", false, "write the vectors of testdata anew")

// network is one of so many miners and as many validators, in turn.
func network(n int) (protocol.Link, protocol.Snapshot) {
	s := protocol.Snapshot{Version: protocol.Version, Height: 1}
	for i := range 2 * n {
		id := sha256.Sum256(binary.BigEndian.AppendUint32(nil, uint32(i)))
		binary.BigEndian.PutUint16(id[:], uint16(i)) // sorted
		s.Participants = append(s.Participants, protocol.Participant{ID: id, Stake: 1, Roles: protocol.RoleValidator})
	}
	return protocol.LinkTo(protocol.DagCBOR, []byte("genesis")), s
}

// messages are a vote, a table of scores and a list, of about what they are in a network of that size.
func messages(t testing.TB, link protocol.Link, s protocol.Snapshot) (all [][]byte) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 1))
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	hash := func() (h protocol.Hash) { binary.BigEndian.PutUint64(h[:], rng.Uint64()); return sha256.Sum256(h[:]) }
	v := protocol.ScoreVector{
		Version: 1, Network: link, Cycle: 9, Parent: hash(), Validator: s.Participants[1].ID, List: hash(), Salt: hash(),
		Groups: []protocol.GroupRows{{Group: "go"}},
	}
	l := protocol.List{Version: 1, Network: link, Cycle: 9, Validator: s.Participants[1].ID}
	for i, p := range s.Participants {
		id := p.ID
		if i%2 == 1 {
			continue
		}
		v.Groups[0].Rows = append(v.Groups[0].Rows, protocol.Row{
			Miner: id, Gain: rng.Int64N(1e7), StdErr: rng.Uint64N(1e6), N: 128, Screen: rng.Int64N(1e7),
			Status: protocol.StatusOK,
		})
		h := hash()
		l.Entries = append(l.Entries, protocol.ListEntry{
			Miner: id, Group: "go", Manifest: protocol.LinkTo(protocol.DagCBOR, h[:]),
			Bucket: uint32(rng.IntN(3000)), State: protocol.ListHeld,
		})
	}
	vote := protocol.Vote{
		Version: 1, Network: link, Cycle: 9, Instance: 1, Type: protocol.VoteCommit, Parent: hash(), Digest: hash(),
		Validator: s.Participants[1].ID,
	}
	for _, err := range []error{v.Sign(key), l.Sign(key), vote.Sign(key)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range []protocol.Record{v, l, vote} {
		m, err := consensus.NewMessage(r)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, m.Encode())
	}
	return all
}

// cycle is that of all samples.
const cycle = 7

// samples are the protocol's vectors that are messages, by file, and the codec of their network and cycle.
func samples(t testing.TB) (c *Codec, byFile map[string][]byte) {
	t.Helper()
	read := func(name string) []byte {
		text, err := os.ReadFile("../../internal/protocol/testdata/vectors/" + name + ".hex")
		if err != nil {
			t.Fatal(err)
		}
		b, err := hex.DecodeString(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	s, err := protocol.DecodeSnapshot(read("snapshot"))
	if err != nil {
		t.Fatal(err)
	}
	vote, err := protocol.DecodeVote(read("vote"))
	if err != nil {
		t.Fatal(err)
	}
	byFile = make(map[string][]byte)
	for name, kind := range map[string]consensus.Kind{
		"score-commit": consensus.KindScoreCommit, "score-vector": consensus.KindScoreVector,
		"merge-vector": consensus.KindMergeVector,
		"list":         consensus.KindList, "proposal": consensus.KindProposal, "merge-proposal": consensus.KindProposal,
		"vote":        consensus.KindVote,
		"status-null": consensus.KindStatus, "status-lock": consensus.KindStatus, "certificate": consensus.KindCertificate,
		"null-certificate": consensus.KindCertificate, "lock": consensus.KindLock,
	} {
		byFile[name] = consensus.Message{Kind: kind, Bytes: read(name)}.Encode()
	}
	return New(vote.Network, cycle, s), byFile
}

// TestVectors: the packing of each of the protocol's vectors is that of testdata, and comes back. A file of one bit
// changed anywhere is refused or is the packing of another message.
func TestVectors(t *testing.T) {
	c, all := samples(t)
	for name, m := range all {
		packed := c.Pack(m)
		file := filepath.Join("testdata", name+".hex")
		if *update {
			if err := os.WriteFile(file, []byte(hex.EncodeToString(packed)+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(packed); got != strings.TrimSpace(string(text)) {
			t.Errorf("%s: packed to %s", name, got)
		}
		if got, err := c.Unpack(packed); err != nil || !bytes.Equal(got, m) {
			t.Errorf("%s: %v", name, err)
		}
		for i := range 8 * len(packed) {
			b := bytes.Clone(packed)
			b[i/8] ^= 1 << (i % 8)
			one(t, c, b)
		}
		for i := range packed {
			if _, err := c.Unpack(packed[:i]); !errors.Is(err, ErrPacked) {
				t.Errorf("%s cut to %d bytes: %v", name, i, err)
			}
		}
	}
}

// one checks that bytes are refused with a typed error, or are the one packing of a message.
func one(t *testing.T, c *Codec, b []byte) {
	t.Helper()
	m, err := c.Unpack(b)
	if err != nil {
		if !errors.Is(err, ErrPacked) && !errors.Is(err, ErrCodec) {
			t.Fatalf("%x: %v", b, err)
		}
		return
	}
	if again := c.Pack(m); !bytes.Equal(again, b) {
		t.Fatalf("%x and %x are packings of one message", b, again)
	}
}

// TestPack: what is packed comes back, and is as small as the package says.
func TestPack(t *testing.T) {
	link, s := network(256)
	c := New(link, 9, s)
	for i, m := range messages(t, link, s) {
		packed := c.Pack(m)
		got, err := c.Unpack(packed)
		if err != nil || !bytes.Equal(got, m) {
			t.Errorf("message %d: %v", i, err)
		}
		t.Logf("%s: %d bytes of %d", consensus.Kind(m[0]), len(packed), len(m))
		if percent := [...]int{12, 31, 50}[i]; 100*len(packed) > percent*len(m) {
			t.Errorf("%s: %d bytes of %d", consensus.Kind(m[0]), len(packed), len(m))
		}
	}
	other := New(link, 8, s)
	proof := consensus.Message{Kind: consensus.KindProof, Bytes: make([]byte, 1000)}.Encode()
	for _, m := range append(messages(t, link, s), proof, nil, []byte{7}) {
		if got := other.Pack(m); !bytes.Equal(got, m) {
			t.Error("what the codec does not pack is changed")
		}
		if got, err := other.Unpack(m); len(m) > 0 && (err != nil || !bytes.Equal(got, m)) {
			t.Errorf("what the codec does not pack: %v", err)
		}
	}
}

// TestReference: a list says of a manifest that is known four bytes. Who does not know it learns whose list it is and
// what to ask for, and understands the whole.
func TestReference(t *testing.T) {
	link, s := network(64)
	c, behind := New(link, 9, s), New(link, 9, s)
	m := messages(t, link, s)[1]
	whole := c.Pack(m)
	l, err := protocol.DecodeList(m[1:])
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range l.Entries {
		Codecs{c}.Know(protocol.Commitment{Cycle: 9, Miner: e.Miner, Manifest: e.Manifest})
		Codecs{c}.Know(protocol.Commitment{Cycle: 8, Miner: e.Miner, Manifest: link})
	}
	packed := c.Pack(m)
	if len(packed) > len(m)/12 {
		t.Errorf("%d bytes instead of %d", len(packed), len(whole))
	}
	if got, err := c.Unpack(packed); err != nil || !bytes.Equal(got, m) {
		t.Error(err)
	}
	if got, err := c.Unpack(whole); err != nil || !bytes.Equal(got, m) {
		t.Error("a list in full is refused by who knows more:", err)
	}
	if got := (Codecs{c}).PackWhole(m); !bytes.Equal(got, whole) {
		t.Error("a list in full refers to manifests")
	}
	// Nothing known, all but one, and another one that begins alike.
	alike := sha256.Sum256([]byte("alike"))
	copy(alike[:referenceBytes], hash(l.Entries[0].Manifest))
	for step := range 3 {
		switch step {
		case 1:
			for _, e := range l.Entries[1:] {
				behind.Know(e.Miner, e.Manifest)
			}
		case 2:
			behind.Know(l.Entries[0].Miner, protocol.Hash(alike).Link())
		}
		_, err := behind.Unpack(packed)
		unknown := (*UnknownError)(nil)
		if !errors.As(err, &unknown) || !errors.Is(err, ErrCodec) || unknown.Signer != l.Validator ||
			unknown.Name != (consensus.Name{Kind: consensus.KindList, Hash: l.Digest()}) {
			t.Errorf("step %d: %v", step, err)
		}
	}
	for range 3 {
		behind.Know(l.Entries[0].Miner, link) // a second one, and no more
	}
	if got := len(behind.manifests[l.Entries[0].Miner]); got != maxKnown {
		t.Errorf("%d manifests are known of one miner", got)
	}
	behind.Know(protocol.ID{1}, link)
	if len(behind.manifests) != len(l.Entries) {
		t.Error("a manifest is known of somebody outside the snapshot")
	}
}

func hash(l protocol.Link) []byte { h := hashOf(l); return h[:] }

// TestRefused: one message has one packing, and what is wrong is the sender's fault only if the sender must have seen
// it.
func TestRefused(t *testing.T) {
	c, all := samples(t)
	vote := c.Pack(all["vote"])
	const head = 1 + tagBytes
	change := func(packed []byte, at, cut int, with ...byte) []byte {
		return slices.Concat(packed[:at], with, packed[at+cut:])
	}
	at := head + 1 + 2*32 // of the validator in a vote
	validator := c.ids[c.places[mustVote(t, all["vote"]).Validator]]
	commit, vector := c.Pack(all["score-commit"]), c.Pack(all["score-vector"])
	rows := head + 1 + 3*32 // of the first group in a vector
	for _, x := range []struct {
		name   string
		packed []byte
		want   error
	}{
		{"nothing", nil, ErrPacked},
		{"too long", make([]byte, consensus.MaxMessage+1), ErrPacked},
		{"not packed", all["vote"], ErrCodec},
		{"another codec", change(vote, 1, 1, vote[1]^1), ErrCodec},
		{"no codec", vote[:head-1], ErrPacked},
		{"something behind", append(bytes.Clone(vote), 0), ErrPacked},
		{"another kind", change(vote, 0, 1, packedBit|byte(consensus.KindLock)), ErrPacked},
		{"a proof", change(vote, 0, 1, packedBit|byte(consensus.KindProof)), ErrPacked},
		{"kind 0", change(vote, 0, 1, packedBit), ErrPacked},
		{"a participant in full", change(vote, at, 1, append([]byte{0}, validator[:]...)...), ErrPacked},
		{"a long number", change(vote, at, 1, vote[at]|0x80, 0), ErrPacked},
		{"a place behind the last", change(vote, at, 1, byte(len(c.ids)+1)), ErrPacked},
		{"no signature", change(commit, len(commit)-64, 64, make([]byte, 64)...), ErrPacked},
		{"more groups than bytes", change(vector, rows, 1, 0xff, 0xff, 0x03), ErrPacked},
		{"more rows than bytes", change(vector, rows+1+vectorName(vector[rows+1:]), 1, 0xff, 0xff, 0x03), ErrPacked},
	} {
		if _, err := c.Unpack(x.packed); !errors.Is(err, x.want) || errors.Is(err, ErrPacked) == errors.Is(err, ErrCodec) {
			t.Errorf("%s: %v", x.name, err)
		}
	}
	if _, err := (Codecs{}).Unpack(vote); !errors.Is(err, ErrCodec) {
		t.Errorf("without a codec: %v", err)
	}
}

// vectorName is how many bytes a name takes that comes first.
func vectorName(b []byte) int { return 2 + int(b[1]) }

func mustVote(t *testing.T, m []byte) protocol.Vote {
	t.Helper()
	v, err := protocol.DecodeVote(m[1:])
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestBounded: lists of the least elements that fill a message take memory in proportion, before they are refused.
func TestBounded(t *testing.T) {
	c, all := samples(t)
	const head = 1 + tagBytes
	vector := c.Pack(all["score-vector"])
	many := binary.AppendUvarint(nil, consensus.MaxMessage/encodedGroup-1)
	b := slices.Concat(vector[:head+1+3*32], many, make([]byte, consensus.MaxMessage-head-1-3*32-len(many)))
	if _, err := c.Unpack(b); !errors.Is(err, ErrPacked) {
		t.Fatal(err)
	}
	names := slices.Clone(b[:head+1+3*32+len(many)])
	for i := range maxNames + 1 {
		names = append(names, 0, 2, byte(i), byte(i>>8), 0)
	}
	names = append(names, make([]byte, 1<<19)...)
	if _, err := c.Unpack(names); err == nil || !strings.Contains(err.Error(), "names") {
		t.Errorf("a message of %d names: %v", maxNames+1, err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	c.Unpack(b)
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 16*consensus.MaxMessage {
		t.Errorf("%d bytes for a message of %d", took, len(b))
	}
	// The least that an element may take in an encoding is what it takes.
	for name, x := range map[string]struct {
		r       protocol.Record
		encoded int
	}{
		"row":       {protocol.Row{Status: protocol.StatusOffline}, encodedRow},
		"merge row": {protocol.MergeRow{Alpha: 1, Domain: "x", N: 2}, encodedMerge},
	} {
		if b, err := protocol.Encode(x.r); err != nil || len(b) < x.encoded {
			t.Errorf("a %s takes %d bytes, %v", name, len(b), err)
		}
	}
}

func TestConcurrent(t *testing.T) {
	link, s := network(16)
	c := New(link, 9, s)
	all := messages(t, link, s)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 50 {
				m := all[(g+i)%len(all)]
				if got, err := c.Unpack(c.Pack(m)); err != nil || !bytes.Equal(got, m) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func FuzzUnpack(f *testing.F) {
	c, all := samples(f)
	for _, m := range all {
		f.Add(c.Pack(m))
		f.Add(m)
	}
	f.Fuzz(func(t *testing.T, b []byte) { one(t, c, b) })
}

// FuzzReference is FuzzUnpack for a codec that knows manifests: a list may come in more or less full, and means the
// same.
func FuzzReference(f *testing.F) {
	c, all := samples(f)
	l, err := protocol.DecodeList(all["list"][1:])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(c.Pack(all["list"]))
	for _, e := range l.Entries {
		c.Know(e.Miner, e.Manifest)
	}
	f.Add(c.Pack(all["list"]))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := c.Unpack(b)
		if err != nil {
			return
		}
		for _, packed := range [][]byte{c.Pack(m), Codecs{c}.PackWhole(m)} {
			if got, err := c.Unpack(packed); err != nil || !bytes.Equal(got, m) {
				t.Fatalf("%x comes back as %x, %v", m, got, err)
			}
		}
	})
}

func BenchmarkPack(b *testing.B) {
	link, s := network(256)
	c := New(link, 9, s)
	for _, m := range messages(b, link, s) {
		b.Run(consensus.Kind(m[0]).String(), func(b *testing.B) {
			for b.Loop() {
				c.Pack(m)
			}
		})
	}
}

func BenchmarkUnpack(b *testing.B) {
	link, s := network(256)
	c := New(link, 9, s)
	for _, m := range messages(b, link, s) {
		packed := c.Pack(m)
		b.Run(consensus.Kind(m[0]).String(), func(b *testing.B) {
			for b.Loop() {
				c.Unpack(packed)
			}
		})
	}
}
