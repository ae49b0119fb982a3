package protocol

import (
	"bytes"
	"encoding/hex"
)

// ID is a participant's 32-byte chain public key. In CBOR it is a byte string.
type ID [32]byte

// Compare orders ids as byte strings; every tie of the protocol is broken by it.
func (id ID) Compare(other ID) int { return bytes.Compare(id[:], other[:]) }

// String returns 64 hex digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText implements encoding.TextMarshaler, for JSON and flags.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ID) UnmarshalText(b []byte) error { return fromHex("id", id[:], b) }
