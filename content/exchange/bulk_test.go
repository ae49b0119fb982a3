package exchange

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/blockzero-net/bzd/content/blockstore"
	"github.com/blockzero-net/bzd/content/blockstore/blockstoretest"
)

// some are n blocks, each in the stores of the nodes.
func some(t *testing.T, n uint64, size int, nodes ...node) []cid.Cid {
	t.Helper()
	var cids []cid.Cid
	for i := range n {
		b := blockstoretest.Block(i, size)
		cids = append(cids, b.Cid())
		for _, x := range nodes {
			must(t, x.store.Put(t.Context(), b))
		}
	}
	return cids
}

// pulled fetches in bulk alone, and returns what did not come.
func (n node) pulled(t *testing.T, cids []cid.Cid, bounds Bounds) ([]cid.Cid, Progress, error) {
	t.Helper()
	w, err := n.walk(within(t, time.Minute), bounds, nil)
	must(t, err)
	defer w.end()
	left, err := w.bulk(cids, 1000)
	return left, w.done, err
}

// TestBulk: blocks come from several peers, of which none has all; what nobody has is left.
func TestBulk(t *testing.T) {
	b := newNode(t, Config{})
	peers := []node{newNode(t, Config{}), newNode(t, Config{}), newNode(t, Config{})}
	var cids []cid.Cid
	for i := range uint64(3000) {
		block := blockstoretest.Block(i, int(i%700))
		cids = append(cids, block.Cid())
		if i < 2900 {
			must(t, peers[i%3].store.Put(t.Context(), block))
		}
	}
	for _, p := range peers {
		connect(t, b.host, p.host)
	}
	left, done, err := b.pulled(t, cids, roomy)
	if err != nil || !slices.Equal(left, cids[2900:]) || done.MovedBlocks != 2900 || done.Blocks != 2900 {
		t.Fatalf("%d left, %+v, %v", len(left), done, err)
	}
	if ok, err := b.Has(t.Context(), cids[:2900]); !ok || err != nil {
		t.Errorf("%t, %v", ok, err)
	}
}

// TestBulkGoesOn: what is there does not move again, and bitswap is not needed for what a bulk answer has.
func TestBulkGoesOn(t *testing.T) {
	a, b := newNode(t, Config{}), newNode(t, Config{})
	connect(t, b.host, a.host)
	cids := some(t, 500, 2000, a)
	for _, c := range cids[:200] {
		block, err := a.store.Get(t.Context(), c)
		must(t, err)
		must(t, b.store.Put(t.Context(), block))
	}
	p, err := b.FetchFrom(within(t, time.Minute), a.host.ID(), cids, roomy, nil)
	if err != nil || p.Blocks != 500 || p.MovedBlocks != 300 || p.MovedBytes != 300*2000 {
		t.Errorf("%+v, %v", p, err)
	}
	if stat, err := b.swap.Stat(); err != nil || stat.BlocksReceived != 0 {
		t.Errorf("%d blocks came by bitswap, %v", stat.BlocksReceived, err)
	}
	if _, _, err := b.pulled(t, some(t, 20, 3000, a), Bounds{MaxBytes: 3000*19 + 2999}); !errors.Is(err, ErrBounds) {
		t.Errorf("a byte too many: %v", err)
	}
}

// TestWithoutBulk: a peer that lacks the protocol serves by bitswap.
func TestWithoutBulk(t *testing.T) {
	a, b := newNode(t, Config{}), newNode(t, Config{})
	a.host.RemoveStreamHandler(BulkProtocol)
	connect(t, b.host, a.host)
	cids := some(t, 50, 2000, a)
	if left, _, err := b.pulled(t, cids, roomy); len(left) != 50 || err != nil {
		t.Errorf("%d left, %v", len(left), err)
	}
	if p, err := b.Fetch(within(t, time.Minute), cids, roomy, nil); err != nil || p.MovedBlocks != 50 {
		t.Errorf("%+v, %v", p, err)
	}
}

