package blockstoretest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	boxo "github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"
	mh "github.com/multiformats/go-multihash"
)

// Block returns the block of n bytes that seed names, codec raw.
func Block(seed uint64, n int) blocks.Block {
	data := make([]byte, n)
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	binary.LittleEndian.PutUint64(key[8:], uint64(n))
	if _, err := rand.NewChaCha8(key).Read(data); err != nil {
		panic(err) // it has none
	}
	return Raw(data)
}

// Raw returns the raw block of data.
func Raw(data []byte) blocks.Block {
	c, err := cid.V1Builder{Codec: cid.Raw, MhType: mh.SHA2_256}.Sum(data)
	if err != nil {
		panic(err) // sha2-256 is always there
	}
	b, err := blocks.NewBlockWithCid(data, c)
	if err != nil {
		panic(err)
	}
	return b
}

// RunAll runs the suite. open returns an empty store and arranges for its closing.
func RunAll(t *testing.T, open func(t *testing.T) boxo.Blockstore) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, boxo.Blockstore)
	}{
		{"Missing", missing},
		{"RoundTrip", roundTrip},
		{"Again", again},
		{"Many", many},
		{"Codecs", codecs},
		{"Delete", remove},
		{"Keys", keys},
		{"KeysCancelled", keysCancelled},
		{"Ownership", ownership},
		{"Concurrent", concurrent},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

// sizes lie on both sides of every boundary of a store: empty, inline and in a file, lengths whose varints differ.
var sizes = []int{0, 1, 127, 128, 1000, 1023, 1024, 1025, 16383, 16384, 16385, 1<<20 - 1, 1 << 20, 2<<20 - 1, 2 << 20}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, s boxo.Blockstore, b blocks.Block) {
	t.Helper()
	ctx := t.Context()
	if ok, err := s.Has(ctx, b.Cid()); err != nil || !ok {
		t.Errorf("%d bytes: Has: %t, %v", len(b.RawData()), ok, err)
	}
	if n, err := s.GetSize(ctx, b.Cid()); err != nil || n != len(b.RawData()) {
		t.Errorf("%d bytes: GetSize: %d, %v", len(b.RawData()), n, err)
	}
	got, err := s.Get(ctx, b.Cid())
	if err != nil || !bytes.Equal(got.RawData(), b.RawData()) || !got.Cid().Equals(b.Cid()) {
		t.Errorf("%d bytes: Get: %v, %v", len(b.RawData()), got, err)
	}
	v, ok := s.(boxo.Viewer)
	if !ok {
		return
	}
	calls := 0
	err = v.View(ctx, b.Cid(), func(data []byte) error {
		calls++
		if !bytes.Equal(data, b.RawData()) {
			t.Errorf("%d bytes: View gave others", len(b.RawData()))
		}
		return nil
	})
	if err != nil || calls != 1 {
		t.Errorf("%d bytes: View: %d calls, %v", len(b.RawData()), calls, err)
	}
	stop := errors.New("stop")
	if err := v.View(ctx, b.Cid(), func([]byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("View does not return the callback's error but %v", err)
	}
}

func expectMissing(t *testing.T, s boxo.Blockstore, c cid.Cid) {
	t.Helper()
	ctx := t.Context()
	if ok, err := s.Has(ctx, c); err != nil || ok {
		t.Errorf("Has of a missing block: %t, %v", ok, err)
	}
	if _, err := s.Get(ctx, c); !format.IsNotFound(err) {
		t.Errorf("Get of a missing block: %v", err)
	}
	if _, err := s.GetSize(ctx, c); !format.IsNotFound(err) {
		t.Errorf("GetSize of a missing block: %v", err)
	}
	if v, ok := s.(boxo.Viewer); ok {
		err := v.View(ctx, c, func([]byte) error {
			t.Error("View calls back for a missing block")
			return nil
		})
		if !format.IsNotFound(err) {
			t.Errorf("View of a missing block: %v", err)
		}
	}
}

func missing(t *testing.T, s boxo.Blockstore) {
	expectMissing(t, s, Block(1, 10).Cid())
	must(t, s.DeleteBlock(t.Context(), Block(1, 10).Cid()))
	must(t, s.Put(t.Context(), Block(2, 10)))
	expectMissing(t, s, Block(1, 10).Cid())
}

func roundTrip(t *testing.T, s boxo.Blockstore) {
	for i, n := range sizes {
		b := Block(uint64(i), n)
		must(t, s.Put(t.Context(), b))
		expect(t, s, b)
	}
	for i, n := range sizes {
		expect(t, s, Block(uint64(i), n))
	}
}

func again(t *testing.T, s boxo.Blockstore) {
	b := Block(1, 5000)
	for range 3 {
		must(t, s.Put(t.Context(), b))
		must(t, s.PutMany(t.Context(), []blocks.Block{b, b}))
	}
	expect(t, s, b)
	must(t, s.DeleteBlock(t.Context(), b.Cid()))
	expectMissing(t, s, b.Cid())
	must(t, s.Put(t.Context(), b))
	expect(t, s, b)
}

func many(t *testing.T, s boxo.Blockstore) {
	must(t, s.PutMany(t.Context(), nil))
	var bs []blocks.Block
	for i := range 500 {
		bs = append(bs, Block(uint64(i), i*11))
	}
	must(t, s.PutMany(t.Context(), bs))
	for _, b := range bs {
		expect(t, s, b)
	}
}

// codecs: a store may keep one block under every codec, but must find it by the CID it was stored with.
func codecs(t *testing.T, s boxo.Blockstore) {
	data := []byte{0xa0}
	for _, codec := range []uint64{cid.Raw, cid.DagCBOR, cid.DagProtobuf} {
		b, err := blocks.NewBlockWithCid(data, cid.NewCidV1(codec, Raw(data).Cid().Hash()))
		must(t, err)
		must(t, s.Put(t.Context(), b))
		expect(t, s, b)
	}
}

func remove(t *testing.T, s boxo.Blockstore) {
	for i, n := range sizes {
		must(t, s.Put(t.Context(), Block(uint64(i), n)))
	}
	for i, n := range sizes {
		if i%2 == 0 {
			must(t, s.DeleteBlock(t.Context(), Block(uint64(i), n).Cid()))
		}
	}
	for i, n := range sizes {
		if i%2 == 0 {
			expectMissing(t, s, Block(uint64(i), n).Cid())
		} else {
			expect(t, s, Block(uint64(i), n))
		}
	}
}

func hashes(t *testing.T, keys <-chan cid.Cid) []string {
	t.Helper()
	var got []string
	for c := range keys {
		if c.Prefix().Codec != cid.Raw {
			t.Errorf("key %s is not raw", c)
		}
		got = append(got, string(c.Hash()))
	}
	slices.Sort(got)
	return slices.Compact(got)
}

func keys(t *testing.T, s boxo.Blockstore) {
	none, err := s.AllKeysChan(t.Context())
	must(t, err)
	if got := hashes(t, none); len(got) != 0 {
		t.Errorf("an empty store has keys %x", got)
	}
	var want []string
	for i := range 300 {
		b := Block(uint64(i), i)
		must(t, s.Put(t.Context(), b))
		want = append(want, string(b.Cid().Hash()))
	}
	slices.Sort(want)
	all, err := s.AllKeysChan(t.Context())
	must(t, err)
	if got := hashes(t, all); !slices.Equal(got, want) {
		t.Errorf("%d keys, want %d", len(got), len(want))
	}
	if s, ok := s.(boxo.AllKeysChanWithErrer); ok {
		all, end, err := s.AllKeysChanWithErr(t.Context())
		must(t, err)
		if got := hashes(t, all); !slices.Equal(got, want) {
			t.Errorf("%d keys, want %d", len(got), len(want))
		}
		must(t, end())
	}
}

func keysCancelled(t *testing.T, s boxo.Blockstore) {
	for i := range 300 {
		must(t, s.Put(t.Context(), Block(uint64(i), i)))
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	all, err := s.AllKeysChan(ctx)
	must(t, err)
	<-all
	cancel()
	for range all { // ends
	}
}

// ownership: what a store gives is the caller's, and what it was given is not looked at again.
func ownership(t *testing.T, s boxo.Blockstore) {
	for _, n := range []int{100, 5000} {
		want := Block(7, n)
		given := Block(7, n)
		must(t, s.Put(t.Context(), given))
		clear(given.RawData())
		got, err := s.Get(t.Context(), want.Cid())
		must(t, err)
		if _, copies := s.(boxo.Viewer); copies { // a store that is a map of what it was given has no View
			if !bytes.Equal(got.RawData(), want.RawData()) {
				t.Errorf("%d bytes: the store kept the caller's slice", n)
			}
			clear(got.RawData())
			expect(t, s, want)
		}
	}
}

func concurrent(t *testing.T, s boxo.Blockstore) {
	const workers, each = 8, 40
	var wg sync.WaitGroup
	errs := make(chan error, workers)
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				// Half of the blocks are everyone's.
				b := Block(uint64(i%2*(w+1)*1000+i), 2000+i)
				if err := s.Put(context.Background(), b); err != nil {
					errs <- err
					return
				}
				got, err := s.Get(context.Background(), b.Cid())
				if err == nil && !bytes.Equal(got.RawData(), b.RawData()) {
					err = fmt.Errorf("worker %d read other bytes", w)
				}
				if err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	all, err := s.AllKeysChan(t.Context())
	must(t, err)
	if got := hashes(t, all); len(got) != each/2+workers*each/2 {
		t.Errorf("%d keys, want %d", len(got), each/2+workers*each/2)
	}
}
