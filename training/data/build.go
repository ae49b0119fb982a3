package data

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"unicode/utf8"
)

// Options bound what [FromDir] reads and keeps. The zero value means the
// defaults.
type Options struct {
	// HeldOut is the permille of pieces held out, 1 to 999. Default 100.
	HeldOut int
	// MaxBytes caps the dataset: beyond it the pieces with the smallest
	// hashes are kept. Default 8 MiB, PieceSize to 256 MiB.
	MaxBytes int64
	// MaxRead bounds the bytes read to find them; more is an error. Default
	// 1 GiB.
	MaxRead int64
	// PieceSize is the size at which text is cut, 64 bytes to MaxPiece, the
	// default.
	PieceSize int
	// Workers is how many files are read at once. Default: one per processor.
	// It changes nothing but the time taken.
	Workers int
}

// DefaultMaxBytes caps a dataset unless [Options] say otherwise.
const DefaultMaxBytes = 8 << 20

const (
	defaultHeldOut = 100
	defaultMaxRead = 1 << 30
	maxMaxBytes    = MaxPieces * MaxPiece
	minPieceSize   = 64
	readBuffer     = 256 << 10
	maxWorkers     = 16
)

func (o Options) withDefaults() (Options, error) {
	if o.HeldOut == 0 {
		o.HeldOut = defaultHeldOut
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.MaxRead == 0 {
		o.MaxRead = defaultMaxRead
	}
	if o.PieceSize == 0 {
		o.PieceSize = MaxPiece
	}
	if o.Workers == 0 {
		o.Workers = min(runtime.GOMAXPROCS(0), maxWorkers)
	}
	var faults []error
	check := func(name string, v, low, high int64) {
		if v < low || v > high {
			faults = append(faults, fmt.Errorf("data: %w: %s is %d, want %d to %d", ErrOption, name, v, low, high))
		}
	}
	check("HeldOut", int64(o.HeldOut), 1, 999)
	check("MaxBytes", o.MaxBytes, int64(o.PieceSize), maxMaxBytes)
	check("MaxRead", o.MaxRead, 1, 1<<50)
	check("PieceSize", int64(o.PieceSize), minPieceSize, MaxPiece)
	check("Workers", int64(o.Workers), 1, 1024)
	return o, errors.Join(faults...)
}

// FromDir builds a dataset from all regular text files (UTF-8 without a NUL
// byte) below dir. Names that begin with a dot are left out, so that neither
// version control nor secrets are published, and symbolic links are not
// followed below dir. Errors: [NoTextError], [ErrTooLarge], [ErrOption], or
// what the file system said, fs.ErrNotExist among it.
func FromDir(name, dir string, opts Options) (*Dataset, error) {
	if why := badName(name); why != "" {
		return nil, fmt.Errorf("data: %w: domain name: %s", ErrOption, why)
	}
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	root, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("data: domain %q: directory %q: %w", name, dir, err)
	}
	if info, err := os.Stat(root); err != nil {
		return nil, fmt.Errorf("data: domain %q: directory %q: %w", name, dir, err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("data: domain %q: %w: %q is not a directory", name, ErrOption, dir)
	}
	var files []source
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case path != root && strings.HasPrefix(e.Name(), "."):
			if e.IsDir() {
				return filepath.SkipDir
			}
		case e.Type().IsRegular():
			files = append(files, source{path: path})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("data: domain %q: directory %q: %w", name, dir, err)
	}
	return build(name, dir, files, opts)
}

// source is a file to take text from.
type source struct {
	path string
	// noGenerated leaves the file out if it says that it is generated code.
	noGenerated bool
	// html converts the file to plain text first.
	html bool
}

type verdict uint8

const (
	isText verdict = iota
	isEmpty
	isNotText
	isGenerated
)

// builder is what the workers share.
type builder struct {
	name    string
	opts    Options
	files   []source
	next    atomic.Int64
	read    atomic.Int64
	stop    atomic.Bool
	verdict []verdict
	errs    []error
}

