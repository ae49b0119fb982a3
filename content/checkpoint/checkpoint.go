package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ipfs/go-cid"

	"github.com/blockzero-net/bzd/content/checkpoint/safetensors"
)

// Info describes one tensor of a checkpoint.
type Info struct {
	Name  string
	DType DType
	Shape []int64
	File  string // the tensor file that holds it

	elements int64
}

// Elements is the product of the shape: the length of what ReadF32 fills.
func (i Info) Elements() int64 { return i.elements }

// FileInfo describes one tensor file of a checkpoint.
type FileInfo struct {
	Name    string
	Size    int64 // of the file, in bytes
	Tensors int   // how many it holds
}

// Checkpoint is an open checkpoint. Its methods may be called at the same time, Close too.
type Checkpoint struct {
	dir       string
	documents []string // sorted
	stray     []string // sorted
	hasIndex  bool
	files     map[string]*safetensors.File
	names     []string // of files, sorted
	tensors   []Info   // sorted by name
}

// Open maps the tensor files of dir and checks the structure: the documents and files that the index names are regular
// files of bounded size, every tensor file is well-formed, and index and files name the same tensors, each once. A
// directory without an index and with a single model.safetensors opens too. Values are not looked at.
//
// Other files in dir are not part of the checkpoint; [Checkpoint.Stray] lists them. What is wrong with dir's files
// matches [ErrFormat]; other errors come from the operating system.
func Open(dir string) (*Checkpoint, error) { return open(dir, false) }

// OpenStrict is Open, and refuses a directory with stray files, which would be part of its CID, and an index whose
// total size is not that of its tensors. Every directory that [Write] made passes.
func OpenStrict(dir string) (*Checkpoint, error) { return open(dir, true) }

func open(dir string, strict bool) (_ *Checkpoint, err error) {
	c := &Checkpoint{dir: dir, files: make(map[string]*safetensors.File)}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open checkpoint: %w", err)
	}
	modes := make(map[string]fs.FileMode, len(entries))
	for _, e := range entries {
		modes[e.Name()] = e.Type()
	}
	if _, c.hasIndex = modes[IndexName]; c.hasIndex {
		err = c.openIndexed(modes, strict)
	} else {
		err = c.openSingle(modes)
	}
	if err != nil {
		return nil, err
	}
	for _, name := range documentNames {
		if _, ok := modes[name]; !ok {
			continue
		}
		if err := c.regular(name, modes, MaxDocument); err != nil {
			return nil, err
		}
		c.documents = append(c.documents, name)
	}
	if !slices.Contains(c.documents, ConfigName) {
		return nil, &FormatError{File: filepath.Join(dir, ConfigName), Reason: "missing"}
	}
	for _, e := range entries {
		name := e.Name()
		if _, ok := c.files[name]; !ok && !isDocument(name) && name != IndexName {
			c.stray = append(c.stray, name)
		}
	}
	if !strict {
		return c, nil
	}
	for _, name := range c.stray {
		return nil, &FormatError{File: filepath.Join(dir, name),
			Reason: "does not belong to the checkpoint and would change its CID; move it elsewhere"}
	}
	return c, nil
}

// regular checks the type and size of a file of the directory before it is opened.
func (c *Checkpoint) regular(name string, modes map[string]fs.FileMode, limit int64) error {
	path := filepath.Join(c.dir, name)
	mode, ok := modes[name]
	switch {
	case !ok:
		return &FormatError{File: path, Reason: "missing"}
	case mode&fs.ModeSymlink != 0:
		return &FormatError{File: path, Reason: "is a symbolic link; copy the files themselves (cp -rL)"}
	case !mode.IsRegular():
		return &FormatError{File: path, Reason: "not a regular file"}
	}
	stat, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !stat.Mode().IsRegular() {
		return &FormatError{File: path, Reason: "not a regular file"}
	}
	if limit > 0 && stat.Size() > limit {
		return &FormatError{File: path, Reason: fmt.Sprintf("%d bytes, want at most %d", stat.Size(), limit)}
	}
	return nil
}

// openIndexed opens the files that the index names and holds index and files against each other.
func (c *Checkpoint) openIndexed(modes map[string]fs.FileMode, strict bool) error {
	if err := c.regular(IndexName, modes, MaxIndex); err != nil {
		return err
	}
	path := filepath.Join(c.dir, IndexName)
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	x, err := parseIndex(path, data)
	if err != nil {
		return err
	}
	refuse := func(tensor, format string, args ...any) error {
		return &FormatError{File: path, Tensor: tensor, Field: "weight_map", Reason: fmt.Sprintf(format, args...)}
	}
	// The first tensor of each file in sorted order makes the message the same every time.
	wanted := make([]string, 0, len(x.files))
	for tensor := range x.files {
		wanted = append(wanted, tensor)
	}
	slices.Sort(wanted)
	for _, tensor := range wanted {
		name := x.files[tensor]
		if c.files[name] != nil {
			continue
		}
		if _, ok := modes[name]; !ok {
			return refuse(tensor, "in file %q, which is missing", name)
		}
		if err := c.openFile(name, modes); err != nil {
			return err
		}
	}
	var total int64
	for _, name := range c.names {
		for _, t := range c.files[name].Tensors() {
			mapped, ok := x.files[t.Name]
			switch {
			case !ok:
				return refuse(t.Name, "missing, but file %q holds it", name)
			case mapped != name:
				return refuse(t.Name, "in file %q, but file %q holds it", mapped, name)
			}
			total += t.Bytes()
		}
	}
	for _, tensor := range wanted {
		if _, err := c.files[x.files[tensor]].Tensor(tensor); err != nil {
			return refuse(tensor, "in file %q, which does not hold it", x.files[tensor])
		}
	}
	// Models in the wild state anything here, and nothing depends on it.
	if strict && x.totalSize != total {
		return &FormatError{File: path, Field: "metadata.total_size",
			Reason: fmt.Sprintf("want the integer %d, the bytes of all tensors", total)}
	}
	c.list()
	return nil
}

