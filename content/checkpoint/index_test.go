package checkpoint

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"path/filepath"
	"testing"

	"github.com/blockzero-net/bzd/content/checkpoint/safetensors"
)

// checkIndex holds what parseIndex does with any bytes to its promises.
func checkIndex(t *testing.T, data []byte) {
	t.Helper()
	x, err := parseIndex("f", data)
	if err != nil {
		if !errors.Is(err, ErrFormat) {
			t.Fatalf("not a format error: %v", err)
		}
		return
	}
	if !json.Valid(data) {
		t.Fatalf("accepted %q, which is not JSON", data)
	}
	for tensor, file := range x.files {
		if !filepath.IsLocal(file) || filepath.Base(file) != file || filepath.Ext(file) != ".safetensors" || bytes.ContainsAny([]byte(file), `/\`) {
			t.Fatalf("accepted the file name %q", file)
		}
		if safetensors.CheckName(tensor) != nil {
			return // Write would refuse it
		}
	}
	encoded := x.encode()
	y, err := parseIndex("f", encoded)
	if err != nil || y.totalSize != x.totalSize || !maps.Equal(x.files, y.files) {
		t.Fatalf("read back: %v", err)
	}
	if !bytes.Equal(y.encode(), encoded) {
		t.Fatalf("two spellings: %q, %q", encoded, y.encode())
	}
}

func TestIndex(t *testing.T) {
	x := index{totalSize: 7, files: map[string]string{"b": "y.safetensors", "a": "x.safetensors"}}
	const want = `{
  "metadata": {
    "total_size": 7
  },
  "weight_map": {
    "a": "x.safetensors",
    "b": "y.safetensors"
  }
}
`
	if got := string(x.encode()); got != want {
		t.Errorf("got %s", got)
	}
	checkIndex(t, []byte(want))
	// What others write beside it is accepted and dropped.
	for _, data := range []string{
		`{"weight_map":{"a":"x.safetensors"}}`,
		`{"metadata":{"total_size":1.5e9,"total_parameters":3,"mtp":null},"weight_map":{"a":"x.safetensors"}}`,
		`{"metadata":{"total_size":99999999999999999999},"weight_map":{"a":"x.safetensors"}}`,
	} {
		y, err := parseIndex("f", []byte(data))
		if err != nil || y.totalSize != -1 || y.files["a"] != "x.safetensors" {
			t.Errorf("%s: %+v, %v", data, y, err)
		}
	}
}
