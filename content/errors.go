package content

import (
	"errors"
	"fmt"

	"github.com/blockzero-net/bzd/internal/protocol"
)

var (
	// ErrManifest: the manifest contradicts itself, its blocks or its commitment. The miner's fault.
	ErrManifest = errors.New("content: bad manifest")
	// ErrSealed: a segment does not open: it was sealed with another seed, for another slot or place, or is not
	// ciphertext at all. The miner's fault, for the manifest names that block.
	ErrSealed = errors.New("content: segment does not open")
	// ErrTooLarge: the payload is larger than the caller allows. Nothing was allocated.
	ErrTooLarge = errors.New("content: payload too large")
	// ErrBlock: the bytes are not those of the block asked for. The fault of whoever gave them.
	ErrBlock = errors.New("content: other bytes than the block's")
	// ErrUnavailable: a block cannot be had; the reason is wrapped.
	ErrUnavailable = errors.New("content: block unavailable")
	// ErrNoTensor: the manifest has no tensor of that name. The caller's fault.
	ErrNoTensor = errors.New("content: no such tensor")
)

// SegmentError is an error of one segment of a payload.
type SegmentError struct {
	Index int           // of the segment in the manifest
	Block protocol.Link // its block
	Err   error         // wraps [ErrSealed], [ErrManifest], [ErrBlock] or [ErrUnavailable]
}

func (e *SegmentError) Error() string {
	return fmt.Sprintf("segment %d (%s): %s", e.Index, e.Block, e.Err)
}

// Unwrap makes errors.Is find the reason.
func (e *SegmentError) Unwrap() error { return e.Err }
