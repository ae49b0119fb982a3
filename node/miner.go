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
	"github.com/blockzero-net/bzd/training/optim"
)

// mine trains, seals, publishes and commits, all before the commitment deadline. Whatever goes wrong costs this miner
// its slot in this cycle and nobody anything else.
func (n *Node) mine(ctx context.Context, t timeline, p *local.Phi) error {
	n.event(Event{Kind: Phase, Cycle: t.cycle, Text: "train"})
	o := local.DefaultTrain(n.cfg.Group, n.cfg.Seed, t.cycle)
	if n.moments == nil { // later cycles have them in memory
		moments, err := n.readMoments()
		if err != nil {
			n.trouble(t.cycle, err)
		}
		n.moments = moments
	}
	o.Moments = n.moments
	train, cancel := context.WithDeadline(ctx, t.at(t.Commit))
	defer cancel()
	d, after, err := local.Train(train, n.local, p, o, func(x training.Progress) {
		n.event(Event{Kind: Training, Cycle: t.cycle, Done: x.Step, Total: x.Steps})
	})
	if err != nil {
		return fmt.Errorf("train: %w", err)
	}
	n.moments = &after
	if err := training.WriteState(n.momentsFile(), training.State{Values: make([]float32, len(after.M)), Moments: after}); err != nil {
		n.trouble(t.cycle, err)
	}
	if n.cfg.Behaviour.Worse {
		if d, err = opposite(p, d); err != nil {
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

// seal encrypts the delta under a fresh seed that the beacon round T_k opens.
func (n *Node) seal(t timeline, p *local.Phi, d *delta.Delta) (*content.Sealed, error) {
	payload, err := d.Payload()
	if err != nil {
		return nil, err
	}
	if n.cfg.Behaviour.Corrupt {
		payload[0], payload[1] = 0xc0, 0x7f // a NaN
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
func opposite(p *local.Phi, d *delta.Delta) (*delta.Delta, error) {
	want, err := p.Expect(d.Header().Group)
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

func (n *Node) momentsFile() string { return filepath.Join(n.cfg.Dir, "moments") }

// readMoments returns the optimizer's moments of the last cycle, nil if there are none.
func (n *Node) readMoments() (*optim.State, error) {
	s, err := training.ReadState(n.momentsFile())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil // a fresh start
	case err != nil:
		return nil, err
	}
	return &s.Moments, nil
}

// salt is 32 random bytes.
func salt() (h protocol.Hash, err error) {
	var b [32]byte
	_, err = rand.Read(b[:])
	return sha256.Sum256(b[:]), err
}
