package runner

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/blockzero-net/bzd/consensus"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// Network reaches the other validators. Methods may be called concurrently, may block, and must return when ctx is done.
type Network interface {
	// Send gives an encoded message to every validator, as well as it can; what is lost is sent again. The same bytes
	// may be sent repeatedly, and a layer that drops what it has seen before must let them through to peers that missed
	// them. The message is not changed or kept.
	Send(ctx context.Context, message []byte) error
	// Tell gives an encoded message to one validator, as well as it can, and does not wait for it.
	Tell(to protocol.ID, message []byte)
	// Fetch returns the encoded record of that name from whoever has it.
	Fetch(ctx context.Context, name consensus.Name) ([]byte, error)
}

// Clock tells the time of one cycle. It may be called concurrently.
type Clock interface {
	// Now returns the milliseconds since the cycle's anchor. It never goes back.
	Now() int64
	// At calls f once, on a goroutine of its own, when Now is at least millis; stop prevents a call that has not begun.
	At(millis int64, f func()) (stop func())
}

// Log keeps records over a crash.
type Log interface {
	// Append returns nil once the records are durable, as one batch. It is called by one goroutine of each runner.
	Append(records [][]byte) error
}

// Config is what a runner needs.
type Config struct {
	// Machine is the instance. Its Restore is what the log held when it was opened.
	Machine consensus.Config
	Network Network
	Clock   Clock
	Log     Log // nil only for an observer
	// Fault hears of everything that went wrong and was survived, on any goroutine: an error that wraps ErrLog needs the
	// operator, the others are the network's. nil: nobody hears.
	Fault func(error)
	// Proof hears of every equivocation, on the goroutine of Run, which waits for it. nil: nobody hears.
	Proof func(protocol.EquivocationProof)
}

// ErrLog: the log failed or hung, and the validator signs nothing more in this instance. Free the disk and restart.
var ErrLog = errors.New("runner: the write-ahead log failed; this validator stays silent")

// Bounds of what a runner has under way.
const (
	sendQueue  = 256 // messages; what does not fit is sent again later by the machine
	fetchQueue = 16  // fetches at a time
)

// Runner runs one machine. Receive, Input and Held may be called concurrently, at any time.
type Runner struct {
	cfg    Config
	ctx    context.Context // of everything but Run
	cancel context.CancelFunc
	wg     sync.WaitGroup
	wake   chan struct{} // something changed
	sends  chan []byte

	mu       sync.Mutex
	machine  *consensus.Machine
	fetching map[consensus.Name]bool
	writing  bool            // a batch is on its way to the log
	ready    consensus.Ready // the batch's
	began    int64           // when it went there
	fell     bool            // the Fallback was output before the batch with it was durable
	muted    bool
	outputs  []consensus.Output
	metrics  Metrics
	proofs   []protocol.EquivocationProof
}

// New returns a runner. The error is the machine's, an ErrBug. Close ends it.
func New(cfg Config) (*Runner, error) {
	if cfg.Network == nil || cfg.Clock == nil || cfg.Log == nil && cfg.Machine.Key != nil {
		return nil, fmt.Errorf("%w: a runner needs a network, a clock and, to sign, a log", consensus.ErrBug)
	}
	machine, err := consensus.New(cfg.Machine)
	if err != nil {
		return nil, err
	}
	r := &Runner{
		cfg: cfg, machine: machine, wake: make(chan struct{}, 1), sends: make(chan []byte, sendQueue),
		fetching: make(map[consensus.Name]bool),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	machine.Tick(cfg.Clock.Now())
	r.wg.Go(r.sendAll)
	return r, nil
}

// Close ends what Run left under way and waits for it. A write to the log that hangs makes it wait too.
func (r *Runner) Close() {
	r.cancel()
	r.wg.Wait()
}

// Metrics is how an instance went so far.
type Metrics struct {
	Sent     [consensus.KindLock + 1]uint64 // messages by kind, repetitions included
	Received [consensus.KindLock + 1]uint64 // that were new
	Ignored  uint64
	Refused  uint64 // by their senders' fault
	// Milliseconds from the instance's Start to this validator's first PREPARE and COMMIT-V and to the certificate; 0: not
	// yet.
	Prepared, Committed, Decided int64
}

// Metrics returns how the instance went so far.
func (r *Runner) Metrics() Metrics {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.metrics
}

// note takes the moments from what is sent and output.
func (r *Runner) note(ready consensus.Ready) {
	first := func(at *int64) {
		if *at == 0 {
			*at = max(1, r.cfg.Clock.Now()-r.cfg.Machine.Start)
		}
	}
	for _, m := range ready.Send {
		r.metrics.Sent[m.Kind]++
		if record, err := m.Record(); err == nil {
			if v, ok := record.(protocol.Vote); ok && v.Type == protocol.VotePrepare {
				first(&r.metrics.Prepared)
			} else if ok {
				first(&r.metrics.Committed)
			}
		}
	}
	if out := ready.Output; out != nil && out.Certificate != nil {
		first(&r.metrics.Decided)
	}
}

// Retire ends this validator's part: nothing is signed or sent from now on. What comes of the instance is still output.
func (r *Runner) Retire() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.muted = true
	r.machine.Mute()
}

