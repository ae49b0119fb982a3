package safetensors

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/edsrzf/mmap-go"
)

// readChunk is the most bytes ReadF32 holds at once when the file is not mapped. A multiple of every element size.
const readChunk = 1 << 16

// File is an opened safetensors file whose header has been checked. Its methods may be called at the same time.
type File struct {
	name  string
	infos []Info // sorted by name
	index map[string]int
	meta  map[string]string
	data  int64 // offset of the data section
	size  int64

	mu     sync.RWMutex // held for writing only by Close, so that nobody reads an unmapped page
	src    io.ReaderAt
	mapped mmap.MMap // nil when opened with New
	closed bool
}

// Open maps the file at path and checks its header. Errors that are the file's fault match [ErrFormat]; others come
// from the operating system.
func Open(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // the mapping outlives it
	stat, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !stat.Mode().IsRegular() {
		return nil, &FormatError{File: path, Reason: "not a regular file"}
	}
	if stat.Size() < 8 {
		return nil, tooShort(path, stat.Size())
	}
	if int64(int(stat.Size())) != stat.Size() {
		return nil, fmt.Errorf("%s: %d bytes cannot be mapped on this machine", path, stat.Size())
	}
	m, err := mmap.Map(f, mmap.RDONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	file, err := newFile(path, nil, m, int64(len(m)))
	if err != nil {
		return nil, errors.Join(err, m.Unmap())
	}
	return file, nil
}

// New checks the header of a file of size bytes in src. name stands for the file in errors. The File reads src until it
// is closed, and does not close src.
func New(name string, src io.ReaderAt, size int64) (*File, error) {
	return newFile(name, src, nil, size)
}

func tooShort(name string, size int64) error {
	return &FormatError{File: name, Field: "header length", Reason: fmt.Sprintf("the file has %d bytes, want at least 8", size)}
}

func newFile(name string, src io.ReaderAt, m mmap.MMap, size int64) (*File, error) {
	f := &File{name: name, src: src, mapped: m, size: size}
	if size < 8 {
		return nil, tooShort(name, size)
	}
	var prefix [8]byte
	if err := f.readAt(prefix[:], 0); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint64(prefix[:])
	if n > MaxHeader || n > uint64(size-8) {
		return nil, &FormatError{File: name, Field: "header length",
			Reason: fmt.Sprintf("%d bytes, want at most %d and at most what the file has, %d", n, MaxHeader, size-8)}
	}
	header := make([]byte, n)
	if err := f.readAt(header, 8); err != nil {
		return nil, err
	}
	f.data = 8 + int64(n)
	var err error
	if f.infos, f.meta, err = parseHeader(name, header, size-f.data); err != nil {
		return nil, err
	}
	f.index = make(map[string]int, len(f.infos))
	for i, info := range f.infos {
		f.index[info.Name] = i
	}
	return f, nil
}

// readAt fills b from offset off of the file.
func (f *File) readAt(b []byte, off int64) error {
	if f.mapped != nil {
		return f.guard(func() error { copy(b, f.mapped[off:]); return nil })
	}
	if n, err := f.src.ReadAt(b, off); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("%s: %w: %w", f.name, ErrUnreadable, err)
	}
	return nil
}

// guard runs fn, which touches mapped pages. A page that can no longer be read raises a fault; without guard it would
// end the process.
func (f *File) guard(fn func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			if _, fault := r.(interface{ Addr() uintptr }); !fault {
				panic(r)
			}
			err = fmt.Errorf("%s: %w", f.name, ErrUnreadable)
		}
	}()
	return fn()
}

// Name is the path given to Open, or the name given to New.
func (f *File) Name() string { return f.name }

// Size is the length of the file in bytes.
func (f *File) Size() int64 { return f.size }

// Metadata returns a copy of the header's "__metadata__", nil if there is none.
func (f *File) Metadata() map[string]string { return maps.Clone(f.meta) }

// Tensors lists the tensors sorted by name. The caller may keep the slice but not change the shapes.
func (f *File) Tensors() []Info { return slices.Clone(f.infos) }

// Tensor describes one tensor, or fails with [ErrNoTensor].
func (f *File) Tensor(name string) (Info, error) {
	i, ok := f.index[name]
	if !ok {
		return Info{}, fmt.Errorf("%s: %w: %q", f.name, ErrNoTensor, shorten(name))
	}
	return f.infos[i], nil
}

// ReadF32 fills dst with a tensor of dtype F32 or BF16, row-major. len(dst) must be the number of elements. After an
// error the content of dst is undefined. NaN and infinities pass; see [File.ReadFiniteF32].
func (f *File) ReadF32(name string, dst []float32) error {
	info, err := f.Tensor(name)
	if err != nil {
		return err
	}
	if int64(len(dst)) != info.Elements() {
		return fmt.Errorf("%s: %w: tensor %q has %d elements, dst has %d", f.name, ErrTensor, name, info.Elements(), len(dst))
	}
	return f.readPart(info, 0, dst)
}

