package protocol

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
)

// Key is a participant's ed25519 public protocol key: what its records are signed with. In CBOR it is a byte string.
type Key [ed25519.PublicKeySize]byte

// Sig is an ed25519 signature. In CBOR it is a byte string; the zero Sig means not signed and is never sent.
type Sig [ed25519.SignatureSize]byte

// Hash is a SHA-256. In CBOR it is a byte string.
type Hash [sha256.Size]byte

// Signed is a record that names who signed it.
//
// Signatures are over SigningBytes: "bzd/" ‖ kind ‖ "/1" ‖ 0x00 ‖ the canonical encoding with a zero Sig. The kind keeps
// a signature of one record from being one of another.
type Signed interface {
	Record
	// SigningBytes returns what is signed, nil if the record has no encoding.
	SigningBytes() []byte
	// VerifySig reports whether the record is signed by key. That key belongs to Signer is for a [Snapshot] to say:
	// [Snapshot.Check] does both.
	VerifySig(key Key) bool
	// Signer returns the id of the participant that the record names as its signer.
	Signer() ID
}

// KeyOf returns the public half of a private key, the zero Key if it has a wrong length.
func KeyOf(private ed25519.PrivateKey) (k Key) {
	if len(private) == ed25519.PrivateKeySize {
		copy(k[:], private[ed25519.PrivateKeySize-ed25519.PublicKeySize:])
	}
	return k
}

// signingBytes puts the domain before the encoding of a record whose Sig is already zero.
func signingBytes(kind string, unsigned any) []byte {
	b, err := encMode.Marshal(unsigned)
	if err != nil { // a link that names nothing; Validate says which
		return nil
	}
	return append([]byte("bzd/"+kind+"/1\x00"), b...)
}

// errCannotSign is ours: a caller's bug, never a peer's doing.
var errCannotSign = errors.New("protocol: cannot sign")

// sign writes the signature of message to sig.
func sign(key ed25519.PrivateKey, message []byte, sig *Sig) error {
	if len(key) != ed25519.PrivateKeySize {
		return fmt.Errorf("%w with a key of %d bytes, want %d", errCannotSign, len(key), ed25519.PrivateKeySize)
	}
	if message == nil {
		return fmt.Errorf("%w a record without an encoding; Validate names the field", errCannotSign)
	}
	copy(sig[:], ed25519.Sign(key, message))
	return nil
}

// verify reports whether sig is a signature of message. crypto/ed25519 refuses an S that is not reduced.
func verify(key Key, message []byte, sig Sig) bool {
	return message != nil && ed25519.Verify(key[:], message, sig[:])
}

// digest is the SHA-256 of a record's canonical encoding, the zero Hash if it has none.
func digest(v any) Hash {
	b, err := encMode.Marshal(v)
	if err != nil {
		return Hash{}
	}
	return sha256.Sum256(b)
}

// Link returns the CID under which the record of that digest is stored: CIDv1, dag-cbor, sha2-256.
func (h Hash) Link() Link {
	mh, err := multihash.Encode(h[:], multihash.SHA2_256)
	if err != nil { // 32 bytes always have a multihash
		return Link{}
	}
	return Link{cid.NewCidV1(DagCBOR, mh)}
}

// Compare orders hashes as byte strings.
func (h Hash) Compare(other Hash) int { return bytes.Compare(h[:], other[:]) }

// IsZero reports whether h is the hash of nothing in particular.
func (h Hash) IsZero() bool { return h == Hash{} }

// String returns 64 hex digits.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText implements encoding.TextMarshaler, for JSON and flags.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hash) UnmarshalText(b []byte) error { return fromHex("hash", h[:], b) }

// String returns 64 hex digits.
func (k Key) String() string { return hex.EncodeToString(k[:]) }

// MarshalText implements encoding.TextMarshaler, for JSON and flags.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *Key) UnmarshalText(b []byte) error { return fromHex("key", k[:], b) }

// String returns 128 hex digits.
func (s Sig) String() string { return hex.EncodeToString(s[:]) }

// MarshalText implements encoding.TextMarshaler, for JSON.
func (s Sig) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Sig) UnmarshalText(b []byte) error { return fromHex("signature", s[:], b) }

// fromHex fills dst from exactly as many hex digits as it needs.
func fromHex(what string, dst, text []byte) error {
	if len(text) != 2*len(dst) {
		return fmt.Errorf("%w: %s of %d characters, want %d hex digits", ErrInvalid, what, len(text), 2*len(dst))
	}
	if _, err := hex.Decode(dst, text); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrInvalid, what, err)
	}
	return nil
}

// signed adds a fault for the zero signature.
func (f faults) signed(s Sig) {
	if s == (Sig{}) {
		f.add("sig", "not signed")
	}
}

// hashes adds the faults of a list of hashes: ascending, each once, at most that many.
func (f faults) hashes(field string, list []Hash, least, most int) {
	if len(list) < least || len(list) > most {
		f.add(field, "%d hashes, want %d to %d", len(list), least, most)
		return
	}
	for i := 1; i < len(list) && !f.full(); i++ {
		if list[i-1].Compare(list[i]) >= 0 {
			f.add(index(field, i), "%s is not above the hash before it; sort them, each once", list[i])
		}
	}
}
