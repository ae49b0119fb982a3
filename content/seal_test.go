package content

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// pattern is the payload of the vectors: byte i is the low byte of i xor the byte above it.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8)
	}
	return b
}

func slot() Slot {
	return Slot{
		Version: 1, Network: protocol.LinkTo(protocol.DagCBOR, []byte("network")), Cycle: 7,
		Base: protocol.LinkTo(protocol.DagPB, []byte("base")), Group: "code", Miner: protocol.ID{1, 2, 3},
	}
}

func mustSeal(t *testing.T, payload []byte, slot Slot, seed Seed) [][]byte {
	t.Helper()
	segments, err := Seal(payload, slot, seed)
	if err != nil {
		t.Fatal(err)
	}
	return segments
}

// TestVectors compares with a second implementation.
func TestVectors(t *testing.T) {
	data, err := os.ReadFile("testdata/sealing.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []struct {
		Version         uint32
		Network, Base   protocol.Link
		Cycle           uint64
		Group           string
		Miner           protocol.ID
		Seed, Info, Key string
		Size            int
		Segments        []struct {
			Size       int
			CID        protocol.Link
			First, Tag string
		}
	}
	if err := json.Unmarshal(data, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors) < 5 {
		t.Fatalf("%d vectors", len(vectors))
	}
	for _, v := range vectors {
		s := Slot{Version: v.Version, Network: v.Network, Cycle: v.Cycle, Base: v.Base, Group: v.Group, Miner: v.Miner}
		var seed Seed
		if n, err := hex.Decode(seed[:], []byte(v.Seed)); err != nil || n != SeedSize {
			t.Fatal(err)
		}
		info, err := cbor.Marshal(keyInfo{Version: s.Version, Network: s.Network, Cycle: s.Cycle, Base: s.Base, Group: s.Group, Miner: s.Miner})
		if err != nil || hex.EncodeToString(info) != v.Info {
			t.Errorf("info %x, %v, want %s", info, err, v.Info)
		}
		segments := mustSeal(t, pattern(v.Size), s, seed)
		if len(segments) != len(v.Segments) {
			t.Fatalf("%d bytes: %d segments, want %d", v.Size, len(segments), len(v.Segments))
		}
		for i, sealed := range segments {
			want := v.Segments[i]
			if len(sealed) != want.Size || protocol.LinkTo(protocol.Raw, sealed) != want.CID ||
				hex.EncodeToString(sealed[:min(32, len(sealed))]) != want.First || hex.EncodeToString(sealed[len(sealed)-16:]) != want.Tag {
				t.Errorf("%d bytes: segment %d differs", v.Size, i)
			}
		}
	}
}

func TestSealIsBounded(t *testing.T) {
	if _, err := Seal(nil, slot(), Seed{}); err == nil {
		t.Error("an empty payload is sealed")
	}
	if _, err := Seal([]byte{1}, Slot{}, Seed{}); err == nil {
		t.Error("a payload is sealed for no network")
	}
	for _, n := range []int{1, SegmentPlain - 1, SegmentPlain, SegmentPlain + 1} {
		payload := pattern(n)
		before := slices.Clone(payload)
		total := 0
		for _, s := range mustSeal(t, payload, slot(), Seed{9}) {
			if len(s) > protocol.MaxSegment || len(s) <= protocol.SegmentOverhead {
				t.Errorf("%d bytes: a segment of %d", n, len(s))
			}
			total += len(s) - protocol.SegmentOverhead
		}
		if total != n || !bytes.Equal(payload, before) {
			t.Errorf("%d bytes: segments hold %d, or the payload changed", n, total)
		}
	}
}

// TestSegmentsStandAlone: a segment opens with its own slot, seed and index and with no other.
func TestSegmentsStandAlone(t *testing.T) {
	payload := pattern(2*SegmentPlain + 5)
	segments := mustSeal(t, payload, slot(), Seed{1})
	opens := func(s Slot, seed Seed, sealed []byte, index int) bool {
		t.Helper()
		o, err := newSealer(s, seed)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := o.open(nil, sealed, index)
		if err != nil && !errors.Is(err, ErrSealed) {
			t.Errorf("error %v", err)
		}
		return err == nil && bytes.Equal(plain, payload[index*SegmentPlain:min((index+1)*SegmentPlain, len(payload))])
	}
	for i, sealed := range segments {
		for j := range segments {
			if opens(slot(), Seed{1}, sealed, j) != (i == j) {
				t.Errorf("segment %d at place %d", i, j)
			}
		}
	}
	last := segments[2]
	for name, change := range map[string]func(*Slot){
		"version": func(s *Slot) { s.Version++ },
		"network": func(s *Slot) { s.Network = protocol.LinkTo(protocol.DagCBOR, []byte("another")) },
		"cycle":   func(s *Slot) { s.Cycle++ },
		"base":    func(s *Slot) { s.Base = protocol.LinkTo(protocol.DagPB, []byte("another")) },
		"group":   func(s *Slot) { s.Group = "codf" },
		"miner":   func(s *Slot) { s.Miner[31] ^= 1 },
	} {
		s := slot()
		change(&s)
		if opens(s, Seed{1}, last, 2) {
			t.Errorf("opens with another %s", name)
		}
	}
	if opens(slot(), Seed{2}, last, 2) {
		t.Error("opens with another seed")
	}
	for bit := range 8 * len(last) {
		flipped := slices.Clone(last)
		flipped[bit/8] ^= 1 << (bit % 8)
		if opens(slot(), Seed{1}, flipped, 2) {
			t.Errorf("opens with bit %d flipped", bit)
		}
	}
	for n := range last {
		if opens(slot(), Seed{1}, last[:n], 2) {
			t.Errorf("opens cut to %d bytes", n)
		}
	}
	if opens(slot(), Seed{1}, append(slices.Clone(last), 0), 2) {
		t.Error("opens with a byte more")
	}
}
