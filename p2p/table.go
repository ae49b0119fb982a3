package p2p

import (
	"fmt"
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// Standing is what a host knows about a peer.
type Standing uint8

// Standings.
const (
	Pending Standing = iota // not connected, or the hello is still under way
	Unbound                 // shows no binding that counts; may only fetch
	Bound                   // speaks for an id that the registry knows
)

func (s Standing) String() string {
	switch s {
	case Pending:
		return "pending"
	case Unbound:
		return "unbound"
	case Bound:
		return "bound"
	}
	return fmt.Sprintf("standing %d", uint8(s))
}

// EventKind says what happened to a peer.
type EventKind uint8

// Events of one peer come in the order Connected, any number of Bound and Unbound, Disconnected.
const (
	Connected EventKind = iota + 1
	Disconnected
	PeerBound   // Event.ID is whom it speaks for
	PeerUnbound // Event.Err says why, nil if the peer claims no id
)

func (k EventKind) String() string {
	switch k {
	case Connected:
		return "connected"
	case Disconnected:
		return "disconnected"
	case PeerBound:
		return "bound"
	case PeerUnbound:
		return "unbound"
	}
	return fmt.Sprintf("event %d", uint8(k))
}

// Event is a change of the peer table.
type Event struct {
	Kind EventKind
	Peer peer.ID
	ID   protocol.ID
	Err  error
}

// Peer is a connected peer.
type Peer struct {
	Peer     peer.ID
	Standing Standing
	ID       protocol.ID // if bound
}

// table holds the connected peers and whom they speak for. An id has at most one peer: the one that showed a binding
// last, so that an operator who restarts with a new identity takes over at once. Two running nodes with one id take
// turns, which the operator sees as events.
type table struct {
	registry func(protocol.ID) (protocol.Key, bool)

	mu     sync.RWMutex
	peers  map[peer.ID]*entry
	byID   map[protocol.ID]peer.ID
	shown  uint64  // counts claims, to order them
	events []Event // not yet delivered
	wake   chan struct{}
}

type entry struct {
	standing Standing
	id       protocol.ID
	claim    *protocol.Binding // checked but for the registry
	order    uint64            // when claim was shown
	record   []byte            // signed addresses, as others may be told
}

func newTable(registry func(protocol.ID) (protocol.Key, bool)) *table {
	if registry == nil {
		registry = func(protocol.ID) (protocol.Key, bool) { return protocol.Key{}, false }
	}
	return &table{
		registry: registry,
		peers:    make(map[peer.ID]*entry),
		byID:     make(map[protocol.ID]peer.ID),
		wake:     make(chan struct{}, 1),
	}
}

// emit is called with mu held, which keeps the events of one peer in order.
func (t *table) emit(e Event) {
	t.events = append(t.events, e)
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// drain returns the events since the last call.
func (t *table) drain() []Event {
	t.mu.Lock()
	defer t.mu.Unlock()
	events := t.events
	t.events = nil
	return events
}

// entry returns the entry of a connected peer, new if need be. Called with mu held.
func (t *table) entry(p peer.ID) *entry {
	e := t.peers[p]
	if e == nil {
		e = new(entry)
		t.peers[p] = e
		t.emit(Event{Kind: Connected, Peer: p})
	}
	return e
}

// connect enters a peer, and keeps the record of its addresses if there is one. connected is asked under the lock: what
// comes late about a peer that has gone must not bring it back.
func (t *table) connect(p peer.ID, record []byte, connected func() bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !connected() {
		return
	}
	e := t.entry(p)
	if record != nil {
		e.record = record
	}
}

func (t *table) disconnect(p peer.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.peers[p]
	if e == nil {
		return
	}
	if e.standing == Bound {
		delete(t.byID, e.id)
	}
	delete(t.peers, p)
	t.emit(Event{Kind: Disconnected, Peer: p})
}

// claim settles the standing of p after a hello. why is the reason if claim is nil. What p sent by itself comes in the
// order in which p sent it and counts; an answer may be older than that, and counts only while nothing else is known.
func (t *table) claim(p peer.ID, claim *protocol.Binding, why error, answer bool, connected func() bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !connected() {
		return
	}
	e := t.entry(p)
	if answer && e.standing != Pending {
		return
	}
	e.claim = claim
	t.shown++
	e.order = t.shown
	t.settle(p, e, why)
}

// fail makes a peer that is still pending unbound.
func (t *table) fail(p peer.ID, why error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.peers[p]; e != nil && e.standing == Pending {
		t.settle(p, e, why)
	}
}

// settle makes an entry what its claim is worth. Called with mu held.
func (t *table) settle(p peer.ID, e *entry, why error) {
	if e.claim != nil {
		switch key, ok := t.registry(e.claim.ID); {
		case !ok:
			why = fmt.Errorf("id %s is not in the registry", e.claim.ID)
		case key != e.claim.Key:
			why = fmt.Errorf("%w: id %s has another key in the registry", ErrBinding, e.claim.ID)
		default:
			t.bind(p, e, e.claim.ID)
			return
		}
	}
	t.unbind(p, e, why)
}

func (t *table) bind(p peer.ID, e *entry, id protocol.ID) {
	if e.standing == Bound && e.id == id {
		return
	}
	if e.standing == Bound {
		delete(t.byID, e.id)
	}
	if old, ok := t.byID[id]; ok && old != p {
		t.unbind(old, t.peers[old], fmt.Errorf("peer %s now speaks for id %s", p, id))
	}
	t.byID[id] = p
	e.standing, e.id = Bound, id
	t.emit(Event{Kind: PeerBound, Peer: p, ID: id})
}

func (t *table) unbind(p peer.ID, e *entry, why error) {
	if e.standing == Unbound {
		return
	}
	ev := Event{Kind: PeerUnbound, Peer: p, Err: why}
	if e.standing == Bound {
		delete(t.byID, e.id)
		ev.ID = e.id
	}
	e.standing, e.id = Unbound, protocol.ID{}
	t.emit(ev)
}

// refresh weighs every claim again, the latest last: it wins where two claim one id.
func (t *table) refresh() {
	t.mu.Lock()
	defer t.mu.Unlock()
	var claimed []peer.ID
	latest := make(map[protocol.ID]uint64)
	for p, e := range t.peers {
		if e.claim != nil {
			claimed = append(claimed, p)
			if key, ok := t.registry(e.claim.ID); ok && key == e.claim.Key {
				latest[e.claim.ID] = max(latest[e.claim.ID], e.order)
			}
		}
	}
	slices.SortFunc(claimed, func(a, b peer.ID) int {
		if t.peers[a].order < t.peers[b].order {
			return -1
		}
		return 1
	})
	for _, p := range claimed {
		if e := t.peers[p]; latest[e.claim.ID] <= e.order { // who was superseded stays so
			t.settle(p, e, nil)
		}
	}
}

func (t *table) standing(p peer.ID) (Standing, protocol.ID) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if e := t.peers[p]; e != nil {
		return e.standing, e.id
	}
	return Pending, protocol.ID{}
}

func (t *table) peerOf(id protocol.ID) (peer.ID, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	p, ok := t.byID[id]
	return p, ok
}

// list returns the connected peers, sorted by peer id.
func (t *table) list() []Peer {
	t.mu.RLock()
	defer t.mu.RUnlock()
	out := make([]Peer, 0, len(t.peers))
	for p, e := range t.peers {
		out = append(out, Peer{Peer: p, Standing: e.standing, ID: e.id})
	}
	slices.SortFunc(out, func(a, b Peer) int {
		if a.Peer < b.Peer {
			return -1
		}
		return 1
	})
	return out
}

func (t *table) count() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.peers)
}

// records returns the signed addresses of every connected peer but one, in no order.
func (t *table) records(but peer.ID) [][]byte {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var out [][]byte
	for p, e := range t.peers {
		if p != but && e.record != nil {
			out = append(out, e.record)
		}
	}
	return out
}
