package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ipfs/go-cid"

	"github.com/blockzero-net/bzd/content/blockstore"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// Kinds of owners that a node pins blocks for.
const (
	pinNetwork     = "network"     // the genesis and the datasets of this node's roles
	pinCheckpoint  = "checkpoint"  // by its CID
	pinCertificate = "certificate" // of a merge, by its cycle
	pinCycle       = "cycle"       // what a validator has custody of: cycle/miner
	pinSubmission  = "submission"  // a miner's own, by its cycle
)

const (
	// keepCheckpoints is how many checkpoints before the current one and its predecessor a node that computes keeps, for
	// peers that are behind. They go first when space is short. A node that only serves keeps all while there is space.
	keepCheckpoints = 4
	// collectEvery is after how many cycles what nobody needs is deleted.
	collectEvery = 8
)

func owner(kind, format string, args ...any) blockstore.Owner {
	return blockstore.Owner{Kind: kind, Name: fmt.Sprintf(format, args...)}
}

// pinGenesis keeps what the node works with for as long as it is of this network.
func (n *Node) pinGenesis(ctx context.Context) error {
	return n.store.Pin(ctx, blockstore.Pin{
		Owner: owner(pinNetwork, "%s", n.cfg.Network), Blocks: []cid.Cid{n.cfg.Network.Cid()}, Roots: n.texts()})
}

// texts are the datasets that this node's roles need.
func (n *Node) texts() (records []cid.Cid) {
	for _, d := range n.genesis.Domains {
		if n.needs(d.Name) {
			records = append(records, d.Dataset.Cid())
		}
	}
	return records
}

// pinCheckpoint keeps a checkpoint that is about to be fetched, or was made here.
func (n *Node) pinCheckpoint(ctx context.Context, l protocol.Link) error {
	return n.store.Pin(ctx, blockstore.Pin{Owner: owner(pinCheckpoint, "%s", l), Roots: []cid.Cid{l.Cid()}})
}

// tidy ends the claims of cycles that are over: custody and submissions before the last cycle, checkpoints that nobody is
// expected to ask for. Every few cycles it deletes what no claim is left for, behind the work of the next cycle.
func (n *Node) tidy(ctx context.Context, cycle uint64) error {
	pins, err := n.store.Pins()
	if err != nil {
		return err
	}
	var over []blockstore.Owner
	var kept []string // checkpoints
	older := 0
	for i := len(pins) - 1; i >= 0; i-- { // the youngest first
		p := pins[i]
		switch p.Owner.Kind {
		case pinCycle, pinSubmission:
			var of uint64
			if _, err := fmt.Sscanf(p.Owner.Name, "%d", &of); err != nil || of < cycle {
				over = append(over, p.Owner)
			}
		case pinCheckpoint:
			name := p.Owner.Name
			if n.phi != nil && (name == n.phi.Link.String() || n.phi.State.Previous != nil && name == n.phi.State.Previous.String()) {
				kept = append(kept, name)
				continue
			}
			if older++; older > keepCheckpoints && !n.content.serves {
				over = append(over, p.Owner)
				continue
			}
			kept = append(kept, name)
			if !p.Spare {
				p.Spare = true
				if err := n.store.Pin(ctx, p); err != nil {
					return err
				}
			}
		}
	}
	if err := n.store.Unpin(ctx, over...); err != nil {
		return err
	}
	if cycle%collectEvery != collectEvery-1 {
		return nil
	}
	n.background.Go(func() {
		if _, err := n.store.Collect(ctx, nil); err != nil && ctx.Err() == nil && !errors.Is(err, blockstore.ErrClosed) {
			n.trouble(cycle, fmt.Errorf("delete what is no longer needed: %w", err))
		}
	})
	return n.content.removeOthers(kept)
}

// removeOthers removes the directories of checkpoints but those named.
func (f *files) removeOthers(kept []string) error {
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return err
	}
	names := map[string]bool{}
	for _, k := range kept {
		names[k] = true
	}
	for _, e := range entries {
		if names[e.Name()] || !e.IsDir() || strings.Contains(e.Name(), ".partial-") {
			continue
		}
		if _, err := cid.Decode(e.Name()); err != nil {
			continue // not ours
		}
		if err := os.RemoveAll(filepath.Join(f.dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
