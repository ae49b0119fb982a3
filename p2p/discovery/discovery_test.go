package discovery

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/blockzero-net/bzd/internal/protocol"
)

type systemClock struct{}

func (systemClock) Now() time.Time                         { return time.Now() }
func (systemClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

var testNetwork = protocol.LinkTo(protocol.DagCBOR, []byte("a network"))

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func root(i uint64) cid.Cid {
	return protocol.LinkTo(protocol.DagPB, binary.LittleEndian.AppendUint64(nil, i)).Cid()
}

func newHost(t *testing.T) host.Host {
	t.Helper()
	h, err := libp2p.New(
		libp2p.NoTransports, libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(noise.ID, noise.New),
		libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableMetrics(), libp2p.DisableRelay(), libp2p.Ping(false),
	)
	must(t, err)
	t.Cleanup(func() { must(t, h.Close()) })
	return h
}

func newDiscovery(t *testing.T, h host.Host, cfg Config) *Discovery {
	t.Helper()
	cfg.Clock = systemClock{}
	if !cfg.Network.Defined() {
		cfg.Network = testNetwork
	}
	d, err := New(h, cfg)
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	return d
}

// find asks until somebody is found.
func find(t *testing.T, d *Discovery, c cid.Cid) peer.AddrInfo {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for again := time.NewTicker(50 * time.Millisecond); ; {
		if p, ok := <-d.FindProvidersAsync(ctx, c, 1); ok {
			return p
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			t.Fatal("nobody is found")
		}
	}
}

func connect(t *testing.T, a, b host.Host) {
	t.Helper()
	must(t, a.Connect(t.Context(), peer.AddrInfo{ID: b.ID(), Addrs: b.Addrs()}))
}

// TestFind: one that knows only the second finds the first, which announced before it knew anybody. Peers of another
// network find nothing, and a peer that does not serve keeps no records.
func TestFind(t *testing.T) {
	a, b, c, other := newHost(t), newHost(t), newHost(t), newHost(t)
	first := newDiscovery(t, a, Config{Server: true})
	first.Announce(root(1))
	first.Announce(root(2), root(3)) // in place of it, or after it
	newDiscovery(t, b, Config{Server: true})
	connect(t, a, b)
	third := newDiscovery(t, c, Config{})
	connect(t, c, b)
	for _, r := range []cid.Cid{root(2), root(3)} {
		if p := find(t, third, r); p.ID != a.ID() || len(p.Addrs) == 0 {
			t.Errorf("found %v, want %s", p, a.ID())
		}
	}
	stranger := newDiscovery(t, other, Config{Network: protocol.LinkTo(protocol.DagCBOR, []byte("another network")), Server: true})
	connect(t, other, b)
	if p, ok := <-stranger.FindProvidersAsync(t.Context(), root(2), 1); ok {
		t.Errorf("a peer of another network found %s", p)
	}
	if s, err := a.NewStream(t.Context(), c.ID(), first.guard.served); err == nil {
		if _, err = s.Write([]byte{1, 0}); err == nil {
			_, err = s.Read(make([]byte, 1))
		}
		if err == nil {
			t.Error("a peer that does not serve answers")
		}
	}
}

// TestAgain: what nobody took is announced again soon, what somebody took in intervals, and something else not at once.
func TestAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		var alone atomic.Bool
		alone.Store(true)
		var times []time.Duration
		var what []cid.Cid
		d := &Discovery{clock: systemClock{}, roots: make(chan []cid.Cid, 1), provide: func(_ context.Context, c cid.Cid, _ bool) error {
			times, what = append(times, time.Since(begin)), append(what, c)
			if alone.Load() {
				return errors.New("nobody is there")
			}
			return nil
		}}
		d.start()
		d.Announce(root(1))
		<-time.After(firstRetry + firstRetry/2)
		alone.Store(false)
		<-time.After(time.Hour)
		d.Announce(root(2))
		<-time.After(pause / 2)
		d.Announce(root(3))
		d.Announce(root(4))
		<-time.After(again + pause)
		d.cancel()
		d.work.Wait()
		next := firstRetry + firstRetry/2 + time.Hour
		wantTimes := []time.Duration{0, firstRetry, 3 * firstRetry, next, next + pause, next + pause + again}
		if want := []cid.Cid{root(1), root(1), root(1), root(2), root(4), root(4)}; !slices.Equal(times, wantTimes) || !slices.Equal(what, want) {
			t.Errorf("announced %v at %v, want %v at %v", what, times, want, wantTimes)
		}
	})
}

