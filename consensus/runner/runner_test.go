package runner_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/consensus/runner"
	"github.com/blockzero-net/bzd/internal/protocol"
)

const (
	start    = 1000
	delta    = 100
	deadline = start + 7*delta
)

// clock counts the bubble's milliseconds.
type clock struct{ anchor time.Time }

func (c clock) Now() int64 { return time.Since(c.anchor).Milliseconds() }

func (c clock) At(millis int64, f func()) func() {
	timer := time.AfterFunc(time.Until(c.anchor.Add(time.Duration(millis)*time.Millisecond)), f)
	return func() { timer.Stop() }
}

// hub connects the runners: what one sends reaches the others 10 ms later.
type hub struct {
	t       *testing.T
	clock   clock
	wg      sync.WaitGroup
	mu      sync.Mutex
	runners []*runner.Runner
	sent    [][]consensus.Message        // by sender
	lose    func(to int, b []byte) bool  // nil: nothing
	proofs  []protocol.EquivocationProof // of runner 0
	faults  chan error                   // of runner 0
}

// port is one runner's way to the others.
type port struct {
	*hub
	self int
}

func (p port) Send(_ context.Context, b []byte) error {
	m, err := consensus.DecodeMessage(bytes.Clone(b))
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent[p.self] = append(p.sent[p.self], m)
	for i, r := range p.runners {
		if i == p.self || r == nil || p.lose != nil && p.lose(i, b) {
			continue
		}
		p.wg.Go(func() {
			<-time.After(10 * time.Millisecond)
			if err := r.Receive(m.Encode()); err != nil && !errors.Is(err, consensus.ErrIgnore) {
				p.t.Errorf("runner %d sent %d a %s: %v", p.self, i, m.Kind, err)
			}
		})
	}
	return nil
}

func (p port) Tell(to protocol.ID, b []byte) {
	b = bytes.Clone(b)
	p.wg.Go(func() {
		<-time.After(10 * time.Millisecond)
		p.mu.Lock()
		r, lost := p.runners[to[0]], p.lose != nil && p.lose(int(to[0]), b)
		p.mu.Unlock()
		if r == nil || lost {
			return
		}
		if err := r.Receive(b); err != nil && !errors.Is(err, consensus.ErrIgnore) {
			p.t.Errorf("runner %d told %d: %v", p.self, to[0], err)
		}
	})
}

func (p port) Fetch(_ context.Context, n consensus.Name) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.runners {
		if b, ok := r.Held(n); ok && r != p.runners[p.self] {
			return b, nil
		}
	}
	return nil, errors.New("nobody has it")
}

func key(i int) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(i + 1)}, ed25519.SeedSize))
}

// machine is validator i of four, of the instance M.
func machine(i int) consensus.Config {
	cfg := consensus.Config{
		Network: protocol.LinkTo(protocol.DagCBOR, []byte("genesis")), Cycle: 3, Instance: protocol.InstanceM, Parent: protocol.Hash{1},
		Self: protocol.ID{byte(i)}, Key: key(i), Start: start, Delta: delta, Rounds: 2,
		Derive: func(s consensus.Set) (protocol.Value, error) {
			return protocol.Value{Merge: &protocol.MergeValue{Alpha: uint32(len(s.Merges)), Next: protocol.LinkTo(protocol.DagPB, nil)}}, nil
		},
		Snapshot: protocol.Snapshot{Version: protocol.Version, Height: 9, Hash: protocol.Hash{2}},
	}
	for v := range 4 {
		id := protocol.ID{byte(v)}
		cfg.Snapshot.Participants = append(cfg.Snapshot.Participants, protocol.Participant{
			ID: id, Key: protocol.KeyOf(key(v)), Stake: 5, Roles: protocol.RoleValidator,
		})
		cfg.Proposers = append(cfg.Proposers, id)
	}
	return cfg
}

func newHub(t *testing.T) *hub {
	return &hub{t: t, clock: clock{time.Now()}, runners: make([]*runner.Runner, 4), sent: make([][]consensus.Message, 4), faults: make(chan error, 64)}
}