// Receive gives the machine a peer's encoded message and returns its verdict: nil to forward it, or an error of package
// consensus.
func (r *Runner) Receive(message []byte) error {
	m, err := consensus.DecodeMessage(message)
	if err != nil {
		return err
	}
	return r.do(func() error { return r.judged(m.Kind, r.machine.Step(m)) })
}

// ReceiveValid is Receive for a message that was checked under the instance's snapshot.
func (r *Runner) ReceiveValid(v consensus.Valid) error {
	return r.do(func() error { return r.judged(v.Message().Kind, r.machine.StepValid(v)) })
}

// Prepared returns the highest lock that is known and, if it is held, the proposal that it is on; nil for none.
func (r *Runner) Prepared() (*protocol.Lock, *protocol.Proposal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.machine.Prepared()
}

func (r *Runner) judged(kind consensus.Kind, err error) error {
	switch {
	case err == nil:
		r.metrics.Received[kind]++
	case errors.Is(err, consensus.ErrPeer):
		r.metrics.Refused++
	default:
		r.metrics.Ignored++
	}
	return err
}

// Input gives the machine what this validator measured.
func (r *Runner) Input(in consensus.Input) error {
	return r.do(func() error { return r.machine.Input(in) })
}

// Held returns the encoded record of that name, for peers that fetch it.
func (r *Runner) Held(name consensus.Name) ([]byte, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m, ok := r.machine.Held(name.Hash)
	return m.Bytes, ok && m.Kind == name.Kind
}

func (r *Runner) do(f func() error) error {
	r.mu.Lock()
	r.machine.Tick(r.cfg.Clock.Now())
	err := f()
	r.mu.Unlock()
	r.notify()
	return err
}

func (r *Runner) notify() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *Runner) fault(err error) {
	if r.cfg.Fault != nil {
		r.cfg.Fault(err)
	}
}

// Run returns the machine's next output: the first one by the deadline at the latest, as the clock tells it. Call it again
// until the cycle is over: it returns the certificate that may come after a Fallback, and meanwhile sends what others need
// to get theirs. The error is ctx's. One Run at a time.
func (r *Runner) Run(ctx context.Context) (consensus.Output, error) {
	for {
		next := r.turn()
		proofs, out := r.take()
		for _, p := range proofs {
			if r.cfg.Proof != nil {
				r.cfg.Proof(p)
			}
		}
		if out != nil {
			return *out, nil
		}
		stop := r.cfg.Clock.At(next, r.notify)
		select {
		case <-ctx.Done():
			stop()
			return consensus.Output{}, ctx.Err()
		case <-r.wake:
			stop()
		}
	}
}

// take returns the proofs and the first output that wait for Run.
func (r *Runner) take() (proofs []protocol.EquivocationProof, out *consensus.Output) {
	r.mu.Lock()
	defer r.mu.Unlock()
	proofs, r.proofs = r.proofs, nil
	if len(r.outputs) > 0 {
		out, r.outputs = &r.outputs[0], r.outputs[1:]
	}
	return proofs, out
}

