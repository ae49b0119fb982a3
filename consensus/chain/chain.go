package chain

import (
	"context"
	"errors"
	"time"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// Block is a final block.
type Block struct {
	Height uint64
	Hash   protocol.Hash
	Time   time.Time // by the chain's own clock
}

// Client is a connection to a chain.
//
// Methods may be called concurrently. Each blocks until it has an answer, has used up its retries ([ErrUnavailable]) or ctx
// is done (the error then wraps ctx.Err()); none blocks longer than ctx allows. Any other error is final: the same call
// would fail again. Arguments are only read, and not kept once a method has returned; results belong to the caller.
type Client interface {
	// Head returns the last final block. Later calls never return a lower height while the client lives, and a height has
	// one hash and one time for ever.
	Head(ctx context.Context) (Block, error)

	// Snapshot returns the registry as it was at a final block: valid by [protocol.Snapshot.Validate], with the block's
	// height and hash, and the same whenever and through whichever client it is asked for. [ErrUnknownBlock]: the block is
	// not final yet, or older than the chain remembers.
	Snapshot(ctx context.Context, height uint64) (protocol.Snapshot, error)

	// Submit puts a validator's weights of a cycle on chain. It returns nil only once they were read back from the chain.
	// The same submission again is no error, however often and however late, so a caller whose first answer was lost just
	// calls again. There is one submission per cycle and validator; the caller signs only one.
	//
	// [ErrWindow]: the chain takes no weights of that cycle now. [ErrConflict]: another submission of the same validator and
	// cycle stands. [ErrRefused]: not signed by a validator of the snapshot that starts the cycle, of another network, not a
	// valid record, or with a weight for somebody who is no miner in that snapshot.
	Submit(ctx context.Context, s protocol.Submission) error
}

// Sentinels of every client, by whose fault they are.
var (
	// ErrUnavailable: no endpoint gave a usable answer. The environment's fault: check that the chain's node is up and that
	// its address is right; ask again later.
	ErrUnavailable = errors.New("chain: no endpoint answers")
	// ErrUnknownBlock: the caller asked for a block that is not final yet or no longer remembered.
	ErrUnknownBlock = errors.New("chain: no such block")
	// ErrWindow: the caller is too early or too late.
	ErrWindow = errors.New("chain: outside the cycle's submission window")
	// ErrConflict: a second process uses the same key, or this one forgot what it signed before.
	ErrConflict = errors.New("chain: something else stands in its place")
	// ErrRefused: the caller sent what the chain does not accept, now or later.
	ErrRefused = errors.New("chain: refused")
)
