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

	silent bool // claims, but sends nothing
}

func newLiar(t *testing.T, silent bool) (host.Host, *liar) {
	t.Helper()
	h := newHost(t)
	l := &liar{net: bsnet.NewFromIpfsHost(h), silent: silent}
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
		if l.silent {
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

// offences is how many a node holds against a connected peer.
func (n node) offences(p peer.ID) int {
	n.guard.mu.Lock()
	defer n.guard.mu.Unlock()
	return n.guard.peers[p]
}

// TestLiars: wrong bytes never reach the store and are held against who sent them; an honest peer among liars is enough.
func TestLiars(t *testing.T) {
	victim := newNode(t, Config{})
	var liars []peer.ID
	var all []*liar
	for range 3 {
		h, l := newLiar(t, false)
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
	waitFor(t, "the lies to be noticed", func() bool {
		return slices.ContainsFunc(liars, func(p peer.ID) bool { return victim.offences(p) > 0 })
	})
	t.Logf("%d lies sent", sent)
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
	if victim.offences(honest.host.ID()) > 0 {
		t.Error("something is held against the honest peer")
	}
	if ok, err := victim.Has(t.Context(), cids); !ok || err != nil {
		t.Errorf("%t, %v", ok, err)
	}
}

// TestSilence: peers that claim to have everything and send nothing cost patience, not the fetch.
func TestSilence(t *testing.T) {
	victim := newNode(t, Config{Patience: 100 * time.Millisecond})
	for range 3 {
		h, _ := newLiar(t, true)
		connect(t, victim.host, h)
	}
	honest := newNode(t, Config{})
	connect(t, victim.host, honest.host)
	dir, root := writeCheckpoint(t, 2)
	_, _, err := Publish(t.Context(), honest, dir)
	must(t, err)
	if _, err := victim.FetchDAG(within(t, 20*time.Second), root, roomy, nil); err != nil {
		t.Error(err)
	}
}

// TestShunnedUntilGone: a peer that reconnects is heard again.
func TestShunnedUntilGone(t *testing.T) {
	victim := newNode(t, Config{})
	h, l := newLiar(t, false)
	connect(t, victim.host, h)
	lie := func() {
		t.Helper()
		before := victim.offences(h.ID())
		m := message.New(false)
		l.mu.Lock()
		l.n++
		m.AddBlock(blockstoretest.Block(5000+l.n, 10))
		l.mu.Unlock()
		must(t, l.net.SendMessage(t.Context(), victim.host.ID(), m))
		waitFor(t, "the lie to be noticed", func() bool { return victim.offences(h.ID()) > before })
	}
	waitFor(t, "the liar to be known", func() bool { return len(victim.guard.good()) == 1 })
	lie()
	if len(victim.guard.good()) != 1 {
		t.Error("shunned after one block")
	}
	lie()
	if len(victim.guard.good()) != 0 {
		t.Error("not shunned after two")
	}
	must(t, victim.host.Network().ClosePeer(h.ID()))
	waitFor(t, "the liar to be gone", func() bool {
		victim.guard.mu.Lock()
		defer victim.guard.mu.Unlock()
		return len(victim.guard.peers) == 0
	})
	connect(t, victim.host, h)
	waitFor(t, "the liar to be back", func() bool { return len(victim.guard.good()) == 1 })
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
