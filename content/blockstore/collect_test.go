package blockstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"
	mh "github.com/multiformats/go-multihash"

	"github.com/blockzero-net/bzd/content/blockstore/blockstoretest"
)

// A test's nodes are lists of CIDs behind a number, with codec dag-cbor.
func listOf(n uint64, links ...cid.Cid) blocks.Block {
	data := binary.LittleEndian.AppendUint64(nil, n)
	for _, c := range links {
		data = append(data, c.Bytes()...)
	}
	h, err := mh.Sum(data, mh.SHA2_256, -1)
	if err != nil {
		panic(err)
	}
	b, err := blocks.NewBlockWithCid(data, cid.NewCidV1(cid.DagCBOR, h))
	if err != nil {
		panic(err)
	}
	return b
}

var errNode = errors.New("not a node")

func linksOf(b blocks.Block) (out []cid.Cid, err error) {
	data := b.RawData()
	if len(data)%36 != 8 {
		return nil, errNode
	}
	for data = data[8:]; len(data) > 0; data = data[36:] {
		c, err := cid.Cast(data[:36])
		if err != nil {
			return nil, errNode
		}
		out = append(out, c)
	}
	return out, nil
}

func linked() Options {
	o := DefaultOptions()
	o.Links = linksOf
	return o
}

func cids(bs ...blocks.Block) (out []cid.Cid) {
	for _, b := range bs {
		out = append(out, b.Cid())
	}
	return out
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// holdsExactly fails unless the store has the first blocks and none of the second.
func holdsExactly(t *testing.T, s *Store, want, gone []blocks.Block) {
	t.Helper()
	for _, b := range want {
		if _, err := s.Get(t.Context(), b.Cid()); err != nil {
			t.Errorf("%s should be here: %v", b.Cid(), err)
		}
	}
	for _, b := range gone {
		if _, err := s.Get(t.Context(), b.Cid()); !format.IsNotFound(err) {
			t.Errorf("%s should be gone: %v", b.Cid(), err)
		}
	}
}

// TestCollect: what a root reaches is kept, over several levels and both kinds of storage, through a block that two
// codecs name, and what nothing reaches goes. It stays so after a restart.
func TestCollect(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, linked())
	small, big, alone, garbage, garbageBig := blockstoretest.Block(1, 2000), blockstoretest.Block(2, 300_000), blockstoretest.Block(3, 90_000),
		blockstoretest.Block(4, 3000), blockstoretest.Block(5, 400_000)
	inner := listOf(1, small.Cid(), big.Cid())
	absent := blockstoretest.Block(6, 10)
	root := listOf(2, cid.NewCidV1(cid.Raw, inner.Cid().Hash()), inner.Cid(), absent.Cid(), inner.Cid())
	hostile := listOf(3)
	hostile, err := blocks.NewBlockWithCid(append(hostile.RawData(), 1), listOf(3).Cid())
	must(t, err)
	if err := s.Put(t.Context(), hostile); !errors.Is(err, ErrBlock) {
		t.Fatal(err)
	}
	h, err := mh.Sum([]byte("no node"), mh.SHA2_256, -1)
	must(t, err)
	malformed, err := blocks.NewBlockWithCid([]byte("no node"), cid.NewCidV1(cid.DagCBOR, h))
	must(t, err)
	kept := []blocks.Block{small, big, alone, inner, root, malformed}
	must(t, s.PutMany(t.Context(), append(slices.Clone(kept), garbage, garbageBig)))
	if _, err := s.Collect(t.Context(), nil); !errors.Is(err, ErrNoPins) {
		t.Fatalf("without pins: %v", err)
	}
	must(t, s.Pin(t.Context(), Pin{Owner: Owner{"checkpoint", "a"}, Roots: cids(root, malformed)}))
	must(t, s.Pin(t.Context(), Pin{Owner: Owner{"cycle", "7/x"}, Blocks: cids(alone)}))
	reports := 0
	got, err := s.Collect(t.Context(), func(Collected) { reports++ })
	must(t, err)
	if got.Removed != 2 || got.RemovedBytes != 403_000 || got.Kept != len(kept) || got.Absent != 1 {
		t.Errorf("%+v", got)
	}
	holdsExactly(t, s, kept, []blocks.Block{garbage, garbageBig})
	must(t, s.Close())

	s = open(t, dir, linked())
	pins, err := s.Pins()
	must(t, err)
	if len(pins) != 2 || pins[0].Owner.String() != "checkpoint/a" || !slices.Equal(pins[0].Roots, cids(root, malformed)) || pins[0].Age != 1 ||
		!slices.Equal(pins[1].Blocks, cids(alone)) || pins[1].Age != 2 {
		t.Errorf("pins after a restart: %+v", pins)
	}
	stat, err := s.Stat(t.Context())
	must(t, err)
	if stat.Blocks != len(kept) || stat.PinnedBytes != stat.Bytes || stat.Pins[0].Absent != 1 || stat.Pins[1].Bytes != 90_000 || stat.Disk < stat.Bytes {
		t.Errorf("%+v", stat)
	}
	// A pin that is made again replaces the old one; a list that has been pinned by itself keeps nothing below it.
	must(t, s.Pin(t.Context(), Pin{Owner: Owner{"checkpoint", "a"}, Blocks: cids(root)}))
	must(t, s.Unpin(t.Context(), Owner{"cycle", "7/x"}, Owner{"cycle", "nobody"}))
	_, err = s.Collect(t.Context(), nil)
	must(t, err)
	holdsExactly(t, s, []blocks.Block{root}, []blocks.Block{small, big, alone, inner, malformed})
}