// TestHostileServers: liars, peers that stall, that leave in the middle and that talk nonsense cost a fetch nothing but
// time, and every one of them is known by its error.
func TestHostileServers(t *testing.T) {
	wrong := blockstoretest.Block(999, 1000)
	over := make(chan struct{})
	t.Cleanup(func() { close(over) })
	word := func(n int) []byte { return []byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)} }
	for _, test := range []struct {
		name   string
		answer func(s network.Stream, q request)
		want   error
	}{
		{"liar", func(s network.Stream, q request) {
			_, _ = s.Write(slices.Concat([]byte{answerBlocks}, word(1000), wrong.RawData()))
		}, ErrLied},
		{"staller", func(s network.Stream, q request) {
			_, _ = s.Write([]byte{answerBlocks})
			<-over
		}, ErrSlow},
		{"trickler", func(s network.Stream, q request) {
			_, _ = s.Write(append([]byte{answerBlocks}, word(1000)...))
			for range 100 {
				if _, err := s.Write([]byte{0}); err != nil {
					return
				}
				<-time.After(20 * time.Millisecond)
			}
		}, ErrSlow},
		{"leaver", func(s network.Stream, q request) {
			_, _ = s.Write(slices.Concat([]byte{answerBlocks}, word(1000), wrong.RawData()[:500]))
		}, io.ErrUnexpectedEOF},
		{"talker", func(s network.Stream, q request) { _, _ = s.Write([]byte{77}) }, ErrWire},
		{"large", func(s network.Stream, q request) {
			_, _ = s.Write(append([]byte{answerBlocks}, word(MaxBlock+1)...))
		}, ErrWire},
		{"longer than asked for", func(s network.Stream, q request) {
			_, _ = s.Write(append([]byte{answerBlocks}, bytes.Repeat(word(lengthMissing), len(q.cids)+1)...))
		}, ErrWire},
		{"busy", func(s network.Stream, q request) { _, _ = s.Write([]byte{answerBusy}) }, ErrBusy},
		{"refusing", func(s network.Stream, q request) { _, _ = s.Write([]byte{answerRefused}) }, ErrRefused},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			victim := newNode(t, Config{Patience: 500 * time.Millisecond})
			bad, honest := newNode(t, Config{}), newNode(t, Config{})
			bad.host.SetStreamHandler(BulkProtocol, func(s network.Stream) {
				if q, err := readRequest(s); err == nil {
					test.answer(s, q)
				}
				_ = s.Close()
			})
			cids := some(t, 100, 1000, honest)
			connect(t, victim.host, bad.host)
			waitFor(t, "the peer to be known", func() bool { return len(victim.guard.good()) == 1 })

			err := (&line{x: victim.puller, peer: bad.host.ID()}).ask(t.Context(), request{budget: 1 << 20, cids: cids}, func(int, blocks.Block) bool { return true })
			if !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
			lied := test.want == ErrLied
			if shunned := len(victim.guard.good()) == 0; shunned != lied {
				t.Errorf("shunned: %t, want %t", shunned, lied)
			}
			connect(t, victim.host, honest.host)
			if p, err := victim.FetchFrom(within(t, time.Minute), bad.host.ID(), cids, roomy, nil); err != nil || p.MovedBlocks != 100 {
				t.Errorf("with an honest peer: %+v, %v", p, err)
			}
		})
	}
}

// TestServerLimits: a peer has few requests under way, and what nobody may have or is too long is not there.
func TestServerLimits(t *testing.T) {
	secret := blockstoretest.Block(1, 1000)
	a := newNode(t, Config{Serve: func(_ peer.ID, c cid.Cid) bool { return !c.Equals(secret.Cid()) }})
	b := newNode(t, Config{})
	connect(t, b.host, a.host)
	cids := some(t, 10, 1000, a)
	long := blockstoretest.Block(77, MaxBlock+1)
	must(t, a.store.Put(t.Context(), long))
	var got []int
	q := request{budget: 3500, cids: append([]cid.Cid{long.Cid()}, cids...)}
	take := func(i int, _ blocks.Block) bool { got = append(got, i); return true }
	idle := func() bool {
		a.server.mu.Lock()
		defer a.server.mu.Unlock()
		return a.server.total == 0
	}
	l := &line{x: b.puller, peer: a.host.ID()}
	for i := range 4 {
		got = nil
		before := l.stream
		if err := l.ask(t.Context(), q, take); err != nil || !slices.Equal(got, []int{1, 3, 4}) {
			t.Errorf("with room for three, without the second: %v, %v", got, err)
		}
		if reused := l.stream == before; reused != (i == 1) {
			t.Errorf("request %d: the stream is reused: %t", i, reused)
		}
		switch i {
		case 1:
			_ = l.stream.Reset() // as when the peer has ended it
		case 2:
			l.close()
		}
	}
	l.close()
	waitFor(t, "the requests to end", idle)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for range serveStreams {
		s, err := b.host.NewStream(ctx, a.host.ID(), BulkProtocol)
		must(t, err)
		_, err = s.Write([]byte{1}) // half a request
		must(t, err)
		wg.Go(func() { <-ctx.Done(); _ = s.Reset() })
	}
	waitFor(t, "the requests to be under way", func() bool {
		a.server.mu.Lock()
		defer a.server.mu.Unlock()
		return a.server.total == serveStreams
	})
	if err := l.ask(t.Context(), q, take); !errors.Is(err, ErrBusy) {
		t.Errorf("one request more: %v", err)
	}
	cancel()
	wg.Wait()
	waitFor(t, "the requests to end", idle)
	if err := l.ask(t.Context(), q, take); err != nil {
		t.Error(err)
	}
	s, err := b.host.NewStream(t.Context(), a.host.ID(), BulkProtocol)
	must(t, err)
	_, err = s.Write(make([]byte, headerBytes)) // no block
	must(t, err)
	if answer, err := io.ReadAll(s); err != nil || !bytes.Equal(answer, []byte{answerRefused}) {
		t.Errorf("an empty request is answered by %v, %v", answer, err)
	}
}

