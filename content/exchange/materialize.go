package exchange

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/blockzero-net/bzd/content/checkpoint"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// Getter gives blocks: a block store, or an [Exchange], which fetches those that are missing.
type Getter interface {
	Get(context.Context, cid.Cid) (blocks.Block, error)
}

// maxFileDepth is above the depth of any file: 174⁴ chunks are 900 TiB.
const maxFileDepth = 4

// Materialize writes the checkpoint that root names as the directory dir, whose parent must exist, and returns the bytes
// written. It is all or nothing, like [checkpoint.Write], and what it leaves after a crash [checkpoint.RemovePartials]
// removes. What it writes opens as a checkpoint and has the CID root; anything else is [ErrContent], or
// [checkpoint.ErrFormat] where the files are at fault, and more than limit bytes are [ErrBounds]. A dir that is the
// checkpoint already is left alone, one that holds anything else is [checkpoint.ErrExists].
func Materialize(ctx context.Context, store Getter, root cid.Cid, dir string, limit uint64) (uint64, error) {
	return MaterializeFrom(ctx, store, root, dir, limit, Base{})
}

// Base is a checkpoint directory that was verified, and its parts.
type Base struct {
	Dir   string
	Parts checkpoint.Parts
}

// MaterializeFrom is [Materialize], and takes the files that the checkpoint has in common with base from there: they are
// linked where the disk can do that, and neither read, written nor hashed.
func MaterializeFrom(ctx context.Context, store Getter, root cid.Cid, dir string, limit uint64, base Base) (_ uint64, err error) {
	if err := checkLink(root, protocol.DagPB); err != nil {
		return 0, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return 0, err
	}
	explain := func(err error) error {
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			err = fmt.Errorf("%w: free some space and try again: %w", checkpoint.ErrDiskFull, err)
		}
		return fmt.Errorf("write checkpoint %s to %s: %w", root, dir, err)
	}
	there, err := occupied(dir)
	if err != nil {
		return 0, explain(err)
	}
	if there {
		if have, err := checkpoint.RootCID(dir); err != nil || have != root {
			return 0, explain(fmt.Errorf("%w and is not this checkpoint; choose another directory or empty this one", checkpoint.ErrExists))
		}
		return 0, nil
	}
	parent, name := filepath.Split(dir)
	tmp, err := os.MkdirTemp(parent, name+".partial-*")
	if err != nil {
		return 0, explain(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	if err := os.Chmod(tmp, 0o755); err != nil {
		return 0, explain(err)
	}
	w := &writer{ctx: ctx, store: store, left: limit, base: base, linked: checkpoint.Parts{}}
	if err := w.directory(root, tmp); err != nil {
		return 0, explain(err)
	}
	if err := syncDir(tmp); err != nil {
		return 0, explain(err)
	}
	have, _, err := checkpoint.Blocks(tmp, w.linked, nil)
	if err != nil {
		return 0, explain(err)
	}
	if have != root {
		return 0, explain(fmt.Errorf("%w: the files have CID %s; the blocks were not cut by the rules", ErrContent, have))
	}
	// An empty directory makes way; anything else that has come since fails the rename.
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, explain(err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return 0, explain(err)
	}
	if err := syncDir(parent); err != nil {
		return 0, explain(err)
	}
	return limit - w.left, nil
}

// occupied reports whether dir is there and not an empty directory.
func occupied(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case errors.Is(err, syscall.ENOTDIR):
		return true, nil
	}
	return len(entries) > 0, err
}

