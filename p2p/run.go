package p2p

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
)

// keeper is what the host's goroutine knows: whom to dial, and when to ask for more.
type keeper struct {
	targets *targets
	rng     *rand.Rand
	asked   time.Time     // the last exchange
	pause   time.Duration // until the next
}

// run keeps the host connected until it closes.
func (h *Host) run(events <-chan any) {
	k := &keeper{rng: h.newRand(0, ""), pause: h.cfg.Limits.ExchangeMin}
	k.targets = newTargets(h.cfg.Limits.RedialMin, h.cfg.Limits.RedialMax, k.rng)
	for _, info := range addrInfos(h.cfg.Bootstrap) {
		if info.ID != h.ID() {
			k.targets.add(info, true, h.clock.Now())
		}
	}
	for {
		for _, e := range h.table.drain() {
			h.tell(e)
		}
		var wake <-chan time.Time
		if at := h.seek(k); !at.IsZero() {
			wake = h.clock.After(max(0, at.Sub(h.clock.Now())))
		}
		select {
		case <-h.ctx.Done():
			return
		case e, ok := <-events:
			if !ok {
				return
			}
			h.observe(k, e)
		case d := <-h.dialled:
			if d.err != nil {
				h.log.Debug("p2p: dial failed", "peer", d.peer, "err", d.err)
			}
			k.targets.dialled(d.peer, d.err == nil, h.clock.Now())
		case infos := <-h.learnt:
			h.learn(k, infos)
		case <-h.table.wake:
		case <-wake:
		}
	}
}

// tell passes an event on.
func (h *Host) tell(e Event) {
	h.log.Debug("p2p: peer "+e.Kind.String(), "peer", e.Peer, "id", e.ID, "err", e.Err)
	if h.cfg.Events != nil {
		h.cfg.Events(e)
	}
}

// seek dials and asks for peers as far as it is time to, and returns when to do so again.
func (h *Host) seek(k *keeper) time.Time {
	now := h.clock.Now()
	count := h.table.count()
	room := count < h.cfg.Limits.Peers
	dial, again := k.targets.next(now, room)
	for _, info := range dial {
		h.spawn(func() { h.dial(info) })
	}
	if !room || count == 0 {
		return again
	}
	next := k.asked.Add(k.pause)
	if !next.After(now) {
		peers := h.table.list()
		if len(peers) > 0 {
			p := peers[k.rng.IntN(len(peers))].Peer
			h.spawn(func() { h.ask(p) })
		}
		k.asked = now
		next = now.Add(k.pause)
		k.pause = min(2*k.pause, h.cfg.Limits.ExchangeMax)
	}
	if again.IsZero() || next.Before(again) {
		again = next
	}
	return again
}

func (h *Host) dial(info peer.AddrInfo) {
	ctx, cancel := context.WithTimeout(h.ctx, h.cfg.Limits.DialTimeout)
	defer cancel()
	if s, ok := h.libp2p.Network().(*swarm.Swarm); ok {
		s.Backoff().Clear(info.ID) // targets decides when to dial; the swarm must not refuse
	}
	err := h.libp2p.Connect(ctx, info)
	select {
	case h.dialled <- dialled{info.ID, err}:
	case <-h.ctx.Done():
	}
}

func (h *Host) ask(p peer.ID) {
	infos, err := h.askPeers(h.ctx, p)
	if err != nil {
		h.log.Debug("p2p: peer exchange failed", "peer", p, "err", err)
		return
	}
	select {
	case h.learnt <- infos:
	case <-h.ctx.Done():
	}
}

// learn remembers peers that somebody named.
func (h *Host) learn(k *keeper, infos []peer.AddrInfo) {
	for _, info := range infos {
		if info.ID != h.ID() && k.targets.add(info, false, h.clock.Now()) {
			k.pause = h.cfg.Limits.ExchangeMin
		}
	}
}

// observe takes in an event of libp2p.
func (h *Host) observe(k *keeper, e any) {
	switch e := e.(type) {
	case event.EvtPeerConnectednessChanged:
		switch e.Connectedness {
		case network.Connected, network.Limited:
			h.table.connect(e.Peer, nil, h.connected(e.Peer))
			k.targets.connect(e.Peer)
			k.asked, k.pause = time.Time{}, h.cfg.Limits.ExchangeMin // somebody new to ask
			h.spawn(func() { h.hello(e.Peer) })
		default:
			h.table.disconnect(e.Peer)
			k.targets.disconnect(e.Peer, h.clock.Now())
			h.gate.sweep(h.clock)
		}
	case event.EvtPeerIdentificationCompleted:
		if e.SignedPeerRecord == nil {
			return
		}
		record, err := e.SignedPeerRecord.Marshal()
		if err != nil || len(record) > maxRecord {
			return
		}
		h.table.connect(e.Peer, record, h.connected(e.Peer))
		if info, err := openRecord(record); err == nil {
			k.targets.add(info, false, h.clock.Now())
			if h.connected(e.Peer)() {
				k.targets.connect(e.Peer)
			}
		}
	}
}

// connected returns a function that says whether p is connected now.
func (h *Host) connected(p peer.ID) func() bool {
	return func() bool {
		c := h.libp2p.Network().Connectedness(p)
		return c == network.Connected || c == network.Limited
	}
}
