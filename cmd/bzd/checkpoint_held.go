package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/blockzero-net/bzd/content/blockstore"
	"github.com/blockzero-net/bzd/content/checkpoint"
	"github.com/blockzero-net/bzd/content/exchange"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// held is a checkpoint that a directory has.
type held struct {
	Checkpoint string   `json:"checkpoint"`
	Certified  bool     `json:"certified"`
	Cycle      uint64   `json:"cycle"` // that it was certified in
	Signatures int      `json:"signatures"`
	Blocks     bool     `json:"blocks"` // all of them are in the store
	Bytes      uint64   `json:"bytes"`  // of these
	Directory  string   `json:"directory,omitempty"`
	Pins       []string `json:"pins"`
}

// maxHeld bounds what is looked at of one checkpoint.
var maxHeld = exchange.Bounds{MaxBytes: 1 << 50, MaxBlocks: 1 << 26}

func checkpointList(ctx context.Context, env environment, args []string) (err error) {
	c := newFlags(env, "checkpoint ls", `Usage: bzd checkpoint ls [flags]

Lists the checkpoints that a node's directory has, as blocks, as directories or both, with the certificate that names each.
While the node runs its blocks cannot be looked at.`).nodeDir()
	asJSON := c.set.Bool("json", false, "print one JSON object")
	if err := c.parse(args, false); err != nil {
		return err
	}
	s, dir, err := c.openStore(false)
	busy := errors.Is(err, blockstore.ErrLocked)
	if err != nil && !busy {
		return err
	}
	if busy {
		if dir, err = c.networkDir(); err != nil {
			return err
		}
		fmt.Fprintln(env.err, "bzd: the node runs, so that only its directories and certificates are listed")
	} else {
		defer func() { err = errors.Join(err, s.Close()) }()
	}
	list, err := heldIn(ctx, s, dir)
	if err != nil {
		return err
	}
	if *asJSON {
		return writeJSON(env.out, list)
	}
	w := table(env.out)
	fmt.Fprintln(w, "checkpoint\tcycle\tcertificate\tblocks\tdirectory\tpinned by\t")
	for _, h := range list {
		cycle, certificate, here := "-", "none", "not all"
		if h.Certified {
			cycle, certificate = fmt.Sprint(h.Cycle), fmt.Sprintf("%d signatures", h.Signatures)
		}
		if h.Blocks {
			here = bytesText(h.Bytes)
		} else if busy {
			here = "?"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t\n", h.Checkpoint, cycle, certificate, here, cmp.Or(h.Directory, "-"),
			strings.Join(h.Pins, " "))
	}
	return w.Flush()
}

