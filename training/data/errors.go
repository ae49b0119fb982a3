package data

import (
	"errors"
	"fmt"
)

// Faults of whoever made the bytes.
var (
	// ErrRecord is wrapped by every error about the bytes of a record.
	ErrRecord = errors.New("invalid dataset record")
	// ErrPiece is wrapped when a piece is not what its record says.
	ErrPiece = errors.New("piece does not match its record")
	// ErrGenerator means a well-formed record names a generator this build
	// does not have.
	ErrGenerator = errors.New("unknown generator")
)

// Faults of the request or of the machine.
var (
	// ErrPoolExhausted is wrapped by [PoolError].
	ErrPoolExhausted = errors.New("pool exhausted")
	// ErrNoText is wrapped by [NoTextError].
	ErrNoText = errors.New("no text found")
	// ErrTooLarge means a source holds more than the stated bound.
	ErrTooLarge = errors.New("too large")
	// ErrOption means an argument is out of its range.
	ErrOption = errors.New("bad option")
)

// RecordError says which field of a record is wrong and why.
type RecordError struct {
	Field  string // "" for the encoding as a whole
	Reason string
}

func (e *RecordError) Error() string {
	if e.Field == "" {
		return fmt.Sprintf("data: %v: %s", ErrRecord, e.Reason)
	}
	return fmt.Sprintf("data: %v: field %q: %s", ErrRecord, e.Field, e.Reason)
}

// Unwrap returns [ErrRecord].
func (e *RecordError) Unwrap() error { return ErrRecord }

// PoolError says that a pool cannot give what was asked of it.
type PoolError struct {
	Domain   string
	Pool     Pool
	Window   int   // bytes
	Size     int64 // samples in the pool; -1 if endless
	Excluded int64 // of those, already used
	Wanted   int64
}

func (e *PoolError) Error() string {
	return fmt.Sprintf("data: domain %q: %s %v: %d samples of %d bytes wanted, the pool has %d of which %d are excluded; use a larger dataset, draw fewer or exclude fewer cycles",
		e.Domain, e.Pool, ErrPoolExhausted, e.Wanted, e.Window, e.Size, e.Excluded)
}

// Unwrap returns [ErrPoolExhausted].
func (e *PoolError) Unwrap() error { return ErrPoolExhausted }

// NoTextError says where text was looked for and what was there instead.
type NoTextError struct {
	Domain  string
	Dir     string
	Files   int // regular files looked at
	Empty   int // of those, without a byte
	NotText int // of those, not UTF-8 or with a NUL byte
	Skipped int // of those, text that the domain leaves out (generated code)
}

func (e *NoTextError) Error() string {
	what := "there are no files"
	if e.Files > 0 {
		what = fmt.Sprintf("looked at %d files: %d empty, %d not UTF-8 text, %d generated", e.Files, e.Empty, e.NotText, e.Skipped)
	}
	return fmt.Sprintf("data: domain %q: %v in directory %q: %s (names that begin with a dot and symbolic links are not read)", e.Domain, ErrNoText, e.Dir, what)
}

// Unwrap returns [ErrNoText].
func (e *NoTextError) Unwrap() error { return ErrNoText }

// Missing is a built-in domain that this machine cannot build, and why. As an
// error it is what [BuiltinOne] returns for such a domain.
type Missing struct {
	Name   string
	Reason string
}

func (m Missing) Error() string {
	return fmt.Sprintf("data: built-in domain %q is not available: %s", m.Name, m.Reason)
}
