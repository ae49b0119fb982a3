package p2p

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/blockzero-net/bzd/internal/protocol"
)

const patience = 30 * time.Second // a test that waits longer has failed

type systemClock struct{}

func (systemClock) Now() time.Time                         { return time.Now() }
func (systemClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

var (
	testNetwork  = protocol.LinkTo(protocol.DagCBOR, []byte("a network"))
	otherNetwork = protocol.LinkTo(protocol.DagCBOR, []byte("another network"))
)

// world is what the hosts of a test share: the registry, and a bell that rings with every event.
type world struct {
	t    *testing.T
	bell chan struct{}

	mu       sync.Mutex
	registry map[protocol.ID]protocol.Key
	events   map[peer.ID][]Event // by the host that saw them
}

func newWorld(t *testing.T) *world {
	return &world{t: t, bell: make(chan struct{}, 1), registry: make(map[protocol.ID]protocol.Key), events: make(map[peer.ID][]Event)}
}

func (w *world) lookup(id protocol.ID) (protocol.Key, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k, ok := w.registry[id]
	return k, ok
}

// participant is an id with its protocol key.
type participant struct {
	id  protocol.ID
	key ed25519.PrivateKey
}

func newParticipant(t *testing.T) participant {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p := participant{key: key}
	if _, err := rand.Read(p.id[:]); err != nil {
		t.Fatal(err)
	}
	return p
}

// register makes a participant that the registry knows.
func (w *world) register() participant {
	p := newParticipant(w.t)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.registry[p.id] = protocol.KeyOf(p.key)
	return p
}

func newIdentity(t *testing.T) (crypto.PrivKey, peer.ID) {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, id
}

func (p participant) bind(t *testing.T, network protocol.Link, to peer.ID) *protocol.Binding {
	t.Helper()
	b, err := NewBinding(network, p.id, to, p.key)
	if err != nil {
		t.Fatal(err)
	}
	return &b
}

// host starts a host on a free loopback port; change may be nil.
func (w *world) host(change func(*Config)) *Host {
	w.t.Helper()
	key, id := newIdentity(w.t)
	cfg := Config{
		Network:  testNetwork,
		Key:      key,
		Listen:   []string{"/ip4/127.0.0.1/tcp/0"},
		Registry: w.lookup,
		Clock:    systemClock{},
		Limits:   Limits{RedialMin: 20 * time.Millisecond, RedialMax: 200 * time.Millisecond, ExchangeMin: 20 * time.Millisecond, ExchangeMax: 500 * time.Millisecond},
	}
	if change != nil {
		change(&cfg)
		var err error
		if id, err = peer.IDFromPrivateKey(cfg.Key); err != nil {
			w.t.Fatal(err)
		}
	}
	cfg.Events = func(e Event) {
		w.mu.Lock()
		w.events[id] = append(w.events[id], e)
		w.mu.Unlock()
		select {
		case w.bell <- struct{}{}:
		default:
		}
	}
	h, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := h.Close(); err != nil {
			w.t.Errorf("close: %v", err)
		}
	})
	return h
}

// await waits until cond holds, looking again at every event, and now and then for what has no event.
func (w *world) await(what string, cond func() bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-w.bell:
		case <-tick.C:
		case <-ctx.Done():
			w.t.Fatalf("never happened: %s", what)
		}
	}
}

// seen returns the events of one kind that a host saw about a peer.
func (w *world) seen(h *Host, kind EventKind, about peer.ID) []Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []Event
	for _, e := range w.events[h.ID()] {
		if e.Kind == kind && e.Peer == about {
			out = append(out, e)
		}
	}
	return out
}

func connect(t *testing.T, a, b *Host) {
	t.Helper()
	if err := a.Connect(t.Context(), b.Addrs()[0]); err != nil {
		t.Fatal(err)
	}
}

func standing(h *Host, p peer.ID) Standing {
	s, _ := h.Standing(p)
	return s
}

func TestStarBecomesMesh(t *testing.T) {
	w := newWorld(t)
	hosts := []*Host{w.host(nil)}
	for len(hosts) < 8 {
		p := w.register()
		hosts = append(hosts, w.host(func(c *Config) {
			c.Bootstrap = hosts[0].Addrs()
			id, err := peer.IDFromPrivateKey(c.Key)
			if err != nil {
				t.Fatal(err)
			}
			c.Binding = p.bind(t, testNetwork, id)
		}))
	}
	w.await("8 hosts all connected, 7 of them bound", func() bool {
		for _, h := range hosts {
			bound := 0
			for _, p := range h.Peers() {
				if p.Standing == Bound {
					bound++
				}
			}
			want := 6
			if h == hosts[0] {
				want = 7
			}
			if len(h.Peers()) != 7 || bound != want {
				return false
			}
		}
		return true
	})
	for _, h := range hosts[1:] {
		if s := standing(h, hosts[0].ID()); s != Unbound {
			t.Errorf("the bootstrap peer, which claims nothing, is %s", s)
		}
	}
}

