package exchange

import (
	"bytes"
	"context"
	"errors"
	"math"
	"slices"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"
	car "github.com/ipld/go-car/v2"
	"github.com/ipld/go-car/v2/storage"
	mh "github.com/multiformats/go-multihash"

	"github.com/blockzero-net/bzd/content/blockstore"
	"github.com/blockzero-net/bzd/content/blockstore/blockstoretest"
)

// carOf writes a CAR by hand: any roots, any blocks.
func carOf(t testing.TB, roots []cid.Cid, bs ...blocks.Block) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := storage.NewWritable(struct{ *bytes.Buffer }{&out}, roots, car.WriteAsCarV1(true), car.UseWholeCIDs(true))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range bs {
		if err := w.Put(t.Context(), b.Cid().KeyString(), b.RawData()); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finalize(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestCAR: a checkpoint goes out as a CAR and comes back whole, the same bytes every time; one that is cut anywhere does
// not.
func TestCAR(t *testing.T) {
	a := newStore(t, blockstore.DefaultOptions())
	dir, root := writeCheckpoint(t, 2)
	_, size, err := Publish(t.Context(), a, dir)
	must(t, err)
	var out, again bytes.Buffer
	p, err := ExportCAR(t.Context(), a, root, &out, roomy, nil)
	if err != nil || p.Bytes != size {
		t.Fatalf("%+v of %d, %v", p, size, err)
	}
	_, err = ExportCAR(t.Context(), a, root, &again, roomy, nil)
	must(t, err)
	if !bytes.Equal(out.Bytes(), again.Bytes()) {
		t.Error("one checkpoint gives two files")
	}
	b := newStore(t, blockstore.DefaultOptions())
	got, q, err := ImportCAR(t.Context(), b, bytes.NewReader(out.Bytes()), roomy, nil)
	if err != nil || got != root || q != p {
		t.Fatalf("%s, %+v, %v", got, q, err)
	}
	if all, err := Complete(t.Context(), b, root, roomy); err != nil || all != p {
		t.Errorf("%+v, %v", all, err)
	}
	for _, n := range []int{0, 1, 30, 100, out.Len() / 2, out.Len() - 1} {
		c := newStore(t, blockstore.DefaultOptions())
		if _, _, err := ImportCAR(t.Context(), c, bytes.NewReader(out.Bytes()[:n]), roomy, nil); !errors.Is(err, ErrContent) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	if _, err := ExportCAR(t.Context(), a, root, &again, Bounds{MaxBytes: size - 1}, nil); !errors.Is(err, ErrBounds) {
		t.Errorf("export of a byte too many: %v", err)
	}
	must(t, b.DeleteBlock(t.Context(), root))
	if _, err := Complete(t.Context(), b, root, roomy); !errors.Is(err, ErrMissing) {
		t.Errorf("without its root: %v", err)
	}
	if _, err := ExportCAR(t.Context(), b, root, &again, roomy, nil); err == nil {
		t.Error("exported without its root")
	}
}

// TestHostileCARs: what a CAR says is believed of nothing but its hashes.
func TestHostileCARs(t *testing.T) {
	store := newStore(t, blockstore.DefaultOptions())
	leaf, other := blockstoretest.Block(1, 1000), blockstoretest.Block(2, 1000)
	root := makeNode(t, store, nil, link{"a", leaf.Cid(), 1000})
	node, err := store.Get(t.Context(), root)
	must(t, err)
	wrong, err := blocks.NewBlockWithCid(other.RawData(), leaf.Cid())
	must(t, err)
	identity, err := mh.Sum([]byte("data"), mh.IDENTITY, -1)
	must(t, err)
	named, err := blocks.NewBlockWithCid([]byte("data"), cid.NewCidV1(cid.Raw, identity))
	must(t, err)
	sum512, err := mh.Sum(leaf.RawData(), mh.SHA2_512, -1)
	must(t, err)
	foreign, err := blocks.NewBlockWithCid(leaf.RawData(), cid.NewCidV1(cid.Raw, sum512))
	must(t, err)
	huge := append(carOf(t, []cid.Cid{root}, node), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f) // a block of 2⁶³ − 1 bytes
	v2 := slices.Concat([]byte{0x0a, 0xa1, 0x67, 0x76, 0x65, 0x72, 0x73, 0x69, 0x6f, 0x6e, 0x02}, make([]byte, 16), bytes.Repeat([]byte{0xff}, 24))
	for name, test := range map[string]struct {
		file []byte
		want error
	}{
		"empty":                  {nil, ErrContent},
		"no CAR":                 {bytes.Repeat([]byte("car"), 100), ErrContent},
		"no root":                {carOf(t, nil, node, leaf), ErrContent},
		"two roots":              {carOf(t, []cid.Cid{root, leaf.Cid()}, node, leaf), ErrContent},
		"a root of another DAG":  {carOf(t, []cid.Cid{other.Cid()}, node, leaf), ErrContent},
		"a root of another kind": {carOf(t, []cid.Cid{cid.NewCidV1(cid.DagJSON, root.Hash())}, node, leaf), ErrContent},
		"an identity root":       {carOf(t, []cid.Cid{named.Cid()}, node, leaf), ErrContent},
		"a block is missing":     {carOf(t, []cid.Cid{root}, node), ErrContent},
		"a block of other bytes": {carOf(t, []cid.Cid{root}, node, wrong), ErrContent},
		"another hash":           {carOf(t, []cid.Cid{root}, node, leaf, foreign), ErrContent},
		"a long block":           {carOf(t, []cid.Cid{root}, node, leaf, blockstoretest.Block(3, MaxBlock+1)), ErrContent},
		"an endless block":       {huge, ErrContent},
		"an endless header":      {[]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, ErrContent},
		"an endless version 2":   {v2, ErrContent},
		"too many bytes":         {carOf(t, []cid.Cid{root}, node, leaf, other), ErrBounds},
		"sound":                  {carOf(t, []cid.Cid{root}, node, leaf), nil},
	} {
		s := newStore(t, blockstore.DefaultOptions())
		got, _, err := ImportCAR(t.Context(), s, bytes.NewReader(test.file), Bounds{MaxBytes: 1900}, nil)
		if !errors.Is(err, test.want) || err == nil && got != root || err != nil && got.Defined() {
			t.Errorf("%s: %s, %v; want %v", name, got, err, test.want)
		}
	}
}

// FuzzImportCAR: whatever a file holds, what is stored has its hash, and an import that succeeds is whole.
func FuzzImportCAR(f *testing.F) {
	leaf := blockstoretest.Block(1, 100)
	good := carOf(f, []cid.Cid{leaf.Cid()}, leaf)
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(append(slices.Clone(good), 0))
	f.Add([]byte{0x0a, 0xa1, 0x67, 0x76, 0x65, 0x72, 0x73, 0x69, 0x6f, 0x6e, 0x02})
	f.Fuzz(func(t *testing.T, data []byte) {
		s := memory{}
		root, _, err := ImportCAR(t.Context(), s, bytes.NewReader(data), Bounds{MaxBytes: 1 << 20, MaxBlocks: 100}, nil)
		if err != nil {
			if !errors.Is(err, ErrContent) && !errors.Is(err, ErrBounds) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		if _, err := Complete(t.Context(), s, root, Bounds{MaxBytes: math.MaxUint64}); err != nil {
			t.Fatal(err)
		}
		for _, b := range s {
			if err := checkBlock(b); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// FuzzLinks: links are those of the network, whatever a block holds.
func FuzzLinks(f *testing.F) {
	raw := blockstoretest.Block(1, 10).Cid()
	f.Add(false, record(f, raw))
	f.Add(true, []byte{0x12, 0x2a, 0x0a, 0x24, 0x01, 0x55, 0x12, 0x20})
	f.Fuzz(func(t *testing.T, pb bool, data []byte) {
		codec := uint64(cid.DagCBOR)
		if pb {
			codec = cid.DagProtobuf
		}
		h, err := mh.Sum(data, mh.SHA2_256, -1)
		must(t, err)
		b, err := blocks.NewBlockWithCid(data, cid.NewCidV1(codec, h))
		must(t, err)
		links, err := Links(b)
		if err != nil && !errors.Is(err, ErrContent) {
			t.Fatalf("an error of no kind: %v", err)
		}
		for _, c := range links {
			if err := checkLink(c, cid.Raw, cid.DagProtobuf, cid.DagCBOR); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// memory is a store that looks at nothing.
type memory map[cid.Cid]blocks.Block

func (m memory) PutMany(_ context.Context, bs []blocks.Block) error {
	for _, b := range bs {
		m[b.Cid()] = b
	}
	return nil
}

func (m memory) Get(_ context.Context, c cid.Cid) (blocks.Block, error) {
	if b, ok := m[c]; ok {
		return b, nil
	}
	return nil, format.ErrNotFound{Cid: c}
}

// TestImportBlocks: whatever a CAR holds is taken, but for blocks that are not what they say.
func TestImportBlocks(t *testing.T) {
	text := []byte(`{"hello":"world"}`)
	of := func(version, codec uint64, code uint64) blocks.Block {
		t.Helper()
		h, err := mh.Sum(text, code, -1)
		must(t, err)
		c := cid.NewCidV1(codec, h)
		if version == 0 {
			c = cid.NewCidV0(h)
		}
		b, err := blocks.NewBlockWithCid(text, c)
		must(t, err)
		return b
	}
	list := []blocks.Block{of(1, cid.DagJSON, mh.SHA2_256), of(0, cid.DagProtobuf, mh.SHA2_256), of(1, cid.Raw, mh.SHA2_512)}
	s := newStore(t, blockstore.DefaultOptions())
	p, skipped, err := ImportBlocks(t.Context(), s, bytes.NewReader(carOf(t, []cid.Cid{list[1].Cid(), list[0].Cid()}, list...)), roomy, nil)
	if err != nil || p.Blocks != 2 || skipped != 1 {
		t.Errorf("%+v, %d left out, %v", p, skipped, err)
	}
	if b, err := s.Get(t.Context(), list[0].Cid()); err != nil || !bytes.Equal(b.RawData(), text) {
		t.Errorf("%v, %v", b, err)
	}
	lie, err := blocks.NewBlockWithCid([]byte("lie"), list[0].Cid())
	must(t, err)
	if _, _, err := ImportBlocks(t.Context(), s, bytes.NewReader(carOf(t, nil, lie)), roomy, nil); !errors.Is(err, ErrContent) {
		t.Errorf("a lie: %v", err)
	}
}
