package exchange

import (
	"context"
	"fmt"
	"iter"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/blockzero-net/bzd/content/checkpoint"
	"github.com/blockzero-net/bzd/internal/protocol"
)

// Putter takes blocks: a block store, or an [Exchange], which also hands them to the peers that wait.
type Putter interface {
	PutMany(context.Context, []blocks.Block) error
}

// Publisher stores blocks in batches, in the order they come, such as those of [checkpoint.WriteBlocks]: one batch while the
// next is made. It is for one goroutine. After an error a batch may still be on its way to the store.
type Publisher struct {
	ctx   context.Context
	store Putter
	// hashed: the blocks come from where their CIDs are computed.
	hashed  bool
	buffers *buffers // the blocks' memory, if it is to be used again
	batch   []blocks.Block
	held    int        // bytes of batch
	total   uint64     // bytes stored or held
	flying  chan error // of the batch that is being stored; nil if there is none
}

// NewPublisher returns a publisher that stores until ctx ends. Its blocks must have their CIDs computed from their bytes,
// as those of a checkpoint's DAG have.
func NewPublisher(ctx context.Context, store Putter) *Publisher {
	return &Publisher{ctx: ctx, store: store, hashed: true}
}

// Add takes a block, which the publisher keeps until it is stored.
func (p *Publisher) Add(b blocks.Block) error {
	p.batch = append(p.batch, b)
	p.held += len(b.RawData())
	p.total += uint64(len(b.RawData()))
	if p.held < putBatch && len(p.batch) < 1024 {
		return nil
	}
	return p.send()
}

// send begins to store the batch when the one before is stored.
func (p *Publisher) send() error {
	if err := p.land(); err != nil {
		return err
	}
	if err := p.ctx.Err(); err != nil {
		return err
	}
	batch, done := p.batch, make(chan error, 1)
	p.batch, p.held, p.flying = nil, 0, done
	go func() {
		put := p.store.PutMany
		if s, ok := p.store.(hashedPutter); ok && p.hashed {
			put = s.PutHashed
		}
		err := put(p.ctx, batch)
		if err == nil && p.buffers != nil {
			for _, b := range batch {
				p.buffers.put(b.RawData())
			}
		}
		done <- err
	}()
	return nil
}

// land waits for the batch that is being stored.
func (p *Publisher) land() error {
	if p.flying == nil {
		return nil
	}
	err := <-p.flying
	p.flying = nil
	return err
}

// Flush stores what was added and is not stored yet.
func (p *Publisher) Flush() error {
	if err := p.send(); err != nil {
		return err
	}
	return p.land()
}

// Publish puts the blocks of the checkpoint in dir into a store, children before parents, and returns its CID and the
// bytes of its blocks. If the store is one that can sync, they are durable then; in one that collects, they stay only
// if the caller holds it until the root is pinned.
func Publish(ctx context.Context, store Putter, dir string) (cid.Cid, uint64, error) {
	p := NewPublisher(ctx, store)
	var room func() []byte
	_, hashed := store.(hashedPutter)
	if _, shared := store.(*Exchange); hashed && !shared { // nobody has the blocks once they are stored
		p.buffers = newBuffers()
		room = func() []byte { return p.buffers.get(checkpoint.ChunkSize) }
	}
	root, _, err := checkpoint.BlocksIn(dir, room, p.Add)
	if err == nil {
		err = p.Flush()
	}
	if s, ok := store.(syncer); ok && err == nil {
		err = s.Sync()
	}
	if err != nil {
		return cid.Undef, 0, fmt.Errorf("publish %s: %w", dir, err)
	}
	return root, p.total, nil
}

// PublishDataset puts a dataset's pieces into a store, and its record after them. It returns the CID of the record and
// the bytes of all blocks. The pieces must be those that the record links to.
func PublishDataset(ctx context.Context, store Putter, record []byte, pieces iter.Seq2[cid.Cid, []byte]) (cid.Cid, uint64, error) {
	links, err := recordLinks(record)
	if err != nil {
		return cid.Undef, 0, fmt.Errorf("publish a dataset: %w", err)
	}
	want := cid.NewSet()
	for _, c := range links {
		want.Add(c)
	}
	p := &Publisher{ctx: ctx, store: store}
	for c, data := range pieces {
		if !want.Has(c) {
			return cid.Undef, 0, fmt.Errorf("publish a dataset: %w: the record does not link to piece %s", ErrContent, c)
		}
		want.Remove(c)
		b, err := blocks.NewBlockWithCid(data, c)
		if err == nil {
			err = p.Add(b)
		}
		if err != nil {
			return cid.Undef, 0, fmt.Errorf("publish a dataset: %w", err)
		}
	}
	if want.Len() > 0 {
		return cid.Undef, 0, fmt.Errorf("publish a dataset: %w: %d pieces of the record are not given", ErrContent, want.Len())
	}
	root := protocol.LinkTo(protocol.DagCBOR, record).Cid()
	b, err := blocks.NewBlockWithCid(record, root)
	if err == nil {
		err = p.Add(b)
	}
	if err == nil {
		err = p.Flush()
	}
	if err != nil {
		return cid.Undef, 0, fmt.Errorf("publish a dataset: %w", err)
	}
	return root, p.total, nil
}
