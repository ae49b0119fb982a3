package beacon

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/big"

	"github.com/drand/kyber"
	bls "github.com/drand/kyber-bls12381"
	"github.com/drand/kyber/group/mod"
	"github.com/drand/kyber/pairing"
)

// Sizes in bytes.
const (
	PublicSize    = 96 // a compressed point of G2
	SignatureSize = 48 // a compressed point of G1
)

// suite has the domain separation tags of RFC 9380, which are the library's defaults.
func suite() pairing.Suite { return bls.NewBLS12381Suite() }

// digest is the message of a round.
func digest(round uint64) []byte {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, round))
	return sum[:]
}

// hashRound is the round's point on G1, the identity that seeds are locked to.
func hashRound(s pairing.Suite, round uint64) (kyber.Point, error) {
	p, ok := s.G1().Point().(kyber.HashablePoint)
	if !ok {
		return nil, fmt.Errorf("beacon: the curve library cannot hash to G1")
	}
	return p.Hash(digest(round)), nil
}

// Randomness is the public randomness of a round: the SHA-256 of its signature. The signature must be a verified one.
func Randomness(sig []byte) [32]byte { return sha256.Sum256(sig) }

// Public is a beacon's public key, a point of G2 other than the neutral one. The zero Public verifies nothing. Its
// methods may be called concurrently.
type Public struct {
	point kyber.Point // never changed and never handed out; nil in the zero Public
	bytes [PublicSize]byte
}

// ParsePublic reads the 96 bytes of a compressed point. Every error is an [ErrPublic].
func ParsePublic(b []byte) (p Public, err error) {
	defer guard(&err, ErrPublic)
	if len(b) != PublicSize {
		return Public{}, fmt.Errorf("%w: %d bytes, want %d", ErrPublic, len(b), PublicSize)
	}
	point := suite().G2().Point()
	if err := point.UnmarshalBinary(b); err != nil {
		return Public{}, fmt.Errorf("%w: %w", ErrPublic, err)
	}
	if point.Equal(point.Null()) {
		return Public{}, fmt.Errorf("%w: the point at infinity, under which everybody can sign", ErrPublic)
	}
	return Public{point, [PublicSize]byte(b)}, nil
}

// Bytes returns the 96 bytes that [ParsePublic] reads.
func (p Public) Bytes() []byte { return p.bytes[:] }

// Equal reports whether both are the same key.
func (p Public) Equal(q Public) bool { return p.bytes == q.bytes }

// String returns 192 hex digits, as drand prints its keys; "" for the zero Public.
func (p Public) String() string {
	if p.point == nil {
		return ""
	}
	return hex.EncodeToString(p.bytes[:])
}

// MarshalText implements encoding.TextMarshaler, for JSON and flags.
func (p Public) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Public) UnmarshalText(b []byte) error {
	if len(b) != 2*PublicSize {
		return fmt.Errorf("%w: %d hex digits, want %d", ErrPublic, len(b), 2*PublicSize)
	}
	raw, err := hex.DecodeString(string(b))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPublic, err)
	}
	*p, err = ParsePublic(raw)
	return err
}

// Verify checks that sig is the signature of a round. Every error but those of a zero Public ([ErrPublic]) and of round 0
// ([ErrRound]) is an [ErrSignature]. There is exactly one valid signature per round and key.
func (p Public) Verify(round uint64, sig []byte) (err error) {
	defer guard(&err, ErrSignature)
	if p.point == nil {
		return fmt.Errorf("%w: none given", ErrPublic)
	}
	if round == 0 {
		return ErrRound
	}
	s := suite()
	point, err := parseSignature(s, sig)
	if err != nil {
		return err
	}
	message, err := hashRound(s, round)
	if err != nil {
		return err
	}
	if !s.ValidatePairing(message, p.point, point, s.G2().Point().Base()) {
		return fmt.Errorf("%w %d", ErrSignature, round)
	}
	return nil
}

func parseSignature(s pairing.Suite, sig []byte) (kyber.Point, error) {
	if len(sig) != SignatureSize {
		return nil, fmt.Errorf("%w: %d bytes, want %d", ErrSignature, len(sig), SignatureSize)
	}
	point := s.G1().Point()
	if err := point.UnmarshalBinary(sig); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSignature, err)
	}
	return point, nil
}

// Key is the secret key of a one-key beacon.
type Key struct {
	scalar kyber.Scalar // never changed
	public Public
}

// NewKey derives a key from a seed: the same seed gives the same key. The seed is as secret as the key.
func NewKey(seed [32]byte) (Key, error) {
	// 48 bytes reduced modulo the 255-bit order, as KeyGen of the BLS signature draft: the bias is below 2⁻¹²⁸.
	okm, err := hkdf.Key(sha256.New, seed[:], nil, "bzd/beacon/key/1", 48)
	if err != nil {
		return Key{}, fmt.Errorf("beacon: derive a key: %w", err)
	}
	s := suite()
	scalar, ok := s.G2().Scalar().(*mod.Int)
	if !ok {
		return Key{}, fmt.Errorf("beacon: the curve library has scalars of type %T", s.G2().Scalar())
	}
	scalar.V.Mod(new(big.Int).SetBytes(okm), scalar.M)
	b, err := s.G2().Point().Mul(scalar, nil).MarshalBinary()
	if err != nil {
		return Key{}, fmt.Errorf("beacon: derive a key: %w", err)
	}
	public, err := ParsePublic(b) // refuses the zero scalar
	if err != nil {
		return Key{}, err
	}
	return Key{scalar, public}, nil
}

// Public returns the key that verifies what k signs.
func (k Key) Public() Public { return k.public }

// Sign returns the 48-byte signature of a round. k must come from [NewKey]. It may be called concurrently. Whoever serves
// signatures must not do so before the round's time.
func (k Key) Sign(round uint64) ([]byte, error) {
	if round == 0 {
		return nil, ErrRound
	}
	if k.scalar == nil {
		return nil, fmt.Errorf("%w: a zero Key signs nothing", ErrPublic)
	}
	point, err := hashRound(suite(), round)
	if err != nil {
		return nil, err
	}
	sig, err := point.Mul(k.scalar, point).MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("beacon: sign round %d: %w", round, err)
	}
	return sig, nil
}

// guard turns a panic of the curve library on hostile bytes into the error of its sender.
func guard(err *error, fault error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%w: %v", fault, p)
	}
}
