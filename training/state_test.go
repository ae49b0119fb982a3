package training_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/blockzero-net/bzd/training"
	"github.com/blockzero-net/bzd/training/optim"
)

// someState has values that a careless encoding would change.
func someState(n int) training.State {
	s := training.State{Job: [32]byte{0: 7, 31: 9}, Step: 12, Values: make([]float32, n),
		Moments: optim.State{Steps: 34, M: make([]float32, n), V: make([]float32, n)}}
	for i := range n {
		s.Values[i], s.Moments.M[i], s.Moments.V[i] = float32(i)-1.5, 1/float32(i+1), float32(i)*1e-30
	}
	if n > 4 {
		s.Values[0], s.Values[1] = float32(math.Copysign(0, -1)), math.SmallestNonzeroFloat32
		s.Values[2], s.Values[3] = float32(math.Inf(-1)), math.Float32frombits(0x7fc12345) // a NaN with a payload
	}
	return s
}

// left lists what is in a directory.
func left(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestStateFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	if _, err := training.ReadState(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	for _, n := range []int{1000, 0, 5, 1} { // each replaces the one before
		want := someState(n)
		if err := training.WriteState(path, want); err != nil {
			t.Fatal(err)
		}
		got, err := training.ReadState(path)
		if err != nil {
			t.Fatal(err)
		}
		sameState(t, "read", got, want)
		if names := left(t, dir); len(names) != 1 {
			t.Errorf("the directory holds %v", names)
		}
	}
}

// TestStateFileLayout is the promise that a state written by an older build is read: the bytes of a small one, by hand.
func TestStateFileLayout(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	if err := training.WriteState(path, training.State{Job: [32]byte{31: 0xff}, Step: 2, Values: []float32{1, -2},
		Moments: optim.State{Steps: 3, M: []float32{0.5, 0}, V: []float32{4, 0.25}}}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := append([]byte("bzdstat\x01"), make([]byte, 31)...)
	want = append(want, 0xff)
	for _, x := range []uint64{2, 3, 2} {
		want = binary.LittleEndian.AppendUint64(want, x)
	}
	for _, x := range []uint32{0x3f800000, 0xc0000000, 0x3f000000, 0, 0x40800000, 0x3e800000} {
		want = binary.LittleEndian.AppendUint32(want, x)
	}
	if len(got) != len(want)+32 || !bytes.Equal(got[:len(want)], want) {
		t.Errorf("%x, want %x and a checksum", got, want)
	}
}

// TestDamagedState: no byte of the file can change, none be missing and none be added.
func TestDamagedState(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	if err := training.WriteState(path, someState(6)); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, at int, b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := training.ReadState(path); !errors.Is(err, training.ErrState) || s.Values != nil {
			t.Errorf("%s %d: %d values, %v", what, at, len(s.Values), err)
		}
	}
	for i := range good {
		for _, bit := range []byte{0x01, 0x80} {
			b := bytes.Clone(good)
			b[i] ^= bit
			try("flipped a bit of byte", i, b)
		}
		try("cut to", i, good[:i])
	}
	try("added", 1, append(bytes.Clone(good), 0))
	try("added", 4096, append(bytes.Clone(good), make([]byte, 4096)...))
	try("twice", len(good), append(bytes.Clone(good), good...))
}

// TestWriteStateFails: whatever fails, the state of before stands and nothing is left beside it.
func TestWriteStateFails(t *testing.T) {
	t.Run("missing directory", func(t *testing.T) {
		dir := t.TempDir()
		if err := training.WriteState(filepath.Join(dir, "none", "state"), someState(3)); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		if names := left(t, dir); len(names) != 0 {
			t.Errorf("left %v", names)
		}
	})
	t.Run("parent is a file", func(t *testing.T) {
		dir := t.TempDir()
		file := filepath.Join(dir, "file")
		if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := training.WriteState(filepath.Join(file, "state"), someState(3)); err == nil {
			t.Error("written into a file")
		}
		if names := left(t, dir); len(names) != 1 {
			t.Errorf("left %v", names)
		}
	})
	t.Run("target is a directory", func(t *testing.T) { // fails at the rename, the last thing that can
		dir := t.TempDir()
		path := filepath.Join(dir, "state")
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := training.WriteState(path, someState(3)); err == nil {
			t.Error("a directory was replaced")
		}
		if names := left(t, dir); len(names) != 1 || names[0] != "state" {
			t.Errorf("left %v", names)
		}
	})
	t.Run("read-only directory", func(t *testing.T) {
		if os.Geteuid() == 0 {
			t.Skip("permissions do not bind root")
		}
		dir := t.TempDir()
		path := filepath.Join(dir, "state")
		if err := training.WriteState(path, someState(3)); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o500); err != nil {
			t.Fatal(err)
		}
		defer os.Chmod(dir, 0o700)
		if err := training.WriteState(path, someState(5)); !errors.Is(err, fs.ErrPermission) {
			t.Error(err)
		}
		got, err := training.ReadState(path)
		if err != nil {
			t.Fatal(err)
		}
		sameState(t, "of before", got, someState(3))
		if names := left(t, dir); len(names) != 1 {
			t.Errorf("left %v", names)
		}
	})
	t.Run("moments of another size", func(t *testing.T) { // what could not be read back does not replace what can
		dir := t.TempDir()
		path := filepath.Join(dir, "state")
		if err := training.WriteState(path, someState(3)); err != nil {
			t.Fatal(err)
		}
		bad := someState(4)
		bad.Moments.V = bad.Moments.V[:3]
		if err := training.WriteState(path, bad); !errors.Is(err, training.ErrState) {
			t.Error(err)
		}
		got, err := training.ReadState(path)
		if err != nil {
			t.Fatal(err)
		}
		sameState(t, "of before", got, someState(3))
	})
}
