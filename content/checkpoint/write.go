package checkpoint

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/blockzero-net/bzd/content/checkpoint/safetensors"
)

var (
	// ErrContents: what was given to [Write] cannot be a checkpoint. The message lists every fault.
	ErrContents = errors.New("invalid checkpoint contents")
	// ErrExists: the target holds something else. Nothing was changed.
	ErrExists = errors.New("target exists")
	// ErrDiskFull: the disk has no room. Nothing was left behind.
	ErrDiskFull = errors.New("disk full")
)

// File is one tensor file to be written: its tensors, or an existing tensor file to be copied as it stands.
type File struct {
	Name    string // one path element that ends in ".safetensors", e.g. "router.safetensors"
	Tensors []Tensor
	From    string // path of a tensor file, instead of Tensors: files that did not change keep their CID at no cost
	// Known is the part that From is in a checkpoint that was verified. The file is linked rather than copied where the
	// disk can do that, and neither read nor handed out again.
	Known Part
}

// Contents is a checkpoint to be written. Write generates the index.
type Contents struct {
	Documents map[string][]byte // config.json at least; see DocumentNames
	Files     []File
}

// entry is one file of a directory to be written. write may be called more than once.
type entry struct {
	name  string
	write func(w io.Writer) error
	from  string // of a known file: where it lies
	known Part
}

// Write writes c as the checkpoint directory dir, whose parent must exist, and returns its CID. It is all or nothing: a
// temporary directory beside dir is filled, flushed to the disk, read back, and renamed. After an error dir is as it
// was, and nothing is left beside it; what a crash left, [RemovePartials] removes.
//
// A dir that already holds exactly this checkpoint is left alone. One that holds anything else is [ErrExists]. Contents
// that cannot be a checkpoint are [ErrContents], values that BF16 cannot hold [ErrNotExact], NaN and infinite weights
// [ErrNotFinite] (values of files copied with From are not looked at).
func Write(dir string, c Contents) (cid.Cid, error) {
	root, _, err := WriteBlocks(dir, c, nil)
	return root, err
}

// WriteBlocks is [Write], and hands out the blocks of what it wrote as [Blocks] does, for all files but the known ones.
func WriteBlocks(dir string, c Contents, emit func(blocks.Block) error) (cid.Cid, Parts, error) {
	return write(osFS{}, dir, c, emit)
}

func write(fsys fileSystem, dir string, c Contents, emit func(blocks.Block) error) (cid.Cid, Parts, error) {
	entries, err := c.entries(fsys)
	if err != nil {
		return cid.Undef, nil, err
	}
	return put(fsys, dir, entries, cid.Undef, emit)
}

// Copy copies the checkpoint in src, which must pass [OpenStrict], to dst, byte for byte and under the same rules as
// [Write]. It fails if the copy does not have the CID of the original.
func Copy(dst, src string) (cid.Cid, error) { return copyDir(osFS{}, dst, src) }

func copyDir(fsys fileSystem, dst, src string) (cid.Cid, error) {
	want, err := RootCID(src)
	if err != nil {
		return cid.Undef, err
	}
	c, err := OpenStrict(src)
	if err != nil {
		return cid.Undef, err
	}
	names := c.allNames()
	if err := c.Close(); err != nil {
		return cid.Undef, err
	}
	var entries []entry
	for _, name := range names {
		entries = append(entries, fileEntry(fsys, name, filepath.Join(src, name)))
	}
	root, _, err := put(fsys, dst, entries, want, nil)
	return root, err
}