func FuzzBulkRequest(f *testing.F) {
	var cids []cid.Cid
	for i := range uint64(3) {
		cids = append(cids, blockstoretest.Block(i, 10).Cid())
	}
	good := request{budget: 1000, cids: cids}.encode()
	f.Add(good)
	f.Add(good[:40])
	f.Add([]byte{0xff, 0xff, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		q, err := readRequest(r)
		if err != nil {
			return
		}
		if read := data[:len(data)-r.Len()]; !bytes.Equal(q.encode(), read) {
			t.Errorf("% x is encoded as % x", read, q.encode())
		}
	})
}

func FuzzBulkAnswer(f *testing.F) {
	f.Add([]byte{answerBlocks, 3, 0, 0, 0, 'a', 'b', 'c', 0xff, 0xff, 0xff, 0xff, 0xfe, 0xff, 0xff, 0xff}, uint16(5), uint16(100))
	f.Add([]byte{answerBlocks, 0, 0, 0, 0}, uint16(1), uint16(0))
	f.Add([]byte{answerBusy}, uint16(1), uint16(0))
	f.Fuzz(func(t *testing.T, data []byte, n, budget uint16) {
		q := request{budget: uint32(budget), cids: make([]cid.Cid, n%maxAsk)}
		a, err := readAnswer(bytes.NewReader(data), q)
		if err != nil {
			return
		}
		blocks, total := 0, 0
		for {
			b, err := a.next(func(n int) []byte { return make([]byte, n) })
			if err != nil {
				break
			}
			if total > 0 && total+len(b) > int(budget) {
				t.Fatal("more than the budget")
			}
			blocks++
			total += len(b)
		}
		if blocks > len(q.cids) || total > len(data) {
			t.Errorf("%d blocks, %d bytes", blocks, total)
		}
	})
}

// TestBuffersAgain: memory that is used again spoils no block: not of a fetch that waits for bitswap to bring what another one
// of the same exchange brings in bulk, and not of those that come after it.
func TestBuffersAgain(t *testing.T) {
	a, b := newNode(t, Config{}), newNode(t, Config{})
	cids := some(t, 40, MaxBlock-1, a)
	ctx := within(t, time.Minute)
	early := make(chan error, 1)
	go func() {
		_, err := b.Fetch(ctx, cids[:20], roomy, nil)
		early <- err
	}()
	waitFor(t, "the first fetch to wait for bitswap", func() bool {
		b.wanted.mu.Lock()
		defer b.wanted.mu.Unlock()
		return len(b.wanted.waits) == 20
	})
	connect(t, b.host, a.host)
	if _, err := b.Fetch(ctx, cids, roomy, nil); err != nil {
		t.Fatal(err)
	}
	must(t, <-early)
	for _, c := range cids {
		block, err := b.store.Get(ctx, c)
		must(t, err)
		must(t, blockstore.Check(c, block.RawData()))
	}
	if len(b.wanted.waits) != 0 {
		t.Errorf("%d blocks are still waited for", len(b.wanted.waits))
	}
}