// add starts a runner with a log.
func (h *hub) add(i int, log runner.Log, restore [][]byte) *runner.Runner {
	cfg := runner.Config{Machine: machine(i), Network: port{h, i}, Clock: h.clock, Log: log}
	cfg.Machine.Restore = restore
	if i == 0 {
		cfg.Fault = func(err error) { h.faults <- err }
		cfg.Proof = func(p protocol.EquivocationProof) { h.proofs = append(h.proofs, p) }
	}
	r, err := runner.New(cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	h.mu.Lock()
	h.runners[i] = r
	h.mu.Unlock()
	err = r.Input(consensus.Input{Merge: &protocol.MergeVector{Measure: protocol.MergeMeasure{Version: protocol.Version, Groups: []string{"go"}}}})
	if err != nil && !errors.Is(err, consensus.ErrIgnore) {
		h.t.Fatal(err)
	}
	return r
}

// honest checks that one validator, over all its lives, signed nothing that contradicts.
func (h *hub) honest(i int) {
	var signed []protocol.Signed
	for _, m := range h.sent[i] {
		r, err := m.Record()
		if s, ok := r.(protocol.Signed); err == nil && ok {
			signed = append(signed, s)
		}
	}
	for j, a := range signed {
		for _, b := range signed[:j] {
			if p, err := protocol.NewEquivocationProof(a, b); err == nil {
				h.t.Errorf("validator %d signed %s", i, p.Kind)
			}
		}
	}
}

// discard is a log that keeps nothing.
type discard struct{}

func (discard) Append([][]byte) error { return nil }

// finish waits for all outputs and closes everything.
func (h *hub) finish(run func(i int, r *runner.Runner)) {
	var wg sync.WaitGroup
	for i, r := range h.runners {
		if r != nil {
			wg.Go(func() { run(i, r) })
		}
	}
	wg.Wait()
	h.close()
}

// close ends every runner and waits for what is under way.
func (h *hub) close() {
	for _, r := range h.runners {
		if r != nil {
			r.Close()
		}
	}
	h.wg.Wait()
}

func (h *hub) output(r *runner.Runner) consensus.Output {
	out, err := r.Run(h.t.Context())
	if err != nil {
		h.t.Error(err)
	}
	if now := h.clock.Now(); now > deadline {
		h.t.Errorf("output at %d ms, the deadline is %d", now, deadline)
	}
	return out
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		lost := 0
		h.lose = func(to int, b []byte) bool { // validator 3 hears no vector and must fetch
			if to == 3 && b[0] == byte(consensus.KindMergeVector) {
				lost++
				return true
			}
			return false
		}
		for i := range 4 {
			h.add(i, discard{}, nil)
		}
		h.finish(func(i int, r *runner.Runner) {
			if out := h.output(r); out.Outcome != consensus.Certified || out.Value.Merge.Alpha != 3 && out.Value.Merge.Alpha != 4 {
				t.Errorf("runner %d: %s", i, out.Outcome)
			}
			if now := h.clock.Now(); now > start+2*delta {
				t.Errorf("runner %d took until %d ms", i, now)
			}
			m := r.Metrics()
			if m.Prepared < delta || m.Committed <= m.Prepared || m.Decided <= m.Committed || m.Received[consensus.KindVote] == 0 || m.Refused > 0 {
				t.Errorf("runner %d: %+v", i, m)
			}
		})
		if lost == 0 {
			t.Error("nothing had to be fetched")
		}
	})
}

// TestAlone: without anybody else there is an output at the deadline, to the millisecond, and no second one.
func TestAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		r := h.add(0, discard{}, nil)
		if out := h.output(r); out.Outcome != consensus.Fallback || h.clock.Now() != deadline {
			t.Errorf("%s at %d ms", out.Outcome, h.clock.Now())
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := r.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a second output, %v", err)
		}
		h.close()
	})
}

// TestHealing: one that missed everything until after its deadline is told, and Run called again returns it.
func TestHealing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.lose = func(to int, _ []byte) bool { return to == 0 && h.clock.Now() < deadline+50 }
		for i := range 4 {
			h.add(i, discard{}, nil)
		}
		h.runners[0].Close()
		h.mu.Lock()
		h.runners[0] = nil
		h.mu.Unlock()
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		for i, r := range h.runners[1:] {
			wg.Go(func() {
				h.output(r)
				if _, err := r.Run(ctx); err == nil {
					t.Errorf("runner %d has two outputs", i+1)
				}
			})
		}
		<-time.After((deadline + 50) * time.Millisecond)
		// Validator 0 comes up only now, its deadline past; it says where it stands, and is told.
		r := h.add(0, discard{}, nil)
		if out, err := r.Run(t.Context()); err != nil || out.Outcome != consensus.Fallback {
			t.Errorf("%v %v", out, err)
		}
		if out, err := r.Run(t.Context()); err != nil || out.Outcome != consensus.Certified || !out.Late {
			t.Errorf("%v %v", out, err)
		}
		if now := h.clock.Now(); now > deadline+50+5*delta {
			t.Errorf("told at %d ms", now)
		}
		cancel()
		wg.Wait()
		h.close()
	})
}

