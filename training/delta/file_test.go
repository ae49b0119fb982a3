package delta

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "delta")
	for seed := range uint64(2) { // the second replaces the first
		d := sample(t, seed)
		if err := d.WriteFile(path); err != nil {
			t.Fatal(err)
		}
		back, err := ReadFile(path, testWant)
		if err != nil || !reflect.DeepEqual(back, d) {
			t.Fatalf("read back: %v", err)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}

	if _, err := ReadFile(filepath.Join(dir, "none"), testWant); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadFile(path, testWant); !errors.Is(err, ErrTrailing) || !strings.Contains(err.Error(), path) {
		t.Errorf("oversized file: %v", err)
	}
	if err := os.WriteFile(path, []byte("something else"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadFile(path, testWant); !errors.Is(err, ErrMagic) || !strings.Contains(err.Error(), path) {
		t.Errorf("other file: %v", err)
	}
	if err := sample(t, 0).WriteFile(filepath.Join(dir, "no", "such", "dir")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
}

var errDisk = errors.New("no space left on device")

// failing is the real file system until its countdown reaches zero; then one operation fails.
type failing struct {
	disk
	left *int
}

func (f failing) fail() error {
	*f.left--
	if *f.left == 0 {
		return errDisk
	}
	return nil
}

func (f failing) create(dir, pattern string) (file, error) {
	if err := f.fail(); err != nil {
		return nil, err
	}
	temp, err := f.disk.create(dir, pattern)
	return failingFile{temp, f}, err
}

func (f failing) rename(from, to string) error {
	if err := f.fail(); err != nil {
		return err
	}
	return f.disk.rename(from, to)
}

func (f failing) syncDir(dir string) error {
	if err := f.fail(); err != nil {
		return err
	}
	return f.disk.syncDir(dir)
}

type failingFile struct {
	file
	fs failing
}

func (f failingFile) Write(b []byte) (int, error) {
	if err := f.fs.fail(); err != nil { // a disk that fills up takes a part
		n, _ := f.file.Write(b[:len(b)/2])
		return n, err
	}
	return f.file.Write(b)
}

func (f failingFile) Sync() error { return errors.Join(f.fs.fail(), f.file.Sync()) }

func (f failingFile) Close() error { return errors.Join(f.fs.fail(), f.file.Close()) }

// TestWriteFails makes operation 1, 2, 3 … fail until none does: the old file stays whole, nothing is left behind, and
// the error names the file.
func TestWriteFails(t *testing.T) {
	for n := 1; ; n++ {
		dir := t.TempDir()
		path := filepath.Join(dir, "delta")
		if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		left := n
		err := writeFile(failing{left: &left}, path, []byte("new content"))
		got, readErr := os.ReadFile(path)
		if readErr != nil {
			t.Fatal(readErr)
		}
		if entries, _ := os.ReadDir(dir); len(entries) != 1 {
			t.Errorf("operation %d failed: left behind %v", n, entries)
		}
		if err == nil {
			if string(got) != "new content" || n < 6 {
				t.Errorf("no failure after %d operations, file %q", n, got)
			}
			return
		}
		if !errors.Is(err, errDisk) || !strings.Contains(err.Error(), path) {
			t.Errorf("operation %d: %v", n, err)
		}
		want := "old"
		if strings.Contains(err.Error(), "written") {
			want = "new content" // only the directory's sync failed
		}
		if string(got) != want {
			t.Errorf("operation %d failed (%v): file %q", n, err, fmt.Sprintf("%.20s", got))
		}
	}
}
