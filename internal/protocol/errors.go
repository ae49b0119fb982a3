package protocol

import (
	"errors"
	"fmt"
)

// Sentinels of every Decode function. All three are the sender's fault.
var (
	// ErrTooLarge: the bytes exceed the record's limit; nothing was decoded.
	ErrTooLarge = errors.New("protocol: record too large")
	// ErrNotCanonical: the bytes are not the canonical dag-cbor of a record of the kind asked for.
	ErrNotCanonical = errors.New("protocol: not the canonical encoding")
	// ErrInvalid: a field breaks a rule of its record. errors.As gives the first [FieldError], which names it.
	ErrInvalid = errors.New("protocol: invalid record")
)

// Sentinels of checks against a [Snapshot]. With the right snapshot they too are the sender's fault.
var (
	// ErrSigner: the snapshot has no participant of that id with the role that the record needs.
	ErrSigner = errors.New("protocol: the signer is not a participant with that role")
	// ErrSignature: a signature does not verify with the key that the snapshot has for its signer.
	ErrSignature = errors.New("protocol: wrong signature")
	// ErrQuorum: the signers have too little stake.
	ErrQuorum = errors.New("protocol: not a quorum")
	// ErrSnapshot: the record names another snapshot than the one it was checked against.
	ErrSnapshot = errors.New("protocol: of another snapshot")
)

// FieldError is one broken rule. It unwraps to [ErrInvalid].
type FieldError struct {
	Field   string // path from the record down, as "genesis.groups[3].share"
	Problem string // what is wrong and, where a person sets the field, what it would break
}

func (e *FieldError) Error() string { return "protocol: " + e.Field + ": " + e.Problem }

// Unwrap makes errors.Is(err, ErrInvalid) hold.
func (e *FieldError) Unwrap() error { return ErrInvalid }

// maxFaults bounds the report, so that a hostile record of 65536 bad entries costs no more than one of 32.
const maxFaults = 32

// faults collects every broken rule of a record.
type faults struct {
	prefix string
	errs   *[]error
}

// checked is a record that can report its faults below a prefix.
type checked interface{ faults(f faults) }

// validate runs the rules of v and joins what they found.
func validate(name string, v checked) error {
	var errs []error
	v.faults(faults{prefix: name, errs: &errs})
	return errors.Join(errs...)
}

// add records a fault of one field; an empty field names the record itself.
func (f faults) add(field, format string, args ...any) {
	if len(*f.errs) >= maxFaults {
		return
	}
	path := f.prefix
	if field != "" {
		path += "." + field
	}
	*f.errs = append(*f.errs, &FieldError{Field: path, Problem: fmt.Sprintf(format, args...)})
}

// under runs the rules of a part.
func (f faults) under(field string, v checked) {
	v.faults(faults{prefix: f.prefix + "." + field, errs: f.errs})
}

// full reports whether further checking can no longer add to the report.
func (f faults) full() bool { return len(*f.errs) >= maxFaults }

// index names an element of a list.
func index(field string, i int) string { return fmt.Sprintf("%s[%d]", field, i) }