func TestExchangeIsBounded(t *testing.T) {
	w := newWorld(t)
	hosts := []*Host{w.host(nil)}
	for len(hosts) < 6 {
		hosts = append(hosts, w.host(func(c *Config) {
			c.Bootstrap = hosts[0].Addrs()
			c.Limits.Peers = 1
		}))
	}
	w.await("a star whose middle knows everybody's addresses", func() bool { return len(hosts[0].table.records("")) == 5 })
	infos, err := hosts[1].askPeers(t.Context(), hosts[0].ID())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range infos {
		if i.ID == hosts[1].ID() || i.ID == hosts[0].ID() {
			t.Errorf("told about %s, the asker or the asked", i.ID)
		}
	}
	if len(infos) != 4 {
		t.Errorf("told about %d peers, want the other 4", len(infos))
	}
	for _, h := range hosts[1:] {
		if n := len(h.Peers()); n != 1 {
			t.Errorf("a host that wants one peer has %d", n)
		}
	}
}

func TestRedialAndRestart(t *testing.T) {
	w := newWorld(t)
	file := filepath.Join(t.TempDir(), "keys", "identity")
	key, err := LoadKey(file)
	if err != nil {
		t.Fatal(err)
	}
	first := w.host(func(c *Config) { c.Key = key })
	addr := first.Addrs()[0]
	dialler := w.host(func(c *Config) { c.Bootstrap = []string{addr} })
	w.await("connected", func() bool { return len(dialler.Peers()) == 1 })

	listen := strings.Split(addr, "/p2p/")[0]
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	w.await("disconnected", func() bool { return len(w.seen(dialler, Disconnected, first.ID())) == 1 })
	if key, err = LoadKey(file); err != nil {
		t.Fatal(err)
	}
	second := w.host(func(c *Config) { c.Key, c.Listen = key, []string{listen} })
	if second.ID() != first.ID() {
		t.Fatalf("identity changed from %s to %s", first.ID(), second.ID())
	}
	w.await("connected again, without being asked to", func() bool { return len(w.seen(dialler, Connected, first.ID())) == 2 })
	w.await("on both sides", func() bool { return len(second.Peers()) == 1 })
}

func TestBootstrapComesLate(t *testing.T) {
	w := newWorld(t)
	key, id := newIdentity(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a, err := manet.FromNetAddr(l.Addr())
	if err != nil {
		t.Fatal(err)
	}
	early := w.host(func(c *Config) { c.Bootstrap = []string{a.String() + "/p2p/" + id.String()} })
	// The dialler meets somebody who is not a libp2p host at all, then nobody, then the right one.
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(conn.Close(), l.Close()); err != nil {
		t.Fatal(err)
	}
	w.host(func(c *Config) { c.Key, c.Listen = key, []string{a.String()} })
	w.await("connected", func() bool { return len(early.Peers()) == 1 })
}

func TestPortInUse(t *testing.T) {
	for name, nat := range map[string]NAT{"plain": {}, "shared ports": {HolePunching: true}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			first := w.host(func(c *Config) { c.NAT = nat })
			addr := strings.Split(first.Addrs()[0], "/p2p/")[0]
			key, _ := newIdentity(t)
			h, err := New(Config{Network: testNetwork, Key: key, Clock: systemClock{}, NAT: nat, Listen: []string{"/ip4/127.0.0.1/tcp/0", addr}})
			if !errors.Is(err, ErrPortInUse) {
				if err == nil {
					err = h.Close()
				}
				t.Fatalf("got %v", err)
			}
			if s := err.Error(); !strings.Contains(s, addr) || strings.Contains(s, "\n") {
				t.Errorf("not one clear sentence with the address: %q", s)
			}
		})
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("hosts", func(t *testing.T) {
		w := newWorld(t)
		a := w.host(nil)
		for range 3 {
			w.host(func(c *Config) { c.Bootstrap = a.Addrs() })
		}
		w.await("connected", func() bool { return len(a.Peers()) == 3 })
		if err := errors.Join(a.Close(), a.Close()); err != nil { // twice does no harm
			t.Error(err)
		}
		if _, err := a.Request(t.Context(), "nobody", helloProtocol, nil); err == nil {
			t.Error("a closed host got an answer")
		}
	})
	awaitGoroutines(t, before)
}

// awaitGoroutines waits for the stragglers of libp2p, which end a moment after their host.
func awaitGoroutines(t *testing.T, most int) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); runtime.NumGoroutine() > most; <-tick.C {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), most, buf[:runtime.Stack(buf, true)])
		}
	}
}

func TestConfigValidate(t *testing.T) {
	err := Config{
		Listen:    []string{"127.0.0.1:4001"},
		Announce:  []string{"nowhere"},
		Bootstrap: []string{"/ip4/127.0.0.1/tcp/4001"},
		NAT:       NAT{Relays: []string{"/ip4/127.0.0.1/tcp/4001"}},
		Limits:    Limits{Peers: 10, MaxPeers: 5, RedialMin: time.Hour, PeerRate: -1},
	}.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"no network", "no clock", "no identity", "listen address", "announced address", "bootstrap peer", "relay",
		"at most 5 peers", "time between dials", "request rate"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the report misses %q:\n%v", want, err)
		}
	}
	if _, err := New(Config{}); err == nil {
		t.Error("New accepted an empty config")
	}
}

