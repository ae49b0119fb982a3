package protocol

import (
	"cmp"
	"encoding/binary"
	"reflect"
	"slices"
)

// CBOR's major types, the first three bits of a head.
const (
	majorUint  = 0
	majorInt   = 1
	majorBytes = 2
	majorText  = 3
	majorList  = 4
	majorMap   = 5

	cborNull = 0xf6
)

// forms checks, before anything is allocated, that bytes have the form of a type: every map has exactly its fields in
// order, every list element is of the element's type, nothing is left out. Without it a list of a million empty maps
// would take a megabyte on the wire and a hundred in memory before the second encoding shows that it is not one.
//
// It says nothing about values. It remembers the fields of the structs it met.
type forms map[reflect.Type][]fieldForm

type fieldForm struct {
	name string
	typ  reflect.Type
}

// match reports whether b begins with a value of the form of t, and returns the rest.
func (f forms) match(b []byte, t reflect.Type) (rest []byte, ok bool) {
	if t == reflect.TypeFor[Link]() {
		if len(b) < linkBytes || b[0] != 0xd8 {
			return nil, false
		}
		return b[linkBytes:], true
	}
	if t.Kind() == reflect.Pointer {
		if len(b) > 0 && b[0] == cborNull {
			return b[1:], true
		}
		return f.match(b, t.Elem())
	}
	major, n, b, ok := head(b)
	if !ok {
		return nil, false
	}
	switch t.Kind() {
	case reflect.Struct:
		fields := f.fields(t)
		if major != majorMap || n != uint64(len(fields)) {
			return nil, false
		}
		for _, field := range fields {
			if b, ok = matchKey(b, field.name); !ok {
				return nil, false
			}
			if b, ok = f.match(b, field.typ); !ok {
				return nil, false
			}
		}
		return b, true
	case reflect.Slice, reflect.Array:
		isBytes := t.Elem().Kind() == reflect.Uint8
		if n > uint64(len(b)) || isBytes != (major == majorBytes) || !isBytes && major != majorList {
			return nil, false
		}
		if isBytes {
			return b[n:], t.Kind() == reflect.Slice || n == uint64(t.Len())
		}
		for range n {
			if b, ok = f.match(b, t.Elem()); !ok {
				return nil, false
			}
		}
		return b, true
	case reflect.String:
		if major != majorText || n > uint64(len(b)) {
			return nil, false
		}
		return b[n:], true
	case reflect.Int64:
		return b, major == majorUint || major == majorInt
	default: // the unsigned integers
		return b, major == majorUint
	}
}

// fields returns the fields of a struct in encoded order: shorter names first, then byte order.
func (f forms) fields(t reflect.Type) []fieldForm {
	if known, ok := f[t]; ok {
		return known
	}
	fields := make([]fieldForm, t.NumField())
	for i := range fields {
		fields[i] = fieldForm{t.Field(i).Tag.Get("cbor"), t.Field(i).Type}
	}
	slices.SortFunc(fields, func(a, b fieldForm) int {
		return cmp.Or(cmp.Compare(len(a.name), len(b.name)), cmp.Compare(a.name, b.name))
	})
	f[t] = fields
	return fields
}

// matchKey reports whether b begins with the text, and returns the rest.
func matchKey(b []byte, name string) (rest []byte, ok bool) {
	major, n, b, ok := head(b)
	if !ok || major != majorText || n != uint64(len(name)) || len(b) < len(name) || string(b[:n]) != name {
		return nil, false
	}
	return b[n:], true
}

// head reads a head of definite length: the major type and its number.
func head(b []byte) (major byte, n uint64, rest []byte, ok bool) {
	if len(b) == 0 {
		return 0, 0, nil, false
	}
	major, low, b := b[0]>>5, b[0]&31, b[1:]
	if low < 24 {
		return major, uint64(low), b, true
	}
	size := 1 << (low - 24)
	if low > 27 || len(b) < size {
		return 0, 0, nil, false
	}
	var wide [8]byte
	copy(wide[8-size:], b[:size])
	return major, binary.BigEndian.Uint64(wide[:]), b[size:], true
}
