package p2p

import (
	"context"
	"net"
	"sync"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	tls "github.com/libp2p/go-libp2p/p2p/security/tls"
)

// Security is how hosts secure connections: with TLS 1.3, as kubo prefers too, or with Noise where the other side knows only
// that. On a processor with AES instructions its cipher takes about half the time.
func Security() libp2p.Option {
	return libp2p.ChainOptions(libp2p.Security(tls.ID, newTLS), libp2p.Security(noise.ID, noise.New))
}

// tlsTransport is libp2p's, with connections that write in larger pieces.
type tlsTransport struct {
	*tls.Transport
	buffers *sync.Pool // of *[joined]byte
}

func newTLS(id protocol.ID, key crypto.PrivKey, muxers []upgrader.StreamMuxer) (sec.SecureTransport, error) {
	t, err := tls.New(id, key, muxers)
	if err != nil {
		return nil, err
	}
	return tlsTransport{t, &sync.Pool{New: func() any { return new([joined]byte) }}}, nil
}

// SecureInbound implements sec.SecureTransport.
func (t tlsTransport) SecureInbound(ctx context.Context, insecure net.Conn, p peer.ID) (sec.SecureConn, error) {
	return t.join(insecure, func(c net.Conn) (sec.SecureConn, error) { return t.Transport.SecureInbound(ctx, c, p) })
}

// SecureOutbound implements sec.SecureTransport.
func (t tlsTransport) SecureOutbound(ctx context.Context, insecure net.Conn, p peer.ID) (sec.SecureConn, error) {
	return t.join(insecure, func(c net.Conn) (sec.SecureConn, error) { return t.Transport.SecureOutbound(ctx, c, p) })
}

func (t tlsTransport) join(insecure net.Conn, secure func(net.Conn) (sec.SecureConn, error)) (sec.SecureConn, error) {
	below := &joiner{Conn: insecure, buffers: t.buffers}
	s, err := secure(below)
	if err != nil {
		return nil, err
	}
	return &joinedConn{SecureConn: s, below: below}, nil
}

// joinedConn is a TLS connection that hands the records of a long write to the system at once. TLS itself would write every
// record, at most 16 KiB of data, by itself, which costs about as much as encrypting it.
type joinedConn struct {
	sec.SecureConn
	below *joiner
	long  sync.Mutex // one long write at a time
}

const (
	tlsRecord = 16 << 10
	joined    = 68 << 10 // the multiplexer's longest frame in records
)

// Write implements net.Conn.
func (c *joinedConn) Write(p []byte) (int, error) {
	if len(p) <= tlsRecord {
		return c.SecureConn.Write(p)
	}
	c.long.Lock()
	defer c.long.Unlock()
	c.below.hold()
	n, err := c.SecureConn.Write(p)
	if e := c.below.release(); e != nil {
		return 0, e
	}
	return n, err
}

// joiner is a connection that keeps what is written while it is told to.
type joiner struct {
	net.Conn
	buffers *sync.Pool

	mu   sync.Mutex
	held []byte // nil: nothing is kept
	err  error  // of the first write that failed: what follows would have a gap before it
}

// Write implements net.Conn. Order is kept whoever writes.
func (j *joiner) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.held != nil && len(j.held)+len(p) <= joined {
		j.held = append(j.held, p...)
		return len(p), nil
	}
	j.flush()
	if j.err == nil {
		_, j.err = j.Conn.Write(p)
	}
	if j.err != nil {
		return 0, j.err
	}
	return len(p), nil
}

// hold makes writes wait for release.
func (j *joiner) hold() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.held = j.buffers.Get().(*[joined]byte)[:0]
}

// release writes what was kept.
func (j *joiner) release() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.flush()
	j.buffers.Put((*[joined]byte)(j.held[:joined]))
	j.held = nil
	return j.err
}

func (j *joiner) flush() {
	if len(j.held) > 0 && j.err == nil {
		_, j.err = j.Conn.Write(j.held)
	}
	if j.held != nil {
		j.held = j.held[:0]
	}
}