// TestPinRefuses: owners and CIDs that could not be told apart or kept are refused, and a pin of another version does not
// pass for nothing to keep.
func TestPinRefuses(t *testing.T) {
	s := open(t, t.TempDir(), linked())
	good := blockstoretest.Block(1, 10).Cid()
	identity, err := mh.Sum([]byte("x"), mh.IDENTITY, -1)
	must(t, err)
	for name, p := range map[string]Pin{
		"no kind":    {Owner: Owner{"", "a"}},
		"no name":    {Owner: Owner{"cycle", ""}},
		"slash":      {Owner: Owner{"cy/cle", "a"}},
		"space":      {Owner: Owner{"cycle", "a b"}},
		"long":       {Owner: Owner{"cycle", strings.Repeat("a", 201)}},
		"identity":   {Owner: Owner{"cycle", "a"}, Roots: []cid.Cid{cid.NewCidV1(cid.Raw, identity)}},
		"version 0":  {Owner: Owner{"cycle", "a"}, Roots: []cid.Cid{cid.NewCidV0(good.Hash())}},
		"undefined":  {Owner: Owner{"cycle", "a"}, Blocks: []cid.Cid{cid.Undef}},
		"many":       {Owner: Owner{"cycle", "a"}, Blocks: slices.Repeat([]cid.Cid{good}, maxPinned+1)},
		"long codec": {Owner: Owner{"cycle", "a"}, Blocks: []cid.Cid{cid.NewCidV1(0x300539, good.Hash())}},
	} {
		if err := s.Pin(t.Context(), p); !errors.Is(err, ErrPin) && !errors.Is(err, ErrBlock) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, s.Pin(t.Context(), Pin{Owner: Owner{"cycle", "most"}, Blocks: slices.Repeat([]cid.Cid{good}, maxPinned)}))
	for _, b := range [][]byte{nil, {2}, make([]byte, pinHead), append([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)} {
		if _, err := decodePin(pinKey(Owner{"a", "b"}), b); !errors.Is(err, ErrPin) {
			t.Errorf("%x: %v", b, err)
		}
	}
}

// TestHold: what is put or asked after under a hold stays, whether or not it was there before, and goes after the hold
// when nothing pins it. Holds may overlap.
func TestHold(t *testing.T) {
	s := open(t, t.TempDir(), linked())
	collect := func() {
		t.Helper()
		_, err := s.Collect(t.Context(), nil)
		must(t, err)
	}
	must(t, s.Pin(t.Context(), Pin{Owner: Owner{"network", "n"}}))
	before, asked, put, again, later := blockstoretest.Block(1, 300_000), blockstoretest.Block(2, 300_000), blockstoretest.Block(3, 2000),
		blockstoretest.Block(4, 2000), blockstoretest.Block(5, 2000)
	must(t, s.PutMany(t.Context(), []blocks.Block{before, asked, again}))
	first := s.Hold()
	if ok, err := s.Has(t.Context(), asked.Cid()); !ok || err != nil {
		t.Fatal(err)
	}
	must(t, s.PutMany(t.Context(), []blocks.Block{put, again}))
	second := s.Hold()
	must(t, s.Put(t.Context(), later))
	collect()
	holdsExactly(t, s, []blocks.Block{asked, put, again, later}, []blocks.Block{before})
	first()
	first()
	collect()
	holdsExactly(t, s, []blocks.Block{later}, []blocks.Block{asked, put, again})
	second()
	collect()
	holdsExactly(t, s, nil, []blocks.Block{later})
	if n := len(s.holds.young); n != 0 {
		t.Errorf("%d blocks are remembered for nobody", n)
	}
}

// TestCollectBesideWork collects all the time while DAGs are put leaves first under a hold and pinned, others are fetched
// root first under a pin, with leaves that are here as garbage, and old ones are given up. Nothing pinned is ever missing.
func TestCollectBesideWork(t *testing.T) {
	s := open(t, t.TempDir(), linked())
	must(t, s.Pin(t.Context(), Pin{Owner: Owner{"network", "n"}}))
	ctx := t.Context()
	dag := func(n uint64) []blocks.Block {
		// Neighbours share a leaf, which is garbage for a moment between them.
		a, b, c := blockstoretest.Block(n, 270_000), blockstoretest.Block(n+1, 70_000), blockstoretest.Block(1<<40|n, 2000)
		inner := listOf(n, a.Cid(), c.Cid())
		return []blocks.Block{a, b, c, inner, listOf(n, inner.Cid(), b.Cid())}
	}
	whole := func(d []blocks.Block) error {
		for _, b := range d {
			if _, err := s.Get(ctx, b.Cid()); err != nil {
				return err
			}
		}
		return nil
	}
	run := func(from, to uint64, add func(owner Owner, d []blocks.Block) error) error {
		for n := from; n < to; n++ {
			owner, d := Owner{"checkpoint", fmt.Sprint(n)}, dag(n)
			if err := add(owner, d); err != nil {
				return err
			}
			if err := whole(d); err != nil {
				return fmt.Errorf("dag %d: %w", n, err)
			}
			if n >= from+3 {
				if err := whole(dag(n - 2)); err != nil {
					return fmt.Errorf("dag %d, pinned since: %w", n-2, err)
				}
				if err := s.Unpin(ctx, Owner{"checkpoint", fmt.Sprint(n - 3)}); err != nil {
					return err
				}
			}
		}
		return nil
	}
	done := make(chan struct{})
	var collector sync.WaitGroup
	removed := 0
	collector.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			c, err := s.Collect(context.Background(), nil)
			if err != nil {
				t.Error(err)
				return
			}
			removed += c.Removed
		}
	})
	errs := make([]error, 2)
	var work sync.WaitGroup
	work.Go(func() {
		errs[0] = run(1000, 1020, func(owner Owner, d []blocks.Block) error {
			defer s.Hold()()
			for _, b := range d {
				if err := s.Put(ctx, b); err != nil {
					return err
				}
			}
			return s.Pin(ctx, Pin{Owner: owner, Roots: cids(d[4])})
		})
	})
	work.Go(func() {
		errs[1] = run(5000, 5020, func(owner Owner, d []blocks.Block) error {
			if err := s.Pin(ctx, Pin{Owner: owner, Roots: cids(d[4])}); err != nil {
				return err
			}
			for _, i := range []int{4, 3, 1, 0, 2} { // as a fetch does: what is here does not come again
				ok, err := s.Has(ctx, d[i].Cid())
				if err == nil && !ok {
					err = s.Put(ctx, d[i])
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	})
	work.Wait()
	close(done)
	collector.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	if removed == 0 {
		t.Error("nothing was collected")
	}
}

// TestQuota: a put beyond the quota drops garbage, then spare pins from the oldest, and is refused when only what must
// be kept is left.
func TestQuota(t *testing.T) {
	o := linked()
	o.Quota = 1_000_000
	dir := t.TempDir()
	s := open(t, dir, o)
	ctx := t.Context()
	b := func(n uint64) blocks.Block { return blockstoretest.Block(n, 200_000) }
	must(t, s.PutMany(ctx, []blocks.Block{b(1), b(2), b(3), b(4), b(5)}))
	must(t, s.Pin(ctx, Pin{Owner: Owner{"checkpoint", "old"}, Roots: cids(b(1)), Spare: true}))
	must(t, s.Pin(ctx, Pin{Owner: Owner{"checkpoint", "new"}, Roots: cids(b(2)), Spare: true}))
	must(t, s.Pin(ctx, Pin{Owner: Owner{"cycle", "9"}, Roots: cids(b(3), b(4))}))
	must(t, s.Put(ctx, b(5))) // it is here
	must(t, s.Put(ctx, b(6)))
	holdsExactly(t, s, []blocks.Block{b(1), b(2), b(3), b(4), b(6)}, []blocks.Block{b(5)})
	release := s.Hold()
	must(t, s.Put(ctx, b(6)))
	must(t, s.Put(ctx, b(7)))
	holdsExactly(t, s, []blocks.Block{b(2), b(3), b(4), b(6), b(7)}, []blocks.Block{b(1)})
	must(t, s.Put(ctx, b(8)))
	holdsExactly(t, s, []blocks.Block{b(3), b(4), b(6), b(7), b(8)}, []blocks.Block{b(2)})
	for range 2 {
		if err := s.Put(ctx, b(9)); !errors.Is(err, ErrQuota) || !strings.Contains(err.Error(), "raise the quota") {
			t.Fatalf("only what is needed is left: %v", err)
		}
	}
	pins, err := s.Pins()
	if err != nil || len(pins) != 1 {
		t.Errorf("pins left: %+v, %v", pins, err)
	}
	release()
	must(t, s.Put(ctx, b(9)))
	holdsExactly(t, s, []blocks.Block{b(3), b(4), b(9)}, []blocks.Block{b(6), b(7), b(8)})
	must(t, s.Pin(ctx, Pin{Owner: Owner{"cycle", "10"}, Blocks: cids(b(9))}))
	s.count(12345)
	if _, err := s.Collect(ctx, nil); err != nil || s.used.Load() != 600_000 {
		t.Errorf("%d bytes in use after a collection, %v", s.used.Load(), err)
	}
	must(t, s.Close())
	s = open(t, dir, o)
	if used := s.used.Load(); used != 600_000 {
		t.Errorf("%d bytes in use after a restart", used)
	}
	many := []blocks.Block{b(10), b(11), b(12), b(13), b(14), b(15)}
	if err := s.PutMany(ctx, many); !errors.Is(err, ErrQuota) {
		t.Errorf("more than the quota at once: %v", err)
	}
	holdsExactly(t, s, []blocks.Block{b(3), b(4), b(9)}, many)
}

// TestDiskFullCollects: where the disk runs full, what nobody needs makes room.
func TestDiskFullCollects(t *testing.T) {
	o := linked()
	var s *Store
	o.Reserve, o.Free = 1000, func(string) (uint64, error) {
		_, used, err := s.measure()
		return 401_000 - used, err
	}
	s = open(t, t.TempDir(), o)
	b := func(n uint64) blocks.Block { return blockstoretest.Block(n, 200_000) }
	must(t, s.PutMany(t.Context(), []blocks.Block{b(1), b(2)}))
	must(t, s.Pin(t.Context(), Pin{Owner: Owner{"cycle", "1"}, Blocks: cids(b(1))}))
	must(t, s.Put(t.Context(), b(3)))
	holdsExactly(t, s, []blocks.Block{b(1), b(3)}, []blocks.Block{b(2)})
	must(t, s.Pin(t.Context(), Pin{Owner: Owner{"cycle", "1"}, Blocks: cids(b(1), b(3))}))
	if err := s.Put(t.Context(), b(4)); !errors.Is(err, ErrDiskFull) {
		t.Errorf("a full disk: %v", err)
	}
}
