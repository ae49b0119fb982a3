package checkpoint

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
)

// partialMark is in the name of every temporary directory: <target>.partial-<number>.
const partialMark = ".partial-"

var partialName = regexp.MustCompile(`^.+\.partial-[0-9]+$`)

// RemovePartials removes the temporary directories that crashed writers left in parent, and returns their names. Call it
// before the first [Write] to parent, never during one: it cannot tell a crashed writer's directory from a live one's.
func RemovePartials(parent string) ([]string, error) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return nil, err
	}
	var removed []string
	for _, e := range entries {
		if !e.IsDir() || !partialName.MatchString(e.Name()) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(parent, e.Name())); err != nil {
			return removed, err
		}
		removed = append(removed, e.Name())
	}
	return removed, nil
}

// put makes dir hold exactly the given files, all or nothing, and returns the CID and the parts. If want is defined, the
// CID must be want.
func put(fsys fileSystem, dir string, entries []entry, want cid.Cid, emit func(blocks.Block) error) (_ cid.Cid, _ Parts, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return cid.Undef, nil, err
	}
	parent, base := filepath.Split(dir)
	if base == "" || strings.Contains(base, partialMark) {
		return cid.Undef, nil, fmt.Errorf("%w: %s cannot be the name of a checkpoint", ErrExists, dir)
	}
	state, err := inspect(fsys, dir)
	if err != nil {
		return cid.Undef, nil, fmt.Errorf("write checkpoint %s: %w", dir, err)
	}
	if state == full {
		return unchanged(fsys, dir, entries, emit)
	}

	tmp, err := fsys.MkdirTemp(parent, base+partialMark+"*")
	if err != nil {
		return cid.Undef, nil, explain(dir, dir, err)
	}
	defer func() {
		if err == nil {
			return
		}
		if left := fsys.RemoveAll(tmp); left != nil {
			err = errors.Join(err, fmt.Errorf("remove %s by hand: %w", tmp, left))
		}
	}()
	known := make(Parts)
	for _, e := range entries {
		if e.known.CID.Defined() {
			known[e.name] = e.known
			if fsys.Link(e.from, filepath.Join(tmp, e.name)) == nil {
				continue // else the disk cannot, or another one holds it
			}
		}
		if err := putFile(fsys, filepath.Join(tmp, e.name), e); err != nil {
			return cid.Undef, nil, explain(dir, e.name, err)
		}
	}
	if err := fsys.SyncDir(tmp); err != nil {
		return cid.Undef, nil, explain(dir, tmp, err)
	}
	// The CID is computed from the disk: what is announced is what was written, and it opens.
	root, parts, err := buildDAG(fsys, tmp, known, emitter{emit: emit})
	if err != nil {
		return cid.Undef, nil, fmt.Errorf("write checkpoint %s: read back: %w", dir, err)
	}
	if want.Defined() && root != want {
		return cid.Undef, nil, fmt.Errorf("write checkpoint %s: the copy has CID %s, want %s; the source changed, or a disk fails",
			dir, root, want)
	}
	if state == empty {
		if err := fsys.Remove(dir); err != nil {
			return cid.Undef, nil, explain(dir, dir, err)
		}
	}
	if err := fsys.Rename(tmp, dir); err != nil {
		return cid.Undef, nil, explain(dir, dir, err)
	}
	if err := fsys.SyncDir(parent); err != nil {
		// The name may not survive a crash. Take it back whole, so that dir never holds half a checkpoint.
		if back := fsys.Rename(dir, tmp); back != nil {
			return cid.Undef, nil, errors.Join(explain(dir, parent, err), back)
		}
		return cid.Undef, nil, explain(dir, parent, err)
	}
	return root, parts, nil
}

func putFile(fsys fileSystem, path string, e entry) error {
	f, err := fsys.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<18)
	if err = e.write(w); err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// explain says which file of which checkpoint failed, and what to do where the disk is full.
func explain(dir, file string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("write checkpoint %s: %s: %w: free some space and try again: %w", dir, file, ErrDiskFull, err)
	}
	return fmt.Errorf("write checkpoint %s: %s: %w", dir, file, err)
}

type targetState int

const (
	absent targetState = iota
	empty              // a directory with nothing in it
	full
)

func inspect(fsys fileSystem, dir string) (targetState, error) {
	stat, err := fsys.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return absent, nil
	}
	if err != nil {
		return absent, err
	}
	if !stat.IsDir() {
		return absent, fmt.Errorf("%w: not a directory", ErrExists)
	}
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return absent, err
	}
	if len(entries) == 0 {
		return empty, nil
	}
	return full, nil
}

// unchanged returns the CID and parts of the checkpoint in dir if it has exactly the given files, and ErrExists if it
// differs.
func unchanged(fsys fileSystem, dir string, entries []entry, emit func(blocks.Block) error) (cid.Cid, Parts, error) {
	refuse := func(format string, args ...any) (cid.Cid, Parts, error) {
		return cid.Undef, nil, fmt.Errorf("write checkpoint %s: %w: "+format, append([]any{dir, ErrExists}, args...)...)
	}
	have, err := fsys.ReadDir(dir)
	if err != nil {
		return cid.Undef, nil, fmt.Errorf("write checkpoint %s: %w", dir, err)
	}
	names := make(map[string]bool, len(have))
	for _, e := range have {
		if !e.Type().IsRegular() {
			return refuse("it holds %q, which is not a regular file", e.Name())
		}
		names[e.Name()] = true
	}
	for _, e := range entries {
		if !names[e.name] {
			return refuse("it does not hold %s; choose another directory or empty this one", e.name)
		}
		delete(names, e.name)
	}
	for name := range names {
		return refuse("it holds %q, which does not belong there; choose another directory or empty this one", name)
	}
	for _, e := range entries {
		same, err := sameFile(fsys, filepath.Join(dir, e.name), e)
		if err != nil {
			return cid.Undef, nil, fmt.Errorf("write checkpoint %s: compare %s: %w", dir, e.name, err)
		}
		if !same {
			return refuse("it holds another %s; choose another directory or empty this one", e.name)
		}
	}
	return buildDAG(fsys, dir, nil, emitter{emit: emit})
}

var errDiffers = errors.New("files differ")

// sameFile compares a file with what e would write.
func sameFile(fsys fileSystem, path string, e entry) (_ bool, err error) {
	f, err := fsys.Open(path)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	c := &comparer{r: bufio.NewReaderSize(f, 1<<18)}
	err = e.write(c)
	if err == nil {
		_, end := c.r.ReadByte()
		switch {
		case end == nil:
			err = errDiffers
		case !errors.Is(end, io.EOF):
			err = end
		}
	}
	if errors.Is(err, errDiffers) {
		return false, nil
	}
	return err == nil, err
}

// comparer is a writer that fails with errDiffers where what is written is not what r holds.
type comparer struct {
	r   *bufio.Reader
	buf []byte
}

func (c *comparer) Write(p []byte) (int, error) {
	if len(c.buf) < len(p) {
		c.buf = make([]byte, len(p))
	}
	got := c.buf[:len(p)]
	if _, err := io.ReadFull(c.r, got); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return 0, errDiffers
	} else if err != nil {
		return 0, err
	}
	if !bytes.Equal(got, p) {
		return 0, errDiffers
	}
	return len(p), nil
}
