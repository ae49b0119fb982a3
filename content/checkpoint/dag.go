package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	chunk "github.com/ipfs/boxo/chunker"
	"github.com/ipfs/boxo/ipld/unixfs/importer/balanced"
	"github.com/ipfs/boxo/ipld/unixfs/importer/helpers"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"
	mh "github.com/multiformats/go-multihash"
)

const (
	// ChunkSize is the length of every leaf block but a file's last.
	ChunkSize = 1 << 20
	// FileLinks is the most links of an inner node of a file.
	FileLinks = 174
)

// cidBuilder makes CIDv1, sha2-256, dag-pb; leaves change the codec to raw by themselves.
var cidBuilder = cid.V1Builder{Codec: cid.DagProtobuf, MhType: mh.SHA2_256}

// RootCID computes the CID of the checkpoint in dir. It is that of the UnixFS directory described in
// docs/spec/checkpoint.md, and depends on nothing but the files' names and bytes. The directory must pass [OpenStrict].
// Files are streamed, one chunk in memory at a time.
func RootCID(dir string) (cid.Cid, error) {
	root, _, err := Blocks(dir, nil, nil)
	return root, err
}

// Blocks builds the same DAG as [RootCID], hands every block to emit, children before their parents, the root last, and
// returns the directory's parts. A block that occurs twice in the DAG is handed out twice. emit may keep the block; it
// is called from one goroutine, and its error ends the walk and is returned; nil takes the blocks of nobody.
//
// Files of known are believed to be what it says: they are not read, and their blocks are not handed out.
func Blocks(dir string, known Parts, emit func(blocks.Block) error) (cid.Cid, Parts, error) {
	return buildDAG(osFS{}, dir, known, emit)
}

func buildDAG(fsys fileSystem, dir string, known Parts, emit func(blocks.Block) error) (cid.Cid, Parts, error) {
	c, err := OpenStrict(dir)
	if err != nil {
		return cid.Undef, nil, err
	}
	names := c.allNames()
	if err := c.Close(); err != nil {
		return cid.Undef, nil, err
	}
	if emit == nil {
		emit = func(blocks.Block) error { return nil }
	}
	parts := make(Parts, len(names))
	for _, name := range names {
		if p, ok := known[name]; ok {
			parts[name] = p
			continue
		}
		node, err := fileDAG(fsys, filepath.Join(dir, name), emitter{emit: emit})
		if err != nil {
			return cid.Undef, nil, fmt.Errorf("compute the CID of %s: %w", filepath.Join(dir, name), err)
		}
		size, err := node.Size()
		if err != nil {
			return cid.Undef, nil, err
		}
		parts[name] = Part{node.Cid(), size}
	}
	root, err := parts.root()
	if err != nil {
		return cid.Undef, nil, err
	}
	return root.Cid(), parts, emit(root)
}

// allNames lists every file of the checkpoint, sorted.
func (c *Checkpoint) allNames() []string {
	names := slices.Concat(c.documents, c.names)
	if c.hasIndex {
		names = append(names, IndexName)
	}
	slices.Sort(names)
	return names
}

func fileDAG(fsys fileSystem, path string, sink emitter) (_ format.Node, err error) {
	f, err := fsys.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return readerDAG(f, sink)
}

// readerDAG builds a file's DAG. Every parameter is given here, so that boxo's process-wide defaults do not matter.
func readerDAG(r io.Reader, sink emitter) (format.Node, error) {
	params := helpers.DagBuilderParams{
		Maxlinks:   FileLinks,
		RawLeaves:  true,
		CidBuilder: cidBuilder,
		Dagserv:    sink,
	}
	builder, err := params.New(chunk.NewSizeSplitter(r, ChunkSize))
	if err != nil {
		return nil, err
	}
	return balanced.Layout(builder)
}

// emitter is a DAG service that only takes nodes.
type emitter struct {
	emit func(blocks.Block) error
}

var errWriteOnly = errors.New("checkpoint: nodes are only handed out")

func (e emitter) Add(_ context.Context, n format.Node) error { return e.emit(n) }

func (e emitter) AddMany(_ context.Context, nodes []format.Node) error {
	for _, n := range nodes {
		if err := e.emit(n); err != nil {
			return err
		}
	}
	return nil
}

func (e emitter) Get(context.Context, cid.Cid) (format.Node, error) { return nil, errWriteOnly }

func (e emitter) GetMany(context.Context, []cid.Cid) <-chan *format.NodeOption {
	out := make(chan *format.NodeOption, 1)
	out <- &format.NodeOption{Err: errWriteOnly}
	close(out)
	return out
}

func (e emitter) Remove(context.Context, cid.Cid) error       { return errWriteOnly }
func (e emitter) RemoveMany(context.Context, []cid.Cid) error { return errWriteOnly }

var _ format.DAGService = emitter{}
