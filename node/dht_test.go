package node

import (
	"testing"
	"time"

	"github.com/blockzero-net/bzd/content/blockstore"
	"github.com/blockzero-net/bzd/content/exchange"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/p2p"
	"github.com/blockzero-net/bzd/p2p/discovery"
)

// TestDHT: a peer that knows only a node which has nothing finds the one that has the checkpoint, and fetches it.
func TestDHT(t *testing.T) {
	r := newRig(t, 0)
	r.people["second"] = &person{name: "second", roles: protocol.RoleBootstrap}
	second := r.open(r.people["second"])
	clock := clock{time.Now}
	h, err := p2p.New(p2p.Config{Network: r.world.link, KeyFile: t.TempDir() + "/key", Bootstrap: second.Addrs(), Clock: clock,
		Limits: p2p.Limits{Peers: 1}}) // which it has: it asks nobody for others
	r.check(err)
	defer h.Close()
	d, err := discovery.New(h.Libp2p(), discovery.Config{Network: r.world.link, Clock: clock})
	r.check(err)
	defer d.Close()
	s, err := blockstore.Open(t.TempDir(), blockstore.DefaultOptions())
	r.check(err)
	defer s.Close()
	x := exchange.New(h.Libp2p(), s, exchange.Config{Finder: d, Patience: time.Second})
	defer x.Close()
	p, err := x.FetchDAG(t.Context(), r.world.genesis.Checkpoint.Cid(), exchange.Bounds{MaxBytes: maxCheckpoint}, nil)
	if err != nil || p.MovedBytes == 0 || p.MovedBytes != p.Total {
		t.Errorf("%+v, %v", p, err)
	}
}
