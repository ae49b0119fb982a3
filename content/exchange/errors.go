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
