package exchange

import "errors"

var (
	// ErrMissing: blocks could not be had before the context ended, whose cause is wrapped. The environment's fault, or
	// of whoever promised the blocks.
	ErrMissing = errors.New("exchange: blocks missing")
	// ErrBounds: what a CID names is larger, deeper or of more blocks than allowed. The fault of whoever published it.
	ErrBounds = errors.New("exchange: content exceeds its bounds")
	// ErrContent: a block has the hash of its CID but not the form that its place asks for. The fault of whoever
	// published it, not of who sent it.
	ErrContent = errors.New("exchange: malformed content")
	// ErrClosed: the exchange was closed.
	ErrClosed = errors.New("exchange: closed")
)

// What a peer that is asked for many blocks at once may do. None of it ends a fetch: others are asked.
var (
	// ErrLied: the peer sent other bytes than those of the block it was asked for. It is shunned.
	ErrLied = errors.New("exchange: the peer sent another block")
	// ErrWire: the peer does not keep to docs/spec/blocks.md.
	ErrWire = errors.New("exchange: malformed request or answer")
	// ErrSlow: the peer took longer for one block than Config.Patience.
	ErrSlow = errors.New("exchange: the peer is too slow")
	// ErrBusy: the peer answers as many requests as it will.
	ErrBusy = errors.New("exchange: the peer is busy")
	// ErrRefused: the peer did not understand the request.
	ErrRefused = errors.New("exchange: the peer refused the request")
)
