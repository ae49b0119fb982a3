package dev

import (
	"context"
	"crypto/ed25519"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/blockzero-net/bzd/consensus/beacon"
	"github.com/blockzero-net/bzd/consensus/chain"
	"github.com/blockzero-net/bzd/consensus/chain/chaintest"
	"github.com/blockzero-net/bzd/internal/protocol"
)

const (
	blockPeriod = 500 * time.Millisecond
	cycleBlocks = 10
)

var network = protocol.LinkTo(protocol.DagCBOR, []byte("a genesis"))

// clock is a time that a test moves.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// person is a participant with both keys.
type person struct {
	protocol.Participant
	chainKey, key ed25519.PrivateKey
}

func newPerson(n byte, stake uint64, roles protocol.Role) person {
	p := person{chainKey: ed25519.NewKeyFromSeed(slices.Repeat([]byte{n}, 32)), key: ed25519.NewKeyFromSeed(slices.Repeat([]byte{n ^ 0x80}, 32))}
	p.Participant = protocol.Participant{ID: protocol.ID(protocol.KeyOf(p.chainKey)), Key: protocol.KeyOf(p.key), Stake: stake, Roles: roles}
	if roles.Has(protocol.RoleMiner) {
		p.Group = "go"
	}
	return p
}

var people = []person{
	newPerson(1, 100, protocol.RoleValidator),
	newPerson(2, 50, protocol.RoleValidator|protocol.RoleGateway),
	newPerson(3, 0, protocol.RoleMiner),
	newPerson(4, 7, protocol.RoleMiner),
}

// rig is a chain under test.
type rig struct {
	*clock
	*Server
	cfg Config
	url string
}

func config(dir string, c *clock) Config {
	cfg := Config{
		Dir: dir, Network: network, BeaconSeed: [32]byte{1}, BlockPeriod: blockPeriod,
		Beacon: beacon.Clock{Period: 3 * time.Second}, CycleBlocks: cycleBlocks, Now: c.Now,
	}
	for _, p := range people {
		cfg.Participants = append(cfg.Participants, p.Participant)
	}
	slices.SortFunc(cfg.Participants, func(a, b protocol.Participant) int { return a.ID.Compare(b.ID) })
	return cfg
}

func newRig(t testing.TB, change ...func(*Config)) *rig {
	t.Helper()
	c := &clock{at: time.UnixMilli(1_700_000_000_123)}
	cfg := config(t.TempDir(), c)
	for _, f := range change {
		f(&cfg)
	}
	r := &rig{clock: c, cfg: cfg}
	r.start(t)
	return r
}

// start opens the chain and serves it on a free port.
func (r *rig) start(t testing.TB) {
	t.Helper()
	s, err := New(r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), <-done); err != nil {
			t.Error(err)
		}
	})
	r.Server, r.url = s, l.Addr().String()
}

func (r *rig) restart(t testing.TB) {
	t.Helper()
	if err := r.Server.Close(); err != nil {
		t.Fatal(err)
	}
	r.start(t)
}

