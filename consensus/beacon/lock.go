package beacon

import (
	"fmt"

	"github.com/drand/kyber/encrypt/ibe"
)

// Sizes in bytes.
const (
	SeedSize = 16
	// LockedSize is a point of G2 (U), the masked σ (V) and the masked seed (W), as tlock's CiphertextToBytes writes them.
	LockedSize = PublicSize + 2*SeedSize
)

// Lock seals a seed so that it opens with the signature of a round, and not before: the Boneh-Franklin scheme in its
// chosen-ciphertext-secure form, the same as tlock's TimeLock without the age container. The randomness (σ, 16 bytes)
// is drawn from crypto/rand inside drand's library, which offers no other way; two locks of one seed therefore differ.
// Whoever must be able to repeat a locked seed keeps the bytes.
//
// Fails with [ErrPublic] or [ErrRound]. It may be called concurrently.
func Lock(public Public, round uint64, seed [SeedSize]byte) ([]byte, error) {
	if public.point == nil {
		return nil, fmt.Errorf("%w: none given", ErrPublic)
	}
	if round == 0 {
		return nil, ErrRound
	}
	// The pairing normalises its arguments in place, so it gets a copy.
	c, err := ibe.EncryptCCAonG2(suite(), public.point.Clone(), digest(round), seed[:])
	if err != nil {
		return nil, fmt.Errorf("beacon: lock: %w", err)
	}
	u, err := c.U.MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("beacon: lock: %w", err)
	}
	locked := append(append(u, c.V...), c.W...)
	if len(locked) != LockedSize {
		return nil, fmt.Errorf("beacon: lock: the library gave %d bytes, want %d", len(locked), LockedSize)
	}
	return locked, nil
}

// Unlock opens a locked seed with the signature of its round, which the caller has verified under public. Seeds locked under
// another key or to another round do not open. locked may be any bytes: the error is then [ErrLocked], and never a seed
// that [Lock] did not seal, for the scheme recomputes U from what it opened. An [ErrSignature] says that sig cannot be a
// signature of any round. The arithmetic does not need public; the zero Public, under which nothing can have been
// verified, is an [ErrPublic].
//
// It may be called concurrently and keeps nothing of its arguments.
func Unlock(public Public, sig, locked []byte) (seed [SeedSize]byte, err error) {
	defer guard(&err, ErrLocked)
	if public.point == nil {
		return seed, fmt.Errorf("%w: none given", ErrPublic)
	}
	if len(locked) != LockedSize {
		return seed, fmt.Errorf("%w: %d bytes, want %d", ErrLocked, len(locked), LockedSize)
	}
	s := suite()
	private, err := parseSignature(s, sig)
	if err != nil {
		return seed, err
	}
	if private.Equal(private.Null()) {
		return seed, fmt.Errorf("%w: the point at infinity", ErrSignature)
	}
	u := s.G2().Point()
	if err := u.UnmarshalBinary(locked[:PublicSize]); err != nil {
		return seed, fmt.Errorf("%w: %w", ErrLocked, err)
	}
	plain, err := ibe.DecryptCCAonG2(s, private, &ibe.Ciphertext{
		U: u,
		V: locked[PublicSize : PublicSize+SeedSize],
		W: locked[PublicSize+SeedSize:],
	})
	if err != nil {
		return seed, fmt.Errorf("%w: %w", ErrLocked, err)
	}
	if len(plain) != SeedSize {
		return seed, fmt.Errorf("%w: a seed of %d bytes", ErrLocked, len(plain))
	}
	return [SeedSize]byte(plain), nil
}
