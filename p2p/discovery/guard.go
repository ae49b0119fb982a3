package discovery

import (
	"context"
	"errors"
	"sync"
	"time"

	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libprotocol "github.com/libp2p/go-libp2p/core/protocol"
	"golang.org/x/time/rate"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/p2p"
)

// What others can make a host do. A lookup asks a peer once; whoever refreshes its table asks it some times in a row.
const (
	maxRequest   = 16 << 10 // bytes; a peer with all its addresses has less
	peerStreams  = 2        // of one peer at a time; the DHT needs one
	maxStreams   = 128      // of all peers
	peerRate     = 5        // requests a second from one peer
	peerBurst    = 100
	maxAllowed   = 1024 // peers and participants remembered at a time
	recordBurst  = 16   // records that one participant may make at once
	recordEvery  = 5 * time.Minute
	refusedToAll = pb.Message_MessageType(-1) // a request of this type is refused and its stream reset
)

// guard is a host to the DHT, and judges what comes for it.
type guard struct {
	host.Host
	clock       p2p.Clock
	participant func(peer.ID) (protocol.ID, bool)

	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup // streams

	mu      sync.Mutex
	closed  bool
	streams map[peer.ID]int
	total   int
	asked   allowances[peer.ID]
	told    allowances[protocol.ID]
	served  libprotocol.ID // the DHT's protocol, once it serves
}

func newGuard(h host.Host, cfg Config) *guard {
	g := &guard{Host: h, clock: cfg.Clock, participant: cfg.Participant, streams: map[peer.ID]int{},
		asked: allowances[peer.ID]{peerRate, peerBurst, map[peer.ID]*rate.Limiter{}},
		told:  allowances[protocol.ID]{rate.Every(recordEvery), recordBurst, map[protocol.ID]*rate.Limiter{}}}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	return g
}

// close ends the streams of others and waits for them.
func (g *guard) close() {
	g.mu.Lock()
	g.closed = true
	served := g.served
	g.mu.Unlock()
	if served != "" {
		g.Host.RemoveStreamHandler(served)
	}
	g.cancel()
	g.work.Wait()
}

// SetStreamHandler is the DHT's way to serve: it gets streams that the guard has admitted.
func (g *guard) SetStreamHandler(id libprotocol.ID, handler network.StreamHandler) {
	g.mu.Lock()
	g.served = id
	g.mu.Unlock()
	g.Host.SetStreamHandler(id, func(s network.Stream) {
		from := s.Conn().RemotePeer()
		if !g.enter(from) {
			_ = s.Reset()
			return
		}
		defer g.leave(from)
		defer context.AfterFunc(g.ctx, func() { _ = s.Reset() })()
		handler(&requests{Stream: s})
	})
}

func (g *guard) enter(p peer.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || g.total >= maxStreams || g.streams[p] >= peerStreams {
		return false
	}
	g.total++
	g.streams[p]++
	g.work.Add(1)
	return true
}

func (g *guard) leave(p peer.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.total--
	if g.streams[p]--; g.streams[p] == 0 {
		delete(g.streams, p)
	}
	g.work.Done()
}

// judge sees every request before the DHT acts on it, and refuses those that are too many.
func (g *guard) judge(_ context.Context, s network.Stream, m *pb.Message) {
	from := s.Conn().RemotePeer()
	who, _ := g.participant(from) // the zero id stands for all who speak for nobody
	now := g.clock.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.asked.take(from, now) || m.GetType() == pb.Message_ADD_PROVIDER && !g.told.take(who, now) {
		m.Type = refusedToAll
	}
}

// allowances are what each of many may still do.
type allowances[K comparable] struct {
	rate  rate.Limit
	burst int
	of    map[K]*rate.Limiter
}

// take reports whether k may do one thing more. Who has not used its allowance is forgotten where there are many; if all
// have, nobody new is let in.
func (a *allowances[K]) take(k K, now time.Time) bool {
	l := a.of[k]
	if l == nil {
		if len(a.of) >= maxAllowed {
			for other, l := range a.of {
				if l.TokensAt(now) >= float64(a.burst) {
					delete(a.of, other)
				}
			}
		}
		if len(a.of) >= maxAllowed {
			return false
		}
		l = rate.NewLimiter(a.rate, a.burst)
		a.of[k] = l
	}
	return l.AllowN(now, 1)
}

// requests is a stream of requests, each behind its length as a varint, none of which is longer than maxRequest: the DHT
// would make room for the 4 MiB that a peer may claim.
type requests struct {
	network.Stream
	length uint64 // of the next, as far as it has come
	shift  uint
	left   uint64 // of the current
}

var errLong = errors.New("discovery: a request is too long")

// Read implements io.Reader.
func (r *requests) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if r.left > 0 {
		n, err := r.Stream.Read(p[:min(uint64(len(p)), r.left)])
		r.left -= uint64(n)
		return n, err
	}
	n, err := r.Stream.Read(p[:1])
	if n == 0 {
		return n, err
	}
	r.length |= uint64(p[0]&0x7f) << r.shift
	r.shift += 7
	more := p[0] >= 0x80
	if r.length > maxRequest || more && r.shift >= 21 {
		return 0, errLong
	}
	if !more {
		r.left, r.length, r.shift = r.length, 0, 0
	}
	return n, err
}