func newClient(t testing.TB, endpoints ...string) *Client {
	t.Helper()
	c, err := NewClient(ClientConfig{Endpoints: endpoints, Passes: 2, Wait: func(ctx context.Context, _ time.Duration) error { return ctx.Err() }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func submission(t testing.TB, p person, cycle uint64) protocol.Submission {
	t.Helper()
	s := protocol.Submission{Version: protocol.Version, Network: network, Cycle: cycle, Validator: p.ID,
		Weights: []protocol.MinerWeight16{{Miner: people[2].ID, Weight: 65535}}}
	if err := s.Sign(p.key); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformance(t *testing.T) {
	chaintest.RunAll(t, func(t *testing.T) chaintest.Chain {
		r := newRig(t)
		r.add(12 * blockPeriod)
		c := chaintest.Chain{
			Client: newClient(t, r.url), Network: network,
			Cycle:   func(height uint64) (cycle, start uint64) { return height / cycleBlocks, height - height%cycleBlocks },
			Advance: func(_ *testing.T, blocks uint64) { r.add(time.Duration(blocks) * blockPeriod) },
			Join: func(t *testing.T) protocol.ID {
				p := newPerson(9, 3, protocol.RoleBootstrap)
				if _, err := newClient(t, r.url).Register(t.Context(), network, p.Participant, p.chainKey); err != nil {
					t.Fatal(err)
				}
				return p.ID
			},
			Weights: func(t *testing.T, cycle uint64, id protocol.ID) ([]protocol.MinerWeight16, bool) {
				b, ok := r.weights(cycle, id)
				if !ok {
					return nil, false
				}
				s, err := protocol.DecodeSubmission(b)
				if err != nil {
					t.Fatal(err)
				}
				return s.Weights, true
			},
			Down: func(t *testing.T) {
				if err := r.Server.Close(); err != nil {
					t.Fatal(err)
				}
			},
		}
		for _, p := range people {
			c.Members = append(c.Members, chaintest.Member{Participant: p.Participant, Key: p.key})
		}
		return c
	})
}

func TestBlocks(t *testing.T) {
	r := newRig(t)
	c := newClient(t, r.url)
	for _, v := range []struct {
		wait   time.Duration
		height uint64
	}{{0, 0}, {blockPeriod - 1*time.Millisecond, 0}, {time.Millisecond, 1}, {blockPeriod, 2}, {time.Hour, 7202}} {
		r.add(v.wait)
		b, err := c.Head(t.Context())
		if err != nil || b.Height != v.height || !b.Time.Equal(time.UnixMilli(1_700_000_000_123).Add(time.Duration(v.height)*blockPeriod)) {
			t.Errorf("head %+v, %v; want height %d", b, err, v.height)
		}
	}
	other := newRig(t, func(c *Config) { c.CycleBlocks++ })
	if r.state.block(5).Hash == other.state.block(5).Hash {
		t.Error("two chains have the same blocks")
	}
	early := newRig(t, func(c *Config) { c.Genesis = c.Now().Add(time.Second) })
	if _, err := newClient(t, early.url).Head(t.Context()); !errors.Is(err, chain.ErrUnavailable) || !strings.Contains(err.Error(), "genesis is at") {
		t.Errorf("before genesis: %v", err)
	}
}

func TestRegistry(t *testing.T) {
	r := newRig(t)
	c := newClient(t, r.url)
	p := newPerson(7, 10, protocol.RoleMiner)
	register := func(p protocol.Participant, key ed25519.PrivateKey) (uint64, error) {
		return c.Register(t.Context(), network, p, key)
	}
	at := func(height uint64) (protocol.Participant, bool) {
		t.Helper()
		s, err := c.Snapshot(t.Context(), height)
		if err != nil {
			t.Fatal(err)
		}
		return s.Find(p.ID)
	}
	height, err := register(p.Participant, p.chainKey)
	if err != nil || height != 1 {
		t.Fatalf("from block %d, %v", height, err)
	}
	if again, err := register(p.Participant, p.chainKey); err != nil || again != height {
		t.Errorf("again from block %d, %v", again, err)
	}
	r.add(5 * blockPeriod)
	moved := p.Participant
	moved.Group, moved.Stake = "asm", 11
	if height, err := register(moved, p.chainKey); err != nil || height != 6 {
		t.Errorf("changed from block %d, %v", height, err)
	}
	r.add(5 * blockPeriod)
	if height, err := register(protocol.Participant{ID: p.ID}, p.chainKey); err != nil || height != 11 {
		t.Errorf("left from block %d, %v", height, err)
	}
	r.add(5 * blockPeriod)
	for range 2 { // the second time from what was kept
		for height, want := range map[uint64]protocol.Participant{0: {}, 1: p.Participant, 5: p.Participant, 6: moved, 10: moved, 11: {}, 15: {}} {
			if got, ok := at(height); got != want || ok != (want != protocol.Participant{}) {
				t.Errorf("block %d has %+v, want %+v", height, got, want)
			}
		}
		r.restart(t)
		c = newClient(t, r.url)
	}

	last, ok, err := c.Registration(t.Context(), p.ID)
	if err != nil || !ok || last.Sequence != 3 {
		t.Errorf("last registration %+v, %v", last, err)
	}
	if _, ok, err := c.Registration(t.Context(), people[0].ID); ok || err != nil {
		t.Errorf("of somebody of block 0: %v, %v", ok, err)
	}
	send := func(change func(*Registration)) error {
		r := Registration{Version: 1, Network: network, Sequence: 4, Participant: p.Participant}
		change(&r)
		if err := r.Sign(p.chainKey); err != nil {
			t.Fatal(err)
		}
		b, err := protocol.Encode(r)
		if err != nil {
			t.Fatal(err)
		}
		return c.do(t.Context(), request{path: "/v1/registrations", body: b}, nil)
	}
	for name, v := range map[string]struct {
		change func(*Registration)
		want   error
	}{
		"an old number":      {func(r *Registration) { r.Sequence = 2 }, chain.ErrConflict},
		"the same number":    {func(r *Registration) { r.Sequence = 3 }, chain.ErrConflict},
		"too much stake":     {func(r *Registration) { r.Participant.Stake = 1<<40 + 1 }, chain.ErrRefused},
		"another's id":       {func(r *Registration) { r.Participant.ID = people[0].ID }, chain.ErrRefused},
		"another network":    {func(r *Registration) { r.Network = protocol.LinkTo(protocol.DagCBOR, nil) }, chain.ErrRefused},
		"leaves when absent": {func(r *Registration) { r.Participant = protocol.Participant{ID: p.ID} }, chain.ErrRefused},
	} {
		if err := send(v.change); !errors.Is(err, v.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := send(func(*Registration) {}); err != nil {
		t.Errorf("the next number: %v", err)
	}
	if err := send(func(r *Registration) { r.Sequence = 9 }); err != nil {
		t.Errorf("a number above the next: %v", err)
	}
	if err := send(func(r *Registration) { r.Participant.Stake++ }); !errors.Is(err, chain.ErrConflict) || strings.Contains(err.Error(), "\n") {
		t.Errorf("an older one that arrives late: %v", err)
	}
	bad := p.Participant
	bad.Group = ""
	if _, err := register(bad, p.chainKey); !errors.Is(err, chain.ErrRefused) {
		t.Errorf("a miner without a group: %v", err)
	}
	if _, err := register(protocol.Participant{ID: p.ID, Stake: 1}, p.chainKey); !errors.Is(err, chain.ErrRefused) {
		t.Errorf("without roles but with stake: %v", err)
	}
}

// TestSnapshotOfTheCycle: who may submit is decided by the block that starts the cycle, whatever happens during it.
func TestSnapshotOfTheCycle(t *testing.T) {
	r := newRig(t)
	c := newClient(t, r.url)
	r.add(12 * blockPeriod)
	late := newPerson(8, 1, protocol.RoleValidator)
	if _, err := c.Register(t.Context(), network, late.Participant, late.chainKey); err != nil {
		t.Fatal(err)
	}
	gone := people[0]
	if _, err := c.Register(t.Context(), network, protocol.Participant{ID: gone.ID}, gone.chainKey); err != nil {
		t.Fatal(err)
	}
	r.add(3 * blockPeriod)
	if err := c.Submit(t.Context(), submission(t, late, 1)); !errors.Is(err, chain.ErrRefused) {
		t.Errorf("who joined during the cycle: %v", err)
	}
	if err := c.Submit(t.Context(), submission(t, gone, 1)); err != nil {
		t.Errorf("who left during the cycle: %v", err)
	}
	r.add(10 * blockPeriod)
	if err := c.Submit(t.Context(), submission(t, late, 2)); err != nil {
		t.Errorf("one cycle later, who joined: %v", err)
	}
	if err := c.Submit(t.Context(), submission(t, gone, 2)); !errors.Is(err, chain.ErrRefused) {
		t.Errorf("one cycle later, who left: %v", err)
	}
}

func TestBeacon(t *testing.T) {
	r := newRig(t)
	c := newClient(t, r.url)
	info, err := c.Info(t.Context())
	if err != nil || info.Network != network || info.BlockMillis != 500 || info.CycleBlocks != cycleBlocks || info.Clock() != r.Info().Clock() {
		t.Fatalf("info %+v, %v", info, err)
	}
	for round := uint64(1); round <= 3; round++ {
		sig, err := c.Signature(t.Context(), round)
		if err == nil {
			err = info.Beacon.Public.Verify(round, sig)
		}
		if err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		r.add(3*time.Second - time.Millisecond)
		if _, err := c.Signature(t.Context(), round+1); !errors.Is(err, beacon.ErrTooEarly) {
			t.Errorf("a millisecond before round %d: %v", round+1, err)
		}
		r.add(time.Millisecond)
	}
	for _, round := range []uint64{1 << 40, 1<<64 - 1} {
		if _, err := c.Signature(t.Context(), round); !errors.Is(err, beacon.ErrTooEarly) {
			t.Errorf("round %d: %v", round, err)
		}
	}
	if _, err := c.Signature(t.Context(), 0); !errors.Is(err, beacon.ErrRound) {
		t.Errorf("round 0: %v", err)
	}
	resp, err := http.Get("http://" + r.url + "/v1/beacon/1000")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusTooEarly {
		t.Errorf("status %s", resp.Status)
	}

	cache, err := beacon.NewCache(beacon.CacheConfig{Public: info.Beacon.Public, Clock: info.Clock(), Now: r.Now,
		Wait: func(_ context.Context, d time.Duration) error { r.add(d); return nil }}, c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cache.Signature(t.Context(), 100); err != nil || r.Now() != info.Clock().TimeOf(100).Local() && !r.Now().Equal(info.Clock().TimeOf(100)) {
		t.Errorf("round 100 at %v, %v", r.Now(), err)
	}
}

// TestFailover has three endpoints of one chain, which go down one by one, and one of another chain.
func TestFailover(t *testing.T) {
	r, other := newRig(t), newRig(t, func(c *Config) { c.CycleBlocks++ })
	var front []*httptest.Server
	var urls []string
	for range 3 {
		s := httptest.NewServer(r.http.Handler)
		defer s.Close()
		front, urls = append(front, s), append(urls, s.URL)
	}
	c := newClient(t, append([]string{urls[0], other.url}, urls[1:]...)...)
	for i := range front {
		r.add(blockPeriod)
		if b, err := c.Head(t.Context()); err != nil || b.Height != uint64(i)+1 {
			t.Fatalf("with %d endpoints down: %+v, %v", i, b, err)
		}
		front[i].CloseClientConnections()
		front[i].Close()
	}
	_, err := c.Head(t.Context())
	if !errors.Is(err, chain.ErrUnavailable) || !strings.Contains(err.Error(), "serves chain") || !strings.Contains(err.Error(), "refused") {
		t.Errorf("with nothing left: %v", err)
	}
	pinned, err := NewClient(ClientConfig{Endpoints: []string{other.url, r.url}, Chain: r.Info().Chain})
	if err != nil {
		t.Fatal(err)
	}
	defer pinned.Close()
	if b, err := pinned.Head(t.Context()); err != nil || b.Hash != r.state.block(b.Height).Hash {
		t.Errorf("with the right chain second: %+v, %v", b, err)
	}
}

// TestBadServers: whatever an endpoint answers, the client passes it over or gives up with the right error, and in time.
func TestBadServers(t *testing.T) {
	r := newRig(t)
	hash := r.Info().Chain.String()
	r.add(blockPeriod)
	answers := map[string]http.HandlerFunc{
		"not a chain": func(w http.ResponseWriter, _ *http.Request) {},
		"garbage":     func(w http.ResponseWriter, _ *http.Request) { w.Header().Set(chainHeader, hash); w.Write([]byte("{]")) },
		"broken":      func(w http.ResponseWriter, _ *http.Request) { w.Header().Set(chainHeader, hash); w.WriteHeader(500) },
		"odd refusal": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set(chainHeader, hash); w.WriteHeader(418) },
		"redirect":    func(w http.ResponseWriter, q *http.Request) { http.Redirect(w, q, "/v1/head", http.StatusFound) },
		"too much": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(chainHeader, hash)
			w.Write(make([]byte, 2<<20))
		},
		"cut off": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			w.Write([]byte("{"))
		},
		"hangs":     func(_ http.ResponseWriter, q *http.Request) { <-q.Context().Done() },
		"another's": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set(chainHeader, strings.Repeat("ab", 32)) },
		"wrong content": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(chainHeader, hash)
			w.Write([]byte(`{"height":[]}`))
		},
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			bad := httptest.NewServer(answer)
			defer bad.Close()
			cfg := ClientConfig{Endpoints: []string{bad.URL}, Chain: r.Info().Chain, Attempt: 50 * time.Millisecond, Passes: 2, Backoff: time.Millisecond}
			alone, err := NewClient(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer alone.Close()
			if _, err := alone.Head(t.Context()); !errors.Is(err, chain.ErrUnavailable) {
				t.Errorf("alone: %v", err)
			}
			if _, err := alone.Snapshot(t.Context(), 0); !errors.Is(err, chain.ErrUnavailable) {
				t.Errorf("snapshot alone: %v", err)
			}
			if _, err := alone.Signature(t.Context(), 1); !errors.Is(err, chain.ErrUnavailable) {
				t.Errorf("signature alone: %v", err)
			}
			cfg.Endpoints, cfg.Attempt = append(cfg.Endpoints, r.url), time.Second
			if name == "hangs" {
				cfg.Attempt = 50 * time.Millisecond
			}
			both, err := NewClient(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer both.Close()
			if b, err := both.Head(t.Context()); err != nil || b.Height != 1 {
				t.Errorf("with a good one: %+v, %v", b, err)
			}
		})
	}
}

// TestBackoff: the pauses double up to their bound, and a chain that comes back is found.
func TestBackoff(t *testing.T) {
	r := newRig(t)
	up := false
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if !up {
			w.WriteHeader(502)
			return
		}
		r.http.Handler.ServeHTTP(w, q)
	}))
	defer front.Close()
	var pauses []time.Duration
	c, err := NewClient(ClientConfig{Endpoints: []string{front.URL}, Passes: 9, Wait: func(_ context.Context, d time.Duration) error {
		pauses = append(pauses, d)
		up = len(pauses) == 7
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Head(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []time.Duration{100, 200, 400, 800, 1600, 2000, 2000}
	for i := range want {
		want[i] *= time.Millisecond
	}
	if !slices.Equal(pauses, want) {
		t.Errorf("pauses %v, want %v", pauses, want)
	}
}

func TestListen(t *testing.T) {
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = Listen(l.Addr().String())
	if err == nil || !strings.Contains(err.Error(), "in use; stop the other process or choose another port") {
		t.Errorf("a used port: %v", err)
	}
	for _, addr := range []string{"0.0.0.0:0", "8.8.8.8:1", ":0", "nowhere", "127.0.0.1:x"} {
		if _, err := Listen(addr); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

func TestConfig(t *testing.T) {
	err := Config{Participants: []protocol.Participant{{}}, Timeout: -1}.Validate()
	if err == nil || strings.Count(err.Error(), ErrConfig.Error()) != 9 {
		t.Errorf("an empty configuration: %v", err)
	}
	for _, e := range []string{"", "https://127.0.0.1:1", "http://", "http://a/b", "http://u@h:1", "://"} {
		if _, err := NewClient(ClientConfig{Endpoints: []string{e}, Passes: -1}); !errors.Is(err, ErrConfig) {
			t.Errorf("endpoint %q: %v", e, err)
		}
	}
	if _, err := NewClient(ClientConfig{}); !errors.Is(err, ErrConfig) {
		t.Errorf("no endpoint: %v", err)
	}
}

// TestHostile sends what no client would. The chain must refuse it, keep nothing and go on.
func TestHostile(t *testing.T) {
	r := newRig(t)
	base := "http://" + r.url
	before, err := os.ReadFile(filepath.Join(r.cfg.Dir, journalName))
	if err != nil {
		t.Fatal(err)
	}
	id := people[0].ID.String()
	for _, v := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/", "", 404},
		{"GET", "/v1/nothing", "", 404},
		{"DELETE", "/v1/head", "", 404},
		{"GET", "/v1/snapshots/-1", "", 400},
		{"GET", "/v1/snapshots/18446744073709551616", "", 400},
		{"GET", "/v1/snapshots/18446744073709551615", "", 404},
		{"GET", "/v1/snapshots/1e3", "", 400},
		{"GET", "/v1/registrations/xyz", "", 400},
		{"GET", "/v1/registrations/" + id, "", 404},
		{"GET", "/v1/weights/x/" + id, "", 400},
		{"GET", "/v1/weights/1/" + id + "00", "", 400},
		{"GET", "/v1/weights/1/" + id, "", 404},
		{"GET", "/v1/beacon/x", "", 400},
		{"GET", "/v1/beacon/0", "", 400},
		{"POST", "/v1/registrations", "", 400},
		{"POST", "/v1/registrations", "garbage", 400},
		{"POST", "/v1/registrations", "\xa1\x61a\x9f", 400},
		{"POST", "/v1/registrations", strings.Repeat("\x81", 1000), 400},
		{"POST", "/v1/registrations", strings.Repeat("a", maxRegistration+1), 413},
		{"POST", "/v1/weights", "", 400},
		{"POST", "/v1/weights", "garbage", 400},
		{"POST", "/v1/weights", strings.Repeat("\x9f", maxSubmission), 400},
		{"POST", "/v1/weights", strings.Repeat("a", maxSubmission+1), 413},
		{"GET", "/v1/head?" + strings.Repeat("a", 64<<10), "", 431},
	} {
		req, err := http.NewRequest(v.method, base+v.path, strings.NewReader(v.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Errorf("%s %.60s: %v", v.method, v.path, err)
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != v.status {
			t.Errorf("%s %.60s with %d bytes: %s, want %d", v.method, v.path, len(v.body), resp.Status, v.status)
		}
	}
	if _, err := newClient(t, r.url).Head(t.Context()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	after, err := os.ReadFile(filepath.Join(r.cfg.Dir, journalName))
	if err != nil || string(after) != string(before) {
		t.Errorf("the journal grew from %d to %d bytes, %v", len(before), len(after), err)
	}
}

// TestSlow: connections that say nothing, nonsense, or half of something are closed by the chain.
func TestSlow(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Timeout = 50 * time.Millisecond })
	for _, start := range []string{"", "\x00\x01\x02\r\n\r\n", "GET /v1/head HTTP/1.1\r\nHost: x\r\n", "POST /v1/weights HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab"} {
		conn, err := net.Dial("tcp", r.url)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(start)); err != nil {
			t.Fatal(err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		for buf := make([]byte, 4096); err == nil; _, err = conn.Read(buf) {
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after %q the connection stays open", start)
		}
		conn.Close()
	}
}

// TestConcurrent registers and submits from many clients at once; then the chain restarts and has all of it.
func TestConcurrent(t *testing.T) {
	r := newRig(t)
	r.add(11 * blockPeriod)
	var all sync.WaitGroup
	joined := make([]person, 8)
	for i := range joined {
		joined[i] = newPerson(byte(20+i), 1, protocol.RoleMiner)
		all.Go(func() {
			c := newClient(t, r.url)
			if _, err := c.Register(t.Context(), network, joined[i].Participant, joined[i].chainKey); err != nil {
				t.Error(err)
			}
			if _, err := c.Signature(t.Context(), 1); err != nil {
				t.Error(err)
			}
			if err := c.Submit(t.Context(), submission(t, people[i%2], 1)); err != nil {
				t.Error(err)
			}
			r.add(time.Millisecond)
		})
	}
	all.Wait()
	r.add(blockPeriod)
	r.restart(t)
	c := newClient(t, r.url)
	head, err := c.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Snapshot(t.Context(), head.Height)
	if err != nil || len(s.Participants) != len(people)+len(joined) {
		t.Errorf("%d participants, %v", len(s.Participants), err)
	}
	for _, p := range people[:2] {
		if _, ok, err := c.Weights(t.Context(), 1, p.ID); !ok || err != nil {
			t.Errorf("weights of %v: %v, %v", p.ID, ok, err)
		}
	}
}
