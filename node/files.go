package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/blockzero-net/bzd/content/checkpoint"
	"github.com/blockzero-net/bzd/content/exchange"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training/data"
)

// files is the node's content: a block store, the exchange with peers, and checkpoints as directories.
type files struct {
	*exchange.Exchange
	dir    string // of the checkpoints
	report func(Event)
	now    func() time.Time
	serves bool // checkpoints are only served: blocks do, no directory is written

	mu   sync.Mutex
	base exchange.Base // the checkpoint that was verified last
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

// Blocks brings blocks here, from one peer before others.
func (f *files) Blocks(ctx context.Context, from peer.ID, list []cid.Cid) error {
	p, err := f.FetchFrom(ctx, from, list, exchange.Bounds{MaxBytes: maxCheckpoint}, f.progress("commitment", len(list)))
	return f.fetched("commitment", p, err)
}

// checkpointDir is where a checkpoint lies as a directory.
func (f *files) checkpointDir(l protocol.Link) string { return filepath.Join(f.dir, l.String()) }

// checkpoint makes sure that a checkpoint is here, as blocks and, on a node that computes with it, as a directory. What
// it has in common with the one before is neither fetched nor written again.
func (f *files) checkpoint(ctx context.Context, l protocol.Link) (string, error) {
	dir := f.checkpointDir(l)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	p, err := f.FetchDAG(ctx, l.Cid(), exchange.Bounds{MaxBytes: maxCheckpoint}, f.progress("checkpoint", 0))
	if f.fetched("checkpoint", p, err) != nil {
		return "", fmt.Errorf("fetch checkpoint %s: %w", l, err)
	}
	if f.serves {
		return "", nil
	}
	f.mu.Lock()
	base := f.base
	f.mu.Unlock()
	if _, err := exchange.MaterializeFrom(ctx, f, l.Cid(), dir, maxCheckpoint, base); err != nil {
		return "", fmt.Errorf("checkpoint %s: %w", l, err)
	}
	parts, err := f.parts(ctx, l)
	if err != nil {
		return "", err
	}
	f.verified(l, parts)
	return dir, nil
}

// parts are the files of a checkpoint whose blocks are here.
func (f *files) parts(ctx context.Context, l protocol.Link) (checkpoint.Parts, error) {
	root, err := f.Get(ctx, l.Cid())
	if err != nil {
		return nil, err
	}
	return checkpoint.PartsOf(root)
}

// verified says that a directory holds what its name says, so that later ones may link to its files.
func (f *files) verified(l protocol.Link, parts checkpoint.Parts) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.base = exchange.Base{Dir: f.checkpointDir(l), Parts: parts}
}

// isVerified reports whether that was said of the directory of l.
func (f *files) isVerified(l protocol.Link) (checkpoint.Parts, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.base.Parts, f.base.Dir == f.checkpointDir(l)
}

// keep moves a directory made here among the checkpoints.
func (f *files) keep(dir string, l protocol.Link) error {
	to := f.checkpointDir(l)
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	return os.Rename(dir, to)
}

// datasets fetches the domains that this node's roles need: a miner its own and the canary, a validator all.
func (n *Node) datasets(ctx context.Context) ([]*data.Dataset, error) {
	var sets []*data.Dataset
	for _, d := range n.genesis.Domains {
		if !n.needs(d.Name) {
			continue
		}
		what := "text of " + d.Name
		p, err := n.content.FetchDataset(ctx, d.Dataset.Cid(), exchange.Bounds{MaxBytes: maxDataset}, n.content.progress(what, 0))
		if n.content.fetched(what, p, err) != nil {
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

// made remembers a checkpoint that this node computed, until it moves to one.
func (n *Node) made(p *local.Phi) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.candidates = append(n.candidates, p)
}

// load opens a checkpoint that is here. What is known already is not read: a checkpoint made here, files that the
// current one has too.
func (n *Node) load(l protocol.Link, dir string) (*local.Phi, error) {
	n.mu.Lock()
	made := n.candidates
	n.candidates = nil
	n.mu.Unlock()
	for _, p := range made {
		if p.Link == l {
			n.content.verified(l, p.Parts)
			return p, nil
		}
	}
	if parts, ok := n.content.isVerified(l); ok {
		if n.phi == nil {
			return local.LoadVerified(n.backend, dir, l, parts)
		}
		return n.phi.LoadNext(dir, l, parts)
	}
	p, err := local.LoadPhi(n.backend, dir)
	if err != nil {
		return nil, err
	}
	if p.Link != l {
		return nil, fmt.Errorf("%s holds %s; remove it, it will be fetched again", dir, p.Link)
	}
	n.content.verified(l, p.Parts)
	return p, nil
}
