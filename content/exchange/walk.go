package exchange

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	boxo "github.com/ipfs/boxo/exchange"
	"github.com/ipfs/boxo/ipld/merkledag"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// walk is one fetch: its bounds and what it has done.
type walk struct {
	e      *Exchange
	ctx    context.Context
	end    func()
	bounds Bounds
	report func(Progress)
	done   Progress
	seen   *cid.Set
	by     map[peer.ID]struct{} // who sent anything in bulk
	from   peer.ID              // who is asked first; may be empty
	// sought is the one CID that others know this by, undefined if there is none; moved what came since the fetch began.
	sought  cid.Cid
	seeking bool
	moved   atomic.Uint64
	// session is bitswap's for all windows where one peer is likely to have everything, so that it need be found only
	// once; otherwise every window has its own.
	whole   bool
	session boxo.Fetcher
}

func (e *Exchange) walk(ctx context.Context, bounds Bounds, report func(Progress)) (*walk, error) {
	if e.ctx.Err() != nil {
		return nil, ErrClosed
	}
	bounds = bounds.withDefaults()
	if report == nil {
		report = func(Progress) {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(e.ctx, func() { cancel(ErrClosed) })
	release := func() {}
	if s, ok := e.store.(holder); ok {
		release = s.Hold()
	}
	return &walk{
		e: e, ctx: ctx, bounds: bounds, report: report, seen: cid.NewSet(), by: map[peer.ID]struct{}{},
		end: func() {
			stop()
			cancel(nil)
			release()
		},
	}, nil
}

// holder is a store that deletes what nobody needs: what a fetch finds or brings must stay while it lasts.
type holder interface {
	Hold() (release func())
}

// syncer is a store whose blocks may be lost in a power cut before Sync has returned.
type syncer interface {
	Sync() error
}

// settle makes what was fetched durable.
func (w *walk) settle() error {
	if s, ok := w.e.store.(syncer); ok && w.done.MovedBlocks > 0 {
		return s.Sync()
	}
	return nil
}

// foresee takes from a directory, which is here, how many bytes there will be.
func (w *walk) foresee(root cid.Cid) {
	if root.Prefix().Codec != protocol.DagPB {
		return
	}
	b, err := w.e.store.Get(w.ctx, root)
	if err != nil {
		return
	}
	node, err := merkledag.DecodeProtobuf(b.RawData())
	if err != nil {
		return
	}
	total := uint64(len(b.RawData()))
	for _, l := range node.Links() {
		if total += l.Size; l.Size > w.bounds.MaxBytes || total > w.bounds.MaxBytes {
			return // whoever wrote this lies, or there is more than is wanted: which of these, the fetch will show
		}
	}
	w.done.Total = total
}

// Where a fetch gets its sources from, if not from peers that are connected.
const (
	fewPeers    = 2  // below so many that it might ask, a fetch looks for providers at once
	maxInvited  = 16 // providers that it connects to, each time
	maxPatience = 12 // times Config.Patience between two times at most; doubled from once
)

// seek looks for providers of what is fetched as long as there are too few peers to ask, or nothing comes. It ends with the
// fetch.
func (w *walk) seek() {
	wait, before := w.e.config.Patience, w.moved.Load()
	few := len(w.e.puller.candidates("")) < fewPeers
	for {
		if few {
			w.invite()
		}
		next := time.NewTimer(wait)
		select {
		case <-next.C:
		case <-w.ctx.Done():
			next.Stop()
			return
		}
		now := w.moved.Load()
		if few = now == before; few {
			wait = min(2*wait, maxPatience*w.e.config.Patience)
		}
		before = now
	}
}

// invite connects to peers that say they have what is fetched.
func (w *walk) invite() {
	ctx, cancel := context.WithTimeout(w.ctx, maxPatience*w.e.config.Patience)
	defer cancel()
	var work sync.WaitGroup
	defer work.Wait()
	for p := range w.e.config.Finder.FindProvidersAsync(ctx, w.sought, maxInvited) {
		if p.ID == w.e.host.ID() || w.e.host.Network().Connectedness(p.ID) == network.Connected {
			continue
		}
		work.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, w.e.config.Patience)
			defer cancel()
			_ = w.e.host.Connect(ctx, p) // one that cannot be reached is none
		})
	}
}

// oneSource prepares for things that their holders hold whole, and are known by.
func (w *walk) oneSource(sought cid.Cid) { w.whole, w.sought = true, sought }

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

// count adds a block that is in the store or about to be.
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
		w.moved.Add(1)
	}
	return nil
}

// countFrom is count for a block that a peer sent.
func (w *walk) countFrom(p peer.ID, c cid.Cid, size int) error {
	w.by[p] = struct{}{}
	w.done.Sources = len(w.by)
	return w.count(c, size, true)
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
	return w.obtain(missing, typical)
}

// obtain fetches blocks, none of which is in the store: in bulk where a peer can do that, and what is left with bitswap,
// which also waits for who is to have it later.
func (w *walk) obtain(cids []cid.Cid, typical int) error {
	if len(cids) > 0 && w.sought.Defined() && w.e.config.Finder != nil && !w.seeking {
		w.seeking = true
		go w.seek()
	}
	left, err := w.bulk(cids, typical)
	if err != nil {
		return err
	}
	return w.ask(left, min(max(w.e.config.InFlight/2/typical, 1), maxWindow))
}

