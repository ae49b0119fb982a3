package checkpoint

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"

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
// Files are streamed, a few chunks in memory at a time.
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
	return buildDAG(osFS{}, dir, known, emitter{emit: emit})
}

// BlocksIn is [Blocks] with memory from the caller: room gives ChunkSize bytes for each leaf, which are emit's with the block,
// to be given again when nobody uses it any more; nil makes new memory. It is called from another goroutine than emit.
func BlocksIn(dir string, room func() []byte, emit func(blocks.Block) error) (cid.Cid, Parts, error) {
	return buildDAG(osFS{}, dir, nil, emitter{emit: emit, room: room})
}

func buildDAG(fsys fileSystem, dir string, known Parts, sink emitter) (cid.Cid, Parts, error) {
	c, err := OpenStrict(dir)
	if err != nil {
		return cid.Undef, nil, err
	}
	names := c.allNames()
	if err := c.Close(); err != nil {
		return cid.Undef, nil, err
	}
	if sink.emit == nil {
		var free sync.Pool
		free.New = func() any { return new([ChunkSize]byte) }
		sink.room = func() []byte { return free.Get().(*[ChunkSize]byte)[:] }
		sink.emit = func(b blocks.Block) error {
			if data := b.RawData(); cap(data) == ChunkSize {
				free.Put((*[ChunkSize]byte)(data[:ChunkSize]))
			}
			return nil
		}
	}
	parts := make(Parts, len(names))
	for _, name := range names {
		if p, ok := known[name]; ok {
			parts[name] = p
			continue
		}
		node, err := fileDAG(fsys, filepath.Join(dir, name), sink)
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
	return root.Cid(), parts, sink.emit(root)
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
	leaves := newLeaves(r, sink.room)
	defer leaves.stop()
	params := helpers.DagBuilderParams{
		Maxlinks:   FileLinks,
		RawLeaves:  true,
		CidBuilder: builder{cidBuilder, leaves},
		Dagserv:    sink,
	}
	builder, err := params.New(leaves)
	if err != nil {
		return nil, err
	}
	return balanced.Layout(builder)
}

// leaves is a chunk.Splitter that reads ahead and hashes several chunks at a time, where boxo would do one after the other.
type leaves struct {
	r     io.Reader
	room  func() []byte
	next  chan *leaf // in their order
	end   error      // why there are no more, once next is closed
	quit  chan struct{}
	given map[*byte]*leaf // whose CID was not asked for yet, by where their bytes are
}

// leaf is a chunk; its digest is there when done is closed.
type leaf struct {
	data []byte
	sum  [sha256.Size]byte
	done chan struct{}
}

// leavesAhead is how many chunks are read before they are needed.
const leavesAhead = 4

var _ chunk.Splitter = (*leaves)(nil)

func newLeaves(r io.Reader, room func() []byte) *leaves {
	if room == nil {
		room = func() []byte { return make([]byte, ChunkSize) }
	}
	l := &leaves{r: r, room: room, next: make(chan *leaf, leavesAhead), quit: make(chan struct{}), given: make(map[*byte]*leaf)}
	go l.read()
	return l
}

func (l *leaves) read() {
	defer close(l.next)
	for l.end == nil {
		data := l.room()
		n, err := io.ReadFull(l.r, data)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			data, err = slices.Clone(data[:n]), nil // whoever keeps it keeps no more
			l.end = io.EOF
		}
		if err != nil {
			l.end = err
			return
		}
		x := &leaf{data: data, done: make(chan struct{})}
		select {
		case l.next <- x:
		case <-l.quit:
			return
		}
		go func() {
			x.sum = sha256.Sum256(x.data)
			close(x.done)
		}()
	}
}

// stop ends the reading, and returns when the reader is not used any more.
func (l *leaves) stop() {
	close(l.quit)
	for range l.next {
	}
}

// Reader implements chunk.Splitter.
func (l *leaves) Reader() io.Reader { return l.r }

// NextBytes implements chunk.Splitter.
func (l *leaves) NextBytes() ([]byte, error) {
	x, ok := <-l.next
	if !ok {
		return nil, l.end
	}
	l.given[&x.data[0]] = x
	return x.data, nil
}

// builder makes CIDs, of leaves with the digests that are there already.
type builder struct {
	cid.V1Builder
	leaves *leaves
}

// Sum implements cid.Builder.
func (b builder) Sum(data []byte) (cid.Cid, error) {
	if len(data) == 0 || b.leaves.given[&data[0]] == nil {
		return b.V1Builder.Sum(data)
	}
	x := b.leaves.given[&data[0]]
	delete(b.leaves.given, &data[0])
	if len(x.data) != len(data) {
		return b.V1Builder.Sum(data)
	}
	<-x.done
	sum, err := mh.Encode(x.sum[:], mh.SHA2_256)
	if err != nil {
		return cid.Undef, err
	}
	return cid.NewCidV1(b.Codec, sum), nil
}

// WithCodec implements cid.Builder.
func (b builder) WithCodec(codec uint64) cid.Builder {
	b.Codec = codec
	return b
}

// emitter is a DAG service that only takes nodes.
type emitter struct {
	emit func(blocks.Block) error
	room func() []byte // for a leaf; nil makes new memory
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
