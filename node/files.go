package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/ipfs/go-cid"

	"github.com/blockzero-net/bzd/content/exchange"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training/data"
)

// files is the node's content: a block store, the exchange with peers, and checkpoints as directories.
type files struct {
	*exchange.Exchange
	dir string // of the checkpoints
}

// Bounds of what a node fetches for itself. A network may be as large as its genesis says; these keep one lie small.
const (
	maxCheckpoint = 64 << 30
	maxDataset    = 64 << 30
)

// Block returns one block's bytes, from a peer if it is not here.
func (f *files) Block(ctx context.Context, c cid.Cid) ([]byte, error) {
	b, err := f.Get(ctx, c)
	if err != nil {
		return nil, err
	}
	return b.RawData(), nil
}

// Blocks brings blocks here.
func (f *files) Blocks(ctx context.Context, list []cid.Cid) error {
	_, err := f.Fetch(ctx, list, exchange.Bounds{MaxBytes: maxCheckpoint}, nil)
	return err
}

// checkpointDir is where a checkpoint lies as a directory.
func (f *files) checkpointDir(l protocol.Link) string { return filepath.Join(f.dir, l.String()) }

// checkpoint makes sure that a checkpoint is here, as blocks and as a directory.
func (f *files) checkpoint(ctx context.Context, l protocol.Link) (string, error) {
	dir := f.checkpointDir(l)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if _, err := f.FetchDAG(ctx, l.Cid(), exchange.Bounds{MaxBytes: maxCheckpoint}, nil); err != nil {
		return "", fmt.Errorf("fetch checkpoint %s: %w", l, err)
	}
	if _, err := exchange.Materialize(ctx, f, l.Cid(), dir, maxCheckpoint); err != nil {
		return "", fmt.Errorf("checkpoint %s: %w", l, err)
	}
	return dir, nil
}

// keepCheckpoint moves a directory made here among the checkpoints and publishes its blocks.
func (n *Node) keepCheckpoint(dir string, l protocol.Link) error {
	to := n.content.checkpointDir(l)
	if _, err := os.Stat(to); err != nil {
		if err := os.Rename(dir, to); err != nil {
			return err
		}
	}
	_, _, err := exchange.Publish(context.Background(), n.content, to)
	return err
}

// datasets fetches the domains that this node's roles need: a miner its own and the canary, a validator all.
func (n *Node) datasets(ctx context.Context) ([]*data.Dataset, error) {
	var sets []*data.Dataset
	for _, d := range n.genesis.Domains {
		if !n.needs(d.Name) {
			continue
		}
		if _, err := n.content.FetchDataset(ctx, d.Dataset.Cid(), exchange.Bounds{MaxBytes: maxDataset}, nil); err != nil {
			return nil, fmt.Errorf("dataset of %s: %w", d.Name, err)
		}
		record, err := n.content.Block(ctx, d.Dataset.Cid())
		if err != nil {
			return nil, err
		}
		set, err := data.Assemble(record, func(c cid.Cid) ([]byte, error) { return n.content.Block(ctx, c) })
		if err != nil {
			return nil, fmt.Errorf("dataset of %s: %w", d.Name, err)
		}
		sets = append(sets, set)
	}
	return sets, nil
}

// needs reports whether this node reads a domain.
func (n *Node) needs(domain string) bool {
	if n.cfg.Roles.Has(protocol.RoleValidator) {
		return true
	}
	if !n.cfg.Roles.Has(protocol.RoleMiner) {
		return false
	}
	if domain == n.genesis.Canary {
		return true
	}
	for _, g := range n.genesis.Groups {
		if g.Name == n.cfg.Group && g.Domain == domain {
			return true
		}
	}
	return false
}

// load opens a checkpoint that is here.
func (n *Node) load(dir string) (*local.Phi, error) { return local.LoadPhi(n.backend, dir) }
