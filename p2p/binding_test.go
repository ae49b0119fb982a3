package p2p

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/blockzero-net/bzd/internal/protocol"
)

func testRand() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

// forge gives a host a binding that SetBinding would refuse.
func forge(h *Host, b *protocol.Binding) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.binding = b
}

func TestBinding(t *testing.T) {
	w := newWorld(t)
	honest, victim := w.register(), w.register()
	server := w.host(nil)

	for name, c := range map[string]struct {
		binding func(self peer.ID) *protocol.Binding
		want    Standing
		refused bool // the fault is in the binding itself
	}{
		"valid":         {func(self peer.ID) *protocol.Binding { return honest.bind(t, testNetwork, self) }, Bound, false},
		"none":          {func(peer.ID) *protocol.Binding { return nil }, Unbound, false},
		"unknown id":    {func(self peer.ID) *protocol.Binding { return newParticipant(t).bind(t, testNetwork, self) }, Unbound, false},
		"other network": {func(self peer.ID) *protocol.Binding { return victim.bind(t, otherNetwork, self) }, Unbound, true},
		"stolen: another's id under one's own key": {func(self peer.ID) *protocol.Binding {
			thief := newParticipant(t)
			thief.id = victim.id
			return thief.bind(t, testNetwork, self)
		}, Unbound, false},
		"replayed: another peer's binding": {func(peer.ID) *protocol.Binding {
			_, other := newIdentity(t)
			return victim.bind(t, testNetwork, other)
		}, Unbound, true},
		"wrong signature": {func(self peer.ID) *protocol.Binding {
			b := victim.bind(t, testNetwork, self)
			b.Sig[5] ^= 1
			return b
		}, Unbound, true},
		"id changed after signing": {func(self peer.ID) *protocol.Binding {
			b := honest.bind(t, testNetwork, self)
			b.ID = victim.id
			return b
		}, Unbound, true},
	} {
		t.Run(name, func(t *testing.T) {
			client := w.host(nil)
			forge(client, c.binding(client.ID()))
			connect(t, client, server)
			w.await("settled", func() bool {
				return standing(server, client.ID()) != Pending && standing(client, server.ID()) != Pending
			})
			if s := standing(server, client.ID()); s != c.want {
				t.Errorf("%s, want %s", s, c.want)
			}
			own, err := client.ownHello()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.Request(t.Context(), server.ID(), helloProtocol, own); errors.Is(err, ErrRefused) != c.refused {
				t.Errorf("said hello: %v; refused should be %t", err, c.refused)
			}
			p, ok := server.PeerOf(honest.id)
			if c.want == Bound && (!ok || p != client.ID()) {
				t.Errorf("the id belongs to %q", p)
			}
			if _, ok := server.PeerOf(victim.id); ok {
				t.Error("the victim's id was taken")
			}
			if b := c.binding(client.ID()); b != nil {
				if err := client.SetBinding(*b); (err != nil) != c.refused {
					t.Errorf("SetBinding: %v", err)
				}
			}
			if err := client.Close(); err != nil {
				t.Fatal(err)
			}
			w.await("gone", func() bool { return standing(server, client.ID()) == Pending })
			if _, ok := server.PeerOf(honest.id); ok {
				t.Error("the id of a peer that left still has a peer")
			}
		})
	}
}

// TestTakeover: one id has one peer, the one that showed a binding last, and whoever lost the id is told apart.
func TestTakeover(t *testing.T) {
	w := newWorld(t)
	p := w.register()
	server := w.host(nil)
	start := func() *Host {
		h := w.host(nil)
		if err := h.SetBinding(*p.bind(t, testNetwork, h.ID())); err != nil {
			t.Fatal(err)
		}
		connect(t, h, server)
		w.await("bound", func() bool { q, _ := server.PeerOf(p.id); return q == h.ID() })
		return h
	}
	older := start()
	newer := start()
	if s := standing(server, older.ID()); s != Unbound {
		t.Errorf("the older peer is %s", s)
	}
	server.Refresh() // changes nothing
	if q, _ := server.PeerOf(p.id); q != newer.ID() {
		t.Error("a refresh gave the id back")
	}
	w.await("told", func() bool { return len(w.seen(server, PeerUnbound, older.ID())) == 1 })
	if e := w.seen(server, PeerUnbound, older.ID())[0]; e.ID != p.id || e.Err == nil {
		t.Errorf("event %+v", e)
	}
}