// ReadFinitePart fills dst with the values of a tensor from number first on, row-major, as [File.ReadFiniteF32] does with
// all of them.
func (f *File) ReadFinitePart(name string, first int64, dst []float32) error {
	info, err := f.Tensor(name)
	if err != nil {
		return err
	}
	if first < 0 || first > info.Elements() || int64(len(dst)) > info.Elements()-first {
		return fmt.Errorf("%s: %w: tensor %q has %d elements, none or too few from %d on for %d", f.name, ErrTensor, name, info.Elements(), first, len(dst))
	}
	if err := f.readPart(info, first, dst); err != nil {
		return err
	}
	if i := FirstNotFinite(dst); i >= 0 {
		return &NotFiniteError{File: f.name, Tensor: name, Index: first + int64(i), Value: dst[i]}
	}
	return nil
}

func (f *File) readPart(info Info, first int64, dst []float32) error {
	size := info.DType.Size()
	info.begin += first * size
	info.end = info.begin + int64(len(dst))*size
	return f.each(info, func(at int64, v []byte, n int64) error {
		decode(dst[at:at+n], v, info.DType)
		return nil
	})
}

// ReadFiniteF32 is ReadF32, and fails with a [*NotFiniteError] if a weight is NaN or infinite. Load weights with it: one
// NaN spreads over the whole model.
func (f *File) ReadFiniteF32(name string, dst []float32) error {
	if err := f.ReadF32(name, dst); err != nil {
		return err
	}
	if i := FirstNotFinite(dst); i >= 0 {
		return &NotFiniteError{File: f.name, Tensor: name, Index: int64(i), Value: dst[i]}
	}
	return nil
}

// CheckFinite reads a tensor of dtype F32 or BF16 and fails with a [*NotFiniteError] if a weight is NaN or infinite.
func (f *File) CheckFinite(name string) error {
	info, err := f.Tensor(name)
	if err != nil {
		return err
	}
	buf := make([]float32, min(info.Elements(), readChunk/4))
	return f.each(info, func(first int64, b []byte, n int64) error {
		size := info.DType.Size()
		for done := int64(0); done < n; {
			part := buf[:min(n-done, int64(len(buf)))]
			decode(part, b[done*size:], info.DType)
			if i := FirstNotFinite(part); i >= 0 {
				return &NotFiniteError{File: f.name, Tensor: name, Index: first + done + int64(i), Value: part[i]}
			}
			done += int64(len(part))
		}
		return nil
	})
}

// each hands out the bytes from begin to end of an F32 or BF16 tensor in pieces of n whole elements, the first of them
// being element first of those.
func (f *File) each(info Info, visit func(first int64, b []byte, n int64) error) error {
	if info.DType != F32 && info.DType != BF16 {
		return fmt.Errorf("%s: tensor %q: %w: %s", f.name, shorten(info.Name), ErrDType, info.DType)
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.closed {
		return fmt.Errorf("%s: %w", f.name, os.ErrClosed)
	}
	if f.mapped != nil {
		return f.guard(func() error {
			return visit(0, f.mapped[f.data+info.begin:f.data+info.end], info.Bytes()/info.DType.Size())
		})
	}
	size := info.DType.Size()
	buf := make([]byte, min(info.Bytes(), readChunk))
	for at := info.begin; at < info.end; {
		b := buf[:min(info.end-at, readChunk)]
		if err := f.readAt(b, f.data+at); err != nil {
			return err
		}
		if err := visit((at-info.begin)/size, b, int64(len(b))/size); err != nil {
			return err
		}
		at += int64(len(b))
	}
	return nil
}

// View returns a tensor's bytes as they stand in the file, little-endian, of any dtype. With [Open] they are the mapped
// pages themselves: read-only, valid until Close, not guarded against a file that shrinks. With [New] they are a copy.
func (f *File) View(name string) ([]byte, error) {
	info, err := f.Tensor(name)
	if err != nil {
		return nil, err
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.closed {
		return nil, fmt.Errorf("%s: %w", f.name, os.ErrClosed)
	}
	if f.mapped != nil {
		return f.mapped[f.data+info.begin : f.data+info.end : f.data+info.end], nil
	}
	b := make([]byte, info.Bytes())
	if err := f.readAt(b, f.data+info.begin); err != nil {
		return nil, err
	}
	return b, nil
}

// Close unmaps the file, after reads under way have finished. Views must no longer be used. Closing again does nothing.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	if f.mapped == nil {
		return nil
	}
	return f.mapped.Unmap()
}
