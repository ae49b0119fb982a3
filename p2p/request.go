package p2p

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libprotocol "github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"
	"golang.org/x/time/rate"
)

// Errors of [Host.Request]. A handler may return ErrNotFound or ErrRefused, which reach the asker as such; any other error
// of a handler reaches it as ErrFailed, without its text.
var (
	ErrNotFound    = errors.New("p2p: the peer does not have it")
	ErrRefused     = errors.New("p2p: the peer refuses")
	ErrBusy        = errors.New("p2p: the peer serves too many requests already")
	ErrFailed      = errors.New("p2p: the peer failed to answer")
	ErrUnsupported = errors.New("p2p: the peer does not speak this protocol of this network")
	ErrTooLarge    = errors.New("p2p: request or response too large")
)

// The first byte of every response.
const (
	statusOK byte = iota
	statusNotFound
	statusRefused
	statusBusy
	statusTooLarge
	statusFailed
)

func statusOf(err error) byte {
	switch {
	case err == nil:
		return statusOK
	case errors.Is(err, ErrNotFound):
		return statusNotFound
	case errors.Is(err, ErrRefused):
		return statusRefused
	case errors.Is(err, ErrBusy):
		return statusBusy
	case errors.Is(err, ErrTooLarge):
		return statusTooLarge
	}
	return statusFailed
}

func statusError(status byte) error {
	switch status {
	case statusOK:
		return nil
	case statusNotFound:
		return ErrNotFound
	case statusRefused:
		return ErrRefused
	case statusBusy:
		return ErrBusy
	case statusTooLarge:
		return ErrTooLarge
	}
	return ErrFailed
}

// Protocol is a question that peers may ask each other, one request and one response on a stream of its own. Both sides
// use the same value.
type Protocol struct {
	Name        string // one word; the protocol is /bzd/<network>/<name>/1
	MaxRequest  int    // bytes
	MaxResponse int    // bytes
	Bound       bool   // only peers that are Bound are answered
}

// Handler answers one request. It runs in a goroutine of its own, many at once; ctx ends with the deadline or the host. It
// may keep the request, and must not change the response afterwards.
type Handler func(ctx context.Context, from peer.ID, request []byte) ([]byte, error)

// id is the protocol's name on the wire.
func (h *Host) id(p Protocol) libprotocol.ID {
	return libprotocol.ID("/bzd/" + h.cfg.Network.String() + "/" + p.Name + "/1")
}

// Handle answers requests of a protocol until the host closes.
func (h *Host) Handle(p Protocol, handler Handler) {
	h.libp2p.SetStreamHandler(h.id(p), func(s network.Stream) {
		if !h.enter() {
			_ = s.Reset()
			return
		}
		defer h.work.Done()
		h.serve(s, p, handler)
	})
}

// serve reads one request, answers it and closes the stream. Nothing here is worth an error to anybody but the asker.
func (h *Host) serve(s network.Stream, p Protocol, handler Handler) {
	ctx, cancel := context.WithTimeout(h.ctx, h.cfg.Limits.RequestTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = s.Reset() })()

	from := s.Conn().RemotePeer()
	response, err := h.answer(ctx, s, from, p, handler)
	if err == nil && len(response) > p.MaxResponse {
		h.log.Error("p2p: a handler's response is too large", "protocol", p.Name, "bytes", len(response), "limit", p.MaxResponse)
		err = ErrFailed
	}
	if err != nil {
		response = nil
	}
	if _, err := s.Write(append([]byte{statusOf(err)}, response...)); err != nil {
		_ = s.Reset()
		return
	}
	_ = s.CloseRead()
	_ = s.Close()
}

func (h *Host) answer(ctx context.Context, s network.Stream, from peer.ID, p Protocol, handler Handler) ([]byte, error) {
	if !h.gate.enter(from, h.clock) {
		return nil, ErrBusy
	}
	defer h.gate.leave(from)
	if st, _ := h.table.standing(from); p.Bound && st != Bound {
		return nil, ErrRefused
	}
	request, err := readBounded(s, p.MaxRequest)
	if err != nil {
		return nil, err
	}
	return handler(ctx, from, request)
}

// readBounded reads to the end of the stream, but no more than limit bytes.
func readBounded(r io.Reader, limit int) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(b) > limit {
		return nil, ErrTooLarge
	}
	return b, nil
}

// Request asks one peer and waits for the answer, at most Limits.RequestTimeout and as long as ctx lives. It connects to
// the peer if its addresses are known. The errors above tell what the peer said; any other means that it could not be
// reached or broke off.
func (h *Host) Request(ctx context.Context, to peer.ID, p Protocol, request []byte) ([]byte, error) {
	if len(request) > p.MaxRequest {
		return nil, fmt.Errorf("%w: %d bytes, %s takes %d", ErrTooLarge, len(request), p.Name, p.MaxRequest)
	}
	ctx, cancel := context.WithTimeout(ctx, h.cfg.Limits.RequestTimeout)
	defer cancel()
	response, err := h.request(ctx, to, p, request)
	if err == nil {
		return response, nil
	}
	if ctx.Err() != nil { // the stream's error only says that it was reset
		err = ctx.Err()
	}
	return nil, fmt.Errorf("p2p: ask %s of peer %s: %w", p.Name, to, err)
}

func (h *Host) request(ctx context.Context, to peer.ID, p Protocol, request []byte) ([]byte, error) {
	s, err := h.libp2p.NewStream(ctx, to, h.id(p))
	if err != nil {
		return nil, unsupported(err)
	}
	defer context.AfterFunc(ctx, func() { _ = s.Reset() })()
	if len(request) > 0 {
		_, err = s.Write(request)
	}
	if err == nil {
		err = s.CloseWrite()
	}
	var response []byte
	if err == nil {
		response, err = readBounded(s, 1+p.MaxResponse)
	}
	if err != nil {
		_ = s.Reset()
		return nil, unsupported(err)
	}
	_ = s.Close()
	if len(response) == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	return response[1:], statusError(response[0])
}

// unsupported names the error of a peer that does not know the protocol.
func unsupported(err error) error {
	if errors.As(err, new(multistream.ErrNotSupported[libprotocol.ID])) {
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return err
}

// gate limits the requests served at once, in all and for one peer, and their rate.
type gate struct {
	limits Limits
	mu     sync.Mutex
	total  int
	peers  map[peer.ID]*turnstile
}

type turnstile struct {
	inside int
	rate   *rate.Limiter
}

func newGate(l Limits) *gate { return &gate{limits: l, peers: make(map[peer.ID]*turnstile)} }

func (g *gate) enter(p peer.ID, clock Clock) bool {
	now := clock.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.peers[p]
	if t == nil {
		t = &turnstile{rate: rate.NewLimiter(rate.Limit(g.limits.PeerRate), max(1, int(2*g.limits.PeerRate)))}
		g.peers[p] = t
	}
	if !t.rate.AllowN(now, 1) || g.total >= g.limits.Requests || t.inside >= g.limits.PeerRequests {
		return false
	}
	g.total++
	t.inside++
	return true
}

func (g *gate) leave(p peer.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.total--
	g.peers[p].inside--
}

// sweep forgets peers that are quiet: with a full bucket and nothing under way, a new turnstile would be the same.
func (g *gate) sweep(clock Clock) {
	now := clock.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	for p, t := range g.peers {
		if t.inside == 0 && t.rate.TokensAt(now) >= float64(t.rate.Burst()) {
			delete(g.peers, p)
		}
	}
}
