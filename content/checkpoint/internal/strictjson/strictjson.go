package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// DuplicateKeyError says that an object holds one key twice.
type DuplicateKeyError struct{ Key string }

func (e *DuplicateKeyError) Error() string { return fmt.Sprintf("duplicate key %q", e.Key) }

// Decoder steps through one JSON document. Every method consumes exactly one value, or fails; after a failure the
// decoder is of no further use. Errors are plain reasons, the caller says where they were met.
type Decoder struct{ d *json.Decoder }

// New returns a decoder over data, which must be valid UTF-8. It keeps no copy of data.
func New(data []byte) (*Decoder, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("not valid UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	return &Decoder{d: d}, nil
}

func (d *Decoder) token() (json.Token, error) {
	t, err := d.d.Token()
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil, errors.New("JSON ends early")
	case err != nil:
		return nil, fmt.Errorf("not valid JSON near byte %d: %v", d.d.InputOffset(), err)
	}
	return t, nil
}

// describe names a token in an error without repeating a hostile megabyte.
func describe(t json.Token) string {
	switch v := t.(type) {
	case json.Delim:
		if v == '{' {
			return "an object"
		}
		return "an array"
	case string:
		if len(v) > 40 {
			return fmt.Sprintf("the string %q...", strings.ToValidUTF8(v[:40], ""))
		}
		return fmt.Sprintf("the string %q", v)
	case json.Number:
		if len(v) > 40 {
			return "the number " + string(v[:40]) + "..."
		}
		return "the number " + string(v)
	case nil:
		return "null"
	default:
		return fmt.Sprint(v)
	}
}

// Object reads an object. each is called once per key, in the order of the document, and must consume the value. A key
// that was seen before in this object is a *DuplicateKeyError.
func (d *Decoder) Object(each func(key string) error) error {
	t, err := d.token()
	if err != nil {
		return err
	}
	if t != json.Delim('{') {
		return fmt.Errorf("want an object, got %s", describe(t))
	}
	var keys keySet
	for d.d.More() {
		t, err := d.token()
		if err != nil {
			return err
		}
		key, ok := t.(string)
		if !ok {
			return fmt.Errorf("want a key, got %s", describe(t))
		}
		// The decoder writes U+FFFD for a lone surrogate escape: two different documents would read the same.
		if strings.ContainsRune(key, utf8.RuneError) {
			return errors.New("a key holds U+FFFD or a lone surrogate")
		}
		if !keys.add(key) {
			return &DuplicateKeyError{Key: key}
		}
		if err := each(key); err != nil {
			return err
		}
	}
	_, err = d.token()
	return err
}

// Array reads an array. each is called before every element with its index, and must consume it.
func (d *Decoder) Array(each func(i int) error) error {
	t, err := d.token()
	if err != nil {
		return err
	}
	if t != json.Delim('[') {
		return fmt.Errorf("want an array, got %s", describe(t))
	}
	for i := 0; d.d.More(); i++ {
		if err := each(i); err != nil {
			return err
		}
	}
	_, err = d.token()
	return err
}

// String reads a string.
func (d *Decoder) String() (string, error) {
	t, err := d.token()
	if err != nil {
		return "", err
	}
	s, ok := t.(string)
	if !ok {
		return "", fmt.Errorf("want a string, got %s", describe(t))
	}
	if strings.ContainsRune(s, utf8.RuneError) {
		return "", errors.New("the string holds U+FFFD or a lone surrogate")
	}
	return s, nil
}

// Count reads an integer from 0 to 2^63-1, written with digits only.
func (d *Decoder) Count() (int64, error) {
	t, err := d.token()
	if err != nil {
		return 0, err
	}
	n, ok := t.(json.Number)
	if !ok {
		return 0, fmt.Errorf("want a non-negative integer, got %s", describe(t))
	}
	if strings.HasPrefix(string(n), "-") {
		return 0, fmt.Errorf("negative: %s", describe(t))
	}
	v, err := strconv.ParseInt(string(n), 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return 0, fmt.Errorf("larger than 2^63-1: %s", describe(t))
	case err != nil:
		return 0, fmt.Errorf("want a non-negative integer, got %s", describe(t))
	}
	return v, nil
}

// Scalar reads a string, number, boolean or null: a string, json.Number, bool or nil.
func (d *Decoder) Scalar() (any, error) {
	t, err := d.token()
	if err != nil {
		return nil, err
	}
	if _, nested := t.(json.Delim); nested {
		return nil, fmt.Errorf("want a plain value, got %s", describe(t))
	}
	return t, nil
}

// End checks that nothing but white space is left.
func (d *Decoder) End() error {
	_, err := d.d.Token()
	if errors.Is(err, io.EOF) {
		return nil
	}
	return fmt.Errorf("more data after the JSON document, at byte %d", d.d.InputOffset())
}

// keySet is a set of strings that allocates no map while it is small: most objects of a header have three keys, and
// there may be a million of them.
type keySet struct {
	few  []string
	many map[string]struct{}
}

func (s *keySet) add(key string) bool {
	if s.many != nil {
		if _, ok := s.many[key]; ok {
			return false
		}
		s.many[key] = struct{}{}
		return true
	}
	for _, k := range s.few {
		if k == key {
			return false
		}
	}
	s.few = append(s.few, key)
	if len(s.few) > 8 {
		s.many = make(map[string]struct{}, 2*len(s.few))
		for _, k := range s.few {
			s.many[k] = struct{}{}
		}
		s.few = nil
	}
	return true
}