// TestFlood: peers that speak for nobody make as many records as one participant may, however many they are, and what
// claims to be long is not waited for.
func TestFlood(t *testing.T) {
	h := newHost(t)
	victim := newDiscovery(t, h, Config{Server: true})
	const peers, each = 4, 30
	for i := range uint64(peers) {
		hostile := newHost(t)
		d := newDiscovery(t, hostile, Config{})
		connect(t, hostile, h)
		server(t, d)
		for k := range uint64(each) {
			_ = d.dht.Provide(t.Context(), root(100*i+k), true)
		}
	}
	kept := 0
	for i := range uint64(100 * peers) {
		found, err := victim.dht.ProviderStore().GetProviders(t.Context(), root(i).Hash())
		must(t, err)
		kept += len(found)
	}
	if kept == 0 || kept > recordBurst {
		t.Errorf("%d records are kept, want 1 to %d", kept, recordBurst)
	}
	liar := newHost(t)
	connect(t, liar, h)
	s, err := liar.NewStream(t.Context(), h.ID(), victim.guard.served)
	must(t, err)
	_, err = s.Write(binary.AppendUvarint(nil, network.MessageSizeMax))
	must(t, err)
	must(t, s.SetReadDeadline(time.Now().Add(10*time.Second)))
	if _, err := s.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("a request of %d bytes: %v", network.MessageSizeMax, err)
	}
}

func isTimeout(err error) bool {
	t, ok := err.(interface{ Timeout() bool })
	return ok && t.Timeout()
}

// server waits until a Discovery knows one that answers.
func server(t *testing.T, d *Discovery) peer.ID {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for again := time.NewTicker(10 * time.Millisecond); ; {
		if list := d.dht.RoutingTable().ListPeers(); len(list) > 0 {
			return list[0]
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			t.Fatal("no server is known")
		}
	}
}

// TestReachable: a host with public peers dials no private address that somebody named.
func TestReachable(t *testing.T) {
	list := []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/1"), ma.StringCast("/ip4/10.0.0.1/tcp/1"), ma.StringCast("/ip4/1.2.3.4/tcp/1")}
	for _, test := range []struct {
		peers string
		want  int
	}{{"", 3}, {"/ip4/127.0.0.1/tcp/9", 3}, {"/ip4/10.0.0.9/tcp/9", 2}, {"/ip4/8.8.8.8/tcp/9", 1}} {
		n := connections{}
		if test.peers != "" {
			n.remote = ma.StringCast(test.peers)
		}
		if got := reachable(n, list); len(got) != test.want {
			t.Errorf("with a peer at %q: %v", test.peers, got)
		}
	}
	var many []ma.Multiaddr
	for range 3 * maxAddrs {
		many = append(many, list...)
	}
	if got := reachable(connections{}, many); len(got) != maxAddrs {
		t.Errorf("%d addresses", len(got))
	}
}

// connections is a network with at most one connection.
type connections struct {
	network.Network
	remote ma.Multiaddr
}

func (n connections) Conns() []network.Conn {
	if n.remote == nil {
		return nil
	}
	return []network.Conn{connection{remote: n.remote}}
}

type connection struct {
	network.Conn
	remote ma.Multiaddr
	peer   peer.ID
}

func (c connection) RemoteMultiaddr() ma.Multiaddr { return c.remote }
func (c connection) RemotePeer() peer.ID           { return c.peer }
