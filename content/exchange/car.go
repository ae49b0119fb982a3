package exchange

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"
	car "github.com/ipld/go-car/v2"
	"github.com/ipld/go-car/v2/storage"
	"github.com/multiformats/go-multihash"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// maxCARHeader is room for the header of a CAR of one root, and for what version 2 has before it.
const maxCARHeader = 4 << 10

// ExportCAR writes the DAG below root as a CAR of version 1, root first, every node before what is below it, each block
// once, and returns what it wrote. The same DAG gives the same bytes.
func ExportCAR(
	ctx context.Context, store Getter, root cid.Cid, out io.Writer, bounds Bounds, report func(Progress),
) (Progress, error) {
	if err := checkLink(root, protocol.DagPB, protocol.Raw); err != nil {
		return Progress{}, err
	}
	buffered := bufio.NewWriterSize(out, 1<<18)
	w, err := storage.NewWritable(buffered, []cid.Cid{root}, car.WriteAsCarV1(true), car.UseWholeCIDs(true))
	if err != nil {
		return Progress{}, err
	}
	var p Progress
	_, err = descend(ctx, store, root, bounds, func(b blocks.Block) error {
		p.Blocks, p.Bytes = p.Blocks+1, p.Bytes+uint64(len(b.RawData()))
		if report != nil {
			report(p)
		}
		return w.Put(ctx, b.Cid().KeyString(), b.RawData())
	})
	if err == nil {
		err = w.Finalize()
	}
	if err == nil {
		err = buffered.Flush()
	}
	if err != nil {
		return p, fmt.Errorf("export %s: %w", root, err)
	}
	return p, nil
}

// descend hands out every block of a DAG once, nodes before what is below them, in the order of their links, and returns how
// many there were.
func descend(
	ctx context.Context, store Getter, root cid.Cid, bounds Bounds, each func(blocks.Block) error,
) (p Progress, err error) {
	bounds = bounds.withDefaults()
	seen, todo := cid.NewSet(), []cid.Cid{root}
	for len(todo) > 0 {
		c := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if !seen.Visit(c) {
			continue
		}
		b, err := store.Get(ctx, c)
		if err != nil {
			return p, err
		}
		p.Blocks++
		p.Bytes += uint64(len(b.RawData()))
		if p.Blocks > bounds.MaxBlocks || p.Bytes > bounds.MaxBytes {
			return p, fmt.Errorf("%w: more than %d blocks or %d bytes", ErrBounds, bounds.MaxBlocks, bounds.MaxBytes)
		}
		if err := each(b); err != nil {
			return p, err
		}
		if c.Prefix().Codec != protocol.DagPB {
			continue
		}
		links, err := nodeLinks(b)
		if err != nil {
			return p, err
		}
		if len(todo)+len(links) > 2*bounds.MaxBlocks {
			return p, fmt.Errorf("%w: more than %d links", ErrBounds, 2*bounds.MaxBlocks)
		}
		for i := len(links) - 1; i >= 0; i-- {
			todo = append(todo, links[i])
		}
	}
	return p, nil
}

// blockStore is what a CAR is imported into.
type blockStore interface {
	Putter
	Getter
}

// ImportCAR stores the blocks of a CAR, of version 1 or 2, whose one root is a DAG that is then here in full. A store
// that collects must be held until the root is pinned. Every block is hashed; one that is not what its CID says, that is
// longer than [MaxBlock] or is named by a CID that no network has, a header without one root, and a DAG of which blocks
// are missing, are [ErrContent]; more than the bounds allow is [ErrBounds]. With an error some blocks may be stored.
func ImportCAR(
	ctx context.Context, store blockStore, in io.Reader, bounds Bounds, report func(Progress),
) (root cid.Cid, p Progress, err error) {
	one := func(roots []cid.Cid) error {
		if len(roots) != 1 {
			return fmt.Errorf("%d roots, want one", len(roots))
		}
		root = roots[0]
		if err := checkLink(root, protocol.DagPB, protocol.Raw); err != nil {
			return fmt.Errorf("root: %w", err)
		}
		return nil
	}
	take := func(b blocks.Block) (bool, error) { return true, checkBlock(b) }
	if p, err = readCAR(ctx, store, in, bounds, one, take, report); err != nil {
		return cid.Undef, p, err
	}
	if _, err := Complete(ctx, store, root, bounds); errors.Is(err, ErrMissing) {
		return cid.Undef, p, fmt.Errorf("%w: CAR: %w", ErrContent, err)
	} else if err != nil {
		return cid.Undef, p, err
	}
	if s, ok := store.(syncer); ok {
		return root, p, s.Sync()
	}
	return root, p, nil
}

