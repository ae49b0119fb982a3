package exchange

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	format "github.com/ipfs/go-ipld-format"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"
)

// What the bulk protocol's server does for one peer and for all.
const (
	serveStreams     = 4       // requests of one peer under way
	serveTotal       = 32      // of all peers; each holds a block in memory
	serveLook        = 4 << 10 // bytes that looking for a block counts as
	servePatience    = 10 * time.Second
	serveRequestTime = 10 * time.Second
)

// server answers bulk requests.
type server struct {
	e    *Exchange
	work sync.WaitGroup

	buffers sync.Pool // of *[]byte: room for a block each, and for what the store has behind it

	mu     sync.Mutex
	closed bool
	total  int
	peers  map[peer.ID]*customer
}

// customer is what the server knows of a peer. It is forgotten when it has nothing under way and its allowance is whole.
type customer struct {
	streams int
	rate    *rate.Limiter
}

func newServer(e *Exchange) *server {
	s := &server{e: e, peers: make(map[peer.ID]*customer)}
	s.buffers.New = func() any {
		b := make([]byte, MaxBlock+64)
		return &b
	}
	return s
}

// close waits for the requests under way; the exchange's context has ended them.
func (s *server) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.work.Wait()
}

// enter admits a request, or returns nil.
func (s *server) enter(p peer.ID) *customer {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.peers[p]
	if c == nil {
		for q, old := range s.peers {
			if len(s.peers) < 256 {
				break
			}
			if old.streams == 0 && old.rate.Tokens() >= float64(old.rate.Burst()) {
				delete(s.peers, q)
			}
		}
		c = &customer{rate: rate.NewLimiter(rate.Limit(s.e.config.ServeRate), s.e.config.ServeRate)}
		s.peers[p] = c
	}
	if s.closed || s.total >= serveTotal || c.streams >= serveStreams {
		return nil
	}
	s.total++
	c.streams++
	s.work.Add(1)
	return c
}

func (s *server) leave(c *customer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	c.streams--
	s.work.Done()
}

// handle answers the requests of one stream, one after the other. Whatever goes wrong is the asker's to notice.
func (s *server) handle(stream network.Stream) {
	from := stream.Conn().RemotePeer()
	c := s.enter(from)
	if c == nil {
		// The answer does not wait for the request, nor the host for the answer.
		if _, err := stream.Write([]byte{answerBusy}); err != nil {
			_ = stream.Reset()
			return
		}
		_ = stream.CloseRead()
		_ = stream.Close()
		return
	}
	defer s.leave(c)
	ctx, cancel := context.WithCancel(s.e.ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = stream.Reset() })()
	watch := time.AfterFunc(serveRequestTime, cancel)
	defer watch.Stop()
	out := newPacker(stream)
	for {
		q, err := readRequest(stream)
		switch {
		case err == nil:
			err = s.answer(ctx, from, c, q, out, watch)
		case errors.Is(err, ErrWire):
			_, _ = stream.Write([]byte{answerRefused})
			fallthrough
		case errors.Is(err, io.EOF): // between two requests
			_ = stream.CloseRead()
			_ = stream.Close()
			return
		}
		if err != nil {
			_ = stream.Reset()
			return
		}
		watch.Reset(serveRequestTime)
	}
}

// answer writes what is there of a request. watch ends the stream of a peer that does not read.
func (s *server) answer(ctx context.Context, to peer.ID, c *customer, q request, out *packer, watch *time.Timer) error {
	if err := out.write([]byte{answerBlocks}); err != nil {
		return err
	}
	sent := 0
	var word [4]byte
	say := func(n uint32) error {
		binary.LittleEndian.PutUint32(word[:], n)
		return out.write(word[:])
	}
	serve, read := s.e.config.Serve, s.e.read()
	buf := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(buf)
	for _, name := range q.cids {
		watch.Stop()
		if err := c.rate.WaitN(ctx, serveLook); err != nil {
			return err
		}
		watch.Reset(servePatience)
		var data []byte
		err := error(format.ErrNotFound{Cid: name})
		if serve == nil || serve(to, name) {
			data, err = read(ctx, name, *buf)
		}
		if err != nil && !format.IsNotFound(err) {
			return err
		}
		n := len(data)
		if err != nil || n > MaxBlock {
			if err := say(lengthMissing); err != nil {
				return err
			}
			continue
		}
		if sent > 0 && sent+n > int(q.budget) {
			if err := say(lengthEnd); err != nil {
				return err
			}
			break
		}
		watch.Stop()
		if err := c.rate.WaitN(ctx, n); err != nil {
			return err
		}
		watch.Reset(servePatience)
		if err := say(uint32(n)); err != nil {
			return err
		}
		if err := out.write(data); err != nil {
			return err
		}
		sent += n
	}
	return out.flush()
}

// reader is a store that reads into memory it is given, and need not hash what the asker will.
type reader interface {
	Read(ctx context.Context, c cid.Cid, buf []byte) ([]byte, error)
}

// read is how the server reads a block.
func (e *Exchange) read() func(ctx context.Context, c cid.Cid, buf []byte) ([]byte, error) {
	if s, ok := e.store.(reader); ok {
		return s.Read
	}
	return func(ctx context.Context, c cid.Cid, _ []byte) ([]byte, error) {
		b, err := e.store.Get(ctx, c)
		if err != nil {
			return nil, err
		}
		return b.RawData(), nil
	}
}

// packer collects bytes until they fill a message of Noise: 65519 bytes, of which the multiplexer needs 12. One byte more
// would cost a message, and a system call, of its own. To TLS they are four records.
type packer struct {
	w   io.Writer
	buf []byte
}

const packed = 65519 - 12

func newPacker(w io.Writer) *packer { return &packer{w: w, buf: make([]byte, 0, packed)} }

func (p *packer) write(b []byte) error {
	for len(b) > 0 {
		if len(p.buf) == 0 && len(b) >= packed {
			if _, err := p.w.Write(b[:packed]); err != nil {
				return err
			}
			b = b[packed:]
			continue
		}
		n := min(packed-len(p.buf), len(b))
		p.buf, b = append(p.buf, b[:n]...), b[n:]
		if len(p.buf) == packed {
			if err := p.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *packer) flush() error {
	if len(p.buf) == 0 {
		return nil
	}
	_, err := p.w.Write(p.buf)
	p.buf = p.buf[:0]
	return err
}