// heldIn finds the checkpoints of a directory, those of the latest cycle first. s may be nil.
func heldIn(ctx context.Context, s *blockstore.Store, dir string) ([]held, error) {
	certificates, err := readCertificates(dir)
	if err != nil {
		return nil, err
	}
	all := map[string]*held{}
	of := func(name string) *held {
		if all[name] == nil {
			all[name] = &held{Checkpoint: name, Pins: []string{}}
		}
		return all[name]
	}
	entries, err := os.ReadDir(filepath.Join(dir, "checkpoints"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if _, err := cid.Decode(e.Name()); err == nil && e.IsDir() {
			of(e.Name()).Directory = filepath.Join(dir, "checkpoints", e.Name())
		}
	}
	if s != nil {
		pins, err := s.Pins()
		if err != nil {
			return nil, err
		}
		for _, p := range pins {
			if (p.Owner.Kind == "checkpoint" || p.Owner.Kind == "user") && len(p.Roots) == 1 {
				h := of(p.Roots[0].String())
				h.Pins = append(h.Pins, p.Owner.Kind)
			}
		}
	}
	for name, h := range all {
		root, err := cid.Decode(name)
		if err != nil {
			return nil, err
		}
		if l, err := protocol.NewLink(root); err == nil {
			if c, ok := certificates[l]; ok {
				h.Certified, h.Cycle, h.Signatures = true, c.Cycle, len(c.Signatures)
			}
		}
		if s == nil {
			continue
		}
		p, err := exchange.Complete(ctx, s, root, maxHeld)
		if err != nil && !errors.Is(err, exchange.ErrMissing) && !errors.Is(err, exchange.ErrContent) {
			return nil, err
		}
		h.Blocks, h.Bytes = err == nil, p.Bytes
	}
	list := []held{}
	for _, h := range all {
		list = append(list, *h)
	}
	slices.SortFunc(list, func(a, b held) int {
		return cmp.Or(cmp.Compare(b.order(), a.order()), strings.Compare(a.Checkpoint, b.Checkpoint))
	})
	return list, nil
}

// order is the cycle from which on the checkpoint stood, 0 for one without a certificate.
func (h held) order() uint64 {
	if !h.Certified {
		return 0
	}
	return h.Cycle + 1
}

// difference is what a peer that has one checkpoint must fetch for another.
type difference struct {
	From  string           `json:"from"`
	To    string           `json:"to"`
	Bytes uint64           `json:"bytes"`       // of all blocks of the second
	Moved uint64           `json:"moved_bytes"` // of those that the first has not
	Files []fileDifference `json:"files"`       // of the second, and those that only the first has
}

type fileDifference struct {
	File  string `json:"file"`
	Group string `json:"group"` // an expert group, hub, router, or nothing for a document
	Bytes uint64 `json:"bytes"`
	Moved uint64 `json:"moved_bytes"`
	State string `json:"state"` // same, changed, new, gone
}

func checkpointDiff(ctx context.Context, env environment, args []string) (err error) {
	c := newFlags(env, "checkpoint diff", `Usage: bzd checkpoint diff [flags] A B

Says what a peer that has checkpoint A must fetch for B, by file and expert group. Each is a directory, or the CID of one
that the block store of the node's directory has.`).nodeDir()
	asJSON := c.set.Bool("json", false, "print one JSON object")
	if err := c.dirs(args, "A", "B"); err != nil {
		return err
	}
	var graphs [2]graph
	for i := range graphs {
		if graphs[i], err = c.graph(ctx, c.set.Arg(i)); err != nil {
			return err
		}
	}
	d := compare(graphs[0], graphs[1])
	if *asJSON {
		return writeJSON(env.out, d)
	}
	w := table(env.out)
	fmt.Fprintln(w, "file\tgroup\t\tbytes\tto move\t")
	for _, f := range d.Files {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t\n", f.File, f.Group, f.State, f.Bytes, f.Moved)
	}
	fmt.Fprintf(w, "all\t\t\t%d\t%d\t\n", d.Bytes, d.Moved)
	return w.Flush()
}

// graph is the blocks of a checkpoint without their bytes.
type graph struct {
	root  cid.Cid
	nodes map[cid.Cid]graphNode
	parts checkpoint.Parts
}

type graphNode struct {
	size  uint64
	links []cid.Cid
}

// graph reads a checkpoint that is given by its directory or its CID.
func (c *common) graph(ctx context.Context, what string) (g graph, err error) {
	g.nodes = map[cid.Cid]graphNode{}
	add := func(b blocks.Block) error {
		links, err := exchange.Links(b)
		g.nodes[b.Cid()] = graphNode{uint64(len(b.RawData())), links}
		return err
	}
	if l, err := protocol.ParseLink(what); err == nil {
		s, _, err := c.openStore(false)
		if err != nil {
			return g, err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		g.root = l.Cid()
		for todo := []cid.Cid{g.root}; len(todo) > 0; {
			c := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			if _, seen := g.nodes[c]; seen {
				continue
			}
			if c.Prefix().Codec == protocol.Raw {
				n, err := s.GetSize(ctx, c)
				if err != nil {
					return g, fmt.Errorf("checkpoint %s: %w", what, err)
				}
				g.nodes[c] = graphNode{size: uint64(n)}
				continue
			}
			b, err := s.Get(ctx, c)
			if err == nil {
				err = add(b)
			}
			if err != nil {
				return g, fmt.Errorf("checkpoint %s: %w", what, err)
			}
			todo = append(todo, g.nodes[c].links...)
		}
		root, err := s.Get(ctx, g.root)
		if err == nil {
			g.parts, err = checkpoint.PartsOf(root)
		}
		return g, err
	}
	g.root, g.parts, err = checkpoint.Blocks(what, nil, add)
	return g, err
}

// compare says what b has that a has not.
func compare(a, b graph) difference {
	d := difference{From: a.root.String(), To: b.root.String(), Files: []fileDifference{}}
	counted := map[cid.Cid]bool{}
	// A block that several files have moves once, for the first of them.
	weigh := func(c cid.Cid) (size, moved uint64) {
		own := map[cid.Cid]bool{}
		for todo := []cid.Cid{c}; len(todo) > 0; {
			c, todo = todo[0], todo[1:]
			n := b.nodes[c]
			if own[c] {
				continue
			}
			own[c] = true
			size += n.size
			if _, there := a.nodes[c]; !there && !counted[c] {
				moved += n.size
			}
			counted[c] = true
			todo = append(todo, n.links...)
		}
		return size, moved
	}
	for _, name := range slices.Sorted(maps.Keys(b.parts)) {
		f := fileDifference{File: name, Group: groupOf(name), State: "changed"}
		f.Bytes, f.Moved = weigh(b.parts[name].CID)
		if before, ok := a.parts[name]; !ok {
			f.State = "new"
		} else if before == b.parts[name] {
			f.State = "same"
		}
		d.Files = append(d.Files, f)
	}
	for _, name := range slices.Sorted(maps.Keys(a.parts)) {
		if _, ok := b.parts[name]; !ok {
			d.Files = append(d.Files, fileDifference{File: name, Group: groupOf(name), State: "gone"})
		}
	}
	root := b.nodes[b.root].size
	d.Bytes, d.Moved = root, root
	if a.root == b.root {
		d.Moved = 0
	}
	for c, n := range b.nodes {
		if c != b.root {
			d.Bytes += n.size
		}
	}
	for _, f := range d.Files {
		d.Moved += f.Moved
	}
	return d
}

// groupOf is whom a file of a checkpoint belongs to.
func groupOf(file string) string {
	name, ok := strings.CutSuffix(file, ".safetensors")
	switch {
	case !ok:
		return ""
	case strings.HasPrefix(name, "experts-"):
		return strings.TrimPrefix(name, "experts-")
	case strings.HasPrefix(name, "hub-"):
		return "hub"
	}
	return name
}
