package gossip

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/p2p"
)

const patience = 30 * time.Second // a test that waits longer has failed

type systemClock struct{}

func (systemClock) Now() time.Time                         { return time.Now() }
func (systemClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

var testNetwork = protocol.LinkTo(protocol.DagCBOR, []byte("a network"))

// quick options for tests, in a network without a registry.
func quick() Options {
	return Options{Topics: []string{"votes"}, Heartbeat: 100 * time.Millisecond, Inspect: 50 * time.Millisecond, AdmitUnbound: true}
}

// newHost starts a host that wants at most so many peers.
func newHost(t *testing.T, peers int, change func(*p2p.Config), bootstrap ...string) *p2p.Host {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cfg := p2p.Config{
		Network:   testNetwork,
		Key:       key,
		Listen:    []string{"/ip4/127.0.0.1/tcp/0"},
		Bootstrap: bootstrap,
		Clock:     systemClock{},
		Limits:    p2p.Limits{Peers: peers, RedialMin: 20 * time.Millisecond, ExchangeMin: 20 * time.Millisecond, ExchangeMax: 500 * time.Millisecond},
	}
	if change != nil {
		change(&cfg)
	}
	h, err := p2p.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return h
}

// node is a host with one topic.
type node struct {
	host   *p2p.Host
	gossip *Gossip
	topic  *Topic
}

func join(t *testing.T, h *p2p.Host, opts Options, v Validator) node {
	t.Helper()
	g, err := New(t.Context(), h, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	topic, err := g.Join(opts.Topics[0], v)
	if err != nil {
		t.Fatal(err)
	}
	return node{h, g, topic}
}

func accept(context.Context, peer.ID, []byte) Verdict { return Accept }

// judging gives a verdict to messages with a prefix, and accepts the rest.
func judging(prefix string, v Verdict) Validator {
	return func(_ context.Context, _ peer.ID, b []byte) Verdict {
		if strings.HasPrefix(string(b), prefix) {
			return v
		}
		return Accept
	}
}

// await polls for what has no event.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !cond(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

func awaitPeers(t *testing.T, nodes []node, counts ...int) {
	t.Helper()
	for i, n := range nodes {
		await(t, fmt.Sprintf("node %d has %d peers on the topic", i, counts[i]), func() bool { return len(n.topic.Peers()) == counts[i] })
	}
}

// next returns the next message that line did not send.
func (n node) next(t *testing.T) Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		m, err := n.topic.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(m.Data), "warm ") {
			return m
		}
	}
}

func (n node) publish(t *testing.T, s string) {
	t.Helper()
	if err := n.topic.Publish(t.Context(), []byte(s)); err != nil {
		t.Fatal(err)
	}
}

// line connects three nodes in a row; the outer two never meet. It returns when the middle relays, both ways: what arrives
// before its mesh has formed goes no further.
func line(t *testing.T, middle Validator, opts Options) (a, b, c node) {
	t.Helper()
	b = join(t, newHost(t, 1, nil), opts, middle)
	a = join(t, newHost(t, 1, nil, b.host.Addrs()...), opts, accept)
	c = join(t, newHost(t, 1, nil, b.host.Addrs()...), opts, accept)
	awaitPeers(t, []node{a, b, c}, 1, 2, 1)
	for _, end := range []struct{ from, to node }{{a, c}, {c, a}} {
		before := end.to.topic.Stats().Accepted
		var sent int
		await(t, "the middle relays", func() bool {
			end.from.publish(t, fmt.Sprintf("warm %s %d", end.from.host.ID(), sent))
			sent++
			return end.to.topic.Stats().Accepted > before
		})
	}
	return a, b, c
}

