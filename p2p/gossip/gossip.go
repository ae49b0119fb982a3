package gossip

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/blockzero-net/bzd/p2p"
)

// Verdict is what a validator thinks of a message. The zero Verdict counts as Ignore.
type Verdict uint8

// Verdicts; the package's comment says what they do.
const (
	Ignore Verdict = iota
	Accept
	Reject
)

func (v Verdict) String() string {
	switch v {
	case Ignore:
		return "ignore"
	case Accept:
		return "accept"
	case Reject:
		return "reject"
	}
	return fmt.Sprintf("verdict %d", uint8(v))
}

// Validator judges a message before it goes anywhere. from is the peer that passed it on, which need not be the one that
// made it; own messages come from the host itself. It is called from several goroutines, must not block (all topics wait
// for it), and must neither change data nor keep it if it does not accept.
type Validator func(ctx context.Context, from peer.ID, data []byte) Verdict

// Options of a Gossip. Topics must be given; every zero field gets its default.
type Options struct {
	Topics     []string // the only ones that can be joined, and that peers' subscriptions are remembered for
	MaxMessage int      // bytes; more is refused. The same on all nodes. 1 MiB
	Queue      int      // accepted messages that wait for Topic.Next, per topic. 1024

	// What one peer may send. A peer passes on what others made, so these are above what all participants together send;
	// that one participant does not say too much is for the validators to see, by the signer.
	PeerRate  float64 // messages a second from one peer on one topic. 100
	PeerBurst int     // as many at once. 400
	PeerBytes int     // bytes a second from one peer on all topics, with bursts of twice as many. 8 MiB

	Workers   int           // validators that run at once. 2
	Backlog   int           // messages that wait for a validator; what comes on top is dropped and may come again. 4096
	Heartbeat time.Duration // of mesh maintenance; a new peer is in the mesh after one or two. 1 s
	Remember  time.Duration // how long a message is known as seen. 2 min
	Inspect   time.Duration // between two looks at the scores. 10 s

	AdmitUnbound bool // treat peers without a binding like others; for networks without a registry
}

func (o Options) withDefaults() Options {
	o.MaxMessage = orDefault(o.MaxMessage, 1<<20)
	o.Queue = orDefault(o.Queue, 1024)
	o.PeerRate = orDefault(o.PeerRate, 100)
	o.PeerBurst = orDefault(o.PeerBurst, 400)
	o.PeerBytes = orDefault(o.PeerBytes, 8<<20)
	o.Workers = orDefault(o.Workers, 2)
	o.Backlog = orDefault(o.Backlog, 4096)
	o.Heartbeat = orDefault(o.Heartbeat, time.Second)
	o.Remember = orDefault(o.Remember, 2*time.Minute)
	o.Inspect = orDefault(o.Inspect, 10*time.Second)
	return o
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// Validate reports every fault at once; zero fields are fine.
func (o Options) Validate() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf("gossip: "+format, args...)) }
	o = o.withDefaults()
	if len(o.Topics) == 0 {
		add("no topics: nothing could be joined")
	}
	seen := make(map[string]bool)
	for _, t := range o.Topics {
		if t == "" || seen[t] {
			add("topic %q is empty or there twice", t)
		}
		seen[t] = true
	}
	if o.MaxMessage < 0 || o.Queue < 0 || o.PeerRate < 0 || o.PeerBurst < 0 || o.PeerBytes < 0 || o.Workers < 0 || o.Backlog < 0 {
		add("a size or rate is negative; leave it zero for the default")
	}
	if o.Heartbeat < 0 || o.Remember < 0 || o.Inspect < 0 {
		add("a time is negative; leave it zero for the default")
	}
	return errors.Join(errs...)
}

// Stats counts since the start.
type Stats struct {
	OverRate    uint64 // messages dropped because their peer sent too many
	FromUnbound uint64 // messages dropped because their peer has no binding that counts
}

// Gossip is a host's part in the spreading of records. All methods may be called from many goroutines.
type Gossip struct {
	host   *p2p.Host
	opts   Options
	pubsub *pubsub.PubSub
	limit  *limiter
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex
	joined map[string]bool
	scores map[peer.ID]float64
}

