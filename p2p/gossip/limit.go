package gossip

import (
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"github.com/blockzero-net/bzd/p2p"
)

// limiter drops what a peer may not send, before GossipSub counts it as seen.
type limiter struct {
	clock    p2p.Clock
	standing func(peer.ID) p2p.Standing
	opts     Options
	topics   map[string]bool

	mu    sync.Mutex
	peers map[peer.ID]*allowance
	stats Stats
}

// allowance is what one peer may still send.
type allowance struct {
	topics map[string]*rate.Limiter // messages
	bytes  *rate.Limiter
	last   time.Time // when it sent something
}

// What is remembered of peers that are silent or gone.
const (
	maxAllowances = 1024
	forgetAfter   = 10 * time.Minute
)

func newLimiter(clock p2p.Clock, standing func(peer.ID) p2p.Standing, opts Options, topics []string) *limiter {
	l := &limiter{clock: clock, standing: standing, opts: opts, topics: make(map[string]bool), peers: make(map[peer.ID]*allowance)}
	for _, t := range topics {
		l.topics[t] = true
	}
	return l
}

// inspect takes out of rpc the messages that go too far. GossipSub calls it from one goroutine before anything else.
func (l *limiter) inspect(from peer.ID, rpc *pubsub.RPC) error {
	if len(rpc.GetPublish()) == 0 {
		return nil
	}
	unbound := !l.opts.AdmitUnbound && l.standing(from) == p2p.Unbound
	now := l.clock.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.allowance(from, now)
	kept := rpc.Publish[:0]
	for _, m := range rpc.Publish {
		switch {
		case !l.topics[m.GetTopic()]:
		case unbound:
			l.stats.FromUnbound++
		case !a.take(m.GetTopic(), len(m.GetData()), now, l.opts):
			l.stats.OverRate++
		default:
			kept = append(kept, m)
		}
	}
	clear(rpc.Publish[len(kept):])
	rpc.Publish = kept
	return nil
}

// take reports whether one more message is within the rates, and counts it against them.
func (a *allowance) take(topic string, size int, now time.Time, opts Options) bool {
	r := a.topics[topic]
	if r == nil {
		r = rate.NewLimiter(rate.Limit(opts.PeerRate), opts.PeerBurst)
		a.topics[topic] = r
	}
	return r.AllowN(now, 1) && a.bytes.AllowN(now, size)
}

// allowance returns the allowance of a peer that sends something now. Called with mu held.
func (l *limiter) allowance(p peer.ID, now time.Time) *allowance {
	a := l.peers[p]
	if a == nil {
		if len(l.peers) >= maxAllowances {
			l.sweep(now)
		}
		a = &allowance{
			topics: make(map[string]*rate.Limiter),
			bytes:  rate.NewLimiter(rate.Limit(l.opts.PeerBytes), 2*max(l.opts.PeerBytes, l.opts.MaxMessage)),
		}
		l.peers[p] = a
	}
	a.last = now
	return a
}

// sweep forgets peers that have been silent for long, or if there are none, everybody: then there are more peers than a
// host connects to. Called with mu held.
func (l *limiter) sweep(now time.Time) {
	for p, a := range l.peers {
		if now.Sub(a.last) > forgetAfter {
			delete(l.peers, p)
		}
	}
	if len(l.peers) >= maxAllowances {
		clear(l.peers)
	}
}

// score is the part of a peer's score that GossipSub does not know. What is over the rate costs none: dropping it costs us
// next to nothing already, and an honest peer that passes on what a flooding one may say plus what others say is over the
// rate too.
func (l *limiter) score(p peer.ID) float64 {
	if !l.opts.AdmitUnbound && l.standing(p) == p2p.Unbound {
		return unboundScore
	}
	return 0
}
