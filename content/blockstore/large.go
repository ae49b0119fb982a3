package blockstore

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
)

// large keeps each block as a file of its own, named by its hash, with a checksum behind its bytes. badger would append them
// to files that it keeps mapped for ever: what was written once would stay in the process's memory, and a deleted block on
// the disk until its file is rewritten. Here neither happens, and there is nothing to index.
//
// The files lie in 16 directories. A new directory is put where the disk is empty, and what is in it beside it: with 256 of
// them ext4 took up to twice as long for the first GiB of a store.
type large struct {
	dir string

	mu      sync.Mutex
	pending map[string]struct{} // written, but not known to have reached the disk
	hashed  map[string]stamp    // digests of files that were hashed in this process, as they were then
}

// stamp is what changes with a file.
type stamp struct {
	size     int64
	modified time.Time
}

// maxHashed bounds what is remembered of files that were hashed.
const maxHashed = 1 << 16

// largeBlock is from how many bytes on a block gets a file of its own. Flushing a file costs as much as writing 200 KiB, so
// that blocks of 64 KiB are five times faster in badger's log, those of 256 KiB twice, and those of 1 MiB slower
// (BenchmarkLayout); what is a file gives its space back when it is deleted.
const largeBlock = 256 << 10

// trailer is the length of a file behind its block: the CRC-32C, little-endian, of the block.
const trailer = 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// unfinished is in the name of a file that is being written.
const unfinished = ".new-"

// openLarge removes what a crash left half written.
func openLarge(dir string) (*large, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	left, err := filepath.Glob(filepath.Join(dir, "*", "*"+unfinished+"*"))
	if err != nil {
		return nil, err
	}
	for _, name := range left {
		if err := os.Remove(name); err != nil {
			return nil, err
		}
	}
	return &large{dir: dir, pending: make(map[string]struct{}), hashed: make(map[string]stamp)}, nil
}

// path is where the block of a digest lies. It is a function of the digest's bytes: no name comes from outside.
func (l *large) path(digest []byte) string {
	name := hex.EncodeToString(digest)
	return filepath.Join(l.dir, name[:1], name[1:])
}

// size is the length of a block, -1 if it is not there.
func (l *large) size(digest []byte) (int, error) {
	stat, err := os.Lstat(l.path(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return -1, nil
	}
	if err != nil {
		return -1, err
	}
	return max(int(stat.Size())-trailer, 0), nil
}

// found is what a read found of a block.
type found struct {
	data   []byte
	whole  bool // the checksum is right
	hashed bool // and the bytes were found to have the digest before, and the file has not changed since
	at     stamp
}

// read returns a block in buf, if that has room for it; data is nil if it is not there. A file that is too long is damaged
// and comes cut off.
func (l *large) read(digest, buf []byte) (b found, err error) {
	f, err := os.Open(l.path(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	if err != nil {
		return b, err
	}
	defer f.Close()
	stat, err := f.Stat()
	if err != nil {
		return b, err
	}
	b.at = stamp{stat.Size(), stat.ModTime()}
	n := int(min(stat.Size(), MaxBlock+trailer+1))
	if buf == nil || cap(buf) < n {
		buf = make([]byte, n)
	}
	data := buf[:n]
	n, err = io.ReadFull(f, data)
	b.data = data[:max(n-trailer, 0)]
	if err != nil { // it was longer a moment ago
		return b, nil
	}
	if n > trailer {
		b.whole = binary.LittleEndian.Uint32(data[n-trailer:]) == crc32.Checksum(b.data, castagnoli)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	before, ok := l.hashed[string(digest)]
	b.hashed = ok && b.whole && before == b.at
	return b, nil
}

// note remembers that a file, as it was at a time, has the bytes of its digest.
func (l *large) note(digest []byte, at stamp) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.hashed) >= maxHashed {
		clear(l.hashed)
	}
	l.hashed[string(digest)] = at
}

// forget makes the next read of a file hash it.
func (l *large) forget(digest []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.hashed, string(digest))
}

// write stores a block under a name that nobody reads until it is whole. With sync it is durable on return.
func (l *large) write(digest, data []byte, sync bool) (err error) {
	path := l.path(digest)
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+unfinished+"*")
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(dir, 0o755); err == nil {
			f, err = os.CreateTemp(dir, filepath.Base(path)+unfinished+"*")
		}
	}
	if err != nil {
		return err
	}
	if _, err = f.Write(data); err == nil {
		_, err = f.Write(binary.LittleEndian.AppendUint32(nil, crc32.Checksum(data, castagnoli)))
	}
	switch {
	case err != nil:
	case sync:
		err = f.Sync()
	default:
		startFlush(f)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if sync {
		return errors.Join(syncDir(dir), syncDir(l.dir))
	}
	l.mu.Lock()
	l.pending[path] = struct{}{}
	l.mu.Unlock()
	return nil
}

// remove deletes a block; one that is not there is no error.
func (l *large) remove(digest []byte) error {
	path := l.path(digest)
	l.mu.Lock()
	delete(l.pending, path)
	delete(l.hashed, string(digest))
	l.mu.Unlock()
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// sync returns when everything written before has reached the disk.
func (l *large) sync() error {
	l.mu.Lock()
	pending := l.pending
	l.pending = make(map[string]struct{})
	l.mu.Unlock()
	dirs := map[string]struct{}{l.dir: {}}
	for path := range pending {
		dirs[filepath.Dir(path)] = struct{}{}
	}
	err := together(maps.Keys(pending), syncWorkers, func(path string) error {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // deleted since
		}
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
	if err == nil { // names are of no use before the bytes
		err = together(maps.Keys(dirs), syncWorkers, syncDir)
	}
	if err != nil { // the next call tries again
		l.mu.Lock()
		for path := range pending {
			l.pending[path] = struct{}{}
		}
		l.mu.Unlock()
	}
	return err
}

// How many files are flushed, and how many written, at the same time. File systems flush what several wait for at once.
const (
	syncWorkers  = 16
	writeWorkers = 4
)

// together calls do for everything, several at a time, and joins the errors.
func together[T any](all iter.Seq[T], workers int, do func(T) error) error {
	todo := make(chan T)
	errs := make([]error, workers)
	var work sync.WaitGroup
	for i := range errs {
		work.Go(func() {
			for x := range todo {
				errs[i] = errors.Join(errs[i], do(x))
			}
		})
	}
	for x := range all {
		todo <- x
	}
	close(todo)
	work.Wait()
	return errors.Join(errs...)
}

// each calls fn with the digest and the length of every block, until it fails.
func (l *large) each(fn func(digest []byte, length int64) error) error {
	return filepath.WalkDir(l.dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // deleted since
		}
		if err != nil || e.IsDir() || strings.Contains(e.Name(), unfinished) {
			return err
		}
		digest, err := hex.DecodeString(filepath.Base(filepath.Dir(path)) + e.Name())
		if err != nil || len(digest) != sha256.Size || path != l.path(digest) {
			return nil // not ours
		}
		stat, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return fn(digest, max(stat.Size()-trailer, 0))
	})
}

// keys sends the CID of every block, with codec raw.
func (l *large) keys(ctx context.Context, out chan<- cid.Cid) error {
	return l.each(func(digest []byte, _ int64) error {
		c, err := rawCID(digest)
		if err != nil {
			return err
		}
		select {
		case out <- c:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
}

// syncDir makes the names in a directory durable.
func syncDir(name string) error {
	if runtime.GOOS == "windows" {
		return nil // directories cannot be opened there; renames are journalled
	}
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