func TestEverybodyGetsEverything(t *testing.T) {
	const each = 20
	boot := newHost(t, 16, nil)
	nodes := []node{join(t, boot, quick(), accept)}
	for len(nodes) < 8 {
		nodes = append(nodes, join(t, newHost(t, 16, nil, boot.Addrs()...), quick(), accept))
	}
	awaitPeers(t, nodes, 7, 7, 7, 7, 7, 7, 7, 7)
	for i, n := range nodes {
		for k := range each {
			n.publish(t, fmt.Sprintf("%d says %d", i, k))
		}
		n.publish(t, fmt.Sprintf("%d says 0", i)) // again: no error, no message
	}
	for i, n := range nodes {
		got := make(map[string]bool)
		for range each * len(nodes) {
			m := n.next(t)
			if own := strings.HasPrefix(string(m.Data), fmt.Sprintf("%d ", i)); own != m.Own || own != (m.From == n.host.ID()) {
				t.Errorf("%q: own %t, from %s", m.Data, m.Own, m.From)
			}
			got[string(m.Data)] = true
		}
		if len(got) != each*len(nodes) {
			t.Errorf("node %d got %d different messages", i, len(got))
		}
		if s := n.topic.Stats(); s.Accepted != each*8 || s.Rejected+s.Ignored+s.Dropped != 0 {
			t.Errorf("node %d counts %+v", i, s)
		}
	}
}

// TestRejectIsNotRelayed: the message ends where it is rejected, and its sender pays.
func TestRejectIsNotRelayed(t *testing.T) {
	a, b, c := line(t, judging("bad", Reject), quick())
	a.publish(t, "bad")
	await(t, "rejected", func() bool { return b.topic.Stats().Rejected == 1 })
	await(t, "the sender's score is negative", func() bool { return b.gossip.Scores()[a.host.ID()] < -5 })
	if s := b.gossip.Scores()[c.host.ID()]; s < 0 {
		t.Errorf("who did nothing has score %v", s)
	}
	a.publish(t, "good") // out of the mesh, but not unheard yet
	if m := c.next(t); string(m.Data) != "good" || m.From != b.host.ID() {
		t.Errorf("got %q from %s", m.Data, m.From)
	}
	// A persistent offender is graylisted: nothing it says is heard.
	for i := range 6 {
		a.publish(t, fmt.Sprintf("bad %d", i))
	}
	await(t, "graylisted", func() bool { return b.gossip.Scores()[a.host.ID()] < graylistThreshold })
	rejected := b.topic.Stats().Rejected
	a.publish(t, "bad once more")
	a.publish(t, "good again")
	c.publish(t, "from the other side")
	if m := c.next(t); string(m.Data) != "from the other side" {
		t.Errorf("c got %q", m.Data)
	}
	for {
		m := b.next(t)
		if string(m.Data) == "good again" {
			t.Error("heard a graylisted peer")
		}
		if string(m.Data) == "from the other side" {
			break
		}
	}
	if n := b.topic.Stats().Rejected; n != rejected {
		t.Errorf("validated %d messages of a graylisted peer", n-rejected)
	}
}

func TestIgnoreIsNotRelayedNorPunished(t *testing.T) {
	a, b, c := line(t, judging("early", Ignore), quick())
	for i := range 10 {
		a.publish(t, fmt.Sprintf("early %d", i))
	}
	a.publish(t, "in time")
	if m := c.next(t); string(m.Data) != "in time" {
		t.Errorf("got %q", m.Data)
	}
	// Messages are judged side by side: the last may have overtaken some.
	await(t, "ten ignored", func() bool { return b.topic.Stats().Ignored == 10 })
	if s := b.topic.Stats(); s.Rejected != 0 {
		t.Errorf("counts %+v", s)
	}
	b.gossip.noteScores(nil)
	await(t, "inspected again", func() bool { return b.gossip.Scores() != nil })
	if s, ok := b.gossip.Scores()[a.host.ID()]; !ok || s < 0 {
		t.Errorf("score %v, known %t", s, ok)
	}
}

