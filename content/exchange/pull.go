package exchange

import (
	"cmp"
	"context"
	"errors"
	"hash/fnv"
	"slices"
	"sync"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
)

// What a fetch asks of its peers.
const (
	pullPeers = 4        // asked at the same time
	pullShare = 4 << 20  // of so many bytes there must be one more for another peer to be asked at the same time
	pullFirst = 64       // blocks of the first request to a peer
	pullFew   = 64       // blocks or less are asked of one peer more when nothing has come for a 25th of the patience
	pullAhead = 8        // blocks of an answer that may wait to be hashed
	pullSlice = 16 << 10 // blocks that are looked after at once

	pullStore = 50 * time.Millisecond // that blocks wait for others to be stored with
)

// scores remember in which order peers were of use, for the next fetch to begin with the last one, and which of them were
// slow or worse, to be asked after all others until they have been of use as often.
type scores struct {
	mu     sync.Mutex
	now    uint64
	last   map[peer.ID]uint64
	faults map[peer.ID]int
}

// maxFaults is how many times a peer must be of use at most until it counts like others again.
const maxFaults = 8

func newScores() scores {
	return scores{last: make(map[peer.ID]uint64), faults: make(map[peer.ID]int)}
}

func (u *scores) good(p peer.ID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.last) >= 1024 {
		clear(u.last)
	}
	u.now++
	u.last[p] = u.now
	if u.faults[p]--; u.faults[p] <= 0 {
		delete(u.faults, p)
	}
}

func (u *scores) bad(p peer.ID, faults int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.faults) >= 1024 {
		clear(u.faults)
	}
	u.faults[p] = min(u.faults[p]+faults, maxFaults)
}

// sort puts those without faults first, of these the last useful peer, behind first; among strangers every host has an
// order of its own.
func (u *scores) sort(peers []peer.ID, own, first peer.ID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	hash := func(p peer.ID) uint64 {
		h := fnv.New64a()
		h.Write([]byte(own))
		h.Write([]byte(p))
		return h.Sum64()
	}
	last := func(p peer.ID) uint64 {
		if p == first {
			return ^uint64(0)
		}
		return u.last[p]
	}
	slices.SortFunc(peers, func(a, b peer.ID) int {
		return cmp.Or(cmp.Compare(u.faults[a], u.faults[b]), cmp.Compare(last(b), last(a)), cmp.Compare(hash(a), hash(b)))
	})
}

// puller asks the peers of a host for many blocks at once.
type puller struct {
	host     host.Host
	guard    *guard
	scores   scores
	patience time.Duration
	buffers  *buffers
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
	x.scores.sort(out, x.host.ID(), first)
	return out
}

// pull is the part of a fetch that is done with the bulk protocol.
type pull struct {
	x       *puller
	ctx     context.Context
	cids    []cid.Cid
	typical int
	budget  uint32 // of one request
	want    int    // peers to ask at the same time
	got     chan delivery
	over    chan struct{} // closed when the last worker has left

	mu      sync.Mutex
	state   []pullState
	by      []*source // of what is in state pullAsked, who was asked last
	free    int       // in state pullFree
	out     int       // in state pullAsked
	peers   []peer.ID // to be asked next
	later   []peer.ID // that were outpaced: asked again when nobody else is, or nothing comes
	met     map[peer.ID]bool
	sources map[*source]struct{} // with a request under way
	workers int
	busy    int           // workers that have a peer
	bytes   uint64        // that came, but for what came twice
	twice   uint64        // that did
	changed chan struct{} // closed when something becomes free or done, or urgent, or a peer leaves
	urgent  bool          // nothing comes: what was asked of one peer may be asked of another
}

// source is a peer with a request under way.
type source struct {
	peer   peer.ID
	began  uint64 // pull.bytes when the request began
	came   uint64 // bytes since
	twice  uint64 // of these, bytes that had come from others
	cancel context.CancelCauseFunc
	behind bool // its blocks were asked of others for its pace
}

// delivery is a block and who sent it.
type delivery struct {
	blocks.Block
	from peer.ID
}

