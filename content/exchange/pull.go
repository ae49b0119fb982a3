package exchange

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"slices"
	"sync"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// What a fetch asks of its peers.
const (
	pullPeers = 4        // asked at the same time
	pullShare = 4 << 20  // of so many bytes there must be one more for another peer to be asked at the same time
	pullFirst = 64       // blocks of the first request to a peer
	pullSlice = 16 << 10 // blocks that are looked after at once

	pullStore = 50 * time.Millisecond // that blocks wait for others to be stored with
)

// useful remembers in which order peers were of use, for the next fetch to begin with the last one.
type useful struct {
	mu   sync.Mutex
	now  uint64
	last map[peer.ID]uint64
}

func (u *useful) note(p peer.ID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.last) >= 1024 {
		clear(u.last)
	}
	u.now++
	u.last[p] = u.now
}

// sort puts the last useful peer first, behind first; among strangers every host has an order of its own.
func (u *useful) sort(peers []peer.ID, own, first peer.ID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	rank := func(p peer.ID) (uint64, uint64) {
		h := fnv.New64a()
		h.Write([]byte(own))
		h.Write([]byte(p))
		if p == first {
			return ^uint64(0), 0
		}
		return u.last[p], h.Sum64()
	}
	slices.SortFunc(peers, func(a, b peer.ID) int {
		la, ha := rank(a)
		lb, hb := rank(b)
		switch {
		case la > lb || la == lb && ha < hb:
			return -1
		case la == lb && ha == hb:
			return 0
		}
		return 1
	})
}

// puller asks the peers of a host for many blocks at once.
type puller struct {
	host     host.Host
	guard    *guard
	useful   useful
	patience time.Duration
}

// candidates are the connected peers that may speak the bulk protocol, the most promising first.
func (x *puller) candidates(first peer.ID) []peer.ID {
	var out []peer.ID
	for _, p := range x.guard.good() {
		known, err := x.host.Peerstore().GetProtocols(p)
		if err == nil && (len(known) == 0 || slices.Contains(known, BulkProtocol)) {
			out = append(out, p)
		}
	}
	x.useful.sort(out, x.host.ID(), first)
	return out
}

// ask asks one peer and hands out what it sends, as long as take says so. It returns when everything was answered. A peer
// that takes longer than patience for a block is ErrSlow, one that sends another is ErrLied and shunned.
func (x *puller) ask(ctx context.Context, p peer.ID, q request, take func(i int, b blocks.Block) bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(x.patience, func() { cancel(ErrSlow) })
	defer watch.Stop()
	err := x.talk(ctx, p, q, func(i int, data []byte) error {
		watch.Stop()
		defer watch.Reset(x.patience)
		c := q.cids[i]
		want, err := multihash.Decode(c.Hash())
		if err != nil {
			return err
		}
		if got := sha256.Sum256(data); string(got[:]) != string(want.Digest) {
			x.guard.shun(p, Offence{Block: protocol.LinkTo(c.Prefix().Codec, data).Cid(), Bytes: len(data)})
			return fmt.Errorf("%w in place of %s", ErrLied, c)
		}
		b, err := blocks.NewBlockWithCid(data, c)
		if err == nil && !take(i, b) {
			err = context.Canceled
		}
		return err
	})
	if cause := context.Cause(ctx); cause != nil && err != nil {
		err = cause // of the stream's reset
	}
	return err
}

// talk sends a request and hands out the bytes of every block of the answer, in order.
func (x *puller) talk(ctx context.Context, p peer.ID, q request, each func(i int, data []byte) error) error {
	stream, err := x.host.NewStream(network.WithNoDial(ctx, "known by its connection"), p, BulkProtocol)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = stream.Reset() })()
	if _, err = stream.Write(q.encode()); err == nil {
		err = stream.CloseWrite()
	}
	var a *answer
	if err == nil {
		a, err = readAnswer(bufio.NewReaderSize(stream, 32<<10), q)
	}
	for i := 0; err == nil; i++ {
		var data []byte
		if data, err = a.next(); err == nil && data != nil {
			err = each(i, data)
		}
	}
	if !errors.Is(err, io.EOF) {
		_ = stream.Reset()
		return err
	}
	return stream.Close()
}

// pull is the part of a fetch that is done with the bulk protocol.
type pull struct {
	x       *puller
	cids    []cid.Cid
	typical int
	budget  uint32 // of one request
	got     chan blocks.Block

	mu      sync.Mutex
	state   []pullState
	free    int // in state pullFree
	out     int // in state pullAsked
	peers   []peer.ID
	changed chan struct{} // closed when something becomes free or done, or urgent
	urgent  bool          // nothing comes: what was asked of one peer may be asked of another
}

type pullState uint8

const (
	pullFree pullState = iota
	pullAsked
	pullDone
)

// bulk fetches blocks, none of which is in the store, from peers that speak the bulk protocol, and returns those that did
// not come from there. It gives up where no peer has anything more, or none sends anything for Config.Patience.
func (w *walk) bulk(cids []cid.Cid, typical int) (left []cid.Cid, err error) {
	for len(cids) > 0 {
		n := min(len(cids), pullSlice)
		rest, err := w.pull(cids[:n], typical)
		left, cids = append(left, rest...), cids[n:]
		if err != nil {
			return append(left, cids...), err
		}
		if len(rest) == n { // nobody has any
			return append(left, cids...), nil
		}
	}
	return left, nil
}

