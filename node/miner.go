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
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/delta"
)

// mine trains, seals, publishes and commits, all before the commitment deadline. Whatever goes wrong costs this miner
// its slot in this cycle and nobody anything else.
func (n *Node) mine(ctx context.Context, t timeline, p *local.Phi) error {
	n.event(Event{Kind: Phase, Cycle: t.cycle, Text: "train"})
	o := n.local.DefaultTrain(n.cfg.Group, n.cfg.Seed, t.cycle)
	if n.memory == nil { // later cycles have it there
		n.memory = n.recall(t.cycle, p)
	}
	if f := n.memory.Feedback; f != nil && f.Cycle == t.cycle && f.Base == p.Link {
		return errors.New("a delta for this cycle was made before a restart; a second one would be an equivocation")
	}
	o.Memory = *n.memory
	train, cancel := context.WithDeadline(ctx, t.at(t.Commit))
	defer cancel()
	d, after, err := local.Train(train, n.local, p, o, func(x training.Progress) {
		n.event(Event{Kind: Training, Cycle: t.cycle, Done: x.Step, Total: x.Steps})
	})
	if errors.Is(err, delta.ErrRange) {
		n.memory.Feedback = nil // it may be the reason
	}
	if err != nil {
		return fmt.Errorf("train: %w", err)
	}
	if err := n.remember(after); err != nil { // before anybody sees the delta: what was sent must not be forgotten
		n.trouble(t.cycle, err)
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

func (n *Node) momentsFile() string  { return filepath.Join(n.cfg.Dir, "moments") }
func (n *Node) feedbackFile() string { return filepath.Join(n.cfg.Dir, "feedback") }

// momentsOf marks the moments of this miner's group.
func (n *Node) momentsOf() [32]byte {
	return sha256.Sum256(fmt.Appendf(nil, "bzd/moments\x00%s\x00%s", n.cfg.Network, n.cfg.Group))
}

// remember keeps what a miner needs in the next cycle, in memory and on disk.
func (n *Node) remember(m local.Memory) error {
	n.memory = &m
	var errs []error
	if m.Feedback != nil {
		errs = append(errs, m.Feedback.WriteFile(n.feedbackFile()))
	}
	errs = append(errs, training.WriteState(n.momentsFile(), training.State{Job: n.momentsOf(), Values: make([]float32, len(m.Moments.M)), Moments: *m.Moments}))
	return errors.Join(errs...)
}

// recall reads what remember wrote. What is missing or damaged is started afresh.
func (n *Node) recall(cycle uint64, p *local.Phi) *local.Memory {
	m := &local.Memory{}
	s, err := training.ReadState(n.momentsFile())
	if err == nil && s.Job == n.momentsOf() {
		m.Moments = &s.Moments
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.trouble(cycle, err)
	}
	want, err := n.local.Expect(p, n.cfg.Group)
	if err == nil {
		m.Feedback, err = delta.ReadFeedback(n.feedbackFile(), want.Group, want.Tensors)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.trouble(cycle, err)
	}
	return m
}

// salt is 32 random bytes.
func salt() (h protocol.Hash, err error) {
	var b [32]byte
	_, err = rand.Read(b[:])
	return sha256.Sum256(b[:]), err
}
