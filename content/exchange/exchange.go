package exchange

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	boxo "github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"
)

// MaxBlock is the longest block that is fetched: the longest that the protocol has.
const MaxBlock = 1 << 20

// Config says how an exchange behaves. The zero value is usable.
type Config struct {
	// Serve says whether a peer may have a block; nil gives everything to everyone. It must not block.
	Serve func(peer.ID, cid.Cid) bool
	// Penalise hears of every block a peer sent that nobody asked for, wrong answers to questions among them: a block's
	// CID is computed from its bytes, so wrong bytes are a block of another name. They were thrown away, but cost the
	// bytes. It is called from the goroutine that reads from the peer and must not block; nil ignores them.
	Penalise func(peer.ID, Offence)
	// Finder looks for peers that have a block, beside those connected; nil asks only these.
	Finder routing.ContentDiscovery
	// InFlight bounds the bytes that one fetch has asked for at a time; 0 means 32 MiB. All of it may be in memory.
	InFlight int
}

// Offence is a block that a peer sent unasked.
type Offence struct {
	Block cid.Cid // of the bytes as they came
	Bytes int
}

// Exchange fetches blocks into a store and serves them from it. Its methods may be called at the same time.
type Exchange struct {
	store  boxo.Blockstore
	swap   *bitswap.Bitswap
	config Config
	asked  *asked

	ctx    context.Context // ends with Close
	cancel context.CancelCauseFunc
}

// New starts an exchange on a host. The store must verify what is put into it, must outlive the exchange, and stays the
// caller's; so does the host. There is one exchange to a host.
func New(h host.Host, store boxo.Blockstore, config Config) *Exchange {
	if config.InFlight <= 0 {
		config.InFlight = 32 << 20
	}
	e := &Exchange{store: store, config: config, asked: newAsked()}
	e.ctx, e.cancel = context.WithCancelCause(context.Background())
	options := []bitswap.Option{
		bitswap.MaxOutstandingBytesPerPeer(16 << 20), // with 1 MiB, the default, a peer waits after every block
		bitswap.WithTargetMessageSize(1 << 20),
		bitswap.WithoutDuplicatedBlockStats(), // they would look up every block received
		// The defaults are for a public node with thousands of peers: 128 goroutines to read blocks alone.
		bitswap.EngineBlockstoreWorkerCount(4),
		bitswap.EngineTaskWorkerCount(4),
		bitswap.TaskWorkerCount(4),
		bitswap.WithTracer(watch{e}),
	}
	if config.Serve != nil {
		options = append(options, bitswap.WithPeerBlockRequestFilter(config.Serve))
	}
	e.swap = bitswap.New(e.ctx, bsnet.NewFromIpfsHost(h), config.Finder, store, options...)
	return e
}

// Close ends all fetches with [ErrClosed] and stops serving.
func (e *Exchange) Close() error {
	e.cancel(ErrClosed)
	return e.swap.Close()
}

// Put is PutMany of one block.
func (e *Exchange) Put(ctx context.Context, b blocks.Block) error {
	return e.PutMany(ctx, []blocks.Block{b})
}

// PutMany stores blocks and hands them to peers and fetches that wait for them.
func (e *Exchange) PutMany(ctx context.Context, bs []blocks.Block) error {
	if e.ctx.Err() != nil {
		return ErrClosed
	}
	if err := e.store.PutMany(ctx, bs); err != nil {
		return err
	}
	return e.swap.NotifyNewBlocks(ctx, bs...)
}

// Get returns a block from the store, or fetches it.
func (e *Exchange) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	w, err := e.walk(ctx, Bounds{MaxBytes: MaxBlock, MaxBlocks: 1}, nil)
	if err != nil {
		return nil, err
	}
	defer w.end()
	return w.read(c)
}

