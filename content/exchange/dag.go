package exchange

import (
	"context"
	"fmt"

	"github.com/fxamacker/cbor/v2"
	"github.com/ipfs/boxo/ipld/merkledag"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// pieceSize is about how long a piece of a dataset is.
const pieceSize = 16 << 10

// FetchDAG brings a UnixFS DAG into the store: a checkpoint by its root. Blocks that are there do not move, and what is
// below them is looked at all the same. It goes level by level, so an interrupted fetch goes on where it was. What the
// directory holds is not judged here; [Materialize] does that.
func (e *Exchange) FetchDAG(ctx context.Context, root cid.Cid, bounds Bounds, report func(Progress)) (Progress, error) {
	if err := checkLink(root, protocol.DagPB, protocol.Raw); err != nil {
		return Progress{}, err
	}
	w, err := e.walk(ctx, bounds, report)
	if err != nil {
		return Progress{}, err
	}
	defer w.end()
	w.oneSource(root)
	level := []cid.Cid{root}
	for depth := 0; len(level) > 0; depth++ {
		if depth > w.bounds.MaxDepth {
			return w.done, fmt.Errorf("%w: deeper than %d", ErrBounds, w.bounds.MaxDepth)
		}
		if level, err = w.fresh(level); err != nil {
			return w.done, err
		}
		if err := w.bring(level, MaxBlock); err != nil {
			return w.done, err
		}
		var below []cid.Cid
		for _, c := range level {
			if c.Prefix().Codec != protocol.DagPB {
				continue
			}
			links, err := w.links(c)
			if err != nil {
				return w.done, err
			}
			below = append(below, links...)
			// Before the next level is asked for, and before many hostile nodes of many links fill the memory.
			if len(below) > 2*w.bounds.MaxBlocks {
				return w.done, fmt.Errorf("%w: more than %d links", ErrBounds, 2*w.bounds.MaxBlocks)
			}
		}
		if depth == 0 {
			w.foresee(root)
		}
		level = below
	}
	return w.done, w.settle()
}

// links returns what a dag-pb node links to.
func (w *walk) links(c cid.Cid) ([]cid.Cid, error) {
	b, err := w.read(c)
	if err != nil {
		return nil, err
	}
	return nodeLinks(b)
}

// nodeLinks returns what a dag-pb block links to.
func nodeLinks(b blocks.Block) ([]cid.Cid, error) {
	node, err := merkledag.DecodeProtobuf(b.RawData())
	if err != nil {
		return nil, fmt.Errorf("%w: node %s: %w", ErrContent, b.Cid(), err)
	}
	links := make([]cid.Cid, 0, len(node.Links()))
	for _, l := range node.Links() {
		if err := checkLink(l.Cid, protocol.DagPB, protocol.Raw); err != nil {
			return nil, fmt.Errorf("node %s: %w", b.Cid(), err)
		}
		links = append(links, l.Cid)
	}
	return links, nil
}

// Links returns what a block links to, whatever it is: a node of a UnixFS DAG, or a record, in which links may stand
// anywhere. It is what [blockstore.Links] asks for. A block that is not what its CID calls it, or links to what no
// network has, is [ErrContent].
func Links(b blocks.Block) ([]cid.Cid, error) {
	switch b.Cid().Prefix().Codec {
	case protocol.DagPB:
		return nodeLinks(b)
	case protocol.DagCBOR:
		return cborLinks(b.RawData(), protocol.Raw, protocol.DagPB, protocol.DagCBOR)
	}
	return nil, nil
}

// checkLink refuses CIDs that no content of the network has.
func checkLink(c cid.Cid, codecs ...uint64) error {
	if _, err := protocol.NewLink(c); err != nil {
		return fmt.Errorf("%w: %w", ErrContent, err)
	}
	for _, codec := range codecs {
		if c.Prefix().Codec == codec {
			return nil
		}
	}
	return fmt.Errorf("%w: %s has codec 0x%x, which does not belong there", ErrContent, c, c.Prefix().Codec)
}

// FetchDataset brings a dataset into the store: its record, a dag-cbor block, and the raw blocks that it links to, in any
// field. What the record says beyond that is the reader's to check.
func (e *Exchange) FetchDataset(ctx context.Context, record cid.Cid, bounds Bounds, report func(Progress)) (Progress, error) {
	if err := checkLink(record, protocol.DagCBOR); err != nil {
		return Progress{}, err
	}
	w, err := e.walk(ctx, bounds, report)
	if err != nil {
		return Progress{}, err
	}
	defer w.end()
	w.oneSource(record)
	top, err := w.fresh([]cid.Cid{record})
	if err != nil {
		return w.done, err
	}
	if err := w.bring(top, MaxBlock); err != nil {
		return w.done, err
	}
	b, err := w.read(record)
	if err != nil {
		return w.done, err
	}
	pieces, err := recordLinks(b.RawData())
	if err != nil {
		return w.done, fmt.Errorf("record %s: %w", record, err)
	}
	if pieces, err = w.fresh(pieces); err != nil {
		return w.done, err
	}
	if err := w.bring(pieces, pieceSize); err != nil {
		return w.done, err
	}
	return w.done, w.settle()
}

// recordLinks returns the raw links of a record. Others are refused: a dataset has one level.
func recordLinks(data []byte) ([]cid.Cid, error) { return cborLinks(data, protocol.Raw) }

// cborLinks returns the links of a dag-cbor block, which must have one of the codecs.
func cborLinks(data []byte, codecs ...uint64) ([]cid.Cid, error) {
	mode, err := cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden,
		MaxNestedLevels: 8, MaxArrayElements: 65536, MaxMapPairs: 1024,
	}.DecMode()
	if err != nil {
		return nil, err
	}
	var v any
	if err := mode.Unmarshal(data, &v); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrContent, err)
	}
	var links []cid.Cid
	var collect func(v any) error
	collect = func(v any) error {
		switch v := v.(type) {
		case map[any]any:
			for _, value := range v {
				if err := collect(value); err != nil {
					return err
				}
			}
		case []any:
			for _, value := range v {
				if err := collect(value); err != nil {
					return err
				}
			}
		case cbor.Tag:
			body, ok := v.Content.([]byte)
			if v.Number != 42 || !ok || len(body) == 0 || body[0] != 0 {
				return fmt.Errorf("%w: tag %d is not a link", ErrContent, v.Number)
			}
			c, err := cid.Cast(body[1:])
			if err != nil {
				return fmt.Errorf("%w: %w", ErrContent, err)
			}
			if err := checkLink(c, codecs...); err != nil {
				return err
			}
			links = append(links, c)
		case nil, bool, int64, uint64, float64, string, []byte:
		default: // a time or a big number, which are tags too
			return fmt.Errorf("%w: a %T", ErrContent, v)
		}
		return nil
	}
	return links, collect(v)
}
