package training_test

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/blockzero-net/bzd/training"
)

// TestWriteStateOnFullDisk fails the write at more and more bytes, until there is room enough. The system's limit on the
// size of a file stands in for the full disk: a write is cut short in the same way. The limit is of a whole process, so
// the test runs in one of its own.
func TestWriteStateOnFullDisk(t *testing.T) {
	const variable = "BZD_TEST_FULL_DISK"
	if os.Getenv(variable) == "" {
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		child.Env = append(os.Environ(), variable+"=1")
		if out, err := child.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	signal.Ignore(syscall.SIGXFSZ)
	limit := func(n uint64) {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: n, Max: before.Max}); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	old, next := someState(3), someState(20)
	if err := training.WriteState(path, old); err != nil {
		t.Fatal(err)
	}
	const size = 8 + 32 + 3*8 + 3*4*20 + 32
	for n := uint64(0); ; n++ {
		limit(n)
		err := training.WriteState(path, next)
		limit(before.Cur)
		if names := left(t, dir); len(names) != 1 {
			t.Fatalf("room for %d bytes: left %v", n, names)
		}
		got, readErr := training.ReadState(path)
		if readErr != nil {
			t.Fatalf("room for %d bytes: %v", n, readErr)
		}
		if err == nil {
			if n != size {
				t.Errorf("written into %d bytes, want %d", n, size)
			}
			sameState(t, "at last", got, next)
			return
		}
		if n >= size || !errors.Is(err, syscall.EFBIG) {
			t.Fatalf("room for %d bytes: %v", n, err)
		}
		sameState(t, "of before", got, old)
	}
}