// TestDiskFailsRunning fails operation 0, 1, 2, … of one validator's disk. It says so, signs nothing it could forget, and
// has its output in time; restarted at once from what a crash would leave, it contradicts nothing it said before.
func TestDiskFailsRunning(t *testing.T) {
	for _, restart := range []bool{false, true} {
		for k, done := 4, false; !done; k++ { // the first four open the log, which TestDiskFails fails
			synctest.Test(t, func(t *testing.T) {
				h := newHub(t)
				disk := &memory{fail: k}
				log, _ := open(t, disk)
				for i := 1; i < 4; i++ {
					h.add(i, discard{}, nil)
				}
				h.add(0, log, nil)
				h.finish(func(i int, r *runner.Runner) {
					if i != 0 || !restart {
						if out := h.output(r); out.Outcome != consensus.Certified {
							t.Errorf("operation %d failed: runner %d has %s", k, i, out.Outcome)
						}
						ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
						defer cancel()
						if _, err := r.Run(ctx); err == nil { // for those who still need the certificate
							t.Error("two outputs")
						}
						return
					}
					ctx, cancel := context.WithCancel(t.Context())
					var wg sync.WaitGroup
					wg.Go(func() {
						select {
						case err := <-h.faults:
							if !errors.Is(err, runner.ErrLog) || !errors.Is(err, errDisk) {
								t.Error(err)
							}
						case <-ctx.Done():
						}
						cancel()
					})
					_, err := r.Run(ctx)
					if err == nil && disk.ops <= k {
						cancel()
						wg.Wait()
						return
					}
					wg.Wait()
					r.Close()
					again, records := open(t, disk.crashed(k*7%60))
					if out := h.output(h.add(0, again, records)); out.Outcome != consensus.Certified {
						t.Errorf("operation %d failed: restarted, it has %s", k, out.Outcome)
					}
				})
				h.honest(0)
				done = disk.ops <= k
				if !done && !restart && len(h.faults) == 0 {
					t.Errorf("operation %d failed, and nobody was told", k)
				}
			})
			if done && k < 8 {
				t.Errorf("only %d operations", k)
			}
		}
	}
}

// stuck is a log that hangs.
type stuck struct{ release chan struct{} }

func (s stuck) Append([][]byte) error {
	<-s.release
	return nil
}

// slow is a log that takes its time.
type slow time.Duration

func (s slow) Append([][]byte) error {
	<-time.After(time.Duration(s))
	return nil
}

// TestNullOnSlowDisk: the null that a validator signs at its deadline is given the time that a disk takes, though the
// output is not held up by it; so a cycle that decided nothing ends with a proof that it did not.
func TestNullOnSlowDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.lose = func(_ int, b []byte) bool { return b[0] == byte(consensus.KindMergeVector) }
		for i := range 4 {
			h.add(i, slow(3*delta*time.Millisecond/2), nil)
		}
		h.finish(func(i int, r *runner.Runner) {
			if out := h.output(r); out.Outcome != consensus.Fallback || h.clock.Now() != deadline {
				t.Errorf("runner %d: %s at %d ms", i, out.Outcome, h.clock.Now())
			}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if out, err := r.Run(ctx); err != nil || out.Outcome != consensus.Null || !out.Late {
				t.Errorf("runner %d: then %s, %v", i, out.Outcome, err)
			}
		})
		if len(h.faults) > 0 {
			t.Errorf("a fault: %v", <-h.faults)
		}
	})
}

// TestDiskHangs: the output does not wait for the disk.
func TestDiskHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub(t)
		h.lose = func(_ int, b []byte) bool { return b[0] == byte(consensus.KindCertificate) }
		release := make(chan struct{})
		for i := 1; i < 4; i++ {
			h.add(i, discard{}, nil)
		}
		r := h.add(0, stuck{release}, nil)
		var wg sync.WaitGroup
		for i := 1; i < 4; i++ {
			wg.Go(func() { h.output(h.runners[i]) })
		}
		out := h.output(r)
		if out.Outcome != consensus.Certified && out.Outcome != consensus.Fallback {
			t.Errorf("%s", out.Outcome)
		}
		if len(h.sent[0]) != 0 {
			t.Errorf("sent %d messages that are not on the disk", len(h.sent[0]))
		}
		wg.Wait()
		close(release)
		h.close()
		if err := <-h.faults; !errors.Is(err, runner.ErrLog) {
			t.Error(err)
		}
		if len(h.sent[0]) != 0 {
			t.Error("sends on")
		}
	})
}

func TestNewRefuses(t *testing.T) {
	if _, err := runner.New(runner.Config{Machine: machine(0)}); !errors.Is(err, consensus.ErrBug) {
		t.Error(err)
	}
	cfg := runner.Config{Machine: machine(0), Network: port{}, Clock: clock{}, Log: discard{}}
	cfg.Machine.Derive = nil
	if _, err := runner.New(cfg); !errors.Is(err, consensus.ErrBug) {
		t.Error(err)
	}
}
