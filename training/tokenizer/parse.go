package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
)

// Kind is a tokenizer that this build knows.
type Kind string

// Bytes is the tokenizer of this package.
const Bytes Kind = "bytes"

// MaxJSON is the largest tokenizer.json that [Parse] reads.
const MaxJSON = 1 << 20

// ErrUnsupported is wrapped by every error of [Parse]: the file is not valid
// or describes another tokenizer.
var ErrUnsupported = errors.New("unsupported tokenizer")

// Parse recognises a tokenizer.json. It accepts the byte-level tokenizer in
// any layout, with fields left out whose default means the same, and nothing
// else: a field it does not know, or one with another value, is an
// [ErrUnsupported] that names it.
func Parse(tokenizerJSON []byte) (Kind, error) {
	if len(tokenizerJSON) > MaxJSON {
		return "", fmt.Errorf("tokenizer: %w: %s has %d bytes, at most %d are read", ErrUnsupported, JSONFile, len(tokenizerJSON), MaxJSON)
	}
	dec := json.NewDecoder(bytes.NewReader(tokenizerJSON))
	dec.UseNumber()
	budget := MaxJSON // a value takes a byte at least
	got, err := value(dec, 0, &budget)
	if err == nil {
		if _, err = dec.Token(); err == io.EOF {
			err = nil
		} else if err == nil {
			err = errors.New("more than one value")
		}
	}
	if err != nil {
		return "", fmt.Errorf("tokenizer: %w: %s: %v", ErrUnsupported, JSONFile, err)
	}
	if why := expected().differs("", got); why != "" {
		return "", fmt.Errorf("tokenizer: %w: %s is not the byte-level tokenizer of %d tokens, the only one this version reads: %s", ErrUnsupported, JSONFile, VocabSize, why)
	}
	return Bytes, nil
}

const maxDepth = 16

// value decodes one JSON value and refuses what decoders read differently:
// repeated keys and deep nesting. budget is how many more values it may hold.
func value(dec *json.Decoder, depth int, budget *int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("nested deeper than %d", maxDepth)
	}
	if *budget--; *budget < 0 {
		return nil, errors.New("too many values")
	}
	t, err := dec.Token()
	if err == io.EOF {
		return nil, io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	switch t {
	case json.Delim('['):
		list := []any{}
		for dec.More() {
			v, err := value(dec, depth+1, budget)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := dec.Token()
		return list, err
	case json.Delim('{'):
		object := map[string]any{}
		for dec.More() {
			k, err := dec.Token()
			if err != nil {
				return nil, err
			}
			key, ok := k.(string)
			if !ok {
				return nil, fmt.Errorf("key %v is not a string", k)
			}
			if _, dup := object[key]; dup {
				return nil, fmt.Errorf("key %s appears twice", quote(key))
			}
			if object[key], err = value(dec, depth+1, budget); err != nil {
				return nil, err
			}
		}
		_, err := dec.Token()
		return object, err
	}
	return t, nil
}

// shape is what a value must be.
type shape struct {
	fields map[string]field // an object with these fields, if not nil
	allow  []any            // else one of these scalars, nil for null
	empty  bool             // else an empty list or object
}

type field struct {
	shape
	optional bool
}

// differs says where v first is not of the shape, "" if it is. Fields are
// compared in order of their names.
func (s shape) differs(path string, v any) string {
	switch {
	case s.fields != nil:
		object, ok := v.(map[string]any)
		if !ok {
			return fmt.Sprintf("%s is not an object", name(path))
		}
		for _, k := range sortedKeys(object) {
			if _, known := s.fields[k]; !known {
				return fmt.Sprintf("unknown field %s", name(join(path, k)))
			}
		}
		for _, k := range sortedKeys(s.fields) {
			f := s.fields[k]
			x, there := object[k]
			if !there {
				if f.optional {
					continue
				}
				return fmt.Sprintf("field %s is missing", name(join(path, k)))
			}
			if why := f.differs(join(path, k), x); why != "" {
				return why
			}
		}
		return ""
	case s.empty:
		switch x := v.(type) {
		case []any:
			if len(x) == 0 {
				return ""
			}
		case map[string]any:
			if len(x) == 0 {
				return ""
			}
		}
		return fmt.Sprintf("%s is not empty", name(path))
	}
	for _, want := range s.allow {
		if v == want {
			return ""
		}
	}
	return fmt.Sprintf("%s is %s, want %s", name(path), show(v), show(s.allow[0]))
}

// expected is the shape of the byte-level tokenizer.
func expected() shape {
	vocab := map[string]field{}
	for b := range VocabSize {
		vocab[string(runeOf(b))] = field{shape: only(json.Number(strconv.Itoa(b)))}
	}
	byteLevel := map[string]field{
		"type":             {shape: only("ByteLevel")},
		"add_prefix_space": {shape: only(false)},
		"trim_offsets":     {shape: only(true, false), optional: true}, // offsets into text are not used
		"use_regex":        {shape: only(false)},
	}
	decoder := map[string]field{ // none of its options changes what it decodes
		"type":             {shape: only("ByteLevel")},
		"add_prefix_space": {shape: only(false, true), optional: true},
		"trim_offsets":     {shape: only(true, false), optional: true},
		"use_regex":        {shape: only(false, true), optional: true},
	}
	null := field{shape: only(nil), optional: true}
	off := field{shape: only(false), optional: true}
	return shape{fields: map[string]field{
		"version":        {shape: only("1.0"), optional: true},
		"truncation":     null,
		"padding":        null,
		"added_tokens":   {shape: shape{empty: true}, optional: true},
		"normalizer":     null,
		"pre_tokenizer":  {shape: shape{fields: byteLevel}},
		"post_processor": null,
		"decoder":        {shape: shape{fields: decoder}},
		"model": {shape: shape{fields: map[string]field{
			"type":                      {shape: only("BPE")},
			"dropout":                   null,
			"unk_token":                 null,
			"continuing_subword_prefix": {shape: only(nil, ""), optional: true},
			"end_of_word_suffix":        {shape: only(nil, ""), optional: true},
			"fuse_unk":                  off,
			"byte_fallback":             off,
			"ignore_merges":             {shape: only(false, true), optional: true}, // there are none
			"vocab":                     {shape: shape{fields: vocab}},
			"merges":                    {shape: shape{empty: true}},
		}}},
	}}
}

func only(values ...any) shape { return shape{allow: values} }

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func name(path string) string {
	if path == "" {
		return "the file"
	}
	return quote(path)
}

func quote(s string) string {
	if len(s) > 80 {
		return strconv.Quote(s[:80]) + "…"
	}
	return strconv.Quote(s)
}

func show(v any) string {
	switch x := v.(type) {
	case nil:
		return "null"
	case string:
		return quote(x)
	case []any:
		return "a list"
	case map[string]any:
		if t, ok := x["type"].(string); ok {
			return "an object of type " + quote(t)
		}
		return "an object"
	case json.Number:
		return quoteNumber(x)
	default:
		return fmt.Sprint(x)
	}
}

func quoteNumber(n json.Number) string {
	if len(n) > 80 {
		return string(n[:80]) + "…"
	}
	return string(n)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
