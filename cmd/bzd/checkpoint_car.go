package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"

	"github.com/blockzero-net/bzd/content/checkpoint"
	"github.com/blockzero-net/bzd/content/exchange"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// moved is what went out to, or came in from, a CAR file.
type moved struct {
	Checkpoint cid.Cid `json:"checkpoint"`
	File       string  `json:"file"`
	Blocks     int     `json:"blocks"`
	Bytes      uint64  `json:"bytes"`
	Out        string  `json:"out,omitempty"`
}

// exportCAR writes a checkpoint, given by its directory or its CID, to a CAR file.
func (c *common) exportCAR(ctx context.Context, what, file string, asJSON bool) (err error) {
	if err := newFile(file); err != nil {
		return err
	}
	var store exchange.Getter
	var root cid.Cid
	if l, bad := protocol.ParseLink(what); bad == nil {
		s, _, err := c.openStore(false)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		store, root = s, l.Cid()
	} else if store, root, err = openFiles(what); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".partial-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, tmp.Close(), os.Remove(tmp.Name()))
		}
	}()
	m := newTransfer(c.env, "exported")
	p, err := exchange.ExportCAR(ctx, store, root, tmp, maxHeld, func(p exchange.Progress) { m.report(p.Bytes, 0, "") })
	m.end()
	if err == nil {
		err = tmp.Chmod(0o644)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	if asJSON {
		return writeJSON(c.env.out, moved{Checkpoint: root, File: file, Blocks: p.Blocks, Bytes: p.Bytes})
	}
	fmt.Fprintf(c.env.out, "exported %s to %s: %d blocks, %s\n", root, file, p.Blocks, bytesText(p.Bytes))
	return nil
}

// importCAR brings the checkpoint of a CAR file into the block store and, with a directory, writes it there.
func (c *common) importCAR(ctx context.Context, file, dir string, limit uint64, asJSON bool) (err error) {
	if dir != "" {
		if err := newDir(dir); err != nil {
			return err
		}
	}
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	s, _, err := c.openStore(true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	defer s.Hold()()
	m := newTransfer(c.env, "imported")
	root, p, err := exchange.ImportCAR(ctx, s, in, exchange.Bounds{MaxBytes: limit, MaxBlocks: maxHeld.MaxBlocks},
		func(p exchange.Progress) { m.report(p.Bytes, 0, "") })
	m.end()
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if err := s.Pin(ctx, userPin(root)); err != nil {
		return err
	}
	if dir != "" {
		if _, err := exchange.Materialize(ctx, s, root, dir, limit); err != nil {
			return err
		}
	}
	if asJSON {
		return writeJSON(c.env.out, moved{Checkpoint: root, File: file, Blocks: p.Blocks, Bytes: p.Bytes, Out: dir})
	}
	fmt.Fprintf(c.env.out, "imported %s: %d blocks, %s\n", root, p.Blocks, bytesText(p.Bytes))
	if dir != "" {
		fmt.Fprintf(c.env.out, "written to %s\n", dir)
	}
	return nil
}

// directoryBlocks gives the blocks of a checkpoint's directory: nodes from memory, leaves from the files.
type directoryBlocks struct {
	dir    string
	nodes  map[cid.Cid]blocks.Block
	leaves map[cid.Cid]place
}

// place is where the bytes of a leaf are.
type place struct {
	file   string
	offset int64
	size   int
}

// openFiles computes the CID of the checkpoint in dir and finds its blocks.
func openFiles(dir string) (exchange.Getter, cid.Cid, error) {
	d := &directoryBlocks{dir: dir, nodes: map[cid.Cid]blocks.Block{}, leaves: map[cid.Cid]place{}}
	type leaf struct {
		cid  cid.Cid
		size int
	}
	var leaves []leaf // in the order of the files
	root, parts, err := checkpoint.Blocks(dir, nil, func(b blocks.Block) error {
		if b.Cid().Prefix().Codec != protocol.Raw {
			d.nodes[b.Cid()] = b
			return nil
		}
		leaves = append(leaves, leaf{b.Cid(), len(b.RawData())})
		return nil
	})
	if err != nil {
		return nil, cid.Undef, err
	}
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return nil, cid.Undef, err
		}
		for offset := int64(0); ; { // an empty file has a leaf too
			if len(leaves) == 0 {
				return nil, cid.Undef, fmt.Errorf("%s: %s was changed meanwhile", dir, name)
			}
			l := leaves[0]
			leaves = leaves[1:]
			d.leaves[l.cid] = place{name, offset, l.size}
			if offset += int64(l.size); offset >= info.Size() {
				break
			}
		}
	}
	return d, root, nil
}

// Get implements [exchange.Getter].
func (d *directoryBlocks) Get(_ context.Context, c cid.Cid) (_ blocks.Block, err error) {
	if b, ok := d.nodes[c]; ok {
		return b, nil
	}
	at, ok := d.leaves[c]
	if !ok {
		return nil, format.ErrNotFound{Cid: c}
	}
	f, err := os.Open(filepath.Join(d.dir, at.file))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data := make([]byte, at.size)
	if _, err := f.ReadAt(data, at.offset); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if got := protocol.LinkTo(protocol.Raw, data).Cid(); !bytes.Equal(got.Hash(), c.Hash()) {
		return nil, fmt.Errorf("%s: %s was changed meanwhile", d.dir, at.file)
	}
	return blocks.NewBlockWithCid(data, c)
}
