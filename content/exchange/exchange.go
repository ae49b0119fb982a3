package exchange

import (
	"context"
	"errors"
	"time"

	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/client"
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
	// Finder looks for peers that say they have the checkpoint of a root, or the dataset of a record; nil asks only peers that
	// are connected. A fetch that has too few of these, or hears nothing from them for Patience, connects to those found.
	Finder routing.ContentDiscovery
	// Patience is how long a peer that claims to have a block may take to send it before others are asked too; 0 means 5
	// seconds. A peer on a slow line loses nothing by it: what comes late is taken.
	Patience time.Duration
	// ServeRate is how many bytes a second a peer is sent in bulk, with bursts of a second's worth; 0 means 512 MiB. Looking
	// for a block counts as 4 KiB.
	ServeRate int
	// InFlight bounds the bytes that one fetch has asked for at a time; 0 means 32 MiB. All of it may be in memory.
	InFlight int
}

// Exchange fetches blocks into a store and serves them from it. Its methods may be called at the same time.
type Exchange struct {
	store  boxo.Blockstore
	swap   *bitswap.Bitswap
	config Config
	guard  *guard
	wanted *wanted
	puller *puller
	server *server
	host   host.Host

	ctx    context.Context // ends with Close
	cancel context.CancelCauseFunc
}

// New starts an exchange on a host. The store must verify what is put into it, must outlive the exchange, and stays the
// caller's; so does the host. There is one exchange to a host.
func New(h host.Host, store boxo.Blockstore, config Config) *Exchange {
	if config.InFlight <= 0 {
		config.InFlight = 32 << 20
	}
	if config.ServeRate <= 0 {
		config.ServeRate = 512 << 20
	}
	config.ServeRate = max(config.ServeRate, MaxBlock) // a block must fit into a burst
	if config.Patience <= 0 {
		config.Patience = 5 * time.Second
	}
	e := &Exchange{store: store, config: config, host: h, wanted: newWanted()}
	e.ctx, e.cancel = context.WithCancelCause(context.Background())
	e.guard = &guard{BitSwapNetwork: bsnet.NewFromIpfsHost(h), asked: newAsked(), peers: make(map[peer.ID]int)}
	// bitswap measures a peer by how fast it answers "I have it" and then gives it twice that, at least 50 ms, for a block.
	// That is no time for 1 MiB on a busy machine or a slow line, and taking a slow peer for one without the block stalls.
	patience := client.DefaultDontHaveTimeoutConfig()
	patience.DontHaveTimeout, patience.MinTimeout, patience.MaxTimeout = config.Patience, config.Patience, 4*config.Patience
	options := []bitswap.Option{
		bitswap.MaxOutstandingBytesPerPeer(16 << 20), // with 1 MiB, the default, a peer waits after every block
		bitswap.WithTargetMessageSize(1 << 20),
		bitswap.WithoutDuplicatedBlockStats(), // they would look up every block received
		// The defaults are for a public node with thousands of peers: 128 goroutines to read blocks alone.
		bitswap.EngineBlockstoreWorkerCount(4),
		bitswap.EngineTaskWorkerCount(4),
		bitswap.TaskWorkerCount(4),
		bitswap.WithClientOption(client.WithDontHaveTimeoutConfig(patience)),
	}
	if config.Serve != nil {
		options = append(options, bitswap.WithPeerBlockRequestFilter(config.Serve))
	}
	e.swap = bitswap.New(e.ctx, e.guard, nil, store, options...)
	e.puller = &puller{host: h, guard: e.guard, scores: newScores(), patience: config.Patience, buffers: newBuffers()}
	e.server = newServer(e)
	h.SetStreamHandler(BulkProtocol, e.server.handle)
	return e
}