func TestOwnValidatorJudgesFirst(t *testing.T) {
	a, b, _ := line(t, accept, quick())
	n := join(t, newHost(t, 1, nil, b.host.Addrs()...), quick(), judging("x", Reject))
	awaitPeers(t, []node{n}, 1)
	if err := n.topic.Publish(t.Context(), []byte("x")); !errors.Is(err, ErrInvalid) {
		t.Errorf("published what its own validator rejects: %v", err)
	}
	a.publish(t, "y")
	if m := b.next(t); string(m.Data) != "y" {
		t.Errorf("got %q", m.Data)
	}
}

// TestOversized: an honest node does not send it, and a dishonest one does not get it through.
func TestOversized(t *testing.T) {
	opts := quick()
	opts.MaxMessage = 1000
	a, b, c := line(t, accept, opts)
	if err := a.topic.Publish(t.Context(), make([]byte, 1001)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v", err)
	}
	largest := strings.Repeat("x", 1000)
	a.publish(t, largest)
	if m := c.next(t); string(m.Data) != largest {
		t.Errorf("got %d bytes", len(m.Data))
	}

	liar := quick()
	liar.MaxMessage = 1 << 20
	l := join(t, newHost(t, 1, nil, b.host.Addrs()...), liar, accept)
	awaitPeers(t, []node{l, b}, 1, 3)
	l.publish(t, strings.Repeat("y", 1001))
	await(t, "rejected", func() bool { return b.topic.Stats().Rejected == 1 })
	await(t, "punished", func() bool { return b.gossip.Scores()[l.host.ID()] < -5 })
	l.publish(t, strings.Repeat("z", 1<<19)) // beyond the frame: the stream ends
	a.publish(t, "after")
	if m := c.next(t); string(m.Data) != "after" {
		t.Errorf("got %d bytes", len(m.Data))
	}
}

// TestFlood: a peer that sends as fast as it can is cut to its rate; others are heard all the time.
func TestFlood(t *testing.T) {
	const honest = 50
	opts := quick()
	opts.PeerRate, opts.PeerBurst = 50, 100
	a, b, c := line(t, judging("flood", Ignore), opts)
	f := join(t, newHost(t, 1, nil, b.host.Addrs()...), quick(), accept)
	awaitPeers(t, []node{f, b}, 1, 3)
	start := time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int)
	go func() {
		n := 0
		for ; f.topic.Publish(ctx, fmt.Appendf(nil, "flood %d", n)) == nil; n++ {
		}
		done <- n
	}()
	await(t, "the flood is cut", func() bool { return b.gossip.Stats().OverRate > 500 })
	for i := range honest {
		a.publish(t, fmt.Sprintf("honest %d", i))
	}
	for i := range honest {
		if m := c.next(t); !strings.HasPrefix(string(m.Data), "honest") {
			t.Errorf("message %d is %q", i, m.Data)
		}
	}
	cancel()
	sent := <-done
	judged, allowed := b.topic.Stats().Ignored, opts.PeerBurst+int(opts.PeerRate*time.Since(start).Seconds())+1
	t.Logf("of %d messages %d were judged, %d dropped before", sent, judged, b.gossip.Stats().OverRate)
	if judged > uint64(allowed) {
		t.Errorf("judged %d messages of the flood, the rate allows %d", judged, allowed)
	}
	if s := b.gossip.Scores()[a.host.ID()]; s < 0 {
		t.Errorf("the honest peer has score %v", s)
	}
}