func (c *Checkpoint) openSingle(modes map[string]fs.FileMode) error {
	if _, ok := modes[SingleName]; !ok {
		return &FormatError{File: filepath.Join(c.dir, IndexName), Reason: "missing, and there is no " + SingleName + " either"}
	}
	if err := c.openFile(SingleName, modes); err != nil {
		return err
	}
	c.list()
	return nil
}

// openFile maps one tensor file and keeps names sorted.
func (c *Checkpoint) openFile(name string, modes map[string]fs.FileMode) error {
	if err := c.regular(name, modes, 0); err != nil {
		return err
	}
	f, err := safetensors.Open(filepath.Join(c.dir, name))
	if err != nil {
		return err
	}
	c.files[name] = f
	at, _ := slices.BinarySearch(c.names, name)
	c.names = slices.Insert(c.names, at, name)
	return nil
}

func (c *Checkpoint) list() {
	for _, name := range c.names {
		for _, t := range c.files[name].Tensors() {
			c.tensors = append(c.tensors, Info{Name: t.Name, DType: t.DType, Shape: t.Shape, File: name, elements: t.Elements()})
		}
	}
	slices.SortFunc(c.tensors, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
}

// Documents lists the documents present, sorted.
func (c *Checkpoint) Documents() []string { return slices.Clone(c.documents) }

// Document reads a document. One that the checkpoint does not hold is [fs.ErrNotExist].
func (c *Checkpoint) Document(name string) ([]byte, error) {
	path := filepath.Join(c.dir, name)
	if !slices.Contains(c.documents, name) {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return os.ReadFile(path)
}

// Files lists the tensor files, sorted by name.
func (c *Checkpoint) Files() []FileInfo {
	infos := make([]FileInfo, len(c.names))
	for i, name := range c.names {
		f := c.files[name]
		infos[i] = FileInfo{Name: name, Size: f.Size(), Tensors: len(f.Tensors())}
	}
	return infos
}

// Tensors lists the tensors of all files, sorted by name. The shapes must not be changed.
func (c *Checkpoint) Tensors() []Info { return slices.Clone(c.tensors) }

// Tensor describes one tensor, or fails with [ErrNoTensor].
func (c *Checkpoint) Tensor(name string) (Info, error) {
	i, ok := slices.BinarySearchFunc(c.tensors, name, func(t Info, name string) int { return strings.Compare(t.Name, name) })
	if !ok {
		return Info{}, fmt.Errorf("%s: %w: %q", c.dir, ErrNoTensor, name)
	}
	return c.tensors[i], nil
}

// Stray lists what lies in the directory and is not part of the checkpoint, sorted.
func (c *Checkpoint) Stray() []string { return slices.Clone(c.stray) }

// ReadF32 fills dst, whose length must be the tensor's number of elements, with an F32 or BF16 tensor. BF16 converts
// exactly. NaN and infinities pass.
func (c *Checkpoint) ReadF32(name string, dst []float32) error {
	t, err := c.Tensor(name)
	if err != nil {
		return err
	}
	return c.files[t.File].ReadF32(name, dst)
}

// ReadFiniteF32 is ReadF32, and fails with a [*NotFiniteError] if a weight is NaN or infinite.
func (c *Checkpoint) ReadFiniteF32(name string, dst []float32) error {
	t, err := c.Tensor(name)
	if err != nil {
		return err
	}
	return c.files[t.File].ReadFiniteF32(name, dst)
}

// ReadFinitePart fills dst with the values of an F32 or BF16 tensor from number first on, row-major, and fails with a
// [*NotFiniteError] if one of them is NaN or infinite.
func (c *Checkpoint) ReadFinitePart(name string, first int64, dst []float32) error {
	t, err := c.Tensor(name)
	if err != nil {
		return err
	}
	return c.files[t.File].ReadFinitePart(name, first, dst)
}

// View returns the bytes of a tensor where they are mapped, as [safetensors.File.View] does: read-only, until Close.
func (c *Checkpoint) View(name string) ([]byte, error) {
	t, err := c.Tensor(name)
	if err != nil {
		return nil, err
	}
	return c.files[t.File].View(name)
}

// CID computes the CID of the directory from the disk as it is now; see [RootCID].
func (c *Checkpoint) CID() (cid.Cid, error) { return RootCID(c.dir) }

// Close unmaps the files, after reads under way have finished.
func (c *Checkpoint) Close() error {
	var errs []error
	for _, f := range c.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
