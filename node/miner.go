package node

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/blockzero-net/bzd/consensus/beacon"
	"github.com/blockzero-net/bzd/content"
	"github.com/blockzero-net/bzd/content/blockstore"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/delta"
)

// mine trains, seals, publishes and commits, all before the commitment deadline. Whatever goes wrong costs this miner
// its slot in this cycle and nobody anything else.
func (n *Node) mine(ctx context.Context, t timeline, p *local.Phi) error {
	n.event(Event{Kind: Phase, Cycle: t.cycle, Text: "train"})
	train, cancel := context.WithDeadline(ctx, t.at(t.Commit))
	defer cancel()
	d, err := n.train(train, t.cycle, p)
	if err != nil {
		return err
	}
	if n.cfg.Behaviour.Worse {
		if d, err = n.opposite(p, d); err != nil {
			return err
		}
	}
	sealed, err := n.seal(t, p, d)
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	if !n.cfg.Behaviour.Withhold {
		if err := sealed.Publish(ctx, n.content); err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		if err := n.store.Pin(ctx, blockstore.Pin{Owner: owner(pinSubmission, "%d", t.cycle),
			Blocks: append(content.Segments(sealed.Manifest), sealed.Link.Cid())}); err != nil {
			return fmt.Errorf("publish: %w", err)
		}
	}
	c := sealed.Commitment()
	if err := c.Sign(n.cfg.Key); err != nil {
		return err
	}
	raw, err := protocol.Encode(c)
	if err != nil {
		return err
	}
	if n.cfg.Behaviour.Late {
		if err := n.until(ctx, t.at(t.Commit).Add(50*time.Millisecond)); err != nil {
			return err
		}
	}
	n.event(Event{Kind: Committed, Cycle: t.cycle, Bytes: int64(c.Size)})
	return n.commits.Publish(ctx, raw)
}

// train makes the cycle's delta. A run that ended with the process goes on from what it saved.
func (n *Node) train(ctx context.Context, cycle uint64, p *local.Phi) (*delta.Delta, error) {
	o := n.local.DefaultTrain(n.cfg.Group, n.cfg.Seed, cycle)
	job, made := madeFor(cycle, p), false
	if n.memory == nil { // later cycles have it there
		n.memory, made = n.recall(cycle, p, job)
	}
	if f := n.memory.Feedback; made || f != nil && f.Cycle == cycle && f.Base == p.Link {
		return nil, errors.New("a delta for this cycle was made before a restart; a second one would be an equivocation")
	}
	o.Memory = *n.memory
	o.StatePath, o.SaveDue = n.trainFile(), n.saves()
	run := func() (*delta.Delta, local.Memory, error) {
		return local.Train(ctx, n.local, p, o, func(x training.Progress) {
			n.event(Event{Kind: Training, Cycle: cycle, Done: x.Step, Total: x.Steps})
		})
	}
	d, after, err := run()
	if errors.Is(err, training.ErrState) { // of an earlier cycle that had no time to end, or damaged
		if err = local.RemoveState(o.StatePath); err == nil {
			d, after, err = run()
		}
	}
	if errors.Is(err, delta.ErrRange) {
		n.memory.Feedback = nil // it may be the reason
	}
	if err != nil {
		return nil, fmt.Errorf("train: %w", err)
	}
	if err := n.remember(after, job); err != nil { // before anybody sees the delta: what was sent must not be forgotten
		n.trouble(cycle, err)
	}
	if err := local.RemoveState(o.StatePath); err != nil {
		n.trouble(cycle, err)
	}
	return d, nil
}

// seal encrypts the delta under a fresh seed that the beacon round T_k opens.
func (n *Node) seal(t timeline, p *local.Phi, d *delta.Delta) (*content.Sealed, error) {
	payload := d.Payload()
	if n.cfg.Behaviour.Corrupt {
		payload[0], payload[1] = 0xc0, 0x7f // a NaN in either codec
	}
	var seed content.Seed
	if _, err := rand.Read(seed[:]); err != nil {
		return nil, err
	}
	h := d.Header()
	return content.Build(content.Payload{
		Slot:  content.Slot{Version: protocol.Version, Network: n.cfg.Network, Cycle: t.cycle, Base: p.Link, Group: n.cfg.Group, Miner: n.cfg.ID},
		Codec: h.Codec, Tensors: h.Tensors, Bytes: payload, Round: t.openRound(),
	}, seed, func(round uint64, seed content.Seed) ([]byte, error) {
		return beacon.Lock(n.on.Public, round, seed)
	})
}

// opposite negates a delta.
func (n *Node) opposite(p *local.Phi, d *delta.Delta) (*delta.Delta, error) {
	want, err := n.local.Expect(p, d.Header().Group)
	if err != nil {
		return nil, err
	}
	units := make([][]int32, len(want.Tensors))
	for i := range units {
		for _, u := range d.Units(i) {
			units[i] = append(units[i], -u)
		}
	}
	return delta.New(want, units)
}

// momentsFile is of this miner's group: the moments of another one's values say nothing of these.
func (n *Node) momentsFile() string {
	group := sha256.Sum256([]byte(n.cfg.Group))
	return filepath.Join(n.cfg.Dir, fmt.Sprintf("moments-%x", group[:4]))
}
func (n *Node) feedbackFile() string { return filepath.Join(n.cfg.Dir, "feedback") }
func (n *Node) trainFile() string    { return filepath.Join(n.cfg.Dir, "train.state") }

// savePeriod is how much of its training a miner that is killed loses at most.
const savePeriod = 30 * time.Second

// saves says when to save training.
func (n *Node) saves() func(training.Progress) bool {
	last := n.cfg.Now()
	return func(training.Progress) bool {
		now := n.cfg.Now()
		if now.Sub(last) < savePeriod {
			return false
		}
		last = now
		return true
	}
}

// madeFor marks the moments that a cycle's training left.
func madeFor(cycle uint64, p *local.Phi) [32]byte {
	return sha256.Sum256(fmt.Appendf(nil, "bzd/made\x00%d\x00%s", cycle, p.Link))
}

// remember keeps what a miner needs in the next cycle, in memory and on disk, and what made it.
func (n *Node) remember(m local.Memory, made [32]byte) error {
	n.memory = &m
	var errs []error
	if m.Feedback != nil {
		errs = append(errs, m.Feedback.WriteFile(n.feedbackFile()))
	}
	errs = append(errs, training.WriteState(n.momentsFile(), training.State{Job: made, Values: make([]float32, m.Moments.Len()), Moments: *m.Moments}))
	return errors.Join(errs...)
}

// recall reads what remember wrote, and says whether job made it. What is missing or damaged is started afresh.
func (n *Node) recall(cycle uint64, p *local.Phi, job [32]byte) (m *local.Memory, made bool) {
	m = &local.Memory{}
	s, err := training.ReadState(n.momentsFile())
	if err == nil {
		m.Moments, made = &s.Moments, s.Job == job
	} else if !errors.Is(err, fs.ErrNotExist) {
		n.trouble(cycle, err)
	}
	want, err := n.local.Expect(p, n.cfg.Group)
	if err == nil {
		m.Feedback, err = delta.ReadFeedback(n.feedbackFile(), want.Group, want.Tensors)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.trouble(cycle, err)
	}
	return m, made
}

// salt is 32 random bytes.
func salt() (h protocol.Hash, err error) {
	var b [32]byte
	_, err = rand.Read(b[:])
	return sha256.Sum256(b[:]), err
}
