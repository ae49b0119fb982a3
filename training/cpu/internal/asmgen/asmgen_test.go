package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestCheckedIn refuses generated files that are not what this program writes.
func TestCheckedIn(t *testing.T) {
	files := Files()
	if len(files) != 4 {
		t.Errorf("%d files are generated, want 4", len(files))
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join("..", "..", name))
		if err != nil {
			t.Error(err)
			continue
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what asmgen writes: run go generate ./training/cpu", name)
		}
	}
	for name, again := range Files() {
		if !bytes.Equal(again, files[name]) {
			t.Errorf("%s differs from one run to the next", name)
		}
	}
}
