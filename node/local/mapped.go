package local

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/blockzero-net/bzd/content/checkpoint"
	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/model"
)

// ErrChanged is wrapped when a checkpoint's files were changed while they were computed with.
var ErrChanged = errors.New("checkpoint changed while in use")

// mapped are the files that a model lies in.
type mapped struct {
	c     *checkpoint.Checkpoint
	files []*os.File
	begin []os.FileInfo
}

// LoadMapped is LoadPhi for a model that may be larger than memory: its matrices stay in the checkpoint's files, and come
// into memory when they are used. It computes the same bits, trains and is measured as any other. The files must not be
// changed until Close; to replace or remove them is fine. A file that was written to is noticed, at the end of what
// was computed, by its size and time of modification (ErrChanged), one that was cut short when it is read (cpu.ErrMapped).
func LoadMapped(b backend.Backend, dir string) (*Phi, error) {
	c, err := checkpoint.OpenStrict(dir)
	if err != nil {
		return nil, err
	}
	p := &Phi{mapped: &mapped{c: c}}
	fail := func(err error) (*Phi, error) { return nil, errors.Join(err, p.Close()) }
	for _, f := range c.Files() {
		if err := p.mapped.open(filepath.Join(dir, f.Name)); err != nil {
			return fail(err)
		}
	}
	if err := p.read(c, dir, func(c model.Config, w *weights) (*model.Model, error) {
		return model.NewMapped(b, c, w.read, w.view)
	}); err != nil {
		return fail(err)
	}
	root, parts, err := checkpoint.Blocks(dir, nil, nil)
	if err != nil {
		return fail(err)
	}
	p.Parts = parts
	if p.Link, err = protocol.NewLink(root); err != nil {
		return fail(err)
	}
	return p, p.unchanged()
}

func (m *mapped) open(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	m.files = append(m.files, f)
	info, err := f.Stat()
	m.begin = append(m.begin, info)
	return err
}

// unchanged checks that the files a model lies in are those that were loaded.
func (p *Phi) unchanged() error {
	if p.mapped == nil {
		return nil
	}
	for i, f := range p.mapped.files {
		now, err := f.Stat()
		if err != nil {
			return err
		}
		if was := p.mapped.begin[i]; now.Size() != was.Size() || !now.ModTime().Equal(was.ModTime()) {
			return fmt.Errorf("%w: %s was written to; restore it and start again", ErrChanged, f.Name())
		}
	}
	return nil
}

// Close lets go of the files of a model from LoadMapped, which must not be used any more. For others it does nothing.
func (p *Phi) Close() error {
	if p.mapped == nil {
		return nil
	}
	errs := []error{p.mapped.c.Close()}
	for _, f := range p.mapped.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