func TestRefresh(t *testing.T) {
	w := newWorld(t)
	server, client := w.host(nil), w.host(nil)
	p := newParticipant(t)
	if err := client.SetBinding(*p.bind(t, testNetwork, client.ID())); err != nil {
		t.Fatal(err)
	}
	connect(t, client, server)
	w.await("unbound", func() bool { return standing(server, client.ID()) == Unbound })
	set := func(key protocol.Key, known bool) {
		w.mu.Lock()
		delete(w.registry, p.id)
		if known {
			w.registry[p.id] = key
		}
		w.mu.Unlock()
		server.Refresh()
	}
	set(protocol.KeyOf(p.key), true)
	if s, id := server.Standing(client.ID()); s != Bound || id != p.id {
		t.Errorf("registered, but %s as %s", s, id)
	}
	set(protocol.Key{1}, true)
	if s := standing(server, client.ID()); s != Unbound {
		t.Errorf("the key was replaced, but %s", s)
	}
	set(protocol.KeyOf(p.key), true)
	set(protocol.Key{}, false)
	if s := standing(server, client.ID()); s != Unbound {
		t.Errorf("left the registry, but %s", s)
	}
	// A binding that comes later is shown to those who are connected already.
	q := w.register()
	if err := client.SetBinding(*q.bind(t, testNetwork, client.ID())); err != nil {
		t.Fatal(err)
	}
	w.await("bound to the new id", func() bool { got, _ := server.PeerOf(q.id); return got == client.ID() })
}

// TestEventsInOrder: of one peer, connected comes first and disconnected last.
func TestEventsInOrder(t *testing.T) {
	w := newWorld(t)
	server := w.host(nil)
	p := w.register()
	client := w.host(nil)
	if err := client.SetBinding(*p.bind(t, testNetwork, client.ID())); err != nil {
		t.Fatal(err)
	}
	connect(t, client, server)
	w.await("bound", func() bool { return standing(server, client.ID()) == Bound })
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	w.await("disconnected", func() bool { return len(w.seen(server, Disconnected, client.ID())) == 1 })
	w.mu.Lock()
	defer w.mu.Unlock()
	var kinds []EventKind
	for _, e := range w.events[server.ID()] {
		kinds = append(kinds, e.Kind)
	}
	if len(kinds) != 3 || kinds[0] != Connected || kinds[1] != PeerBound || kinds[2] != Disconnected {
		t.Errorf("events %v", kinds)
	}
}

func FuzzHello(f *testing.F) {
	p := participant{id: protocol.ID{1}, key: bytes.Repeat([]byte{7}, 64)}
	b, err := NewBinding(testNetwork, p.id, "peer", p.key)
	if err != nil {
		f.Fatal(err)
	}
	good, err := protocol.Encode(b)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{})
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(append(bytes.Clone(good), 0))
	f.Fuzz(func(t *testing.T, in []byte) {
		b, err := parseHello(in)
		if err != nil {
			if !errors.Is(err, ErrBinding) {
				t.Errorf("an error that blames nobody: %v", err)
			}
			return
		}
		if b == nil {
			if len(in) != 0 {
				t.Error("bytes that say nothing")
			}
			return
		}
		again, err := protocol.Encode(*b)
		if err != nil || !bytes.Equal(again, in) {
			t.Errorf("two forms of one hello: %v", err)
		}
		_ = checkBinding(*b, testNetwork, "peer")
	})
}

// signedRecord is a peer's own statement of its addresses.
func signedRecord(t *testing.T, addrs ...string) ([]byte, peer.ID) {
	t.Helper()
	key, id := newIdentity(t)
	return seal(t, key, id, addrs...), id
}

