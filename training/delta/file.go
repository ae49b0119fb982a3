package delta

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/blockzero-net/bzd/internal/protocol"
)

// ReadFile reads and decodes a delta file. A file larger than any delta of what is expected is not read.
func ReadFile(path string, want Expect) (*Delta, error) {
	expected, err := want.header()
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	limit := uint64(frame) + headerLimit(expected) + expected.Size
	b, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	d, err := Decode(b, want)
	if uint64(len(b)) > limit && !errors.Is(err, ErrCodec) { // another codec may need more
		return nil, fmt.Errorf("%s: %w: more than %d bytes", path, ErrTrailing, limit)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return d, nil
}

// maxHeader bounds a header that is read without knowing what to expect.
const maxHeader = 16 << 20

// PeekFile reads the header of a delta file and nothing of its payload: it says what the delta claims to be. What it
// claims is checked by [ReadFile].
func PeekFile(path string) (protocol.DeltaHeader, error) {
	fail := func(err error) (protocol.DeltaHeader, error) {
		return protocol.DeltaHeader{}, fmt.Errorf("%s: %w", path, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return protocol.DeltaHeader{}, err
	}
	defer f.Close()
	start, err := io.ReadAll(io.LimitReader(f, int64(frame)))
	if err != nil {
		return fail(err)
	}
	length, err := headerLength(start, maxHeader)
	if err != nil {
		return fail(err)
	}
	raw, err := io.ReadAll(io.LimitReader(f, int64(length)))
	if err != nil {
		return fail(err)
	}
	if uint64(len(raw)) < length {
		return fail(fmt.Errorf("%w: %d bytes of a header of %d", ErrTruncated, len(raw), length))
	}
	h, err := protocol.DecodeDeltaHeader(raw)
	if err != nil {
		return fail(fmt.Errorf("%w: %w", ErrHeader, err))
	}
	return h, nil
}

// WriteFile writes the delta so that path holds either what it held before or all of it, through a crash or a full disk.
// The file is readable by its owner alone: an unsealed delta is a secret until its cycle's keys open.
func (d *Delta) WriteFile(path string) error {
	b, err := d.Encode()
	if err != nil {
		return err
	}
	return writeFile(disk{}, path, b)
}

// fileSystem is the part of the operating system that writeFile uses; tests make it fail.
type fileSystem interface {
	create(dir, pattern string) (file, error)
	rename(from, to string) error
	remove(path string) error
	syncDir(dir string) error
}

type file interface {
	io.WriteCloser
	Name() string
	Sync() error
}

func writeFile(fs fileSystem, path string, b []byte) error {
	dir := filepath.Dir(path)
	temp, err := fs.create(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = temp.Write(b)
	if err == nil {
		err = temp.Sync()
	}
	err = errors.Join(err, temp.Close())
	if err == nil {
		err = fs.rename(temp.Name(), path)
	}
	if err != nil {
		err = errors.Join(err, fs.remove(temp.Name()))
		return fmt.Errorf("write %s: nothing was changed; free space or check the disk, then try again: %w", path, err)
	}
	if err := fs.syncDir(dir); err != nil {
		return fmt.Errorf("write %s: written, but may not survive a crash: %w", path, err)
	}
	return nil
}

// disk is the real file system.
type disk struct{}

func (disk) create(dir, pattern string) (file, error) { return os.CreateTemp(dir, pattern) }
func (disk) rename(from, to string) error             { return os.Rename(from, to) }
func (disk) remove(path string) error                 { return os.Remove(path) }

func (disk) syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
