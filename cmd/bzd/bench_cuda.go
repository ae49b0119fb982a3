//go:build cuda

package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/blockzero-net/bzd/training/backend"
	"github.com/blockzero-net/bzd/training/cuda"
	"github.com/blockzero-net/bzd/training/cuda/driver"
)

// benchCard opens a card and shows its memory.
func benchCard(number int, fast bool, l limits) (backend.Backend, *meteredCard, error) {
	d, err := driver.Open(number)
	if err != nil {
		return nil, nil, err
	}
	free, _, err := d.MemInfo()
	if err != nil {
		return nil, nil, errors.Join(err, d.Close())
	}
	mode := cuda.Exact
	if fast {
		mode = cuda.Fast
	}
	var on cuda.Driver = d
	shut := d.Close
	if l.profile {
		p := cuda.NewProfile(d)
		on, shut = p, func() error {
			kernels, err := p.Report()
			for _, k := range kernels {
				fmt.Fprintf(os.Stderr, "%-40s %6d launches %10.3f ms\n", k.Name, k.Launches, 1e3*k.Seconds)
			}
			return errors.Join(err, d.Close())
		}
	}
	b, err := cuda.New(on, cuda.Options{Mode: mode, Memory: l.memory, Resident: l.resident, Untried: l.untried})
	if err != nil {
		return nil, nil, errors.Join(err, d.Close())
	}
	i := d.Info()
	return b, &meteredCard{
		what: fmt.Sprintf("%s, compute capability %d.%d, %d multiprocessors, %d MiB, driver for CUDA %s", i.Name, i.Major, i.Minor, i.SMs,
			i.Memory>>20, driver.Version(i.DriverVersion)),
		used: b.Used,
		taken: func() int64 {
			now, _, err := d.MemInfo()
			if err != nil {
				return 0
			}
			return free - now
		},
		close: shut,
	}, nil
}

// cardFree is how much memory of the card is free, and its name.
func cardFree(number int) (int64, string, error) {
	d, err := driver.Open(number)
	if err != nil {
		return 0, "", err
	}
	free, _, err := d.MemInfo()
	return free, d.Info().Name, errors.Join(err, d.Close())
}
