package exchange

import (
	"sync"

	"github.com/ipfs/boxo/bitswap/message"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
)

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

// watch sees every message of bitswap.
type watch struct{ e *Exchange }

func (w watch) MessageReceived(from peer.ID, m message.BitSwapMessage) {
	if w.e.config.Penalise == nil {
		return
	}
	for _, b := range m.Blocks() {
		if !w.e.asked.has(b.Cid()) {
			w.e.config.Penalise(from, Offence{Block: b.Cid(), Bytes: len(b.RawData())})
		}
	}
}

func (w watch) MessageSent(peer.ID, message.BitSwapMessage) {}
