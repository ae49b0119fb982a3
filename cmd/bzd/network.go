package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/cpu"
	"github.com/blockzero-net/bzd/training/data"
)

const (
	genesisFile = "genesis.cbor"
	genesisDir  = "genesis"
)

// networkDir returns the directory of the network.
func (c *common) networkDir() (string, error) {
	for _, d := range []string{c.dir, c.env.getenv("BZD_DIR")} {
		if d != "" {
			return d, nil
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no place for the network: %w; give one with --dir", err)
	}
	return filepath.Join(cache, "bzd"), nil
}

// openNetwork reads the network in the directory with the datasets of the named domains (nil: all), setting up the
// embedded genesis if there is none. It returns the directory of Φ(0) too. A --data that the network has no domain for
// is an error: it would change nothing.
func (c *common) openNetwork(b *cpu.Backend, domains func(protocol.Genesis) []string) (*local.Network, string, error) {
	dir, err := c.networkDir()
	if err != nil {
		return nil, "", err
	}
	start := filepath.Join(dir, genesisDir)
	g, err := readGenesis(filepath.Join(dir, genesisFile))
	if errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintf(c.env.err, "bzd: setting up the embedded genesis in %s\n", dir)
		o := local.DefaultGenesis()
		if c.topK >= 0 {
			o.Params.TopK = uint32(c.topK)
		}
		g, _, err = c.found(b, nil, dir, o)
	}
	if err != nil {
		return nil, "", err
	}
	all := []string{}
	for _, d := range g.Domains {
		all = append(all, d.Name)
	}
	for _, p := range c.data {
		if !slices.Contains(all, p[0]) {
			return nil, "", fmt.Errorf("--data %s=%s: the network in %s has no domain %q, it has %s", p[0], p[1], dir, p[0], strings.Join(all, ", "))
		}
	}
	names := all
	if domains != nil {
		names = domains(g)
	}
	sets, err := c.datasets(names)
	if err != nil {
		return nil, "", err
	}
	n, err := local.NewNetwork(g, sets)
	return n, start, err
}

func readGenesis(path string) (protocol.Genesis, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return protocol.Genesis{}, err
	}
	g, err := protocol.DecodeGenesis(raw)
	if err != nil {
		return protocol.Genesis{}, fmt.Errorf("%s: %w", path, err)
	}
	return g, nil
}

// phi loads the checkpoint in dir, or Φ(0) in start if dir is empty: that one must be what the genesis names.
func (c *common) phi(b backend.Backend, n *local.Network, dir, start string) (*local.Phi, error) {
	return c.phiBy(local.LoadPhi, b, n, dir, start)
}

// phiBy is phi with its way of loading.
func (c *common) phiBy(load func(backend.Backend, string) (*local.Phi, error), b backend.Backend, n *local.Network, dir, start string) (*local.Phi, error) {
	if dir != "" {
		return load(b, dir)
	}
	p, err := load(b, start)
	if err == nil && p.Link != n.Genesis.Checkpoint {
		err = fmt.Errorf("the checkpoint in %s is %s, the genesis beside it starts from %s; one of them was replaced", start, p.Link, n.Genesis.Checkpoint)
	}
	return p, err
}

// found composes a genesis from a base, the embedded one if it is nil, and the text of this machine, and writes it to dir.
func (c *common) found(b *cpu.Backend, base *local.Phi, dir string, o local.GenesisOptions) (g protocol.Genesis, admitted []local.Admission, err error) {
	sets, err := c.foundingSets(dir, o, nil)
	if err != nil {
		return g, nil, err
	}
	if base == nil {
		base = &local.Phi{}
		if base.Model, err = local.EmbeddedBase(b); err != nil {
			return g, nil, err
		}
	}
	if n := o.Plan.Copies; n < 1 || n > base.Model.Experts {
		return g, nil, usageError("--experts %d: 1 to %d, as many as the base has to copy", n, base.Model.Experts)
	}
	g, err = writeGenesis(dir, sets, func(checkpoint string) (g protocol.Genesis, err error) {
		g, admitted, err = local.Compose(b, base, sets, checkpoint, o)
		return g, err
	})
	return g, admitted, err
}

