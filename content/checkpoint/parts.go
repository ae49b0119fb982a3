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

// Leaf is a leaf block of a file.
type Leaf struct {
	CID  cid.Cid
	Size uint64
}

// FilePart returns the part of a file that is cut into the given leaves, all but the last of which have [ChunkSize]
// bytes, as [Blocks] would compute it from the file. It knows files of one level of inner nodes, which have at most
// [FileLinks] leaves; of others it returns false.
func FilePart(leaves []Leaf) (Part, bool) {
	switch n := len(leaves); {
	case n == 0 || n > FileLinks:
		return Part{}, false
	case n == 1:
		return Part{leaves[0].CID, leaves[0].Size}, true
	}
	file := unixfs.NewFSNode(unixfs.TFile)
	node := merkledag.NodeWithData(nil)
	if node.SetCidBuilder(cidBuilder) != nil {
		return Part{}, false
	}
	for _, l := range leaves {
		file.AddBlockSize(l.Size)
		if node.AddRawLink("", &format.Link{Size: l.Size, Cid: l.CID}) != nil {
			return Part{}, false
		}
	}
	data, err := file.GetBytes()
	if err != nil {
		return Part{}, false
	}
	node.SetData(data)
	size, err := node.Size()
	return Part{node.Cid(), size}, err == nil
}
