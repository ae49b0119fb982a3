package exchange

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/blockzero-net/bzd/content/blockstore"
	"github.com/blockzero-net/bzd/content/blockstore/blockstoretest"
)

// sends answers a request with blocks of a store, after wait for each.
func sends(n node, s network.Stream, q request, wait func()) {
	w := bufio.NewWriter(s)
	_ = w.WriteByte(answerBlocks)
	for _, c := range q.cids {
		b, err := n.store.Get(context.Background(), c)
		if err != nil {
			return
		}
		wait()
		_, _ = w.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(b.RawData()))))
		_, _ = w.Write(b.RawData())
		if w.Flush() != nil {
			return
		}
	}
}

// TestHostileAmongHonest fetches from five honest peers and one that is not, which is asked first. The fetch does not wait
// for it: patience is longer than the test may take. What moves is at most a fifth more than without it, and it is asked
// last the next time.
func TestHostileAmongHonest(t *testing.T) {
	const count, size = 128, 128 << 10
	var honest []node
	for range 5 {
		honest = append(honest, newNode(t, Config{}))
	}
	cids := some(t, count, size, honest...)
	over := make(chan struct{})
	t.Cleanup(func() { close(over) })
	slow := func() {
		select {
		case <-time.After(2 * time.Second):
		case <-over:
		}
	}
	for _, test := range []struct {
		name   string
		answer func(n node, s network.Stream, q request)
		faults bool
	}{
		{"silent", func(_ node, s network.Stream, _ request) { <-over }, true},
		{"stalls after a block", func(n node, s network.Stream, q request) { sends(n, s, request{cids: q.cids[:1]}, func() {}); <-over }, true},
		{"slow", func(n node, s network.Stream, q request) { sends(n, s, q, slow) }, true},
		{"lies", func(_ node, s network.Stream, q request) {
			b := blockstoretest.Block(999, size)
			_, _ = s.Write(slices.Concat([]byte{answerBlocks}, binary.LittleEndian.AppendUint32(nil, size), b.RawData()))
		}, true},
		{"has nothing", func(_ node, s network.Stream, q request) {
			_, _ = s.Write(append([]byte{answerBlocks}, bytes.Repeat([]byte{255}, 4*len(q.cids))...))
		}, false},
		{"is always busy", func(_ node, s network.Stream, _ request) { _, _ = s.Write([]byte{answerBusy}) }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			hostile := newNode(t, Config{})
			hostile.host.SetStreamHandler(BulkProtocol, func(s network.Stream) {
				if q, err := readRequest(s); err == nil {
					test.answer(honest[0], s, q)
				}
				_ = s.Close()
			})
			victim := newNode(t, Config{Patience: 4 * time.Minute})
			for _, n := range append(honest, hostile) {
				connect(t, victim.host, n.host)
			}
			waitFor(t, "the peers to be known", func() bool { return len(victim.guard.good()) == 6 })
			p, err := victim.FetchFrom(within(t, 30*time.Second), hostile.host.ID(), cids, roomy, nil)
			must(t, err)
			extra := int(p.Wasted)
			if victim.offences(hostile.host.ID()) > 0 { // shunned after one
				extra += size
			}
			t.Logf("%+v; %d bytes more", p, extra)
			if p.MovedBlocks != count || p.Sources < 3 || extra > count*size/5 {
				t.Errorf("%+v; %d bytes more", p, extra)
			}
			order := victim.puller.candidates(hostile.host.ID())
			if last := order[len(order)-1] == hostile.host.ID() || len(order) == 5; last != test.faults {
				t.Errorf("asked last the next time: %t, want %t", last, test.faults)
			}
		})
	}
}

// TestOnlySlow: a peer that others outpace is asked again for what only it has.
func TestOnlySlow(t *testing.T) {
	slow, fast, victim := newNode(t, Config{}), newNode(t, Config{}), newNode(t, Config{Patience: time.Minute})
	common, rare := some(t, 64, 256<<10, slow, fast), []cid.Cid{}
	for i := range uint64(8) {
		b := blockstoretest.Block(500+i, 256<<10)
		must(t, slow.store.Put(t.Context(), b))
		rare = append(rare, b.Cid())
	}
	slow.host.SetStreamHandler(BulkProtocol, func(s network.Stream) {
		if q, err := readRequest(s); err == nil {
			sends(slow, s, q, func() { <-time.After(20 * time.Millisecond) })
		}
		_ = s.Close()
	})
	connect(t, victim.host, slow.host)
	connect(t, victim.host, fast.host)
	left, p, err := victim.pulled(t, append(rare, common...), roomy)
	if err != nil || len(left) != 0 || p.MovedBlocks != 72 || p.Sources != 2 {
		t.Errorf("%d left, %+v, %v", len(left), p, err)
	}
}

// directory says of one root who has it, and counts how often it was asked.
type directory struct {
	root  cid.Cid
	who   []peer.AddrInfo
	asked atomic.Int64
}

