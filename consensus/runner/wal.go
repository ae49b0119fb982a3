package runner

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/blockzero-net/bzd/consensus"
)

// File is what a write-ahead log needs of its file; *os.File is one. Calls come from one goroutine.
type File interface {
	io.ReadWriteSeeker
	io.Closer
	Truncate(size int64) error
	// Sync returns once everything written is on the disk. After an error nothing is known about what was written.
	Sync() error
}

var (
	// ErrCorrupt: a log is damaged before its end, which no crash does. It may have held a vote, so a validator must
	// not sign on without it: restore the file, or leave the running cycles to pass before moving it away.
	ErrCorrupt = errors.New("runner: write-ahead log is corrupt")
	// ErrBroken: an earlier write of the log failed. Open it anew.
	ErrBroken = errors.New("runner: write-ahead log failed earlier; open it anew")
	// ErrRecordSize: a batch is larger than a frame may be. The caller's bug.
	ErrRecordSize = errors.New("runner: batch too large for the write-ahead log")
)

// A log is a sequence of frames, each the whole of one Append: length of the body ‖ CRC-32C of length and body ‖ body,
// the body being its records, each behind its length. Lengths and sums are 32 bits, little endian.
const (
	frameHead = 8
	maxFrame  = 64 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// WAL is an append-only log of records. What Append has returned nil for is on the disk; a crash in the middle of an
// Append loses all of that batch or none of it. One log serves all machines of a validator; it is safe for concurrent
// use.
type WAL struct {
	mu     sync.Mutex
	file   File
	broken error
}

// Since keeps the records of a cycle and of later ones, for [OpenWAL].
func Since(cycle uint64) func(record []byte) bool {
	return func(record []byte) bool {
		m, err := consensus.DecodeMessage(record)
		if err != nil {
			return true // not ours to judge
		}
		of, ok := m.Cycle()
		return !ok || of >= cycle
	}
}

// OpenWAL opens the log at path, makes it if there is none, and returns its records in order. Records that keep refuses
// are dropped for good: the log is written anew, beside, and moved into place. A nil keep keeps everything.
func OpenWAL(path string, keep func(record []byte) bool) (*WAL, [][]byte, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("runner: open log: %w", err)
	}
	w, all, err := NewWAL(f)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	if err := syncDir(path); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	var kept [][]byte
	for _, r := range all {
		if keep == nil || keep(r) {
			kept = append(kept, r)
		}
	}
	if len(kept) == len(all) {
		return w, kept, nil
	}
	if err := errors.Join(w.Close(), rewrite(path, kept)); err != nil {
		return nil, nil, err
	}
	return OpenWAL(path, nil)
}

// rewrite replaces the log at path by one of the given records. A crash leaves the old one or the new one.
func rewrite(path string, records [][]byte) error {
	next := path + ".new"
	f, err := os.OpenFile(next, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("runner: rewrite log: %w", err)
	}
	w := &WAL{file: f}
	for _, r := range records {
		if err := w.write([][]byte{r}); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("runner: rewrite log: %w", err)
	}
	if err := os.Rename(next, path); err != nil {
		return fmt.Errorf("runner: rewrite log: %w", err)
	}
	return syncDir(path)
}

// syncDir makes the name of a file durable, not only its content.
func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("runner: open the log's directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("runner: sync the log's directory: %w", err)
	}
	return nil
}

// NewWAL reads the log in f, cuts off what a crash left unfinished at its end, and returns its records in order.
func NewWAL(f File) (*WAL, [][]byte, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, nil, fmt.Errorf("runner: read log: %w", err)
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, nil, fmt.Errorf("runner: read log: %w", err)
	}
	records, size, err := parse(b)
	if err != nil {
		return nil, nil, err
	}
	if size < len(b) {
		if err := f.Truncate(int64(size)); err != nil {
			return nil, nil, fmt.Errorf("runner: cut a torn frame off the log: %w", err)
		}
	}
	// What was read may be in the page cache only: a process that died between write and sync, on a machine that lives.
	if err := f.Sync(); err != nil {
		return nil, nil, fmt.Errorf("runner: sync log: %w", err)
	}
	if _, err := f.Seek(int64(size), io.SeekStart); err != nil {
		return nil, nil, fmt.Errorf("runner: seek in log: %w", err)
	}
	return &WAL{file: f}, records, nil
}

// parse returns the records of the whole frames of b and how many bytes those take.
func parse(b []byte) (records [][]byte, size int, err error) {
	for size < len(b) {
		body, ok := frame(b[size:])
		if !ok {
			if !torn(b[size:]) {
				return nil, 0, fmt.Errorf("%w: bad frame at byte %d of %d", ErrCorrupt, size, len(b))
			}
			return records, size, nil
		}
		size += frameHead + len(body)
		for len(body) > 0 {
			if len(body) < 4 || uint64(binary.LittleEndian.Uint32(body)) > uint64(len(body)-4) {
				return nil, 0, fmt.Errorf("%w: a frame with a right sum holds no records", ErrCorrupt)
			}
			n := binary.LittleEndian.Uint32(body)
			records = append(records, body[4:4+n:4+n])
			body = body[4+n:]
		}
	}
	return records, size, nil
}

// frame returns the body of the frame that b starts with.
func frame(b []byte) (body []byte, ok bool) {
	if len(b) < frameHead {
		return nil, false
	}
	n := binary.LittleEndian.Uint32(b)
	if n == 0 || n > maxFrame || int(n) > len(b)-frameHead {
		return nil, false
	}
	body = b[frameHead : frameHead+int(n)]
	return body, sum(b[:4], body) == binary.LittleEndian.Uint32(b[4:])
}

// torn reports whether a bad frame can be what a crash leaves of the last write: it is cut off, it is the last one, or
// the file grew but its bytes never arrived.
func torn(b []byte) bool {
	if len(b) < frameHead {
		return true
	}
	if n := binary.LittleEndian.Uint32(b); n > 0 && n <= maxFrame && int(n) >= len(b)-frameHead {
		return true
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func sum(length, body []byte) uint32 {
	return crc32.Update(crc32.Checksum(length, castagnoli), castagnoli, body)
}

// Append writes the records as one batch and returns when they are on the disk. After an error the log is broken and
// every further Append fails: the batch may or may not be there, which only opening the log again can tell.
func (w *WAL) Append(records [][]byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken != nil {
		return w.broken
	}
	err := w.write(records)
	if err == nil {
		err = w.file.Sync()
	}
	if err != nil {
		w.broken = fmt.Errorf("%w: %w", ErrBroken, err)
		return fmt.Errorf("runner: append to log: %w", err)
	}
	return nil
}

func (w *WAL) write(records [][]byte) error {
	b := make([]byte, frameHead)
	for _, r := range records {
		if len(b)+4+len(r) > frameHead+maxFrame {
			return fmt.Errorf("%w: more than %d bytes", ErrRecordSize, maxFrame)
		}
		b = binary.LittleEndian.AppendUint32(b, uint32(len(r)))
		b = append(b, r...)
	}
	if len(b) == frameHead {
		return nil
	}
	binary.LittleEndian.PutUint32(b, uint32(len(b)-frameHead))
	binary.LittleEndian.PutUint32(b[4:], sum(b[:4], b[frameHead:]))
	_, err := w.file.Write(b)
	return err
}

// Close closes the file.
func (w *WAL) Close() error { return w.file.Close() }
