package content

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// memory is a store and a source of blocks.
type memory struct {
	blocks map[cid.Cid][]byte
	order  []cid.Cid // as they were put
	got    []cid.Cid // as they were asked for
	fail   error
}

func (m *memory) PutMany(_ context.Context, bs []blocks.Block) error {
	if m.fail != nil {
		return m.fail
	}
	if m.blocks == nil {
		m.blocks = make(map[cid.Cid][]byte)
	}
	for _, b := range bs {
		m.blocks[b.Cid()] = b.RawData()
		m.order = append(m.order, b.Cid())
	}
	return nil
}

var errAbsent = errors.New("absent")

func (m *memory) get(c cid.Cid) ([]byte, error) {
	m.got = append(m.got, c)
	if b, ok := m.blocks[c]; ok {
		return b, nil
	}
	return nil, errAbsent
}

// fakeLock stands for the timelock, which this package does not look into.
func fakeLock(round uint64, seed Seed) ([]byte, error) {
	return append(bytes.Repeat([]byte{byte(round)}, 112), seed[:]...), nil
}

// tensors cuts a payload of n bytes into a table of tensors that end at the given places, the last at n.
func tensors(ends ...uint64) (table []protocol.TensorEntry) {
	var at uint64
	for i, end := range ends {
		table = append(table, protocol.TensorEntry{Name: fmt.Sprintf("t%d", i), Shape: []uint64{1}, Offset: at, Size: end - at})
		at = end
	}
	return table
}

func payload(n int, ends ...uint64) Payload {
	return Payload{Slot: slot(), Codec: "dense-bf16", Tensors: tensors(append(ends, uint64(n))...), Bytes: pattern(n), Round: 42}
}

