package consensus

import (
	"errors"
	"fmt"
)

// Every error of this package is one of these, by whose fault it is.
var (
	// ErrPeer: wrong for everybody, whatever arrived when. Reject the message and score its sender down.
	ErrPeer = errors.New("consensus: peer at fault")
	// ErrIgnore: of no use here and now, by local state or clock: late, early, known already, another instance's. Do not
	// forward the message and do not blame anybody.
	ErrIgnore = errors.New("consensus: ignored")
	// ErrBug: this node called the package wrongly or is configured wrongly.
	ErrBug = errors.New("consensus: bug")
	// ErrConflict: two valid certificates contradict each other, which takes a third of the stake to be dishonest. The
	// first one stands here; an operator must look.
	ErrConflict = errors.New("consensus: two certificates conflict: more than a third of the stake signed both")
	// ErrUnavailable is for Derive to wrap: what it needs beside the set is not here yet. The proposal is tried again and
	// nobody is blamed.
	ErrUnavailable = errors.New("consensus: not available")
)

func peer(format string, args ...any) error   { return wrap(ErrPeer, format, args) }
func ignore(format string, args ...any) error { return wrap(ErrIgnore, format, args) }
func bug(format string, args ...any) error    { return wrap(ErrBug, format, args) }

func wrap(whose error, format string, args []any) error {
	return fmt.Errorf("%w: %w", whose, fmt.Errorf(format, args...))
}
