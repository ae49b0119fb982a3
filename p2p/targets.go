package p2p

import (
	"math/rand/v2"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	maxTargets     = 256 // peers remembered for dialling
	maxTargetAddrs = 8   // addresses remembered of one
	maxFailures    = 6   // after so many dials in a row a learnt peer is forgotten
	maxDials       = 4   // at once
)

// targets are the peers worth dialling, and when. Times come from outside; one goroutine owns it.
type targets struct {
	min, max time.Duration // of the backoff
	rng      *rand.Rand
	peers    map[peer.ID]*target
	dialling int
}

type target struct {
	info      peer.AddrInfo
	permanent bool // bootstrap: dialled however many peers there are, never forgotten
	connected bool
	dialling  bool
	failures  int
	due       time.Time
}

func newTargets(shortest, longest time.Duration, rng *rand.Rand) *targets {
	return &targets{min: shortest, max: longest, rng: rng, peers: make(map[peer.ID]*target)}
}

// add remembers a peer, to be dialled at once unless it is known already; it reports whether it was not. What is learnt
// about a known peer replaces its addresses, but not those of a bootstrap peer, which the operator gave.
func (t *targets) add(info peer.AddrInfo, permanent bool, now time.Time) bool {
	if len(info.Addrs) > maxTargetAddrs {
		info.Addrs = info.Addrs[:maxTargetAddrs]
	}
	if len(info.Addrs) == 0 {
		return false
	}
	known := t.peers[info.ID]
	switch {
	case known == nil && len(t.peers) >= maxTargets && !permanent:
		return false
	case known == nil:
		t.peers[info.ID] = &target{info: info, permanent: permanent, due: now}
		return true
	case permanent && known.permanent: // one more address of a bootstrap peer
		known.info.Addrs = ma.Unique(append(known.info.Addrs, info.Addrs...))
	case permanent:
		known.info, known.permanent = info, true
	case !known.permanent:
		known.info = info
	}
	return false
}

func (t *targets) connect(p peer.ID) {
	if k := t.peers[p]; k != nil {
		k.connected, k.failures = true, 0
	}
}

func (t *targets) disconnect(p peer.ID, now time.Time) {
	if k := t.peers[p]; k != nil {
		k.connected = false
		k.due = now.Add(t.backoff(0))
	}
}

// dialled ends what next began.
func (t *targets) dialled(p peer.ID, ok bool, now time.Time) {
	k := t.peers[p]
	if k == nil || !k.dialling {
		return
	}
	k.dialling = false
	t.dialling--
	if ok {
		k.failures = 0
		k.due = now.Add(t.backoff(0)) // in case it leaves before it is seen as connected
		return
	}
	k.failures++
	if k.failures >= maxFailures && !k.permanent {
		delete(t.peers, p)
		return
	}
	k.due = now.Add(t.backoff(k.failures - 1))
}

// backoff doubles with each failure up to the longest, less up to a quarter so that peers that lost each other at the same
// time do not meet in bursts.
func (t *targets) backoff(failures int) time.Duration {
	d := t.min
	for ; failures > 0 && d < t.max; failures-- {
		d *= 2
	}
	d = min(d, t.max)
	return d - time.Duration(t.rng.Int64N(int64(d)/4+1))
}

// next takes the peers to dial now, and says when to ask again; the zero time means not before something changes. room
// says whether the host wants more peers; if not, only bootstrap peers are dialled.
func (t *targets) next(now time.Time, room bool) (dial []peer.AddrInfo, again time.Time) {
	for _, k := range t.peers {
		if k.connected || k.dialling || !room && !k.permanent {
			continue
		}
		if k.due.After(now) {
			if again.IsZero() || k.due.Before(again) {
				again = k.due
			}
			continue
		}
		if t.dialling == maxDials { // dialled will free a slot, and somebody will ask then
			continue
		}
		k.dialling = true
		t.dialling++
		dial = append(dial, k.info)
	}
	return dial, again
}
