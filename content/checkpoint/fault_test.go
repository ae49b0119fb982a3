package checkpoint

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/ipfs/go-cid"
)

var errInjected = errors.New("injected")

// faultFS is the disk, with a decision before every operation. It keeps a log. Flushing is only logged: a test's machine
// does not crash, and hundreds of runs would wait for the disk.
type faultFS struct {
	osFS
	n   int // operations so far
	log []string
	// fail decides about operation n; an error is returned instead of doing it.
	fail func(n int, op string) error
}

func (f *faultFS) step(op string, names ...string) error {
	n := f.n
	f.n++
	for _, name := range names {
		op += " " + filepath.Base(name)
	}
	f.log = append(f.log, op)
	if f.fail == nil {
		return nil
	}
	return f.fail(n, op)
}

func (f *faultFS) Lstat(name string) (fs.FileInfo, error) {
	if err := f.step("lstat", name); err != nil {
		return nil, err
	}
	return f.osFS.Lstat(name)
}

func (f *faultFS) ReadDir(name string) ([]fs.DirEntry, error) {
	if err := f.step("readdir", name); err != nil {
		return nil, err
	}
	return f.osFS.ReadDir(name)
}

func (f *faultFS) Open(name string) (io.ReadCloser, error) {
	if err := f.step("open", name); err != nil {
		return nil, err
	}
	r, err := f.osFS.Open(name)
	if err != nil {
		return nil, err
	}
	return &faultReader{r, f, name}, nil
}

func (f *faultFS) MkdirTemp(parent, pattern string) (string, error) {
	if err := f.step("mkdir", pattern); err != nil {
		return "", err
	}
	return f.osFS.MkdirTemp(parent, pattern)
}

func (f *faultFS) Create(name string) (writeFile, error) {
	if err := f.step("create", name); err != nil {
		return nil, err
	}
	w, err := f.osFS.Create(name)
	if err != nil {
		return nil, err
	}
	return &faultWriter{w, f, name}, nil
}

func (f *faultFS) SyncDir(name string) error {
	return f.step("syncdir", name)
}

func (f *faultFS) Rename(from, to string) error {
	if err := f.step("rename", from, to); err != nil {
		return err
	}
	return f.osFS.Rename(from, to)
}

func (f *faultFS) Link(from, to string) error {
	if err := f.step("link", from, to); err != nil {
		return err
	}
	return f.osFS.Link(from, to)
}

func (f *faultFS) Remove(name string) error {
	if err := f.step("remove", name); err != nil {
		return err
	}
	return f.osFS.Remove(name)
}

func (f *faultFS) RemoveAll(name string) error {
	if err := f.step("removeall", name); err != nil {
		return err
	}
	return f.osFS.RemoveAll(name)
}

type faultReader struct {
	io.ReadCloser
	f    *faultFS
	name string
}

func (r *faultReader) Read(p []byte) (int, error) {
	if err := r.f.step("read", r.name); err != nil {
		return 0, err
	}
	return r.ReadCloser.Read(p)
}

type faultWriter struct {
	writeFile
	f    *faultFS
	name string
}

// Write tears the failing write: half of it reaches the disk.
func (w *faultWriter) Write(p []byte) (int, error) {
	if err := w.f.step("write", w.name); err != nil {
		n, _ := w.writeFile.Write(p[:len(p)/2])
		return n, err
	}
	return w.writeFile.Write(p)
}

func (w *faultWriter) Sync() error {
	return w.f.step("sync", w.name)
}

func (w *faultWriter) Close() error {
	err := w.f.step("close", w.name)
	return errors.Join(err, w.writeFile.Close())
}

func writeTo(fsys fileSystem, dir string, c Contents) (cid.Cid, error) {
	root, _, err := write(fsys, dir, c, nil)
	return root, err
}