// TestNAT starts a host with all that a public node may turn on.
func TestNAT(t *testing.T) {
	w := newWorld(t)
	relay := w.host(nil)
	h := w.host(func(c *Config) {
		c.QUIC = true
		c.Listen = append(c.Listen, "/ip4/127.0.0.1/udp/0/quic-v1")
		c.NAT = NAT{AutoNAT: true, HolePunching: true, RelayService: true, Relays: relay.Addrs()}
	})
	if !slices.ContainsFunc(h.Addrs(), func(s string) bool { return strings.Contains(s, "/quic-v1/p2p/") }) {
		t.Errorf("no QUIC address among %v", h.Addrs())
	}
	announced := w.host(func(c *Config) { c.Announce = []string{"/ip4/192.0.2.1/tcp/4001"} })
	if want := "/ip4/192.0.2.1/tcp/4001/p2p/" + announced.ID().String(); !slices.Equal(announced.Addrs(), []string{want}) {
		t.Errorf("announces %v, want %s", announced.Addrs(), want)
	}
}

func TestTargets(t *testing.T) {
	now := time.Unix(1000, 0)
	addr := []ma.Multiaddr{ma.StringCast("/ip4/192.0.2.1/tcp/4001")}
	fresh := func() *targets { return newTargets(time.Second, 8*time.Second, testRand()) }
	id := func(i int) peer.ID { return peer.ID(string(rune('a' + i))) }

	t.Run("backoff doubles, bootstrap stays", func(t *testing.T) {
		ts := fresh()
		ts.add(peer.AddrInfo{ID: id(0), Addrs: addr}, true, now)
		at := now
		for i, most := range []time.Duration{1, 2, 4, 8, 8, 8, 8, 8, 8} {
			dial, _ := ts.next(at, false)
			if len(dial) != 1 {
				t.Fatalf("dial %d: %d peers", i, len(dial))
			}
			if again, _ := ts.next(at, true); len(again) != 0 {
				t.Fatal("dials a peer twice at once")
			}
			ts.dialled(id(0), false, at)
			_, next := ts.next(at, true)
			if d := next.Sub(at); d > most*time.Second || d < most*time.Second*3/4 {
				t.Errorf("after failure %d: waits %s, want 3/4 to all of %ds", i+1, d, most)
			}
			at = next
		}
	})
	t.Run("learnt peers are forgotten", func(t *testing.T) {
		ts := fresh()
		ts.add(peer.AddrInfo{ID: id(0), Addrs: addr}, false, now)
		if dial, again := ts.next(now, false); len(dial) != 0 || !again.IsZero() {
			t.Error("dials learnt peers without room")
		}
		at := now
		for range maxFailures {
			if dial, _ := ts.next(at, true); len(dial) != 1 {
				t.Fatal("forgotten too early")
			}
			ts.dialled(id(0), false, at)
			_, at = ts.next(at, true)
		}
		if len(ts.peers) != 0 || ts.dialling != 0 {
			t.Errorf("%d peers, %d dials left", len(ts.peers), ts.dialling)
		}
	})
	t.Run("bounded", func(t *testing.T) {
		ts := fresh()
		for i := range 2 * maxTargets {
			ts.add(peer.AddrInfo{ID: id(i), Addrs: slices.Repeat(addr, 100)}, false, now)
		}
		if len(ts.peers) != maxTargets || len(ts.peers[id(0)].info.Addrs) > maxTargetAddrs {
			t.Errorf("%d peers with %d addresses", len(ts.peers), len(ts.peers[id(0)].info.Addrs))
		}
		if !ts.add(peer.AddrInfo{ID: "bootstrap", Addrs: addr}, true, now) {
			t.Error("no place for a bootstrap peer")
		}
		dial, _ := ts.next(now, true)
		if len(dial) != maxDials {
			t.Errorf("%d dials at once", len(dial))
		}
	})
	t.Run("nobody moves a bootstrap peer", func(t *testing.T) {
		ts := fresh()
		ts.add(peer.AddrInfo{ID: id(0), Addrs: addr}, true, now)
		ts.add(peer.AddrInfo{ID: id(0), Addrs: []ma.Multiaddr{ma.StringCast("/ip4/198.51.100.1/tcp/1")}}, false, now)
		if !ts.peers[id(0)].info.Addrs[0].Equal(addr[0]) {
			t.Error("moved")
		}
		ts.connect(id(0))
		if dial, _ := ts.next(now, true); len(dial) != 0 {
			t.Error("dials a connected peer")
		}
		ts.disconnect(id(0), now)
		if _, again := ts.next(now, true); !again.After(now) {
			t.Error("no new dial after a loss")
		}
	})
}