// How far a peer may fall behind the mean of the others: they may send pullOutpaced times its bytes and a start.
const (
	pullOutpaced = 4
	pullStart    = 4 << 20 // then its request ends, and another peer takes its place
	pullEnd      = 1 << 20 // then, where nothing else is left to do, its blocks are asked of others too, as many at a time
)

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
	ctx, cancel := context.WithCancel(w.ctx)
	u := &pull{
		x: x, ctx: ctx, cids: cids, typical: max(typical, 1), state: make([]pullState, len(cids)), by: make([]*source, len(cids)),
		free: len(cids), met: map[peer.ID]bool{}, sources: map[*source]struct{}{},
		budget: uint32(min(maxAnswer, max(w.e.config.InFlight/pullPeers, 1))),
		got:    make(chan delivery), over: make(chan struct{}), changed: make(chan struct{}),
	}
	u.want = min(1+len(cids)*u.typical/pullShare, pullPeers)
	u.staff(peers)
	u.double()
	p := batch{store: w.e.putPulled}
	defer func() {
		cancel()
		<-u.over
		w.done.Wasted += u.twice
		err = errors.Join(err, p.put(w))
		for i, s := range u.state {
			if s != pullDone {
				left = append(left, u.cids[i])
			}
		}
	}()
	silence := x.patience / 4
	if len(cids) <= pullFew {
		silence = x.patience / 25
	}
	quiet, store, look := time.NewTimer(silence), time.NewTimer(time.Hour), time.NewTicker(max(x.patience/8, time.Millisecond))
	defer quiet.Stop()
	defer store.Stop()
	defer look.Stop()
	for {
		var b delivery
		select {
		case b = <-u.got:
		case <-store.C:
			if err := p.put(w); err != nil {
				return nil, err
			}
			continue
		case <-look.C: // who has come since
			u.staff(x.candidates(w.from))
			continue
		case <-u.over:
			return nil, nil
		case <-quiet.C:
			if !u.hurry(true) {
				return nil, nil
			}
			quiet.Reset(x.patience - silence)
			continue
		}
		u.hurry(false)
		quiet.Reset(x.patience / 4)
		if err := w.countFrom(b.from, b.Cid(), len(b.RawData())); err != nil {
			return nil, err
		}
		if len(p.blocks) == 0 {
			store.Reset(pullStore)
		}
		p.blocks = append(p.blocks, b.Block)
		if p.size += len(b.RawData()); p.size >= putBatch {
			if err := p.send(w); err != nil {
				return nil, err
			}
		}
	}
}

// staff adds peers that have not been asked, and workers for them.
func (u *pull) staff(peers []peer.ID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	select {
	case <-u.over:
		return
	default:
	}
	for _, p := range peers {
		if !u.met[p] {
			u.met[p] = true
			u.peers = append(u.peers, p)
		}
	}
	for n := len(u.peers); n > 0 && u.workers < u.want; n-- {
		u.workers++
		go u.work()
	}
}

// double lets each peer have two requests under way where there are fewer peers than should be asked at the same time:
// while a block of one is hashed, one of the other comes.
func (u *pull) double() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.met) >= u.want {
		return
	}
	for p := range u.met {
		u.peers = append(u.peers, p)
	}
	for n := len(u.met); n > 0 && u.workers < u.want && u.workers > 0; n-- {
		u.workers++
		go u.work()
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
		for s := range u.sources {
			if s.came == 0 {
				u.x.scores.bad(s.peer, 1)
			}
		}
		if u.workers > 0 && len(u.peers) > 0 { // one more than are wanted: those may all wait for the same silence
			u.workers++
			go u.work()
		}
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
func (u *pull) work() {
	defer func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.workers--; u.workers == 0 {
			close(u.over)
		}
	}()
	for u.ctx.Err() == nil {
		p, wait := u.next()
		switch {
		case p != "":
			u.from(p)
			u.leave()
		case wait == nil:
			return
		default:
			select {
			case <-wait:
			case <-u.ctx.Done():
			}
		}
	}
}

// leave says that a worker is done with its peer.
func (u *pull) leave() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.busy--
	u.change()
}

// next returns the peer to ask next; or a channel to wait on, while others are asked who may yet fail; or neither.
func (u *pull) next() (p peer.ID, wait <-chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.free+u.out == 0:
	case len(u.peers) > 0:
		p, u.peers = u.peers[0], u.peers[1:]
	case len(u.later) == 0:
	case u.busy > 0 && !u.urgent:
		wait = u.changed
	default:
		p, u.later = u.later[0], u.later[1:]
	}
	if p != "" {
		u.busy++
	}
	return p, wait
}

// from asks one peer for part after part, until it has nothing more to give.
func (u *pull) from(p peer.ID) {
	l := &line{x: u.x, peer: p}
	defer l.close()
	tried := make([]bool, len(u.cids))
	size := pullFirst
	for u.ctx.Err() == nil {
		ctx, cancel := context.WithCancelCause(u.ctx)
		src := &source{peer: p, cancel: cancel}
		part, wait := u.take(src, tried, size)
		if wait != nil {
			cancel(nil)
			l.close()
			select {
			case <-wait:
				continue
			case <-u.ctx.Done():
				return
			}
		}
		if len(part) == 0 {
			cancel(nil)
			return
		}
		q := request{budget: u.budget}
		for _, i := range part {
			q.cids = append(q.cids, u.cids[i])
		}
		came, last := 0, -1
		err := l.ask(ctx, q, func(i int, b blocks.Block) bool {
			came, last = came+1, i
			return u.deliver(src, part[i], b)
		})
		cancel(nil)
		if u.crowded() {
			l.close()
		}
		if came > 0 && err == nil {
			u.x.scores.good(p)
		}
		// What comes behind the last block may have been left out for the budget: it can be asked for again.
		if err == nil {
			for _, i := range part[last+1:] {
				tried[i] = came == 0
			}
		}
		u.release(src, part, errors.Is(err, errOutpaced))
		switch {
		case errors.Is(err, ErrLied):
			u.x.scores.bad(p, maxFaults)
		case errors.Is(err, ErrSlow), errors.Is(err, ErrWire):
			u.x.scores.bad(p, 2)
		case errors.Is(err, errOutpaced):
			u.x.scores.bad(p, 1)
		}
		if err != nil || came == 0 {
			return
		}
		size = min(4*size, maxAsk)
	}
}