// read returns a block from the store, fetching it if it is not there or turns out to be damaged.
func (w *walk) read(c cid.Cid) (blocks.Block, error) {
	b, err := w.e.store.Get(w.ctx, c)
	if !format.IsNotFound(err) {
		return b, err
	}
	if err := w.obtain([]cid.Cid{c}, MaxBlock); err != nil {
		return nil, err
	}
	return w.e.store.Get(w.ctx, c)
}

const (
	// maxWindow is of how many wants a bitswap session tells all peers at first. The others it tells only to peers that had
	// earlier ones, and if these turn out not to have them, to nobody.
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
	session := w.session
	if session == nil {
		if w.whole {
			ctx = w.ctx
		}
		session = w.e.swap.NewSession(ctx)
		if w.whole {
			w.session = session
		}
	}
	w.e.guard.asked.add(cids)
	in, err := session.GetBlocks(ctx, cids)
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
		return fmt.Errorf("%w: %d, one is %s: %w", ErrMissing, len(cids), cids[0], err)
	}
	all := cids
	w.e.wanted.add(all, 1)
	defer w.e.wanted.add(all, -1)
	// Its own context, so that after an error bitswap forgets what was asked.
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	var current, next *window
	p := batch{store: w.e.PutHashed}
	defer func() { err = errors.Join(err, p.put(w)) }()
	stall := newStall(w.e)
	defer stall.timer.Stop()
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
		b, ok, err := w.receive(current.in, &p, stall)
		switch {
		case err != nil:
			return err
		case !ok:
			return w.missing(current, next, cids)
		case !current.want.Has(b.Cid()):
			continue
		}
		if err := w.count(b.Cid(), len(b.RawData()), true); err != nil {
			return err
		}
		p.blocks = append(p.blocks, b)
		if p.size += len(b.RawData()); p.size >= putBatch {
			if err := p.put(w); err != nil {
				return err
			}
		}
		if current.want.Remove(b.Cid()); current.want.Len() == 0 {
			current = nil
		}
	}
}

// receive waits for a block. Before it has to wait it stores what has come, and while it waits it stirs bitswap.
func (w *walk) receive(in <-chan blocks.Block, p *batch, stall *stall) (b blocks.Block, ok bool, err error) {
	select {
	case b, ok = <-in:
		return b, ok, nil
	default:
	}
	if err := p.put(w); err != nil {
		return nil, false, err
	}
	stall.begin()
	for {
		select {
		case b, ok = <-in:
			return b, ok, nil
		case <-stall.timer.C:
			stall.stir()
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
	store  func(context.Context, []blocks.Block) error
	flying chan error // of the blocks that are being stored, nil if there are none
	done   Progress   // when these are stored
}

// send begins to store the batch when the one before is stored.
func (p *batch) send(w *walk) error {
	if err := p.land(w); err != nil {
		return err
	}
	bs, done := p.blocks, make(chan error, 1)
	p.blocks, p.size, p.flying, p.done = nil, 0, done, w.done
	go func() { done <- p.store(context.WithoutCancel(w.ctx), bs) }()
	return nil
}

// land waits for the blocks that are being stored.
func (p *batch) land(w *walk) error {
	if p.flying == nil {
		return nil
	}
	err := <-p.flying
	p.flying = nil
	if err == nil {
		w.report(p.done)
	}
	return err
}

// put stores the batch.
func (p *batch) put(w *walk) error {
	if err := p.land(w); err != nil || len(p.blocks) == 0 {
		return err
	}
	bs := p.blocks
	p.blocks, p.size = nil, 0
	// Also when the fetch has ended: what has come need not come again.
	// bitswap has made every CID from the bytes that came, and receive takes only those that were asked for.
	if err := p.store(context.WithoutCancel(w.ctx), bs); err != nil {
		return err
	}
	w.report(w.done)
	return nil
}

// stall helps bitswap on when nothing comes. A bitswap client asks a peer for a block once, and again only after half a
// minute: it takes silence and "I don't have it" for lasting, and one session's question for every session's. Telling it
// that all peers have left and come back makes it ask them all again.
type stall struct {
	e     *Exchange
	timer *time.Timer
	wait  time.Duration
}

func newStall(e *Exchange) *stall {
	s := &stall{e: e, wait: 2 * e.config.Patience, timer: time.NewTimer(time.Hour)}
	s.timer.Stop()
	return s
}

func (s *stall) begin() { s.timer.Reset(s.wait) }

// stir waits longer every time, also in later waits of the same fetch: the line may be slow.
func (s *stall) stir() {
	for _, p := range s.e.guard.good() {
		s.e.swap.Client.PeerDisconnected(p)
		s.e.swap.Client.PeerConnected(p)
	}
	s.wait = min(2*s.wait, 16*s.e.config.Patience)
	s.timer.Reset(s.wait)
}
