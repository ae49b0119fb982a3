package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/blockzero-net/bzd/internal/protocol"
	"github.com/blockzero-net/bzd/node/local"
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
// embedded genesis if there is none. It returns the directory of Φ(0) too.
func (c *common) openNetwork(b *cpu.Backend, domains func(protocol.Genesis) []string) (*local.Network, string, error) {
	dir, err := c.networkDir()
	if err != nil {
		return nil, "", err
	}
	start := filepath.Join(dir, genesisDir)
	g, err := readGenesis(filepath.Join(dir, genesisFile))
	if errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintf(c.env.err, "bzd: setting up the embedded genesis in %s\n", dir)
		g, _, err = c.found(b, dir, local.DefaultGenesis())
	}
	if err != nil {
		return nil, "", err
	}
	names := []string{}
	if domains != nil {
		names = domains(g)
	} else {
		for _, d := range g.Domains {
			names = append(names, d.Name)
		}
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

// found composes a genesis from the embedded base and the text of this machine, and writes it to dir. The genesis file
// comes last: a directory with one is whole.
func (c *common) found(b *cpu.Backend, dir string, o local.GenesisOptions) (protocol.Genesis, []local.Admission, error) {
	fail := func(err error) (protocol.Genesis, []local.Admission, error) { return protocol.Genesis{}, nil, err }
	sets, err := c.datasets(nil)
	if err != nil {
		return fail(err)
	}
	if !slices.ContainsFunc(sets, func(d *data.Dataset) bool { return d.Name() == o.Canary }) {
		return fail(fmt.Errorf("no general text for the canary: give some with --data %s=DIR, or set GOROOT", o.Canary))
	}
	if len(sets) < 2 {
		return fail(errors.New("no domain to train: give one with --data NAME=DIR"))
	}
	base, err := local.EmbeddedBase(b)
	if err != nil {
		return fail(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fail(err)
	}
	g, admitted, err := local.Compose(b, base, sets, filepath.Join(dir, genesisDir), o)
	if err != nil {
		return fail(err)
	}
	if _, err := local.NewNetwork(g, sets); err != nil {
		return fail(err)
	}
	raw, err := protocol.Encode(g)
	if err != nil {
		return fail(err)
	}
	return g, admitted, writeFile(filepath.Join(dir, genesisFile), raw)
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