// crowded reports whether there are enough peers to ask one each. Then streams are not used again: of several, those whose
// windows have grown would starve the others, which would pass for slow.
func (u *pull) crowded() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.met) >= u.want
}

// errOutpaced ends the request to a peer that others outpace.
var errOutpaced = errors.New("exchange: the peer is outpaced by others")

// outpaced reports whether the others who are asked have each sent so much more than a peer, since its request began.
// Called with mu held.
func (u *pull) outpaced(s *source, start uint64) bool {
	others := uint64(max(u.workers-1, 1))
	return len(u.sources) > 1 && (u.bytes-s.began-(s.came-s.twice))/others >= pullOutpaced*s.came+start
}

// take returns blocks to ask a peer for, at most n and about as many as the budget has room for. Where everything is asked
// of others already it returns a channel to wait on before the next try; with neither, this peer has nothing more to give.
func (u *pull) take(src *source, tried []bool, n int) (part []int, wait <-chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	slow := false
	for s := range u.sources {
		if u.outpaced(s, pullStart) {
			s.cancel(errOutpaced)
		}
		slow = slow || u.outpaced(s, pullEnd)
	}
	n = min(n, max(int(u.budget)/u.typical, 1))
	take := func(i int) {
		if u.state[i] == pullFree {
			u.state[i] = pullAsked
			u.free--
			u.out++
		}
		tried[i], u.by[i] = true, src
		part = append(part, i)
	}
	for i := 0; i < len(u.cids) && len(part) < n && u.free > 0; i++ {
		if !tried[i] && u.state[i] == pullFree {
			take(i)
		}
	}
	// A slow peer sends its part from the front.
	second := len(part) == 0 && (u.urgent || slow)
	if second && !u.urgent {
		n = min(n, max(pullEnd/u.typical, 1))
	}
	for i := len(u.cids) - 1; i >= 0 && len(part) < n && second; i-- {
		if !tried[i] && u.state[i] == pullAsked && u.by[i] != src && (u.urgent || u.outpaced(u.by[i], pullEnd)) {
			if s := u.by[i]; !u.urgent && !s.behind {
				s.behind = true
				u.x.scores.bad(s.peer, 1)
			}
			take(i)
		}
	}
	slices.Sort(part)
	if len(part) > 0 {
		src.began = u.bytes
		u.sources[src] = struct{}{}
		return part, nil
	}
	if u.free == 0 && u.out > 0 && !u.urgent {
		return nil, u.changed
	}
	return nil, nil
}

// deliver hands out a block, unless another peer was faster.
func (u *pull) deliver(src *source, i int, b blocks.Block) bool {
	size := uint64(len(b.RawData()))
	u.mu.Lock()
	first := u.state[i] != pullDone
	src.came += size
	if first {
		if u.state[i] == pullFree {
			u.free--
		} else {
			u.out--
		}
		u.state[i] = pullDone
		u.bytes += size
	} else {
		u.twice += size
		src.twice += size
	}
	if u.free+u.out == 0 { // nobody need wait for who is still silent
		for s := range u.sources {
			if s != src {
				s.cancel(context.Canceled)
			}
		}
	}
	if u.free == 0 && u.out > 0 { // somebody may wait for a peer to be outpaced
		u.change()
	}
	u.mu.Unlock()
	if !first {
		return true
	}
	select {
	case u.got <- delivery{b, src.peer}:
		return true
	case <-u.ctx.Done():
		u.mu.Lock() // it did not arrive
		u.state[i] = pullFree
		u.free++
		u.mu.Unlock()
		return false
	}
}

// release gives back what a peer was asked for and did not send. A peer that was outpaced may be asked again.
func (u *pull) release(src *source, part []int, outpaced bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, i := range part {
		if u.state[i] == pullAsked && u.by[i] == src {
			u.state[i] = pullFree
			u.out--
			u.free++
		}
	}
	delete(u.sources, src)
	if outpaced {
		u.later = append(u.later, src.peer)
	}
	u.change()
}