// build reads the files with opts.Workers goroutines and keeps what opts allow.
// Neither the order of files nor the number of workers changes the result.
func build(name, dir string, files []source, opts Options) (*Dataset, error) {
	b := &builder{name: name, opts: opts, files: files, verdict: make([]verdict, len(files)), errs: make([]error, len(files))}
	parts := make([]*collector, min(opts.Workers, len(files)))
	var wg sync.WaitGroup
	for w := range parts {
		parts[w] = &collector{maxBytes: opts.MaxBytes}
		wg.Go(func() { b.work(parts[w]) })
	}
	wg.Wait()
	for _, err := range b.errs {
		if err != nil {
			return nil, err
		}
	}
	all := &collector{maxBytes: opts.MaxBytes}
	for _, p := range parts {
		all.merge(p)
	}
	all.prune()
	if len(all.pieces) == 0 {
		e := &NoTextError{Domain: name, Dir: dir, Files: len(files)}
		for _, v := range b.verdict {
			switch v {
			case isEmpty:
				e.Empty++
			case isNotText:
				e.NotText++
			case isGenerated:
				e.Skipped++
			}
		}
		return nil, e
	}
	return newDataset(name, opts.HeldOut, all.pieces)
}

func (b *builder) work(c *collector) {
	buf := make([]byte, readBuffer)
	for !b.stop.Load() {
		i := b.next.Add(1) - 1
		if i >= int64(len(b.files)) {
			return
		}
		if b.verdict[i], b.errs[i] = b.file(b.files[i], buf, c); b.errs[i] != nil {
			b.stop.Store(true)
		}
	}
}

// file adds the pieces of one file to c, all or none.
func (b *builder) file(src source, buf []byte, c *collector) (verdict, error) {
	f, err := os.Open(src.path)
	if err != nil {
		return 0, fmt.Errorf("data: domain %q: %w", b.name, err)
	}
	defer f.Close()
	var r io.Reader = &meter{f, b}
	if src.html {
		text, err := htmlText(r)
		if err != nil {
			return 0, fmt.Errorf("data: domain %q: %s: %w", b.name, src.path, err)
		}
		r = bytes.NewReader(text)
	}
	v := isEmpty
	own := &collector{maxBytes: c.maxBytes, full: c.full, limit: c.limit}
	err = cutReader(r, buf, b.opts.PieceSize, func(p []byte) bool {
		switch {
		case !utf8.Valid(p) || bytes.IndexByte(p, 0) >= 0:
			v = isNotText
		case src.noGenerated && saysGenerated(p):
			v = isGenerated
		default:
			v = isText
			own.add(p)
		}
		return v == isText
	})
	if err != nil {
		return 0, fmt.Errorf("data: domain %q: %s: %w", b.name, src.path, err)
	}
	if v == isText {
		c.merge(own)
	}
	return v, nil
}

// saysGenerated reports whether some line has the form that Go tools use to
// mark generated files.
func saysGenerated(text []byte) bool {
	const head, tail = "// Code generated ", " DO NOT EDIT."
	for {
		i := bytes.Index(text, []byte(head))
		if i < 0 {
			return false
		}
		line, rest, _ := bytes.Cut(text[i:], []byte("\n"))
		line = bytes.TrimSuffix(line, []byte("\r"))
		if (i == 0 || text[i-1] == '\n') && len(line) >= len(head)+len(tail)-1 && bytes.HasSuffix(line, []byte(tail)) {
			return true
		}
		text = rest
	}
}

// meter counts what all workers read and refuses to go past the bound.
type meter struct {
	r io.Reader
	b *builder
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	if m.b.read.Add(int64(n)) > m.b.opts.MaxRead {
		return 0, fmt.Errorf("%w: more than the %d bytes that may be read in all; name a smaller directory or raise MaxRead", ErrTooLarge, m.b.opts.MaxRead)
	}
	return n, err
}