// Close ends all fetches with [ErrClosed] and stops serving.
func (e *Exchange) Close() error {
	e.host.RemoveStreamHandler(BulkProtocol)
	e.cancel(ErrClosed)
	e.server.close()
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

// hashedPutter is a store that can be spared hashing blocks a second time. It keeps nothing of them when it returns.
type hashedPutter interface {
	PutHashed(context.Context, []blocks.Block) error
}

// Sync makes durable what was stored before.
func (e *Exchange) Sync() error {
	if s, ok := e.store.(syncer); ok {
		return s.Sync()
	}
	return nil
}

// PutHashed is PutMany for blocks whose CIDs were just computed from their bytes.
func (e *Exchange) PutHashed(ctx context.Context, bs []blocks.Block) error {
	put := e.store.PutMany
	if s, ok := e.store.(hashedPutter); ok {
		put = s.PutHashed
	}
	if e.ctx.Err() != nil {
		return ErrClosed
	}
	if err := put(ctx, bs); err != nil {
		return err
	}
	return e.swap.NotifyNewBlocks(ctx, bs...)
}

// putPulled is PutHashed for blocks whose bytes are in the puller's buffers, which are free then but for those that a fetch
// waits for.
func (e *Exchange) putPulled(ctx context.Context, bs []blocks.Block) error {
	s, ok := e.store.(hashedPutter)
	if !ok {
		return e.PutHashed(ctx, bs)
	}
	if e.ctx.Err() != nil {
		return ErrClosed
	}
	if err := s.PutHashed(ctx, bs); err != nil {
		return err
	}
	wanted, free := e.wanted.split(bs)
	err := e.swap.Server.NotifyNewBlocks(ctx, bs...) // it looks at their lengths only
	if len(wanted) > 0 {
		err = errors.Join(err, e.swap.Client.NotifyNewBlocks(ctx, wanted...))
	}
	for _, b := range free {
		e.puller.buffers.put(b.RawData())
	}
	return err
}

// Get returns a block from the store, or fetches it.
func (e *Exchange) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	return e.GetFrom(ctx, "", c)
}

// GetFrom is Get, and asks one peer before the others: who said that there is such a block.
func (e *Exchange) GetFrom(ctx context.Context, from peer.ID, c cid.Cid) (blocks.Block, error) {
	if e.ctx.Err() != nil {
		return nil, ErrClosed
	}
	if b, err := e.store.Get(ctx, c); !format.IsNotFound(err) {
		return b, err
	}
	w, err := e.walk(ctx, Bounds{MaxBytes: MaxBlock, MaxBlocks: 1}, nil)
	if err != nil {
		return nil, err
	}
	defer w.end()
	w.from = from
	return w.read(c)
}

// Fetch brings blocks into the store; those that are there do not move. Order is not kept, repeats are fetched once. With
// an error some may have come.
func (e *Exchange) Fetch(ctx context.Context, cids []cid.Cid, bounds Bounds, report func(Progress)) (Progress, error) {
	return e.FetchFrom(ctx, "", cids, bounds, report)
}

// FetchFrom is Fetch, and asks one peer before the others.
func (e *Exchange) FetchFrom(ctx context.Context, from peer.ID, cids []cid.Cid, bounds Bounds, report func(Progress)) (Progress, error) {
	w, err := e.walk(ctx, bounds, report)
	if err != nil {
		return Progress{}, err
	}
	defer w.end()
	w.from = from
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

func (b Bounds) withDefaults() Bounds {
	if b.MaxBlocks == 0 {
		b.MaxBlocks = 1 << 20
	}
	if b.MaxDepth == 0 {
		b.MaxDepth = 8
	}
	return b
}

// Progress is what a fetch has done so far.
type Progress struct {
	Blocks      int    // in the store of those the fetch is about
	Bytes       uint64 // of these
	MovedBlocks int    // of these, how many came from peers
	MovedBytes  uint64
	Wasted      uint64 // bytes that came from two peers
	Sources     int    // peers that sent any of these over the bulk protocol
	// Total is what Bytes will be, as far as the content's publisher can be believed; 0 is not known.
	Total uint64
}
