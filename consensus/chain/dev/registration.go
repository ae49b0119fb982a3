package dev

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/fxamacker/cbor/v2"
)

// Registration puts a participant into the registry, changes its entry or takes it out (Roles 0), signed by its chain key:
// the ed25519 key whose public half is the id.
type Registration struct {
	Version     uint32               `cbor:"version"`
	Network     protocol.Link        `cbor:"network"`
	Sequence    uint64               `cbor:"sequence"` // above that of the participant's registration before; from 1
	Participant protocol.Participant `cbor:"participant"`
	Sig         protocol.Sig         `cbor:"sig"`
}

// Sign signs with the chain key.
func (r *Registration) Sign(key ed25519.PrivateKey) error {
	if len(key) != ed25519.PrivateKeySize {
		return fmt.Errorf("dev chain: a chain key of %d bytes, want %d", len(key), ed25519.PrivateKeySize)
	}
	b, err := r.signingBytes()
	if err != nil {
		return err
	}
	r.Sig = protocol.Sig(ed25519.Sign(key, b))
	return nil
}

// VerifySig reports whether the id's key signed.
func (r Registration) VerifySig() bool {
	b, err := r.signingBytes()
	return err == nil && ed25519.Verify(r.Participant.ID[:], b, r.Sig[:])
}

func (r Registration) signingBytes() ([]byte, error) {
	r.Sig = protocol.Sig{}
	b, err := protocol.Encode(r)
	if err != nil {
		return nil, err
	}
	return append([]byte("bzd/devchain-registration/1\x00"), b...), nil
}

// leaves reports whether the participant leaves the registry.
func (r Registration) leaves() bool { return r.Participant.Roles == 0 }

// Validate implements protocol.Record. The signature is not checked.
func (r Registration) Validate() error {
	var errs []error
	if r.Version != protocol.Version {
		errs = append(errs, fmt.Errorf("dev chain: registration of version %d, this release speaks %d", r.Version, protocol.Version))
	}
	if !r.Network.Defined() {
		errs = append(errs, errors.New("dev chain: registration for no network"))
	}
	if r.Sequence == 0 {
		errs = append(errs, errors.New("dev chain: registrations count from 1"))
	}
	if r.leaves() {
		if r.Participant != (protocol.Participant{ID: r.Participant.ID}) {
			errs = append(errs, errors.New("dev chain: a participant without roles leaves, and has nothing but an id"))
		}
	} else if err := (protocol.Snapshot{Version: protocol.Version, Participants: []protocol.Participant{r.Participant}}).Validate(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// decMode accepts what protocol.Encode writes; decode compares, so it need not be strict about form.
var decMode = func() cbor.DecMode {
	mode, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		MaxNestedLevels:   8,
		MaxMapPairs:       64,
		IndefLength:       cbor.IndefLengthForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
	}.DecMode()
	if err != nil { // constant options: every test of the package shows it
		panic(err)
	}
	return mode
}()

// decode reads the canonical encoding of a record of this package, of bytes whose length was bounded before.
func decode[T protocol.Record](b []byte) (T, error) {
	var zero, v T
	if err := decMode.Unmarshal(b, &v); err != nil {
		return zero, fmt.Errorf("%w: %w", protocol.ErrNotCanonical, err)
	}
	again, err := protocol.Encode(v)
	if err != nil {
		return zero, err
	}
	if !bytes.Equal(again, b) {
		return zero, fmt.Errorf("%w: %d bytes encode again to %d others", protocol.ErrNotCanonical, len(b), len(again))
	}
	return v, nil
}
