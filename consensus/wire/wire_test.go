package wire

import (
	"bytes"
	"compress/flate"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// network is one of so many validators and as many miners.
func network(n int) (protocol.Link, protocol.Snapshot) {
	s := protocol.Snapshot{Version: protocol.Version, Height: 1}
	for i := range 2 * n {
		id := sha256.Sum256(binary.BigEndian.AppendUint32(nil, uint32(i)))
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
	ids := s.Participants[:len(s.Participants)/2]
	for i, p := range ids {
		id := p.ID
		binary.BigEndian.PutUint16(id[:], uint16(i)) // sorted, and not all in the dictionary
		v.Groups[0].Rows = append(v.Groups[0].Rows, protocol.Row{
			Miner: id, Gain: rng.Int64N(1e7), StdErr: rng.Uint64N(1e6), N: 128, Screen: rng.Int64N(1e7), Status: protocol.StatusOK,
		})
		h := hash()
		l.Entries = append(l.Entries, protocol.ListEntry{
			Miner: id, Group: "go", Manifest: protocol.LinkTo(protocol.DagCBOR, h[:]), Bucket: uint32(rng.IntN(3000)), State: protocol.ListHeld,
		})
	}
	vote := protocol.Vote{
		Version: 1, Network: link, Cycle: 9, Instance: 1, Type: protocol.VoteCommit, Parent: hash(), Digest: hash(), Validator: s.Participants[1].ID,
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

// TestPack: what is packed comes back, and is as small as the package says.
func TestPack(t *testing.T) {
	link, s := network(256)
	for i := range s.Participants { // the miners' ids as in messages
		if i < 256 {
			binary.BigEndian.PutUint16(s.Participants[i].ID[:], uint16(i))
		}
	}
	c := New(link, s)
	for i, m := range messages(t, link, s) {
		packed := c.Pack(m)
		got, err := c.Unpack(packed)
		if err != nil || !bytes.Equal(got, m) {
			t.Errorf("message %d: %v", i, err)
		}
		t.Logf("%s: %d bytes of %d", consensus.Kind(m[0]), len(packed), len(m))
		if tenths := [...]int{3, 5, 6}[i]; 10*len(packed) > tenths*len(m) {
			t.Errorf("%s: %d bytes of %d", consensus.Kind(m[0]), len(packed), len(m))
		}
	}
	noise := make([]byte, 1000)
	for i := range noise {
		noise[i] = byte(rand.New(rand.NewPCG(uint64(i), 1)).Uint32())
	}
	for _, m := range [][]byte{nil, {7}, noise, make([]byte, consensus.MaxMessage)} {
		if got, err := c.Unpack(c.Pack(m)); err != nil || !bytes.Equal(got, m) {
			t.Errorf("%d bytes: %v", len(m), err)
		}
	}
}

// TestUnpackRefuses: nothing that is too long is made, and another dictionary gives an error or other bytes, never a panic.
func TestUnpackRefuses(t *testing.T) {
	link, s := network(4)
	c := New(link, s)
	var bomb bytes.Buffer
	bomb.WriteByte(deflate)
	w, _ := flate.NewWriter(&bomb, 9)
	w.Write(make([]byte, consensus.MaxMessage+1))
	w.Close()
	vote := c.Pack(messages(t, link, s)[2])
	for name, b := range map[string][]byte{
		"nothing": nil, "another form": {2, 1}, "a bomb": bomb.Bytes(), "cut": vote[:len(vote)-1], "something behind": append(bytes.Clone(vote), 0),
		"too long": make([]byte, consensus.MaxMessage+2),
	} {
		if _, err := c.Unpack(b); !errors.Is(err, ErrPacked) {
			t.Errorf("%s: %v", name, err)
		}
	}
	other, _ := network(4)
	_, bigger := network(5)
	if got, err := New(other, bigger).Unpack(vote); err == nil && bytes.Equal(got, messages(t, link, s)[2]) {
		t.Error("another snapshot's codec understands")
	}
}

func TestConcurrent(t *testing.T) {
	link, s := network(16)
	c := New(link, s)
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
	link, s := network(4)
	c := New(link, s)
	for _, m := range messages(f, link, s) {
		f.Add(c.Pack(m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := c.Unpack(b)
		if err != nil {
			if !errors.Is(err, ErrPacked) {
				t.Fatal(err)
			}
			return
		}
		if got, err := c.Unpack(c.Pack(m)); err != nil || !bytes.Equal(got, m) {
			t.Fatal("what was unpacked does not come back", err)
		}
	})
}

func BenchmarkPack(b *testing.B) {
	link, s := network(256)
	c := New(link, s)
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
	c := New(link, s)
	for _, m := range messages(b, link, s) {
		packed := c.Pack(m)
		b.Run(consensus.Kind(m[0]).String(), func(b *testing.B) {
			for b.Loop() {
				c.Unpack(packed)
			}
		})
	}
}
