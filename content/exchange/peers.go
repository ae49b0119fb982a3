package exchange

import (
	"context"
	"slices"
	"sync"

	"github.com/ipfs/boxo/bitswap/message"
	"github.com/ipfs/boxo/bitswap/network"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
)

// tolerance is how many blocks a peer may send that nobody asked for before it is shunned. One can happen: an answer to
// what this host asked before it was started anew.
const tolerance = 1

// askedMemory is how many of the last questions are remembered at least. Answers come late: from a second peer, or after
// the fetch was given up.
const askedMemory = 1 << 16

// asked remembers which blocks were asked for.
type asked struct {
	mu           sync.Mutex
	recent, past map[string]struct{} // multihashes
}

func newAsked() *asked { return &asked{recent: make(map[string]struct{})} }

func (a *asked) add(cids []cid.Cid) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range cids {
		if len(a.recent) >= askedMemory {
			a.past, a.recent = a.recent, make(map[string]struct{})
		}
		a.recent[string(c.Hash())] = struct{}{}
	}
}

func (a *asked) has(c cid.Cid) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, recent := a.recent[string(c.Hash())]
	_, past := a.past[string(c.Hash())]
	return recent || past
}

// guard stands between the network and bitswap. A peer that answers with other blocks than it was asked for is told from
// the rest here, where it is known who sent what, and shunned until it disconnects: for bitswap it is gone, so that what
// it was asked for is asked of others at once.
type guard struct {
	network.BitSwapNetwork
	asked *asked

	mu    sync.Mutex
	peers map[peer.ID]int // those connected, with their offences
	inner network.Receiver
}

// Start implements network.BitSwapNetwork. bitswap calls it once, with itself.
func (g *guard) Start(receivers ...network.Receiver) {
	g.inner = receivers[0]
	g.BitSwapNetwork.Start(receiver{g})
}

// receiver is the guard as the network sees it.
type receiver struct{ g *guard }

func (r receiver) ReceiveMessage(ctx context.Context, from peer.ID, m message.BitSwapMessage) {
	offences := 0
	for _, b := range m.Blocks() {
		if !r.g.asked.has(b.Cid()) { // which is computed from its bytes: wrong bytes are a block of another name
			offences++
		}
	}
	r.g.mu.Lock()
	before, connected := r.g.peers[from]
	if connected {
		r.g.peers[from] = before + offences
	}
	r.g.mu.Unlock()
	switch {
	case before > tolerance:
	case connected && before+offences > tolerance:
		r.g.inner.PeerDisconnected(from)
	default:
		r.g.inner.ReceiveMessage(ctx, from, m)
	}
}

// shun ends a connected peer's part in everything until it disconnects, for what it sent outside of bitswap.
func (g *guard) shun(p peer.ID) {
	g.mu.Lock()
	before, connected := g.peers[p]
	if connected {
		g.peers[p] = before + tolerance + 1
	}
	g.mu.Unlock()
	if connected && before <= tolerance {
		g.inner.PeerDisconnected(p)
	}
}

func (r receiver) ReceiveError(err error) { r.g.inner.ReceiveError(err) }

func (r receiver) PeerConnected(p peer.ID) {
	r.g.mu.Lock()
	_, known := r.g.peers[p]
	if !known {
		r.g.peers[p] = 0
	}
	r.g.mu.Unlock()
	if !known {
		r.g.inner.PeerConnected(p)
	}
}

func (r receiver) PeerDisconnected(p peer.ID) {
	r.g.mu.Lock()
	offences := r.g.peers[p]
	delete(r.g.peers, p)
	r.g.mu.Unlock()
	if offences <= tolerance {
		r.g.inner.PeerDisconnected(p)
	}
}

// good lists the peers that are connected and not shunned.
func (g *guard) good() []peer.ID {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []peer.ID
	for p, offences := range g.peers {
		if offences <= tolerance {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out
}