// ImportBlocks stores the blocks of a CAR, whatever they are: of any codec, with any roots, with or without what they link
// to. Only blocks that are named by sha2-256 can be checked and kept; of others it returns how many were left out. It has
// the errors of [ImportCAR].
func ImportBlocks(ctx context.Context, store Putter, in io.Reader, bounds Bounds, report func(Progress)) (p Progress, skipped int, err error) {
	take := func(b blocks.Block) (bool, error) {
		h, err := multihash.Decode(b.Cid().Hash())
		if err == nil && h.Code != multihash.SHA2_256 {
			skipped++
			return false, nil
		}
		return true, checkHash(b)
	}
	if p, err = readCAR(ctx, store, in, bounds, func([]cid.Cid) error { return nil }, take, report); err != nil {
		return p, skipped, err
	}
	if s, ok := store.(syncer); ok {
		err = s.Sync()
	}
	return p, skipped, err
}

// readCAR stores the blocks of a CAR that take takes. What roots and take do not like is [ErrContent].
func readCAR(ctx context.Context, store Putter, in io.Reader, bounds Bounds, roots func([]cid.Cid) error,
	take func(blocks.Block) (bool, error), report func(Progress)) (p Progress, err error) {
	bounds = bounds.withDefaults()
	refuse := func(format string, args ...any) (Progress, error) {
		return p, fmt.Errorf("%w: CAR: "+format, append([]any{ErrContent}, args...)...)
	}
	r, err := car.NewBlockReader(bufio.NewReaderSize(in, 1<<18), car.MaxAllowedHeaderSize(maxCARHeader),
		car.MaxAllowedSectionSize(MaxBlock+cidBytes), car.WithTrustedCAR(true)) // it is not: blocks are hashed below
	if err != nil {
		return refuse("%w", err)
	}
	if err := roots(r.Roots); err != nil {
		return refuse("%w", err)
	}
	publisher := NewPublisher(ctx, store)
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return p, context.Cause(ctx)
		}
		b, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return refuse("block %d: %w", n, err)
		}
		taken, err := take(b)
		if err != nil {
			return refuse("block %d: %w", n, err)
		}
		if !taken {
			continue
		}
		p.Blocks++
		p.Bytes += uint64(len(b.RawData()))
		if p.Blocks > bounds.MaxBlocks || p.Bytes > bounds.MaxBytes {
			return p, fmt.Errorf("%w: CAR: more than %d blocks or %d bytes", ErrBounds, bounds.MaxBlocks, bounds.MaxBytes)
		}
		if err := publisher.Add(b); err != nil {
			return p, err
		}
		if report != nil {
			report(p)
		}
	}
	return p, publisher.Flush()
}

// checkBlock refuses a block that is not what its CID says, or whose CID no network has.
func checkBlock(b blocks.Block) error {
	if err := checkLink(b.Cid(), protocol.Raw, protocol.DagPB, protocol.DagCBOR); err != nil {
		return err
	}
	return checkHash(b)
}

// checkHash refuses a block that is not what its CID says.
func checkHash(b blocks.Block) error {
	want, err := multihash.Decode(b.Cid().Hash())
	if err != nil {
		return fmt.Errorf("%w: %w", ErrContent, err)
	}
	if got := sha256.Sum256(b.RawData()); !bytes.Equal(got[:], want.Digest) || len(b.RawData()) > MaxBlock {
		return fmt.Errorf("%w: %s: %d bytes of another hash, or too many", ErrContent, b.Cid(), len(b.RawData()))
	}
	return nil
}

// sizer is a store that knows how long a block is without reading it.
type sizer interface {
	GetSize(context.Context, cid.Cid) (int, error)
}

// Complete reports what the DAG below root has, [ErrMissing] if not all of it is in the store. Leaves are not read where
// the store can tell their length without.
func Complete(ctx context.Context, store Getter, root cid.Cid, bounds Bounds) (Progress, error) {
	bounds = bounds.withDefaults()
	var p Progress
	seen, todo := cid.NewSet(), []cid.Cid{root}
	for len(todo) > 0 {
		c := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if !seen.Visit(c) {
			continue
		}
		n, links, err := lengthAndLinks(ctx, store, c)
		if format.IsNotFound(err) {
			err = fmt.Errorf("%w: %w", ErrMissing, err)
		}
		if err != nil {
			return p, err
		}
		p.Blocks++
		p.Bytes += uint64(n)
		if todo = append(todo, links...); p.Blocks > bounds.MaxBlocks || p.Bytes > bounds.MaxBytes || len(todo) > 2*bounds.MaxBlocks {
			return p, fmt.Errorf("%w: more than %d blocks or %d bytes", ErrBounds, bounds.MaxBlocks, bounds.MaxBytes)
		}
	}
	return p, nil
}

func lengthAndLinks(ctx context.Context, store Getter, c cid.Cid) (int, []cid.Cid, error) {
	if s, ok := store.(sizer); ok && c.Prefix().Codec == protocol.Raw {
		n, err := s.GetSize(ctx, c)
		return n, nil, err
	}
	b, err := store.Get(ctx, c)
	if err != nil || c.Prefix().Codec != protocol.DagPB {
		return size(b), nil, err
	}
	links, err := nodeLinks(b)
	return size(b), links, err
}

func size(b blocks.Block) int {
	if b == nil {
		return 0
	}
	return len(b.RawData())
}
