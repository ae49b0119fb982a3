package beacon

import "errors"

// Sentinels, by whose fault they are.
var (
	// ErrTooEarly: the round is not published yet. Nobody's fault; ask again at its time.
	ErrTooEarly = errors.New("beacon: round not published yet")
	// ErrSignature: the bytes are not the signature of that round under that key. The fault of whoever sent them.
	ErrSignature = errors.New("beacon: not the signature of the round")
	// ErrLocked: the bytes are not a seed locked to the round whose signature was given. The fault of whoever locked it.
	ErrLocked = errors.New("beacon: not a seed locked to this round")
	// ErrPublic: not a usable public key. The fault of whoever configured it.
	ErrPublic = errors.New("beacon: not a public key")
	// ErrRound: there is no such round; they count from 1. A bug of the caller.
	ErrRound = errors.New("beacon: rounds count from 1")
)