// turn does everything that can be done now and returns when there is more.
func (r *Runner) turn() (next int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.cfg.Clock.Now()
	r.machine.Tick(now)
	if deadline := r.machine.Deadline(); r.writing && !r.muted && now >= deadline {
		switch {
		case r.began < deadline:
			r.mute(fmt.Errorf("%w: it did not answer by the deadline", ErrLog))
		case now >= r.began+r.patience():
			r.mute(fmt.Errorf("%w: it did not answer for %d ms", ErrLog, now-r.began))
		}
	}
	for !r.writing || r.muted {
		ready := r.machine.Ready()
		if ready.Empty() {
			break
		}
		r.fetch(ready.Need)
		r.proofs = append(r.proofs, ready.Proofs...)
		if len(ready.Persist) > 0 && !r.muted && r.cfg.Log != nil {
			r.write(ready)
			break
		}
		r.finish(ready)
	}
	return r.machine.Next()
}

// patience is how long a write that began at the deadline or later may take, in milliseconds: as long as the agreement.
func (r *Runner) patience() int64 { return r.machine.Deadline() - r.cfg.Machine.Start }

// write makes a batch durable, beside the loop: a disk that hangs must not hold up the output.
func (r *Runner) write(ready consensus.Ready) {
	r.writing, r.ready, r.began = true, ready, r.cfg.Clock.Now()
	if out := ready.Output; out != nil && out.Outcome == consensus.Fallback {
		// What is written is the null that says so to others. The output rests on nothing that is to be durable.
		r.fell = true
		r.outputs = append(r.outputs, *out)
	}
	r.wg.Go(func() {
		err := r.cfg.Log.Append(ready.Persist)
		r.mu.Lock()
		defer r.notify()
		defer r.mu.Unlock()
		r.writing = false
		switch {
		case r.muted: // too late
		case err != nil:
			r.mute(fmt.Errorf("%w: %w", ErrLog, err))
		default:
			r.finish(r.ready)
		}
	})
}

// mute silences the machine for good.
func (r *Runner) mute(why error) {
	r.muted = true
	r.machine.Mute()
	r.wg.Go(func() { r.fault(why) })
}

// finish does the rest of a Ready whose records are durable.
func (r *Runner) finish(ready consensus.Ready) {
	for _, m := range ready.Send {
		select {
		case r.sends <- m.Encode():
		default: // the machine repeats it
		}
	}
	r.note(ready)
	for _, reply := range ready.Reply {
		r.cfg.Network.Tell(reply.To, reply.Message.Encode())
	}
	if out := ready.Output; out != nil && !(r.fell && out.Outcome == consensus.Fallback) {
		r.outputs = append(r.outputs, *out)
	}
	r.machine.Advance()
}

func (r *Runner) sendAll() {
	for {
		select {
		case <-r.ctx.Done():
			return
		case b := <-r.sends:
			if err := r.cfg.Network.Send(r.ctx, b); err != nil && r.ctx.Err() == nil {
				r.fault(fmt.Errorf("runner: send: %w", err))
			}
		}
	}
}

// fetch looks for records beside the loop. What fails is named again by the machine.
func (r *Runner) fetch(names []consensus.Name) {
	for _, n := range names {
		if r.fetching[n] || len(r.fetching) >= fetchQueue || r.ctx.Err() != nil {
			continue
		}
		r.fetching[n] = true
		r.wg.Go(func() {
			b, err := r.cfg.Network.Fetch(r.ctx, n)
			r.mu.Lock()
			delete(r.fetching, n)
			r.mu.Unlock()
			if err == nil {
				err = r.Receive(consensus.Message{Kind: n.Kind, Bytes: b}.Encode())
			}
			if err != nil && r.ctx.Err() == nil && !errors.Is(err, consensus.ErrIgnore) {
				r.fault(fmt.Errorf("runner: fetch %s %s: %w", n.Kind, n.Hash, err))
			}
		})
	}
}
