package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/boxo/ipld/merkledag"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// ErrTooManyBlocks is returned for a root below which there are more blocks than a catalogue takes.
var ErrTooManyBlocks = errors.New("gateway: too many blocks below one root")

// maxBlocks is how many different blocks one root may have: 4 TiB in leaves of 1 MiB.
const maxBlocks = 1 << 22

// Catalogue is the set of blocks that a gateway shows of a store that also holds other things. It is safe for concurrent
// use.
type Catalogue struct {
	store blockstore.Blockstore

	mu     sync.RWMutex
	roots  map[cid.Cid][]string // the multihashes of the blocks below each
	blocks map[string]int       // of how many roots a block is part
}

// NewCatalogue returns an empty catalogue of a store.
func NewCatalogue(store blockstore.Blockstore) *Catalogue {
	return &Catalogue{store: store, roots: map[cid.Cid][]string{}, blocks: map[string]int{}}
}

// Add shows everything below a root: its files if it is dag-pb, itself otherwise. All its dag-pb blocks must be in the
// store. A root that is shown already is no error.
func (c *Catalogue) Add(ctx context.Context, root cid.Cid) error {
	c.mu.RLock()
	_, there := c.roots[root]
	c.mu.RUnlock()
	if there {
		return nil
	}
	seen := map[string]bool{}
	var list []string
	todo := []cid.Cid{root}
	for len(todo) > 0 {
		x := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		key := string(x.Hash())
		if seen[key] {
			continue
		}
		if len(list) == maxBlocks {
			return fmt.Errorf("%w: %s", ErrTooManyBlocks, root)
		}
		seen[key] = true
		list = append(list, key)
		if x.Prefix().Codec != protocol.DagPB {
			continue
		}
		b, err := c.store.Get(ctx, x)
		if err != nil {
			return fmt.Errorf("gateway: %s: %w", root, err)
		}
		node, err := merkledag.DecodeProtobuf(b.RawData())
		if err != nil {
			return fmt.Errorf("gateway: %s: block %s: %w", root, x, err)
		}
		for _, l := range node.Links() {
			todo = append(todo, l.Cid)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, there := c.roots[root]; there {
		return nil
	}
	c.roots[root] = list
	for _, key := range list {
		c.blocks[key]++
	}
	return nil
}

// Remove stops showing what is below that root only.
func (c *Catalogue) Remove(root cid.Cid) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range c.roots[root] {
		if c.blocks[key]--; c.blocks[key] == 0 {
			delete(c.blocks, key)
		}
	}
	delete(c.roots, root)
}

// Has reports whether a block is shown.
func (c *Catalogue) Has(x cid.Cid) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.blocks[string(x.Hash())] > 0
}

// shown is the store as the catalogue shows it.
type shown struct {
	blockstore.Blockstore
	only *Catalogue
}

func (s shown) Has(ctx context.Context, x cid.Cid) (bool, error) {
	if !s.only.Has(x) {
		return false, nil
	}
	return s.Blockstore.Has(ctx, x)
}

func (s shown) Get(ctx context.Context, x cid.Cid) (blocks.Block, error) {
	if !s.only.Has(x) {
		return nil, format.ErrNotFound{Cid: x}
	}
	return s.Blockstore.Get(ctx, x)
}

func (s shown) GetSize(ctx context.Context, x cid.Cid) (int, error) {
	if !s.only.Has(x) {
		return -1, format.ErrNotFound{Cid: x}
	}
	return s.Blockstore.GetSize(ctx, x)
}

// View implements boxo's Viewer, by which a store shows a block without copying it.
func (s shown) View(ctx context.Context, x cid.Cid, fn func([]byte) error) error {
	b, err := s.Get(ctx, x)
	if err != nil {
		return err
	}
	return fn(b.RawData())
}