// anotherNetwork is what there is in a directory that was to hold a network.
func anotherNetwork(dir string) error {
	return fmt.Errorf("%s is another network; choose another --dir", filepath.Join(dir, genesisFile))
}

// foundingSets is the text to found a network on, of all domains if names is nil, unless dir holds another network.
func (c *common) foundingSets(dir string, o local.GenesisOptions, names []string) ([]*data.Dataset, error) {
	switch there, err := readGenesis(filepath.Join(dir, genesisFile)); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("%w; choose another --dir, or remove it", err)
	case there.Name != o.Name || there.Canary != o.Canary:
		return nil, anotherNetwork(dir)
	}
	sets, err := c.datasets(names)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(sets, func(d *data.Dataset) bool { return d.Name() == o.Canary }) {
		return nil, fmt.Errorf("no general text for the canary: give some with --data %s=DIR, or set GOROOT", o.Canary)
	}
	if len(sets) < 2 {
		return nil, errors.New("no domain to train: give one with --data NAME=DIR")
	}
	return sets, nil
}

// writeGenesis lets compose write the checkpoint below dir and writes the genesis file last: a directory with one is whole.
func writeGenesis(dir string, sets []*data.Dataset, compose func(checkpoint string) (protocol.Genesis, error)) (protocol.Genesis, error) {
	file, checkpoint := filepath.Join(dir, genesisFile), filepath.Join(dir, genesisDir)
	undo := absent(dir, checkpoint)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return protocol.Genesis{}, err
	}
	g, err := compose(checkpoint)
	if err == nil {
		_, err = local.NewNetwork(g, sets)
	}
	var raw, there []byte
	if err == nil {
		raw, err = protocol.Encode(g)
	}
	if err == nil {
		if there, err = os.ReadFile(file); errors.Is(err, fs.ErrNotExist) {
			err = writeFile(file, raw)
		} else if err == nil && !bytes.Equal(there, raw) {
			err = anotherNetwork(dir)
		}
	}
	if err != nil {
		return protocol.Genesis{}, errors.Join(err, undo())
	}
	return g, nil
}

// absent returns a function that removes those of the paths that do not exist now, the last first.
func absent(paths ...string) func() error {
	var gone []string
	for _, p := range paths {
		if _, err := os.Lstat(p); errors.Is(err, fs.ErrNotExist) {
			gone = append(gone, p)
		}
	}
	return func() error {
		var errs []error
		for _, p := range slices.Backward(gone) {
			errs = append(errs, os.RemoveAll(p))
		}
		return errors.Join(errs...)
	}
}

// newFile says, before any work is done for it, whether a file can be written to path.
func newFile(path string) error {
	if err := parentOf(path); err != nil {
		return err
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return fmt.Errorf("cannot write %s: it is a directory; give the name of a file", path)
	}
	return nil
}

// newDir says, before any work is done for it, whether a directory can be written to path.
func newDir(path string) error {
	if err := parentOf(path); err != nil {
		return err
	}
	if info, err := os.Stat(path); err == nil && !info.IsDir() {
		return fmt.Errorf("cannot write %s: it is a file; give the name of a directory", path)
	}
	return nil
}

func parentOf(path string) error {
	parent := filepath.Dir(filepath.Clean(path))
	info, err := os.Stat(parent)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("cannot write %s: there is no directory %s; make it first", path, parent)
	case err != nil:
		return fmt.Errorf("cannot write %s: %w", path, err)
	case !info.IsDir():
		return fmt.Errorf("cannot write %s: %s is not a directory", path, parent)
	}
	return nil
}

// writeFile replaces a file by data, all or nothing.
func writeFile(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Chmod(f.Name(), 0o644); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// genesisCID names the network.
func genesisCID(g protocol.Genesis) string {
	raw, err := protocol.Encode(g)
	if err != nil {
		return "invalid: " + err.Error()
	}
	return protocol.LinkTo(protocol.DagCBOR, raw).String()
}