// New starts gossip on a host. It ends with ctx or Close, in any case before the host is closed.
func New(ctx context.Context, host *p2p.Host, opts Options) (*Gossip, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	opts = opts.withDefaults()
	g := &Gossip{host: host, opts: opts, joined: make(map[string]bool)}
	var names []string
	for _, t := range opts.Topics {
		names = append(names, g.fullName(t))
	}
	standing := func(p peer.ID) p2p.Standing { s, _ := host.Standing(p); return s }
	g.limit = newLimiter(host.Clock(), standing, opts, names)
	params, thresholds := scoreParams(names, g.limit.score, opts.Remember)
	g.ctx, g.cancel = context.WithCancel(ctx)
	var err error
	g.pubsub, err = pubsub.NewGossipSub(g.ctx, host.Libp2p(),
		pubsub.WithGossipSubParams(meshParams(opts.Heartbeat)),
		pubsub.WithPeerScore(params, thresholds),
		pubsub.WithPeerScoreInspect(g.noteScores, opts.Inspect),
		// Records carry the signatures of those who made them, over bytes that the network defined. A second one, by a
		// libp2p key that nothing is bound to, would cost 100 bytes and a verification per hop and prove nothing; its
		// sequence number would also give one record many message ids. So: no author, and a message that has one is refused.
		pubsub.WithMessageSignaturePolicy(pubsub.StrictNoSign),
		pubsub.WithNoAuthor(),
		pubsub.WithMessageIdFn(messageID),
		pubsub.WithSeenMessagesTTL(opts.Remember),
		// A record sent by its maker goes to every peer at once, not to the mesh only: with few peers that is one hop for
		// all, and nobody between the maker and the rest can hold it back.
		pubsub.WithFloodPublish(true),
		pubsub.WithSubscriptionFilter(pubsub.WrapLimitSubscriptionFilter(pubsub.NewAllowlistSubscriptionFilter(names...), 4*len(names)+16)),
		// An RPC carries messages and control; a message between MaxMessage and this limit is rejected, a larger RPC ends
		// the stream.
		pubsub.WithMaxMessageSize(2*opts.MaxMessage+64<<10),
		pubsub.WithAppSpecificRpcInspector(g.limit.inspect),
		pubsub.WithPeerOutboundQueueSize(512), // a deadline makes bursts; what does not fit is lost to that peer
		// Validators run in the workers, behind a queue whose overflow is not counted as seen and may come again; GossipSub's
		// asynchronous validators would drop for good.
		pubsub.WithValidateQueueSize(opts.Backlog),
		pubsub.WithValidateWorkers(opts.Workers),
	)
	if err != nil {
		g.cancel()
		return nil, fmt.Errorf("gossip: %w", err)
	}
	return g, nil
}

// messageID is SHA-256 over the topic's length, the topic and the data. The topic is part of it because a record that is
// refused on the wrong topic counts as seen: without it, whoever sent a record there first could keep it from its own.
func messageID(m *pb.Message) string {
	h := sha256.New()
	topic := m.GetTopic()
	h.Write([]byte{byte(len(topic)), byte(len(topic) >> 8)})
	h.Write([]byte(topic))
	h.Write(m.GetData())
	return string(h.Sum(nil))
}

// fullName is a topic's name on the wire.
func (g *Gossip) fullName(topic string) string {
	return "/bzd/" + g.host.Network().String() + "/" + topic + "/1"
}

// noteScores keeps GossipSub's view of the peers.
func (g *Gossip) noteScores(scores map[peer.ID]float64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.scores = scores
}

// Scores returns the peers' scores as of the last inspection.
func (g *Gossip) Scores() map[peer.ID]float64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(g.scores)
}

// Stats returns the counters that belong to no topic.
func (g *Gossip) Stats() Stats {
	g.limit.mu.Lock()
	defer g.limit.mu.Unlock()
	return g.limit.stats
}

// Close leaves all topics. Messages in flight may be lost; Topic.Next still returns what was delivered before.
func (g *Gossip) Close() { g.cancel() }