func TestLimiter(t *testing.T) {
	now := time.Unix(1000, 0)
	clock := &handClock{now: now}
	standing := map[peer.ID]p2p.Standing{"bound": p2p.Bound, "other": p2p.Bound, "pending": p2p.Pending, "unbound": p2p.Unbound}
	opts := Options{Topics: []string{"a", "b"}, PeerRate: 10, PeerBurst: 20, PeerBytes: 1000, MaxMessage: 1000}.withDefaults()
	l := newLimiter(clock, func(p peer.ID) p2p.Standing { return standing[p] }, opts, opts.Topics)
	send := func(from peer.ID, topic string, n, size int) int {
		rpc := new(pubsub.RPC)
		for range n {
			rpc.Publish = append(rpc.Publish, &pb.Message{Topic: &topic, Data: make([]byte, size)})
		}
		if err := l.inspect(from, rpc); err != nil {
			t.Fatal(err)
		}
		return len(rpc.Publish)
	}
	for _, c := range []struct {
		what    string
		from    peer.ID
		topic   string
		n, size int
		want    int
	}{
		{"a burst", "bound", "a", 50, 1, 20},
		{"then nothing", "bound", "a", 50, 1, 0},
		{"another topic", "bound", "b", 5, 1, 5},
		{"another peer", "other", "a", 20, 1, 20},
		{"bytes", "bound", "b", 3, 900, 2},
		{"a topic of nobody", "other", "c", 3, 1, 0},
		{"a peer that still says hello", "pending", "a", 3, 1, 3},
		{"a peer without a binding", "unbound", "a", 3, 1, 0},
	} {
		if got := send(c.from, c.topic, c.n, c.size); got != c.want {
			t.Errorf("%s: %d of %d passed, want %d", c.what, got, c.n, c.want)
		}
	}
	if s := l.stats; s.FromUnbound != 3 || s.OverRate != 30+50+1 {
		t.Errorf("counts %+v", s)
	}
	if s := l.score("bound"); s != 0 {
		t.Errorf("score %v", s)
	}
	if s := l.score("unbound"); s != unboundScore || s+meritCap >= 0 || s < gossipThreshold {
		t.Errorf("an unbound peer has score %v: it must be out of the mesh and get gossip", s)
	}
	clock.now = now.Add(time.Minute)
	if got := send("bound", "a", 50, 1); got != 20 {
		t.Errorf("after a pause %d pass", got)
	}
	for i := range 2 * maxAllowances {
		send(peer.ID(fmt.Sprint(i)), "a", 1, 1)
	}
	if len(l.peers) > maxAllowances {
		t.Errorf("remembers %d peers", len(l.peers))
	}
}

type handClock struct{ now time.Time }

func (c *handClock) Now() time.Time                     { return c.now }
func (*handClock) After(time.Duration) <-chan time.Time { return nil }

