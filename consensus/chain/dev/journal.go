package dev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
)

// The journal is a file of frames, only ever appended to:
//
//	length of the payload (4 bytes, big endian) ‖ CRC-32C of those 4 bytes ‖ payload ‖ CRC-32C of the payload
//
// A frame is acknowledged only once it is synced, so a frame that the file's end cuts off was never acknowledged and is
// taken away when the file is opened; so is a tail of zeros, which a file system may leave after a power loss. Anything
// else that does not check is damage, and the chain does not start.

// ErrCorrupt: the journal was damaged.
var ErrCorrupt = errors.New("dev chain: the journal is damaged")

// ErrFull: the journal has reached its limit, or the disk its own.
var ErrFull = errors.New("dev chain: the journal cannot grow")

const (
	journalName = "chain.journal"
	maxPayload  = 1 << 20 // the header, which may have 4096 participants, is the largest
	frameHead   = 8
	frameTail   = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// file is what a journal needs of *os.File; tests make its methods fail.
type file interface {
	Write([]byte) (int, error)
	Sync() error
	Truncate(int64) error
	Stat() (os.FileInfo, error)
	Close() error
}

// journal is an open journal. It is not safe for concurrent use.
type journal struct {
	f      file
	size   int64 // of the acknowledged frames
	limit  int64
	broken error // why nothing can be appended any more
}

func frame(payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	b = append(b, payload...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(payload, castagnoli))
}

// createJournal makes a journal with one entry, all of it or nothing.
func createJournal(dir string, first []byte) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, journalName+".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails once renamed
	_, err = tmp.Write(frame(first))
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), filepath.Join(dir, journalName)); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// openJournal hands every entry to visit, in order, takes an unfinished last one away and opens the journal for appending.
// The entry belongs to visit. A missing journal is an os.ErrNotExist.
func openJournal(dir string, limit int64, visit func(entry []byte) error) (*journal, error) {
	name := filepath.Join(dir, journalName)
	f, err := os.OpenFile(name, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return nil, err
	}
	size, err := scan(f, visit)
	if err == nil {
		err = f.Truncate(size)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), f.Close())
	}
	return &journal{f: f, size: size, limit: limit}, nil
}

// scan returns the length of the complete frames.
func scan(f *os.File, visit func([]byte) error) (offset int64, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	damaged := func(what string, err error) error {
		return fmt.Errorf("%w at byte %d: %s (%w); restore the file from a copy, or remove it to start a new chain", ErrCorrupt, offset, what, err)
	}
	for entries := 0; ; entries++ {
		left := info.Size() - offset
		var head [frameHead]byte
		if left < frameHead {
			if entries == 0 {
				return 0, damaged("no header", io.ErrUnexpectedEOF)
			}
			return offset, nil
		}
		if _, err := f.ReadAt(head[:], offset); err != nil {
			return 0, err
		}
		n := int64(binary.BigEndian.Uint32(head[:]))
		if crc32.Checksum(head[:4], castagnoli) != binary.BigEndian.Uint32(head[4:]) || n > maxPayload {
			zero, err := zeros(f, offset)
			if err != nil {
				return 0, err
			}
			if zero && entries > 0 {
				return offset, nil
			}
			return 0, damaged("no entry starts here", errChecksum)
		}
		if left < frameHead+n+frameTail {
			if entries == 0 {
				return 0, damaged("the header is cut off", io.ErrUnexpectedEOF)
			}
			return offset, nil
		}
		payload := make([]byte, n+frameTail)
		if _, err := f.ReadAt(payload, offset+frameHead); err != nil {
			return 0, err
		}
		if crc32.Checksum(payload[:n], castagnoli) != binary.BigEndian.Uint32(payload[n:]) {
			return 0, damaged("an entry has changed", errChecksum)
		}
		if err := visit(payload[:n:n]); err != nil {
			return 0, damaged("an entry does not apply", err)
		}
		offset += frameHead + n + frameTail
	}
}

var errChecksum = errors.New("wrong checksum")

// zeros reports whether nothing but zero bytes follows.
func zeros(f *os.File, offset int64) (bool, error) {
	buf := make([]byte, 64<<10)
	for {
		n, err := f.ReadAt(buf, offset)
		for _, b := range buf[:n] {
			if b != 0 {
				return false, nil
			}
		}
		offset += int64(n)
		if err == io.EOF {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
}

// append returns nil once the entry is on disk. After a failed write it takes back what was written; after a failed sync
// nobody knows what the disk holds, so nothing more is appended until a restart has read it.
func (j *journal) append(payload []byte) error {
	if j.broken != nil {
		return j.broken
	}
	b := frame(payload)
	if j.size+int64(len(b)) > j.limit {
		return fmt.Errorf("%w: its limit of %d bytes is reached; start a new chain or raise the limit", ErrFull, j.limit)
	}
	info, err := j.f.Stat()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	if info.Size() != j.size {
		j.broken = fmt.Errorf("%w: another process writes to it; run one server per directory", ErrCorrupt)
		return j.broken
	}
	if _, err := j.f.Write(b); err != nil {
		if undo := j.f.Truncate(j.size); undo != nil {
			j.broken = fmt.Errorf("%w: %w, and then %w; restart the chain once the disk is well", ErrFull, err, undo)
			return j.broken
		}
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	if err := j.f.Sync(); err != nil {
		j.broken = fmt.Errorf("%w: %w; restart the chain once the disk is well", ErrFull, err)
		return j.broken
	}
	j.size += int64(len(b))
	return nil
}

func (j *journal) close() error { return j.f.Close() }