func (w *walk) pull(cids []cid.Cid, typical int) (left []cid.Cid, err error) {
	x := w.e.puller
	peers := x.candidates(w.from)
	if len(peers) == 0 || w.ctx.Err() != nil {
		return cids, nil
	}
	u := &pull{
		x: x, cids: cids, typical: max(typical, 1), peers: peers, state: make([]pullState, len(cids)), free: len(cids),
		budget: uint32(min(maxAnswer, max(w.e.config.InFlight/pullPeers, 1))),
		got:    make(chan blocks.Block), changed: make(chan struct{}),
	}
	ctx, cancel := context.WithCancel(w.ctx)
	var work sync.WaitGroup
	for range min(1+len(cids)*u.typical/pullShare, pullPeers, len(peers)) {
		work.Go(func() { u.work(ctx) })
	}
	over := make(chan struct{})
	go func() { work.Wait(); close(over) }()
	var p batch
	defer func() {
		cancel()
		<-over
		err = errors.Join(err, p.put(w))
		for i, s := range u.state {
			if s != pullDone {
				left = append(left, u.cids[i])
			}
		}
	}()
	quiet, store := time.NewTimer(x.patience/4), time.NewTimer(time.Hour)
	defer quiet.Stop()
	defer store.Stop()
	for {
		var b blocks.Block
		select {
		case b = <-u.got:
		case <-store.C:
			if err := p.put(w); err != nil {
				return nil, err
			}
			continue
		case <-over:
			return nil, nil
		case <-quiet.C:
			if !u.hurry(true) {
				return nil, nil
			}
			quiet.Reset(x.patience - x.patience/4)
			continue
		}
		u.hurry(false)
		quiet.Reset(x.patience / 4)
		if err := w.count(b.Cid(), len(b.RawData()), true); err != nil {
			return nil, err
		}
		if len(p.blocks) == 0 {
			store.Reset(pullStore)
		}
		p.blocks = append(p.blocks, b)
		if p.size += len(b.RawData()); p.size >= putBatch {
			if err := p.put(w); err != nil {
				return nil, err
			}
		}
	}
}

// hurry says whether every block that has not come may be asked of several peers. It reports whether that is new.
func (u *pull) hurry(urgent bool) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.urgent == urgent {
		return false
	}
	if u.urgent = urgent; urgent {
		u.change()
	}
	return true
}

// change wakes the workers that wait. Called with mu held.
func (u *pull) change() {
	close(u.changed)
	u.changed = make(chan struct{})
}

// work asks one peer after the other.
func (u *pull) work(ctx context.Context) {
	for ctx.Err() == nil {
		u.mu.Lock()
		if len(u.peers) == 0 || u.free+u.out == 0 {
			u.mu.Unlock()
			return
		}
		p := u.peers[0]
		u.peers = u.peers[1:]
		u.mu.Unlock()
		u.from(ctx, p)
	}
}

// from asks one peer for part after part, until it has nothing more to give.
func (u *pull) from(ctx context.Context, p peer.ID) {
	tried := make([]bool, len(u.cids))
	size := pullFirst
	for ctx.Err() == nil {
		part, wait := u.take(tried, size)
		if wait != nil {
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return
			}
		}
		if len(part) == 0 {
			return
		}
		q := request{budget: u.budget}
		for _, i := range part {
			q.cids = append(q.cids, u.cids[i])
		}
		came, last := 0, -1
		err := u.x.ask(ctx, p, q, func(i int, b blocks.Block) bool {
			came, last = came+1, i
			return u.deliver(ctx, part[i], b)
		})
		if came > 0 {
			u.x.useful.note(p)
		}
		// What comes behind the last block may have been left out for the budget: it can be asked for again.
		if err == nil {
			for _, i := range part[last+1:] {
				tried[i] = came == 0
			}
		}
		u.release(part)
		if err != nil || came == 0 {
			return
		}
		size = min(4*size, maxAsk)
	}
}

// take returns blocks to ask a peer for, at most n and about as many as the budget has room for. Where everything is asked
// of others already it returns a channel to wait on before the next try; with neither, this peer has nothing more to give.
func (u *pull) take(tried []bool, n int) (part []int, wait <-chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	n = min(n, max(int(u.budget)/u.typical, 1))
	for i := 0; i < len(u.cids) && len(part) < n; i++ {
		if tried[i] || u.state[i] == pullDone || u.state[i] == pullAsked && !u.urgent {
			continue
		}
		if u.state[i] == pullFree {
			u.state[i] = pullAsked
			u.free--
			u.out++
		}
		tried[i] = true
		part = append(part, i)
	}
	if len(part) == 0 && u.free == 0 && u.out > 0 && !u.urgent {
		return nil, u.changed
	}
	return part, nil
}

// deliver hands out a block, unless another peer was faster.
func (u *pull) deliver(ctx context.Context, i int, b blocks.Block) bool {
	u.mu.Lock()
	first := u.state[i] != pullDone
	if first {
		if u.state[i] == pullFree {
			u.free--
		} else {
			u.out--
		}
		u.state[i] = pullDone
	}
	u.mu.Unlock()
	if !first {
		return true
	}
	select {
	case u.got <- b:
		return true
	case <-ctx.Done():
		u.mu.Lock() // it did not arrive
		u.state[i] = pullFree
		u.free++
		u.mu.Unlock()
		return false
	}
}

// release gives back what a peer was asked for and did not send.
func (u *pull) release(part []int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, i := range part {
		if u.state[i] == pullAsked {
			u.state[i] = pullFree
			u.out--
			u.free++
		}
	}
	u.change()
}