// syncDir makes the names in a directory durable.
func syncDir(name string) error {
	if runtime.GOOS == "windows" {
		return nil // directories cannot be opened there; renames are journalled
	}
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// writer writes a DAG of a hostile stranger. Everything it believes is bounded by left or by the form of a canonical
// tree, in which every node holds bytes; that the tree is canonical in the end, the CID of the result shows.
type writer struct {
	ctx   context.Context
	store Getter
	left  uint64 // bytes that may still be written

	base   Base
	linked checkpoint.Parts  // what need not be read again: taken from base, or known by its leaves
	leaves []checkpoint.Leaf // of the file that is being written
}

// node reads and parses a dag-pb block.
func (w *writer) node(c cid.Cid) (*merkledag.ProtoNode, *unixfs.FSNode, error) {
	b, err := w.store.Get(w.ctx, c)
	if err != nil {
		return nil, nil, err
	}
	node, err := merkledag.DecodeProtobuf(b.RawData())
	if err != nil {
		return nil, nil, fmt.Errorf("%w: node %s: %w", ErrContent, c, err)
	}
	info, err := unixfs.FSNodeFromBytes(node.Data())
	if err != nil {
		return nil, nil, fmt.Errorf("%w: node %s: %w", ErrContent, c, err)
	}
	return node, info, nil
}

func (w *writer) directory(root cid.Cid, tmp string) (err error) {
	node, info, err := w.node(root)
	if err != nil {
		return err
	}
	if info.Type() != unixfs.TDirectory {
		return fmt.Errorf("%w: %s is no plain directory", ErrContent, root)
	}
	// os.Root keeps names inside, should one get past the check.
	dir, err := os.OpenRoot(tmp)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	for _, l := range node.Links() {
		if !plainName(l.Name) {
			return fmt.Errorf("%w: %.100q is no file of a checkpoint", ErrContent, l.Name)
		}
		if err := checkLink(l.Cid, protocol.DagPB, protocol.Raw); err != nil {
			return fmt.Errorf("%s: %w", l.Name, err)
		}
		part := checkpoint.Part{CID: l.Cid, Size: l.Size}
		if have, ok := w.base.Parts[l.Name]; ok && have == part && os.Link(filepath.Join(w.base.Dir, l.Name), filepath.Join(tmp, l.Name)) == nil {
			w.linked[l.Name] = part
			continue
		}
		w.leaves = w.leaves[:0]
		if err := w.file(dir, l.Name, l.Cid); err != nil {
			return fmt.Errorf("%s: %w", l.Name, err)
		}
		// Every leaf had the hash of its name when it was read: what remains to be seen is whether the file was cut by the
		// rules. Only where that takes more than one node is it read again.
		if have, ok := checkpoint.FilePart(w.leaves); ok && have == part {
			w.linked[l.Name] = part
		}
	}
	return nil
}

// plainName reports whether a name is one path element that every system takes: what documents and tensor files of a
// checkpoint are called.
func plainName(name string) bool {
	if name == "" || len(name) > 128 {
		return false
	}
	for i, c := range []byte(name) {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !letter && (i == 0 || c != '.' && c != '_' && c != '-') {
			return false
		}
	}
	return true
}

func (w *writer) file(dir *os.Root, name string, c cid.Cid) (err error) {
	out, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if c.Prefix().Codec == protocol.Raw {
		if _, err := w.leaf(out, c); err != nil {
			return err
		}
		return out.Sync()
	}
	_, info, err := w.node(c)
	if err != nil {
		return err
	}
	size := info.FileSize()
	if size > w.left {
		return fmt.Errorf("%w: %d bytes, %d are left", ErrBounds, size, w.left)
	}
	if err := w.tree(out, c, maxFileDepth, &size); err != nil {
		return err
	}
	if size != 0 {
		return fmt.Errorf("%w: %d bytes less than its size", ErrContent, size)
	}
	return out.Sync()
}

// tree writes what is below a node. left is what the file still lacks; every leaf but the last fills a chunk, so the
// number of blocks read is bounded by the file's size.
func (w *writer) tree(out *os.File, c cid.Cid, depth int, left *uint64) error {
	if c.Prefix().Codec == protocol.Raw {
		want := min(*left, checkpoint.ChunkSize)
		n, err := w.leaf(out, c)
		if err != nil {
			return err
		}
		if n == 0 || n != want {
			return fmt.Errorf("%w: leaf %s has %d bytes, want %d", ErrContent, c, n, want)
		}
		*left -= n
		return nil
	}
	if depth == 0 {
		return fmt.Errorf("%w: deeper than %d", ErrContent, maxFileDepth)
	}
	node, info, err := w.node(c)
	if err != nil {
		return err
	}
	if info.Type() != unixfs.TFile || len(node.Links()) == 0 || len(node.Links()) > checkpoint.FileLinks || len(info.Data()) > 0 {
		return fmt.Errorf("%w: %s is no inner node of a file", ErrContent, c)
	}
	for _, l := range node.Links() {
		if err := checkLink(l.Cid, protocol.DagPB, protocol.Raw); err != nil {
			return err
		}
		if err := w.tree(out, l.Cid, depth-1, left); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) leaf(out *os.File, c cid.Cid) (uint64, error) {
	b, err := w.store.Get(w.ctx, c)
	if err != nil {
		return 0, err
	}
	n := uint64(len(b.RawData()))
	if n > w.left {
		return 0, fmt.Errorf("%w: %d bytes more, %d are left", ErrBounds, n, w.left)
	}
	w.left -= n
	if len(w.leaves) <= checkpoint.FileLinks { // more are of no use
		w.leaves = append(w.leaves, checkpoint.Leaf{CID: c, Size: n})
	}
	_, err = out.Write(b.RawData())
	return n, err
}
