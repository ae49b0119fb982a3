package exchange

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/boxo/bitswap/message"
	pb "github.com/ipfs/boxo/bitswap/message/pb"
	bsnetwork "github.com/ipfs/boxo/bitswap/network"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/blockzero-net/bzd/content/blockstore/blockstoretest"
)

// liar speaks bitswap. It claims to have everything and answers every request with bytes of its own.
type liar struct {
	net bsnetwork.BitSwapNetwork
	mu  sync.Mutex
	n   uint64
}

func newLiar(t *testing.T) (host.Host, *liar) {
	t.Helper()
	h := newHost(t)
	l := &liar{net: bsnet.NewFromIpfsHost(h)}
	l.net.Start(l)
	t.Cleanup(l.net.Stop)
	return h, l
}

func (l *liar) ReceiveMessage(ctx context.Context, from peer.ID, m message.BitSwapMessage) {
	answer := message.New(false)
	for _, e := range m.Wantlist() {
		if e.Cancel {
			continue
		}
		if e.WantType == pb.Message_Wantlist_Have {
			answer.AddHave(e.Cid)
			continue
		}
		l.mu.Lock()
		l.n++
		answer.AddBlock(blockstoretest.Block(1000+l.n, 2000))
		l.mu.Unlock()
	}
	if !answer.Empty() {
		_ = l.net.SendMessage(ctx, from, answer) // the victim may be gone
	}
}

func (l *liar) ReceiveError(error)       {}
func (l *liar) PeerConnected(peer.ID)    {}
func (l *liar) PeerDisconnected(peer.ID) {}
func (l *liar) sent() uint64             { l.mu.Lock(); defer l.mu.Unlock(); return l.n }

// offences collects who was reported.
type offences struct {
	mu    sync.Mutex
	peers []peer.ID
	bytes int
}

func (o *offences) add(p peer.ID, what Offence) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.peers = append(o.peers, p)
	o.bytes += what.Bytes
}

func (o *offences) of() ([]peer.ID, int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.peers), o.bytes
}

// TestLiars: wrong bytes never reach the store and are reported; an honest peer among liars is enough.
func TestLiars(t *testing.T) {
	var seen offences
	victim := newNode(t, Config{Penalise: seen.add})
	var liars []peer.ID
	var all []*liar
	for range 3 {
		h, l := newLiar(t)
		connect(t, victim.host, h)
		liars = append(liars, h.ID())
		all = append(all, l)
	}
	var cids []cid.Cid
	var bs []blocks.Block
	for i := range uint64(5) {
		b := blockstoretest.Block(i, 3000)
		bs, cids = append(bs, b), append(cids, b.Cid())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if p, err := victim.Fetch(ctx, cids, roomy, nil); !errors.Is(err, ErrMissing) || p.Blocks != 0 {
		t.Errorf("from liars alone: %+v, %v", p, err)
	}
	sent := uint64(0)
	for _, l := range all {
		sent += l.sent()
	}
	waitFor(t, "the lies to be reported", func() bool { who, _ := seen.of(); return len(who) > 0 })
	who, size := seen.of()
	for _, p := range who {
		if !slices.Contains(liars, p) {
			t.Errorf("%s is reported", p)
		}
	}
	t.Logf("%d lies sent, %d reported, %d bytes", sent, len(who), size)
	keys, err := victim.store.AllKeysChan(t.Context())
	must(t, err)
	for c := range keys {
		t.Errorf("%s got into the store", c)
	}

	honest := newNode(t, Config{})
	must(t, honest.PutMany(t.Context(), bs))
	connect(t, victim.host, honest.host)
	if _, err := victim.Fetch(within(t, time.Minute), cids, roomy, nil); err != nil {
		t.Errorf("with an honest peer: %v", err)
	}
	if who, _ := seen.of(); slices.Contains(who, honest.host.ID()) {
		t.Error("the honest peer is reported")
	}
	if ok, err := victim.Has(t.Context(), cids); !ok || err != nil {
		t.Errorf("%t, %v", ok, err)
	}
}

func TestAsked(t *testing.T) {
	a := newAsked()
	first := blockstoretest.Block(1, 1).Cid()
	a.add([]cid.Cid{first})
	for i := range uint64(askedMemory) {
		a.recent[strconv.FormatUint(i, 10)] = struct{}{}
	}
	second := blockstoretest.Block(2, 1).Cid()
	a.add([]cid.Cid{second})
	if !a.has(first) || !a.has(second) || a.has(blockstoretest.Block(3, 1).Cid()) {
		t.Error("the last questions are forgotten, or others remembered")
	}
	if len(a.recent) != 1 {
		t.Errorf("%d are recent", len(a.recent))
	}
}
