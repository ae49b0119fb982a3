package exchange

import (
	"context"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"

	"github.com/blockzero-net/bzd/content/blockstore"
	"github.com/blockzero-net/bzd/content/blockstore/blockstoretest"
)

// BenchmarkFetch moves 64 blocks of 1 MiB from disk to disk over loopback.
func BenchmarkFetch(b *testing.B) {
	check := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	start := func() (host.Host, *Exchange, func()) {
		h, err := libp2p.New(libp2p.NoTransports, libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(noise.ID, noise.New),
			libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableMetrics(), libp2p.DisableRelay())
		check(err)
		s, err := blockstore.Open(b.TempDir(), blockstore.DefaultOptions())
		check(err)
		e := New(h, s, Config{})
		return h, e, func() {
			check(e.Close())
			check(h.Close())
			check(s.Close())
		}
	}
	ha, a, stopA := start()
	defer stopA()
	const n = 64
	var cids []cid.Cid
	for i := range uint64(n) {
		block := blockstoretest.Block(i, 1<<20)
		cids = append(cids, block.Cid())
		check(a.PutMany(context.Background(), []blocks.Block{block}))
	}
	b.SetBytes(n << 20)
	for b.Loop() {
		b.StopTimer()
		hb, e, stopB := start()
		check(hb.Connect(context.Background(), peer.AddrInfo{ID: ha.ID(), Addrs: ha.Addrs()}))
		b.StartTimer()
		_, err := e.Fetch(context.Background(), cids, Bounds{MaxBytes: n << 20}, nil)
		check(err)
		b.StopTimer()
		stopB()
		b.StartTimer()
	}
}
