package strictjson

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

// read walks {string: count | string | [count...]} and returns the first error.
func read(doc string) error {
	d, err := New([]byte(doc))
	if err != nil {
		return err
	}
	err = d.Object(func(key string) error {
		switch (key + " ")[:1] {
		case "n":
			_, err := d.Count()
			return err
		case "s":
			_, err := d.String()
			return err
		case "a":
			return d.Array(func(int) error { _, err := d.Count(); return err })
		default:
			_, err := d.Scalar()
			return err
		}
	})
	if err != nil {
		return err
	}
	return d.End()
}

func TestDecoder(t *testing.T) {
	for _, doc := range []string{
		`{}`, ` { } `, `{"n":0,"s":"x","a":[1,2,9223372036854775807],"x":null,"y":true,"z":-1.5e3}`,
		`{"n1":1,"n2":1,"n3":1,"n4":1,"n5":1,"n6":1,"n7":1,"n8":1,"n9":1,"n10":1}`,
	} {
		if err := read(doc); err != nil {
			t.Errorf("%s: %v", doc, err)
		}
	}
	for doc, reason := range map[string]string{
		``:                             "ends early",
		`[]`:                           "want an object, got an array",
		`{"n":1`:                       "ends early",
		`{"n":1,}`:                     "not valid JSON",
		`{"n" 1}`:                      "not valid JSON",
		`{"n":01}`:                     "not valid JSON",
		`{"n":1}}`:                     "more data",
		`{"n":1} {}`:                   "more data",
		`{"n":-1}`:                     "negative",
		`{"n":1.0}`:                    "want a non-negative integer",
		`{"n":1e3}`:                    "want a non-negative integer",
		`{"n":9223372036854775808}`:    "larger than 2^63-1",
		`{"n":"1"}`:                    "want a non-negative integer",
		`{"s":1}`:                      "want a string",
		`{"a":{}}`:                     "want an array",
		`{"a":[1,]}`:                   "not valid JSON",
		`{"a":[[[[[[[[`:                "got an array",
		`{"x":{}}`:                     "want a plain value",
		`{"n":1,"n":1}`:                `duplicate key "n"`,
		`{"n":1,"\u006e":1}`:           `duplicate key "n"`,
		`{"s":"\ud800"}`:               "lone surrogate",
		`{"x\ud800":1,"x\udbff":1}`:    "lone surrogate",
		"{\"s\":\"\xff\"}":             "UTF-8",
		"{\"s\":\"\x01\"}":             "not valid JSON",
		"\ufeff{}":                     "not valid JSON",
		strings.Repeat("[", 1_000_000): "want an object",
		`{"n1":1,"n2":1,"n3":1,"n4":1,"n5":1,"n6":1,"n7":1,"n8":1,"n9":1,"n10":1,"n2":1}`: `duplicate key "n2"`,
	} {
		err := read(doc)
		if err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("%.60s: got %v, want %q", doc, err, reason)
		}
	}
	var dup *DuplicateKeyError
	if err := read(`{"n":1,"n":1}`); !errors.As(err, &dup) || dup.Key != "n" {
		t.Errorf("a key given twice: %v", err)
	}
}

// FuzzDecoder holds the decoder to encoding/json: what it accepts must be a valid document.
func FuzzDecoder(f *testing.F) {
	f.Add(`{"n":1,"s":"x","a":[1]}`)
	f.Add(`{"n":1,}`)
	f.Fuzz(func(t *testing.T, doc string) {
		if read(doc) == nil && !json.Valid([]byte(doc)) {
			t.Fatalf("accepted %q, which is not JSON", doc)
		}
	})
}
