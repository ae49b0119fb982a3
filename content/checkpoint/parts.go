package checkpoint

import (
	"fmt"
	"maps"
	"slices"

	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"
)

// Part is one file of a checkpoint as the root block links it: the CID of its DAG and the bytes of all blocks of that.
type Part struct {
	CID  cid.Cid
	Size uint64
}

// Parts are the files of a checkpoint by name. Two checkpoints have the same bytes where their parts are equal, which
// is how a step from one to the next costs no more than what changed.
type Parts map[string]Part

// PartsOf reads the parts from a checkpoint's root block. It judges neither names nor CIDs: a stranger may have written
// the block.
func PartsOf(root blocks.Block) (Parts, error) {
	node, err := merkledag.DecodeProtobuf(root.RawData())
	if err != nil {
		return nil, fmt.Errorf("root %s: %w", root.Cid(), err)
	}
	p := make(Parts, len(node.Links()))
	for _, l := range node.Links() {
		if _, twice := p[l.Name]; twice {
			return nil, fmt.Errorf("root %s: %.100q is there twice", root.Cid(), l.Name)
		}
		p[l.Name] = Part{l.Cid, l.Size}
	}
	return p, nil
}

// Same are the parts that p and q have in common.
func (p Parts) Same(q Parts) Parts {
	same := make(Parts)
	for name, x := range p {
		if y, ok := q[name]; ok && x == y {
			same[name] = x
		}
	}
	return same
}

// root makes the root block: a plain directory node whatever its size, see MaxFiles.
func (p Parts) root() (blocks.Block, error) {
	node := unixfs.EmptyDirNode()
	if err := node.SetCidBuilder(cidBuilder); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(p)) {
		if err := node.AddRawLink(name, &format.Link{Size: p[name].Size, Cid: p[name].CID}); err != nil {
			return nil, err
		}
	}
	return node, nil
}