// Fetch brings blocks into the store; those that are there do not move. Order is not kept, repeats are fetched once. With
// an error some may have come.
func (e *Exchange) Fetch(ctx context.Context, cids []cid.Cid, bounds Bounds, report func(Progress)) (Progress, error) {
	w, err := e.walk(ctx, bounds, report)
	if err != nil {
		return Progress{}, err
	}
	defer w.end()
	fresh, err := w.fresh(cids)
	if err == nil {
		err = w.bring(fresh, MaxBlock)
	}
	return w.done, err
}

// Has reports whether all blocks are in the store.
func (e *Exchange) Has(ctx context.Context, cids []cid.Cid) (bool, error) {
	for _, c := range cids {
		if ok, err := e.store.Has(ctx, c); err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

// Bounds are what a fetch may cost. They count every block once, those already in the store too.
type Bounds struct {
	MaxBytes  uint64 // of all blocks
	MaxBlocks int    // 0 means 2²⁰
	MaxDepth  int    // of a DAG, 0 for a single block; 0 means 8, which is above that of any file
}

// Progress is what a fetch has done so far.
type Progress struct {
	Blocks      int    // in the store of those the fetch is about
	Bytes       uint64 // of these
	MovedBlocks int    // of these, how many came from peers
	MovedBytes  uint64
}

// walk is one fetch: its bounds and what it has done.
type walk struct {
	e      *Exchange
	ctx    context.Context
	end    func()
	bounds Bounds
	report func(Progress)
	done   Progress
	seen   *cid.Set
}

func (e *Exchange) walk(ctx context.Context, bounds Bounds, report func(Progress)) (*walk, error) {
	if e.ctx.Err() != nil {
		return nil, ErrClosed
	}
	if bounds.MaxBlocks == 0 {
		bounds.MaxBlocks = 1 << 20
	}
	if bounds.MaxDepth == 0 {
		bounds.MaxDepth = 8
	}
	if report == nil {
		report = func(Progress) {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(e.ctx, func() { cancel(ErrClosed) })
	return &walk{
		e: e, ctx: ctx, bounds: bounds, report: report, seen: cid.NewSet(),
		end: func() {
			stop()
			cancel(nil)
		},
	}, nil
}

// fresh returns the CIDs that the walk has not met, each once, and counts them.
func (w *walk) fresh(cids []cid.Cid) ([]cid.Cid, error) {
	var out []cid.Cid
	for _, c := range cids {
		if w.seen.Visit(c) {
			out = append(out, c)
		}
	}
	if w.seen.Len() > w.bounds.MaxBlocks {
		return nil, fmt.Errorf("%w: more than %d blocks", ErrBounds, w.bounds.MaxBlocks)
	}
	return out, nil
}

// count adds a block that is now in the store.
func (w *walk) count(c cid.Cid, size int, moved bool) error {
	if size > MaxBlock {
		return fmt.Errorf("%w: block %s has %d bytes, at most %d", ErrBounds, c, size, MaxBlock)
	}
	if w.done.Bytes+uint64(size) > w.bounds.MaxBytes {
		return fmt.Errorf("%w: more than %d bytes", ErrBounds, w.bounds.MaxBytes)
	}
	w.done.Blocks++
	w.done.Bytes += uint64(size)
	if moved {
		w.done.MovedBlocks++
		w.done.MovedBytes += uint64(size)
	}
	return nil
}

// bring makes sure that the blocks, each listed once, are in the store. typical is about how long one is.
func (w *walk) bring(cids []cid.Cid, typical int) error {
	var missing []cid.Cid
	for _, c := range cids {
		n, err := w.e.store.GetSize(w.ctx, c)
		switch {
		case format.IsNotFound(err):
			missing = append(missing, c)
		case err != nil:
			return err
		default:
			if err := w.count(c, n, false); err != nil {
				return err
			}
		}
	}
	if len(missing) < len(cids) {
		w.report(w.done)
	}
	return w.ask(missing, min(max(w.e.config.InFlight/2/typical, 1), maxWindow))
}

const (
	// maxWindow is how many blocks a bitswap session can have without forgetting some: it tells all peers of 64 wants, and
	// of others only those that have had earlier ones; when these turn out not to have the others, nobody is asked again.
	// So every window has a session of its own.
	maxWindow = 64
	// putBatch is how many bytes are collected, while they come without a pause, before they are stored.
	putBatch = 4 << 20
)

// window is some blocks that have been asked for.
type window struct {
	want *cid.Set
	in   <-chan blocks.Block
}

func (w *walk) open(ctx context.Context, cids []cid.Cid) (*window, error) {
	w.e.asked.add(cids)
	in, err := w.e.swap.NewSession(ctx).GetBlocks(ctx, cids)
	if err != nil {
		return nil, err
	}
	v := &window{want: cid.NewSet(), in: in}
	for _, c := range cids {
		v.want.Add(c)
	}
	return v, nil
}

// ask fetches blocks, none of which is in the store, n at a time. The next ones are asked for when half have come, so
// that the line does not fall silent in between.
func (w *walk) ask(cids []cid.Cid, n int) (err error) {
	if err := context.Cause(w.ctx); err != nil && len(cids) > 0 {
		return fmt.Errorf("%w: %d, the first is %s: %w", ErrMissing, len(cids), cids[0], err)
	}
	// Its own context, so that after an error bitswap forgets what was asked.
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	var current, next *window
	var p batch
	defer func() { err = errors.Join(err, p.put(w)) }()
	for {
		if current == nil {
			current, next = next, nil
		}
		if len(cids) > 0 && next == nil && (current == nil || current.want.Len() <= n/2) {
			take := min(n, len(cids))
			if next, err = w.open(ctx, cids[:take]); err != nil {
				return err
			}
			cids = cids[take:]
			continue
		}
		if current == nil {
			return nil
		}
		var b blocks.Block
		var ok bool
		select {
		case b, ok = <-current.in:
		default:
			if err := p.put(w); err != nil {
				return err
			}
			b, ok = <-current.in
		}
		switch {
		case !ok:
			return w.missing(current, next, cids)
		case !current.want.Has(b.Cid()):
			continue
		}
		if err := w.count(b.Cid(), len(b.RawData()), true); err != nil {
			return err
		}
		p.blocks = append(p.blocks, b)
		p.size += len(b.RawData())
		if p.size >= putBatch {
			if err := p.put(w); err != nil {
				return err
			}
		}
		if current.want.Remove(b.Cid()); current.want.Len() == 0 {
			current = nil
		}
	}
}

// missing is the error of a fetch that bitswap gave up, with what it did not bring.
func (w *walk) missing(current, next *window, rest []cid.Cid) error {
	cause := context.Cause(w.ctx)
	if cause == nil {
		cause = ErrClosed // bitswap gives up without its context only when it is closed
	}
	left := current.want.Keys()
	slices.SortFunc(left, func(a, b cid.Cid) int { return strings.Compare(a.KeyString(), b.KeyString()) })
	n := len(left) + len(rest)
	if next != nil {
		n += next.want.Len()
	}
	return fmt.Errorf("%w: %d, one is %s: %w", ErrMissing, n, left[0], cause)
}

// batch is blocks that came and are not stored yet.
type batch struct {
	blocks []blocks.Block
	size   int
}

func (p *batch) put(w *walk) error {
	if len(p.blocks) == 0 {
		return nil
	}
	bs := p.blocks
	p.blocks, p.size = nil, 0
	if err := w.e.PutMany(context.WithoutCancel(w.ctx), bs); err != nil {
		return err
	}
	w.report(w.done)
	return nil
}

// read returns a block from the store, fetching it if it is not there or turns out to be damaged.
func (w *walk) read(c cid.Cid) (blocks.Block, error) {
	b, err := w.e.store.Get(w.ctx, c)
	if !format.IsNotFound(err) {
		return b, err
	}
	if err := w.ask([]cid.Cid{c}, 1); err != nil {
		return nil, err
	}
	return w.e.store.Get(w.ctx, c)
}
