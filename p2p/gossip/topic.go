package gossip

import (
	"context"
	"errors"
	"fmt"
	"sync"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Errors of Publish and Next.
var (
	ErrTooLarge = errors.New("gossip: message too large")
	ErrInvalid  = errors.New("gossip: the topic's own validator does not accept the message")
	ErrClosed   = errors.New("gossip: closed")
)

// Message is an accepted message.
type Message struct {
	From peer.ID // who passed it on
	Own  bool    // published by this host
	Data []byte  // shared with nobody but other readers: do not change
}

// TopicStats counts a topic's messages since it was joined.
type TopicStats struct {
	Accepted, Ignored, Rejected uint64
	Dropped                     uint64 // accepted, but pushed out of the queue by later ones before Next took them
}

// Topic is a joined topic. All methods may be called from many goroutines.
type Topic struct {
	gossip *Gossip
	topic  *pubsub.Topic

	mu    sync.Mutex
	queue []Message // ring
	head  int       // of the oldest
	count int
	ready chan struct{} // holds a token if there is something to take
	stats TopicStats
}

// Join subscribes to one of Options.Topics; every topic once.
func (g *Gossip) Join(topic string, validate Validator) (*Topic, error) {
	name := g.fullName(topic)
	g.mu.Lock()
	known := g.limit.topics[name] && !g.joined[name]
	g.joined[name] = true
	g.mu.Unlock()
	if !known {
		return nil, fmt.Errorf("gossip: topic %q is joined already, or not one of Options.Topics", topic)
	}
	t := &Topic{gossip: g, queue: make([]Message, g.opts.Queue), ready: make(chan struct{}, 1)}
	err := g.pubsub.RegisterTopicValidator(name, t.judge(validate), pubsub.WithValidatorInline(true))
	if err == nil {
		t.topic, err = g.pubsub.Join(name)
	}
	if err == nil {
		// GossipSub's subscription drops the newest message when its reader is slow. The filter sees every message first:
		// it moves them to a queue that drops the oldest, and leaves the subscription empty.
		_, err = t.topic.Subscribe(pubsub.WithMessageFilter(t.take), pubsub.WithBufferSize(1))
	}
	if err != nil {
		return nil, fmt.Errorf("gossip: join %q: %w", topic, err)
	}
	return t, nil
}

// judge runs the validator and counts.
func (t *Topic) judge(validate Validator) pubsub.ValidatorEx {
	return func(ctx context.Context, from peer.ID, m *pubsub.Message) pubsub.ValidationResult {
		verdict := Reject // what is too large, everybody must see as wrong
		if len(m.GetData()) <= t.gossip.opts.MaxMessage {
			verdict = validate(ctx, from, m.GetData())
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		switch verdict {
		case Accept:
			t.stats.Accepted++
			return pubsub.ValidationAccept
		case Reject:
			t.stats.Rejected++
			return pubsub.ValidationReject
		}
		t.stats.Ignored++
		return pubsub.ValidationIgnore
	}
}

// take puts an accepted message into the queue. It is called by GossipSub's one loop and must be quick.
func (t *Topic) take(m *pubsub.Message) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.count == len(t.queue) {
		t.queue[t.head] = Message{}
		t.head = (t.head + 1) % len(t.queue)
		t.count--
		t.stats.Dropped++
	}
	t.queue[(t.head+t.count)%len(t.queue)] = Message{From: m.ReceivedFrom, Own: m.ReceivedFrom == t.gossip.host.ID(), Data: m.GetData()}
	t.count++
	t.signal()
	return false
}

func (t *Topic) signal() {
	select {
	case t.ready <- struct{}{}:
	default:
	}
}

func (t *Topic) pop() (Message, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.count == 0 {
		return Message{}, false
	}
	m := t.queue[t.head]
	t.queue[t.head] = Message{}
	t.head = (t.head + 1) % len(t.queue)
	t.count--
	if t.count > 0 {
		t.signal() // another reader may wait
	}
	return m, true
}

// Next returns the oldest accepted message, own ones included, and waits for one if need be. It fails with the error of
// ctx, or with ErrClosed when the gossip is closed and nothing is left.
func (t *Topic) Next(ctx context.Context) (Message, error) {
	for {
		if m, ok := t.pop(); ok {
			return m, nil
		}
		select {
		case <-t.ready:
		case <-ctx.Done():
			return Message{}, ctx.Err()
		case <-t.gossip.ctx.Done():
			if m, ok := t.pop(); ok {
				return m, nil
			}
			return Message{}, ErrClosed
		}
	}
}

// Publish judges data with the topic's own validator and sends it to every peer of the topic; it keeps data. It returns
// when the message is on its way, also if nobody is there to get it. Bytes published before within Options.Remember are
// not sent again, and that is no error.
func (t *Topic) Publish(ctx context.Context, data []byte) error {
	if len(data) > t.gossip.opts.MaxMessage {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(data), t.gossip.opts.MaxMessage)
	}
	err := t.topic.Publish(ctx, data)
	switch {
	case err == nil:
		return nil
	case errors.As(err, new(pubsub.ValidationError)):
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	case t.gossip.ctx.Err() != nil:
		return ErrClosed
	}
	return fmt.Errorf("gossip: publish: %w", err)
}

// Peers returns the connected peers that are subscribed to the topic.
func (t *Topic) Peers() []peer.ID { return t.topic.ListPeers() }

// Stats returns the topic's counters.
func (t *Topic) Stats() TopicStats {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stats
}