func (d *directory) FindProvidersAsync(_ context.Context, c cid.Cid, _ int) <-chan peer.AddrInfo {
	d.asked.Add(1)
	out := make(chan peer.AddrInfo, len(d.who)+1)
	out <- peer.AddrInfo{ID: "nobody"} // that cannot be reached
	if c.Equals(d.root) {
		for _, p := range d.who {
			out <- p
		}
	}
	close(out)
	return out
}

// TestProviders: a fetch finds a checkpoint at a peer that it is not connected to, at once where it has nobody to ask and
// after a while where those it has have nothing, and says how much there will be. With enough sources nobody is looked for,
// nor with everything here.
func TestProviders(t *testing.T) {
	a := newNode(t, Config{})
	dir, root := writeCheckpoint(t, 2)
	_, size, err := Publish(t.Context(), a, dir)
	must(t, err)
	for _, test := range []struct {
		name   string
		empty  int // peers that have nothing
		direct bool
		asked  bool
	}{{"nobody", 0, false, true}, {"peers with nothing", fewPeers, false, true}, {"enough", fewPeers, true, false}} {
		t.Run(test.name, func(t *testing.T) {
			all := &directory{root: root, who: []peer.AddrInfo{{ID: a.host.ID(), Addrs: a.host.Addrs()}}}
			patience := 100 * time.Millisecond
			if test.direct {
				patience = time.Minute
			}
			b := newNode(t, Config{Finder: all, Patience: patience})
			for range test.empty {
				connect(t, b.host, newNode(t, Config{}).host)
			}
			peers := test.empty
			if test.direct {
				connect(t, b.host, a.host)
				peers++
			}
			waitFor(t, "the peers to be known", func() bool { return len(b.puller.candidates("")) == peers })
			p, err := b.FetchDAG(within(t, time.Minute), root, roomy, nil)
			if err != nil || p.MovedBytes != size || p.Total != size {
				t.Errorf("%+v of %d bytes, %v", p, size, err)
			}
			if asked := all.asked.Load(); (asked > 0) != test.asked {
				t.Errorf("asked %d times", asked)
			}
			before := all.asked.Load()
			if p, err := b.FetchDAG(within(t, time.Minute), root, roomy, nil); err != nil || p.MovedBlocks != 0 || all.asked.Load() != before {
				t.Errorf("again: %+v, %v, asked %d times", p, err, all.asked.Load()-before)
			}
		})
	}
}

// TestTotalIsAHint: a root that promises more than the fetch may cost promises nothing.
func TestTotalIsAHint(t *testing.T) {
	a, b := newNode(t, Config{}), newNode(t, Config{})
	connect(t, b.host, a.host)
	for _, size := range []uint64{1 << 40, 1<<63 - 1} {
		leaf := leaf(t, a, blockstoretest.Block(size, 1000))
		root := makeNode(t, a, nil, link{"a", leaf, size}, link{"b", leaf, 1})
		p, err := b.FetchDAG(within(t, time.Minute), root, roomy, nil)
		if err != nil || p.Total != 0 || p.Blocks != 2 {
			t.Errorf("%+v, %v", p, err)
		}
	}
}

// holding counts the holds of a store.
type holding struct {
	*blockstore.Store
	open *int
}

func (h holding) Hold() func() {
	*h.open++
	release := h.Store.Hold()
	return func() { *h.open--; release() }
}

// TestFetchHolds: what a fetch finds here stays while it lasts, whatever is collected.
func TestFetchHolds(t *testing.T) {
	open := 0
	store := holding{newStore(t, blockstore.DefaultOptions()), &open}
	e := New(newHost(t), store, Config{})
	defer func() { must(t, e.Close()) }()
	b := blockstoretest.Block(1, 1000)
	must(t, e.Put(t.Context(), b))
	reports := 0
	_, err := e.Fetch(t.Context(), []cid.Cid{b.Cid()}, roomy, func(Progress) {
		if reports++; open != 1 {
			t.Errorf("%d holds while a fetch is under way", open)
		}
	})
	if err != nil || open != 0 || reports == 0 {
		t.Errorf("%d holds are left, %d reports, %v", open, reports, err)
	}
}

// TestSilentFirst: a few blocks, for which one worker is enough, do not wait for the patience with a first peer that is
// silent, and it is asked last the next time.
func TestSilentFirst(t *testing.T) {
	b, honest, silent := newNode(t, Config{Patience: 20 * time.Second}), newNode(t, Config{}), newNode(t, Config{})
	cids := some(t, 1, 1000, honest)
	silent.host.SetStreamHandler(BulkProtocol, func(s network.Stream) { _, _ = io.Copy(io.Discard, s) })
	connect(t, b.host, honest.host)
	connect(t, b.host, silent.host)
	waitFor(t, "both to be known", func() bool { return len(b.guard.good()) == 2 })
	ctx := within(t, 10*time.Second)
	p, err := b.FetchFrom(ctx, silent.host.ID(), cids, roomy, nil)
	if err != nil || p.MovedBlocks != 1 || ctx.Err() != nil {
		t.Fatalf("%+v, %v, %v", p, err, ctx.Err())
	}
	if next := b.puller.candidates(silent.host.ID()); len(next) != 2 || next[1] != silent.host.ID() {
		t.Errorf("asked next: %v", next)
	}
}