func seal(t *testing.T, key crypto.PrivKey, id peer.ID, addrs ...string) []byte {
	t.Helper()
	rec := peer.NewPeerRecord()
	rec.PeerID = id
	rec.Seq = 1
	for _, a := range addrs {
		rec.Addrs = append(rec.Addrs, ma.StringCast(a))
	}
	env, err := record.Seal(rec, key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := env.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPeersAnswer(t *testing.T) {
	loopback, private, public := ma.StringCast("/ip4/127.0.0.1/tcp/1"), ma.StringCast("/ip4/10.0.0.1/tcp/1"), ma.StringCast("/ip4/8.8.8.8/tcp/1")
	rec, id := signedRecord(t, loopback.String(), private.String(), public.String())
	list := encodePeers([][]byte{rec}, testRand())
	for i, via := range []ma.Multiaddr{public, private, loopback} {
		infos, err := parsePeers(list, via)
		if err != nil || len(infos) != 1 || infos[0].ID != id || len(infos[0].Addrs) != i+1 {
			t.Errorf("heard at %s: %v, %v; want %d addresses", via, infos, err, i+1)
		}
	}
	var many [][]byte
	for range 2 * maxExchanged {
		many = append(many, rec)
	}
	list = encodePeers(many, testRand())
	if infos, err := parsePeers(list, loopback); err != nil || len(infos) != maxExchanged || len(list) > peersProtocol.MaxResponse {
		t.Errorf("%d records in %d bytes, %v", len(infos), len(list), err)
	}
	forged := bytes.Clone(rec)
	forged[len(forged)-3] ^= 1 // in the signature
	stranger, _ := newIdentity(t)
	slander := seal(t, stranger, id, public.String())
	for name, bad := range map[string][]byte{
		"one too many": append(bytes.Clone(list), list[:len(list)/maxExchanged]...),
		"forged":       encodePeers([][]byte{forged}, testRand()),
		"by another":   encodePeers([][]byte{slander}, testRand()),
		"cut":          list[:len(list)-1],
		"huge":         binary.AppendUvarint(nil, 1<<62),
		"empty record": {0},
		"endless":      bytes.Repeat([]byte{0xff}, 20),
	} {
		if _, err := parsePeers(bad, loopback); !errors.Is(err, errPeers) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzPeersAnswer(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{1, 2})
	via := ma.StringCast("/ip4/127.0.0.1/tcp/1")
	f.Fuzz(func(t *testing.T, in []byte) {
		infos, err := parsePeers(in, via)
		if err != nil && !errors.Is(err, errPeers) || len(infos) > maxExchanged {
			t.Errorf("%d peers, %v", len(infos), err)
		}
	})
}

// TestLastBindingWins: bindings that follow each other at once arrive in order.
func TestLastBindingWins(t *testing.T) {
	w := newWorld(t)
	server, client := w.host(nil), w.host(nil)
	connect(t, client, server)
	var last participant
	for range 10 {
		last = w.register()
		if err := client.SetBinding(*last.bind(t, testNetwork, client.ID())); err != nil {
			t.Fatal(err)
		}
	}
	w.await("bound to the last id", func() bool { p, _ := server.PeerOf(last.id); return p == client.ID() })
	// Whatever was under way has arrived when a further exchange is over.
	next := w.register()
	if err := client.SetBinding(*next.bind(t, testNetwork, client.ID())); err != nil {
		t.Fatal(err)
	}
	w.await("bound to the next id", func() bool { p, _ := server.PeerOf(next.id); return p == client.ID() })
	if _, ok := server.PeerOf(last.id); ok {
		t.Error("bound to both")
	}
}

// TestTable: what a peer said by itself is newer than an answer that was under way, and the latest claim to an id wins.
func TestTable(t *testing.T) {
	w := newWorld(t)
	tb := newTable(w.lookup)
	older, newer := w.register(), w.register()
	here := func() bool { return true }
	tb.claim("p", older.bind(t, testNetwork, "p"), nil, true, here)
	if s, id := tb.standing("p"); s != Bound || id != older.id {
		t.Errorf("an answer alone makes the peer %s", s)
	}
	tb.claim("p", newer.bind(t, testNetwork, "p"), nil, false, here)
	tb.claim("p", older.bind(t, testNetwork, "p"), nil, true, here)
	if _, id := tb.standing("p"); id != newer.id {
		t.Error("a late answer undid what the peer said")
	}
	tb.fail("p", errors.New("late failure"))
	tb.claim("q", newer.bind(t, testNetwork, "q"), nil, false, here)
	tb.drain()
	tb.refresh()
	if events := tb.drain(); len(events) != 0 {
		t.Errorf("a refresh that changes nothing tells %v", events)
	}
	tb.disconnect("q")
	tb.refresh()
	if s, id := tb.standing("p"); s != Bound || id != newer.id {
		t.Errorf("the one who took over has left, but the other claimant is %s", s)
	}
	tb.disconnect("p")
	tb.claim("p", newer.bind(t, testNetwork, "p"), nil, false, func() bool { return false })
	if n := tb.count(); n != 0 {
		t.Errorf("%d peers after it left", n)
	}
	if _, ok := tb.peerOf(newer.id); ok {
		t.Error("a peer that left speaks for an id")
	}
}