// known takes file i of c from the checkpoint in dir.
func known(t *testing.T, c *Contents, dir string, i int) {
	t.Helper()
	_, parts, err := Blocks(dir, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	name := c.Files[i].Name
	c.Files[i] = File{Name: name, From: filepath.Join(dir, name), Known: parts[name]}
}

func quickWrite(t *testing.T, dir string) {
	t.Helper()
	if _, err := writeTo(&faultFS{}, dir, sample()); err != nil {
		t.Fatal(err)
	}
}

// scenarios are the ways to make a checkpoint. Each prepares a parent directory and returns what to run; the target is
// always "phi" in it.
var scenarios = map[string]func(t *testing.T, parent string) func(fsys fileSystem) (cid.Cid, error){
	"write": func(t *testing.T, parent string) func(fileSystem) (cid.Cid, error) {
		return func(fsys fileSystem) (cid.Cid, error) { return writeTo(fsys, filepath.Join(parent, "phi"), sample()) }
	},
	"write to an empty directory": func(t *testing.T, parent string) func(fileSystem) (cid.Cid, error) {
		if err := os.Mkdir(filepath.Join(parent, "phi"), 0o755); err != nil {
			t.Fatal(err)
		}
		return func(fsys fileSystem) (cid.Cid, error) { return writeTo(fsys, filepath.Join(parent, "phi"), sample()) }
	},
	"write what is there": func(t *testing.T, parent string) func(fileSystem) (cid.Cid, error) {
		quickWrite(t, filepath.Join(parent, "phi"))
		return func(fsys fileSystem) (cid.Cid, error) { return writeTo(fsys, filepath.Join(parent, "phi"), sample()) }
	},
	"write with a file copied": func(t *testing.T, parent string) func(fileSystem) (cid.Cid, error) {
		before := filepath.Join(t.TempDir(), "before")
		quickWrite(t, before)
		c := sample()
		c.Files[0] = File{Name: c.Files[0].Name, From: filepath.Join(before, c.Files[0].Name)}
		return func(fsys fileSystem) (cid.Cid, error) { return writeTo(fsys, filepath.Join(parent, "phi"), c) }
	},
	"write with a known file": func(t *testing.T, parent string) func(fileSystem) (cid.Cid, error) {
		before := filepath.Join(t.TempDir(), "before")
		quickWrite(t, before)
		c := sample()
		known(t, &c, before, 0)
		return func(fsys fileSystem) (cid.Cid, error) { return writeTo(fsys, filepath.Join(parent, "phi"), c) }
	},
	"copy": func(t *testing.T, parent string) func(fileSystem) (cid.Cid, error) {
		src := filepath.Join(t.TempDir(), "src")
		quickWrite(t, src)
		return func(fsys fileSystem) (cid.Cid, error) { return copyDir(fsys, filepath.Join(parent, "phi"), src) }
	},
}

// unharmed checks that a failed run left the parent as it was. An empty target may also be gone.
func unharmed(t *testing.T, what string, parent string, before map[string]string) {
	t.Helper()
	after := tree(t, parent)
	if len(before) == 1 && len(after) == 0 {
		return
	}
	if !maps.Equal(after, before) {
		t.Errorf("%s: before %q, after %q", what, slices.Sorted(maps.Keys(before)), slices.Sorted(maps.Keys(after)))
	}
}

// TestEveryOperationFails fails operation 0, 1, 2 and so on, each in a run of its own, until a run passes.
func TestEveryOperationFails(t *testing.T) {
	for name, prepare := range scenarios {
		t.Run(name, func(t *testing.T) {
			for k := 0; ; k++ {
				parent := t.TempDir()
				run := prepare(t, parent)
				before := tree(t, parent)
				failed := ""
				f := &faultFS{fail: func(n int, op string) error {
					if n == k {
						failed = op
						return errInjected
					}
					return nil
				}}
				root, err := run(f)
				if failed == "" {
					if err != nil || k < 10 {
						t.Fatalf("after %d operations: %v", k, err)
					}
					if got, err := RootCID(filepath.Join(parent, "phi")); err != nil || got != root {
						t.Errorf("CID %s, %v, want %s", got, err, root)
					}
					return
				}
				if strings.HasPrefix(failed, "link ") && err == nil {
					continue // a copy does as well
				}
				if !errors.Is(err, errInjected) || root.Defined() {
					t.Errorf("%s failed, got %s, %v", failed, root, err)
				}
				unharmed(t, fmt.Sprintf("operation %d, %s", k, failed), parent, before)
			}
		})
	}
}

// TestDiskFull lets nothing new reach the disk from operation k on. Reading and removing still work.
func TestDiskFull(t *testing.T) {
	grows := regexp.MustCompile(`^(mkdir|create|write|sync|close) `)
	for name, prepare := range scenarios {
		t.Run(name, func(t *testing.T) {
			for k := 0; ; k++ {
				parent := t.TempDir()
				run := prepare(t, parent)
				before := tree(t, parent)
				failed := ""
				f := &faultFS{fail: func(n int, op string) error {
					if n >= k && grows.MatchString(op) {
						if failed == "" {
							failed = op
						}
						return &fs.PathError{Op: op, Path: "disk", Err: syscall.ENOSPC}
					}
					return nil
				}}
				_, err := run(f)
				if failed == "" {
					if err != nil {
						t.Fatal(err)
					}
					return
				}
				file := filepath.Base(failed[strings.Index(failed, " ")+1:])
				if strings.HasPrefix(failed, "mkdir") {
					file = "phi"
				}
				if !errors.Is(err, ErrDiskFull) || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), file) ||
					!strings.Contains(err.Error(), "free some space") {
					t.Errorf("%s: %v", failed, err)
				}
				unharmed(t, failed, parent, before)
			}
		})
	}
}