// TestUnboundMayOnlyListen: where there is a registry, who is not in it hears everything and says nothing.
func TestUnboundMayOnlyListen(t *testing.T) {
	opts := quick()
	opts.AdmitUnbound = false
	registry := make(map[protocol.ID]protocol.Key)
	lookup := func(c *p2p.Config) {
		c.Registry = func(id protocol.ID) (protocol.Key, bool) { k, ok := registry[id]; return k, ok }
	}
	keys := make([]ed25519.PrivateKey, 2)
	for i := range keys {
		var err error
		if _, keys[i], err = ed25519.GenerateKey(rand.Reader); err != nil {
			t.Fatal(err)
		}
		registry[protocol.ID{byte(i)}] = protocol.KeyOf(keys[i])
	}
	start := func(i int, bootstrap ...string) node {
		h := newHost(t, 1, lookup, bootstrap...)
		if i < len(keys) {
			b, err := p2p.NewBinding(testNetwork, protocol.ID{byte(i)}, h.ID(), keys[i])
			if err == nil {
				err = h.SetBinding(b)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		return join(t, h, opts, accept)
	}
	server := start(0)
	member, stranger := start(1, server.host.Addrs()...), start(2, server.host.Addrs()...)
	awaitPeers(t, []node{server}, 2)
	is := func(n node, s p2p.Standing) func() bool {
		return func() bool { got, _ := server.host.Standing(n.host.ID()); return got == s }
	}
	await(t, "member bound", is(member, p2p.Bound))
	await(t, "stranger unbound", is(stranger, p2p.Unbound))
	awaitPeers(t, []node{member, stranger}, 1, 1)

	stranger.publish(t, "noise")
	await(t, "dropped", func() bool { return server.gossip.Stats().FromUnbound > 0 })
	// What the stranger sent first is still new when a member sends it.
	member.publish(t, "noise")
	if m := server.next(t); string(m.Data) != "noise" || m.From != member.host.ID() {
		t.Errorf("got %q from %s", m.Data, m.From)
	}
	server.publish(t, "news")
	for {
		if m := stranger.next(t); string(m.Data) == "news" {
			break
		}
	}
	await(t, "the stranger is out of the mesh", func() bool { return server.gossip.Scores()[stranger.host.ID()] < 0 })
	if s := server.gossip.Scores()[member.host.ID()]; s < 0 {
		t.Errorf("the member has score %v", s)
	}
}

// TestSlowReader: the queue keeps the latest and counts the rest.
func TestSlowReader(t *testing.T) {
	opts := quick()
	opts.Queue = 10
	n := join(t, newHost(t, 1, nil), opts, accept)
	for i := range 25 {
		n.publish(t, fmt.Sprint(i))
	}
	await(t, "dropped", func() bool { return n.topic.Stats().Dropped == 15 })
	for i := range 10 {
		if m := n.next(t); string(m.Data) != fmt.Sprint(i+15) || !m.Own {
			t.Errorf("got %q, want %d", m.Data, i+15)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.topic.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	n.gossip.Close()
	if _, err := n.topic.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if err := n.topic.Publish(t.Context(), []byte("late")); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

func TestJoinTwiceOrUnknown(t *testing.T) {
	n := join(t, newHost(t, 1, nil), quick(), accept)
	for _, topic := range []string{"votes", "other"} {
		if _, err := n.gossip.Join(topic, accept); err == nil {
			t.Errorf("joined %q", topic)
		}
	}
	for _, o := range []Options{{}, {Topics: []string{"a", "a"}}, {Topics: []string{"a"}, Queue: -1}, {Topics: []string{"a"}, Remember: -1}} {
		if _, err := New(t.Context(), n.host, o); err == nil {
			t.Errorf("accepted %+v", o)
		}
	}
}

// TestMessageID: the same bytes on two topics are two messages, and no split of topic and data gives the same id.
func TestMessageID(t *testing.T) {
	id := func(topic, data string) string { return messageID(&pb.Message{Topic: &topic, Data: []byte(data)}) }
	if id("a", "x") == id("b", "x") || id("a", "bx") == id("ab", "x") || id("a", "x") != id("a", string([]byte{'x'})) {
		t.Error("ids do not tell topic and data apart")
	}
}

// TestFootprint measures hosts that share a process, all connected with each other, and checks that they leave nothing.
func TestFootprint(t *testing.T) {
	const hosts = 10
	before := runtime.NumGoroutine()
	var base, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&base)
	t.Run("hosts", func(t *testing.T) {
		boot := newHost(t, 16, nil)
		opts := quick()
		opts.Heartbeat = 0
		nodes := []node{join(t, boot, opts, accept)}
		for len(nodes) < hosts {
			nodes = append(nodes, join(t, newHost(t, 16, nil, boot.Addrs()...), opts, accept))
		}
		for _, n := range nodes {
			awaitPeers(t, []node{n}, hosts-1)
		}
		for i, n := range nodes {
			n.publish(t, fmt.Sprintf("hello from %d", i))
		}
		for _, n := range nodes {
			for range nodes {
				n.next(t)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		heap := (int64(after.HeapAlloc) - int64(base.HeapAlloc)) / hosts
		stack := (int64(after.StackInuse) - int64(base.StackInuse)) / hosts
		goroutines := (runtime.NumGoroutine() - before) / hosts
		t.Logf("each of %d hosts: %d KiB heap, %d KiB stack, %d goroutines", hosts, heap>>10, stack>>10, goroutines)
		if heap+stack > 16<<20 || goroutines > 250 {
			t.Error("that is too much for ten nodes in one process")
		}
	})
	await(t, "no goroutine left", func() bool { return runtime.NumGoroutine() <= before })
}