// entries checks c, lists every fault, and returns the files in the order of their names.
func (c Contents) entries(fsys fileSystem) ([]entry, error) {
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf(format, args...))
	}
	var entries []entry
	if _, ok := c.Documents[ConfigName]; !ok {
		fault("%s is missing", ConfigName)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Documents)) {
		data := c.Documents[name]
		switch {
		case name == IndexName:
			fault("%s is generated, not given", name)
		case !isDocument(name):
			fault("%q is not a document of a checkpoint", name)
		case len(data) > MaxDocument:
			fault("%s has %d bytes, want at most %d", name, len(data), MaxDocument)
		case filepath.Ext(name) == ".json" && !json.Valid(data):
			fault("%s is not valid JSON", name)
		}
		entries = append(entries, bytesEntry(name, data))
	}
	if len(c.Files) > MaxFiles {
		fault("%d tensor files, want at most %d", len(c.Files), MaxFiles)
	}
	x := index{files: make(map[string]string)}
	place := func(tensor, file string, size int64) {
		if other, twice := x.files[tensor]; twice {
			fault("%s: tensor %q is already in %s", file, tensor, other)
		}
		x.files[tensor] = file
		x.totalSize += size
	}
	names := make(map[string]bool)
	for _, f := range c.Files {
		if err := checkFileName(f.Name); err != nil {
			fault("%w", err)
		}
		if names[f.Name] {
			fault("%s is given twice", f.Name)
		}
		names[f.Name] = true
		switch {
		case f.From != "" && f.Tensors != nil:
			fault("%s has both Tensors and From", f.Name)
		case f.From != "":
			tensors, err := peek(f.From)
			if err != nil {
				return nil, err
			}
			for _, t := range tensors {
				if err := safetensors.CheckName(t.Name); err != nil {
					fault("%s: %w", f.From, err)
				}
				place(t.Name, f.Name, t.Bytes())
			}
			if len(tensors) == 0 {
				fault("%s holds no tensor", f.From)
			}
			e := fileEntry(fsys, f.Name, f.From)
			if f.Known.CID.Defined() {
				e.from, e.known = f.From, f.Known
			}
			entries = append(entries, e)
		default:
			for i := range f.Tensors {
				if err := f.Tensors[i].Check(); err != nil {
					fault("%s: %w", f.Name, err)
				}
				place(f.Tensors[i].Name, f.Name, f.Tensors[i].Bytes())
			}
			if len(f.Tensors) == 0 {
				fault("%s holds no tensor", f.Name)
			}
			entries = append(entries, tensorEntry(f))
		}
	}
	if len(c.Files) == 0 {
		fault("there is no tensor file")
	}
	if len(x.files) > MaxTensors {
		fault("%d tensors, want at most %d", len(x.files), MaxTensors)
	}
	if faults != nil {
		return nil, fmt.Errorf("%w: %w", ErrContents, errors.Join(faults...))
	}
	data := x.encode()
	if len(data) > MaxIndex {
		return nil, fmt.Errorf("%w: the index has %d bytes, want at most %d", ErrContents, len(data), MaxIndex)
	}
	entries = append(entries, bytesEntry(IndexName, data))
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return entries, nil
}

// peek lists the tensors of a file.
func peek(path string) ([]safetensors.Info, error) {
	if stat, err := os.Lstat(path); err != nil {
		return nil, err
	} else if !stat.Mode().IsRegular() {
		return nil, &FormatError{File: path, Reason: "not a regular file"}
	}
	f, err := safetensors.Open(path)
	if err != nil {
		return nil, err
	}
	return f.Tensors(), f.Close()
}

func bytesEntry(name string, data []byte) entry {
	return entry{name: name, write: func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	}}
}

func tensorEntry(f File) entry {
	finite := func(tensor string, v []float32) error {
		if i := safetensors.FirstNotFinite(v); i >= 0 {
			return &NotFiniteError{File: f.Name, Tensor: tensor, Index: int64(i), Value: v[i]}
		}
		return nil
	}
	return entry{name: f.Name, write: func(w io.Writer) error {
		tensors := slices.Clone(f.Tensors)
		for i, t := range tensors {
			if err := finite(t.Name, t.Data); err != nil {
				return err
			}
			if t.Load == nil {
				continue
			}
			tensors[i].Load = func() ([]float32, error) {
				v, err := t.Load()
				if err == nil {
					err = finite(t.Name, v)
				}
				return v, err
			}
		}
		return safetensors.Write(w, tensors)
	}}
}

func fileEntry(fsys fileSystem, name, path string) entry {
	return entry{name: name, write: func(w io.Writer) error {
		f, err := fsys.Open(path)
		if err != nil {
			return err
		}
		_, err = io.Copy(w, bufio.NewReaderSize(f, 1<<18))
		return errors.Join(err, f.Close())
	}}
}
