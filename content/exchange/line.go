package exchange

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"
)

// line is a stream to a peer, for one request after the other: what the multiplexer lets a peer send before it is told that
// more may come grows while a stream is used, and begins small with each.
type line struct {
	x      *puller
	peer   peer.ID
	stream network.Stream // nil before the first request, and after a failure
	r      *bufio.Reader
}

// close ends the stream. The next request opens another.
func (l *line) close() {
	if l.stream != nil {
		_ = l.stream.Close()
		l.stream = nil
	}
}

// ask asks the peer and hands out what it sends, as long as take says so. It returns when everything was answered. A peer
// that takes longer than patience for a block is ErrSlow, one that sends another is ErrLied and shunned. While a block is
// hashed and taken the next ones come, so that the peer need not wait for this host's windows to open.
func (l *line) ask(ctx context.Context, q request, take func(i int, b blocks.Block) bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(l.x.patience, func() { cancel(ErrSlow) })
	defer watch.Stop()
	type arrival struct {
		i    int
		data []byte
	}
	came := make(chan arrival, pullAhead)
	var err error // of the talk, once came is closed
	go func() {
		defer close(came)
		err = l.talk(ctx, q, func(i int, data []byte) error {
			watch.Stop()
			defer watch.Reset(l.x.patience)
			select {
			case came <- arrival{i, data}:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		watch.Stop()
	}()
	var fault error
	for a := range came {
		if fault != nil {
			continue
		}
		b, e := l.x.check(l.peer, q.cids[a.i], a.data)
		if e == nil && !take(a.i, b) {
			e = context.Canceled
		}
		if fault = e; fault != nil {
			cancel(fault)
		}
	}
	if fault != nil {
		return fault
	}
	if cause := context.Cause(ctx); cause != nil && err != nil {
		return cause // of the stream's reset
	}
	return err
}

// check makes a block of what a peer sent for it.
func (x *puller) check(p peer.ID, c cid.Cid, data []byte) (blocks.Block, error) {
	want, err := multihash.Decode(c.Hash())
	if err != nil {
		return nil, err
	}
	if got := sha256.Sum256(data); string(got[:]) != string(want.Digest) {
		x.guard.shun(p)
		return nil, fmt.Errorf("%w in place of %s", ErrLied, c)
	}
	return blocks.NewBlockWithCid(data, c)
}

// talk sends a request and hands out the bytes of every block of the answer, in order.
func (l *line) talk(ctx context.Context, q request, each func(i int, data []byte) error) error {
	a, stop, err := l.send(ctx, q)
	if err != nil {
		return err
	}
	defer stop()
	for i := 0; err == nil; i++ {
		var data []byte
		if data, err = a.next(l.x.buffers.get); err == nil && data != nil {
			err = each(i, data)
		}
	}
	if errors.Is(err, io.EOF) {
		if l.r.Buffered() == 0 {
			return nil
		}
		err = fmt.Errorf("%w: the answer goes on behind its last block", ErrWire)
	}
	_ = l.stream.Reset()
	l.stream = nil
	return err
}

// send sends a request and reads how its answer begins. Until stop is called the stream ends with ctx.
func (l *line) send(ctx context.Context, q request) (a *answer, stop func() bool, err error) {
	for {
		fresh := l.stream == nil
		if fresh {
			if l.stream, err = l.x.host.NewStream(network.WithNoDial(ctx, "known by its connection"), l.peer, BulkProtocol); err != nil {
				l.stream = nil
				return nil, nil, err
			}
			l.r = bufio.NewReaderSize(l.stream, 32<<10)
		}
		stream := l.stream
		stop = context.AfterFunc(ctx, func() { _ = stream.Reset() })
		if _, err = stream.Write(q.encode()); err == nil {
			a, err = readAnswer(l.r, q)
		}
		if err == nil {
			return a, stop, nil
		}
		stop()
		_ = stream.Reset()
		l.stream = nil
		said := errors.Is(err, ErrBusy) || errors.Is(err, ErrRefused) || errors.Is(err, ErrWire)
		if fresh || said || ctx.Err() != nil {
			return nil, nil, err
		}
		// The peer has ended a stream that was not used for a while.
	}
}