func build(t *testing.T, p Payload, seed Seed) (*Sealed, *memory) {
	t.Helper()
	s, err := Build(p, seed, fakeLock)
	if err != nil {
		t.Fatal(err)
	}
	m := new(memory)
	if err := s.Publish(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	return s, m
}

const anySize = 1 << 40

func TestRoundTrip(t *testing.T) {
	for _, n := range []int{1, 100, SegmentPlain, SegmentPlain + 1, 12*SegmentPlain + 77} {
		s, m := build(t, payload(n), Seed{3})
		if m.order[len(m.order)-1] != s.Link.Cid() || len(m.order) != len(s.Manifest.Segments)+1 {
			t.Errorf("%d bytes: %d blocks published, the manifest is not the last", n, len(m.order))
		}
		if !slices.Equal(m.order[:len(m.order)-1], Segments(s.Manifest)) {
			t.Errorf("%d bytes: Segments are not what was published", n)
		}
		read, err := protocol.DecodeManifest(m.blocks[s.Link.Cid()])
		if err != nil {
			t.Fatal(err)
		}
		got, err := Open(read, Seed{3}, uint64(n), m.get)
		if err != nil || !bytes.Equal(got, pattern(n)) {
			t.Errorf("%d bytes: %v", n, err)
		}
		c := s.Commitment()
		c.Sig[0] = 1
		if err := c.Validate(); err != nil {
			t.Error(err)
		}
		if err := Match(c, read); err != nil {
			t.Error(err)
		}
		if _, err := Open(read, Seed{3}, uint64(n)-1, m.get); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%d bytes, one less allowed: %v", n, err)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	broken := errors.New("no beacon")
	if _, err := Build(payload(5), Seed{}, func(uint64, Seed) ([]byte, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("a lock that fails: %v", err)
	}
	if _, err := Build(payload(5), Seed{}, func(uint64, Seed) ([]byte, error) { return make([]byte, 100), nil }); err == nil {
		t.Error("a short lock is accepted")
	}
	p := payload(5)
	p.Tensors[0].Size = 4
	if _, err := Build(p, Seed{}, fakeLock); !errors.Is(err, protocol.ErrInvalid) {
		t.Errorf("a table that leaves a byte over: %v", err)
	}
	s, err := Build(payload(5), Seed{}, fakeLock)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Publish(t.Context(), &memory{fail: broken}); !errors.Is(err, broken) {
		t.Errorf("a store that fails: %v", err)
	}
}

// TestOpenTensor: each tensor comes from its segments alone.
func TestOpenTensor(t *testing.T) {
	const n = 4*SegmentPlain + 100
	ends := []uint64{10, SegmentPlain, SegmentPlain + 1, 3*SegmentPlain - 1, 3 * SegmentPlain, 4*SegmentPlain + 50}
	s, m := build(t, payload(n, ends...), Seed{3})
	whole := pattern(n)
	for _, e := range s.Manifest.Tensors {
		m.got = nil
		got, err := OpenTensor(s.Manifest, Seed{3}, n, e.Name, m.get)
		if err != nil || !bytes.Equal(got, whole[e.Offset:e.Offset+e.Size]) {
			t.Errorf("%s: %v", e.Name, err)
		}
		want := Segments(s.Manifest)[e.Offset/SegmentPlain : (e.Offset+e.Size-1)/SegmentPlain+1]
		if !slices.Equal(m.got, want) {
			t.Errorf("%s: %d blocks were read, want %d", e.Name, len(m.got), len(want))
		}
	}
	if _, err := OpenTensor(s.Manifest, Seed{3}, n, "t99", m.get); !errors.Is(err, ErrNoTensor) {
		t.Errorf("a tensor that is not there: %v", err)
	}
}

// TestCopies: neither copied ciphertext nor a copied CID becomes the copier's.
func TestCopies(t *testing.T) {
	s, m := build(t, payload(SegmentPlain+9), Seed{3})
	thief := protocol.ID{66}

	// The manifest rewritten to name the thief, ciphertext and locked seed kept: the seed opens in time, the segments do not.
	stolen := s.Manifest
	stolen.Miner = thief
	got, err := Open(stolen, Seed{3}, anySize, m.get)
	var at *SegmentError
	if !errors.Is(err, ErrSealed) || !errors.As(err, &at) || at.Index != 0 || at.Block != stolen.Segments[0].Block || got != nil {
		t.Errorf("copied ciphertext: %d bytes, %v", len(got), err)
	}
	// The CID committed to as it is: the manifest names its miner.
	c := s.Commitment()
	c.Miner = thief
	if err := Match(c, s.Manifest); !errors.Is(err, ErrManifest) {
		t.Errorf("copied CID: %v", err)
	}
	for name, change := range map[string]func(*protocol.Commitment){
		"version": func(c *protocol.Commitment) { c.Version++ },
		"network": func(c *protocol.Commitment) { c.Network = protocol.LinkTo(protocol.DagCBOR, nil) },
		"cycle":   func(c *protocol.Commitment) { c.Cycle++ },
		"group":   func(c *protocol.Commitment) { c.Group = "prose" },
		"size":    func(c *protocol.Commitment) { c.Size-- },
	} {
		c := s.Commitment()
		change(&c)
		if err := Match(c, s.Manifest); !errors.Is(err, ErrManifest) {
			t.Errorf("another %s: %v", name, err)
		}
	}
}

// TestFaults: every way a segment fails names it and says whose fault it is.
func TestFaults(t *testing.T) {
	const n = 2*SegmentPlain + 9
	for _, test := range []struct {
		name   string
		change func(m *protocol.Manifest, store *memory)
		want   error
		index  int
	}{
		{"reordered", func(m *protocol.Manifest, _ *memory) {
			m.Segments[0].Block, m.Segments[1].Block = m.Segments[1].Block, m.Segments[0].Block
		}, ErrSealed, 0},
		{"repeated", func(m *protocol.Manifest, _ *memory) { m.Segments[1] = m.Segments[0] }, ErrSealed, 1},
		{"flipped by the miner", func(m *protocol.Manifest, store *memory) {
			b := slices.Clone(store.blocks[m.Segments[2].Block.Cid()])
			b[0] ^= 1
			m.Segments[2].Block = protocol.LinkTo(protocol.Raw, b)
			store.blocks[m.Segments[2].Block.Cid()] = b
		}, ErrSealed, 2},
		{"flipped by the holder", func(m *protocol.Manifest, store *memory) {
			b := slices.Clone(store.blocks[m.Segments[2].Block.Cid()])
			b[0] ^= 1
			store.blocks[m.Segments[2].Block.Cid()] = b
		}, ErrBlock, 2},
		{"cut by the holder", func(m *protocol.Manifest, store *memory) {
			store.blocks[m.Segments[1].Block.Cid()] = store.blocks[m.Segments[1].Block.Cid()][:99]
		}, ErrBlock, 1},
		{"withheld", func(m *protocol.Manifest, store *memory) { delete(store.blocks, m.Segments[1].Block.Cid()) }, ErrUnavailable, 1},
		{"size not the block's", func(m *protocol.Manifest, store *memory) {
			short := []byte("not a mebibyte of ciphertext")
			m.Segments[1].Block = protocol.LinkTo(protocol.Raw, short)
			store.blocks[m.Segments[1].Block.Cid()] = short
		}, ErrManifest, 1},
		{"cut elsewhere", func(m *protocol.Manifest, _ *memory) {
			m.Segments[1].Size--
			m.Segments[2].Size++
		}, ErrManifest, 1},
		{"plaintext", func(m *protocol.Manifest, store *memory) {
			plain := pattern(protocol.MaxSegment)
			m.Segments[0].Block = protocol.LinkTo(protocol.Raw, plain)
			store.blocks[m.Segments[0].Block.Cid()] = plain
		}, ErrSealed, 0},
	} {
		s, store := build(t, payload(n), Seed{3})
		m := s.Manifest
		m.Segments = slices.Clone(m.Segments)
		test.change(&m, store)
		got, err := Open(m, Seed{3}, anySize, store.get)
		var at *SegmentError
		if !errors.Is(err, test.want) || !errors.As(err, &at) || at.Index != test.index || got != nil {
			t.Errorf("%s: %d bytes, %v", test.name, len(got), err)
			continue
		}
		for _, other := range []error{ErrManifest, ErrSealed, ErrBlock, ErrUnavailable} {
			if errors.Is(err, other) != (other == test.want) {
				t.Errorf("%s: %v is also %v", test.name, err, other)
			}
		}
	}
	s, store := build(t, payload(n), Seed{3})
	if _, err := Open(s.Manifest, Seed{4}, anySize, store.get); !errors.Is(err, ErrSealed) {
		t.Errorf("another seed: %v", err)
	}
	if _, err := Open(protocol.Manifest{}, Seed{}, anySize, store.get); !errors.Is(err, ErrManifest) {
		t.Errorf("the zero manifest: %v", err)
	}
}

// TestOpenAllocatesLate: a manifest that promises 16 GiB and has no block costs nothing.
func TestOpenAllocatesLate(t *testing.T) {
	s, _ := build(t, payload(5), Seed{3})
	m := s.Manifest
	const segments = 16000
	m.Segments = nil
	for range segments {
		m.Segments = append(m.Segments, protocol.Segment{Block: s.Manifest.Segments[0].Block, Size: protocol.MaxSegment})
	}
	m.Size = segments * SegmentPlain
	m.Tensors = tensors(m.Size)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := Open(m, Seed{3}, anySize, new(memory).get); !errors.Is(err, ErrUnavailable) || !errors.Is(err, errAbsent) {
		t.Error(err)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 4<<20 {
		t.Errorf("%d bytes allocated", used)
	}
}

// FuzzOpen opens whatever decodes as a manifest, from a store that answers everything. Nothing may open but what was
// sealed, nothing may panic, and no error may go unnamed.
func FuzzOpen(f *testing.F) {
	s, err := Build(payload(300, 100, 200), Seed{3}, fakeLock)
	if err != nil {
		f.Fatal(err)
	}
	store := new(memory)
	if err := s.Publish(context.Background(), store); err != nil {
		f.Fatal(err)
	}
	record := store.blocks[s.Link.Cid()]
	f.Add(record, []byte(nil))
	f.Add(record, store.blocks[s.Manifest.Segments[0].Block.Cid()])
	for _, at := range []int{10, len(record) / 3, len(record) / 2, len(record) - 1} {
		changed := slices.Clone(record)
		changed[at] ^= 1
		f.Add(changed, []byte("block"))
	}
	f.Fuzz(func(t *testing.T, manifest, block []byte) {
		m, err := protocol.DecodeManifest(manifest)
		if err != nil {
			return
		}
		answers := func(c cid.Cid) ([]byte, error) {
			if b, ok := store.blocks[c]; ok {
				return b, nil
			}
			return block, nil
		}
		check := func(got []byte, err error, want []byte) {
			t.Helper()
			if err == nil {
				if SlotOf(m) != slot() || !bytes.Equal(got, want) {
					t.Errorf("%d bytes open", len(got))
				}
				return
			}
			if !errors.Is(err, ErrManifest) && !errors.Is(err, ErrSealed) && !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrBlock) {
				t.Errorf("error %v", err)
			}
		}
		got, err := Open(m, Seed{3}, 1<<20, answers)
		check(got, err, pattern(300))
		e := m.Tensors[0]
		got, err = OpenTensor(m, Seed{3}, 1<<20, e.Name, answers)
		check(got, err, pattern(300)[:min(e.Size, 300)])
	})
}

func BenchmarkOpen(b *testing.B) {
	const n = 16 * SegmentPlain
	s, err := Build(payload(n), Seed{3}, fakeLock)
	if err != nil {
		b.Fatal(err)
	}
	store := new(memory)
	if err := s.Publish(b.Context(), store); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(n)
	for b.Loop() {
		store.got = store.got[:0]
		if _, err := Open(s.Manifest, Seed{3}, n, store.get); err != nil {
			b.Fatal(err)
		}
	}
}
