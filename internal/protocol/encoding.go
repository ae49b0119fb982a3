package protocol

import (
	"bytes"
	"fmt"
	"reflect"

	"github.com/fxamacker/cbor/v2"
)

// Record is anything with a canonical encoding.
type Record interface {
	// Validate reports every broken rule at once, joined; each is a [FieldError].
	Validate() error
}

// Bounds of decoding, below every record's own.
const (
	maxNesting  = 8
	maxElements = 65536 // entries of one list
	maxPairs    = 64    // fields of one record
)

var (
	encMode = must(cbor.EncOptions{
		Sort:          cbor.SortLengthFirst, // dag-cbor map order
		IndefLength:   cbor.IndefLengthForbidden,
		TagsMd:        cbor.TagsAllowed,
		NilContainers: cbor.NilContainerAsEmpty, // an empty list has one encoding
		BigIntConvert: cbor.BigIntConvertReject,
	}.EncMode())
	decMode = must(cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		MaxNestedLevels:   maxNesting,
		MaxArrayElements:  maxElements,
		MaxMapPairs:       maxPairs,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsAllowed,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
		UTF8:              cbor.UTF8RejectInvalid,
		NaN:               cbor.NaNDecodeForbidden,
		Inf:               cbor.InfDecodeForbidden,
	}.DecMode())
)

// must is for the two modes above: constant options, so a failure is a bug that every test of the package shows.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Encode validates v and returns its canonical dag-cbor.
func Encode(v Record) ([]byte, error) {
	if err := v.Validate(); err != nil {
		return nil, err
	}
	b, err := encMode.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("protocol: encode %T: %w", v, err)
	}
	return b, nil
}

// decode is the one way in: bound, check the form, parse, encode again and compare, check the rules.
func decode[T Record](name string, limit int, b []byte) (T, error) {
	var zero, v T
	if len(b) > limit {
		return zero, fmt.Errorf("%w: %s of %d bytes, limit %d", ErrTooLarge, name, len(b), limit)
	}
	if rest, ok := make(forms).match(b, reflect.TypeFor[T]()); !ok || len(rest) > 0 {
		return zero, fmt.Errorf("%w of a %s: other fields, types or lengths", ErrNotCanonical, name)
	}
	if err := decMode.Unmarshal(b, &v); err != nil {
		return zero, fmt.Errorf("%w of a %s: %w", ErrNotCanonical, name, err)
	}
	again, err := encMode.Marshal(v)
	if err != nil {
		return zero, fmt.Errorf("%w of a %s: %w", ErrNotCanonical, name, err)
	}
	if !bytes.Equal(again, b) {
		return zero, fmt.Errorf("%w of a %s: %d bytes encode again to %d others", ErrNotCanonical, name, len(b), len(again))
	}
	if err := v.Validate(); err != nil {
		return zero, err
	}
	return v, nil
}