// TestCrash stops everything from operation k on, as a power cut does, and starts again.
func TestCrash(t *testing.T) {
	for name, prepare := range scenarios {
		t.Run(name, func(t *testing.T) {
			for k := 0; ; k++ {
				parent := t.TempDir()
				run := prepare(t, parent)
				target := filepath.Join(parent, "phi")
				f := &faultFS{fail: func(n int, op string) error {
					if n >= k {
						return errInjected
					}
					return nil
				}}
				want, err := run(f)
				if err == nil {
					break
				}
				if _, err := RemovePartials(parent); err != nil {
					t.Fatal(err)
				}
				left := tree(t, parent)
				for path := range left {
					if path != "phi" && !strings.HasPrefix(path, "phi/") {
						t.Errorf("crash at %d: %s is left", k, path)
					}
				}
				if len(left) > 1 {
					if _, err := RootCID(target); err != nil {
						t.Errorf("crash at %d: half a checkpoint: %v", k, err)
					}
				}
				again, err := run(&faultFS{})
				if err != nil || want.Defined() && again != want {
					t.Errorf("crash at %d: started again: %s, %v", k, again, err)
				}
			}
		})
	}
}

// TestOrder: nothing takes the target's name before every byte and every name below it is durable.
func TestOrder(t *testing.T) {
	parent := t.TempDir()
	f := &faultFS{}
	if _, err := writeTo(f, filepath.Join(parent, "phi"), sample()); err != nil {
		t.Fatal(err)
	}
	dirty := make(map[string]bool)
	tmp, renamed := "", false
	for _, line := range f.log {
		op, name, _ := strings.Cut(line, " ")
		switch op {
		case "create":
			dirty[name], dirty["names"] = true, true
		case "write":
			dirty[name] = true
		case "sync":
			dirty[name] = false
		case "syncdir":
			if renamed {
				dirty["target"] = false
			} else {
				tmp = name
				dirty["names"] = false
			}
		case "rename":
			for what, d := range dirty {
				if d {
					t.Errorf("renamed before %s was durable", what)
				}
			}
			if name != tmp+" phi" {
				t.Errorf("renamed %s, but %s was made durable", name, tmp)
			}
			renamed, dirty["target"] = true, true
		}
	}
	if !renamed || dirty["target"] {
		t.Errorf("the rename was not made durable: %v", f.log)
	}
}

// TestRemovalFails: when even the clean-up fails, the message says what to remove.
func TestRemovalFails(t *testing.T) {
	parent := t.TempDir()
	f := &faultFS{fail: func(_ int, op string) error {
		if strings.HasPrefix(op, "sync ") || strings.HasPrefix(op, "removeall") {
			return errInjected
		}
		return nil
	}}
	_, err := writeTo(f, filepath.Join(parent, "phi"), sample())
	entries, _ := os.ReadDir(parent)
	if err == nil || len(entries) != 1 || !strings.Contains(err.Error(), "remove "+filepath.Join(parent, entries[0].Name())+" by hand") {
		t.Errorf("left %v, said %v", entries, err)
	}
	if err := os.Mkdir(filepath.Join(parent, "keep.partial-x"), 0o755); err != nil {
		t.Fatal(err)
	}
	writeFiles(t, parent, map[string]string{"file.partial-1": "x"})
	removed, err := RemovePartials(parent)
	if err != nil || len(removed) != 1 || removed[0] != entries[0].Name() {
		t.Errorf("removed %q, %v", removed, err)
	}
	if got := tree(t, parent); len(got) != 2 {
		t.Errorf("left %v", got)
	}
}
